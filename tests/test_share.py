"The teacher's share: what both models spend on the same text, and a run that follows it."
import json
import math
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoTokenizer

from kdkit.config import ConfigError, DistillConfig
from kdkit.embedded import embedded_student, embedded_student_tokenizer, embedded_teacher
from kdkit.metrics import read_metrics
from kdkit.prepare import prepare_text
from kdkit.run import cache_teacher, distill, make_framework, make_trainer, open_cache
from kdkit.share import FIRST, LEAST, MOST, READS, TeacherLead, first_share, share_of
from kdkit.trainer import DistillationTrainer
from pairs import documents


def config_of(values, folder, **options):
    return DistillConfig(**{**values, 'max_length': 64, 'batch_size': 4, 'max_steps': 6, 'eval_steps': 3, 'logging_steps': 1,
                            'learning_rate': 1e-3, 'eval_fraction': .1,
                            'max_eval_rows': 8, 'output_dir': str(folder / 'run'), **options})


# -- what both spend ---------------------------------------------------------------------------------------------------

def nats_of(model, ids):
    "Cross-entropy of each token of one row, by the model's own logits; 0 for the first."
    logits = model(input_ids=ids[None]).logits[0].double()
    return F.pad(F.cross_entropy(logits[:-1], ids[1:], reduction='none'), (1, 0))


def brute_force(framework, batch, asked=None):
    "Stretch by stretch, token by token; asked: [batch, T], where the teacher says anything."
    total = torch.zeros(2, dtype=torch.float64)
    for row in range(len(batch['input_ids'])):
        sides = [batch[name][row][batch[mask][row].bool()]
                 for name, mask in (('input_ids', 'attention_mask'), ('teacher_input_ids', 'teacher_attention_mask'))]
        nats = [nats_of(model, ids) for model, ids in zip((framework.student_model, framework.teacher_model), sides)]
        ends = [(s, t) for s, t in zip(batch['student_positions'][row].tolist(), batch['teacher_positions'][row].tolist()) if s >= 0
                and s + 1 < len(sides[0])]
        for (s, t), (s_end, t_end) in zip(ends, ends[1:]):
            if asked is None or all(asked[row, j - 1] for j in range(t + 1, t_end + 1)):
                total += torch.stack([nats[0][s + 1:s_end + 1].sum(), nats[1][t + 1:t_end + 1].sum()])
    return total


@torch.no_grad()
@pytest.mark.parametrize('which, options', [('pair', {}), ('pair', dict(inside_tokens=False)), ('pair', dict(kd_method='span')),
                                            ('pair', dict(kd_method='uld')), ('same_pair', {})])
def test_what_both_spend_is_what_both_spend_on_the_same_text(request, tmp_path, which, options):
    config = config_of(request.getfixturevalue(which), tmp_path, pack=False, **options)
    text = prepare_text(config)
    framework = make_framework(config, text)
    batch = framework.complete(framework.collator()([text['train'][i] for i in range(5)]))
    spent = framework(**batch)['common_nats']
    asked = None
    if framework.knowledge:  # it is asked where it is compared, and one position before where its token may have ended
        asked = torch.zeros(batch['teacher_input_ids'].shape, dtype=torch.bool)
        for row, at in (batch['partner'] >= 0).nonzero().tolist():
            asked[row, batch['partner'][row, at]] = True
            if batch['node'][row, at] < 0: asked[row, batch['partner'][row, at] - 1] = True
            # all that a crossing token runs over
            if config.asks_ends: asked[row, batch['partner'][row, at]:batch['reached'][row, at] + 1] = True
    torch.testing.assert_close(spent.double(), brute_force(framework, batch, asked), rtol=1e-4, atol=1e-3)
    assert spent.min() > 100
    if which == 'same_pair' or options.get('kd_method') == 'span':  # nothing is left out
        torch.testing.assert_close(spent.double(), brute_force(framework, batch), rtol=1e-4, atol=1e-3)


def test_a_cache_knows_the_same(pair, same_pair, tmp_path):
    for which, method in ((same_pair, 'auto'), (pair, 'span'), (pair, 'auto')):
        config = config_of(which, tmp_path / f'{which is pair}-{method}', kd_method=method)
        config = replace(config, teacher_cache=str(Path(config.output_dir).parent / 'cache'))
        cache_teacher(config)
        text, spent = prepare_text(config), {}
        for rows in ('online', 'cached'):
            cache = open_cache(config, text) if rows == 'cached' else None
            framework = make_framework(replace(config, teacher_cache=config.teacher_cache if cache else None), text,
                                       cache and cache.stand_in)
            with torch.no_grad(): spent[rows] = framework(**framework.collator()([text['train'][i] for i in range(5)]))['common_nats']
        # what was written down is known at every position
        if (which, method) == (pair, 'auto'): assert (spent['online'] < spent['cached'] + .1).all()
        else: torch.testing.assert_close(spent['online'], spent['cached'], rtol=1e-4, atol=1e-3)


