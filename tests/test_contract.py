"What the system before this one got wrong, a named test each."
import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from kdkit.config import DistillConfig
from kdkit.evaluation import compute_knowledge_retention, compute_perplexity, eval_batches
from kdkit.framework import StudentAwareDistillationFramework
from kdkit.metrics import read_metrics
from kdkit.prepare import prepare_text
from kdkit.run import distill
from kdkit.trainer import EarlyStopping

EVERY = dict(alpha_lm=.1, alpha_kd=.7, alpha_unaligned=.7, alpha_feature=.1, alpha_attention=.1, alpha_layerwise=.05, alpha_contrastive=.05)

def framework_of(values, **options):
    "A framework with every loss in use, and paired text for it."
    torch.manual_seed(0)
    config = DistillConfig(**{**EVERY, 'use_curriculum': False, 'max_length': 64, **values, **options})
    text = prepare_text(config)
    config = replace(config, kd_method=text['method'])
    return StudentAwareDistillationFramework(config, vocab_map=text['vocab_map']), text

def batch_of(framework, rows, pad=0):
    rows = [rows[i] for i in range(len(rows))]
    batch = framework.collator()(rows)
    if pad:
        fill = dict(labels=-100, student_positions=-1, teacher_positions=-1)
        batch = {k: torch.nn.functional.pad(v, (0, pad), value=fill.get(k, 0)) if v.dim() == 2 else v for k, v in batch.items()}
    return batch

# -- 1. mixed precision ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('teacher_dtype', ['float32', 'float16', 'bfloat16'])
@pytest.mark.parametrize('autocast', [False, True])
def test_mixed_precision_never_meets_half_and_float(pair, teacher_dtype, autocast):
    framework, text = framework_of(pair, teacher_dtype=teacher_dtype)
    assert framework.logit_projector.hidden_projector.weight.dtype == framework.teacher_model.dtype == getattr(torch, teacher_dtype)
    batches = eval_batches(text['held_out'], framework, 4)[:2]
    others = [StudentAwareDistillationFramework(replace(framework.config, kd_method=m))
              for m in ('projector', 'span', 'uld', 'hybrid', 'p_kl')]
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        framework(**batches[0])['loss'].backward()
        for side, model in dict(student=framework.student_model, teacher=framework.teacher_model).items():
            assert math.isfinite(compute_perplexity(model, batches, side)['perplexity'])
        assert math.isfinite(compute_knowledge_retention(framework, batches)['kl_nats'])
        for other in others: assert torch.isfinite(other(**batches[0])['loss'])

def test_a_gradscaler_never_meets_an_fp16_gradient(pair):
    framework, text = framework_of(pair, teacher_dtype='float16')
    framework(**batch_of(framework, text['train'].select(range(2))))['loss'].backward()
    trained = [p for p in framework.parameters() if p.requires_grad]
    assert trained and all(p.dtype == torch.float32 for p in trained)
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in framework.parameters())
    assert all(not p.requires_grad and p.grad is None
               for p in [*framework.teacher_model.parameters(), *framework.logit_projector.parameters()])
    ids = {id(p) for p in framework.parameters()}
    assert not ids & {id(p) for p in framework.teacher_model.parameters()}

# -- 2. logging --------------------------------------------------------------------------------------------------------

LONG_RUN = '''
import sys
from kdkit.cli import main
sys.exit(main(["train", *sys.argv[1:]]))
'''

@pytest.mark.slow
def test_an_epoch_of_24914_steps_writes_fewer_than_1000_lines(tmp_path):
    from pairs import save_pair
    import json
    pair = save_pair(tmp_path, teacher='llama', student='llama', teacher_size=8, student_size=8, student_layers=1)
    (tmp_path / 'text.jsonl').write_text(''.join(json.dumps(dict(text=f'Line {i}')) + '\n' for i in range(26000)))
    words = [f'--{k}={v}' for k, v in dict(pair, dataset=tmp_path / 'text.jsonl', output_dir=tmp_path / 'run', max_length=32, pack='false',
                                           batch_size=1,
                                           eval_fraction=0.001, max_steps=24914, eval_steps=12457, max_eval_rows=4,
                                           learning_rate=1e-4).items()]
    done = subprocess.run([sys.executable, '-c', LONG_RUN, *words], capture_output=True, text=True,
                          env=dict(os.environ, OMP_NUM_THREADS='1'))
    assert done.returncode == 0, done.stderr[-2000:]
    lines = (done.stdout + done.stderr).replace('\r', '\n').splitlines()
    assert len(lines) < 1000, len(lines)
    steps = [line['step'] for line in read_metrics(tmp_path / 'run') if 'losses' in line]
    assert steps == [*range(10, 24911, 10)]  # a line every ten steps, none lost
    assert all(set(line['losses']) == {'lm', 'kd', 'unaligned'} for line in read_metrics(tmp_path / 'run') if 'losses' in line)

