"What stands before a window in its document is read by the teacher alone, and changes nothing but what it says."
from dataclasses import replace

import datasets
import pytest
import torch
from datasets import Dataset
from pairs import documents
from test_cache import both_ways, config_of
from test_documents import build, check_same, taught
from tiny_tokenizers import byte_level, sentencepiece

from kdkit.align import encode_bytes, token_bytes
from kdkit.cache import CacheError
from kdkit.config import ConfigError
from kdkit.framework import StudentAwareDistillationFramework
from kdkit.models import body
from kdkit.prepare import prepare_text
from kdkit.run import cache_teacher, make_framework, open_cache
from kdkit.windows import PairCollator, control_ids, model_inputs, of_window, pair_dataset

TEXTS = [text[:350] for text in documents(5, seed=3)]
LOSSES = dict(alpha_lm=.3, alpha_kd=.5, alpha_unaligned=.2, alpha_feature=.1, alpha_layerwise=.1)
PAIRS = (byte_level(400), sentencepiece(600)), (sentencepiece(600), byte_level(700)), (byte_level(700), byte_level(700))


@pytest.fixture(autouse=True)
def quiet(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'cache')
    datasets.disable_progress_bars()

def windows(mine, theirs, context, pack, texts=TEXTS, length=40):
    rows = pair_dataset(Dataset.from_dict(dict(text=texts)), mine, theirs, max_length=length, teacher_context=context, pack=pack)
    return [rows[i] for i in range(len(rows))]

def framework_of(tokenizers, teacher='llama', masked=False):
    mine, theirs = tokenizers
    return StudentAwareDistillationFramework({**LOSSES, 'use_curriculum': False, 'total_steps': 10, 'document_masking': masked},
                                             build(teacher, len(theirs), 48, 1).double(), build('llama', len(mine), 32, 2).double(), theirs,
                                             mine).double()


@pytest.mark.parametrize('tokenizers', PAIRS)
@pytest.mark.parametrize('pack', [True, False])
def test_it_is_what_the_document_has_before_the_window(tokenizers, pack):
    "Each document's windows, with all that stands before them, hold its tokens from the first one on; with less they hold the last ones."
    mine, theirs = tokenizers
    start, end = control_ids(theirs)
    whole = [ids.tolist() for ids, _ in encode_bytes(theirs, TEXTS, token_bytes(theirs))]
    rows, some = (windows(mine, theirs, context, pack) for context in (10**6, 7))
    plain = windows(mine, theirs, 0, pack)
    assert len(rows) > 2 * len(TEXTS) and 'teacher_context_ids' not in plain[0]
    document, seen = 0, 0
    for row, less, bare in zip(rows, some, plain, strict=True):
        assert all(row[name] == bare[name] for name in bare)  # the windows are what they were
        context, ids = row['teacher_context_ids'], row['teacher_input_ids'][1:]
        assert less['teacher_context_ids'] == context[-7:]
        assert context == whole[document][:seen]
        for token in ids:
            if seen < len(whole[document]): assert token == whole[document][seen]; seen += 1
            else: assert token == end; document, seen = document + 1, 0
    assert document == len(TEXTS)

@pytest.mark.parametrize('teacher', ['llama', 'gpt2', 'gemma2', 'qwen3_moe'])
def test_the_teacher_reads_on_as_if_it_had_read_from_the_beginning(teacher):
    "States after a window's tokens, row by row: what a teacher says that reads the start token and the whole document up to there."
    framework = framework_of(PAIRS[1], teacher)
    rows = windows(*PAIRS[1], 60, False)
    batch = framework.complete(framework.collator()(rows))
    states = framework.teacher_states(batch)
    assert max(len(row['teacher_context_ids']) for row in rows) == 60 and states.shape[:2] == batch['teacher_input_ids'].shape
    for row, found in zip(rows, states):
        context, ids = row['teacher_context_ids'], row['teacher_input_ids']
        alone = body(framework.teacher_model)(torch.tensor([[ids[0], *context, *ids[1:]]]))[0][0]
        torch.testing.assert_close(found[:len(ids)], alone[len(context):])  # the first one has read the token just before the window

