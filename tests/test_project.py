"What holds for the project as a whole."
import configparser
import json
import os
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
    used = {name for source in cells(path) for pair in re.findall(r'^\s*(?:from|import) kdkit\.(\w+)|^\s*from kdkit import (\w+)', source,
                                                                  re.M) for name in pair if name in number}
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


SURFACE = {'distill', 'demo', 'DistillConfig', 'DistillationTrainer', 'replay', 'compare', 'doctor'}


def test_the_public_names_are_there_and_are_kept():
    code = f"""
import importlib, pkgutil, types
import kdkit
for module in pkgutil.iter_modules(kdkit.__path__): importlib.import_module(f'kdkit.{{module.name}}')
for name in {sorted(SURFACE)!r}:
    value = getattr(kdkit, name)
    assert callable(value) and (not isinstance(value, types.ModuleType) or name == 'doctor') and name in dir(kdkit), name
    assert f'{{name}}(' in kdkit.__doc__, name
assert set(kdkit._homes) == set({sorted(SURFACE)!r})
"""
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (ROOT / 'kdkit' / 'py.typed').exists()


def test_help_is_a_page():
    done = subprocess.run([sys.executable, '-c', 'import kdkit; help(kdkit)'], cwd=ROOT, timeout=120, capture_output=True, text=True,
                          env={**os.environ, 'PAGER': 'cat', 'MANPAGER': 'cat'})
    assert 'distill(config)' in done.stdout and done.stdout.count('\n') < 120, done.stdout + done.stderr


def test_a_name_that_is_not_there_is_an_attribute_error():
    code = 'import kdkit; assert not hasattr(kdkit, "distil")\nfrom kdkit import distil'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, timeout=60, capture_output=True, text=True)
    assert done.returncode == 1 and 'ImportError' in done.stderr


def test_nothing_develops_at_run_time():
    "nbdev and fastcore are for developers; a user's environment stays without them."
    for path in (ROOT / 'kdkit').glob('*.py'):
        if path.stem != '_modidx':
            assert not re.search(r'^\s*(from|import) (nbdev|fastcore|execnb)\b', path.read_text(encoding='utf-8'), re.M), path


def test_what_the_package_imports_is_required():
    settings = configparser.ConfigParser(delimiters=['='])
    settings.read(ROOT / 'settings.ini')
    required = {re.split(r'[<>=]', name)[0].replace('pyyaml', 'yaml') for name in settings['DEFAULT']['requirements'].split()}
    used = {name for path in (ROOT / 'kdkit').glob('*.py')
            for name in re.findall(r'^\s*(?:from|import) (\w+)', path.read_text(encoding='utf-8'), re.M)}
    # quoted prose can begin a line with "from" or "import" too, so only real packages are looked at
    import importlib.util
    foreign = {name for name in used - set(sys.stdlib_module_names) - {'kdkit'} if importlib.util.find_spec(name)}
    in_a_notebook = {'IPython', 'zmq'}  # imported by functions that have found a kernel, which runs on them
    extras = {re.split(r'[<>=]', name)[0] for key in settings['DEFAULT'] if key.endswith('_requirements') and key != 'dev_requirements'
              for name in settings['DEFAULT'][key].split()}
    assert foreign - in_a_notebook - extras <= required
    assert not any(re.search(rf'^(from|import) {name}\b', path.read_text(encoding='utf-8'), re.M) for path in (ROOT / 'kdkit').glob('*.py')
                   for name in in_a_notebook | extras)


def test_the_constraints_pin_what_is_required():
    settings = configparser.ConfigParser(delimiters=['='])
    settings.read(ROOT / 'settings.ini')
    wanted = {re.split(r'[<>=]', name)[0] for key in ('requirements', 'dev_requirements') for name in settings['DEFAULT'][key].split()}
    pinned = {line.split('==')[0] for line in (ROOT / 'constraints.txt').read_text().splitlines() if '==' in line}
    assert wanted == pinned


def test_the_version_is_the_same_everywhere():
    settings = configparser.ConfigParser(delimiters=['='])
    settings.read(ROOT / 'settings.ini')
    version = settings['DEFAULT']['version']
    assert f'version: {version}\n' in (ROOT / 'CITATION.cff').read_text() and f'## {version}\n' in (ROOT / 'CHANGELOG.md').read_text()
    assert f'__version__ = "{version}"\n' in (ROOT / 'kdkit' / '__init__.py').read_text()
    kept = (ROOT / 'CHANGELOG.md').read_text().split('the names in `kdkit` itself: ')[1].split('|')[0]
    assert set(re.findall(r'`(\w+)`', kept)) == SURFACE


