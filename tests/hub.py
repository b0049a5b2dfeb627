"""A small Hugging Face hub on the loopback: what `huggingface_hub` and `datasets` ask when HF_ENDPOINT points at it, from local folders.

The libraries that talk to it are the real ones, unmodified. Answers, redirects and error headers are those of huggingface.co: small files
come through /api/resolve-cache, large ones from another host (`localhost` plays the CDN), renamed repos answer 307. What goes wrong there
can be switched on here.

    with Hub() as hub:
        hub.add('models', 'org/name', folder)   # a commit on main; also revision='v1', tag=True, gated=True, private=True
        hub.fault(status=503, times=2)          # also cut_after=bytes, delay=seconds, silent=True; hub.heal() ends them all
        with hub.python(cache_dir) as python:   # a Python that lives in this hub's environment
            python.run('from transformers import AutoConfig')
            python.run('AutoConfig.from_pretrained("org/name").hidden_size').value
        hub.seen('config.json')                 # the requests that came
        hub.login('hf_mine', role='write')      # a token; with role='write' it may make repos under its name and push to them
"""
import ast
import base64
import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
import select
import socket
import subprocess
import shutil
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

LARGE = '.safetensors', '.bin', '.parquet', '.gz', '.zst'  # kept in LFS, as .gitattributes of a new repo on the hub says
DATE = '2026-01-01T00:00:00.000Z'
ROOT = Path(__file__).parents[1]

@dataclasses.dataclass
class File:
    "A file of a commit."
    path: Path
    size: int
    oid: str     # git's name of its contents
    sha256: str  # LFS's
    lfs: bool

    @property
    def etag(self): return self.sha256 if self.lfs else self.oid

@dataclasses.dataclass
class Repo:
    "A repo's history and who may read it."
    kind: str                                          # models or datasets
    id: str
    gated: bool = False                                # all may see that it is there, but files are for those who were let in
    private: bool = False                              # others do not even see it
    refs: dict = dataclasses.field(default_factory=dict)     # branch or tag -> commit
    tags: set = dataclasses.field(default_factory=set)
    commits: dict = dataclasses.field(default_factory=dict)  # commit -> {path: File}

@dataclasses.dataclass
class Fault:
    "What goes wrong, where, and how often."
    status: int = 0              # answer with this HTTP status; 429 brings its headers along
    cut_after: int | None = None # bytes of a file after which the connection breaks
    delay: float = 0             # seconds before an answer
    silent: bool = False         # accept and never answer
    times: float = math.inf      # the first n requests that it applies to
    each: bool = False           # times counts every path and method by itself
    repo: str = ''               # id; '': everything
    path: str = ''               # a pattern searched in the request's path
    wait: int = 0                # for 429: seconds that the hub asks to wait
    hits: Counter = dataclasses.field(default_factory=Counter)

    def applies(self, method, path, repo):
        "Whether it applies to this request; counts it."
        if self.repo and self.repo != repo or not re.search(self.path, path): return False
        key = (method, path) if self.each else None
        if self.hits[key] >= self.times: return False
        self.hits[key] += 1
        return True

@dataclasses.dataclass
class Request:
    "What came in, and what went out."
    method: str
    path: str
    query: dict
    headers: dict              # lower-case names: those of HEADERS that were sent
    host: str
    status: int | None = None  # None: no answer (yet)
    data: bytes = b''          # what came with it

    def json(self): return json.loads(self.data)

    @property
    def token(self): return self.headers.get('authorization', '').removeprefix('Bearer ') or None

HEADERS = 'authorization', 'range', 'user-agent', 'x-hf-download-counter'

class Refused(Exception):
    "An answer that is no file."
    def __init__(self, status, message, code=None, **headers):
        self.more = {name: headers.pop(name) for name in ('errors', 'url') if name in headers}  # what its JSON says besides
        self.status, self.message, self.headers = status, message, {k.replace('_', '-'): v for k, v in headers.items()}
        if code: self.headers['X-Error-Code'] = code

