"Every field of TrainingArguments: it does what it says, is the config's, or is refused in a line before anything is loaded."
import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import TrainingArguments

import kdkit.run
from kdkit.cli import main
from kdkit.config import ConfigError, DistillConfig
from kdkit.metrics import read_metrics
from kdkit.prepare import prepare_text
from kdkit.run import distill, make_framework, make_trainer
from kdkit.trainer import METRICS, OURS, check_arguments, training_arguments

ROOT = Path(__file__).resolve().parent.parent
PINNED = re.search(r'^transformers==(\S+)', (ROOT / 'constraints.txt').read_text(), re.M)[1]

@dataclass
class Ours:
    "The config has it."
@dataclass
class Works:
    "A short run below is given it; what it does is looked at there."
    run: str
@dataclass
class Harmless:
    "A short run is given this value, and nothing changes for one process."
    value: object
@dataclass
class Refused:
    "This value is refused in these words."
    value: object
    words: str

_sharded, _push, _none = 'shards its student in one way', 'pushes once, when it is over', 'collects no predictions'
ARGUMENTS = dict(
    # the run
    output_dir=Ours(), per_device_train_batch_size=Ours(), num_train_epochs=Ours(), max_steps=Ours(), learning_rate=Ours(),
    warmup_steps=Ours(), gradient_accumulation_steps=Ours(),
    logging_steps=Ours(), eval_steps=Ours(), seed=Ours(),
    # the update
    lr_scheduler_type=Works('plateau'), lr_scheduler_kwargs=Works('plateau'), optim=Works('update'), optim_args=Works('update'),
    weight_decay=Works('update'), max_grad_norm=Works('update'),
    adam_beta1=Works('memory'), adam_beta2=Works('memory'), adam_epsilon=Works('memory'),
    optim_target_modules=Refused('all-linear', 'not supported'),
    average_tokens_across_devices=Harmless(False), label_smoothing_factor=Refused(.1, 'smooth already'),
    neftune_noise_alpha=Refused(5., 'noise'),
    # precision and memory
    bf16=Works('bf16'), use_cpu=Works('bf16'), fp16=Refused(True, 'needs a GPU'),
    bf16_full_eval=Refused(True, 'in the precision of its training'), fp16_full_eval=Refused(True, 'in the precision of its training'),
    tf32=Harmless(False), gradient_checkpointing=Works('memory'), gradient_checkpointing_kwargs=Works('memory'),
    torch_empty_cache_steps=Works('memory'), auto_find_batch_size=Refused(True, 'halve batch_size'),
    torch_compile=Refused(True, 'hooks'), torch_compile_backend=Refused('inductor', 'hooks'),
    torch_compile_mode=Refused('default', 'hooks'), use_liger_kernel=Refused(True, 'a chunk at a time'),
    liger_kernel_config=Refused(dict(rope=True), 'kernels'), use_cache=Harmless(True),
    # logging
    logging_strategy=Works('sparse'), logging_first_step=Works('update'), log_on_each_node=Harmless(False),
    logging_nan_inf_filter=Harmless(True), include_num_input_tokens_seen=Works('update'),
    log_level=Harmless('error'), log_level_replica=Harmless('error'), disable_tqdm=Harmless(False), skip_memory_metrics=Works('memory'),
    debug=Refused('underflow_overflow', 'skipped_steps'),
    report_to=Refused('no_such_tracker', 'is unknown'), run_name=Works('trackers'), project=Harmless('mine'),
    trackio_space_id=Harmless('me/space'), trackio_bucket_id=Harmless('me/bucket'),
    trackio_static_space_id=Harmless(False),
    # measuring
    eval_strategy=Works('sparse'), eval_delay=Works('update'), eval_on_start=Works('start'), per_device_eval_batch_size=Works('update'),
    prediction_loss_only=Harmless(True),
    eval_accumulation_steps=Harmless(2), eval_do_concat_batches=Harmless(False), eval_use_gather_object=Harmless(True),
    include_for_metrics=Refused(['loss'], _none), batch_eval_metrics=Refused(True, _none),
    label_names=Refused(['labels'], "student's own tokens"),
    # checkpoints
    save_strategy=Works('best'), save_steps=Works('update'), save_total_limit=Works('update'), save_on_each_node=Harmless(True),
    save_only_model=Refused(True, 'could not go on'),
    enable_jit_checkpoint=Refused(True, 'lower save_steps'), load_best_model_at_end=Works('plateau'),
    metric_for_best_model=Works('plateau'), greater_is_better=Refused(True, 'lower is better'),
    ignore_data_skip=Harmless(True), restore_callback_states_from_checkpoint=Harmless(False),
    resume_from_checkpoint=Refused('runs/x/checkpoint-5', 'goes on by itself'),
    # the hub
    push_to_hub=Ours(), hub_model_id=Refused('me/student', 'named by push_to_hub'), hub_strategy=Refused('end', _push),
    hub_always_push=Refused(True, _push), hub_revision=Refused('v1', _push),
    hub_token=Refused('hf_secret', 'is set, but it would be written'), hub_private_repo=Harmless(True),
    # data
    data_seed=Works('order'), dataloader_drop_last=Works('workers'), dataloader_num_workers=Works('workers'),
    dataloader_pin_memory=Harmless(False), dataloader_persistent_workers=Works('workers'),
    dataloader_prefetch_factor=Works('workers'), dataloader_multiprocessing_context=Works('workers'), dataloader_in_order=Works('workers'),
    remove_unused_columns=Refused(True, "teacher's columns"),
    train_sampling_strategy=Works('workers'), length_column_name=Harmless('tokens'),
    # several processes
    ddp_find_unused_parameters=Harmless(True), ddp_bucket_cap_mb=Harmless(10), ddp_broadcast_buffers=Harmless(False),
    ddp_static_graph=Harmless(False), ddp_timeout=Harmless(100),
    ddp_backend=Refused('gloo', 'torchrun'), local_rank=Harmless(0), accelerator_config=Harmless(dict(even_batches=False)),
    parallelism_config=Refused('x', _sharded), fsdp=Refused('full_shard', 'there is one: start several with torchrun'),
    fsdp_config=Refused(dict(version=2), _sharded), deepspeed=Refused('zero.json', _sharded), full_determinism=Works('determinism'),
    # flags of scripts
    do_train=Harmless(True), do_eval=Harmless(True), do_predict=Refused(True, 'kdkit eval'))

