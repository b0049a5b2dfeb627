"What torch reports of a machine that is not this one, and what the kit makes of it: `kdkit doctor`, and the first act of `distill`."
import re
import warnings
from types import SimpleNamespace

import pytest
import torch

from kdkit import doctor, run
from kdkit.cli import main
from kdkit.devices import Gpu, Machine, has_kernels, in_short, launch, look

GB = 2**30
WHEEL = ['sm_70', 'sm_75', 'sm_80', 'sm_86', 'sm_90', 'sm_100', 'sm_120']  # of a wheel for CUDA 12.8

def report(monkeypatch, cards=(), arches=WHEEL, version='2.10.0+cu128', cuda='12.8', files=0):
    "Let torch report these cards: (name, capability, bytes)."
    about = [SimpleNamespace(name=name, major=capability[0], minor=capability[1], total_memory=size) for name, capability, size in cards]
    says = dict(is_available=lambda: bool(cards), device_count=lambda: len(cards), get_arch_list=lambda: arches,
                get_device_properties=lambda i=0: about[i],
                get_device_capability=lambda i=0: (about[i].major, about[i].minor), get_device_name=lambda i=0: about[i].name,
                mem_get_info=lambda i=0: (about[i].total_memory - GB // 4, about[i].total_memory))
    for name, call in says.items(): monkeypatch.setattr(torch.cuda, name, call)
    monkeypatch.setattr('kdkit.devices.nvidia_files', lambda: [f'/dev/nvidia{i}' for i in range(max(files, len(cards)))])
    monkeypatch.setattr(torch, '__version__', version), monkeypatch.setattr(torch.version, 'cuda', cuda)
    monkeypatch.setattr(doctor, 'reaches_hub', lambda: '')

P100, T4, A100 = ('Tesla P100-PCIE-16GB', (6, 0), 16 * GB), ('Tesla T4', (7, 5), 15 * GB), ('NVIDIA A100-SXM4-40GB', (8, 0), 40 * GB)

def no_driver(monkeypatch, message='The NVIDIA driver on your system is too old (found version 11040)'):
    "A driver that says no, and why."
    report(monkeypatch, files=1)
    def is_available():
        warnings.warn(f'CUDA initialization: {message}')
        return False
    monkeypatch.setattr(torch.cuda, 'is_available', is_available)

def silent_driver(monkeypatch):
    "One that says no, had its only warning before, and says why when it is asked to begin."
    report(monkeypatch, files=1)
    def init(): raise RuntimeError('CUDA driver initialization failed, you might not have a CUDA gpu.')
    monkeypatch.setattr(torch.cuda, 'init', init)

def crashed(monkeypatch):
    "One that says yes, and then fails."
    report(monkeypatch, [T4])
    def fails(*_): raise RuntimeError('CUDA error: unspecified launch failure')
    for name in ('get_device_properties', 'get_device_name', 'get_device_capability'): monkeypatch.setattr(torch.cuda, name, fails)

def hangs(monkeypatch):
    "A card that reports everything and computes nothing."
    report(monkeypatch, [T4])
    monkeypatch.setattr(torch.backends.cuda, 'is_built', lambda: True)

WORKS = dict(t4s=([T4, T4], {}, ['Tesla T4 (15 GB, capability 7.5)', 'teacher in float16', 'student in fp16', 'no bf16',
                                 'memory-efficient', 'torchrun --nproc_per_node 2']),
             a100=([A100], {}, ['capability 8.0', 'bf16 in hardware', 'flash', 'teacher in float16']),
             p100=([P100], dict(arches=['sm_60', *WHEEL], version='2.10.0+cu126'),
                   ['capability 6.0', 'no bf16', 'without tensor cores', 'memory-efficient']),
             cpu=([], dict(arches=[], version='2.10.0+cpu', cuda=None), ['no GPU', 'T4 x2']))
FAILS = dict(p100=(lambda m: report(m, [P100]), ['no kernels for Tesla P100', 'sm_70',
                                                 'pip install torch==2.10.0 --index-url https://download.pytorch.org/whl/cu126', 'T4']),
             p100_newest=(lambda m: report(m, [P100], version='2.16.1+cu130', cuda='13.0'), ['pip install "torch<2.15"', 'cu126']),
             new_card=(lambda m: report(m, [('NVIDIA RTX 5090', (12, 0), 32 * GB)], ['sm_80', 'sm_90']), ['no kernels', 'get_arch_list']),
             no_driver=(no_driver, ['driver', 'too old', 'nvidia-smi', 'CUDA_VISIBLE_DEVICES']),
             silent_driver=(silent_driver, ['initialization failed', 'nvidia-smi']),
             crashed=(crashed, ['unspecified launch failure', 'restart']), hangs=(hangs, ['does not compute', 'restart']),
             cpu_wheel=(lambda m: report(m, arches=[], version='2.10.0+cpu', cuda=None, files=1),
                        ['built for CPUs only', 'built for CUDA']))

def examined(capsys, tmp_path):
    code = main(['doctor', '--output_dir', str(tmp_path / 'run')])
    out, err = capsys.readouterr()
    assert not err
    return code, out

@pytest.mark.parametrize('cards, more, words', WORKS.values(), ids=WORKS)
def test_a_machine_that_can_train(monkeypatch, capsys, tmp_path, cards, more, words):
    report(monkeypatch, cards, **more)
    code, out = examined(capsys, tmp_path)
    for word in words: assert word in out, out
    assert code == 0 and 'a run can train here' in out and not re.search('^problem', out, re.M), out
    said = in_short(doctor.check_machine())
    assert said.startswith('training on') and '\n' not in said and ('torchrun' in said) == (len(cards) > 1)

@pytest.mark.parametrize('trouble, words', FAILS.values(), ids=FAILS)
def test_a_machine_that_cannot(monkeypatch, capsys, tmp_path, pair, trouble, words):
    trouble(monkeypatch)
    code, out = examined(capsys, tmp_path)
    [found] = re.findall(r'^problem +device +(.*\n +-> .*)', out, re.M)
    for word in words: assert word in found, found
    assert code == 1
    monkeypatch.setattr(run, 'prepare_text', lambda *_: pytest.fail('the text was read'))
    with pytest.raises(doctor.DeviceError) as refused: run.distill(dict(pair, output_dir=str(tmp_path / 'run')))
    for word in words: assert word.lower() in str(refused.value).lower()
    assert '\n' not in str(refused.value) and not (tmp_path / 'run').exists()

def test_a_gpu_that_was_hidden_is_no_trouble(monkeypatch):
    no_driver(monkeypatch)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert not look().trouble and not look().gpus

def test_each_process_looks_at_its_own_gpu(monkeypatch):
    report(monkeypatch, [T4, A100])
    monkeypatch.setenv('LOCAL_RANK', '1'), monkeypatch.setenv('WORLD_SIZE', '2')
    assert look().gpu.name == A100[0]

def test_kernels_run_on_newer_cards_of_the_same_kind():
    """CUDA's rule: a binary on its major version from its minor on, an intermediate on everything newer, a special one (a) on its card, a
    family's (f) on its major version."""
    cases = {'sm_80': [(8, 0), (8, 6), (8, 9)], 'sm_86': [(8, 6), (8, 9)],
             'compute_75': [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0)],
             'sm_90a': [(9, 0)], 'sm_100f': [(10, 0), (10, 3)]}
    every = [(6, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0)]
    for arch, runs in cases.items():
        assert [card for card in every if has_kernels(card, [arch])] == runs, arch

def test_a_launch_that_fails_says_why():
    if not torch.cuda.is_available(): assert 'CUDA' in launch(0)
    else: assert launch(0) == ''

@pytest.mark.parametrize('folder, state, words', [('kaggle/working/run', 'warning', 'resume_from'), ('tmp/run', 'warning', 'is lost'),
                                                  ('file', 'problem', 'is a file')])
def test_what_kaggle_forgets(monkeypatch, tmp_path, folder, state, words):
    (tmp_path / 'kaggle/working').mkdir(parents=True), (tmp_path / 'file').touch()
    monkeypatch.setattr(doctor, 'KAGGLE', tmp_path / 'kaggle')
    found = doctor.about_folder(str(tmp_path / folder))[-1]
    assert found.state == state and words in found.says + found.remedy

def test_memory_that_somebody_else_holds():
    busy = Machine([Gpu(0, 'Tesla T4', (7, 5), 15 * GB, 5 * GB)], ram=30 * GB, ram_free=GB)
    assert [one.state for one in doctor.about_memory(busy)] == ['warning', 'warning']

def test_a_package_that_is_too_old(monkeypatch):
    real = doctor.importlib.metadata.requires
    monkeypatch.setattr(doctor.importlib.metadata, 'requires',
                        lambda name: ['torch>=99', 'no_such_package_here>=1', "pytest; extra == 'dev'", *real(name)])
    [found] = doctor.about_versions()
    assert found.state == 'problem' and "pip install 'torch>=99' 'no_such_package_here>=1'" in found.remedy and 'pytest' not in found.remedy

@pytest.mark.parametrize('teacher_dtype, warns', [('bfloat16', True), ('auto', False), ('float32', False)])
def test_bf16_that_would_be_emulated(monkeypatch, capsys, teacher_dtype, warns):
    report(monkeypatch, [T4])
    states = {one.topic: one.state for one in doctor.about_device(look(), run.DistillConfig(teacher_dtype=teacher_dtype), try_it=False)}
    assert states['precision'] == ('warning' if warns else 'ok')
