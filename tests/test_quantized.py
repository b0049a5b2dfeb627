"""Weights in few bits, by the CPU path of bitsandbytes: a teacher that is read, a student with adapters, what is written down, and what a
machine that cannot says."""
import json
import subprocess
import sys

import pytest
import torch

pytest.importorskip('bitsandbytes')
from transformers import AutoModelForCausalLM

from kdkit.adapters import merged
from kdkit.cache import weights_digest
from kdkit.cli import main
from kdkit.models import ModelError, body, count_parameters, is_quantized, load_causal_lm, output_head, try_quantized
from kdkit.run import distill
from test_contract import batch_of, framework_of

IDS = torch.arange(24).view(2, 12)
SHORT = dict(max_length=64, batch_size=2, max_eval_rows=4, max_steps=4, eval_steps=2, logging_steps=1)

@pytest.fixture(autouse=True)
def any_width(monkeypatch):
    """On a CPU with bf16 instructions bitsandbytes packs 4-bit weights anew. Widths must then be multiples of 64: real ones are, these are
    not."""
    monkeypatch.setattr('bitsandbytes.nn.modules.has_avx512bf16', lambda: False, raising=False)


@pytest.mark.parametrize('bits', ['4bit', '8bit'])
def test_a_teacher_in_few_bits_says_nearly_the_same(pair, bits, tmp_path):
    plain, few = load_causal_lm(pair['teacher_model']), load_causal_lm(pair['teacher_model'], quantization=bits)
    assert try_quantized(bits, torch.device('cpu')) == '' and is_quantized(few.config)
    assert few.get_memory_footprint() < plain.get_memory_footprint()
    wanted, found = plain(IDS).logits, few(IDS).logits
    assert 0 < (found - wanted).norm() / wanted.norm() < (.3 if bits == '4bit' else .05)
    torch.testing.assert_close(output_head(few)(body(few)(IDS)[0]), found)
    assert count_parameters(few) == count_parameters(plain) and few.get_output_embeddings().weight.is_floating_point()
    few.save_pretrained(tmp_path)  # a checkpoint that is quantised already loads as it is
    again = load_causal_lm(str(tmp_path))
    assert is_quantized(again.config) and torch.equal(again(IDS).logits, found) and weights_digest(again) == weights_digest(few)
    # another teacher each
    assert len({weights_digest(load_causal_lm(pair['teacher_model'], quantization=wish)) for wish in (None, '4bit', '8bit')}) == 3
    tokenizer = pair['teacher_model'] + '/tokenizer.json'
    (tmp_path / 'tokenizer.json').write_bytes(open(tokenizer, 'rb').read())
    with pytest.raises(ModelError, match='is quantised already'):
        distill(dict(pair, **SHORT, teacher_model=str(tmp_path), teacher_quantization='4bit', output_dir=str(tmp_path / 'run')))

@pytest.mark.parametrize('bits', ['4bit', '8bit'])
def test_a_step_with_both_in_few_bits(pair, bits):
    "Gradients on the adapters alone, in float32; the merged student says what the one with adapters says."
    framework, text = framework_of(pair, teacher_quantization=bits, student_quantization=bits, lora_r=4)
    framework(**batch_of(framework, text['train'].select(range(2))))['loss'].backward()
    graded = [(name, p.grad.dtype) for name, p in framework.named_parameters() if p.grad is not None]
    assert graded and all(('.lora_' in name or name.startswith('terms.')) and dtype == torch.float32 for name, dtype in graded)
    student = framework.student_model
    for p in student.parameters():
        if p.requires_grad: torch.nn.init.normal_(p, std=.05)
    student.eval()
    with torch.no_grad(): plain, said = merged(student)(IDS).logits, student(IDS).logits
    assert (plain - said).norm() / said.norm() < (1e-3 if bits == '4bit' else .02)  # in 8 bits the activations are rounded too
    assert not is_quantized(merged(student).config) and merged(student).dtype == torch.float32

def test_a_run_as_a_user_types_it(pair, tmp_path):
    run = tmp_path / 'run'
    words = dict(pair, **SHORT, output_dir=run, teacher_quantization='8bit', student_quantization='4bit', lora_r=4, learning_rate=1e-2)
    assert main(['train', *(f'--{k}={v}' for k, v in words.items())]) == 0
    report = json.loads((run / 'report.json').read_text())
    assert 'in 4 bits' in report['adapters']
    plain = AutoModelForCausalLM.from_pretrained(run / 'student')
    assert plain.dtype == torch.float32 and not hasattr(plain.config, 'quantization_config')
    assert count_parameters(plain) == report['student_after']['parameters']
    assert main(['eval', f'--student_model={run}/adapter', '--student_quantization=4bit', f"--dataset={pair['dataset']}",
                 '--max_length=64']) == 0

@pytest.mark.parametrize('command', ['train', 'cache-teacher'])
def test_without_bitsandbytes_one_line_says_what_to_install(pair, tmp_path, command):
    code = "import sys; sys.modules['bitsandbytes'] = None; from kdkit.cli import main; sys.exit(main(sys.argv[1:]))"
    more = [f'--teacher_cache={tmp_path}/said'] * (command == 'cache-teacher')
    words = [command, *more, *(f'--{k}={v}' for k, v in pair.items()), f'--output_dir={tmp_path}/run', '--max_steps=2', '--max_length=64',
             '--teacher_quantization=4bit']
    done = subprocess.run([sys.executable, '-c', code, *words], capture_output=True, text=True)
    assert done.returncode == 2 and not [*tmp_path.iterdir()] and 'to train on' not in done.stderr
    assert done.stderr.splitlines()[-1] == ("kdkit: error: teacher_quantization 4bit needs bitsandbytes, which is not installed: pip "
                                            "install 'kdkit[quantization]'.")

def test_a_machine_that_cannot_is_told_before_anything_is_loaded(pair, tmp_path, monkeypatch):
    "A device for which the library has no kernels: here one without any numbers."
    assert 'does not work on meta with bitsandbytes' in try_quantized('4bit', torch.device('meta'))
    with pytest.raises(ModelError, match='student_quantization 4bit is asked for, but all of the student is trained'):
        distill(dict(pair, **SHORT, student_quantization='4bit', output_dir=str(tmp_path / 'run')))
    assert not (tmp_path / 'run').exists()
