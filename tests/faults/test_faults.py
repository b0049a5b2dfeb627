"A run under pressure: whatever is killed, damaged or full, the same command ends with the weights and numbers of an undisturbed run."
import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import machine
from machine import DAMAGES, SMALL, interrupted, logged, report, run, same_weights, says_one_line, steps_in, undo_end


@pytest.fixture(scope='module')
def whole(pair, tmp_path_factory):
    "The config values, and the folder of an undisturbed run."
    folder = tmp_path_factory.mktemp('whole') / 'run'
    assert run(dict(pair, output_dir=folder)).returncode == 0
    return pair, folder


def long(*case): return pytest.param(*case, marks=pytest.mark.long)  # for `make faults`


def again(values, folder, **more):
    "The command in this process: exit code and stderr."
    from kdkit.cli import main
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(['train', *(f'--{name}={value}' for name, value in {**SMALL, **values, 'output_dir': folder, **more}.items())])
    return code, err.getvalue()


def equals(one, other):
    "Weights, numbers and lines of two runs."
    assert same_weights(one, other)
    a, b = report(one), report(other)
    for name in ('teacher', 'student_before', 'student_after', 'control', 'retention', 'gap_closed', 'steps', 'skipped_steps', 'data'):
        assert a[name] == b[name], name
    assert a['gap_closed'] is not None
    assert logged(one) == logged(other) and logged(one / 'control') == logged(other / 'control')
    for name in ('report.md', 'losses.png', 'curriculum.png', 'bits_per_byte.png', 'student/README.md', 'student/config.json',
                 'student/tokenizer.json'):
        assert (other / name).stat().st_size, name


# -- signals -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('number, code, place, step',
                         [(signal.SIGTERM, 143, '.', 6), (signal.SIGINT, 130, 'control', 3), (signal.SIGKILL, -9, '.', 9),
                          long(signal.SIGKILL, -9, 'control', 9), long(signal.SIGTERM, 143, 'control', 12),
                                                       long(signal.SIGINT, 130, '.', 3), long(signal.SIGTERM, 143, '.', 12),
                                                       long(signal.SIGKILL, -9, '.', 0)])
def test_a_signal_costs_nothing(whole, tmp_path, number, code, place, step):
    values, undisturbed = whole
    cut = tmp_path / 'run'
    ended, said = interrupted(dict(values, output_dir=cut), lambda: steps_in(cut / place) >= step, number)
    assert ended == code and 'Traceback' not in said
    if number != signal.SIGKILL:
        assert 'the same command goes on' in said.splitlines()[-1]
        taken = max(int(folder.name.split('-')[1]) for folder in (cut / place).glob('checkpoint-*'))
        assert f'saved at step {taken}' in said and taken >= step
    assert again(values, cut)[0] == 0
    equals(undisturbed, cut)


def test_a_second_signal_ends_at_once(whole, tmp_path):
    values, undisturbed = whole
    cut = tmp_path / 'run'
    process = subprocess.Popen(machine.command(dict(values, output_dir=cut, max_steps=100000, control='false')), env=machine.environment(),
                               stderr=subprocess.PIPE, text=True)
    while steps_in(cut) < 3: assert process.poll() is None
    os.kill(process.pid, signal.SIGSTOP)  # so that both arrive before the step is over
    for number in (signal.SIGINT, signal.SIGTERM): os.kill(process.pid, number)
    os.kill(process.pid, signal.SIGCONT)
    assert process.wait() in (130, 143)


def test_a_cell_that_is_interrupted_says_one_sentence_and_goes_on(whole, tmp_path):
    "In a real kernel, as the stop button of a notebook does it."
    from jupyter_client.manager import start_new_kernel
    values, undisturbed = whole
    cut = tmp_path / 'run'
    options = {**SMALL, **{k: str(v) for k, v in values.items()}, 'control': True, 'output_dir': str(cut)}
    manager, client = start_new_kernel(env=machine.environment())
    def run_cell(meanwhile=lambda: None):
        errors = []
        client.execute(f'from kdkit.run import distill\nreport = distill({options!r})')
        while True:
            meanwhile()
            try: message = client.get_iopub_msg(timeout=.2)
            except Exception: continue
            if message['msg_type'] == 'error': errors += message['content']['traceback']
            if message['msg_type'] == 'status' and message['content']['execution_state'] == 'idle': return errors
    def stop(once=[]):
        if not once and steps_in(cut) >= 6: once.append(manager.interrupt_kernel())
    try:
        [sentence] = run_cell(stop)
        assert 'saved at step' in sentence and 'run the same cell again, it goes on' in sentence and '\n' not in sentence
        assert run_cell() == []
    finally: manager.shutdown_kernel(now=True)
    equals(undisturbed, cut)


