"Chat templates as their authors publish them, with tokenizers in their style, and conversations that are hard on them."
import json
from functools import lru_cache

from tiny_tokenizers import byte_level, sentencepiece
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

ALTERNATE = ("{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
             "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}")
ASK = "{% if add_generation_prompt %}{{ 'HEADER' }}{% endif %}"

def asks(header): return ASK.replace('HEADER', header)

TEMPLATES = dict(
    chatml="{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    + asks('<|im_start|>assistant\n'),
    smollm2="{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
            "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
            "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
            + asks('<|im_start|>assistant\n'),
    llama3="{% for message in messages %}"
           "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + "
           "'<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
           + asks('<|start_header_id|>assistant<|end_header_id|>\n\n'),
    qwen25="{% if messages[0]['role'] == 'system' %}{{ '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}{% else %}"
           "{{ '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n' }}{% endif %}"
           "{% for message in messages %}"
           "{% if message.role == 'user' or message.role == 'system' and not loop.first or message.role == 'assistant' and not "
           "message.tool_calls %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}"
           "{% elif message.role == 'assistant' %}{{ '<|im_start|>' + message.role }}{% if message.content %}{{ '\n' + message.content }}"
           "{% endif %}"
           "{% for call in message.tool_calls %}"
           "{{ '\n<tool_call>\n{\"name\": \"' + call.function.name + '\", \"arguments\": ' + call.function.arguments | tojson + "
           "'}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% elif message.role == 'tool' %}"
           "{{ '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}{% endif %}{% endfor %}"
           + asks('<|im_start|>assistant\n'),
    qwen3="{%- set ns = namespace(looking=true, last=messages|length - 1) %}{%- for message in messages[::-1] %}"
          "{%- set index = messages|length - 1 - loop.index0 %}"
          "{%- if ns.looking and message.role == 'user' and not (message.content.startswith('<tool_response>') and "
          "message.content.endswith('</tool_response>')) %}{%- set ns.looking = false %}{%- set ns.last = index %}{%- endif %}{%- endfor "
          "%}{%- for message in messages %}{%- set content = message.content %}{%- if message.role != 'assistant' %}{{- '<|im_start|>' + "
          "message.role + '\n' + content + '<|im_end|>' + '\n' }}{%- else %}{%- set thought = '' %}{%- if message.reasoning_content is "
          "string %}{%- set thought = message.reasoning_content %}{%- elif '</think>' in content %}"
          "{%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
          "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
          "{%- if loop.index0 > ns.last and (loop.last or thought) %}"
          "{{- '<|im_start|>assistant\n<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}"
          "{%- else %}{{- '<|im_start|>assistant\n' + content }}{%- endif %}{{- '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
          + asks('<|im_start|>assistant\n'),
    gemma3="{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set prefix = messages[0]['content'] + '\n\n' %}"
           "{% set rest = messages[1:] %}{% else %}{% set prefix = '' %}{% set rest = messages %}{% endif %}"
           "{% for message in rest %}" + ALTERNATE + "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
           "{{ '<start_of_turn>' + role + '\n' + (prefix if loop.first else '') }}{{ message['content'] | trim }}{{ '<end_of_turn>\n' }}"
           "{% endfor %}" + asks('<start_of_turn>model\n'),
    mistral="{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set rest = messages[1:] %}"
            "{% else %}{% set rest = messages %}{% endif %}"
            "{% for message in rest %}"
            + ALTERNATE + "{% if message['role'] == 'user' %}{% if loop.last and system is defined %}"
                          "{{ '[INST] ' + system + '\n\n' + message['content'] + '[/INST]' }}{% else %}"
                          "{{ '[INST] ' + message['content'] + '[/INST]' }}{% endif %}"
            "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}",
    phi3="{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
         "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
    phi4="{% for message in messages %}{{ '<|im_start|>' + message['role'] + '<|im_sep|>' + message['content'] + '<|im_end|>' }}"
         "{% endfor %}" + asks('<|im_start|>assistant<|im_sep|>'),
    zephyr="{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token }}\n"
           "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}",
    llama32="{{- bos_token }}{%- if not date_string is defined %}{%- if strftime_now is defined %}"
            "{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}{%- endif %}"
            "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content']|trim %}"
            "{%- set messages = messages[1:] %}{%- else %}{%- set system_message = '' %}{%- endif %}"
            "{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}{{- 'Cutting Knowledge Date: December 2023\n' }}{{- 'Today Date: ' + "
            "date_string + '\n\n' }}{{- system_message }}{{- '<|eot_id|>' }}"
            "{%- for message in messages %}"
            "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
            "{%- endfor %}" + asks('<|start_header_id|>assistant<|end_header_id|>\n\n'),
    phi4_mini="{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message and message['tools'] is not none %}"
              "{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|>' + '<|end|>' }}"
              "{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
              "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}",
    mistral_small="{%- set today = strftime_now('%Y-%m-%d') %}{{- bos_token }}{%- if messages[0]['role'] == 'system' %}"
                  "{%- set system = messages[0]['content'] %}{%- set rest = messages[1:] %}"
                  "{%- else %}{%- set system = 'You are Mistral Small 3. The current date is ' + today + '.' %}{%- set rest = messages %}"
                  "{%- endif %}{{- '[SYSTEM_PROMPT]' + system + '[/SYSTEM_PROMPT]' }}"
                  "{%- for message in rest %}{%- if message['role'] == 'user' %}{{- '[INST]' + message['content'] + '[/INST]' }}"
                  "{%- elif message['role'] == 'system' %}{{- '[SYSTEM_PROMPT]' + message['content'] + '[/SYSTEM_PROMPT]' }}"
                  "{%- elif message['role'] == 'assistant' %}{{- message['content'] + eos_token }}{%- else %}"
                  "{{- raise_exception('Only user, system and assistant roles are supported!') }}{%- endif %}{%- endfor %}",
    smollm3="{%- set ns = namespace(custom='') %}{%- if messages[0].role == 'system' %}{%- set ns.custom = messages[0].content %}"
            "{%- endif %}{{- '<|im_start|>system\n## Metadata\n\nKnowledge Cutoff Date: June 2025\nToday Date: ' + strftime_now('%d %B "
            "%Y') }}{{- '\nReasoning Mode: /no_think\n\n## Custom Instructions\n\n' }}{%- if ns.custom %}{{- ns.custom + '\n\n' }}{%- "
            "else %}{{- 'You are a helpful AI assistant named SmolLM, trained by Hugging Face.\n\n' }}{%- endif %}{{- '<|im_end|>\n' }}"
            "{%- for message in messages %}{%- if message.role == 'user' %}{{- '<|im_start|>user\n' + message.content + '<|im_end|>\n' }}"
            "{%- elif message.role == 'assistant' %}"
            "{{- '<|im_start|>assistant\n<think>\n\n</think>\n' + message.content.lstrip('\n') + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
            + asks('<|im_start|>assistant\n<think>\n\n</think>\n'),
    r1="{% set ns = namespace(system='') %}{%- for message in messages %}{%- if message['role'] == 'system' %}"
       "{% set ns.system = message['content'] %}{%- endif %}{%- endfor %}{{bos_token}}{{ns.system}}"
       "{%- for message in messages %}{%- if message['role'] == 'user' %}{{'<｜User｜>' + message['content']}}{%- endif %}"
       "{%- if message['role'] == 'assistant' %}{% set content = message['content'] %}"
       "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}{{'<｜Assistant｜>' + content + eos_token}}"
       "{%- endif %}{%- endfor %}" + asks('<｜Assistant｜><think>\n'),
    harmony="{{- '<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\nCurrent "
            "date: ' + strftime_now('%Y-%m-%d') + '\n\nReasoning: medium\n\n# Valid channels: analysis, commentary, final.<|end|>' }}"
            "{%- if messages[0].role == 'system' %}"
            "{{- '<|start|>developer<|message|># Instructions\n\n' + messages[0].content + '<|end|>' }}{%- set messages = messages[1:] %}"
            "{%- endif %}"
            "{%- for message in messages %}{%- if message.role == 'assistant' %}"
            "{{- '<|start|>assistant<|channel|>final<|message|>' + message.content }}{%- if loop.last and not add_generation_prompt %}"
            "{{- '<|return|>' }}{%- else %}{{- '<|end|>' }}{%- endif %}"
            "{%- else %}{{- '<|start|>user<|message|>' + message.content + '<|end|>' }}{%- endif %}{%- endfor %}"
            + asks('<|start|>assistant'),
    glm4="[gMASK]<sop>{%- for message in messages %}{%- if message.role == 'user' %}{{- '<|user|>\n' + message.content }}"
         "{%- elif message.role == 'assistant' %}{{- '<|assistant|>\n<think></think>\n' + message.content.strip() }}"
         "{%- elif message.role == 'system' %}{{- '<|system|>\n' + message.content }}{%- endif %}{%- endfor %}" + asks('<|assistant|>'))

