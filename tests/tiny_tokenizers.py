"Tokenizers for the tests: tiny ones trained here, real ones where their folder is at hand."
import inspect
import json
from functools import lru_cache
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from kdkit.align import token_bytes

corpus = [inspect.getdoc(thing) for thing in (inspect, str, list, dict, Path, lru_cache, property)] * 2
shared = Path(__file__).parents[2] / 'shared' / 'tokenizers'
awkward = ['', 'a', ' ', '\n', '\nA line.', '\n\n\tindented', ' leading', '   three', 'trailing  ', 'a\r\nb\r\n', 'tab\tand\t\ttabs',
           '1234567 3.14',
           'caf\u00e9', 'cafe\u0301 e\u0301', 'A\u030a\u0323 \u212b\u2126', '\u1112\u1161\u11ab\u1100\u1173\u11af', '\u0915\u093c \u0958',
           '\u0301', 'e\u0301',
           '\u4f60\u597d\uff0c\u4e16\u754c\u3002\u65e5\u672c\u8a9e', '\U0001f600', '\U0001f468\u200d\U0001f469\u200d\U0001f467 x',
           '\U0001f1e9\U0001f1ea', 'zero\u200bwidth\u200d\ufeff',
           '<s>', 'a <s> b</s>', '<|endoftext|>', '<|im_start|>user\nhi<|im_end|>', '[UNK]<unk><pad>', 'x' * 400, 'Donaudampfschiff' * 40,
           'a\u2581b \u2581', '<0x0A>', '\x00\x07',
           "don't  stop\n\n\nnow ", 'naïve façade — “quoted” … ½ ²', '\ufb01n \u2460', ' \u00a0\u3000 x']

@lru_cache
def byte_level(vocab_size=400, add_prefix_space=False, trim_offsets=True, normalizer=None):
    "GPT-2's kind."
    tokenizer = Tokenizer(models.BPE())
    if normalizer: tokenizer.normalizer = getattr(normalizers, normalizer)()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, trim_offsets=trim_offsets)
    tokenizer.decoder = decoders.ByteLevel()
    special = ['<|endoftext|>', '<s>']
    tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False,
                                                              initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token='<|endoftext|>', bos_token='<s>')

@lru_cache
def sentencepiece(vocab_size=600, style='metaspace', byte_fallback=True, unigram=False):
    "Llama's kind: U+2581 for a space, put in front as well, and bytes for what is unknown."
    bytes_ = [f'<0x{byte:02X}>' for byte in range(256)] if byte_fallback else []
    special = ['<unk>', '<s>', '</s>', *bytes_]
    tokenizer = Tokenizer(models.Unigram() if unigram else models.BPE(unk_token='<unk>', fuse_unk=True, byte_fallback=byte_fallback))
    if style == 'gemma': tokenizer.normalizer = normalizers.Replace(' ', '\u2581')  # no space in front
    elif style == 'metaspace': tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='always', split=unigram)
    else: tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend('\u2581'), normalizers.Replace(' ', '\u2581')])
    tokenizer.decoder = decoders.Sequence([decoders.Replace('\u2581', ' '), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(' ', 1, 0)])
    options = dict(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    words = corpus if style == 'metaspace' else [' ' * (style == 'gemma') + word for text in corpus for word in text.split(' ')]
    trainer = trainers.UnigramTrainer(unk_token='<unk>', **options) if unigram else trainers.BpeTrainer(max_token_length=12, **options)
    tokenizer.train_from_iterator(words, trainer)
    state = json.loads(tokenizer.to_str())
    # bytes are no control tokens
    state['added_tokens'] = [token for token in state['added_tokens'] if not token['content'].startswith('<0x')]
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), bos_token='<s>', eos_token='</s>',
                                   unk_token='<unk>')

tiny = {
    'bytes': byte_level, 'bytes-large': lambda: byte_level(700), 'bytes-prefix': lambda: byte_level(450, add_prefix_space=True),
    'bytes-no-trim': lambda: byte_level(420, trim_offsets=False), 'bytes-NFC': lambda: byte_level(500, normalizer='NFC'),
    'bytes-NFKC': lambda: byte_level(500, normalizer='NFKC'), 'metaspace': sentencepiece,
    'prepend': lambda: sentencepiece(700, style='prepend'),
}
lossy = {'no-fallback': lambda: sentencepiece(500, byte_fallback=False),
         'unigram': lambda: sentencepiece(300, byte_fallback=False, unigram=True)}

@lru_cache
def real(name):
    "A published tokenizer; the test is skipped without it."
    if not (shared / name).exists(): pytest.skip(f'{shared} has no {name}')
    return AutoTokenizer.from_pretrained(shared / name)

@lru_cache
def table_of(name): return token_bytes(get(name))

def get(name): return (tiny | lossy)[name]() if name in tiny | lossy else real(name)
