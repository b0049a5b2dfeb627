"Several teachers: what a student learns is the weighted mean of what each of them would teach it alone."
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from kdkit.align import token_bytes
from kdkit.cache import CacheError
from kdkit.cli import main
from kdkit.config import ConfigError, DistillConfig
from kdkit.framework import StudentAwareDistillationFramework
from kdkit.metrics import read_metrics, unknown_keys
from kdkit.models import ModelError, body
from kdkit.prepare import prepare_text
from kdkit.report import comparison_table, read_report
from kdkit.run import cache_teacher, distill, evaluate_run, make_framework, make_trainer, texts_of
from kdkit.sequence import teacher_text, write_dataset
from kdkit.share import LEAST, share_of, worth_distilling
from kdkit.signs import health, read_plan
from kdkit.windows import JointRows

from pairs import documents, model_of, save_pair, save_text
from tiny_tokenizers import byte_level, sentencepiece


@pytest.fixture(scope='module')
def three(tmp_path_factory):
    """Two teachers whose tokenizers differ from each other's and from the student's, a third that has the student's, and a twin of the
    first."""
    folder = tmp_path_factory.mktemp('three')
    pair = save_pair(folder, teacher='qwen3')
    for name, tokenizer, shape, seed in (('second', byte_level(500), 'qwen3', 3), ('kin', sentencepiece(600), 'llama', 5)):
        model_of(shape, len(tokenizer), 40, 3, seed).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    shutil.copytree(folder / 'teacher', folder / 'twin')
    student = AutoModelForCausalLM.from_pretrained(pair['student_model'])
    with torch.no_grad(): student.model.norm.weight.mul_(8)  # so sure of nonsense that random teachers are ahead of it
    student.save_pretrained(folder / 'student')
    return folder, save_text(folder)


def config_of(three, out, *teachers, weights=None, **options):
    folder, text = three
    return DistillConfig(**{**dict(teacher_model=[str(folder / name) for name in teachers], teacher_weights=weights,
                                   student_model=str(folder / 'student'), dataset=text,
                                   max_length=64, batch_size=4, gradient_accumulation_steps=2, max_steps=6, eval_steps=3, logging_steps=1,
                                   learning_rate=1e-3,
                                   eval_fraction=.1, max_eval_rows=8, output_dir=str(out)), **options})


def step_of(config, text, teacher=None, rows=5, double=False):
    "Loss, losses and gradient of some rows; text may be that of one of its teachers."
    framework = make_framework(config, text, teacher)
    # a lead of its own each
    for lesson in framework.lessons: lesson.curriculum.lead.begin(2., 2.02 + lesson.teacher_model.config.vocab_size / 1e4)
    if double:
        for lesson in framework.lessons: lesson.teacher_model.double()
        framework.student_model.double()
    texts = texts_of(text)[:len(framework.lessons)]
    train = JointRows([one['train'] for one in texts]) if framework.further else text['train']
    out = framework(**framework.collator()([train[i] for i in range(rows)]))
    out['loss'].backward()
    return out, torch.cat([p.grad.double().flatten() for p in framework.student_model.parameters()])


def alone(config, text, i): return config.of_teacher(i), dict(texts_of(text)[i], further=[])


@pytest.mark.parametrize('options', [{}, dict(alpha_kd=.5), dict(divergence='jsd'), dict(kd_method='span'), dict(kd_method='uld'),
                                     dict(student_aware=True),
                                     dict(temperature=2.), dict(mask_inconsistent=True)], ids=lambda options: '-'.join(map(str, options))
                         or 'default')
def test_loss_and_gradient_are_the_weighted_means_of_the_single_ones(three, tmp_path, options):
    config = config_of(three, tmp_path, 'teacher', 'second', 'kin', weights=[5, 3, 2], **options)
    text = prepare_text(config)
    double = options.get('kd_method') != 'span'  # which makes numbers of fp32
    both, gradient = step_of(config, text, double=double)
    singles = [step_of(*alone(config, text, i), double=double) for i in range(3)]
    torch.testing.assert_close(both['loss'], sum(w * out['loss'] for w, (out, _) in zip((.5, .3, .2), singles)), rtol=1e-6, atol=0)
    mean = sum(w * one for w, (_, one) in zip((.5, .3, .2), singles))
    assert (gradient - mean).norm() < 1e-6 * mean.norm()
    for label, (out, _) in zip(('teacher', 'second', 'kin'), singles):
        torch.testing.assert_close(both['losses'][f'kd_{label}'], out['losses']['kd'])
    assert both['loss'].item() == pytest.approx(sum(both['losses'][name].item() * both['weights'][name] for name in both['losses']),
                                                rel=1e-6)
    shares = [out['weights']['kd'] for out, _ in singles]
    assert options.get('alpha_kd') or len(set(shares)) == 3  # each teacher's share follows its own lead


