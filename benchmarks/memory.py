"""Memory and time of the losses alone, from hidden states to gradients at states and heads. A fresh process for every row.

    python benchmarks/memory.py            # Qwen -> GPT-2
    python benchmarks/memory.py --same     # one tokenizer

Memory is how far the process grew over what it held before (peak resident size on a CPU, peak allocated on a GPU). `bare` is cross-entropy
over all logits at once, with the teacher's head besides, whose logits are thrown away.
"""
import json
import os
import resource
import subprocess
import sys

import torch

from kdkit.fused import Head
from kdkit.terms import LanguageModelTerm
from pairs import about_machine, arguments, pair, seconds

WAYS = 'bare', 'kdkit', 'readable'


def measure(way, args):
    "(bytes, seconds of the second time) of one way."
    framework, (batch, _) = pair(args)
    batch = framework.complete(batch)
    heads = framework.student_model.get_output_embeddings(), framework.teacher_model.get_output_embeddings()
    states = [torch.randn(*batch[ids].shape, head.weight.shape[1], device=args.device, dtype=head.weight.dtype)
              for ids, head in zip(('input_ids', 'teacher_input_ids'), heads)]
    states[0].requires_grad_()
    if way == 'readable':
        class Readable(LanguageModelTerm):
            def forward(self, signals): return super().forward(signals)
        framework.terms['lm'] = Readable()
    framework.student_model.base_model.forward = lambda **kwargs: (states[0],)
    framework.teacher_model.base_model.forward = lambda **kwargs: (states[1],)
    def bare():
        with torch.no_grad(): heads[1](states[1])
        return torch.nn.functional.cross_entropy(heads[0](states[0])[:, :-1].flatten(0, 1), batch['labels'][:, 1:].flatten())
    def ours(): return framework(**batch)['loss']
    def once():
        begin = seconds(args.device)
        (bare if way == 'bare' else ours)().backward()
        for tensor in (states[0], heads[0].weight): tensor.grad = None
        return seconds(args.device) - begin
    peak = lambda: torch.cuda.max_memory_allocated() if args.device == 'cuda' else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    before = torch.cuda.memory_allocated() if args.device == 'cuda' else settled()
    once()
    grown = peak() - before
    return grown, min(once() for _ in range(3))


def settled():
    "Resident bytes now; the peak of before is forgotten where the system lets us."
    import gc
    import psutil
    gc.collect()
    torch.ones(1).numpy()
    with open('/proc/self/clear_refs', 'w') as file: file.write('5')
    return psutil.Process().memory_info().rss


def main():
    args = arguments(__doc__, way='', batch=8)
    if args.way: return print(json.dumps(measure(args.way, args)))
    print(about_machine(args.device))
    rows = {}
    for way in WAYS:
        done = subprocess.run([sys.executable, __file__, *sys.argv[1:], '--way', way], capture_output=True, text=True, env=dict(os.environ))
        if done.returncode: sys.exit(done.stderr)
        rows[way] = json.loads(done.stdout.strip().splitlines()[-1])
    for way, (size, time) in rows.items():
        print(f'{way:>10}: {size / 1e9:6.2f} GB   {time / rows["bare"][1]:5.2f} x bare   {time * 1000:8,.0f} ms')


if __name__ == '__main__': main()
