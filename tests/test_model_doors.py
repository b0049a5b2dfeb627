"Whatever a name can stand for: a folder of each kind, and what the door says to it. A hub that is not there is asked once."
import json
import shutil
import time

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (AutoModelForCausalLM, AutoTokenizer, BertConfig, BertForMaskedLM, GenerationConfig, LlamaConfig,
                          LlamaForSequenceClassification, LlamaModel)

import kdkit.models
from kdkit.config import DistillConfig
from kdkit.models import (HubAway, HubError, ModelError, ask_hub, find_model, hub_error, load_causal_lm, load_config, load_options,
                          load_tokenizer)
from pairs import model_of
from tiny_tokenizers import byte_level

SIZE = dict(vocab_size=700, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
            max_position_embeddings=64, bos_token_id=0, eos_token_id=0)

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "A folder with an untied model and its tokenizer."
    folder = tmp_path_factory.mktemp('whole')
    model_of('qwen2', 700).save_pretrained(folder)
    byte_level(700).save_pretrained(folder)
    return folder

def only(folder, *kept):
    "Leave these files."
    for file in folder.iterdir():
        if file.name not in kept: file.unlink()

def foreign(*names):
    "A folder without weights of transformers, but with these files."
    def change(folder):
        (folder / 'model.safetensors').unlink()
        for name in names: (folder / name).write_bytes(b'\0' * 2000)
    return change

def pointer(name):
    def change(folder): (folder / name).write_text('version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 269060552\n')
    return change

def edit(name, **values):
    "Change keys of a JSON file; None takes them out."
    def change(folder):
        known = {**json.loads((folder / name).read_text()), **values}
        (folder / name).write_text(json.dumps({k: v for k, v in known.items() if v is not None}))
    return change

def tensors(make):
    "Change the weights."
    def change(folder):
        save_file({k: v.contiguous() for k, v in make(load_file(folder / 'model.safetensors')).items()}, folder / 'model.safetensors',
                  {'format': 'pt'})
    return change

def filled(name, value):
    def make(weights):
        weights[name].view(-1)[3] = value
        return weights
    return tensors(make)

def adapter(folder):
    only(folder)
    (folder / 'adapter_config.json').write_text(json.dumps(dict(base_model_name_or_path='org/base', peft_type='LORA')))
    save_file({'base_model.model.q.lora_A.weight': torch.zeros(2, 2)}, folder / 'adapter_model.safetensors')

def moved(into):
    "Everything one level down."
    def change(folder):
        files = [*folder.iterdir()]
        (folder / into).mkdir()
        for file in files: shutil.move(file, folder / into / file.name)
    return change

def run_folder(folder):
    moved('student')(folder)
    (folder / 'config.yaml').write_text('seed: 1\n')

def cut_run(folder):
    moved('checkpoint-20')(folder)
    (folder / 'config.yaml').write_text('seed: 1\n')

def sharded(folder):
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size='60KB')
    (folder / 'model.safetensors').unlink(missing_ok=True)
    sorted(folder.glob('model-*.safetensors'))[1].unlink()

def truncated(folder):
    path = folder / 'model.safetensors'
    path.write_bytes(path.read_bytes()[:5000])

def other(model):
    def change(folder):
        (folder / 'model.safetensors').unlink()
        model().save_pretrained(folder)
    return change

def touch(*names):
    def change(folder):
        for name in names: (folder / name).write_text('{}')
    return change

