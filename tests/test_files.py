"What people have on their disks: each file here was met somewhere, and is one of its kind."
import bz2
import csv
import gzip
import json
import lzma
import shutil

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdkit.data import DataError, load_text, read_corpus
from kdkit.files import encoding_of, form_of, pick_split

TEXTS = [f'The {a} was near the {b}, and on day {i} nobody asked why.'
         for i, (a, b) in enumerate((a, b) for a in 'river stone market'.split() for b in 'window letter garden'.split())]
TALK = [dict(role='user', content=text) for text in TEXTS[:2]]


@pytest.fixture(autouse=True)
def quiet(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path_factory.mktemp('cache'))
    datasets.disable_progress_bars()


def jsonl(path, rows): path.write_text('\n'.join(json.dumps(row) for row in rows))


def table(path, texts, column='text', **more):
    frame = pd.DataFrame({column: texts, **more})
    return {'.csv': lambda: frame.to_csv(path, index=False), '.tsv': lambda: frame.to_csv(path, index=False, sep='\t'),
            '.parquet': lambda: frame.to_parquet(path)}[path.suffix]()


def save(path, text, encoding='utf-8'): path.write_bytes(text.encode(encoding))


def packed(opener):
    def write(path):
        with opener(path, 'wt', encoding='utf-8') as file: file.write('\n'.join(json.dumps(dict(text=text)) for text in TEXTS))
    return write


def zst(path):
    import zstandard
    path.write_bytes(zstandard.compress('\n\n'.join(TEXTS).encode()))


def saved(path, splits=None):
    rows = lambda texts: datasets.Dataset.from_dict(dict(text=texts))
    (datasets.DatasetDict({name: rows(texts) for name, texts in splits.items()}) if splits else rows(TEXTS)).save_to_disk(path)


def folder(**files):
    "A writer of a folder; its files' names have __ for a dot and ___ for a slash."
    def write(path):
        for name, make in files.items():
            file = path / name.replace('___', '/').replace('__', '.')
            file.parent.mkdir(parents=True, exist_ok=True)
            make(file) if callable(make) else file.write_text(make)
    return write


def kaggle(path):
    table(path / 'data.csv', TEXTS)
    (path / 'dataset-metadata.json').write_text(json.dumps(dict(title='My set', id='u/s', licenses=[dict(name='CC0')])))


def hub_clone(path):
    (path / 'data').mkdir()
    table(path / 'data' / 'train-00000-of-00001.parquet', TEXTS)
    (path / 'dataset_infos.json').write_text(json.dumps(dict(default=dict(description='d'))))
    (path / 'README.md').write_text('---\nlicense: mit\n---\n# A set\n\nIt has texts.')
    (path / '.gitattributes').write_text('*.parquet filter=lfs')


def views(path): pq.write_table(pa.table({'text': pa.array(TEXTS, pa.string_view()), 'n': range(len(TEXTS))}), path)


def ipc(path):
    with pa.OSFile(str(path), 'wb') as sink, pa.ipc.new_stream(sink, pa.schema([('text', pa.string())])) as out:
        out.write_table(pa.table({'text': TEXTS}))


