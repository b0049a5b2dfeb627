"Every way to a DistillConfig, and every way to get it wrong."
import json
import math
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdkit.config import RECIPES, ConfigError, DistillConfig, read_config_file


def test_the_old_systems_keys_and_alphas():
    config = DistillConfig(recipe='seed')
    assert {name: getattr(config, f'alpha_{name}') for name in RECIPES['seed']} == dict(
        lm=0.1, kd=0.7, unaligned=0., feature=0.1, attention=0.1, layerwise=0.05, contrastive=0.05)
    old = ('teacher_model student_model cache_dir temperature use_curriculum total_steps max_length batch_size '
           'gradient_accumulation_steps learning_rate num_epochs warmup_steps eval_steps')
    assert set(old.split()) <= {f.name for f in fields(DistillConfig)}


def test_what_is_said_beats_the_recipe():
    assert DistillConfig(recipe='seed', alpha_kd=0.5).alpha_kd == 0.5
    assert DistillConfig(recipe='seed', alpha_kd=0.).alpha_kd == 0


def test_every_field_has_its_meaning():
    for f in fields(DistillConfig): assert f.metadata['help'], f.name


@pytest.mark.parametrize('suffix', ['yaml', 'yml', 'json'])
def test_saved_and_loaded_it_is_the_same(tmp_path, suffix):
    config = DistillConfig(teacher_model='a', text_column='straße', learning_rate=3e-5, eval_steps=7, control=True, recipe='seed',
                           alpha_lm=.3)
    config.save(tmp_path / f'config.{suffix}')
    assert DistillConfig.load(tmp_path / f'config.{suffix}') == config
    assert DistillConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize('values, says', [
    (dict(temprature=2), "'temperature'"), (dict(aplha_kd=1), "'alpha_kd'"), (dict(zzz=1), "'zzz' is unknown"),
    (dict(temperature=0), 'temperature is 0'), (dict(temperature=math.inf), 'temperature is inf'), (dict(alpha_kd=-.1), 'alpha_kd is -0.1'),
    (dict(alpha_lm=math.nan), 'alpha_lm is nan'), (dict(beta=1.1), 'beta'), (dict(skew=1), 'skew'),
    (dict(eval_fraction=0), 'eval_fraction'),
    (dict(max_length=1), 'max_length'), (dict(batch_size=0), 'batch_size'), (dict(max_steps=0), 'max_steps'),
    (dict(eval_steps=0), 'eval_steps'),
    (dict(seed=-1), 'seed'), (dict(kd_method='magic'), 'first_token'), (dict(divergence='l2'), 'forward_kl'),
    (dict(teacher_dtype='int8'), 'bfloat16'),
    (dict(recipe='best'), 'seed'), (dict(batch_size='eight'), 'whole number'), (dict(batch_size=2.5), 'whole number'),
    (dict(batch_size=True), 'whole number'),
    (dict(batch_size=None), 'whole number'), (dict(max_steps='inf'), 'whole number'), (dict(learning_rate='fast'), 'a number'),
    (dict(pack='maybe'), 'true or false'),
    (dict(dataset=['a', 'b']), 'text'), (dict(alpha_lm=0, alpha_kd=0, alpha_unaligned=0), 'nothing to learn')])
def test_a_wrong_value_says_what_and_what_instead(values, says):
    with pytest.raises(ConfigError) as error: DistillConfig.from_dict(values)
    assert says in str(error.value) and '\n' not in str(error.value)
    assert isinstance(error.value, ValueError)


@given(st.floats(1e-9, 100), st.integers(1, 10**9))
def test_text_and_numbers_give_the_same(rate, steps):
    assert DistillConfig(learning_rate=str(rate), max_steps=str(steps)) == DistillConfig(learning_rate=rate, max_steps=steps) \
        == DistillConfig(learning_rate=rate, max_steps=float(steps))


@pytest.mark.parametrize('text, says', [('- a\n- b\n', 'list'), ('', 'NoneType'), ('a: [', 'not YAML'), ('just words', 'str')])
def test_a_file_that_is_no_mapping(tmp_path, text, says):
    path = tmp_path / 'c.yaml'
    path.write_text(text)
    with pytest.raises(ConfigError, match=says): read_config_file(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match='not found'): read_config_file(tmp_path / 'c.yaml')


def test_json_is_read_too(tmp_path):
    (tmp_path / 'c.json').write_text(json.dumps(dict(learning_rate=1e-3)))
    assert DistillConfig.load(tmp_path / 'c.json').learning_rate == 1e-3
