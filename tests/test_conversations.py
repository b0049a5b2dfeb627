"From files of conversations to losses: forms, bad rows, windows, masks, ends and answers."
import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from chats import CONTROLS, TALKS, TEMPLATES, chat_tokenizer, talk
from datasets import Dataset
from pairs import documents, model_of, save_text
from test_contract import batch_of

from kdkit.cli import main
from kdkit.config import DistillConfig
from kdkit.data import load_text, read_corpus
from kdkit.evaluation import compute_perplexity, write_answers
from kdkit.files import DataError
from kdkit.framework import StudentAwareDistillationFramework
from kdkit.prepare import PAIR, ends_of, prepare_text
from kdkit.knowledge import build_map
from kdkit.templates import ChatSide
from kdkit.windows import ConversationMaker, PairCollator

ASKED = [f'{i}. What does this do?' for i in range(40)]
SAID = [text[:300] for text in documents(40)]

def lines(path, rows):
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
    return str(path)

def turns(question, answer): return [dict(role='user', content=question), dict(role='assistant', content=answer)]

FORMS = dict(
    messages=lambda q, a: dict(messages=turns(q, a), source='set-a'),
    sharegpt=lambda q, a: dict(id='conv-1', conversations=[{'from': 'human', 'value': q}, {'from': 'gpt', 'value': a}]),
    alpaca=lambda q, a: dict(instruction=q, input='', output=a, text=f'### Instruction: {q} ### Response: {a}'),
    prompt_completion=lambda q, a: dict(prompt=q, completion=a),
    messages_in_two=lambda q, a: dict(prompt=turns(q, a)[:1], completion=turns(q, a)[1:]))

@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('streaming', [False, True])
def test_every_form_is_the_same_conversation(tmp_path, form, streaming):
    path = lines(tmp_path / 'chat.jsonl', [FORMS[form](q, a) for q, a in zip(ASKED, SAID)])
    corpus = read_corpus(path, streaming=streaming, max_documents=40)
    assert corpus.chat
    texts = [text for block, _ in corpus.text.blocks() for text in block['text']] if streaming else corpus.text['text']
    assert [json.loads(text)['messages'] for text in texts] == [turns(q, a) for q, a in zip(ASKED, SAID)]
    assert 'conversations' in str(corpus) and '\n' not in str(corpus)
    if form == 'alpaca':
        assert not read_corpus(path, format='text').chat and load_text(path, text_column='text')['text'][0].startswith('### Instruction')

BAD = {
    "unknown role 'narrator'": [dict(role='narrator', content='Once'), dict(role='assistant', content='upon')],
    'a message without content': [dict(role='user', content=None), dict(role='assistant', content='a')],
    'content that is not text': [dict(role='user', content='a'), dict(role='assistant', content=[dict(type='image', text=None)])],
    'no answer': [dict(role='user', content='a')],
    'no messages': []}

@pytest.mark.parametrize('why', [why for why in BAD if 'not text' not in why])
def test_a_bad_row_is_counted_named_and_left_out(tmp_path, why):
    rows = [dict(messages=turns(q, a)) for q, a in zip(ASKED, SAID)] + [dict(messages=BAD[why])] * 3
    corpus = read_corpus(lines(tmp_path / 'chat.jsonl', rows))
    assert len(corpus.text) == 40 and f'3 left out: 3 with {why}' in str(corpus)
    with pytest.raises(DataError,
                       match=f'no conversation that can be used: 3 with {why}') if why != 'no messages' else pytest.raises(DataError):
        read_corpus(lines(tmp_path / 'bad.jsonl', [dict(messages=BAD[why])] * 3))

def test_what_is_asked_for_and_what_is_there(tmp_path):
    chat, text = lines(tmp_path / 'chat.jsonl', [FORMS['sharegpt'](q, a) for q, a in zip(ASKED, SAID)]), save_text(tmp_path)
    with pytest.raises(DataError, match="in the form 'alpaca', but in the form 'sharegpt'"): read_corpus(chat, format='alpaca')
    with pytest.raises(DataError, match='no conversations in the form'): read_corpus(text, format='messages')
    with pytest.raises(DataError, match='conversations and plain texts'):
        (tmp_path / 'both').mkdir()
        shutil.copy(chat, tmp_path / 'both')
        (tmp_path / 'both/notes.txt').write_text('\n\n'.join(SAID))
        read_corpus(str(tmp_path / 'both'))

