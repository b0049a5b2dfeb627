"What a person types, and what comes back when it is wrong. Nothing here loads a model."
import errno
import os
import subprocess
import sys

import pytest

from kdkit import cli
from kdkit.cli import main, read_options
from kdkit.config import ConfigError, DistillConfig, options_by_group, recipe_files
from kdkit.options import settings
from kdkit.trainer import check_arguments

NAMES = ['--teacher_model', 'big', '--student_model', 'small', '--dataset', 'wikitext:raw']


class Fake:
    "Stands for kdkit.run and keeps what it is called with."
    def __init__(self): self.calls = []

    def distill(self, config, training_arguments):
        self.calls.append((config, training_arguments))
        return REPORT

    def evaluate_run(self, *args, **kwargs):
        self.calls.append((args, kwargs))
        return dict(student_after=REPORT['teacher'])

    def demo(self, **kwargs):
        self.calls.append(kwargs)
        return REPORT


SCORE = dict(bits_per_byte=2., nats_per_token=4., perplexity=54.6, parameters=10)
REPORT = dict(teacher=SCORE, student_before=SCORE, student_after=SCORE, control=None, retention={}, gap_closed=None)


@pytest.fixture
def fake(monkeypatch):
    import kdkit
    run = Fake()
    monkeypatch.setitem(sys.modules, 'kdkit.run', run)
    monkeypatch.setattr(kdkit, 'run', run, raising=False)
    return run


def refused(capsys, *words):
    "The one line that a mistake gives."
    assert main(list(words)) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith('kdkit: error: ') and err.count('\n') == 1
    return err


def test_train_hands_over_config_and_trainer_options(fake, capsys):
    assert main(['train', *NAMES, '--epochs', '2', '--per_device_train_batch_size', '4', '--max-steps=10', '--weight_decay', '0.5',
                 '--no_pack', '--control']) == 0
    [(config, arguments)] = fake.calls
    assert config == DistillConfig(teacher_model='big', student_model='small', dataset='wikitext:raw', num_epochs=2, batch_size=4,
                                   max_steps=10, pack=False, control=True)
    assert arguments == dict(weight_decay=0.5)
    assert '| held-out text' in capsys.readouterr().out


@pytest.mark.parametrize('name', ['learning_rate', 'max_steps', 'warmup_steps', 'eval_steps', 'logging_steps',
                                  'gradient_accumulation_steps', 'seed', 'output_dir'])
def test_names_of_both_are_the_configs(name):
    config, arguments = read_options([f'--{name}', '3'])
    assert str(getattr(config, name)) in ('3', '3.0') and not arguments


@pytest.mark.parametrize('alias', ['epochs', 'num_epochs', 'num_train_epochs'])
def test_epochs_by_any_name(alias):
    assert read_options([f'--{alias}', '3'])[0].num_epochs == 3


def test_the_command_line_beats_the_file(tmp_path):
    (tmp_path / 'c.yaml').write_text('teacher_model: a\nlearning_rate: 1e-3\nmax_steps: 50\nweight_decay: 1e-1\nlr_scheduler_kwargs: '
                                     '{num_cycles: 2}\nfp16: true\n')
    for words in ([str(tmp_path / 'c.yaml')], ['--config', str(tmp_path / 'c.yaml')]):
        config, arguments = read_options([*words, '--max_steps', '10', '--fp16', 'false'])
        assert (config.teacher_model, config.learning_rate, config.max_steps) == ('a', 1e-3, 10)
        assert arguments == dict(weight_decay=0.1, lr_scheduler_kwargs=dict(num_cycles=2), fp16=False)


def test_epochs_on_the_command_line_beat_steps_in_the_file(tmp_path):
    (tmp_path / 'c.json').write_text('{"max_steps": 50}')
    assert read_options([str(tmp_path / 'c.json'), '--epochs', '2'])[0].max_steps == -1
    assert read_options([str(tmp_path / 'c.json')])[0].max_steps == 50


def test_a_saved_config_is_a_command(tmp_path):
    config = DistillConfig(teacher_model='a', recipe='seed', eval_steps=3)
    config.save(tmp_path / 'config.yaml')
    assert read_options([str(tmp_path / 'config.yaml')]) == (config, {})


