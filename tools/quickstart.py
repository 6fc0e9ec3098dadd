#!/usr/bin/env python3
"""Starts the server with a bundled model, asks it over HTTP for what a long prompt tells, with dense and with
sparse prefill, and prints what it took. Standard library only.

models/longhaul-mini was trained: it is asked in a chat for four facts, one after another; all but the first question
find the text in the prefix cache. models/lookup is constructed: it completes one key, exactly, at any length."""

import argparse
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [os.path.join(ROOT, "tools"), os.path.join(ROOT, "tools", "lookup")]
from facts import make_story  # noqa: E402
from haystack import make_haystack  # noqa: E402

START_TIMEOUT_S = 120
READ_TIMEOUT_S = 3600
MODES = ("dense", "sample")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """The server process; ends with the `with` block, whatever happens in it."""

    def __init__(self, binary, log_path, model=os.path.join(ROOT, "models", "lookup")):
        self.port = free_port()
        self.log_path = log_path
        with open(log_path, "w") as log:
            self.process = subprocess.Popen(
                [binary, "serve", "--model", model, "--host", "127.0.0.1", "--port", str(self.port),
                 "--grpc-port", "0"], stdout=log, stderr=log)

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


def post(port, path, body):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=READ_TIMEOUT_S)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise RuntimeError(f"HTTP {response.status}: {response.read().decode()}")
    return response


def stream(port, path, body, mode, salt):
    """Sends a prompt with this prefill; returns the text, the prompt's tokens, and the server's report. Prompts of
    another salt find none of this one's pages in the prefix cache."""
    body |= {"temperature": 0, "stream": True, "stream_options": {"include_usage": True}, "return_progress": True,
             "sparse": {"mode": mode}, "cache_salt": salt}
    bar, text, usage, report = ProgressBar(mode), "", {}, {}
    with post(port, path, body) as response:
        for event in events(response):
            if event.get("prompt_progress"):
                bar.show(event["prompt_progress"])
            for choice in event["choices"]:
                text += choice["text"] if "text" in choice else choice["delta"].get("content") or ""
            usage = event.get("usage") or usage
            report = event.get("longhaul") or report
    bar.end()
    return text, usage["prompt_tokens"], report


def complete(port, prompt, mode, salt):
    body = {"prompt": prompt, "max_tokens": 4}  # nine digits are three tokens
    return stream(port, "/v1/completions", body, mode, salt)


def chat(port, prompt, mode, salt):
    body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 32}
    return stream(port, "/v1/chat/completions", body, mode, salt)


@dataclass
class Reply:
    question: str
    value: str   # what the answer has to hold
    answer: str
    prompt_tokens: int
    report: dict  # the server's: timings, and what the sparse prefill computed

    @property
    def right(self):
        return self.value in self.answer

    @property
    def ttft_s(self):
        return self.report["timings"]["ttft_s"]


def read_facts(port, options, mode):
    """Replies to a question about every fact of one text."""
    def count_tokens(text):
        with post(port, "/tokenize", {"prompt": text}) as response:
            return json.load(response)["count"]

    story = make_story(options.tokens, options.seed, count_tokens)
    return [Reply(fact.question, fact.value, *chat(port, story.prompt(fact), mode, f"quickstart-{mode}"))
            for fact in story.facts]


def look_up(port, options, mode):
    """The reply to the one key that the prompt ends by asking for."""
    haystack = make_haystack(options.tokens, options.depth, options.seed)
    question = haystack.prompt[haystack.prompt.rindex("The code of"):]
    return [Reply(question, haystack.answer, *complete(port, haystack.prompt, mode, f"quickstart-{mode}"))]


def print_answers(replies):
    width = max(len(reply.question) for reply in replies[MODES[0]])
    print(f"\n{'':<{width}}  {'expected':<10}" + "".join(f"{mode:<8}" for mode in MODES).rstrip())
    for row in zip(*(replies[mode] for mode in MODES)):
        verdicts = "".join(f"{'right' if reply.right else 'WRONG':<8}" for reply in row).rstrip()
        print(f"{row[0].question:<{width}}  {row[0].value:<10}{verdicts}")


def print_table(replies):
    """TTFT and what follows it: of the first question; cached: median of the others."""
    print(f"\n{'prefill':<9}{'right':>7}{'TTFT':>11}{'cached':>11}{'tokenize':>11}{'prefill':>11}{'density':>10}"
          f"{'recall':>9}{'min':>8}")
    for mode, (first, *others) in replies.items():
        timings, sparse = first.report["timings"], first.report["sparse"]
        n_right = sum(reply.right for reply in (first, *others))
        cached_s = statistics.median(reply.ttft_s for reply in others) if others else None
        seconds = "".join(f"{'-' if s is None else f'{s:.3f} s':>11}"
                          for s in (first.ttft_s, cached_s, timings["tokenize_s"], timings["prefill_s"]))
        print(f"{mode:<9}{f'{n_right} of {1 + len(others)}':>7}{seconds}{100 * sparse['density']:>8.1f} %"
              f"{sparse['recall_mean']:>9.4f}{sparse['recall_min']:>8.3f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True, help="the longhaul program")
    parser.add_argument("--model", choices=("models/longhaul-mini", "models/lookup"), default="models/longhaul-mini")
    parser.add_argument("--tokens", type=int, help="length of the prompt [32768; models/lookup: 131072]")
    parser.add_argument("--depth", type=float, default=0.5, help="of the key of models/lookup: 0 = start, 1 = end")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    reads = options.model != "models/lookup"
    options.tokens = options.tokens or (32768 if reads else 131072)
    if options.tokens < 1024 or not 0 <= options.depth <= 1:
        parser.error("--tokens must be at least 1024 and --depth between 0 and 1")
    # A terminated script must still end the server.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    log_path = os.path.join(ROOT, "build", "quickstart-server.log")
    with Server(options.binary, log_path, os.path.join(ROOT, options.model)) as server:
        print(f"asking {options.model} for what a text of about {options.tokens} tokens tells", flush=True)
        ask = read_facts if reads else look_up
        replies = {mode: ask(server.port, options, mode) for mode in MODES}
    print_answers(replies)
    print_table(replies)
    dense, sample = replies["dense"][0], replies["sample"][0]
    answer_ok = all(reply.right for mode in MODES for reply in replies[mode])
    print(f"sparse prefill: {dense.ttft_s / sample.ttft_s:.2f} times as fast to the first token\n")
    print(json.dumps({
        "model": options.model,
        "prompt_tokens": dense.prompt_tokens,
        "ttft_dense_s": round(dense.ttft_s, 4),
        "ttft_sample_s": round(sample.ttft_s, 4),
        "speedup": round(dense.ttft_s / sample.ttft_s, 3),
        "density": round(sample.report["sparse"]["density"], 5),
        "recall_mean": round(sample.report["sparse"]["recall_mean"], 5),
        "answer_ok": answer_ok,
    }))
    return 0 if answer_ok else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (RuntimeError, OSError, http.client.HTTPException) as error:
        sys.exit(f"quickstart: {error}")
