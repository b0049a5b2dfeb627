"Text that the teacher writes."
import json
from pathlib import Path

import pytest
import torch

from kdkit.align import encode_bytes, token_bytes
from kdkit.data import DataError, hold_out, load_text
from kdkit.models import load_causal_lm, load_tokenizer
from kdkit.run import distill
from kdkit.sequence import go_on, teacher_text


def test_each_document_is_gone_on_with_and_the_held_out_ones_are_not(pair, tmp_path):
    config = dict(teacher_model=pair['teacher_model'], dataset=pair['dataset'], eval_fraction=.2)
    seen = []
    path = teacher_text(config, tmp_path / 'text.jsonl', prompt_tokens=6, new_tokens=5, batch_size=7, progress=lambda done,
                        total: seen.append((done, total)))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    train, held_out = hold_out(load_text(pair['dataset']), .2, 42)
    tokenizer = load_tokenizer(pair['teacher_model'])
    begin = lambda text: tokenizer.decode(tokenizer(text, add_special_tokens=False)['input_ids'][:6])
    assert len(rows) == len(train) and seen[-1] == (len(train), len(train))
    for row, text in zip(rows, train['text']): assert row['text'].startswith(begin(text)) and row['text'] != text
    assert len({row['text'] for row in rows}) > .9 * len(rows)
    assert not {begin(text) for text in held_out['text']} - {begin(text) for text in train['text']} & {begin(row['text']) for row in rows}
    assert teacher_text(config, tmp_path / 'again.jsonl', prompt_tokens=6, new_tokens=5, batch_size=7).read_text() == path.read_text()
    report = distill(dict(pair, dataset=str(path), eval_dataset=pair['dataset'], output_dir=str(tmp_path / 'run'), alpha_kd=0.,
                          alpha_unaligned=0., alpha_lm=1.,
                          max_length=64, batch_size=4, max_steps=2, max_eval_rows=8))
    assert report['steps'] == 2


def test_what_the_teacher_ends_is_over(pair):
    teacher, tokenizer = load_causal_lm(pair['teacher_model'], torch.float32, 'teacher_model').eval(), load_tokenizer(pair['teacher_model'])
    text = Path(pair['dataset']).read_text()[:2000]
    head = teacher.get_output_embeddings()
    with torch.no_grad():
        random = torch.randn(head.weight.shape[1], generator=torch.Generator().manual_seed(0))
        head.weight[tokenizer.eos_token_id] = head.weight.abs().mean() * 1e3 * torch.sign(random)
    said = go_on(teacher, tokenizer, [text] * 20, 5, 30)
    lengths = [len(tokenizer(t, add_special_tokens=False)['input_ids']) for t in said]
    assert min(lengths) <= 6 and tokenizer.eos_token not in ''.join(said)  # ended at once somewhere, and the mark is not text
    assert go_on(teacher, tokenizer, ['a'], 5, 3) == []


def test_a_control_token_in_a_text_is_text_and_too_long_is_an_error(pair):
    teacher, tokenizer = load_causal_lm(pair['teacher_model'], torch.float32, 'teacher_model').eval(), load_tokenizer(pair['teacher_model'])
    text = f'before {tokenizer.eos_token} after, and more of it'
    [(ids, _)] = encode_bytes(tokenizer, [text], token_bytes(tokenizer))
    assert len(tokenizer(text, add_special_tokens=False)['input_ids']) < len(ids)
    [said] = go_on(teacher, tokenizer, [text], len(ids), 1, temperature=0)
    assert said.startswith(text)
    with pytest.raises(DataError, match='lower new_tokens'): go_on(teacher, tokenizer, [text], 4, 10**6)


def test_a_file_that_was_cut_off_goes_on(pair, tmp_path, monkeypatch):
    config = dict(teacher_model=pair['teacher_model'], dataset=pair['dataset'])
    write = lambda name, **more: teacher_text(config, tmp_path / name, prompt_tokens=6, new_tokens=5, batch_size=7, **more)
    def power_cut(done, total):
        if done > 20: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): write('cut', progress=power_cut)
    cut = (tmp_path / 'cut').read_text()
    (tmp_path / 'cut').write_text(cut[:-9])  # in the middle of a line
    seen = []
    write('cut', progress=lambda done, total: seen.append(done))
    assert (tmp_path / 'cut').read_text() == write('whole').read_text() != cut and seen[0] > 7


def test_every_batch_and_every_seed_draws_anew(pair, tmp_path):
    text = load_text(pair['dataset'])['text'][0]
    (tmp_path / 'text.jsonl').write_text(''.join(json.dumps(dict(text=text)) + '\n' for _ in range(8)))
    config = dict(teacher_model=pair['teacher_model'], dataset=str(tmp_path / 'text.jsonl'), eval_dataset=str(tmp_path / 'other.jsonl'))
    (tmp_path / 'other.jsonl').write_text(json.dumps(dict(text='A document of its own, to measure on.')))
    read = lambda seed: [json.loads(line)['text']
                         for line in teacher_text(dict(config, seed=seed), tmp_path / f'{seed}.jsonl', prompt_tokens=6, new_tokens=12,
                                                  batch_size=4).read_text().splitlines()]
    first, second = read(1), read(2)
    assert len(set(first)) == len(set(second)) == 8 and not set(first) & set(second)
