"Training: one update whatever the micro-batches, what is trained and decayed, resuming, steps that go wrong, every family of models."
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from kdkit.checkpoints import seal
from kdkit.config import DistillConfig
from kdkit.metrics import read_metrics
from kdkit.prepare import prepare_text
from kdkit.run import distill, make_framework, make_trainer
from kdkit.trainer import TrainingDiverged, last_complete_checkpoint
from pairs import SHAPES, save_pair, save_text

EVERY = dict(alpha_lm=.1, alpha_kd=.7, alpha_unaligned=.7, alpha_feature=.1, alpha_attention=.1, alpha_layerwise=.05, alpha_contrastive=.05)

def trainer_of(values, folder, arguments={}, **options):
    "A trainer with every loss in use; ragged rows."
    config = DistillConfig(**{**EVERY, 'use_curriculum': False, 'max_length': 64, 'pack': False, 'max_steps': 3, 'learning_rate': 1e-3,
                              'eval_fraction': .1,
                              'output_dir': str(folder), **values, **options})
    text = prepare_text(config)
    return make_trainer(make_framework(config, text), dict(save_strategy='no', eval_strategy='no', **arguments), text, Path(folder), 'test')

@pytest.mark.parametrize('optimizer', ['sgd', 'adamw_torch'])
def test_gradient_accumulation_is_one_big_batch(pair, tmp_path, optimizer):
    trained = {}
    for batch_size, accumulation in ((8, 1), (4, 2), (2, 4), (1, 8)):
        # a gradient of rounding errors alone moves nothing
        arguments = dict(optim=optimizer, learning_rate=.1 if optimizer == 'sgd' else 1e-3, adam_epsilon=1e-4)
        trainer = trainer_of(pair, tmp_path / str(batch_size), arguments, batch_size=batch_size, gradient_accumulation_steps=accumulation)
        trainer.train()
        assert trainer.state.global_step == 3
        trained[batch_size] = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    start = trainer_of(pair, tmp_path / 'start').model
    assert any((p - trained[8][n]).abs().max() > 1e-4 for n, p in start.named_parameters())  # something was learnt
    for batch_size in (4, 2, 1):
        for name, value in trained[8].items():
            torch.testing.assert_close(trained[batch_size][name], value, atol=1e-5, rtol=0, msg=lambda m: f'{name}: {m}')

def test_logged_losses_are_means_over_the_whole_step(pair, tmp_path):
    logs = []
    for batch_size, accumulation in ((4, 1), (1, 4)):
        trainer_of(pair, tmp_path / str(batch_size), batch_size=batch_size, gradient_accumulation_steps=accumulation,
                   logging_steps=1).train()
        logs.append([line for line in read_metrics(tmp_path / str(batch_size)) if 'losses' in line])
    for one, other in zip(*logs):
        assert one['losses'] == pytest.approx(other['losses'], abs=1e-4)
        assert one['loss'] == pytest.approx(sum(one['weights'][n] * v for n, v in one['losses'].items()), abs=1e-4)

