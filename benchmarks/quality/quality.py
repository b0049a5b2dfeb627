"""Which distillation teaches, and how much: every method from the same student initialisation, on the same text, for as many steps.

    python benchmarks/quality/quality.py runs/quality                  # everything; goes on where it was cut off
    python benchmarks/quality/quality.py runs/quality --only small     # one pair of the three
    python benchmarks/quality/quality.py runs/quality --best           # plain training and the best methods only, each at its own best
    python benchmarks/quality/quality.py runs/quality --results        # only write the pages from what there is

The teacher is the embedded one. Its students are alike but for their tokenizer: `small` has 3,072 entries, fewer than the teacher's 8,192;
`large` has 16,384; `same` has the teacher's own. The ceiling of `small` is a teacher made like the embedded one, but with the student's own
tokenizer. Methods are compared at the learning rate that is best for training *without* a teacher; then plain training and the best method
each get the batch and the learning rate that are best for them. Every run is a kdkit run in a folder of its own, so a second call only does
what is missing, and results.json keeps the numbers of all. On a machine with more cores, start several with different `--seeds` or
`--only`. """
import argparse
import ast
import json
import os
import platform
import re
import subprocess
import sys
import sysconfig
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from kdkit.config import DistillConfig
from kdkit.embedded import demo_corpus, embedded_student_tokenizer, embedded_teacher, save_documents
from kdkit.evaluation import compute_calibration, eval_batches
from kdkit.models import load_tokenizer
from kdkit.pictures import plot_gap
from kdkit.prepare import prepare_text
from kdkit.report import gap_closed, markdown_table
from kdkit.run import cache_teacher, distill, evaluate_run, make_framework, make_trainer, open_cache, quiet_libraries
from kdkit.sequence import teacher_text

WINDOWS, SEEDS = 4000, (0, 1, 2)  # windows of 128 student tokens that a run reads
BATCH = 8  # windows in an optimizer step where methods are compared
LONG = 12_000  # windows of the longer runs
LM = dict(alpha_lm=1., **{f'alpha_{name}': 0. for name in ('kd', 'unaligned', 'feature', 'attention', 'layerwise', 'contrastive')})


def mix(kd, **more):
    "Per-position mixing: kd x KL + (1 - kd) x cross-entropy where the two are compared, cross-entropy elsewhere."
    return dict(alpha_kd=kd, alpha_unaligned=kd, alpha_lm=round(1 - kd, 6), **{'inside_tokens': False, **more})


