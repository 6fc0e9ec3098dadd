"""A client that goes away frees its request within a slice, and nobody else notices."""

import http.client
import json
import time

import grpc
import pytest
from haystack import make_haystack
from server_process import wait_until

LONG = make_haystack(131072, 0.5, seed=2)


def start_long(server, **fields):
    """A dense prefill of 128K tokens under way: (connection, response)."""
    body = {"prompt": LONG.prompt, "max_tokens": 4, "stream": True, "sparse": {"mode": "dense"},
            "cache_salt": str(time.monotonic_ns())} | fields
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", "/v1/completions", json.dumps(body))
    return connection


def wait_running(server):
    wait_until(lambda: server.metrics()["vllm:num_requests_running"] >= 1, 20, "a running request")


@pytest.mark.parametrize("stream", [True, False])
def test_disconnect_in_prefill_frees_the_pages(server, needle, stream):
    server.wait_idle()
    cancelled = server.metrics()["longhaul:requests_cancelled_total"]
    connection = start_long(server, stream=stream)
    wait_running(server)
    wait_until(lambda: server.metrics()["longhaul:kv_pages_used"] > 0, 10, "pages in use")
    connection.sock.close()
    began = time.monotonic()
    server.wait_idle()
    assert time.monotonic() - began < 5
    assert server.metrics()["longhaul:requests_cancelled_total"] == cancelled + 1
    answer = server.request("POST", "/v1/completions", {"prompt": needle.prompt, "max_tokens": 3, "temperature": 0}).json
    assert answer["choices"][0]["text"] == needle.answer


def test_grpc_cancel_in_prefill(server, stubs):
    server.wait_idle()
    call = stubs.Generate(stubs.messages.GenerateRequest(
        text=LONG.prompt, max_tokens=4, return_progress=True, sparse={"mode": "dense"}, cache_salt="grpc cancel"))
    next(call)
    wait_running(server)
    call.cancel()
    with pytest.raises(grpc.RpcError):
        for _ in call:
            pass
    server.wait_idle()


def test_a_short_request_does_not_wait_for_a_long_one(server, needle):
    server.wait_idle()
    connection = start_long(server)
    wait_running(server)
    began = time.monotonic()
    answer = server.request("POST", "/v1/completions", {"prompt": needle.prompt, "max_tokens": 3, "temperature": 0}).json
    elapsed_s = time.monotonic() - began
    assert answer["choices"][0]["text"] == needle.answer
    assert server.metrics()["vllm:num_requests_running"] >= 1, "the long prefill should still run"
    connection.sock.close()
    server.wait_idle()
    assert elapsed_s < 5


def test_timeout_of_a_request(server):
    body = {"prompt": LONG.prompt, "max_tokens": 4, "timeout": 0.3, "sparse": {"mode": "dense"}, "cache_salt": "t"}
    answer = server.request("POST", "/v1/completions", body)
    # Refused at once when the predicted time does not fit, given up after 0.3 s while nothing is predicted yet.
    assert (answer.status, answer.error["code"]) in ((400, "deadline_unreachable"), (504, "deadline_exceeded"))
    server.wait_idle()


@pytest.mark.parametrize("stream", [True, False])
def test_cancel_by_id(server, stream):
    server.wait_idle()
    request_id = f"cancel-{stream}"
    connection = start_long(server, stream=stream, request_id=request_id)
    wait_running(server)
    assert server.request("POST", "/v1/requests/another/cancel").status == 404
    answer = server.request("POST", f"/v1/requests/{request_id}/cancel")
    assert answer.status == 200 and answer.json == {"id": request_id, "status": "cancelling"}
    began = time.monotonic()
    response = connection.getresponse()
    text = response.read().decode()
    assert time.monotonic() - began < 5
    assert response.getheader("X-Request-Id") == request_id
    assert response.status == (200 if stream else 499)
    assert '"code":"cancelled"' in text
    server.wait_idle()
    assert server.request("POST", f"/v1/requests/{request_id}/cancel").status == 404


def test_grpc_and_http_cancel_each_other(server, stubs):
    server.wait_idle()
    connection = start_long(server, request_id="from-http")
    wait_running(server)
    assert stubs.Cancel(stubs.messages.CancelRequest(request_id="from-http")).n_requests == 1
    assert b'"code":"cancelled"' in connection.getresponse().read()
    call = stubs.Generate(stubs.messages.GenerateRequest(
        request_id="from-grpc", text=LONG.prompt, return_progress=True, sparse={"mode": "dense"}, cache_salt="cancel"))
    next(call)
    assert server.request("POST", "/v1/requests/from-grpc/cancel").status == 200
    with pytest.raises(grpc.RpcError) as error:
        for _ in call:
            pass
    assert error.value.code() == grpc.StatusCode.CANCELLED
    server.wait_idle()
