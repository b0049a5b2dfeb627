"Laws of conversations: each template against each, on contents that are hard to find, with tokenizers of every style."
import itertools
import json
import re
from functools import lru_cache

import numpy as np
import pytest
from chats import AHEAD, CONTROLS, DROPS, ENDS, TALKS, TEMPLATES, chat_tokenizer, talk
from tiny_tokenizers import byte_level

from kdkit.align import token_bytes
from kdkit.templates import DAY, ChatSide, TemplateError, chatml, parts_of, shared_places, template_of

PAIRS = [*itertools.permutations(TEMPLATES, 2)]
CLEAN = [name for name in TALKS if name != 'controls']

@lru_cache
def side_of(name, **more): return ChatSide(chat_tokenizer(name), **more)

@lru_cache
def reading(name, which):
    reading, = side_of(name).read([TALKS[which]])
    assert not isinstance(reading, str), reading
    return reading

def written(name, ids):
    "What tokens write, control tokens as nothing."
    table = table_of(name)
    return b''.join(table[i] or b'' for i in ids)

@lru_cache
def table_of(name): return token_bytes(chat_tokenizer(name))

@pytest.mark.parametrize('name', TEMPLATES)
def test_a_side_knows_how_a_turn_ends(name):
    side = side_of(name)
    assert side.tokenizer.convert_ids_to_tokens(side.end_id) == ENDS[name]
    asked = side.render(TALKS['plain']['messages'][:1], answer=True)
    assert asked.endswith(side.header) and (side.header != '') == ('mistral' not in name)
    # where it begins to think, and drops what was thought
    assert (side.header in side.render(TALKS['plain']['messages'])) == (name != 'r1')

@pytest.mark.parametrize('name', TEMPLATES)
@pytest.mark.parametrize('which', CLEAN)
def test_tokens_are_those_that_the_library_makes(name, which):
    if which == 'words' and '<|user|>' in CONTROLS[name]: return  # a control token of its own is said there
    expected = chat_tokenizer(name).apply_chat_template(TALKS[which]['messages'], tokenize=True, return_dict=False,
                                                        strftime_now=DAY.strftime)
    assert reading(name, which).ids.tolist() == expected

@pytest.mark.parametrize('name', TEMPLATES)
@pytest.mark.parametrize('which', TALKS)
def test_what_somebody_types_is_text(name, which):
    "As many control tokens as in the same conversation with harmless contents."
    if which == 'thoughts' and name in DROPS: return
    harmless = dict(messages=[dict(message, content='x') for message in TALKS[which]['messages']])
    plain, = side_of(name).read([harmless])
    controls = side_of(name).controls.keys()
    count = lambda ids: [i for i in ids.tolist() if i in controls]
    assert count(reading(name, which).ids) == count(plain.ids)

@pytest.mark.parametrize('name', TEMPLATES)
@pytest.mark.parametrize('which', TALKS)
def test_answers_are_the_answers_and_their_ends(name, which):
    read, side = reading(name, which), side_of(name)
    wanted = [message['content'] for message in TALKS[which]['messages'] if message['role'] == 'assistant']
    assert len(read.answers) == len(wanted) - ((which, name) == ('empty', 'glm4'))  # an empty answer without an end is nothing
    for i, ((first, stop), content) in enumerate(zip(read.answers, wanted), 1):
        last, ended = i == len(wanted), read.ids[stop - 1] in side.turn_ends
        assert ended if name != 'glm4' else ended != last  # there the next question ends an answer
        assert read.ids[stop - 1] == side.end_id or not last or not ended
        said = written(name, read.ids[first:stop - ended]).decode().removeprefix(AHEAD.get(name, ''))
        if which == 'thoughts' and (name == 'r1' or name == 'qwen3' and not last): content = content.split('</think>')[-1]
        elif name == 'qwen3' and last: said = said.removeprefix('<think>\n\n</think>\n\n')
        exact = chat_tokenizer(name).backend_tokenizer.normalizer is None
        if exact: assert said.strip() == content.strip()
        else: assert re.sub(r'\s', '', normal(said)) == re.sub(r'\s', '', normal(content))

def normal(text):
    import unicodedata
    return unicodedata.normalize('NFC', text)

