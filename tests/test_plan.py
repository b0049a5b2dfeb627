"What a plan says against what runs take, in processes of their own."
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import (Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen3Config,
                          Qwen3MoeConfig, Qwen3MoeForCausalLM)

from kdkit.cli import main
from kdkit.config import DistillConfig
from kdkit.models import load_config
from kdkit.plan import Text, adapter_parameters, plan_memory, planned, side, weight_bytes
from kdkit.prepare import prepare_text
from kdkit.run import texts_of
from pairs import save_text
from tiny_tokenizers import byte_level, sentencepiece

def sized(kind, rows, hidden, layers):
    "A random model that is large enough to be seen beside Python."
    torch.manual_seed(0)
    size = dict(vocab_size=rows, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
                intermediate_size=3 * hidden, max_position_embeddings=512, bos_token_id=0,
                eos_token_id=0)
    return dict(llama=lambda: LlamaForCausalLM(LlamaConfig(**size, tie_word_embeddings=True)),
                llama_untied=lambda: LlamaForCausalLM(LlamaConfig(**size)),
                qwen3_moe=lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(**size, head_dim=hidden // 4, moe_intermediate_size=hidden,
                                                                     num_experts=4, num_experts_per_tok=2, tie_word_embeddings=True)),
                gpt2=lambda: GPT2LMHeadModel(GPT2Config(vocab_size=rows, n_embd=hidden, n_layer=layers, n_head=4, n_positions=512,
                                                        bos_token_id=0, eos_token_id=0)),
                gemma2=lambda: Gemma2ForCausalLM(Gemma2Config(**size, head_dim=hidden // 4)))[kind]()

KINDS = {  # teacher, student, one tokenizer, options, TrainingArguments
    'llama': (('qwen3_moe', 8192, 256, 4), ('llama', 8192, 256, 6), False, dict(max_length=256, batch_size=4), {}),
    'gpt2': (('llama_untied', 32000, 256, 4), ('gpt2', 16000, 256, 4), False, dict(max_length=128, batch_size=8), {}),
    'checkpointing': (('qwen3_moe', 8192, 256, 4), ('llama', 8192, 256, 6), False, dict(max_length=256, batch_size=4),
                      dict(gradient_checkpointing=True)),
    'accumulation': (('llama', 8192, 512, 4), ('llama', 8192, 512, 6), True,
                     dict(max_length=128, batch_size=2, gradient_accumulation_steps=3), {}),
    'gemma2': (('gemma2', 32000, 256, 4), ('gemma2', 16000, 256, 4), False, dict(max_length=128, batch_size=4), {}),
    'several': ([('qwen3_moe', 8192, 256, 4), ('llama_untied', 16000, 256, 4)], ('llama', 8192, 256, 6), False,
                dict(max_length=256, batch_size=4), {}),
}

@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='the peak of a process is read from Linux')
@pytest.mark.parametrize('kind', KINDS)
def test_a_plan_is_within_15_percent_of_what_a_run_takes(kind, tmp_path):
    teacher, student, same, options, arguments = KINDS[kind]
    teachers = {f'teacher{i}': shape for i, shape in enumerate(teacher if isinstance(teacher, list) else [teacher])}
    for name, shape in dict(teachers, student=student).items():
        sized(*shape).save_pretrained(tmp_path / name)
        (byte_level(700) if same or name in teachers else sentencepiece(600)).save_pretrained(tmp_path / name)
    given = dict(options, teacher_model=[str(tmp_path / name) for name in teachers], student_model=str(tmp_path / 'student'),
                 dataset=save_text(tmp_path, 300))
    done = subprocess.run([sys.executable, Path(__file__).with_name('memory_of_a_run.py'), json.dumps(dict(given, arguments=arguments))],
                          capture_output=True, text=True, timeout=600,
                          env=dict(os.environ, MALLOC_MMAP_THRESHOLD_='65536', MALLOC_TRIM_THRESHOLD_='65536', MALLOC_ARENA_MAX='1'))
    assert done.returncode == 0, done.stderr[-2000:]
    measured = json.loads(done.stdout.strip().splitlines()[-1])['trained']
    config = DistillConfig.from_dict(dict(given, max_steps=3, max_eval_rows=2))
    text = prepare_text(config)
    count = lambda one, who: 1 if same else sum(map(len, one['train'][f'{who}input_ids']))
    texts = [Text(same, count(one, 'teacher_') / count(one, ''), one['summary'].get('crossing_tokens', 0.)) for one in texts_of(text)]
    plan = plan_memory(config, side(load_config(given['student_model'])), [side(load_config(name)) for name in config.teachers], arguments,
                       False, texts)
    assert abs(plan.peak / measured - 1) < 0.15, (plan, measured)

def test_parameters_are_those_of_the_models():
    for kind in ('llama', 'llama_untied', 'qwen3_moe', 'gpt2', 'gemma2'):
        model = sized(kind, 600, 32, 3)
        assert side(model.config).parameters == sum(part.numel() for part in model.parameters())

QWEN = Qwen3Config(vocab_size=151936, hidden_size=2048, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8, head_dim=128,
                   intermediate_size=6144, tie_word_embeddings=True)
SMOL = LlamaConfig(vocab_size=49152, hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
                   intermediate_size=1536, tie_word_embeddings=True)

def test_a_plan_for_a_card():
    sides = dict(teacher=side(QWEN), student=side(SMOL))
    assert sides['student'].parameters == 134_515_008 and round(sides['teacher'].parameters / 1e9, 2) == 1.72
    found = planned(DistillConfig(batch_size=8, max_steps=1000), sides=sides, gb=15)
    assert (found['fits'] and found['parts']['teacher'] == 2 * sides['teacher'].parameters
            and found['parts']['optimizer'] == 8 * 134_515_008 and found['tokens'] == 1000 * 8 * 512)
    best = found['largest_batch']
    for batch, fits in ((best, True), (round(1.15 * best) + 1, False)):
        assert planned(DistillConfig(batch_size=batch), sides=sides, gb=15)['fits'] == fits, batch
    small = planned(DistillConfig(batch_size=8), sides=sides, gb=4)
    assert not small['fits'] and next(iter(small['choices'])).startswith(('--gradient_checkpointing', 'kdkit cache-teacher'))
    helped = planned(DistillConfig(batch_size=8), dict(gradient_checkpointing=True), sides, gb=4)
    assert helped['peak'] == small['choices']['--gradient_checkpointing'] and '--gradient_checkpointing' not in helped['choices']

def test_the_command(pair, tmp_path, capsys):
    words = ['plan', '--teacher_model', pair['teacher_model'], '--student_model', pair['student_model'], '--max_length', '32',
             '--batch_size', '2', '--output_dir', str(tmp_path / 'run')]
    assert main([*words, '--gb', '15', '--max_steps', '100']) == 0
    out = capsys.readouterr().out
    assert ('planned, not measured, for a GPU of 15.0 GB' in out and 'fits' in out and '100 steps, 6,400 student tokens' in out
            and not (tmp_path / 'run').exists())
    assert main([*words, '--gb', '0.4']) == 1 and 'DOES NOT FIT' in capsys.readouterr().out
    assert main([*words, '--dataset', pair['dataset'], '--measure', '2', '--max_steps', '1000']) == 0
    out = capsys.readouterr().out
    assert 'measured: 2 steps of' in out and 'for all of them' in out and not (tmp_path / 'run').exists()

@pytest.mark.parametrize('more, said',
                         [(['--gb', 'much'], 'gb is'), (['--gb', '-1'], 'gb is'), (['--measure', '1'], '--dataset is missing'),
                          (['--batch_size', '0'], 'batch_size is 0'), (['--bogus', '1'], 'unknown')])
def test_mistakes_are_one_line(more, said, pair, capsys):
    assert main(['plan', '--teacher_model', pair['teacher_model'], '--student_model', pair['student_model'], *more]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count('\n') == 1


@pytest.mark.parametrize('less, part', [(dict(lora_r=4), 'optimizer'), (dict(teacher_quantization='4bit'), 'teacher'),
                                        (dict(teacher_device='cuda:1'), 'teacher')])
def test_options_that_need_less_show_in_their_part(less, part):
    sides = dict(teacher=side(QWEN), student=side(SMOL))
    whole, some = (planned(DistillConfig(batch_size=8, **more), sides=sides, gb=15) for more in ({}, less))
    assert some['parts'][part] < whole['parts'][part] / 2 and some['peak'] < whole['peak']


@pytest.mark.parametrize('modules', ['all-linear', 'q_proj,v_proj'])
@pytest.mark.parametrize('kind', ['llama', 'llama_untied', 'gemma2'])
def test_adapters_are_counted_as_peft_makes_them(kind, modules):
    pytest.importorskip('peft')
    from kdkit.adapters import add_adapters
    model = sized(kind, 600, 32, 3)
    wanted = adapter_parameters(side(model.config), 4, modules)
    add_adapters(model, DistillConfig(lora_r=4, lora_target_modules=modules))
    assert wanted == sum(p.numel() for p in model.parameters() if p.requires_grad) > 0


@pytest.mark.parametrize('bits', ['4bit', '8bit'])
def test_weights_in_few_bits_take_what_the_library_gives_them(bits, tmp_path):
    pytest.importorskip('bitsandbytes')
    from kdkit.models import load_causal_lm
    sized('llama', 600, 512, 3).save_pretrained(tmp_path)
    few = load_causal_lm(str(tmp_path), quantization=bits)
    scales = sum(table.numel() * table.element_size() for part in few.modules()
                 for table in (getattr(getattr(part, 'weight', None), 'quant_state', None),
                 ) if table is not None for table in (table.absmax, table.code))
    scales += sum(scale.numel() * scale.element_size() for part in few.modules()
                  if (scale := getattr(getattr(part, 'weight', None), 'SCB', None)) is not None)
    assert weight_bytes(side(load_config(str(tmp_path))), 4, bits) == pytest.approx(few.get_memory_footprint() + scales, rel=.1)
