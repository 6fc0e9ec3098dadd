"""Start, stop, and everything that can be wrong before the first request."""

import http.client
import json
import os
import shutil
import signal
import socket
import threading

import pytest
from haystack import make_haystack
from server_process import MODEL, ServerProcess, free_ports, run, wait_until


def test_sigterm_drains(start_server):
    server = start_server(shutdown_timeout=300)  # the machine may have other work
    haystack = make_haystack(65536, 0.5, seed=6)
    body = json.dumps({"prompt": haystack.prompt, "max_tokens": 3, "temperature": 0, "stream": True,
                       "return_progress": True, "sparse": {"mode": "dense"}})
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=300)
    connection.request("POST", "/v1/completions", body)
    response = connection.getresponse()
    response.readline()
    probe = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)  # open before the drain
    probe.request("GET", "/ready")
    assert probe.getresponse().read() is not None
    server.process.send_signal(signal.SIGTERM)
    text = "".join(choice["text"] for line in response.read().decode().splitlines() if line.startswith("data: {")
                   for choice in json.loads(line[6:])["choices"])
    assert text == haystack.answer
    assert server.process.wait(20) == 0


def test_ready_turns_503_and_new_requests_are_refused_while_draining(start_server):
    server = start_server()
    body = json.dumps({"prompt": make_haystack(131072, 0.5, seed=6).prompt, "max_tokens": 3, "stream": True,
                       "sparse": {"mode": "dense"}})
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", "/v1/completions", body)
    response = connection.getresponse()
    server.process.send_signal(signal.SIGTERM)

    def not_ready():
        try:
            return server.request("GET", "/ready").status == 503
        except ConnectionError:
            return True  # the listener may already be closed
    wait_until(not_ready, 10, "the end of readiness")
    try:
        assert server.request("POST", "/v1/completions", {"prompt": "a", "max_tokens": 1}).status == 503
    except ConnectionError:
        pass
    response.close()
    connection.close()
    assert server.process.wait(30) in (0, 1)


def test_shutdown_timeout_cuts_off(start_server):
    server = start_server(shutdown_timeout=0.2)
    body = json.dumps({"prompt": make_haystack(131072, 0.5, seed=6).prompt, "max_tokens": 3, "stream": True,
                       "sparse": {"mode": "dense"}})
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", "/v1/completions", body)
    connection.getresponse()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(15) == 1
    connection.close()


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_model_loads_ends_at_once(tmp_path, which):
    folder = shutil.copytree(MODEL, tmp_path / "model")
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")  # nobody writes it: the model loads until the end
    server = ServerProcess(tmp_path / "log", model=folder)
    server.launch()
    try:
        wait_until(lambda: state_of(server) == "loading", 10, "loading")
        server.process.send_signal(which)
        assert server.process.wait(5) == 0
    finally:
        server.process.kill()
    assert "while loading" in server.log()


def state_of(server):
    try:
        return server.request("GET", "/ready").json["status"]
    except ConnectionError:
        return ""


def test_restart_on_the_same_port(start_server, needle):
    server = start_server()
    body = {"prompt": needle.prompt, "max_tokens": 3, "temperature": 0}
    before = server.request("POST", "/v1/completions", body).json["choices"][0]["text"]
    assert server.stop() == 0
    server.start()
    after = server.request("POST", "/v1/completions", body).json["choices"][0]["text"]
    assert before == after == needle.answer


def test_kill_in_the_middle_and_restart(start_server, needle):
    server = start_server()
    threading.Thread(target=lambda: _ignore(server, make_haystack(65536, 0.5, seed=8).prompt), daemon=True).start()
    wait_until(lambda: server.metrics()["vllm:num_requests_running"] == 1)
    server.process.kill()
    server.process.wait()
    server.start()
    body = {"prompt": needle.prompt, "max_tokens": 3, "temperature": 0}
    assert server.request("POST", "/v1/completions", body).json["choices"][0]["text"] == needle.answer


