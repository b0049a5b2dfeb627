"""A teacher on another device than its student. `meta` stands for the second GPU: PyTorch refuses every operation that mixes it with the
CPU, and a dispatch mode lets through nothing but what may travel: tokens there, and back the last states and, once, the head. What travels
back is what a twin of the teacher computes."""
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kdkit.cli import main
from kdkit.config import ConfigError, DistillConfig
from kdkit.devices import Gpu, Machine, idle_gpus, in_short, pick_teacher_device
from kdkit.doctor import about_device
from kdkit.evaluation import eval_batches, retention
from kdkit.models import ModelError, body, load_causal_lm
from kdkit.prepare import prepare_text
from kdkit.run import cache_teacher, make_framework, make_trainer, open_cache
from pairs import save_pair, save_text

aten = torch.ops.aten


class Elsewhere(TorchDispatchMode):
    "Lets tokens go to the teacher, and its states and head come back; everything else stays where it is."
    def __init__(self, twin):
        super().__init__()
        self.twin, self.sent, self.came = twin, [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default and args[0].is_meta:
            assert args[0].dtype == torch.bool  # whether a mask hides anything: it does
            return False
        if func in (aten._to_copy.default, aten.copy_.default):
            source, goal = (args[0], kwargs.get('device', args[0].device)) if func is aten._to_copy.default else (args[1], args[0].device)
            if source.device.type == 'cpu' and torch.device(goal).type == 'meta':
                assert source.dtype == torch.long and source.dim() == 2, f'{source.dtype} {tuple(source.shape)} goes to the teacher'
                self.sent.append(source)
            if source.is_meta and torch.device(goal).type == 'cpu':
                assert func is aten._to_copy.default
                return self.arrives(source)
        return func(*args, **kwargs)

    def arrives(self, source):
        head = self.twin.get_output_embeddings().weight
        self.came.append(tuple(source.shape))
        if source.shape == head.shape: return head.detach().clone()
        ids, mask, *self.sent = self.sent  # what is read first comes first
        states = body(self.twin)(input_ids=ids, attention_mask=mask, use_cache=False)[0]
        assert states.shape == source.shape and states.dtype == source.dtype, f'{tuple(source.shape)} comes from the teacher'
        return states


@pytest.fixture(scope='module')
def dense(tmp_path_factory):
    folder = tmp_path_factory.mktemp('dense')
    return dict(save_pair(folder, teacher='qwen3'), dataset=save_text(folder))


@pytest.mark.parametrize('options', [{}, dict(kd_method='uld'), dict(kd_method='span'), dict(alpha_kd=.5, alpha_feature=.5)],
                         ids=lambda options: '-'.join(map(str, options.values())) or 'default')
def test_no_operation_mixes_devices(dense, tmp_path, options):
    config = DistillConfig(**dense, max_length=64, output_dir=str(tmp_path / 'run'), eval_fraction=.1, **options)
    text, found = prepare_text(config), {}
    twin = load_causal_lm(config.teacher_model, torch.float32, 'teacher_model').eval()
    for place in ('beside', 'elsewhere'):
        config = replace(config)
        framework = make_framework(config, text)
        batch = framework.collator()([text['train'][i] for i in range(5)])
        watch = Elsewhere(twin)
        if place == 'elsewhere':
            framework.teacher_model.to('meta')
            framework._hold(apart=True)
            framework.to('cpu')  # as the trainer moves it: the teacher stays
            assert next(framework.teacher_model.parameters()).is_meta
            watch.__enter__()
        try:
            output = framework(**batch)
            output['loss'].backward()
            kept = None if options else retention(framework, eval_batches(text['held_out'], framework, 4))
        finally:
            if place == 'elsewhere': watch.__exit__(None, None, None)
        found[place] = output['loss'].detach(), output['losses'], [p.grad for p in framework.parameters() if p.grad is not None], kept
    assert watch.came and len([shape for shape in watch.came if len(shape) == 2]) <= 1  # the head once
    torch.testing.assert_close(found['elsewhere'], found['beside'], rtol=0, atol=0)


def test_the_student_reads_while_its_teacher_does(dense, tmp_path):
    "What the teacher has read is fetched after the student's own forward pass was begun: a copy before it would make the student wait."
    config = DistillConfig(**dense, max_length=64, output_dir=str(tmp_path / 'run'), eval_fraction=.1)
    text = prepare_text(config)
    framework, order = make_framework(config, text), []
    twin = load_causal_lm(config.teacher_model, torch.float32, 'teacher_model').eval()
    framework.teacher_model.to('meta')
    framework._hold(apart=True)
    watch = Elsewhere(twin)
    arrives = watch.arrives
    watch.arrives = lambda source: order.append('arrives') or arrives(source)
    body(framework.teacher_model).register_forward_hook(lambda *_: order.append('teacher'))
    body(framework.student_model).register_forward_hook(lambda *_: order.append('student'))
    with watch: framework(**framework.collator()([text['train'][0]]))
    assert order[:3] == ['teacher', 'student', 'arrives']


def test_the_next_micro_batch_is_read_during_the_backward_pass(dense, tmp_path):
    "The teacher reads before the backward pass of the micro-batch before, and the student that comes of it is the same to the last bit."
    config = DistillConfig(**dense, max_length=64, batch_size=2, gradient_accumulation_steps=3, max_steps=4, logging_steps=1,
                           learning_rate=1e-3, output_dir=str(tmp_path / 'run'), eval_fraction=.1)
    text, students, order = prepare_text(config), [], []
    twin = load_causal_lm(config.teacher_model, torch.float32, 'teacher_model').eval()
    for place in ('beside', 'elsewhere'):
        framework = make_framework(config, text)
        framework.curriculum.lead.begin(2., 2.2)
        watch = Elsewhere(twin)
        if place == 'elsewhere':
            framework.teacher_model.to('meta')
            framework._hold(apart=True)
        trainer = make_trainer(framework, dict(save_strategy='no', eval_strategy='no'), text, tmp_path / place, place)
        if place == 'elsewhere':
            body(framework.teacher_model).register_forward_hook(lambda *_: order.append('teacher'))
            body(framework.student_model).register_forward_hook(lambda *_: order.append('student'))
            framework.student_model.get_input_embeddings().weight.register_post_accumulate_grad_hook(lambda *_: order.append('backward'))
            with watch: trainer.train()
        else: trainer.train()
        students.append({name: value.clone() for name, value in framework.student_model.state_dict().items()})
    assert order == 4 * ['teacher', 'student', 'teacher', 'backward', 'student', 'teacher', 'backward', 'student',
                         'backward'] and not watch.sent
    assert all(torch.equal(students[0][name], students[1][name]) for name in students[0])


def test_what_is_read_ahead_is_for_its_batch_alone(dense, tmp_path):
    "An evaluation may come in between, or a batch that nobody announced."
    config = DistillConfig(**dense, max_length=64, output_dir=str(tmp_path / 'run'), eval_fraction=.1)
    text = prepare_text(config)
    framework = make_framework(config, text)
    framework._hold(apart=True)  # as if it were on another device
    batches = [framework.complete(framework.collator()([text['train'][i] for i in rows])) for rows in ((0, 1), (2, 3), (4, 5))]
    wanted = [framework(**batch)['loss'].item() for batch in batches]
    assert len(set(wanted)) == 3
    for announced, comes in ((1, 1), (1, 2), (2, 0), (0, 0)):
        framework.read_ahead(batches[announced])
        assert framework(**batches[comes])['loss'].item() == wanted[comes]
        assert framework.ahead is None


def test_a_cache_needs_no_teacher_anywhere(dense, tmp_path):
    config = DistillConfig(**dense, max_length=64, output_dir=str(tmp_path / 'run'), eval_fraction=.1,
                           teacher_cache=str(tmp_path / 'cache'))
    cache_teacher(config)
    text = prepare_text(config)
    cache = open_cache(config, text)
    framework = make_framework(config, text, cache.stand_in)
    assert not framework.apart and torch.isfinite(framework(**framework.collator()([text['train'][0]]))['loss'])


# -- which device ------------------------------------------------------------------------------------------------------

def machine(n):
    return Machine(gpus=[Gpu(i, 'Tesla T4', (7, 5), 15 * 2**30) for i in range(n)], arches=['sm_75'], version='2.10.0', cuda='12.8')


@pytest.mark.parametrize('wish, gpus, world, wanted',
                         [('auto', 2, 1, 'cuda:1'), ('auto', 1, 1, 'cuda'), ('auto', 0, 1, 'cpu'), ('auto', 2, 2, 'cuda'),
                          (None, 2, 1, 'cuda'), ('cpu', 2, 1, 'cpu'), ('cuda:1', 2, 1, 'cuda:1'), ('cuda:0', 2, 1, 'cuda:0'),
                          ('split', 2, 1, 'cuda:1')])
def test_where_the_teacher_reads(monkeypatch, wish, gpus, world, wanted):
    monkeypatch.setenv('WORLD_SIZE', str(world))
    place, why = pick_teacher_device(wish, machine(gpus))
    assert place == wanted
    said = in_short(machine(gpus), teacher_device=wish)
    assert (f'on {place} ({why})' in said) == bool(why) and '\n' not in said
    assert bool(idle_gpus(machine(gpus), wish)[0]) == (gpus > 1 and world == 1 and wanted != 'cuda:1')


@pytest.mark.parametrize('gpus, world, says', [(1, 1, 'no second GPU'), (0, 1, 'no second GPU'), (2, 2, 'each process has one GPU')])
def test_what_cannot_be_split(monkeypatch, gpus, world, says):
    monkeypatch.setenv('WORLD_SIZE', str(world))
    with pytest.raises(ValueError, match=says): pick_teacher_device('split', machine(gpus))
    with pytest.raises(ConfigError, match='alpha_attention'): DistillConfig(teacher_device='split', alpha_attention=.1)


@pytest.mark.parametrize('options', [{}, dict(kd_method='span'), dict(alpha_kd=.5, alpha_feature=.5, alpha_layerwise=.5)],
                         ids=lambda options: '-'.join(map(str, options.values())) or 'default')
def test_a_teacher_in_several_places_teaches_the_same(dense, tmp_path, options):
    "Accelerate's own hooks fetch the layers of a real model from where they lie: here two of them on the disk, the others in memory."
    config = DistillConfig(**dense, max_length=64, output_dir=str(tmp_path / 'run'), eval_fraction=.1, use_curriculum=False, **options)
    text = prepare_text(config)
    layers = len(body(load_causal_lm(config.teacher_model)).layers)
    where = {'model.embed_tokens': 'cpu', 'model.norm': 'cpu', 'model.rotary_emb': 'cpu', 'lm_head': 'cpu',
             **{f'model.layers.{i}': 'cpu' if i else 'disk' for i in range(layers)}}
    def load(where): return load_causal_lm(config.teacher_model, device_map=where, offload_folder=str(tmp_path / 'layers')).eval()
    whole, split = make_framework(config, text), make_framework(config, text, load(where))
    assert split.apart and next(body(split.teacher_model).layers[0].parameters()).is_meta and not whole.apart
    batch = whole.collator()([text['train'][i] for i in range(5)])
    found = []
    for framework in (whole, split.to('cpu')):
        output = framework(**framework.complete(batch))
        output['loss'].backward()
        found.append((output['loss'].detach(), output['losses'], framework.student_model.get_input_embeddings().weight.grad))
    torch.testing.assert_close(found[1], found[0])
    for part, says in (('lm_head', 'head'), ('model.embed_tokens', 'embeddings')):
        with pytest.raises(ModelError, match=f'the {says} of this model lie on the disk'): load({**where, part: 'disk'})


def test_a_second_card_that_cannot_compute_is_not_taken():
    two = machine(2)
    two.gpus[1].capability = (6, 0)
    assert pick_teacher_device('auto', two) == ('cuda', '')


def test_the_doctor_says_it():
    said = '\n'.join(map(str, about_device(machine(2), DistillConfig(), try_it=False)))
    assert 'the teacher on cuda:1: it would idle' in said and 'of 2 GPUs' not in said and 'torchrun --nproc_per_node 2' in said
    assert '1 of 2 GPUs is used' in '\n'.join(map(str, about_device(machine(2), DistillConfig(teacher_cache='x'), try_it=False)))
    assert 'there are 2 GPUs' in '\n'.join(map(str, about_device(machine(2), DistillConfig(teacher_device='cuda:2'), try_it=False)))


def test_a_card_that_is_not_there_is_a_mistake(dense, tmp_path, capsys):
    if torch.cuda.device_count() > 5: pytest.skip('it is there')
    options = dict(dense, output_dir=tmp_path / 'run', teacher_device='cuda:5')
    assert main(['train', *(f'--{name}={value}' for name, value in options.items())]) == 2
    assert "teacher_device is 'cuda:5', but there" in capsys.readouterr().err and not (tmp_path / 'run').exists()
    with pytest.raises(ConfigError, match='auto, split, cpu, cuda or a GPU'): DistillConfig(teacher_device='gpu1')
