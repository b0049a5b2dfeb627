"A teacher answers the prompts of a dataset, into a file that is a dataset of conversations again."
import json
from unittest.mock import patch

import pytest
import torch
from chats import chat_tokenizer
from pairs import model_of
from transformers import AutoModelForCausalLM

from kdkit.cli import main
from kdkit.data import read_corpus
from kdkit.files import DataError
from kdkit import sequence
from kdkit.sequence import write_dataset

PROMPTS = [f'What is {i} and {i + 1}?' for i in range(11)]

@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    "A random teacher that ends one token in six."
    folder, tokenizer = tmp_path_factory.mktemp('teacher'), chat_tokenizer('chatml')
    model = model_of('gpt2', len(tokenizer), 32)
    with torch.no_grad():
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        model.config.tie_word_embeddings = False
        model.transformer.ln_f.bias.fill_(1.)
        model.lm_head.weight[tokenizer.convert_tokens_to_ids('<|im_end|>')] += 4.4 / 32
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)

def rows_of(path): return [json.loads(line) for line in open(path, encoding='utf-8')]

def prompt_file(folder, name='prompts.jsonl', rows=None):
    (folder / name).write_text(''.join(json.dumps(row) + '\n' for row in rows or [dict(prompt=text) for text in PROMPTS]))
    return str(folder / name)

def test_what_is_written_is_a_chat_dataset(teacher, tmp_path, capsys):
    out = tmp_path / 'said.jsonl'
    words = ['--teacher_model', teacher, '--dataset', prompt_file(tmp_path), '--output', str(out), '--answers', '3', '--new_tokens', '24',
             '--batch_size', '4']
    assert main(['write', *words]) == 0
    rows, said = rows_of(out), capsys.readouterr().out
    assert f'{len(rows)} answers to 11 prompts' in said and 11 < len(rows) <= 33 and ('left out' in said) == (len(rows) < 33)
    assert {row['messages'][0]['content']
            for row in rows} <= {*PROMPTS} and all([message['role'] for message in row['messages']] == ['user', 'assistant']
                                                   for row in rows)
    assert not any('<|im_end|>' in row['messages'][1]['content']
                   for row in rows) and len({row['messages'][1]['content'] for row in rows}) > len(rows) / 3
    corpus = read_corpus(str(out))
    assert corpus.chat and len(corpus.text) == len(rows)

@pytest.mark.parametrize('cut', [.3, .7, 1.])
def test_a_file_that_was_cut_off_goes_on(teacher, tmp_path, cut):
    config = dict(teacher_model=teacher, dataset=prompt_file(tmp_path))
    how = dict(new_tokens=16, batch_size=3, answers=2)
    whole = write_dataset(config, tmp_path / 'whole.jsonl', **how)
    text = (tmp_path / 'whole.jsonl').read_bytes()
    write_dataset(config, tmp_path / 'cut.jsonl', **how)
    (tmp_path / 'cut.jsonl').write_bytes(text[:int(len(text) * cut)])
    assert write_dataset(config, tmp_path / 'cut.jsonl',
                         **how)['answers'] == whole['answers'] and (tmp_path / 'cut.jsonl').read_bytes() == text
    with pytest.raises(DataError, match=r'other options \(temperature differs\)'):
        write_dataset(config, tmp_path / 'cut.jsonl', temperature=.5, **how)
    with patch.object(sequence, 'load_writer', side_effect=AssertionError('a finished file asks nobody')):
        assert write_dataset(config, tmp_path / 'whole.jsonl', **how) == whole

def test_batches_of_likeliest_tokens_are_those_of_one_at_a_time(teacher, tmp_path):
    config = dict(teacher_model=teacher, dataset=prompt_file(tmp_path,
                                                             rows=[dict(prompt=text * (1 + i % 3)) for i, text in enumerate(PROMPTS)]))
    for size in (1, 5): write_dataset(config, tmp_path / f'{size}.jsonl', new_tokens=40, temperature=0., batch_size=size)
    said = [[row['messages'] for row in rows_of(tmp_path / f'{size}.jsonl')] for size in (1, 5)]
    assert said[0] == said[1] and said[0]

def test_prompts_of_every_kind(teacher, tmp_path):
    talk = [dict(role='system', content='Be short.'), dict(role='user', content='Hi'), dict(role='assistant', content='Ho'),
            dict(role='user', content='And?'), dict(role='assistant', content='So.')]
    (tmp_path / 'lines.txt').write_text('\n'.join(PROMPTS))
    for name, rows in dict(messages=[dict(messages=talk)], open=[dict(messages=talk[:2])],
                           alpaca=[dict(instruction='Hi', input='', output='Ho')], asked=[dict(instruction='Hi')], lines=None).items():
        path = str(tmp_path / 'lines.txt') if rows is None else prompt_file(tmp_path, f'{name}.jsonl', rows * 6)
        write_dataset(dict(teacher_model=teacher, dataset=path), tmp_path / f'{name}.said.jsonl', new_tokens=30, answers=2)
        for row in rows_of(tmp_path / f'{name}.said.jsonl'):
            asked = [message['content'] for message in row['messages'][:-1]]
            assert asked in (['Be short.', 'Hi'], ['Hi'], *([text] for text in PROMPTS)) and row['messages'][-1]['role'] == 'assistant'

def test_what_cannot_be_written_is_said(teacher, tmp_path, capsys):
    prompts = prompt_file(tmp_path)
    base = ['write', '--teacher_model', teacher, '--dataset', prompts]
    for more, wanted in ((['--output', str(tmp_path / 'a.jsonl'), '--new_tokens', 'many'], 'whole number'), ([], '--output is missing'),
                         (['--output', prompts], 'choose another file'),
                         (['--output', str(tmp_path / 'a.jsonl'), '--temperature', '0', '--answers', '2'], 'all the same'),
                         (['--output', str(tmp_path / 'a.jsonl'), '--new_tokens', '4000'], 'longer than'),
                         (['--output', str(tmp_path / 'a.jsonl'), '--learning_rate', '1'], 'unknown')):
        assert main(base + more) == 2
        assert wanted in capsys.readouterr().err
    assert open(prompts).read().count('\n') == 11
