"""How fast conversations are paired: CPU seconds of the two tokenizers alone (their templates rendered, their tokens made), beside those of
pairing, which does both and finds every content in both.

python benchmarks/conversations.py STUDENT TEACHER [n]   # folders or ids of two models; n conversations, made of docstrings
"""
import inspect
import json
import random
import statistics
import sys
import tempfile
import time

import datasets
import numpy
import torch
from datasets import Dataset

from kdkit.models import load_tokenizer
from kdkit.templates import ChatSide, template_of
from kdkit.windows import ConversationMaker


def talks_of(n, seed=0):
    chance = random.Random(seed)
    texts = [text for module in (inspect, json, random, numpy, torch) for thing in vars(module).values()
             if (text := inspect.getdoc(thing)) and len(text) > 100]
    turn = lambda i, k: [dict(role='user', content=f'{i}. What does it do in case {k}?'),
                         dict(role='assistant', content=chance.choice(texts)[:1500])]
    return [dict(messages=sum((turn(i, k) for k in range(chance.randrange(1, 5))), [])) for i in range(n)]


def seconds(act):
    started = time.process_time()
    act()
    return time.process_time() - started


def alone(tokenizer, template, talks):
    texts = [tokenizer.apply_chat_template(talk['messages'], chat_template=template, tokenize=False) for talk in talks]
    for i in range(0, len(texts), 100): tokenizer(texts[i:i + 100], add_special_tokens=False)


def main(student, teacher, n=1000, turns=5):
    datasets.disable_progress_bars()
    tokenizers, talks = [load_tokenizer(name) for name in (student, teacher)], talks_of(int(n))
    templates = [template_of(tokenizer)[0] for tokenizer in tokenizers]
    sides = [ChatSide(tokenizer, template) for tokenizer, template in zip(tokenizers, templates)]
    rows, shares = Dataset.from_dict(dict(text=[json.dumps(talk) for talk in talks])), []
    for _ in range(turns):
        with tempfile.TemporaryDirectory() as folder:
            own = sum(seconds(lambda: alone(*each, talks)) for each in zip(tokenizers, templates))
            both = seconds(lambda: ConversationMaker(*sides, max_length=4096, teacher_max_length=4096)(rows, cache_dir=folder))
        shares.append(own / both)
        print(f'{len(talks):,} conversations: {own:.2f} s of the two tokenizers alone, {both:.2f} s of pairing', flush=True)
    print(f"pairing runs at {statistics.median(shares):.0%} of the two tokenizers' own speed")


if __name__ == '__main__': main(*sys.argv[1:])
