"Laws of the vocabulary maps: partitions, identity, brute force on a toy world, KL under coarsening."
import itertools
import json
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from tiny_tokenizers import byte_level, corpus, get, real, table_of, tiny
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from kdkit.align import encode_bytes, shared_boundaries, token_bytes
from kdkit.losses import forward_kl, projected_kl
from kdkit.knowledge import build_map, cached_comparison, comparison
from kdkit.vocab import (TokenPair, VocabMap, combined_map, common_prefix_map, continuations, first_token_map, gold_consistency,
                         ids_by_bytes, identity_map,
                         same_tokenizer, spelling_matrix, teacher_spellings)

methods = first_token_map, common_prefix_map, combined_map
pairs = [*itertools.permutations(['bytes', 'bytes-large', 'bytes-prefix', 'bytes-NFC', 'metaspace', 'prepend'], 2)]

def sizes(*names): return [len(get(name)) + extra for name, extra in zip(names, (0, 37))]  # the teacher's model is padded
def ends_of(student, teacher): return [(get(student).eos_token_id, get(teacher).eos_token_id)]
def build(method, student, teacher):
    return method(TokenPair(get(student), get(teacher), *sizes(student, teacher), ends_of(student, teacher)))

@pytest.mark.parametrize('student, teacher', pairs)
@pytest.mark.parametrize('method', methods)
def test_maps_are_partitions(method, student, teacher):
    vocab_map = build(method, student, teacher)
    student_size, teacher_size = sizes(student, teacher)
    student_logits, teacher_logits = torch.randn(3, 2, student_size), torch.randn(3, 2, teacher_size) * 5
    for log_probs in (vocab_map.student_log_probs(student_logits), vocab_map.teacher_log_probs(teacher_logits)):
        assert log_probs.shape == (3, 2, vocab_map.n_classes) and log_probs.dtype == torch.float32 and log_probs.isfinite().all()
        torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(3, 2), atol=1e-6, rtol=0)
    student_classes = set(vocab_map.student_class(torch.arange(student_size)).tolist())
    teacher_classes = set(vocab_map.teacher_class(torch.arange(teacher_size)).tolist())
    own = vocab_map.n_classes if method is first_token_map else vocab_map.n_classes - 1  # the last one holds the student's control tokens
    bytes_and_ends = student_classes - {own}
    # all but the student's control tokens and, where every token has one, what no common token begins
    assert len(bytes_and_ends) >= vocab_map.n_classes - 2
    assert teacher_classes <= bytes_and_ends | {vocab_map.n_classes} and vocab_map.n_classes in teacher_classes  # the padding is the rest

@pytest.mark.parametrize('student, teacher', pairs)
@pytest.mark.parametrize('method', methods)
def test_ends_are_ends_and_other_control_tokens_are_the_rest(method, student, teacher):
    (mine, theirs), = ends_of(student, teacher)
    turn = get(student).bos_token_id, get(teacher).bos_token_id  # as if it were the end of a turn
    vocab_map = method(TokenPair(get(student), get(teacher), *sizes(student, teacher), [(mine, theirs), turn]))
    of_student, of_teacher = (function(torch.arange(size)).tolist()
                              for function, size in zip((vocab_map.student_class, vocab_map.teacher_class), sizes(student, teacher)))
    for own, other in ((mine, theirs), turn):
        assert of_student[own] == of_teacher[other] and of_student.count(of_student[own]) == of_teacher.count(of_student[own]) == 1
    for i, piece in enumerate(token_bytes(get(teacher), sizes(student, teacher)[1])):
        assert (of_teacher[i] == vocab_map.n_classes) == (piece is None and i not in (theirs, turn[1]))
    controls = {of_student[i] for i, piece in enumerate(token_bytes(get(student))) if piece is None and i not in (mine, turn[0])}
    assert not controls & {*of_teacher}

