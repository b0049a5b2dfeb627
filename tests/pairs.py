"Miniature teachers and students of every shape that the tests need, saved as folders, and text for them."
import inspect
import json
import random
import textwrap
from pathlib import Path

import torch
from transformers import (Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig,
                          LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM,
                          Qwen3MoeConfig, Qwen3MoeForCausalLM)

from tiny_tokenizers import byte_level, sentencepiece

def model_of(shape: str, vocab_size: int, hidden: int = 32, layers: int = 2, seed: int = 0):
    "A random model of a family's shape."
    torch.manual_seed(seed)
    size = dict(vocab_size=vocab_size, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=2 * hidden,
                max_position_embeddings=256, bos_token_id=0, eos_token_id=0)
    grouped = dict(size, num_key_value_heads=2)
    make = dict(
        llama=lambda: LlamaForCausalLM(LlamaConfig(**grouped, tie_word_embeddings=True)),
        mistral=lambda: MistralForCausalLM(MistralConfig(**grouped)),
        qwen2=lambda: Qwen2ForCausalLM(Qwen2Config(**grouped)),
        qwen3=lambda: Qwen3ForCausalLM(Qwen3Config(**grouped, head_dim=8)),
        qwen3_moe=lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(**grouped, head_dim=8, moe_intermediate_size=hidden, num_experts=3,
                                                             num_experts_per_tok=1)),
        gemma2=lambda: Gemma2ForCausalLM(Gemma2Config(**grouped, head_dim=8)),
        gpt2=lambda: GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, n_embd=hidden, n_layer=layers, n_head=4, n_positions=256,
                                                bos_token_id=0, eos_token_id=0)),
        gpt_neox=lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**size)))
    return make[shape]().eval()

SHAPES = 'llama', 'mistral', 'qwen2', 'qwen3', 'qwen3_moe', 'gemma2', 'gpt2', 'gpt_neox'

def save_pair(folder: Path, teacher='qwen3_moe', student='llama', same=False, teacher_size=48, student_size=32, student_layers=2):
    "Folders of a teacher and a student; with one tokenizer if `same`."
    tokenizers = dict(teacher=byte_level(700), student=byte_level(700) if same else sentencepiece(600))
    shapes = dict(teacher=(teacher, teacher_size, 3), student=(student, student_size, student_layers))
    for side, (shape, hidden, layers) in shapes.items():
        model_of(shape, len(tokenizers[side]), hidden, layers).save_pretrained(folder / side)
        tokenizers[side].save_pretrained(folder / side)
    return dict(teacher_model=str(folder / 'teacher'), student_model=str(folder / 'student'))

def documents(n: int = 60, seed: int = 0) -> list:
    "Ragged English texts: paragraphs of the standard library's docstrings."
    modules = json, random, textwrap, inspect
    texts = [inspect.getdoc(thing) for module in modules for thing in vars(module).values() if inspect.getdoc(thing)]
    texts = [t for t in dict.fromkeys(texts) if 40 < len(t) < 1500]
    random.Random(seed).shuffle(texts)
    return (texts * (n // len(texts) + 1))[:n]

def save_text(folder: Path, n: int = 60) -> str:
    "documents() as a .jsonl file."
    path = folder / 'text.jsonl'
    path.write_text(''.join(json.dumps(dict(text=f'{i}. {text}')) + '\n' for i, text in enumerate(documents(n))))
    return str(path)