# -- windows

def maker(student, teacher, **how):
    return ConversationMaker(ChatSide(chat_tokenizer(student)), ChatSide(chat_tokenizer(teacher)),
                             **dict(dict(max_length=4000, teacher_max_length=4000), **how))

def as_dataset(talks): return Dataset.from_dict(dict(text=[json.dumps(conversation) for conversation in talks]))

def learnt(row, side=''):
    ids, spans = row[f'{side}input_ids'], row[f'{side}answers']
    return [tuple(ids[first:stop]) for first, stop in zip(spans[::2], spans[1::2])]

def after_places(row):
    return [(row['input_ids'][i + 1], row['teacher_input_ids'][j + 1]) for i, j in zip(row['student_positions'], row['teacher_positions'])]

def windows(make, talks, tmp_path): return [*make(as_dataset(talks), cache_dir=str(tmp_path))]

GOOD = [TALKS[name] for name in TALKS]

@pytest.mark.parametrize('student, teacher', [('chatml', 'llama3'), ('phi3', 'qwen3'), ('mistral', 'gemma3'), ('smollm2', 'qwen25')])
def test_packing_changes_nothing(tmp_path, student, teacher):
    "The same conversations, answers and pairs, one after another."
    alone, packed = (windows(maker(student, teacher, pack=pack), GOOD, tmp_path) for pack in (False, True))
    assert len(alone) == len(GOOD) and len(packed) < len(GOOD) / 2
    for name in ('input_ids', 'teacher_input_ids'): assert sum((row[name] for row in alone), []) == sum((row[name] for row in packed), [])
    for of_row in (learnt, lambda row: learnt(row, 'teacher_'), after_places):
        assert sum(map(of_row, alone), []) == sum(map(of_row, packed), [])
    for name in ('n_bytes', 'teacher_n_bytes'): assert sum(row[name] for row in alone) == sum(row[name] for row in packed)
    assert all(len(row['input_ids']) <= 4000 for row in packed)

@pytest.mark.parametrize('student, teacher', [('chatml', 'llama3'), ('gemma3', 'qwen25')])
def test_a_long_conversation_is_cut_between_turns(tmp_path, student, teacher):
    long = dict(TALKS['turns'], messages=[dict(role='system', content='Be short.'), *TALKS['turns']['messages']])
    whole, = windows(maker(student, teacher), [long], tmp_path)
    make = maker(student, teacher, max_length=300, teacher_max_length=400, pack=False)
    cut = windows(make, [long, TALKS['plain']], tmp_path)
    assert len(cut) > 3 and all(len(row['input_ids']) <= 300 and len(row['teacher_input_ids']) <= 400 for row in cut)
    for side in ('', 'teacher_'): assert sorted(sum((learnt(row, side) for row in cut), [])[1:]) == sorted(learnt(whole, side))
    counts = make.counts()
    assert (counts['cut between turns'] >= 1 and counts['conversations'] == len(cut)
            and not any(name.startswith('left out') for name in counts))
    leave = maker(student, teacher, max_length=300, teacher_max_length=400, pack=False, long_conversations='leave_out')
    assert len(windows(leave, [long, TALKS['plain']], tmp_path)) == 1 and leave.counts()['left out: too long for a window'] == 1

def test_what_is_kept_on_disk_is_counted_again(tmp_path):
    odd = dict(messages=[dict(role='user', content='a'), dict(role='user', content='b'), dict(role='assistant', content='c')])
    first, second = maker('gemma3', 'chatml'), maker('gemma3', 'chatml')
    for make in (first, second): assert sum(len(learnt(row)) for row in windows(make, [TALKS['plain'], odd, odd], tmp_path)) == 1
    assert first.counts() == second.counts()
    assert next(n for why, n in first.counts().items() if 'alternate' in why and "student's template" in why) == 2

def test_everything_is_learnt_if_asked_for(tmp_path):
    row, = windows(maker('chatml', 'llama3', train_on='all'), [TALKS['plain']], tmp_path)
    batch = PairCollator()([row])
    assert (batch['labels'][0, 1:] == batch['input_ids'][0, 1:]).all()

# -- losses

