"""The door: some four hundred bad inputs by table. Each is refused in one line with exit code 2, before a weight is loaded, and leaves
nothing behind."""
import contextlib
import io
import json
import math
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
from transformers import TrainingArguments

from kdkit.cli import main
from kdkit.config import ConfigError, DistillConfig, read_config_file
from kdkit.options import settings
from kdkit.trainer import check_arguments

OURS = {f.name: str(f.type) for f in fields(DistillConfig)}
THEIRS = {f.name: str(f.type) for f in fields(TrainingArguments) if f.init and f.name not in OURS and f.name != 'num_train_epochs'}
# any text will do
NAMES = {'run_name', 'project', 'trackio_space_id', 'trackio_bucket_id', 'trackio_static_space_id', 'length_column_name', 'logging_dir'}


def refused(words: list):
    "The one line that the command says."
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as err: code = main(words)
    lines = err.getvalue().splitlines()
    assert code == 2, (words, code, lines[-3:])
    assert lines[-1].startswith('kdkit: error: ') and sum(line.startswith('kdkit: ')
                                                          for line in lines) == 1 and 'Traceback' not in err.getvalue(), (words, lines[-3:])
    return lines[-1]


def table() -> dict:  # option -> list of values that it cannot have
    bad = {}
    for name, kind in {**OURS, **THEIRS}.items():
        if 'float' in kind or 'int' in kind: bad[name] = ['nan', 'inf', '-inf', '1e999', 'many', '0x']
        elif 'bool' in kind: bad[name] = ['maybe', '2']
        elif name in NAMES: bad[name] = ['a\0b']
        elif name in OURS: bad[name] = ['\0']
        else: bad[name] = ['no such thing']
    for name in ('temperature', 'learning_rate', 'num_epochs', 'max_hours', 'contrastive_temperature'): bad[name] += ['0', '-1']
    for name in ('batch_size', 'gradient_accumulation_steps', 'logging_steps', 'eval_steps', 'max_eval_rows', 'patience', 'cache_top_k',
                 'max_documents', 'num_proc', 'total_steps', 'max_steps'):
        bad[name] += ['0', '-3', '1.5']
    for name in ('alpha_kd', 'alpha_lm', 'alpha_feature', 'min_delta', 'warmup_steps', 'weight_decay', 'max_grad_norm',
                 'dataloader_num_workers', 'adam_epsilon', 'adam_beta1', 'adam_beta2', 'eval_delay'):
        bad[name] += ['-1']
    for name in ('beta', 'skew', 'aware_share', 'eval_fraction', 'span_likely', 'adam_beta1', 'adam_beta2'): bad[name] += ['2', '-.1']
    for name in ('recipe', 'kd_method', 'divergence', 'balance', 'aware_by', 'teacher_dtype', 'documents_by'):
        bad[name] += ['no such thing', '']
    bad['output_dir'] += ['', ' ', '/proc/nothing/run', 'y' * 300, '/dev/null/run']
    for name in ('data_seed', 'dataloader_prefetch_factor', 'ddp_bucket_cap_mb', 'eval_accumulation_steps', 'torch_empty_cache_steps',
                 'ddp_timeout', 'per_device_eval_batch_size', 'save_steps'):
        bad[name] += ['-1', '-7']
    for name in ('dataloader_prefetch_factor', 'ddp_bucket_cap_mb', 'eval_accumulation_steps', 'adam_epsilon', 'save_steps'):
        bad[name] += ['0']
    for name in ('dataloader_num_workers', 'num_proc', 'data_seed', 'batch_size', 'max_length', 'max_steps', 'cache_samples',
                 'ddp_timeout'):
        bad[name] += [str(10**19)]
    for name in ('temperature', 'alpha_kd', 'learning_rate', 'adam_epsilon', 'num_epochs', 'weight_decay'): bad[name] += ['1e30']
    bad['local_rank'] += ['-2']
    bad['seed'] += ['-1', str(2**40)]
    bad['save_total_limit'] += ['0', '-1']
    for name in ('teacher_model', 'student_model'):
        bad[name] += ['a/' * 200, 'a' * 300, './nowhere', '/dev/null', '/dev/null/model', 'https://huggingface.co/a/b', '']
    for name in ('dataset', 'eval_dataset'): bad[name] += ['a' * 5000, '/dev/null/text.txt', 'nowhere.jsonl', './nowhere']
    for name in ('resume_from', 'teacher_cache', 'cache_dir'): bad[name] += ['/dev/null/x']
    bad['teacher_cache'] += ['/proc']
    return bad