ARMS = {  # name -> fields of the config
    'combined, 0.9': mix(.9, kd_method='combined'),
    'first token, 0.9': mix(.9, kd_method='first_token'),
    'common prefix, 0.9': mix(.9, kd_method='common_prefix'),
    'combined, 1.0': mix(1., kd_method='combined'),
    'combined, 0.7': mix(.7, kd_method='combined'),
    'combined, 0.9, inconsistent masked': mix(.9, kd_method='combined', mask_inconsistent=True),
    **{f'combined, {kd}, inside tokens too': mix(kd, kd_method='combined', inside_tokens=True, soft_ends=False) for kd in (.8, .9)},
    'combined, 0.8, inside tokens too, from a cache of 16 tokens and 16 drawn': mix(.8, kd_method='combined', inside_tokens=True,
                                                                                    soft_ends=False, cache_top_k=16, cache_samples=16),
    'combined, 0.8, soft ends': mix(.8, kd_method='combined', inside_tokens=True),
    **{f'combined, {kd}, soft ends, from a cache of 16 tokens and 16 drawn': mix(kd, kd_method='combined', inside_tokens=True,
                                                                                 cache_top_k=16, cache_samples=16) for kd in (.7, .8, .9)},
    'combined, 0.8, soft ends, from a cache of a better teacher': mix(.8, kd_method='combined', inside_tokens=True, cache_top_k=16,
                                                                      cache_samples=16, teacher_model='better'),
    'identity, 0.8, from a cache of a teacher with its own tokenizer': mix(.8, kd_method='identity', cache_top_k=16, cache_samples=16,
                                                                           teacher_model='own'),
    'combined, 0.9, from a cache of 32 tokens': mix(.9, kd_method='combined', cache_top_k=32, cache_samples=0),
    'combined, 0.9, from a cache of 16 tokens and 16 drawn': mix(.9, kd_method='combined', cache_top_k=16, cache_samples=16),
    'combined, 0.9, from a cache of 32 tokens and 32 drawn': mix(.9, kd_method='combined', cache_top_k=32, cache_samples=32),
    'combined, 0.9 + feature 0.1': mix(.9, kd_method='combined', alpha_feature=.1),
    'combined, 0.9 + attention 0.1': mix(.9, kd_method='combined', alpha_attention=.1),
    'combined, 0.9 + layerwise 0.1': mix(.9, kd_method='combined', alpha_layerwise=.1),
    'combined, 0.9 + contrastive 0.1': mix(.9, kd_method='combined', alpha_contrastive=.1),
    'combined, 0.9, balanced': mix(.9, kd_method='combined', balance='ema'),
    'combined, 0.9 + feature 0.1, balanced': mix(.9, kd_method='combined', alpha_feature=.1, balance='ema'),
    **{f'combined, 0.9, {says} {share:.0%}': mix(.9, kd_method='combined', student_aware=True, aware_by=by, aware_share=share)
       for by, says in dict(entropy='least certain', disagreement='furthest apart', easy='nearest first from').items()
       for share in (.2, .5)},
    'old weights': dict(recipe='seed', kd_method='first_token', inside_tokens=False),
    'hybrid matching, 0.9': mix(.9, kd_method='hybrid'),
    'ULD, 1.5 beside cross-entropy': dict(alpha_kd=1.5, alpha_unaligned=0., alpha_lm=1., kd_method='uld'),
    'span likelihood, 0.5': dict(alpha_kd=.5, alpha_unaligned=0., alpha_lm=.5, kd_method='span'),
    'span likelihood, 0.5, merged to 0.1': dict(alpha_kd=.5, alpha_unaligned=0., alpha_lm=.5, kd_method='span', span_likely=.1),
    'P-KL, 0.9': mix(.9, kd_method='p_kl'),
    'text that the teacher wrote': dict(LM, dataset='written'),
    'least-squares projector, 0.5': mix(.5, kd_method='projector'),
    'first token, 0.5': mix(.5, kd_method='first_token'),
    'first token, 0.7': mix(.7, kd_method='first_token'),
    'first token, 1.0': mix(1., kd_method='first_token'),
    'first token, 0.9, inconsistent masked': mix(.9, kd_method='first_token', mask_inconsistent=True),
    'first token, 0.9, global mix': dict(alpha_kd=.9, alpha_unaligned=0., alpha_lm=.1, kd_method='first_token', inside_tokens=False),
    'first token, 0.9, T = 2': mix(.9, kd_method='first_token', temperature=2.),
    'first token, 0.9, reverse KL': mix(.9, kd_method='first_token', divergence='reverse_kl'),
    'first token, 0.9, JSD': mix(.9, kd_method='first_token', divergence='jsd'),
    'first token, 0.9, skewed KL': mix(.9, kd_method='first_token', divergence='skewed_kl'),
}
DEFAULT, HARD, CEILING = ('combined, 0.8, soft ends', 'combined, 0.8, inside tokens too',
                          'identity, 0.8, from a cache of a teacher with its own tokenizer')
CACHED, HARD_CACHED = (f'{arm}, from a cache of 16 tokens and 16 drawn' for arm in (DEFAULT, HARD))
BETTER = f'{DEFAULT}, from a cache of a better teacher'
OTHER_SHARES = [CACHED.replace('0.8', kd) for kd in ('0.7', '0.9')]
ARMS_FIRST = ['identity, 0.9', HARD, 'combined, 0.9, inside tokens too', 'combined, 0.9', 'first token, 0.9', 'common prefix, 0.9',
              'combined, 1.0', 'combined, 0.7',
              'combined, 0.9, from a cache of 16 tokens and 16 drawn']
AT_ITS_BEST = [DEFAULT, CACHED, HARD_CACHED, BETTER, *OTHER_SHARES, CEILING, 'identity, 0.8']  # only there
ARMS_THEN = [arm for arm in ARMS if ('cache' in arm or '+' in arm or arm in ('combined, 0.9, inconsistent masked', 'old weights'))
             and arm not in ARMS_FIRST + AT_ITS_BEST]