def test_one_teacher_twice_is_one_teacher(three, tmp_path):
    config = config_of(three, tmp_path, 'teacher', 'twin', weights=[.5, .5])
    text = prepare_text(config)
    (twice, gradient), (once, single) = step_of(config, text), step_of(*alone(config, text, 0))
    torch.testing.assert_close(twice['loss'], once['loss'], rtol=1e-6, atol=0)
    assert (gradient - single).norm() < 1e-6 * single.norm()
    assert texts_of(text)[0]['train'][:] == texts_of(text)[1]['train'][:] == prepare_text(config.of_teacher(0))['train'][:]


def test_a_teacher_without_weight_teaches_nothing(three, tmp_path):
    for weights, i in (([1, 0], 0), ([0, 1], 1)):
        config = config_of(three, tmp_path, 'teacher', 'second', weights=weights)
        text = prepare_text(config)
        (both, gradient), (one, single) = step_of(config, text), step_of(*alone(config, text, i))
        assert both['loss'].item() == one['loss'].item() and (gradient == single).all()
        assert [name for name in both['losses'] if name.startswith('kd')] == [f"kd_{('teacher', 'second')[i]}"]


def test_all_sides_hold_the_same_text_and_meet_wherever_two_do(three, tmp_path):
    "Against a count from the tokens' bytes; the byte-level teachers only, whose bytes are those of the text."
    folder, _ = three
    config = config_of(three, tmp_path, 'teacher', 'second', student_model=str(folder / 'twin'))
    texts = texts_of(prepare_text(config))
    assert texts[0]['train']['input_ids'] == texts[1]['train']['input_ids'] and texts[0]['train']['n_bytes'] == texts[1]['train']['n_bytes']
    for text in texts:
        student, teacher = (token_bytes(text['pair'].student), token_bytes(text['pair'].teacher))
        for row in text['train']:
            ends = [[len(b''.join(pieces[i] or b'|' for i in row[name][1:n])) for n in range(1, len(row[name]) + 1)]
                    for name, pieces in (('input_ids', student), ('teacher_input_ids', teacher))]
            assert ends[0][-1] == ends[1][-1]  # the same bytes in all
            last = [{end: i for i, end in enumerate(some)} for some in ends]
            met = sorted((last[0][end], last[1][end]) for end in last[0].keys() & last[1].keys())
            assert [*zip(row['student_positions'], row['teacher_positions'])] == met[:-1]
    first, second = texts_of(prepare_text(config_of(three, tmp_path, 'teacher', 'kin', student_model=str(folder / 'twin'))))
    # where the other teacher has no boundary, this one has: it reads the student's tokens
    for row, other in zip(first['train'], second['train']):
        assert (row['student_positions'] == row['teacher_positions'] == [*range(len(row['input_ids']) - 1)]
                and {*other['student_positions']} <= {*row['student_positions']})
    assert sum(map(len, second['train']['student_positions'])) < .9 * sum(map(len, first['train']['student_positions']))


