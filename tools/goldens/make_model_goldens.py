#!/usr/bin/env python3
"""Writes tests/golden/models/<name>/: tiny random checkpoints and what transformers computes from them,
and tests/golden/rope.json: rotary frequencies of published configurations.

Each model folder holds config.json, the safetensors file(s), and golden*.safetensors with
  input_ids      [n_tokens] I32   a fixed random prompt
  logits         [n_tokens, V] F32 of every position, computed in float32 from the stored weights
  max_model_len  [1] I32           the context for which the engine must be loaded
Families that transformers only has as remote code are computed by the class of the same architecture
and stored under the names and in the packing of the published checkpoints (`repack_*`).
Needs torch, transformers and safetensors; run from the repository root:
  python3 tools/goldens/make_model_goldens.py [case ...]     (all cases and rope.json without arguments)
The result depends on the seeds below only; the versions used are printed.
"""

import json
import pathlib
import shutil
import sys
import tempfile
import zlib

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from dual_chunk import dual_chunk_logits

ROOT = pathlib.Path("tests/golden/models")
ROPE = pathlib.Path("tests/golden/rope.json")
N_TOKENS = 150  # more than two KV pages, and no multiple of anything
N_SHORT = 60  # for rope types that change beyond the original context of 64

LLAMA = dict(architecture="llama", hidden_size=32, intermediate_size=48, num_hidden_layers=2,
             num_attention_heads=4, num_key_value_heads=2, vocab_size=96,
             max_position_embeddings=512, rms_norm_eps=1e-5, tie_word_embeddings=False)


def factors(n, top):
    return [1.0 + (top - 1.0) * i / (n - 1) for i in range(n)]


LONGROPE = dict(rope_type="longrope", rope_theta=10000.0, original_max_position_embeddings=64,
                short_factor=factors(4, 1.5), long_factor=factors(4, 6.0))

