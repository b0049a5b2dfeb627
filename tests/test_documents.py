"Documents of one packed window are read as if each were alone, on both sides, or it is said why not."
import json
from dataclasses import replace

import datasets
import pytest
import torch
from chats import chat_tokenizer
from datasets import Dataset
from pairs import documents, model_of
from test_several import config_of, three  # noqa: F401
from tiny_tokenizers import byte_level, sentencepiece
from transformers import Gemma2Config, Gemma2ForCausalLM, MambaConfig, MambaForCausalLM

from kdkit.cache import CacheError, TeacherCache
from kdkit.config import DistillConfig
from kdkit.framework import StudentAwareDistillationFramework
from kdkit.models import ModelError, cannot_mask_documents
from kdkit.prepare import prepare_text
from kdkit.run import cache_teacher, make_framework, open_cache, texts_of
from kdkit.templates import ChatSide
from kdkit.windows import ConversationMaker, JointRows, PairCollator, control_ids, pair_dataset

LOSSES = dict(alpha_lm=.3, alpha_kd=.5, alpha_unaligned=.2, alpha_feature=.1, alpha_attention=.1, alpha_layerwise=.1)
TEXTS = [text[:90] for text in documents(5, seed=3)]
SHAPES = 'llama', 'qwen2', 'gpt2', 'gemma2', 'qwen3_moe'


@pytest.fixture(autouse=True)
def quiet(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'cache')
    datasets.disable_progress_bars()

def build(shape, rows, hidden, seed):
    if shape == 'mamba': return MambaForCausalLM(MambaConfig(vocab_size=rows, hidden_size=hidden, num_hidden_layers=2, state_size=4))
    if shape == 'qwen3_moe':
        model = model_of(shape, rows, hidden, 2, seed)
        model.set_experts_implementation('eager')  # the grouped product takes no float64
        return model
    if shape != 'gemma2': return model_of(shape, rows, hidden, 2, seed)
    torch.manual_seed(seed)  # with windows that are shorter than the documents
    return Gemma2ForCausalLM(Gemma2Config(vocab_size=rows, hidden_size=hidden, num_hidden_layers=2, num_attention_heads=4,
                                          num_key_value_heads=2, head_dim=8, intermediate_size=64, sliding_window=8,
                                          bos_token_id=0, eos_token_id=0)).eval()

def framework_of(student, teacher, tokenizers=None, dtype=torch.float64, **options):
    mine, theirs = tokenizers or (sentencepiece(600), byte_level(700))
    return StudentAwareDistillationFramework({**LOSSES, 'use_curriculum': False, 'total_steps': 10, 'document_masking': True, **options},
                                             build(teacher, len(theirs), 48, 1).to(dtype), build(student, len(mine), 32, 2), theirs,
                                             mine).to(dtype)

def rows_of(texts, framework, pack, length=1000):
    mine, theirs = framework.student_tokenizer, framework.teacher_tokenizer
    ends = [(end, end) for end in (control_ids(mine)[1], control_ids(theirs)[1])]  # a document begins alike wherever it stands
    rows = pair_dataset(Dataset.from_dict(dict(text=texts)), mine, theirs, max_length=length, student_control=ends[0],
                        teacher_control=ends[1], pack=pack)
    return [rows[i] for i in range(len(rows))]

def taught(framework, batches):
    "Losses and gradients of several batches that make up one step."
    units = framework.count_units(batches[0]) if len(batches) == 1 else sum_of([framework.count_units(batch) for batch in batches])
    framework.zero_grad()
    outs = [framework(**batch, units=units) for batch in batches]
    sum(out['loss'] for out in outs).backward()
    return sum_of([out['losses'] for out in outs]), {name: p.grad.clone() for name, p in framework.named_parameters() if p.grad is not None}

def sum_of(dicts): return {name: sum(one[name] for one in dicts) for name in dicts[0]}

def check_same(found, wanted, **close):
    for one, other in zip(found, wanted):
        assert one.keys() == other.keys()
        for name in one:
            torch.testing.assert_close(one[name], other[name], msg=lambda text: f'{name}: {text}',
                                       **{**dict(atol=1e-6, rtol=1e-5), **close})


