"""Alignment under fire: random documents, tokenizers of every style, and an oracle of its own.

python tests/fuzz_align.py 100000    # the long form; a short one is in test_align.py
"""
import json
import random
import re
import sys
import unicodedata
from functools import lru_cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from tiny_tokenizers import awkward, byte_level, corpus, sentencepiece, shared
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from kdkit.align import encode_bytes, shared_boundaries, token_bytes

SPACE = '\u2581'


def pieces_of(before, special=('<|endoftext|>',), size=600, normalizer=None):
    "Byte-level BPE with other cuts before it, as Llama 3, DeepSeek, SmolLM and Falcon have."
    tokenizer = Tokenizer(models.BPE())
    if normalizer: tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=size, special_tokens=list(special),
                                                              initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[0])


def gemma(size=900):
    "SentencePiece BPE without a space in front; runs of spaces, newlines and tags are added tokens."
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token='<unk>', fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(' ', SPACE)
    names = ['<pad>', '<eos>', '<bos>', '<unk>', *(f'<0x{b:02X}>' for b in range(256))]
    words = [part for text in corpus for part in text.replace(' ', SPACE).splitlines(True)] + [SPACE * n + 'x' for n in (2, 4, 8)] * 20
    tokenizer.train_from_iterator(words, trainers.BpeTrainer(vocab_size=size, special_tokens=names, show_progress=False))
    state = json.loads(tokenizer.to_str())
    state['pre_tokenizer'] = dict(type='Split', pattern=dict(String=' '), behavior='MergedWithPrevious', invert=False)
    state['decoder'] = dict(type='Sequence', decoders=[dict(type='Replace', pattern=dict(String=SPACE), content=' '),
                                                       dict(type='ByteFallback'), dict(type='Fuse')])
    state['added_tokens'] = state['added_tokens'][:4]
    vocab = state['model']['vocab']
    for text in (*(SPACE * n for n in (2, 3, 4, 8)), '\n\n', '\t', '<table>', '</table>'):
        index = vocab.setdefault(text, len(vocab))
        state['added_tokens'].append(dict(id=index, content=text, single_word=False, lstrip=False, rstrip=False, normalized=False,
                                          special=False))
    state['added_tokens'].sort(key=lambda token: token['id'])
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token='<eos>', bos_token='<bos>',
                                   unk_token='<unk>', pad_token='<pad>')


def unigram(normalizer, fallback=False, size=400):
    "Unigram, as T5 and XLM have, with what is done to the text first."
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='always')
    tokenizer.decoder = decoders.Metaspace(prepend_scheme='always')
    special = ['<unk>', '<s>', '</s>', *([f'<0x{b:02X}>' for b in range(256)] if fallback else [])]
    tokenizer.train_from_iterator(corpus, trainers.UnigramTrainer(vocab_size=size + len(special), special_tokens=special,
                                                                  unk_token='<unk>', show_progress=False))
    state = json.loads(tokenizer.to_str())
    state['added_tokens'] = state['added_tokens'][:3]
    if fallback:
        state['model']['byte_fallback'] = True
        state['decoder'] = dict(type='Sequence', decoders=[dict(type='Replace', pattern=dict(String=SPACE), content=' '),
                                                           dict(type='ByteFallback'), dict(type='Fuse'),
                                                           dict(type='Strip', content=' ', start=1, stop=0)])
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), bos_token='<s>', eos_token='</s>',
                                   unk_token='<unk>')


def with_added():
    "A tokenizer with added tokens of every kind."
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(byte_level().backend_tokenizer.to_str()),
                                        eos_token='<|endoftext|>')
    tokenizer.add_tokens([AddedToken('<think>'), AddedToken('{{x}}', normalized=False), AddedToken('[tag]', lstrip=True),
                          AddedToken('[end]', rstrip=True), AddedToken('word', single_word=True)])
    return tokenizer