@pytest.mark.parametrize('method', methods)
def test_the_rest_teaches_nothing(method):
    """Whatever a teacher thinks of control tokens and vacant rows, the comparison is that of a teacher without them, whole or as it was
    written down."""
    vocab_map = build(method, 'metaspace', 'bytes-large')
    size, rest = sizes('metaspace', 'bytes-large')[1], vocab_map.teacher_index == vocab_map.n_classes
    torch.manual_seed(0)
    student, teacher, odd = torch.randn(5, len(get('metaspace')), requires_grad=True), torch.randn(5, size), torch.randn(5, size) * 3
    loud, silent = teacher.where(~rest, odd + 2), teacher.masked_fill(rest, -torch.inf)
    assert loud.softmax(-1)[:, rest].sum(-1).min() > .2
    says, node = comparison(method, vocab_map), torch.zeros(5, dtype=torch.long)
    torch.testing.assert_close(says(student, loud, node, None), says(student, silent, node, None), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(vocab_map.teacher_log_probs(loud).exp().sum(-1), torch.ones(5))
    cached = cached_comparison(vocab_map)
    written = [torch.cat([torch.arange(size).expand(5, -1), logits.log_softmax(-1)], -1) for logits in (loud, silent)]
    heard = [cached(student.log_softmax(-1), answers, node) for answers in written]
    torch.testing.assert_close(heard[0], heard[1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(heard[0], says(student, silent, node, None), atol=1e-3, rtol=1e-3)

@pytest.mark.parametrize('name', [*tiny, 'qwen2', 'gpt2', 'mistral'])
def test_a_tokenizer_maps_to_itself(name):
    tokenizer = get(name)
    table, ids = table_of(name), ids_by_bytes(tokenizer, table_of(name))
    vocab_map = first_token_map(TokenPair(tokenizer, tokenizer, len(table), len(table), ()))
    for i, piece in enumerate(table):
        same = int(vocab_map.teacher_index[i])
        if piece: assert table[same] == piece and (same == i or ids[piece] == same != i)
    assert same_tokenizer(tokenizer, tokenizer)

def test_same_tokenizer_looks_past_control_tokens_only():
    a, b = (PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(byte_level().backend_tokenizer.to_str())) for _ in range(2))
    b.add_special_tokens({'pad_token': '<|pad|>'})
    assert same_tokenizer(a, b) and same_tokenizer(b, a)
    assert not any(same_tokenizer(get(x), get(y)) for x, y in itertools.combinations(tiny, 2))

@given(st.integers(2, 9), st.integers(0, 5), st.integers(0, 5))
def test_identity_leaves_padding_to_the_rest(shared, more_student, more_teacher):
    vocab_map = identity_map(shared + more_student, shared + more_teacher, ends=[(1, 1)])
    assert vocab_map.n_classes == shared + more_student and vocab_map.student_index is None
    assert (vocab_map.teacher_index is None) == (more_teacher == more_student)
    if more_teacher != more_student:
        assert vocab_map.teacher_index.tolist() == [min(i, vocab_map.n_classes) for i in range(shared + more_teacher)]
    probs = vocab_map.teacher_log_probs(torch.randn(3, shared + more_teacher)).exp()
    assert probs.shape == (3, shared + more_student)
    torch.testing.assert_close(probs.sum(-1), torch.ones(3))

def test_a_control_token_that_means_something_else_is_the_rest():
    "One tokenizer, but one side calls the row after the text a pad token and the other the end of a turn; and the ends have other ids."
    student, teacher = (PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(byte_level().backend_tokenizer.to_str()),
                                                eos_token='<|endoftext|>') for _ in range(2))
    student.add_special_tokens({'additional_special_tokens': ['<|pad|>', '<|im_end|>']})
    teacher.add_special_tokens({'additional_special_tokens': ['<|im_end|>', '<|tool|>']})
    pad, end = len(student) - 2, len(student) - 1
    vocab_map = build_map('auto', student, teacher, len(student) + 5, len(teacher) + 9, ends=[(0, 0), (end, pad)])
    assert vocab_map.name == 'identity' and vocab_map.teacher_index[:3].tolist() == [0, 1, 2]
    assert vocab_map.teacher_index[[pad, end]].tolist() == [end, vocab_map.n_classes]
    assert vocab_map.teacher_index[-4:].tolist() == [vocab_map.n_classes] * 4

def toy(tokens, merges=()):
    "A byte-level tokenizer of exactly these tokens, the end of document first."
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=tokens[0])