def test_a_run_by_the_command_and_what_it_says(three, tmp_path, capsys):
    folder, text = three
    words = ['train', '--teacher_model', str(folder / 'teacher'), str(folder / 'second'), '--teacher_weights', '0.7', '0.3',
             f'--student_model={folder}/student',
             f'--dataset={text}', '--max_length=64', '--batch_size=4', '--gradient_accumulation_steps=2', '--max_steps=6', '--eval_steps=3',
             '--logging_steps=1',
             '--learning_rate=1e-3', '--eval_fraction=.1', '--max_eval_rows=8', '--control=true', f'--output_dir={tmp_path}/run']
    assert main(words) == 0
    said = ' '.join(sum(map(str.split, capsys.readouterr()), []))
    assert ('2 teachers: teacher (70%), second (30%)' in said and 'second: held-out text costs' in said
            and 'second: the two models are compared' in said)
    run, report = tmp_path / 'run', read_report(tmp_path / 'run')
    assert list(report['teachers']) == ['teacher', 'second'] and [about['weight'] for about in report['teachers'].values()] == [.7, .3]
    bits = [about['bits_per_byte'] for about in report['teachers'].values()]
    assert report['teacher']['bits_per_byte'] == pytest.approx(.7 * bits[0] + .3 * bits[1])
    assert all(0 < about['coverage'] < 1 and about['as_read'] > 0 and 0 < about['share'] < 1 for about in report['teachers'].values())
    assert list(report['retention']) == ['teacher, before', 'second, before', 'teacher, after', 'second, after']
    single = distill(config_of(three, tmp_path / 'second', 'second', gradient_accumulation_steps=1, max_steps=1))
    # windows are cut in other places
    assert single['teacher']['perplexity'] == pytest.approx(report['teachers']['second']['perplexity'], rel=.05)
    for file in ('report.md', 'student/README.md'): assert 'second' in (run / file).read_text()
    assert '--teacher_weights 0.7 0.3' in (run / 'student/README.md').read_text()
    lines = [line for line in read_metrics(run) if 'losses' in line]
    assert {'lm', 'kd_teacher', 'kd_second'} <= lines[-1]['losses'].keys() and list(lines[-1]['teacher_leads']) == ['teacher', 'second']
    # each is followed from step to step
    assert all(lines[0]['teacher_leads'][label] != lines[1]['teacher_leads'][label] for label in ('teacher', 'second'))
    for label, about in report['teachers'].items():  # what the last checkpoint holds
        held = json.loads((run / 'checkpoint-6/training.json').read_text())
        held = [held['teacher_lead'], held['further'][0]['teacher_lead']][label == 'second']
        assert (about['lead'] == pytest.approx(held['student'] / held['teacher'] - 1 + held['correction'])
                and about['share'] == pytest.approx(max(share_of(about['lead']), LEAST if held['ahead'] else 0)))
    assert lines[-1]['teacher_lead'] == max(lines[-1]['teacher_leads'].values()) and not unknown_keys(lines[-1])
    signs = {sign.name: sign.value for sign in health(lines, read_plan(run))}
    assert 'weight 0.30' in signs['second'] and 'second ahead by' in signs
    assert DistillConfig.load(run / 'config.yaml').teacher_model == [str(folder / 'teacher'), str(folder / 'second')]
    assert 'teacher_weights' in comparison_table([run, tmp_path / 'second'])
    AutoModelForCausalLM.from_pretrained(run / 'student')
    # a command that is over says so; one that was cut off goes on to the same bits
    cut = tmp_path / 'cut'
    shutil.copytree(run, cut)
    for gone in ('checkpoint-6', 'student'): shutil.rmtree(cut / gone)
    marks = json.loads((cut / 'stages.json').read_text())
    (cut / 'stages.json').write_text(json.dumps({name: mark for name, mark in marks.items() if name not in ('trained', 'reported')}))
    assert main([*words[:-1], f'--output_dir={cut}']) == 0
    assert [line['losses'] for line in read_metrics(cut) if 'losses' in line] == [line['losses'] for line in lines]
    assert [line.get('teacher_leads') for line in read_metrics(cut) if 'losses' in line] == [line.get('teacher_leads') for line in lines]
    students = [AutoModelForCausalLM.from_pretrained(one / 'student').state_dict() for one in (run, cut)]
    assert all((students[0][name] == students[1][name]).all() for name in students[0])
    assert read_report(cut)['teachers'] == report['teachers']
    # another weight is another run
    assert (main([*words[:-1], '--teacher_weights', '0.6', '0.4', f'--output_dir={run}']) == 2
            and 'teacher_weights' in capsys.readouterr().err)


