"Two processes that train one student, started as a user starts them: the same weights, numbers and report as one process, and one voice."
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kdkit.metrics import read_metrics

BIN = Path(sys.executable).parent
OPTIONS = dict(max_length=64, max_steps=6, eval_steps=3, logging_steps=2, learning_rate=1e-3, eval_fraction=.1, max_eval_rows=8,
               **({'use_cpu': 'true'} if torch.cuda.is_available() else {}))  # where there is no GPU nobody has to say so
LAUNCH = dict(one=['kdkit'], torchrun=['torchrun', '--standalone', '--nproc_per_node', '2', '--no-python', 'kdkit'],
              accelerate=['accelerate', 'launch', '--multi_gpu', '--num_processes', '2', '--main_process_port',
                          str(random.randrange(20000, 60000)), '-m', 'kdkit.cli'])


def launch(way, values, folder, **options):
    "Run `kdkit train`; (exit code, what stood on the screen)."
    words = [f'--{name}={value}' for name, value in {**values, **OPTIONS, 'output_dir': folder, **options}.items()]
    env = dict(os.environ, PATH=f"{BIN}{os.pathsep}{os.environ['PATH']}", OMP_NUM_THREADS='1')
    done = subprocess.run([*LAUNCH[way], 'train', *words], env=env, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope='module')
def one(leading, tmp_path_factory):
    folder = tmp_path_factory.mktemp('one') / 'run'
    code, said = launch('one', leading, folder, batch_size=4)
    assert code == 0, said
    return folder, said


def numbers(tree, path=''):
    "Every number of nested mappings and lists, by its path."
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    if isinstance(tree, (int, float)) and not isinstance(tree, bool): yield path, tree
    for name, value in items: yield from numbers(value, f'{path}.{name}')


def same(one, two):
    "Weights to 1e-6, metrics and report to 1e-5 of their size; speed and memory apart."
    left, right = (load_file(folder / 'student' / 'model.safetensors') for folder in (one, two))
    assert left.keys() == right.keys() and all((left[name] - right[name]).abs().max() < 1e-6 for name in left)
    kept = lambda found: {name: value for name, value in found if not re.search(r'tokens_per_second|memory|seconds|version', name)}
    for files in ([read_metrics(folder) for folder in (one, two)],
                  [json.loads((folder / 'report.json').read_text()) for folder in (one, two)]):
        left, right = (kept(numbers(tree)) for tree in files)
        assert right == pytest.approx(left, rel=1e-5, abs=1e-7) and len(left) > 30


@pytest.mark.parametrize('way', ['torchrun', 'accelerate'])
def test_two_processes_do_what_one_does(leading, one, tmp_path, way):
    code, said = launch(way, leading, tmp_path / 'run', batch_size=2)
    assert code == 0, said
    same(one[0], tmp_path / 'run')
    lines = [line for line in said.splitlines() if line.strip()]
    for line in (line for line in one[1].splitlines()
                 if re.match('training on|to train on|to measure on|the two models|your teacher spends|The student is in|distilling',
                             line)):
        assert sum(other.split('student is in')[0] == line.split('student is in')[0] for other in lines) == 1, (line, said)
    assert 'find_unused_parameters' not in said
    tokens = [line['tokens_per_second'] for line in read_metrics(tmp_path / 'run') if 'tokens_per_second' in line]
    assert len(tokens) == 3 and min(tokens) > 0


def test_micro_batches_and_a_checkpoint_between_two_log_lines(leading, one, tmp_path):
    "Cut off after step 3, where a third of what step 4 logs was added up already."
    folder = tmp_path / 'run'
    code, said = launch('torchrun', leading, folder, batch_size=1, gradient_accumulation_steps=2)
    assert code == 0, said
    same(one[0], folder)
    for name in ('checkpoint-6', 'student'): shutil.rmtree(folder / name)
    stages = json.loads((folder / 'stages.json').read_text())
    for name in ('trained', 'reported'): stages.pop(name)
    (folder / 'stages.json').write_text(json.dumps(stages))
    code, said = launch('torchrun', leading, folder, batch_size=1, gradient_accumulation_steps=2)
    assert code == 0 and 'step 2/6' not in said and 'step 4/6' in said, said
    same(one[0], folder)


def test_a_mistake_is_said_once(leading, tmp_path):
    code, said = launch('torchrun', leading, tmp_path / 'run', batch_size=2, teacher_dtype='float12')
    assert code and said.count('kdkit: error: teacher_dtype') == 1, said
