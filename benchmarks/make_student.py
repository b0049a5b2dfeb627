"""What a student that is cut out of its teacher is worth against a random one of its shape: the embedded teacher, the demo's text and the
other tokenizer.

    python benchmarks/make_student.py             # 300 steps of 2 windows of 128 tokens, 2 and 3 of the teacher's 5 layers
    python benchmarks/make_student.py --steps 1000 --layers 3
"""
import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from kdkit.embedded import embedded_student_tokenizer, embedded_teacher
from kdkit.make_student import make_student
from kdkit.models import load_tokenizer
from kdkit.run import demo_config, distill


def random_like(folder, path):
    "A random student of the same shape, with the same tokenizer."
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(path)
    load_tokenizer(folder).save_pretrained(path)
    return path


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=300)
    parser.add_argument('--layers', type=int, nargs='+', default=[2, 3])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = replace(demo_config(f'{folder}/demo'), control=False, max_steps=args.steps, eval_steps=args.steps, max_eval_rows=128)
        print(f'| {args.steps} steps | parameters | bits per byte before | after | KL from the teacher after |\n|---|---|---|---|---|')
        for layers in args.layers:
            cut = f'{folder}/cut{layers}'
            made = make_student(embedded_teacher(), cut, layers, vocab=embedded_student_tokenizer())
            for name, student in ((f'{layers} of 5 layers, cut out', cut),
                                  (f'{layers} of 5 layers, random', random_like(cut, f'{folder}/random{layers}'))):
                report = distill(replace(config, student_model=student, output_dir=str(Path(folder, f'run-{Path(student).name}'))))
                print(f"| {name} | {made['parameters'] / 1e6:.1f} M | {report['student_before']['bits_per_byte']:.3f} | "
                      f"{report['student_after']['bits_per_byte']:.3f} | "
                      f"{report['retention']['after']['kl_nats']:.3f} |", flush=True)
        print(f"\nthe teacher: {report['teacher']['bits_per_byte']:.3f}")


if __name__ == '__main__': main()