llama3 = Regex(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
split = lambda pattern, how='isolated': pre_tokenizers.Split(pattern, how)
STYLES = dict(  # name -> (how to make it, what it does to text in Python's words)
    gpt2=(byte_level, None), gpt2_prefix=(lambda: byte_level(450, add_prefix_space=True), None),
    qwen=(lambda: byte_level(500, normalizer='NFC'), 'NFC'),
    nfkc=(lambda: byte_level(500, normalizer='NFKC'), 'NFKC'),
    llama3=(lambda: pieces_of([split(llama3)], ['<|begin_of_text|>', '<|eot_id|>']), None),
    deepseek=(lambda: pieces_of([split(Regex('[\r\n]')), split(Regex(r'\s?\p{L}+')), split(Regex(r'\s?\p{P}+')),
                                 split(Regex('[\u4e00-\u9fa5]+')), pre_tokenizers.Digits(True)]), None),
    smollm=(lambda: pieces_of([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)][:1], size=700), None),
    falcon=(lambda: pieces_of([pre_tokenizers.Punctuation('contiguous'), split(Regex('[0-9][0-9][0-9]'))]), None),
    llama2=(lambda: sentencepiece(700, style='prepend'), None), metaspace=(sentencepiece, None), gemma=(gemma, None),
    added=(with_added, 'taken'),
    unigram_bytes=(lambda: unigram(normalizers.Sequence([]), True), None), unigram_nfkc=(lambda: unigram(normalizers.NFKC(), True), 'NFKC'),
    unigram_nfkc_unk=(lambda: unigram(normalizers.NFKC()), 'NFKC'), unigram_strip=(lambda: unigram(normalizers.Strip(), True), None),
    unigram_xglm=(lambda: unigram(normalizers.Sequence([normalizers.NFKC(), normalizers.Strip(left=False, right=True),
                                                        normalizers.Replace(Regex(' {2,}'), SPACE)]), True), 'NFKC once'),
    unigram_once=(lambda: unigram(normalizers.Sequence([normalizers.Strip(), normalizers.Replace(Regex(' {2,}'), ' ')]), True), 'once'),
    bytes_once=(lambda: pieces_of([split(llama3)],
                                  normalizer=normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(' {2,}'), ' ')])),
                                  'NFC once'),
    unigram_collapse=(lambda: unigram(normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(' {2,}'), ' ')])), 'NFKC once'),
    bytes_strip=(lambda: pieces_of([split(llama3)], normalizer=normalizers.Strip()), None),
    lower=(lambda: pieces_of([split(llama3)], normalizer=normalizers.Lowercase()), 'lower'),
    no_fallback=(lambda: sentencepiece(500, byte_fallback=False), None))


@lru_cache(None)
def tokenizer_of(name):
    "(tokenizer, its table, what it does to text)"
    tokenizer = STYLES[name][0]() if name in STYLES else AutoTokenizer.from_pretrained(shared / name)
    return tokenizer, token_bytes(tokenizer), STYLES[name][1] if name in STYLES else {'qwen2': 'NFC'}.get(name)


def names(): return [*STYLES, *(name for name in ('qwen2', 'gpt2', 'mistral') if (shared / name).exists())]


def document(chance: random.Random) -> str:
    "Words, code, scripts, marks, spaces and control names, in any order."
    letters = lambda low, high, n: ''.join(chr(chance.randint(low, high)) for _ in range(n))
    makers = (lambda: chance.choice(awkward), lambda: chance.choice(corpus)[(at := chance.randrange(80)):at + chance.randrange(60)],
              lambda: ' ' * chance.randrange(9),
              lambda: '\n' + ' ' * (4 * chance.randrange(4)) + chance.choice(('return x', 'if a:', 'caf\u00e9')),
              lambda: SPACE * chance.randrange(1, 4), lambda: letters(0x20, 0x7e, 5), lambda: letters(0xc0, 0x24f, 3),
              lambda: letters(0x300, 0x36f, 2), lambda: letters(0x4e00, 0x4eff, 3), lambda: letters(0xac00, 0xacff, 2),
              lambda: letters(0x1f600, 0x1f64f, 2), lambda: letters(0xff01, 0xff5e, 3),
              lambda: chance.choice(('<think>', '[tag]', '[end]', '{{x}}', 'word', '<table>', '\t', '\u00a0', '\u200b', '\u0130',
                                     '\ufb03')), lambda: chance.choice('\r\n\t .,'))
    # Unigram reads the name of a byte as that byte
    return ''.join(chance.choice(makers)() for _ in range(chance.randrange(1, 12))).replace('<0x', '<0y')


def shaped(text, form):
    "A text as the tokenizer's normalizer leaves it: 'NFKC', 'lower', 'once' (of several spaces, one), or several of these."
    for part in (form or '').split():
        text = text.lower() if part == 'lower' else re.sub(' {2,}', ' ', text) if part == 'once' else unicodedata.normalize(part, text)
    return text


def read(text, form):
    "What is left of a text when it is only read: normalized, U+2581 as a space, runs of white space as one, none at the ends."
    text = text if form == 'taken' else shaped(text, form)
    # taken: by added tokens that take the white space beside them and write none
    return ('' if form == 'taken' else ' ').join(text.replace(SPACE, ' ').split())


