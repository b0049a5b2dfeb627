"Student tokens that run past a teacher's token: telescoping in a world of prefix-free tokens, an oracle by hand, mass, batches, the cache."
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from test_vocab import pairs, sizes, toy
from tiny_tokenizers import corpus, get, real, table_of

from kdkit.align import encode_bytes, shared_boundaries, token_bytes
from kdkit.crossings import Crossed, crossing_tokens, split_kl
from kdkit.losses import forward_kl
from kdkit.knowledge import against_teacher, build_map, comparison
from kdkit.vocab import ids_by_bytes


def batch_of(student, teacher, text, tables):
    "One text as both read it, with a control token before it on either side, and one row of padding more."
    (ids, ends), (teacher_ids, teacher_ends) = (encode_bytes(t, [text], table)[0] for t, table in zip((student, teacher), tables))
    here, there = (np.append(-1, at) + 1 for at in shared_boundaries(ends, teacher_ends))
    row = lambda ids, fill: torch.tensor([[0, *ids, fill, fill], [0, *[fill] * (len(ids) + 2)]])
    mask = lambda n: torch.tensor([[1] * (n + 1) + [0, 0], [1] + [0] * (n + 2)])
    last = (here < len(ids)) & (there < len(teacher_ids))  # nothing follows the last token
    positions = [torch.tensor(np.stack([at[last], np.full(last.sum(), -1)])) for at in (here, there)]
    return dict(input_ids=row(ids, 0), teacher_input_ids=row(teacher_ids, 0), student_positions=positions[0],
                teacher_positions=positions[1],
                attention_mask=mask(len(ids)), teacher_attention_mask=mask(len(teacher_ids)))


def targets(vocab_map, batch, logits):
    "(row, at, probabilities, known, came) of every position that a teacher with these logits [batch, T, vocabulary] is asked about."
    places = vocab_map.places(batch)
    both = batch['input_ids'], batch['teacher_input_ids']
    found = vocab_map.crossings.look_up(places, vocab_map.inside.n_nodes, *both, places.partner >= 0)
    classes, node, ending = vocab_map.with_nodes(found), found['node'], found['ending']
    row, at = (places.partner >= 0).nonzero(as_tuple=True)
    def expect(_, said, where, earlier, *chain):
        probs, known = classes.by_token.teacher_knows(said, where, earlier)
        for some in chain:
            expected, sure = crossing_tokens(classes, said, where, earlier, some)
            probs, known = probs.index_copy(0, some.rows, expected), known.index_copy(0, some.rows, sure)
        return probs, known
    ask = against_teacher(expect, lambda x: x, logits, places.partner, node, Crossed(classes.inside, places.reached, ending, *both))
    return row, at, *ask(None, row, at), both[0][row, at + 1], places


# every text has one spelling, whatever comes next
PREFIX_FREE = ['<e>', 'a', 'ba', 'bb', 'bc', 'ca', 'cb', 'cca', 'ccb', 'ccc'], ['b', 'c', 'cc']
STUDENTS = [(['<s>', 'a', 'b', 'c', 'ab', 'bb', 'aab', 'cc', 'abb'], [('a', 'b'), ('b', 'b'), ('a', 'ab'), ('c', 'c'), ('ab', 'b')]),
            (['<s>', 'a', 'b', 'c', 'ac', 'acc', 'bac', 'ccac', 'ba', 'cc'],
             [('a', 'c'), ('ac', 'c'), ('b', 'ac'), ('c', 'c'), ('cc', 'ac'), ('b', 'a')]),
            (['<s>', 'a', 'b', 'c'], [])]

def prefix_free_teacher():
    words, parts = PREFIX_FREE
    return toy([*words, *parts], [('b', 'a'), ('b', 'b'), ('b', 'c'), ('c', 'a'), ('c', 'b'), ('c', 'c'), ('cc', 'a'), ('cc', 'b'),
                                  ('cc', 'c')])

