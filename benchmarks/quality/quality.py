"""Which distillation teaches, and how much: every method from the same student initialisation, on the same text, for as many steps.

    python benchmarks/quality/quality.py runs/quality                  # everything; goes on where it was cut off
    python benchmarks/quality/quality.py runs/quality --only small     # one pair of the three
    python benchmarks/quality/quality.py runs/quality --results        # only write the page from what there is

The teacher is the embedded one. Its students are alike but for their tokenizer: `small` has 3,072 entries, fewer than the teacher's 8,192; `large` has
16,384; `same` has the teacher's own. The learning rate is the one that is best for training *without* a teacher, and all methods get it.
Every run is a kdkit run in a folder of its own, so a second call only does what is missing. On a machine with more cores, start several with different
`--seeds` or `--only`.
"""
import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, decoders, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from kdkit.config import DistillConfig
from kdkit.embedded import demo_corpus, embedded_student_tokenizer, embedded_teacher, save_documents
from kdkit.models import load_tokenizer
from kdkit.run import distill, quiet_libraries

STEPS, SEEDS = 500, (0, 1, 2)  # optimizer steps of 8 windows of 128 student tokens
RATES = 1e-3, 1.5e-3, 2e-3, 3e-3, 4e-3
LM = dict(alpha_lm=1., **{f'alpha_{name}': 0. for name in ('kd', 'unaligned', 'feature', 'attention', 'layerwise', 'contrastive')})


def mix(kd, **more):
    "Per-position mixing: kd x KL + (1 - kd) x cross-entropy at aligned positions, cross-entropy elsewhere."
    return dict(alpha_kd=kd, alpha_unaligned=kd, alpha_lm=round(1 - kd, 6), **more)


ARMS = {  # name -> fields of the config
    'first token, 0.9': mix(.9, kd_method='first_token'),
    'common prefix, 0.9': mix(.9, kd_method='common_prefix'),
    'combined, 0.9': mix(.9, kd_method='combined'),
    'combined, 1.0': mix(1., kd_method='combined'),
    'combined, 0.7': mix(.7, kd_method='combined'),
    'combined, 0.9, inconsistent masked': mix(.9, kd_method='combined', mask_inconsistent=True),
    'combined, 0.9 + feature 0.1': mix(.9, kd_method='combined', alpha_feature=.1),
    'combined, 0.9 + attention 0.1': mix(.9, kd_method='combined', alpha_attention=.1),
    'combined, 0.9 + layerwise 0.1': mix(.9, kd_method='combined', alpha_layerwise=.1),
    'combined, 0.9 + contrastive 0.1': mix(.9, kd_method='combined', alpha_contrastive=.1),
    'old weights': dict(recipe='seed', kd_method='first_token'),
    'hybrid matching, 0.9': mix(.9, kd_method='hybrid'),
    'ULD, 1.5 beside cross-entropy': dict(alpha_kd=1.5, alpha_unaligned=0., alpha_lm=1., kd_method='uld'),
    'span likelihood, 0.5': dict(alpha_kd=.5, alpha_unaligned=0., alpha_lm=.5, kd_method='span'),
    'least-squares projector, 0.5': mix(.5, kd_method='projector'),
    'first token, 0.5': mix(.5, kd_method='first_token'),
    'first token, 0.7': mix(.7, kd_method='first_token'),
    'first token, 1.0': mix(1., kd_method='first_token'),
    'first token, 0.9, inconsistent masked': mix(.9, kd_method='first_token', mask_inconsistent=True),
    'first token, 0.9, global mix': dict(alpha_kd=.9, alpha_unaligned=0., alpha_lm=.1, kd_method='first_token'),
    'first token, 0.9, T = 2': mix(.9, kd_method='first_token', temperature=2.),
    'first token, 0.9, reverse KL': mix(.9, kd_method='first_token', divergence='reverse_kl'),
    'first token, 0.9, JSD': mix(.9, kd_method='first_token', divergence='jsd'),
    'first token, 0.9, skewed KL': mix(.9, kd_method='first_token', divergence='skewed_kl'),
}
ARMS_FIRST = ['identity, 0.9', *list(ARMS)[:7], 'old weights']
ARMS_THEN = list(ARMS)[7:10]
ONE_SEED = [arm for arm in ARMS if arm not in ARMS_FIRST + ARMS_THEN]  # far from the best on the first seed, or near to a neighbour: more would tell nothing new
PAIRS = {  # name -> (entries of the student's tokenizer, arms); None: the embedded student's own
    'small': (None, list(ARMS)),
    'large': (16_384, ['first token, 0.9', 'combined, 0.9', 'common prefix, 0.9']),
    'same': (0, ['identity, 0.9']),
}
ARMS['identity, 0.9'] = mix(.9, kd_method='identity')