RUNS = dict(  # name -> arguments
    update=dict(optim='sgd', optim_args='momentum=0.9', weight_decay=.2, max_grad_norm=.5, logging_first_step=True,
                include_num_input_tokens_seen='all', eval_delay=3, per_device_eval_batch_size=3,
                save_total_limit=1, save_steps=2),
    memory=dict(gradient_checkpointing=True, gradient_checkpointing_kwargs=dict(use_reentrant=False), torch_empty_cache_steps=2,
                skip_memory_metrics=False, adam_beta1=.9, adam_beta2=.999, adam_epsilon=1e-8),
    plateau=dict(load_best_model_at_end=True, metric_for_best_model='eval_bits_per_byte', lr_scheduler_type='reduce_lr_on_plateau',
                 lr_scheduler_kwargs=dict(patience=0, factor=.1, threshold=10.)),
    bf16=dict(bf16=True, use_cpu=True, lr_scheduler_type='warmup_stable_decay', lr_scheduler_kwargs=dict(num_decay_steps=2)),
    sparse=dict(logging_strategy='epoch', eval_strategy='epoch', lr_scheduler_type='cosine_with_restarts',
                lr_scheduler_kwargs=dict(num_cycles=2)),
    best=dict(save_strategy='best', optim='adafactor'),
    start=dict(eval_on_start=True),
    order=dict(data_seed=3),
    workers=dict(dataloader_num_workers=1, dataloader_prefetch_factor=3, dataloader_persistent_workers=True,
                 dataloader_multiprocessing_context='fork', dataloader_drop_last=True, dataloader_in_order=True,
                 train_sampling_strategy='group_by_length'),
    determinism=dict(full_determinism=True),
    trackers=dict(run_name='mine'))

NAMES = {f.name for f in fields(TrainingArguments) if f.init}