def vision(folder):
    from transformers import LlavaConfig
    only(folder, 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json')
    LlavaConfig().save_pretrained(folder)

FOLDERS = {  # what is there -> (how it came about, words of the sentence)
    'empty': (only, 'holds no config.json (it is empty): name a folder'),
    'documents': (lambda f: (only(f), touch('notes.md')(f)), 'it holds notes.md'),
    'adapter': (adapter, "is an adapter, and its base 'org/base' is not a local folder, and offline mode is on"),
    'gguf': (foreign('model-q4.gguf'), 'GGUF weights (of llama.cpp) only (model-q4.gguf), which'),
    'gguf alone': (lambda f: (only(f), touch('x.gguf')(f)), 'GGUF weights (of llama.cpp) only (x.gguf) and no config.json'),
    'onnx': (foreign('model.onnx'), 'ONNX weights'),
    'tensorflow': (foreign('tf_model.h5'), 'TensorFlow weights'),
    'flax': (foreign('flax_model.msgpack'), 'Flax weights'),
    'as its maker wrote it': (lambda f: (only(f), touch('params.json', 'consolidated.00.pth', 'tokenizer.model')(f)),
                              "the maker's own format"),
    'pipeline': (lambda f: (only(f), touch('model_index.json')(f)), 'is a pipeline of diffusers'),
    'embeddings': (touch('modules.json'), 'is a model of sentence-transformers'),
    'a run': (run_folder, "is the folder of a run: its student is in '"),
    'a run that was cut off': (cut_run, 'checkpoint-20, name one of them'),
    'one level up': (moved('1'), 'holds no config.json, but '),
    'no config': (lambda f: (f / 'config.json').unlink(), 'holds no config.json'),
    'no weights': (lambda f: (f / 'model.safetensors').unlink(), 'holds no weights (model.safetensors)'),
    'pointer for weights': (pointer('model.safetensors'), 'holds model.safetensors only as a pointer of Git LFS: run `git lfs pull`'),
    'a shard is missing': (sharded, 'of its weights (model-00002-of-'),
    'cut off': (truncated, 'holds a damaged model.safetensors (5,000 bytes'),
    'config is no json': (lambda f: (f / 'config.json').write_text('{"model'), 'not a valid JSON'),
    'config is empty': (lambda f: (f / 'config.json').write_text('{}'), 'model_type in its config.json'),
    'of the future': (edit('config.json', model_type='qwen9'), 'does not know (model_type in its config.json): upgrade transformers'),
    'code of its own': (edit('config.json', model_type='own', auto_map=dict(AutoConfig='own.OwnConfig', AutoModelForCausalLM='own.Own')),
                        'brings code of its own: read it, then set trust_remote_code'),
    'images': (vision, 'decoder-only'),
    'encoder': (other(lambda: BertForMaskedLM(BertConfig(vocab_size=700, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                                                         intermediate_size=32))), 'decoder-only'),
    'classifier': (other(lambda: LlamaForSequenceClassification(LlamaConfig(**SIZE))),
                   'LlamaForSequenceClassification, which does not say what comes next'),
    'no head': (other(lambda: LlamaModel(LlamaConfig(**SIZE))), 'lacks 1 of its 21 tensors (lm_head.weight)'),
    'a layer is missing': (tensors(lambda w: {k: v for k, v in w.items() if '.layers.1.' not in k}),
                           'lacks 12 of its 27 tensors (model.layers.1.'),
    'another shape': (edit('config.json', vocab_size=800),
                      'tensors of other shapes than its config.json says (lm_head.weight: [700, 32] instead of [800, 32], model.embed'),
    'NaN': (filled('model.layers.1.mlp.up_proj.weight', float('nan')), "hold NaN: model.layers.1.mlp.up_proj.weight. Download it again"),
    'inf': (filled('lm_head.weight', float('inf')), 'hold inf: lm_head.weight'),
}

@pytest.mark.parametrize('kind', FOLDERS)
def test_a_folder_that_is_no_model_is_named_for_what_it_is(whole, tmp_path, kind):
    change, says = FOLDERS[kind]
    folder = shutil.copytree(whole, tmp_path / 'm')
    change(folder)
    with pytest.raises(ModelError) as raised: load_causal_lm(str(folder), role='student_model')
    said = str(raised.value)
    assert says in said and 'student_model' in said and '\n' not in said and len(said) < 500, said

TOKENIZERS = {
    'none': (lambda f: [(f / name).unlink() for name in ('tokenizer.json', 'tokenizer_config.json')],
             'holds no tokenizer (tokenizer.json): copy those of the model'),
    'pointer': (pointer('tokenizer.json'), 'pointer of Git LFS'),
    'no json': (lambda f: (f / 'tokenizer.json').write_text('{"version'), 'the tokenizer of'),
    'adapter': (adapter, 'is an adapter'),
    'nothing': (only, 'holds no config.json'),
}

@pytest.mark.parametrize('kind', TOKENIZERS)
def test_a_tokenizer_that_is_none(whole, tmp_path, kind):
    change, says = TOKENIZERS[kind]
    folder = shutil.copytree(whole, tmp_path / 'm')
    change(folder)
    with pytest.raises(ModelError) as raised: load_tokenizer(str(folder), 'student_model')
    assert says in str(raised.value) and 'student_model' in str(raised.value) and '\n' not in str(raised.value)

def pickled(folder):
    torch.save(load_file(folder / 'model.safetensors'), folder / 'pytorch_model.bin')
    (folder / 'model.safetensors').unlink()

GOOD = {
    'as saved': lambda f: None, 'pickled': pickled,
    'in shards': lambda f: AutoModelForCausalLM.from_pretrained(f).save_pretrained(f, max_shard_size='60KB'),
    'tied, without a head': other(lambda: model_of('llama', 700)),
    'one tensor more': tensors(lambda w: {**w, 'model.layers.0.attn.bias': torch.ones(2, 2)}),
    'more folders': lambda f: (f / 'onnx').mkdir(),
}

@pytest.mark.parametrize('kind', GOOD)
def test_what_is_a_model_loads(whole, tmp_path, kind):
    folder = shutil.copytree(whole, tmp_path / 'm')
    GOOD[kind](folder)
    assert load_causal_lm(str(folder)).num_parameters() > 0

def test_a_path_is_written_in_many_ways(whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path / 'home' / 'm' / 'inner')
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    monkeypatch.chdir(tmp_path / 'home')
    for name in ('~/m/inner', 'm/inner', 'm/inner/', './m/inner', tmp_path / 'home' / 'm' / 'inner'):
        assert load_causal_lm(name).num_parameters() and load_tokenizer(name).is_fast
    options = dict(subfolder='inner')
    assert load_causal_lm('m', **options).num_parameters() and load_tokenizer('m', **options).is_fast

def test_a_head_may_rule_out_vacant_rows(tmp_path):
    from transformers import PhiConfig, PhiForCausalLM
    model = PhiForCausalLM(PhiConfig(**SIZE))
    with torch.no_grad(): model.lm_head.bias[650:] = -torch.inf
    model.save_pretrained(tmp_path)
    assert load_causal_lm(str(tmp_path)).lm_head.bias[-1] == -torch.inf

def test_weights_too_large_for_half_precision(tmp_path):
    model = model_of('llama', 700)
    with torch.no_grad(): model.model.norm.weight[0] = 1e5
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match='too large for float16: model.norm.weight'):
        load_causal_lm(str(tmp_path), torch.float16, 'teacher_model')
    load_causal_lm(str(tmp_path), torch.bfloat16)

