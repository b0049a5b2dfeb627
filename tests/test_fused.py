"The pass that makes gradients on the way gives the losses and gradients of the readable way, which autograd goes back through."
import copy
from functools import partial

import pytest
import torch
import torch.multiprocessing as multiprocessing
from torch import nn

from kdkit.config import DistillConfig
from kdkit.framework import StudentAwareDistillationFramework
from kdkit.fused import Buffers, Head, forward_pull, fused_loss, jsd_pull
from kdkit.losses import forward_kl
from kdkit.prepare import prepare_text
from kdkit.run import make_framework
from kdkit.terms import LanguageModelTerm
from pairs import save_pair, save_text

class WatchedTerm(LanguageModelTerm):
    "A term of somebody's own, which might do anything with the nats: with it in use, everything goes the readable way."
    def forward(self, signals): return super().forward(signals)

@pytest.fixture(scope='module')
def pair(tmp_path_factory):
    "A miniature pair that also runs in double precision."
    folder = tmp_path_factory.mktemp('dense_pair')
    return dict(save_pair(folder, teacher='qwen3'), dataset=save_text(folder))

def batch_and_framework(pair, **options):
    config = DistillConfig(**{**pair, **dict(max_length=48, max_eval_rows=4, max_steps=2, batch_size=3, output_dir='nowhere'), **options})
    text = prepare_text(config)
    framework = make_framework(config, text)
    return framework, framework.collator()([text['train'][i] for i in range(3)])

def both_ways(framework, batch, **units):
    "(loss, losses, gradients by name) of each way."
    readable = copy.copy(framework.terms['lm'])
    readable.__class__ = WatchedTerm
    for term in (framework.terms['lm'], readable):
        framework.terms['lm'] = term
        framework.zero_grad()
        output = framework(**batch, **units)
        output['loss'].backward()
        yield output['loss'].detach(), output['losses'], {name: p.grad.clone() for name, p in framework.named_parameters()
                                                          if p.grad is not None}

def agree(fused, readable, tolerance=1e-6):
    torch.testing.assert_close(fused[0], readable[0], rtol=tolerance, atol=tolerance)
    assert fused[1].keys() == readable[1].keys() and fused[2].keys() == readable[2].keys()
    for name in fused[1]: torch.testing.assert_close(fused[1][name], readable[1][name], rtol=tolerance, atol=tolerance)
    largest = max(gradient.abs().max() for gradient in readable[2].values())
    for name in fused[2]:
        torch.testing.assert_close(fused[2][name], readable[2][name], rtol=10 * tolerance, atol=tolerance * float(largest),
                                   msg=lambda m: f'{name}: {m}')

METHODS = [dict(), dict(soft_ends=False), dict(inside_tokens=False), dict(inside_tokens=False, divergence='jsd', temperature=2.),
           dict(divergence='reverse_kl'),
           dict(kd_method='first_token'), dict(kd_method='common_prefix', mask_inconsistent=True), dict(kd_method='uld'),
           dict(kd_method='projector', temperature=2.),
           dict(recipe='seed'), dict(alpha_kd=0.)]

@pytest.mark.parametrize('options', METHODS, ids=lambda options: ' '.join(f'{k}={v}' for k, v in options.items()) or 'default')
def test_every_method_learns_the_same(pair, options):
    framework, batch = batch_and_framework(pair, **options)
    framework.double()
    framework.teacher_model.double()
    type(framework).chunk, whole = 7, type(framework).chunk
    try: agree(*both_ways(framework, batch), tolerance=1e-9)
    finally: type(framework).chunk = whole

@pytest.mark.parametrize('name', ['forward_kl', 'reverse_kl', 'jsd', 'skewed_kl'])
def test_one_tokenizer_in_single_precision(same_pair, name):
    agree(*both_ways(*batch_and_framework(same_pair, divergence=name)), tolerance=1e-6)

def test_recomputed_layers_and_accumulated_steps(pair):
    framework, batch = batch_and_framework(pair)
    (_, _, plain), _ = both_ways(framework, batch)
    framework.zero_grad()
    framework.train().gradient_checkpointing_enable()
    halves = [framework.collator()(rows) for rows in ([{k: v for k, v in row.items()} for row in rows]
                                                      for rows in (texts_of(batch, [0]), texts_of(batch, [1, 2])))]
    units = {name: sum(framework.count_units(half)[name] for half in halves) for name in framework.terms}
    for half in halves: framework(**half, units=units)['loss'].backward()
    for name, p in framework.named_parameters():
        if p.grad is not None: torch.testing.assert_close(p.grad, plain[name], rtol=1e-4, atol=1e-6)