def test_two_caches_give_the_online_losses(three, tmp_path, capsys):
    config = config_of(three, tmp_path / 'run', 'teacher', 'second', weights=[.7, .3], cache_top_k=10**6,
                       teacher_cache=[str(tmp_path / 'x'), str(tmp_path / 'y')])
    made = cache_teacher(config)
    assert made['rows'] == len(prepare_text(config)['train']) and len(made['score']) == 2
    cached, online = distill(config), distill(replace(config, teacher_cache=None, output_dir=str(tmp_path / 'online')))
    lines = [[line for line in read_metrics(folder) if 'losses' in line] for folder in (tmp_path / 'run', tmp_path / 'online')]
    for a, b in zip(*lines): assert a['losses'] == pytest.approx(b['losses'], abs=2e-3)
    known = lambda report: {label: {k: about[k] for k in ('bits_per_byte', 'as_read', 'coverage')}
                            for label, about in report['teachers'].items()}
    for label, about in known(online).items(): assert known(cached)[label] == pytest.approx(about, rel=1e-5)
    assert cached['retention'] is None
    for wrong, match in ((dict(teacher_cache=config.teacher_cache[::-1]), 'written by the teacher'),
                         (dict(teacher_model=config.teacher_model[::-1]), 'written by the teacher'),
                         (dict(teacher_model=[config.teacher_model[0], str(three[0] / 'kin')]), 'written by the teacher'),
                         (dict(max_length=48), 'other windows')):
        with pytest.raises(CacheError, match=match): distill(replace(config, output_dir=str(tmp_path / 'no'), **wrong))
    alone = config.of_teacher(1)
    # cut without the other one
    with pytest.raises(CacheError, match='other windows'): distill(replace(alone, output_dir=str(tmp_path / 'no')))
    assert not (tmp_path / 'no').exists()


def test_models_from_python(three, tmp_path):
    folder, text = three
    config = config_of(three, tmp_path, 'teacher', 'kin', weights=[1, 3])
    text = prepare_text(config)
    models = [AutoModelForCausalLM.from_pretrained(name) for name in config.teachers]
    handed, gradient = step_of(config, text, models)
    loaded, same = step_of(config, text)
    assert handed['loss'].item() == loaded['loss'].item() and (gradient == same).all()
    framework = StudentAwareDistillationFramework(config.to_dict())  # all by name, without a prepared text
    assert [lesson.vocab_map.name for lesson in framework.lessons] == ['combined', 'identity']  # the safest, where no text was seen
    assert len({id(lesson.student_model) for lesson in framework.lessons}) == 1
    assert sum(p.numel() for p in framework.parameters()) == sum(p.numel() for p in framework.student_model.parameters())
    with pytest.raises(ModelError, match='give one each'): StudentAwareDistillationFramework(config, models[0])
    unnamed = StudentAwareDistillationFramework(replace(config, teacher_model='', teacher_weights=[1, 3]), models, None,
                                                [one['pair'].teacher for one in texts_of(text)])
    assert unnamed.labels == ['1', '2'] and unnamed.teacher_weights == [.25, .75]


def test_losses_are_balanced_and_weighed_by_hand_teacher_by_teacher(three, tmp_path):
    config = config_of(three, tmp_path, 'teacher', 'second', balance='ema', alpha_kd=.5)
    text = prepare_text(config)
    framework = make_framework(config, text)
    trainer = make_trainer(framework, {}, text, tmp_path, 'distilling')
    trainer.controls.reweigh('kd_second', .25)
    trainer.train()
    sizes = [lesson.magnitudes for lesson in framework.lessons]
    assert sizes[0]['kd'] != sizes[1]['kd'] and sizes[0]['lm'] == sizes[1]['lm']
    first, *_, last = [line for line in read_metrics(tmp_path) if 'losses' in line]
    assert ([first['weights'][f'kd_{label}'] for label in ('teacher', 'second')] == [.25, .0625]
            and first['multipliers'] == {'kd_second': .25})
    # each is brought to the size of lm by itself
    assert last['weights']['kd_teacher'] != 4 * last['weights']['kd_second'] != first['weights']['kd_teacher']


def test_a_teacher_elsewhere_reads_ahead_beside_another(three, tmp_path):
    "What two teachers on a device of their own have read before its time is what they would read in time."
    config, students = config_of(three, tmp_path, 'kin', 'second', gradient_accumulation_steps=3, batch_size=2), []
    for apart in (False, True):
        text = prepare_text(config)
        framework = make_framework(config, text)
        for lesson in framework.lessons:
            lesson._hold(apart=apart)
            lesson.curriculum.lead.begin(2., 2.2)
        order = []
        for i, lesson in enumerate(framework.lessons):
            whole = lesson.read_teacher
            lesson._hold(read_teacher=lambda *args, whole=whole, i=i: order.append(i) or whole(*args))
        body(framework.student_model).register_forward_hook(lambda *_: order.append('student'))
        framework.student_model.get_input_embeddings().weight.register_hook(lambda gradient: order.append('back') or gradient)
        make_trainer(framework, {}, text, tmp_path / str(apart), 'distilling').train()
        students.append((order, [p.detach().clone() for p in framework.student_model.parameters()]))
    in_time, before = (''.join(map(str, order)).replace('student', 's').replace('back', 'b') for order, _ in students)
    assert in_time.startswith('01sb' * 3) and before.startswith('01s' + '01bs' * 2 + 'b')
    assert all(order.count(i) == 6 * 3 for order, _ in students for i in (0, 1))  # nothing is read twice
    for a, b in zip(students[0][1], students[1][1]): assert (a == b).all()


