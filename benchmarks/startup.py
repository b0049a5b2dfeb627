"""What happens before the first step: CPU seconds of every phase, in a fresh process for every row.

    python benchmarks/startup.py                                 # Qwen -> GPT-2, 300 kB of text, small random models with the true
    vocabularies
    python benchmarks/startup.py --teacher-tokenizer FOLDER …    # tokenizers from disk

`plain` is what nobody can do without: transformers and its Trainer are imported, both tokenizers and both models loaded, the text is
tokenized by both, and both models make a step of one window. `first` is kdkit with nothing on the disk, `new text` another text for the
same pair of tokenizers, `again` the same command once more. """
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PHASES = 'imports', 'text', 'models', 'measure', 'step'


def plain(job):
    "What plain transformers needs for it."
    yield 'imports'
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer  # noqa: F401
    yield 'text'
    tokenizers = [AutoTokenizer.from_pretrained(job['config'][f'{side}_model']) for side in ('student', 'teacher')]
    texts = [json.loads(line)['text'] for line in open(job['config']['dataset'])]
    ids = [tokenizer(texts)['input_ids'] for tokenizer in tokenizers]
    yield 'models'
    models = [AutoModelForCausalLM.from_pretrained(job['config'][f'{side}_model']) for side in ('student', 'teacher')]
    yield 'step'
    windows = [torch.tensor([sum(side, [])[:job['config']['max_length']]]) for side in ids]
    with torch.no_grad(): models[1](windows[1])
    models[0](windows[0], labels=windows[0]).loss.backward()
    torch.optim.AdamW(models[0].parameters(), 1e-5).step()


def kdkit(job):
    "The stages of a run, up to the end of its first step."
    yield 'imports'
    from transformers import TrainerCallback
    from kdkit.config import DistillConfig
    from kdkit.evaluation import eval_batches, measure
    from kdkit.prepare import prepare_text
    from kdkit.run import make_framework, make_trainer, quiet_libraries
    quiet_libraries()
    config = DistillConfig(**job['config'])
    yield 'text'
    text = prepare_text(config)
    yield 'models'
    framework = make_framework(config, text)
    yield 'measure'
    bits = [measure(framework, eval_batches(text['held_out'], framework, config.batch_size), side)['bits_per_byte']
            for side in ('teacher', 'student')]
    framework.curriculum.lead.begin(*bits)
    yield 'step'
    class Enough(TrainerCallback):
        def on_step_end(self, args, state, control, **_): raise StopIteration
    trainer = make_trainer(framework, dict(use_cpu=True), text, Path(job['config']['output_dir']), 'startup')
    trainer.add_callback(Enough())
    try: trainer.train()
    except StopIteration: pass


def child(job):
    "CPU seconds of every phase, as JSON in the last line."
    begin, taken, phase = 0., {}, 'start'  # what Python itself took counts too
    def done(name):
        nonlocal begin, phase
        now = time.process_time()
        taken[phase], begin, phase = now - begin, now, name
    for name in dict(plain=plain, kdkit=kdkit)[job['way']](job): done(name)
    done('')
    if job.get('pair'):
        import torch  # noqa: F401
    print(json.dumps(taken))


def run(way, config, cache):
    "One row: a fresh process."
    env = dict(os.environ, HF_DATASETS_CACHE=str(cache), OMP_NUM_THREADS='1', TOKENIZERS_PARALLELISM='false', HF_HUB_OFFLINE='1')
    said = subprocess.run([sys.executable, __file__, '--child', json.dumps(dict(way=way, config=config))], env=env, capture_output=True,
                          text=True)
    if said.returncode: raise SystemExit(said.stderr)
    return json.loads(said.stdout.splitlines()[-1])


def main():
    from pairs import about_machine, arguments, model, prose, tokenizers
    args = arguments(__doc__, teacher='64x2', student='64x2', batch=1, turns=3, kilobytes=300)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        texts = prose()
        for name in ('one', 'two'):
            size, some = 0, []
            while size < 1000 * args.kilobytes: some.append(texts.pop()); size += len(some[-1].encode())
            (folder / f'{name}.jsonl').write_text(''.join(json.dumps(dict(text=text)) + '\n' for text in some))
        for side, tokenizer, shape in zip(('teacher', 'student'), tokenizers(args), (args.teacher, args.student)):
            model(shape, -(-len(tokenizer) // 128) * 128, 2 * args.length).save_pretrained(folder / side)
            tokenizer.save_pretrained(folder / side)
        config = dict(teacher_model=str(folder / 'teacher'), student_model=str(folder / 'student'), dataset=str(folder / 'one.jsonl'),
                      output_dir=str(folder / 'run'), max_length=args.length,
                      batch_size=args.batch, max_steps=1, warmup_steps=1)
        rows = {}
        for turn in range(args.turns):
            cache = folder / f'cache{turn}'
            ways = {'plain': ('plain', config), 'first': ('kdkit', config),
                    'new text': ('kdkit', dict(config, dataset=str(folder / 'two.jsonl'))), 'again': ('kdkit', config)}
            for name, (way, what) in ways.items(): rows.setdefault(name, []).append(run(way, what, cache))
    print(about_machine('cpu'))
    print(f"{args.teacher_tokenizer} -> {args.student_tokenizer}, {args.kilobytes} kB of text, CPU seconds, the least of "
          f"{args.turns} turns")
    least = {name: min(turns, key=lambda taken: sum(taken.values())) for name, turns in rows.items()}
    print(f"{'':>10} {'all':>8} {'x plain':>8} " + ' '.join(f'{phase:>8}' for phase in PHASES))
    for name, taken in least.items():
        taken['imports'] += taken.pop('start')
        print(f"{name:>10} {sum(taken.values()):8.1f} {sum(taken.values()) / sum(least['plain'].values()):8.2f} "
              + ' '.join(f'{taken.get(phase, 0):8.1f}' for phase in PHASES))


if __name__ == '__main__': child(json.loads(sys.argv[2])) if sys.argv[1:2] == ['--child'] else main()
