"A teacher's answers that were written down are the teacher's own, and only the right students get them."
import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from kdkit import cache as cache_module
from kdkit.cache import CacheError, CachedRows, TeacherCache, write_cache
from kdkit.cli import main
from kdkit.config import ConfigError, DistillConfig
from kdkit.evaluation import eval_batches, teacher_as_read
from kdkit.models import AbsentModel, load_causal_lm, load_config
from kdkit.prepare import prepare_text
from kdkit.report import summary_table
from kdkit.run import as_read, cache_teacher, distill, make_framework, open_cache
from pairs import documents


def config_of(values, folder, **options):
    return DistillConfig(**{**values, 'max_length': 64, 'batch_size': 4, 'max_steps': 6, 'eval_steps': 6, 'logging_steps': 1,
                            'learning_rate': 1e-3, 'eval_fraction': .1,
                            'max_eval_rows': 8, 'output_dir': str(folder / 'run'), 'teacher_cache': str(folder / 'cache'), **options})


@pytest.mark.parametrize('method', ['first_token', 'common_prefix', 'combined', 'identity'])
@pytest.mark.parametrize('mask, inside, ends', [(False, False, None), (True, False, None), (True, True, None), (False, True, None),
                                                (False, True, False)])
def test_a_whole_distribution_gives_the_online_loss_and_gradient(pair, same_pair, tmp_path, method, mask, inside, ends):
    config = config_of(same_pair if method == 'identity' else pair, tmp_path, kd_method=method, cache_top_k=10**6, mask_inconsistent=mask,
                       inside_tokens=inside, soft_ends=ends)
    cache_teacher(config)
    text = prepare_text(config)
    absent = AbsentModel(load_config(config.teacher_model))
    rows = CachedRows(text['train'], TeacherCache(config.teacher_cache))
    gradients, losses = [], []
    for teacher in (None, absent):
        framework = make_framework(replace(config, teacher_cache=None if teacher is None else config.teacher_cache), text, teacher)
        out = framework(**framework.collator()([(text['train'] if teacher is None else rows)[i] for i in range(6)]))
        out['loss'].backward()
        losses.append({name: value.item() for name, value in out['losses'].items()})
        gradients.append({name: p.grad for name, p in framework.student_model.named_parameters()})
    assert losses[1] == pytest.approx(losses[0], abs=2e-3)  # log-probabilities are kept in fp16
    for name, gradient in gradients[0].items(): assert (gradients[1][name] - gradient).norm() < .01 * gradient.norm() + 1e-6, name


def both_ways(config):
    "Losses and gradients of some rows, from the teacher and from the cache."
    text, online = prepare_text(config), prepare_text(config)
    absent = open_cache(config, text).stand_in
    for rows, teacher in ((online['train'], None), (text['train'], absent)):
        framework = make_framework(replace(config, teacher_cache=teacher and config.teacher_cache), online, teacher)
        out = framework(**framework.collator()([rows[i] for i in range(6)]))
        out['loss'].backward()
        yield out['losses'], {name: p.grad for name, p in framework.student_model.named_parameters()}


@pytest.mark.parametrize('likely', [0., .1])
def test_spans_from_a_cache_give_the_online_loss_and_gradient(pair, tmp_path, likely):
    "From a cache that was written for another method."
    config = config_of(pair, tmp_path, kd_method='span', span_likely=likely, cache_top_k=4)
    cache_teacher(replace(config, kd_method='auto'))
    (online, gradients), (cached, from_cache) = both_ways(config)
    assert online['kd'] > 0
    torch.testing.assert_close(cached, online)
    for name, gradient in gradients.items(): torch.testing.assert_close(from_cache[name], gradient, atol=1e-6, rtol=1e-3, msg=name)


def test_students_with_other_tokenizers_read_one_cache(pair, same_pair, tmp_path):
    "Where documents are neither cut nor packed the teacher reads the same windows, whoever the student is."
    text = tmp_path / 'short.jsonl'
    text.write_text(''.join(json.dumps(dict(text=words[:120])) + '\n' for words in documents(40)))
    first = config_of(pair, tmp_path, dataset=str(text), max_length=200, teacher_max_length=200, pack=False, cache_top_k=10**6)
    cache_teacher(first)
    other = replace(first, student_model=same_pair['student_model'], inside_tokens=False)
    for method in ('auto', 'first_token', 'span'):
        (online, _), (cached, _) = both_ways(replace(other, kd_method=method))
        torch.testing.assert_close(cached, online, atol=2e-3, rtol=1e-3)
    with pytest.raises(CacheError, match='other windows'): open_cache(replace(other, pack=True), prepare_text(replace(other, pack=True)))
    inside = replace(other, kd_method='first_token', inside_tokens=True)
    with pytest.raises(CacheError, match='other windows|inside'): open_cache(inside, prepare_text(inside))


