"Which positions are compared: inside the teacher's tokens too, or only where it helps the student most."
from dataclasses import replace

import pytest
import torch
from test_contract import batch_of, framework_of

from kdkit.config import ConfigError, DistillConfig
from kdkit.framework import StudentAwareDistillationFramework
from kdkit.prepare import about_text
from kdkit.knowledge import at_positions
from kdkit.terms import highest_of_rows
from kdkit.vocab import TokenPair, teacher_spellings

ONLY = dict(alpha_feature=0., alpha_attention=0., alpha_layerwise=0., alpha_contrastive=0., inside_tokens=False)
CHOICES = [dict(inside_tokens=True), dict(inside_tokens=True, mask_inconsistent=True)] + [
    dict(student_aware=True, aware_by=by, aware_share=share, inside_tokens=share == .3) for by in ('entropy', 'disagreement', 'easy')
    for share in (.3, .5)]

@pytest.mark.parametrize('choice', CHOICES, ids=lambda c: ' '.join(f'{k}={v}' for k, v in c.items()))
def test_the_choice_does_not_depend_on_batches_or_padding(pair, choice):
    framework, text = framework_of(pair, **{**ONLY, **choice})
    rows = text['train'].select(range(8))
    whole = framework(**batch_of(framework, rows))
    whole['loss'].backward()
    gradient = [p.grad.clone() for p in framework.student_model.parameters()]
    units = framework.count_units(batch_of(framework, rows))
    for size, pad in ((1, 0), (4, 5)):
        framework.zero_grad()
        parts = [framework(**batch_of(framework, rows.select(range(i, i + size)), pad), units=units) for i in range(0, 8, size)]
        for name in whole['losses']:
            torch.testing.assert_close(sum(part['losses'][name] for part in parts), whole['losses'][name], atol=1e-4, rtol=1e-4)
        sum(part['loss'] for part in parts).backward()
        for p, wanted in zip(framework.student_model.parameters(), gradient):
            torch.testing.assert_close(p.grad, wanted, atol=1e-5, rtol=1e-3)

def test_inside_tokens_cover_more_and_nothing_twice(pair):
    (plain, text), (inside, _) = framework_of(pair, **ONLY), framework_of(pair, **{**ONLY, 'inside_tokens': True})
    batch = batch_of(plain, text['train'].select(range(8)))
    boundaries, more = (f.count_units(batch) for f in (plain, inside))
    assert boundaries['kd'] < more['kd'] <= more['unaligned'] == boundaries['unaligned']
    (a, _), (b, node) = ([found[name] for name in ('partner', 'node')] for found in (f.complete(batch) for f in (plain, inside)))
    assert (a[a >= 0] == b[a >= 0]).all() and ((a < 0) & (b >= 0) == (node > 0) & (b >= 0)).all()
    assert (node < 0).any() and (b[node < 0] >= 0).all()
    losses = [f(**batch)['losses'] for f in (plain, inside)]
    assert losses[0]['lm'] == pytest.approx(losses[1]['lm'].item(), abs=1e-6) and losses[1]['unaligned'] < losses[0]['unaligned']