def toy_world():
    student = toy(['</s>', 'a', 'b', 'c', 'd', '1', '2', 'Ġ', 'ab', 'Ġa', 'cd', '12'], [('a', 'b'), ('Ġ', 'a'), ('c', 'd'), ('1', '2')])
    teacher = toy(['<e>', 'a', 'b', 'c', 'd', '1', '2', 'Ġ', 'Ġa', 'bc', 'abc', 'abcd'],
                  [('Ġ', 'a'), ('b', 'c'), ('a', 'bc'), ('abc', 'd')])
    return student, teacher

def test_toy_world_by_hand():
    student, teacher = toy_world()
    #                        <e> a  b  c  d  1  2  _  _a bc abc abcd
    assert first_token_map(TokenPair(student, teacher, 12, 12, [(0, 0)])).teacher_index.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 9, 2, 8, 8]
    vocab_map = common_prefix_map(TokenPair(student, teacher, 12, 12, [(0, 0)]))
    names = [b' ', b' a', b'1', b'2', b'a', b'b', b'c', b'd', b'other', None]
    student_classes = [names[i] for i in vocab_map.student_index]
    assert student_classes == [None, b'a', b'b', b'c', b'd', b'1', b'2', b' ', b'a', b' a', b'c', b'1']
    assert [names[i] for i in vocab_map.teacher_index] == [None, b'a', b'b', b'c', b'd', b'1', b'2', b' ', b' a', b'b', b'a', b'a']
    both = combined_map(TokenPair(student, teacher, 12, 12, [(0, 0)]))
    assert [names[i] for i in both.teacher_index] == [None, b'a', b'b', b'c', b'd', b'1', b'2', b' ', b' a', b'b', b'a', b'a']

@pytest.mark.parametrize('method', methods)
def test_toy_world_by_brute_force(method):
    student, teacher = toy_world()
    student_bytes, teacher_bytes = token_bytes(student), token_bytes(teacher)
    vocab_map = method(TokenPair(student, teacher, 12, 12, [(0, 0)]))
    logits = torch.randn(4, 12)
    common = set(student_bytes) & set(teacher_bytes) - {None}
    def prefix(piece): return max((c for c in common if piece and piece.startswith(c)), key=len, default=None)
    def first(piece): return student_bytes[student(piece.decode()).input_ids[0]] if piece else None
    label = {first_token_map: first, common_prefix_map: prefix, combined_map: lambda piece: prefix(first(piece))}[method]
    own = (lambda piece: piece) if method is first_token_map else prefix
    expected = torch.zeros(4, vocab_map.n_classes)
    for i, piece in enumerate(teacher_bytes):
        match = next(j for j, mine in enumerate(student_bytes) if own(mine) == label(piece))
        expected[:, vocab_map.student_class(torch.tensor(match))] += logits.softmax(-1)[:, i]
    torch.testing.assert_close(vocab_map.teacher_log_probs(logits).exp(), expected)

@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 9))
def test_coarsening_never_raises_kl(seed, classes):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 5, 40, generator=generator).unbind()
    index = torch.randint(classes, (40,), generator=generator)
    coarse = VocabMap('coarse', classes, index, index)
    fine = forward_kl(student * 3, teacher * 3)
    assert (forward_kl(coarse.student_log_probs(student * 3), coarse.teacher_log_probs(teacher * 3)) <= fine + 1e-5).all()

@pytest.mark.parametrize('method', methods)
def test_a_permuted_vocabulary_permutes_the_map(method):
    student, teacher = get('bytes'), get('bytes-large')
    state = json.loads(teacher.backend_tokenizer.to_str())
    order = torch.randperm(len(teacher), generator=torch.Generator().manual_seed(0)).tolist()
    state['model']['vocab'] = {token: order[i] for token, i in state['model']['vocab'].items()}
    for token in state['added_tokens']: token['id'] = order[token['id']]
    shuffled = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token='<|endoftext|>')
    plain, permuted = (method(TokenPair(student, t, len(student), len(teacher), [(student.eos_token_id, t.eos_token_id)]))
                       for t in (teacher, shuffled))
    assert permuted.teacher_index[order].tolist() == plain.teacher_index.tolist()