@pytest.mark.parametrize('student, teacher', [*((shape, 'llama') for shape in SHAPES), *(('llama', shape) for shape in SHAPES[1:])])
def test_a_packed_window_is_the_sum_of_its_documents(student, teacher):
    framework = framework_of(student, teacher)
    assert framework.document_masking
    packed, alone = rows_of(TEXTS[:3], framework, True) + rows_of(TEXTS[3:], framework, True), rows_of(TEXTS, framework, False)
    assert [len(row['document_starts']) for row in packed] == [3, 2] and len(alone) == 5
    collate = framework.collator()
    whole = taught(framework, [collate(packed)])
    check_same(whole, taught(framework, [collate(alone)]))
    check_same(whole, taught(framework, [collate([row]) for row in packed]))  # padding changes nothing
    together = taught(framework, [PairCollator()(packed)])
    assert abs(together[0]['lm'] - whole[0]['lm']) > 1e-4 and abs(together[0]['kd'] - whole[0]['kd']) > 1e-6  # it matters

@pytest.mark.parametrize('shape', ['llama', 'qwen3_moe'])
def test_gradient_checkpointing_changes_nothing(shape):
    framework = framework_of(shape, shape)
    batch = framework.collator()(rows_of(TEXTS, framework, True))
    plain = taught(framework.train(), [batch])
    framework.gradient_checkpointing_enable()
    check_same(taught(framework, [batch]), plain)

@pytest.mark.parametrize('method', ['uld', 'combined', 'projector'])  # spans also count the last one of a document that another one follows
def test_other_ways_of_comparing(method):
    framework = framework_of('llama', 'qwen2', kd_method=method, dtype=torch.float32)
    packed, alone = (rows_of(TEXTS, framework, pack) for pack in (True, False))
    check_same(*(taught(framework, [framework.collator()(rows)]) for rows in (packed, alone)), atol=1e-5, rtol=1e-4)

def test_one_tokenizer_and_a_batch_without_the_teachers_side():
    framework = framework_of('llama', 'gpt2', [byte_level(700)] * 2)
    packed, alone = (rows_of(TEXTS, framework, pack) for pack in (True, False))
    check_same(*(taught(framework, [framework.collator()(rows)]) for rows in (packed, alone)))
    batch = framework.collator()(packed)
    bare = {name: batch[name] for name in ('input_ids', 'position_ids', 'attention_mask', 'labels')}
    assert torch.equal(framework.complete(bare)['teacher_position_ids'], batch['position_ids'])
    check_same(taught(framework, [bare]), taught(framework, [batch]))

@pytest.mark.parametrize('train_on', ['answers', 'all'])
def test_conversations_of_one_window(train_on):
    mine, theirs = chat_tokenizer('zephyr'), chat_tokenizer('llama3')
    talks = [dict(messages=[dict(role='user', content=f'What is {i}?'), dict(role='assistant', content=text)])
             for i, text in enumerate(TEXTS)]
    text = Dataset.from_dict(dict(text=[*map(json.dumps, talks)]))
    framework = framework_of('llama', 'qwen2', (mine, theirs))
    sides = dict(student=ChatSide(mine), teacher=ChatSide(theirs))
    framework.converse(sides)
    packed, alone = (ConversationMaker(*sides.values(), max_length=250, teacher_max_length=250, pack=pack, train_on=train_on)(text)
                     for pack in (True, False))
    assert len(packed) < len(alone) == len(TEXTS)
    check_same(*(taught(framework, [framework.collator()([rows[i] for i in range(len(rows))])]) for rows in (packed, alone)))

def test_windows_know_where_documents_begin():
    mine, theirs = byte_level(400), sentencepiece(600)
    texts = [*TEXTS, 'One.', 'a']
    for row in pair_dataset(Dataset.from_dict(dict(text=texts)), mine, theirs, max_length=50):
        for side, tokenizer in (('', mine), ('teacher_', theirs)):
            ids, (start, end) = row[f'{side}input_ids'], control_ids(tokenizer)
            assert ids[0] == start
            assert row[f'{side}document_starts'] == [0, *(i for i in range(1, len(ids) - 1) if ids[i] == end)]
    unmarked = pair_dataset(Dataset.from_dict(dict(text=['abc', 'd', 'ef'])), mine, mine, max_length=50, student_control=(1, None))
    first = len(mine('abc')['input_ids'])
    assert unmarked[0]['document_starts'] == [0, first, first + 1]  # the token before the first one of its own
    alone = pair_dataset(Dataset.from_dict(dict(text=texts)), mine, theirs, max_length=50, pack=False)
    assert not any('starts' in name for name in alone.column_names)