def test_every_field_has_an_answer():
    new, gone = NAMES - ARGUMENTS.keys(), ARGUMENTS.keys() - NAMES
    if transformers.__version__ == PINNED: assert not new and not gone
    else: print(f'transformers {transformers.__version__}: new {sorted(new)}, gone {sorted(gone)}')
    for name, answer in ARGUMENTS.items():
        if isinstance(answer, Works): assert name in RUNS[answer.run], name
    assert {name for name, answer in ARGUMENTS.items() if isinstance(answer, Ours)} == OURS.keys() & ARGUMENTS.keys()

def of(kind): return [name for name, answer in ARGUMENTS.items() if isinstance(answer, kind) and name in NAMES]

@pytest.mark.parametrize('name', of(Refused))
def test_what_is_refused_is_refused_in_a_line(name):
    if name == 'fp16' and torch.cuda.is_available(): return
    answer = ARGUMENTS[name]
    with pytest.raises(ConfigError, match=re.escape(answer.words)) as raised: check_arguments(DistillConfig(), {name: answer.value})
    assert name in str(raised.value) and '\n' not in str(raised.value) and 'hf_secret' not in str(raised.value)

@pytest.mark.parametrize('name', of(Ours))
def test_what_the_config_has_is_asked_for_there(name):
    with pytest.raises(ConfigError, match='belongs to the config'): check_arguments(DistillConfig(), {name: 1})

def test_the_librarys_own_defaults_are_let_through():
    said = TrainingArguments(use_cpu=True)
    values = {name: getattr(said, name) for name in NAMES - OURS.keys() - {'remove_unused_columns', 'accelerator_config', 'debug'}}
    check_arguments(DistillConfig(), {name: getattr(value, 'value', value) for name, value in values.items()})

WRONG = [  # values, of which the library would tell later or not at all
    (dict(adam_beta1=2.), 'adam_beta1=2.0'), (dict(adam_beta2=float('nan')), 'finite'), (dict(weight_decay=float('inf')), 'finite'),
         (dict(weight_decay=-1.), '0 or more'), (dict(max_grad_norm=-1.), '0 or more'),
    (dict(adam_epsilon=-1.), 'adam_epsilon'), (dict(optim='no_such'), 'optim'), (dict(optim='galore_adamw'), 'not supported'),
         (dict(optim='schedule_free_adamw'), 'not supported'),
    (dict(optim_args='momentum'), 'optim_args'), (dict(optim='sgd', optim_args='momentum=-3'), 'momentum'),
         (dict(lr_scheduler_type='no_such'), 'lr_scheduler_type'),
    (dict(lr_scheduler_type='warmup_stable_decay'), 'num_decay_steps'), (dict(lr_scheduler_type='cosine_with_min_lr'), 'min_lr'),
         (dict(lr_scheduler_kwargs=dict(cycles=2)), 'cycles'),
    (dict(lr_scheduler_type='reduce_lr_on_plateau', lr_scheduler_kwargs=dict(factor=2.)), 'actor'),
         (dict(lr_scheduler_type='reduce_lr_on_plateau', eval_strategy='no'), 'eval strategy'),
    (dict(lr_scheduler_type='polynomial', lr_scheduler_kwargs=dict(lr_end=1.)), 'lr_end'),
         (dict(metric_for_best_model='accuracy'), 'nats_per_token'),
    (dict(load_best_model_at_end=True, eval_strategy='no'), 'load_best_model_at_end'), (dict(save_steps=0), 'above 0'),
         (dict(save_total_limit=0), '1 or more'), (dict(per_device_eval_batch_size=0), '1 or more'),
    (dict(save_strategy='sometimes'), 'save_strategy'), (dict(fp16=True, bf16=True), 'bf16'),
         (dict(dataloader_persistent_workers=True), 'num_workers'), (dict(dataloader_prefetch_factor=2), 'num_workers'),
    (dict(dataloader_num_workers=1, dataloader_multiprocessing_context='x'), 'fork'), (dict(dataloader_num_workers=-1), '0 or more'),
         (dict(train_sampling_strategy='x'), 'group_by_length'),
    (dict(gradient_checkpointing=True, gradient_checkpointing_kwargs=dict(foo=1)), 'foo'), (dict(accelerator_config=dict(foo=1)), 'foo'),
         (dict(log_level='loud'), 'log_level'),
    (dict(report_to='tensorbord'), "Did you mean 'tensorboard'"), (dict(report_to=['none', 'x']), 'is unknown'),
         (dict(weight_decai=.1), "Did you mean 'weight_decay'"), (dict(ddp_timeout=0), '1 or more')]

