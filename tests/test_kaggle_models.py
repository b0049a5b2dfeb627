"""Models by their Kaggle handles: attached as inputs, asked for through Kaggle's own library inside a session and outside of one, and what
is said when that fails."""
import json
import re
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from kdkit import models
from kdkit.cli import main
from kdkit.models import ModelError, find_model

HANDLE = 'kaggle:qwen-lm/qwen-3/transformers/0.6b'

@pytest.fixture(autouse=True)
def outside(tmp_path, monkeypatch):
    "No session, no credentials, an empty cache."
    models.attached.clear()
    for name in ('KAGGLE_KERNEL_RUN_TYPE', 'KAGGLE_USERNAME', 'KAGGLE_KEY', 'KAGGLE_API_TOKEN'): monkeypatch.delenv(name, raising=False)
    for name, folder in dict(KAGGLE_CACHE_MOUNT_FOLDER='input', KAGGLEHUB_CACHE='cache', KAGGLE_CONFIG_DIR='config').items():
        monkeypatch.setenv(name, str(tmp_path / folder))
    yield
    models.attached.clear()

class Session(BaseHTTPRequestHandler):
    "The part of a Kaggle session that attaches inputs."
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers['Content-Length'])))['modelRef']
        self.server.asked.append((self.path, asked))
        known = asked['ModelSlug'] == 'qwen-3'
        slug = '/'.join(['models', asked['OwnerSlug'], asked['ModelSlug'], asked['Framework'], asked['InstanceSlug'],
                         asked.get('VersionNumber', '3')])
        if known: shutil.copytree(self.server.model, self.server.inputs / slug, dirs_exist_ok=True)
        body = json.dumps(dict(wasSuccessful=True, result=dict(mountSlug=slug, versionNumber=3)) if known
                          else dict(wasSuccessful=False)).encode()
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass

@pytest.fixture
def session(tmp_path, pair, monkeypatch):
    "Inside a session: the variables that kagglehub reads, and a server that it asks."
    pytest.importorskip('kagglehub')
    with ThreadingHTTPServer(('127.0.0.1', 0), Session) as server:
        server.asked, server.model, server.inputs = [], pair['teacher_model'], tmp_path / 'input'
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name, value in dict(KAGGLE_KERNEL_RUN_TYPE='Interactive', KAGGLE_DATA_PROXY_URL=f'http://127.0.0.1:{server.server_port}',
                                KAGGLE_USER_SECRETS_TOKEN='jwt',
                                KAGGLE_DATA_PROXY_TOKEN='proxy').items(): monkeypatch.setenv(name, value)
        yield server
        server.shutdown()

@pytest.mark.parametrize('place', ['models/qwen-lm/qwen-3/transformers/0.6b/2', 'models/qwen-lm/qwen-3/Transformers/0.6b/2',
                                   'qwen-3/transformers/0.6b/2'])
def test_an_attached_model_is_read_where_it_lies(tmp_path, pair, place):
    folder = tmp_path / 'input' / place
    shutil.copytree(pair['teacher_model'], folder)
    (folder.parent / '1').mkdir()
    assert find_model(HANDLE, 'teacher_model').folder == find_model(f'{HANDLE}/2', 'teacher_model').folder == folder
    config = dict(pair, teacher_model=HANDLE, output_dir=str(tmp_path / 'run'), max_steps=2, max_length=32, max_eval_rows=4, eval_steps=2)
    if place.startswith('qwen-3'):  # one of the layouts trains
        assert main(['train', *(word for k, v in config.items() for word in (f'--{k}', str(v)))]) == 0

def test_a_session_attaches_it(session, tmp_path):
    folder = find_model(HANDLE, 'teacher_model').folder
    assert folder == tmp_path / 'input/models/qwen-lm/qwen-3/transformers/0.6b/3' and (folder / 'config.json').exists()
    find_model(HANDLE, 'teacher_model')
    [(path, asked)] = session.asked  # once for the config, the tokenizer and the weights
    assert path.endswith('AttachDatasourceUsingJwtRequest') and asked == dict(OwnerSlug='qwen-lm', ModelSlug='qwen-3',
                                                                              Framework='transformers', InstanceSlug='0.6b')

def test_what_a_session_does_not_know(session):
    with pytest.raises(ModelError, match='not at Kaggle: check the handle'):
        find_model('kaggle:qwen-lm/qwen-33/transformers/0.6b', 'teacher_model')

def test_a_copy_in_kagglehubs_cache_needs_no_network(tmp_path, pair):
    pytest.importorskip('kagglehub')
    home = tmp_path / 'cache/models/qwen-lm/qwen-3/transformers/0.6b'
    shutil.copytree(pair['teacher_model'], home / '1')
    (home / '1.complete').touch()
    assert find_model(f'{HANDLE}/1', 'teacher_model').folder == home / '1'

def test_no_session_and_no_network(capsys, monkeypatch, tmp_path, pair):
    pytest.importorskip('kagglehub')
    monkeypatch.setenv('KAGGLE_API_ENVIRONMENT', 'TEST')  # an address of this machine at which nobody listens
    began = time.monotonic()
    assert main(['train', '--teacher_model', HANDLE, '--student_model', pair['student_model'], '--dataset', pair['dataset'],
                 '--output_dir', str(tmp_path / 'run')]) == 2
    err = capsys.readouterr().err.strip().split('\n')[-1]
    assert re.search('not among this session.s inputs, and Kaggle cannot be reached.*Add Input', err) and time.monotonic() - began < 25
    assert not (tmp_path / 'run').exists()

def test_without_kagglehub(monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, 'kagglehub', None)
    with pytest.raises(ModelError, match='pip install kagglehub'): find_model(HANDLE, 'teacher_model')

@pytest.mark.parametrize('name', ['kaggle:', 'kaggle:qwen-lm/qwen-3', 'kaggle:a/b/c/d/latest', 'kaggle:a//c/d', 'kaggle:a/b/c/d/1/2'])
def test_what_is_no_handle(name):
    with pytest.raises(ModelError, match='is no handle of a Kaggle model, which is kaggle:owner/model/framework/variation'):
        find_model(name, 'student_model')

def test_a_handle_has_no_revision():
    with pytest.raises(ModelError, match='version as the last part'): find_model(HANDLE, 'teacher_model', revision='main')
