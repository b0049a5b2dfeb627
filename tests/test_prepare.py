"From names to windows: what is measured is never trained on, and no more is paired than a run reads."
import json
from dataclasses import replace

import datasets
import pytest
from datasets import Dataset

import kdkit.data
import kdkit.windows
from kdkit.config import ConfigError, DistillConfig
from kdkit.data import DataError, TextStream, read_corpus
from kdkit.prepare import prepare_text, read_texts
from kdkit.run import distill
from kdkit.windows import WindowMaker, pair_enough
from tiny_tokenizers import get

TEXTS = [f'Document {i}: the river ran past the old mill, {i * 37} stones lay in it, and nobody counted them twice.' for i in range(120)]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path_factory.mktemp('cache'))


def save(path, texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(json.dumps(dict(text=text)) for text in texts))
    return str(path)


def config_of(pair, dataset, **more):
    names = {k: pair[k] for k in ('teacher_model', 'student_model')}
    return DistillConfig(**names, dataset=str(dataset), **{**dict(max_length=48, batch_size=2, max_steps=3, max_eval_rows=6), **more})


def texts_of(config):
    train, held_out, said = read_texts(config)
    read = lambda text: list(text['text']) if isinstance(text, Dataset) else [t for block, _ in text.blocks() for t in block['text']]
    return read(train.text), read(held_out.text), said


SOURCES = {  # files -> (options, the texts that are held out, or None where any may be, sentence)
    'one file': (dict(a=TEXTS), {}, None, ''),
    'a validation file': (dict(train=TEXTS[:90], valid=TEXTS[90:]), {}, TEXTS[90:], ''),
    'a test file': (dict(train=TEXTS[:90], test=TEXTS[90:]), {}, TEXTS[90:], ''),
    'overlapping files': (dict(train=TEXTS[:90], dev=TEXTS[80:]), {}, TEXTS[80:], '10 documents'),
    'the same with other spaces': (dict(train=[text + '\n' for text in TEXTS[:90]], dev=TEXTS[80:]), {}, TEXTS[80:], '10 documents'),
    'a split by name': (dict(train=TEXTS[:80], validation=TEXTS[80:90], test=TEXTS[90:]), dict(eval_split='test'), TEXTS[90:], ''),
    'twice the same document': (dict(a=TEXTS + TEXTS), {}, None, ''),
}


@pytest.mark.parametrize('streaming', [False, True])
@pytest.mark.parametrize('name', SOURCES)
def test_what_is_measured_is_not_trained_on(pair, tmp_path, name, streaming):
    files, options, wanted, sentence = SOURCES[name]
    for file, texts in files.items(): save(tmp_path / 'data' / f'{file}.jsonl', texts)
    train, held_out, said = texts_of(config_of(pair, tmp_path / 'data', streaming=streaming, eval_fraction=.1, **options))
    bare = lambda texts: {text.strip() for text in texts}
    assert train and held_out and not bare(train) & bare(held_out)
    if wanted is not None: assert bare(held_out) <= bare(wanted) and (streaming or len(held_out) == len(wanted))
    if not streaming: assert sentence in said and bool(sentence) == bool(said)


def test_nothing_left_to_train_on_is_one_sentence(pair, tmp_path):
    path = save(tmp_path / 'a.jsonl', TEXTS)
    with pytest.raises(DataError, match='every document of .* is also in the text to measure on'):
        read_texts(config_of(pair, path, eval_dataset=path))


def test_a_dataset_for_evaluation_beats_a_split(pair, tmp_path):
    for name, texts in dict(train=TEXTS[:50], valid=TEXTS[50:60]).items(): save(tmp_path / 'data' / f'{name}.jsonl', texts)
    other = save(tmp_path / 'other.jsonl', TEXTS[60:70])
    assert texts_of(config_of(pair, tmp_path / 'data', eval_dataset=other))[1] == TEXTS[60:70]
    assert texts_of(config_of(pair, tmp_path / 'data', eval_dataset=f'{other}[:3]'))[1] == TEXTS[60:63]


@pytest.mark.parametrize('rows, advice', [(6, 'raise max_eval_rows (6)'), (300, 'let eval_dataset hold more'), (8, '')])
def test_hardly_any_text_to_measure_on_is_said(pair, tmp_path, capsys, rows, advice):
    held_out = save(tmp_path / 'held_out.jsonl', [f'{text} Held out.' for text in TEXTS[:1 if rows == 300 else 60]])
    prepare_text(config_of(pair, save(tmp_path / 'train.jsonl', TEXTS), eval_dataset=held_out, max_eval_rows=rows))
    said = ''.join(capsys.readouterr())
    assert ('small differences between models will be chance' in said) == bool(advice) and advice in said