@pytest.mark.parametrize('arguments, says', WRONG, ids=lambda value: ','.join(value) if isinstance(value, dict) else '')
def test_what_the_library_would_find_out_too_late(arguments, says):
    if not arguments.keys() <= NAMES | {'weight_decai'}: pytest.skip('this version has no such field')
    with pytest.raises(ConfigError, match=re.escape(says)) as raised: check_arguments(DistillConfig(), arguments)
    assert '\n' not in str(raised.value)

@pytest.mark.parametrize('optim, package', dict(adamw_8bit='bitsandbytes', adamw_torch_8bit='torchao', grokadamw='grokadamw',
                                                stable_adamw='torch-optimi').items())
def test_an_optimizer_names_the_package_that_it_lacks(optim, package):
    import importlib.util
    if importlib.util.find_spec(package.replace('-', '_').replace('torch_optimi', 'optimi')): pytest.skip(f'{package} is installed')
    with pytest.raises(ConfigError, match=package): check_arguments(DistillConfig(), dict(optim=optim))

@pytest.mark.parametrize('name, package', dict(wandb='wandb', tensorboard='tensorboard', mlflow='mlflow', comet_ml='comet-ml',
                                               clearml='clearml', swanlab='swanlab', trackio='trackio').items())
def test_a_tracker_names_the_package_that_it_lacks(name, package):
    import importlib.util
    if importlib.util.find_spec(name): pytest.skip(f'{name} is installed')
    with pytest.raises(ConfigError, match=f'not installed: pip install {package}'): check_arguments(DistillConfig(), dict(report_to=[name]))

def test_early_stopping_needs_measurements():
    with pytest.raises(ConfigError, match='early_stopping'): check_arguments(DistillConfig(early_stopping=True), dict(eval_strategy='no'))

@pytest.mark.parametrize('flag', ['ACCELERATE_USE_FSDP', 'ACCELERATE_USE_DEEPSPEED'])
def test_a_launcher_that_would_shard(monkeypatch, flag):
    monkeypatch.setenv(flag, 'true')
    with pytest.raises(ConfigError, match=flag): check_arguments(DistillConfig(), {})

def test_both_doors_refuse_before_anything_is_loaded(pair, tmp_path, capsys, monkeypatch):
    def loads(*args): raise AssertionError('something is loaded')
    monkeypatch.setattr(kdkit.run, 'prepare_text', loads)
    values = dict(pair, output_dir=str(tmp_path / 'run'))
    with pytest.raises(ConfigError, match='pushes once'): distill(values, training_arguments=dict(hub_strategy='end', hub_revision='v1'))
    with pytest.raises(ConfigError, match='belongs to the config'): distill(values, training_arguments=dict(learning_rate=1e-3))
    assert main(['train', *(f'--{k}={v}' for k, v in values.items()), '--report_to', 'no_such_tracker']) == 2
    assert "report_to 'no_such_tracker' is unknown" in capsys.readouterr().err and not (tmp_path / 'run').exists()

# -- runs --------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def train(pair, tmp_path_factory):
    "Train with these arguments: (trainer, lines of metrics.jsonl, weights of the student)."
    config = DistillConfig(**pair, recipe='seed', use_curriculum=False, max_length=64, pack=False, batch_size=2,
                           gradient_accumulation_steps=2, max_steps=6, eval_steps=2, logging_steps=1,
                           max_eval_rows=4, eval_fraction=.1, learning_rate=1e-3)
    text = prepare_text(config)
    def run(arguments, change=lambda trainer: None):
        arguments = {name: value for name, value in arguments.items() if name in NAMES}  # another version may lack some
        check_arguments(config, arguments)
        folder = tmp_path_factory.mktemp('run')
        trainer = make_trainer(make_framework(config, text), arguments, text, folder, 'test')
        change(trainer)
        trainer.train()
        assert trainer.state.global_step == 6 and trainer.finite_steps.skipped == 0
        return trainer, read_metrics(folder), {name: p.detach().clone() for name, p in trainer.model.student_model.named_parameters()}
    return run