@pytest.fixture
def run(pair, tmp_path):
    return dict(pair, output_dir=tmp_path / 'out', max_steps=1, max_length=64)


def test_every_option_refuses_what_it_cannot_be(run):
    counted, fell_short = 0, []
    for name, values in table().items():
        for value in values:
            counted += 1
            try: line = refused(['train', *(f'--{k}={v}' for k, v in {**run, name: value}.items())])
            except AssertionError as error:
                fell_short.append((name, value[:20], str(error)[:200])); shutil.rmtree(run['output_dir'], ignore_errors=True); continue
            if Path(run['output_dir']).exists(): fell_short.append((name, value[:20], 'something was left behind'))
    assert not fell_short, fell_short
    assert counted >= 300


@pytest.mark.parametrize('values, says', [  # each could be, and all of them together could not
    (dict(weight_decay=600, learning_rate=2e-3), 'take all of a weight'), (dict(save_strategy='best', eval_strategy='no'), 'makes none'),
    (dict(early_stopping=True, eval_strategy='no'), 'makes none'),
    (dict(eval_delay=1000), 'nothing would be measured'),
    (dict(save_strategy='no', load_best_model_at_end=True), 'load_best_model_at_end'), (dict(greater_is_better=True), 'lower is better'),
    (dict(gradient_checkpointing_kwargs=dict(use_reentrant=False)), 'give both, or neither'),
    (dict(gradient_checkpointing=True, gradient_checkpointing_kwargs=dict(every_n_layers=0)), 'every_n_layers'),
    (dict(accelerator_config=dict(gradient_accumulation_kwargs=dict(num_steps=7))), 'gradient_accumulation_steps'),
    (dict(accelerator_config=dict(even_batches='x')), 'even_batches'),
    (dict(lr_scheduler_type='cosine_with_restarts', lr_scheduler_kwargs=dict(num_cycles=-3)), 'num_cycles'),
    (dict(lr_scheduler_kwargs=dict(num_cycles=math.nan)), 'num_cycles'),
    (dict(max_steps=20, lr_scheduler_type='cosine_with_min_lr', lr_scheduler_kwargs=dict(min_lr_rate=5)), 'between 0 and 1 times'),
    (dict(max_steps=20, lr_scheduler_type='warmup_stable_decay', lr_scheduler_kwargs=dict(num_decay_steps=10**5)), 'below a hundredth'),
    (dict(warmup_steps=10**6), 'below a hundredth'), (dict(max_steps=20, warmup_steps=25), 'the run has 20 steps'),
    (dict(optim='sgd', optim_args='momentum=nan'), 'momentum'), (dict(optim='sgd', optim_args='momentum=5'), 'momentum'),
    (dict(dataloader_prefetch_factor=2), 'dataloader_num_workers'), (dict(dataloader_persistent_workers=True), 'num_workers'),
    (dict(alpha_contrastive=1, contrastive_segments=65), 'most segments would be empty')])
def test_what_contradicts_itself_is_refused(run, values, says):
    with pytest.raises(ConfigError, match=says) as raised: check_arguments(*settings({**run, **values}))
    assert '\n' not in str(raised.value)


@pytest.mark.parametrize('name, value', [('data_seed', -1), ('data_seed', 'x'), ('weight_decay', '0.1'), ('adam_epsilon', [1]),
                                         ('max_grad_norm', math.nan), ('dataloader_num_workers', {}), ('eval_delay', math.inf)])
def test_what_python_gives_as_it_is_is_looked_at_too(run, name, value):
    with pytest.raises(ConfigError, match=name): check_arguments(*settings(run, {name: value}))


