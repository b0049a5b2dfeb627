"The weights that the old system should have had."
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdkit.curriculum import LOSS_STYLES, Curriculum, cosine, default_schedules, label_of, linear, plot_curriculum, step

ALPHAS = dict(lm=.1, kd=.7, unaligned=.2, feature=.1, attention=.1, layerwise=.05, contrastive=.05)


def test_contract_curriculum_at_half_way():
    half = Curriculum(ALPHAS, total_steps=1000).weights(500)
    assert half['kd'] == ALPHAS['kd'] and half['lm'] == ALPHAS['lm']
    for name in ('feature', 'attention'): assert half[name] == pytest.approx(.625 * ALPHAS[name])
    for name in ('layerwise', 'contrastive'): assert half[name] == pytest.approx(2 / 7 * ALPHAS[name])


def test_contract_curriculum_corners():
    curriculum = Curriculum(ALPHAS, total_steps=1000)
    assert all(curriculum.weight(0, name) == 0 for name in ('feature', 'attention', 'layerwise', 'contrastive'))
    assert curriculum.weight(300, 'layerwise') == 0 < curriculum.weight(301, 'layerwise')
    assert curriculum.weight(799, 'feature') < curriculum.weight(800, 'feature') == pytest.approx(.1)
    assert curriculum.weights(1000) == curriculum.weights(5000) == pytest.approx(ALPHAS)  # it never overshoots


@given(st.integers(0, 2000))
def test_contract_curriculum_off(now):
    assert Curriculum(ALPHAS, total_steps=1000, use_curriculum=False).weights(now) == ALPHAS


@given(st.integers(0, 1500), st.integers(0, 1500), st.integers(1, 1000))
def test_weights_never_fall_and_stay_below_alpha(a, b, total):
    early, late = (Curriculum(ALPHAS, total_steps=total).weights(s) for s in sorted((a, b)))
    for name in ALPHAS: assert 0 <= early[name] <= late[name] <= ALPHAS[name]


@given(st.floats(-1, 2))
def test_lm_is_never_scheduled(progress):
    assert Curriculum(ALPHAS, dict(lm=step(1.)), 10).factor(progress, 'lm') == 1


def test_any_callable_is_a_schedule():
    curriculum = Curriculum(dict(kd=2.), dict(kd=lambda progress: 1 - progress), 10)
    assert [curriculum.weight(s, 'kd') for s in (0, 5, 10)] == [2., 1., 0.]


@pytest.mark.parametrize('make', [lambda: linear(.5, .5), lambda: linear(-.1, 1), lambda: cosine(.2, 1.1), lambda: step(2)])
def test_a_schedule_outside_the_run(make):
    with pytest.raises(ValueError): make()


def test_an_unknown_loss_is_named():
    with pytest.raises(KeyError, match='feature'): Curriculum(ALPHAS, total_steps=10).weight(0, 'featrue')


def test_the_plot_shows_every_loss_that_weighs():
    ax = plot_curriculum(Curriculum(dict(ALPHAS, feature=0.), total_steps=100), step=3)
    assert {text.get_text() for text in ax.get_legend().get_texts()} == set(map(label_of, ALPHAS)) - {'feature'}
    assert label_of('unaligned_second') == 'text only of second' and label_of('kd_second') == 'kd_second'
    assert set(LOSS_STYLES) == set(default_schedules())
