"""Make the embedded pair again: both tokenizers and the teacher, from the docstrings of the installed packages.

    python recipes/embedded_teacher.py

One CPU core is enough. The learning rate follows the clock, so the run ends annealed whatever the machine manages in that time, and a
faster machine makes a better language model. That is not the same as a better teacher: one that has read its text twice knows it by heart,
is too sure of it, and has nothing to add to the text when a student reads the same. Cut off, it goes on from its last checkpoint (every
five minutes) when started again. It ends with the teacher in half precision, measured as it was saved, and its model card.
"""
import argparse
import importlib.metadata
import json
import math
import platform
import random
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM

from kdkit.embedded import PACKAGES, demo_corpus, docstring_corpus, package_folder

END = '<|endoftext|>'
WINDOW, BATCH = 256, 24  # tokens of a window, windows of a step
MATRIX_LR, REST_LR = 0.02, 3e-3  # of Muon, and of AdamW for embeddings, norms and routers
WARM_UP, DECAY = 0.01, 0.6  # shares of the time: rising at the start, falling to zero at the end
QWEN_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


# Tokenizers

def train_tokenizer(texts, size, words):
    "Byte-level BPE in which every byte has an entry, so that no text is unknown."
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Sequence(words), decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, special_tokens=[END], min_frequency=2, show_progress=False,
                                                             initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END, model_max_length=512)


def make_tokenizers(texts, out):
    "The teacher's splits text as Qwen does, the student's as GPT-2 does, on a third of the text; both write digits one by one."
    texts = list(texts)
    random.Random(0).shuffle(texts)
    qwen = [pre_tokenizers.Split(Regex(QWEN_WORDS), 'isolated'), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    gpt2 = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    train_tokenizer(texts, 8192, qwen).save_pretrained(out / 'teacher')
    train_tokenizer(texts[:len(texts) // 3], 3072, gpt2).save_pretrained(out / 'student_tokenizer')


def encode(tokenizer, texts):
    "Ids without control tokens."
    return [encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)]


# Model and optimizers

def make_teacher(end, vocab_size):
    "A Qwen3-MoE of 5.5 million parameters with 8,192 tokens: 5 layers, 4 experts each, 2 of them at work on a token."
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(
        vocab_size=vocab_size, hidden_size=256, num_hidden_layers=5, num_attention_heads=4, num_key_value_heads=2, head_dim=64,
        intermediate_size=512,
        moe_intermediate_size=160, num_experts=4, num_experts_per_tok=2, norm_topk_prob=True, tie_word_embeddings=True,
        max_position_embeddings=512,
        router_aux_loss_coef=0.003,  # light: enough to keep every expert at work
        rope_theta=10000.0, bos_token_id=end, eos_token_id=end, pad_token_id=end))


class Muon(torch.optim.Optimizer):
    "Momentum made orthogonal by Newton-Schulz steps; torch.optim.Muon takes no stacks of matrices, which the experts are."

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.05):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group['params']:
                if p.grad is None: continue
                momentum = self.state[p].setdefault('m', torch.zeros_like(p)).lerp_(p.grad, 1 - group['momentum'])
                update = orthogonal(p.grad.lerp(momentum, group['momentum'])).to(p.dtype)
                scale = max(1, p.shape[-2] / p.shape[-1]) ** 0.5
                p.mul_(1 - group['lr'] * group['weight_decay']).add_(update, alpha=-group['lr'] * scale)


def orthogonal(matrices):
    "The nearest (semi-)orthogonal matrices, roughly: five Newton-Schulz steps in bfloat16."
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
    return x.mT if tall else x


def make_optimizers(model):
    "Muon for the matrices inside the layers, AdamW for the rest."
    is_matrix = lambda name, p: p.ndim >= 2 and 'embed' not in name and 'gate.weight' not in name
    matrices = [p for name, p in model.named_parameters() if is_matrix(name, p)]
    rest = [p for name, p in model.named_parameters() if not is_matrix(name, p)]
    return [Muon(matrices, MATRIX_LR), torch.optim.AdamW(rest, REST_LR, betas=(0.9, 0.98), weight_decay=0.0, fused=True)]


