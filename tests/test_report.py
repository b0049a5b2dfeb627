"What a run says about itself."
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdkit.curriculum import Curriculum
from kdkit.metrics import read_metrics, series
from kdkit.pictures import plot_losses, plot_scores, plot_weights
from kdkit.report import gap_closed, summary_table, write_report


def score(bits, parameters=1000):
    return dict(bits_per_byte=bits, nats_per_token=2 * bits, perplexity=math.exp(2 * bits), parameters=parameters)


def report(after=2.3, control=2.6, before=5., teacher=2.):
    agreement = dict(kl_nats=1., top1_agreement=.5, top5_agreement=.8)
    return dict(teacher=score(teacher), student_before=score(before), student_after=score(after), control=control and score(control),
                retention=dict(before=agreement, after=agreement), gap_closed=gap_closed(after, control, teacher),
                data=dict(coverage=.6, gold_consistency=dict(combined=.9)), versions=dict(torch='1'), seed=1, device='cpu',
                dtype='torch.float32', seconds=3.)


METRICS = [dict(step=s, progress=s / 100, loss=1., losses=dict(kd=5 / s, lm=0. if s == 20 else 3., feature=None if s == 10 else .5),
                weights=dict(kd=.9, lm=.1), lr=1e-3)
           for s in range(10, 101, 10)] + [dict(step=100, progress=1., eval=dict(bits_per_byte=2.3))]


def lines_of(ax): return {line.get_label() for line in ax.lines if not line.get_label().startswith('_')}


def test_a_torn_last_line_is_left_out(tmp_path):
    text = ''.join(json.dumps(line) + '\n' for line in METRICS)
    for cut in range(len(text)):
        (tmp_path / 'metrics.jsonl').write_text(text[:cut])
        assert read_metrics(tmp_path / 'metrics.jsonl') in (METRICS[:text[:cut].count('\n')], METRICS[:text[:cut].count('\n') + 1])
    assert read_metrics(tmp_path) == METRICS[:-1] + METRICS[-1:]


def test_a_loss_that_was_not_computed_has_no_point():
    steps, values = series(METRICS, 'losses', 'feature')
    assert 10 not in steps and len(values) == 9


def test_the_plots_name_every_loss_with_its_unit():
    ax = plot_losses(METRICS)
    assert lines_of(ax) == {'kd (nats/position)', 'lm (nats/token)', 'feature (1 - cosine)'} and ax.get_yscale() == 'log'
    assert ax.get_xlabel() and ax.get_ylabel() and ax.get_title()
    assert lines_of(plot_weights(METRICS)) == {'kd', 'lm'}
    assert lines_of(plot_scores(report(), METRICS)) == {'student', 'control', 'teacher', 'before training'}


def test_nothing_logged_still_plots():
    for plot in (plot_losses, plot_weights): plot([])
    plot_scores({})


@given(st.floats(.1, 10), st.floats(.1, 10), st.floats(.1, 10))
def test_gap_closed_is_a_share_or_nothing(student, control, teacher):
    gap = gap_closed(student, control, teacher)
    if control <= teacher: assert gap is None
    else: assert (gap > 0) == (student < control) and (gap >= 1) == (student <= teacher) or gap == pytest.approx(1)


@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_gap_closed_of_what_is_not_finite(bad):
    assert gap_closed(bad, 3., 2.) is gap_closed(1., bad, 2.) is gap_closed(1., 3., bad) is gap_closed(1., None, 2.) is None


def test_the_table_has_every_row():
    table = summary_table(report())
    for words in ('teacher', 'student before', 'student after', 'control', 'bits per byte', 'perplexity', 'parameters', 'KL', '50.0%',
                  '50% of the gap'):
        assert words in table
    assert 'WORSE' not in table and table.startswith('| held-out')


@pytest.mark.parametrize('numbers, says', [
    (dict(after=2.7), 'WORSE: the control'), (dict(after=5.5, control=None), 'WORSE: the student was better before'),
    (dict(after=math.nan), 'BROKEN')])
def test_bad_news_comes_first(numbers, says):
    assert summary_table(report(**numbers)).startswith(says)


def test_both_kinds_of_worse_are_said():
    first, second, *_ = summary_table(report(after=6.)).split('\n\n')
    assert first.startswith('WORSE: the student') and second.startswith('WORSE: the control')


@pytest.mark.parametrize('numbers, says', [
    (dict(after=2.7, teacher=2.), 'train longer'), (dict(after=2.7, teacher=2.59), 'choose another teacher'),
    (dict(after=5.5, control=None), 'Lower learning_rate'), (dict(control=None), 'train with control=True')])
def test_what_to_do_is_said(numbers, says):
    assert says in summary_table(report(**numbers))


def test_no_gap_is_said_plainly():
    assert 'better than the teacher: there is no gap' in summary_table(report(after=1.8, control=1.9, teacher=2.))
    assert 'as good as the teacher: there is no gap' in summary_table(report(after=1.8, control=2., teacher=2.))


def test_an_evaluation_without_a_run_has_a_table_too():
    table = summary_table(dict(student_after=score(2.), teacher=score(1.),
                               retention=dict(now=dict(kl_nats=1., top1_agreement=.5, top5_agreement=.9))))
    assert '| student ' in table and 'after' not in table and '90.0%' in table and 'WORSE' not in table and 'BROKEN' not in table


@pytest.mark.parametrize('curriculum', [None, Curriculum(dict(kd=1., feature=.1), total_steps=100)])
def test_the_folder_is_whole(tmp_path, curriculum):
    (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in METRICS))
    path = write_report(tmp_path, dict(report(after=math.nan), folder=tmp_path), curriculum)
    saved = json.loads((tmp_path / 'report.json').read_text(), parse_constant=pytest.fail)  # strict JSON has no NaN
    assert saved['student_after']['bits_per_byte'] is None and saved['folder'] == str(tmp_path)
    for name in ('losses.png', 'curriculum.png', 'bits_per_byte.png'):
        assert (tmp_path / name).stat().st_size > 1000 and f'({name})' in path.read_text()


def test_a_run_without_metrics_still_has_a_report(tmp_path):
    assert write_report(tmp_path / 'new', report(control=None)).exists()


@pytest.mark.parametrize('dataset, named', [
    ('roneneldan/TinyStories[train[:100]]', ['roneneldan/TinyStories']),
    ('Salesforce/wikitext:wikitext-103-raw-v1', ['Salesforce/wikitext']), ('/data/my.txt', None)])
def test_the_hub_reads_the_model_card(tmp_path, dataset, named):
    from huggingface_hub import ModelCard

    from kdkit.config import DistillConfig
    from kdkit.report import write_model_card
    config = DistillConfig(teacher_model='big/teacher', student_model='small/student', dataset=dataset)
    card = ModelCard.load(write_model_card(tmp_path, dict(report(), steps=9), config.to_dict()))
    assert card.data.base_model == 'small/student' and card.data.datasets == named and card.data.library_name == 'transformers'
    assert '## Licence' in card.text and 'big/teacher' in card.text and str(tmp_path) not in card.text