def test_the_readme_explains_every_number_and_its_links_lead_somewhere():
    from kdkit.metrics import glossary_table
    readme = (ROOT / 'README.md').read_text(encoding='utf-8')
    assert glossary_table() in readme
    links = re.findall(r'\]\(([^)#]+)\)|(?:src|srcset)="([^"]+)"', readme)
    for link in filter(None, map(''.join, links)): assert link.startswith('http') or (ROOT / link).exists(), link
    anchors = {re.sub(r'[^\w -]', '', title.lower()).replace(' ', '-') for title in re.findall(r'^#+ (.+)', readme, re.M)}
    assert set(re.findall(r'\]\(#([^)]+)\)', readme)) <= anchors


def lines_of_code(source):
    "Those of a program, without the lines of its longer texts."
    import io
    import tokenize
    inside = {row for token in tokenize.generate_tokens(io.StringIO(source).readline)
              if token.type == tokenize.STRING for row in range(token.start[0], token.end[0] + 1) if token.start[0] < token.end[0]}
    return [line for row, line in enumerate(source.splitlines(), 1) if row not in inside]


def test_no_line_of_code_is_longer_than_140_columns():
    chapters = [*NOTEBOOKS, *(ROOT / 'nbs').glob('[a-z]*.ipynb'), *(ROOT / 'nbs/tutorials').glob('*.ipynb')]
    files = {path: path.read_text(encoding='utf-8') for folder in ('tests', 'scripts', 'benchmarks', 'recipes')
             for path in (ROOT / folder).rglob('*.py')}
    long = [f'{path.relative_to(ROOT)}: {line.strip()[:80]}' for path in chapters for source in cells(path)
            for line in source.splitlines() if len(line) > 140]
    long += [f'{path.relative_to(ROOT)}: {line.strip()[:80]}' for path, source in files.items() for line in lines_of_code(source)
             if len(line) > 140]
    assert not long, '\n'.join(long)


# -- make audit ------------------------------------------------------------------------------------------------------

def audit():
    sys.path.insert(0, str(ROOT / 'scripts'))
    try: import audit
    finally: sys.path.pop(0)
    return audit


def test_an_audit_that_knew_no_package_is_none():
    "The entries are as pip-audit 2.10 writes them; it ends with 0 for the first."
    unknown = dict(name='requests', skip_reason='Dependency not found on PyPI and could not be audited: requests (2.19.0)')
    clean, faulty = dict(name='Some_Thing', version='1.0', vulns=[]), dict(name='urllib3', version='1.24',
                                                                           vulns=[dict(id='PYSEC-2019-132', fix_versions=['1.24.2'],
                                                                                       aliases=[])])
    lines, code = audit().verdict([unknown])
    assert (code == 1 and lines[-1].startswith('NOTHING WAS AUDITED') and '0 of 1 packages were audited' in lines[-2]
            and 'requests' in lines[0])
    lines, code = audit().verdict([unknown, clean, unknown], ['own', 'some-thing'])
    assert code == 0 and lines == ['nothing is known about 2: own, requests', '1 of 3 packages were audited, 0 known vulnerabilities']
    lines, code = audit().verdict([clean, faulty])
    assert (code == 1 and lines[0] == 'urllib3 1.24: PYSEC-2019-132, mended in 1.24.2'
            and lines[-1] == '2 of 2 packages were audited, 1 known vulnerabilities')
    assert audit().verdict([])[1] == 1


def test_the_audit_asks_about_versions_as_they_were_published(tmp_path, monkeypatch, capsys):
    assert audit().public('torch==2.13.0+cpu\nrich==13.9 # note\nown @ file:///x\n') == (['torch==2.13.0', 'rich==13.9'], ['own'])
    program = tmp_path / 'pip-audit'  # one that answers for the first service alone
    program.write_text(f"""#!{sys.executable}
import json, sys
pins = open(sys.argv[-1]).read().split()
if 'osv' in sys.argv: sys.exit('no network')
known = lambda pin: dict(version='1', vulns=[]) if pin.startswith('torch') else dict(skip_reason='not found')
print(json.dumps(dict(dependencies=[dict(known(pin), name=pin.split('==')[0]) for pin in pins])))
""")
    program.chmod(0o755)
    (tmp_path / 'pins.txt').write_text('torch==2.13.0+cpu\nrich==13.9\n')
    monkeypatch.chdir(tmp_path)
    assert audit().main(tmp_path / 'pins.txt', program) == 0
    assert capsys.readouterr().out.splitlines() == ['no answer: osv: no network', 'nothing is known about 1: rich',
                                                    '1 of 2 packages were audited, 0 known vulnerabilities']


def test_every_change_that_once_lived_can_still_be_made():
    import mutants
    for module, old, new, tests in mutants.TABLE:
        assert old in (ROOT / 'kdkit' / f'{module}.py').read_text() and old != new, (module, old)
        assert (ROOT / 'tests' / tests.split()[0]).exists(), tests
