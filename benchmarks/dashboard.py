"""What the live view costs: the same training with and without it, turn by turn, in a notebook's kernel.

    python benchmarks/dashboard.py [--steps 300] [--turns 4]

Two figures: the ratio of wall times, which on a busy machine scatters by more than the cost itself, and the share of the training time that
was spent inside the view's own calls (signs, drawing, clicks), which does not.
"""
import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median


def timed(fn, spent):
    "The same function, with its time added to spent[0]."
    def call(*args, **kwargs):
        begin = time.perf_counter()
        try: return fn(*args, **kwargs)
        finally: spent[0] += time.perf_counter() - begin
    return call


def train(config, text, teacher, live):
    "(seconds of training, seconds in the view) of one run."
    from kdkit.run import make_framework
    from kdkit.trainer import DistillationTrainer, training_arguments
    framework = make_framework(config, text, teacher)
    args = training_arguments(config, config.max_steps, output_dir=tempfile.mkdtemp(), save_strategy='no')
    trainer, spent = DistillationTrainer(framework, args, text['train'], text['held_out'], live=live), [0.]
    if live:
        for name in ('on_step_end', 'on_log', 'hear'): setattr(trainer.dashboard, name, timed(getattr(trainer.dashboard, name), spent))
    begin = time.perf_counter()
    trainer.train()
    return time.perf_counter() - begin, spent[0]


def measure(steps, turns):
    "Print the figures."
    from kdkit.models import load_causal_lm
    from kdkit.prepare import prepare_text
    from kdkit.run import demo_config
    import torch
    config = replace(demo_config(tempfile.mkdtemp()), max_steps=steps, eval_steps=steps, max_eval_rows=32)
    text, teacher = prepare_text(config), load_causal_lm(config.teacher_model, torch.float32)
    train(replace(config, max_steps=10), text, teacher, live=True)  # warms everything up
    ratios, shares = [], []
    for turn in range(turns):
        order = (True, False) if turn % 2 else (False, True)
        seconds = {live: train(config, text, teacher, live) for live in order}
        ratios.append(seconds[True][0] / seconds[False][0])
        shares.append(seconds[True][1] / seconds[True][0])
        print(f'turn {turn + 1}: with {seconds[True][0]:.1f} s, without {seconds[False][0]:.1f} s, ratio {ratios[-1]:.3f}, in '
              f'the view {shares[-1]:.2%}', flush=True)
    print(f'median: ratio {median(ratios):.3f}, share of the time in the view {median(shares):.2%}', flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=300)
    parser.add_argument('--turns', type=int, default=4)
    args = parser.parse_args()
    from jupyter_client.manager import start_new_kernel
    manager, client = start_new_kernel(kernel_name='python3')
    def show(message):
        if message['msg_type'] == 'stream' and message['content']['name'] == 'stdout': print(message['content']['text'], end='', flush=True)
        if message['msg_type'] == 'error': print('\n'.join(message['content']['traceback']))
    try:
        client.execute_interactive(f'import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import dashboard; '
                                   f'dashboard.measure({args.steps}, {args.turns})', output_hook=show)
    finally: manager.shutdown_kernel(now=True)


if __name__ == '__main__': main()