def test_gradients_flow_and_logits_may_be_half():
    vocab_map = build(combined_map, 'bytes', 'bytes-large')
    logits = torch.randn(2, len(get('bytes')), requires_grad=True)
    vocab_map.student_log_probs(logits)[:, :5].sum().backward()
    assert logits.grad.isfinite().all() and logits.grad.abs().sum() > 0
    assert vocab_map.student_log_probs(logits.half()).dtype == torch.float32
    assert vocab_map.to('cpu').n_classes == vocab_map.n_classes

@pytest.mark.parametrize('method', methods)
def test_a_model_may_have_fewer_rows_than_its_tokenizer(method):
    vocab_map = method(TokenPair(get('bytes'), get('metaspace'), 380, 590, [(0, 2)]))
    assert vocab_map.teacher_log_probs(torch.randn(2, 590)).shape == vocab_map.student_log_probs(torch.randn(2, 380)).shape

def test_gold_consistency_is_equality_of_classes():
    vocab_map = VocabMap('toy', 2, torch.tensor([0, 1, 1]), torch.tensor([1, 0]))
    assert gold_consistency(vocab_map, torch.tensor([0, 1, 2]), torch.tensor([1, 1, 0])).tolist() == [True, False, True]

@pytest.mark.parametrize('student, teacher', [('gpt2', 'qwen2'), ('qwen2', 'gpt2'), ('mistral', 'qwen2')])
def test_real_vocabularies_in_seconds(student, teacher):
    rows = {'qwen2': 151_936, 'gpt2': 50_257, 'mistral': 32_000}
    ends = {'qwen2': 151_643, 'gpt2': 50_256, 'mistral': 2}
    end = ends[student]
    tokenizers = real(student), real(teacher)
    tables = [token_bytes(tokenizer, rows[name]) for tokenizer, name in zip(tokenizers, (student, teacher))]
    for method in methods:
        start = time.perf_counter()
        vocab_map = method(TokenPair(*tokenizers, rows[student], rows[teacher], [(end, ends[teacher])]))
        assert time.perf_counter() - start < 30  # some 3 s on a free core
        end_class = vocab_map.student_class(torch.tensor(end))
        assert (vocab_map.teacher_index == end_class).nonzero()[:, 0].tolist() == [ends[teacher]]
        assert {i for i, piece in enumerate(tables[1])
                if piece is None} - {ends[teacher]} == set((vocab_map.teacher_index == vocab_map.n_classes).nonzero()[:, 0].tolist())
        if method is first_token_map:  # what a token is mapped to is what begins it
            for piece, i in zip(tables[1], vocab_map.teacher_index.tolist()):
                if piece: assert piece.startswith(tables[0][i])
        else: assert set(vocab_map.teacher_index.tolist()) <= set(range(vocab_map.n_classes + 1)) - {vocab_map.n_classes - 1}

def students_paths(student, teacher, text):
    "By hand: for each student token of a text its index, the teacher token that is open there, and the student tokens since the boundary."
    (ids, ends), (teacher_ids, teacher_ends) = (encode_bytes(get(name), [text], table_of(name))[0] for name in (student, teacher))
    here, there = shared_boundaries(ends, teacher_ends)
    return ids, teacher_ids, np.append(-1, here), np.append(-1, there)

