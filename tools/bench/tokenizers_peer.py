#!/usr/bin/env python3
"""Times the Python package `tokenizers` on the inputs of `longhaul bench tokenizer`.

  tools/bench/tokenizers_peer.py --model DIR [--text-file F] [--megabytes 5]

Prints one line per input: seconds of the fastest of three. Needs: pip install tokenizers. A single text runs on one thread there.
"""

import argparse
import pathlib
import time

from tokenizers import Tokenizer

ENGLISH = (
    "It was late in the year when the letters arrived, tied with string, and nobody could say who had kept them. \"They're yours,\" she said; the 214"
    " pages weren't numbered.\nSome were about the harbour, others about money, and one, dated 3 May 1897, was only a list of names. ")
UNITS = {"a": "a", "spaces": " ", "newlines": "\n", "digits": "7", "punctuation": "!", "emoji": "\U0001F642", "Chinese": "\u4E2D\u6587\u6587\u672C",
         "Korean": "\uD55C", "marks": "\u0301", "contractions": "'s", "<|": "<|"}


def repeated(unit, n_bytes):
    data = unit.encode()
    return (data * (n_bytes // len(data) + 1))[:n_bytes].decode(errors="ignore")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--text-file", type=pathlib.Path)
    parser.add_argument("--megabytes", type=float, default=5)
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    english = args.text_file.read_text(encoding="utf-8") if args.text_file else ENGLISH
    base = None
    for name, unit in {"English": english, **UNITS}.items():
        text = repeated(unit, int(args.megabytes * 1e6))
        best = float("inf")
        for _ in range(3):
            start = time.perf_counter()
            n_tokens = len(tokenizer.encode(text, add_special_tokens=False).ids)
            best = min(best, time.perf_counter() - start)
        base = base or best
        print(f"{name:14} {n_tokens:10} tokens {best:9.4f} s {args.megabytes / best:9.1f} MB/s {best / base:8.2f} times English", flush=True)


if __name__ == "__main__":
    main()