@pytest.mark.parametrize('method', ['first_token', 'combined'])
def test_inside_tokens_and_soft_ends_by_brute_force(pair, method):
    "Every target from the spellings of all of the teacher's tokens, position by position, without what tokens that cross add."
    framework, text = framework_of(pair, **{**ONLY, 'inside_tokens': True, 'kd_method': method})
    vocab_map = replace(framework.vocab_map, crossings=None)
    spelt = [*map(tuple, teacher_spellings(TokenPair(framework.student_tokenizer, framework.teacher_tokenizer,
                                                     *(m.config.vocab_size for m in (framework.student_model, framework.teacher_model)))))]
    to_class, coarse = (framework.vocab_map.student_class(torch.arange(framework.student_model.config.vocab_size)),
                        framework.vocab_map.n_classes)
    def classes(weights):
        return torch.zeros(coarse, dtype=torch.float64).index_add(0, to_class[torch.tensor([*weights])], torch.stack([*weights.values()]))
    def goes_on(probs, path):
        "Student tokens that the teacher would write after a path inside its token, and the odds that it goes on."
        after = {}
        for token, spelling in enumerate(spelt):
            if len(spelling) > len(path) and spelling[:len(path)] == path:
                after[spelling[len(path)]] = after.get(spelling[len(path)], 0) + probs[token]
        # each spelling is one token's
        return after, sum(after.values()), max([probs[token] for token, spelling in enumerate(spelt) if spelling == path], default=0.)
    soft, hard = (StudentAwareDistillationFramework(replace(framework.config, soft_ends=ends), framework.teacher_model,
                                                    framework.student_model, framework.teacher_tokenizer,
                                                    framework.student_tokenizer, vocab_map) for ends in (None, False))
    for i in range(3):
        batch = soft.complete(batch_of(framework, text['train'].select([i])))
        ids, teacher_ids = batch['input_ids'][0].tolist(), batch['teacher_input_ids'][0].tolist()
        with torch.no_grad():
            student = framework.vocab_map.student_log_probs(framework.student_model(input_ids=batch['input_ids']).logits[0].double())
            teacher = framework.teacher_model(input_ids=batch['teacher_input_ids']).logits[0].double()
        at_boundary, probs = framework.vocab_map.teacher_log_probs(teacher).exp(), teacher.softmax(-1)
        pairs, last, wanted, count = dict(zip(batch['student_positions'][0].tolist(),
                                              batch['teacher_positions'][0].tolist())), None, dict(soft=0.,
                                                                                                   hard=0.), dict(ended=0, within=0)
        def kl(target, j, known=slice(None)):
            parts = [(target[known], student[j].exp()[known])]
            if not isinstance(known, slice):
                parts.append((1 - target[known].sum(-1, keepdim=True), 1 - student[j].exp()[known].sum(-1, keepdim=True)))
            return sum((torch.xlogy(p, p) - p * q.log()).sum() for p, q in parts)
        for j in range(len(ids)):
            path = None if last is None else tuple(ids[last[0] + 1:j + 1])
            if (asked := pairs.get(j)) is not None:
                inside = last and last[1] == asked - 1 and len(path) <= 8 and spelt[teacher_ids[asked]] == path
                target, (after, on, ends) = at_boundary[asked], goes_on(probs[last[1]], path) if inside else ({}, 0, 0)
                here = target
                if after: here, count['ended'] = classes(after) / (on + ends) + ends / (on + ends) * target, count['ended'] + 1
                last = j, asked
                if batch['labels'][0, j + 1:][:1].ne(-100).all() and j + 1 < len(ids):
                    wanted['soft'], wanted['hard'] = wanted['soft'] + kl(here, j), wanted['hard'] + kl(target, j)
            elif (last and len(path) <= 8 and len(spelt[teacher_ids[last[1] + 1]]) > len(path)
                  and spelt[teacher_ids[last[1] + 1]][:len(path)] == path and batch['labels'][0, j + 1:][:1].ne(-100).all()
                  and j + 1 < len(ids)):
                after, on, ends = goes_on(probs[last[1]], path)
                here, known = classes(after), classes({token: torch.ones((), dtype=torch.float64) for token in after}) > 0
                count['within'] += 1
                wanted['soft'] += kl(here / (on + ends), j, known) if ends else kl(here / on, j)
                wanted['hard'] += kl(here / on, j)
        assert min(count.values()) > 3
        for name, chosen in dict(soft=soft, hard=hard).items():
            units = chosen.count_units(batch)['kd']
            assert chosen(**batch)['losses']['kd'].item() * units.item() == pytest.approx(wanted[name].item(), rel=1e-4), name

