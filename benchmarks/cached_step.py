"""What a step from a teacher cache costs, over a step of plain training on the same windows.

    python benchmarks/cached_step.py                # a student of 1 M parameters, and one with SmolLM-135M's body: some minutes on two CPU
    cores
    python benchmarks/cached_step.py --turns 5      # more turns, a steadier median

Both read the embedded pair's text: the first with the embedded student's tokenizer, the other with one of 16,384 entries that is trained on
the text. Each turn trains both ways, one after the other in this process, and the ratio is that of a turn; what is printed is the median.
"""
import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

from transformers import LlamaConfig, LlamaForCausalLM

from kdkit.config import DistillConfig
from kdkit.embedded import demo_corpus, embedded_student, embedded_student_tokenizer, embedded_teacher, save_documents
from kdkit.models import load_tokenizer
from kdkit.prepare import prepare_text
from kdkit.run import cache_teacher, make_framework, make_trainer, open_cache, plain_text_only, quiet_libraries

sys.path.insert(0, str(Path(__file__).parent / 'quality'))
from quality import large_tokenizer


def embedded(texts):
    "(student, tokenizer) of the demo."
    return embedded_student(), load_tokenizer(embedded_student_tokenizer())


def smollm_body(texts):
    "(student, tokenizer): SmolLM-135M's layers, untrained, with a vocabulary that suits the text."
    tokenizer = large_tokenizer(texts, 16_384)
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
                                        num_attention_heads=9, num_key_value_heads=3,
                                        tie_word_embeddings=True, max_position_embeddings=2048, bos_token_id=0, eos_token_id=0,
                                        pad_token_id=0)), tokenizer


SIZES = {  # name -> (student and tokenizer, windows of how many tokens, how many in a step, optimizer steps in a turn)
    'embedded': (embedded, 128, 1, 300),
    'smollm': (smollm_body, 128, 2, 3),
}


def seconds(config, folder):
    "Of training alone."
    text = prepare_text(config)
    cache = open_cache(config, text)
    trainer = make_trainer(make_framework(config, text, cache and cache.stand_in), dict(save_strategy='no', eval_strategy='no'), text,
                           folder / 'timing', 'step')
    begin = time.perf_counter()
    trainer.train()
    return time.perf_counter() - begin


def ratio(name, folder, turns):
    "Median over the turns; the first warms up and does not count."
    make, window, batch, steps = SIZES[name]
    student = folder / 'student'
    documents = demo_corpus()[0]
    for part in make([document['text'] for document in documents]): part.save_pretrained(student)
    text = save_documents(documents[:len(documents) // 8], folder / 'text.jsonl')
    cached = DistillConfig(teacher_model=embedded_teacher(), student_model=str(student), dataset=text, max_length=window, batch_size=batch,
                           max_steps=steps, max_eval_rows=8,
                           teacher_cache=str(folder / 'cache'), output_dir=str(folder / 'run'), learning_rate=1e-4)
    about = cache_teacher(cached)
    plain = plain_text_only(replace(cached, teacher_cache=None))
    pairs = [(seconds(plain, folder), seconds(cached, folder)) for _ in range(turns + 1)][1:]
    return median(c / p for p, c in pairs), median(p for p, _ in pairs) / steps, about


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--turns', type=int, default=3)
    parser.add_argument('--only', choices=SIZES)
    args = parser.parse_args()
    quiet_libraries()
    for name in [args.only] if args.only else SIZES:
        with tempfile.TemporaryDirectory() as folder: times, step, about = ratio(name, Path(folder), args.turns)
        print(f"{name}: a step from the cache takes {times:.2f} times as long as a plain one of {step * 1000:,.0f} ms; "
              f"{about['bytes_per_position']} bytes for each of {about['positions']:,} answers", flush=True)


if __name__ == '__main__': main()
