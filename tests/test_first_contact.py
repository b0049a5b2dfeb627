"""A user's first command against a hub: it runs as the README has it, and what the hub refuses ends in one line with the remedy.

The hub is the local one of tests/hub.py, the libraries are the real ones, and each case is `kdkit train` with miniatures of the README's
pair and text.
"""
import dataclasses
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub import ROOT, Hub
from pairs import documents, model_of
from tiny_tokenizers import byte_level

TEACHER, STUDENT, TEXT, CONFIG = 'huihui-ai/Huihui-MoE-1B-A0.6B', 'HuggingFaceTB/SmolLM-135M', 'Salesforce/wikitext', 'wikitext-103-raw-v1'
SMALL = '--max_steps 4 --max_length 64 --batch_size 2 --max_eval_rows 8'.split()
PATIENCE = 15  # seconds that a user waits for a hub that does not answer
SLOWNESS = 10  # more on a machine that is busy with other things

# Three repos in miniature: the same classes, the same layout, rows as WikiText has them

def save_models(folder):
    "Teacher (Qwen3-MoE, in shards) and student (Llama), each with byte-level tokens of its own."
    sides = ('teacher', 'qwen3_moe', 700, 48, dict(max_shard_size='100KB')), ('student', 'llama', 500, 32, {})
    for name, shape, entries, hidden, options in sides:
        tokenizer = byte_level(entries)
        model_of(shape, len(tokenizer), hidden).save_pretrained(folder / name, **options)
        tokenizer.save_pretrained(folder / name)

def wiki_rows(articles, seed):
    "Rows are lines: blank ones are empty, the others end in a line break, articles begin with ` = Title = `."
    rows = []
    for i, text in enumerate(documents(articles, seed)):
        rows += ['', f' = Article {i} of {seed} = \n', '']
        for j, paragraph in enumerate(filter(str.strip, text.split('\n\n'))):
            rows += [f" {' '.join(paragraph.split())} \n", *(['', f' = = Section {j} = = \n', ''] if j % 3 == 2 else [])]
    return rows