def texts_of(batch, rows):
    "The rows of a batch, without their padding."
    def row(i):
        cut = lambda name, mask: batch[name][i][mask[i].bool()].tolist()
        places = batch['student_positions'] >= 0
        return dict(input_ids=cut('input_ids', batch['attention_mask']),
                    teacher_input_ids=cut('teacher_input_ids', batch['teacher_attention_mask']),
                    student_positions=cut('student_positions', places), teacher_positions=cut('teacher_positions', places),
                    n_bytes=int(batch['n_bytes'][i]))
    return [row(i) for i in rows]

def test_nothing_is_made_where_no_gradient_is_wanted(pair, monkeypatch):
    framework, batch = batch_and_framework(pair)
    with torch.enable_grad(): wanted = framework(**batch)['loss'].detach()
    monkeypatch.setattr('kdkit.fused.Pull.push', lambda *args: pytest.fail('a gradient was made'))
    with torch.no_grad(): output = framework(**batch)
    torch.testing.assert_close(output['loss'], wanted)
    assert not output['loss'].requires_grad

# -- heads -----------------------------------------------------------------------------------------------------------

class Adapted(nn.Module):
    "A frozen head with an adapter on it."
    def __init__(self, base, rank=2):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down, self.up = nn.Linear(base.in_features, rank, bias=False,
                                       dtype=base.weight.dtype), nn.Linear(rank, base.out_features, bias=False, dtype=base.weight.dtype)
        self.weight = base.weight
    def forward(self, states): return self.base(states) + self.up(self.down(states))

N, H, V = 20, 6, 11

def case(head, dtype=torch.float64, n_compared=13, seed=0):
    torch.manual_seed(seed)
    states, said = torch.randn(N, H, dtype=dtype, requires_grad=True), torch.randn(N, V, dtype=dtype)
    following, plain, taught = torch.randint(V, (N,)), torch.rand(N, dtype=dtype), torch.rand(n_compared, dtype=dtype)
    def compare(begin, end): return lambda i, k, log_probs, buffers: [(i, k, forward_pull(log_probs, said[i:k].log_softmax(-1), buffers))]
    def readable(states):
        log_probs = head(states).log_softmax(-1)
        return plain @ -log_probs.gather(1, following[:, None])[:, 0] + taught @ forward_kl(log_probs[:n_compared], said[:n_compared])
    return states, partial(fused_loss, head=head, following=following, plain=plain, taught=taught, compare=compare), readable

def linear(bias=False, trained=True, dtype=torch.float64): return nn.Linear(H, V, bias, dtype=dtype).requires_grad_(trained)

HEADS = dict(plain=lambda: Head(linear()), bias=lambda: Head(linear(True)), scale=lambda: Head(linear(True), .3),
             cap=lambda: Head(linear(), 2., 1.5), frozen=lambda: Head(linear(trained=False)),
             adapted=lambda: Head(Adapted(linear())), capped_adapted=lambda: Head(Adapted(linear()), 2., 1.5))

@pytest.mark.parametrize('kind', HEADS)
def test_every_head(kind):
    torch.manual_seed(1)
    head = HEADS[kind]()
    states, fused, readable = case(head)
    for chunk in (3, 13, 100):
        loss = fused(states, chunk=chunk)[0]
        torch.testing.assert_close(loss, readable(states), rtol=1e-12, atol=1e-12)
        for a, b in zip(*(torch.autograd.grad(value, [states, *head.trained]) for value in (loss, readable(states)))):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)

@pytest.mark.parametrize('kind', ['bias', 'cap', 'adapted'])
def test_numerical_gradients(kind):
    torch.manual_seed(2)
    head = HEADS[kind]()
    states, fused, _ = case(head)
    def of(states, *parameters):
        with torch.no_grad():
            for mine, p in zip(head.trained, parameters): mine.copy_(p)
        return fused(states, chunk=4)[0]
    if kind == 'adapted': torch.autograd.gradcheck(lambda states: fused(states, chunk=4)[0], [states])
    else:
        loss = lambda states, *parameters: torch.func.functional_call(Wrapped(head, fused),
                                                                      dict(zip(['linear.weight', 'linear.bias'], parameters)), (states,))
        torch.autograd.gradcheck(loss, [states, *(p.detach().clone().requires_grad_() for p in head.trained)])

class Wrapped(nn.Module):
    def __init__(self, head, fused):
        super().__init__()
        self.linear, self.head, self.fused = head.linear, head, fused
    def forward(self, states): return self.fused(states, chunk=4)[0]

