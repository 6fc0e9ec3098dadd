"""What is said before an answer: deadlines that cannot be met, progress while nothing happens, namespaces of keys."""

import http.client
import json
import time

import openai
import pytest
from conftest import client_of
from haystack import make_haystack
from server_process import MODEL, run, wait_until

LONG = make_haystack(65536, 0.5, seed=3)


def completion(prompt, salt, **fields):
    return {"prompt": prompt, "max_tokens": 3, "temperature": 0, "sparse": {"mode": "dense"}, "cache_salt": salt} | fields


def measure(server, salt):
    """Seconds of a cold dense 32K prefill, which the server learns from too."""
    began = time.monotonic()
    answer = server.request("POST", "/v1/completions", completion(make_haystack(32768, 0.5, seed=4).prompt, salt))
    assert answer.status == 200
    return time.monotonic() - began


@pytest.fixture(scope="module")
def measured(server):
    return measure(server, "measure")


@pytest.mark.parametrize("stream", [True, False])
def test_a_deadline_out_of_reach_is_a_400_at_once(server, measured, stream):
    began = time.monotonic()
    body = completion(LONG.prompt, f"far-{stream}", timeout=measured / 10, stream=stream)
    answer = server.request("POST", "/v1/completions", body)
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "deadline_unreachable", "timeout")
    assert "Retry-After" not in answer.headers
    assert time.monotonic() - began < max(2.0, measured)
    server.wait_idle()


def test_a_cached_prompt_meets_the_deadline_that_it_missed_cold(server, measured):
    prompt = make_haystack(32768, 0.5, seed=5).prompt
    late = completion(prompt, "cached", timeout=measured / 4)
    assert server.request("POST", "/v1/completions", late).status == 400
    assert server.request("POST", "/v1/completions", completion(prompt, "cached")).status == 200
    assert server.request("POST", "/v1/completions", late).status == 200


def test_a_deadline_behind_others_is_a_429_with_a_time(server):
    server.wait_idle()
    measured = measure(server, "again")  # at the speed that the machine has now
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", "/v1/completions", json.dumps(completion(LONG.prompt, "ahead", stream=True)))
    wait_until(lambda: server.metrics()["vllm:num_requests_running"] >= 1, 20, "a running request")
    try:
        # Alone it takes about `measured`: possible, but not beside the other one.
        body = completion(make_haystack(32768, 0.4, seed=6).prompt, "behind", timeout=1.5 * measured)
        answer = server.request("POST", "/v1/completions", body)
        assert answer.status == 429, answer.text
        assert 1 <= int(answer.headers["Retry-After"]) <= 3600
    finally:
        connection.sock.close()
    server.wait_idle()


def test_the_header_counts_as_well(server, measured):
    answer = server.request("POST", "/v1/completions", completion(LONG.prompt, "header", timeout=3600),
                            headers={"X-Request-Timeout": f"{measured / 10}"})
    assert answer.error["code"] == "deadline_unreachable"
    assert server.request("POST", "/v1/completions", {"prompt": "a"}, headers={"X-Request-Timeout": "x"}).status == 400


def test_a_progress_event_every_second(server):
    server.wait_idle()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", "/v1/completions",
                       json.dumps(completion(LONG.prompt, "progress", stream=True, return_progress=True)))
    response = connection.getresponse()
    assert response.status == 200
    events, gaps, last = [], [], time.monotonic()
    for line in response:
        if not line.startswith(b"data: {"):
            continue
        now = time.monotonic()
        gaps.append(now - last)
        last = now
        event = json.loads(line[6:])
        if "prompt_progress" in event:
            events.append(event["prompt_progress"])
    assert len(events) >= 3
    assert max(gaps) < 2.5  # one second, and room for a machine that is busy with tests
    for before, after in zip(events, events[1:]):
        assert after["time_ms"] >= before["time_ms"]
        assert after["processed"] >= before["processed"]
    assert set(events[0]) == {"total", "cache", "cached", "processed", "time_ms", "eta_ms", "phase", "density"}
    assert events[-1]["phase"] == "decode" and events[-1]["processed"] == events[-1]["total"]


def test_keys_do_not_share_cached_prefixes(start_server, tmp_path):
    config = tmp_path / "server.yaml"
    config.write_text("api-key: [alice, bob]\n")
    server = start_server(config=config)
    prompt = make_haystack(4096, 0.5, seed=9).prompt

    def cached(key):
        answer = client_of(server, api_key=key).completions.create(
            model="lookup", prompt=prompt, max_tokens=1, extra_body={"sparse": {"mode": "dense"}})
        return answer.usage.prompt_tokens_details.cached_tokens

    assert cached("alice") == 0
    assert cached("alice") > 3000
    assert cached("bob") == 0
    assert cached("bob") > 3000


@pytest.mark.parametrize("key", ["", " ", "two words"])
def test_keys_that_nobody_can_send_stop_the_start(key):
    result = run("serve", "--model", MODEL, "--api-key", key)
    assert result.returncode == 2
    assert "--api-key" in result.stderr and "key" in result.stderr


def test_openai_client_gets_typed_errors(server, measured):
    client = client_of(server)
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="lookup", prompt=LONG.prompt, max_tokens=1, stream=True,
                                  extra_body={"timeout": measured / 10, "cache_salt": "typed", "sparse": {"mode": "dense"}})
    assert refused.value.code == "deadline_unreachable"
