"""Losses at the edges of what a float can be: a probability of exactly 0, logits at the ends of fp16, one event, nothing to look at, states
of length 0. Value and gradient are finite, and right against float64."""
import math

import pytest
import torch

from kdkit.losses import (at_temperature, attention_kl, cosine_distance, divergence, forward_kl, generalized_jsd, hybrid_matching,
                          info_nce, kept_kl, known_kl, projected_kl, reverse_kl, skewed_kl,
                          span_likelihood, uld)

DTYPES = torch.float16, torch.bfloat16, torch.float32
SHARED = torch.tensor([0, 2]), torch.tensor([1, 3])
LOSSES = dict(
    forward_kl=forward_kl, reverse_kl=reverse_kl, jsd=generalized_jsd, jsd_near_0=lambda s, t: generalized_jsd(s, t, 1e-6),
    jsd_near_1=lambda s, t: generalized_jsd(s, t, 1 - 1e-6),
    skewed_kl=skewed_kl, uld=uld, softened=at_temperature(forward_kl, .5), hybrid=lambda s, t: hybrid_matching(s, t, *SHARED),
    projected=lambda s, t: projected_kl(s, t, torch.arange(5), torch.tensor([1, 0, 3, 2, 4]), torch.ones(5)))
inf = math.inf
EDGES = dict(
    plain=([1., 2, 0, -1, .5], [0., 1, 1, 2, -2]), equal=([1., 2, 0, -1, .5], [1., 2, 0, -1, .5]),
    vacant_teacher=([1., 2, 0, -1, .5], [0., 1, -inf, 2, -inf]), vacant_student=([1., -inf, 0, -1, -inf], [0., 1, 1, 2, -2]),
    vacant_both=([1., 2, -inf, -1, .5], [0., 1, -inf, 2, -1]),
    vacant_crosswise=([-inf, 2, 1, -1, .5], [0., -inf, 1, 2, -1]), one_possible=([1., 2, 0, -1, .5], [-inf, -inf, 3., -inf, -inf]),
    ends_of_half=([60000., -60000, 0, 0, 0], [-60000., 60000, 0, 0, 0]), all_low=([-60000.] * 5, [-60000.] * 5),
    certain=([0., 0, 0, 0, 60000.], [0., 0, 0, 0, 60000.]))


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('edge', EDGES)
@pytest.mark.parametrize('name', LOSSES)
def test_divergences_are_finite(name, edge, dtype):
    logits, teacher = (torch.tensor([row]).to(dtype) for row in EDGES[edge])
    student = logits.clone().requires_grad_()
    value = LOSSES[name](student, teacher)
    value.sum().backward()
    assert value.isfinite().all() and (value > -1e-5).all()
    assert student.grad.isfinite().all()
    if 'vacant' not in edge and edge != 'one_possible':  # there the two agree with what float64 says of the same numbers
        torch.testing.assert_close(value.double(), LOSSES[name](logits.double(), teacher.double()), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize('name', ['forward_kl', 'jsd', 'skewed_kl', 'uld'])
def test_what_cannot_be_changes_nothing(name):
    "A row that both models leave vacant is as if it were not there, for the value and for every gradient."
    s, t = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0)).unbind()
    short, long = s.clone().requires_grad_(), s.clone().requires_grad_()
    pad = lambda x: torch.cat([x, torch.full((3, 2), -inf)], 1)
    one, other = LOSSES[name](short, t), LOSSES[name](pad(long), pad(t))
    torch.testing.assert_close(one, other)
    one.sum().backward(), other.sum().backward()
    torch.testing.assert_close(short.grad, long.grad)
    torch.testing.assert_close(LOSSES['forward_kl'](s, pad(t)[:, :6]), forward_kl(s, t))


def test_a_zero_of_the_teacher_is_zero_log_zero():
    s, t = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1)).unbind()
    t[:, 2] = -inf
    p, q = t.double().softmax(-1), s.double().softmax(-1)
    torch.testing.assert_close(forward_kl(s, t).double(), (torch.xlogy(p, p) - p * q.log()).sum(-1), atol=1e-6, rtol=0)


@pytest.mark.parametrize('kept', [True, False])
def test_kept_and_known_events_may_have_probability_0(kept):
    student = torch.tensor([[-.5, -1.5, -inf, -inf]]).requires_grad_()
    teacher = torch.tensor([[.7, .3, 0., 0.]])
    value = kept_kl(student, torch.arange(4)[None], teacher.log()) if kept else known_kl(student, teacher, teacher > 0)
    value.sum().backward()
    assert value.isfinite().all() and student.grad.isfinite().all()


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('length', [0., 1e-7, 1e-5, 1e-3, 1., 200.])
def test_directions_of_short_states(dtype, length):
    x = (torch.randn(4, 8, generator=torch.Generator().manual_seed(2)) * length).to(dtype)
    y = torch.randn(4, 8, generator=torch.Generator().manual_seed(3)).to(dtype)
    for loss in (cosine_distance, info_nce):
        for a, b in ((x, y), (y, x), (x, x)):
            a = a.clone().requires_grad_()
            value = loss(a, b)
            value.sum().backward()
            assert value.isfinite().all() and a.grad.isfinite().all()
    # length does not count otherwise
    if length >= 1: torch.testing.assert_close(cosine_distance(x.float() * 7, y), cosine_distance(x, y), atol=1e-5, rtol=0)


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_attention_rows_may_be_empty_or_certain(dtype):
    rows = torch.tensor([[1., 0, 0], [0, 0, 1.], [0, 0, 0], [.5, .5, 0], [1 - 6e-8, 6e-8, 0]]).to(dtype)
    for teacher in (rows, rows.flip(0)):
        student = rows.clone().requires_grad_()
        value = attention_kl(student, teacher)
        value.sum().backward()
        assert value.isfinite().all() and student.grad.isfinite().all()


@pytest.mark.parametrize('student, teacher', [(0., 0.), (1., inf), (inf, 1.), (inf, inf), (60000., 0.), (0., 60000.), (1e-9, 1e9)])
def test_spans_of_any_likelihood(student, teacher):
    nats = torch.tensor([student]).requires_grad_()
    value = span_likelihood(nats, torch.tensor([teacher]))
    value.sum().backward()
    assert value.isfinite().all() and (value >= -1e-6).all() and nats.grad.isfinite().all()


@pytest.mark.parametrize('name', ['forward_kl', 'reverse_kl', 'jsd', 'skewed_kl'])
def test_one_event_costs_nothing(name):
    student = torch.tensor([[3.]]).requires_grad_()
    value = divergence(name)(student, torch.tensor([[-7.]]))
    value.sum().backward()
    assert value.item() == 0 == student.grad.item()
