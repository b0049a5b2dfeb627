"""Every family of transformers that has a causal language model, small and random, through kdkit from door to door.

    python tests/families.py               all of them, as a table
    python tests/families.py bloom opt     these
"""
import contextlib
import io
import math
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from kdkit.capture import anatomy, capture_attention
from kdkit.config import DistillConfig
from kdkit.evaluation import compute_perplexity, eval_batches
from kdkit.models import ModelError
from kdkit.prepare import prepare_text
from kdkit.run import make_framework, make_trainer
from kdkit.trainer import last_complete_checkpoint
from pairs import model_of, save_text
from tiny_tokenizers import byte_level, sentencepiece

# -- small configs -----------------------------------------------------------------------------------------------------

SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48, head_dim=8,
             max_position_embeddings=256, num_experts=4, num_local_experts=4, n_routed_experts=4, num_experts_per_tok=2,
             moe_intermediate_size=16,
             encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48,
             decoder_ffn_dim=48,
             num_encoder_layers=2, num_decoder_layers=2, num_encoder_attention_heads=4, num_decoder_attention_heads=4,
             bos_token_id=0, eos_token_id=0, pad_token_id=0)
# latent attention
MLA = dict(q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8, head_dim=8, num_key_value_heads=4)
GROUPS = dict(n_group=1, topk_group=1)
INDEXER = dict(index_topk=64, index_head_dim=8, index_n_heads=2)
LINEAR = dict(linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=8, linear_value_head_dim=8)
MAMBA2 = dict(mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8, mamba_chunk_size=16)
GEMMA4 = dict(vocab_size_per_layer_input=700, hidden_size_per_layer_input=8, layer_types=['sliding_attention', 'full_attention'])
HYBRID = dict(LINEAR, layer_types=['linear_attention', 'full_attention'], shared_expert_intermediate_size=16)
QWEN4 = dict(HYBRID, layer_types=['linear_attention', 'qwen_sparse_attention'], hc_lowrank=8, ple_embed_dim=16, ngram_vocab_size_base=97,
             make_ngram_vocab_size_divisible_by=8, split_ngram_parts=1, indexer_n_heads=2, indexer_kv_heads=1, indexer_head_dim=8,
             indexer_budget=64, indexer_compress_ratio=2)
DOTS3 = dict({**MLA, **GROUPS, **INDEXER}, layer_types=['indexed_attention', 'sliding_attention'], mlp_layer_types=['dense', 'sparse'],
             shared_experts_intermediate_size=16, head_dim=16, per_layer_config={1: dict(num_attention_heads=4)})