@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.sampled_from(STUDENTS), st.integers(0, 10**6))
def test_over_a_whole_text_nothing_is_lost_and_nothing_gained(tokens, student, seed):
    """Where every text has one spelling in the teacher's tokens, what the student is taught of the text's tokens multiplies to what the
    teacher gives the text."""
    teacher, student, words = prefix_free_teacher(), toy(*student), PREFIX_FREE[0]
    text = ''.join(words[i] for i in tokens)
    tables = [token_bytes(t) for t in (student, teacher)]
    batch = batch_of(student, teacher, text, tables)
    n = len(tokens) + 1
    # its own spelling, and not what byte-pair merges would make of it
    batch['teacher_input_ids'] = torch.tensor([[0, *tokens, 0, 0], [0] * (n + 2)])
    batch['teacher_attention_mask'] = torch.tensor([[1] * n + [0, 0], [1] + [0] * (n + 1)])
    ends = np.cumsum([len(words[i]) for i in tokens])
    here = np.cumsum([len(tables[0][i]) for i in batch['input_ids'][0, 1:].tolist() if tables[0][i]])
    pairs_of = [(0, 0), *((int(np.searchsorted(here, e)) + 1, j + 1) for j, e in enumerate(ends) if e in here and e < ends[-1])]
    batch['student_positions'], batch['teacher_positions'] = (torch.tensor([[pair[i] for pair in pairs_of], [-1] * len(pairs_of)])
                                                              for i in (0, 1))
    logits = torch.randn(2, n + 2, len(tables[1]), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2
    logits[..., [0, *range(10, 13)]] = -100  # half words and the end of document are not words
    row, at, probs, known, came, _ = targets(build_map('token_level', student, teacher, len(tables[0]), len(tables[1])), batch, logits)
    assert len(came) == len(here)  # every position of the text was asked
    nats = -probs.gather(1, came[:, None]).log().sum()
    expected = -logits[0, :n - 1].log_softmax(-1).gather(1, torch.tensor(tokens)[:, None]).sum()
    torch.testing.assert_close(nats, expected)
    assert (probs >= 0).all() and (probs.sum(-1) <= 1 + 1e-9).all()
    torch.testing.assert_close(probs.sum(-1)[known.all(-1)], torch.ones(int(known.all(-1).sum()), dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize('student, teacher', pairs)
def test_a_crossing_token_by_hand(student, teacher):
    "The product of what came, from where the student stands in the teacher's token to what may go on after its own."
    names, (S, T) = (student, teacher), sizes(student, teacher)
    student, teacher, tables = get(student), get(teacher), [table_of(name) for name in names]
    vocab_map = build_map('token_level', student, teacher, S, T)
    batch = batch_of(student, teacher, corpus[1][:900] + '    return x\n        naïve 2026', tables)
    logits = torch.randn(*batch['teacher_input_ids'].shape, T, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    row, at, probs, known, came, places = targets(vocab_map, batch, logits)
    log_probs = logits[0].log_softmax(-1)
    crossing = (places.reached[row, at] >= 0).nonzero()[:, 0].tolist()
    spell = lambda piece: vocab_map.crossings.possible.spell([piece])[0]
    read = [tables[1][i] if i < len(tables[1]) else None for i in range(T)]
    seen = 0
    for i in crossing:
        here, there, last, n = at[i].item(), places.partner[0,
                                                            at[i]].item(), places.reached[0, at[i]].item(), places.length[0, at[i]].item()
        if places.node[0, here] != 0: continue  # inside a token the tree's own tests speak
        token, begins = tables[0][came[i]], read[batch['teacher_input_ids'][0, last + 1]][:n]
        assert last > there or begins == token  # it stays inside the teacher's token, which what follows made it write otherwise
        assert last == there or (token.endswith(begins) and token.startswith(read[batch['teacher_input_ids'][0, there + 1]]))
        came_last = batch['teacher_input_ids'][0, last + 1].item()
        once = {*ids_by_bytes(teacher, read).values(),
                came_last} - {j for j, piece in enumerate(read) if piece == read[came_last] and j != came_last}
        may = [j for j in once if read[j].startswith(begins) and
               (read[j] == begins or spell(token + read[j][n:])[:1] == [came[i].item()] or j == came_last)]
        goes_on = log_probs[last, may].logsumexp(-1) if last > there else 0
        value = math.exp(sum(log_probs[p, batch['teacher_input_ids'][0, p + 1]] for p in range(there, max(last, there + 1))) + goes_on)
        own = log_probs[there].exp()[vocab_map.first == came[i]].sum()
        silent = log_probs[there].exp()[vocab_map.first == S].sum()  # control tokens and vacant rows teach nothing
        value = value / (1 - silent)
        assert probs[i, came[i]].item() == pytest.approx((own / (1 - silent) + value).item(), rel=1e-9)
        assert probs[i].sum().item() == pytest.approx(1, abs=1e-9)
        seen += 1
    assert seen or not crossing or not (places.node[row, at][crossing] == 0).any()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6))
def test_a_kl_over_finer_events_is_the_coarse_one_and_the_split(seed):
    torch.manual_seed(seed)
    student, teacher = torch.randn(2, 5, 6, dtype=torch.float64).mul(2).log_softmax(-1).unbind()
    lump = lambda x: torch.stack([x[:, :3].logsumexp(-1), *x[:, 3:].unbind(-1)], -1)
    fine = lambda x: torch.stack([x[:, 0], x[:, 1:3].logsumexp(-1), *x[:, 3:].unbind(-1)], -1)
    split = split_kl(lump(student)[:, 0], student[:, 0], lump(teacher)[:, 0].exp(), teacher[:, 0].exp())
    torch.testing.assert_close(forward_kl(fine(student), fine(teacher)), forward_kl(lump(student), lump(teacher)) + split)


def test_one_tokenizer_never_crosses():
    name, n = 'bytes', len(get('bytes'))
    vocab_map = build_map('token_level', get(name), get(name), n, n)
    batch = batch_of(get(name), get(name), corpus[1][:500], [table_of(name)] * 2)
    places = vocab_map.places(batch)
    assert (places.reached < 0).all() and (places.node == 0).all() and (vocab_map.student_index == torch.arange(n)).all()


@pytest.mark.parametrize('method', ['token_level', 'first_token', 'combined', 'common_prefix'])
def test_a_student_that_says_what_it_is_taught_costs_nothing(method):
    "Every comparison is zero for the target itself, and above zero for another student."
    names = 'metaspace', 'bytes'
    S, T = sizes(*names)
    vocab_map = build_map(method, *map(get, names), S, T)
    batch = batch_of(*map(get, names), corpus[1][:600], [table_of(name) for name in names])
    logits = torch.randn(*batch['teacher_input_ids'].shape, T, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3
    row, at, probs, known, came, places = targets(vocab_map, batch, logits)
    crosses = places.reached[row, at] >= 0
    assert crosses.any()
    some = crosses.nonzero()[:, 0]
    whole = known[some].all(-1)  # elsewhere the student may say of the rest what it likes
    best = probs[some][whole].clamp_min(1e-300).log()
    found = vocab_map.crossings.look_up(places, vocab_map.inside.n_nodes, batch['input_ids'], batch['teacher_input_ids'],
                                        places.partner >= 0)
    classes, node, ending = vocab_map.with_nodes(found), found['node'], found['ending']
    crossed = Crossed(classes.inside, places.reached, ending, batch['input_ids'], batch['teacher_input_ids'])
    ask = against_teacher(comparison(method, classes, soft_ends=True), lambda x: x, logits, places.partner, node, crossed)
    at_best = ask(best, row[some][whole], at[some][whole])
    assert len(at_best) and at_best.abs().max() < 1e-6
    assert (ask(torch.randn(len(best), S, dtype=torch.float64).log_softmax(-1), row[some][whole], at[some][whole]) > 1e-3).all()
    shifted, own, classes_of = probs[some][whole].clone(), came[some][whole], vocab_map.student_class(torch.arange(S))
    for i, token in enumerate(own.tolist()):  # half of the token's probability goes to another of its class, which alone would not notice
        mate = next((j for j in (classes_of == classes_of[token]).nonzero()[:, 0].tolist() if j != token), token)
        half = shifted[i, token] / 2
        shifted[i, token] -= half
        shifted[i, mate] += half
    moved = (shifted - probs[some][whole]).abs().sum(-1) > 1e-2
    assert method == 'first_token' or moved.any()
    assert (ask(shifted.clamp_min(1e-300).log(), row[some][whole], at[some][whole])[moved] > 1e-4).all()


def test_where_a_crossing_token_ended_a_longer_one_of_the_teachers_might_have_gone_on():
    "By hand: the mixture of both, by the teacher's odds."
    seen = 0
    for names in pairs[:6]:
        S, T = sizes(*names)
        vocab_map = build_map('token_level', *map(get, names), S, T)
        batch = batch_of(*map(get, names), corpus[1][:1500], [table_of(name) for name in names])
        logits = torch.randn(*batch['teacher_input_ids'].shape, T, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 3
        row, at, probs, _, _, places = targets(vocab_map, batch, logits)
        for i in ((places.node[row, at] == -vocab_map.inside.n_nodes) & (places.reached[row, at] < 0)).nonzero()[:, 0].tolist():
            there = places.partner[0, at[i]].item()
            ended = batch['teacher_input_ids'][0, there].item()
            tokens, following, _ = vocab_map.crossings.possible(batch['input_ids'][0, at[i]].item(), ended, len(table_of(names[1])[ended]))
            before, here = logits[0, there - 1].softmax(-1), logits[0, there].masked_fill(vocab_map.first == S, -torch.inf).softmax(-1)
            wanted = before[ended] * torch.zeros(S, dtype=torch.float64).index_add(0, vocab_map.first.clamp(max=S - 1), here)
            wanted = wanted.index_add(0, torch.tensor(following, dtype=torch.long), before[tokens])
            torch.testing.assert_close(probs[i], wanted / wanted.sum())
            seen += len(tokens) > 0
    assert seen


def test_positions_do_not_depend_on_the_batch():
    names = 'bytes-large', 'bytes'
    S, T = sizes(*names)
    vocab_map = build_map('token_level', *map(get, names), S, T)
    batch = batch_of(*map(get, names), corpus[1][:400], [table_of(name) for name in names])
    logits = torch.randn(*batch['teacher_input_ids'].shape, T, dtype=torch.float64)
    row, at, probs, *_ = targets(vocab_map, batch, logits)
    alone = {name: value[:1] for name, value in batch.items()}
    alone.update(input_ids=alone['input_ids'][:, :-2], attention_mask=alone['attention_mask'][:, :-2])  # no padding
    r, a, same, *_ = targets(vocab_map, alone, logits[:1])
    assert (row == 0).all() and a.tolist() == at.tolist()
    torch.testing.assert_close(same, probs)


@pytest.mark.parametrize('student, teacher', [('gpt2', 'qwen2'), ('mistral', 'qwen2'), ('qwen2', 'mistral')])
def test_real_code_has_a_value_everywhere(student, teacher):
    "Indentation, long names, numbers: every token of a Python file is asked about, and the truth has a value."
    rows = {'qwen2': 151_936, 'gpt2': 50_257, 'mistral': 32_000}
    text = ''.join(open(pytest.__file__).readlines()[:60]) + '\n        if 2026 <= x:\n            return naïve\n'
    tokenizers = real(student), real(teacher)
    tables = [token_bytes(t, rows[name]) for t, name in zip(tokenizers, (student, teacher))]
    vocab_map = build_map('token_level', *tokenizers, rows[student], rows[teacher])
    batch = {name: value[:1] for name, value in batch_of(*tokenizers, text, tables).items()}
    places = vocab_map.places(batch)
    asked = batch['attention_mask'][:, :-1].bool() & (torch.arange(batch['input_ids'].shape[1] - 1) < batch['attention_mask'].sum() - 1)
    assert (places.partner[:, :-1][asked] >= 0).float().mean() > .995
    assert (places.reached >= 0).sum() > 3
