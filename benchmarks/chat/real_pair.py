"""Two real instruct models with other tokenizers and other templates: is the student better than its control on held-out answers, and does
it stop?

    python benchmarks/chat/real_pair.py --teacher_model Qwen/Qwen2.5-Coder-0.5B-Instruct --student_model HuggingFaceTB/SmolLM2-135M-Instruct
    --out runs/real_chat

Three seeds, each with a control. The questions are about short functions of installed packages (held out: two other packages), and the
teacher writes the answers (`--answers teacher`, what `kdkit write` does): the way in which most people distil a chat model. `--answers
people` takes what people wrote instead, by rule from docstrings that are on every disk that has Python: there a small chat teacher has
little to teach, and the student should lose nothing by it. A run that was cut off goes on, one that is finished is read, so the same
command may be given again. It prints a table and writes it into the folder. """
import argparse
import ast
import importlib.metadata
import json
import statistics
import textwrap
from pathlib import Path

from kdkit.config import DistillConfig
from kdkit.embedded import DEMO_PACKAGES, docstring_conversations, docstring_corpus, save_documents, take_bytes
from kdkit.report import markdown_table
from kdkit.run import distill
from kdkit.sequence import write_dataset

TAUGHT = ('accelerate', 'datasets', 'fsspec', 'huggingface_hub', 'ipywidgets', 'jinja2', 'matplotlib', 'networkx', 'pandas', 'requests',
          'torch', 'transformers')
HELD_OUT = ('sympy', 'rich')


def functions(package, at_least=120, at_most=420):
    "Sources of a package's short functions, without their docstrings."
    for file in sorted(importlib.metadata.files(package) or (), key=str):
        if file.suffix != '.py' or any('test' in part for part in file.parts) or not file.locate().exists(): continue
        for node in ast.walk(ast.parse(file.locate().read_text(encoding='utf-8', errors='ignore'))):
            if not isinstance(node, ast.FunctionDef) or node.name.startswith('_') or node.decorator_list: continue
            if ast.get_docstring(node) is not None: node.body = node.body[1:]
            if not node.body: continue
            source = ast.unparse(node)
            if at_least <= len(source.encode()) <= at_most: yield textwrap.dedent(source)


def questions(packages, n):
    "As many from each package, evenly spread over its functions."
    asked = []
    for package in packages:
        found = sorted(set(functions(package)))
        order = sorted(range(len(found)), key=lambda i: f'{i * 0.6180339887 % 1:.6f}')
        asked += [found[i] for i in order[:n // len(packages)]]
    ask = 'What does this Python function do? Answer in one or two sentences.\n\n```python\n{}\n```'
    return [dict(messages=[dict(role='user', content=ask.format(source))]) for source in asked]


def by_teacher(folder, args):
    "Files of conversations to train on and to measure on; the teacher answers."
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for side, packages, n in (('train', TAUGHT, args.questions), ('held_out', HELD_OUT, args.held_out)):
        prompts, paths[side] = folder / f'{side}.prompts.jsonl', str(folder / f'{side}.jsonl')
        if not prompts.exists(): save_documents(questions(packages, n), prompts)
        config = DistillConfig(teacher_model=args.teacher_model, dataset=str(prompts), teacher_dtype=args.teacher_dtype, seed=0)
        print(write_dataset(config, paths[side], new_tokens=96, batch_size=args.write_batch), flush=True)
    return paths


def by_people(folder, args):
    "The same, made by rule from docstrings."
    paths = {side: folder / f'{side}.jsonl' for side in ('train', 'held_out')}
    if not all(path.exists() for path in paths.values()):
        folder.mkdir(parents=True, exist_ok=True)
        corpus = docstring_corpus(DEMO_PACKAGES)
        for (side, path), held, size in zip(paths.items(), (False, True), (6_000_000, 2_000_000)):
            save_documents(docstring_conversations(take_bytes([d for d in corpus if d['held_out'] == held], size)), path)
    return {side: str(path) for side, path in paths.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--teacher_model', required=True)
    parser.add_argument('--student_model', required=True)
    parser.add_argument('--out', default='runs/real_chat')
    parser.add_argument('--answers', choices=('teacher', 'people'), default='teacher')
    parser.add_argument('--questions', type=int, default=480, help='that the teacher answers to train on')
    parser.add_argument('--held_out', type=int, default=96, help='that it answers to measure on')
    parser.add_argument('--write_batch', type=int, default=16, help='questions that it answers together')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--max_steps', type=int, default=60)
    parser.add_argument('--batch_size', type=int, default=4)
    parser.add_argument('--max_length', type=int, default=256)
    parser.add_argument('--learning_rate', type=float, help="by default kdkit's")
    parser.add_argument('--max_eval_rows', type=int, default=96)
    parser.add_argument('--teacher_dtype', default='bfloat16')
    parser.add_argument('--bf16', action='store_true', help='matrix products of training in bfloat16, where the processor has it')
    parser.add_argument('--chat_template', help="the student's, a file: one that it has never read")
    args = parser.parse_args()
    out = Path(args.out)
    files = dict(teacher=by_teacher, people=by_people)[args.answers](out / f'answers_of_{args.answers}', args)
    rows = [['seed', 'teacher', 'student before', 'control', 'student', 'teacher: bytes', 'ended', 'student: bytes', 'ended ']]
    won = []
    for seed in args.seeds:
        report = distill(dict(teacher_model=args.teacher_model, student_model=args.student_model, dataset=files['train'],
                              eval_dataset=files['held_out'], output_dir=str(out / f'{args.answers}{seed}'), seed=seed,
                              control=True, max_steps=args.max_steps, eval_steps=max(args.max_steps // 4, 1), batch_size=args.batch_size,
                              max_length=args.max_length, learning_rate=args.learning_rate, chat_template=args.chat_template,
                              max_eval_rows=args.max_eval_rows, teacher_dtype=args.teacher_dtype), bf16=args.bf16)
        bits = [report[name]['bits_per_byte'] for name in ('teacher', 'student_before', 'control', 'student_after')]
        lengths = [report['answer_lengths'][name] for name in ('teacher', 'student_after')]
        rows.append([str(seed), *(f'{x:.4f}' for x in bits),
                     *(text for length in lengths for text in (f"{length['bytes']:.0f}", f"{length['ended']:.0%}"))])
        won.append(bits[2] - bits[3])
        print(markdown_table(rows), flush=True)
    text = (f"{markdown_table(rows)}\n\nBits per byte of held-out answers. The student is better than its control by "
            f"{statistics.mean(won):.4f} on average, on {sum(x > 0 for x in won)} of {len(won)} seeds.\n")
    (out / f'table_{args.answers}.md').write_text(text)
    print(text)


if __name__ == '__main__': main()