def test_several_teachers(three, tmp_path):  # noqa: F811
    losses = dict(LOSSES, alpha_feature=0., alpha_attention=0., alpha_layerwise=0.)
    config = config_of(three, tmp_path, 'teacher', 'second', 'kin', **losses, use_curriculum=False, max_length=256, document_masking=True)
    text = prepare_text(config)
    framework = make_framework(config, text)
    assert [lesson.document_masking for lesson in framework.lessons] == [True] * 3
    rows = JointRows([one['train'] for one in texts_of(text)])
    batch = framework.collator()([rows[i] for i in range(3)])
    assert len(rows[0]['document_starts']) > 1
    assert all(one['teacher_position_ids'].shape == one['teacher_input_ids'].shape for one in batch['further'])
    loss, shares = framework(**batch)['loss'], framework.teacher_weights
    single = [make_framework(config.of_teacher(i), one) for i, one in enumerate(texts_of(text))]
    parts = [one(**one.collator()([rows.rows[i][j] for j in range(3)]))['loss'] for i, one in enumerate(single)]
    torch.testing.assert_close(loss, sum(share * part for share, part in zip(shares, parts)), atol=1e-5, rtol=1e-5)

# -- from the cache ----------------------------------------------------------------------------------------------------

def cached(values, folder, **options):
    return DistillConfig(**{**values, 'max_length': 128, 'batch_size': 4, 'max_steps': 2, 'eval_steps': 2, 'eval_fraction': .1,
                            'max_eval_rows': 4, 'output_dir': str(folder / 'run'), 'teacher_cache': str(folder / 'cache'),
                            'cache_top_k': 10**6,
                            'kd_method': 'first_token', 'document_masking': True, **options})

def test_from_a_cache_as_online(pair, tmp_path):
    config = cached(pair, tmp_path)
    cache_teacher(config)
    assert TeacherCache(config.teacher_cache).document_masking
    online, text = prepare_text(config), prepare_text(config)
    absent, losses = open_cache(config, text).stand_in, []
    for rows, teacher in ((online['train'], None), (text['train'], absent)):
        framework = make_framework(replace(config, teacher_cache=teacher and config.teacher_cache), online, teacher)
        batch = framework.collator()([rows[i] for i in range(6)])
        assert framework.document_masking and (batch['position_ids'] == 0).sum() > 6
        losses.append(framework(**batch)['losses'])
    for name in losses[0]: torch.testing.assert_close(losses[0][name], losses[1][name], atol=2e-3, rtol=0)

def test_a_cache_says_how_it_was_read(pair, tmp_path):
    config = cached(pair, tmp_path, document_masking=False)
    cache_teacher(config)
    with pytest.raises(CacheError, match='document_masking is True, but .* was written with False'):
        open_cache(replace(config, document_masking=True), prepare_text(config))
    with pytest.raises(CacheError, match='document_masking differs'): cache_teacher(replace(config, document_masking=True))
    cache = TeacherCache(config.teacher_cache)
    del cache.about['document_masking']  # as an earlier kdkit wrote it
    rows = prepare_text(config)['train']
    cache.check(rows, config.teacher_model, document_masking=False)
    cache.check(rows, config.teacher_model)  # windows of one document each: there is nothing to keep apart
    with pytest.raises(CacheError, match='was written with False'): cache.check(rows, config.teacher_model, document_masking=True)

# -- who cannot --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('side', ['student', 'teacher'])
def test_a_model_without_a_mask_is_recognised(side):
    shapes, losses = dict(dict(student='llama', teacher='llama'), **{side: 'mamba'}), dict(alpha_attention=0., alpha_layerwise=0.)
    said = f'document_masking was asked for, but {side}_model .MambaForCausalLM. cannot: .*or set pack=False'
    with pytest.raises(ModelError, match=said):
        framework_of(**shapes, **losses)
    for off in (dict(document_masking=False), dict(pack=False)):
        framework = framework_of(**shapes, **losses, **off)
        assert not framework.document_masking and 'position_ids' not in framework.collator()(rows_of(TEXTS, framework, True))

@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16'])
@pytest.mark.parametrize('how', ['sdpa', 'eager'])
def test_the_trial_in_every_precision(shape, dtype, how):
    model = build(shape, 300, 32, 0).to(getattr(torch, dtype))
    model.set_attn_implementation(how)
    assert cannot_mask_documents(model.train()) == '' and model.training
