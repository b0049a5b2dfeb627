"A student of which little is trained: what learns, what is saved, what the merged student says, what a killed run comes to, and the doors."
import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

peft = pytest.importorskip('peft')
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

from kdkit.adapters import add_adapters, merged, save_adapter
from kdkit.cli import main
from kdkit.config import ConfigError, DistillConfig
from kdkit.evaluation import eval_batches, measure
from kdkit.framework import StudentAwareDistillationFramework
from kdkit.metrics import read_metrics
from kdkit.models import ModelError, body, check_causal_lm, count_parameters, load_causal_lm, load_config, load_tokenizer, output_head
from kdkit.prepare import prepare_text
from kdkit.run import distill, evaluate_run
from kdkit.trainer import DistillationTrainer, training_arguments
from pairs import SHAPES, model_of
from test_contract import batch_of, framework_of
from test_precision import step
from test_training import command

IDS = torch.arange(24).view(2, 12)
SHORT = dict(max_length=64, batch_size=2, max_eval_rows=4, max_steps=6, eval_steps=3, logging_steps=1)

def shaken(model, std=.1):
    "Adapters as if they had learnt something."
    torch.manual_seed(1)
    for p in model.parameters():
        if p.requires_grad: torch.nn.init.normal_(p, std=std)
    return model

@pytest.fixture(scope='module')
def adapter(pair, tmp_path_factory):
    "A folder that PEFT itself has written, of the pair's student."
    folder = tmp_path_factory.mktemp('adapter')
    shaken(get_peft_model(AutoModelForCausalLM.from_pretrained(pair['student_model']),
                          LoraConfig(r=3, target_modules='all-linear'))).save_pretrained(folder)
    return str(folder)

# -- what learns -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16'])
def test_gradients_are_on_adapters_and_projectors_only_and_in_float32(pair, dtype):
    framework, text = framework_of(pair, lora_r=4, lora_dropout=.1, student_dtype=dtype)
    framework(**batch_of(framework, text['train'].select(range(2))))['loss'].backward()
    graded = {name for name, p in framework.named_parameters() if p.grad is not None}
    assert graded == {name for name, p in framework.named_parameters() if p.requires_grad}
    assert all('.lora_' in name or name.startswith('terms.')
               for name in graded) and any('.lora_' in name for name in graded) and any(name.startswith('terms.') for name in graded)
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in framework.parameters() if p.requires_grad)
    assert framework.student_model.model.embed_tokens.weight.dtype == getattr(torch, dtype)

def test_a_scaler_steps_a_student_in_half_precision(pair):
    "The same gradient as in float32, up to fp16's bits, through autocast and GradScaler."
    half, text = framework_of(pair, lora_r=4, student_dtype='float16', teacher_dtype='float16')
    exact, _ = framework_of(pair, lora_r=4)
    for framework in (half, exact): shaken(framework.student_model, .05)
    batch = batch_of(half, text['train'].select(range(4)))
    (output, gradient), (wanted, known) = step(half, batch), step(exact, batch, half=False)
    flat = lambda some: torch.cat([some[name].flatten() for name in sorted(some) if '.lora_' in name])
    assert torch.cosine_similarity(flat(gradient), flat(known), 0) > .999 and abs(output['loss'] / wanted['loss'] - 1) < .01

