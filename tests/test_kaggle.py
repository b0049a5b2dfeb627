"The notebook for Kaggle: its install cell where the image has no kdkit, what is pushed, and by whom."
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from kdkit import kaggle
from kdkit.cli import main
from test_install import ROOT, asked, bare, clean, clone, in_read_only

NOTEBOOK = json.loads((ROOT / 'nbs/kaggle.ipynb').read_text())
ABOUT = json.loads((ROOT / 'nbs/kernel-metadata.json').read_text())

def install_cell(inputs):
    "The first code cell, for other inputs."
    source = ''.join(next(cell for cell in NOTEBOOK['cells'] if cell['cell_type'] == 'code')['source'])
    assert '/kaggle/input' in source
    return source.replace('/kaggle/input', str(inputs))

def pip_alone(folder):
    "A search path with pip and nothing else."
    import pip
    folder.mkdir()
    (folder / 'pip').symlink_to(Path(pip.__file__).parent)
    return str(folder)

@pytest.mark.parametrize('what', ['wheel', 'clone'])
def test_the_install_cell_takes_what_is_attached(clone, bare, tmp_path, what):
    "From read-only inputs, without an index; nothing else is installed."
    inputs, place = tmp_path / 'source', tmp_path / 'source/datasets/me/kdkit'
    place.parent.mkdir(parents=True)
    if what == 'clone': shutil.copytree(clone, place)
    else: subprocess.run([sys.executable, clone / 'scripts/backend.py', place], check=True, capture_output=True, timeout=120)
    before = set(bare.parent.parent.rglob('*.dist-info'))
    path = pip_alone(tmp_path / 'path')
    code = f'import sys; sys.path.append({path!r}); import os; os.environ["PYTHONPATH"] = {path!r}\n' + install_cell(tmp_path / 'input')
    done = in_read_only(inputs, tmp_path / 'input', bare, '-c', code)
    assert done.returncode == 0, done.stderr
    asked(bare, tmp_path)
    assert {path.name.split('-')[0] for path in set(bare.parent.parent.rglob('*.dist-info')) - before} == {'kdkit'}

def test_the_notebook_is_one_that_kaggle_takes():
    assert NOTEBOOK['nbformat'] == 4 and NOTEBOOK['metadata']['kernelspec']['language'] == 'python'
    assert not [cell for cell in NOTEBOOK['cells'] if cell.get('outputs')]  # of a rehearsal, they would only mislead
    assert ABOUT['machine_shape'] == 'NvidiaTeslaT4' and ABOUT['enable_gpu'] is ABOUT['enable_internet'] is ABOUT['is_private'] is True
    assert ABOUT['code_file'] == 'kaggle.ipynb' and ABOUT['id'].split('/')[1] == kaggle.slug(ABOUT['title'])

@pytest.fixture
def pushed(tmp_path, monkeypatch):
    "A program named kaggle that keeps what it is called with."
    folder, kept = tmp_path / 'bin', tmp_path / 'kept'
    folder.mkdir()
    program = folder / 'kaggle'
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/said\ncp -r "$4" {kept}\nexit 0\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv('PATH', f"{folder}{os.pathsep}{os.environ['PATH']}")
    for name in ('KAGGLE_USERNAME', 'KAGGLE_CONFIG_DIR'): monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('HOME', str(tmp_path))
    return kept

@pytest.mark.parametrize('how', ['option', 'variable', 'file'])
def test_push_hands_over_notebook_and_metadata(pushed, monkeypatch, tmp_path, how):
    words = ['kaggle', 'push', '--dataset', 'me/kdkit-wheel', 'you/texts', '--title', 'My first student']
    if how == 'option': words += ['--user', 'me']
    if how == 'variable': monkeypatch.setenv('KAGGLE_USERNAME', 'me')
    if how == 'file':
        (tmp_path / '.kaggle').mkdir()
        (tmp_path / '.kaggle/kaggle.json').write_text('{"username": "me", "key": "k"}')
    assert main(words) == 0
    assert (tmp_path / 'said').read_text().startswith('kernels push -p /')
    about = json.loads((pushed / 'kernel-metadata.json').read_text())
    assert about == dict(ABOUT, id='me/my-first-student', title='My first student', dataset_sources=['me/kdkit-wheel', 'you/texts'])
    assert json.loads((pushed / 'kaggle.ipynb').read_text()) == NOTEBOOK

@pytest.mark.parametrize('words, says', [([], 'push'), (['pull'], "'pull'"), (['push', '--usre', 'me'], "'user'"),
                                         (['push', '--user'], 'needs a value'), (['push'], '--user NAME'),
                                         (['push', '--user', 'me', '--dataset', 'wheel'], 'owner/name'),
                                         (['push', '--user', 'me', '--title', 'it'], 'five letters')])
def test_a_mistake_is_one_line(pushed, capsys, words, says):
    assert main(['kaggle', *words]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count('\n') == 1 and says in err and not pushed.exists()

def test_without_kaggles_command_line(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv('PATH', str(tmp_path))
    assert main(['kaggle', 'push', '--user', 'me']) == 2 and 'pip install kaggle' in capsys.readouterr().err
