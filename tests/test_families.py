"Families of models, a few of each kind; `make families` goes through all of them."
import pytest
import torch

from families import OPTIONS, every_name, examine, paired_text, save_family, small_model
from kdkit.capture import anatomy, capture_attention
from kdkit.cli import main
from kdkit.config import DistillConfig
from kdkit.evaluation import eval_batches
from kdkit.models import ModelError
from kdkit.run import make_framework
from pairs import save_text

SHORT = ('llama', 'gemma2', 'gemma3_text', 'qwen3_moe', 'qwen3_next', 'bloom', 'opt (350m)', 'falcon', 'gptj', 'gpt_neo', 'mpt', 'gpt_oss')

@pytest.mark.parametrize('name', SHORT)
def test_a_family_goes_from_door_to_door(name):
    row = examine(name)
    assert row == dict(family=name, built='yes', loads='yes', bits='agree', maps='equal', default='trains', seed='trains', resume='same',
                       sentence='')

def test_a_model_without_attention_has_all_but_the_attention_loss():
    row = examine('mamba', resume=False)
    assert (row['bits'], row['maps'], row['default'], row['seed']) == ('agree', 'none', 'trains', 'refused')
    assert 'MambaForCausalLM' in row['sentence'] and 'student_model' in row['sentence'] and 'alpha_attention' in row['sentence']

def test_what_is_no_decoder_is_refused_in_a_line():
    row = examine('bert')
    assert row['loads'] == 'refused' and 'BertLMHeadModel' in row['sentence']

def test_the_program_refuses_an_attention_loss_without_attention(tmp_path, capsys):
    names = save_family('mamba', tmp_path)
    words = [f'--{k}={v}' for k, v in dict(names, dataset=save_text(tmp_path, 12), output_dir=tmp_path / 'run', max_length=48,
                                           alpha_attention=.1).items()]
    capsys.readouterr()
    assert main(['train', *words]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if 'alpha_attention' in line]
    assert len(said) == 1 and not (tmp_path / 'run').exists()

def test_an_attention_loss_reaches_the_student_also_where_layers_are_recomputed(tmp_path):
    gradients = []
    for recompute in (False, True):
        config = DistillConfig(**save_family('bloom', tmp_path), output_dir=str(tmp_path / 'run'), alpha_kd=0, alpha_unaligned=0,
                               alpha_lm=1e-9, alpha_attention=1., **OPTIONS)
        framework = make_framework(config, paired_text()).train()
        if recompute: framework.gradient_checkpointing_enable()
        framework(**eval_batches(paired_text()['held_out'], framework, 4)[0])['loss'].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in framework.student_model.transformer.h.parameters()]))
    assert gradients[0].abs().max() > 1e-6
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-7)
    with pytest.raises(ModelError, match='use_reentrant.*attention'): framework.gradient_checkpointing_enable(dict(use_reentrant=True))

def test_only_the_layers_that_are_wanted_are_watched():
    model = small_model('qwen3_next', 97)
    assert anatomy(model).heads.keys() == {1}  # of two, one has attention
    with capture_attention(model, [1]) as seen: model(input_ids=torch.arange(8)[None])
    assert seen.keys() == {1}
    with capture_attention(model, []) as seen: model(input_ids=torch.arange(8)[None])
    assert seen == {} and not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())

def test_every_family_is_in_the_table():
    assert {'llama', 'gpt2', 'mamba', 'bert'} <= set(every_name()) and len(every_name()) > 100
