"""Standard benchmarks: the numbers of a run are those of lm-eval's own command line, each is made once, and a task that fails costs nothing
but itself."""
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytest.importorskip('lm_eval')
from safetensors.torch import load_file

from kdkit.cli import main

OPTIONS = dict(max_length=64, max_steps=4, eval_steps=2, batch_size=4, learning_rate=1e-2, eval_fraction=.1, max_eval_rows=8,
               use_cpu='true')
CHOICE = '''task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
'''
KINDS = dict(
    choose='''fewshot_split: test
num_fewshot: 2
output_type: multiple_choice
doc_to_text: "{{question}} is"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}, {metric: acc_norm}, {metric: brier_score, aggregation: brier_score, higher_is_better: false}]
''', read='''output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}} is {{choices[0]}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
''', write='''output_type: generate_until
doc_to_text: "{{question}} is"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["."], max_gen_toks: 5}
metric_list: [{metric: exact_match}]
''', broken='''output_type: multiple_choice
doc_to_text: "{{question}} is"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
process_results: !function broken.process_results
metric_list: [{metric: acc}]
''')


@pytest.fixture(scope='module')
def tasks(tmp_path_factory):
    "Files of tasks that answer in four ways, one of them with an error."
    folder = tmp_path_factory.mktemp('tasks')
    words = 'json random text object string function return value list sequence'.split()
    rows = [dict(question=' '.join(words[i % 7:i % 7 + 3]), choices=[f'{words[(i * k) % 10]} {words[k]}' for k in (2, 3, 7)], answer=i % 3)
            for i in range(10)]
    (folder / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    (folder / 'broken.py').write_text('def process_results(doc, results): raise RuntimeError("this task is broken")\n')
    for name, more in KINDS.items(): (folder / f'{name}.yaml').write_text(CHOICE.format(name=name, data=folder / 'rows.jsonl') + more)
    return {name: str(folder / f'{name}.yaml') for name in KINDS}


def words_of(values, folder, **options):
    return ['train', *(f'--{name}={value}' for name, value in {**values, **OPTIONS, 'output_dir': folder, **options}.items())]


def own_numbers(model, tasks, batch_size=4, limit=None):
    "What lm-eval's command line says of a saved folder."
    out = Path(tempfile.mkdtemp())
    command = [sys.executable, '-m', 'lm_eval', '--model', 'hf', '--model_args', f'pretrained={model}', '--tasks', ','.join(tasks),
               '--device', 'cpu', '--batch_size', str(batch_size),
               '--output_path', str(out), *(['--limit', str(limit)] if limit else [])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=dict(os.environ, HF_HUB_OFFLINE='1'))
    assert done.returncode == 0, done.stderr[-3000:]
    [path] = out.rglob('results*.json')
    return json.loads(path.read_text())['results']


def same_numbers(ours, own):
    "To the last bit."
    assert ours.keys() == own.keys()
    for task, numbers in own.items():
        wanted = {key: value for key, value in numbers.items() if ',' in key and not isinstance(value, str)}
        assert {key: value for key, value in ours[task].items() if ',' in key} == wanted and wanted, task


ALL = 'choose', 'read', 'write'


@pytest.fixture(scope='module')
def done(pair, tasks, tmp_path_factory):
    folder = tmp_path_factory.mktemp('with_tasks') / 'run'
    assert main(words_of(pair, folder, control='true', eval_tasks=','.join(tasks[name] for name in ALL))) == 0
    return folder


def read(folder, name='report.json'): return json.loads((folder / name).read_text())


@pytest.mark.parametrize('side, model',
                         dict(teacher='teacher', student_before='student', student_after='student', control='control/student').items())
def test_the_numbers_are_those_of_lm_evals_own_command(done, pair, tasks, side, model):
    folder = {'teacher': pair['teacher_model'], 'student_before': pair['student_model']}.get(side, done / model)
    same_numbers(read(done)['tasks'][side], own_numbers(folder, [tasks[name] for name in ALL]))


def test_the_report_shows_every_model(done):
    said, tasks = (done / 'report.md').read_text(), read(done)['tasks']
    assert '| tasks of lm-eval ' in said and 'choose, brier_score (lower is better)' in said and 'read, bits_per_byte' in said
    assert f"{tasks['student_after']['read']['bits_per_byte,none']:.3f}" in said and tasks['student_before'] != tasks['student_after']
    assert '| tasks of lm-eval ' in (done / 'student' / 'README.md').read_text() and read(done)['versions']['lm_eval']


def test_nothing_that_is_trained_changes(done, pair, tmp_path):
    "Measuring draws random numbers and looks at the models; a training that comes after it must not know."
    assert main(words_of(pair, tmp_path / 'run', control='true')) == 0
    for name in ('student', 'control/student'):
        one, other = (load_file(folder / name / 'model.safetensors') for folder in (done, tmp_path / 'run'))
        assert one.keys() == other.keys() and all(one[key].equal(other[key]) for key in one)


def test_each_number_is_made_once(pair, tasks, tmp_path, capfd):
    folder, names = tmp_path / 'run', [tasks['choose']]
    def called(*names, **options):
        assert main(words_of(pair, folder, eval_tasks=','.join(names), **options)) == 0
        return [line for line in capfd.readouterr().err.splitlines() if line.startswith(('measuring the', 'distilling'))]
    first = called(tasks['choose'])
    assert [line for line in first if tasks['choose'] in line] == [f"measuring the {who} by {tasks['choose']}, 10 examples"
                                                                   for who in ('teacher', 'student', 'trained student')]
    kept = read(folder, 'stages.json')['tasks']
    assert called(tasks['choose']) == []  # all of it is done
    (folder / 'report.json').unlink()
    # the report was made of the marks
    assert called(tasks['choose']) == [] and read(folder, 'stages.json')['tasks']['teacher'] == kept['teacher']
    more = called(tasks['choose'], tasks['read'])  # one more task for a run that is over
    assert more == [f"measuring the {who} by {tasks['read']}, 10 examples" for who in ('teacher', 'student', 'trained student')]
    same_numbers(read(folder)['tasks']['student_after'], own_numbers(folder / 'student', [tasks['choose'], tasks['read']]))
    longer = called(tasks['choose'], max_steps=6)  # another student, and the same teacher
    assert [line for line in longer if tasks['choose'] in line] == [f"measuring the trained student by {tasks['choose']}, 10 examples"]
    fewer = called(tasks['choose'], max_steps=6, eval_limit=4)
    assert len(fewer) == 3 and read(folder)['tasks']['teacher']['choose']['examples'] == 4


def test_a_run_that_is_cut_off_between_two_tasks_goes_on_there(pair, tasks, tmp_path, capfd, monkeypatch):
    import kdkit.scores
    names, measured, real = [tasks['choose'], tasks['read']], [], kdkit.scores.measure_tasks
    def killed(*args, **options):
        if len(measured) == 3: raise KeyboardInterrupt
        measured.append(1)
        return real(*args, **options)
    monkeypatch.setattr(kdkit.scores, 'measure_tasks', killed)
    assert main(words_of(pair, tmp_path / 'run', eval_tasks=','.join(names))) == 130
    monkeypatch.setattr(kdkit.scores, 'measure_tasks', real)
    capfd.readouterr()
    assert main(words_of(pair, tmp_path / 'run', eval_tasks=','.join(names))) == 0
    again = [line.split(' by ')[0] for line in capfd.readouterr().err.splitlines() if ' by /' in line]
    assert again == ['measuring the student', 'measuring the trained student', 'measuring the trained student']


def test_a_task_that_fails_costs_nothing_but_itself(pair, tasks, tmp_path, capfd):
    words = words_of(pair, tmp_path / 'run', eval_tasks=f"{tasks['broken']},{tasks['choose']}")
    assert main(words) == 0
    said = [line for line in capfd.readouterr().err.splitlines() if 'could not be measured' in line]
    assert len(said) == 3 and all('this task is broken' in line and 'tries again' in line for line in said)
    assert set(read(tmp_path / 'run')['tasks']['student_after']) == {'choose'} and (tmp_path / 'run/student/model.safetensors').exists()
    source = Path(tasks['broken']).with_suffix('.py')
    kept = source.read_text()
    source.write_text('def process_results(doc, results): return dict(acc=1.)\n')
    try: assert main(words) == 0
    finally: source.write_text(kept)
    again = capfd.readouterr().err
    assert (again.count('measuring the') == 3 and 'step ' not in again
            and read(tmp_path / 'run')['tasks']['teacher']['broken']['acc,none'] == 1)


@pytest.mark.parametrize('options, says', [
    (dict(eval_tasks='arc_eesy'), "Did you mean 'arc_easy'?"), (dict(eval_tasks='no/such.yaml'), 'there is no such file'),
    (dict(eval_tasks='arc_easy'), 'cannot be read'),
    (dict(eval_limit=4), 'there are no eval_tasks'), (dict(eval_tasks=' , '), 'names of tasks'),
    (dict(eval_tasks='x', eval_limit=0), '1 or more')], ids=lambda value: str(value)[:30])
def test_the_door(pair, tmp_path, capfd, monkeypatch, options, says):
    import kdkit.run
    def loads(*args): raise AssertionError('something is loaded')
    monkeypatch.setattr(kdkit.run, 'prepare_text', loads)
    assert main(words_of(pair, tmp_path / 'run', **options)) == 2
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert says in said and not (tmp_path / 'run').exists(), said


def test_tasks_that_run_code_are_left_to_lm_eval(tasks):
    from kdkit.config import DistillConfig
    from kdkit.tasks import TaskError, open_tasks
    path = Path(tasks['choose']).with_name('unsafe.yaml')
    path.write_text(Path(tasks['choose']).read_text().replace('task: choose', 'task: unsafe\nunsafe_code: true'))
    with pytest.raises(TaskError, match='runs code that a model writes'): open_tasks(DistillConfig(eval_tasks=str(path)))


@pytest.mark.parametrize('with_text', [False, True])
def test_eval_measures_by_tasks(done, pair, tasks, capfd, with_text):
    words = [f"--eval_tasks={tasks['read']}", '--eval_limit=5', f"--student_model={done / 'student'}",
             f"--teacher_model={pair['teacher_model']}", '--batch_size=4']
    assert main(['eval', *words, *([f"--dataset={pair['dataset']}", '--max_length=64', '--max_eval_rows=4'] if with_text else [])]) == 0
    said, own = capfd.readouterr().out, own_numbers(done / 'student', [tasks['read']], limit=5) if not with_text else None
    assert ('bits per byte' in said) == with_text and '| tasks of lm-eval ' in said and '| read, bits_per_byte' in said
    if own: assert f"{own['read']['bits_per_byte,none']:.3f} |" in said.split('read, bits_per_byte')[1].splitlines()[0]


def test_a_teachers_cache_holds_its_scores(pair, tasks, tmp_path, capfd):
    base = dict(pair, teacher_cache=tmp_path / 'said',
                **{k: v for k, v in OPTIONS.items() if k in ('max_length', 'max_steps', 'batch_size', 'eval_fraction', 'max_eval_rows')})
    assert main(['cache-teacher', *(f'--{name}={value}' for name, value in base.items()), f"--eval_tasks={tasks['read']}"]) == 0
    assert main(words_of(pair, tmp_path / 'run', teacher_cache=tmp_path / 'said', eval_tasks=f"{tasks['read']},{tasks['choose']}")) == 0
    said, scores = capfd.readouterr().err, read(tmp_path / 'run')['tasks']
    assert (f"{tasks['choose']} was not measured for the teacher" in said and set(scores['teacher']) == {'read'}
            and set(scores['student_after']) == {'read', 'choose'})
    same_numbers(scores['teacher'], own_numbers(pair['teacher_model'], [tasks['read']]))


def test_adapters_are_measured_as_they_are(pair, tasks, tmp_path):
    pytest.importorskip('peft')
    assert main(words_of(pair, tmp_path / 'run', lora_r=4, eval_tasks=tasks['read'])) == 0
    scores, own = read(tmp_path / 'run')['tasks'], own_numbers(tmp_path / 'run/student', [tasks['read']])
    for key, value in own['read'].items():
        # merged, the sums are made in another order
        if ',' in key and not isinstance(value, str): assert scores['student_after']['read'][key] == pytest.approx(value, rel=1e-5)
    assert scores['student_after'] != scores['student_before']


def test_two_processes_share_the_questions(pair, tasks, tmp_path):
    words = words_of(pair, tmp_path / 'run', batch_size=2, eval_tasks=f"{tasks['read']},{tasks['write']}")
    env = dict(os.environ, PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", OMP_NUM_THREADS='1')
    done = subprocess.run(['torchrun', '--standalone', '--nproc_per_node', '2', '--no-python', 'kdkit', *words], env=env,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count('measuring the trained student by') == 2
    own = own_numbers(tmp_path / 'run/student', [tasks['read'], tasks['write']], batch_size=2)
    for task, numbers in own.items():
        for key, value in numbers.items():
            if ',' in key and not isinstance(value, str):
                # in batches of other questions
                assert read(tmp_path / 'run')['tasks']['student_after'][task][key] == pytest.approx(value, rel=1e-5)


def test_what_does_not_fit_is_read_in_smaller_batches(pair, tasks):
    from kdkit.config import DistillConfig
    from kdkit.models import load_causal_lm, load_tokenizer
    from kdkit.tasks import measure_tasks, open_tasks
    model, tokenizer, asked = load_causal_lm(pair['student_model']), load_tokenizer(pair['student_model']), []
    [opened] = open_tasks(DistillConfig(eval_tasks=tasks['read'])).values()
    whole = measure_tasks(model, tokenizer, opened, batch_size=8)
    def scarce(module, args, kwargs):
        asked.append(len(args[0] if args else kwargs['input_ids']))
        if asked[-1] > 2: raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
    model.register_forward_pre_hook(scarce, with_kwargs=True)
    parts = measure_tasks(model, tokenizer, opened, batch_size=8)
    assert (asked[:2] == [8, 4] and set(asked[2:]) <= {1, 2}
            and parts['read']['bits_per_byte,none'] == pytest.approx(whole['read']['bits_per_byte,none'], rel=1e-5))


def test_each_of_several_teachers_is_measured_by_itself(pair, tasks, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    other = AutoModelForCausalLM.from_pretrained(pair['teacher_model'])
    with torch.no_grad(): other.get_output_embeddings().weight.mul_(3)
    other.save_pretrained(tmp_path / 'other'), AutoTokenizer.from_pretrained(pair['teacher_model']).save_pretrained(tmp_path / 'other')
    words = [word for word in words_of(pair, tmp_path / 'run', eval_tasks=tasks['read']) if not word.startswith('--teacher_model')]
    assert main([*words, '--teacher_model', pair['teacher_model'], str(tmp_path / 'other')]) == 0
    scores = read(tmp_path / 'run')['tasks']
    assert list(scores)[:2] == ['teacher teacher', 'teacher other'] and scores['teacher teacher'] != scores['teacher other']
    same_numbers(scores['teacher other'], own_numbers(tmp_path / 'other', [tasks['read']]))
    assert '| teacher other |' in (tmp_path / 'run/report.md').read_text()


def test_measuring_leaves_no_trace(pair, tasks):
    import random

    import numpy as np
    import torch
    from kdkit.config import DistillConfig
    from kdkit.models import load_causal_lm, load_tokenizer
    from kdkit.tasks import measure_tasks, open_tasks
    model, tokenizer = load_causal_lm(pair['student_model']).train(), load_tokenizer(pair['student_model'])
    tokenizer.pad_token = None
    model.model.layers[0].eval()
    def traces():
        return (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(),
                [module.training for module in model.modules()], tokenizer.pad_token,
                {name: (id(p), p.requires_grad, p.sum().item()) for name, p in model.named_parameters()})
    [opened] = open_tasks(DistillConfig(eval_tasks=tasks['choose'])).values()
    before = traces()
    measure_tasks(model, tokenizer, opened, limit=2)
    assert traces() == before
