"""Metrics, request log, health checks and the soak, on the built binary."""

import http.client
import json
import re
import subprocess
import sys
import threading
import time

from haystack import make_haystack
from server_process import BINARY, ENVIRONMENT, ROOT, run, wait_until


def request_lines(server):
    """The JSON objects of the request log."""
    return [json.loads(line[line.index("{"):]) for line in server.log().splitlines() if '{"event":"request"' in line]


def test_request_log_and_metrics(start_server):
    server = start_server()
    haystack = make_haystack(8192, 0.5, seed=3)
    body = {"prompt": haystack.prompt, "max_tokens": 3, "temperature": 0, "sparse": {"mode": "sample"}}
    answer = server.request("POST", "/v1/completions", body, {"X-Request-Id": "first"})
    assert answer.json["choices"][0]["text"] == haystack.answer
    server.request("POST", "/v1/completions", body | {"max_tokens": 1 << 24}, {"X-Request-Id": "too-long"})
    server.request("POST", "/v1/completions", "{" + haystack.prompt, {"X-Request-Id": "no-json"})
    server.request("POST", "/v1/completions", body | {"top_p": 7}, {"X-Request-Id": "invalid"})

    # A line is written just before or just after its answer.
    lines = wait_until(lambda: lines if len(lines := request_lines(server)) >= 4 else None, what="4 lines")
    by_id = {line["request_id"]: line for line in lines}
    first = by_id["first"]
    assert first["status"] == "ok" and first["prompt_tokens"] == haystack.n_tokens and first["output_tokens"] == 3
    assert 0 < first["density"] <= 1 and 0 < first["recall_mean"] <= 1
    assert 0 < first["phases_ms"]["prefill"] < first["ttft_ms"] <= first["e2e_ms"]
    for name, reason in ("too-long", "context_length"), ("no-json", "invalid"), ("invalid", "invalid"):
        assert by_id[name]["status"] == "refused" and by_id[name]["reason"] == reason
        assert by_id[name]["http_status"] == 400
    for words in haystack.prompt[:40], haystack.prompt[-40:], haystack.answer:
        assert words not in server.log()

    metrics = server.metrics()
    assert metrics["longhaul:requests_refused_total"] == 3
    assert metrics["vllm:request_prompt_tokens_sum"] == haystack.n_tokens
    assert metrics["vllm:time_to_first_token_seconds_count"] == 1
    assert metrics["longhaul:attention_density_count"] == 1
    steps = metrics["longhaul:engine_steps_total"]
    assert steps > 0 and metrics["longhaul:step_seconds_count"] == steps
    assert 0 < metrics["longhaul:slice_seconds_count"] <= steps
    assert metrics["longhaul:kv_pages_cached"] > 0 and metrics["longhaul:kv_pages_used"] == 0

    assert server.stop() == 0
    assert "KV pages: all free or cached" in server.log()


def test_request_log_can_be_turned_off(start_server, needle):
    server = start_server(request_log=False)
    server.request("POST", "/v1/completions", {"prompt": needle.prompt, "max_tokens": 3})
    assert server.stop() == 0
    assert request_lines(server) == []


def test_health_command_finds_the_server_by_its_settings(start_server, tmp_path):
    server = start_server()
    config = tmp_path / "config.yaml"
    config.write_text(f"port: {server.port}\nhost: 127.0.0.1\nmax-num-seqs: 3\n")
    assert run("health", "--config", config).returncode == 0
    assert run("health", LONGHAUL_PORT=str(server.port)).returncode == 0
    assert run("health", "--port", 0).returncode == 2
    server.stop()
    assert run("health", "--config", config).returncode == 1


def test_health_answers_while_large_bodies_arrive_and_a_long_prompt_runs(start_server, capsys):
    server = start_server()
    long = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    long.request("POST", "/v1/completions", json.dumps(
        {"prompt": make_haystack(131072, 0.5, seed=2).prompt, "max_tokens": 3, "stream": True, "sparse": {"mode": "dense"}}))
    wait_until(lambda: server.metrics()["vllm:num_requests_running"] == 1, 20, "a running request")
    body = json.dumps({"prompt": "word " * (27 * 1_000_000 // 5)})
    statuses = []
    uploads = [threading.Thread(target=lambda: statuses.append(server.request("POST", "/v1/completions", body).status))
               for _ in range(3)]
    for upload in uploads:
        upload.start()
    latencies = []
    while any(upload.is_alive() for upload in uploads):
        began = time.monotonic()
        assert server.request("GET", "/health").status == 200
        latencies.append(time.monotonic() - began)
        time.sleep(0.002)
    assert statuses == [400] * 3, "longer than the context"
    latencies.sort()
    p50, p99 = (latencies[int(len(latencies) * share)] for share in (0.5, 0.99))
    with capsys.disabled():
        print(f"\n/health beside three 27 MB bodies and a 128K prefill: p50 {p50 * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms "
              f"of {len(latencies)}")
    assert p99 < 1.0  # this process and the server share the machine with whatever else runs
    long.close()


def test_probes_get_through_when_all_connections_are_taken(start_server):
    server = start_server(max_connections=4)
    taken = [http.client.HTTPConnection("127.0.0.1", server.port, timeout=10) for _ in range(4)]
    for connection in taken:
        connection.request("GET", "/version")
        assert connection.getresponse().read()
    assert server.request("GET", "/version").status == 503
    assert server.request("GET", "/health").status == 200
    assert server.request("GET", "/ready").status == 200
    for connection in taken:
        connection.close()
    wait_until(lambda: server.request("GET", "/version").status == 200, what="a free connection")


def test_soak():
    result = subprocess.run([sys.executable, ROOT / "tools" / "soak.py", "--streams", "50", "--seconds", "20",
                             "--binary", BINARY, "--max-slope", "1000"], capture_output=True, text=True, timeout=300,
                            env=ENVIRONMENT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert int(re.search(r"^answered +(\d+)$", result.stdout, re.M)[1]) >= 50
