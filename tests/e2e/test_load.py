"""`longhaul bench load` against the real server, every scenario shortened, and against a peer that knows only
OpenAI's fields. Structure and counts are asserted; times only where they cannot depend on the machine."""

import http.server
import json
import threading
import xml.etree.ElementTree as tree

import pytest
from server_process import run

SIZES = ["--short-tokens", "256", "--long-tokens", "16384", "--parallel-tokens", "16384", "--seconds", "3",
         "--cancels", "2", "--retries", "2", "--streams", "8", "--stream-output", "8"]


def bench(url, tmp_path, *arguments, sizes=SIZES):
    """The finished process and the reports by scenario."""
    path = tmp_path / "load.json"
    result = run("bench", "load", "--url", url, *sizes, "--json", path, *arguments, timeout_s=180)
    return result, json.loads(path.read_text())["scenarios"] if path.exists() and path.stat().st_size else {}


def scenario(server, tmp_path, name, *arguments):
    """The report of one scenario on our server, dense, so that 16384 tokens take a while."""
    server.wait_idle()
    result, reports = bench(server.url, tmp_path, "--scenario", name, "--sparse-mode", "dense", *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "FAILED" not in result.stdout
    assert list(reports) == [name]
    report = reports[name]
    assert report["failures"] == {} and "skipped" not in report, report
    return report


def test_mixed(server, tmp_path):
    svg = tmp_path / "load.svg"
    report = scenario(server, tmp_path, "mixed", "--utilisation", "0.2", "--svg", svg)
    for window in ("without", "with"):
        ttft = report[window]["ttft_s"]
        assert ttft["n"] >= 5 and ttft["n"] == report[window]["n_short"]
        assert 0 < ttft["p50"] <= ttft["p90"] <= ttft["p99"] <= ttft["max"]
        assert report[window]["n_right"] == ttft["n"], "a wrong answer under load"
        # 16 tokens, so 15 gaps; several tokens may arrive as one.
        assert report[window]["itl_s"]["n"] > 2 * ttft["n"]
    assert report["long_among_ttft_s"]["n"] >= 1
    assert report["slow_down"] > 0
    root = tree.parse(svg).getroot()
    names = [element.tag.rpartition("}")[2] for element in root.iter()]
    # The points of both windows and two in the legend; the legend's square and the shaded spans.
    assert names.count("circle") == report["without"]["ttft_s"]["n"] + report["with"]["ttft_s"]["n"] + 2
    assert names.count("path") == 1
    assert names.count("rect") >= 4


def test_parallel(server, tmp_path):
    report = scenario(server, tmp_path, "parallel", "--parallel", "3")
    assert [prompt["complete"] for prompt in report["prompts"]] == [True] * 3
    for prompt in report["prompts"]:
        shares = [share for _, share in prompt["progress"]]
        assert shares == sorted(shares) and shares[-1] == 1
    assert report["least_share_at_half"] > 0, "every prompt advances"


def test_cancel(server, tmp_path):
    report = scenario(server, tmp_path, "cancel")
    assert report["after_cancel_ttft_s"]["n"] == 2
    assert report["settled_s"]["n"] == 2 and report["n_not_settled"] == 0
    server.wait_idle()


def test_retry(server, tmp_path):
    report = scenario(server, tmp_path, "retry")
    assert report["prompt_tokens"] == 16384, "sized by the server's own count"
    assert report["retry_share"] < 0.5
    assert report["retry_cached_tokens"] >= 0.5 * 16384
    assert report["grown_share"] < 0.5
    assert report["grown_cached_tokens"] >= 0.9 * 16384


def test_health(server, tmp_path):
    report = scenario(server, tmp_path, "health", "--body-bytes", "27000000")
    assert report["loaded_s"]["n"] >= 100
    assert report["n_bodies"] >= 1
    assert report["loaded_s"]["p50"] < 0.5


def test_streams(server, tmp_path):
    report = scenario(server, tmp_path, "streams")
    assert report["n_requests"] == report["n_complete"] == report["n_right"] >= 8
    assert report["tokens_per_s"] > 0


def test_prompts_of_two_runs_share_nothing(server, tmp_path):
    before = server.metrics()["vllm:prefix_cache_hits_total"]
    for _ in range(2):
        scenario(server, tmp_path, "streams", "--seconds", "0.5")
    assert server.metrics()["vllm:prefix_cache_hits_total"] == before


def test_a_full_queue_is_counted(start_server, tmp_path):
    server = start_server(max_num_seqs=1, max_num_queued_reqs=1)
    result, reports = bench(server.url, tmp_path, "--scenario", "streams", "--streams", "16")
    assert result.returncode == 1
    kinds = reports["streams"]["failures"]
    assert any(kind.startswith("HTTP 429") for kind in kinds), kinds
    assert "FAILED" in result.stdout
    assert reports["streams"]["n_complete"] > 0


class Peer(http.server.BaseHTTPRequestHandler):
    """An OpenAI server that knows nothing of ours: no /health, no metrics, strict about fields."""

    KNOWN = {"model", "prompt", "max_tokens", "temperature", "stream", "stream_options"}

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path == "/v1/models":
            self.reply(200, json.dumps({"object": "list", "data": [{"id": "peer", "object": "model"}]}))
        else:
            self.reply(404, "not here")

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        unknown = set(body) - self.KNOWN
        if unknown:
            return self.reply(400, json.dumps({"error": {"message": f"unknown: {unknown}", "code": "unknown_field"}}))
        chunks = [{"choices": [{"text": "a "}]}] * body["max_tokens"]
        chunks.append({"choices": [{"text": "", "finish_reason": "length"}]})
        chunks.append({"choices": [], "usage": {"prompt_tokens": len(body["prompt"].split()),
                                                "completion_tokens": body["max_tokens"]}})
        text = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
        self.reply(200, text + "data: [DONE]\n\n", "text/event-stream")

    def reply(self, status, text, content_type="application/json"):
        try:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())
        except OSError:
            pass


@pytest.fixture
def peer():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Peer)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_a_peer_gets_standard_fields_only(peer, tmp_path):
    small = ["--short-tokens", "256", "--long-tokens", "2048", "--parallel-tokens", "1024", "--seconds", "1", "--cancels",
             "1", "--retries", "1", "--streams", "2", "--utilisation", "0.2"]
    result, reports = bench(peer, tmp_path, sizes=small)
    assert list(reports) == sorted(["mixed", "parallel", "cancel", "retry", "health", "streams"])
    assert "/health" in reports["health"]["skipped"]
    assert all("skipped" not in report for name, report in reports.items() if name != "health")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "did not run: this server has no /health" in result.stdout
    assert "no metrics" in result.stdout and "no progress" in result.stdout


def test_extensions_are_not_for_peers(peer, tmp_path):
    result, _ = bench(peer, tmp_path, "--sparse-mode", "sample")
    assert result.returncode == 2 and "--sparse-mode" in result.stderr
    result, _ = bench(peer, tmp_path, "--scenario", "streams", "--extra-body", '{"ignore_eos": true}')
    assert result.returncode == 1 and "unknown_field" in result.stderr


@pytest.mark.parametrize("arguments, word", [
    (["--url", "localhost:8000"], "http://"),
    (["--scenario", "everything"], "everything"),
    (["--utilisation", "2"], "--utilisation"),
    (["--long-tokens", "1"], "--long-tokens"),
    (["--json", "/no/such/folder/x"], "/no/such/folder/x"),
])
def test_unusable_arguments(arguments, word):
    result = run("bench", "load", *arguments)
    assert result.returncode == 2 and word in result.stderr
