"Alignment against brute force, on awkward text and on many tokenizers."
import inspect
import itertools
import json
import random
import unicodedata
from functools import lru_cache

import fuzz_align
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from tiny_tokenizers import awkward, byte_level, get, lossy, table_of, tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from kdkit.align import encode_bytes, encode_long, located_ends, plain_backend, safe_cuts, shared_boundaries, token_bytes

names = [*tiny, 'qwen2', 'gpt2', 'mistral']
forms = {'bytes-NFC': 'NFC', 'bytes-NFKC': 'NFKC', 'qwen2': 'NFC'}

def normal(name, text):
    "The text as the tokenizer's tokens spell it."
    text = unicodedata.normalize(forms[name], text) if name in forms else text
    return text if name in forms or 'bytes' in name or name == 'gpt2' else text.replace('\u2581', ' ')

def brute_ends(name, text, ids, table):
    "For each token, the only byte of the text up to which it and those before it spell the normal form."
    added = b''.join(table[i] for i in ids) != normal(name, text).encode()  # a space in front
    prefixes = {}
    if normal(name, text) == text: prefixes = {text.encode()[:n]: n for n in range(len(text.encode()) + 1)}
    else:  # at characters; a cut inside what is composed changes the form of what follows
        for k in range(len(text) + 1):
            head, tail = normal(name, text[:k]), normal(name, text[k:])
            if head + tail == normal(name, text): prefixes[head.encode()] = len(text[:k].encode())
        for k in range(len(text)):  # bytes inside characters that stay
            if len(text[k].encode()) > 1 and normal(name,
                                                    text[k]) == text[k] and (n := prefixes.get(normal(name,
                                                                                                      text[:k]).encode())) is not None:
                if n + len(text[k].encode()) in prefixes.values():
                    for m in range(1, len(text[k].encode())): prefixes[normal(name, text[:k]).encode() + text[k].encode()[:m]] = n + m
    ends, written = [], b''
    for i in ids:
        written += table[i]
        ends.append(prefixes.get(written[added:], -1))
    return ends

@lru_cache
def check(name, text):
    tokenizer = get(name)
    table = table_of(name)
    (ids, ends), = encode_bytes(tokenizer, [text], table)
    assert not set(ids) & set(tokenizer.all_special_ids) or name in lossy
    assert ends.tolist() == brute_ends(name, text, ids, table), [table[i] for i in ids]
    assert not len(ids) or ends[-1] == len(text.encode())
    return ends

@pytest.mark.parametrize('name', names)
def test_ends_equal_brute_force(name):
    for text in awkward + [''.join(awkward), ' '.join(awkward[::-1])]: check(name, text)

@pytest.mark.parametrize('name', names)
@settings(max_examples=30, deadline=None)
@given(text=st.lists(st.sampled_from(awkward) | st.text(st.characters(codec='utf-8'), max_size=6), max_size=5).map(''.join))
def test_ends_equal_brute_force_on_any_text(name, text):
    if name in forms and any(unicodedata.category(c) == "Cn" for c in text): return  # newer than the tables of Python or Rust
    check(name, text)

@pytest.mark.parametrize('a, b', [*itertools.combinations(names, 2)])
def test_shared_boundaries_equal_brute_force(a, b):
    text = ' '.join(awkward)
    ends_a, ends_b = check(a, text), check(b, text)
    index_a, index_b = shared_boundaries(ends_a, ends_b)
    last = lambda ends: {end: i for i, end in enumerate(ends.tolist()) if end >= 0}
    both = sorted(last(ends_a).keys() & last(ends_b).keys())
    assert index_a.tolist() == [last(ends_a)[end] for end in both] and index_b.tolist() == [last(ends_b)[end] for end in both]
    assert index_a.dtype == index_b.dtype == np.int64

def test_of_tokens_with_one_end_the_last_counts():
    index = shared_boundaries(np.array([0, 0, 3, -1, 5, 5]), np.array([0, 2, 3, 3, 4, 5]))
    assert [i.tolist() for i in index] == [[1, 2, 5], [0, 3, 5]]
    assert all(len(i) == 0 for i in shared_boundaries(np.array([], int), np.array([1, 2])))

@pytest.mark.parametrize('name', [*lossy])
def test_no_boundary_where_text_is_lost(name):
    tokenizer = get(name)
    table = token_bytes(tokenizer)
    text = 'a str \u4f60\u597d and \U0001f600, the list'
    (ids, ends), = encode_bytes(tokenizer, [text], table)
    raw = text.encode()
    assert None in [table[i] for i in ids]
    for i, end in zip(ids, ends):
        if end >= 0: assert table[i] is not None and (b' ' + raw)[:end + 1].endswith(table[i])
    lost = range(raw.index('\u4f60'.encode()) + 1, raw.index(b' and') + 1)
    assert not set(ends) & set(lost) and ends[-1] == len(raw)  # it goes on behind the loss