# -- names -------------------------------------------------------------------------------------------------------------

NAMES = {'': 'is not given', './nowhere': 'does not exist', '/no/where': 'does not exist', '~/nowhere': 'does not exist',
         'a b': 'neither a local folder nor an id', 'a/b/c': 'nor an id',
         'https://huggingface.co/org/name': 'is an address: give the id', 'org/name@v1': 'teacher_revision',
         'org/name:sub': 'teacher_subfolder', 'org/name': 'offline mode is on (HF_HUB_OFFLINE)',
         'gpt2': 'holds no whole copy'}

@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('load', [load_config, load_tokenizer, load_causal_lm])
def test_a_name_of_nothing(monkeypatch, name, load):
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(ModelError, match=NAMES[name].replace('(', r'\(').replace(')', r'\)')): load(name, role='teacher_model')

def test_a_file_is_not_its_folder(whole):
    with pytest.raises(ModelError, match='is a file: give the folder'): load_config(str(whole / 'model.safetensors'))

def test_a_folder_has_no_revision_and_may_lack_a_subfolder(whole):
    with pytest.raises(ModelError, match='student_revision'): load_config(str(whole), 'student_model', revision='v1')
    with pytest.raises(ModelError, match='student_subfolder'): load_config(str(whole), 'student_model', subfolder='nowhere')

