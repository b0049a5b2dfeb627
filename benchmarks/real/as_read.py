"""How much of a teacher reaches a student with another tokenizer: bits per byte of a text under what the student is taught, beside the
teacher's own.

    python benchmarks/real/as_read.py MODEL OTHER --text code.jsonl prose.jsonl

Each of the two models is the teacher once. Nothing is trained.
"""
import argparse
from pathlib import Path

from kdkit.config import DistillConfig
from kdkit.evaluation import eval_batches, teacher_as_read
from kdkit.prepare import prepare_text
from kdkit.report import markdown_table
from kdkit.run import make_framework, quiet_libraries


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('models', nargs=2)
    parser.add_argument('--text', nargs='+', required=True)
    parser.add_argument('--windows', type=int, default=24)
    parser.add_argument('--max_length', type=int, default=256)
    parser.add_argument('--teacher_dtype', default='auto')
    args = parser.parse_args()
    quiet_libraries()
    rows = [['teacher', 'student', 'text', 'teacher, bits per byte', 'as the student can read it', 'nothing said about']]
    for teacher, student in (args.models, args.models[::-1]):
        for path in args.text:
            config = DistillConfig(teacher_model=teacher, student_model=student, dataset=path, max_length=args.max_length,
                                   max_eval_rows=args.windows, batch_size=4, teacher_dtype=args.teacher_dtype)
            text = prepare_text(config, train=False)
            framework = make_framework(config, text)
            found = teacher_as_read(framework, eval_batches(text['held_out'], framework, config.batch_size))
            rows.append([*(Path(name).name for name in (teacher, student, path)), f"{found['teacher_bits_per_byte']:.4f}",
                         f"{found['bits_per_byte']:.4f}", f"{found['unread']:.2%} of the tokens"])
            print(markdown_table(rows), flush=True)


if __name__ == '__main__': main()