def read_folder(folder) -> dict:
    "The files of a folder as a commit holds them."
    def read(path):
        data = path.read_bytes()
        oid = hashlib.sha1(b'blob %d\0' % len(data) + data).hexdigest()
        return File(path, len(data), oid, hashlib.sha256(data).hexdigest(), path.suffix in LARGE or len(data) > 10_000_000)
    return {path.relative_to(folder).as_posix(): read(path) for path in sorted(Path(folder).rglob('*')) if path.is_file()}

class Hub:
    "The server, its repos, its faults, and a record of what it was asked."
    def __init__(self):
        self.repos, self.renamed, self.tokens, self.faults, self.requests, self.connections = {}, {}, {}, [], [], set()
        self.users, self.store = {}, Path(tempfile.mkdtemp())  # token -> name, orgs, role; what was pushed, by its sha256
        self.lock, self.healed, self.server = threading.RLock(), threading.Event(), None
        self.socket = self.bound(0)
        self.port = self.socket.getsockname()[1]
        self.url, self.cdn = f'http://127.0.0.1:{self.port}', f'http://localhost:{self.port}'  # two hosts for the libraries, one for us

    @staticmethod
    def bound(port):
        "A socket that has the port, so that nobody else gets it, but refuses connections until it listens."
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(('127.0.0.1', port))
        return sock

    def start(self):
        "Answer from now on."
        server = ThreadingHTTPServer(('127.0.0.1', self.port), type('Handler', (Handler,), {'hub': self}), bind_and_activate=False)
        server.socket.close()
        server.socket, server.daemon_threads = self.socket, True
        server.handle_error = lambda *args: None  # a client that hangs up is no error
        self.socket.listen(128)
        self.server = server
        threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.02), daemon=True).start()
        return self

    def stop(self):
        "The port is closed, as if there were no server; `start` opens it again."
        if not self.server: return
        self.server.shutdown()
        self.server.server_close()
        self.server = None
        self.heal()
        with self.lock: connections, self.connections = self.connections, set()
        for connection in connections:
            with contextlib.suppress(OSError): connection.shutdown(socket.SHUT_RDWR)
        self.socket = self.bound(self.port)

    def __enter__(self): return self.start()
    def __exit__(self, *args):
        self.stop()
        self.socket.close()
        shutil.rmtree(self.store, ignore_errors=True)

    def add(self, kind, repo_id, folder, revision='main', tag=False, gated=None, private=None):
        "Push a folder to a branch or tag of a repo (kind: models or datasets); the commit's sha. gated and private are kept if not given."
        repo = self.repos.setdefault((kind, repo_id), Repo(kind, repo_id))
        files = read_folder(folder)
        sha = hashlib.sha1(json.dumps([kind, repo_id, [(path, file.oid) for path, file in files.items()]]).encode()).hexdigest()
        repo.commits[sha], repo.refs[revision] = files, sha
        if tag: repo.tags.add(revision)
        if gated is not None: repo.gated = gated
        if private is not None: repo.private = private
        return sha

    def rename(self, kind, old, new): self.renamed[kind, old] = new

    def login(self, token, *repos, name='somebody', orgs=(), role='read'):
        "A user's token, and the gated and private repos that are open to it."
        self.tokens[token], self.users[token] = set(repos), dict(name=name, orgs=list(orgs), role=role)
        return token

    def fault(self, **what):
        "Something goes wrong from now on: see Fault."
        fault = Fault(**what)
        with self.lock: self.faults.append(fault)
        return fault

    def heal(self):
        "No faults any more; what waits for an answer is cut off."
        with self.lock: self.faults.clear(); healed, self.healed = self.healed, threading.Event()
        healed.set()

    def seen(self, path='', method=None):
        "Requests whose path matches a pattern."
        with self.lock: return [r for r in self.requests if re.search(path, r.path) and method in (None, r.method)]

    def forget(self):
        "Begin a new record."
        with self.lock: self.requests.clear()

    def environ(self, cache_dir, token=None, offline=False, **more):
        "Environment of a process whose hub this is, with nothing of the caller's: no token, no cache, no proxy, online."
        theirs = re.compile(r'(HF|HUGGING_?FACE|TRANSFORMERS|DATASETS)_|(\w+_PROXY|PYTEST_CURRENT_TEST)$', re.I)
        ours = {k: v for k, v in os.environ.items() if not theirs.match(k)}
        hub = dict(HF_ENDPOINT=self.url, HF_HOME=str(cache_dir), HF_HUB_OFFLINE=str(int(offline)), HF_HUB_DISABLE_XET='1',
                   HF_HUB_DISABLE_TELEMETRY='1', DO_NOT_TRACK='1', NO_PROXY='127.0.0.1,localhost',
                   RES_OPTIONS='timeout:1 attempts:1')  # datasets asks for the address of a host that is not there
        python = dict(OMP_NUM_THREADS='1', TOKENIZERS_PARALLELISM='false', MPLBACKEND='agg',
                      PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / 'tests'), *filter(None, [os.environ.get('PYTHONPATH')])]))
        return {**ours, **hub, **python, **(dict(HF_TOKEN=token) if token else {}), **more}

    def python(self, cache_dir, setup='', **environ): return Python(self.environ(cache_dir, **environ), setup)

    # What follows answers requests

    def find(self, kind, words, token):
        "(repo, words after its name); Refused where this user sees no such repo, or with its new name."
        for n in (2, 1):
            name = '/'.join(words[:n])
            if (kind, name) in self.renamed: raise Refused(307, self.renamed[kind, name], old=name)
            repo = self.repos.get((kind, name))
            if repo and not (repo.private and repo.id not in self.tokens.get(token, ())): return repo, words[n:]
        if token: raise Refused(404, 'Repository not found', 'RepoNotFound')
        raise Refused(401, 'Invalid username or password.', 'RepoNotFound')  # private or not there: strangers are not told

    def may_read(self, repo, token):
        "Refused at a gate."
        if not repo.gated or repo.id in self.tokens.get(token, ()): return
        page = f"{self.url}/{'datasets/' if repo.kind == 'datasets' else ''}{repo.id}"
        what = f"Access to {repo.kind[:-1]} {repo.id} is restricted"
        if token: raise Refused(403, f"{what} and you are not in the authorized list. Visit {page} to ask for access.", 'GatedRepo')
        raise Refused(401, f"{what}. You must have access to it and be authenticated to access it. Please log in.", 'GatedRepo')

    def commit(self, repo, revision):
        "(sha, files) of a branch, a tag or a commit."
        sha = repo.refs.get(revision, revision)
        if sha not in repo.commits: raise Refused(404, f'Invalid rev id: {revision}', 'RevisionNotFound')
        return sha, repo.commits[sha]

    def info(self, repo, revision, blobs):
        "What /api/models/… says of a repo."
        sha, files = self.commit(repo, revision)
        card = re.match(r'---\n(.*?)\n---', files['README.md'].path.read_text(), re.S) if 'README.md' in files else None
        if card:
            import yaml  # only for this
            card = yaml.safe_load(card[1])
        lfs = lambda f: dict(lfs=dict(sha256=f.sha256, size=f.size, pointerSize=130)) if f.lfs else {}
        siblings = [dict(rfilename=path, **(dict(size=f.size, blobId=f.oid, **lfs(f)) if blobs else {})) for path, f in files.items()]
        return dict(_id=sha[:24], id=repo.id, author=repo.id.split('/')[0], sha=sha, lastModified=DATE, createdAt=DATE, tags=[],
                    private=repo.private, gated='auto' if repo.gated else False, disabled=False, cardData=card or {}, siblings=siblings)

    def entries(self, sha, files, expand):
        "path -> what a listing says of it, folders too."
        more = dict(lastCommit=dict(id=sha, title='A commit', date=DATE)) if expand else {}
        listed = {}
        for path, file in files.items():
            lfs = dict(lfs=dict(oid=file.sha256, size=file.size, pointerSize=130)) if file.lfs else {}
            for folder in map(str, list(Path(path).parents)[-2::-1]):
                oid = hashlib.sha1(folder.encode()).hexdigest()
                listed.setdefault(folder, dict(type='directory', oid=oid, size=0, path=folder, **more))
            listed[path] = dict(type='file', oid=file.oid, size=file.size, path=path, **lfs, **more)
        return listed

    def api(self, request, kind, words, body):
        "Answers below /api/models and /api/datasets: JSON, or a File."
        flag = lambda name: request.query.get(name, body.get(name, ['']))[-1].lower() in ('1', 'true')
        repo, words = self.find(kind, words, request.token)
        verb, revision, path = (words + ['', ''])[0] if words else '', words[1] if len(words) > 1 else 'main', '/'.join(words[2:])
        if verb in ('', 'revision'): return self.info(repo, revision, flag('blobs'))
        if verb == 'auth-check': return self.may_read(repo, request.token) or {}
        if verb == 'refs':
            refs = {tagged: [dict(name=name, ref=f"refs/{'tags' if tagged else 'heads'}/{name}", targetCommit=sha)
                             for name, sha in repo.refs.items() if (name in repo.tags) == tagged] for tagged in (False, True)}
            return dict(branches=refs[False], tags=refs[True], converts=[], pullRequests=[])
        sha, files = self.commit(repo, revision)
        if verb == 'preupload':
            self.may_write(repo, request.token)
            mode = lambda file: 'lfs' if Path(file['path']).suffix in LARGE or file['size'] > 10_000_000 else 'regular'
            return dict(files=[dict(path=file['path'], uploadMode=mode(file), shouldIgnore=False, oid=files[file['path']].etag
                                    if file['path'] in files else None)
                               for file in request.json()['files']])
        if verb == 'commit': return self.push(request, repo, revision)
        if verb == 'commits': return [dict(id=sha, title='A commit', message='', date=DATE, authors=[])]
        listed = self.entries(sha, files, flag('expand'))
        if verb == 'paths-info': return [listed[p] for p in body.get('paths', []) if p in listed]
        if verb == 'tree':
            if path and listed.get(path, {}).get('type') != 'directory':
                raise Refused(404, f'{path} does not exist on "{revision}"', 'EntryNotFound')
            inside = [entry for p, entry in listed.items() if not path or p.startswith(path + '/')]
            return [entry for entry in inside if flag('recursive') or '/' not in entry['path'].removeprefix(path + '/' if path else '')]
        raise Refused(404, 'Sorry, we can\'t find the page you are looking for.')

    # and what follows takes what is pushed

    def may_write(self, repo, token):
        "Refused for who does not own the repo, or has a token to read with."
        user = self.users.get(token) or dict(name=None, orgs=[], role='')
        if not token: raise Refused(401, 'Invalid username or password.')
        if repo.id.split('/')[0] not in (user['name'], *user['orgs']) or user['role'] == 'read':
            raise Refused(403, f"Forbidden: you don't have the required permissions to write to {repo.id}.")

    def create(self, request):
        "A new repo, with the file that every new repo has."
        asked, user = request.json(), self.users.get(request.token)
        if not user: raise Refused(401, 'Invalid username or password.')
        repo = Repo('datasets' if asked.get('type') == 'dataset' else 'models',
                    f"{asked.get('organization') or user['name']}/{asked['name']}",
                    private=asked.get('visibility') == 'private' or bool(asked.get('private')))
        self.may_write(repo, request.token)
        url = f"{self.url}/{'datasets/' if repo.kind == 'datasets' else ''}{repo.id}"
        self.tokens[request.token].add(repo.id)
        if (repo.kind, repo.id) in self.repos: raise Refused(409, 'You already created this model repo', url=url)
        self.repos[repo.kind, repo.id] = repo
        self.new_commit(repo, 'main',
                        {'.gitattributes': self.kept(''.join(f'*{suffix} filter=lfs diff=lfs merge=lfs -text\n'
                                                             for suffix in LARGE).encode(), False)})
        return dict(url=url, name=repo.id, id=repo.id)

    def kept(self, data, lfs):
        "A file of these contents, in the store."
        sha256 = hashlib.sha256(data).hexdigest()
        (self.store / sha256).write_bytes(data)
        return File(self.store / sha256, len(data), hashlib.sha1(b'blob %d\0' % len(data) + data).hexdigest(), sha256, lfs)

    def new_commit(self, repo, revision, files):
        sha = hashlib.sha1(json.dumps([repo.kind, repo.id, len(repo.commits),
                                       [(path, file.oid) for path, file in files.items()]]).encode()).hexdigest()
        repo.commits[sha], repo.refs[revision] = files, sha
        return sha

    def lfs(self, request, repo, verb):
        "Where large files are to be put, and whether they have come whole."
        self.may_write(repo, request.token)
        asked = request.json()
        if verb == 'verify':
            path = self.store / asked['oid']
            if not path.exists() or path.stat().st_size != asked['size']: raise Refused(422, 'The object is not there, or not whole')
            return {}
        def answer(one):
            if (self.store / one['oid']).exists(): return one  # it is here already
            verify = f"{self.url}/{repo.id}.git/info/lfs/objects/verify"
            return dict(one, authenticated=True, actions=dict(upload=dict(href=f"{self.cdn}/lfs/{one['oid']}?Signature=abc", header={}),
                                                              verify=dict(href=verify, header={})))
        return dict(transfer='basic', objects=[answer(one) for one in asked['objects']])

    def receive(self, oid, data):
        if hashlib.sha256(data).hexdigest() != oid: raise Refused(400, 'The contents are not what they were said to be')
        self.kept(data, True)
        return {}

    def push(self, request, repo, revision):
        "A commit on a branch: lines of JSON, of which the first describes it."
        self.may_write(repo, request.token)
        lines = [json.loads(line) for line in request.data.splitlines() if line.strip()]
        assert lines[0]['key'] == 'header' and lines[0]['value']['summary']
        files = dict(self.commit(repo, revision)[1])
        for line in lines[1:]:
            value = line['value']
            if line['key'] == 'file': files[value['path']] = self.kept(base64.b64decode(value['content']), False)
            elif line['key'] == 'lfsFile':
                if not (self.store / value['oid']).exists():
                    raise Refused(400, f"LFS pointer pointed to a file that does not exist: {value['path']}")
                files[value['path']] = self.kept((self.store / value['oid']).read_bytes(), True)
            elif line['key'] == 'deletedFile': del files[value['path']]
            else: raise Refused(400, f"unknown operation {line['key']}")
        sha = self.new_commit(repo, revision, files)
        return dict(success=True, commitOid=sha, commitUrl=f'{self.url}/{repo.id}/commit/{sha}', hookOutput='')

    def validate(self, content):
        "What the hub has against a card's metadata: ids that are none, lists that are none."
        import yaml
        from huggingface_hub.utils import validate_repo_id
        wrong, found = [], re.match(r'---\n(.*?)\n---', content, re.S)
        try: card = yaml.safe_load(found[1]) if found else {}
        except yaml.YAMLError as error: raise Refused(400, str(error), errors=[dict(message=str(error))])
        for key in ('base_model', 'datasets'):
            for name in [card[key]] if isinstance(card.get(key), str) else card.get(key) or []:
                try: validate_repo_id(name)
                except ValueError: wrong.append(f'"{key}" with value "{name}" is not valid')
        if not all(isinstance(tag, str) for tag in card.get('tags') or []): wrong.append('"tags" must be an array of strings')
        if not isinstance(card.get('library_name', ''), str): wrong.append('"library_name" must be a string')
        if wrong: raise Refused(400, '; '.join(wrong), errors=[dict(message=message) for message in wrong])
        return dict(errors=[], warnings=[])

    def resolve(self, request, kind, repo, words):
        "Where a file of a revision is to be had."
        revision, path = words[0], '/'.join(words[1:])
        self.may_read(repo, request.token)
        sha, files = self.commit(repo, revision)
        if path not in files: raise Refused(404, 'Entry not found', 'EntryNotFound', X_Repo_Commit=sha)
        file, where = files[path], quote(f'{kind}/{repo.id}/{sha}/{path}')
        etag = f'"{file.etag}"'
        about = dict(X_Repo_Commit=sha, Accept_Ranges='bytes', X_Linked_Size=str(file.size), X_Linked_ETag=etag, ETag=etag)
        if file.lfs: raise Refused(302, 'Found. Redirecting', Location=f'{self.cdn}/cdn/{where}?Signature=abc', **about)
        raise Refused(307, 'Temporary Redirect', Location=f'/api/resolve-cache/{where}?etag=%22{file.etag}%22', **about)

    def answer(self, request, words, body):
        "JSON, or (File, headers); Refused for everything else."
        if request.token and words[0] != 'cdn' and request.token not in self.tokens:
            raise Refused(401, 'Invalid credentials in Authorization header')
        if words[0] == 'cdn' or words[:2] == ['api', 'resolve-cache']:  # the first needs no login: its address is the ticket
            kind, *words = words[1 + (words[0] == 'api'):]
            repo = next(repo for repo in self.repos.values() if repo.kind == kind and words[:repo.id.count('/') + 1] == repo.id.split('/'))
            if request.path.startswith('/api'): self.may_read(repo, request.token)
            sha, *path = words[repo.id.count('/') + 1:]
            file = repo.commits[sha]['/'.join(path)]
            return file, dict(ETag=f'"{file.etag}"', X_Repo_Commit=sha, Accept_Ranges='bytes')
        if words[0] == 'api' and words[1:2] and words[1] in ('models', 'datasets'): return self.api(request, words[1], words[2:], body)
        if words[:2] == ['api', 'whoami-v2']:
            if not request.token: raise Refused(401, 'Invalid username or password.')
            user = self.users[request.token]
            return dict(type='user', name=user['name'], fullname='Some Body', orgs=[dict(name=org, type='org') for org in user['orgs']],
                        auth=dict(type='access_token', accessToken=dict(displayName='mine', role=user['role'])))
        if words[:2] == ['api', 'validate-yaml']: return self.validate(request.json()['content'])
        if words[:3] == ['api', 'repos', 'create']: return self.create(request)
        if words[:1] == ['lfs'] and request.method == 'PUT': return self.receive(words[1], request.data)
        if words[-4:-2] == ['info', 'lfs'] or words[-3:-1] == ['info', 'lfs']:
            kind = 'datasets' if words[0] == 'datasets' else 'models'
            repo, _ = self.find(kind, [word.removesuffix('.git') for word in words[kind == 'datasets':]], request.token)
            return self.lfs(request, repo, words[-1])
        if words[:2] == ['api', 'telemetry']: return {}
        kind = 'datasets' if words[0] == 'datasets' else 'models'
        repo, rest = self.find(kind, words[kind == 'datasets':], request.token)
        if rest[:1] in (['resolve'], ['raw']) and len(rest) > 2: return self.resolve(request, kind, repo, rest[1:])
        raise Refused(404, 'Sorry, we can\'t find the page you are looking for.')

    def repo_of(self, words):
        "The id of the repo that a path speaks of, or ''."
        words = [word for word in words if word not in ('api', 'cdn', 'resolve-cache', 'models', 'datasets')]
        ids = {repo_id for _, repo_id in [*self.repos, *self.renamed]}
        return next((self.renamed.get(('datasets', name), self.renamed.get(('models', name), name))
                     for name in ('/'.join(words[:2]), '/'.join(words[:1])) if name in ids), '/'.join(words[:2]))