@pytest.mark.parametrize('student, teacher', PAIRS)
def test_at_shared_places_both_have_read_the_same(student, teacher):
    "Between neighbouring places of one content both sides write the same bytes; behind its last place both end the turn, or neither."
    for which, conversation in TALKS.items():
        mine, theirs = reading(student, which), reading(teacher, which)
        here, there = shared_places(mine, theirs)
        assert ((np.diff(here) > 0).all() and (np.diff(there) > 0).all() and (here < len(mine.ids) - 1).all()
                and (there < len(theirs.ids) - 1).all())
        ends = np.isin(mine.ids[here + 1], side_of(student).turn_ends)
        assert (ends == np.isin(theirs.ids[there + 1], side_of(teacher).turn_ends)).all()
        sizes = np.cumsum([0] + [len(part.text.encode()) + 2 for part in parts_of(conversation['messages'])])
        content = np.searchsorted(sizes, mine.at[here], 'right')
        for i in np.flatnonzero(np.diff(content) == 0):
            said, heard = written(student,
                                  mine.ids[here[i] + 1:here[i + 1] + 1]), written(teacher, theirs.ids[there[i] + 1:there[i + 1] + 1])
            if ends[i + 1]: said, heard = said.rstrip(), heard.rstrip()  # one of them may trim
            assert normal(said.decode('utf-8', 'replace')) == normal(heard.decode('utf-8', 'replace')), (which, said, heard)

@pytest.mark.parametrize('student, teacher', PAIRS)
def test_no_shared_place_is_missed(student, teacher):
    "Against offsets of the library and a plain search, on contents that are ASCII, without space around, and unlike all else."
    which = 'turns'
    bounds = []
    for name in (student, teacher):
        tokenizer, side, found = chat_tokenizer(name), side_of(name), set()
        rendered = tokenizer.apply_chat_template(TALKS[which]['messages'], tokenize=False, strftime_now=DAY.strftime)
        encoding = tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
        stops = [stop for _, stop in encoding['offset_mapping']]
        at = 0
        for k, message in enumerate(TALKS[which]['messages']):
            start = rendered.index(message['content'], at)
            at = start + len(message['content'])
            for i, stop in enumerate(stops[:-1]):
                if start <= stop < at and stops[i + 1] <= at: found.add((k, stop - start))
                if stop == at and encoding['input_ids'][i + 1] in side.turn_ends: found.add((k, 'end'))
        bounds.append(found)
    here, _ = shared_places(reading(student, which), reading(teacher, which))
    assert len(here) == len(bounds[0] & bounds[1]) > 100

@pytest.mark.parametrize('name', TEMPLATES)
def test_a_template_against_itself_shares_every_place(name):
    for which in ('plain', 'code', 'turns', 'controls'):
        read = reading(name, which)
        here, there = shared_places(read, read)
        assert here.tolist() == there.tolist() == np.flatnonzero(read.at >= 0).tolist()

def test_how_much_a_template_drops_is_known():
    thought = TALKS['thoughts']
    all_of_it = sum(len(message['content'].encode()) for message in thought['messages'])
    assert reading('chatml', 'thoughts').found == all_of_it
    dropped = '<think>\nTwo and two.\n</think>\n\n'
    assert reading('qwen3', 'thoughts').found == all_of_it - len(dropped)
    assert reading('llama3', 'spaces').found == sum(len(message['content'].strip()) for message in TALKS['spaces']['messages'])

def test_thoughts_beside_the_answer_are_read_too():
    messages = [dict(role='user', content='2+2?'), dict(role='assistant', content='It is 4.', reasoning_content='Two and two.')]
    (mine,), (theirs,) = (side_of(name).read([dict(messages=messages)]) for name in ('qwen3', 'chatml'))
    (first, stop), = mine.answers
    assert written('qwen3', mine.ids[first:stop]).decode() == '<think>\nTwo and two.\n</think>\n\nIt is 4.'
    here, there = shared_places(mine, theirs)  # ChatML knows no thoughts: only the answer is shared
    assert written('qwen3', mine.ids[here[here >= first][0] + 1:stop]).decode().startswith('It')

def test_calls_of_tools_are_learnt_as_the_template_writes_them():
    call = dict(type='function', function=dict(name='weather', arguments=dict(city='Paris')))
    messages = [dict(role='user', content='Weather?'), dict(role='assistant', content='', tool_calls=[call]),
                dict(role='tool', content='sunny'), dict(role='assistant', content='Sunny.')]
    read, = side_of('qwen25').read([dict(messages=messages)])
    said = [written('qwen25', read.ids[i:j]).decode() for i, j in read.answers]
    assert (json.loads(said[0].split('<tool_call>')[1].split('</tool_call>')[0]) == dict(name='weather', arguments=dict(city='Paris'))
            and said[1] == 'Sunny.')

