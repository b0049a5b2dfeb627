"""Two real instruct models with other tokenizers and other templates: is the student better than its control on held-out answers, and does it stop?

    python benchmarks/chat/real_pair.py --teacher_model Qwen/Qwen2.5-Coder-0.5B-Instruct --student_model HuggingFaceTB/SmolLM2-135M-Instruct --out runs/real_chat

Three seeds, each with a control. The conversations are made by rule from docstrings that are on every disk that has Python: what does a thing do, and the first paragraph of what is written about it.
A run that was cut off goes on, one that is finished is read, so the same command may be given again. It prints a table and writes it into the folder.
"""
import argparse
import json
import statistics
from pathlib import Path

from kdkit.embedded import DEMO_PACKAGES, docstring_conversations, docstring_corpus, save_documents, take_bytes
from kdkit.report import markdown_table
from kdkit.run import distill


def conversations(folder, train_bytes, held_out_bytes):
    "Files of conversations to train on and to measure on."
    paths = {side: folder / f'{side}.jsonl' for side in ('train', 'held_out')}
    if not all(path.exists() for path in paths.values()):
        folder.mkdir(parents=True, exist_ok=True)
        corpus = docstring_corpus(DEMO_PACKAGES)
        for (side, path), held, size in zip(paths.items(), (False, True), (train_bytes, held_out_bytes)):
            save_documents(docstring_conversations(take_bytes([d for d in corpus if d['held_out'] == held], size)), path)
    return {side: str(path) for side, path in paths.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--teacher_model', required=True)
    parser.add_argument('--student_model', required=True)
    parser.add_argument('--out', default='runs/real_chat')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--max_steps', type=int, default=60)
    parser.add_argument('--batch_size', type=int, default=4)
    parser.add_argument('--max_length', type=int, default=256)
    parser.add_argument('--learning_rate', type=float, default=1e-4)
    parser.add_argument('--max_eval_rows', type=int, default=96)
    parser.add_argument('--teacher_dtype', default='bfloat16')
    args = parser.parse_args()
    out = Path(args.out)
    files = conversations(out / 'conversations', 6_000_000, 2_000_000)
    rows = [['seed', 'teacher', 'student before', 'control', 'student', 'teacher: bytes', 'ended', 'student: bytes', 'ended ']]
    won = []
    for seed in args.seeds:
        report = distill(dict(teacher_model=args.teacher_model, student_model=args.student_model, dataset=files['train'], eval_dataset=files['held_out'], output_dir=str(out / f'seed{seed}'), seed=seed,
                              control=True, max_steps=args.max_steps, eval_steps=args.max_steps, batch_size=args.batch_size, max_length=args.max_length, learning_rate=args.learning_rate,
                              max_eval_rows=args.max_eval_rows, teacher_dtype=args.teacher_dtype))
        bits = [report[name]['bits_per_byte'] for name in ('teacher', 'student_before', 'control', 'student_after')]
        lengths = [report['answer_lengths'][name] for name in ('teacher', 'student_after')]
        rows.append([str(seed), *(f'{x:.4f}' for x in bits), *(text for length in lengths for text in (f"{length['bytes']:.0f}", f"{length['ended']:.0%}"))])
        won.append(bits[2] - bits[3])
        print(markdown_table(rows), flush=True)
    text = f"{markdown_table(rows)}\n\nBits per byte of held-out answers. The student is better than its control by {statistics.mean(won):.4f} on average, on {sum(x > 0 for x in won)} of {len(won)} seeds.\n"
    (out / 'table.md').write_text(text)
    print(text)


if __name__ == '__main__': main()
