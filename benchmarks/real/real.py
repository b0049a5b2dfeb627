"""Two pretrained models that others made, on Python code: is the student better with its teacher than without, at every evaluation?

    python benchmarks/real/real.py FOLDER --teacher_model Qwen/Qwen2.5-Coder-0.5B-Instruct --student_model
    HuggingFaceTB/SmolLM2-135M-Instruct

The text is Python of installed packages, held out by package (sympy, rich); what is forgotten is measured on English (docstrings). The
teacher reads the text once, into a cache; then every seed is a run with a control from the same cache. Whatever was cut off goes on when
the command is given again, and what is finished is read: results.json beside this file keeps the figures of every run, so that the page can
be made again anywhere, with --page. `--seeds` and `--rates` say which runs, so that two seeds can run beside each other; a rate other than
the first is for tuning. """
import argparse
import importlib.metadata
import json
import platform
import time
from pathlib import Path

from kdkit.config import DistillConfig

HERE = Path(__file__).parent
KEPT = HERE / 'results.json'
TAUGHT = ('accelerate', 'datasets', 'fsspec', 'huggingface_hub', 'ipywidgets', 'jinja2', 'matplotlib', 'networkx', 'pandas', 'pytest',
          'requests', 'torch', 'tqdm', 'transformers')
HELD_OUT = ('sympy', 'rich')


def python_files(package, at_least=1500, at_most=24000):
    "Texts of a package's modules, by path; short ones and very long ones, tests and tables are left out."
    for file in sorted(importlib.metadata.files(package) or (), key=str):
        if file.suffix != '.py' or any('test' in part for part in file.parts) or not file.locate().exists(): continue
        text = file.locate().read_text(encoding='utf-8', errors='ignore')
        if at_least <= len(text.encode()) <= at_most: yield dict(path=str(file), text=text)


def taken(packages, size, at_most=24000):
    "Documents of `size` bytes in all, the same number of bytes from each package, evenly spread over its files."
    out = []
    for package in packages:
        files, used = list(python_files(package, at_most=at_most)), 0
        for n in sorted(range(len(files)), key=lambda n: f'{n * 0.6180339887 % 1:.6f}'):
            if used >= size / len(packages): break
            out.append(files[n])
            used += len(files[n]['text'].encode())
    return out


def texts(folder):
    "Paths of the text to train on, of the held-out code, and of the English, written once."
    from kdkit.embedded import DEMO_PACKAGES, docstring_corpus, save_documents, take_bytes
    paths = {name: folder / 'text' / f'{name}.jsonl' for name in ('train', 'held_out', 'english')}
    if not all(path.exists() for path in paths.values()):
        paths['train'].parent.mkdir(parents=True, exist_ok=True)
        save_documents(taken(TAUGHT, 480_000), paths['train'])
        save_documents(taken(HELD_OUT, 40_000, at_most=7000), paths['held_out'])
        save_documents(take_bytes([d for d in docstring_corpus(DEMO_PACKAGES) if d['held_out']], 60_000), paths['english'])
    return {name: str(path) for name, path in paths.items()}


def found():
    "Figures of the runs that are over."
    def whole_steps(pairs): return {int(name) if name.isdigit() else name: value for name, value in pairs.items()}
    return json.loads(KEPT.read_text(), object_hook=whole_steps) if KEPT.exists() else dict(runs={})


def curve(folder):
    "Optimizer step -> bits per byte of held-out code, as the run's evaluations found them."
    lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    return {line['step']: line['eval']['bits_per_byte'] for line in lines if 'eval' in line}


def english(model, path, args):
    "Bits per byte of English under a student, which is what training on code may cost it."
    from kdkit.run import evaluate_run
    return evaluate_run(model, path, max_length=args.max_length, batch_size=args.batch_size,
                        max_eval_rows=args.max_eval_rows)['student_after']['bits_per_byte']


