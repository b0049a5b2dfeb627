"The local hub of tests/hub.py, proved with the libraries that it stands before: what they load, what they ask, and how they fail."
import json
import urllib.request

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hub import Hub
from pairs import model_of
from tiny_tokenizers import byte_level, sentencepiece
from transformers import AutoModelForCausalLM

IMPORTS = '''
import httpx, torch
from datasets import load_dataset
from huggingface_hub import HfApi, ModelCard, hf_hub_download, snapshot_download
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
def weights(*what, **options):  # bytes, not logits: what is computed from them depends on the machine and its threads
    import hashlib
    state = AutoModelForCausalLM.from_pretrained(*what, **options).state_dict()
    return hashlib.sha256(b''.join(name.encode() + state[name].numpy().tobytes() for name in sorted(state))).hexdigest()
def names(things): return [thing.name for thing in things]
def sha(path): import hashlib; return hashlib.sha256(open(path, 'rb').read()).hexdigest()
'''
CARD = '''---
license: mit
configs:
- config_name: small
  default: true
  data_files: [{split: train, path: small/train-*}, {split: validation, path: small/validation-*}, {split: test, path: small/test-*}]
- config_name: large
  data_files: [{split: train, path: large/*.parquet}]
---
# Lines
'''

def save_model(folder, tokenizer=None, subfolder='', seed=0, **options):
    "A miniature Llama with its tokenizer."
    tokenizer = tokenizer or byte_level(700)
    model_of('llama', len(tokenizer), seed=seed).save_pretrained(folder / subfolder, **options)
    tokenizer.save_pretrained(folder / subfolder)
    return folder