# -- a training that is over -------------------------------------------------------------------------------------------

@pytest.mark.parametrize('lost', ['all of the end', 'report.json', long('report.md'), long('losses.png'), long('student'),
                                  'student/model.safetensors', long('student/README.md'), 'stages.json', long('control/student'),
                                  long('metrics.jsonl')])
def test_what_is_missing_at_the_end_is_made_again_and_nothing_is_trained_again(whole, tmp_path, lost, monkeypatch):
    values, undisturbed = whole
    folder = tmp_path / 'run'
    shutil.copytree(undisturbed, folder)
    if lost == 'all of the end': undo_end(folder)
    elif (folder / lost).is_dir(): shutil.rmtree(folder / lost)
    else: (folder / lost).unlink()
    from kdkit.trainer import DistillationTrainer
    monkeypatch.setattr(DistillationTrainer, 'training_step', lambda *_, **__: pytest.fail('a step was taken'))
    assert again(values, folder)[0] == 0
    # the curves cannot be made again, all else is
    if lost == 'metrics.jsonl': (folder / lost).write_bytes((undisturbed / lost).read_bytes())
    equals(undisturbed, folder)


def test_the_gap_is_the_one_between_the_control_and_the_teacher(whole):
    values, folder = whole
    said = report(folder)
    control, student, teacher, before = (said[name]['bits_per_byte'] for name in ('control', 'student_after', 'teacher', 'student_before'))
    assert said['gap_closed'] == pytest.approx((control - student) / (control - teacher),
                                               rel=1e-9) if control > teacher else said['gap_closed'] is None
    assert abs(control - before) > 1e-3 * before  # or nothing would tell the two apart


# -- damage ------------------------------------------------------------------------------------------------------------

FILES = ('model.safetensors', 'projectors.safetensors', 'optimizer.pt', 'scheduler.pt', 'rng_state.pth', 'trainer_state.json',
         'training.json', 'config.json', 'tokenizer.json', 'manifest.json')

def table(full):
    return [(name, damage) for n, name in enumerate(FILES) for m, damage in enumerate(DAMAGES)
            if full or (n, m) in ((0, 0), (1, 0), (2, 3), (5, 1), (9, 2))]

@pytest.mark.parametrize('name, damage',
                         [pytest.param(*case, id=f'{case[0]}-{case[1].__name__}', marks=[] if case in table(False) else pytest.mark.long)
                          for case in table(True)])
def test_a_damaged_checkpoint_is_passed_over(whole, tmp_path, name, damage):
    values, undisturbed = whole
    folder = tmp_path / 'run'
    shutil.copytree(undisturbed, folder)
    undo_end(folder)
    damage(folder / 'checkpoint-12' / name)
    code, said = again(values, folder)
    assert code == 0 and 'checkpoint-12' in said and 'goes on from checkpoint-8' in said, said
    equals(undisturbed, folder)


def test_nothing_whole_means_from_the_beginning(whole, tmp_path):
    values, undisturbed = whole
    folder = tmp_path / 'run'
    shutil.copytree(undisturbed, folder)
    undo_end(folder)
    for checkpoint in folder.glob('checkpoint-*'): machine.flip(checkpoint / 'model.safetensors')
    code, said = again(values, folder)
    assert code == 0 and 'begins anew' in said
    equals(undisturbed, folder)