def decoded(tokenizer, ids):
    "What the library itself says that these tokens are; bytes of a character that is not whole yet are left out."
    return tokenizer.backend_tokenizer.decode(list(map(int, ids)), skip_special_tokens=False)


def misses(name, text, most=40):
    "Ends that are wrong, by decoding the prefix and comparing it with the text up to there. And: (tokens, tokens without an end)."
    tokenizer, table, form = tokenizer_of(name)
    (ids, ends), = encode_bytes(tokenizer, [text], table)
    raw, wrong = text.encode(), []
    placed = [i for i, end in enumerate(ends) if end >= 0]
    if any(b < a for a, b in zip(ends[placed], ends[placed][1:])): wrong.append(('not ascending', ends.tolist()))
    if len(ids) and ends.max() > len(raw): wrong.append(('behind the text', ends.tolist()))
    lost = [i for i, index in enumerate(ids) if table[index] is None]
    for i in placed[:most]:
        if lost and lost[0] <= i: break  # what the tokenizer cannot say, decoding cannot say either
        said = decoded(tokenizer, ids[:i + 1])
        # it decodes no run of bytes before the last one is there
        if said.endswith('\ufffd') and 'ByteFallback' in str(tokenizer.backend_tokenizer.decoder): continue
        said, there = read(said.rstrip('\ufffd'), form), read(raw[:ends[i]].decode('utf-8', 'replace').rstrip('\ufffd'), form)
        if said != there: wrong.append((i, ids[i], said[-20:], there[-20:]))
    return wrong + forgotten(tokenizer, text, form, ids, ends, lost), len(ids), len(ids) - len(placed) - len(lost)


def forgotten(tokenizer, text, form, ids, ends, lost, most=12):
    """Tokens without an end, although what they and those before them write is just what one beginning of the text reads as, and the rest
    reads the same by itself."""
    if form == 'taken': return []
    open_ = [i for i, end in enumerate(ends) if end < 0 and not (lost and lost[0] <= i)][:most]
    if not open_: return []
    def normal(part): return shaped(part, form).replace(SPACE, ' ')
    whole, at = normal(text), {}
    for k in range(len(text) + 1):
        if normal(text[:k]) + normal(text[k:]) == whole: at.setdefault(normal(text[:k]), []).append(k)
    return [('forgotten', i, ids[i], at[said]) for i in open_
            if not (said := decoded(tokenizer, ids[:i + 1])).endswith('\ufffd') and len(at.get(said, ())) == 1 and said]


def wrong_bytes(name, step=1):
    "Ids whose bytes in the table are not what the library makes of them in the middle of a text."
    tokenizer, table, _ = tokenizer_of(name)
    backend, some = tokenizer.backend_tokenizer, range(0, len(table), step)
    beside = max(i for i, piece in enumerate(table) if piece == b'x')  # the letter, and not the byte of the same name
    one = lambda text: re.sub('\ufffd+', '\ufffd', text)
    texts = backend.decode_batch([[beside, beside, i, beside] for i in some], skip_special_tokens=False)
    whole = lambda piece: one((b'xx' + piece + b'x').decode('utf-8', 'replace'))
    return [(i, table[i], text) for i, text in zip(some, texts) if table[i] is not None and one(text).strip() != whole(table[i]).strip()]


def main(n, seed=0, only=None):
    chance, counts, bad = random.Random(seed), {}, 0
    some = only or names()
    for at in range(n):
        text = document(chance)
        for name in chance.sample(some, min(len(some), 4)):
            wrong, tokens, unplaced, *_ = misses(name, text)
            seen = counts.setdefault(name, [0, 0, 0, 0])
            for k, value in enumerate((1, bool(wrong), tokens, unplaced)): seen[k] += value
            if wrong and seen[1] <= 3: print(name, repr(text[:200]), wrong[:2])
    for name in some:
        if wrong := wrong_bytes(name): print(name, len(wrong), 'of', len(tokenizer_of(name)[1]), 'tokens write something else:', wrong[:3])
    for name, (texts, missed, tokens, unplaced) in counts.items():
        print(f'{name:<18} {texts:>7} texts  {missed:>4} with a miss  {unplaced / max(tokens, 1):.3%} of {tokens} tokens without an end')
    return sum(seen[1] for seen in counts.values())


if __name__ == '__main__': sys.exit(main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0) > 0)