LONGER = 'language model', 'combined, 0.9, inside tokens too', 'combined, 0.9, from a cache of 16 tokens and 16 drawn'
# far from the best on the first seed, or near to a neighbour: more would tell nothing new
ONE_SEED = [arm for arm in ARMS if arm not in ARMS_FIRST + ARMS_THEN + AT_ITS_BEST]
PAIRS = {  # name -> (entries of the student's tokenizer, arms); None: the embedded student's own
    'small': (None, list(ARMS)),
    'large': (16_384, ['combined, 0.9, inside tokens too', HARD, 'combined, 0.9', 'first token, 0.9']),
    'same': (0, ['identity, 0.9', 'identity, 0.8']),
}
# name -> the arm whose batch and learning rate are tuned; those that get what is best for it; those that get it on the first seed only
BEST = {
    'small': (CACHED, [HARD_CACHED, CEILING], [DEFAULT, *OTHER_SHARES]),
    'large': (CACHED, [], []),
    'same': ('identity, 0.8', [], []),
}
LONGEST = 19_176  # windows of the longest runs: four passes over the text
PLAIN_RATES = {  # name -> windows in an optimizer step -> learning rates, tried on the first seed
    'small': {8: (1.5e-3, 2e-3, 3e-3), 4: (1e-3, 1.5e-3, 2e-3), 2: (1e-3, 1.5e-3), 1: (7e-4, 1e-3, 1.5e-3, 2e-3)},
    'large': {8: (2e-3,), 1: (1e-3, 1.5e-3)},
    'same': {8: (2e-3,), 1: (1e-3, 1.5e-3)},
}
# larger steps did worse with every teacher
TAUGHT_RATES = {'small': {2: (1.5e-3,), 1: (1e-3, 1.5e-3, 2e-3)}, 'large': {1: (1e-3, 1.5e-3)}, 'same': {1: (1e-3, 1.5e-3)}}
ARMS |= {f'identity, {kd}': mix(kd, kd_method='identity') for kd in (.8, .9)}
SPELT = {arm.replace(' ', '_').replace(',', ''): arm for arm in ['language model', *ARMS]}  # as in the names of folders


# The pairs

def large_tokenizer(texts, size):
    "Byte-level BPE with GPT-2's way of finding words."
    end, tokenizer = '<|endoftext|>', Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                       pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, special_tokens=[end], show_progress=False,
                                                             initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end, pad_token=end)


def code_of(source):
    "A module without its docstrings and comments."
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, 'body', None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(getattr(body[0], 'value', None), ast.Constant):
            body[0] = ast.Pass()
    return ast.unparse(tree)


def make_inputs(folder):
    "Text for all runs, once. Code is the other domain: neither teacher nor student is trained on it."
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / 'code.jsonl').exists():
        modules = sorted(Path(sysconfig.get_path('stdlib')).glob('*.py'))
        save_documents([dict(text=code_of(path.read_text(encoding='utf-8'))[:4000]) for path in modules], folder / 'code.jsonl')
    if not (folder / 'held_out.jsonl').exists():
        for name, documents in zip(('train', 'held_out'), demo_corpus()): save_documents(documents, folder / f'{name}.jsonl')
    texts = [json.loads(line)['text'] for line in (folder / 'train.jsonl').open()]
    for pair, (size, _) in PAIRS.items():
        if (folder / pair).exists(): continue
        source = embedded_student_tokenizer() if size is None else embedded_teacher()
        (load_tokenizer(source) if not size else large_tokenizer(texts, size)).save_pretrained(folder / pair)


def student(folder, pair, seed):
    "The untrained student of a pair: the body of the embedded one, a table of its own."
    path = folder / f'{pair}-{seed}'
    if not (path / 'model.safetensors').exists():
        tokenizer = load_tokenizer(str(folder / pair))
        end = tokenizer.eos_token_id
        torch.manual_seed(seed)
        LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=3,
                                     num_attention_heads=4,
                                     num_key_value_heads=2, tie_word_embeddings=True, max_position_embeddings=512,
                                     bos_token_id=end, eos_token_id=end, pad_token_id=end)).save_pretrained(path)
        tokenizer.save_pretrained(path)
    return str(path)


