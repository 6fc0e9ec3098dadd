"""Runs the built binary as a user would: a process, its ports, its log, its signals."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
BINARY = Path(os.environ.get("LONGHAUL_BINARY", ROOT / "build" / "cpu" / "server" / "longhaul"))
MODEL = ROOT / "models" / "lookup"
START_TIMEOUT_S = 60
# Without the LONGHAUL_* settings of whoever runs the tests.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("LONGHAUL_")}


def free_ports(n):
    """n ports that nobody listens on now; all are held open until the last is found."""
    probes = [socket.socket() for _ in range(n)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def run(*arguments, timeout_s=60, **settings):
    """Runs the program to its end; `settings` go into its environment."""
    return subprocess.run([str(BINARY), *map(str, arguments)], capture_output=True, text=True, timeout=timeout_s,
                          cwd=ROOT, env=ENVIRONMENT | settings)


def wait_until(condition, timeout_s=10, what="the condition"):
    """Polls; fails the test with `what` when the time is over."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what} did not come true in {timeout_s} s")


class ServerProcess:
    """`longhaul serve` on free ports of this machine. Use as a context manager."""

    def __init__(self, log_path, model=MODEL, port=None, grpc_port=None, **flags):
        free = free_ports(2)
        self.port = port or free[0]
        self.grpc_port = grpc_port or free[1]
        self.log_path = Path(log_path)
        flags = {"kv_cache_memory": "1G", "host": "127.0.0.1"} | flags
        self.arguments = ["serve", "--model", str(model), "--port", str(self.port), "--grpc-port", str(self.grpc_port)]
        for name, value in flags.items():
            flag = name.replace("_", "-")
            self.arguments += [f"--no-{flag}"] if value is False else [f"--{flag}", str(value)]
        self.process = None

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def launch(self):
        """Starts the process, and does not wait for it."""
        with open(self.log_path, "a") as log:
            self.process = subprocess.Popen([str(BINARY), *self.arguments], stdout=log, stderr=log, cwd=ROOT,
                                            env=ENVIRONMENT)

    def start(self):
        self.launch()
        try:
            wait_until(self._ready_or_dead, START_TIMEOUT_S, "readiness")
            assert self.process.poll() is None, f"the server ended:\n{self.log()}"
        except AssertionError:
            self.stop()
            raise

    def _ready_or_dead(self):
        if self.process.poll() is not None:
            return True
        try:
            return self.request("GET", "/ready", timeout_s=2).status == 200
        except OSError:
            return False

    def stop(self):
        """Ends the process; returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return self.process.returncode

    def log(self):
        return self.log_path.read_text()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    @property
    def grpc_target(self):
        return f"127.0.0.1:{self.grpc_port}"

    def request(self, method, path, body=None, headers=None, timeout_s=60):
        """One HTTP request on its own connection; the answer has .status, .headers, .text and .json."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            if body is not None and not isinstance(body, (bytes, str)):
                body = json.dumps(body)
            connection.request(method, path, body, {"Content-Type": "application/json"} | (headers or {}))
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def metrics(self):
        """Samples without buckets, by name; labels are dropped, values of one name are added."""
        samples = {}
        for name, value in re.findall(r"^([a-z_:]+)(?:\{[^}]*\})? (\S+)$", self.request("GET", "/metrics").text, re.M):
            samples[name] = samples.get(name, 0.0) + float(value)
        return samples

    def wait_idle(self):
        """Until no request runs and no page is held by one."""
        def idle():
            metrics = self.metrics()
            return metrics["vllm:num_requests_running"] == 0 and metrics["longhaul:kv_pages_used"] == 0
        wait_until(idle, 30, "an idle server with all pages free or cached")


class Answer:
    def __init__(self, response):
        self.status = response.status
        self.headers = response.headers
        self.text = response.read().decode("utf-8", "replace")

    @property
    def json(self):
        return json.loads(self.text)

    @property
    def error(self):
        return self.json["error"]