def lr_factor(progress):
    "Up, level, and down to nothing."
    return max(0., min(1., progress / WARM_UP + 0.02, (1 - progress) / DECAY))


# Text

def batches(documents, end):
    "Windows without end: documents in a new order each epoch, an end token after each, cut anywhere, a start token before each window."
    rng = np.random.default_rng(0)
    while True:
        stream = np.concatenate([documents[i] for i in rng.permutation(len(documents))])
        n = len(stream) // (WINDOW - 1)
        rows = stream[:n * (WINDOW - 1)].reshape(n, WINDOW - 1)
        rows = np.concatenate([np.full((n, 1), end), rows], axis=1)
        for chosen in np.array_split(rng.permutation(n), n // BATCH): yield torch.from_numpy(rows[chosen])


# Measuring

@torch.no_grad()
def bits_per_byte(model, tokenizer, texts, window=WINDOW, known_lines=frozenset()):
    """Of text tokens, documents apart, each window behind a start token; the end of a document is not text. Known lines are read, not
    scored."""
    nats = n_bytes = 0
    for text, encoding in zip(texts, tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)):
        scored = []  # for each character
        for line in text.splitlines(keepends=True):
            new = line.strip() not in known_lines
            scored += [new] * len(line)
            n_bytes += new * len(line.encode())
        weights = torch.tensor([scored[start] for start, _ in encoding.offsets]).float()
        for i in range(0, len(encoding.ids), window - 1):
            row = torch.tensor([[tokenizer.bos_token_id] + encoding.ids[i:i + window - 1]])
            logits = model(input_ids=row).logits[0, :-1].float()
            nats += (torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction='none') * weights[i:i + window - 1]).sum().item()
    return nats / n_bytes / math.log(2)


def long_lines(texts):
    "What a parameter's description or a signature can look like: lines of more than 40 characters."
    return {line.strip() for text in texts for line in text.splitlines() if len(line.strip()) > 40}


@torch.no_grad()
def expert_shares(model, tokenizer, texts):
    "[layers, experts], the share of tokens that each expert works on, times experts per token."
    counts = 0
    for ids in encode(tokenizer, texts):
        row = torch.tensor([[tokenizer.bos_token_id] + ids[:WINDOW - 1]])
        routed = model(input_ids=row, output_router_logits=True).router_logits
        chosen = torch.stack(routed).topk(model.config.num_experts_per_tok).indices
        counts = counts + torch.nn.functional.one_hot(chosen, model.config.num_experts).sum((1, 2))
    return counts / counts.sum(-1, keepdim=True) * model.config.num_experts_per_tok


def measure(out, texts, train_texts):
    """What the saved files can do: bits per byte in single and half precision, in windows of two lengths, on new lines only, and the least
    used expert."""
    tokenizer = AutoTokenizer.from_pretrained(out / 'teacher')
    model = AutoModelForCausalLM.from_pretrained(out / 'teacher', dtype=torch.float32).eval()
    found = dict(parameters=model.num_parameters(), held_out_documents=len(texts), held_out_bytes=sum(len(t.encode()) for t in texts),
                 float32=bits_per_byte(model, tokenizer, texts), windows_512=bits_per_byte(model, tokenizer, texts, 512),
                 least_expert=expert_shares(model, tokenizer, texts[::8]).min().item())
    known = long_lines(train_texts)
    held_out_lines = [line.strip() for text in texts for line in text.splitlines() if len(line.strip()) > 40]
    found |= dict(known_lines=sum(line in known for line in held_out_lines) / len(held_out_lines),
                  new_lines=bits_per_byte(model, tokenizer, texts, known_lines=known))
    half = AutoModelForCausalLM.from_pretrained(out / 'teacher', dtype=torch.float16).eval()
    found |= dict(float16=bits_per_byte(half, tokenizer, texts[::8]), float32_same=bits_per_byte(model, tokenizer, texts[::8]))
    return found


CARD = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---
# The embedded teacher of kdkit