def test_a_second_way_back_is_the_first():
    head = Head(linear())
    states, fused, _ = case(head)
    loss = fused(states, chunk=4)[0]
    once = torch.autograd.grad(loss, states, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(3 * loss, states)[0], 3 * once)
    with pytest.raises(RuntimeError, match='second time'): torch.autograd.grad(loss, states)

@pytest.mark.parametrize('kind', ['plain', 'adapted'])
def test_half_precision_and_a_scale_of_two_to_the_sixteenth(kind):
    torch.manual_seed(3)
    head = HEADS[kind]()
    head.linear.float()
    states, fused, readable = case(head, torch.float32)
    fused.keywords.update(plain=fused.keywords['plain'] / 4000, taught=fused.keywords['taught'] / 4000)  # as many units as a step has
    exact = torch.autograd.grad(fused(states)[0], [states, *head.trained])
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast('cpu', dtype): loss = fused(states)[0]
        scaled = torch.autograd.grad(loss, [states, *head.trained], torch.tensor(2.**16), retain_graph=True)
        for a, b, c in zip(scaled, torch.autograd.grad(loss, [states, *head.trained]), exact):
            assert a.dtype == torch.float32
            torch.testing.assert_close(a, b * 2**16, rtol=0, atol=0)  # the scale meets fp32: nothing is lost
            torch.testing.assert_close(b, c, rtol=.1, atol=float(c.abs().max()) * (.03 if dtype == torch.bfloat16 else .004))

def test_probabilities_too_small_for_fp16_still_push():
    torch.manual_seed(4)
    head = Head(linear(dtype=torch.float32))
    with torch.no_grad(): head.linear.weight[0] += 8 * torch.eye(H)[0]
    states, fused, _ = case(head, torch.float32, n_compared=0)
    states.data[:, 0] = 1.2  # the others have some 1e-5 each
    fused.keywords.update(following=torch.zeros(N, dtype=torch.long), plain=torch.full((N,), 1 / 4000), compare=None)
    exact, = torch.autograd.grad(fused(states)[0], head.linear.weight)
    with torch.autocast('cpu', torch.float16): half, = torch.autograd.grad(fused(states)[0], head.linear.weight)
    assert 0 < exact[1:].abs().max() / N < 2e-7  # a position's part is a few times the smallest number of fp16, or below it
    torch.testing.assert_close(half, exact, rtol=.02, atol=float(exact.abs().max()) * 1e-3)

def test_no_positions_no_gradient():
    head = Head(linear())
    loss, nats, compared = fused_loss(torch.zeros(0, H, dtype=torch.float64, requires_grad=True), head, torch.zeros(0, dtype=torch.long),
                                      torch.zeros(0), torch.zeros(0))
    assert loss == 0 and not len(nats) + len(compared)
    assert torch.autograd.grad(loss, head.linear.weight)[0].eq(0).all()

def test_buffers_are_used_again():
    buffers, head = Buffers(), Head(linear())
    states, fused, _ = case(head)
    fused(states, chunk=5, buffers=buffers)
    before = {name: flat.data_ptr() for name, flat in buffers.flat.items()}
    fused(states, chunk=5, buffers=buffers)
    assert before == {name: flat.data_ptr() for name, flat in buffers.flat.items()}

# -- several processes ----------------------------------------------------------------------------------------------

class Student(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.layer, self.linear = nn.Embedding(V, H, dtype=torch.float64), nn.Linear(H, H, dtype=torch.float64), linear()
        self.linear.weight = self.embedding.weight  # tied
    def forward(self, ids, n_all):
        states = self.layer(self.embedding(ids[:-1]))
        factors = torch.full((len(states),), 1 / n_all, dtype=torch.float64)
        def compare(begin, end):
            return lambda i, k, log_probs, buffers: [(i, k,
                                                      jsd_pull(log_probs, torch.zeros(k - i, V, dtype=torch.float64).log_softmax(-1),
                                                               buffers))]
        return fused_loss(states, Head(self.linear), ids[1:], factors, factors, compare, chunk=3)[0]

IDS = torch.arange(24).mul(7).remainder(V)

def one_of_two(rank, folder):
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(Student())
    (model(IDS[rank * 12:rank * 12 + 12], 22) * 2).backward()  # the wrapper averages
    if rank == 0: torch.save([p.grad for p in model.parameters()], f'{folder}/gradients.pt')
    torch.distributed.destroy_process_group()

def test_two_processes_sum_to_one_with_tied_weights(tmp_path):
    multiprocessing.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    alone = Student()
    sum(alone(IDS[start:start + 12], 22) for start in (0, 12)).backward()
    for a, p in zip(torch.load(tmp_path / 'gradients.pt'), alone.parameters()):
        torch.testing.assert_close(a, p.grad, rtol=1e-12, atol=1e-12)
