"""Measures a checkpoint: does it find a needle at each length, and the loss on unseen books by position.

`python tools/train/evaluate.py --preset cpu --work FOLDER`. Everything here is dense attention; `longhaul eval` compares policies.
"""

import argparse
import json
import pathlib

import numpy as np
import torch
import torch.nn.functional as F

import config
import data
import model as llama
import tasks

# As in tasks.FACTS, but asked of books that were never trained on.
NEEDLES = tasks.FACTS[:3] + tasks.FACTS[4:6] + tasks.FACTS[7:9]


def needle_prompt(maker, rng, n_tokens, depth, n_keys=1, chat=True):
    """ids, and where the answer begins: one fact (of n_keys told in the same words) in a book, and the question at the end."""
    tell, ask, begin = maker.pick(rng, NEEDLES)
    attribute = maker.pick(rng, maker.words)
    facts = [dict(a=attribute, k=maker.key(rng), v=str(rng.integers(100000, 1000000))) for _ in range(n_keys)]
    told = [maker.told(tell.format(**fact)) for fact in facts]
    answer = maker.answer(begin.format(**facts[0]), [f" {facts[0]['v']}."])
    question, weights = maker.question((maker.encode(" " + ask.format(**facts[0])), *answer), chat)
    places = [depth, *rng.random(n_keys - 1)]
    planted = sorted(zip(places, told), key=lambda p: p[0])
    used = sum(len(ids) for ids, _ in told) + len(question) + (1 if chat else 0)
    ids, _ = maker.assemble(rng, n_tokens, used, planted, [(question, weights)], chat)
    n_behind = len(question) - next(i for i, w in enumerate(weights) if w == tasks.VALUE)
    n_values = sum(w == tasks.VALUE for w in weights)
    return ids, n_tokens - n_behind, n_values


@torch.no_grad()
def needle(model, maker, device, n_tokens, n_prompts, n_keys=1, chat=True, seed=1):
    """The share of prompts where, behind the sentence of the answer up to the value, every token of the value is the best one."""
    right = 0
    for i in range(n_prompts):
        rng = np.random.default_rng([seed, n_tokens, i])
        depth = (i + 0.5) / n_prompts
        ids, begin, n_values = needle_prompt(maker, rng, n_tokens, depth, n_keys, chat)
        tokens = torch.from_numpy(ids).to(device)[None]
        with torch.autocast(device, dtype=torch.bfloat16):
            hidden = model.hidden(tokens, torch.arange(n_tokens, device=device)[None])
            best = model.logits(hidden[0, begin - 1 : begin - 1 + n_values]).argmax(-1)
        right += bool((best == tokens[0, begin : begin + n_values]).all())
    return right / n_prompts


@torch.no_grad()
def book_loss(model, books, device, n_tokens, n_windows):
    """Mean loss on unseen books, in nats per token, by ranges of positions that double: {last position: loss}."""
    rng = np.random.default_rng(7)
    losses = []
    for _ in range(n_windows):
        tokens = torch.from_numpy(books.window(rng, n_tokens + 1)).to(device)[None]
        with torch.autocast(device, dtype=torch.bfloat16):
            hidden = model.hidden(tokens[:, :-1], torch.arange(n_tokens, device=device)[None])[0]
        parts = zip(hidden.split(4096), tokens[0, 1:].split(4096))
        losses.append(torch.cat([F.cross_entropy(model.logits(h).float(), t, reduction="none") for h, t in parts]))
    mean = torch.stack(losses).mean(0)
    ends = [2**i for i in range(8, 30) if 2**i <= n_tokens]
    return {end: round(float(mean[end // 2 : end].mean()), 4) for end in ends}


def quick(model, tokenizer, folder, device, longest):
    """The short evaluation that training logs with every checkpoint."""
    books = data.PackedBooks(folder, "valid")
    maker = tasks.TaskMaker(tokenizer, books, 0, 1.0)
    lengths = [n for n in (512, 2048, 8192, 32768) if n <= longest]
    result = {f"needle_{n}": needle(model, maker, device, n, 16 if n <= 2048 else 4) for n in lengths}
    result["needle_4_keys_512"] = needle(model, maker, device, 512, 16, n_keys=4)
    return {**result, "valid": book_loss(model, books, device, 512, 16)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=config.PRESETS, default="cpu")
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 16384, 32768])
    parser.add_argument("--prompts", type=int, default=20, help="prompts of each kind at each length")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    preset = config.PRESETS[arguments.preset]
    model = llama.Llama(preset).to(device)
    state = torch.load(arguments.work / "checkpoint.pt", map_location=device)
    model.load_state_dict(state["model"])
    books = data.PackedBooks(arguments.work, "valid")
    maker = tasks.TaskMaker(data.load_tokenizer(arguments.work), books, 0, 1.0)
    print(json.dumps({"step": state["step"]}))
    for n in arguments.lengths:
        row = {"tokens": n}
        row["chat"] = needle(model, maker, device, n, arguments.prompts)
        row["text"] = needle(model, maker, device, n, arguments.prompts, chat=False)
        row["chat_4_keys"] = needle(model, maker, device, n, arguments.prompts, n_keys=4)
        print(json.dumps(row), flush=True)
    print(json.dumps({"loss": book_loss(model, books, device, max(arguments.lengths), 4)}))


if __name__ == "__main__":
    main()