@pytest.mark.parametrize('by', ['entropy', 'disagreement', 'easy'])
def test_the_right_positions_are_compared(pair, by):
    framework, text = framework_of(pair, **ONLY)
    chosen = StudentAwareDistillationFramework(replace(framework.config, student_aware=True, aware_by=by, aware_share=.4),
                                               framework.teacher_model, framework.student_model,
                                               framework.teacher_tokenizer, framework.student_tokenizer, framework.vocab_map)
    for i in range(4):  # row by row, from whole distributions
        batch = framework.complete(batch_of(framework, text['train'].select([i])))
        partner = batch['partner']
        at = (partner[0] >= 0).nonzero()[:, 0]
        with torch.no_grad():
            student = framework.student_model(input_ids=batch['input_ids']).logits[0].double().log_softmax(-1)
            teacher = framework.teacher_model(input_ids=batch['teacher_input_ids']).logits[0].double()
            s, t = framework.vocab_map.student_log_probs(student[at]), framework.vocab_map.teacher_log_probs(teacher[partner[0, at]])
        kl = (t.exp() * (t - s)).sum(-1)
        score = dict(entropy=-(student[at].exp() * student[at]).sum(-1), disagreement=kl, easy=-kl)[by]
        best = score.topk(int(-(-len(at) * 4 // 10))).indices
        losses = chosen(**batch)['losses']
        assert losses['kd'].item() == pytest.approx(kl[best].mean().item(), abs=1e-4)
        rest = [j for j in range(batch['input_ids'].shape[1] - 1) if batch['labels'][0, j + 1] != -100 and j not in set(at[best].tolist())]
        nats = sum(-student[j, batch['labels'][0, j + 1]] for j in rest) / (batch['labels'][0, 1:] != -100).sum()
        assert losses['unaligned'].item() == pytest.approx(nats.item(), abs=1e-4)

def test_all_positions_are_the_plain_loss_and_easy_ends_there(pair):
    framework, text = framework_of(pair, **ONLY)
    batch = batch_of(framework, text['train'].select(range(6)))
    build = lambda **more: StudentAwareDistillationFramework(replace(framework.config, student_aware=True, **more),
                                                             framework.teacher_model, framework.student_model,
                                                             framework.teacher_tokenizer, framework.student_tokenizer, framework.vocab_map)
    plain = framework(**batch)['losses']
    for by in ('entropy', 'disagreement', 'easy'):
        for name, loss in build(aware_by=by, aware_share=1.)(**batch)['losses'].items(): torch.testing.assert_close(loss, plain[name])
    easy = build(aware_by='easy', aware_share=.2)
    easy.curriculum.total_steps = 100
    counts = [easy.count_units(batch, step)['kd'].item() for step in (0, 50, 100)]
    assert counts[0] < counts[1] < counts[2] == framework.count_units(batch)['kd'].item()
    torch.testing.assert_close(easy(**batch, step=100)['losses']['kd'], plain['kd'])
    assert easy(**batch, step=0)['losses']['kd'] < easy(**batch, step=50)['losses']['kd'] < plain['kd']

def test_highest_of_rows_by_brute_force():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        row = torch.randint(5, (40,), generator=generator).sort().values
        score, quota = torch.randn(40, generator=generator), torch.randint(12, (5,), generator=generator)
        keep = highest_of_rows(score, row, quota)
        for r in range(5): assert set(score[(row == r) & keep].tolist()) == set(sorted(score[row == r].tolist(), reverse=True)[:quota[r]])

def test_wrong_choices_are_refused():
    for wrong, match in ((dict(soft_ends=True, temperature=2), 'soft_ends'), (dict(soft_ends=True, inside_tokens=False), 'soft_ends'),
                         (dict(soft_ends=True, kd_method='uld'), 'soft_ends'), (dict(aware_by='luck'), 'aware_by'),
                         (dict(aware_share=0), 'aware_share'), (dict(student_aware=True, kd_method='span'), 'stretches')):
        with pytest.raises(ConfigError, match=match): DistillConfig(**wrong)

def test_ends_are_asked_for_where_the_loss_allows_it():
    assert DistillConfig().asks_ends and DistillConfig(kd_method='combined').asks_ends and not DistillConfig(soft_ends=False).asks_ends
    for other in (dict(temperature=2), dict(divergence='jsd'), dict(inside_tokens=False), dict(kd_method='uld'), dict(kd_method='span')):
        assert not DistillConfig(**other).asks_ends

def test_stretches_are_merged_until_the_teacher_sees_the_end_of_a_word(pair):
    plain, text = framework_of(pair, **ONLY, kd_method='span')
    batch = batch_of(plain, text['train'].select(range(6)))
    build = lambda likely: StudentAwareDistillationFramework(replace(plain.config, span_likely=likely), plain.teacher_model,
                                                             plain.student_model,
                                                             plain.teacher_tokenizer, plain.student_tokenizer, plain.vocab_map)
    # everything is likely enough
    assert build(1e-9)(**batch)['losses']['kd'] == pytest.approx(plain(**batch)['losses']['kd'].item(), rel=1e-5)
    complete = plain.complete(batch)
    opens = build(.5).terms['kd'].opens
    with torch.no_grad():
        mass = plain.teacher_model(input_ids=complete['teacher_input_ids']).logits.double().softmax(-1)[..., opens].sum(-1)
    values = at_positions(mass, complete['teacher_positions'])[complete['aligned']].sort().values
    middle = values[len(values) // 2 - 1:][:2].mean().item()  # between two of them: rounding decides nothing
    merged = build(middle)
    total = 0.
    with torch.no_grad():
        for i in range(6):  # by hand
            student, teacher = (m(input_ids=complete[k][i:i + 1]).logits[0].double().log_softmax(-1)
                                for m, k in ((merged.student_model, 'input_ids'), (merged.teacher_model, 'teacher_input_ids')))
            aligned = complete['aligned']
            here, there = (complete[k][i][aligned[i]].tolist() for k in ('student_positions', 'teacher_positions'))
            kept = [(h, t) for h, t in zip(here, there) if teacher[t].exp()[opens].sum() >= middle]
            def nats(log_probs, ids, a, b): return -sum(log_probs[j, ids[j + 1]] for j in range(a, b))
            for (a, c), (b, d) in zip(kept, kept[1:]):
                p, q = (torch.exp(-x / 100) for x in (nats(teacher, complete['teacher_input_ids'][i], c, d),
                                                      nats(student, complete['input_ids'][i], a, b)))
                total += (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).item()
    counts = merged.count_units(batch)['kd'].item()
    assert 0 < merged(**batch)['losses']['kd'].item() == pytest.approx(total / counts, rel=2e-3)
    assert counts == plain.count_units(batch)['kd'].item()

def test_the_summary_counts_what_is_compared(pair):
    (plain, text), (inside, more) = framework_of(pair, **ONLY), framework_of(pair, **{**ONLY, 'inside_tokens': True})
    batch = inside.complete(batch_of(inside, more['train']))
    assert len(more['train']) <= 512  # so all of them are counted
    tokens = (batch['labels'] != -100).sum().item()
    assert (batch['partner'] >= 0).sum().item() == pytest.approx((more['summary']['coverage'] + more['summary']['inside_tokens']) * tokens,
                                                                 abs=.5)
    assert (text['summary']['inside_tokens'] == 0 and "inside a token of the teacher's" in about_text(more)[0]
            and 'inside' not in about_text(text)[0])