def test_less_kept_is_less_seen(pair, tmp_path):
    losses = []
    for k in (2, 16, 128, 700):
        config = config_of(pair, tmp_path, kd_method='combined', cache_top_k=k, cache_samples=0, teacher_cache=str(tmp_path / f'{k}'))
        cache_teacher(config)
        text = prepare_text(config)
        rows = CachedRows(text['train'], TeacherCache(config.teacher_cache))
        framework = make_framework(config, text, AbsentModel(load_config(config.teacher_model)))
        losses.append(framework(**framework.collator()([rows[i] for i in range(6)]))['losses']['kd'].item())
    assert losses == sorted(losses) and losses[0] < losses[-1]


def test_what_is_drawn_stands_for_the_rest_without_bias(pair, tmp_path):
    "The gradient, averaged over many caches, is that of the whole distribution; of the likeliest alone it is not."
    def gradient(name, teacher=None, **options):
        config = config_of(pair, tmp_path, kd_method='combined', alpha_lm=0., alpha_unaligned=0.,
                           teacher_cache=name and str(tmp_path / name), **options)
        text = prepare_text(config)
        if name:
            cache_teacher(config)
            text['train'] = CachedRows(text['train'], TeacherCache(config.teacher_cache))
            teacher = AbsentModel(load_config(config.teacher_model))
        framework = make_framework(config, text, teacher)
        framework(**framework.collator()([text['train'][i] for i in range(4)]))['loss'].backward()
        return torch.cat([p.grad.flatten() for p in framework.student_model.parameters()])
    whole, top = gradient(None), gradient('top', cache_top_k=4, cache_samples=0)
    drawn = [gradient(f'drawn{samples}', cache_top_k=4, cache_samples=samples) for samples in (4, 64, 2048)]
    far = [((g - whole).norm() / whole.norm()).item() for g in (top, *drawn)]
    assert far[3] < far[2] < far[1] and far[3] < .1 and far[3] < .3 * far[0], far

def test_a_run_from_a_cache_ends_where_the_online_run_does(pair, tmp_path):
    config = config_of(pair, tmp_path, cache_top_k=10**6, control=True)
    cache_teacher(config)
    cached = distill(config)
    online = distill(replace(config, teacher_cache=None, output_dir=str(tmp_path / 'online')))
    assert cached['teacher'] == pytest.approx(online['teacher']) and cached['control'] == online['control']
    assert cached['student_after']['bits_per_byte'] == pytest.approx(online['student_after']['bits_per_byte'], abs=2e-3)
    assert cached['student_after'] != cached['student_before'] and cached['retention'] is None and 'gap' in summary_table(cached)
    AutoModelForCausalLM.from_pretrained(tmp_path / 'run' / 'student')


def test_a_run_from_a_cache_loads_no_teacher(pair, tmp_path, monkeypatch):
    config = config_of(pair, tmp_path)
    cache_teacher(config)
    import kdkit.framework
    def only_students(name, *args, **kwargs):
        assert name == config.student_model
        return load_causal_lm(name, *args, **kwargs)
    monkeypatch.setattr(kdkit.framework, 'load_causal_lm', only_students)
    assert distill(config)['steps'] == 6