def test_what_is_trained_decayed_and_left_alone(pair, tmp_path):
    trainer = trainer_of(pair, tmp_path, dict(weight_decay=.1))
    trainer.create_optimizer()
    names = {id(p): n for n, p in trainer.model.named_parameters()}
    groups = {g['weight_decay']: {names[id(p)] for p in g['params']} for g in trainer.optimizer.param_groups}
    assert groups[.1] and groups[0.] and all('norm' in n or n.endswith('bias') for n in groups[0.])
    assert not any('norm' in n or n.endswith('bias') for n in groups[.1])
    everything = groups[.1] | groups[0.]
    assert any(n.startswith('student_model') for n in everything) and any('projector' in n
                                                                          for n in everything) and any('mixing' in n for n in everything)
    assert everything == {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    teacher = {p.data_ptr() for p in trainer.model.teacher_model.parameters()}
    assert not teacher & {p.data_ptr() for g in trainer.optimizer.param_groups for p in g['params']}

def test_clipping_covers_the_projectors(pair, tmp_path):
    trainer = trainer_of(pair, tmp_path, dict(max_grad_norm=1e-3, optim='sgd', learning_rate=1., weight_decay=0.), max_steps=1,
                         warmup_steps=0)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    moved = torch.stack([(p - before[n]).norm() for n, p in trainer.model.named_parameters()]).norm()
    assert 0 < moved <= 1.01e-3

def test_warm_up_and_decay_count_optimizer_steps(pair, tmp_path):
    trainer = trainer_of(pair, tmp_path, batch_size=1, gradient_accumulation_steps=4, max_steps=10, warmup_steps=4, logging_steps=1,
                         learning_rate=1e-3)
    trainer.train()
    rates = [line['lr'] for line in read_metrics(tmp_path) if 'lr' in line]
    assert max(rates) == pytest.approx(1e-3) and rates.index(max(rates)) in (3, 4) and rates[-1] < 1e-4
    assert trainer.model.curriculum.total_steps == 10

def test_balance_scales_every_loss_of_the_teacher_to_the_size_of_lm(pair, tmp_path):
    trainer = trainer_of(pair, tmp_path, recipe='seed', balance='ema', use_curriculum=False, max_steps=12, logging_steps=1,
                         learning_rate=1e-3, gradient_accumulation_steps=2)
    trainer.train()
    lines, alphas, sizes = [line for line in read_metrics(tmp_path) if 'losses' in line], trainer.model.curriculum.alphas, {}
    for line in lines:
        for name, weight in line['weights'].items():
            known = name in sizes and name not in ('lm', 'unaligned')
            assert weight == pytest.approx(alphas[name] * (sizes['lm'] / sizes[name] if known else 1), rel=1e-4), (line['step'], name)
        assert line['loss'] == pytest.approx(sum(line['weights'][name] * loss for name, loss in line['losses'].items()), rel=1e-4)
        for name, loss in line['losses'].items(): sizes[name] = loss if name not in sizes else .98 * sizes[name] + .02 * loss
    assert len(lines) == 12 and {'feature', 'attention',
                                 'kd'} <= lines[-1]['weights'].keys() and lines[-1]['weights']['feature'] > 2 * alphas['feature']

def test_easy_first_divides_by_what_is_compared_at_that_step(pair, tmp_path, monkeypatch):
    trainer = trainer_of(pair, tmp_path, student_aware=True, aware_by='easy', aware_share=.2, max_steps=10, gradient_accumulation_steps=2)
    framework, shares, forward = trainer.model, [], trainer.model.forward
    def watch(input_ids, units=None, step=None, **batch):
        full = framework.complete(dict(batch, input_ids=input_ids))['partner'] >= 0
        shares.append((step, full.sum().item(), units['kd'].item()))
        return forward(input_ids, units=units, step=step, **batch)
    monkeypatch.setattr(framework, 'forward', watch)
    trainer.train()
    for at in range(10):
        here = [(full, units) for step, full, units in shares if step == at]
        assert len(here) == 2 and sum(full for full, _ in here) * (.2 + .8 * at / 10) == pytest.approx(here[0][1], rel=.1)

def test_a_checkpoint_is_a_plain_student(pair, tmp_path):
    report = distill(dict(pair, output_dir=str(tmp_path / 'run'), recipe='seed', max_length=64, batch_size=2, max_steps=6, eval_steps=3,
                          max_eval_rows=4))
    folder = Path(last_complete_checkpoint(tmp_path / 'run'))
    student = AutoModelForCausalLM.from_pretrained(folder)
    assert sum(p.numel() for p in student.parameters()) == report['student_after']['parameters']
    projectors = load_file(folder / 'projectors.safetensors')
    assert any('feature' in n for n in projectors) and not any('student_model' in n for n in projectors)
    final = AutoModelForCausalLM.from_pretrained(tmp_path / 'run' / 'student').state_dict()
    for name, value in student.state_dict().items(): assert torch.equal(final[name], value)

# -- resuming ----------------------------------------------------------------------------------------------------------

RUN = 'import sys; from kdkit.cli import main; sys.exit(main(["train", *sys.argv[1:]]))'

def command(values): return [sys.executable, '-c', RUN, *(f'--{k}={v}' for k, v in values.items())]

@pytest.mark.parametrize('kill_at, options', [(1, {}), (7, dict(balance='ema', student_aware=True, aware_by='easy')), (14, {})])
def test_a_killed_run_ends_like_an_uninterrupted_one(pair, tmp_path, kill_at, options):
    values = dict(pair, **options, recipe='seed', max_length=64, batch_size=2, gradient_accumulation_steps=2, max_steps=18, eval_steps=5,
                  logging_steps=1, max_eval_rows=4,
                  learning_rate=1e-3)
    env = dict(os.environ, OMP_NUM_THREADS='1')
    whole, cut = tmp_path / 'whole', tmp_path / 'cut'
    assert subprocess.run(command(dict(values, output_dir=whole)), env=env, capture_output=True).returncode == 0
    victim = subprocess.Popen(command(dict(values, output_dir=cut)), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while victim.poll() is None:
            if (cut / 'metrics.jsonl').exists() and any(line['step'] >= kill_at for line in read_metrics(cut)): break
            time.sleep(.005)
        assert victim.poll() is None, 'it ended before it could be killed'
    finally: victim.send_signal(signal.SIGKILL); victim.wait()
    assert not (cut / 'report.json').exists()
    again = subprocess.run(command(dict(values, output_dir=cut)), env=env, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr[-2000:]
    one, other = (load_file(folder / 'student' / 'model.safetensors') for folder in (whole, cut))
    assert one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)
    steps = [line['step'] for line in read_metrics(cut) if 'losses' in line]
    assert steps == [*range(1, 19)]  # nothing twice, nothing lost

def test_a_torn_checkpoint_is_passed_over(tmp_path):
    for step, complete in ((5, True), (10, False), (9, True)):
        folder = tmp_path / f'checkpoint-{step}'
        folder.mkdir()
        if complete: seal(folder)
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / 'checkpoint-9')

# -- steps that go wrong -----------------------------------------------------------------------------------------------

def poison(trainer, steps):
    "Make the loss of these optimizer steps NaN."
    compute = trainer.compute_loss
    def poisoned(model, inputs, **kwargs):
        loss = compute(model, inputs, **kwargs)
        return loss * float('nan') if trainer.state.global_step in steps else loss
    trainer.compute_loss = poisoned

def test_a_step_that_is_not_finite_is_skipped_counted_and_shown(pair, tmp_path):
    trainer = trainer_of(pair, tmp_path, max_steps=6, logging_steps=1)
    poison(trainer, {2, 3})
    trainer.train()
    assert trainer.finite_steps.skipped == 2 and trainer.state.global_step == 6
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    lines = [line for line in read_metrics(tmp_path) if 'losses' in line]
    assert lines[-1]['skipped_steps'] == 2 and lines[-1]['loss'] > 0
    assert lines[2]['loss'] is None  # shown as missing, not as zero

def test_a_run_of_nothing_but_bad_steps_stops_with_the_reason(pair, tmp_path):
    trainer = trainer_of(pair, tmp_path, max_steps=60)
    poison(trainer, set(range(3, 60)))
    with pytest.raises(TrainingDiverged, match='25 optimizer steps .* not finite.*learning_rate'): trainer.train()
    assert all(p.isfinite().all() for p in trainer.model.parameters())

# -- families ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('same', [False, True])
@pytest.mark.parametrize('shape', SHAPES)
def test_every_family_teaches_and_learns(tmp_path, shape, same):
    values = dict(save_pair(tmp_path, teacher=shape, student=shape, same=same), dataset=save_text(tmp_path))
    trainer = trainer_of(values, tmp_path / 'run', batch_size=2)
    assert trainer.model.vocab_map.name == ('identity' if same else trainer.model.config.kd_method)
    trainer.train()
    assert trainer.finite_steps.skipped == 0 and all(p.isfinite().all() for p in trainer.model.parameters())
    trainer.model.save_student(tmp_path / 'student')
    AutoModelForCausalLM.from_pretrained(tmp_path / 'student')

def test_vocabularies_that_differ_by_padding_are_one(tmp_path):
    from pairs import model_of
    values = dict(save_pair(tmp_path, same=True), dataset=save_text(tmp_path))
    model_of('qwen2', 768, 48, 3).save_pretrained(tmp_path / 'teacher')  # 700 tokens, 68 rows of padding
    model_of('qwen2', 720, 32, 2).save_pretrained(tmp_path / 'student')
    trainer = trainer_of(values, tmp_path / 'run', batch_size=2)
    assert trainer.model.vocab_map.name == 'identity'
    trainer.train()

def test_one_tokenizer_gives_the_plain_kl(same_pair, tmp_path):
    framework = trainer_of(same_pair, tmp_path).model
    ids = torch.randint(1, 700, (2, 12))
    output = framework(input_ids=ids)  # an ordinary batch will do
    student, teacher = (m(input_ids=ids).logits[:, :-1].double().log_softmax(-1)
                        for m in (framework.student_model, framework.teacher_model))
    torch.testing.assert_close(output['losses']['kd'].double(), (teacher.exp() * (teacher - student)).sum(-1).mean(), atol=1e-6, rtol=0)