@pytest.mark.parametrize('text, says', [
    ('- a\n- b\n', 'holds a list'), ('just words', 'holds a str'), ('', 'holds a NoneType'), ('a: [1, 2', 'not YAML'),
    ('\x00\x01\x02', 'not YAML'), ('temperature: [1, 2]', 'temperature'),
    ('temperature: {a: 1}', 'temperature'), ('a: &a [*a]', 'aliases'), ('a: &a 1\nb: *a', 'aliases'), ('temprature: 1', 'temperature'),
    ('max_steps: .nan', 'max_steps'), ('learning_rate: .inf', 'learning_rate'),
    ('trust_remote_code: true', 'a file cannot decide that'), ('hub_token: secret', 'hub_token is set'), ('? [a]\n: 1', 'not YAML'),
    ('a: ' + '[' * 3000, 'not YAML'), ('1: 2', "'1'"),
    ('!!python/object/apply:os.system [true]', 'not YAML'), ('x: ' + 'y' * 2**21, 'no file of options')])
def test_a_config_file_of_any_content_is_one_line(run, tmp_path, text, says):
    file = tmp_path / 'run.yaml'
    file.write_bytes(text.encode('utf-8', 'surrogateescape'))
    line = refused(['train', str(file), *(f'--{k}={v}' for k, v in run.items() if k not in text)])
    assert says in line and len(line) < 1000 and 'secret' not in line
    assert not Path(run['output_dir']).exists()


def test_a_config_file_that_is_no_file(run, tmp_path):
    for path in (tmp_path, tmp_path / 'nowhere.yaml', '/dev/null/x.yaml'):
        refused(['train', str(path), *(f'--{k}={v}' for k, v in run.items())])
    (tmp_path / 'binary.yaml').write_bytes(bytes(range(256)) * 9)
    refused(['train', str(tmp_path / 'binary.yaml'), *(f'--{k}={v}' for k, v in run.items())])


def test_a_file_does_not_switch_on_foreign_code_and_holds_no_token(run, tmp_path):
    file = tmp_path / 'run.yaml'
    file.write_text('trust_remote_code: true\n')
    with pytest.raises(ValueError, match='a file cannot decide that'): settings(str(file))
    assert settings(str(file), trust_remote_code=True)[0].trust_remote_code
    line = refused(['train', '--hub_token=hf_very_secret', *(f'--{k}={v}' for k, v in run.items())])
    assert 'hf_very_secret' not in line and not Path(run['output_dir']).exists()


DAMAGED = ('', '[]', '3', 'null', '{', '"text"', '\x00\x01', '{"teacher": 3}', '{"teacher": {"bits_per_byte": "many"}}',
           '{"student_after": [1]}', '{"retention": {"after": 3}}', '{"steps": "x", "data": 3, "versions": []}',
           json.dumps(dict(teacher=dict(bits_per_byte=float('nan'))), allow_nan=True))


@pytest.mark.parametrize('name', ['report.json', 'config.yaml', 'stages.json', 'plan.json', 'metrics.jsonl'])
@pytest.mark.parametrize('text', DAMAGED, ids=range(len(DAMAGED)))
def test_nothing_that_a_folder_holds_breaks_a_view_or_the_door(finished, tmp_path, name, text):
    values, folder = finished
    broken = tmp_path / 'run'
    shutil.copytree(folder, broken, ignore=shutil.ignore_patterns('checkpoint-*', 'control'))
    (broken / name).write_text(text)
    from kdkit.report import comparison_table
    from kdkit.widgets import compare, replay
    for view in (lambda: comparison_table([folder, broken]), lambda: replay(broken), lambda: compare(folder, broken)):
        try: view()
        except ValueError as error: assert len(str(error).splitlines()) == 1 and str(broken) in str(error)


@pytest.fixture(scope='module')
def finished(pair, tmp_path_factory):
    values = dict(pair, output_dir=tmp_path_factory.mktemp('finished') / 'run', max_steps=1, max_length=64, max_eval_rows=2, batch_size=2)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert main(['train', *(f'--{k}={v}' for k, v in values.items())]) == 0
    return values, Path(values['output_dir'])


@pytest.mark.parametrize('text', DAMAGED[:7], ids=range(7))
def test_a_run_whose_config_is_damaged_is_nobodys(finished, tmp_path, text):
    values, folder = finished
    broken = tmp_path / 'run'
    shutil.copytree(folder, broken)
    (broken / 'config.yaml').write_text(text)
    line = refused(['train', *(f'--{k}={v}' for k, v in {**values, 'output_dir': broken}.items())])
    assert 'config.yaml' in line or 'another run' in line
    assert (broken / 'student').is_dir()  # nothing of it was touched