def test_only_what_was_given_reaches_the_trainer():
    given = dict(weight_decay=['0.1'], lr_scheduler_type=['cosine'], fp16=['true'], report_to=['none'], save_total_limit=['3'],
                 gradient_checkpointing=[])
    words = [word for name, values in given.items() for word in (f'--{name}', *values)]
    read = read_options(words)[1]
    assert read.pop('report_to') in ('none', ['none'])
    assert read == dict(weight_decay=0.1, lr_scheduler_type='cosine', fp16=True, save_total_limit=3, gradient_checkpointing=True)
    assert all(type(value) in (str, float, bool, int) for value in read.values())  # so that YAML can hold them


def test_several_values_of_one_option(tmp_path):
    (tmp_path / 'c.yaml').write_text('report_to: [tensorboard, wandb]\nlabel_names: [labels]\n')
    assert read_options([str(tmp_path / 'c.yaml')])[1] == dict(report_to=['tensorboard', 'wandb'], label_names=['labels'])
    assert read_options('--report_to tensorboard wandb'.split())[1] == dict(report_to=['tensorboard', 'wandb'])


@pytest.mark.parametrize('words, says', [
    ('--temprature 2', "'temperature'"), ('--wieght_decay 2', "'weight_decay'"), ('--epoch 2', "'epochs'"), ('-b 8', 'two dashes'),
    ('--max_steps', 'needs a value'),
    ('--max_steps many', 'whole number'), ('--weight_decay much', 'weight_decay'), ('--alpha_kd -1', 'alpha_kd'),
    ('--temperature 0', 'temperature'),
    ('--dataset a b', 'takes one value'), ('--weight_decay 1 2', 'takes one value'), ('--control maybe', 'maybe'),
    ('--lr_scheduler_type nonsense', 'lr_scheduler_type'), ('nowhere.yaml', 'not found'),
    ('--config nowhere.yaml', 'not found'), ('a.yaml b.yaml', 'one config file'), ('--teacher_model ./nowhere', 'does not exist'),
    ('--dataset nowhere.jsonl', 'nowhere.jsonl'), ('--eval_dataset /no/where', 'does not exist'), ('--kd_method guess', 'first_token')])
def test_a_mistake_is_one_line(fake, capsys, words, says):
    assert says in refused(capsys, 'train', *NAMES,
                           *words.split()) if not words.startswith(('nowhere',
                                                                    'a.yaml')) else refused(capsys, 'train', *words.split(), *NAMES)
    assert not fake.calls


def test_missing_names_are_all_said(fake, capsys):
    assert '--teacher_model, --student_model, --dataset are missing' in refused(capsys, 'train')
    assert '--dataset is missing' in refused(capsys, 'eval', '--student_model', 'small')


@pytest.mark.parametrize('text, says', [('- a', 'list'), ('a: [', 'not YAML'), ('temprature: 2', "'temperature'"),
                                        ('batch_size: [1]', 'whole number'), ('weight_decay: much', 'weight_decay')])
def test_a_wrong_file_is_one_line(fake, capsys, tmp_path, text, says):
    path = tmp_path / 'c.yaml'
    path.write_text(text)
    assert says in refused(capsys, 'train', str(path), *NAMES)


def test_options_that_are_wrong_together(fake, capsys):
    assert 'TrainingArguments' in refused(capsys, 'train', *NAMES, '--fp16', '--bf16')


def test_an_output_folder_that_is_a_file(fake, capsys, tmp_path):
    (tmp_path / 'run').touch()
    assert 'is a file' in refused(capsys, 'train', *NAMES, '--output_dir', str(tmp_path / 'run'))


@pytest.mark.parametrize('words, says', [(['trian'], "'train'"), (['demo', '--max_lenght', '3'], "'max_length'"),
                                         (['demo', '--dataset', 'x'], 'kdkit train'), (['demo', 'x'], "'x'"),
                                         (['eval', '--sede', '3'], "'seed'")])
def test_a_wrong_command_is_one_line(fake, capsys, words, says):
    assert says in refused(capsys, *words)


