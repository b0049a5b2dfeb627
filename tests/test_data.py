"Corpora: every file and name becomes documents, and every mistake a sentence."
import time

import datasets
import huggingface_hub
import pandas as pd
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings, strategies as st

from kdkit.data import DataError, are_lines, hold_out, load_text, read_corpus

@pytest.fixture(autouse=True)
def quiet(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'cache')
    datasets.disable_progress_bars()

def rows(n=3): return [f'Document {i}.\nIt has two lines.' for i in range(n)]

def test_every_format(tmp_path):
    texts, folder = rows(), tmp_path / 'mixed'
    folder.mkdir()
    frame = pd.DataFrame({'text': texts, 'label': [1, 2, 3]})
    frame.to_csv(folder / 'a.csv', index=False)
    frame.to_parquet(folder / 'b.parquet')
    frame.to_json(folder / 'c.jsonl', orient='records', lines=True)
    frame.to_json(folder / 'd.json', orient='records')
    (folder / 'notes.md').write_text('not read')
    for file in sorted(folder.iterdir())[:4]: assert load_text(str(file), cache_dir=str(tmp_path))['text'] == texts, file
    assert sorted(load_text(str(folder), cache_dir=str(tmp_path))['text']) == sorted(texts * 4)

def test_text_files_are_documents_or_paragraphs(tmp_path):
    for i in range(20): (tmp_path / f'{i:02}.txt').write_text(f'File {i}.\n\nSame file.\n')
    assert load_text(str(tmp_path), cache_dir=str(tmp_path / 'c'))['text'] == [f'File {i}.\n\nSame file.\n' for i in range(20)]
    (tmp_path / 'few.txt').write_bytes(b'One\r\nstill one\r\n\r\nTwo\n \n\n  Three\n')
    assert load_text(str(tmp_path / 'few.txt'), cache_dir=str(tmp_path / 'c'))['text'] == ['One\r\nstill one', 'Two', '  Three'] or \
        load_text(str(tmp_path / 'few.txt'), cache_dir=str(tmp_path / 'c'))['text'] == ['One\nstill one', 'Two', '  Three']

@pytest.mark.parametrize('n, says', [(1, ': 1 document ('), (2, ': 2 documents (')])
def test_how_many_is_said_as_one_says_it(tmp_path, n, says):
    pd.DataFrame(dict(text=rows(n))).to_csv(tmp_path / 'a.csv', index=False)
    assert says in str(read_corpus(str(tmp_path / 'a.csv')))

def test_a_folder_with_splits(tmp_path):
    for split in ('train', 'validation', 'test'):
        pd.DataFrame({'text': [f'{split} text']}).to_parquet(tmp_path / f'{split}-00000-of-00001.parquet')
    for split in ('train', 'validation', 'test'):
        assert load_text(str(tmp_path), split, cache_dir=str(tmp_path / 'c'))['text'] == [f'{split} text']

def test_text_column(tmp_path):
    pd.DataFrame({'remarks': ['x y'], 'n': [1]}).to_parquet(tmp_path / 'one.parquet')
    assert load_text(str(tmp_path / 'one.parquet'), text_column='remarks')['text'] == ['x y']
    # never because it is the only one
    with pytest.raises(DataError, match="columns remarks, n.*for example 'remarks'"): load_text(str(tmp_path / 'one.parquet'))
    pd.DataFrame({'remarks': ['x y'], 'title': ['t']}).to_parquet(tmp_path / 'two.parquet')
    assert load_text(str(tmp_path / 'two.parquet'), text_column='title')['text'] == ['t']
    with pytest.raises(DataError, match='columns remarks, title'): load_text(str(tmp_path / 'two.parquet'))
    with pytest.raises(DataError, match="'remark' is not one of them. Did you mean 'remarks'"):
        load_text(str(tmp_path / 'two.parquet'), text_column='remark')
    with pytest.raises(DataError, match="'n' holds int"): load_text(str(tmp_path / 'one.parquet'), text_column='n')

def test_empty_rows_are_dropped(tmp_path):
    (tmp_path / 'a.jsonl').write_text('{"text": "a"}\n{"text": ""}\n{"text": null}\n{"text": " \\n"}\n{"text": "b"}\n')
    assert load_text(str(tmp_path / 'a.jsonl'))['text'] == ['a', 'b']

