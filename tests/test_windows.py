"Windows and batches: no text lost, both sides the same."
import importlib
import inspect
import json
import unicodedata
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset, concatenate_datasets
from hypothesis import HealthCheck, given, settings, strategies as st
from tiny_tokenizers import awkward, corpus, get, shared, table_of, tiny
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from kdkit.align import encode_bytes
from kdkit.data import load_text
from kdkit.vocab import TokenPair, first_token_map, identity_map
from kdkit.windows import DataError, PairCollator, alignment_summary, control_ids, pair_dataset

pairs = [('bytes', 'bytes-large'), ('bytes-large', 'metaspace'), ('prepend', 'bytes-NFC'), ('metaspace', 'prepend'), ('bytes', 'bytes'),
         ('gpt2', 'qwen2'), ('mistral', 'qwen2'), ('qwen2', 'mistral')]
documents = [text for text in awkward if text] + corpus[:4]

@pytest.fixture(autouse=True)
def quiet(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'cache')
    datasets.disable_progress_bars()

def control(name): return {'gpt2': (50256, 50256), 'qwen2': (151643, 151643), 'mistral': (1, 2)}.get(name) or control_ids(get(name))

def pair(texts, student, teacher, max_length=64, **options):
    return pair_dataset(Dataset.from_dict({'text': texts}), get(student), teacher and get(teacher), max_length=max_length,
                        student_control=control(student), teacher_control=teacher and control(teacher), **options)

def check_windows(texts, student, teacher, max_length, teacher_max_length, pack):
    paired = pair(texts, student, teacher, max_length, teacher_max_length=teacher_max_length, pack=pack)
    assert sum(paired['n_bytes']) == sum(len(text.encode()) for text in texts)
    for name, column, positions, limit in ((student, 'input_ids', 'student_positions', max_length),
                                           (teacher, 'teacher_input_ids', 'teacher_positions', teacher_max_length)):
        start, end = control(name)
        encoded = encode_bytes(get(name), [text for text in texts if text], table_of(name))
        # the documents' own tokens
        assert sum((row[1:] for row in paired[column]), []) == sum(([*ids.tolist(), end] for ids, _ in encoded), [])
        for row, listed in zip(paired[column], paired[positions]):
            assert row[0] == start and 2 <= len(row) <= limit
            assert listed[0] == 0 and (np.diff(listed) > 0).all() and listed[-1] < len(row) - 1
            if not pack: assert end not in row[1:-1]

    # every position by brute force: both have read the same bytes of the same document
    def reads(name, rows):
        start, end = control(name)
        ends = [np.append(ends, len(text.encode()) + 1) for (ids, ends), text in
                zip(encode_bytes(get(name), [text for text in texts if text], table_of(name)), [text for text in texts if text])]
        places = [(d, int(e)) if e >= 0 else None for d, document in enumerate(ends) for e in document]
        last, k = (0, -1), 0
        for row in rows:
            inside = places[k:k + len(row) - 1]
            k += len(row) - 1
            yield [last, *inside]
            last = inside[-1]
    for mine, theirs, p, q, n in zip(reads(student, paired['input_ids']), reads(teacher, paired['teacher_input_ids']),
                                     paired['student_positions'], paired['teacher_positions'], paired['n_bytes']):
        latest = lambda places: {place: i for i, place in enumerate(places) if place}
        assert mine[-1] == theirs[-1] and mine[0] == theirs[0]
        both = sorted(latest(mine).keys() & latest(theirs).keys())[:-1]
        assert [*zip(p, q)] == [(latest(mine)[place], latest(theirs)[place]) for place in both]
    return paired

@pytest.mark.parametrize('pack', [True, False])
@pytest.mark.parametrize('student, teacher', pairs)
def test_windows(student, teacher, pack):
    check_windows(documents, student, teacher, 700, 900, pack)
    plain = [text for text in documents if len(text) < 300 and text == unicodedata.normalize('NFC', text)] + corpus[:4]
    paired = check_windows(plain, student, teacher, 40, 30, pack)
    assert len(paired) > 20

@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.lists(st.sampled_from(awkward), max_size=4).map(''.join), min_size=1, max_size=6).filter(any),
       sides=st.sampled_from(pairs[:5]), pack=st.booleans())
def test_windows_of_any_documents(texts, sides, pack): check_windows(texts, *sides, 1700, 1800, pack)

@pytest.mark.parametrize('student, teacher', pairs)
def test_windows_are_the_longest(student, teacher):
    paired = pair(corpus[:6], student, teacher, 50, teacher_max_length=1000)
    lengths = [len(row) for row in paired['input_ids']]
    gaps = [np.diff(p + [n - 1]).max() for p, n in zip(paired['student_positions'], lengths)]
    for length, following in zip(lengths, gaps[1:]): assert length + max(gaps) > 50

