"The pair that users name first, at its full shapes: Huihui-MoE-1B teaches SmolLM-135M. Random weights, few steps."
import resource

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from kdkit.run import distill
from pairs import save_text
from tiny_tokenizers import byte_level

def save(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder), sum(p.numel() for p in model.parameters())

@pytest.mark.slow
def test_the_full_shapes_load_step_evaluate_save_and_reload(tmp_path):
    teacher_config = Qwen3MoeConfig(
        vocab_size=151936, hidden_size=1024, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8, head_dim=128,
        intermediate_size=3072,
        moe_intermediate_size=3072, num_experts=3, num_experts_per_tok=1, tie_word_embeddings=True, max_position_embeddings=1024,
        dtype='bfloat16')
    student_config = LlamaConfig(
        vocab_size=49152, hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, intermediate_size=1536,
        tie_word_embeddings=True, max_position_embeddings=1024)
    torch.manual_seed(0)
    teacher, teacher_size = save(Qwen3MoeForCausalLM(teacher_config).bfloat16(), byte_level(700), tmp_path / 'teacher')
    student, student_size = save(LlamaForCausalLM(student_config), byte_level(400), tmp_path / 'student')
    assert 1.0e9 < teacher_size < 1.2e9 and 1.3e8 < student_size < 1.4e8
    report = distill(dict(teacher_model=teacher, student_model=student, dataset=save_text(tmp_path), output_dir=str(tmp_path / 'run'),
                          teacher_dtype='bfloat16',
                          recipe='seed', alpha_unaligned=.7, use_curriculum=False, max_length=32, batch_size=2, max_steps=2, eval_steps=2,
                          max_eval_rows=2))
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / 'run' / 'student')
    assert reloaded.num_parameters() == report['student_after']['parameters'] == student_size
    assert report['skipped_steps'] == 0 and report['student_after']['bits_per_byte'] != report['student_before']['bits_per_byte']
    print(f'peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB')
