"""Asks a Longhaul server for what PyTorch computes from the same folder: best next tokens, and answers in a chat.

`longhaul serve --model FOLDER --port 8000`, then `python tools/train/compare.py --model FOLDER --work WORK --url http://127.0.0.1:8000`.
"""

import argparse
import json
import pathlib
import urllib.request

import numpy as np
import safetensors.torch
import torch

import config
import data
import evaluate
import model as llama
import tasks


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as response:
        return json.load(response)


@torch.no_grad()
def largest_difference(model, maker, url, name, n_tokens):
    """Of the log probabilities of the five best next tokens behind n_tokens of a book."""
    ids = [int(i) for i in maker.books.window(np.random.default_rng(n_tokens), n_tokens)]
    hidden = model.hidden(torch.tensor([ids]), torch.arange(n_tokens)[None])
    ours = torch.log_softmax(model.logits(hidden[0, -1]), -1)
    body = {"model": name, "prompt": ids, "max_tokens": 1, "logprobs": 5, "temperature": 0}
    served = post(f"{url}/v1/completions", body)["choices"][0]["logprobs"]["top_logprobs"][0]
    best, _ = ours.topk(5)
    return float(np.abs(best.numpy() - np.sort(list(served.values()))[::-1][:5]).max())


def chat_needle(maker, url, name, n_tokens, seed):
    """True when the server's answer holds the value, and the number of the prompt's tokens is the expected one."""
    ids, begin, n_values = evaluate.needle_prompt(maker, np.random.default_rng(seed), n_tokens, (seed % 10 + 0.5) / 10)
    text = lambda part: maker.tokenizer.decode([int(i) for i in part])
    turn_end = int(np.flatnonzero(ids == maker.tokenizer.eos_id())[0])
    messages = [{"role": "user", "content": text(ids[3:turn_end])}]
    reply = post(f"{url}/v1/chat/completions", {"model": name, "messages": messages, "max_tokens": 48, "temperature": 0})
    if reply["usage"]["prompt_tokens"] != turn_end + 4:
        raise SystemExit(f"the server's prompt has {reply['usage']['prompt_tokens']} tokens, ours {turn_end + 4}")
    return text(ids[begin : begin + n_values]).strip() in reply["choices"][0]["message"]["content"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=config.PRESETS, default="cpu")
    parser.add_argument("--model", type=pathlib.Path, required=True, help="the exported folder that the server serves")
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder with the packed books of the validation split")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--prompts", type=int, default=10)
    arguments = parser.parse_args()
    model = llama.Llama(config.PRESETS[arguments.preset])
    weights = safetensors.torch.load_file(arguments.model / "model.safetensors")
    model.load_state_dict({name: weight.float() for name, weight in weights.items()})
    maker = tasks.TaskMaker(data.load_tokenizer(arguments.model), data.PackedBooks(arguments.work, "valid"), 0, 1.0)
    with urllib.request.urlopen(f"{arguments.url}/v1/models", timeout=60) as response:
        name = json.load(response)["data"][0]["id"]
    for n in (5, 100, 700, 3000):
        print(json.dumps({"tokens": n, "largest_difference": largest_difference(model, maker, arguments.url, name, n)}))
    for n in arguments.lengths:
        right = sum(chat_needle(maker, arguments.url, name, n, seed) for seed in range(arguments.prompts))
        print(json.dumps({"tokens": n, "needles": f"{right} of {arguments.prompts}"}))


if __name__ == "__main__":
    main()