@pytest.mark.parametrize('student, teacher', pairs)
def test_the_document_end_is_a_shared_event(student, teacher):
    paired = pair(['One.', 'Two two.', '\nThree'], student, teacher, 200, teacher_max_length=200)
    row = paired[0]
    for name, ids, positions in ((student, 'input_ids', 'student_positions'), (teacher, 'teacher_input_ids', 'teacher_positions')):
        ends = [i for i, token in enumerate(row[ids]) if token == control(name)[1] and i]
        assert len(ends) == 3 and {end - 1 for end in ends} <= set(row[positions]) and set(ends[:-1]) <= set(row[positions])

def test_no_end_token_on_one_side_marks_neither():
    paired = pair_dataset(Dataset.from_dict({'text': ['a b', 'c']}), get('bytes'), get('metaspace'), max_length=99,
                          student_control=(1, 0), teacher_control=(1, None))
    assert 0 not in paired[0]['input_ids'] and paired[0]['n_bytes'] == 4 and len(paired) == 1

def test_empty_documents_leave_no_trace():
    assert pair(['', 'a', ''], 'bytes', 'metaspace')[:] == pair(['a'], 'bytes', 'metaspace')[:]
    assert len(pair(['', ''], 'bytes', 'metaspace')) == 0

def test_student_alone():
    paired = pair(documents, 'bytes', None)
    assert paired.column_names == ['input_ids', 'document_starts', 'n_bytes']
    assert sum(paired['n_bytes']) == sum(len(text.encode()) for text in documents)
    assert max(map(len, paired['input_ids'])) == 64

def test_a_stretch_that_fits_no_window():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(get('bytes').backend_tokenizer.to_str()), bos_token='<s>',
                                        eos_token='<|endoftext|>')
    tokenizer.add_tokens(['x' * 300])
    text = Dataset.from_dict({'text': ['Some words.\n' + 'x' * 300]})
    with pytest.raises(DataError, match=r"student windows of at most 20 tokens cannot hold 'xxx.*Raise the limit to \d+") as error:
        pair_dataset(text, get('bytes'), tokenizer, max_length=20, teacher_max_length=99)
    need = int(str(error.value).split('Raise the limit to ')[1].split(',')[0])
    assert len(pair_dataset(text, get('bytes'), tokenizer, max_length=need)) >= 1
    with pytest.raises(DataError, match=f'at most {need - 1} '): pair_dataset(text, get('bytes'), tokenizer, max_length=need - 1)
    with pytest.raises(DataError, match='windows of 1 tokens hold no text'): pair(['a'], 'bytes', 'metaspace', 1)

@pytest.mark.parametrize('name', ['bytes', 'qwen2', 'gpt2', 'mistral'])
def test_second_call_reads_the_cache(name, tmp_path):
    (tmp_path / 'a.jsonl').write_text('\n'.join(json.dumps({'text': text}) for text in corpus))
    from_disk = load_text(str(tmp_path / 'a.jsonl'), cache_dir=str(tmp_path))
    for data in (from_disk, Dataset.from_dict({'text': corpus})):
        fingerprints, times = set(), []
        for again in range(3):
            tokenizer = get(name) if again < 2 or name in tiny else AutoTokenizer.from_pretrained(shared / name)
            if again:
                tokenizer(['changes the state'] * 2, truncation=True, max_length=3,
                          padding=True) if tokenizer.pad_token else tokenizer(['x'], truncation=True, max_length=3)
            paired = pair_dataset(data, tokenizer, get('metaspace'), max_length=64, student_control=control(name))
            fingerprints.add(paired._fingerprint)
            times.append(max(Path(f['filename']).stat().st_mtime_ns for f in paired.cache_files))
        assert len(fingerprints) == 1 and len(set(times)) == 1  # written once
        other = pair_dataset(data, get(name), get('metaspace'), max_length=65, student_control=control(name))
        assert other._fingerprint not in fingerprints

def test_deterministic_and_independent_of_processes(tmp_path):
    first = pair(corpus, 'bytes', 'metaspace')[:]
    datasets.config.HF_DATASETS_CACHE = tmp_path / 'elsewhere'
    assert pair(corpus, 'bytes', 'metaspace')[:] == first
    datasets.config.HF_DATASETS_CACHE = tmp_path / 'third'
    two = pair(corpus, 'bytes', 'metaspace', num_proc=2)
    assert sum(two['n_bytes']) == sum(first['n_bytes'])

# Batches

