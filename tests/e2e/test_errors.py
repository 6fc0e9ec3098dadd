"""Bad requests get OpenAI's errors, and the server goes on serving the others."""

import http.client
import json
import socket

import openai
import pytest
from conftest import client_of
from haystack import make_haystack
from server_process import wait_until

LONG_PROMPT = make_haystack(65536, 0.5, seed=1).prompt


@pytest.fixture(autouse=True)
def still_serving(server):
    """Whatever a test did: the next client is answered."""
    yield
    answer = server.request("POST", "/v1/completions", {"prompt": "The", "max_tokens": 1})
    assert answer.status == 200, answer.text


@pytest.mark.parametrize("body, param", [
    (b"{", None),
    (b"[]", None),
    (b'"text"', None),
    (b"", None),
    (b'{"prompt": "\xff\xfe"}', None),
    (b"[" * 100_000, None),
    (b'{"prompt": ""}', None),
    (b'{"max_tokens": 4}', "prompt"),
    (b'{"prompt": 7}', "prompt"),
    (b'{"prompt": []}', "prompt"),
    (b'{"prompt": [-1]}', "prompt"),
    (b'{"prompt": [999999]}', "prompt"),
    (b'{"prompt": [1e99]}', "prompt"),
    (b'{"prompt": ["a", "b"]}', "prompt"),
    (b'{"prompt": "a", "max_tokens": -1}', "max_tokens"),
    (b'{"prompt": "a", "max_tokens": "4"}', "max_tokens"),
    (b'{"prompt": "a", "max_tokens": 99999999999999999999999}', "max_tokens"),
    (b'{"prompt": "a", "n": 0}', "n"),
    (b'{"prompt": "a", "n": 1000000000}', "n"),
    (b'{"prompt": "a", "temperature": -0.1}', "temperature"),
    (b'{"prompt": "a", "temperature": "hot"}', "temperature"),
    (b'{"prompt": "a", "top_p": 1.5}', "top_p"),
    (b'{"prompt": "a", "logprobs": 21}', "logprobs"),
    (b'{"prompt": "a", "prompt_logprobs": 21}', "prompt_logprobs"),
    (b'{"prompt": "a", "prompt_logprobs": 1, "stream": true}', "prompt_logprobs"),
    (b'{"prompt": "a", "stop": ["1","2","3","4","5","6","7","8","9","10","11","12","13","14","15","16","17"]}', "stop"),
    (b'{"prompt": "a", "stream": "yes"}', "stream"),
    (b'{"prompt": "a", "sparse": {"mode": "fast"}}', "sparse.mode"),
    (b'{"prompt": "a", "sparse": {"alpha": 0}}', "sparse"),
    (b'{"prompt": "a", "sparse": {"alpha": 1.5}}', "sparse"),
    (b'{"prompt": "a", "logit_bias": {"999999": 1}}', "logit_bias"),
])
def test_bad_completion_requests(server, body, param):
    answer = server.request("POST", "/v1/completions", body)
    assert answer.status == 400, answer.text
    assert answer.error["type"] == "invalid_request_error"
    assert answer.error["message"]
    if param:
        assert answer.error["param"] == param


@pytest.mark.parametrize("body", [
    {"messages": []},
    {"messages": [{"role": "user", "content": 7}]},
    {"messages": [{"role": "user"}]},
    {"messages": [{"role": "user", "content": "a"}], "chat_template": "{{ messages }}"},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]},
    {"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "function", "function": {"name": "f"}}]},
    {"messages": [{"role": "user", "content": "a"}], "response_format": {"type": "json_object"}},
])
def test_bad_chat_requests(server, body):
    answer = server.request("POST", "/v1/chat/completions", body)
    assert answer.status == 400, answer.text


def test_context_length_is_refused_before_any_work(start_server):
    server = start_server(max_model_len=4096)
    client = client_of(server)
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="lookup", prompt=LONG_PROMPT, max_tokens=4)
    assert refused.value.code == "context_length_exceeded"
    assert "4096" in refused.value.message
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="lookup", prompt="a", max_tokens=4097)
    assert refused.value.code == "context_length_exceeded"
    assert server.metrics()["longhaul:engine_steps_total"] == 0


def test_prompt_larger_than_the_kv_pool(start_server):
    server = start_server(kv_cache_memory="16M")  # some 10 thousand tokens
    with pytest.raises(openai.BadRequestError) as refused:
        client_of(server).completions.create(model="lookup", prompt=LONG_PROMPT, max_tokens=4)
    assert refused.value.code == "context_length_exceeded"
    assert server.request("POST", "/v1/completions", {"prompt": "The", "max_tokens": 1}).status == 200


def test_unknown_model_route_and_method(server, client):
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="gpt-17", prompt="a")
    assert missing.value.code == "model_not_found"
    assert server.request("GET", "/v1/models/gpt-17").status == 404
    assert server.request("GET", "/v2/completions").status == 404
    answer = server.request("GET", "/v1/completions")
    assert answer.status == 405 and answer.headers["Allow"] == "POST"


def test_api_key(start_server):
    server = start_server(api_key="secret")
    assert client_of(server, api_key="secret").models.list().data[0].id == "lookup"
    for wrong in ("wrong", "secre", "secrets"):
        with pytest.raises(openai.AuthenticationError):
            client_of(server, api_key=wrong).models.list()
    for path in ("/metrics", "/version", "/v1/models", "/nowhere"):
        assert server.request("GET", path).status == 401, path
    for path in ("/health", "/ready"):
        assert server.request("GET", path).status == 200, path


def test_body_over_the_limit_is_refused_by_its_declared_length(start_server):
    server = start_server(max_body_bytes=4096)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.putrequest("POST", "/v1/completions")
    connection.putheader("Content-Length", str(10**12))
    connection.endheaders()  # and not one byte of the body
    assert connection.getresponse().status == 413
    connection.close()
    # Undeclared length: chunks until the cap.
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            for _ in range(64):
                raw.sendall(b"400\r\n" + b"a" * 1024 + b"\r\n")
        except OSError:
            pass  # the server need not read on
        try:
            assert b"413" in raw.recv(4096).split(b"\r\n")[0]
        except ConnectionResetError:
            pass  # the same refusal, seen after our own late bytes
    assert server.request("POST", "/v1/completions", {"prompt": "The", "max_tokens": 1}).status == 200


def test_full_queue_says_retry_later(start_server):
    server = start_server(max_num_seqs=1, max_num_queued_reqs=1)
    body = json.dumps({"prompt": LONG_PROMPT, "max_tokens": 1, "stream": True, "sparse": {"mode": "dense"}})
    running = []
    try:
        for n in (1, 2):  # one runs, one waits
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
            connection.request("POST", "/v1/completions", body)
            running.append((connection, connection.getresponse()))
            wait_until(lambda: sum(server.metrics()[name] for name in
                                   ("vllm:num_requests_running", "vllm:num_requests_waiting")) == n)
        refused = server.request("POST", "/v1/completions", {"prompt": "a", "max_tokens": 1})
        assert refused.status == 429, refused.text
        assert refused.error["code"] == "rate_limit_exceeded"
        assert 1 <= int(refused.headers["Retry-After"]) <= 3600
    finally:
        for connection, response in running:
            response.close()
            connection.close()
    server.wait_idle()


def test_garbage_instead_of_http(server):
    for garbage in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"\x00" * 1000, b"A" * 200_000):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
            try:
                raw.sendall(garbage)
                raw.shutdown(socket.SHUT_WR)
                raw.recv(4096)
            except OSError:
                pass