SPECIAL = {  # what a family needs besides
    'axk1': dict(MLA, **GROUPS), 'axk2': dict(MLA, **INDEXER, mlp_layer_types=['dense', 'sparse']), 'youtu': dict(MLA, pad_token_id=None),
    'minicpm3': dict(MLA, dim_model_base=16),
    'deepseek_v2': dict(MLA, first_k_dense_replace=1), 'deepseek_v3': dict(MLA, **GROUPS, first_k_dense_replace=1),
    'deepseek_v32': dict(MLA, **GROUPS, **INDEXER, mlp_layer_types=['dense', 'sparse']),
    'glm4_moe_lite': dict(MLA, mlp_layer_types=['dense', 'sparse']),
    'glm_moe_dsa': dict(MLA, **INDEXER, mlp_layer_types=['dense', 'sparse']), 'dots1': dict(n_shared_experts=1, first_k_dense_replace=1),
    'kimi_linear': dict(MLA, layer_types=['linear_attention', 'full_attention'], mlp_layer_types=['dense', 'sparse'], linear_head_dim=8,
                        linear_num_heads=4,
                        num_experts_per_token=2),
    'longcat_flash': dict(MLA, num_layers=2, ffn_hidden_size=48, expert_ffn_hidden_size=16, moe_topk=2, zero_expert_num=2),
    'bamba': dict(MAMBA2, attn_layer_indices=[1]),
    'granitemoehybrid': dict(MAMBA2, layer_types=['linear_attention', 'full_attention'], shared_intermediate_size=32),
    'falcon_h1': dict(MAMBA2, mamba_d_ssm=64), 'nemotron_h': dict(mamba_num_heads=4, mamba_head_dim=16, ssm_state_size=8, n_groups=1,
                                                                  chunk_size=16),
    'mamba2': dict(num_heads=8, head_dim=8, n_groups=1, state_size=8, chunk_size=16),
    'codegen': dict(rotary_dim=8), 'gptj': dict(rotary_dim=8), 'gpt_neo': dict(attention_types=[[['global', 'local'], 1]], window_size=8),
    'falcon': dict(num_kv_heads=4), 'dbrx': dict(d_model=32, n_heads=4, n_layers=2, max_seq_len=256,
                                                 attn_config=dict(kv_n_heads=2, rope_theta=10000., clip_qkv=8),
                                                 ffn_config=dict(ffn_hidden_size=32, moe_num_experts=4, moe_top_k=2)),
    'cohere_compass_text': dict(layer_types=['full_attention', 'sliding_attention'], rope_parameters=dict.fromkeys(
        ('full_attention', 'sliding_attention'), dict(rope_type='default', rope_theta=10000., mrope_section=[1, 1, 2]))),
    'gemma4_text': GEMMA4, 'gemma4_unified_text': GEMMA4, 'gemma4': dict(text_config=GEMMA4), 'gemma4_unified': dict(text_config=GEMMA4),
    'gemma3n_text': dict(num_hidden_layers=4, layer_types=['sliding_attention', 'full_attention'] * 2, num_kv_shared_layers=2,
                         intermediate_size=48, hidden_size_per_layer_input=8,
                         laurel_rank=8, activation_sparsity_pattern=[0.] * 4),
    'jamba': dict(attn_layer_period=2, attn_layer_offset=1, mamba_dt_rank=4, mamba_d_state=4, use_mamba_kernels=False),
    'lfm2_moe': dict(layer_types=['conv', 'full_attention'], num_dense_layers=1),
    'qwen3_5_text': HYBRID, 'qwen3_5_moe_text': HYBRID, 'qwen3_next': HYBRID, 'qwen3_5': dict(text_config=HYBRID),
    'qwen3_5_moe': dict(text_config=HYBRID),
    'qwen4_exp_text': QWEN4, 'qwen4_exp': dict(text_config=QWEN4),
    'qwen2_moe': dict(shared_expert_intermediate_size=32), 'recurrent_gemma': dict(num_hidden_layers=3, lru_width=32),
    'reformer': dict(is_decoder=True, attn_layers=['local', 'lsh'], attention_head_size=8, axial_pos_embds=False, hash_seed=1,
                     feed_forward_size=48,
                                                           local_attn_chunk_length=16, lsh_attn_chunk_length=16, num_buckets=2),
                                                           'xmod': dict(default_language='en_XX'),
    'xlstm': dict(hidden_size=128, embedding_dim=128, num_heads=4, num_blocks=2, chunk_size=16), 'xlnet': dict(d_head=8, d_inner=48),
    'zamba': dict(num_hidden_layers=3, layers_block_type=['linear_attention', 'hybrid', 'hybrid'], attention_hidden_size=64,
                  attention_head_dim=16, mamba_dt_rank=4, mamba_d_state=4,
                  n_mamba_heads=2, use_mamba_kernels=False, num_key_value_heads=4),
    'zamba2': dict(num_hidden_layers=3, layers_block_type=['linear_attention', 'hybrid', 'hybrid'], attention_hidden_size=64,
                   attention_head_dim=16, n_mamba_heads=4,
                   mamba_headdim=16, mamba_d_state=8, chunk_size=16, adapter_rank=4, use_mamba_kernels=False, num_key_value_heads=4,
                   hybrid_layer_ids=[1, 2]),
    'bailing_hybrid': dict(MLA, layer_types=['linear_attention', 'full_attention'], mlp_layer_types=['dense', 'sparse'], linear_head_dim=8,
                           linear_num_heads=4,
                           num_experts_per_token=2, num_expert_group=1, topk_group=1, layer_group_size=2),
    'dots3_note_text': DOTS3, 'dots3_note': dict(text_config=DOTS3), 'lfm3': dict(layer_types=['conv', 'full_attention']),
    'dory': dict(num_hidden_layers=6, layer_types=['sliding_attention', 'mlp'] * 2 + ['full_attention', 'mlp'], n_input_layers=2,
                 n_recurrent_layers=2, n_output_layers=2),
    'sarvam_mla': dict(MLA, **GROUPS, first_k_dense_replace=1), 'moshi': dict(audio_vocab_size=64, ffn_dim=48),
    'fuyu': dict(text_config=dict(model_type='persimmon', hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                                  intermediate_size=48)),
    'gemma3': dict(vision_config=dict(model_type='siglip_vision_model', hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                                      intermediate_size=48)),
    'zaya': dict(num_experts_per_tok=1, router_hidden_size=16), 'gpt_oss': dict(sliding_window=8),
    'xglm': dict(ffn_dim=48), 'opt': dict(ffn_dim=48, word_embed_proj_dim=32), 'ctrl': dict(dff=48),
}
VARIANTS = {  # other shapes of a family: name -> (family, sizes)
    'bert (decoder)': ('bert', dict(is_decoder=True)), 'bart (decoder)': ('bart', dict(is_decoder=True, is_encoder_decoder=False)),
    'falcon (alibi)': ('falcon', dict(alibi=True)), 'falcon (new)': ('falcon', dict(new_decoder_architecture=True, num_kv_heads=2)),
    'opt (350m)': ('opt', dict(ffn_dim=48, word_embed_proj_dim=16, do_layer_norm_before=False)),
    'llama (one head)': ('llama', dict(num_attention_heads=1, num_key_value_heads=1)),
}
NOT_SMALL = {  # family -> why it is not built here
    'gemma4_assistant': "a drafter, which reads another model's states and no text",
    'gemma4_unified_assistant': "a drafter, which reads another model's states and no text",
    'gemma3n': 'its picture tower is made by the package timm, which is no requirement; its text model is gemma3n_text',
    'blt': 'reads bytes with five models in one, 96 million parameters at the least',
    'got_ocr2': 'its picture tower alone has 400 million parameters',
    'dots3_note': 'its sizes of single layers cannot be made fewer from outside; its text model is dots3_note_text',
    'moss_transcribe_diarize': 'a speech model of 600 million parameters at the least',
    'musicgen': 'text encoder, audio codec and decoder in one: an encoder-decoder',
    'musicgen_melody': 'text encoder, audio codec and decoder in one: an encoder-decoder',
}
UNREPEATABLE = {'reformer'}  # draws a new seed of torch's in every training step, so that no run of it can be repeated