def test_no_more_is_paired_than_a_run_reads(pair, tmp_path, monkeypatch):
    config = config_of(pair, save(tmp_path / 'a.jsonl', TEXTS * 9),
                       eval_dataset=save(tmp_path / 'b.jsonl', ['Something else to measure on, held apart.']))
    whole = prepare_text(config)['train']
    monkeypatch.setattr(kdkit.windows, 'whole_bytes', 0)
    monkeypatch.setattr(pair_enough, '__defaults__', (*pair_enough.__defaults__[:-1], 4000))  # bytes of a part
    some = prepare_text(config)['train']
    assert 6 <= len(some) < len(whole) / 3
    more = prepare_text(replace(config, max_steps=12))['train']
    assert 24 <= len(more) and more[:len(some)] == some[:]  # a longer run begins with the same windows
    assert prepare_text(replace(config, seed=1))['train'][:] != some[:]
    assert len(prepare_text(replace(config, max_steps=-1))['train']) == len(whole)


def test_windows_do_not_depend_on_the_number_of_processes(tmp_path):
    many = Dataset.from_dict({'text': TEXTS * 40})
    make = WindowMaker(get('bytes'), get('metaspace'), max_length=48)
    assert make(many, 1, str(tmp_path / '1'))[:] == make(many, 2, str(tmp_path / '2'))[:]


@pytest.fixture
def stream(pair, tmp_path, monkeypatch):
    "A config that streams, over five files in blocks of some documents, and how many blocks were read."
    for n in range(5): save(tmp_path / 'data' / f'part-{n}.jsonl', TEXTS[n * 24:(n + 1) * 24])
    read, blocks = [], TextStream.blocks
    def counted(self, state=None):
        for block in blocks(replace(self, block_bytes=min(self.block_bytes, 400)), state):
            read.append(state)
            yield block
    monkeypatch.setattr(TextStream, 'blocks', counted)
    return config_of(pair, tmp_path / 'data', streaming=True), read


def test_a_stream_is_read_as_far_as_a_run_goes(stream):
    config, read = stream
    text = prepare_text(config)
    assert 6 <= len(text['train']) < 40 and 1 <= len(text['held_out']) <= 6
    n = len(read)
    assert prepare_text(config)['train'][:] == text['train'][:] and len(read) <= n + 1  # only the look at the first text
    longer = prepare_text(replace(config, max_steps=9))['train']
    assert len(longer) >= 18 and longer[:len(text['train'])] == text['train'][:]
    assert len(prepare_text(replace(config, max_steps=5000))['train']) < 10000  # a stream that ends is all there is


def test_a_stream_that_was_cut_off_goes_on_from_its_position(stream, monkeypatch, tmp_path):
    config, read = stream
    whole = prepare_text(replace(config, max_steps=9, cache_dir=str(tmp_path / 'whole')))['train'][:]
    made, call = [], WindowMaker.__call__
    def cut(self, dataset, *args, **more):
        made.append(1)
        if len(made) == 4: raise KeyboardInterrupt
        return call(self, dataset, *args, **more)
    monkeypatch.setattr(WindowMaker, '__call__', cut)
    with pytest.raises(KeyboardInterrupt): prepare_text(replace(config, max_steps=9, cache_dir=str(tmp_path / 'cut')))
    monkeypatch.setattr(WindowMaker, '__call__', call)
    read.clear()
    assert prepare_text(replace(config, max_steps=9, cache_dir=str(tmp_path / 'cut')))['train'][:] == whole
    assert any(state for state in read)  # it did not begin anew


def test_files_that_were_written_anew_are_another_stream(stream, tmp_path):
    config, _ = stream
    before = prepare_text(config)['train'][:]
    for n in range(5): save(tmp_path / 'data' / f'part-{n}.jsonl', [text.replace('river', 'stream') for text in TEXTS[n * 24:(n + 1) * 24]])
    assert prepare_text(config)['train'][:] != before


def test_a_run_from_a_stream(stream, tmp_path):
    config, _ = stream
    report = distill(replace(config, output_dir=str(tmp_path / 'run')))
    assert report['steps'] == 3 and report['student_after']['bits_per_byte'] > 0


def test_a_stream_needs_an_end():
    with pytest.raises(ConfigError, match='max_steps'): DistillConfig(streaming=True)


def test_blocks_are_bounded(tmp_path):
    corpus = read_corpus(save(tmp_path / 'a.jsonl', TEXTS), streaming=True)
    sizes = [sum(map(len, block['text'])) for block, _ in replace(corpus.text, block_bytes=1000).blocks()]
    assert max(sizes) < 1000 + max(map(len, TEXTS)) and kdkit.data.TextStream is TextStream
