"What two processes find out about a sharded student; test_fsdp.py starts it with torchrun."
import json
import sys
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from transformers import TrainerCallback

from kdkit.config import DistillConfig
from kdkit.metrics import read_metrics
from kdkit.prepare import prepare_text
from kdkit.processes import in_turn, take_leave, together
from kdkit.run import make_framework, make_trainer
from kdkit.shards import Sharded, local

VALUES, FOLDER = json.loads(sys.argv[1]), Path(sys.argv[2])
# five held-out windows: three of one process, two of the other, which is a batch less
CONFIG = DistillConfig(**VALUES, recipe='seed', use_curriculum=False, max_length=64, batch_size=2, max_steps=4, eval_steps=2,
                       logging_steps=1, max_eval_rows=5, eval_fraction=.1, learning_rate=1e-3, early_stopping=True,
                       early_stopping_warmup=0, min_delta=0., gradient_accumulation_steps=2)


class Look(TrainerCallback):
    "What this process holds while it trains, in numbers; and a gradient that breaks, in one process alone."
    def __init__(self, breaks=0): self.held, self.breaks = {}, breaks

    def on_step_begin(self, args, state, control, model=None, **kwargs): self.model = model

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        count = lambda tensors: (sum(local(t).numel() for t in tensors), sum(t.numel() for t in tensors))
        weights = [p for group in optimizer.param_groups for p in group['params']]
        states = [value for values in optimizer.state.values() for value in values.values() if value.dim()]
        self.held = dict(weights=count(weights), gradients=count([p.grad for p in weights if p.grad is not None]), averages=count(states),
                         teacher=sum(p.numel() for p in model.teacher_model.parameters()), trained=sum(p.numel() for p in weights))
        if state.global_step + 1 == self.breaks and distributed.get_rank() == 1: local(weights[0].grad)[0] = torch.inf


def trained(name, resume=None, breaks=0, **arguments):
    "(trainer, what was looked at, weights of the student and the projectors)"
    look = Look(breaks)
    trainer = make_trainer(make_framework(CONFIG, TEXT), dict(arguments, use_cpu=True), TEXT, FOLDER / name, 'test')
    trainer.callback_handler.callbacks.insert(0, look)
    student = trainer.model.student_model
    trainer.train(resume_from_checkpoint=resume and str(FOLDER / resume))
    assert trainer.model.student_model is student and trainer.sharded is None  # the same object, filled again
    return trainer, look.held, {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def close(one, two): return one.keys() == two.keys() and max((one[name] - two[name]).abs().max().item() for name in one)


with in_turn('prepare'): TEXT = prepare_text(CONFIG)


def find_out():
    "All that is to be found; what holds processes together is gone when it returns."
    found = {}
    whole, _, weights = trained('whole')
    shards, found['held'], others = trained('shards', fsdp='full_shard', gradient_checkpointing=True)
    found['weights'] = close(weights, others)
    # all processes begin as the first does
    framework = make_framework(CONFIG, TEXT)
    first = next(framework.student_model.parameters())
    wanted = first.detach().clone()
    if distributed.get_rank(): first.data.add_(1)
    Sharded(framework).back()
    found['begins'] = (next(framework.student_model.parameters()) - wanted).abs().max().item()
    together()
    found['metrics'] = [read_metrics(FOLDER / name) for name in ('whole', 'shards')]
    found['best'] = (FOLDER / 'shards' / 'best' / 'model.safetensors').exists()
    # a checkpoint of either kind goes on as the other
    found['whole_to_shards'] = close(weights, trained('a', 'whole/checkpoint-2', fsdp=True)[2])
    found['shards_to_whole'] = close(weights, trained('b', 'shards/checkpoint-2')[2])
    # a gradient that breaks in one process is skipped in both
    for name, more in dict(broken=dict(fsdp='full_shard'), half=dict(fsdp='full_shard', bf16=True)).items():
        trainer, _, others = trained(name, breaks=2 if name == 'broken' else 0, **more)
        found[name] = dict(skipped=trainer.finite_steps.skipped, finite=all(bool(p.isfinite().all()) for p in others.values()),
                           moved=close(weights, others))
    # so does the scaler of half precision
    ones, scaler = torch.ones(2, 2), torch.amp.GradScaler('cpu')
    as_piece = lambda tensor: DTensor.from_local(tensor, init_device_mesh('cpu', (2,)), [Shard(0)])
    weight = torch.nn.Parameter(as_piece(ones))
    optimizer = torch.optim.SGD([weight], lr=1.)
    weight.grad = as_piece(scaler.scale(ones.clone()) * (torch.inf if distributed.get_rank() else 1))
    scaler.step(optimizer)
    scaler.update()
    found['scaler'] = [scaler.get_scale(), bool((local(weight) == 1).all())]
    return found


found = find_out()
if distributed.get_rank() == 0: (FOLDER / 'found.json').write_text(json.dumps(found))
else:
    kept = 'begins', 'held', 'weights', 'broken', 'half', 'scaler'
    (FOLDER / 'other.json').write_text(json.dumps({name: found[name] for name in kept}))
take_leave()
