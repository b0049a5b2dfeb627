"What a person may do to a run, and what is left of the live view in every kind of ending."
import json
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, TrainerCallback

from kdkit.config import ConfigError, DistillConfig
from kdkit.folders import run_key
from kdkit.metrics import read_metrics, unknown_keys
from kdkit.prepare import prepare_text
from kdkit.run import make_framework, make_trainer
from kdkit.trainer import DistillationTrainer, last_complete_checkpoint, training_arguments
from kdkit.widgets import Replay, compare, read_plan, replay


class At(TrainerCallback):
    "Does something at the end of a step."
    def __init__(self, step, act): self.step, self.act = step, act
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step: self.act()


def trainer_of(values, folder, max_steps=8, **options):
    config = DistillConfig(**{'max_length': 64, 'batch_size': 2, 'max_steps': max_steps, 'eval_steps': 100, 'logging_steps': 1,
                              'learning_rate': 1e-3,
                              'output_dir': str(folder), 'eval_fraction': .1, 'max_eval_rows': 4, **values, **options})
    text = prepare_text(config)
    return make_trainer(make_framework(config, text), {}, text, Path(folder), 'test', coverage=text['summary']['coverage'])


def steps_of(folder): return [line['step'] for line in read_metrics(folder) if 'losses' in line]


def test_stop_evaluates_saves_and_returns(pair, tmp_path):
    trainer = trainer_of(pair, tmp_path)
    trainer.callback_handler.callbacks.insert(0, At(3, trainer.controls.stop))
    trainer.train()
    assert trainer.state.global_step == 3
    assert [line['step'] for line in read_metrics(tmp_path) if 'eval' in line] == [3]
    assert last_complete_checkpoint(tmp_path).endswith('checkpoint-3')
    AutoModelForCausalLM.from_pretrained(tmp_path / 'checkpoint-3')


def test_save_and_evaluate_now(pair, tmp_path):
    trainer = trainer_of(pair, tmp_path)
    acts = [At(2, trainer.controls.save), At(5, trainer.controls.evaluate)]
    trainer.callback_handler.callbacks[:0] = acts
    trainer.train()
    assert (tmp_path / 'checkpoint-2' / 'manifest.json').exists() and trainer.state.global_step == 8
    assert 5 in [line['step'] for line in read_metrics(tmp_path) if 'eval' in line]


def test_a_multiplier_acts_from_the_next_step_and_is_recorded(pair, tmp_path):
    trainer = trainer_of(pair, tmp_path)
    trainer.add_callback(At(4, lambda: trainer.controls.reweigh('kd', .5)))
    trainer.train()
    lines = [line for line in read_metrics(tmp_path) if 'losses' in line]
    assert [line['weights']['kd'] for line in lines] == pytest.approx([.8] * 4 + [.4] * 4)
    assert [line.get('multipliers') for line in lines[4:]] == [dict(kd=.5)] * 4 and 'multipliers' not in lines[2]
    for line in lines: assert line['loss'] == pytest.approx(sum(line['weights'][n] * v for n, v in line['losses'].items()), abs=1e-4)


def test_a_multiplier_survives_a_resume(pair, tmp_path):
    whole = trainer_of(pair, tmp_path / 'whole')
    whole.callback_handler.callbacks.insert(0, At(3, lambda: whole.controls.reweigh('kd', .25)))
    whole.callback_handler.callbacks.insert(0, At(5, whole.controls.save))
    whole.train()
    rest = trainer_of(pair, tmp_path / 'rest')
    rest.train(resume_from_checkpoint=str(tmp_path / 'whole' / 'checkpoint-5'))
    for (name, p), q in zip(whole.model.named_parameters(), rest.model.parameters()): assert (p == q).all(), name
    assert read_metrics(tmp_path / 'rest')[-2]['weights']['kd'] == pytest.approx(.2)


def test_the_share_that_drawing_takes_is_an_option(pair, tmp_path):
    "It reaches the view, and a run goes on with another."
    config = DistillConfig(**pair, output_dir=str(tmp_path), max_length=64, max_steps=4, eval_fraction=.1, max_eval_rows=4,
                           drawing_share=.02)
    text = prepare_text(config)
    make = lambda live: DistillationTrainer(make_framework(config, text), training_arguments(config, 4), text['train'], text['held_out'],
                                            live=live)
    assert make(True).dashboard.share == .02 and make(False).dashboard is None
    assert run_key(config, {}) == run_key(replace(config, drawing_share=.5), {})
    with pytest.raises(ConfigError, match='drawing_share is 0'): replace(config, drawing_share=0)


@pytest.mark.parametrize('factor', [-1, float('nan'), float('inf')])
def test_a_multiplier_is_a_number_of_0_or_more(pair, tmp_path, factor):
    with pytest.raises(ValueError, match='0 or more'): trainer_of(pair, tmp_path).controls.reweigh('kd', factor)


def test_a_paused_run_takes_no_step_until_it_is_resumed(pair, tmp_path):
    trainer, seen = trainer_of(pair, tmp_path), []
    def watch():
        time.sleep(1)
        seen.append(trainer.state.global_step)
        trainer.controls.resume()
    trainer.callback_handler.callbacks.insert(0, At(3, lambda: (trainer.controls.pause(), threading.Thread(target=watch).start())))
    begin = time.monotonic()
    trainer.train()
    assert seen == [3] and trainer.state.global_step == 8 and time.monotonic() - begin >= 1