class Handler(BaseHTTPRequestHandler):
    "One connection to the hub."
    protocol_version, hub = 'HTTP/1.1', None
    def log_message(self, *args): pass
    def setup(self):
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self.hub.lock: self.hub.connections.add(self.connection)
    def finish(self):
        with self.hub.lock: self.hub.connections.discard(self.connection)
        super().finish()

    def handle_request(self):
        hub, url = self.hub, urlsplit(self.path)
        posted = (self.read_chunks() if 'chunked' in self.headers.get('Transfer-Encoding', '')
                  else self.rfile.read(int(self.headers.get('Content-Length') or 0)))
        body = parse_qs(posted.decode()) if 'form' in self.headers.get('Content-Type', '') else {}
        kept = {name: self.headers[name] for name in HEADERS if name in self.headers}
        request = self.request_seen = Request(self.command, unquote(url.path), parse_qs(url.query), kept,
                                              self.headers.get('Host', ''), data=posted)
        words = [unquote(word) for word in url.path.strip('/').split('/')]
        with hub.lock:
            hub.requests.append(request)
            repo, healed = hub.repo_of(words), hub.healed
            faults = [fault for fault in hub.faults if fault.applies(request.method, request.path, repo)]
        self.cut = min((f.cut_after for f in faults if f.cut_after is not None), default=None)
        healed.wait(sum(f.delay for f in faults))
        if any(f.silent for f in faults):
            healed.wait()
            self.close_connection = True
            return
        try:
            for fault in faults: self.refuse_for_now(fault)
            said = hub.answer(request, words, body)
            if isinstance(said, tuple): self.send_file(*said)
            else: self.send(200, json.dumps(said).encode(), Content_Type='application/json')
        except Refused as refused:
            self.refuse(refused, url)
        except OSError: self.close_connection = True  # the client has gone
        except Exception as error:  # a fault of ours: tell the test
            self.send(500, json.dumps(dict(error=''.join(traceback.format_exception(error)))).encode(), Content_Type='application/json')
    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def read_chunks(self):
        "A body whose length is told piece by piece."
        data = b''
        while size := int(self.rfile.readline().split(b';')[0], 16): data += self.rfile.read(size + 2)[:-2]
        self.rfile.readline()
        return data

    def refuse_for_now(self, fault):
        if not fault.status: return
        if fault.status != 429: raise Refused(fault.status, self.responses[fault.status][0])
        wait, policy = fault.wait, '"fixed window";"api";q=500;w=300'
        raise Refused(429, 'We had to rate limit you.', Retry_After=str(wait), RateLimit=f'"api";r=0;t={wait}', RateLimit_Policy=policy)

    def refuse(self, refused, url):
        headers = refused.headers
        if 'old' in headers:  # a repo with a new name: the same path with it
            old, new = headers.pop('old'), refused.message
            headers['Location'] = re.sub(f'/{re.escape(old)}(?=/|$)', f'/{new}', url.path, count=1) + (f'?{url.query}' if url.query else '')
        elif refused.status >= 400: headers['X-Error-Message'] = refused.message
        if refused.status == 401: headers['WWW-Authenticate'] = 'Bearer realm="Authentication required"'
        api = self.path.startswith('/api/')
        said = json.dumps(dict(error=refused.message, **refused.more)) if api else refused.message
        self.send(refused.status, said.encode(), Content_Type='application/json' if api else 'text/plain', **headers)

    def send_file(self, file, headers):
        data, status = file.path.read_bytes(), 200
        wanted = re.fullmatch(r'bytes=(\d*)-(\d*)', self.headers.get('Range', ''))
        if wanted:
            start = int(wanted[1]) if wanted[1] else max(0, len(data) - int(wanted[2]))
            end = min(int(wanted[2]) + 1 if wanted[1] and wanted[2] else len(data), len(data))
            if start >= end: return self.send(416, b'', Content_Range=f'bytes */{len(data)}')
            status, headers, data = 206, dict(headers, Content_Range=f'bytes {start}-{end - 1}/{len(data)}'), data[start:end]
        self.send(status, data, cut=self.cut, Content_Type='application/octet-stream', **headers)

    def send(self, status, data, cut=None, **headers):
        self.request_seen.status = status
        self.send_response(status)
        request_id = f'Root=1-{uuid.uuid4().hex[:8]}-{uuid.uuid4().hex[:24]}'
        for name, value in dict(headers, Content_Length=str(len(data)), X_Request_Id=request_id).items():
            self.send_header(name.replace('_', '-'), value)
        self.end_headers()
        if self.command == 'HEAD': return
        if cut is None or cut >= len(data): self.wfile.write(data); return
        self.wfile.write(data[:cut])
        self.wfile.flush()
        self.close_connection = True
        with contextlib.suppress(OSError): self.connection.shutdown(socket.SHUT_RDWR)

