#!/usr/bin/env python3
"""Starts the server with models/lookup, asks it over HTTP for a key hidden in a long prompt, once with
dense and once with sparse prefill, and prints what it took. Standard library only."""

import argparse
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "tools", "lookup"))
from haystack import make_haystack  # noqa: E402

START_TIMEOUT_S = 120
READ_TIMEOUT_S = 3600
ANSWER_TOKENS = 4  # nine digits are three tokens


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """The server process; ends with the `with` block, whatever happens in it."""

    def __init__(self, binary, log_path):
        self.port = free_port()
        self.log_path = log_path
        with open(log_path, "w") as log:
            self.process = subprocess.Popen(
                [binary, "serve", "--model", os.path.join(ROOT, "models", "lookup"), "--host", "127.0.0.1",
                 "--port", str(self.port), "--grpc-port", "0"], stdout=log, stderr=log)

    def __enter__(self):
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
                connection.request("GET", "/ready")
                if connection.getresponse().status == 200:
                    return self
            except OSError:
                pass
            time.sleep(0.05)
        self.__exit__()
        with open(self.log_path) as log:
            sys.exit("the server did not become ready; its log:\n" + log.read())

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class ProgressBar:
    """A bar on a terminal, else a line every tenth of the prompt. Goes to stderr."""

    WIDTH = 40

    def __init__(self, label):
        self.label = label
        self.next_tenth = 1
        self.on_terminal = sys.stderr.isatty()

    def show(self, progress):
        total, done = progress["total"], progress["processed"]
        share = done / total if total else 0.0
        eta_ms = progress.get("eta_ms")
        eta = f"{eta_ms / 1000:6.1f} s left" if eta_ms is not None else ""
        if self.on_terminal:
            filled = int(share * self.WIDTH)
            bar = "#" * filled + "-" * (self.WIDTH - filled)
            print(f"\r{self.label:>6} [{bar}] {done:>8}/{total} tokens  {eta:16}", end="", file=sys.stderr, flush=True)
        elif share * 10 >= self.next_tenth:
            print(f"{self.label:>6} {100 * share:3.0f} %  {done:>8}/{total} tokens  {eta}", file=sys.stderr)
            self.next_tenth = int(share * 10) + 1

    def end(self):
        if self.on_terminal:
            print(file=sys.stderr)


def events(response):
    """The JSON objects of a server-sent event stream."""
    for line in response:
        if not line.startswith(b"data: "):
            continue  # blank lines and pings
        data = line[len(b"data: "):].strip()
        if data == b"[DONE]":
            return
        event = json.loads(data)
        if "error" in event:
            raise RuntimeError(event["error"]["message"])
        yield event


def ask(port, prompt, mode, salt):
    """Completes the prompt; returns the text, the prompt's tokens, and the server's report."""
    body = {
        "model": "lookup", "prompt": prompt, "max_tokens": ANSWER_TOKENS, "temperature": 0,
        "stream": True, "stream_options": {"include_usage": True}, "return_progress": True,
        "sparse": {"mode": mode}, "cache_salt": salt,
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=READ_TIMEOUT_S)
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise RuntimeError(f"HTTP {response.status}: {response.read().decode()}")
    bar, text, usage, report = ProgressBar(mode), "", {}, {}
    for event in events(response):
        if event.get("prompt_progress"):
            bar.show(event["prompt_progress"])
        for choice in event["choices"]:
            text += choice["text"]
        usage = event.get("usage") or usage
        report = event.get("longhaul") or report
    bar.end()
    connection.close()
    return text, usage["prompt_tokens"], report


def print_table(answers, expected):
    print(f"\n{'prefill':<10}{'answer':<16}{'TTFT':>10}{'tokenize':>10}{'queue':>10}{'prefill':>10}{'density':>10}"
          f"{'recall':>10}{'min':>8}")
    for mode, (text, _, report) in answers.items():
        timings, sparse = report["timings"], report["sparse"]
        verdict = f"{text[:9]} {'right' if text.startswith(expected) else 'WRONG'}"
        seconds = "".join(f"{timings[key]:>8.3f} s" for key in ("ttft_s", "tokenize_s", "queue_s", "prefill_s"))
        print(f"{mode:<10}{verdict:<16}{seconds}{100 * sparse['density']:>8.1f} %{sparse['recall_mean']:>10.4f}"
              f"{sparse['recall_min']:>8.3f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", required=True, help="the longhaul program")
    parser.add_argument("--tokens", type=int, default=131072, help="length of the prompt")
    parser.add_argument("--depth", type=float, default=0.5, help="where the key is: 0 = start, 1 = end")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.tokens < 128 or not 0 <= options.depth <= 1:
        parser.error("--tokens must be at least 128 and --depth between 0 and 1")
    # A terminated script must still end the server.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    haystack = make_haystack(options.tokens, options.depth, options.seed)
    answers = {}
    log_path = os.path.join(ROOT, "build", "quickstart-server.log")
    with Server(options.binary, log_path) as server:
        print(f"asking for a key at {100 * options.depth:.0f} % of {haystack.n_tokens} tokens; expected {haystack.answer}")
        for mode in ("dense", "sample"):
            # Different salts: the second must not find the first one's pages.
            answers[mode] = ask(server.port, haystack.prompt, mode, f"quickstart-{mode}")

    print_table(answers, haystack.answer)
    (_, n_prompt, dense), (_, _, sample) = answers["dense"], answers["sample"]
    ttft_dense, ttft_sample = dense["timings"]["ttft_s"], sample["timings"]["ttft_s"]
    answer_ok = all(text.startswith(haystack.answer) for text, _, _ in answers.values())
    print(f"sparse prefill: {ttft_dense / ttft_sample:.2f} times as fast to the first token\n")
    print(json.dumps({
        "prompt_tokens": n_prompt,
        "ttft_dense_s": round(ttft_dense, 4),
        "ttft_sample_s": round(ttft_sample, 4),
        "speedup": round(ttft_dense / ttft_sample, 3),
        "density": round(sample["sparse"]["density"], 5),
        "recall_mean": round(sample["sparse"]["recall_mean"], 5),
        "answer_ok": answer_ok,
    }))
    return 0 if answer_ok else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (RuntimeError, OSError, http.client.HTTPException) as error:
        sys.exit(f"quickstart: {error}")