# -- 3. magnitudes -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('which', ['pair', 'same_pair'])
def test_loss_magnitudes_at_the_start_of_training(which, request):
    framework, text = framework_of(request.getfixturevalue(which))
    losses = framework(**batch_of(framework, text['train'].select(range(8))))['losses']
    bounds = dict(kd=12, feature=2, attention=5, layerwise=2, contrastive=math.log(8) + .2, lm=12, unaligned=12)
    assert set(losses) == set(bounds)
    for name, most in bounds.items(): assert 0 <= losses[name] <= most, (name, losses[name])

def test_every_gradient_is_finite(pair):
    framework, text = framework_of(pair)
    framework(**batch_of(framework, text['train'].select(range(3)), pad=4))['loss'].backward()
    for name, p in framework.named_parameters(): assert p.grad is not None and p.grad.isfinite().all(), name

@pytest.mark.parametrize('which', ['pair', 'same_pair'])
def test_losses_do_not_depend_on_batches_padding_or_repetition(which, request):
    framework, text = framework_of(request.getfixturevalue(which), eval_fraction=.3)
    rows = text['held_out'].select(range(6))  # one document a row: ragged
    whole = framework(**batch_of(framework, rows))['losses']
    padded = framework(**batch_of(framework, rows, pad=9))['losses']
    twice = framework(**batch_of(framework, rows.select([*range(6)] * 2)))['losses']
    parts = [batch_of(framework, rows.select(r)) for r in (range(1), range(1, 4), range(4, 6))]
    units = [framework.count_units(part) for part in parts]
    total = {name: sum(u[name] for u in units) for name in whole}
    split = [framework(**part, units=total)['losses'] for part in parts]
    alone = [framework(**part)['losses'] for part in parts]
    for name, value in whole.items():
        torch.testing.assert_close(padded[name], value, atol=1e-4, rtol=0)
        torch.testing.assert_close(twice[name], value, atol=1e-4, rtol=0)
        torch.testing.assert_close(sum(s[name] for s in split), value, atol=1e-4, rtol=0)
        torch.testing.assert_close(sum(a[name] * u[name] for a, u in zip(alone, units)) / total[name], value, atol=1e-4, rtol=0)

# -- 4. curriculum -----------------------------------------------------------------------------------------------------

def test_curriculum_weights_in_training_and_in_evaluation(pair):
    framework, text = framework_of(pair, use_curriculum=True, total_steps=1000)
    half_way = {name: framework.get_curriculum_weight(500, name) / EVERY[f'alpha_{name}'] for name in framework.terms}
    expected = dict(lm=1, kd=1, unaligned=1, feature=.625, attention=.625, layerwise=2 / 7, contrastive=2 / 7)
    assert half_way == pytest.approx(expected)
    assert [framework.get_curriculum_weight(s, 'layerwise') for s in (0, 300, 1000)] == pytest.approx([0, 0, .05])
    assert [framework.get_curriculum_weight(s, 'feature') for s in (0, 800, 1000)] == pytest.approx([0, .1, .1])
    batch = batch_of(framework, text['train'].select(range(2)))
    train, evaluation = framework.train()(**batch, step=500), framework.eval()(**batch, step=500)
    assert train['weights'] == evaluation['weights']
    torch.testing.assert_close(train['loss'], evaluation['loss'])
    torch.testing.assert_close(train['loss'], sum(train['weights'][n] * v for n, v in train['losses'].items()))
    off, _ = framework_of(pair, use_curriculum=False, total_steps=1000)
    assert all(off.get_curriculum_weight(s, n) == EVERY[f'alpha_{n}'] for n in off.terms for s in (0, 500, 1000))

def test_a_loss_without_weight_is_not_computed(pair):
    framework, text = framework_of(pair, use_curriculum=True, total_steps=1000)
    output = framework(**batch_of(framework, text['train'].select(range(2))), step=0)
    assert set(output['losses']) == {'lm', 'kd', 'unaligned'}

# -- 5. early stopping -------------------------------------------------------------------------------------------------