def test_a_checkpoint_of_another_run_is_not_taken(whole, pair, tmp_path):
    values, undisturbed = whole
    other, folder = tmp_path / 'other', tmp_path / 'run'
    assert again(values, other, learning_rate=1e-2)[0] == 0
    shutil.copytree(undisturbed, folder)
    undo_end(folder)
    shutil.rmtree(folder / 'checkpoint-12')
    shutil.copytree(other / 'checkpoint-12', folder / 'checkpoint-12')
    code, said = again(values, folder)
    assert code == 0 and 'belongs to another run' in said
    equals(undisturbed, folder)


# -- folders -----------------------------------------------------------------------------------------------------------

def test_more_steps_go_on_and_other_runs_are_refused(whole, tmp_path):
    values, undisturbed = whole
    folder = tmp_path / 'moved'  # a run's folder may be moved
    shutil.copytree(undisturbed, folder)
    code, said = again(values, folder, temperature=2)
    assert code == 2 and 'differs in temperature' in said
    code, said = again(values, folder, max_steps=8)
    assert code == 2 and 'taken 12 optimizer steps' in said
    code, said = again(values, folder, max_steps=16, batch_size=1, gradient_accumulation_steps=2, logging_steps=1)
    assert code == 0 and 'to step 16 instead of 12' in said and 'the same optimizer step' in said
    assert report(folder)['steps'] == report(folder)['control']['steps'] == 16 and report(folder)['gap_closed'] is not None
    lines = [line['step'] for line in logged(folder) if 'losses' in line]
    assert lines == [3, 6, 9, 12, 13, 14, 15, 16]


def test_another_text_is_another_run(whole, tmp_path):
    values, undisturbed = whole
    folder, text = tmp_path / 'run', tmp_path / 'text.jsonl'
    text.write_text(Path(values['dataset']).read_text())
    values = dict(values, dataset=text)
    assert again(values, folder, max_steps=4, control='false')[0] == 0
    undo_end(folder)
    text.write_text(''.join(line + '\n' for line in text.read_text().splitlines()[5:]))
    code, said = again(values, folder, max_steps=4, control='false')
    assert code == 2 and 'the text to' in said and 'overwrite' in said
    assert again(values, folder, max_steps=4, control='false', overwrite='true')[0] == 0


def test_the_next_session_goes_on_from_a_read_only_folder(whole, tmp_path):
    values, undisturbed = whole
    old, new = tmp_path / 'input' / 'run', tmp_path / 'working' / 'run'
    old.parent.mkdir()
    shutil.copytree(undisturbed, old)
    undo_end(old)
    shutil.rmtree(old / 'checkpoint-12')
    before = {path: path.stat().st_mtime_ns for path in old.rglob('*')}
    for path in before: path.chmod(0o555 if path.is_dir() else 0o444)
    code, said = again(values, new, resume_from=old.parent)
    assert code == 0 and 'goes on at step' in said
    equals(undisturbed, new)
    assert {path: path.stat().st_mtime_ns for path in old.rglob('*')} == before
    code, said = again(values, new, resume_from=tmp_path / 'nowhere')
    assert code == 2 and 'resume_from' in said
    for path in before: path.chmod(0o755 if path.is_dir() else 0o644)


def test_hours_that_are_over_end_a_run_like_any_other(whole, tmp_path):
    values, undisturbed = whole
    folder = tmp_path / 'run'
    code, said = again(values, folder, max_hours=1e-6)
    first = report(folder)
    assert code == 0 and 'max_hours ended the run' in said and 0 < first['steps'] < 12 and first['student_after']['bits_per_byte'] > 0
    assert (folder / 'student' / 'model.safetensors').exists() and 'eval' in logged(folder)[-1]
    code, said = again(values, folder)
    assert code == 0
    measured = lambda lines: [line for line in lines if 'losses' in line]
    assert same_weights(undisturbed, folder) and measured(logged(undisturbed)) == measured(logged(folder))
    assert report(folder)['gap_closed'] == report(undisturbed)['gap_closed']


# -- a disk without room -----------------------------------------------------------------------------------------------