@pytest.mark.parametrize('name, content', [('a.json', b'{"text": '), ('a.jsonl', b'not json'), ('a.csv', b''), ('a.parquet', b'PAR?'),
                                           ('a.txt', b''), ('a.txt', b' \n\n '),
                                           ('a.jsonl', b''), ('a.txt', b'\x00\x01\x02bad\xff'), ('a.jsonl', b'{"text": ""}'),
                                           ('a.jsonl', b'{"text": 5}'), ('a.bin', b'abc')])
def test_bad_input_is_one_sentence(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error: load_text(str(tmp_path / name), cache_dir=str(tmp_path / 'c'))
    assert '\n' not in str(error.value) and name in str(error.value)

def test_nothing_there(tmp_path):
    for spec in (str(tmp_path / 'no.txt'), './no/such/folder', 'missing.csv'):
        with pytest.raises(DataError, match='does not exist'): load_text(spec)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(DataError, match='nothing to read'): load_text(str(tmp_path / 'empty'))

@pytest.mark.parametrize('spec', ['nobody/no-such-dataset', 'nobody/no-such-dataset:config', 'a name with spaces'])
def test_a_hub_name_without_a_hub(spec, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv('HF_ENDPOINT', 'http://localhost:9')
    monkeypatch.setattr(huggingface_hub.constants, 'ENDPOINT', 'http://localhost:9')
    start = time.perf_counter()
    with pytest.raises(DataError, match='neither|not a local file') as error: load_text(spec, cache_dir=str(tmp_path))
    assert time.perf_counter() - start < 10 and '\n' not in str(error.value) and 'Retry' not in ''.join(capfd.readouterr())

wiki = ['', ' = Robert Boulter = \n', '', ' Robert Boulter is an actor . \n', '', ' = = Career = = \n', '',
        ' = = = 2000 \u2013 2005 = = = \n', '', ' He had a role . \n', ' It was big . \n', '',
        ' = Du Fu = \n', '', ' Du Fu was a poet . \n', ' a = b = c \n', '']

@pytest.mark.parametrize('blank', ['', ' \n'])
def test_lines_become_articles(tmp_path, blank):
    lines = [line or blank for line in wiki]
    pd.DataFrame({'text': lines}).to_parquet(tmp_path / 'train-00000.parquet')
    articles = load_text(str(tmp_path), cache_dir=str(tmp_path / 'c'))['text']
    assert len(articles) == 2 and articles[1].startswith(' = Du Fu = \n') and 'a = b = c' in articles[1]
    assert ''.join(articles) == ''.join(line or '\n' for line in lines)

def test_lines_without_titles_become_paragraphs(tmp_path):
    pd.DataFrame({'text': ['one\n', 'still one\n', '\n', 'two\n', '', 'three\n']}).to_parquet(tmp_path / 'a.parquet')
    assert load_text(str(tmp_path / 'a.parquet'))['text'] == ['one\nstill one\n\n', 'two\n\n', 'three\n']
    pd.DataFrame({'text': ['one\n', 'two\n']}).to_parquet(tmp_path / 'b.parquet')
    assert load_text(str(tmp_path / 'b.parquet'))['text'] == ['one\n', 'two\n']

def test_documents_are_not_lines():
    assert are_lines(['a\n', '', 'b \n']) and not are_lines(['a\n', 'b']) and not are_lines(['a\nb\n', 'c\n']) and not are_lines(['a\n'])

# Holding out

@given(st.integers(2, 40), st.floats(0.001, 0.999), st.integers(0, 99))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_hold_out(n, fraction, seed):
    texts = [f'document {i % max(2, n - 3)}' for i in range(n)]
    train, held = hold_out(Dataset.from_dict({'text': texts}), fraction, seed)
    assert len(train) and len(held) and sorted([*train['text'], *held['text']]) == sorted(texts)
    assert not set(train['text']) & set(held['text'])
    again = hold_out(Dataset.from_dict({'text': texts[::-1]}), fraction, seed)[1]
    assert sorted(again['text']) == sorted(held['text'])

def test_hold_out_size_and_limits():
    texts = Dataset.from_dict({'text': [str(i) for i in range(5000)]})
    assert 0.08 < len(hold_out(texts, 0.1, 0)[1]) / 5000 < 0.12
    assert hold_out(texts, 0.1, 0)[1]['text'] != hold_out(texts, 0.1, 1)[1]['text']
    with pytest.raises(DataError, match='at least two'): hold_out(Dataset.from_dict({'text': ['a', 'a']}), 0.5, 0)
