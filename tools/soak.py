#!/usr/bin/env python3
"""Keeps a server busy with many streams for a while, and then looks for what it left behind.

    tools/soak.py                                        200 streams for 10 minutes on a server of its own
    tools/soak.py --streams 50 --seconds 20
    tools/soak.py --url http://127.0.0.1:8000 --pid 123  a server that runs already and serves models/lookup

Each stream asks one thing after another: mostly short prompts, some long, some that it gives up on the way, some
that it gives up and asks again. Every answer is known, so it is checked. Fails (exit code 1) on a wrong answer, an
error, a request or a page that is left over at the end, memory that keeps growing, or a server that does not
shut down cleanly. Standard library only.
"""

import argparse
import asyncio
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass, field

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "tools", "lookup"))
from haystack import make_haystack  # noqa: E402

REQUEST_TIMEOUT_S = 300
START_TIMEOUT_S = 120
IDLE_TIMEOUT_S = 60
SHORT_TOKENS = (128, 256, 512)
LONG_TOKENS = (4096, 8192, 16384)
N_SHORT_PROMPTS = 256   # more than fit, so that some are asked again and others are not
LATE_SHARE = 0.5        # of the samples of memory that the slope is fitted to: by then the KV pool was touched


@dataclass
class Totals:
    answered: int = 0
    cancelled: int = 0
    retried: int = 0
    refused: int = 0
    output_events: int = 0
    short_ttft_s: list = field(default_factory=list)
    errors: list = field(default_factory=list)


class Connection:
    """HTTP/1.1 with keep-alive, as much as a stream of answers needs."""

    def __init__(self, host, port):
        self.host, self.port = host, port
        self.reader = self.writer = None

    def close(self):
        if self.writer is not None:
            self.writer.close()
        self.reader = self.writer = None

    async def post(self, path, body):
        """Sends; returns (status, headers). The body is read with `pieces`."""
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection(self.host, self.port)
        payload = json.dumps(body).encode()
        head = (f"POST {path} HTTP/1.1\r\nHost: {self.host}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(payload)}\r\n\r\n")
        self.writer.write(head.encode() + payload)
        await self.writer.drain()
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        return int(lines[0].split()[1]), headers

    async def pieces(self, headers):
        """The body in pieces."""
        if headers.get("transfer-encoding") == "chunked":
            while True:
                n_bytes = int(await self.reader.readuntil(b"\r\n"), 16)
                data = await self.reader.readexactly(n_bytes + 2)
                if n_bytes == 0:
                    break
                yield data[:-2].decode()
        else:
            yield (await self.reader.readexactly(int(headers.get("content-length", 0)))).decode()
        if headers.get("connection", "").lower() == "close":
            self.close()