def test_control_ids():
    bare = PreTrainedTokenizerFast(tokenizer_object=get('bytes').backend_tokenizer)
    assert control_ids(get('bytes')) == (1, 0)
    assert control_ids(bare, LlamaConfig(vocab_size=500, bos_token_id=7, eos_token_id=[9, 8])) == (7, 9)
    with pytest.raises(DataError, match='no bos'): control_ids(bare)
    # id 1 is out of the model's reach
    assert control_ids(get('bytes'), LlamaConfig(vocab_size=1, bos_token_id=None, eos_token_id=None)) == (0, 0)

def test_collator():
    paired = pair(corpus, 'bytes', 'metaspace', pack=False)
    chosen = [paired[i] for i in (0, 3, len(paired) - 1)]
    batch = PairCollator(student_pad_id=5, teacher_pad_id=6, pad_to_multiple_of=8)(chosen)
    assert set(batch) == {'input_ids', 'attention_mask', 'labels', 'teacher_input_ids', 'teacher_attention_mask', 'student_positions',
                          'teacher_positions', 'n_bytes'}
    assert (batch['input_ids'].shape[1] % 8 == 0 and batch['teacher_input_ids'].shape[1] % 8 == 0
            and all(v.dtype == torch.long for v in batch.values()))
    for b, row in enumerate(chosen):
        n = len(row['input_ids'])
        assert batch['input_ids'][b].tolist() == row['input_ids'] + [5] * (batch['input_ids'].shape[1] - n)
        assert batch['labels'][b].tolist() == [-100] + row['input_ids'][1:] + [-100] * (batch['input_ids'].shape[1] - n)
        assert batch['attention_mask'][b].sum() == n and batch['attention_mask'][b, :n].all()
        assert batch['teacher_attention_mask'][b].sum() == len(row['teacher_input_ids'])
        for side in ('student', 'teacher'):
            p = batch[f'{side}_positions'][b]
            assert p[p >= 0].tolist() == row[f'{side}_positions'] and (p[len(row[f'{side}_positions']):] == -1).all()
        assert batch['n_bytes'][b] == row['n_bytes']
    alone = PairCollator()([pair(corpus, 'bytes', None)[0]])
    assert set(alone) == {'input_ids', 'attention_mask', 'labels', 'n_bytes'}

def test_alignment_summary():
    size = len(get('bytes'))
    same = alignment_summary(pair(corpus, 'bytes', 'bytes'), {'identity': identity_map(size, size)})
    assert same == {'coverage': 1.0, 'teacher_coverage': 1.0, 'gold_consistency': {'identity': 1.0}}
    mixed = alignment_summary(pair(corpus, 'bytes', 'bytes-large'),
                              {'first': first_token_map(TokenPair(get('bytes'), get('bytes-large'), size, 700, [(0, 0)]))})
    assert 0.5 < mixed['coverage'] < 1 and mixed['coverage'] < mixed['teacher_coverage'] and 0.9 < mixed['gold_consistency']['first'] <= 1


@pytest.mark.parametrize('student, teacher', [('gpt2', 'qwen2'), ('mistral', 'gpt2'), ('bytes', 'metaspace')])
def test_windows_take_little_more_room_than_their_text(student, teacher, tmp_path):
    "Two bytes a byte of text at most, however large the vocabularies."
    texts = prose()
    paired = pair_dataset(Dataset.from_dict(dict(text=texts)), get(student), get(teacher), max_length=512, cache_dir=tmp_path,
                          **{f'{side}_control': control(name) for side, name in (('student', student), ('teacher', teacher))})
    size = sum(file.stat().st_size for file in tmp_path.glob('kdkit/*.arrow'))
    share = size / sum(len(text.encode()) for text in texts)
    assert share < (2 if 'bytes' != student else 3), share  # a tokenizer of 400 tokens makes one of two bytes
    row, again = paired[3], paired.select([3])[0]
    assert row == again and all(type(row[name]) is list and type(row[name][0]) is int
                                for name in ('input_ids', 'teacher_input_ids', 'student_positions', 'teacher_positions'))
    assert paired[2:5]['teacher_input_ids'] == [paired[i]['teacher_input_ids'] for i in (2, 3, 4)] == list(paired['teacher_input_ids'])[2:5]
    joined = concatenate_datasets([paired.select([0]), paired.select([1])]).shuffle(seed=0)  # the way of reading stays
    assert sorted(joined, key=str) == sorted((paired[0], paired[1]), key=str)


def prose():
    "Real text: what this project's own source and the standard library say."
    modules = [importlib.import_module(name) for name in ('argparse', 'ast', 'asyncio', 'collections', 'concurrent.futures', 'email',
                                                          'inspect', 'logging', 'pathlib', 'random', 'statistics', 'typing', 'unittest')]
    return [inspect.getsource(module) for module in modules]
