"""Distil a Hugging Face causal language model into a smaller one, also across tokenizers.

A few names are all that most people need:

    distill(config)            check, prepare the text, train, measure, report; on a folder whose run was cut off: go on
    DistillConfig(...)         what a run may vary: teacher_model, student_model, dataset, output_dir, max_steps, ...
    DistillationTrainer(...)   transformers.Trainer for a distillation step, for training loops of your own
    demo()                     the teacher that comes with the package teaches a small student, offline, in minutes
    replay(folder)             a run as a picture, in a notebook with a slider; also one that is still being written
    compare(folder, folder)    two runs on the same axes
    doctor()                   what would stop or slow a run on this machine, and what to do

For example:

    import kdkit

    report = kdkit.distill(dict(teacher_model='Qwen/Qwen2.5-0.5B', student_model='HuggingFaceTB/SmolLM-135M',
                                dataset='roneneldan/TinyStories[train[:20000]]', output_dir='runs/first', control=True))
    kdkit.replay('runs/first')

Everything else is in modules, one a chapter of nbs/: kdkit.losses, kdkit.align, kdkit.vocab and so on. The names above
keep their meaning between versions, as CHANGELOG.md says; the modules' may change with a note there.
On a command line the same things are `kdkit train`, `kdkit demo`, `kdkit eval`, `kdkit compare`; see `kdkit --help`.
"""
import importlib as _importlib
import typing as _typing

__version__ = "0.1.0"

if _typing.TYPE_CHECKING:  # for editors; at run time a name is imported when it is asked for, since torch takes seconds
    from .config import DistillConfig as DistillConfig
    from .doctor import doctor as doctor
    from .run import demo as demo, distill as distill
    from .trainer import DistillationTrainer as DistillationTrainer
    from .widgets import compare as compare, replay as replay

_homes = dict(distill='run', demo='run', DistillConfig='config', DistillationTrainer='trainer', replay='widgets', compare='widgets', doctor='doctor')


def __getattr__(name):
    if name not in _homes: raise AttributeError(f"module 'kdkit' has no attribute {name!r}")
    home = _importlib.import_module(f'.{_homes[name]}', __name__)
    return home if name == _homes[name] else getattr(home, name)  # doctor is a module that can be called


def __dir__(): return sorted([*globals(), *_homes])