@pytest.fixture(scope='module')
def plain(train): return train({})

def rates(lines): return [line['lr'] for line in lines if 'lr' in line]
def measured(lines): return [line['step'] for line in lines if 'eval' in line]
def saved(trainer): return sorted(p.name for p in Path(trainer.args.output_dir).glob('checkpoint-*'))
def same(one, other, atol=0.): return all(torch.allclose(one[name], other[name], atol=atol, rtol=0) for name in one)

def test_what_is_harmless_changes_nothing(train, plain):
    arguments = {name: ARGUMENTS[name].value for name in of(Harmless)}
    trainer, lines, weights = train(arguments)
    assert same(weights, plain[2]) and measured(lines) == measured(plain[1]) == [2, 4, 6]

def test_update(train, plain):
    trainer, lines, weights = train(RUNS['update'])
    group = trainer.optimizer.param_groups[0]
    assert (group['momentum'], group['weight_decay']) == (.9, .2) and not same(weights, plain[2])
    assert measured(lines) == [4, 6] and saved(trainer) == ['checkpoint-6'] and trainer.state.num_input_tokens_seen > 6 * 4
    assert trainer.eval_loader(trainer.eval_dataset).batch_size == 3

def test_memory(train, plain):
    trainer, lines, weights = train(RUNS['memory'])
    assert trainer.model.student_model.is_gradient_checkpointing and same(weights, plain[2], 1e-6)
    assert trainer.optimizer.param_groups[0]['betas'] == (.9, .999)

@pytest.mark.parametrize('metric', ['loss', 'eval_loss', *METRICS])
def test_the_best_checkpoint_is_chosen_by_what_is_measured(metric):
    args = training_arguments(DistillConfig(), 100, load_best_model_at_end=True, metric_for_best_model=metric, greater_is_better=True)
    assert args.metric_for_best_model in METRICS and args.greater_is_better is False

def test_saving_and_measuring_go_together_for_the_best_checkpoint():
    args = training_arguments(DistillConfig(), 100, load_best_model_at_end=True, save_steps=50)
    assert args.eval_steps == args.save_steps == 50
    assert training_arguments(DistillConfig(), 100, load_best_model_at_end=True, eval_strategy='epoch').save_strategy == 'epoch'

def test_plateau(train):
    trainer, lines, weights = train(RUNS['plateau'])
    assert rates(lines)[-1] < .2 * rates(lines)[0]
    scores = {line['step']: line['eval']['bits_per_byte'] for line in lines if 'eval' in line}
    best = min(scores, key=scores.get)
    assert trainer.state.best_model_checkpoint.endswith(f'checkpoint-{best}')
    kept = load_file(Path(trainer.state.best_model_checkpoint) / 'model.safetensors')
    assert all(torch.equal(weights[name], value) for name, value in kept.items() if name in weights)

def test_the_best_of_a_run_that_gets_worse_is_given_back(train):
    def unlearn(trainer):
        compute = trainer.compute_loss
        trainer.compute_loss = lambda *args, **options: -compute(*args, **options)
    trainer, lines, weights = train(dict(load_best_model_at_end=True, lr_scheduler_type='constant'), unlearn)
    scores = [line['eval']['nats_per_token'] for line in lines if 'eval' in line]
    assert scores[0] < scores[-1] and trainer.state.best_model_checkpoint.endswith('checkpoint-2')
    kept = load_file(Path(trainer.state.best_model_checkpoint) / 'model.safetensors')
    assert all(torch.equal(weights[name], value) for name, value in kept.items() if name in weights)

def test_bf16(train, plain):
    trainer, lines, weights = train(RUNS['bf16'])
    assert trainer.accelerator.mixed_precision == 'bf16' and not same(weights, plain[2]) and same(weights, plain[2], .02)
    assert rates(lines)[2] == rates(lines)[3] > rates(lines)[5]

def test_sparse(train):
    trainer, lines, weights = train(RUNS['sparse'])
    assert measured(lines) == [6] and len(rates(lines)) == 1