ALL = dict(alpha_feature=.5, alpha_attention=.5, alpha_layerwise=.5, alpha_contrastive=.5, use_curriculum=False)

def framework_for(student, teacher, **options):
    tokenizers = [chat_tokenizer(name) for name in (student, teacher)]
    models = [model_of('llama', len(tokenizer), hidden, seed=seed) for tokenizer, hidden, seed in zip(tokenizers, (32, 48), (0, 1))]
    sides = [ChatSide(tokenizer) for tokenizer in tokenizers]
    config = DistillConfig(**options)
    ends = ends_of(*(dict(zip(PAIR, two)) for two in ([model.config for model in models], tokenizers, sides)))
    vocab_map = build_map(config.kd_method, *tokenizers, *map(len, tokenizers), config.inside_tokens, ends)
    framework = StudentAwareDistillationFramework(config, models[1], models[0], tokenizers[1], tokenizers[0], vocab_map, device='cpu')
    framework.converse(dict(student=sides[0], teacher=sides[1]))
    return framework

def test_every_end_of_an_answer_is_an_end():
    """gpt-oss ends its last answer otherwise than earlier ones: neither is scored as text, the other side's end stands for both, and
    generation stops at the one that a model writes."""
    tokenizers = dict(student=chat_tokenizer('harmony'), teacher=chat_tokenizer('chatml'))
    last, earlier = tokenizers['student'].convert_tokens_to_ids(['<|return|>', '<|end|>'])
    theirs = tokenizers['teacher'].convert_tokens_to_ids('<|im_end|>')
    framework = framework_for('harmony', 'chatml')
    assert {last, earlier} <= {*framework.student_end_id}
    assert {last, earlier} & {*framework.student_model.generation_config.eos_token_id} == {last}
    for swap, wanted in ((False, {(last, theirs), (earlier, theirs)}), (True, {(theirs, last), (theirs, earlier)})):
        sides = dict(zip(PAIR, list(tokenizers.values())[::-1 if swap else 1]))
        configs = {side: model_of('llama', len(tokenizer), 32).config for side, tokenizer in sides.items()}
        assert {*ends_of(configs, sides, {side: ChatSide(tokenizer) for side, tokenizer in sides.items()})[1:]} == wanted

SHORT = [TALKS[name] for name in ('plain', 'system', 'unicode', 'words', 'repeated')]

def rows_for(student, teacher, tmp_path, talks=SHORT, **how): return make_rows(maker(student, teacher, pack=False, **how), talks, tmp_path)
def make_rows(make, talks, tmp_path): return make(as_dataset(talks), cache_dir=str(tmp_path))