# -- a run that follows ------------------------------------------------------------------------------------------------

def weights_of(folder): return [line['weights'] for line in read_metrics(folder) if 'losses' in line]


def followed(values, folder, **options):
    "The lead after some steps of training."
    config = config_of(values, folder, pack=False, **options)
    text = prepare_text(config)
    framework = make_framework(config, text)
    framework.curriculum.lead.begin(2., 2.1)
    trainer = make_trainer(framework, dict(save_strategy='no'), text, folder, 'test')
    trainer.train()
    return framework.curriculum.lead


def test_micro_batches_make_no_difference(leading, tmp_path):
    one = followed(leading, tmp_path / 'one', batch_size=8)
    many = followed(leading, tmp_path / 'many', batch_size=2, gradient_accumulation_steps=4)
    assert vars(many) == pytest.approx(vars(one), rel=1e-4) and one.correction != 0 and one.lead == pytest.approx(one.held_out)


def test_weights_follow_the_lead(leading, tmp_path):
    report = distill(config_of(leading, tmp_path, max_steps=40, eval_steps=10, learning_rate=3e-3))
    weights = weights_of(tmp_path / 'run')
    begin = report['student_before']['bits_per_byte'] / report['teacher']['bits_per_byte'] - 1
    assert weights[0]['kd'] == pytest.approx(first_share(begin, begin)) and begin < READS # known before the first step
    assert max(w['kd'] for w in weights[:10]) <= FIRST                                    # until it is measured in training
    assert {round(w['lm'] + w['kd'], 6) for w in weights} == {1.} and all(w['kd'] == w['unaligned'] for w in weights)
    assert len({w['kd'] for w in weights}) > 2 and max(w['kd'] for w in weights) <= MOST
    lines = [line for line in read_metrics(tmp_path / 'run') if 'losses' in line]
    assert all('teacher_lead' in line and {'lm', 'kd', 'unaligned'} <= set(line['losses']) for line in lines)
    ahead = report['teacher']['bits_per_byte']
    held_out = {line['step']: line['eval']['bits_per_byte'] > ahead for line in read_metrics(tmp_path / 'run') if 'eval' in line}
    for before, line in zip(lines, lines[1:]):  # the weights of a step are those that the steps before it left
        least = LEAST if held_out.get(before['step'] // 10 * 10) else 0.
        now = max(share_of(before['teacher_lead']), least) if before['step'] >= 10 else first_share(before['teacher_lead'], begin)
        if before['step'] % 10: assert line['weights']['kd'] == pytest.approx(now)
    plan = json.loads((tmp_path / 'run' / 'plan.json').read_text())
    assert plan['follows'] == ['lm', 'kd', 'unaligned'] and not plan['weights']


def test_a_run_that_is_cut_off_goes_on_with_the_same_share(leading, tmp_path, monkeypatch):
    for folder in ('whole', 'cut'):
        config = config_of(leading, tmp_path / folder, max_steps=14, eval_steps=5, learning_rate=3e-3)
        if folder == 'cut':
            with monkeypatch.context() as patch:
                observe = DistillationTrainer.observe
                def cut_off(trainer):
                    if trainer.state.global_step == 8: raise KeyboardInterrupt
                    observe(trainer)
                patch.setattr(DistillationTrainer, 'observe', cut_off)
                with pytest.raises(BaseException): distill(config)
            assert len(weights_of(tmp_path / 'cut' / 'run')) < 14
        distill(config)
    whole, cut = (weights_of(tmp_path / folder / 'run') for folder in ('whole', 'cut'))
    assert cut == whole and len({w['kd'] for w in whole}) > 1
    one, other = (load_file(tmp_path / folder / 'run' / 'student' / 'model.safetensors') for folder in ('whole', 'cut'))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize('options', [dict(alpha_kd=.5), dict(alpha_kd=.5, alpha_lm=.4), dict(recipe='seed'), dict(alpha_lm=.3)])
def test_a_number_stays_as_it_is(leading, tmp_path, options):
    config = config_of(leading, tmp_path, **options)
    distill(config)
    for weights in weights_of(tmp_path / 'run'):
        for name, alpha in dict(lm=config.alpha_lm, kd=config.alpha_kd).items():
            if alpha is not None: assert weights[name] == alpha
    assert config.follows_lead == (options == dict(alpha_lm=.3))


def test_a_run_on_text_alone_is_told_nothing_of_its_teacher(leading, tmp_path, capsys):
    distill(config_of(leading, tmp_path, alpha_lm=1., alpha_kd=0., alpha_unaligned=0., max_steps=2))
    said = ''.join(capsys.readouterr())
    assert 'training on' in said and 'worth distilling' not in said and 'targets for the student' not in said


def test_a_teacher_that_is_worse_from_the_start_costs_nothing(leading, tmp_path, capsys):
    swapped = dict(leading, teacher_model=leading['student_model'], student_model=leading['teacher_model'])
    report = distill(config_of(swapped, tmp_path, control=True))
    assert report['teacher']['bits_per_byte'] > report['student_before']['bits_per_byte']
    assert report['student_after']['bits_per_byte'] == pytest.approx(report['control']['bits_per_byte'], abs=1e-6)
    said = ''.join(capsys.readouterr())
    assert 'the teacher is worse than the student here' in said and 'nothing to teach' in said


def test_a_teacher_that_is_overtaken_lets_go(tmp_path, capsys):
    "The embedded teacher on English words in no order, which nobody can foresee, and an untrained student."
    chance, words = random.Random(0), sorted({word for text in documents() for word in text.split() if word.isalpha()})
    def document(): return dict(text=' '.join(chance.choice(words).lower() + chance.choice(['', ' ,', ' .', ' @-@']) for _ in range(120)))
    for name, n in dict(train=150, held_out=12).items():
        (tmp_path / f'{name}.jsonl').write_text(''.join(json.dumps(document()) + '\n' for _ in range(n)))
    embedded_student(0).save_pretrained(tmp_path / 'student')
    AutoTokenizer.from_pretrained(embedded_student_tokenizer()).save_pretrained(tmp_path / 'student')
    report = distill(DistillConfig(teacher_model=embedded_teacher(), student_model=str(tmp_path / 'student'),
                                   dataset=str(tmp_path / 'train.jsonl'),
                                   eval_dataset=str(tmp_path / 'held_out.jsonl'), output_dir=str(tmp_path / 'run'), max_length=128,
                                   batch_size=2, max_steps=40,
                                   learning_rate=1e-3, max_eval_rows=24, logging_steps=1, seed=0))
    weights, bits = (weights_of(tmp_path / 'run'),
                     {name: report[name]['bits_per_byte'] for name in ('teacher', 'student_before', 'student_after')})
    assert bits['student_after'] < bits['teacher'] < bits['student_before']
    assert weights[0]['kd'] == FIRST and weights[-1] == dict(lm=1., kd=0., unaligned=0.)  # what a run without a teacher weighs
    assert 'from here on it learns from the text alone' in ''.join(capsys.readouterr())


def test_several_processes_share_one_share(leading, tmp_path):
    values = dict(leading, max_length=64, max_steps=6, eval_steps=3, logging_steps=1, learning_rate=1e-3, eval_fraction=.1, max_eval_rows=8,
                  pack='false', use_cpu='true')
    (tmp_path / 'train.py').write_text('import sys\nfrom torch import distributed\nfrom kdkit.cli import main\ncode = main(["train", '
                                       '*sys.argv[1:]])\nassert not distributed.is_initialized()  # a process that ends takes leave of '
                                       'the others first\nsys.exit(code)\n')
    env = dict(os.environ, OMP_NUM_THREADS='1')
    for name, start, batch in (('one', [], 4), ('two', ['-m', 'torch.distributed.run', '--nproc_per_node=2',
                                                        f'--master_port={random.randrange(20000, 60000)}'], 2)):
        words = [f'--{k}={v}' for k, v in dict(values, output_dir=tmp_path / name, batch_size=batch).items()]
        done = subprocess.run([sys.executable, *start, str(tmp_path / 'train.py'), *words], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = ([line['teacher_lead'] for line in read_metrics(tmp_path / name) if 'losses' in line] for name in ('one', 'two'))
    assert len(one) == 6 and two == pytest.approx(one, rel=1e-3) and len(set(one)) == 6


# -- the config --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('given, wanted', [
    ({}, (None, None, None)), (dict(alpha_lm=.5), (.5, None, None)), (dict(alpha_unaligned=0.), (None, None, 0.)),
    (dict(alpha_kd=.8), (.2, .8, .8)),
    (dict(alpha_kd=0.), (.2, 0., .8)), (dict(alpha_kd=.3, alpha_lm=.7, alpha_unaligned=.3), (.7, .3, .3)),
    (dict(recipe='seed'), (.1, .7, 0.)), (dict(alpha_kd='none'), (None, None, None))])
def test_what_is_given_and_what_follows(given, wanted):
    config = DistillConfig(**given)
    assert (config.alpha_lm, config.alpha_kd, config.alpha_unaligned) == wanted
    assert DistillConfig.from_dict(config.to_dict()) == config


def test_numbers_that_say_nothing_change_nothing():
    lead = TeacherLead().begin(2., 2.2)
    for nats in ((math.nan, 1.), (1., math.inf), (0., 0.), (5., -1.)): lead.observe(*nats)
    lead.measured(math.nan)
    assert lead.lead == pytest.approx(.1) and TeacherLead().begin(0., 1.).share == MOST
    with pytest.raises(ConfigError, match='weight of 0 or more'): DistillConfig(alpha_kd=-1)