def test_eval_and_demo_pass_on_what_was_given(fake, capsys):
    assert main('eval --student_model small --dataset raw --teacher_model big --batch_size 4'.split()) == 0
    assert main('demo --seed 3 --output_dir runs/x --max_steps 200 --weight_decay 0.5'.split()) == 0
    assert fake.calls == [(('small', 'raw', 'big'), dict(batch_size=4)), dict(seed=3, output_dir='runs/x', max_steps=200, weight_decay=0.5)]
    assert capsys.readouterr().out.count('bits per byte') == 2


def fails_with(monkeypatch, fake, error):
    def distill(*args): raise error
    monkeypatch.setattr(fake, 'distill', distill)


def test_the_kits_own_refusals_are_one_line(fake, capsys, monkeypatch):
    from kdkit.data import DataError
    fails_with(monkeypatch, fake, DataError('no text column\nin this file'))
    assert 'no text column in this file' in refused(capsys, 'train', *NAMES)


@pytest.mark.parametrize('code', [errno.EACCES, errno.ENOSPC])
def test_a_folder_that_cannot_be_written(fake, capsys, monkeypatch, code):
    fails_with(monkeypatch, fake, OSError(code, os.strerror(code), '/root/runs/config.yaml'))
    assert os.strerror(code) in refused(capsys, 'train', *NAMES)


@pytest.mark.parametrize('error', [ValueError('shapes'), KeyError('x'), RuntimeError('mat1 and mat2'), OSError('odd')])
def test_a_bug_keeps_its_traceback(fake, monkeypatch, error):
    fails_with(monkeypatch, fake, error)
    with pytest.raises(type(error)): main(['train', *NAMES])


def test_a_run_that_diverged_ends_with_its_reason(fake, capsys, monkeypatch):
    from kdkit.trainer import TrainingDiverged
    fails_with(monkeypatch, fake, TrainingDiverged('not finite'))
    assert main(['train', *NAMES]) == 1 and capsys.readouterr().err == 'kdkit: error: not finite\n'


def test_interrupted(fake, capsys, monkeypatch):
    fails_with(monkeypatch, fake, KeyboardInterrupt())
    assert main(['train', *NAMES]) == 130 and 'goes on' in capsys.readouterr().err


def test_only_the_first_process_prints(fake, capsys, monkeypatch):
    monkeypatch.setenv('RANK', '1')
    assert main(['train', *NAMES]) == 0 and not capsys.readouterr().out


def test_nothing_said_is_a_call_for_help(capsys):
    assert main([]) == 0
    said = capsys.readouterr().out
    assert main(['-h']) == 0 and capsys.readouterr().out == said and all(f'  {name} ' in said for name in cli.COMMANDS)


