"A user's mistake: exit code 2, one line that says what to do, no traceback, nothing trained, nothing written over."
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from kdkit.cli import main
from pairs import model_of
from tiny_tokenizers import byte_level

def refused(capsys, values, *words):
    "The one line that the command says."
    code = main(['train', *words, *(f'--{k}={v}' for k, v in values.items() if v is not None)])
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if line.startswith('kdkit: ')]
    assert code == 2, said.err
    assert len(lines) == 1 and said.err.splitlines()[-1] == lines[0] and lines[0].startswith('kdkit: error: '), said.err
    assert 'Traceback' not in said.err, said.err
    return lines[0]

@pytest.fixture
def run(pair, tmp_path):
    return dict(pair, output_dir=tmp_path / 'run', max_length=64, max_steps=2, batch_size=2)

@pytest.mark.parametrize('change, says', [
    (dict(temprature=2), "'temperature'"), (dict(temperature=0), 'temperature'), (dict(temperature=-1), 'temperature'),
    (dict(alpha_kd=-.1), 'alpha_kd'),
    (dict(teacher_model='no/such-teacher'), 'teacher_model'), (dict(student_model='./nowhere'), 'student_model'),
    (dict(dataset='no_such_corpus'), 'no_such_corpus'),
    (dict(dataset='missing.jsonl'), 'missing.jsonl'), (dict(teacher_model=None), 'teacher_model'), (dict(text_column='body'), 'body'),
    (dict(max_length=2), 'windows of at most 2 tokens'), (dict(max_length=5000), 'max_length'), (dict(batch_size='many'), 'batch_size'),
    (dict(kd_method='identity'), 'identity'),
])
def test_options_and_names(run, capsys, change, says):
    assert says in refused(capsys, {**run, **change})
    assert not Path(run['output_dir']).exists() or not any(Path(run['output_dir']).iterdir())

def test_a_key_in_a_config_file(run, capsys, tmp_path):
    (tmp_path / 'c.yaml').write_text('learning_rat: 0.1\n')
    assert 'learning_rate' in refused(capsys, run, str(tmp_path / 'c.yaml'))

def test_text_that_is_not_there(run, capsys, tmp_path):
    (tmp_path / 'two.jsonl').write_text(json.dumps(dict(title='a', body='b')) + '\n')
    assert 'title' in refused(capsys, dict(run, dataset=tmp_path / 'two.jsonl'))
    (tmp_path / 'empty.txt').write_text('\n\n')
    assert 'no text' in refused(capsys, dict(run, dataset=tmp_path / 'empty.txt'))

@pytest.mark.parametrize('kind', ['bert', 't5'])
def test_a_model_that_is_no_decoder(run, capsys, tmp_path, kind):
    if kind == 'bert':
        BertForMaskedLM(BertConfig(vocab_size=700, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                                   intermediate_size=32)).save_pretrained(tmp_path / 'm')
    else:
        T5ForConditionalGeneration(T5Config(vocab_size=700, d_model=32, d_ff=32, num_layers=1, num_heads=2)).save_pretrained(tmp_path / 'm')
    byte_level(700).save_pretrained(tmp_path / 'm')
    assert 'decoder-only' in refused(capsys, dict(run, teacher_model=tmp_path / 'm'))

def test_a_tokenizer_that_does_not_say_where_its_tokens_lie(run, capsys, tmp_path):
    model_of('llama', 700).save_pretrained(tmp_path / 'm')
    words = Tokenizer(models.WordLevel({'<unk>': 0, 'a': 1}, unk_token='<unk>'))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token='<unk>', eos_token='<unk>').save_pretrained(tmp_path / 'm')
    assert 'tokenizer' in refused(capsys, dict(run, student_model=tmp_path / 'm'))

def test_a_tokenizer_that_belongs_to_another_model(run, capsys, tmp_path):
    model_of('llama', 500).save_pretrained(tmp_path / 'm')
    byte_level(700).save_pretrained(tmp_path / 'm')
    assert '500' in refused(capsys, dict(run, student_model=tmp_path / 'm'))

def test_a_folder_that_holds_something_else(run, capsys):
    assert main(['train', *(f'--{k}={v}' for k, v in run.items())]) == 0
    capsys.readouterr()
    before = (run['output_dir'] / 'report.json').read_bytes()
    assert 'another run' in refused(capsys, dict(run, learning_rate=.5))
    assert (run['output_dir'] / 'report.json').read_bytes() == before
    other = run['output_dir'].parent / 'other'
    other.mkdir()
    (other / 'thesis.txt').write_text('precious')
    assert 'not empty' in refused(capsys, dict(run, output_dir=other))
    assert (other / 'thesis.txt').read_text() == 'precious'

def test_a_student_larger_than_its_teacher_is_warned_of(run, capsys):
    with pytest.warns(UserWarning, match='larger than the teacher'):
        assert main(['train', *(f'--{k}={v}' for k, v in dict(run, teacher_model=run['student_model'],
                                                              student_model=run['teacher_model']).items())]) == 0