def small_config(name: str, **sizes):
    "A family's config with sizes that a test can afford."
    family, special = VARIANTS.get(name, (name, {}))
    special = {**SPECIAL.get(family, {}), **special}
    if 'vocab_size' in sizes: sizes['unpadded_vocab_size'] = sizes['vocab_size']
    if 'text_config' in special: special['text_config'] = {**special['text_config'], 'vocab_size': sizes.get('vocab_size', 700)}
    small = small_sizes(CONFIG_MAPPING[family], **sizes)
    return CONFIG_MAPPING[family](**{**small, **{k: {**small[k], **v} if isinstance(v, dict) and k in small else v
                                                 for k, v in special.items()}})

def small_sizes(kind, **sizes) -> dict:
    "What of SMALL a config class has, and of the configs inside it."
    known = {*kind().to_dict(), *kind.attribute_map}
    inside = {name: small_sizes(part, **sizes) for name, part in kind.sub_configs.items() if part is not transformers.AutoConfig}
    return {**{k: v for k, v in {**SMALL, **sizes}.items() if k in known}, **inside}

def small_model(name: str, vocab_size: int, seed: int = 0):
    "A random model of a family, with logits up to 15."
    torch.manual_seed(seed)
    config = small_config(name, vocab_size=vocab_size)
    with torch.device('meta'): parameters = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if parameters > 5e7: raise ValueError(f'{parameters:,} parameters are not small')
    model = AutoModelForCausalLM.from_config(config).eval()
    if (head := model.get_output_embeddings()) is not None:  # as large as a trained model's: a cap or a scale that is left out must show
        with torch.no_grad(): head.weight *= 15 / model(input_ids=torch.arange(8)[None]).logits.abs().max()
    return model

def every_name() -> list:
    "All families of this version of transformers, and the variants."
    return [*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *VARIANTS]

# -- one family through kdkit --------------------------------------------------------------------------------------------

OPTIONS = dict(max_length=48, batch_size=4, max_steps=4, eval_steps=2, logging_steps=1, max_eval_rows=4, learning_rate=1e-3,
               use_curriculum=False, pack=False)