def save_lines(folder, mark=''):
    "A dataset of two configs, in shards of parquet."
    (folder / 'small').mkdir(parents=True)
    (folder / 'large').mkdir()
    (folder / 'README.md').write_text(CARD)
    for split, n in dict(train=50, validation=10, test=10).items():
        for shard in range(2):
            rows = [f'{mark}{split} {i}' for i in range(shard * n // 2, (shard + 1) * n // 2)]
            pq.write_table(pa.table({'text': rows}), folder / f'small/{split}-0000{shard}-of-00002.parquet')
    pq.write_table(pa.table({'text': [f'{mark}large {i}' for i in range(30)]}), folder / 'large/part.parquet')
    return folder

def save_json(folder):
    "A dataset without a card, of JSON lines."
    folder.mkdir()
    for split in ('train', 'test'):
        (folder / f'{split}.jsonl').write_text(''.join(json.dumps(dict(text=f'{split} {i}', n=i)) + '\n' for i in range(9)))

@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    "A model, the same in shards, one in a subfolder, an older revision; two revisions of a dataset; a large file."
    folder = tmp_path_factory.mktemp('repos')
    save_model(folder / 'model', sentencepiece(600))
    save_model(folder / 'shards', max_shard_size='20KB')
    save_model(folder / 'old', seed=1)
    save_model(folder / 'inside', subfolder='deep/student', seed=2)
    save_lines(folder / 'lines'), save_lines(folder / 'old_lines', 'old '), save_json(folder / 'json')
    (folder / 'large').mkdir()
    (folder / 'large/noise.bin').write_bytes(bytes(range(256)) * 50_000)  # 12.8 MB: more than the library reads at once
    return folder

@pytest.fixture(scope='module')
def a_hub():
    with Hub() as hub: yield hub

@pytest.fixture
def hub(a_hub):
    "Without faults and records of the test before."
    a_hub.forget()
    yield a_hub
    a_hub.heal()

@pytest.fixture(scope='module')
def cache(tmp_path_factory): return tmp_path_factory.mktemp('cache')

@pytest.fixture(scope='module')
def python(a_hub, cache):
    with a_hub.python(cache, IMPORTS) as python: yield python

def weights(*what, **options):  # bytes, not logits: what is computed from them depends on the machine and its threads
    import hashlib
    state = AutoModelForCausalLM.from_pretrained(*what, **options).state_dict()
    return hashlib.sha256(b''.join(name.encode() + state[name].numpy().tobytes() for name in sorted(state))).hexdigest()

def test_a_model(hub, python, folders):
    hub.add('models', 'org/model', folders / 'model')
    assert python.run('AutoConfig.from_pretrained("org/model").model_type').check().value == 'llama'
    assert python.run('AutoTokenizer.from_pretrained("org/model").tokenize("a b")').check().value == sentencepiece(600).tokenize('a b')
    assert python.run('weights("org/model")').check().value == weights(folders / 'model')
    assert all(request.token is None for request in hub.requests) and {request.status for request in hub.requests} == {200, 302, 307, 404}
    assert [r.host for r in hub.seen('^/cdn/.*safetensors')] == [hub.cdn.removeprefix('http://')]
    hub.forget()
    assert python.run('weights("org/model")').check().value == weights(folders / 'model')
    assert not hub.seen('^/cdn|resolve-cache', 'GET')  # it was in the cache

def test_shards_subfolders_and_revisions(hub, python, folders):
    hub.add('models', 'org/shards', folders / 'shards')
    old = hub.add('models', 'org/shards', folders / 'old', revision='v1.0', tag=True)
    hub.add('models', 'org/shards', folders / 'inside', revision='pr/7')
    assert len(list((folders / 'shards').glob('*.safetensors'))) > 2
    assert python.run('weights("org/shards")').check().value == weights(folders / 'shards')
    assert python.run(f'weights("org/shards", revision="{old}")').check().value == weights(folders / 'old')
    assert python.run('weights("org/shards", revision="v1.0")').check().value == weights(folders / 'old')
    assert hub.seen('/org/shards/resolve/v1.0/config.json') and hub.seen(f'/resolve/{old}/config.json')
    inside = python.run('weights("org/shards", revision="pr/7", subfolder="deep/student")').check()
    assert inside.value == weights(folders / 'inside/deep/student')
    assert python.run('len(AutoTokenizer.from_pretrained("org/shards", revision="pr/7", subfolder="deep/student"))').check().value == 700
    refs = python.run('refs = HfApi().list_repo_refs("org/shards")\nnames(refs.branches), names(refs.tags)').check()
    assert refs.value == [['main', 'pr/7'], ['v1.0']]
    folder = python.run('snapshot_download("org/shards", revision="pr/7")').check().value
    assert python.run(f'AutoConfig.from_pretrained({folder!r} + "/deep/student").num_hidden_layers').check().value == 2

def test_what_is_in_a_repo(hub, python, folders):
    hub.add('models', 'org/listed', folders / 'inside')
    sha = hub.add('datasets', 'org/card', folders / 'lines')
    said = lambda what: python.run(what.replace('API', 'HfApi()')).check().value
    assert said('sorted(API.list_repo_files("org/listed"))') == sorted(p.relative_to(folders / 'inside').as_posix()
                                                                       for p in (folders / 'inside').rglob('*') if p.is_file())
    assert said('[e.path for e in API.list_repo_tree("org/listed", "deep")]') == ['deep/student']
    weights = 'deep/student/model.safetensors'
    assert said(f'[i.path for i in API.get_paths_info("org/listed", ["deep", "{weights}", "no"])]') == ['deep', weights]
    sizes = said('{f.rfilename: f.size for f in API.model_info("org/listed", files_metadata=True).siblings}')
    assert sizes[weights] == (folders / 'inside' / weights).stat().st_size
    info = python.run('info = HfApi().dataset_info("org/card")\ninfo.sha, [c["config_name"] for c in info.card_data["configs"]]').check()
    assert info.value == [sha, ['small', 'large']]

def test_datasets(hub, python, folders):
    hub.add('datasets', 'org/lines', folders / 'lines')
    hub.add('datasets', 'org/lines', folders / 'old_lines', revision='v1')
    texts = lambda what: python.run(f'[row["text"] for row in load_dataset("org/lines", {what})]').check().value
    train = [f'train {i}' for i in range(50)]
    assert texts('"small", split="train"') == texts('split="train"') == texts('split="train", streaming=True') == train
    assert texts('"small", split="train[10:20]"') == train[10:20] and len(texts('"small", split="train[:10%]"')) == 5
    assert texts('"small", split="validation+test"') == [f'{split} {i}' for split in ('validation', 'test') for i in range(10)]
    assert texts('"large", split="train"') == texts('"large", split="train", streaming=True') == [f'large {i}' for i in range(30)]
    for options in ('', ', streaming=True'): assert texts(f'revision="v1", split="test"{options}') == [f'old test {i}' for i in range(10)]
    assert hub.seen('/datasets/org/lines/resolve/v1/README.md')
    hub.add('datasets', 'org/json', folders / 'json')
    for options in ('', ', streaming=True'):
        assert python.run(f'[row["n"] for row in load_dataset("org/json", split="test"{options})]').check().value == list(range(9))
    unknown = python.run('load_dataset("org/lines", "huge")')
    assert unknown.error == 'ValueError' and "['small', 'large']" in unknown.message

def test_names_of_one_word(hub, python, folders):
    "As on the hub: renamed long ago. The library itself refuses such a dataset from huggingface_hub 1.16 on."
    hub.add('models', 'openai-community/gpt2', folders / 'model')
    hub.add('datasets', 'Salesforce/wikitext', folders / 'lines')
    hub.rename('models', 'gpt2', 'openai-community/gpt2'), hub.rename('datasets', 'wikitext', 'Salesforce/wikitext')
    assert python.run('HfApi().dataset_info("wikitext").id').check().value == 'Salesforce/wikitext'
    assert hub.seen('^/api/datasets/wikitext$')[0].status == 307
    assert python.run('weights("gpt2")').check().value == weights(folders / 'model')
    loaded = python.run('len(load_dataset("wikitext", "small", split="train"))')
    assert loaded.error == 'HfUriError' or loaded.value == 50

def test_gates(hub, python, folders):
    hub.add('models', 'org/gated', folders / 'model', gated=True)
    hub.add('datasets', 'org/gated-lines', folders / 'lines', gated=True)
    hub.login('hf_in', 'org/gated', 'org/gated-lines'), hub.login('hf_out')
    load = 'hf_hub_download("org/gated", "model.safetensors", token={})'
    for token, status in ((False, 401), ('hf_out', 403)):
        refused = python.run(load.format(repr(token)))
        assert refused.error == 'GatedRepoError' and refused.message.startswith(f'{status} Client Error')
        assert 'Access to model org/gated is restricted' in refused.message
        refused = python.run(f'load_dataset("org/gated-lines", token={token!r})')
        assert refused.error == 'DatasetNotFoundError' and 'is a gated dataset' in refused.message
    assert 'gated repo' in python.run('AutoConfig.from_pretrained("org/gated")').message
    assert python.run('HfApi().model_info("org/gated").gated').check().value == 'auto'  # all may see that it is there
    assert 'Invalid credentials' in python.run(load.format('"hf_forged"')).message
    hub.forget()
    assert python.run(load.format('"hf_in"')).check()
    assert {r.token for r in hub.seen('^/org')} == {'hf_in'} and {r.token for r in hub.seen('^/cdn')} == {None}  # no token leaves the hub
    assert python.run('len(load_dataset("org/gated-lines", split="train", token="hf_in"))').check().value == 50
    assert python.run('HfApi().whoami(token="hf_in")["name"]').check().value == 'somebody'

def test_what_is_not_there(hub, python, folders):
    hub.add('models', 'org/here', folders / 'model')
    hub.add('models', 'org/hidden', folders / 'model', private=True)
    hub.add('datasets', 'org/here-lines', folders / 'lines')
    hub.login('hf_mine', 'org/hidden'), hub.login('hf_other')
    for name in ('org/nowhere', 'org/hidden'):
        for token, status in ((False, 401), ('hf_other', 404)):
            refused = python.run(f'hf_hub_download({name!r}, "config.json", token={token!r})')
            assert refused.error == 'RepositoryNotFoundError' and refused.message.startswith(f'{status} Client Error')
            assert python.run(f'HfApi().model_info({name!r}, token={token!r})').error == 'RepositoryNotFoundError'
        assert 'is not a local folder and is not a valid model identifier' in python.run(f'AutoConfig.from_pretrained({name!r})').message
    assert python.run('HfApi().model_info("org/hidden", token="hf_mine").private').check().value is True
    assert python.run('hf_hub_download("org/here", "config.json", revision="v9")').error == 'RevisionNotFoundError'
    assert python.run('HfApi().model_info("org/here", revision="v9")').error == 'RevisionNotFoundError'
    assert 'not a valid git identifier' in python.run('AutoConfig.from_pretrained("org/here", revision="v9")').message
    assert python.run('hf_hub_download("org/here", "no.json")').error == 'RemoteEntryNotFoundError'
    assert python.run('load_dataset("org/nowhere-lines")').error == 'DatasetNotFoundError'
    assert "Revision 'v9' doesn't exist" in python.run('load_dataset("org/here-lines", revision="v9")').message

def persistent(python, code):
    "Twice, if need be: huggingface_hub 1.11 gives up when a connection is cut, and goes on with the file at the next call."
    done = python.run(code)
    if 'peer closed connection' in done.err and done.error: done = python.run(code)
    return done.check()

def test_failures_that_pass(hub, python, folders):
    "A rate limit, a server error and broken connections: the library tries again and succeeds."
    for name in ('limited', 'failing', 'broken'): hub.add('models', f'org/{name}', folders / 'model')
    limit = hub.fault(status=429, repo='org/limited', times=2)
    done = python.run('AutoConfig.from_pretrained("org/limited").model_type').check()
    assert done.value == 'llama' and limit.hits.total() == 2 and 'Rate limited. Waiting 1.0s' in done.err
    assert [r.status for r in hub.seen('^/org/limited/.*config.json')][:3] == [429, 429, 307]
    hub.fault(status=503, repo='org/failing', times=2, path='config.json')
    assert python.run('AutoConfig.from_pretrained("org/failing").model_type').check().value == 'llama'
    cut = hub.fault(cut_after=100, repo='org/broken', times=1, path='^/(cdn|api/resolve-cache)/.*safetensors$')
    assert persistent(python, 'weights("org/broken")').value == weights(folders / 'model') and cut.hits.total() == 1
    assert len(hub.seen('^/cdn/models/org/broken/.*safetensors', 'GET')) == 2

def test_a_broken_download_goes_on_where_it_was(hub, python, folders):
    hub.add('models', 'org/large', folders / 'large')
    hub.fault(cut_after=11_000_000, path='^/cdn/', times=1)
    done = persistent(python, 'sha(hf_hub_download("org/large", "noise.bin"))')
    assert done.value == next(iter(hub.repos['models', 'org/large'].commits.values()))['noise.bin'].sha256
    assert [(r.status, r.headers.get('range')) for r in hub.seen('^/cdn/')] == [(200, None), (206, 'bytes=10485760-')]

def test_ranges(hub, folders):
    hub.add('models', 'org/ranges', folders / 'large')
    def get(wanted):
        asked = urllib.request.Request(f'{hub.url}/org/ranges/resolve/main/noise.bin', headers=dict(Range=wanted))
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked) as answer:
            return answer.status, answer.headers['Content-Range'], answer.read()
    assert get('bytes=2-4') == (206, 'bytes 2-4/12800000', bytes([2, 3, 4]))
    assert get('bytes=-2') == (206, 'bytes 12799998-12799999/12800000', bytes([254, 255])) and get('bytes=12799999-')[2] == bytes([255])
    with pytest.raises(urllib.error.HTTPError, match='416'): get('bytes=12800000-')

def test_slow_silent_and_gone(hub, python, folders):
    hub.add('models', 'org/patient', folders / 'model')
    hub.fault(delay=0.3)
    assert python.run('HfApi().model_info("org/patient").id').check().seconds >= 0.3
    hub.heal()
    hub.fault(silent=True)
    silent = python.run('HfApi().model_info("org/patient", timeout=0.5)')
    assert silent.error == 'ReadTimeout' and hub.requests[-1].status is None
    hub.heal()
    assert python.run('AutoConfig.from_pretrained("org/patient").model_type').check().value == 'llama'
    hub.stop()
    gone = python.run('HfApi().model_info("org/patient")')
    assert gone.error == 'ConnectError' and 'refused' in gone.message
    assert python.run('AutoConfig.from_pretrained("org/patient").model_type').check().value == 'llama'  # the cache answers
    hub.start()
    assert python.run('HfApi().model_info("org/patient").id').check().value == 'org/patient'

def test_offline(hub, python, cache, folders):
    hub.add('models', 'org/kept', folders / 'model'), hub.add('models', 'org/never', folders / 'model')
    hub.add('datasets', 'org/kept-lines', folders / 'lines')
    python.run('weights("org/kept"); AutoTokenizer.from_pretrained("org/kept"); load_dataset("org/kept-lines", "small")').check()
    hub.forget()
    with hub.python(cache, IMPORTS, offline=True) as python:
        assert python.run('weights("org/kept")').check().value == weights(folders / 'model')
        assert python.run('len(AutoTokenizer.from_pretrained("org/kept"))').check().value == 600
        assert python.run('len(load_dataset("org/kept-lines", "small", split="train"))').check().value == 50
        assert python.run('AutoConfig.from_pretrained("org/never")').error == 'OSError'
        assert python.run('HfApi().model_info("org/kept")').error == 'OfflineModeIsEnabled'
        assert python.run('load_dataset("org/never-lines")').error == 'ConnectionError'
    assert not hub.requests

def test_what_python_tells(hub, tmp_path):
    with hub.python(tmp_path) as python:
        assert python.run('print("seen"); 1 + 1').value == 2
        done = python.run('import os, sys\nprint("out"); os.write(2, b"err"); raise SystemExit(3)')
        assert (done.out, done.error, done.message) == ('out\n', 'SystemExit', '3') and done.err.startswith('err')
        assert python.run('os.environ["HF_ENDPOINT"]').value == hub.url and python.run('os.environ.get("HF_TOKEN")').value is None
        with pytest.raises(AssertionError, match='no end after'): python.run('while True: pass', timeout=0.5)
        with pytest.raises(AssertionError, match='it died'): python.run('os._exit(1)' if python.run('import os').check() else '')
        assert python.run('2 + 2').value == 4