class Stream:
    """One client: asks until the time is over."""

    def __init__(self, number, options, prompts, totals):
        self.rng = random.Random(options.seed * 1_000_003 + number)
        self.options, self.prompts, self.totals = options, prompts, totals
        self.connection = Connection(options.host, options.port)

    async def run(self, end):
        while time.monotonic() < end:
            dice = self.rng.random()
            if dice < 0.75:
                await self.ask(self.rng.choice(self.prompts["short"]))
            elif dice < 0.85:
                await self.ask(self.rng.choice(self.prompts["short"]), give_up_s=self.rng.uniform(0, 2))
            elif dice < 0.95:
                prompt, salt = self.rng.choice(self.prompts["long"]), str(self.rng.random())
                await self.ask(prompt, give_up_s=self.rng.uniform(0, 5), salt=salt)
                self.totals.retried += 1
                await self.ask(prompt, salt=salt)
            else:
                await self.ask(self.rng.choice(self.prompts["long"]))
        self.connection.close()

    async def ask(self, prompt, give_up_s=None, salt=""):
        stream = self.rng.random() < 0.8
        body = {"prompt": prompt.prompt, "max_tokens": self.rng.choice((3, 8, 32)), "temperature": 0,
                "ignore_eos": True, "stream": stream, "cache_salt": salt}
        try:
            await asyncio.wait_for(self.exchange(prompt, body), give_up_s or REQUEST_TIMEOUT_S)
        except asyncio.TimeoutError:
            self.connection.close()
            if give_up_s is None:
                self.error(f"no answer to {prompt.n_tokens} tokens in {REQUEST_TIMEOUT_S} s")
            else:
                self.totals.cancelled += 1
        except (OSError, asyncio.IncompleteReadError, ValueError, KeyError) as error:
            self.connection.close()
            self.error(f"{type(error).__name__}: {error}")

    async def exchange(self, prompt, body):
        began = time.monotonic()
        status, headers = await self.connection.post("/v1/completions", body)
        if status != 200:
            text = "".join([piece async for piece in self.connection.pieces(headers)])
            if status not in (429, 503) or "retry-after" not in headers:
                return self.error(f"status {status}: {text[:200]}")
            self.totals.refused += 1
            return await asyncio.sleep(min(int(headers["retry-after"]), 5))
        answer, first_s, n_finished = "", None, 0
        async for piece in self.connection.pieces(headers):
            for line in piece.splitlines() if body["stream"] else ["data: " + piece]:
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    return self.error(f"in a stream: {event['error']}")
                for choice in event["choices"]:
                    first_s = first_s or time.monotonic() - began
                    answer += choice["text"]
                    n_finished += choice["finish_reason"] is not None
                    self.totals.output_events += 1
        if n_finished != 1:
            return self.error(f"{n_finished} finish reasons in an answer")
        if not answer.startswith(prompt.answer):
            return self.error(f"wrong answer to {prompt.n_tokens} tokens: {answer[:20]!r}, not {prompt.answer}")
        self.totals.answered += 1
        if body["stream"] and prompt.n_tokens <= SHORT_TOKENS[-1]:
            self.totals.short_ttft_s.append(first_s)

    def error(self, text):
        self.totals.errors.append(text)


def memory_mib(pid):
    """Anonymous memory of a process: what can leak. The mapped model file comes and goes with the page cache."""
    with open(f"/proc/{pid}/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    return int(fields["RssAnon"].split()[0]) / 1024


def slope_per_minute(samples):
    """Least squares over (seconds, value)."""
    if len(samples) < 3:
        return 0.0
    mean_t = sum(t for t, _ in samples) / len(samples)
    mean_v = sum(v for _, v in samples) / len(samples)
    spread = sum((t - mean_t) ** 2 for t, _ in samples)
    return 60 * sum((t - mean_t) * (v - mean_v) for t, v in samples) / spread if spread else 0.0


async def sample_memory(pid, end, samples):
    began = time.monotonic()
    while time.monotonic() < end:
        samples.append((time.monotonic() - began, memory_mib(pid)))
        await asyncio.sleep(0.5)


def read_metrics(url):
    with urllib.request.urlopen(url + "/metrics", timeout=30) as response:
        text = response.read().decode()
    metrics = {}
    for name, value in re.findall(r"^([a-z_:]+)(?:\{[^}]*\})? (\S+)$", text, re.M):
        metrics[name] = metrics.get(name, 0.0) + float(value)
    return metrics


def check_left_over(url, totals):
    """Waits until nothing runs; what does not end is an error."""
    deadline = time.monotonic() + IDLE_TIMEOUT_S
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "longhaul:waiting_tokens",
             "longhaul:kv_pages_used", "longhaul:kv_pages_reserved")
    while True:
        metrics = read_metrics(url)
        left = [f"{name} = {metrics[name]:.0f}" for name in names if metrics[name] != 0]
        if not left:
            break
        if time.monotonic() > deadline:
            totals.errors.append(f"left over {IDLE_TIMEOUT_S} s after the last request: {', '.join(left)}")
            break
        time.sleep(0.2)
    if metrics["longhaul:kv_pages_cached"] > metrics["longhaul:kv_pages"]:
        totals.errors.append("more pages are cached than there are")
    if metrics["longhaul:requests_failed_total"] > 0:
        totals.errors.append(f"the server counts {metrics['longhaul:requests_failed_total']:.0f} failed requests")
    return metrics


