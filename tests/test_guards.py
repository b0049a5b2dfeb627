"""Laws whose breach shows nowhere else. Each of them was broken once by a change of one line that every other test let pass;
tests/mutants.py makes such changes."""
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from kdkit.cache import CacheError, files_digest
from kdkit.config import DistillConfig
from kdkit.evaluation import compute_perplexity
from kdkit.models import body, output_head
from kdkit.prepare import prepare_text
from kdkit.run import cache_teacher, make_framework, open_cache
from kdkit.signs import machine_signs
from families import small_config
from pairs import model_of

PROGRAM = 'import sys; from kdkit.cli import main; sys.exit(main(["train", *sys.argv[1:]]))'


def test_two_processes_take_the_step_that_one_takes(pair, tmp_path):
    "Gradients are averaged by the wrapper, and the losses are parts of a sum over all processes."
    script = tmp_path / 'train.py'
    script.write_text(PROGRAM.replace('; ', '\n'))
    values = dict(pair, max_length=64, max_steps=2, eval_steps=2, logging_steps=1, max_eval_rows=4, optim='sgd', learning_rate=.5,
                  weight_decay=0, max_grad_norm=0, warmup_steps=0, lr_scheduler_type='constant',
                  use_cpu='true', pack='false')
    words = lambda folder, batch: [*(f'--{k}={v}' for k, v in dict(values, output_dir=folder, batch_size=batch).items())]
    env = dict(os.environ, OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1')
    one = subprocess.run([sys.executable, script, *words(tmp_path / 'one', 4)], env=env, capture_output=True, text=True)
    two = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', script,
                          *words(tmp_path / 'two', 2)], env=env, capture_output=True, text=True)
    assert one.returncode == 0, one.stderr[-2000:]
    assert two.returncode == 0, two.stderr[-2000:]
    a, b = (load_file(tmp_path / name / 'student' / 'model.safetensors') for name in ('one', 'two'))
    start = load_file(Path(pair['student_model']) / 'model.safetensors')
    assert max((a[n] - start[n]).abs().max() for n in a) > 1e-3  # something was learnt
    for name in a: torch.testing.assert_close(a[name], b[name], atol=2e-5, rtol=0)


def framework_of(pair, **options):
    config = DistillConfig(**{**pair, 'max_length': 64, 'eval_fraction': .1, 'pack': False, **options})
    text = prepare_text(config)
    return make_framework(config, text), text


def test_inconsistent_positions_are_left_to_the_text_when_asked(pair):
    "Counted by hand: where the class of the student's next token is not that of the teacher's."
    options = dict(kd_method='first_token', inside_tokens=False, soft_ends=False)
    (plain, text), (masked, _) = framework_of(pair, **options), framework_of(pair, mask_inconsistent=True, **options)
    batch = plain.collator()([text['train'][i] for i in range(12)])
    every, kept = (framework.complete(batch)['partner'] for framework in (plain, masked))
    compared = (every >= 0).nonzero().tolist()
    mine = lambda row, at: plain.vocab_map.student_class(batch['input_ids'][row, at + 1][None])
    its = lambda row, at: plain.vocab_map.teacher_class(batch['teacher_input_ids'][row, every[row, at] + 1][None])
    wanted = [[row, at] for row, at in compared if mine(row, at) == its(row, at)]
    assert (kept >= 0).nonzero().tolist() == wanted and 0 < len(wanted) < len(compared)


def test_a_cache_of_another_teacher_is_refused(pair, tmp_path):
    "Also one with the same tokenizer, for which every window is the same, and one in a folder of the same name."
    config = DistillConfig(**{**pair, 'max_length': 64, 'eval_fraction': .1, 'max_eval_rows': 4, 'max_steps': 2, 'batch_size': 4,
                              'teacher_cache': str(tmp_path / 'cache'), 'output_dir': str(tmp_path / 'run')})
    cache_teacher(config)
    assert open_cache(config, prepare_text(config))
    def with_teacher(folder, change=lambda tensors: None):
        shutil.copytree(pair['teacher_model'], folder)
        change(tensors := load_file(folder / 'model.safetensors'))
        save_file(tensors, folder / 'model.safetensors', dict(format='pt'))
        return replace(config, teacher_model=str(folder))
    name = Path(pair['teacher_model']).name
    other = with_teacher(tmp_path / 'other_teacher')
    with pytest.raises(CacheError, match='was written by the teacher'): open_cache(other, prepare_text(other))
    moved = with_teacher(tmp_path / 'moved' / name)
    assert open_cache(moved, prepare_text(moved))
    tuned = with_teacher(tmp_path / 'tuned' / name, lambda tensors: next(tensors[n] for n in sorted(tensors) if 'mlp' in n).add_(1e-3))
    with pytest.raises(CacheError, match='has other weights'): open_cache(tuned, prepare_text(tuned))
    coarse = replace(config, teacher_quantization='4bit')
    with pytest.raises(CacheError, match='teacher_quantization is 4bit, but .* had its weights as they are'):
        open_cache(coarse, prepare_text(coarse))


