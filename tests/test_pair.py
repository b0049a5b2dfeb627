"Two tokenizers as one value: what is read from the disk is what would be made, and what is damaged or another pair's is not read."
import gc
import shutil
from dataclasses import fields

import datasets
import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

import kdkit.align
import kdkit.vocab
from kdkit.align import token_bytes
from kdkit.config import KD_MAPS, DistillConfig
from kdkit.framework import StudentAwareDistillationFramework
from kdkit.pair import keep_pair, open_pair, packed, pair_folder, unpacked
from kdkit.prepare import prepare_text
from kdkit.run import distill, evaluate_run
from kdkit.knowledge import map_of, shared_tokens
from kdkit.vocab import Continuations, TokenPair, spelling_matrix, teacher_spellings
from pairs import model_of, save_pair, save_text
from tiny_tokenizers import get


def again(name, **more):
    "The tokenizer as another process would load it."
    old = get(name)
    names = {key: getattr(old, key) for key in ('bos_token', 'eos_token', 'unk_token') if getattr(old, key)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(old.backend_tokenizer.to_str()), **{**names, **more})


def sides(student, teacher): return again(student), again(teacher), len(get(student)) + 3, len(get(teacher)) + 5


def equal(a, b):
    if isinstance(a, torch.Tensor): return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Continuations): return all(equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, tuple): return len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def all_of(pair):
    "Everything that anybody asks of a pair."
    found = dict(student=pair.student_bytes, teacher=pair.teacher_bytes, same=pair.same, shared=shared_tokens(pair), spelt=pair.spelt,
                 matrix=spelling_matrix(pair, 0))
    for method in KD_MAPS[1:]:
        for ends in (None, (), [(pair.student.eos_token_id, pair.teacher.eos_token_id), (5, 3)]):
            m = map_of(pair.with_ends(ends), method)
            found[method, repr(ends)] = (m.name, m.n_classes, m.student_index, m.teacher_index, m.first, m.inside,
                                         m.crossings.student_bytes, m.crossings.teacher_bytes, m.crossings.first)
    return found


PAIRS = [('bytes', 'metaspace'), ('metaspace', 'bytes-large'), ('unigram', 'bytes-NFKC'), ('bytes', 'bytes')]


@pytest.mark.parametrize('student, teacher', [*PAIRS, pytest.param('gpt2', 'qwen2', marks=pytest.mark.slow),
                                              pytest.param('mistral', 'gpt2', marks=pytest.mark.slow)])
def test_what_is_read_is_what_is_made(student, teacher, tmp_path, monkeypatch):
    fresh = open_pair(*sides(student, teacher), tmp_path)
    assert fresh.stored is None
    made = all_of(fresh)
    keep_pair(fresh, tmp_path)
    read = open_pair(*sides(student, teacher), tmp_path)
    def never(*_): raise AssertionError('made once more')
    for name in ('speller', 'continuations', 'common_prefixes', 'same_tokenizer'): monkeypatch.setattr(kdkit.vocab, name, never)
    monkeypatch.setattr(kdkit.align, 'backend_json', never)  # nor is a table of bytes
    asked = {name: getattr(read, name) for name in ('student_bytes', 'teacher_bytes', 'same', 'spelt', 'first', 'tree', 'prefixes',
                                                    'respelt')}
    monkeypatch.undo()
    assert len(asked) == 8 and token_bytes(read.teacher) == token_bytes(get(teacher))
    found = all_of(read)
    assert found.keys() == made.keys()
    for name in made: assert equal(made[name], found[name]), name


def test_lists_of_every_kind_survive():
    for part in ([b'a', None, b''], [[], [1, 2], [3]], True, torch.tensor([1, -1]), (torch.tensor([2**40]), torch.tensor([1]), 7)):
        assert equal(unpacked(packed(part)), part)


def change(file, at=-1):
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


