"""Precision as on a GPU without bf16: teacher in fp16, student's parameters in fp32 under fp16 autocast, gradients through a GradScaler.

A CPU computes the same formats, only slowly, so what overflows there overflows here. Speed, kernels and memory are for benchmarks/gpu.py.
"""
import copy

import pytest
import torch

from pairs import save_pair, save_text
from test_contract import batch_of, framework_of

LIMIT = 60_000  # near fp16's largest number, 65,504

@pytest.fixture(scope='module')
def untied(tmp_path_factory):
    "A pair whose heads are matrices of their own, so that logits can be made large without touching what the models read."
    folder = tmp_path_factory.mktemp('untied')
    return dict(save_pair(folder, student='mistral'), dataset=save_text(folder), teacher_dtype='float16')

@pytest.fixture(scope='module')
def both(untied): return framework_of(untied)

def step(framework, batch, half=True, most=0):
    "Loss and gradients of a step as the Trainer makes it, after at most so many that the scaler skips while it halves its scale."
    scaler = torch.amp.GradScaler('cpu', init_scale=2.**10, enabled=half)
    optimizer = torch.optim.SGD([p for p in framework.parameters() if p.requires_grad], lr=0.)
    for skipped in range(most + 1):
        framework.zero_grad()
        with torch.autocast('cpu', torch.float16, enabled=half): output = framework(**batch)
        scaler.scale(output['loss']).backward()
        scaler.unscale_(optimizer)
        gradient = {name: p.grad.clone() for name, p in framework.named_parameters() if p.grad is not None}
        scaler.step(optimizer), scaler.update()
        if not half or scaler.get_scale() == 2.**(10 - skipped): return output, gradient  # it would have been halved
    raise AssertionError(f'no finite gradient down to a scale of {scaler.get_scale()}')

def in_fp32(framework):
    "The same numbers, with the teacher's as fp32 ones."
    exact = copy.deepcopy(framework)
    exact._hold(**{name: copy.deepcopy(getattr(framework, name)).float() for name in ('teacher_model', 'logit_projector')})
    return exact

def flat(gradient): return torch.cat([g.flatten() for _, g in sorted(gradient.items())])

def test_a_step_in_half_precision_is_a_step(both):
    "Every loss and the whole gradient as in fp32, up to fp16's eleven bits."
    framework, text = both
    batch = batch_of(framework, text['train'].select(range(4)))
    (output, gradient), (wanted, exact) = step(framework, batch), step(in_fp32(framework), batch, half=False)
    assert set(output['losses']) == {'lm', 'kd', 'unaligned', 'feature', 'attention', 'layerwise', 'contrastive'}
    for name, loss in output['losses'].items():
        assert loss.dtype == torch.float32 and abs(loss - wanted['losses'][name]) < 2e-2 * max(1, wanted['losses'][name].abs()), name
    assert set(gradient) == set(exact) and all(g.dtype == torch.float32 and g.isfinite().all() for g in gradient.values())
    assert torch.cosine_similarity(flat(gradient), flat(exact), 0) > 0.999
    assert abs(flat(gradient).norm() / flat(exact).norm() - 1) < 0.02

@torch.no_grad()
def sharpen(model, ids, vacant=0):
    "Let the model's largest logit be near fp16's limit, and its last rows impossible."
    head = model.get_output_embeddings()
    largest = model(input_ids=ids).logits.float().abs().max()
    head.weight.mul_((LIMIT / largest).to(head.weight.dtype))
    if vacant:
        bias = torch.zeros(len(head.weight), dtype=head.weight.dtype)
        bias[-vacant:] = -torch.inf
        head.bias = torch.nn.Parameter(bias, requires_grad=False)

@pytest.mark.parametrize('sides', ['teacher', 'student', 'both'])
def test_logits_at_the_limit_of_fp16(both, sides):
    framework, text = copy.deepcopy(both[0]), both[1]
    framework._hold(teacher_model=copy.deepcopy(both[0].teacher_model), logit_projector=both[0].logit_projector)
    batch = batch_of(framework, text['train'].select(range(4)))
    if sides != 'student': sharpen(framework.teacher_model.float(), batch['teacher_input_ids'], vacant=5), framework.teacher_model.half()
    if sides != 'teacher': sharpen(framework.student_model, batch['input_ids'])
    output, gradient = step(framework, batch, most=12)
    for name, loss in output['losses'].items(): assert loss.isfinite() and 0 <= loss <= 2.1 * LIMIT, (name, loss)
    for name, g in gradient.items(): assert g.isfinite().all(), name
    assert flat(gradient).norm() > 0

@pytest.mark.parametrize('odd', ['masked', 'one token'])
def test_rows_with_nothing_to_learn_from_change_nothing(both, odd):
    "A row without a label, and one of a single token."
    framework, text = both
    batch = batch_of(framework, text['train'].select(range(4)))
    row = {name: value[:1].clone() for name, value in batch.items()}
    row['labels'][:] = -100
    if odd == 'one token':
        for side in ('', 'teacher_'): row[f'{side}attention_mask'][:, 1:] = 0
    for side in ('student', 'teacher'): row[f'{side}_positions'][:] = -1
    more = {name: torch.cat([value, row[name]]) for name, value in batch.items()}
    (output, gradient), (wanted, exact) = step(framework, more), step(framework, batch)
    for name, loss in output['losses'].items():
        assert abs(loss - wanted['losses'][name]) < 5e-3 * max(1, wanted['losses'][name].abs()), (name, loss)
    assert torch.cosine_similarity(flat(gradient), flat(exact), 0) > 0.999

def test_a_batch_without_any_label_learns_nothing(both):
    framework, text = both
    batch = batch_of(framework, text['train'].select(range(2)))
    batch['labels'][:] = -100
    output, gradient = step(framework, batch)
    assert all(loss.isfinite() for loss in output['losses'].values()) and all(g.isfinite().all() for g in gradient.values())
    assert all(output['losses'][name] == 0 for name in ('lm', 'kd', 'unaligned'))
