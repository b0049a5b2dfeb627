"""Proof on a GPU, in one command: a T4 made out of whatever card is there, 50 steps in fp16 beside the same 50 in fp32, and the memory at
its fullest, measured and planned.

    python benchmarks/gpu.py            # the README's pair at its full shapes, random weights: what fits a T4 and stays finite
    python benchmarks/gpu.py --embedded # the pair that comes with kdkit, which learns: fp16 must learn what fp32 learns

A T4 is emulated by its memory (14.6 of the card's GB) and its kernels (no flash and no cuDNN attention, no TF32); its speed is not. Needs
no network. """
import argparse
import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from kdkit.devices import look
from kdkit.doctor import doctor
from kdkit.embedded import embedded_student_tokenizer, embedded_teacher
from kdkit.metrics import read_metrics
from kdkit.models import load_tokenizer
from kdkit.plan import planned
from kdkit.run import demo_config, distill

T4_BYTES = 14.6 * 2**30


def as_a_t4():
    "Take away what a T4 does not have."
    if not torch.cuda.is_available(): return
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1., T4_BYTES / total))
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def full_shapes(folder):
    "Huihui-MoE-1B and SmolLM-135M by shape, with random weights and the embedded tokenizers, which use a part of their rows."
    common = dict(tie_word_embeddings=True, max_position_embeddings=2048)
    teacher = Qwen3MoeConfig(vocab_size=151936, hidden_size=1024, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8,
                             head_dim=128, intermediate_size=3072,
                             moe_intermediate_size=3072, num_experts=3, num_experts_per_tok=1, **common)
    student = LlamaConfig(vocab_size=49152, hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
                          intermediate_size=1536, **common)
    torch.manual_seed(0)
    for side, model, tokenizer in (('teacher', Qwen3MoeForCausalLM(teacher).half(), embedded_teacher()),
                                   ('student', LlamaForCausalLM(student), embedded_student_tokenizer())):
        model.save_pretrained(folder / side)
        load_tokenizer(tokenizer).save_pretrained(folder / side)
    return dict(teacher_model=str(folder / 'teacher'), student_model=str(folder / 'student'), max_length=512, batch_size=4,
                gradient_accumulation_steps=2)


def one(config, arguments, precision):
    "A run in one precision: every logged loss, held-out bits per byte, skipped steps, peak memory beside what `kdkit plan` says of it."
    cuda = torch.cuda.is_available()
    if cuda: torch.cuda.reset_peak_memory_stats()
    config = replace(config, output_dir=f'{config.output_dir}/{precision}',
                     **({} if precision == 'fp16' else dict(teacher_dtype='float32')))
    arguments = arguments if precision == 'fp16' and cuda else dict(arguments, fp16=False)
    plan = planned(config, arguments, gpu=cuda)
    report = distill(config, arguments)
    losses = [line['loss'] for line in read_metrics(config.output_dir) if 'loss' in line]
    return dict(losses=losses, bits_per_byte=report['student_after']['bits_per_byte'], skipped_steps=report['skipped_steps'],
                dtype=report['dtype'],
                seconds=report['seconds'], planned_gb=plan['peak'] / 1e9, peak_gb=torch.cuda.max_memory_allocated() / 1e9 if cuda else None)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--embedded', action='store_true')
    parser.add_argument('--steps', type=int, default=50)
    parser.add_argument('--out', help='a JSON file for the numbers')
    given = parser.parse_args()
    as_a_t4()
    if not doctor(): raise SystemExit(1)
    with tempfile.TemporaryDirectory() as folder:
        config = replace(demo_config(Path(folder) / 'inputs'), output_dir=folder, control=False, max_steps=given.steps,
                         eval_steps=given.steps, logging_steps=5, max_eval_rows=32)
        if not given.embedded: config = replace(config, **full_shapes(Path(folder)))
        found = {precision: one(config, dict(gradient_checkpointing=not given.embedded), precision) for precision in ('fp16', 'fp32')}
    found['card'] = str(look().gpu or 'no GPU: both runs were in fp32')
    print(f"\n{found['card']}, {given.steps} steps")
    print('| | teacher | loss at first | at last | bits per byte | skipped | peak GB | planned | seconds |\n'
          '|---|---|---|---|---|---|---|---|---|')
    for precision in ('fp16', 'fp32'):
        run = found[precision]
        peak = f"{run['peak_gb']:.2f}" if run['peak_gb'] else '-'
        print(f"| {precision} | {run['dtype']} | {run['losses'][0]:.4f} | {run['losses'][-1]:.4f} | {run['bits_per_byte']:.4f} | "
              f"{run['skipped_steps']} | {peak} | {run['planned_gb']:.2f} | {run['seconds']} |")
    apart = max(abs(a - b) / abs(b) for a, b in zip(found['fp16']['losses'], found['fp32']['losses']))
    print(f'the losses are at most {apart:.2%} apart')
    if given.out: Path(given.out).write_text(json.dumps(found, indent=2) + '\n')
    fine = all(map(math.isfinite, found['fp16']['losses'])) and apart < 0.02 and (not found['fp16']['peak_gb']
                                                                                  or found['fp16']['peak_gb'] < T4_BYTES / 1e9)
    raise SystemExit(0 if fine else 1)


if __name__ == '__main__': main()