def test_one_tokenizer_and_template_is_the_plain_masked_kl(tmp_path):
    framework, rows = framework_for('chatml', 'chatml', alpha_lm=0.2, alpha_kd=1.), rows_for('chatml', 'chatml', tmp_path)
    batch = PairCollator()([*rows])
    said = framework(**batch)
    with torch.no_grad():
        student, teacher = (model(input_ids=batch['input_ids'], attention_mask=batch['attention_mask']).logits[:, :-1].log_softmax(-1)
                            for model in (framework.student_model, framework.teacher_model))
    keep = batch['labels'][:, 1:] != -100
    kl = (teacher.exp() * (teacher - student)).sum(-1)[keep].mean()
    nats = F.nll_loss(student[keep], batch['labels'][:, 1:][keep])
    torch.testing.assert_close(said['losses']['kd'], kl, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(said['losses']['lm'], nats, atol=1e-5, rtol=1e-5)
    assert framework.count_units(batch)['kd'] == keep.sum()

@pytest.mark.parametrize('other', ['smollm2', 'zephyr', 'phi4', 'llama3'])
def test_one_model_behind_two_templates_has_nothing_to_learn(tmp_path, other):
    """A model that expects the same everywhere, each side with its own end of turn in the place of the other's: the losses are zero at
    every place, and the teacher is asked at many."""
    from transformers import PreTrainedTokenizerFast
    mine, theirs = chat_tokenizer('chatml'), PreTrainedTokenizerFast(tokenizer_object=chat_tokenizer('chatml').backend_tokenizer,
                                                                     eos_token='<|endoftext|>', bos_token='<s>')
    theirs.chat_template = TEMPLATES[other]
    if other == 'phi4': theirs.chat_template = theirs.chat_template.replace('<|im_sep|>', '\n')
    if other == 'llama3': theirs.chat_template = theirs.chat_template.replace('<|eot_id|>', '<|im_end|>')
    sides = [ChatSide(mine), ChatSide(theirs)]
    rows = make_rows(ConversationMaker(*sides, max_length=2000, teacher_max_length=2000), SHORT, tmp_path)
    ends = [(mine.eos_token_id, theirs.eos_token_id), tuple(side.end_id for side in sides)]
    vocab_map = build_map('auto', mine, theirs, len(mine), len(theirs), ends=ends)
    models = [model_of('llama', len(mine), 32) for _ in sides]
    torch.manual_seed(0)
    logits = torch.randn(len(mine)) * 2
    if other == 'zephyr': logits[sides[1].end_id] = -30.  # its one end stands for both of the student's, of which the student uses one
    for model, swap in zip(models, (False, other == 'zephyr')):
        head = torch.nn.Linear(32, len(mine))
        torch.nn.init.zeros_(head.weight)
        bias = logits.clone()
        if swap: bias[[side.end_id for side in sides]] = logits[[side.end_id for side in reversed(sides)]]
        head.bias.data = bias
        model.set_output_embeddings(head)
    framework = StudentAwareDistillationFramework(DistillConfig(), models[1], models[0], theirs, mine, vocab_map, device='cpu')
    batch = PairCollator()([*rows])
    said = framework(**batch)
    assert said['losses']['kd'].abs() < 1e-6 and framework.count_units(batch)['kd'] > 100

@pytest.mark.parametrize('student, teacher', [('chatml', 'llama3'), ('phi3', 'qwen3'), ('chatml', 'harmony'), ('glm4', 'qwen3')])
def test_a_masked_token_has_no_gradient_anywhere(tmp_path, student, teacher):
    "Not in the last states of any place whose next token is not learnt; and in those of every other."
    framework, rows = framework_for(student, teacher, **ALL), rows_for(student, teacher, tmp_path)
    batch, seen = PairCollator()([*rows]), []
    body = framework.student_model.model
    hook = body.register_forward_hook(lambda module, args, out: (out[0].retain_grad(), seen.append(out[0])) and None)
    said = framework(**batch)
    said['loss'].backward()
    hook.remove()
    learnt_here = F.pad(batch['labels'][:, 1:] != -100, (0, 1))
    size = seen[0].grad.abs().sum(-1)
    assert (size[~learnt_here].max() == 0 and (size[learnt_here] > 0).all()
            and set(said['losses']) == {'lm', 'kd', 'unaligned', 'feature', 'attention', 'layerwise', 'contrastive'})

@pytest.mark.parametrize('student, teacher', [('chatml', 'gemma3'), ('mistral', 'llama3'), ('smollm2', 'harmony'), ('harmony', 'glm4')])
def test_batches_change_nothing(tmp_path, student, teacher):
    framework, rows = framework_for(student, teacher, **ALL), rows_for(student, teacher, tmp_path)
    whole = framework(**batch_of(framework, rows))
    units = framework.count_units(batch_of(framework, rows))
    parts = [framework(**batch_of(framework, rows.select([i])), units=units) for i in range(len(rows))]
    for name in whole['losses']:
        torch.testing.assert_close(sum(part['losses'][name] for part in parts), whole['losses'][name], atol=1e-5, rtol=1e-4)

def test_bits_per_byte_are_those_of_the_answers(tmp_path):
    framework, rows = framework_for('chatml', 'llama3'), rows_for('chatml', 'llama3', tmp_path, [TALKS['plain'], TALKS['system']])
    batch = PairCollator()([*rows])
    for side, model in dict(student=framework.student_model, teacher=framework.teacher_model).items():
        prefix, end = ('', framework.student_end_id) if side == 'student' else ('teacher_', framework.teacher_end_id)
        labels = batch[f'{prefix}labels']
        keep = (labels[:, 1:] != -100) & ~torch.isin(labels[:, 1:], torch.tensor(end))
        with torch.no_grad():
            log_probs = model(input_ids=batch[f'{prefix}input_ids'],
                              attention_mask=batch[f'{prefix}attention_mask']).logits[:, :-1].log_softmax(-1)
        nats = F.nll_loss(log_probs[keep], labels[:, 1:][keep], reduction='sum').item()
        n_bytes = sum(len(message['content'].encode()) for name in ('plain', 'system') for message in TALKS[name]['messages']
                      if message['role'] == 'assistant')
        assert compute_perplexity(model, [batch], side, end)['bits_per_byte'] == pytest.approx(nats / np.log(2) / n_bytes, rel=1e-4)

def test_answers_stop_at_an_end_and_batches_do_not_matter():
    framework = framework_for('chatml', 'llama3')
    side = framework.chat['student']
    prompts = [dict(messages=TALKS[name]['messages'][:1]) for name in ('plain', 'unicode', 'controls', 'code')]
    one, many = (write_answers(framework.student_model, side, prompts, 24, batch_size=size) for size in (1, 4))
    assert one == many and len(one) == 4
    head = framework.student_model.get_output_embeddings()
    framework.student_model.config.tie_word_embeddings = False
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    bias = torch.zeros(len(side.tokenizer)); bias[side.end_id] = 1e3
    head.bias = torch.nn.Parameter(bias)
    stopped = write_answers(framework.student_model, side, prompts, 24)
    assert [answer['ended'] for answer in stopped] == [True] * 4 and {answer['text'] for answer in stopped} == {''}

# -- whole runs

@pytest.fixture(scope='module')
def chat_pair(tmp_path_factory):
    "Config values of a teacher and a student that read conversations in other tokens and templates, and conversations."
    folder = tmp_path_factory.mktemp('chat')
    for side, name, shape in (('teacher', 'llama3', 'qwen3'), ('student', 'chatml', 'llama')):
        tokenizer = chat_tokenizer(name)
        model_of(shape, len(tokenizer), 48 if side == 'teacher' else 32).save_pretrained(folder / side)
        tokenizer.save_pretrained(folder / side)
    rows = [dict(id=f'c{i}', messages=turns(q, a)) for i, (q, a) in enumerate(zip(ASKED, SAID))]
    return dict(teacher_model=str(folder / 'teacher'), student_model=str(folder / 'student'), dataset=lines(folder / 'chat.jsonl', rows))

def words(options): return [word for name, value in options.items() for word in (f'--{name}', str(value))]
RUN = dict(max_length=200, batch_size=4, max_steps=3, eval_steps=2, max_eval_rows=8, eval_fraction=.2)

def test_a_run_with_conversations(chat_pair, tmp_path, capsys):
    assert main(['train', *words({**chat_pair, **RUN, 'output_dir': tmp_path / 'run'}), '--control']) == 0
    said = capsys.readouterr()
    assert ('<|im_start|>user' in said.err + said.out
            and "reads conversations in its own template, where <|eot_id|> ends a turn" in said.err + said.out)
    assert 'held-out answers' in said.out and 'ended by itself' in said.out
    report = json.loads((tmp_path / 'run/report.json').read_text())
    assert set(report['answer_lengths']) == {'teacher', 'student_before',
                                             'student_after'} and {'prompt', 'teacher', 'student_before',
                                                                   'student_after'} == set(report['answers'][0])
    assert report['retention']['after']['positions'] > 0 and '## Answers' in (tmp_path / 'run/report.md').read_text()
    assert 'apply_chat_template' in (tmp_path / 'run/student/README.md').read_text()
    from transformers import AutoModelForCausalLM, AutoTokenizer
    model, tokenizer = (AutoModelForCausalLM.from_pretrained(tmp_path / 'run/student'),
                        AutoTokenizer.from_pretrained(tmp_path / 'run/student'))
    assert (tokenizer.convert_tokens_to_ids('<|im_end|>') in model.generation_config.eos_token_id
            and tokenizer.chat_template == TEMPLATES['chatml'])
    assert main(['eval', '--student_model', str(tmp_path / 'run/student'), '--teacher_model', chat_pair['teacher_model'], '--dataset',
                 chat_pair['dataset'], '--max_length', '200']) == 0
    assert 'held-out answers' in capsys.readouterr().out
    assert main(['eval', '--student_model', str(tmp_path / 'run/student'), '--dataset', chat_pair['dataset'], '--max_length', '200']) == 0

def test_a_written_down_teacher_teaches_conversations_too(chat_pair, tmp_path):
    options = {**chat_pair, **RUN, 'teacher_cache': tmp_path / 'said', 'cache_top_k': 2000, 'cache_samples': 0}
    assert main(['cache-teacher', *words(options)]) == 0
    assert main(['train', *words({**options, 'output_dir': tmp_path / 'cached'})]) == 0
    assert main(['train', *words({**chat_pair, **RUN, 'output_dir': tmp_path / 'online'})]) == 0
    cached, online = (json.loads((tmp_path / name / 'report.json').read_text()) for name in ('cached', 'online'))
    assert cached['student_after']['bits_per_byte'] == pytest.approx(online['student_after']['bits_per_byte'], abs=2e-3)
    assert cached['answers'][0]['teacher'] == online['answers'][0]['teacher']

def test_a_base_student_gets_a_template_and_an_end(chat_pair, tmp_path):
    from tiny_tokenizers import sentencepiece
    model_of('llama', len(sentencepiece(600)), 32).save_pretrained(tmp_path / 'base')
    sentencepiece(600).save_pretrained(tmp_path / 'base')
    assert main(['train', *words({**chat_pair, **RUN, 'student_model': tmp_path / 'base', 'output_dir': tmp_path / 'run'})]) == 0
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / 'run/student')
    assert tokenizer.apply_chat_template(turns('Hi', 'Ho'), tokenize=False) == '<s>user\nHi</s>\n<s>assistant\nHo</s>\n'

