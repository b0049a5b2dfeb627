"What holds for the project as a whole."
import configparser
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / 'nbs').glob('[0-9]*.ipynb'))


def cells(path, kind='code'):
    return [''.join(cell['source']) for cell in json.loads(path.read_text(encoding='utf-8'))['cells'] if cell['cell_type'] == kind]


def module_of(path):
    return next((found[1] for source in cells(path) if (found := re.match(r'#\s*\|\s*default_exp (\w+)', source))), None)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_imports_only_lower_numbers(path):
    number = {module_of(other): other.name[:2] for other in NOTEBOOKS}
    used = {name for source in cells(path) for pair in re.findall(r'^\s*(?:from|import) kdkit\.(\w+)|^\s*from kdkit import (\w+)', source, re.M) for name in pair if name in number}
    assert all(number[name] < path.name[:2] for name in used - {module_of(path)}), {name: number[name] for name in used}


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_begins_with_title_and_promise(path):
    title, promise, *_ = cells(path, 'markdown')[0].splitlines()
    assert title.startswith('# ') and promise.startswith('> ')


def test_one_notebook_a_module():
    names = [name for name in map(module_of, NOTEBOOKS) if name]
    assert len(names) == len(set(names))
    assert {path.stem for path in (ROOT / 'kdkit').glob('*.py')} - {'__init__', '_modidx'} == set(names)


def test_importing_kdkit_does_nothing():
    code = 'import sys, kdkit; assert not {"torch", "transformers", "matplotlib", "numpy"} & set(sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT, timeout=60).returncode == 0


def test_nothing_develops_at_run_time():
    "nbdev and fastcore are for developers; a user's environment stays without them."
    for path in (ROOT / 'kdkit').glob('*.py'):
        if path.stem != '_modidx': assert not re.search(r'^\s*(from|import) (nbdev|fastcore|execnb)\b', path.read_text(encoding='utf-8'), re.M), path


def test_what_the_package_imports_is_required():
    settings = configparser.ConfigParser(delimiters=['='])
    settings.read(ROOT / 'settings.ini')
    required = {re.split(r'[<>=]', name)[0].replace('pyyaml', 'yaml') for name in settings['DEFAULT']['requirements'].split()}
    used = {name for path in (ROOT / 'kdkit').glob('*.py') for name in re.findall(r'^\s*(?:from|import) (\w+)', path.read_text(encoding='utf-8'), re.M)}
    # quoted prose can begin a line with "from" or "import" too, so only real packages are looked at
    import importlib.util
    foreign = {name for name in used - set(sys.stdlib_module_names) - {'kdkit'} if importlib.util.find_spec(name)}
    in_a_notebook = {'IPython', 'zmq'}  # imported by functions that have found a kernel, which runs on them
    extras = {re.split(r'[<>=]', name)[0] for key in settings['DEFAULT'] if key.endswith('_requirements') and key != 'dev_requirements' for name in settings['DEFAULT'][key].split()}
    assert foreign - in_a_notebook - extras <= required
    assert not any(re.search(rf'^(from|import) {name}\b', path.read_text(encoding='utf-8'), re.M) for path in (ROOT / 'kdkit').glob('*.py') for name in in_a_notebook | extras)


def test_the_constraints_pin_what_is_required():
    settings = configparser.ConfigParser(delimiters=['='])
    settings.read(ROOT / 'settings.ini')
    wanted = {re.split(r'[<>=]', name)[0] for key in ('requirements', 'dev_requirements') for name in settings['DEFAULT'][key].split()}
    pinned = {line.split('==')[0] for line in (ROOT / 'constraints.txt').read_text().splitlines() if '==' in line}
    assert wanted == pinned