@pytest.mark.parametrize('student, teacher', pairs)
def test_inside_a_teacher_token_by_brute_force(student, teacher):
    written = teacher_spellings(TokenPair(get(student), get(teacher), *sizes(student, teacher)))
    tree = continuations(written, len(get(student)))
    text = corpus[1][:1500] + ' 2026 naïve'
    ids, teacher_ids, here, there = students_paths(student, teacher, text)
    expected = {}
    for index, (begin, asked) in enumerate(zip(here[:-1], there[:-1])):
        path, token = (), written[teacher_ids[asked + 1]]
        for at in range(begin + 1, here[index + 1]):
            path += (int(ids[at]),)
            if len(path) <= 8 and len(token) > len(path) and tuple(token[:len(path)]) == path: expected[at] = asked, path
            else: break
    first = torch.tensor([[0, *ids]]), torch.tensor([[0, *teacher_ids]])  # a start token on either side
    partner, node = (x[0].tolist() for x in tree.find(*first, *(torch.from_numpy(at[None, :-1] + 1) for at in (here, there))))
    boundary = set((here[:-1] + 1).tolist())
    assert {i for i, n in enumerate(node) if n <= 0 and partner[i] >= 0} == boundary
    assert {i - 1: partner[i] - 1 for i, n in enumerate(node) if n > 0} == {at: int(asked) for at, (asked, _) in expected.items()}
    logits = torch.randn(len(get(teacher)) + 37, dtype=torch.float64) * 3
    probs = logits.softmax(-1)
    classes = torch.randint(5, (len(get(student)),))
    for at, (_, path) in list(expected.items())[:40]:
        whole = torch.zeros(len(get(student)), dtype=torch.float64)
        for token, spelt in enumerate(written):
            if len(spelt) > len(path) and tuple(spelt[:len(path)]) == path: whole[spelt[len(path)]] += probs[token]
        whole /= whole.sum()
        some = torch.tensor([node[at + 1]] * 2)
        torch.testing.assert_close(tree.answers(logits.expand(2, -1), some, None, len(whole))[0], whole.expand(2, -1), atol=1e-9, rtol=1e-6)
        coarse = torch.zeros(5, dtype=torch.float64).index_add(0, classes, whole)
        torch.testing.assert_close(tree.answers(logits[None], some[:1], classes, 5)[0][0], coarse, atol=1e-9, rtol=1e-6)

@pytest.mark.parametrize('student, teacher', [*pairs[:6], pairs[12], pairs[22]])
def test_where_a_teacher_token_ended_but_another_goes_on_by_brute_force(student, teacher):
    written = teacher_spellings(TokenPair(get(student), get(teacher), *sizes(student, teacher)))
    tree, written = continuations(written, len(get(student))), [*map(tuple, written)]
    ids, teacher_ids, here, there = students_paths(student, teacher, corpus[1][:1500])
    goes_on = {path[:n] for path in written for n in range(1, min(len(path), 9))}
    expected = {}
    for begin, end, asked, last in zip(here[:-1], here[1:], there[:-1], there[1:]):
        path = tuple(int(x) for x in ids[begin + 1:end + 1])
        if last == asked + 1 and path in goes_on and written[teacher_ids[last]] == path: expected[int(end)] = path
    first = torch.tensor([[0, *ids]]), torch.tensor([[0, *teacher_ids]])  # a start token on either side
    partner, node = tree.find(*first, *(torch.from_numpy(at[None] + 1) for at in (here, there)))
    assert (partner[node < 0] > 0).all()
    found = {i - 1: -n for i, n in enumerate(node[0].tolist()) if n < 0}
    assert found.keys() == expected.keys()
    probs = torch.randn(len(get(teacher)) + 37, dtype=torch.float64).mul(3).softmax(-1)
    for at, path in list(expected.items())[:40]:
        ends, on = (sum(probs[token] for token, spelt in enumerate(written) if rule(spelt))
                    for rule in (lambda spelt: spelt == path, lambda spelt: spelt[:len(path)] == path != spelt))
        if sum(spelt == path for spelt in written) == 1:
            torch.testing.assert_close(tree.answers(probs.log()[None], torch.tensor([found[at]]), None, len(get(student)))[1].exp()[0],
                                       on / ends)