def test_a_cache_that_was_cut_off_goes_on(pair, tmp_path, monkeypatch):
    config = config_of(pair, tmp_path)
    text, teacher = prepare_text(config), load_causal_lm(config.teacher_model)
    write = lambda folder, **more: write_cache(folder, teacher, text['train'], dict(name='t'), top_k=8, samples=4, batch_size=3,
                                               shard_rows=4, **more)
    def power_cut(done, total):
        if done > 8: raise KeyboardInterrupt  # two files are whole, a third is begun
    with pytest.raises(KeyboardInterrupt): write(tmp_path / 'cut', progress=power_cut)
    with pytest.raises(CacheError, match='not finished'): TeacherCache(tmp_path / 'cut')
    asked = []
    monkeypatch.setattr(cache_module, 'ask_teacher', lambda t, rows, *rest, real=cache_module.ask_teacher,
                        **how: asked.append(len(rows)) or real(t, rows, *rest, **how))
    write(tmp_path / 'cut')
    assert sum(asked) == len(text['train']) - 8
    write(tmp_path / 'whole')
    cut, whole = TeacherCache(tmp_path / 'cut'), TeacherCache(tmp_path / 'whole')
    for i in range(len(text['train'])): 
        for name in ('teacher_said', 'teacher_inside', 'teacher_tokens'): assert (cut.read(i, name) == whole.read(i, name)).all()


def test_little_is_asked_again_where_nobody_says_how_large_a_file_is(pair, tmp_path):
    config = config_of(pair, tmp_path)
    text, teacher = prepare_text(config), load_causal_lm(config.teacher_model)
    rows = text['train'].select([i % len(text['train']) for i in range(320)])
    done = []
    def power_cut(now, total):
        done.append(now)
        if now > 300: raise KeyboardInterrupt
    write = lambda progress: write_cache(tmp_path / 'cut', teacher, rows, dict(name='t'), top_k=2, samples=0, batch_size=4,
                                         progress=progress)
    with pytest.raises(KeyboardInterrupt): write(power_cut)
    lost = done[-1] - 4 * len([*(tmp_path / 'cut').glob('*.npz')])  # 320 / 64 windows a file, in whole batches
    assert 0 < lost <= 320 / 64
    write(lambda now, total: None)
    assert len(TeacherCache(tmp_path / 'cut').about['rows']) and TeacherCache(tmp_path / 'cut').n_shards == 80


@pytest.mark.parametrize('n', [2, 5])
def test_how_much_of_the_teacher_is_read_is_told_from_all_of_the_text(pair, tmp_path, n):
    config = replace(config_of(pair, tmp_path), teacher_cache=None)
    text = prepare_text(config)
    framework = make_framework(config, text)
    held_out = text['held_out']
    rows = held_out.select([len(held_out) * i // n for i in range(n)])
    found = as_read(framework, text, n)
    wanted = teacher_as_read(framework, eval_batches(rows, framework, config.batch_size))
    assert found == dict(wanted, windows=n) and len(held_out) > n
    assert found != dict(teacher_as_read(framework, eval_batches(held_out.select(range(n)), framework, config.batch_size)), windows=n)


def test_a_cache_of_something_else_is_refused(pair, tmp_path, capsys):
    config = config_of(pair, tmp_path)
    cache_teacher(config)
    for changed, match in ((dict(max_length=48), 'other windows'), (dict(seed=7), 'other windows'),
                           (dict(teacher_model=config.student_model), 'other windows|written by the teacher'),
                           (dict(teacher_cache=str(tmp_path / 'none')), 'kdkit cache-teacher'),
                           (dict(max_eval_rows=4), 'other held-out text')):
        with pytest.raises(CacheError, match=match): distill(replace(config, output_dir=str(tmp_path / 'no'), **changed))
    assert not (tmp_path / 'no').exists()  # nothing was written
    with pytest.raises(CacheError, match='top_k differs'): cache_teacher(replace(config, cache_top_k=5))
    with pytest.raises(CacheError, match='rows differs'): cache_teacher(replace(config, max_length=48))
    for wrong in (dict(alpha_feature=.1), dict(kd_method='uld'), dict(temperature=2.), dict(divergence='jsd')):
        with pytest.raises(ConfigError, match='teacher_cache'): replace(config, **wrong)


def test_the_commands(pair, tmp_path, capsys):
    options = [f'--{name}={value}' for name, value in pair.items()] + ['--max_length=64', '--batch_size=4', '--max_steps=2',
                                                                       '--max_eval_rows=8', '--eval_fraction=.1',
                                                                       f'--teacher_cache={tmp_path}/cache', f'--output_dir={tmp_path}/run']
    assert main(['cache-teacher', *options]) == 0 and 'bytes each' in capsys.readouterr().out
    assert main(['train', *options]) == 0 and 'student after' in capsys.readouterr().out
    assert json.loads((tmp_path / 'run' / 'report.json').read_text())['teacher']['bits_per_byte'] > 0
    assert main(['cache-teacher', *options[:3]]) == 2