def refused(capsys, options, *wanted):
    assert main(['train', *words(options)]) == 2
    error = capsys.readouterr().err
    assert 'Traceback' not in error
    for word in wanted: assert word in error, error

def test_what_cannot_be_is_said_in_one_sentence(chat_pair, tmp_path, capsys):
    run = {**chat_pair, **RUN, 'output_dir': tmp_path / 'run'}
    refused(capsys, {**run, 'train_on': 'question'}, 'answers or all')
    refused(capsys, {**run, 'format': 'alpaca'}, "in the form 'messages'")
    refused(capsys, {**run, 'chat_template': tmp_path / 'none.jinja'}, 'cannot be read')
    (tmp_path / 'plain.jinja').write_text("{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n"
                                          "' }}{% endfor %}")
    refused(capsys, {**run, 'chat_template': tmp_path / 'plain.jinja'}, 'ends an answer with no control token', '<|im_end|>')
    (tmp_path / 'refuses.jinja').write_text("{{ raise_exception('not today') }}")
    refused(capsys, {**run, 'chat_template': tmp_path / 'refuses.jinja'}, 'template', 'not today')
    refused(capsys, {**run, 'max_length': 12}, 'none of the conversations', 'too long for a window')
    assert not (tmp_path / 'run').exists()

def test_nothing_stands_before_a_conversation(chat_pair, tmp_path, capsys):
    text = prepare_text(DistillConfig(**{**chat_pair, **RUN, 'output_dir': str(tmp_path), 'teacher_context': 50}))
    assert 'teacher_context changes nothing here' in ''.join(capsys.readouterr())
    assert 'teacher_context_ids' not in text['train'].column_names