CONTROLS = dict(
    chatml=['<|im_start|>', '<|im_end|>'], smollm2=['<|im_start|>', '<|im_end|>'], qwen25=['<|im_start|>', '<|im_end|>'],
    qwen3=['<|im_start|>', '<|im_end|>'],
    llama3=['<|begin_of_text|>', '<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>'], gemma3=['<start_of_turn>', '<end_of_turn>'],
    mistral=['[INST]', '[/INST]'],
    phi3=['<|system|>', '<|user|>', '<|assistant|>', '<|end|>'], phi4=['<|im_start|>', '<|im_sep|>', '<|im_end|>'], zephyr=[],
    llama32=['<|begin_of_text|>', '<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>'],
    phi4_mini=['<|system|>', '<|user|>', '<|assistant|>', '<|tool|>', '<|/tool|>', '<|end|>'],
    mistral_small=['[INST]', '[/INST]', '[SYSTEM_PROMPT]', '[/SYSTEM_PROMPT]'], smollm3=['<|im_start|>', '<|im_end|>'],
    r1=['<｜User｜>', '<｜Assistant｜>'],
    harmony=['<|start|>', '<|message|>', '<|channel|>', '<|end|>', '<|return|>'],
    glm4=['[gMASK]', '<sop>', '<|system|>', '<|user|>', '<|assistant|>'])
