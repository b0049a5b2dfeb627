"A step that does not fit into memory. A hook that raises PyTorch's own error above a size of micro-batch stands for the card."
import json
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaModel

from kdkit.cli import main
from kdkit.metrics import read_metrics

SAID = 'CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 14.74 GiB of which 1.02 GiB is free.'


@contextmanager
def card_that_holds(windows, from_step=0):
    "The student's forward pass in training fails above so many windows, from this optimizer step on."
    seen = []
    def refuse(module, args, kwargs):
        if not (isinstance(module, LlamaModel) and torch.is_grad_enabled()): return
        ids = kwargs['input_ids']
        seen.append(len(ids))
        if len(ids) > windows and len(seen) > from_step: raise torch.OutOfMemoryError(SAID)
    def hook(module, args, kwargs): return refuse(module, args, kwargs)
    before = LlamaModel.__call__
    def call(self, *args, **kwargs):
        hook(self, args, kwargs)
        return before(self, *args, **kwargs)
    LlamaModel.__call__ = call
    try: yield seen
    finally: del LlamaModel.__call__


def train(pair, folder, capsys, **options):
    "(exit code, what was said)"
    values = dict(pair, max_length=64, batch_size=4, max_steps=6, eval_steps=3, logging_steps=1, learning_rate=1e-3, eval_fraction=.1,
                  max_eval_rows=8, output_dir=folder)
    code = main(['train', *(f'--{name}={value}' for name, value in {**values, **options}.items())])
    return code, ''.join(capsys.readouterr())


def same(one, two):
    left, right = (load_file(folder / 'student' / 'model.safetensors') for folder in (one, two))
    assert all((left[name] - right[name]).abs().max() < 1e-6 for name in left)
    lines = [read_metrics(folder) for folder in (one, two)]
    assert len(lines[0]) == len(lines[1]) == 8
    for left, right in zip(*lines):  # the share follows from what was measured before the first step, in batches of another size
        for name in {'step', 'loss', 'lr'} & left.keys(): assert left[name] == pytest.approx(right[name], rel=1e-6)
        for name in {'losses', 'weights', 'eval'} & left.keys(): assert left[name] == pytest.approx(right[name], rel=1e-6)


@pytest.mark.parametrize('control', [False, True])
def test_the_first_steps_shrink_the_micro_batch(pair, tmp_path, capsys, control):
    assert train(pair, tmp_path / 'small', capsys, batch_size=1, gradient_accumulation_steps=4, control=control)[0] == 0
    with card_that_holds(1, from_step=2) as seen: code, said = train(pair, tmp_path / 'run', capsys, control=control)
    assert code == 0, said
    assert [line for line in said.splitlines() if 'does not fit' in line] == [
        f'step {step} does not fit into memory (CUDA out of memory): it starts again with {n} x {4 // n} windows (batch_size x '
        f'gradient_accumulation_steps), which is the same optimizer step' for step, n in ((3, 2), (1, 1))]
    assert seen[:4] == [4, 4, 4, 2] and set(seen[4:]) == {1}
    same(tmp_path / 'small', tmp_path / 'run')
    if control: same(tmp_path / 'small' / 'control', tmp_path / 'run' / 'control')


def test_the_same_command_goes_on_as_it_fitted(pair, tmp_path, capsys):
    with card_that_holds(2):
        assert train(pair, tmp_path / 'run', capsys)[0] == 0
        code, said = train(pair, tmp_path / 'run', capsys, max_steps=9)
    assert code == 0 and 'micro-batches of 2 windows, 2 to an optimizer step' in said, said
    assert 'does not fit' not in said and 'becomes' not in said, said
    assert read_metrics(tmp_path / 'run')[-1]['step'] == 9


def test_later_everything_is_saved_and_said(pair, tmp_path, capsys):
    assert train(pair, tmp_path / 'whole', capsys)[0] == 0
    with card_that_holds(2, from_step=4): code, said = train(pair, tmp_path / 'run', capsys)
    assert code == 1 and 'Traceback' not in said
    [line] = [line for line in said.splitlines() if 'does not fit' in line]
    assert line == ('kdkit: error: step 5 does not fit into memory (CUDA out of memory); everything until step 4 is saved. '
                    'To go on from there, give batch_size 2 with gradient_accumulation_steps 2, which makes the same optimizer steps.')
    assert (tmp_path / 'run' / 'checkpoint-4').is_dir()
    with card_that_holds(2): code, said = train(pair, tmp_path / 'run', capsys, batch_size=2, gradient_accumulation_steps=2)
    assert code == 0, said
    left, right = (load_file(tmp_path / name / 'student' / 'model.safetensors') for name in ('whole', 'run'))
    assert all((left[name] - right[name]).abs().max() < 1e-6 for name in left)


def test_one_window_is_the_least(pair, tmp_path, capsys):
    with card_that_holds(0): code, said = train(pair, tmp_path / 'run', capsys, batch_size=1)
    assert code == 1 and 'gradient_checkpointing, then a smaller max_length' in said