def test_options_of_a_side():
    config = DistillConfig(teacher_revision='v1', student_subfolder='best', cache_dir='c', trust_remote_code=True)
    assert load_options(config, 'teacher') == dict(cache_dir='c', trust_remote_code=True, revision='v1')
    assert load_options(config, 'student') == dict(cache_dir='c', trust_remote_code=True, subfolder='best')
    assert load_options(DistillConfig(), 'teacher') == dict(trust_remote_code=False)

# -- the hub -----------------------------------------------------------------------------------------------------------

class Answer:
    "Of a server."
    def __init__(self, status): self.status_code, self.headers = status, {}

def failure(kind, status=None):
    "An error of huggingface_hub without the request that made it."
    error = kind.__new__(kind)
    error.response = status and Answer(status)
    return error

known = huggingface_hub.errors
FAILURES = {
    'gated': (failure(known.GatedRepoError, 403), HubError,
              'is gated: accept its licence at https://huggingface.co/org/name, then log in with `hf auth login` or set HF_TOKEN'),
    'missing': (failure(known.RepositoryNotFoundError, 404), HubError,
                'is neither a local folder nor on the hub (https://huggingface.co): check the name, or log in'),
    'revision': (failure(known.RevisionNotFoundError, 404), HubError,
                 "has no revision 'v9' on the hub: its branches and tags are listed at https://huggingface.co/org/name/tree/main"),
    'disabled': (failure(known.DisabledRepoError, 403), HubError, 'was disabled'),
    'too often': (failure(known.HfHubHTTPError, 429), HubAway, "hub's rate limit is reached (429)"),
    'bad token': (failure(known.HfHubHTTPError, 401), HubError, 'does not accept your token'),
    'forbidden': (failure(known.HfHubHTTPError, 403), HubError, 'may not read it (403)'),
    'broken': (failure(known.HfHubHTTPError, 503), HubAway, 'is out of order (503)'),
    'offline': (known.OfflineModeIsEnabled(), HubAway, 'offline mode is on'),
    'unreachable': (ConnectionError(), HubAway, 'cannot be reached'),
}

def endpoint(monkeypatch): monkeypatch.setattr(huggingface_hub.constants, 'ENDPOINT', 'https://huggingface.co')

@pytest.mark.parametrize('kind', FAILURES)
def test_failures_of_the_hub_are_told_apart_however_deep(monkeypatch, kind):
    endpoint(monkeypatch)
    error, expected, says = FAILURES[kind]
    for wrapped in (error, RuntimeError('outer')):
        if wrapped is not error: wrapped.__cause__ = error
        found = hub_error(wrapped, "teacher_model 'org/name'", 'org/name', revision='v9')
        assert type(found) is expected and says in str(found) and "teacher_model 'org/name'" in str(found), found
    assert hub_error(failure(known.RemoteEntryNotFoundError, 404), 'x',
                     'org/name') is None and hub_error(KeyError(), 'x', 'org/name') is None