def other_teacher(folder, name, tokenizer, *options):
    "A teacher made as the embedded one was, with another tokenizer or on other text, once."
    path = folder / f'teacher-{name}'
    if not (path / 'done').exists():
        recipe = Path(__file__).parents[2] / 'recipes' / 'embedded_teacher.py'
        subprocess.run([sys.executable, recipe, '--tokenizer', tokenizer, '--out', path, '--work', path / 'work', *options], check=True)
        (path / 'done').touch()
    return str(path / 'teacher')


def teacher_of(folder, pair, which):
    """The embedded one; 'own': one with the tokenizer of the pair's students; 'better': one that has learned for longer, and from none of
    their text."""
    if which == 'own': return other_teacher(folder, pair, folder / pair)
    return other_teacher(folder, 'better', embedded_teacher(), '--apart', '--minutes', '20') if which == 'better' else embedded_teacher()


# The runs

def config_of(root, pair, values, seed, rate, windows, batch, folder):
    "The config of a run. One that reads a cache finds it written."
    steps = windows // batch
    teacher = teacher_of(root / 'inputs', pair, values.get('teacher_model'))
    config = DistillConfig(student_model=student(root / 'inputs', pair, seed), eval_dataset=str(root / 'inputs' / 'held_out.jsonl'),
                           output_dir=str(folder), learning_rate=rate, max_steps=steps,
                           eval_steps=steps, seed=seed,
                           **{**dict(dataset=str(root / 'inputs' / 'train.jsonl'), max_length=128, batch_size=batch, max_eval_rows=256),
                              **values, 'teacher_model': teacher})
    if config.dataset == 'written':
        path = root / 'inputs' / 'written.jsonl'
        if not path.exists(): teacher_text(replace(config, dataset=str(root / 'inputs' / 'train.jsonl')), path, new_tokens=240)
        return replace(config, dataset=str(path))
    if 'cache_top_k' not in values: return config
    teacher = f"_{values['teacher_model']}" if 'teacher_model' in values else ''
    cache = root / pair / f"cache_{values['cache_top_k']}_{values['cache_samples']}{'_inside' * config.inside_tokens}{teacher}"
    if not (cache / 'cache.json').exists(): cache_teacher(replace(config, teacher_cache=str(cache)))
    return replace(config, teacher_cache=str(cache))


def one_run(root, pair, arm, values, seed, rate, windows=WINDOWS, batch=BATCH):
    "The report of a run; it is trained if it is not there."
    folder = root / pair / f'{arm} seed {seed} lr {rate:g} windows {windows} batch {batch}'.replace(' ', '_').replace(',', '')
    report = distill(config_of(root, pair, values, seed, rate, windows, batch, folder), dict(save_strategy='no'))
    print(f"{pair:6} {arm:40} seed {seed} lr {rate:g} batch {batch}: {report['student_after']['bits_per_byte']:.4f} bits per byte, "
          f"{report['seconds']:.0f} s", flush=True)
    return report


def best_setting(root, pair, arm, values, batches=None):
    "The windows in a step and the learning rate at which an arm does best, on the first seed."
    rates = (PLAIN_RATES if arm == 'language model' else TAUGHT_RATES)[pair]
    tried = [(batch, rate) for batch in batches or rates for rate in rates[batch]]
    return min(tried, key=lambda one: one_run(root, pair, arm, values, SEEDS[0], one[1], batch=one[0])['student_after']['bits_per_byte'])


def compare_methods(root, pairs, seeds):
    """Every method at one batch and the learning rate that is best for plain training. What decides most comes first, so that a cut-off
    leaves a whole picture."""
    rates = {pair: best_setting(root, pair, 'language model', LM, [BATCH])[1] for pair in pairs}
    for arms in (ARMS_FIRST, ARMS_THEN):
        for seed in seeds:
            for pair in pairs:
                one_run(root, pair, 'language model', LM, seed, rates[pair])
                for arm in (arm for arm in PAIRS[pair][1] if arm in arms): one_run(root, pair, arm, ARMS[arm], seed, rates[pair])
    for pair in pairs:
        for arm in (arm for arm in PAIRS[pair][1] if arm in ONE_SEED): one_run(root, pair, arm, ARMS[arm], seeds[0], rates[pair])
    if 'small' in pairs:
        for arm in LONGER: one_run(root, 'small', arm, LM if arm == 'language model' else ARMS[arm], seeds[0], rates['small'], LONG)


