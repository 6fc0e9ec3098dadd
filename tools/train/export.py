"""Writes a checkpoint as a Hugging Face folder: `python tools/train/export.py --preset cpu --work FOLDER --out models/longhaul-mini`."""

import argparse
import json
import pathlib

import safetensors.torch
import torch
from sentencepiece import sentencepiece_model_pb2

import config
import data

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}{{ '<|assistant|>' }}"
    "{% else %}{{ '<|user|>' }}{% endif %}{{ '\\n' + message['content'] + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def export(preset, weights, tokenizer, tokenizer_path, out):
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: w.to(torch.bfloat16).contiguous().cpu() for name, w in weights.items()}
    safetensors.torch.save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)  # it is written for its owner alone
    pieces = sentencepiece_model_pb2.ModelProto.FromString(tokenizer_path.read_bytes())
    pieces.trainer_spec.ClearField("input")  # where the books lay
    pieces.trainer_spec.ClearField("model_prefix")
    (out / "tokenizer.model").write_bytes(pieces.SerializeToString())
    bos, eos = tokenizer.bos_id(), tokenizer.eos_id()
    write_json(
        out / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "torch_dtype": "bfloat16",
            "vocab_size": preset.vocab_size,
            "hidden_size": preset.hidden_size,
            "intermediate_size": preset.intermediate_size,
            "num_hidden_layers": preset.n_layers,
            "num_attention_heads": preset.n_heads,
            "num_key_value_heads": preset.n_kv_heads,
            "head_dim": preset.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": preset.rms_norm_eps,
            "rope_theta": preset.rope_theta,
            "rope_scaling": None,
            "max_position_embeddings": preset.max_position,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "bos_token_id": bos,
            "eos_token_id": eos,
        },
    )
    write_json(out / "generation_config.json", {"bos_token_id": bos, "eos_token_id": eos})
    write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "LlamaTokenizer",
            "legacy": False,
            "add_prefix_space": False,
            "bos_token": data.BOS,
            "eos_token": data.EOS,
            "unk_token": "<unk>",
            "add_bos_token": True,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": preset.max_position,
            "chat_template": CHAT_TEMPLATE,
        },
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=config.PRESETS, default="cpu")
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    state = torch.load(arguments.work / "checkpoint.pt", map_location="cpu")
    tokenizer = data.load_tokenizer(arguments.work)
    preset = config.PRESETS[arguments.preset]
    export(preset, state["model"], tokenizer, arguments.work / "tokenizer.model", arguments.out)


if __name__ == "__main__":
    main()
