"What the harness does to a run: signals at chosen moments, damage to files, a disk that is full. And what it looks at afterwards."
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

PROGRAM = 'import sys; from kdkit.cli import main; sys.exit(main(["train", *sys.argv[1:]]))'
SMALL = dict(max_length=64, batch_size=2, max_steps=12, eval_steps=4, logging_steps=3, max_eval_rows=6, learning_rate=1e-3, control='true')


def command(values: dict) -> list:
    return [sys.executable, '-c', PROGRAM, *(f'--{name}={value}' for name, value in {**SMALL, **values}.items())]


def environment() -> dict:
    return dict(os.environ, OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1')


def run(values: dict, **options) -> subprocess.CompletedProcess:
    "The command in a process of its own."
    return subprocess.run(command(values), env=environment(), capture_output=True, text=True, **options)


def steps_in(folder: Path) -> int:
    "The last step that metrics.jsonl tells of."
    try: lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    except (OSError, ValueError): return -1
    return max((line['step'] for line in lines), default=-1)


def interrupted(values: dict, moment, number: int) -> tuple:  # (exit code, stderr)
    "Start the command, send it a signal as soon as moment() holds, and wait for its end."
    process = subprocess.Popen(command(values), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        while process.poll() is None and not moment(): time.sleep(.002)
        if process.poll() is None: process.send_signal(number)
        return process.wait(), process.stderr.read()
    finally:
        if process.poll() is None: process.kill()


def weights(folder: Path) -> dict: return load_file(folder / 'student' / 'model.safetensors')


def same_weights(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def logged(folder: Path) -> list:
    "What metrics.jsonl says, without what a clock or the machine decides."
    return [{name: value for name, value in json.loads(line).items() if name not in ('tokens_per_second', 'memory_gb')}
            for line in (folder / 'metrics.jsonl').read_text().splitlines()]


def report(folder: Path) -> dict: return json.loads((folder / 'report.json').read_text())


def says_one_line(process, code: int) -> str:
    "The line that the command ends with; it is the only one of its kind, and there is no traceback."
    assert process.returncode == code, process.stderr[-3000:]
    assert 'Traceback' not in process.stderr, process.stderr[-3000:]
    [line] = [line for line in process.stderr.splitlines() if line.startswith('kdkit: ')]
    return line


# -- damage ------------------------------------------------------------------------------------------------------------

def flip(path: Path, at: float = .5):
    raw = bytearray(path.read_bytes())
    raw[int(len(raw) * at)] ^= 64
    path.write_bytes(raw)


def truncate(path: Path): path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
def empty(path: Path): path.write_bytes(b'')
def delete(path: Path): path.unlink()


DAMAGES = flip, truncate, empty, delete


def undo_end(folder: Path, checkpoint: str = None):
    "As if the run had been killed before its report: what only its end makes is gone."
    for name in ('report.json', 'report.md', 'bits_per_byte.png', 'losses.png', 'curriculum.png'): (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / 'student', ignore_errors=True)