@pytest.mark.parametrize('kind', FAILURES)
def test_a_failing_hub_ends_in_a_sentence(monkeypatch, tmp_path, kind):
    endpoint(monkeypatch)
    error, expected, says = FAILURES[kind]
    monkeypatch.setattr(kdkit.models.time, 'sleep', lambda seconds: None)
    def fails(self, name, **options): raise error
    monkeypatch.setattr(huggingface_hub.HfApi, 'model_info', fails)
    monkeypatch.setattr(huggingface_hub.HfApi, 'dataset_info', fails)
    with pytest.raises(expected) as raised: load_config('org/name', 'teacher_model', cache_dir=str(tmp_path), revision='v9')
    assert says in str(raised.value)
    assert (f'the cache ({tmp_path}) holds no whole copy' in str(raised.value)) == (expected is HubAway)
    with pytest.raises(expected, match='org/name'): ask_hub('org/name', 'dataset')

def test_what_the_hub_lists_is_looked_at_before_anything_is_downloaded(monkeypatch):
    class File:
        def __init__(self, name): self.rfilename = name
    class Info: siblings = [File(name) for name in ('README.md', 'model-q4.gguf', 'inner/config.json', 'inner/model.safetensors')]
    monkeypatch.setattr(huggingface_hub.HfApi, 'model_info', lambda *args, **options: Info)
    with pytest.raises(ModelError, match="but 'inner' does: name that as the subfolder"): load_config('org/name')
    with pytest.raises(ModelError, match="has no folder 'outer' on the hub"): load_config('org/name', subfolder='outer')
    with pytest.raises(ModelError, match='holds no tokenizer'): load_tokenizer('org/name', subfolder='inner')
    assert find_model('org/name', 'model', subfolder='inner').files == ['config.json', 'model.safetensors']

def test_a_copy_in_the_cache_serves_without_a_hub(whole, tmp_path, monkeypatch):
    repo = tmp_path / 'models--org--name'
    shutil.copytree(whole, repo / 'snapshots' / ('0' * 40))
    (repo / 'refs').mkdir()
    for ref in ('main', 'v1'): (repo / 'refs' / ref).write_text('0' * 40)
    monkeypatch.setattr(huggingface_hub.constants, 'ENDPOINT', 'http://127.0.0.1:9')
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', False)
    for revision in (None, 'v1', '0' * 40):
        options = dict(cache_dir=str(tmp_path), **dict(revision=revision) if revision else {})
        assert load_causal_lm('org/name', **options).num_parameters() and load_tokenizer('org/name', **options).is_fast
    with pytest.raises(HubAway, match='holds no whole copy'): load_causal_lm('org/name', revision='v2', cache_dir=str(tmp_path))
    (repo / 'snapshots' / ('0' * 40) / 'model.safetensors').unlink()
    with pytest.raises(HubAway, match='holds no whole copy'): load_causal_lm('org/name', cache_dir=str(tmp_path))

def test_a_hub_that_lets_us_wait_is_not_asked_again_at_once(monkeypatch):
    asked = []
    def slow(self, name, timeout, **options):
        asked.append(name)
        time.sleep(timeout)
        raise TimeoutError
    monkeypatch.setattr(huggingface_hub.HfApi, 'model_info', slow)
    monkeypatch.setattr(kdkit.models, 'kept_waiting', {})
    for _ in range(3):
        with pytest.raises(HubAway): ask_hub('org/name', timeout=.1)
    assert len(asked) == 1
    when, ended = kdkit.models.kept_waiting[huggingface_hub.constants.ENDPOINT]
    kdkit.models.kept_waiting[huggingface_hub.constants.ENDPOINT] = when - 61, ended
    with pytest.raises(HubAway): ask_hub('org/name', timeout=.1)
    assert len(asked) == 2

# -- what a model says about generation --------------------------------------------------------------------------------

GENERATION = {
    'top_p without sampling': dict(top_p=.6, temperature=.9, eos_token_id=[5, 7]),
    'so said': dict(do_sample=False, top_k=3, eos_token_id=[5, 7]),
    'beams': dict(length_penalty=2., early_stopping=True, eos_token_id=[5, 7]), 'pad': dict(pad_token_id=-1, eos_token_id=[5, 7]),
    'two answers': dict(num_return_sequences=3, eos_token_id=[5, 7], max_length=40),
    'a cache that is gone': dict(cache_implementation='no_such', eos_token_id=[5, 7], max_length=40),
}

