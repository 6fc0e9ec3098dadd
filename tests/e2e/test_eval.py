"""`longhaul eval` on models/lookup, in this process and against a server: scores, files, and a run that goes on."""

import json
import shutil
import subprocess
from xml.etree import ElementTree

import pytest
from server_process import MODEL, run

SMALL = ["--depths", "0,0.5,1", "--samples", "1", "--policies", "dense,sample:alpha=0.9"]


def evaluate(*arguments, lengths="2048,6000"):
    return run("eval", "--model", MODEL, "--kv-cache-memory", "256M", *SMALL, "--lengths", lengths, *arguments,
               timeout_s=120)


def scores(report, name):
    """The scores of a policy by (task, length, depth)."""
    policy = next(p for p in report["policies"] if p["name"] == name)
    return {(s["task"], s["length_tokens"], s.get("depth")): s["score"] for s in policy["scores"]}


def check_page(path, policies):
    """Well-formed, draws what it should, loads nothing; and a browser, where there is one, shows the same."""
    text = path.read_text()
    assert not any(outside in text for outside in ("http:", "https:", "src=", "url(", "<script", "<link"))
    headings = [e.text for e in ElementTree.fromstring(text).iter("h2")]
    assert headings == ["Policies", "Against dense", "Where it finds what", "Accuracy against density",
                        "Time to first token", "Recall", "Heads", "All scores"]
    # Heat maps; accuracy, time, histogram, two maps of heads and two scales of colour.
    assert text.count("<svg ") == policies + 7
    chromium = shutil.which("chromium")
    if chromium:
        dom = subprocess.run([chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom",
                              f"file://{path}"], capture_output=True, text=True, timeout=60).stdout
        assert dom.count("<svg ") == policies + 7 and "Accuracy beside speed" in dom


def test_needle_in_process_and_again(tmp_path):
    out, path = tmp_path / "out", tmp_path / "report.json"
    page, tables = tmp_path / "report.html", tmp_path / "report.md"
    result = evaluate("--out", out, "--json", path, "--html", page, "--markdown", tables)
    assert result.returncode == 0, result.stdout + result.stderr
    check_page(page, policies=2)
    headings = [line for line in tables.read_text().splitlines() if line.startswith("#")]
    assert headings == ["# Accuracy beside speed: lookup", "## By task", "## By policy", "## Against dense"]
    assert all(heading.lstrip("# ") in result.stdout for heading in headings[1:])
    assert "12 prompts, 0 of them known already" in result.stderr
    report = json.loads(path.read_text())
    assert [p["name"] for p in report["policies"]] == ["dense", "sample:alpha=0.9"]
    for policy in report["policies"]:
        cells = scores(report, policy["name"])
        assert len(cells) == 6 and set(cells.values()) == {1}, cells
        for sample in policy["samples"]:
            assert 0.98 * sample["length_tokens"] <= sample["prompt_tokens"] <= sample["length_tokens"]
            assert sample["ttft_s"] > 0
    for loss in report["against_dense"]:
        assert loss["policy"] == "sample:alpha=0.9" and loss["worst_task_loss"]["measured"] == 0
        assert loss["recall_mean"]["at_least"] == 0.95 and "agreement" not in loss
    assert [loss["length_tokens"] for loss in report["against_dense"]] == [2048, 6000]
    dense, sample = report["policies"]
    assert dense["density"] == 1 and dense["recall_histogram"] == []
    assert sample["density"] < 0.9 and sum(sample["recall_histogram"]) > 0
    assert sample["lengths"][1]["density"] < sample["lengths"][0]["density"]
    assert sample["recall_p1"] <= sample["recall_mean"]
    heads = sample["heads"]
    # The last of the three layers chooses nothing: only the prompt's last row attends there.
    assert [(h["layer"], h["head"]) for h in heads] == [(layer, head) for layer in range(2) for head in range(4)]
    for head in heads:
        assert head["n_streaming"] + head["n_sparse"] + head["n_dense"] == head["n_epochs"] > 0
    # The first layer looks back three tokens and to the beginning of the text.
    assert all(h["n_streaming"] == h["n_epochs"] and h["density"] < 0.9 for h in heads[:4])

    # A run that was killed while it wrote its last result measures that one alone.
    store = out / "results.jsonl"
    store.write_bytes(store.read_bytes()[:-20])
    result = evaluate("--out", out, "--json", path)
    assert result.returncode == 0 and "12 prompts, 11 of them known already" in result.stderr, result.stderr
    again = json.loads(path.read_text())
    assert scores(again, "sample:alpha=0.9") == scores(report, "sample:alpha=0.9")


def test_perplexity_and_agreement(tmp_path):
    text, path = tmp_path / "text", tmp_path / "report.json"
    text.write_text("The wise baker paints a silver bell. Some calm otter finds the harp near a tower. " * 300)
    result = evaluate("--suites", "ppl,agreement,passage", "--text", text, "--json", path, lengths="4096")
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(path.read_text())
    dense, sample = scores(report, "dense"), scores(report, "sample:alpha=0.9")
    assert dense["agreement", 4096, None] == 1 and dense["kl", 4096, None] < 1e-6
    assert sample["agreement", 4096, None] >= 0.9 and sample["kl", 4096, None] >= 0
    assert dense["ppl", 4096, None] > 1
    buckets = [s for s in report["policies"][0]["scores"] if "bucket" in s]
    assert [s["bucket"][0] for s in buckets] == list(range(0, 4096, 512))


def test_over_http(server, tmp_path):
    path = tmp_path / "report.json"
    result = run("eval", "--url", server.url, *SMALL, "--lengths", "6000", "--json", path)
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(path.read_text())
    assert set(scores(report, "dense").values()) == {1} == set(scores(report, "sample:alpha=0.9").values())
    dense, sample = report["policies"]
    assert dense["density"] == 1 > sample["density"] > 0
    for s in dense["samples"]:
        assert abs(s["prompt_tokens"] - 6000) < 600 and s["ttft_s"] > 0


@pytest.mark.parametrize("arguments, message", [
    (["--suites", "needles"], "suite 'needles' is unknown"),
    (["--suites", "ppl"], "--text"),
    (["--policies", "sample:beta=1"], "'beta' is unknown"),
    (["--lengths", "1000000000"], "--lengths"),
    (["--text", "/nowhere/text"], "cannot open /nowhere/text"),
    (["--json", "/nowhere/report"], "cannot write /nowhere/report"),
    (["--markdown", "/nowhere/report"], "cannot write /nowhere/report"),
    (["--url", "http://127.0.0.1:1", "--suites", "agreement"], "suite 'agreement'"),
])
def test_refusals(arguments, message):
    result = run("eval", "--model", MODEL, "--kv-cache-memory", "256M", *arguments)
    assert result.returncode == 2 and message in result.stderr, result.stderr