@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6))
def test_soft_ends_ask_for_the_teachers_marginal(seed):
    """The student spells the teacher's bc as b, c. Whatever the text did after b, what the student should expect there is the teacher's
    marginal, and no other student does better."""
    torch.manual_seed(seed)
    toys = toy_world()
    b, c, bc = toys[0].convert_tokens_to_ids('b'), toys[0].convert_tokens_to_ids('c'), toys[1].convert_tokens_to_ids('bc')
    vocab_map = build_map('first_token', *toys, 12, 12)
    before, after, student = torch.randn(3, 12, dtype=torch.float64).mul(2).unbind()
    after[toys[1].convert_tokens_to_ids('c')] = -100  # what is one token is never written as two
    node = vocab_map.inside.step(torch.tensor([0]), torch.tensor([b]))
    compare = comparison('first_token', vocab_map, soft_ends=True)
    probs, next_token = before.softmax(-1), vocab_map.teacher_log_probs(after[None])[0].exp()
    ends = probs[toys[1].convert_tokens_to_ids('b')] / (probs[toys[1].convert_tokens_to_ids('b')] + probs[bc])
    target = ends * next_token
    target[c] += 1 - ends
    def ended(student): return compare(student[None], after[None], -node, lambda: before[None])[0]
    def goes_on(student): return compare(student[None], before[None], node, lambda: before[None][:0])[0]
    torch.testing.assert_close(ended(student), forward_kl(student, target.clamp_min(1e-300).log()))
    odds = torch.stack([1 - ends, ends])
    student_odds = torch.stack([student.softmax(-1)[c], 1 - student.softmax(-1)[c]])
    torch.testing.assert_close(goes_on(student), (odds * (odds / student_odds).log()).sum())  # of the others only the sum is known
    best = target.clamp_min(1e-300).log()
    assert ended(best).abs() < 1e-9 and goes_on(best).abs() < 1e-9
    torch.testing.assert_close(compare(student[None], after[None], 0 * node, lambda: before[None][:0])[0],
                               forward_kl(student, vocab_map.teacher_log_probs(after[None])[0]))

def test_the_chain_gives_back_the_first_token_map():
    "P(s1) P(s2 | s1, it goes on) P(it goes on | s1): summed over how the teacher's tokens go on, everything is there again."
    student, teacher = 'bytes', 'bytes-large'
    written = teacher_spellings(TokenPair(get(student), get(teacher), *sizes(student, teacher)))
    tree, probs = continuations(written, len(get(student))), torch.randn(len(written), dtype=torch.float64).softmax(-1)
    n_nodes = len(tree.edges) + 1
    reached = torch.zeros(n_nodes, dtype=torch.float64).index_add(0, torch.arange(n_nodes).repeat_interleave(tree.start.diff()),
                                                                  probs[tree.tokens])
    said = tree.answers(probs.log().expand(n_nodes - 1, -1), torch.arange(1, n_nodes), None, len(get(student)))[0]
    for edge, (key, node) in enumerate(zip(tree.edges.tolist(), range(1, n_nodes))):
        parent, token = divmod(key, len(get(student)))
        if not parent: continue
        ends = sum(probs[w] for w, spelt in enumerate(written)
                   if len(spelt) > 1 and tree.paths[w, len(spelt) - 2] == parent and spelt[-1] == token)
        torch.testing.assert_close(reached[parent] * said[parent - 1, token], reached[node] + ends)
    assert n_nodes > 50 and (said.sum(-1) - 1).abs().max() < 1e-12

def test_one_tokenizer_has_no_inside():
    tree = continuations(teacher_spellings(TokenPair(get('bytes'), get('bytes'), *sizes('bytes', 'bytes'))), len(get('bytes')))
    ids, positions = torch.arange(1, 8)[None], torch.arange(6)[None]
    partner, node = tree.find(ids, ids, positions, positions)
    assert partner.tolist() == [[*range(6), -1]] and node.tolist() == [[0] * 7]

@pytest.mark.parametrize('student, teacher', [*pairs[:4], ('bytes', 'bytes')])
def test_the_spelling_matrix_spreads_each_student_token_over_what_writes_it(student, teacher):
    s, t, weights = spelling_matrix(TokenPair(get(student), get(teacher), *sizes(student, teacher)), get(teacher).eos_token_id)
    mine, theirs = token_bytes(get(student)), token_bytes(get(teacher))
    torch.testing.assert_close(torch.zeros(len(mine)).index_add(0, s, weights), torch.ones(len(mine)))
    known = set(filter(None, theirs))
    for i, piece in enumerate(mine):
        entries = {theirs[j]: w for j, w in zip(t[s == i].tolist(), weights[s == i].tolist())}
        if piece is None: assert [*entries] == [None]
        elif piece in known: assert entries == {piece: 1.}
        else:
            for other in entries: assert other in piece or piece in other
    if student == teacher: assert all(i == j for i, j in zip(s.tolist(), t.tolist()) if mine[i])

