"""The README's table of what pairs would take of a T4 (15 GB), planned from the configs that their authors publish; no card is asked.

    python benchmarks/plan.py
"""
from transformers import LlamaConfig, Qwen3Config, Qwen3MoeConfig

from kdkit.config import DistillConfig
from kdkit.plan import Text, planned, side

QWEN = dict(vocab_size=151936, head_dim=128, num_key_value_heads=8, tie_word_embeddings=True)
SMOL = dict(vocab_size=49152, tie_word_embeddings=True)
TEACHERS = {
    'Huihui-MoE-1B-A0.6B': Qwen3MoeConfig(**QWEN, hidden_size=1024, num_hidden_layers=28, num_attention_heads=16, intermediate_size=3072,
                                          moe_intermediate_size=3072, num_experts=3, num_experts_per_tok=1),
    'Qwen3-0.6B': Qwen3Config(**QWEN, hidden_size=1024, num_hidden_layers=28, num_attention_heads=16, intermediate_size=3072),
    'Qwen3-1.7B': Qwen3Config(**QWEN, hidden_size=2048, num_hidden_layers=28, num_attention_heads=16, intermediate_size=6144),
    'Qwen3-4B': Qwen3Config(**QWEN, hidden_size=2560, num_hidden_layers=36, num_attention_heads=32, intermediate_size=9728)}
STUDENTS = {
    'SmolLM2-135M': LlamaConfig(**SMOL, hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
                                intermediate_size=1536),
    'SmolLM2-360M': LlamaConfig(**SMOL, hidden_size=960, num_hidden_layers=32, num_attention_heads=15, num_key_value_heads=5,
                                intermediate_size=2560)}


def main():
    print('| teacher | student | at its fullest, 8 windows of 512 | fits 15 GB | largest micro-batch | with gradient checkpointing |\n'
          '|---|---|---|---|---|---|')
    for teacher, one in TEACHERS.items():
        for student, other in STUDENTS.items():
            if 'MoE' in teacher and '360M' in student: continue
            sides = dict(teacher=side(one), student=side(other))
            plan, less = (planned(DistillConfig(max_length=512, batch_size=8), arguments, sides, 15, text=Text())
                          for arguments in ({}, dict(gradient_checkpointing=True)))
            print(f"| {teacher} | {student.replace('SmolLM2-135M', 'SmolLM-135M') if 'MoE' in teacher else student} | "
                  f"{plan['peak'] / 1e9:.1f} GB | {'yes' if plan['fits'] else 'no'} | "
                  f"{plan['largest_batch']} | {less['peak'] / 1e9:.1f} GB, {less['largest_batch']} |", flush=True)


if __name__ == '__main__': main()