class Server:
    """A server of our own, on models/lookup, with a pool small enough to be full after a few seconds."""

    def __init__(self, options):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log = tempfile.NamedTemporaryFile("w+", suffix=".log", prefix="soak-")
        self.process = subprocess.Popen(
            [options.binary, "serve", "--model", os.path.join(ROOT, "models", "lookup"), "--host", "127.0.0.1",
             "--port", str(self.port), "--grpc-port", "0", "--kv-cache-memory", options.kv_cache_memory,
             "--no-request-log"], stdout=self.log, stderr=self.log)

    def wait_ready(self):
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ready", timeout=5):
                    return
            except OSError:
                time.sleep(0.1)
        self.process.kill()
        sys.exit(f"the server did not get ready:\n{self.text()}")

    def stop(self, totals):
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            totals.errors.append("the server did not end in 60 s")
            return
        if code != 0:
            totals.errors.append(f"the server ended with code {code}:\n{self.text()[-2000:]}")
        elif "all free or cached" not in self.text():
            totals.errors.append("the server did not check its pages at the end")

    def text(self):
        self.log.seek(0)
        return self.log.read()


def percentile(values, percent):
    return sorted(values)[min(len(values) - 1, int(len(values) * percent / 100))] if values else float("nan")


def make_prompts(options):
    rng = random.Random(options.seed)
    make = lambda n_tokens: make_haystack(n_tokens, rng.random(), seed=rng.randrange(1 << 30))
    return {"short": [make(rng.choice(SHORT_TOKENS)) for _ in range(N_SHORT_PROMPTS)],
            "long": [make(n_tokens) for n_tokens in LONG_TOKENS for _ in range(3)]}


async def soak(options, pid, totals, samples):
    prompts = make_prompts(options)
    end = time.monotonic() + options.seconds
    tasks = [Stream(i, options, prompts, totals).run(end) for i in range(options.streams)]
    if pid is not None:
        tasks.append(sample_memory(pid, end, samples))
    await asyncio.gather(*tasks)


def report(options, totals, samples, metrics, elapsed_s):
    rows = [("streams", options.streams), ("seconds", f"{elapsed_s:.0f}"), ("answered", totals.answered),
            ("given up", totals.cancelled), ("retried", totals.retried), ("refused", totals.refused),
            ("output events/s", f"{totals.output_events / elapsed_s:.0f}"),
            ("TTFT of short prompts, p50", f"{percentile(totals.short_ttft_s, 50):.2f} s"),
            ("TTFT of short prompts, p99", f"{percentile(totals.short_ttft_s, 99):.2f} s"),
            ("steps", f"{metrics['longhaul:engine_steps_total']:.0f}"),
            ("pages evicted", f"{metrics['longhaul:kv_pages_evicted_total']:.0f}")]
    if samples:
        late = samples[int(len(samples) * (1 - LATE_SHARE)):]
        slope = slope_per_minute(late)
        rows += [("memory, start", f"{samples[0][1]:.1f} MiB"), ("memory, half time", f"{late[0][1]:.1f} MiB"),
                 ("memory, end", f"{samples[-1][1]:.1f} MiB"),
                 ("memory slope, second half", f"{slope:+.2f} MiB/min")]
        if slope > options.max_slope:
            totals.errors.append(f"memory grows by {slope:.2f} MiB/min, allowed are {options.max_slope}")
    rows.append(("errors", len(totals.errors)))
    for name, value in rows:
        print(f"{name:28} {value}")
    for error in totals.errors[:20]:
        print(f"error: {error}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--max-slope", type=float, default=5, help="MiB per minute in the second half")
    parser.add_argument("--url", help="of a server that runs already and serves models/lookup")
    parser.add_argument("--pid", type=int, help="of that server, to watch its memory")
    parser.add_argument("--binary", default=os.path.join(ROOT, "build", "cpu", "server", "longhaul"))
    parser.add_argument("--kv-cache-memory", default="256M", help="of the server that is started here")
    options = parser.parse_args()

    server = None if options.url else Server(options)
    if server is not None:
        server.wait_ready()
        options.url = f"http://127.0.0.1:{server.port}"
    url = urllib.parse.urlsplit(options.url)
    options.host, options.port = url.hostname, url.port or 80
    totals, samples = Totals(), []
    began = time.monotonic()
    try:
        asyncio.run(soak(options, server.process.pid if server else options.pid, totals, samples))
        elapsed_s = time.monotonic() - began
        metrics = check_left_over(options.url, totals)
    finally:
        if server is not None:
            server.stop(totals)
    report(options, totals, samples, metrics, elapsed_s)
    if totals.answered == 0:
        sys.exit("nothing was answered")
    sys.exit(1 if totals.errors else 0)


if __name__ == "__main__":
    main()