def test_located_ends_know_a_trimmed_space_from_an_added_one():
    assert located_ends([b'a', b' b'], [(0, 1), (2, 3)], 'a b').tolist() == [1, 3]
    assert located_ends([b' a', b' ', b'b'], [(0, 1), (1, 1), (1, 2)], 'ab').tolist() == [1, 1, 2]
    assert located_ends([b'a', None, b'b'], [(0, 1), (1, 2), (2, 3)], 'a?b').tolist() == [1, -1, 3]
    assert located_ends([b'\xf0\x9f', b'\x98\x80'], [(0, 1), (0, 1)], '\U0001f600').tolist() == [2, 4]

@pytest.mark.parametrize('name', names)
def test_settings_of_the_tokenizer_survive(name):
    tokenizer = get(name)
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(3)
    backend.enable_padding(length=9)
    try:
        (ids, ends), = encode_bytes(tokenizer, ['one two three four five six seven'], token_bytes(tokenizer))
        assert ends[-1] == 33 and backend.truncation['max_length'] == 3 and backend.padding['length'] == 9
    finally: backend.no_truncation(), backend.no_padding()

def test_added_text_tokens_are_text():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(byte_level().backend_tokenizer.to_str()))
    tokenizer.add_tokens(['<think>'])
    table = token_bytes(tokenizer, 1000)
    assert len(table) == 1000 and table[len(tokenizer) - 1] == b'<think>' and table[-1] is None
    (ids, ends), = encode_bytes(tokenizer, ['a<think>b'], table)
    assert ends.tolist() == [1, 8, 9]

@pytest.mark.parametrize('model', [models.WordPiece({'[UNK]': 0}, unk_token='[UNK]'), models.WordLevel({'[UNK]': 0}, unk_token='[UNK]')])
def test_other_kinds_are_told_apart(model):
    with pytest.raises(ValueError, match=type(model).__name__):
        token_bytes(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model)))

def test_slow_tokenizers_are_refused():
    class Slow: pass
    with pytest.raises(ValueError, match='Slow is a slow tokenizer'): token_bytes(Slow())

# -- under fire: tests/fuzz_align.py, its long form by `python tests/fuzz_align.py 100000` ---------------------------------

@pytest.mark.parametrize('name', fuzz_align.names())
def test_no_end_is_wrong_on_random_documents(name):
    chance, unplaced, tokens = random.Random(name), 0, 0
    for _ in range(25):
        wrong, n, without, *_ = fuzz_align.misses(name, text := fuzz_align.document(chance))
        assert not wrong, (text, wrong[:3])

@pytest.mark.parametrize('name', fuzz_align.names())
def test_every_token_writes_what_its_table_says(name):
    assert not fuzz_align.wrong_bytes(name, 1 if name in fuzz_align.STYLES else 97)

# those have no token for many letters
@pytest.mark.parametrize('name', [name for name in fuzz_align.names()
                                  if name not in ('no_fallback', 'unigram_nfkc_unk', 'unigram_collapse')])
def test_nearly_every_token_of_real_text_has_an_end(name):
    texts = [inspect.getdoc(thing) for thing in vars(inspect).values() if inspect.getdoc(thing)][:60]
    ends = [ends for _, ends in encode_bytes(get_fuzzed(name), texts, fuzz_align.tokenizer_of(name)[1])]
    assert sum((e < 0).sum() for e in ends) <= .001 * sum(map(len, ends)), name

def get_fuzzed(name): return fuzz_align.tokenizer_of(name)[0]

def test_runs_of_spaces_that_are_added_tokens_write_spaces():
    "Gemma's: indented code is made of them."
    tokenizer, table, _ = fuzz_align.tokenizer_of('gemma')
    text = 'def f(x):\n    if x:\n        return x'
    (ids, ends), = encode_bytes(tokenizer, [text], table)
    assert b''.join(table[i] for i in ids) == text.encode() and (ends >= 0).all()
    assert b'    ' in [table[i] for i in ids]
    # the letter itself reads as two spaces there, and ends where it stands
    (ids, ends), = encode_bytes(tokenizer, ['a\u2581\u2581b'], table)
    assert ends[-1] == 8 and 7 in ends

@pytest.mark.parametrize('name', ['unigram_collapse', 'unigram_xglm', 'unigram_once', 'bytes_once'])
def test_of_several_spaces_one_is_left_and_ends_with_the_last(name):
    tokenizer, table, _ = fuzz_align.tokenizer_of(name)
    text = 'the  list   of x  and \u00a0 a'
    (ids, ends), = encode_bytes(tokenizer, [text], table)
    raw, words = text.encode(), ['the', 'list', 'of', 'x', 'and', 'a']
    stops = [raw.index(w.encode() + b' ') + len(w) for w in words[:-1]] + [len(raw)]
    assert (ends >= 0).all() and set(stops) <= set(ends.tolist())
    assert not set(ends.tolist()) & {4, 10, 11, 15}  # inside a run of spaces