@pytest.fixture
def small_disk(tmp_path):
    "A file system of a few megabytes: (folder, resize)."
    folder = tmp_path / 'disk'
    folder.mkdir()
    mount = lambda megabytes, again='': subprocess.run(['mount', '-t', 'tmpfs', '-o', f'{again}size={megabytes * 1024}k', 'tmpfs', folder],
                                                       capture_output=True).returncode
    if os.geteuid() or mount(64): pytest.skip('only root can mount a file system, and not everywhere')
    try: yield folder, lambda megabytes: mount(megabytes, 'remount,')
    finally: subprocess.run(['umount', '-l', folder])


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(whole, small_disk):
    values, undisturbed = whole
    disk, resize = small_disk
    one = sum(path.stat().st_size for path in (undisturbed / 'checkpoint-12').rglob('*')) / 2**20
    resize(int(3.6 * one) + 1)
    process = run(dict(values, output_dir=disk / 'run'))
    line = says_one_line(process, 1)
    assert 'room' in line and 'goes on' in line
    resize(int(12 * one) + 4)
    assert again(values, disk / 'run')[0] == 0
    equals(undisturbed, disk / 'run')


def test_older_checkpoints_go_first_where_the_disk_is_small(whole, small_disk, tmp_path):
    values, undisturbed = whole
    disk, resize = small_disk
    one = sum(path.stat().st_size for path in (undisturbed / 'checkpoint-12').rglob('*')) / 2**20
    resize(int(3.4 * one) + 1)
    often = dict(values, control='false', save_total_limit=3, eval_steps=2)  # each evaluation puts the teacher's lead right
    for folder in (disk / 'run', tmp_path / 'roomy'):
        process = run(dict(often, output_dir=folder))
        assert process.returncode == 0, process.stderr[-500:]
    assert same_weights(tmp_path / 'roomy', disk / 'run')


# -- caches ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('damage', [machine.flip, long(machine.truncate), long(machine.empty)])
def test_damaged_windows_are_made_again(whole, tmp_path, damage):
    values, undisturbed = whole
    short = dict(max_steps=2, eval_steps=2, control='false', cache_dir=tmp_path / 'cache')
    assert again(values, tmp_path / 'one', **short)[0] == 0
    files = [*(tmp_path / 'cache').rglob('kdkit/*.arrow')]
    assert files
    for file in files: damage(file)
    code, said = again(values, tmp_path / 'two', **short)
    assert code == 0 and said.count('it is made again') == len(files)
    assert same_weights(tmp_path / 'one', tmp_path / 'two')
    assert 'it is made again' not in again(values, tmp_path / 'three', **short)[1]


def test_a_damaged_stream_is_read_again(whole, tmp_path):
    values, _ = whole
    short = dict(max_steps=2, eval_steps=2, control='false', cache_dir=tmp_path / 'cache', streaming='true')
    assert again(values, tmp_path / 'one', **short)[0] == 0
    for file in (tmp_path / 'cache').rglob('kdkit/**/*.arrow'): machine.truncate(file)
    code, said = again(values, tmp_path / 'two', **short)
    assert code == 0 and 'it is made again' in said and same_weights(tmp_path / 'one', tmp_path / 'two')


@pytest.mark.parametrize('name, damage', [('00000.ids.npy', machine.flip), long('00000.log_probs.npy', machine.truncate),
                                          long('00000.starts.npy', machine.delete), long('00000.npz', machine.empty),
                                          ('cache.json', machine.truncate), long('began.json', machine.empty)])
def test_a_damaged_teacher_cache_is_recognised_and_made_again(whole, tmp_path, name, damage):
    values, _ = whole
    from kdkit.cli import main
    short = dict(max_steps=2, eval_steps=2, control='false', teacher_cache=tmp_path / 'said')
    def written():
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as err:
            code = main(['cache-teacher', *(f'--{k}={v}' for k, v in {**SMALL, **values, **short, 'output_dir': tmp_path / 'run'}.items())])
        return code, err.getvalue(), {path.name: path.read_bytes() for path in (tmp_path / 'said').glob('*.np*')}
    code, _, before = written()
    assert code == 0
    damage(tmp_path / 'said' / name)
    code, said = again(values, tmp_path / 'run', **short)
    if name != 'began.json': assert code == 2 and 'cache-teacher again' in said.splitlines()[-1], said[-500:]
    code, said, after = written()
    assert code == 0 and before == after
    assert again(values, tmp_path / 'run', **short)[0] == 0
