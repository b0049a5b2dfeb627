"""A student that goes to the hub: asked for before anything is loaded, pushed by the libraries' own code to a local server, and loaded from
there."""
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hub import Hub
from safetensors.torch import load_file

OPTIONS = dict(max_length=64, max_steps=4, eval_steps=2, batch_size=4, learning_rate=1e-2, eval_fraction=.1, max_eval_rows=8,
               use_cpu='true')
BIN = Path(sys.executable).parent


@pytest.fixture
def hub():
    with Hub() as hub: yield hub


@pytest.fixture
def cache(tmp_path): return tmp_path / 'hf'


def train(hub, cache, values, folder, token='hf_mine', offline=False, alone=False, **options):
    "Run `kdkit train` as a user of this hub: (exit code, what stood on the screen)."
    words = [f'--{name}={value}' for name, value in {**values, **OPTIONS, 'output_dir': folder, **options}.items()]
    done = subprocess.run([sys.executable, '-m', 'kdkit.cli', 'train', *words, *['--push_to_hub'] * alone],
                          env=hub.environ(cache, token=token, offline=offline), capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


def loaded(hub, tmp_path, code, token='hf_mine'):
    "What a fresh machine gets from the hub."
    with hub.python(tmp_path / 'fresh',
                    'from transformers import AutoModelForCausalLM, AutoTokenizer\nfrom huggingface_hub import HfApi, ModelCard',
                    token=token) as python:
        return python.run(code).check().value


def weights_of(name):
    return f'{{name: value.double().sum().item() for name, value in AutoModelForCausalLM.from_pretrained({name!r}).state_dict().items()}}'


def test_a_student_is_pushed_and_loads_from_there(hub, cache, pair, tmp_path):
    hub.login('hf_mine', role='write', name='me')
    code, said = train(hub, cache, pair, tmp_path / 'run', push_to_hub='me/small')
    assert code == 0 and f'the student was pushed to {hub.url}/me/small/commit/' in said, said
    repo = hub.repos['models', 'me/small']
    assert repo.private and len(repo.commits) == 2
    assert loaded(hub, tmp_path, weights_of('me/small')) == loaded(hub, tmp_path, weights_of(str(tmp_path / 'run/student')))
    tokens_of = lambda name: loaded(hub, tmp_path, f'AutoTokenizer.from_pretrained({name!r}).tokenize("a string")')
    assert tokens_of('me/small') == tokens_of(str(tmp_path / 'run/student'))
    card = loaded(hub, tmp_path, 'card = ModelCard.load("me/small")\n[card.data.library_name, card.text]')
    assert {request.status for request in hub.seen("validate-yaml")} == {200}  # the library asked, before it sent anything
    assert card[0] == 'transformers' and "AutoModelForCausalLM.from_pretrained('me/small')" in card[1] and str(tmp_path) not in card[1]
    files = repo.commits[repo.refs['main']]
    assert ({'config.json', 'model.safetensors', 'tokenizer.json', 'README.md'} <= set(files) and files['model.safetensors'].lfs
            and not files['config.json'].lfs)
    # no token was kept, and no file names this machine's folders
    kept = [path for path in (tmp_path / 'run').rglob('*') if path.is_file()] + [file.path for file in files.values()]
    assert (not any(b'hf_mine' in path.read_bytes() for path in kept)
            and not any(str(tmp_path).encode() in file.path.read_bytes() for file in files.values()))
    hub.forget()
    assert train(hub, cache, pair, tmp_path / 'run', push_to_hub='me/small')[0] == 0
    assert not hub.requests  # it is there already


def test_a_longer_run_is_another_commit_and_old_weights_go(hub, cache, pair, tmp_path):
    hub.login('hf_mine', role='write', name='me', orgs=['lab'])
    assert train(hub, cache, pair, tmp_path / 'run', push_to_hub='lab/small', hub_private_repo='false')[0] == 0
    repo = hub.repos['models', 'lab/small']
    assert not repo.private and loaded(hub, tmp_path, 'HfApi().model_info("lab/small").private', token=None) is False
    stray = dict(repo.commits[repo.refs['main']])
    hub.new_commit(repo, 'main',
                   {**stray, 'model-00001-of-00002.safetensors': stray['model.safetensors'], 'notes.txt': stray['config.json']})
    before = {file.oid for file in stray.values()}
    code, said = train(hub, cache, pair, tmp_path / 'run', push_to_hub='lab/small', max_steps=6)
    files = repo.commits[repo.refs['main']]
    assert code == 0 and 'there already and public' in said and files['model.safetensors'].oid not in before
    assert 'model-00001-of-00002.safetensors' not in files and 'notes.txt' in files


@pytest.mark.parametrize('local', [True, False])
def test_an_adapter_goes_along_where_its_base_is_public(hub, cache, pair, tmp_path, local):
    pytest.importorskip('peft')
    hub.login('hf_mine', role='write', name='me')
    hub.add('models', 'org/base', pair['student_model'])
    values = pair if local else dict(pair, student_model='org/base')
    code, said = train(hub, cache, values, tmp_path / 'run', alone=True, lora_r=4)
    assert code == 0, said
    repo = hub.repos['models', 'me/run']  # named after the folder
    files = repo.commits[repo.refs['main']]
    assert ('adapter/adapter_model.safetensors' in files) == ('adapter/README.md' in files) == (not local) and 'model.safetensors' in files
    card = (tmp_path / 'run/adapter/README.md').read_text()
    use = card.split('```python\n')[1].split('```')[0]
    if local:
        assert 'base_model' not in card and str(tmp_path) not in card
        return
    code = use.replace("'.'", repr(str(tmp_path / 'run/adapter'))) + f'''
import torch
ids = torch.tensor([[5, 6, 7, 8]])
with torch.no_grad(): both = [one(ids).logits for one in (model, AutoModelForCausalLM.from_pretrained('me/run'))]
with model.disable_adapter(), torch.no_grad(): without = model(ids).logits
'''
    with hub.python(tmp_path / 'fresh', code, token='hf_mine') as python:
        apart = lambda one, other: python.run(f'({one} - {other}).abs().max().item()').check().value
        assert apart('both[0]', 'both[1]') < 1e-5 < apart('both[0]', 'without')
        assert python.run('''from huggingface_hub import ModelCard
from peft import PeftModel
there = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained('org/base'), 'me/run', subfolder='adapter')
with torch.no_grad(): other = there(ids).logits
(both[0] - other).abs().max().item()''').check().value < 1e-6
        card = (f'card = ModelCard.load({str(tmp_path / "run/adapter/README.md")!r})\n'
            '[card.data.library_name, card.data.base_model, card.data.tags, card.data.pipeline_tag]')
        library, base, tags, task = python.run(card).check().value
        assert {request.status for request in hub.seen("validate-yaml")} == {200}
        assert (library, base, task) == ('peft', 'org/base', 'text-generation') and {'lora', 'base_model:adapter:org/base'} <= set(tags)
        assert python.run(f'card = ModelCard.load({str(tmp_path / "run/student/README.md")!r})\n[card.data.library_name, '
                          f'card.data.base_model]').check().value == ['transformers', 'org/base']


def test_a_push_that_fails_loses_nothing(hub, cache, pair, tmp_path):
    hub.login('hf_mine', role='write', name='me')
    hub.fault(status=500, path='/commit/')
    code, said = train(hub, cache, pair, tmp_path / 'run', push_to_hub='small')
    [line] = [line for line in said.splitlines() if 'could not be pushed' in line]
    assert code == 0 and (tmp_path / 'run/report.json').exists() and 'Nothing is lost' in line and 'Traceback' not in said
    hub.heal()
    command = shlex.split(line.split('`')[1])  # the official one, as it is said
    assert command[:3] == ['hf', 'upload', 'me/small'] and command[-1] == '--private'
    done = subprocess.run([BIN / command[0], *command[1:]], env=hub.environ(cache, token='hf_mine'), capture_output=True, text=True,
                          timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    pushed = hub.repos['models', 'me/small'].commits[hub.repos['models', 'me/small'].refs['main']]
    assert load_file(pushed['model.safetensors'].path).keys() == load_file(tmp_path / 'run/student/model.safetensors').keys()
    code, said = train(hub, cache, pair, tmp_path / 'run', push_to_hub='small')  # and so does the same command, without another step
    assert code == 0 and 'the student was pushed to' in said and 'step ' not in said and 'to train on' not in said, said


REFUSED = dict(
    nobody=(dict(token=None), 'me/small', 'nobody is logged in'),
    unknown=(dict(token='hf_old'), 'me/small', 'does not accept your token (401)'),
    reads=(dict(token='hf_reads'), 'me/small', 'may only read'),
    other=(dict(), 'others/small', 'you are me (in lab) there'), name=(dict(), 'me/sm all', 'no name of a repo'),
    deep=(dict(), 'me/a/b', 'no name of a repo'), dots=(dict(), 'me/a..b', 'no name of a repo'),
    offline=(dict(offline=True), 'me/small', 'offline mode is on'))


@pytest.fixture(scope='module')
def door(tmp_path_factory):
    "A process that stands at the door, with its hub."
    imports = 'import os\nfrom kdkit.config import DistillConfig\nfrom kdkit.push import check_push, make_repo'
    with Hub() as hub, hub.python(tmp_path_factory.mktemp('door'), imports) as python:
        hub.login('hf_mine', role='write', name='me', orgs=['lab']), hub.login('hf_reads', name='me')
        yield hub, python


def asks(python, repo, token='hf_mine', make=False):
    return python.run(f"os.environ.update(HF_TOKEN={token or ''!r})\nrepo = check_push(DistillConfig(push_to_hub={repo!r}, "
                      f"output_dir='runs/a1'))\n" + 'make_repo(repo, True)\n' * make + 'repo')


@pytest.mark.parametrize('case', [case for case in REFUSED if case != 'offline'])
def test_the_door(door, case):
    how, repo, says = REFUSED[case]
    said = asks(door[1], repo, **how)
    assert said.error == 'PushError' and says in said.message and '\n' not in said.message, said.message
    assert not door[0].repos


def test_what_may_be_pushed_to(door):
    hub, python = door
    assert [asks(python, given).check().value
            for given in ('small', 'me/small', 'lab/small', 'true')] == ['me/small', 'me/small', 'lab/small', 'me/a1'] and not hub.repos


@pytest.mark.parametrize('fault, says', [(dict(status=403, path='repos/create'), 'may not write to me/small (403)'),
                                         (dict(status=500, path='whoami'), '500')])
def test_a_hub_that_refuses(door, fault, says):
    door[0].fault(**fault)
    said = asks(door[1], 'me/small', make=True)
    door[0].heal()
    assert said.error == 'PushError' and says in said.message and '\n' not in said.message, said.message


def test_no_hub_at_all(door):
    door[0].stop()
    said = asks(door[1], 'me/small')
    door[0].start()
    assert said.error == 'PushError' and 'cannot be reached' in said.message, said.message


@pytest.mark.parametrize('case', ['reads', 'offline'])
def test_nothing_is_loaded_before_the_door(hub, cache, pair, tmp_path, case):
    hub.login('hf_reads', name='me')
    how, repo, says = REFUSED[case]
    code, said = train(hub, cache, pair, tmp_path / 'run', push_to_hub=repo, **{'token': 'hf_mine', **how})
    errors = [line for line in said.splitlines() if line.startswith('kdkit: error:')]
    assert code == 2 and len(errors) == 1 and says in errors[0] and not (tmp_path / 'run').exists() and 'training on' not in said, said


def test_other_ways_to_name_a_push_are_answered():
    from kdkit.config import ConfigError, DistillConfig
    from kdkit.trainer import check_arguments
    assert (DistillConfig(push_to_hub=True).push_to_hub == 'true' and DistillConfig(push_to_hub=False).push_to_hub is None
            and DistillConfig(push_to_hub='false').push_to_hub is None)
    with pytest.raises(ConfigError, match='named by push_to_hub'): check_arguments(DistillConfig(), dict(hub_model_id='me/small'))
    with pytest.raises(ConfigError, match='belongs to the config'): check_arguments(DistillConfig(), dict(push_to_hub=True))


def test_a_card_with_wrong_metadata_is_refused_by_the_server(hub, cache):
    "The server's own check: what it lets through is more than nothing."
    hub.login('hf_mine', role='write', name='me')
    with hub.python(cache, 'from huggingface_hub import HfApi\nHfApi().create_repo("me/x")', token='hf_mine') as python:
        push = ('HfApi().upload_file(path_or_fileobj=b"---\\nbase_model: {}\\nlibrary_name: peft\\n---\\n# x", path_in_repo="README.md", '
            'repo_id="me/x").oid')
        said = python.run(push.format('/tmp/a folder'))
        assert said.error == 'ValueError' and 'Invalid metadata in README.md' in said.message, said.message
        assert python.run(push.format('org/name')).check().value == hub.repos['models', 'me/x'].refs['main']