def test_gradient_checkpointing_gives_the_same_gradient(pair):
    framework, text = framework_of(pair, lora_r=4)
    batch, gradients = batch_of(framework, text['train'].select(range(2))), []
    shaken(framework.student_model)
    for checkpointing in (False, True):
        if checkpointing: framework.gradient_checkpointing_enable()
        framework.train(), framework.zero_grad()
        framework(**batch)['loss'].backward()
        gradients.append({name: p.grad.clone() for name, p in framework.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items(): torch.testing.assert_close(gradients[1][name], gradient, msg=name)

# -- merged ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('modules', ['all-linear', 'head', 'embedding'])
@pytest.mark.parametrize('shape', SHAPES)
def test_the_merged_student_says_the_same(tmp_path, shape, modules):
    model = model_of(shape, 97)
    names = {id(part): name for name, part in model.named_modules()}
    part = dict(head=model.get_output_embeddings(), embedding=model.get_input_embeddings()).get(modules)
    add_adapters(model, DistillConfig(lora_r=3, lora_target_modules=modules if part is None else names[id(part)]))
    shaken(model)
    assert not torch.allclose(model(IDS).logits, model_of(shape, 97)(IDS).logits)
    merged(model).save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits)
    assert not any('lora' in name for name in again.state_dict()) and again.dtype == torch.float32

@pytest.mark.parametrize('how', [dict(use_dora=True), dict(modules_to_save=['lm_head']), dict(use_rslora=True, bias='all')])
def test_other_kinds_merge_too(how):
    model = get_peft_model(model_of('mistral', 97), LoraConfig(r=3, target_modules=['q_proj', 'up_proj'], **how))
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad: p.add_(torch.randn_like(p) * .05)
    model = model.eval().get_base_model()
    torch.testing.assert_close(merged(model)(IDS).logits, model(IDS).logits)

def test_a_student_in_half_precision_is_merged_in_float32():
    model = model_of('llama', 97).half()
    add_adapters(model, DistillConfig(lora_r=3))
    shaken(model, .02)
    plain = merged(model)
    exact = copy.deepcopy(model).float()
    assert plain.dtype == torch.float32
    torch.testing.assert_close(plain(IDS).logits, exact(IDS).logits)
    assert model.dtype == torch.float16  # as it was

# -- a run -------------------------------------------------------------------------------------------------------------

def test_a_run_as_a_user_types_it(pair, tmp_path, capsys):
    run = tmp_path / 'run'
    values = dict(pair, **SHORT, output_dir=run, learning_rate=3e-3, recipe='seed', lora_r=8, control='true')
    assert main(['train', *(f'--{k}={v}' for k, v in values.items())]) == 0
    report = json.loads((run / 'report.json').read_text())
    said = capsys.readouterr().err
    assert ('adapters of rank 8 at 14 layers of the student are trained' in said and 'float32' in report['adapters']
            and 'adapters of rank 8' in (run / 'report.md').read_text())
    assert '--lora_r 8' in (run / 'student/README.md').read_text()
    for folder in (run, run / 'control'):
        assert {'adapter_model.safetensors', 'adapter_config.json',
                'tokenizer.json'} <= {path.name for path in (folder / 'adapter').iterdir()}
        assert (folder / 'student/model.safetensors').exists() and not (folder / 'student/adapter_config.json').exists()
        for checkpoint in folder.glob('checkpoint-*'):
            assert not (checkpoint / 'model.safetensors').exists() and (checkpoint / 'adapter_model.safetensors').exists()
    sizes = {report[name]['parameters'] for name in ('student_before', 'student_after', 'control')}
    assert sizes == {count_parameters(load_causal_lm(pair['student_model']))}
    # without kdkit and without peft
    code = ("import sys, torch; sys.modules['peft'] = None; from transformers import AutoModelForCausalLM, AutoTokenizer; f = sys.argv[1]; "
            "m = AutoModelForCausalLM.from_pretrained(f); "
            "t = AutoTokenizer.from_pretrained(f); torch.save(m(torch.arange(24).view(2, 12)).logits, sys.argv[2]); assert 'kdkit' not in "
            "sys.modules; print(len(t('a line')['input_ids']))")
    done = subprocess.run([sys.executable, '-c', code, run / 'student', tmp_path / 'logits'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1500:]
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(run / 'adapter')  # found by adapter_config.json
    torch.testing.assert_close(torch.load(tmp_path / 'logits'), theirs(IDS).logits)
    assert not torch.allclose(theirs(IDS).logits, AutoModelForCausalLM.from_pretrained(pair['student_model'])(IDS).logits, atol=1e-5)
    # measured from either folder, it is what the run says
    scores = {}
    for name in ('adapter', 'student'):
        assert main(['eval', f'--student_model={run / name}', f"--dataset={pair['dataset']}", '--max_length=64', '--batch_size=2']) == 0
        scores[name] = capsys.readouterr().out.splitlines()[-1]
    assert scores['adapter'] == scores['student']
    config = DistillConfig.load(run / 'config.yaml')
    text = prepare_text(config)
    framework = StudentAwareDistillationFramework(replace(config, student_model=str(run / 'adapter'), lora_r=None))
    assert measure(framework, eval_batches(text['held_out'], framework,
                                           2))['bits_per_byte'] == pytest.approx(report['student_after']['bits_per_byte'], abs=1e-6)

@pytest.mark.parametrize('options', [dict(lora_dropout=.2),
                                     pytest.param(dict(student_dtype='bfloat16', lora_target_modules='q_proj,lm_head'),
                                                  marks=pytest.mark.slow)])
def test_a_killed_run_ends_like_an_uninterrupted_one(pair, tmp_path, options):
    values = dict(pair, **SHORT, **options, recipe='seed', gradient_accumulation_steps=2, learning_rate=1e-3,
                  lora_r=4) | dict(max_steps=16, eval_steps=5)
    env, whole, cut = dict(os.environ, OMP_NUM_THREADS='1'), tmp_path / 'whole', tmp_path / 'cut'
    assert subprocess.run(command(dict(values, output_dir=whole)), env=env, capture_output=True).returncode == 0
    victim = subprocess.Popen(command(dict(values, output_dir=cut)), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while victim.poll() is None:
            if (cut / 'metrics.jsonl').exists() and any(line['step'] >= 7 for line in read_metrics(cut)): break
            time.sleep(.005)
        assert victim.poll() is None, 'it ended before it could be killed'
    finally: victim.send_signal(signal.SIGKILL); victim.wait()
    again = subprocess.run(command(dict(values, output_dir=cut)), env=env, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr[-2000:]
    for name in ('adapter/adapter_model.safetensors', 'student/model.safetensors'):
        one, other = (load_file(folder / name) for folder in (whole, cut))
        assert one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one), name
    assert [line['step'] for line in read_metrics(cut) if 'losses' in line] == [*range(1, 17)]

def test_a_run_that_was_trained_and_not_yet_measured_goes_on_from_its_adapter(pair, tmp_path):
    values = dict(pair, **SHORT, learning_rate=1e-3, lora_r=4, output_dir=str(tmp_path))
    report = distill(values)
    marks = json.loads((tmp_path / 'stages.json').read_text())
    del marks['trained']['score'], marks['reported']
    (tmp_path / 'stages.json').write_text(json.dumps(marks))
    for checkpoint in tmp_path.glob('checkpoint-*'): shutil.rmtree(checkpoint)
    assert distill(values)['student_after'] == report['student_after']

def test_early_stopping_keeps_the_best_student(pair, tmp_path):
    config = DistillConfig(**{**pair, **SHORT, 'max_steps': 40, 'eval_steps': 1, 'learning_rate': .3}, lora_r=4, early_stopping=True,
                           patience=3, min_delta=0., early_stopping_warmup=0, output_dir=str(tmp_path))
    report = distill(config)
    scores = [line['eval']['bits_per_byte'] for line in read_metrics(tmp_path) if 'eval' in line]
    assert report['steps'] < 40 and scores[-1] > min(scores)
    assert report['student_after']['bits_per_byte'] == pytest.approx(min(scores), abs=1e-5)
    assert (tmp_path / 'best/adapter_model.safetensors').exists() and not (tmp_path / 'best/model.safetensors').exists()
    kept = evaluate_run(str(tmp_path / 'student'), pair['dataset'],
                        max_length=64), evaluate_run(str(tmp_path / 'best'), pair['dataset'], max_length=64)
    assert kept[0]['student_after']['bits_per_byte'] == pytest.approx(kept[1]['student_after']['bits_per_byte'], abs=1e-5)

# -- doors -------------------------------------------------------------------------------------------------------------

def test_a_folder_of_peft_teaches_and_is_taught_further(pair, adapter, tmp_path):
    teacher = get_peft_model(AutoModelForCausalLM.from_pretrained(pair['teacher_model']), LoraConfig(r=2, target_modules=['q_proj']))
    shaken(teacher).save_pretrained(tmp_path / 'teacher')
    report = distill(dict(pair, **SHORT, teacher_model=str(tmp_path / 'teacher'), student_model=adapter, learning_rate=1e-3, recipe='seed',
                          output_dir=str(tmp_path / 'run')))
    plain = evaluate_run(pair['teacher_model'], pair['dataset'],
                         max_length=64)['student_after'], evaluate_run(str(tmp_path / 'teacher'), pair['dataset'],
                                                                       max_length=64)['student_after']
    assert (plain[0]['bits_per_byte'] != plain[1]['bits_per_byte']
            and plain[0]['parameters'] == plain[1]['parameters'] == report['teacher']['parameters'])
    said = json.loads((tmp_path / 'run/adapter/adapter_config.json').read_text())
    assert said['r'] == 3 and said['base_model_name_or_path'] == pair['student_model']
    first, last = load_file(f'{adapter}/adapter_model.safetensors'), load_file(tmp_path / 'run/adapter/adapter_model.safetensors')
    assert first.keys() == last.keys() and all((first[n] - last[n]).abs().max() < .05
                                               for n in first) and any(not torch.equal(first[n], last[n]) for n in first)

def test_an_adapter_says_what_it_belongs_to(pair, adapter, tmp_path):
    model = load_causal_lm(adapter, role='teacher_model')
    assert load_config(adapter).model_type == 'llama' and len(load_tokenizer(adapter)) == len(load_tokenizer(pair['student_model']))
    assert not any(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(model(IDS).logits, peft.AutoPeftModelForCausalLM.from_pretrained(adapter)(IDS).logits)
    def changed(**values):
        folder = shutil.copytree(adapter, tmp_path / str(len(list(tmp_path.iterdir()))))
        about = json.loads((folder / 'adapter_config.json').read_text()) | values
        (folder / 'adapter_config.json').write_text(json.dumps(about))
        return str(folder)
    for folder, says in ((changed(base_model_name_or_path='/no/such/folder'),
                          "is an adapter, and its base '/no/such/folder' does not exist"),
                          (changed(base_model_name_or_path=None), 'does not say of which model'),
                         (changed(base_model_name_or_path=adapter), 'is an adapter itself'),
                         (changed(peft_type='PROMPT_TUNING'), 'puts vectors before the text'),
                         (changed(base_model_name_or_path=pair['teacher_model']), 'does not fit')):
        with pytest.raises(ModelError) as raised: load_causal_lm(folder, role='teacher_model')
        assert says in str(raised.value) and 'teacher_model' in str(raised.value) and '\n' not in str(raised.value), raised.value
    shutil.copytree(pair['student_model'], tmp_path / 'moved/base')  # a base beside the adapter is found from wherever one stands
    shutil.copytree(adapter, tmp_path / 'moved/adapter')
    about = json.loads((tmp_path / 'moved/adapter/adapter_config.json').read_text()) | dict(base_model_name_or_path='../base')
    (tmp_path / 'moved/adapter/adapter_config.json').write_text(json.dumps(about))
    torch.testing.assert_close(load_causal_lm(str(tmp_path / 'moved/adapter'))(IDS).logits, model(IDS).logits)

@pytest.mark.parametrize('modules', ['all-linear', ['q_proj', 'lm_head']])
def test_a_wrapped_model_from_python_works(pair, modules):
    "PEFT's wrapper names the whole language model as its base; body and head are found in spite of it."
    student = get_peft_model(load_causal_lm(pair['student_model']), LoraConfig(r=4, target_modules=modules))
    teacher = get_peft_model(load_causal_lm(pair['teacher_model']), LoraConfig(r=4, target_modules=modules))
    shaken(student), shaken(teacher)
    wanted = student.eval()(IDS).logits
    config = DistillConfig(**pair, max_length=64, alpha_kd=.8, alpha_feature=.1)
    text = prepare_text(config)
    framework = StudentAwareDistillationFramework(replace(config, kd_method=text['method']), teacher, student, vocab_map=text['vocab_map'])
    model = framework.student_model
    torch.testing.assert_close(output_head(model)(body(model)(IDS)[0]), wanted)
    check_causal_lm(model, 'student_model')
    framework.train()
    framework(**batch_of(framework, text['train'].select(range(2))))['loss'].backward()
    graded = {name for name, p in framework.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert any('.lora_A' in name for name in graded) and (modules == 'all-linear' or any('lm_head' in name for name in graded))
    assert not any(name.startswith('student_model') and '.lora_' not in name for name in graded)

def test_a_model_from_python_passes_the_same_door(pair):
    config, plain = DistillConfig(**pair), load_causal_lm(pair['student_model'])
    broken = copy.deepcopy(plain)
    broken.model.layers[0].mlp.up_proj.weight.data[0, 0] = float('nan')
    prompted = get_peft_model(copy.deepcopy(plain), PromptTuningConfig(num_virtual_tokens=3, task_type='CAUSAL_LM'))
    for model, says in ((broken, 'hold NaN'), (prompted, 'puts vectors before the text'),
                        (torch.nn.Linear(2, 2), 'no model of transformers')):
        with pytest.raises(ModelError, match=says): StudentAwareDistillationFramework(config, None, model)
        with pytest.raises(ModelError, match=says): StudentAwareDistillationFramework(config, model)
    two = get_peft_model(copy.deepcopy(plain), LoraConfig(r=2, target_modules=['q_proj']))
    two.add_adapter('other', LoraConfig(r=2, target_modules=['v_proj']))
    two.base_model.set_adapter(['default', 'other'])
    with pytest.raises(ModelError, match='has 2 adapters in use'): StudentAwareDistillationFramework(config, None, two)
    with pytest.raises(ModelError, match='has an adapter already'):
        StudentAwareDistillationFramework(replace(config, lora_r=2), None,
                                          get_peft_model(copy.deepcopy(plain), LoraConfig(r=2, target_modules=['q_proj'])))

def test_nothing_is_trained_in_half_precision(pair, tmp_path):
    frozen = StudentAwareDistillationFramework(DistillConfig(**pair), None, load_causal_lm(pair['student_model']).requires_grad_(False))
    for framework, says in ((frozen, 'nothing of the student can be trained'),
                            (StudentAwareDistillationFramework(DistillConfig(**pair, student_dtype='float16')), 'is trained in float16')):
        with pytest.raises(ModelError, match=says):
            DistillationTrainer(framework, training_arguments(framework.config, 2, output_dir=str(tmp_path)))

@pytest.mark.parametrize('values, says',
                         [(dict(lora_r=4, lora_target_modules='query'),
                           "lora_target_modules is 'query', which fits no layer of the student (LlamaForCausalLM): its "
                           "linear layers are down_proj, "),
                                          (dict(student_dtype='float16'),
                                           'student_dtype float16 is asked for, but all of the student is trained, which needs float32'),
                                          (dict(attn_implementation='magic'),
                                           "attn_implementation 'magic' cannot be used for student_model"),
                                          (dict(lora_r=4, student_model='ADAPTER'),
                                           'is an adapter already, which is trained further: leave lora_r out')])
def test_a_mistake_is_found_before_text_or_weights_are_read(pair, adapter, tmp_path, monkeypatch, values, says):
    import kdkit.framework, kdkit.prepare
    def never(*args, **kwargs): raise AssertionError('too late')
    for module, name in ((kdkit.prepare, 'read_texts'), (kdkit.framework, 'load_causal_lm')): monkeypatch.setattr(module, name, never)
    values = {k: adapter if v == 'ADAPTER' else v for k, v in values.items()}
    with pytest.raises(ModelError) as raised: distill(dict(pair, **SHORT, output_dir=str(tmp_path / 'run')) | values)
    assert says in str(raised.value) and '\n' not in str(raised.value) and not (tmp_path / 'run').exists()

@pytest.mark.parametrize('values, says', [(dict(lora_alpha=8), 'no adapters without lora_r'),
                                          (dict(lora_dropout=.1), 'no adapters without lora_r'), (dict(lora_r=0), '1 or more'),
                                          (dict(lora_r=4, lora_dropout=1), 'below 1'),
                                          (dict(lora_r=4, lora_target_modules='q,,v'), 'names of layers'),
                                          (dict(teacher_quantization='2bit'), '4bit or 8bit'), (dict(student_dtype='int8'), 'bfloat16')])
def test_an_option_that_cannot_be_says_so(values, says):
    with pytest.raises(ConfigError, match=says): DistillConfig(**values)

def test_without_peft_one_line_says_what_to_install(pair, adapter, tmp_path):
    code = "import sys; sys.modules['peft'] = None; from kdkit.cli import main; sys.exit(main(sys.argv[1:]))"
    for more in (['--lora_r=4', f"--student_model={pair['student_model']}"], [f'--student_model={adapter}']):
        words = ['train', f"--teacher_model={pair['teacher_model']}", f"--dataset={pair['dataset']}", f'--output_dir={tmp_path}/run',
                 '--max_steps=2', '--max_length=64', *more]
        done = subprocess.run([sys.executable, '-c', code, *words], capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.count('error') == 1, done.stderr
    assert "peft is not installed: pip install 'kdkit[lora]'" in done.stderr