@dataclasses.dataclass
class Done:
    "What came of a piece of code."
    value: object     # of its last expression, through JSON
    error: str        # the exception's type; '': none
    kinds: list       # that type's and its bases' names
    message: str      # of the exception
    out: str
    err: str
    seconds: float

    def check(self):
        assert not self.error, f'{self.error}: {self.message}\n{self.err}'
        return self

class Python:
    "A process that runs one piece of code after another: slow imports are paid once for many cases. One that hung or died begins anew."
    def __init__(self, environ, setup=''):
        self.environ, self.setup, self.process = environ, setup, None

    def start(self):
        self.close()
        self.errors, home = tempfile.TemporaryFile(), Path(self.environ['HF_HOME'])
        home.mkdir(parents=True, exist_ok=True)  # its folder, too: no repo's name is a folder there
        self.process = subprocess.Popen([sys.executable, '-X', 'faulthandler', Path(__file__).resolve()], cwd=home, env=self.environ,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors)
        if not self.setup: return
        try: self.run(self.setup).check()
        except AssertionError: self.close(); raise

    def close(self):
        if not self.process: return
        self.process.kill()
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.errors): file.close()
        self.process = None

    def run(self, code, timeout=240):
        "Run code and wait for it. The time limit is for what hangs."
        if not self.process or self.process.poll() is not None: self.start()
        self.process.stdin.write(json.dumps(code).encode() + b'\n')
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], timeout)
        line = self.process.stdout.readline() if ready else b''
        if line: return Done(**json.loads(line))
        if not ready: self.process.kill()
        code_of_exit = self.process.wait()
        self.errors.seek(0)
        what = f'it died ({code_of_exit})' if ready else f'no end after {timeout} s'
        raise AssertionError(f"{what}: {code}\n{self.errors.read().decode(errors='replace')[-4000:]}")

    def __enter__(self): return self
    def __exit__(self, *args): self.close()

