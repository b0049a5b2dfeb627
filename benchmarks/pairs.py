"""Random models of chosen shapes behind real tokenizers, text that is on every machine, and how ways of doing the same are compared.

A machine that does other things too makes seconds worthless. So all ways take turns in one process, a turn gives the ratio of each to the
first in the time that the *process* had (CPU seconds; on a GPU, seconds until the device is done), and the median of the turns is printed.
"""
import argparse
import importlib.metadata
import inspect
import platform
import random
import time
from datetime import date
from statistics import median

import torch
from datasets import Dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from kdkit.framework import StudentAwareDistillationFramework
from kdkit.windows import pair_dataset


def arguments(about, **defaults):
    "The options that all benchmarks have, and those of this one."
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    common = dict(teacher_tokenizer='Qwen/Qwen2.5-0.5B', student_tokenizer='openai-community/gpt2', teacher='256x6', student='128x4',
                  batch=4, length=256, turns=7,
                  device='cuda' if torch.cuda.is_available() else 'cpu')
    for name, value in {**common, **defaults}.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f'default {value}')
    parser.add_argument('--same', action='store_true', help="both models have the student's tokenizer")
    return parser.parse_args()


def about_machine(device):
    "The first line of every result."
    versions = ', '.join(f'{name} {importlib.metadata.version(name)}' for name in ('torch', 'transformers', 'tokenizers'))
    what = torch.cuda.get_device_name() if device == 'cuda' else next((line.split(':')[1].strip() for line in open('/proc/cpuinfo')
                                                                       if line.startswith('model name')), platform.processor())
    return f"{what}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}, {versions}, {date.today()}"


def model(shape, rows, length):
    "A Llama of 'HIDDENxLAYERS' with so many rows in its vocabulary, tied."
    hidden, layers = map(int, shape.split('x'))
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=rows, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
                                        num_attention_heads=4, tie_word_embeddings=True,
                                        bos_token_id=0, eos_token_id=0, max_position_embeddings=4 * length)).eval()


def prose(least=300):
    "Documentation of torch, as documents."
    texts = {text for module in (torch, torch.nn, torch.nn.functional, torch.optim, torch.Tensor) for thing in vars(module).values()
             if len(text := inspect.getdoc(thing) or '') >= least}
    texts = sorted(texts)
    random.Random(0).shuffle(texts)
    return texts


def tokenizers(args):
    "Of teacher and student."
    both = [AutoTokenizer.from_pretrained(name) for name in (args.student_tokenizer if args.same else args.teacher_tokenizer,
                                                             args.student_tokenizer)]
    for tokenizer in both:
        if tokenizer.eos_token is None: tokenizer.eos_token = '<|endoftext|>'  # a bare file of a tokenizer says nothing of it
    return both


def pair(args, config=None):
    "(framework, two batches of full windows) of a random pair."
    theirs, mine = tokenizers(args)
    rows = lambda tokenizer: max(-(-len(tokenizer) // 128) * 128, getattr(args, 'rows', 0))  # those beyond the tokenizer's are vacant
    teacher, student = model(args.teacher, rows(theirs), 2 * args.length), model(args.student, rows(mine), args.length)
    half = args.device == 'cuda'
    framework = StudentAwareDistillationFramework(dict(max_length=args.length, **(config or {})), teacher.half() if half else teacher,
                                                  student, theirs, mine, device=args.device)
    windows = pair_dataset(Dataset.from_dict(dict(text=prose())), mine, theirs, max_length=args.length)
    full = [row for row in windows if len(row['input_ids']) > 0.95 * args.length]
    move = lambda batch: {name: value.to(args.device) for name, value in batch.items()}
    return framework, [move(framework.collator()(full[i * args.batch:(i + 1) * args.batch])) for i in range(2)]


def stepper(framework, device):
    "(loss of a batch, two batches) -> one optimizer step on the batch of a turn."
    optimizer = torch.optim.AdamW(framework.student_model.parameters(), 1e-5)
    half = torch.autocast(device, torch.float16, enabled=device == 'cuda')
    def step(loss, batches):
        def run(turn):
            with half: value = loss(batches[turn % 2])
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
        return run
    return step


def distilled(framework):
    "The loss of distillation, of a batch."
    return lambda batch: framework(**batch)['loss']


def seconds(device):
    "What this process has used so far."
    if device == 'cuda': torch.cuda.synchronize(); return time.perf_counter()
    return time.process_time()


def compared(ways, turns, device):
    "{name: (median seconds, median ratio to the first)}; the first turn warms up."
    taken = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, run in ways.items():
            begin = seconds(device)
            run(turn)
            taken[name].append(seconds(device) - begin)
    first = taken[next(iter(ways))][1:]
    return {name: (median(times[1:]), median(a / b for a, b in zip(times[1:], first))) for name, times in taken.items()}
