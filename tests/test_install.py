"kdkit is installed where it is used: from a folder that cannot be written to, without a network, and imported from anywhere."
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SAYS = ("import json, kdkit, importlib.metadata as m; from importlib.resources import files; home = files('kdkit'); "
        "print(json.dumps(dict(version=kdkit.__version__, installed=m.version('kdkit'), file=kdkit.__file__, home=str(home), "
        "teacher=(home / 'embedded_pair/teacher/config.json').is_file(), recipe=(home / 'recipes/smollm.yaml').is_file())))")

def tracked():
    "Files of the project as git knows them, with those that are new."
    listed = subprocess.run(['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'], cwd=ROOT, capture_output=True,
                            text=True).stdout
    return [name for name in listed.split('\0') if name and (ROOT / name).exists()]

@pytest.fixture(scope='module')
def clone(tmp_path_factory):
    "A copy of the project in a folder of its name, as git clone makes it."
    if not tracked(): pytest.skip('this is no git checkout')
    folder = tmp_path_factory.mktemp('above') / 'kdkit'
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    return folder

def in_read_only(
    folder,  # that the command finds, read-only
    at,      # where it finds it
    *words,  # of the command
):
    "Run a command that sees a folder through a read-only mount, as inputs of a notebook service are."
    at.mkdir(parents=True)
    script = 'mount --bind "$1" "$2" && mount -o remount,bind,ro "$2" && shift 2 && exec "$@"'
    mounted = ['unshare', '--mount', 'sh', '-c', script, 'sh', str(folder), str(at)]
    if subprocess.run([*mounted, 'true'], capture_output=True).returncode: pytest.skip('no mount can be made here')
    assert subprocess.run([*mounted, 'touch', str(at / 'x')], capture_output=True).returncode  # it cannot be written to
    return subprocess.run([*mounted, *map(str, words)], capture_output=True, text=True, timeout=300, cwd=at.parent, env=clean())

def clean():
    "An environment that does not know this checkout, nor any index."
    kept = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'PIP_INDEX_URL', 'PIP_EXTRA_INDEX_URL', 'PIP_CONFIG_FILE')}
    return dict(kept, PIP_NO_INDEX='1', PIP_CONFIG_FILE=os.devnull, PIP_DISABLE_PIP_VERSION_CHECK='1')

@pytest.fixture
def bare(tmp_path):
    "An empty environment."
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', tmp_path / 'bare'], check=True, timeout=120)
    return tmp_path / 'bare/bin/python'

def pip(python): return sys.executable, '-m', 'pip', '--python', python, 'install', '--quiet', '--no-deps'

def asked(python, where):
    "What a program in some folder sees of kdkit."
    done = subprocess.run([python, '-c', SAYS], cwd=where, capture_output=True, text=True, timeout=60, env=clean())
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said['version'] == said['installed'] and said['teacher'] and said['recipe'], said
    assert Path(said['file']).parent == Path(said['home'])
    return said

def test_a_read_only_folder_installs_without_a_network(clone, bare, tmp_path):
    done = in_read_only(clone, tmp_path / 'input/kdkit', *pip(bare), tmp_path / 'input/kdkit')
    assert done.returncode == 0, done.stderr
    for where in (tmp_path, clone.parent):  # here a folder kdkit lies, which is the clone and not the package
        assert str(bare.parent.parent) in asked(bare, where)['home']

def test_the_wheel_installs_without_a_network_and_holds_the_package(clone, bare, tmp_path):
    made = subprocess.run([sys.executable, clone / 'scripts/backend.py', tmp_path / 'dist'], capture_output=True, text=True, timeout=120,
                          cwd=tmp_path, env=clean())
    wheel = Path(made.stdout.strip())
    done = subprocess.run([*pip(bare), wheel], capture_output=True, text=True, timeout=120, env=clean())
    assert done.returncode == 0, done.stderr
    asked(bare, tmp_path)
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith('kdkit/') and '/kaggle_notebook/' not in name}
    assert inside == {name for name in tracked() if name.startswith('kdkit/')}
    said = subprocess.run([bare.parent / 'kdkit', '--version'], cwd=tmp_path, capture_output=True, text=True, timeout=60, env=clean())
    assert said.stdout.startswith('kdkit ') and said.returncode == 0

def test_the_source_distribution_holds_what_the_project_is_made_from(clone, tmp_path):
    "Chapters, tests and tools, and nothing that a run or an interpreter left behind."
    (clone / 'runs').mkdir(), (clone / 'runs/left.txt').touch(), (clone / 'tests/__pycache__').mkdir()
    code = f"import sys; sys.path.insert(0, {str(clone / 'scripts')!r}); import backend; print(backend.build_sdist({str(tmp_path)!r}))"
    made = subprocess.run([sys.executable, '-B', '-c', code], capture_output=True, text=True, timeout=120, env=clean())
    with tarfile.open(tmp_path / made.stdout.strip()) as archive: inside = {name.partition('/')[2] for name in archive.getnames()}
    assert inside == {name for name in tracked() if not name.startswith('.')} | {'PKG-INFO'}

def test_a_clone_installed_in_place_is_found_from_the_folder_above(clone, bare, tmp_path):
    done = subprocess.run([*pip(bare), '-e', clone], capture_output=True, text=True, timeout=120, env=clean())
    assert done.returncode == 0, done.stderr
    for where in (clone.parent, clone, tmp_path): assert asked(bare, where)['home'] == str(clone / 'kdkit')
    assert set(clone.rglob('*.egg-info')) == set()

def test_the_wheel_says_what_settings_say(tmp_path):
    from configparser import ConfigParser
    from email import message_from_bytes
    settings = ConfigParser(delimiters=['='])
    settings.read(ROOT / 'settings.ini')
    subprocess.run([sys.executable, ROOT / 'scripts/backend.py', tmp_path], check=True, timeout=120, capture_output=True)
    [wheel] = tmp_path.glob('*.whl')
    archive = zipfile.ZipFile(wheel)
    [name] = [name for name in archive.namelist() if name.endswith('METADATA')]
    said = message_from_bytes(archive.read(name))
    needs = said.get_all('Requires-Dist')
    assert [one for one in needs if 'extra ==' not in one] == settings['DEFAULT']['requirements'].split()
    assert [one.split(';')[0] for one in needs if "extra == 'dev'" in one] == settings['DEFAULT']['dev_requirements'].split()
    assert said['Version'] == settings['DEFAULT']['version'] and said.get_payload().startswith('# kdkit')