# The pairs

def large_tokenizer(texts, size):
    "Byte-level BPE with GPT-2's way of finding words."
    end, tokenizer = '<|endoftext|>', Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, special_tokens=[end], show_progress=False,
                                                             initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end, pad_token=end)


def make_inputs(folder):
    "Text for all runs, once."
    folder.mkdir(parents=True, exist_ok=True)
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
        LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=3, num_attention_heads=4,
                                     num_key_value_heads=2, tie_word_embeddings=True, max_position_embeddings=512,
                                     bos_token_id=end, eos_token_id=end, pad_token_id=end)).save_pretrained(path)
        tokenizer.save_pretrained(path)
    return str(path)


# The runs

def one_run(root, pair, arm, values, seed, rate, steps=STEPS):
    "The report of a run; it is trained if it is not there."
    folder = root / pair / f'{arm} seed {seed} lr {rate:g} steps {steps}'.replace(' ', '_').replace(',', '')
    values = {**dict(max_length=128, batch_size=8, max_eval_rows=256), **values}
    config = DistillConfig(teacher_model=embedded_teacher(), student_model=student(root / 'inputs', pair, seed), dataset=str(root / 'inputs' / 'train.jsonl'),
                           eval_dataset=str(root / 'inputs' / 'held_out.jsonl'), output_dir=str(folder), learning_rate=rate, max_steps=steps,
                           eval_steps=steps, seed=seed, **values)
    report = distill(config, dict(save_strategy='no'))
    print(f"{pair:6} {arm:40} seed {seed} lr {rate:g}: {report['student_after']['bits_per_byte']:.4f} bits per byte, {report['seconds']:.0f} s", flush=True)
    return report


def best_rate(root, pair):
    "The learning rate at which plain training does best, on the first seed."
    scores = {rate: one_run(root, pair, 'language model', LM, SEEDS[0], rate)['student_after']['bits_per_byte'] for rate in RATES}
    return min(scores, key=scores.get)


def all_runs(root, pairs, seeds):
    "What decides most comes first, so that a cut-off leaves a whole picture."
    rates = {pair: best_rate(root, pair) for pair in pairs}
    for arms in (ARMS_FIRST, ARMS_THEN):
        for seed in seeds:
            for pair in pairs:
                one_run(root, pair, 'language model', LM, seed, rates[pair])
                for arm in (arm for arm in PAIRS[pair][1] if arm in arms): one_run(root, pair, arm, ARMS[arm], seed, rates[pair])
    for pair in pairs:
        for arm in (arm for arm in PAIRS[pair][1] if arm in ONE_SEED): one_run(root, pair, arm, ARMS[arm], seeds[0], rates[pair])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('root', type=Path)
    parser.add_argument('--only', nargs='+', choices=PAIRS, default=list(PAIRS))
    parser.add_argument('--seeds', nargs='+', type=int, default=SEEDS)
    args = parser.parse_args()
    quiet_libraries()
    make_inputs(args.root / 'inputs')
    all_runs(args.root, args.only, args.seeds)


if __name__ == '__main__': main()