def train(args, paths, seed, rate):
    "A run with its control from the cache, and its figures."
    from kdkit.run import distill
    folder = Path(args.folder) / f'seed-{seed}-{rate:g}'
    started = time.time()
    report = distill(dict(shared(args, paths), output_dir=str(folder), control=True, seed=seed, learning_rate=rate,
                          max_steps=args.max_steps, eval_steps=args.eval_steps), bf16=args.bf16)
    runs = dict(student=folder, control=folder / 'control')
    return dict(
        seed=seed, rate=rate, steps=report['steps'], seconds=round(time.time() - started), teacher=report['teacher']['bits_per_byte'],
        before=report['student_before']['bits_per_byte'],
        as_read=(report['data'].get('as_read') or {}).get('bits_per_byte'), curves={name: curve(where) for name, where in runs.items()},
        share=[json.loads(line).get('weights', {}).get('kd')
               for line in (folder / 'metrics.jsonl').read_text().splitlines()][:: max(args.max_steps // 40, 1)],
        english=dict(before=english(args.student_model, paths['english'], args),
                     **{name: english(str(where / 'student'), paths['english'], args) for name, where in runs.items()}))


def shared(args, paths):
    "Options that all runs and the cache have in common."
    return dict(teacher_model=args.teacher_model, student_model=args.student_model, dataset=paths['train'], eval_dataset=paths['held_out'],
                teacher_cache=str(Path(args.folder) / 'cache'),
                max_length=args.max_length, batch_size=args.batch_size, max_eval_rows=args.max_eval_rows, teacher_dtype=args.teacher_dtype,
                teacher_context=args.teacher_context)


def page(results):
    "The figures as a page: one table of curves, one of what else they say."
    from kdkit.report import gap_closed, markdown_table
    runs = sorted(results['runs'].values(), key=lambda run: (run['seed'], run['rate']))
    best = {name: min({run['rate'] for run in runs},
                      key=lambda rate: mean([last(run['curves'][name]) for run in runs if run['rate'] == rate]))
                      for name in ('control', 'student')}
    steps = list(runs[0]['curves']['student'])
    rows = [['seed', 'trained', 'learning rate', *(f'step {step}' for step in steps), 'gap closed', 'English: before', 'after']]
    for seed in sorted({run['seed'] for run in runs}):
        of = {name: next((run for run in runs if run['seed'] == seed and run['rate'] == best[name]), None) for name in best}
        for name, run in of.items():
            if run is None: continue
            closed = gap_closed(last(run['curves']['student']), last(of['control']['curves']['control']),
                                run['teacher']) if name == 'student' and of['control'] else None
            rows.append([str(seed), dict(control='plainly', student='with the teacher')[name], f"{run['rate']:g}",
                         *(f"{run['curves'][name][step]:.4f}" for step in steps),
                         '' if closed is None else f'{closed:.0%}', f"{run['english']['before']:.3f}", f"{run['english'][name]:.3f}"])
    first = runs[0]
    ahead = [run['curves']['student'][step] < run['curves']['control'][step] for run in runs for step in steps
             if run['rate'] == best['student'] == best['control']]
    return PAGE.format(table=markdown_table(rows), teacher=first['teacher'], before=first['before'],
                       read=f"; as the student can read it: {first['as_read']:.4f}" if first['as_read'] else '',
                       minutes=mean([run['seconds'] for run in runs]) / 60, ahead=sum(ahead), of=len(ahead), **results['about'])


def mean(values): return sum(values) / len(values)
def last(curve): return list(curve.values())[-1]


PAGE = """# A pretrained student and its teacher, on real code

{teacher_model} teaches {student_model}: other makers' weights, two tokenizers. The text is {train_bytes:,} bytes of Python from installed packages; held out are two other packages (sympy and rich),
of which {windows} windows of {max_length} tokens are measured. {weights}

Bits per byte of held-out code, less is better. The teacher alone: {teacher:.4f}{read}. The student before training: {before:.4f}. Each side has the learning rate that is best for it among those tried
({rates}); everything else is kdkit's default, from a cache of the teacher's answers.

{table}

At {ahead} of {of} evaluations the student with the teacher is ahead of the one trained plainly with the same seed. *Gap closed* is its part of the way from there to the teacher. *English* is bits per byte of docstrings that no run has trained on: what training on code costs elsewhere.

`python benchmarks/real/real.py FOLDER --teacher_model … --student_model …` repeats it; {machine}, {when}; a student with its control takes {minutes:.0f} minutes there. So few steps show which way
the teacher pulls a pretrained student and from which step on. They do not show where long training ends: on a GPU, give the same command more text and `--max_steps`.
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', nargs='?')
    parser.add_argument('--teacher_model')
    parser.add_argument('--student_model')
    parser.add_argument('--names', nargs=2, help='of teacher and student, for the page, where they are folders')
    parser.add_argument('--weights', default='', help='a sentence about the weights, for the page')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--rates', type=float, nargs='+', default=[1e-4])
    parser.add_argument('--max_steps', type=int, default=160)
    parser.add_argument('--batch_size', type=int, default=4)
    parser.add_argument('--max_length', type=int, default=256)
    parser.add_argument('--teacher_context', type=int, default=DistillConfig.teacher_context)
    parser.add_argument('--max_eval_rows', type=int, default=32)
    parser.add_argument('--eval_steps', type=int, default=20)
    parser.add_argument('--teacher_dtype', default='auto')
    parser.add_argument('--bf16', action='store_true', help='train in bfloat16, where the processor has it in hardware')
    parser.add_argument('--page', action='store_true', help='only write the page from results.json')
    args = parser.parse_args()
    if not args.page:
        from kdkit.run import cache_teacher
        paths = texts(Path(args.folder))
        cache_teacher(dict(shared(args, paths), output_dir=str(Path(args.folder) / 'run')))
        teacher, student = args.names or (Path(args.teacher_model).name, Path(args.student_model).name)
        about = dict(
            teacher_model=teacher, student_model=student,
            train_bytes=sum(len(json.loads(line)['text'].encode()) for line in open(paths['train'])),
            windows=args.max_eval_rows, max_length=args.max_length, weights=args.weights,
            rates=', '.join(f'{rate:g}' for rate in args.rates), machine=f'{platform.machine()}, CPU', when=time.strftime('%B %Y'))
        for seed in args.seeds:
            for rate in args.rates:
                name = f'seed {seed}, learning rate {rate:g}, {args.max_steps} steps'
                if name in found()['runs']: continue
                run = train(args, paths, seed, rate)
                runs = {**found()['runs'], name: run}  # another process may have written meanwhile
                KEPT.write_text(json.dumps(dict(about=about, runs=runs), indent=1) + '\n')
    results = found()
    (HERE / 'README.md').write_text(page(results))
    print(page(results))


if __name__ == '__main__': main()