@lru_cache
def paired_text() -> dict:
    "Text for two tokenizers, paired once."
    folder = Path(tempfile.mkdtemp(prefix='kdkit-families-'))
    tokenizers = dict(teacher=byte_level(700), student=sentencepiece(600))
    for side, tokenizer in tokenizers.items():
        model_of('llama', len(tokenizer)).save_pretrained(folder / side)
        tokenizer.save_pretrained(folder / side)
    names = {f'{side}_model': str(folder / side) for side in tokenizers}
    return prepare_text(DistillConfig(**names, dataset=save_text(folder, 24), eval_fraction=.2, **OPTIONS))

def save_family(name: str, folder: Path) -> dict:
    "A teacher and a student of one family as folders."
    tokenizers = dict(teacher=byte_level(700), student=sentencepiece(600))
    for seed, (side, tokenizer) in enumerate(tokenizers.items()):
        small_model(name, len(tokenizer), seed).save_pretrained(folder / side)
        tokenizer.save_pretrained(folder / side)
    return {f'{side}_model': str(folder / side) for side in tokenizers}

def direct_bits(model, batches, side) -> float:
    "Bits per byte from the model's own logits."
    prefix, nats, n_bytes = '' if side == 'student' else 'teacher_', 0., 0
    with torch.no_grad():
        for batch in batches:
            ids, mask = batch[prefix + 'input_ids'], batch[prefix + 'attention_mask']
            logits = model(input_ids=ids, attention_mask=mask).logits.double().log_softmax(-1)
            labels = ids.masked_fill(mask == 0, -100) if side == 'teacher' else batch['labels']
            nats -= logits[:, :-1].gather(-1, labels[:, 1:, None].clamp_min(0))[..., 0][labels[:, 1:] != -100].sum().item()
            n_bytes += batch['n_bytes'].sum().item()
    return nats / math.log(2) / n_bytes

@torch.no_grad()
def compare_maps(model, batch, prefix: str = '') -> str:
    "Whether the maps that are seen are those that the model hands out itself when all of it is eager; looking must change nothing."
    inputs = dict(input_ids=batch[prefix + 'input_ids'], attention_mask=batch[prefix + 'attention_mask'])
    usual, parts, seen = model.config._attn_implementation, anatomy(model), {}
    layers = [*parts.heads]
    if not layers: return 'none'
    for implementation in (usual, 'eager'):
        model.config._attn_implementation = implementation
        before = model(**inputs).logits
        with capture_attention(model, layers) as captured: after = model(**inputs).logits
        assert torch.equal(before, after), 'looking changed the logits'
        seen[implementation] = before, captured
    asked = model(**inputs, output_attentions=True)
    model.config._attn_implementation = usual
    handed = [layer for layer in getattr(asked, 'attentions', None) or () if isinstance(layer, torch.Tensor) and layer.dim() == 4]
    if not handed: return 'unsaid'
    if len(handed) == parts.layers: handed = [handed[layer] for layer in layers]
    one_each = len(handed) == len(layers)  # or a layer attends more than once: LongCat has two attentions in it, HRM and Dory run it again
    everywhere = torch.arange(inputs['input_ids'].shape[1]).repeat(len(inputs['input_ids']), 1)
    reads = inputs['attention_mask'][:, None, :, None] == 1
    for logits, captured in seen.values():
        if not torch.allclose(logits, asked.logits, atol=1e-3): continue  # eager computes something else: a cap on the scores
        for at, layer in enumerate(layers):
            worst = min(((captured[layer](everywhere) - whole) * reads).abs().max()
                        for whole in (handed[at:at + 1] if one_each else handed))
            assert worst < 1e-5, f'layer {layer}: the map that was seen differs by {worst} from the one handed out'
    return 'equal'

def trained(config: DistillConfig, folder: Path, resume: str|None = None):
    "The framework after the run's steps, which all have to be finite."
    trainer = make_trainer(make_framework(config, paired_text()), dict(eval_strategy='no'), paired_text(), folder, 'family')
    before = [p.detach().clone() for p in trainer.model.student_model.parameters()]
    trainer.train(resume_from_checkpoint=resume)
    assert trainer.finite_steps.skipped == 0, 'a step was not finite'
    assert all(p.isfinite().all() for p in trainer.model.parameters()), 'a weight is not finite'
    assert any(not torch.equal(p, q) for p, q in zip(trainer.model.student_model.parameters(), before)), 'nothing was learnt'
    return trainer.model