def serve():
    "The process's side of Python: code comes in as lines of JSON, a Done goes out for each."
    back, names = os.fdopen(os.dup(1), 'w'), {'__name__': 'served'}
    os.dup2(2, 1)
    for line in sys.stdin:
        code, done, began = ast.parse(json.loads(line)), dict(value=None, error='', kinds=[], message=''), time.monotonic()
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            kept = [os.dup(fd) for fd in (1, 2)]
            os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2)  # not sys.stderr: libraries keep the one that they have seen
            try:
                last = code.body.pop() if code.body and isinstance(code.body[-1], ast.Expr) else None
                exec(compile(code, '<served>', 'exec'), names)
                if last: done['value'] = eval(compile(ast.Expression(last.value), '<served>', 'eval'), names)
            except BaseException as error:
                done.update(error=type(error).__name__, kinds=[kind.__name__ for kind in type(error).__mro__], message=str(error))
                traceback.print_exc()
            sys.stdout.flush(), sys.stderr.flush()
            os.dup2(kept[0], 1), os.dup2(kept[1], 2), os.close(kept[0]), os.close(kept[1])
            out.seek(0), err.seek(0)
            done.update(out=out.read().decode(errors='replace'), err=err.read().decode(errors='replace'), seconds=time.monotonic() - began)
        print(json.dumps(done, default=str), file=back, flush=True)

if __name__ == '__main__': serve()