CASES = {
    # grouped query attention, separate lm_head
    "gqa_f32": dict(LLAMA, dtype=torch.float32),
    # head_dim is not hidden_size / heads; tied embeddings; bf16 weights
    "tied_headdim_bf16": dict(LLAMA, dtype=torch.bfloat16, head_dim=16, tie_word_embeddings=True),
    # the frequency-dependent scaling of Llama 3.1, in the newer `rope_parameters` form
    "llama3_rope_f16": dict(LLAMA, dtype=torch.float16, head_dim=16, rope=dict(
        rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0,
        high_freq_factor=4.0, original_max_position_embeddings=64)),
    # linear scaling in the older `rope_scaling` form, one kv head for all, biased projections, three shards
    "linear_rope_sharded_bf16": dict(LLAMA, dtype=torch.bfloat16, num_key_value_heads=1, shards=3,
                                     attention_bias=True, old_rope_config=True, rope=dict(
                                         rope_type="linear", rope_theta=10000.0, factor=4.0)),
    # dynamic NTK: base of the longest context, unchanged base within the original one
    "dynamic_rope_f32": dict(LLAMA, dtype=torch.float32, max_position_embeddings=64, short=True,
                             rope=dict(rope_type="dynamic", rope_theta=10000.0, factor=4.0)),
    "mistral_bf16": dict(LLAMA, dtype=torch.bfloat16, architecture="mistral",
                         num_key_value_heads=4, sliding_window=None),
    # every layer sees 50 tokens; head_dim is not hidden_size / heads, as in Mistral-NeMo
    "window_mistral_bf16": dict(LLAMA, dtype=torch.bfloat16, architecture="mistral", head_dim=16,
                                sliding_window=50),
    # the second layer sees one page
    "window_qwen2_f32": dict(LLAMA, dtype=torch.float32, architecture="qwen2", sliding_window=64,
                             use_sliding_window=True, max_window_layers=1, num_hidden_layers=2),
    # bias on q, k and v only
    "qwen2_f32": dict(LLAMA, dtype=torch.float32, architecture="qwen2"),
    # YaRN as Qwen2.5 writes it: max_position_embeddings is the original context
    "yarn_qwen2_bf16": dict(LLAMA, dtype=torch.bfloat16, architecture="qwen2", head_dim=16,
                            max_position_embeddings=64, old_rope_config=True, rope=dict(
                                rope_type="yarn", rope_theta=10000.0, factor=4.0,
                                original_max_position_embeddings=64)),
    # dual chunk attention over four chunks of one page; scores grow beyond 100 tokens
    "dual_chunk_qwen2_f32": dict(LLAMA, dtype=torch.float32, architecture="qwen2", head_dim=16, n_tokens=230,
                                 dual_chunk=dict(chunk_size=96, local_size=32,
                                                 original_max_position_embeddings=100)),
    # norm of every q and k head
    "qwen3_bf16": dict(LLAMA, dtype=torch.bfloat16, architecture="qwen3", head_dim=16),
    # fused qkv and gate_up; factors of its own for every pair, two lists
    "longrope_phi3_f32": dict(LLAMA, dtype=torch.float32, architecture="phi3", short=True,
                              max_position_embeddings=256, original_max_position_embeddings=64,
                              pad_token_id=0, rope=LONGROPE),
    # three quarters of each head are rotated; biased attention factor
    "partial_phi3_bf16": dict(LLAMA, dtype=torch.bfloat16, architecture="phi3", head_dim=16,
                              hidden_size=64, max_position_embeddings=256, pad_token_id=0,
                              original_max_position_embeddings=64, rope=dict(
                                  LONGROPE, partial_rotary_factor=0.75, attention_factor=1.25,
                                  short_factor=factors(6, 1.5), long_factor=factors(6, 6.0))),
    # half of each head is rotated, neighbours paired; bias on q, k and v only; fused gate_up
    "glm_bf16": dict(LLAMA, dtype=torch.bfloat16, architecture="glm", head_dim=16,
                     attention_bias=True, pad_token_id=0, rope=dict(
                         rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5)),
    # the same model as published first: own names, fused qkv, base 10000 * rope_ratio
    "chatglm_f32": dict(LLAMA, dtype=torch.float32, architecture="glm", head_dim=16,
                        attention_bias=True, pad_token_id=0, repack="chatglm", rope_ratio=50,
                        rope=dict(rope_type="default", rope_theta=500000.0,
                                  partial_rotary_factor=0.5)),
    # every layer a mixture: 4 experts, 2 per token
    "mixtral_f32": dict(LLAMA, dtype=torch.float32, architecture="mixtral", num_local_experts=4,
                        num_experts_per_tok=2, sliding_window=None, intermediate_size=32),
    # pruned: the second layer has 3 experts left of 6
    "pruned_mixtral_bf16": dict(LLAMA, dtype=torch.bfloat16, architecture="mixtral", num_local_experts=6,
                                num_experts_per_tok=2, sliding_window=None, intermediate_size=32,
                                prune=(1, 3)),
    # layer 0 dense, layer 1 a mixture of small experts; weights of the chosen sum to 1
    "qwen3_moe_bf16": dict(LLAMA, dtype=torch.bfloat16, architecture="qwen3_moe", head_dim=16,
                           num_experts=8, num_experts_per_tok=3, moe_intermediate_size=16,
                           norm_topk_prob=True, mlp_only_layers=[0]),
    # every second layer; weights as the softmax gives them
    "qwen3_moe_step_f32": dict(LLAMA, dtype=torch.float32, architecture="qwen3_moe", num_experts=5,
                               num_experts_per_tok=2, moe_intermediate_size=16, decoder_sparse_step=2,
                               norm_topk_prob=False),
    # own names, qkv packed per kv group, dynamic NTK
    "internlm2_bf16": dict(LLAMA, dtype=torch.bfloat16, max_position_embeddings=64,
                           num_attention_heads=8, num_key_value_heads=2, repack="internlm2",
                           old_rope_config=True, rope=dict(
                               rope_type="dynamic", rope_theta=10000.0, factor=2.5)),
}

CLASSES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    "qwen3_moe": (transformers.Qwen3MoeConfig, transformers.Qwen3MoeForCausalLM),
    "mixtral": (transformers.MixtralConfig, transformers.MixtralForCausalLM),
    "phi3": (transformers.Phi3Config, transformers.Phi3ForCausalLM),
    "glm": (transformers.GlmConfig, transformers.GlmForCausalLM),
}
# Of a case, not of a transformers config.
OWN_KEYS = ("architecture", "dtype", "rope", "shards", "old_rope_config", "short", "repack", "rope_ratio",
            "prune", "dual_chunk", "n_tokens")