def compare_best(root, pairs, seeds):
    """Plain training and the best method, each at its own best batch and learning rate; for as much text, and plain training also for as
    much time."""
    settings = {}
    for pair in pairs:
        tuned, arms, hints = BEST[pair]
        plain, taught = settings[pair] = [best_setting(root, pair, arm, values)
                                          for arm, values in (('language model', LM), (tuned, ARMS[tuned]))]
        for seed in seeds:
            one_run(root, pair, 'language model', LM, seed, plain[1], batch=plain[0])
            for arm in (tuned, *arms): one_run(root, pair, arm, ARMS[arm], seed, taught[1], batch=taught[0])
    if 'small' in pairs:
        plain, taught = settings['small']
        windows = round(WINDOWS * time_ratio(root, 'small', CACHED, taught, plain) / plain[0]) * plain[0]
        for seed in seeds: one_run(root, 'small', 'language model', LM, seed, plain[1], windows, plain[0])
        time_ratio(root, 'small', DEFAULT, taught, plain)
        for arm, values, (batch, rate) in ((BETTER, ARMS[BETTER], taught), ('language model', LM, plain), (CACHED, ARMS[CACHED], taught)):
            for windows in (WINDOWS, LONGEST): one_run(root, 'small', arm, values, SEEDS[0], rate, windows, batch)
    for pair in pairs:
        _, (batch, rate) = settings[pair]
        for arm in BEST[pair][2]: one_run(root, pair, arm, ARMS[arm], SEEDS[0], rate, batch=batch)


def time_ratio(root, pair, arm, setting, plain, windows=320, turns=3):
    "Seconds that an arm takes for some text over those of plain training, each in steps of its own size, turn by turn in one process."
    path = root / pair / f'time_ratio_{arm}_batch_{setting[0]}_to_{plain[0]}.json'.replace(' ', '_').replace(',', '')
    if path.exists(): return json.loads(path.read_text())
    def seconds(name, values, batch, rate):
        config = config_of(root, pair, values, SEEDS[0], rate, windows, batch, root / pair / 'timing')
        text = prepare_text(config)
        cache = open_cache(config, text)
        trainer = make_trainer(make_framework(config, text, cache and cache.stand_in), dict(save_strategy='no', eval_strategy='no'), text,
                               root / pair / 'timing', name)
        begin = time.perf_counter()
        trainer.train()
        return time.perf_counter() - begin
    def both(): return seconds(arm, ARMS[arm], *setting) / seconds('language model', LM, *plain)
    both()  # warms up
    ratio = median(both() for _ in range(turns))
    path.write_text(json.dumps(ratio))
    return ratio


# The page

RESULTS = Path(__file__).parent / 'results.json'

def machine(versions, when):
    "Where and when a run was measured."
    used = ', '.join(f'{k} {v}' for k, v in versions.items() if v)
    day = time.strftime('%Y-%m-%d', time.localtime(when))
    return f'{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {used}; {day}'


def measured(root):
    "What every run gave, those of root and those that were kept from others."
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for path in sorted(root.glob('*/*/report.json')):
        arm, seed, rate, windows, batch = re.fullmatch(r'(.*)_seed_(\d+)_lr_([\d.e-]+)_windows_(\d+)_batch_(\d+)',
                                                       path.parent.name).groups()
        report, retention = json.loads(path.read_text()), None
        if report['retention']: retention = {what: report['retention']['after'][what] for what in ('kl_nats', 'top1_agreement')}
        kept[f'{path.parent.parent.name}/{path.parent.name}'] = dict(
            pair=path.parent.parent.name, arm=SPELT[arm], seed=int(seed), rate=float(rate), windows=int(windows), batch=int(batch),
            seconds=report['seconds'],
            bits=report['student_after']['bits_per_byte'], teacher_bits=report['teacher']['bits_per_byte'], retention=retention,
            calibration=calibration(path.parent), code_bits=on_code(path.parent),
            measured_on=machine(report['versions'], path.stat().st_mtime))
    for path in sorted(root.glob('*/time_ratio_*.json')):
        arm, batch, other = re.fullmatch(r'time_ratio_(.*)_batch_(\d+)_to_(\d+)', path.stem).groups()
        kept[f'{path.parent.name}/{path.stem}'] = dict(pair=path.parent.name, ratio=json.loads(path.read_text()), arm=SPELT[arm],
                                                       batch=int(batch), plain_batch=int(other))
    RESULTS.write_text(json.dumps(kept, indent=0, sort_keys=True) + '\n')
    return [*kept.values()]