@pytest.mark.parametrize('name, ends', [('unigram_xglm', {3, 8, 11, 14, 17, 20}), ('bytes_once', {3, 8, 11, 16, 17, 20})])
def test_spaces_made_one_and_letters_composed_keep_their_ends(name, ends):
    tokenizer, table, _ = fuzz_align.tokenizer_of(name)
    (ids, found), = encode_bytes(tokenizer, ['the  cafe\u0301   of e\u0301'], table)
    assert ends - {3} <= set(found.tolist()), found

def test_a_letter_that_is_half_lost_takes_nothing_with_it():
    tokenizer, table, _ = fuzz_align.tokenizer_of('unigram_collapse')
    text = 'the list\u01c6\u010f and the list'  # its first half, d, is known, the other is not
    (ids, ends), = encode_bytes(tokenizer, [text], table)
    assert None in [table[i] for i in ids] and len('the list') in ends and ends[-1] == len(text.encode())

def test_the_text_between_two_unknown_letters_keeps_its_ends():
    tokenizer, table, _ = fuzz_align.tokenizer_of('unigram_nfkc_unk')
    text = 'the \ufb01le \U0001f600 and the \ufb01le \U0001f600 of it'
    (ids, ends), = encode_bytes(tokenizer, [text], table)
    assert (ends < 0).sum() == 2 and {10, text.encode().index(b' of') + 3, len(text.encode())} <= set(ends.tolist())


@pytest.mark.parametrize('name', [*tiny, *lossy, 'gpt2', 'qwen2', 'mistral'])
def test_a_long_document_in_pieces_is_read_as_one(name):
    "Every piece by itself, or none where there is a doubt."
    rng, tokenizer, table = random.Random(0), get(name), token_bytes(get(name))
    plain = ' '.join(inspect.getsource(module) for module in (inspect, random, json))[:40_000]
    odd = [text for text in awkward if text]
    mixed = ''.join(rng.choice(odd) if rng.random() < .05 else plain[(at := rng.randrange(len(plain) - 400)):at + rng.randrange(400)]
                    for _ in range(60))
    in_pieces = 0
    for text in (plain, mixed, 'word ' * 4000, 'x' * 6000, ' ' * 6000, 'é ' * 4000):
        (ids, ends), = encode_bytes(tokenizer, [text], table)
        for size, around in ((1500, 256), (6000, 1024)):
            with plain_backend(tokenizer) as backend: found = encode_long(backend, text, table, size, around)
            if found is None: continue
            in_pieces += 1
            assert found[0].dtype == found[1].dtype == np.int64 and np.array_equal(found[0], ids) and np.array_equal(found[1], ends)
        by_itself, short = encode_bytes(tokenizer, [text, 'a b'], table, long=5000)
        assert np.array_equal(by_itself[0], ids) and np.array_equal(by_itself[1], ends) and len(short[0])
    assert in_pieces >= 4 or name in lossy


@pytest.mark.parametrize('lead', ['', ' x', ' x x', ' x x x'])
def test_pieces_that_do_not_fit_together_are_read_as_a_whole(lead):
    "A tokenizer that joins words two by two from the beginning, so that every token depends on how many went before."
    backend = Tokenizer(models.BPE(vocab={'x': 0, 'Ġ': 1, 'Ġx': 2, 'ĠxĠx': 3}, merges=[('Ġ', 'x'), ('Ġx', 'Ġx')]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    text, table = 'x' + lead + ' x' * 3000, token_bytes(tokenizer)
    (ids, ends), = encode_bytes(tokenizer, [text], table)
    doubted = 0
    for size in range(500, 508):
        with plain_backend(tokenizer) as backend: found = encode_long(backend, text, table, size, 101)
        doubted += found is None
        assert found is None or np.array_equal(found[0], ids) and np.array_equal(found[1], ends)
        by_itself, = encode_bytes(tokenizer, [text], table, long=2 * size)
        assert np.array_equal(by_itself[0], ids) and np.array_equal(by_itself[1], ends)
    assert doubted


def test_pieces_meet_between_words_only():
    text = ('some words and_more  12 34\n\nnext line ' * 200)
    cuts = safe_cuts(text, 100, 50)
    assert len(cuts) > 40 and all(text[at - 1].isalnum() and text[at] in ' \n' and text[at + 1].isalpha()
                                  for at in cuts) and max(cuts) <= len(text) - 50
