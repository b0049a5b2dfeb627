"""How time and memory of an optimizer step grow with vocabulary, length, batch and layers, one of them at a time.

    python benchmarks/growth.py                    # the embedded pair's tokenizers, random weights: minutes on two CPU cores, no network
    python benchmarks/growth.py --base 4 --turns 7 # everything but the layers four times as large, for a GPU

Every size is a pair of its own, and all sizes of an axis take turns in one process: what is printed is the median, over the turns, of the
ratio of a step to the step of the axis's second size. Memory is how far a process grows in a pair's second step over what it held
before it, weights and optimizer (peak resident size on a CPU, peak allocated on a GPU). A picture goes to `growth.png`.
"""
import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from matplotlib import pyplot as plt

from kdkit.embedded import embedded_student_tokenizer, embedded_teacher
from memory import settled
from pairs import about_machine, arguments, compared, distilled, pair, stepper

AXES = {  # name -> (sizes, what they change)
    'vocabulary': ((8192, 16384, 32768, 65536), lambda n: dict(rows=n)),
    'length': ((64, 128, 256, 512), lambda n: dict(length=n)),
    'batch': ((2, 4, 8, 16), lambda n: dict(batch=n)),
    'layers': ((2, 4, 8, 16), lambda n: dict(student=f'128x{n}', teacher=f'128x{2 * n}')),
}
WHAT = dict(vocabulary='rows of each vocabulary', length='student tokens in a window', batch='windows in a batch',
            layers="student's layers; the teacher has twice as many")


def step_of(args, change):
    "One optimizer step of a pair of this size."
    framework, batches = pair(argparse.Namespace(**{**vars(args), **change}))
    return stepper(framework, args.device)(distilled(framework), batches)


def memory(args, change):
    "How many bytes a step takes besides what was held before it."
    step = step_of(args, change)
    step(0)  # what stays, stays now
    if args.device == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(1)
        return torch.cuda.max_memory_allocated() - before
    before = settled()
    step(1)
    return 1024 * int(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'))) - before


def memories(args):
    "axis -> bytes of each size, from a process where what is freed goes back to the system at once."
    done = subprocess.run([sys.executable, __file__, *sys.argv[1:], '--what', 'memory'], capture_output=True, text=True,
                          env={**os.environ, 'MALLOC_MMAP_THRESHOLD_': '65536', 'MALLOC_TRIM_THRESHOLD_': '65536'})
    if done.returncode: sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def sizes_of(args, name): return [size if name == 'layers' else size * args.base for size in AXES[name][0]]


def measure(args, name):
    "size -> (median seconds, median ratio to the second size)"
    sizes, change = sizes_of(args, name), AXES[name][1]
    ways = {size: step_of(args, change(size)) for size in [sizes[1], sizes[0], *sizes[2:]]}  # the first is what others are compared with
    times = compared(ways, args.turns, args.device)
    return {size: times[size] for size in sizes}


def draw(found, path, about):
    "A panel for each axis; both scales double from mark to mark, so that what grows in proportion is a line of slope 1."
    _, panels = plt.subplots(1, len(found), figsize=(3.1 * len(found), 3.2), sharey=True)
    for ax, (name, sizes) in zip(panels, found.items()):
        base = list(sizes)[1]
        time, memory = [ratio for _, ratio, _ in sizes.values()], [grown / sizes[base][2] for _, _, grown in sizes.values()]
        for what, values, style in (('time', time, 'o-'), ('memory', memory, 's--')):
            ax.plot(list(sizes), values, style, label=what, color=dict(time='#333333', memory='#8E5EA2')[what],
                    markersize=4)
        ax.plot(list(sizes), [size / base for size in sizes], ':', color='#BBBBBB', label='in proportion')
        ax.set(title=name, xlabel=WHAT[name].replace('; ', ';\n'), xscale='log', yscale='log',
               xticks=list(sizes), yticks=[.25, .5, 1, 2, 4, 8])
        ax.set_xticklabels([f'{size:,}' for size in sizes], fontsize=8)
        ax.set_yticklabels(['¼', '½', '1', '2', '4', '8']), ax.minorticks_off()
    panels[0].set_ylabel('over the second size'), panels[0].legend(fontsize=8)
    plt.suptitle(about, fontsize=7)
    plt.tight_layout()
    plt.savefig(path, dpi=110)


def main():
    args = arguments(__doc__, teacher_tokenizer=embedded_teacher(), student_tokenizer=embedded_student_tokenizer(), teacher='128x4',
                     student='128x2', length=128, turns=5, base=1, what='', axes=','.join(AXES),
                     picture=str(Path(__file__).parent / 'growth.png'))
    args.batch, args.length = args.batch * args.base, args.length * args.base
    names = args.axes.split(',')
    if args.what == 'memory':
        return print(json.dumps({name: [memory(args, AXES[name][1](size)) for size in sizes_of(args, name)] for name in names}))
    print(about := about_machine(args.device))
    print(f'teacher {args.teacher}, student {args.student}, {args.batch} x {args.length} tokens\n')
    print('| axis | size | time | memory | step | grows by |\n|---|---|---|---|---|---|')
    taken, found = memories(args), {}
    for name in names:
        found[name] = sizes = {size: (*times, grown) for (size, times), grown in zip(measure(args, name).items(), taken[name])}
        base = sizes[list(sizes)[1]]
        for size, (seconds, ratio, grown) in sizes.items():
            over = f'{ratio:.2f} | {grown / base[2]:.2f} | {seconds * 1000:,.0f} ms | {grown / 1e6:,.0f} MB'
            print(f'| {name} | {size:,} | {over} |', flush=True)
    if len(found) == len(AXES): draw(found, args.picture, about)


if __name__ == '__main__': main()