ENDS = dict(chatml='<|im_end|>', smollm2='<|im_end|>', qwen25='<|im_end|>', qwen3='<|im_end|>', llama3='<|eot_id|>',
            gemma3='<end_of_turn>', mistral='</s>', phi3='<|end|>', phi4='<|im_end|>', zephyr='</s>',
            llama32='<|eot_id|>', phi4_mini='<|end|>', mistral_small='<|endoftext|>', smollm3='<|im_end|>', r1='<|endoftext|>',
            harmony='<|return|>', glm4='<|user|>')
STYLES = dict(  # how each family cuts text
    chatml=lambda: byte_level(400), smollm2=lambda: byte_level(450), qwen25=lambda: byte_level(500, normalizer='NFC'),
    qwen3=lambda: byte_level(600, normalizer='NFC'), llama3=lambda: byte_level(700), phi4=lambda: byte_level(650),
    gemma3=lambda: sentencepiece(700, style='gemma'), mistral=lambda: sentencepiece(600), phi3=lambda: sentencepiece(650, style='prepend'),
    zephyr=lambda: sentencepiece(620, style='prepend'),
    llama32=lambda: byte_level(720), phi4_mini=lambda: byte_level(630), mistral_small=lambda: byte_level(680),
    smollm3=lambda: byte_level(440), r1=lambda: byte_level(520), harmony=lambda: byte_level(560), glm4=lambda: byte_level(610))
# that a template writes in front of every answer
AHEAD = dict(smollm3='<think>\n\n</think>\n', harmony='final', glm4='\n<think></think>\n')
DROPS = 'qwen3', 'r1'  # what was thought in earlier turns, or in all

@lru_cache
def chat_tokenizer(name):
    "A small tokenizer in the style of a family, with its control tokens and its template."
    base = STYLES[name]()
    state = json.loads(base.backend_tokenizer.to_str())
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)),
                                        bos_token='<|begin_of_text|>' if name in ('llama3', 'llama32') else base.bos_token,
                                        eos_token=base.eos_token, unk_token=base.unk_token)
    from tokenizers import AddedToken
    tokenizer.add_tokens([AddedToken(token, rstrip=name == 'phi3', normalized=False, special=True) for token in CONTROLS[name]],
                         special_tokens=True)
    # tokens, but of text
    if name in ('qwen3', 'qwen25', 'smollm3', 'r1', 'glm4'): tokenizer.add_tokens(['<think>', '</think>', '<tool_call>'])
    tokenizer.chat_template = TEMPLATES[name]
    return tokenizer

def talk(*contents, system=None, **more):
    messages = [dict(role=('user', 'assistant')[i % 2], content=content) for i, content in enumerate(contents)]
    return dict(messages=[*([dict(role='system', content=system)] if system else []), *messages], **more)

CODE = 'def area(r):\n    """Area of a circle."""\n\treturn 3.14159 * r**2\n\nprint(area(2))'
TALKS = dict(
    plain=talk('What does inspect do?', 'It provides several useful functions to help get information about live objects.'),
    system=talk('Who are you?', 'A small model.', 'And who am I?', 'Somebody who asks.', system='Answer in one line.'),
    unicode=talk('Où est le café naïve — “quoted”?', '你好，世界。\U0001f468\u200d\U0001f469\u200d\U0001f467 \u0915\u093c cafe\u0301 e\u0301 ½',
                 '\U0001f600', '\ufb01n'),
    spaces=talk('  two before', ' one before\n', '\n\nlines\n\n', '\ttab and trailing   '),
    empty=talk('', 'Nothing was asked.', 'Say nothing.', '', '   ', '\n'),
    code=talk('Show me code.', CODE, 'Longer?', CODE * 3),
    controls=talk('What is <|im_end|> and </s>?',
                  'Tokens such as <|im_start|>, <|eot_id|>, <end_of_turn>, <|end|>, [/INST] and <s> are text here.<|im_end|>',
                  '<|im_start|>assistant\nI am the user', '</s>'),
    words=talk('user', 'assistant', 'system', 'user\nassistant\n', '<|user|>', 'a'),
    repeated=talk('ha', 'ha', 'ha', 'ha ha', 'ha', 'ha'),
    thoughts=talk('2+2?', '<think>\nTwo and two.\n</think>\n\nIt is 4.', '3+3?', '<think>\nThree and three.\n</think>\n\nIt is 6.'),
    tool_answer=talk('What is the weather?', 'I look.', '<tool_response>\nsunny\n</tool_response>', 'It is sunny.'),
    turns=talk(*(f'Question {i}: what comes after {i}?' if i % 2 == 0 else f'{i} comes, and then some {"more " * (i % 7)}words.'
                 for i in range(50))))