def examine(name: str, resume: bool = True) -> dict:
    "What kdkit makes of a family: one short word a column, and the sentence where it refuses."
    row = dict(family=name, built='', loads='', bits='', maps='', default='', seed='', resume='', sentence='')
    def refused(column, error):
        line = str(error).replace(str(folder), '…')
        assert '\n' not in line and len(line) < 400, 'a refusal is one line'
        row[column], row['sentence'] = 'refused', line
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        if name in NOT_SMALL: return dict(row, built='no', sentence=NOT_SMALL[name])
        try: names = save_family(name, folder)
        except Exception as error: return dict(row, built='no', sentence=f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")
        row['built'] = 'yes'
        config = DistillConfig(**names, output_dir=str(folder / 'run'), **OPTIONS)
        try: framework = make_framework(config, paired_text())
        except ModelError as error:
            refused('loads', error)
            return row
        row['loads'] = 'yes'
        batches = eval_batches(paired_text()['held_out'], framework, 4)
        for side, model in dict(teacher=framework.teacher_model, student=framework.student_model).items():
            measured, direct = compute_perplexity(model, batches, side)['bits_per_byte'], direct_bits(model, batches, side)
            assert abs(measured - direct) < 1e-4 * direct, f'{side}: {measured} bits per byte, directly {direct}'
        row['bits'], row['maps'] = 'agree', compare_maps(framework.student_model, batches[0])
        trained(replace(config, max_steps=2), folder / 'default')
        row['default'] = 'trains'
        config = DistillConfig(**names, output_dir=str(folder / 'seed'), recipe='seed', **OPTIONS)
        try: make_framework(config, paired_text())
        except ModelError as error:
            refused('seed', error)
            config = replace(config, alpha_attention=0.)
        else: row['seed'] = 'trains'
        whole = trained(config, folder / 'seed')
        if not resume: return row
        whole.save_student(folder / 'saved')
        again = AutoModelForCausalLM.from_pretrained(folder / 'saved')
        cut = folder / 'cut'
        cut.mkdir()
        (folder / 'seed' / 'checkpoint-2').rename(cut / 'checkpoint-2')
        continued = trained(config, cut, last_complete_checkpoint(cut)).student_model
        for (key, p), (_, q), (_, r) in zip(*(m.state_dict().items() for m in (whole.student_model, again, continued))):
            assert torch.equal(p, q), f'{key} was saved otherwise'
            assert torch.equal(p, r) or name in UNREPEATABLE, f'{key} is another after resuming'
        row['resume'] = 'another' if name in UNREPEATABLE else 'same'
    return row

# -- the table -------------------------------------------------------------------------------------------------------------

def main(names: list) -> int:  # how many families broke
    "Print the table."
    transformers.utils.logging.set_verbosity_error(); transformers.utils.logging.disable_progress_bar(); warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    columns = 'family', 'built', 'loads', 'bits', 'maps', 'default', 'seed', 'resume'
    print(f'transformers {transformers.__version__}, torch {torch.__version__}')
    print(*(f'{c:<{24 if c == "family" else 9}}' for c in columns), 'sentence', flush=True)
    rows, started = [], time.time()
    for name in names or every_name():
        try:
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()): row = examine(name)
        except Exception as error:
            at = traceback.extract_tb(error.__traceback__)[-1]
            row = dict(family=name, broke=True,
                       sentence=f"BROKE: {type(error).__name__}: {' '.join(str(error).split())[:200]} "
                                f"({Path(at.filename).name}:{at.lineno})")
        rows.append(row)
        print(*(f'{row.get(c, ""):<{24 if c == "family" else 9}}' for c in columns), row['sentence'], flush=True)
    count = lambda test: sum(1 for row in rows if test(row))
    print(f"{len(rows)} families in {time.time() - started:.0f} s: {count(lambda r: r.get('seed') == 'trains')} train with both recipes, "
          f"{count(lambda r: r.get('default') == 'trains' and r.get('seed') == 'refused')} without the attention loss, "
          f"{count(lambda r: r.get('loads') == 'refused')} are refused, "
          f"{count(lambda r: r.get('built') == 'no')} could not be built small, {count(lambda r: r.get('broke'))} broke")
    return count(lambda r: r.get('broke'))

if __name__ == '__main__': sys.exit(min(main(sys.argv[1:]), 1))