@pytest.mark.parametrize('name', ['smollm', 'smollm.yaml', 'recipes/smollm.yaml'])
def test_a_recipe_of_the_package_goes_by_its_name(fake, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert main(['train', name, '--max_steps', '7']) == 0
    [(config, arguments)] = fake.calls
    assert (config.student_model, config.max_steps, config.batch_size) == ('HuggingFaceTB/SmolLM-135M', 7,
                                                                           4) and arguments == dict(gradient_checkpointing=True)
    (tmp_path / 'smollm').write_text('student_model: mine')  # a file of that name comes first
    assert read_options(['smollm'])[0].student_model == 'mine'


@pytest.mark.parametrize('name', recipe_files())
def test_every_recipe_is_a_whole_run(name):
    config, arguments = read_options([name])
    assert all((config.teacher_model, config.student_model, config.dataset)) and config.output_dir == f'runs/{name}'
    assert config.max_steps > 0 and config.learning_rate is None
    check_arguments(config, arguments)


def test_python_takes_what_the_command_line_takes(tmp_path):
    "One dialect: a dict, a file, a recipe or a config, and options beside it."
    words = ('--teacher_model a --student_model b --epochs 2 --per_device_train_batch_size 4 --weight_decay 0.5 '
             '--lr_scheduler_type linear --gradient_checkpointing').split()
    wanted = read_options(words)
    given = dict(teacher_model='a', student_model='b', epochs=2, per_device_train_batch_size=4, weight_decay=0.5,
                 lr_scheduler_type='linear', gradient_checkpointing=True)
    (tmp_path / 'c.yaml').write_text(''.join(f'{k}: {v}\n' for k, v in given.items()))
    assert settings(given) == settings({}, **given) == settings(tmp_path / 'c.yaml') == settings(str(tmp_path / 'c.yaml')) == wanted
    assert settings(dict(given, max_steps=9, learning_rate=1.), **{k: v for k, v in given.items() if k != 'epochs'}, learning_rate='none',
                    num_epochs=2) == wanted
    assert settings(wanted[0], wanted[1]) == settings(DistillConfig(teacher_model='a', max_steps=3), **dict(given, max_steps=-1)) == wanted


@pytest.mark.parametrize('given, says', [
    (dict(temprature=2), "'temperature'"), (dict(wieght_decay=2), "'weight_decay'"), (dict(weight_decay='much'), 'weight_decay'),
    (dict(batch_size=[1, 2]), 'whole number'), (dict(lr_scheduler_type='straight'), 'lr_scheduler_type'), (dict(max_steps=0), 'max_steps')])
def test_python_is_told_the_same(given, says):
    for call in (lambda: settings(given), lambda: settings({}, **given), lambda: settings(DistillConfig(), **given)):
        with pytest.raises(ConfigError, match=says): call()


def test_help_names_every_option_and_loads_nothing():
    code = ('import sys; from kdkit.cli import main; codes = [main(w.split()) for w in ("-h", "train -h", "eval --help", '
            '"demo -h", "--version")];'
            'assert codes == [0] * 5; assert not {"torch", "transformers", "matplotlib", "datasets", "numpy"} & set(sys.modules), "heavy"')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for name in DistillConfig().to_dict(): assert f'--{name}' in done.stdout
    assert 'TrainingArguments' in done.stdout


def test_mistakes_of_the_config_load_nothing_heavy():
    code = 'import sys; from kdkit.cli import main; assert main(["train", "--temperature", "0"]) == 2; assert "torch" not in sys.modules'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == 'kdkit: error: temperature is 0.0, but it must be above 0.\n'


def test_the_module_is_the_program():
    done = subprocess.run([sys.executable, '-m', 'kdkit.cli', 'trian'], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.count('\n') == 1


def test_every_option_stands_under_one_heading_and_what_matters_comes_first():
    groups = options_by_group()
    assert all(groups) and [f.name for options in groups.values() for f in options] == list(DistillConfig().to_dict())
    assert [f.name for f in next(iter(groups.values()))] == ['teacher_model', 'student_model', 'dataset', 'output_dir', 'max_steps',
                                                             'num_epochs']
    assert set(cli.EVAL_OPTIONS) | set(cli.DEMO_OPTIONS) <= set(DistillConfig().to_dict())
    help = cli.help_text('train')
    for heading, options in groups.items(): assert help.index(f'\n{heading}:\n') < help.index(f'\n  --{options[0].name} ')


@pytest.mark.parametrize('words', [['train', '--help'], ['--help'], ['--version']])
def test_a_pipe_that_nobody_reads_ends_quietly(words):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, '-m', 'kdkit.cli', *words], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert done.returncode == 141 and not done.stderr


def test_the_first_line_comes_while_libraries_are_imported(pair, tmp_path):
    "In a process of its own, where torch is not there yet."
    import subprocess, sys
    run = dict(pair, output_dir=tmp_path / 'run', max_steps=1, max_length=64, max_eval_rows=2, batch_size=2)
    program = 'import sys; from kdkit.cli import main; sys.exit(main(sys.argv[1:]))'
    said = subprocess.run([sys.executable, '-c', program, 'train', *(f'--{k}={v}' for k, v in run.items())], capture_output=True, text=True)
    assert said.returncode == 0 and said.stderr.splitlines()[0] == 'loading kdkit ...'
    assert 'gemm' not in said.stderr  # what bitsandbytes says when peft imports it
    assert subprocess.run([sys.executable, '-c', program, 'train'], capture_output=True, text=True).stderr.count('\n') <= 2