def test_a_cache_of_another_revision_is_refused(pair, tmp_path):
    "A name of the hub stays and its branch moves on."
    hub = tmp_path / 'hub' / 'models--some--teacher'
    for commit, factor in dict(aaa=1., bbb=1.01).items():
        snapshot = hub / 'snapshots' / (commit * 14)[:40]
        shutil.copytree(pair['teacher_model'], snapshot)
        save_file({name: tensor * factor for name, tensor in load_file(snapshot / 'model.safetensors').items()},
                  snapshot / 'model.safetensors', dict(format='pt'))
    def at(commit):
        (hub / 'refs').mkdir(exist_ok=True)
        (hub / 'refs' / 'main').write_text((commit * 14)[:40])
    config = DistillConfig(**{**pair, 'teacher_model': 'some/teacher', 'cache_dir': str(tmp_path / 'hub'), 'max_length': 64,
                              'eval_fraction': .1, 'max_eval_rows': 4, 'max_steps': 2, 'batch_size': 4,
                              'teacher_cache': str(tmp_path / 'cache'), 'output_dir': str(tmp_path / 'run')})
    at('aaa')
    cache_teacher(config)
    assert open_cache(config, prepare_text(config)).about['commit'] == ('aaa' * 14)[:40]
    at('bbb')
    with pytest.raises(CacheError, match='has other weights'): open_cache(config, prepare_text(config))
    (hub / 'snapshots' / ('bbb' * 14)[:40] / 'model.safetensors').unlink()
    with pytest.raises(CacheError, match='another revision .bbb'): open_cache(config, prepare_text(config))


def test_every_tensor_leaves_its_print_on_a_digest(pair, tmp_path):
    tensors, seen = load_file(Path(pair['teacher_model']) / 'model.safetensors'), set()
    def digest_of(changed):
        save_file(changed, tmp_path / 'model.safetensors')
        return files_digest(tmp_path)
    seen.add(digest_of(tensors))
    for name, tensor in tensors.items(): seen.add(digest_of({**tensors, name: tensor + 1e-3}))
    assert len(seen) == len(tensors) + 1 and digest_of(dict(reversed(tensors.items()))) in seen
    assert files_digest(None) == files_digest(tmp_path / 'nowhere') == ''
    torch.save(tensors, tmp_path / 'pytorch_model.bin')
    (tmp_path / 'model.safetensors').unlink()
    assert files_digest(tmp_path) not in seen | {''}


@pytest.mark.parametrize('cap', [None, .05, 30.])
def test_the_head_caps_its_logits_as_the_model_does(cap):
    model = model_of('gemma2', 300)
    model.config.final_logit_softcapping = cap
    torch.nn.init.normal_(model.lm_head.weight, std=2.)
    ids = torch.arange(12)[None]
    states = model.model(input_ids=ids)[0]
    with torch.no_grad(): logits, linear = output_head(model)(states), model.lm_head(states)
    torch.testing.assert_close(logits, model(input_ids=ids).logits, atol=1e-4, rtol=1e-4)
    assert (cap is None) == torch.allclose(logits, linear, atol=1e-4) and (cap is None or logits.abs().max() <= cap)


@pytest.mark.parametrize('family, name', [('granite', 'logits_scaling'), ('hyperclovax', 'logits_scaling'), ('cohere', 'logit_scale'),
                                          ('falcon_h1', 'lm_head_multiplier')])
def test_the_head_scales_its_logits_as_the_model_does(family, name):
    "One divides by what another multiplies by."
    torch.manual_seed(0)
    config = small_config(family, vocab_size=300)
    setattr(config, name, .37)
    model, ids = AutoModelForCausalLM.from_config(config).eval(), torch.arange(12)[None]
    torch.nn.init.normal_(model.get_output_embeddings().weight)
    with torch.no_grad():
        logits, states = model(input_ids=ids).logits, body(model)(input_ids=ids)[0]
        torch.testing.assert_close(output_head(model)(states), logits, atol=1e-4, rtol=1e-4)
        linear = model.get_output_embeddings()(states)
    assert not torch.allclose(linear, logits, atol=1e-4)


def test_the_end_of_a_document_is_not_scored_as_text():
    model = model_of('llama', 300)
    ids = torch.tensor([[5, 9, 7, 1, 8, 4, 1]])
    batch = dict(input_ids=ids, attention_mask=torch.ones_like(ids), n_bytes=torch.tensor([20]))
    with torch.no_grad(): nats = -model(input_ids=ids).logits[0, :-1].double().log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    text = nats[ids[0, 1:] != 1]
    scores = compute_perplexity(model, [batch], end_id=1)
    assert scores['tokens'] == len(text) == 4 and scores['nats_per_token'] == pytest.approx(text.mean().item(), rel=1e-5)
    assert scores['bits_per_byte'] == pytest.approx(text.sum().item() / math.log(2) / 20, rel=1e-5)
    assert compute_perplexity(model, [batch])['bits_per_byte'] == pytest.approx(nats.sum().item() / math.log(2) / 20, rel=1e-5)


@pytest.mark.parametrize('used, level', [(.2, 'ok'), (.89, 'ok'), (.93, 'amber'), (.99, 'red')])
def test_memory_warns_when_it_is_nearly_full_and_not_before(used, level):
    lines = [dict(step=10 * n, memory_gb=16 * used) for n in range(1, 8)]
    [sign] = [sign for sign in machine_signs(lines, dict(memory_limit_gb=16., total_steps=100), 70) if sign.name == 'memory']
    assert sign.level == level and bool(sign.advice) == (level != 'ok')
