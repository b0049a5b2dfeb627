"Trackers, the real ones: every loss and the teacher's share arrive there, of student and control apart, and can be read back."
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdkit.metrics import read_metrics

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = dict(max_length=64, max_steps=4, eval_steps=2, logging_steps=1, batch_size=2, eval_fraction=.1, max_eval_rows=4, use_cpu='true',
               control='true', run_name='mine', project='ours')


def trained(pair, folder, *trackers, **environ):
    "A short run with a control, in a process and a folder of its own."
    words = ['train', *(f'--{name}={value}' for name, value in {**pair, **OPTIONS, 'output_dir': folder / 'run'}.items()),
             '--report_to', *trackers]
    env = {**{k: v for k, v in os.environ.items() if not k.startswith(('WANDB', 'TRACKIO', 'TENSORBOARD'))}, 'HOME': str(folder),
           'PYTHONPATH': os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]), **environ}
    done = subprocess.run([sys.executable, '-m', 'kdkit.cli', *words], env=env, capture_output=True, text=True, timeout=300, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / 'run', done.stderr


def wanted(folder) -> dict:  # step -> what metrics.jsonl says of it, by the trackers' names
    "What must arrive: losses, weights, the share, the lead, and what is measured."
    flat = lambda line: {f'{group}/{name}': value for group in ('losses', 'weights') for name, value in line.get(group, {}).items()
                         if value is not None}
    lines = [line for line in read_metrics(folder) if 'losses' in line]
    assert len(lines) == 4 and {'losses/lm', 'losses/kd', 'weights/kd'} <= set(flat(lines[0]))
    return {line['step']: {**flat(line), 'loss': line['loss'], **({'teacher_lead': line['teacher_lead']} if 'teacher_lead' in line else {})}
            for line in lines}


def arrived(found, folder):
    "Every number of metrics.jsonl, at its step; found: step -> name -> value."
    for step, values in wanted(folder).items():
        for name, value in values.items(): assert found[step][f'train/{name}'] == pytest.approx(value, rel=1e-5, abs=1e-6), (step, name)
    measured = [line for line in read_metrics(folder) if 'eval' in line]
    assert measured and all(found[line['step']]['eval/bits_per_byte'] == pytest.approx(line['eval']['bits_per_byte'], rel=1e-5)
                            for line in measured)


def test_tensorboard(pair, tmp_path):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    folder, said = trained(pair, tmp_path, 'tensorboard')
    assert 'Error' not in said
    for run in (folder, folder / 'control'):
        [events] = {path.parent for path in run.rglob('events.out.tfevents*') if 'control' not in path.relative_to(run).parts}
        board, found = EventAccumulator(str(events)).Reload(), {}
        for name in board.Tags()['scalars']:
            for event in board.Scalars(name): found.setdefault(event.step, {})[name] = event.value
        if run == folder: arrived(found, run)
        else: assert {'train/losses/lm', 'eval/bits_per_byte'} <= set(found[4])


def test_trackio(pair, tmp_path):
    pytest.importorskip('trackio')
    folder, said = trained(pair, tmp_path, 'trackio', TRACKIO_DIR=str(tmp_path / 'trackio'), HF_HUB_OFFLINE='1')
    code = '''import json, trackio
from trackio.sqlite_storage import SQLiteStorage
logs = {run.name: SQLiteStorage.get_logs('ours', run.name, run_id=run.id) for run in trackio.Api().runs('ours')}
print('READ' + json.dumps(logs, default=str))'''
    done = subprocess.run([sys.executable, '-c', code], env={**os.environ, 'HOME': str(tmp_path), 'TRACKIO_DIR': str(tmp_path / 'trackio')},
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    runs = {}
    for name, lines in json.loads(done.stdout.partition('READ')[2]).items():
        for line in lines: runs.setdefault(name, {}).setdefault(line.get('train/global_step'), {}).update(line)
    assert set(runs) == {'mine', 'mine-control'}
    arrived(runs['mine'], folder)
    assert {'train/losses/lm', 'train/loss'} <= set(runs['mine-control'][4]) and 'train/losses/kd' not in runs['mine-control'][4]


def records(path):
    """The records of W&B's file: pieces of one log in blocks of 32 KiB, each with a checksum, a length and whether it is whole, first,
    middle or last."""
    data, at, whole = path.read_bytes(), 7, b''
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7: at += 32768 - at % 32768
        length, kind = int.from_bytes(data[at + 4:at + 6], 'little'), data[at + 6]
        whole += data[at + 7:at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b''


def test_wandb_offline(pair, tmp_path):
    pytest.importorskip('wandb')
    folder, said = trained(pair, tmp_path, 'wandb', WANDB_MODE='offline', WANDB_DIR=str(tmp_path / 'wandb'))
    from wandb.proto import wandb_internal_pb2
    runs = {}
    for path in (tmp_path / 'wandb').rglob('*.wandb'):
        name, found = None, {}
        for data in records(path):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.run.display_name: name = record.run.display_name
            values = {item.key or '/'.join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            if 'train/global_step' in values: found.setdefault(values['train/global_step'], {}).update(values)
        runs[name] = found
    assert set(runs) == {'mine', 'mine-control'}
    arrived(runs['mine'], folder)
    assert {'train/losses/lm', 'train/loss'} <= set(runs['mine-control'][4])