FAULTS = {
    'a bit': lambda folder, other: change(folder / 'tables.safetensors'),
    'a bit of the names': lambda folder, other: change(folder / 'tables.safetensors', 20),
    'cut off': lambda folder, other: (folder / 'tables.safetensors').write_bytes((folder / 'tables.safetensors').read_bytes()[:1000]),
    'no manifest': lambda folder, other: (folder / 'manifest.json').unlink(),
    'no tables': lambda folder, other: (folder / 'tables.safetensors').unlink(),
    "another pair's": lambda folder, other: (shutil.rmtree(folder), shutil.copytree(other, folder)),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_what_is_damaged_or_foreign_is_made_again(fault, tmp_path, capsys):
    folders = []
    for names in (PAIRS[0], PAIRS[1]):
        pair = open_pair(*sides(*names), tmp_path)
        map_of(pair, 'token_level')
        keep_pair(pair, tmp_path)
        folders.append(pair_folder(pair, tmp_path))
    assert len(set(folders)) == 2
    FAULTS[fault](*folders)
    pair = open_pair(*sides(*PAIRS[0]), tmp_path)
    assert pair.stored is None and 'made again' in ''.join(capsys.readouterr())
    wanted = map_of(TokenPair(*sides(*PAIRS[0])), 'token_level')
    assert equal(map_of(pair, 'token_level').inside, wanted.inside)
    keep_pair(pair, tmp_path)
    assert open_pair(*sides(*PAIRS[0]), tmp_path).stored is not None
    assert sorted(tmp_path.glob('kdkit/*')) == sorted(folders) and not [*tmp_path.glob('kdkit/.*')]


def test_another_tokenizer_or_other_rows_are_another_pair(tmp_path):
    student, teacher, *rows = sides('bytes', 'metaspace')
    other = again('metaspace', additional_special_tokens=['the'])
    assert token_bytes(other) != token_bytes(teacher)  # what is special writes nothing
    folders = {pair_folder(pair, tmp_path) for pair in (TokenPair(student, teacher, *rows), TokenPair(student, other, *rows),
                                                        TokenPair(teacher, student, *rows[::-1]),
                                                        TokenPair(student, teacher, rows[0] + 1, rows[1]))}
    assert len(folders) == 4
    student(['text'] * 2, padding=False, truncation=True, max_length=5)
    # what a call changes is no matter
    assert pair_folder(TokenPair(again('bytes'), teacher, *rows), tmp_path) == pair_folder(TokenPair(student, teacher, *rows), tmp_path)


def test_parts_are_added_to_those_that_are_there(tmp_path):
    pair = open_pair(*sides(*PAIRS[0]), tmp_path)
    map_of(pair, 'common_prefix', False)
    keep_pair(pair, tmp_path)
    more = open_pair(*sides(*PAIRS[0]), tmp_path)
    assert 'prefixes' in more.stored and 'tree' not in more.stored
    map_of(more, 'first_token')
    keep_pair(more, tmp_path)
    both = open_pair(*sides(*PAIRS[0]), tmp_path)
    assert {'prefixes', 'tree', 'first', 'shared'} <= both.stored.parts.keys()
    assert equal(both.prefixes, TokenPair(*sides(*PAIRS[0])).prefixes)


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path, capsys):
    (tmp_path / 'kdkit').write_text('a file where the folder would be')
    pair = open_pair(*sides(*PAIRS[0]), tmp_path)
    map_of(pair, 'first_token')
    keep_pair(pair, tmp_path)
    assert 'made anew at every start' in ''.join(capsys.readouterr())


def test_a_pair_does_not_keep_its_tokenizers_alive():
    before = len(kdkit.align._remembered)
    map_of(TokenPair(*sides(*PAIRS[0])), 'token_level')
    gc.collect()
    assert len(kdkit.align._remembered) <= before


def test_the_framework_takes_a_pair():
    student, teacher, *rows = sides(*PAIRS[0])
    pair = TokenPair(student, teacher, *rows)
    models = lambda: (model_of('llama', rows[1], seed=1), model_of('llama', rows[0], seed=2))
    one, other = StudentAwareDistillationFramework({}, *models(),
                                                   pair=pair), StudentAwareDistillationFramework({}, *models(), teacher, student)
    assert one.student_tokenizer is student and one.teacher_tokenizer is teacher
    for part in ('student_index', 'teacher_index', 'inside', 'first'):
        assert equal(getattr(one.vocab_map, part), getattr(other.vocab_map, part))


def test_a_run_is_the_same_from_the_disk_and_nothing_is_spelt_again(tmp_path, monkeypatch):
    "A run that makes the tables, one that reads them, and a measurement of its student."
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'cache')
    config = dict(**save_pair(tmp_path), dataset=save_text(tmp_path), max_steps=3, batch_size=2, max_length=64, max_eval_rows=4,
                  eval_steps=3, control=True)
    spelt = []
    def spy(pair):
        spelt.append(pair)
        return teacher_spellings(pair)
    monkeypatch.setattr(kdkit.vocab, 'teacher_spellings', spy)
    reports = []
    for name in ('made', 'read'): reports.append(distill(dict(config, output_dir=str(tmp_path / name))))
    evaluate_run(str(tmp_path / 'made/student'), config['dataset'], config['teacher_model'], max_length=64, max_eval_rows=4)
    assert len(spelt) == 1
    for file in ('student/model.safetensors', 'control/student/model.safetensors'):
        assert (tmp_path / 'made' / file).read_bytes() == (tmp_path / 'read' / file).read_bytes()
    assert all(reports[0][key] == reports[1][key] for key in ('student_after', 'data', 'teacher', 'retention'))
    for file in tmp_path.glob('cache/kdkit/pair-*/tables.safetensors'): change(file)
    distill(dict(config, output_dir=str(tmp_path / 'mended')))
    assert (len(spelt) == 2
            and (tmp_path / 'made/student/model.safetensors').read_bytes() == (tmp_path / 'mended/student/model.safetensors').read_bytes())
    assert prepare_text(DistillConfig(**config))['pair'].stored is not None and len(spelt) == 2