NA = ['None', 'null', 'NA', 'nan', 'N/A', '', '<NA>']
READ = {  # name of the file -> (how it is written, the documents that are wanted, in any order)
    'plain.jsonl': (lambda p: jsonl(p, [dict(text=t) for t in TEXTS]), TEXTS),
    'mark.jsonl': (lambda p: save(p, '\n'.join(json.dumps(dict(text=t)) for t in TEXTS), 'utf-8-sig'), TEXTS),
    'list.json': (lambda p: p.write_text(json.dumps([dict(text=t) for t in TEXTS])), TEXTS),
    'list_over_lines.json': (lambda p: p.write_text(json.dumps([dict(text=t) for t in TEXTS], indent=2)), TEXTS),
    'under_a_key.json': (lambda p: p.write_text(json.dumps(dict(version='1', data=[dict(text=t) for t in TEXTS]))), TEXTS),
    'under_a_key_over_lines.json': (lambda p: p.write_text(json.dumps(dict(version='1',
                                                                           rows=[dict(text=t, id=i) for i, t in enumerate(TEXTS)]),
                                                                           indent=1)), TEXTS),
    'lines_in.json': (lambda p: jsonl(p, [dict(text=t, meta=dict(a=1)) for t in TEXTS]), TEXTS),
    'newline_delimited.ndjson': (lambda p: jsonl(p, [dict(text=t) for t in TEXTS]), TEXTS),
    'na.csv': (lambda p: table(p, TEXTS + NA), TEXTS + [t for t in NA if t]),
    'numbers.csv': (lambda p: table(p, TEXTS + ['1984', '3.14']), TEXTS + ['1984', '3.14']),
    'id_and_text.csv': (lambda p: table(p, TEXTS, id=[f'doc-{i}' for i in range(len(TEXTS))]), TEXTS),
    'mark.csv': (lambda p: save(p, pd.DataFrame(dict(text=TEXTS)).to_csv(index=False), 'utf-8-sig'), TEXTS),
    'windows.csv': (lambda p: save(p, pd.DataFrame(dict(text=TEXTS)).to_csv(index=False), 'utf-16'), TEXTS),
    'content.csv': (lambda p: table(p, TEXTS, 'content', id=range(len(TEXTS))), TEXTS),
    'tabs.tsv': (lambda p: table(p, TEXTS), TEXTS),
    'rows.parquet': (lambda p: table(p, TEXTS, n=range(len(TEXTS))), TEXTS),
    'views.parquet': (views, TEXTS),
    'stream.arrow': (ipc, TEXTS),
    'packed.jsonl.gz': (packed(gzip.open), TEXTS),
    'packed.jsonl.bz2': (packed(bz2.open), TEXTS),
    'packed.jsonl.xz': (packed(lzma.open), TEXTS),
    'paragraphs.txt': (lambda p: p.write_text('\n\n'.join(TEXTS)), TEXTS),
    'paragraphs_windows.txt': (lambda p: p.write_bytes('\r\n\r\n'.join(TEXTS).encode()), TEXTS),
    'lines.txt': (lambda p: p.write_text('\n'.join(TEXTS)), TEXTS),
    'mark.txt': (lambda p: save(p, '\n\n'.join(TEXTS), 'utf-8-sig'), TEXTS),
    'utf16.txt': (lambda p: save(p, '\n\n'.join(TEXTS), 'utf-16'), TEXTS),
    'utf16_without_mark.txt': (lambda p: save(p, '\n\n'.join(TEXTS), 'utf-16-le'), TEXTS),
    'notes.md': (lambda p: p.write_text('\n\n'.join(TEXTS)), TEXTS),
    'UPPER.TXT': (lambda p: p.write_text('\n\n'.join(TEXTS)), TEXTS),
    'a name with spaces, and (brackets).txt': (lambda p: p.write_text('\n\n'.join(TEXTS)), TEXTS),
    'saved/': (saved, TEXTS),
    'saved_splits/': (lambda p: saved(p, dict(train=TEXTS, test=TEXTS[:2])), TEXTS),
    'kaggle/': (kaggle, TEXTS),
    'hub_clone/': (hub_clone, TEXTS),
    'notes_only/': (folder(a__md=TEXTS[0], b__md=TEXTS[1], README__md='About these notes.'), TEXTS[:2]),
    'text_beside_notes/': (folder(a__txt='\n\n'.join(TEXTS), notes__md='mine', LICENSE__txt='MIT', cover__png='x'), TEXTS),
    'mixed/': (lambda p: (jsonl(p / 'a.jsonl', [dict(text=t) for t in TEXTS[:3]]), table(p / 'b.csv', TEXTS[3:6]),
                          table(p / 'c.parquet', TEXTS[6:])), TEXTS),
    'settings_beside/': (folder(data__jsonl=lambda p: jsonl(p, [dict(text=t) for t in TEXTS]),
                                config__json=json.dumps(dict(name='x', size=3))), TEXTS),
    'settings_over_lines/': (folder(data__csv=lambda p: table(p, TEXTS), notes__json=json.dumps(dict(text_field='text', n=1), indent=2)),
                             TEXTS),
    'hidden/': (folder(a__txt='\n\n'.join(TEXTS), __ipynb_checkpoints___b__txt='no', __git___c__txt='no'), TEXTS),
}


@pytest.mark.parametrize('name', READ)
def test_a_file_is_read_as_it_is_meant(tmp_path, name):
    write, wanted = READ[name]
    path = tmp_path / name
    if name.endswith('/'): path.mkdir()
    write(path)
    corpus = read_corpus(str(path))
    assert sorted(corpus.text['text']) == sorted(wanted), str(corpus)
    assert '\n' not in str(corpus) and f'{len(wanted)} documents' in str(corpus)


def test_what_zstd_packs(tmp_path):
    pytest.importorskip('zstandard')
    zst(tmp_path / 'packed.txt.zst')
    assert load_text(str(tmp_path / 'packed.txt.zst'))['text'] == TEXTS


def test_without_the_package_zstd_needs_is_one_sentence(tmp_path):
    try: import zstandard  # noqa: F401
    except ImportError:
        (tmp_path / 'packed.txt.zst').write_bytes(b'\x28\xb5\x2f\xfd')
        with pytest.raises(DataError, match='install the package zstandard'): load_text(str(tmp_path / 'packed.txt.zst'))