def test_texts_with_control_tokens_are_warned_of(chat_pair, tmp_path, capsys):
    rows = [dict(text=f'<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n{a}<|im_end|>') for q, a in zip(ASKED, SAID)]
    prepare_text(DistillConfig(**{**chat_pair, 'dataset': lines(tmp_path / 'text.jsonl', rows)}, max_length=200))
    said = ''.join(capsys.readouterr())
    assert 'WARNING' in said and '<|im_start|>' in said and 'messages' in said
    prepare_text(DistillConfig(**{**chat_pair, 'dataset': save_text(tmp_path)}, max_length=200))
    assert 'control tokens' not in ''.join(capsys.readouterr())

def test_a_told_teacher_and_a_student_that_is_not(chat_pair, tmp_path):
    plain, told = (prepare_text(DistillConfig(**chat_pair, max_length=200, teacher_system_prompt=prompt))
                   for prompt in (None, 'Answer like a pirate.'))
    assert plain['train']['input_ids'][0] == told['train']['input_ids'][0]
    decode = lambda text: text['tokenizers']['teacher'].decode(text['train']['teacher_input_ids'][0])
    assert 'pirate' in decode(told) and 'pirate' not in decode(plain)
    assert plain['summary']['coverage'] == pytest.approx(told['summary']['coverage'], abs=.02)
