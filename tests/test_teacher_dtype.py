"A wide teacher reads in bfloat16 on a CPU that has instructions for it; run, doctor and plan say the same."
import pytest
import torch

from kdkit import devices, doctor, models, plan
from kdkit.config import DistillConfig
from kdkit.devices import WIDE, Machine, look
from kdkit.embedded import embedded_teacher
from kdkit.evaluation import eval_batches
from kdkit.framework import StudentAwareDistillationFramework
from kdkit.models import load_config, teacher_width
from kdkit.prepare import prepare_text
from kdkit.run import about_choices, make_framework
from kdkit.sequence import load_writer
from pairs import model_of, save_pair, save_text
from tiny_tokenizers import byte_level

HAS, LACKS, UNKNOWN = frozenset({'fma', 'avx512_bf16'}), frozenset({'fma', 'avx2'}), frozenset()


@pytest.fixture(scope='module')
def wide(tmp_path_factory):
    folder = tmp_path_factory.mktemp('wide')
    pair = dict(save_pair(folder), dataset=save_text(folder), max_length=64, eval_fraction=.1)
    model_of('llama', len(byte_level(700)), WIDE, 1).save_pretrained(folder / 'teacher')
    return pair

@pytest.fixture
def on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    def with_flags(flags):
        for module in (devices, models): monkeypatch.setattr(module, 'cpu_flags', lambda: flags)
    return with_flags


@pytest.mark.parametrize('flags, dtype', [(HAS, 'bfloat16'), (frozenset({'amx_bf16'}), 'bfloat16'), (LACKS, 'float32'),
                                          (UNKNOWN, 'float32')])
def test_run_doctor_and_plan_say_the_same(wide, on_a_cpu, flags, dtype):
    on_a_cpu(flags)
    config = DistillConfig(**wide)
    framework = StudentAwareDistillationFramework(config)
    assert framework.teacher_model.dtype == getattr(torch, dtype) and framework.student_model.dtype == torch.float32
    assert load_writer(config).dtype == framework.teacher_model.dtype
    reason = f'{dtype} ({framework.teacher_dtype_reason})'
    assert f'teacher in {reason}, student in fp32' in about_choices(config, look(), 'auto')
    findings = {one.topic: one.says for one in doctor.about_device(Machine(cores=2), config, try_it=False)}
    assert f'teacher in {reason}' in findings['precision']
    sides = [plan.Side(load_config(name), 10**6, 700, hidden, 1)
             for name, hidden in ((config.student_model, 32), (config.teacher_model, WIDE))]
    assert plan.plan_memory(config, *sides, gpu=False).parts['teacher'] == 10**6 * getattr(torch, dtype).itemsize

def test_a_narrow_teacher_stays_in_fp32(pair, on_a_cpu):
    on_a_cpu(HAS)
    framework = StudentAwareDistillationFramework(DistillConfig(**pair))
    assert framework.teacher_model.dtype == torch.float32 and str(WIDE) in framework.teacher_dtype_reason
    assert load_config(embedded_teacher()).hidden_size < WIDE  # the demo says the same on every machine

def test_what_is_asked_for_stays(wide, on_a_cpu):
    on_a_cpu(HAS)
    assert StudentAwareDistillationFramework(DistillConfig(**wide, teacher_dtype='float32')).teacher_model.dtype == torch.float32
    assert teacher_width(DistillConfig(**wide, teacher_quantization='4bit'), torch.device('cpu')) is None  # a dtype of its own
    assert teacher_width(DistillConfig(**wide), torch.device('cuda')) is None

def test_in_bfloat16_it_teaches_the_same(wide, on_a_cpu):
    losses = []
    for flags in (HAS, LACKS):
        on_a_cpu(flags)
        text = prepare_text(DistillConfig(**wide))
        framework = make_framework(DistillConfig(**wide, alpha_kd=.5, alpha_lm=.5, alpha_feature=.1, alpha_attention=.1), text)
        out = framework(**eval_batches(text['held_out'], framework, 4)[0])
        out['loss'].backward()
        losses.append(out['losses'])
    for name, loss in losses[0].items(): torch.testing.assert_close(loss, losses[1][name], atol=5e-3, rtol=5e-3)