SQUAD = dict(version='1.1', data=[dict(title='Tea', paragraphs=[dict(context=TEXTS[0], qas=[])])])
REFUSED = {  # name of the file -> (how it is written, words of the one sentence)
    'unanswered.jsonl': (lambda p: jsonl(p, [{'id': f'conv-{i}', 'conversations': [{'from': 'human', 'value': t}]}
                                             for i, t in enumerate(TEXTS)]), ['no conversation', 'no answer']),
    'roles.jsonl': (lambda p: jsonl(p, [dict(messages=[dict(role='narrator', content='Once')], source='set-a')] * 3),
                    ["3 with unknown role 'narrator'"]),
    'preferences.jsonl': (lambda p: jsonl(p, [dict(chosen=TALK, rejected=TALK, id='a')]), ['chosen and rejected']),
    'ids.jsonl': (lambda p: jsonl(p, [dict(id=f'doc-{i}', n=i) for i in range(9)]), ['id, n', 'text_column']),
    'labels.csv': (lambda p: table(p, ['yes', 'no'] * 5, 'content'), ['content', 'bytes on average']),
    'squad.json': (lambda p: p.write_text(json.dumps(SQUAD)), ['title, paragraphs', 'text_column']),
    'squad_lines.json': (lambda p: p.write_text(json.dumps(SQUAD, indent=1)), ['title, paragraphs', 'text_column']),
    'number.jsonl': (lambda p: jsonl(p, [dict(text=5)]), ['text']),
    'nested.jsonl': (lambda p: jsonl(p, [dict(text=dict(en='a'))]), ['text']),
    'latin1.txt': (lambda p: save(p, 'Café, déjà vu. ' * 9, 'latin-1'), ['not UTF-8', 'iconv']),
    'binary.txt': (lambda p: p.write_bytes(bytes(range(256)) * 4), ['no text']),
    'utf16.jsonl': (lambda p: save(p, json.dumps(dict(text=TEXTS[0])), 'utf-16'), ['UTF-16', 'UTF-8']),
    'archive.zip': (lambda p: shutil.make_archive(str(p.with_suffix('')), 'zip', p.parent, '.'), ['archive', 'unpack']),
    'archive_in_a_folder/': (folder(data__zip='PK'), ['archive', 'unpack']),
    'pictures/': (folder(a__png='x', b__jpg='y'), ['nothing to read', '.jsonl']),
    'half.parquet': (lambda p: (table(p, TEXTS), p.write_bytes(p.read_bytes()[:-40])), ['could not be read']),
    'pointer.parquet': (lambda p: p.write_text('version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 1234\n'),
                        ['Git LFS', 'git lfs pull']),
    'pointer.txt': (lambda p: p.write_text('version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 1234\n'),
                    ['Git LFS', 'git lfs pull']),
    'ragged.csv': (lambda p: p.write_text('text,n\nok,1\nno, really,2,3,4\n'), ['could not be read']),
    'other_columns/': (lambda p: (jsonl(p / 'a.jsonl', [dict(text='a')]), jsonl(p / 'b.jsonl', [dict(body='b', n=1)])),
                       ['could not be read', 'columns']),
    'blank.jsonl': (lambda p: jsonl(p, [dict(text=' '), dict(text=None)]), ['every row is empty']),
    'program.bin': (lambda p: p.write_bytes(b'abc'), ['nothing to read']),
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_cannot_be_told_is_one_sentence(tmp_path, name):
    write, words = REFUSED[name]
    path = tmp_path / name
    if name.endswith('/'): path.mkdir()
    write(path)
    with pytest.raises(DataError) as error: load_text(str(path))
    said = str(error.value)
    assert '\n' not in said and name.strip('/') in said and all(word in said for word in words), said
    assert len(said) < 700


PARTS = dict(train=TEXTS[:5], valid=['VALID ' + t for t in TEXTS[5:7]], test=['TEST ' + t for t in TEXTS[7:]])
SPLITS = {  # folder -> (files, what train reads, what validation reads): names of PARTS
    'txt': (dict(train='train.txt', valid='valid.txt', test='test.txt'), 'train', 'valid'),
    'dev': (dict(train='train.jsonl', valid='dev.jsonl'), 'train', 'valid'),
    'val': (dict(train='my_train_v2.csv', valid='my_val_v2.csv'), 'train', 'valid'),
    'folders': (dict(train='train/part-0.parquet', valid='validation/part-0.parquet'), 'train', 'valid'),
    'eval_folder': (dict(train='a.txt', valid='eval/a.txt'), 'train', 'valid'),
    'only_test': (dict(train='train.txt', test='test.txt'), 'train', 'test'),
    'shards': (dict(train='train-00000-of-00001.parquet', valid='validation-00000-of-00001.parquet'), 'train', 'valid'),
}


def write_part(path, texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == '.txt': path.write_text('\n\n'.join(texts))
    elif path.suffix == '.jsonl': jsonl(path, [dict(text=text) for text in texts])
    else: table(path, texts)


@pytest.mark.parametrize('name', SPLITS)
def test_measuring_never_reads_the_training_text(tmp_path, name):
    files, train, validation = SPLITS[name]
    for part, file in files.items(): write_part(tmp_path / file, PARTS[part])
    assert sorted(load_text(str(tmp_path))['text']) == sorted(PARTS[train])
    assert sorted(load_text(str(tmp_path), 'validation')['text']) == sorted(PARTS[validation])


def test_saved_splits(tmp_path):
    saved(tmp_path / 's', dict(train=PARTS['train'], dev=PARTS['valid']))
    assert load_text(str(tmp_path / 's'))['text'] == PARTS['train'] and load_text(str(tmp_path / 's'),
                                                                                  'validation')['text'] == PARTS['valid']
    saved(tmp_path / 'odd', dict(train_sft=PARTS['train'], train_gen=PARTS['valid']))
    with pytest.raises(DataError, match='train_sft, train_gen'): load_text(str(tmp_path / 'odd'))
    assert load_text(f"{tmp_path / 'odd'}[train_gen]")['text'] == PARTS['valid']


def test_slices_and_first_documents(tmp_path):
    path = tmp_path / 'a.jsonl'
    jsonl(path, [dict(text=text) for text in TEXTS])
    assert load_text(f'{path}[:3]')['text'] == TEXTS[:3] == load_text(str(path),
                                                                      max_documents=3)['text'] == load_text(str(path), 'train[:3]')['text']
    assert load_text(f'{path}[train[2:4]]')['text'] == TEXTS[2:4] and load_text(f'{path}[-2:]')['text'] == TEXTS[-2:]
    with pytest.raises(DataError, match='no slice'): read_corpus(f'{path}[3:]', streaming=True)
    assert [t for b, _ in read_corpus(f'{path}[:3]', streaming=True).text.blocks() for t in b['text']] == TEXTS[:3]


@pytest.mark.parametrize('name', [name for name in READ if not name.startswith(('saved', 'under_a_key'))])
def test_a_stream_reads_the_same(tmp_path, name):
    write, wanted = READ[name]
    path = tmp_path / name
    if name.endswith('/'): path.mkdir()
    write(path)
    stream = read_corpus(str(path), streaming=True).text
    assert sorted(text for block, _ in stream.blocks() for text in block['text']) == sorted(wanted)


def test_the_form_of_documents_can_be_told(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_text('One.\nTwo.\n\nThree.')
    assert [len(load_text(str(path), documents_by=form)) for form in ('auto', 'paragraph', 'line', 'file')] == [2, 2, 3, 1]


@pytest.mark.parametrize('text, form', [
    ('A single line', 'file'), ('', 'file'), ('One.\nTwo.\n', 'line'), ('One.\n\nTwo.', 'paragraph'), ('One.\r\n \r\nTwo.', 'paragraph'),
    ('One.\n\n\n', 'file'),
    ('\n'.join(f'tweet number {"x" * (i * 7 % 60)}' for i in range(30)), 'line'), ('这是第一句。\n这是第二句。', 'line'),
    ('\n'.join(['the quick brown fox jumps over the lazy dog and goes on and'] * 30), 'file'),
    ('if x:\n    y = 1\nelse:\n    y = 2', 'file'),
])
def test_form_of(text, form): assert form_of(text) == form


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be', 'utf-32'])
@pytest.mark.parametrize('text', ['Plain ASCII.', 'Grüße', 'Русский текст, и ещё немного.', '日本語の文章。\nOK\n', 'x' * 5000 + '日本'])
def test_encodings(text, encoding): assert encoding_of(text.encode(encoding)) == encoding


@pytest.mark.parametrize('names, train, validation', [
    (['train', 'test'], 'train', 'test'), (['train', 'validation', 'test'], 'train', 'validation'),
    (['train_sft', 'test_sft'], 'train_sft', 'test_sft'), (['train'], 'train', None),
    (['training', 'dev'], 'training', 'dev'), (['train', 'validation_matched', 'validation_mismatched'], 'train', 'validation_matched'),
    (['train_a', 'train_b'], None, None), ([], None, None),
])
def test_pick_split(names, train, validation): assert (pick_split(names, 'train'), pick_split(names, 'validation')) == (train, validation)