@pytest.mark.parametrize('wrong, match', [
    (dict(teacher_weights=[1.]), 'teacher_weights has 1 numbers for the 2'), (dict(teacher_weights=[1., 1., 1.]), 'has 3 numbers'),
    (dict(teacher_weights=[1., -1.]), '0 or more'), (dict(teacher_weights=[1., float('nan')]), '0 or more'),
    (dict(teacher_weights=[1., float('inf')]), '0 or more'),
    (dict(teacher_weights=[0., 0.]), 'above 0'), (dict(teacher_weights='much'), 'a number'),
    (dict(teacher_model=['a', 'a']), 'twice: name it once'),
    (dict(teacher_model=['a', './a']), 'twice'), (dict(teacher_model=['a', '']), 'empty name'),
    (dict(teacher_cache='x'), 'names 1 folders for the 2'),
    (dict(teacher_cache=['x', 'x']), 'a cache of its own'), (dict(alpha_feature=.1), 'looks inside one teacher'),
    (dict(recipe='seed'), 'looks inside one teacher'),
    (dict(teacher_revision='main'), 'nobody knows whose'), (dict(teacher_subfolder='x'), 'nobody knows whose')], ids=str)
def test_what_makes_no_sense_is_refused_at_the_door(wrong, match):
    with pytest.raises(ConfigError, match=match): DistillConfig(**{**dict(teacher_model=['a', 'b'], student_model='s'), **wrong})


def test_commands_for_one_teacher_say_so(three, tmp_path, capsys):
    folder, text = three
    for words in (['eval', '--student_model', str(folder / 'student'), '--dataset', text],
                  ['write', '--dataset', text, '--output', str(tmp_path / 'x.jsonl')]):
        assert main([*words, '--teacher_model', str(folder / 'teacher'), str(folder / 'second')]) == 2
        assert 'takes one value' in capsys.readouterr().err
    several = [str(folder / name) for name in ('teacher', 'second')]
    with pytest.raises(ConfigError, match='takes one teacher'): evaluate_run(str(folder / 'student'), text, several)
    for write in (teacher_text, write_dataset):
        with pytest.raises(ConfigError, match='takes one teacher'): write(dict(teacher_model=several, dataset=text), tmp_path / 'x.jsonl')
    assert main(['train', '--teacher_model', str(folder / 'teacher'), str(folder / 'none'), '--student_model', str(folder / 'student'),
                 '--dataset', text]) == 2
    assert 'does not exist' in capsys.readouterr().err