A miniature Qwen3-MoE of {parameters:,} parameters (5 layers, hidden size 256, 4 experts a layer of which 2 work on each token, normalised queries and
keys, tied embeddings) with a byte-level BPE tokenizer of 8,192 entries. It exists so that distillation can be shown, tested and measured offline: it
knows the English of Python docstrings and nothing else, and it is of no use for anything that matters.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
from kdkit.embedded import embedded_teacher
model = AutoModelForCausalLM.from_pretrained(embedded_teacher())
tokenizer = AutoTokenizer.from_pretrained(embedded_teacher())
```
Give it `<|endoftext|>` first: every window that it was trained on begins with it. It was trained on windows of {window} tokens.

## Data
English docstrings of {packages}: {train_documents:,} documents, {train_megabytes:.1f} MB. No document and no paragraph of more than 40 characters occurs
twice. About 3 % of the documents, chosen by a hash of their qualified names, are held out, and lose every paragraph that a training document contains.
Single lines, such as the description of a common argument, can still be met on both sides: {known_lines:.0%} of the held-out lines of more than 40
characters. Both tokenizers were trained on the training documents only.
With other versions of these packages the texts differ a little, but no document changes sides. The docstrings belong to the authors of these packages,
under the licences of these.

## Measured
On {held_out_documents} held-out documents, {held_out_bytes:,} bytes, never trained on, with the half-precision file as it is here:

| | bits per byte |
|---|---|
| windows of {window} tokens, computed in float32 | **{float32:.3f}** |
| windows of 512 tokens, computed in float32 | {windows_512:.3f} |
| windows of {window} tokens, only lines that no training document contains | {new_lines:.3f} |
| every eighth document, computed in float32 | {float32_same:.4f} |
| the same, computed in float16 | {float16:.4f} |

The least used expert of any layer works on {least_expert:.0%} of the tokens (50 % would be even).

## How it was made
`python recipes/embedded_teacher.py --minutes {minutes:.0f}`: {steps:,} steps of {batch} windows of {window} tokens, {tokens_millions:.1f} million tokens
({epochs:.1f} times the text), in {minutes:.0f} minutes on {threads} CPU core{plural}, in bfloat16 autocast; Muon for matrices, AdamW for the rest, the learning rate
falling to zero over the last {decay:.0%} of the time. Python {python}, {versions}.

More training makes a better language model and a worse teacher. After 54 minutes (2.4 times the text) this one reached 1.05 bits per byte, and a student that
read the same text with its help came out where one without a teacher did: it knew that text by heart, and repeated it.
"""


def write_card(out, corpus, training, found):
    "The teacher's README.md."
    train = [d['text'] for d in corpus if not d['held_out']]
    names = [f'the standard library of Python {v}' if p == 'stdlib' else f'{p} {v}' for p in PACKAGES if (v := installed(p))]
    card = CARD.format(packages=', '.join(names[:-1]) + ' and ' + names[-1], train_documents=len(train),
                       train_megabytes=sum(len(t.encode()) for t in train) / 1e6,
                       window=WINDOW, batch=BATCH, decay=DECAY, minutes=training['seconds'] / 60, steps=training['steps'],
                       tokens_millions=training['tokens'] / 1e6, epochs=training['tokens'] / training['corpus_tokens'],
                       threads=training['threads'],
                       plural='s' * (training['threads'] > 1), python=training['python'], versions=training['versions'], **found)
    (out / 'teacher' / 'README.md').write_text(card, encoding='utf-8')


def installed(package):
    "Its version; for the standard library Python's; None if it is absent."
    if package == 'stdlib': return platform.python_version()
    try: return importlib.metadata.version(package).split('+')[0]
    except importlib.metadata.PackageNotFoundError: return None


# The run

def train(model, optimizers, stream, tokenizer, held_out, args, state):
    "Step until the time is used up; a checkpoint, a snapshot of the teacher and a glance at held-out text every few minutes."
    checkpoint, budget = args.work / 'checkpoint.pt', args.minutes * 60
    last, next_save = time.time(), state['seconds'] + args.save_minutes * 60
    while state['seconds'] < budget:
        for optimizer, base in zip(optimizers, (MATRIX_LR, REST_LR)):
            for group in optimizer.param_groups: group['lr'] = base * lr_factor(state['seconds'] / budget)
        ids = next(stream)
        with torch.autocast('cpu', torch.bfloat16): output = model(input_ids=ids, labels=ids, output_router_logits=True)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers: optimizer.step()
        model.zero_grad()
        now = time.time()
        state |= dict(steps=state['steps'] + 1, tokens=state['tokens'] + ids.numel(), seconds=state['seconds'] + now - last)
        last = now
        if state['steps'] % 10 == 0:
            print(f"{state['steps']} {state['seconds']:.0f}s {state['tokens'] / 1e6:.2f}M tokens, loss {output.loss.item():.3f}",
                  flush=True)
        if state['seconds'] > next_save or state['seconds'] >= budget:
            torch.save(dict(model=model.state_dict(), optimizers=[o.state_dict() for o in optimizers], state=state), checkpoint)
            save_teacher(model, args.out)
            model.eval()
            print(f"step {state['steps']}: {bits_per_byte(model, tokenizer, held_out[::8]):.3f} bits per byte, held out", flush=True)
            model.train()
            last, next_save = time.time(), state['seconds'] + args.save_minutes * 60
    return state


def save_teacher(model, out):
    "The weights in half precision, next to their tokenizer."
    half = make_teacher(model.config.eos_token_id, model.config.vocab_size)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(out / 'teacher')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--minutes', type=float, default=8, help='of training, checkpoints and measuring not counted')
    parser.add_argument('--out', type=Path, default=package_folder('kdkit') / 'embedded_pair',
                        help='where teacher/ and student_tokenizer/ go')
    parser.add_argument('--work', type=Path, default=Path('runs/embedded_teacher'),
                        help='checkpoint and tokenizers of a run; delete it to start anew')
    parser.add_argument('--tokenizer', type=Path,
                        help='folder of a tokenizer for another teacher, without a card; unset: both tokenizers are made anew')
    parser.add_argument('--apart', action='store_true', help="leave out the documents that the demo's students read; wants --tokenizer")
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--save_minutes', type=float, default=5, help='between checkpoints')
    parser.add_argument('--card_only', action='store_true', help='measure the teacher in --out again and rewrite its card')
    args = parser.parse_args()
    if args.apart and not args.tokenizer: parser.error('--apart wants --tokenizer: the embedded pair has its own')
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    corpus = docstring_corpus()
    texts, held_out = ([d['text'] for d in corpus if d['held_out'] == side] for side in (False, True))
    if args.apart:
        read = {d['id'] for d in demo_corpus()[0]}
        texts = [d['text'] for d in corpus if not d['held_out'] and d['id'] not in read]
    args.work.mkdir(parents=True, exist_ok=True)
    log = args.work / 'training.json'
    if not args.card_only:
        if args.tokenizer: AutoTokenizer.from_pretrained(args.tokenizer).save_pretrained(args.out / 'teacher')
        elif not (args.work / 'checkpoint.pt').exists(): make_tokenizers(texts, args.out)
        tokenizer = AutoTokenizer.from_pretrained(args.out / 'teacher')
        end = tokenizer.eos_token_id
        documents = [np.array(ids + [end], dtype=np.int64) for ids in encode(tokenizer, texts)]
        model = make_teacher(end, len(tokenizer)).train()
        model.set_experts_implementation('eager')  # the fastest on a CPU: a loop over four experts
        optimizers, stream = make_optimizers(model), batches(documents, end)
        state = dict(steps=0, tokens=0, seconds=0.)
        if (args.work / 'checkpoint.pt').exists():
            saved = torch.load(args.work / 'checkpoint.pt', weights_only=True)
            model.load_state_dict(saved['model'])
            for optimizer, values in zip(optimizers, saved['optimizers']): optimizer.load_state_dict(values)
            state = saved['state']
            for _ in range(state['steps']): next(stream)
        state = train(model, optimizers, stream, tokenizer, held_out, args, state)
        save_teacher(model, args.out)
        log.write_text(json.dumps(state
                                  | dict(corpus_tokens=sum(map(len, documents)), threads=args.threads, python=platform.python_version(),
                                         versions=', '.join(f'{p} {installed(p)}' for p in ('torch', 'transformers', 'tokenizers')))))
    found = measure(args.out, held_out, texts)
    if not args.tokenizer: write_card(args.out, corpus, json.loads(log.read_text()), found)
    print(json.dumps(found, indent=1))


if __name__ == '__main__': main()
