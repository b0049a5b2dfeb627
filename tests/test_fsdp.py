"A sharded student, a shard in each of two processes: the same weights, numbers, checkpoints and report, from half of what training takes."
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import kdkit.trainer
from kdkit.config import ConfigError, DistillConfig
from kdkit.folders import run_key
from kdkit.framework import StudentAwareDistillationFramework
from kdkit.models import ModelError
from kdkit.shards import check_shards
from kdkit.trainer import check_arguments, training_arguments
from test_processes import BIN, launch, numbers, same

TESTS = Path(__file__).parent


def test_a_run_sharded_is_the_run(leading, tmp_path):
    "With a control, micro-batches and projectors, as a user starts it; then cut off after step 3, and gone on with."
    options = dict(control='true', recipe='seed')
    code, said = launch('one', leading, tmp_path / 'one', batch_size=4, **options)
    assert code == 0, said
    again = dict(options, batch_size=1, gradient_accumulation_steps=2, fsdp='full_shard')
    folder = tmp_path / 'run'
    code, said = launch('torchrun', leading, folder, **again)
    assert code == 0 and said.count('held-out text costs the teacher') == 1, said
    same(tmp_path / 'one', folder)
    saved = folder / 'checkpoint-3'
    files = lambda place: {path.name for path in (place / 'checkpoint-3').iterdir() if not path.name.startswith('rng_state')}
    assert files(folder) == files(tmp_path / 'one')
    AutoModelForCausalLM.from_pretrained(saved)  # a plain folder, whole
    whole, shards = (torch.load(place / 'checkpoint-3' / 'optimizer.pt', weights_only=True)['state']
                     for place in (tmp_path / 'one', folder))
    assert whole.keys() == shards.keys()
    for i in whole: torch.testing.assert_close(shards[i]['exp_avg'], whole[i]['exp_avg'], atol=1e-5, rtol=1e-4)
    for name in ('checkpoint-6', 'student'): shutil.rmtree(folder / name)
    stages = json.loads((folder / 'stages.json').read_text())
    for name in ('trained', 'reported'): stages.pop(name)
    (folder / 'stages.json').write_text(json.dumps(stages))
    code, said = launch('torchrun', leading, folder, **again)
    assert code == 0 and 'step 2/6' not in said and 'step 4/6' in said, said
    same(tmp_path / 'one', folder)


def test_two_processes_hold_a_half_each(leading, tmp_path):
    done = subprocess.run([str(BIN / 'torchrun'), '--standalone', '--nproc_per_node', '2', str(TESTS / 'sharded.py'),
                           json.dumps(leading), str(tmp_path)],
                          env=dict(os.environ, OMP_NUM_THREADS='1'), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found, other = (json.loads((tmp_path / name).read_text()) for name in ('found.json', 'other.json'))
    for held in (found['held'], other['held']):
        for name in ('weights', 'gradients', 'averages'): assert held[name][0] <= .51 * held[name][1], held
        assert held['weights'][1] == held['gradients'][1] == held['trained'] == held['averages'][1] / 2 and held['teacher'] > 100_000
    for name in ('weights', 'whole_to_shards', 'shards_to_whole'): assert found[name] < 1e-6, found[name]
    assert found['best'] and other['weights'] < 1e-6
    kept = lambda lines: {name: value for name, value in numbers(lines) if not any(word in name for word in ('second', 'memory'))}
    one, two = map(kept, found['metrics'])
    assert two == pytest.approx(one, rel=1e-5, abs=1e-6) and len(one) > 30
    for said in (found, other):
        assert said['begins'] == 0
        assert said['broken']['skipped'] == 1 and said['broken']['finite'] and said['half']['skipped'] == 0 and said['half']['moved'] < .01
        assert said['scaler'] == [32768., True]  # halved, and nothing stepped, in both


@pytest.mark.parametrize('config, arguments, says', [
    ({}, dict(fsdp='hybrid_shard'), 'give full_shard'), ({}, dict(fsdp='full_shard offload'), 'give full_shard'),
    (dict(lora_r=4), dict(fsdp=True), 'leave one of the two out'), ({}, dict(fsdp='true', optim='adafactor'), 'adamw_torch_fused'),
    ({}, dict(fsdp='full_shard', fsdp_config=dict(version=1)), 'fsdp_config'), ({}, dict(deepspeed='zero.json'), 'give fsdp full_shard')])
def test_what_shards_cannot_have(monkeypatch, config, arguments, says):
    monkeypatch.setattr(kdkit.trainer, 'how_many', lambda: 2)
    with pytest.raises(ConfigError, match=says) as raised: check_arguments(DistillConfig(**config), arguments)
    assert '\n' not in str(raised.value)


def test_one_process_has_nothing_to_divide():
    with pytest.raises(ConfigError, match='there is one: start several with torchrun'): check_arguments(DistillConfig(), dict(fsdp=True))
    for unset in (None, '', 'false', False): check_arguments(DistillConfig(), dict(fsdp=unset))


def test_a_run_may_go_on_without_it():
    assert run_key(DistillConfig(), dict(fsdp='full_shard')) == run_key(DistillConfig(), {})
    assert not training_arguments(DistillConfig(), 10, fsdp='full_shard', use_cpu=True).fsdp  # the library would shard in its own way


def test_a_student_with_adapters_needs_no_shards(pair):
    pytest.importorskip('peft')
    framework = StudentAwareDistillationFramework(dict(pair, lora_r=2))
    with pytest.raises(ModelError, match='has adapters'): check_shards(framework)