@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('tokenizers', PAIRS)
def test_padding_and_the_order_of_rows_change_nothing(tokenizers, masked):
    framework = framework_of(tokenizers, masked=masked)
    rows, bare = (windows(*tokenizers, context, True) for context in (25, 0))
    collate = framework.collator()
    whole = taught(framework, [collate(rows)])
    check_same(taught(framework, [collate(rows[::-1])]), whole)
    check_same(taught(framework, [collate([row]) for row in rows]), whole)
    check_same(taught(framework, [PairCollator(pad_to_multiple_of=16, document_masking=masked)(rows)]), whole)
    less = taught(framework, [collate(bare)])
    torch.testing.assert_close(less[0]['lm'], whole[0]['lm'])  # the student reads what it read
    assert abs(less[0]['kd'] - whole[0]['kd']) > 1e-6          # and is told something else

def test_documents_apart_stay_apart():
    "What stands before belongs to the first document of a window; the others begin anew."
    framework = framework_of(PAIRS[1], masked=True)
    short = [text[:60] for text in TEXTS]
    rows = [row for row in windows(*PAIRS[1], 50, True, short, 45)
            if len(row['teacher_document_starts']) > 1 and row['teacher_context_ids']]
    assert rows
    batch = framework.complete(framework.collator()(rows))
    states = framework.teacher_states(batch)
    for row, found in zip(rows, states):
        context, ids, starts = row['teacher_context_ids'], row['teacher_input_ids'], [*row['teacher_document_starts'], None]
        first = body(framework.teacher_model)(torch.tensor([[ids[0], *context, *ids[1:starts[1]]]]))[0][0]
        torch.testing.assert_close(found[:starts[1]], first[len(context):])
        for begin, stop in zip(starts[1:], starts[2:]):
            torch.testing.assert_close(found[begin:len(ids)][:stop and stop - begin],
                                       body(framework.teacher_model)(torch.tensor([ids[begin:stop]]))[0][0])

@pytest.mark.parametrize('masked', [False, True])
def test_the_cache_says_the_same(pair, same_pair, tmp_path, masked):
    for name, values in dict(two=pair, one=same_pair).items():
        config = config_of(values, tmp_path / name, teacher_context=40, cache_top_k=10**6, document_masking=masked)
        cache_teacher(config)
        (online, gradients), (cached, from_cache) = both_ways(config)
        assert {key: value.item() for key, value in cached.items()} == pytest.approx({key: value.item() for key, value in online.items()},
                                                                                     abs=2e-3)
        for key, gradient in gradients.items(): assert (from_cache[key] - gradient).norm() < .01 * gradient.norm() + 1e-6, key

def test_a_cache_of_another_context_is_refused(pair, tmp_path):
    config = config_of(pair, tmp_path, teacher_context=40)
    cache_teacher(config)
    for context in (0, 30):
        other = replace(config, teacher_context=context)
        with pytest.raises(CacheError, match='teacher_context'): open_cache(other, prepare_text(other))

def test_it_is_measured_on_what_the_student_reads(pair, tmp_path):
    text = prepare_text(config_of(pair, tmp_path, teacher_context=40, teacher_cache=None))
    assert 'teacher_context_ids' in text['train'].column_names and 'teacher_context_ids' not in text['held_out'].column_names
    rows = [text['train'][i] for i in range(4)]
    framework = make_framework(config_of(pair, tmp_path, teacher_context=40, teacher_cache=None), text)
    batch = framework.collator()(rows)
    assert of_window(batch, model_inputs(batch, 'teacher_')['input_ids'][..., None]).shape[1] == batch['teacher_input_ids'].shape[1]

def test_no_more_than_the_teacher_can_read(pair, tmp_path):
    "Its 256 positions leave 128 beside a window of 128."
    text = prepare_text(config_of(pair, tmp_path, teacher_context=1000, teacher_cache=None))
    longest = max(len(row['teacher_context_ids']) for row in (text['train'][i] for i in range(len(text['train']))))
    assert 30 < longest <= 128

def test_attention_cannot_be_compared(pair, tmp_path):
    with pytest.raises(ConfigError, match='alpha_attention'): config_of(pair, tmp_path, teacher_context=1, alpha_attention=.1)
    with pytest.raises(ConfigError, match='teacher_context'): config_of(pair, tmp_path, teacher_context=-1)