def test_a_teacher_may_see_more():
    plain, told = side_of('chatml'), ChatSide(chat_tokenizer('chatml'), system_prompt='Answer like a pirate.')
    for conversation in (TALKS['plain'], TALKS['system']):
        (less,), (more,) = plain.read([conversation]), told.read([conversation])
        assert b'pirate' in written('chatml', more.ids) and b'pirate' not in written('chatml', less.ids)
        here, there = shared_places(less, more)
        shift = set(there - here)
        assert len(shift) == 1 and shift.pop() > 0 and len(here) > 10
        assert [more.ids[i:j].tolist() for i, j in more.answers] == [less.ids[i:j].tolist() for i, j in less.answers]

def test_only_answers_from_some_message_on():
    read, = side_of('gemma3').read([dict(TALKS['system'], answers_from=3)])
    assert [written('gemma3', read.ids[i:j]).decode() for i, j in read.answers] == ['Somebody who asks.']

def test_a_template_that_refuses_says_why():
    for name in ('gemma3', 'mistral'):
        odd = dict(messages=[dict(role='user', content='a'), dict(role='user', content='b'), dict(role='assistant', content='c')])
        refused, fine = side_of(name).read([odd, TALKS['plain']])
        assert 'alternate' in refused and fine.answers

def test_a_base_model_gets_chatml_of_tokens_that_it_has():
    bare = byte_level(430)
    template, why = template_of(bare)
    assert 'none' in why and '"<s>"' in template and '"<|endoftext|>"' in template
    side = ChatSide(bare)
    read, = side.read([TALKS['plain']])
    assert side.end_id == bare.eos_token_id and len(read.answers) == 1
    assert chatml(chat_tokenizer('chatml')) in (TEMPLATES['chatml'], chatml(chat_tokenizer('qwen25')))
    ours, published = (ChatSide(chat_tokenizer('chatml'), template).read([TALKS['system']])[0].ids.tolist()
                       for template in (chatml(chat_tokenizer('chatml')), TEMPLATES['chatml']))
    assert ours == published

def test_a_template_from_a_file(tmp_path):
    (tmp_path / 'mine.jinja').write_text(TEMPLATES['zephyr'])
    assert template_of(chat_tokenizer('chatml'), str(tmp_path / 'mine.jinja'))[0] == TEMPLATES['zephyr']
    with pytest.raises(TemplateError, match='cannot be read'): template_of(chat_tokenizer('chatml'), str(tmp_path / 'none.jinja'))

def test_the_day_does_not_change_what_is_read(monkeypatch):
    "A run that goes on tomorrow, and a cache that somebody else made."
    from transformers.utils import chat_template_utils
    class Tomorrow(DAY.__class__):
        @classmethod
        def now(cls): return cls(2031, 1, 1)
    for name in ('llama32', 'mistral_small', 'smollm3', 'harmony'):
        today, = ChatSide(chat_tokenizer(name)).read([TALKS['plain']])
        monkeypatch.setattr(chat_template_utils, 'datetime', Tomorrow)
        assert '2031' in chat_tokenizer(name).apply_chat_template(TALKS['plain']['messages'], tokenize=False)  # what the library would read
        assert ChatSide(chat_tokenizer(name)).read([TALKS['plain']])[0].ids.tolist() == today.ids.tolist()
        monkeypatch.undo()

@pytest.mark.parametrize('dropped', ['<think>a</think>', 'x: <think>a: b</think>', 'Answer</think>Answer: ', '>>></think>>',
                                     'a </think> a'])
@pytest.mark.parametrize('ahead', ['<｜Assistant｜>', 'Answer: ', '>', '</think>', 'a'])
def test_what_is_dropped_may_look_like_what_the_template_writes(dropped, ahead):
    "The kept rest of a content is found to the byte."
    template = ("{% for message in messages %}{{ '<' + message.role + '>' if message.role == 'user' else AHEAD }}{{ "
                "message.content.split('</think>')[-1] }}"
                "{{ '<|im_end|>' }}{% endfor %}").replace('AHEAD', repr(ahead))
    side = ChatSide(chat_tokenizer('chatml'), template)
    messages = [dict(role='user', content='Well?'), dict(role='assistant', content=dropped + 'It is 4.')]
    rendered, spans = side.locate(messages, parts_of(messages))
    kept = (dropped + 'It is 4.').split('</think>')[-1]
    start, stop, _, offset = spans[-1]
    assert (rendered[start:stop].strip() == kept.strip() and (dropped + 'It is 4.')[offset:] == rendered[start:stop]
            and rendered[stop:] == '<|im_end|>')