def test_a_run_can_be_replayed_compared_and_followed(pair, tmp_path):
    trainer_of(pair, tmp_path / 'a').train()
    trainer_of(pair, tmp_path / 'b', alpha_feature=.1).train()
    plan = read_plan(tmp_path / 'b')
    assert plan['total_steps'] == 8 and plan['weights']['feature'][-1] == pytest.approx(.1) and 0 < plan['coverage'] < 1
    assert not any(map(unknown_keys, read_metrics(tmp_path / 'b')))  # the glossary knows every number
    assert replay(tmp_path / 'a').png()[:4] == b'\x89PNG'
    figure = compare(tmp_path / 'a', tmp_path / 'b')
    assert [ax.get_title() for ax in figure.axes][:2] == ['a: every loss before its weight', 'b: every loss before its weight']
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    # another process goes on writing
    lines = (tmp_path / 'a' / 'metrics.jsonl').read_text().splitlines(keepends=True)
    (tmp_path / 'a' / 'metrics.jsonl').write_text(''.join(lines[:3]) + lines[3][:20])
    run = Replay(tmp_path / 'a')
    assert run.last == 3
    with (tmp_path / 'a' / 'metrics.jsonl').open('a') as file: file.write(lines[3][20:] + lines[4])
    run.read()
    assert run.last == 5
    with pytest.raises(FileNotFoundError, match='holds no metrics.jsonl'): replay(tmp_path / 'c')


def test_everything_runs_without_ipywidgets(pair, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split('.')[0] == 'ipywidgets']: monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'ipywidgets', None)  # an import is now an ImportError
    trainer = trainer_of(pair, tmp_path)
    trainer.train()
    assert trainer.dashboard is None and steps_of(tmp_path)[-1] == 8 and replay(tmp_path).png()


FOLLOWS = '''
from kdkit.widgets import replay
run = replay({folder!r}, seconds=.2)
display(run)
import json, time
before, picture = run.last, run.pictures.value
line = dict(step=500, loss=1., losses=dict(lm=1.), weights=dict(lm=1.))
with open({folder!r} + '/metrics.jsonl', 'a') as file: file.write(json.dumps(line) + chr(10))
for _ in range(100):
    time.sleep(.1)
    if run.slider.value == 500: break
time.sleep(1)
assert run.last == 500 and run.pictures.value != picture
run.slider.value = 4
assert max(line['step'] for line in run.shown()) == 4
run.stop()
'''


def test_a_replay_follows_a_run_that_is_being_written(pair, tmp_path):
    nbclient, nbformat = pytest.importorskip('nbclient'), pytest.importorskip('nbformat')
    trainer_of(pair, tmp_path).train()
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(FOLLOWS.format(folder=str(tmp_path)))])
    nbclient.NotebookClient(nb, timeout=120, kernel_name='python3').execute()
    [shown] = [output for output in nb.cells[0].outputs if output.output_type == 'display_data']
    assert {'image/png', 'application/vnd.jupyter.widget-view+json'} <= set(shown.data)


RUNS = '''
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_live import At, trainer_of
trainer = trainer_of({pair!r}, Path({folder!r}))
def act(): {act}
trainer.add_callback(At(4, act))
trainer.train()
'''


def test_a_view_that_breaks_does_not_break_the_run(pair, tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip('nbclient'), pytest.importorskip('nbformat')
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    code = 'import kdkit.dashboard\ndef broken(*args, **kwargs): raise OSError("no fonts")\nkdkit.dashboard.one_picture = broken\n'
    code += RUNS.format(tests=str(Path(__file__).parent), pair=pair, folder=str(tmp_path), act='pass')
    code += '\nprint("steps", trainer.state.global_step)'
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(nb, timeout=120, kernel_name='python3').execute()
    said = ''.join(output.get('text', '') for output in nb.cells[0].outputs)
    assert 'steps 8' in said and said.count('the live view has stopped (OSError: no fonts)') == 1


SEES = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_live import At, trainer_of
trainer, seen = trainer_of({pair!r}, Path({folder!r})), []
trainer.add_callback(At(2, lambda: seen.append(trainer.dashboard.pictures.value)))
trainer.train()
assert trainer.dashboard.drawn is not None and seen[0].count('<svg') == 2 and 'currentColor' in seen[0] and '#000000' not in seen[0], seen
"""


def test_the_first_picture_comes_with_the_first_numbers(pair, tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip('nbclient'), pytest.importorskip('nbformat')
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    code = SEES.format(tests=str(Path(__file__).parent), pair=pair, folder=str(tmp_path))
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(nb, timeout=120, kernel_name='python3').execute()


@pytest.mark.parametrize('act, ending', [
    ('pass', None), ('raise ValueError("odd")', 'ValueError'),
    ('import os, signal; os.kill(os.getpid(), signal.SIGINT)', 'KeyboardInterrupt')])
def test_the_view_ends_as_a_picture_however_the_run_ends(pair, tmp_path, act, ending, monkeypatch):
    nbclient, nbformat = pytest.importorskip('nbclient'), pytest.importorskip('nbformat')
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    code = RUNS.format(tests=str(Path(__file__).parent), pair=pair, folder=str(tmp_path), act=act)
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(nb, timeout=120, kernel_name='python3', allow_errors=True).execute()
    outputs = json.loads(json.dumps(nb))['cells'][0]['outputs']
    assert [output['ename'] for output in outputs if output['output_type'] == 'error'] == [ending] * bool(ending)
    [picture] = [output for output in outputs if 'image/png' in output.get('data', {})]
    assert set(picture['data']) == {'image/png', 'text/plain'}
    assert not any('VBox' in str(output.get('data', {}).get('text/plain')) for output in outputs)
    assert (tmp_path / 'dashboard.png').read_bytes()[:4] == b'\x89PNG'
