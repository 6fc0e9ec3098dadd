"""`longhaul calibrate` on models/lookup: what it writes is served, a run goes on, and what cannot be reached is said."""

import json

import pytest
from haystack import make_haystack
from server_process import MODEL, run


def calibrate(text, out, *arguments):
    return run("calibrate", "--model", MODEL, "--kv-cache-memory", "256M", "--no-self-measure", "--text", text,
               "--out", out, "--samples", "1", *arguments, timeout_s=120)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("calibrate") / "text"
    path.write_text(make_haystack(25000, 0.5, seed=3).prompt)
    return path


def test_what_it_writes_is_served(text, tmp_path, start_server):
    out, numbers, state = tmp_path / "calibrated.yaml", tmp_path / "numbers.json", tmp_path / "state"
    arguments = ["--length", "12288", "--json", numbers, "--resume", state]
    result = calibrate(text, out, *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(numbers.read_text())
    assert report["verdict"] == "found"
    best = report["trials"][report["best"]]
    assert best["text"] == "held out" and best["meets"]
    measured = best["lengths"][0]
    assert measured["density"] < 0.5 and measured["agreement"] == 1 and 0.9 <= measured["recall_mean"] <= 1
    dense = [t["lengths"][0] for t in report["trials"] if t["candidate"] == {"mode": "dense"}]
    assert [d["agreement"] for d in dense] == [1, 1] and all(d["prefill_s"] > measured["prefill_s"] for d in dense)

    # The same again measures nothing and comes to the same end.
    results = (state / "results.jsonl").read_bytes()
    settings = [line for line in out.read_text().splitlines() if not line.startswith("#")]
    assert calibrate(text, out, *arguments).returncode == 0
    assert (state / "results.jsonl").read_bytes() == results
    assert [line for line in out.read_text().splitlines() if not line.startswith("#")] == settings
    assert f"sparse-alpha: {best['candidate']['alpha']}" in settings

    server = start_server(config=out)
    needle = make_haystack(8192, 0.3, seed=5)
    answer = server.request("POST", "/v1/completions",
                            {"model": "lookup", "prompt": needle.prompt, "max_tokens": 8, "temperature": 0})
    assert answer.status == 200, answer.text
    assert answer.json["choices"][0]["text"].startswith(needle.answer)
    assert answer.json["longhaul"]["sparse"]["density"] < 1


def test_a_target_out_of_reach(text, tmp_path):
    out = tmp_path / "calibrated.yaml"
    result = calibrate(text, out, "--length", "2048", "--sparse-mode", "sample", "--epoch-tokens", "512",
                       "--min-recall", "1", "--sparse-alpha", "0.97")
    assert result.returncode == 3, result.stdout + result.stderr
    assert "nothing meets the target" in result.stdout and "Closest: alpha" in result.stdout
    assert 'sparse-mode: "dense"' in out.read_text()


def test_refusals(text, tmp_path):
    latin1 = tmp_path / "latin1"
    latin1.write_bytes("Die Bäume. ".encode("latin1") * 100)
    for path, arguments, message in [
            ("/nowhere/text", [], "cannot open /nowhere/text"),
            (latin1, [], "not UTF-8 at byte 5"),
            (text, ["--length", "16384"], "32768 are needed"),
            (text, ["--length", "4096"], "mode auto is dense"),
            (text, ["--min-recall", "2"], "--min-recall is 2"),
            (text, ["--json", "/nowhere/numbers"], "cannot write /nowhere/numbers")]:
        out = tmp_path / "calibrated.yaml"
        result = calibrate(path, out, *arguments)
        assert result.returncode == 2 and message in result.stderr, result.stderr
        assert not out.exists()
