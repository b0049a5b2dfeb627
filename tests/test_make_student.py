"Students that are cut out of their teacher."
import json

import pytest
import torch
from transformers import (AutoConfig, AutoModelForCausalLM, AutoTokenizer, BloomConfig, Gemma2Config, Gemma3TextConfig, GemmaConfig,
                          GPT2Config, GPTNeoConfig, GPTNeoXConfig, LlamaConfig,
                          MistralConfig, OPTConfig, Phi3Config, Qwen2Config, Qwen3Config, Qwen3MoeConfig, SmolLM3Config)
from transformers.utils import logging as hf_logging

from kdkit.capture import decoder_layers
from kdkit.cli import main
from kdkit.make_student import kept_layers, make_student, teacher_ids_of
from kdkit.models import ModelError
from kdkit.run import distill
from pairs import save_text
from tiny_tokenizers import byte_level, sentencepiece

SIZE = dict(hidden_size=32, num_hidden_layers=6, num_attention_heads=4, intermediate_size=48, max_position_embeddings=128, bos_token_id=0,
            eos_token_id=0, pad_token_id=0)
GROUPED = dict(SIZE, num_key_value_heads=2)
WINDOWS = dict(GROUPED, head_dim=8, sliding_window=4)
CONFIGS = {
    'llama': (LlamaConfig, dict(GROUPED, tie_word_embeddings=True)), 'llama (untied)': (LlamaConfig, GROUPED),
    'mistral': (MistralConfig, WINDOWS), 'phi3': (Phi3Config, GROUPED),
    'qwen2': (Qwen2Config, dict(GROUPED, use_sliding_window=True, sliding_window=4, max_window_layers=3)),
    'qwen3': (Qwen3Config, dict(GROUPED, head_dim=8)),
    'qwen3_moe': (Qwen3MoeConfig, dict(GROUPED, head_dim=8, moe_intermediate_size=32, num_experts=3, num_experts_per_tok=1)),
    'qwen3_moe (every second)': (Qwen3MoeConfig, dict(GROUPED, head_dim=8, moe_intermediate_size=32, num_experts=3, num_experts_per_tok=1,
                                                      decoder_sparse_step=2, mlp_only_layers=[5])),
    'gemma': (GemmaConfig, dict(GROUPED, head_dim=8)), 'gemma2': (Gemma2Config, WINDOWS),
    'gemma3_text': (Gemma3TextConfig, dict(WINDOWS, sliding_window_pattern=3)),
    'smollm3': (SmolLM3Config, dict(GROUPED, no_rope_layer_interval=2)), 'gpt_neox': (GPTNeoXConfig, SIZE),
    'opt': (OPTConfig, dict(SIZE, ffn_dim=48, word_embed_proj_dim=32)),
    'bloom': (BloomConfig, dict(hidden_size=32, n_layer=6, n_head=4, bos_token_id=0, eos_token_id=0)),
    'gpt2': (GPT2Config, dict(n_embd=32, n_layer=6, n_head=4, n_positions=128, bos_token_id=0, eos_token_id=0)),
    'gpt_neo': (GPTNeoConfig, dict(hidden_size=32, num_layers=6, num_heads=4, attention_types=[[['global', 'local'], 3]], window_size=4,
                                   max_position_embeddings=128)),
}

@pytest.fixture(scope='module')
def tokenizers(tmp_path_factory):
    "Two tokenizers, and the folder of the other one."
    folder = tmp_path_factory.mktemp('vocab')
    (other := sentencepiece(600)).save_pretrained(folder)
    return byte_level(700), other, str(folder)

def teacher_of(name, tokenizer, folder, seed=0):
    "A random model of six layers in a folder, whose every layer matters."
    kind, sizes = CONFIGS[name]
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(kind(**sizes, vocab_size=len(tokenizer))).eval()
    with torch.no_grad():
        for part in model.parameters(): part.copy_(part + 0.2 * torch.randn_like(part))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

def only_these(model, kept):
    "Let the other layers hand on what they get: everything else is the whole model's."
    def pass_on(module, args, kwargs, output):
        came = args[0] if args else kwargs['hidden_states']
        return (came, *output[1:]) if isinstance(output, tuple) else came
    for k, layer in enumerate(decoder_layers(model)):
        for module in layer if k not in kept else (): module.register_forward_hook(pass_on, with_kwargs=True)
    return model

@pytest.mark.parametrize('name', CONFIGS)
def test_a_student_is_its_teacher_without_some_layers(name, tokenizers, tmp_path):
    teacher = teacher_of(name, tokenizers[0], tmp_path / 'teacher')
    made = make_student(str(tmp_path / 'teacher'), tmp_path / 'student', 4)
    assert made['kept'] == [0, 2, 3, 5] and made['one_token'] is None
    student = AutoModelForCausalLM.from_pretrained(tmp_path / 'student').eval()
    ids = torch.randint(1, 690, (2, 24))
    with torch.no_grad():
        whole = teacher(input_ids=ids, use_cache=False).logits
        expected, found = (model(input_ids=ids, use_cache=False).logits for model in (only_these(teacher, made['kept']), student))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (whole - expected).abs().max() > 0.05, 'the layers that are left out do nothing, so nothing was tested'