def calibration(folder):
    "Calibration error and accuracy of a run's student, measured once."
    path = folder / 'calibration.json'
    if not path.exists():
        saved = yaml.safe_load((folder / 'config.yaml').read_text())
        config = DistillConfig(**{k: v for k, v in saved.items() if k in DistillConfig.__dataclass_fields__})
        text = prepare_text(config)
        framework = make_framework(replace(config, student_model=str(folder / 'student')), text)
        path.write_text(json.dumps(compute_calibration(framework.student_model, eval_batches(text['held_out'], framework, 8),
                                                       end_id=framework.student_end_id)))
    return json.loads(path.read_text())


def on_code(folder):
    "Bits per byte of a run's student on code, measured once."
    path = folder / 'code.json'
    if not path.exists():
        code = folder.parents[1] / 'inputs' / 'code.jsonl'
        report = evaluate_run(str(folder / 'student'), str(code), max_length=128, max_eval_rows=128)
        path.write_text(json.dumps(report['student_after']['bits_per_byte']))
    return json.loads(path.read_text())


def spread(values, form='.3f'):
    "Mean and how far the seeds are apart."
    values = list(values)
    mean = format(sum(values) / len(values), form)
    return mean if len(values) == 1 else f'{mean} ± {format((max(values) - min(values)) / 2, form)}'


def table_of(groups, plain):
    "What each group of rows gave, and the share of the gap to its plain training (a function of the row) that each closed; best first."
    table, closed = [['', 'seeds', 'bits per byte', 'gap closed', 'KL', 'agrees', 'right', 'calibration error', 'on code']], {}
    def over(group, what): return [row[what] for row in group]
    for name, group in sorted(groups.items(), key=lambda item: sum(over(item[1], 'bits')) / len(item[1])):
        kept, calibrated = over(group, 'retention'), over(group, 'calibration')  # a run from a cache has no teacher to agree with
        closed[name] = [gap_closed(row['bits'], plain(row), row['teacher_bits']) for row in group]
        table.append([name, str(len(group)), spread(over(group, 'bits')), spread(closed[name], '.0%'),
                      *(spread(over(kept, what), form) if all(kept) else '-'
                      for what, form in (('kl_nats', '.2f'), ('top1_agreement', '.1%'))), spread(over(calibrated, 'top1_accuracy'), '.1%'),
                      spread(over(calibrated, 'calibration_error'), '.1%'), spread(over(group, 'code_bits'))])
    return table, closed


def tries(rows, arm):
    "(windows in a step, learning rate) -> bits per byte, of an arm on the first seed."
    return {(row['batch'], row['rate']): row['bits'] for row in rows
            if (row['arm'], row['seed'], row['windows']) == (arm, SEEDS[0], WINDOWS)}


def best_try(tried): return min(tried, key=tried.get)


def grouped(rows, name):
    "Rows by the name that a function gives them; those without one are left out."
    groups = {}
    for row in rows:
        if name(row): groups.setdefault(name(row), []).append(row)
    return groups


def plain_of(rows, batch, rate):
    """Of a row, the bits per byte of plain training at this setting, with its seed, on as much text; plain training itself is measured
    against that on WINDOWS."""
    scores = {(row['seed'], row['windows']): row['bits'] for row in rows
              if (row['arm'], row['batch'], row['rate']) == ('language model', batch, rate)}
    return lambda row: scores.get((row['seed'], WINDOWS if row['arm'] == 'language model' else row['windows']))


def methods_part(pair, rows):
    "Every method at one batch and learning rate."
    rate = best_try({one: score for one, score in tries(rows, 'language model').items() if one[0] == BATCH})[1]
    plain = plain_of(rows, BATCH, rate)
    def name(row):
        if (row['batch'], row['rate']) == (BATCH, rate) and plain(row) is not None:
            return row['arm'] + (f", {row['windows'] // BATCH:,} steps" if row['windows'] != WINDOWS else '')
    return rate, *table_of(grouped(rows, name), plain)