def test_best(train):
    trainer, lines, weights = train(RUNS['best'])
    scores = {line['step']: line['eval']['nats_per_token'] for line in lines if 'eval' in line}
    assert f'checkpoint-{min(scores, key=scores.get)}' in saved(trainer) and type(trainer.optimizer.optimizer).__name__ == 'Adafactor'

def test_start(train): assert measured(train(RUNS['start'])[1]) == [0, 2, 4, 6]

def test_order(train, plain):
    one, other = train(RUNS['order'])[2], train(dict(train_sampling_strategy='sequential'))[2]
    assert not same(one, plain[2]) and not same(other, plain[2]) and not same(one, other)

def test_workers(train): train(RUNS['workers'])

def test_determinism(train, plain):
    try: assert same(train(RUNS['determinism'])[2], plain[2], 1e-6)
    finally: torch.use_deterministic_algorithms(False)

# -- trackers ----------------------------------------------------------------------------------------------------------

WANDB = '''
import os
run, config = None, {}
def login(prompt=True): return False
class _Run:
    def __init__(self, name): self.name, self.summary, self.id = name, {}, name
    def _label(self, **more): pass
def _note(text):
    with open(os.environ['NOTES'], 'a') as file: print(text, file=file)
def init(project=None, name=None, **more):
    global run
    run = _Run(name); _note(f'init {name}')
def finish():
    global run
    _note(f'finish {run.name}'); run = None
def log(values): _note(f'log {run.name} {values["train/global_step"]}')
def define_metric(*args, **more): pass
def termwarn(*args, **more): pass
'''

TENSORBOARD = '''
import os
class SummaryWriter:
    def __init__(self, log_dir=None): self.dir = log_dir
    def note(self, text):
        with open(os.environ['NOTES'], 'a') as file: print(text, file=file)
    def add_text(self, name, text, *args): self.note(f'board {name} {len(text)}')
    def add_scalar(self, name, value, step): self.note(f'board {name} {step}')
    def flush(self): pass
    def close(self): pass
'''

def fake_trackers(folder):
    "Stand-ins for wandb and tensorboardX that write down what they are told."
    for name, text in {'wandb/__init__.py': WANDB, 'wandb/sdk/lib/config_util.py': 'class ConfigError(Exception): pass\n',
                       'wandb/sdk/__init__.py': '', 'wandb/sdk/lib/__init__.py': '', 'tensorboardX/__init__.py': TENSORBOARD}.items():
        path = folder / 'site' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    path = os.pathsep.join([str(folder / 'site'), str(ROOT), os.environ.get('PYTHONPATH', '')])
    return dict(os.environ, PYTHONPATH=path, NOTES=str(folder / 'notes.txt'))

def test_trackers_get_student_and_control_apart(pair, tmp_path):
    values = dict(pair, output_dir=tmp_path / 'run', max_length=64, batch_size=2, max_steps=2, eval_steps=2, logging_steps=1,
                  max_eval_rows=4, control=True)
    words = ['train', *(f'--{k}={v}' for k, v in values.items()), '--report_to', 'wandb', 'tensorboard',
             f"--run_name={RUNS['trackers']['run_name']}"]
    command = [sys.executable, '-c', 'import sys; from kdkit.cli import main; sys.exit(main(sys.argv[1:]))', *words]
    env = {k: v for k, v in fake_trackers(tmp_path).items() if not k.startswith('WANDB')}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr[-2000:]
    assert 'WANDB_API_KEY' in done.stderr and not (tmp_path / 'run').exists()  # nobody is logged in
    done = subprocess.run(command, env=dict(env, WANDB_MODE='offline'), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    notes = (tmp_path / 'notes.txt').read_text().splitlines()
    runs = [note for note in notes if note.startswith(('init', 'finish'))]
    assert runs == ['init mine-control', 'finish mine-control', 'init mine', 'finish mine']
    assert {'log mine 2', 'log mine-control 2'} <= set(notes)
    if importlib.util.find_spec('tensorboard'): return  # transformers takes the real one before this; test_trackers.py reads it
    assert (any(note.startswith('board train/losses/kd') for note in notes)
            and any(re.match(r'board model_config \d{3}', note) for note in notes))