@pytest.mark.parametrize('name', ['llama', 'llama (untied)', 'gpt2', 'gemma3_text', 'qwen3_moe', 'opt'])
def test_rows_of_another_vocabulary_are_means_of_the_teachers(name, tokenizers, tmp_path):
    "Bytes decide for the reference here too, by another way: what both decode to the same text."
    theirs, mine, vocab = tokenizers
    teacher = teacher_of(name, theirs, tmp_path / 'teacher')
    made = make_student(str(tmp_path / 'teacher'), tmp_path / 'student', 3, vocab=vocab)
    student, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path / 'student'), AutoTokenizer.from_pretrained(tmp_path / 'student')
    assert made['rows'] == len(mine) == len(student.get_input_embeddings().weight) and tokenizer.get_vocab() == mine.get_vocab()
    assert (student.get_output_embeddings().weight is student.get_input_embeddings().weight) == bool(student.config.tie_word_embeddings)
    checked = 0
    for token, index in mine.get_vocab().items():
        text = token.replace('\u2581', ' ')
        if index in mine.all_special_ids or token.startswith('<0x'): continue
        ids = theirs(text, add_special_tokens=False)['input_ids']
        for part in ('get_input_embeddings', 'get_output_embeddings'):
            there, here = getattr(teacher, part)().weight, getattr(student, part)().weight
            torch.testing.assert_close(here[index], there[ids].mean(0), atol=1e-5, rtol=1e-5)
        checked += 1
    assert checked > 300
    end = teacher.get_input_embeddings().weight[theirs.eos_token_id]
    torch.testing.assert_close(student.get_input_embeddings().weight[mine.eos_token_id], end, atol=1e-5, rtol=1e-5)
    assert student.config.get_text_config().eos_token_id == mine.eos_token_id == student.generation_config.eos_token_id

def test_half_characters_and_unknown_control_tokens_get_a_row_too(tokenizers):
    theirs, mine, _ = tokenizers
    config = LlamaConfig(**GROUPED, vocab_size=len(theirs))
    back = teacher_ids_of(theirs, mine, LlamaConfig(**GROUPED, vocab_size=len(mine)))  # bytes of a character, written in SentencePiece
    assert all(max(ids, default=0) < len(mine) for ids in back) and sum(map(bool, back)) > 0.9 * len(back)
    mine.add_special_tokens({'additional_special_tokens': ['<|nobody|>']}, replace_extra_special_tokens=False)
    assert teacher_ids_of(mine, theirs, config)[mine.convert_tokens_to_ids('<|nobody|>')] == []

def test_the_command(tokenizers, tmp_path, capsys):
    "From the command to a run that learns."
    teacher_of('qwen3_moe', tokenizers[0], tmp_path / 'teacher')
    words = ['make-student', '--from', str(tmp_path / 'teacher'), '--layers', '2', '--vocab', tokenizers[2], '--output_dir']
    hf_logging.enable_progress_bar()  # whatever a test before did
    capsys.readouterr()
    assert main([*words, str(tmp_path / 'student')]) == 0
    out, err = capsys.readouterr()
    assert 'Loading weights' not in err and 'shards' not in err
    assert 'layers 0, 5 of 6' in out and str(tmp_path / 'student') in out
    report = distill(dict(teacher_model=str(tmp_path / 'teacher'), student_model=str(tmp_path / 'student'), dataset=save_text(tmp_path),
                          output_dir=str(tmp_path / 'run'), max_steps=4, max_length=32,
                          batch_size=2, max_eval_rows=4, eval_steps=4))
    assert report['steps'] == 4
    assert main([*words, str(tmp_path / 'student')]) == 2
    assert 'not empty' in capsys.readouterr().err

@pytest.mark.parametrize('words, said', [
    (['--layers', '2', '--output_dir', 'x'], '--from is missing'),
    (['--from', '{}', '--output_dir', 'x'], '--layers is missing'),
    (['--from', '{}', '--layers', '2'], '--output_dir is missing'),
    (['--from', '{}', '--layers', 'two', '--output_dir', 'x'], 'a whole number'),
    (['--from', '{}', '--layers', '7', '--output_dir', 'x'], 'from 1 to 6'),
    (['--from', '{}', '--layers', '2', '--output_dir', 'x', '--vocab', '/nowhere/at/all'], 'does not exist'),
    (['--from', '{}', '--layers', '2', '--output_dir', 'x', '--hidden', '16'], '--hidden is unknown'),
])
def test_mistakes_are_one_line(words, said, tokenizers, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    teacher_of('llama', tokenizers[0], tmp_path / 'teacher')
    capsys.readouterr()
    assert main(['make-student', *(word.format(tmp_path / 'teacher') for word in words)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count('\n') == 1 and not (tmp_path / 'x').exists()

def test_a_family_that_cannot_says_so(tmp_path):
    "Gemma 3n keeps a row for every layer in one table."
    from families import small_config
    tokenizer = byte_level(700)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(small_config('gemma3n_text', vocab_size=len(tokenizer))).save_pretrained(tmp_path / 'teacher')
    tokenizer.save_pretrained(tmp_path / 'teacher')
    with pytest.raises(ModelError, match='no student of 2 of its 4 layers can be cut: .+ a family that can'):
        make_student(str(tmp_path / 'teacher'), tmp_path / 'student', 2)
    assert not (tmp_path / 'student').exists()

def test_layers_are_even():
    for there in range(1, 40):
        for n in range(1, there + 1):
            kept = kept_layers(there, n)
            gaps = {b - a for a, b in zip(kept, kept[1:])}
            assert len(set(kept)) == n and kept[0] == 0 and (n == 1
                                                             or kept[-1] == there - 1) and max(gaps, default=0) - min(gaps, default=0) <= 1