@pytest.mark.parametrize('kind', GENERATION)
def test_settings_for_generation_that_contradict_each_other_are_mended(whole, tmp_path, kind):
    folder = shutil.copytree(whole, tmp_path / 'm')
    (folder / 'generation_config.json').write_text(json.dumps(GENERATION[kind]))
    model = load_causal_lm(str(folder))
    model.save_pretrained(tmp_path / 'saved')
    saved = GenerationConfig.from_pretrained(tmp_path / 'saved')
    assert saved.eos_token_id == [5, 7] and not saved.do_sample and saved.max_length == GENERATION[kind].get('max_length', saved.max_length)
    AutoModelForCausalLM.from_pretrained(tmp_path / 'saved')

def test_sound_settings_for_generation_are_left_alone(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / 'm')
    (folder / 'generation_config.json').write_text(json.dumps(dict(do_sample=True, top_p=.6, temperature=.9, eos_token_id=[5, 7])))
    config = load_causal_lm(str(folder)).generation_config
    assert (config.do_sample, config.top_p, config.temperature, config.eos_token_id) == (True, .6, .9, [5, 7])

def test_settings_for_generation_inside_the_model_config(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / 'm')
    (folder / 'generation_config.json').unlink()
    edit('config.json', max_length=20, top_p=.5, temperature=.7, no_repeat_ngram_size=2)(folder)
    load_causal_lm(str(folder)).save_pretrained(tmp_path / 'saved')
    AutoModelForCausalLM.from_pretrained(tmp_path / 'saved')

# -- a student that brings its code ------------------------------------------------------------------------------------

CODE = '''
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = 'own'

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
'''

@pytest.fixture(scope='module')
def own(tmp_path_factory):
    "A folder with a student whose classes are in it, and its tokenizer."
    folder = tmp_path_factory.mktemp('own')
    model_of('llama', 700).save_pretrained(folder)
    byte_level(700).save_pretrained(folder)
    (folder / 'own.py').write_text(CODE)
    edit('config.json', model_type='own', architectures=['OwnForCausalLM'],
         auto_map=dict(AutoConfig='own.OwnConfig', AutoModelForCausalLM='own.OwnForCausalLM'))(folder)
    return folder

def test_a_student_with_its_own_code_is_trained_stopped_resumed_saved_and_measured(own, pair, tmp_path):
    from kdkit.run import distill, evaluate_run
    values = dict(pair, student_model=str(own), trust_remote_code=True, output_dir=str(tmp_path / 'run'), max_length=64, batch_size=2,
                  max_steps=8, eval_steps=2, max_eval_rows=4,
                  early_stopping=True, early_stopping_warmup=0, patience=1, min_delta=100.)  # it stops at its second measuring
    with pytest.raises(ModelError, match='set trust_remote_code'): distill(dict(values, trust_remote_code=False))
    assert distill(values)['steps'] == 4
    student = tmp_path / 'run' / 'student'
    assert (student / 'own.py').exists()
    model = AutoModelForCausalLM.from_pretrained(student, trust_remote_code=True)
    assert type(model).__name__ == 'OwnForCausalLM' and AutoTokenizer.from_pretrained(student).is_fast
    after = evaluate_run(str(student), pair['dataset'], trust_remote_code=True, max_length=64, max_eval_rows=4)
    assert after['student_after']['parameters'] == model.num_parameters()
    (tmp_path / 'run' / 'report.json').unlink()
    assert distill(values)['steps'] >= 4  # goes on from a checkpoint
    # what was saved can be a student again
    again = distill(dict(values, student_model=str(student), output_dir=str(tmp_path / 'more'), max_steps=1))
    assert again['steps'] == 1