def test_conversations_of_three_templates(tmp_path, capsys):
    "Each side reads its own template, and every learnt place of a view is one of the pair's own."
    from chats import chat_tokenizer
    rows = [dict(messages=[dict(role='user', content=f'{i}. What does this do?'), dict(role='assistant', content=text[:200])])
            for i, text in enumerate(documents(40))]
    (tmp_path / 'chat.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    for seed, (name, style) in enumerate(dict(student='zephyr', first='chatml', second='llama3').items()):
        tokenizer = chat_tokenizer(style)
        model_of('llama', len(tokenizer), 32, 2, seed).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    config = DistillConfig(teacher_model=[str(tmp_path / 'first'), str(tmp_path / 'second')], student_model=str(tmp_path / 'student'),
                           dataset=str(tmp_path / 'chat.jsonl'), max_length=200,
                           teacher_max_length=240, max_steps=2, batch_size=2, eval_steps=2, logging_steps=1, eval_fraction=.2,
                           max_eval_rows=6, output_dir=str(tmp_path / 'run'), pack=False)
    joint, singles = texts_of(prepare_text(config)), [prepare_text(config.of_teacher(i)) for i in range(2)]
    for one, single in zip(joint, singles):  # conversations are not cut here, so that each view is the pair's own
        assert (one['train'].column_names == single['train'].column_names and one['train'][:] == single['train'][:]
                and one['held_out'][:] == single['held_out'][:])
        assert one['prompts'] == single['prompts'] and one['pair'].ends == single['pair'].ends
    report = distill(config)
    assert (report['steps'] == 2
            and list(report['answers'][0]) == ['prompt', 'teacher first', 'teacher second', 'student_before', 'student_after'])
    assert ('- teacher second:' in (tmp_path / 'run/report.md').read_text()
            and '| teacher first ' in (tmp_path / 'run/report.md').read_text())
    assert 'the teacher reads conversations' in capsys.readouterr().err


def test_adapters_learn_from_several(three, tmp_path):
    pytest.importorskip('peft')
    report = distill(config_of(three, tmp_path / 'run', 'teacher', 'second', lora_r=4, max_steps=3, student_aware=True))
    assert report['steps'] == 3 and 'adapters' in report and (tmp_path / 'run/adapter').is_dir()
    AutoModelForCausalLM.from_pretrained(tmp_path / 'run/student')


def test_a_step_that_does_not_fit_begins_again_with_all_teachers(three, tmp_path, monkeypatch):
    config, real = (config_of(three, tmp_path / 'run', 'teacher', 'second', gradient_accumulation_steps=1, control=True),
                    StudentAwareDistillationFramework.read_student)
    def full(self, batch, steps):
        if len(batch['input_ids']) > 2 and len(steps) == 2: raise torch.OutOfMemoryError('out of memory')
        return real(self, batch, steps)
    monkeypatch.setattr(StudentAwareDistillationFramework, 'read_student', full)
    made = distill(config)
    monkeypatch.undo()
    whole = distill(replace(config, output_dir=str(tmp_path / 'whole'), batch_size=2, gradient_accumulation_steps=2))
    assert made['student_after'] == pytest.approx(whole['student_after'], rel=1e-6)  # both were measured in other batches
    for label, about in made['teachers'].items(): assert about['lead'] == pytest.approx(whole['teachers'][label]['lead'], abs=1e-6)


def test_two_processes_do_what_one_does(three, tmp_path):
    from test_processes import launch, same
    folder, text = three
    (tmp_path / 'config.yaml').write_text(json.dumps(dict(teacher_model=[f'{folder}/teacher', f'{folder}/second'],
                                                          teacher_weights=[.7, .3])))
    values = dict(config=tmp_path / 'config.yaml', student_model=folder / 'student', dataset=text)
    for way, batch_size in (('one', 4), ('torchrun', 2)):
        code, said = launch(way, values, tmp_path / way, batch_size=batch_size)
        assert code == 0, said
        assert said.count('2 teachers: teacher (70%)') == 1
    same(tmp_path / 'one', tmp_path / 'torchrun')


def test_a_teacher_that_is_behind_beside_one_that_is_ahead(three, tmp_path):
    "Its part is the text's; the other one's share is its own."
    config = config_of(three, tmp_path, 'teacher', 'second', weights=[.5, .5])
    text = prepare_text(config)
    framework = make_framework(config, text)
    for lesson, student in zip(framework.lessons, (4., 1.9)): lesson.curriculum.lead.begin(2., student)
    framework.listens = False
    weights = framework(**framework.collator()([JointRows([one['train'] for one in texts_of(text)])[0]]))['weights']
    assert weights == pytest.approx(dict(lm=.6, kd_teacher=.4, unaligned_teacher=.4, kd_second=0., unaligned_second=0.))
    assert "its part is the text's" in worth_distilling(2., 1.9, True, True) and 'trains plainly' in worth_distilling(2., 1.9)


def test_parts_of_a_step_add_up_to_it(three, tmp_path):
    "Each teacher's losses are divided by its own units of the whole step."
    config = config_of(three, tmp_path, 'teacher', 'second', kd_method='combined', inside_tokens=False)  # compared at different places
    text = prepare_text(config)
    framework = make_framework(config, text)
    rows, batch_of = JointRows([one['train'] for one in texts_of(text)]), framework.collator()
    whole = batch_of([rows[i] for i in range(6)])
    units = framework.count_units(whole)
    parts = [framework(**batch_of([rows[i]]), units=units) for i in range(6)]
    expected = framework(**whole)
    torch.testing.assert_close(sum(part['loss'] for part in parts), expected['loss'])
    for name, loss in expected['losses'].items(): torch.testing.assert_close(sum(part['losses'][name] for part in parts), loss)
    assert units['kd'] != units['kd_2']