def make_model(case, seed):
    options = {key: value for key, value in case.items() if key not in OWN_KEYS}
    rope = case.get("rope", dict(rope_type="default", rope_theta=10000.0))
    config_class, model_class = CLASSES[case["architecture"]]
    config = config_class(**options, rope_parameters=dict(rope), attn_implementation="eager")
    torch.manual_seed(seed)
    model = model_class(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Spread out, so that attention is peaked and a wrong rotation or mask shows in the logits.
            if "norm" in name:
                parameter.copy_(1.0 + 0.2 * torch.randn_like(parameter))
            else:
                parameter.copy_(2.0 / config.hidden_size**0.5 * torch.randn_like(parameter))
    return model.to(case["dtype"])


def prune_experts(model, layer, n_experts):
    """Drops the experts of a layer from n_experts on."""
    block = model.model.layers[layer].mlp
    block.gate.weight = torch.nn.Parameter(block.gate.weight[:n_experts])
    for name in ("gate_up_proj", "down_proj"):
        setattr(block.experts, name, torch.nn.Parameter(getattr(block.experts, name)[:n_experts]))
    block.experts.num_experts = block.gate.num_experts = n_experts


def published_tensors(model):
    """The tensors under the names that checkpoints have, which are not always those of the modules."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tensors = load_file(pathlib.Path(folder) / "model.safetensors")
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    return tensors


def repack_internlm2(tensors, config):
    """wqkv: for every kv head its query heads, then its key head, then its value head."""
    kv, dim = config.num_key_value_heads, config.head_dim
    names = {"model.embed_tokens": "model.tok_embeddings", "lm_head": "output",
             "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
             "self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1",
             "mlp.up_proj": "feed_forward.w3", "mlp.down_proj": "feed_forward.w2"}
    packed = {}
    for name, value in tensors.items():
        if "q_proj" in name:
            q, k, v = (tensors[name.replace("q_proj", part + "_proj")] for part in "qkv")
            hidden = q.shape[-1]
            groups = [q.reshape(kv, -1, dim, hidden), k.reshape(kv, 1, dim, hidden), v.reshape(kv, 1, dim, hidden)]
            name = name.replace("self_attn.q_proj", "attention.wqkv")
            packed[name] = torch.cat(groups, dim=1).reshape(-1, hidden)
        elif "k_proj" not in name and "v_proj" not in name:
            for old, new in names.items():
                name = name.replace(old, new)
            packed[name] = value
    return packed


def repack_chatglm(tensors, config):
    names = {"model.embed_tokens": "transformer.embedding.word_embeddings",
             "lm_head": "transformer.output_layer", "model.norm": "transformer.encoder.final_layernorm",
             "model.layers": "transformer.encoder.layers", "self_attn.o_proj": "self_attention.dense",
             "self_attn.q_proj": "self_attention.query_key_value",
             "mlp.gate_up_proj": "mlp.dense_h_to_4h", "mlp.down_proj": "mlp.dense_4h_to_h"}
    packed = {"transformer.rotary_pos_emb.inv_freq": torch.ones(config.head_dim // 4)}
    for name, value in tensors.items():
        if "k_proj" in name or "v_proj" in name:
            continue
        if "q_proj" in name:
            value = torch.cat([tensors[name.replace("q_proj", part + "_proj")] for part in "qkv"])
        for old, new in names.items():
            name = name.replace(old, new)
        packed[name] = value
    return packed


def write_weights(tensors, folder, shards):
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = names[i::shards]
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map.update({name: file for name in part})
    index = dict(metadata=dict(total_size=0), weight_map=weight_map)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def chatglm_config(case):
    return dict(architectures=["ChatGLMModel"], num_layers=case["num_hidden_layers"],
                hidden_size=case["hidden_size"], num_attention_heads=case["num_attention_heads"],
                multi_query_attention=True, multi_query_group_num=case["num_key_value_heads"],
                kv_channels=case["head_dim"], padded_vocab_size=case["vocab_size"],
                seq_length=case["max_position_embeddings"], ffn_hidden_size=case["intermediate_size"],
                layernorm_epsilon=case["rms_norm_eps"], add_qkv_bias=True, add_bias_linear=False,
                rmsnorm=True, post_layer_norm=True, original_rope=True, rope_ratio=case["rope_ratio"],
                apply_residual_connection_post_layernorm=False, tie_word_embeddings=False)


def write_config(model, folder, case):
    config = model.config.to_dict()
    config["architectures"] = [type(model).__name__]
    for key in ("_name_or_path", "transformers_version", "_attn_implementation"):
        config.pop(key, None)
    if case.get("old_rope_config"):
        rope = config.pop("rope_parameters")
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = dict(rope, type=rope.pop("rope_type"))
    if case.get("repack") == "internlm2":
        config["architectures"] = ["InternLM2ForCausalLM"]
        config["bias"] = False
    if case.get("repack") == "chatglm":
        config = chatglm_config(case)
    if "dual_chunk" in case:
        config["dual_chunk_attention_config"] = case["dual_chunk"]
    config["dtype"] = str(case["dtype"]).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")


def write_golden(reference, input_ids, file, dual_chunk=None):
    with torch.no_grad():
        if dual_chunk is None:
            logits = reference(input_ids[None]).logits[0]
        else:
            logits = dual_chunk_logits(reference, input_ids, dual_chunk, theta=10000.0)
    save_file({"input_ids": input_ids.to(torch.int32), "logits": logits.contiguous(),
               "max_model_len": torch.tensor([len(input_ids)], dtype=torch.int32)}, file)
    return logits.std().item()


def write_model(name, case, seed):
    folder = ROOT / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = make_model(case, seed)
    if "prune" in case:
        prune_experts(model, *case["prune"])
    tensors = published_tensors(model)
    if "repack" in case:
        repack = dict(internlm2=repack_internlm2, chatglm=repack_chatglm)[case["repack"]]
        tensors = repack(tensors, model.config)
    write_weights(tensors, folder, case.get("shards", 1))
    write_config(model, folder, case)
    # A new model: .to(bfloat16) also rounded the rotary frequencies of the old one.
    model.config.dtype = torch.float32
    reference = type(model)(model.config).to(torch.float32).eval()
    if "prune" in case:
        prune_experts(reference, *case["prune"])
    reference.load_state_dict({k: v.float() for k, v in model.state_dict().items()})
    input_ids = torch.randint(0, case["vocab_size"], (case.get("n_tokens", N_TOKENS),))
    deviation = write_golden(reference, input_ids, folder / "golden.safetensors", case.get("dual_chunk"))
    if case.get("short"):
        write_golden(reference, input_ids[:N_SHORT], folder / "golden_short.safetensors")
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{name}: {size} bytes, logits std {deviation:.3f}")


# Frequencies of published configurations, each for a context that is served.
ROPE_CASES = [
    ("Llama-3.1-8B", dict(max_position_embeddings=131072), 128, 131072,
     dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0,
          high_freq_factor=4.0, original_max_position_embeddings=8192)),
    ("Qwen2.5-7B with YaRN", dict(max_position_embeddings=32768), 128, 131072,
     dict(rope_type="yarn", rope_theta=1000000.0, factor=4.0, original_max_position_embeddings=32768)),
    ("YaRN with mscale", dict(max_position_embeddings=163840), 64, 163840,
     dict(rope_type="yarn", rope_theta=10000.0, factor=40.0, original_max_position_embeddings=4096,
          mscale=1.0, mscale_all_dim=0.7, beta_fast=32, beta_slow=1)),
    ("YaRN without truncation", dict(max_position_embeddings=131072), 64, 131072,
     dict(rope_type="yarn", rope_theta=150000.0, factor=32.0, original_max_position_embeddings=4096,
          truncate=False, beta_fast=32.0, beta_slow=1.0)),
    ("InternLM2.5-7B-1M", dict(max_position_embeddings=262144), 128, 1048576,
     dict(rope_type="dynamic", rope_theta=50000000.0, factor=2.5)),
    ("InternLM2.5-7B-1M, short", dict(max_position_embeddings=262144), 128, 32768,
     dict(rope_type="dynamic", rope_theta=50000000.0, factor=2.5)),
    ("Phi-3.5-mini, long", dict(max_position_embeddings=131072), 96, 131072,
     dict(rope_type="longrope", rope_theta=10000.0, original_max_position_embeddings=4096,
          short_factor=factors(48, 3.0), long_factor=factors(48, 64.0))),
    ("Phi-3.5-mini, short", dict(max_position_embeddings=131072), 96, 4096,
     dict(rope_type="longrope", rope_theta=10000.0, original_max_position_embeddings=4096,
          short_factor=factors(48, 3.0), long_factor=factors(48, 64.0))),
    ("linear", dict(max_position_embeddings=16384), 128, 16384,
     dict(rope_type="linear", rope_theta=10000.0, factor=8.0)),
]


def write_rope():
    cases = []
    for name, options, head_dim, context, rope in ROPE_CASES:
        config = transformers.LlamaConfig(hidden_size=4 * head_dim, num_attention_heads=4, head_dim=head_dim,
                                          rope_parameters=dict(rope), **options)
        inv_freq, attention_factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, "cpu", seq_len=context)
        cases.append(dict(name=name, head_dim=head_dim, context_tokens=context, rope_parameters=rope,
                          attention_factor=attention_factor, inv_freq=inv_freq.tolist(), **options))
    ROPE.write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")


def main():
    print("torch", torch.__version__, "transformers", transformers.__version__)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    names = sys.argv[1:] or CASES
    for name in names:
        write_model(name, CASES[name], seed=zlib.crc32(name.encode()))
    if names is CASES:
        write_rope()


if __name__ == "__main__":
    main()