def best_part(pair, rows):
    "Plain training and the best method, each at its own best batch and learning rate."
    tuned, arms, hints = BEST[pair]
    setting = {arm: best_try(tries(rows, 'language model' if arm == 'language model' else tuned))
               for arm in ('language model', tuned, *arms, *hints, BETTER)}
    plain = plain_of(rows, *setting['language model'])
    def name(row):
        if setting.get(row['arm']) != (row['batch'], row['rate']) or plain(row) is None: return None
        return f"{row['arm']}; {row['windows'] // row['batch']:,} steps of {row['batch']}"
    return table_of(grouped(rows, name), plain)


def tries_table(pair, rows):
    "What was tried."
    arms = ['language model', BEST[pair][0]]
    found = [tries(rows, arm) for arm in arms]
    return [['windows in a step', 'learning rate', *arms],
            *([str(batch), f'{rate:g}', *(format(f[batch, rate], '.3f') if (batch, rate) in f else '-' for f in found)]
              for batch, rate in sorted({*found[0], *found[1]}, key=lambda one: (-one[0], one[1])))]


def write_pages(root):
    "README.md and methods.md with their pictures; of what nothing is known, nothing is written."
    here, rows = Path(__file__).parent, measured(root)
    runs = {pair: [row for row in rows if row['pair'] == pair and 'bits' in row] for pair in PAIRS}
    entries = {pair: '3,072 tokens' if size is None else f'{size:,} tokens' if size else "the teacher's own 8,192 tokens"
               for pair, (size, _) in PAIRS.items()}
    places = {}
    for where, _, day in sorted({tuple(row['measured_on'].rpartition('; ')) for row in rows if 'bits' in row}):
        places[where] = [*places.get(where, []), day]
    places = '; '.join(f"{where}; {', '.join(days)}" for where, days in places.items())
    def write(name, parts):
        (here / name).write_text('\n\n'.join([(here / f'about_{name}').read_text().strip(), *parts, f'Measured on: {places}.']) + '\n')
    parts, every = ['![each at its best](best.png)'], {}
    for pair in (pair for pair in PAIRS if tries(runs[pair], 'language model')):
        table, closed = best_part(pair, runs[pair])
        every |= {f"{pair}: {name.split(';')[0].split(' of 16')[0]}": shares for name, shares in closed.items()
                  if not name.startswith('language model')}
        teacher = min((row for row in runs[pair] if row['arm'] == 'language model'), key=lambda row: row['seed'])['teacher_bits']
        parts += [f"### `{pair}`: a student of {entries[pair]}", f"Teacher {teacher:.3f} bits per byte.", markdown_table(table),
                  f'Tried on seed {SEEDS[0]}, bits per byte:', markdown_table(tries_table(pair, runs[pair]))]
        parts += [f"For the same text `{row['arm']}` in steps of {row['batch']} took {row['ratio']:.2f} times as long as plain training in "
                  f"steps of {row['plain_batch']}."
                  for row in rows if row['pair'] == pair and 'ratio' in row]
    plot_gap(every).figure.savefig(here / 'best.png', dpi=100, bbox_inches='tight')
    write('README.md', parts)
    parts = []
    for pair in PAIRS:
        if not any(row['batch'] == BATCH and row['arm'] in ARMS_FIRST for row in runs[pair]): continue
        rate, table, closed = methods_part(pair, runs[pair])
        parts += [f'## {WINDOWS // BATCH} steps of {BATCH} windows, a student of {entries[pair]}',
                  f'Learning rate {rate:g}, the best of plain training with this batch.', markdown_table(table)]
        if len(closed) < 4: continue
        plot_gap({k: v for k, v in closed.items()
                  if k != 'language model' and min(v) > -1}).figure.savefig(here / f'{pair}.png', dpi=100, bbox_inches='tight')
        parts.append(f'![{pair}]({pair}.png)')
    if parts: write('methods.md', parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('root', type=Path)
    parser.add_argument('--only', nargs='+', choices=PAIRS, default=list(PAIRS))
    parser.add_argument('--seeds', nargs='+', type=int, default=SEEDS)
    parser.add_argument('--best', action='store_true', help='only plain training and the best methods, each at its own best')
    parser.add_argument('--results', action='store_true', help='train nothing')
    args = parser.parse_args()
    quiet_libraries()
    if not args.results:
        make_inputs(args.root / 'inputs')
        compare_best(args.root, args.only, args.seeds)
        if not args.best: compare_methods(args.root, args.only, args.seeds)
    write_pages(args.root)


if __name__ == '__main__': main()