def test_early_stopping_is_silent_in_warm_up_then_counts_checks():
    stop = EarlyStopping(patience=20, min_delta=0.01, warmup_steps=1000)
    assert not any(stop(5. + i, step) for i, step in enumerate(range(0, 1000, 10)))
    assert not stop(1., 1000)
    assert [stop(.995, 1000 + 10 * i) for i in range(1, 21)] == [False] * 19 + [True]  # better by less than min_delta is no better
    stop = EarlyStopping(patience=2, min_delta=0.01, warmup_steps=0)
    assert [stop(x) for x in (1., .9, .895, .8, .8, .8)] == [False] * 5 + [True]

def test_early_stopping_keeps_the_best_student(pair, tmp_path):
    # bound to get worse
    report = distill(dict(pair, output_dir=str(tmp_path / 'run'), max_length=64, batch_size=4, max_steps=60, eval_steps=2, learning_rate=.3,
                          early_stopping=True, patience=3, early_stopping_warmup=0, max_eval_rows=8))
    scores = {line['step']: line['eval']['bits_per_byte'] for line in read_metrics(tmp_path / 'run') if 'eval' in line}
    assert max(scores) < 60, 'it should have stopped early'
    assert report['student_after']['bits_per_byte'] == pytest.approx(min(scores.values()), rel=1e-4)

# -- 6. the language-model loss ----------------------------------------------------------------------------------------

def test_the_language_model_loss_is_shifted_masked_and_alone_in_perplexity(pair):
    framework, text = framework_of(pair)
    batch = batch_of(framework, text['train'].select(range(4)), pad=5)
    # transformers' own
    reference = framework.student_model(input_ids=batch['input_ids'], attention_mask=batch['attention_mask'], labels=batch['labels']).loss
    output = framework(**batch)
    torch.testing.assert_close(output['losses']['lm'], reference)
    assert framework.config.alpha_lm == output['weights']['lm'] == framework.get_curriculum_weight(0, 'lm')
    score = compute_perplexity(framework.student_model, [batch])
    assert score['nats_per_token'] == pytest.approx(reference.item(), rel=1e-5)
    assert score['perplexity'] == pytest.approx(math.exp(score['nats_per_token']))
    assert score['bits_per_byte'] == pytest.approx(score['nats_per_token'] * score['tokens'] / math.log(2) / batch['n_bytes'].sum().item())
    plain, _ = framework_of(pair, **{name: 0. for name in EVERY if name != 'alpha_lm'})
    assert set(plain(**batch)['losses']) == {'lm'}

# -- 7. a full run -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('recipe', ['default', 'seed'])
def test_a_full_run_reaches_the_end_and_reports(pair, tmp_path, recipe):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    folder = tmp_path / 'run'
    report = distill(dict(pair, output_dir=str(folder), recipe=recipe, max_length=64, batch_size=4, max_steps=12, logging_steps=1,
                          learning_rate=1e-3,
                          control=True, max_eval_rows=8))
    lines = read_metrics(folder)
    assert report['skipped_steps'] == 0
    assert lines[-1]['progress'] == 1 and [line['step'] for line in lines if 'losses' in line] == [*range(1, 13)]
    assert {'step', 'progress', 'loss', 'losses', 'weights', 'lr', 'grad_norm', 'tokens_per_second'} <= set(lines[0])
    for name in ('student/config.json', 'student/model.safetensors', 'student/tokenizer.json', 'config.yaml', 'report.json', 'report.md',
                 'losses.png', 'curriculum.png'):
        assert (folder / name).exists(), name
    for key in ('teacher', 'student_before', 'student_after', 'control'):
        assert {'bits_per_byte', 'nats_per_token', 'perplexity', 'parameters'} <= set(report[key])
    for when in ('before', 'after'): assert {'kl_nats', 'top1_agreement', 'top5_agreement'} <= set(report['retention'][when])
    assert {'gap_closed', 'versions', 'seed', 'device', 'dtype', 'seconds'} <= set(report)
    student, tokenizer = AutoModelForCausalLM.from_pretrained(folder / 'student'), AutoTokenizer.from_pretrained(folder / 'student')
    assert student(**tokenizer('Some text', return_tensors='pt')).logits.isfinite().all()
    assert distill(dict(pair, output_dir=str(folder), recipe=recipe, max_length=64, batch_size=4, max_steps=12, logging_steps=1,
                        learning_rate=1e-3,
                        control=True, max_eval_rows=8)) == report  # the same command again finds the run finished