def save_wikitext(folder, articles=60):
    "Two configs with three splits each; the training text in two shards."
    card = ['---', 'configs:']
    for config in (CONFIG, 'wikitext-2-raw-v1'):
        card += [f'- config_name: {config}', '  data_files:']
        (folder / config).mkdir(parents=True)
        for seed, (split, n, shards) in enumerate((('test', 12, 1), ('train', articles, 2), ('validation', 12, 1))):
            rows = wiki_rows(n, seed)
            for shard in range(shards):
                part = rows[len(rows) * shard // shards:len(rows) * (shard + 1) // shards]  # cut where it falls, also inside an article
                pq.write_table(pa.table({'text': part}), folder / config / f'{split}-{shard:05}-of-{shards:05}.parquet', row_group_size=50)
            card += [f'  - split: {split}', f'    path: {config}/{split}-*']
    (folder / 'README.md').write_text('\n'.join([*card, '---', '# WikiText', '']))

@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp('repos')
    save_models(folder), save_wikitext(folder / 'wikitext')
    (folder / 'weights_only').mkdir()
    (folder / 'weights_only/model.gguf').write_bytes(b'GGUF')
    return folder

@pytest.fixture(scope='module')
def a_hub(folders):
    "Serves them under the names of the README; `wikitext` was renamed, as on the real one."
    with Hub() as hub:
        hub.add('models', TEACHER, folders / 'teacher'), hub.add('models', STUDENT, folders / 'student')
        hub.add('datasets', TEXT, folders / 'wikitext'), hub.rename('datasets', 'wikitext', TEXT)
        hub.login('hf_out')
        yield hub

@pytest.fixture
def hub(a_hub, python):
    "Up, without faults and records of the test before, and nobody remembers that it did not answer."
    python.run('import kdkit.models; kdkit.models.kept_waiting.clear()').check()
    a_hub.forget()
    yield a_hub
    a_hub.heal()
    if not a_hub.server: a_hub.start()

@pytest.fixture(scope='module')
def home(tmp_path_factory): return tmp_path_factory.mktemp('home')

@pytest.fixture(scope='module')
def python(a_hub, home):
    "One process for many commands: each would import torch for seconds."
    with a_hub.python(home, 'import os, kdkit.run\nfrom kdkit.cli import main') as python: yield python

@pytest.fixture(scope='module')
def warm(a_hub, home, python, tmp_path_factory):
    "The pair and its text are in the cache."
    a_hub.forget()
    python.run(f"main({train(tmp_path_factory.mktemp('warm') / 'run')!r})").check()

def train(run, teacher=TEACHER, student=STUDENT, dataset=f'{TEXT}:{CONFIG}', more=()):
    "The words of a command line."
    return ['train', '--teacher_model', teacher, '--student_model', student, '--dataset', dataset, '--output_dir', str(run), *SMALL, *more]

def refused(done, *words):
    "The one line of a mistake, which says all of these (patterns)."
    assert done.value == 2, f'{done.error} {done.message} exit code {done.value}\n{done.err}'
    lines = done.err.strip().split('\n')
    assert [line for line in lines if line.startswith('kdkit: error: ')] == lines[-1:] and 'Traceback' not in done.err, done.err
    for word in words: assert re.search(word, lines[-1], re.I), f'{word!r} is not in: {lines[-1]}'
    return lines[-1]

def finished(done, run):
    "The run ended with a report."
    assert done.value == 0, f'{done.error} {done.message} exit code {done.value}\n{done.err}'
    report = json.loads((run / 'report.json').read_text())
    assert report['steps'] == 4 and report['student_after']['bits_per_byte'] > 0 and (run / 'student/model.safetensors').exists()
    assert '| student after' in done.out and 'Traceback' not in done.err
    return report

# What the README says

def readme_command():
    "The words of the README's `kdkit train` with one teacher and every name in it."
    blocks = re.findall(r'```bash\n(.*?)```', (ROOT / 'README.md').read_text(), re.S)
    commands = [c for block in blocks for c in block.replace('\\\n', ' ').split('\n') if c.startswith('kdkit train --')]
    [command] = [c for c in commands if f'--teacher_model {TEACHER} --student_model' in c]
    return shlex.split(command)

def test_the_readmes_command(hub, tmp_path):
    "Word for word, by a new user: an empty folder, an empty cache, no token."
    program, *words = readme_command()
    ended = subprocess.run([sys.executable, '-m', 'kdkit.cli', *words, *SMALL], cwd=tmp_path, env=hub.environ(tmp_path / 'home'),
                           capture_output=True, text=True, timeout=240)
    assert program == 'kdkit' and ended.returncode == 0, ended.stderr
    assert '| student after' in ended.stdout and 'Traceback' not in ended.stderr
    assert json.loads((tmp_path / 'runs/smollm/report.json').read_text())['steps'] == 4
    assert all(request.token is None for request in hub.requests)
    for repo in (TEACHER, STUDENT): assert hub.seen(f'^/cdn/models/{repo}/.*safetensors', 'GET')
    assert hub.seen(f'^/cdn/datasets/{TEXT}/.*/{CONFIG}/train', 'GET') and not hub.seen('wikitext-2-raw', 'GET')

def test_the_recipe(hub, python, warm, tmp_path):
    done = python.run(f"main({['train', 'smollm', *SMALL, '--output_dir', str(tmp_path / 'run')]!r})")
    finished(done, tmp_path / 'run')

@pytest.mark.parametrize('dataset', [f'wikitext:{CONFIG}', f'{TEXT}:{CONFIG}', f'{TEXT}:wikitext-2-raw-v1'])
def test_names_of_the_text(hub, python, warm, tmp_path, dataset):
    "With one word, too: every older tutorial says `wikitext`."
    finished(python.run(f"main({train(tmp_path / 'run', dataset=dataset)!r})"), tmp_path / 'run')

@pytest.mark.parametrize('dataset, more', [(f'{TEXT}:{CONFIG}', ('--streaming',)), (f'{TEXT}:{CONFIG}[train[:150]]', ()),
                                           (f'{TEXT}:{CONFIG}', ('--max_documents', '9')),
                                           (f'{TEXT}:{CONFIG}[test]', ('--eval_split', 'validation')),
                                           (f'wikitext:{CONFIG}[:40%]', ('--streaming', 'false'))])
def test_parts_of_the_text(hub, python, warm, tmp_path, dataset, more):
    report = finished(python.run(f"main({train(tmp_path / 'run', dataset=dataset, more=more)!r})"), tmp_path / 'run')
    assert report['data']['train_windows'] >= 8

# What goes wrong. `repo` is the one that is in trouble; the others are in the cache.

@dataclasses.dataclass
class Case:
    name: str
    trouble: Callable        # (hub, folders, repo, kind): what the hub does
    words: tuple             # patterns in the one line, besides the repo's name
    roles: tuple = ('teacher', 'dataset')
    token: str = ''
    config: str = CONFIG
    seconds: float = 60      # that it may take; the wait that a user is spared

def serve(hub, folders, repo, kind, role='teacher', **options):
    hub.add(kind, repo, folders / ('wikitext' if kind == 'datasets' else role), **options)

def gated(hub, folders, repo, kind): serve(hub, folders, repo, kind, gated=True)
def private(hub, folders, repo, kind): serve(hub, folders, repo, kind, private=True)
def missing(hub, folders, repo, kind): pass
def healthy(hub, folders, repo, kind): serve(hub, folders, repo, kind)
def closed(hub, folders, repo, kind): hub.stop()
def silent(hub, folders, repo, kind): serve(hub, folders, repo, kind), hub.fault(silent=True, repo=repo)
def limited(hub, folders, repo, kind): serve(hub, folders, repo, kind), hub.fault(status=429, repo=repo)
def down(hub, folders, repo, kind): serve(hub, folders, repo, kind), hub.fault(status=503, repo=repo)
def no_config(hub, folders, repo, kind): hub.add(kind, repo, folders / 'weights_only')

CASES = [
    Case('gated', gated, ('licen[cs]e', '{page}', 'hf auth login', 'HF_TOKEN')),
    Case('not-let-in', gated, ('licen[cs]e|access', '{page}'), token='hf_out'),
    Case('missing', missing, ('check the name', 'log in|hf auth login'), ('teacher', 'student', 'dataset')),
    Case('private', private, ('check the name', 'log in|hf auth login|access'), token='hf_out'),
    Case('bad-token', healthy, ('token', 'hf auth login|HF_TOKEN'), token='hf_expired'),
    Case('unreachable', closed, ('hub', 'cannot be reached'), ('student', 'dataset'), seconds=PATIENCE),
    Case('silent', silent, ('hub', 'cannot be reached|does not answer'), ('student', 'dataset'), seconds=PATIENCE),
    Case('limited', limited, ('rate limit', 'wait|log in|hf auth login')),
    Case('down', down, ('hub', '503|cannot be reached|unavailable|in trouble'), seconds=PATIENCE),
    Case('no-config', no_config, ('GGUF',), ('teacher',)),
    Case('wrong-config', healthy, (CONFIG, 'wikitext-2-raw-v1'), ('dataset',), config='wikitext-104'),
    Case('unsaid-config', healthy, (CONFIG, 'wikitext-2-raw-v1'), ('dataset',), config=''),
]

@pytest.mark.parametrize('case, role', [pytest.param(case, role, id=f'{case.name}-{role}') for case in CASES for role in case.roles])
def test_what_a_hub_refuses(hub, folders, python, warm, tmp_path, case, role):
    repo, kind = f'org/{role}{CASES.index(case)}', 'datasets' if role == 'dataset' else 'models'  # says nothing that the line must say
    case.trouble(hub, folders, repo, kind)
    name = f'{repo}:{case.config}' if role == 'dataset' and case.config else repo
    words = train(tmp_path / 'run', **{role: name})
    python.run(f"os.environ.pop('HF_TOKEN', None); os.environ.update({dict(HF_TOKEN=case.token) if case.token else {}!r})").check()
    done = python.run(f'main({words!r})', timeout=case.seconds + 60)
    python.run("os.environ.pop('HF_TOKEN', None)").check()
    page = f"{hub.url}/{'datasets/' if kind == 'datasets' else ''}{repo}"
    line = refused(done, '' if case.name == 'bad-token' else repo, *(word.format(page=page) for word in case.words))
    if 'check the name' not in case.words: assert not re.search('misspelt|check the name', line), line  # the name is right
    assert done.seconds < case.seconds + SLOWNESS, f'{done.seconds:.0f} s\n{done.err}'
    assert not (tmp_path / 'run').exists()  # the same command, once the trouble is mended, finds no rest of this one

def revision_option(role):
    return 'revision' if role == 'dataset' else f'{role}_revision'

@pytest.mark.parametrize('role', ['teacher', 'student', 'dataset'])
def test_a_revision_that_is_not_there(hub, python, warm, tmp_path, role):
    done = python.run(f"main({train(tmp_path / 'run', more=(f'--{revision_option(role)}', 'v9'))!r})")
    refused(done, dict(teacher=TEACHER, student=STUDENT, dataset=TEXT)[role], 'revision', 'v9')

@pytest.mark.parametrize('role', ['teacher', 'student', 'dataset'])
def test_a_revision(hub, folders, python, warm, tmp_path, role):
    option = revision_option(role)
    kind, name = dict(teacher=('models', TEACHER), student=('models', STUDENT), dataset=('datasets', TEXT))[role]
    sha = hub.add(kind, name, folders / ('wikitext' if role == 'dataset' else role), revision='v1')
    finished(python.run(f"main({train(tmp_path / 'run', more=(f'--{option}', 'v1'))!r})"), tmp_path / 'run')
    assert hub.seen(f'/{name}/(resolve|revision)/(v1|{sha})')

# What goes wrong and mends itself, and what the cache makes up for

def test_cut_connections_and_rate_limits_that_pass(hub, folders, python, warm, tmp_path):
    for role, kind in dict(teacher='models', student='models', dataset='datasets').items():
        serve(hub, folders, f'org/passes-{role}', kind, role)
    cut = hub.fault(cut_after=200, path='^/(cdn|api/resolve-cache)/.*/org/passes-.*(safetensors|parquet|config.json)$', each=True, times=1)
    limits = [hub.fault(status=429, repo=f'org/passes-{role}', times=2) for role in ('teacher', 'dataset')]
    names = dict(teacher='org/passes-teacher', student='org/passes-student', dataset=f'org/passes-dataset:{CONFIG}')
    finished(python.run(f"main({train(tmp_path / 'run', **names)!r})"), tmp_path / 'run')
    assert cut.hits.total() >= 5 and all(limit.hits.total() == 2 for limit in limits)

@pytest.mark.parametrize('state', ['closed', 'silent', 'limited', 'down'])
def test_the_cache_runs_without_a_hub(hub, python, warm, tmp_path, state):
    if state == 'closed': hub.stop()
    else: hub.fault(**dict(silent=dict(silent=True), limited=dict(status=429), down=dict(status=503))[state])
    done = python.run(f"main({train(tmp_path / 'run')!r})", timeout=PATIENCE + 60)
    finished(done, tmp_path / 'run')
    assert done.seconds < PATIENCE + SLOWNESS, f'{done.seconds:.0f} s'

def test_offline(hub, home, warm, tmp_path):
    "With a warm cache it runs without one request; what is not there is told at once."
    with hub.python(home, 'from kdkit.cli import main', offline=True) as python:
        hub.forget()
        finished(python.run(f"main({train(tmp_path / 'run')!r})"), tmp_path / 'run')
        for role, name in dict(teacher='org/elsewhere', dataset='org/elsewhere:raw').items():
            refused(python.run(f"main({train(tmp_path / role, **{role: name})!r})"), 'org/elsewhere', 'offline', 'HF_HUB_OFFLINE|cache')
    assert not hub.requests