@pytest.mark.parametrize('student, teacher', [('gpt2', 'qwen2'), ('qwen2', 'gpt2')])
def test_the_tree_of_real_vocabularies_is_small(student, teacher):
    rows = {'qwen2': 151_936, 'gpt2': 50_257}
    start = time.perf_counter()
    tree = continuations(teacher_spellings(TokenPair(real(student), real(teacher), rows[student], rows[teacher])), rows[student])
    assert time.perf_counter() - start < 60 and tree.paths.shape == (rows[teacher], 8)
    assert sum(part.numel() for part in (tree.edges, tree.start, tree.tokens, tree.following)) < 3_000_000
    assert (tree.edges.diff() > 0).all() and tree.start[-1] == len(tree.tokens) and (tree.start.diff()[1:] > 0).all()

def test_projected_kl_leaves_out_what_no_rule_reaches():
    "Against a dense matrix, with teacher tokens that nothing leads to."
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 6, dtype=torch.float64), torch.randn(3, 9, dtype=torch.float64)
    matrix = torch.zeros(6, 9, dtype=torch.float64)
    for i, columns in enumerate(([0], [0, 4], [2, 5, 8], [8], [5], [2])):
        matrix[i, columns] = torch.tensor([.5, .3, .2][:len(columns)], dtype=torch.float64) / sum([.5, .3, .2][:len(columns)])
    rows, columns = matrix.nonzero(as_tuple=True)
    reached = [0, 2, 4, 5, 8]
    wanted = teacher.softmax(-1)[:, reached] / teacher.softmax(-1)[:, reached].sum(-1, keepdim=True)
    got = (student.softmax(-1) @ matrix)[:, reached]
    torch.testing.assert_close(projected_kl(student, teacher, rows, columns, matrix[rows, columns]),
                               (wanted * (wanted / got).log()).sum(-1))

@pytest.mark.parametrize('student, teacher', pairs[:6])
@pytest.mark.parametrize('method', ['first_token', 'combined'])
def test_one_model_in_two_tokenizers_has_nothing_to_learn(student, teacher, method):
    "A student that gives every beginning of the teacher's tokens their probability, at boundaries and inside."
    written = teacher_spellings(TokenPair(get(student), get(teacher), *sizes(student, teacher)))
    student_size, end = sizes(student, teacher)[0], get(student).eos_token_id
    vocab_map = build_map(method, get(student), get(teacher), *sizes(student, teacher))
    logits = torch.randn(len(written), dtype=torch.float64) * 3
    probs, says = logits.softmax(-1), comparison(method, vocab_map)
    def what_follows(path):
        mass = torch.zeros(student_size, dtype=torch.float64)
        for w, ids in enumerate(written):
            if tuple(ids[:len(path)]) == path and len(ids) > len(path): mass[ids[len(path)]] += probs[w]
            elif w == get(teacher).eos_token_id and not path: mass[end] += probs[w]
        return (mass / mass.sum()).clamp_min(1e-300).log()
    paths = [(), *sorted({tuple(ids[:n]) for ids in written for n in range(1, min(len(ids), 9))})[::3]]
    assert len(paths) > (10 if student == 'bytes' else 0)  # a student that has all of its teacher's tokens is never inside one
    for path in paths:
        node = 0
        for token in path: node = torch.searchsorted(vocab_map.inside.edges, node * student_size + token).item() + 1
        assert says(what_follows(path)[None], logits[None], torch.tensor([node]), None).abs().item() < 1e-6
    assert says(torch.randn(1, student_size, dtype=torch.float64), logits[None], torch.tensor([0]), None).item() > .1
