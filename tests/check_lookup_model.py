#!/usr/bin/env python3
"""models/lookup is exactly what tools/lookup/make_model.py writes, and haystacks keep their promises."""

import filecmp
import os
import subprocess
import sys
import tempfile

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
sys.path.insert(0, os.path.join(ROOT, "tools", "lookup"))
import haystack  # noqa: E402


def check_model_bytes():
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, os.path.join(ROOT, "tools", "lookup", "make_model.py"), folder], check=True)
        names = sorted(os.listdir(folder))
        _, mismatch, errors = filecmp.cmpfiles(folder, os.path.join(ROOT, "models", "lookup"), names, shallow=False)
        assert not mismatch and not errors, f"models/lookup differs from its generator: {mismatch + errors}"
        assert "model.safetensors" in names


def check_haystacks():
    for n_tokens in (128, 129, 1024, 20000):
        for depth in (0.0, 0.5, 1.0):
            stack = haystack.make_haystack(n_tokens, depth, seed=7)
            question = stack.prompt[stack.prompt.rindex("The code of"):]
            assert question.endswith(" is #")
            assert stack.prompt.count(question + stack.answer) == 1
            assert stack.prompt.count(question) == 2, "the key stands once before the question"
            assert stack == haystack.make_haystack(n_tokens, depth, seed=7)
    at_start = haystack.make_haystack(4096, 0.0, seed=1)
    at_end = haystack.make_haystack(4096, 1.0, seed=1)
    place = lambda stack: stack.prompt.index("#" + stack.answer) / len(stack.prompt)
    assert place(at_start) < 0.2 and place(at_end) > 0.8


if __name__ == "__main__":
    check_model_bytes()
    check_haystacks()
    print("ok")
