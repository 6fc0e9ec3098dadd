#!/usr/bin/env python3
"""Writes tests/golden/models/<name>/: tiny random checkpoints and what transformers computes from them.

Each folder holds config.json, the safetensors file(s), and golden.safetensors with
  input_ids  [n_tokens] I32   a fixed random prompt
  logits     [n_tokens, V] F32 of every position, computed in float32 from the stored weights
Needs torch, transformers and safetensors; run from the repository root:
  python3 tools/goldens/make_model_goldens.py
The result depends on the seeds below only; the versions used are printed.
"""

import json
import pathlib
import shutil

import torch
import transformers
from safetensors.torch import save_file

ROOT = pathlib.Path("tests/golden/models")
N_TOKENS = 150  # more than two KV pages, and no multiple of anything

LLAMA = dict(architecture="llama", hidden_size=32, intermediate_size=48, num_hidden_layers=2,
             num_attention_heads=4, num_key_value_heads=2, vocab_size=96,
             max_position_embeddings=512, rms_norm_eps=1e-5, tie_word_embeddings=False)

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
    "mistral_bf16": dict(LLAMA, dtype=torch.bfloat16, architecture="mistral",
                         num_key_value_heads=4, sliding_window=None),
    # bias on q, k and v only
    "qwen2_f32": dict(LLAMA, dtype=torch.float32, architecture="qwen2"),
}

CLASSES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
}


def make_model(case, seed):
    options = dict(case)
    architecture = options.pop("architecture")
    dtype = options.pop("dtype")
    rope = options.pop("rope", dict(rope_type="default", rope_theta=10000.0))
    options.pop("shards", None)
    options.pop("old_rope_config", None)
    config_class, model_class = CLASSES[architecture]
    config = config_class(**options, rope_parameters=rope, attn_implementation="eager")
    torch.manual_seed(seed)
    model = model_class(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Spread out, so that attention is peaked and a wrong rotation or mask shows in the logits.
            if "norm" in name:
                parameter.copy_(1.0 + 0.2 * torch.randn_like(parameter))
            else:
                parameter.copy_(0.35 * torch.randn_like(parameter))
    return model.to(dtype)


def write_weights(model, folder, shards):
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
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


def write_config(model, folder, case):
    config = model.config.to_dict()
    config["architectures"] = [type(model).__name__]
    for key in ("_name_or_path", "transformers_version", "_attn_implementation"):
        config.pop(key, None)
    config["dtype"] = str(case["dtype"]).removeprefix("torch.")
    if case.get("old_rope_config"):
        rope = config.pop("rope_parameters")
        config["rope_theta"] = rope["rope_theta"]
        config["rope_scaling"] = {"type": rope["rope_type"], "factor": rope["factor"]}
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")


def main():
    print("torch", torch.__version__, "transformers", transformers.__version__)
    for seed, (name, case) in enumerate(CASES.items(), start=1):
        folder = ROOT / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        model = make_model(case, seed)
        write_weights(model, folder, case.get("shards", 1))
        write_config(model, folder, case)
        # A new model: .to(bfloat16) also rounded the rotary frequencies of the old one.
        model.config.dtype = torch.float32
        reference = type(model)(model.config).to(torch.float32).eval()
        reference.load_state_dict({k: v.float() for k, v in model.state_dict().items()})
        input_ids = torch.randint(0, case["vocab_size"], (1, N_TOKENS))
        with torch.no_grad():
            logits = reference(input_ids).logits[0]
        save_file({"input_ids": input_ids[0].to(torch.int32), "logits": logits.contiguous()},
                  folder / "golden.safetensors")
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"{name}: {size} bytes, logits std {logits.std().item():.3f}")


if __name__ == "__main__":
    main()