def _ignore(server, prompt):
    try:
        server.request("POST", "/v1/completions", {"prompt": prompt, "sparse": {"mode": "dense"}})
    except (OSError, http.client.HTTPException):
        pass


@pytest.mark.parametrize("which", ["http", "grpc"])
def test_port_in_use(which):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        other = free_ports(1)[0]
        ports = ["--port", port, "--grpc-port", other] if which == "http" else ["--port", other, "--grpc-port", port]
        result = run("serve", "--model", MODEL, "--host", "127.0.0.1", "--kv-cache-memory", "64M", *ports)
    assert result.returncode == 1
    assert str(port) in result.stderr and "in use" in result.stderr


def test_kv_memory_larger_than_the_machine():
    result = run("serve", "--model", MODEL, "--kv-cache-memory", "900000G", "--port", free_ports(1)[0], "--grpc-port", 0)
    assert result.returncode == 1
    assert "kv-cache-memory" in result.stderr or "KV" in result.stderr


def copy_of_the_model(tmp_path):
    return shutil.copytree(MODEL, tmp_path / "model")


def remove(name):
    return lambda folder: (folder / name).unlink()


def truncate(name, n_bytes):
    def cut(folder):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:n_bytes])
    return cut


def replace(name, old, new):
    def edit(folder):
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))
    return edit


@pytest.mark.parametrize("damage, words", [
    (remove("config.json"), ["config.json"]),
    (remove("model.safetensors"), ["safetensors"]),
    (remove("tokenizer.json"), ["tokenizer"]),
    (truncate("config.json", 20), ["config.json"]),
    (truncate("model.safetensors", 4), ["model.safetensors"]),
    (truncate("model.safetensors", 100_000), ["model.safetensors"]),
    (truncate("tokenizer.json", 1000), ["tokenizer.json"]),
    (replace("config.json", '"hidden_size": 128', '"hidden_size": 256'), ["["]),
    (replace("config.json", '"num_hidden_layers": 3', '"num_hidden_layers": 4'), ["model.layers.3"]),
    (replace("config.json", '"num_hidden_layers": 3', '"num_hidden_layers": -3'), ["num_hidden_layers"]),
    (replace("config.json", "LlamaForCausalLM", "MambaForCausalLM"), ["Mamba"]),
])
def test_damaged_model_folder(tmp_path, damage, words):
    folder = copy_of_the_model(tmp_path)
    damage(folder)
    result = run("serve", "--model", folder, "--kv-cache-memory", "64M", "--port", free_ports(1)[0], "--grpc-port", 0)
    assert result.returncode in (1, 2), result.stderr
    for word in words:
        assert word in result.stderr


def test_missing_model_folder():
    result = run("serve", "--model", "/nowhere/model")
    assert result.returncode in (1, 2) and "/nowhere/model" in result.stderr


@pytest.mark.parametrize("arguments, word", [
    (["--no-such-flag", "1"], "no-such-flag"),
    (["--port", "70000"], "port"),
    (["--tensor-parallel-size", "8"], "tensor-parallel-size"),
    (["--sparse-mode", "fast"], "sparse-mode"),
    (["--backend", "cuda"], "cuda"),
])
def test_bad_flags(arguments, word):
    result = run("serve", "--model", MODEL, "--kv-cache-memory", "64M", "--grpc-port", 0, *arguments)
    assert result.returncode in (1, 2)
    assert word in result.stderr


def test_generate_command(tmp_path, needle):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text(needle.prompt)
    result = run("generate", "--model", MODEL, "--prompt-file", prompt, "--max-tokens", 3, "--kv-cache-memory", "64M")
    assert result.returncode == 0, result.stderr
    assert needle.answer in result.stdout


def test_version_and_health(start_server):
    assert run("version").stdout.strip()
    server = start_server()
    assert run("health", "--port", server.port).returncode == 0
    server.stop()
    assert run("health", "--port", server.port).returncode == 1
