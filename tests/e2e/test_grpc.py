"""The gRPC service through a Python client made from the .proto file."""

import grpc
import pytest
from google.protobuf import json_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from haystack import make_haystack


def generate(stubs, metadata=None, **fields):
    """All messages of a call, by kind: ([Progress], text, Summary)."""
    progress, text, summary = [], "", None
    for message in stubs.Generate(stubs.messages.GenerateRequest(**fields), metadata=metadata, timeout=120):
        kind = message.WhichOneof("event")
        if kind == "progress":
            progress.append(message.progress)
        elif kind == "delta":
            text += message.delta.text
        else:
            summary = message.summary
    return progress, text, summary


def test_generate_with_progress_and_summary(stubs):
    haystack = make_haystack(16384, 0.7, seed=9)
    progress, text, summary = generate(stubs, text=haystack.prompt, max_tokens=3, sampling={"temperature": 0},
                                       return_progress=True, sparse={"mode": "sample"}, cache_salt="grpc")
    assert text == haystack.answer
    assert summary.usage.prompt_tokens == 16384 and summary.usage.completion_tokens == 3
    assert summary.sparse.mode == "sample" and 0 < summary.sparse.density < 0.6
    assert summary.sparse.recall_mean >= 0.95
    assert summary.timings.ttft_us >= summary.timings.prefill_us > 0
    assert progress and progress[-1].processed_tokens == 16384


def test_same_answer_as_http(server, stubs, needle):
    body = {"prompt": needle.prompt, "max_tokens": 8, "temperature": 0}
    over_http = server.request("POST", "/v1/completions", body).json["choices"][0]["text"]
    _, over_grpc, _ = generate(stubs, text=needle.prompt, max_tokens=8, sampling={"temperature": 0})
    assert over_grpc == over_http


def test_token_ids_and_tokenize(stubs, needle):
    tokens = stubs.Tokenize(stubs.messages.TokenizeRequest(text=needle.prompt))
    assert len(tokens.ids) == needle.n_tokens
    _, text, summary = generate(stubs, token_ids={"ids": tokens.ids}, max_tokens=3, sampling={"temperature": 0})
    assert text == needle.answer and summary.usage.prompt_tokens == needle.n_tokens
    back = stubs.Detokenize(stubs.messages.DetokenizeRequest(ids=tokens.ids))
    assert back.text == needle.prompt


def test_messages_logprobs_and_n(stubs, needle):
    request = stubs.messages.GenerateRequest(max_tokens=2, n=2, sampling={"temperature": 0, "logprobs": 2})
    request.messages.messages.add(role="user", content=needle.prompt)
    deltas = [m.delta for m in stubs.Generate(request) if m.WhichOneof("event") == "delta"]
    assert {delta.choice for delta in deltas} == {0, 1}
    entries = [entry for delta in deltas for entry in delta.logprobs]
    assert entries and all(len(entry.top) == 2 for entry in entries)


@pytest.mark.parametrize("fields, code", [
    ({}, grpc.StatusCode.INVALID_ARGUMENT),
    ({"text": ""}, grpc.StatusCode.INVALID_ARGUMENT),
    ({"token_ids": {"ids": [-5]}}, grpc.StatusCode.INVALID_ARGUMENT),
    ({"text": "a", "n": 100000}, grpc.StatusCode.INVALID_ARGUMENT),
    ({"text": "a", "sampling": {"temperature": -1}}, grpc.StatusCode.INVALID_ARGUMENT),
    ({"text": "a", "sparse": {"mode": "fast"}}, grpc.StatusCode.INVALID_ARGUMENT),
    ({"text": "a", "model": "gpt-17"}, grpc.StatusCode.NOT_FOUND),
    ({"text": "a", "max_tokens": 10**9}, grpc.StatusCode.OUT_OF_RANGE),
])
def test_bad_requests(stubs, fields, code):
    with pytest.raises(grpc.RpcError) as error:
        generate(stubs, **fields)
    assert error.value.code() == code
    assert error.value.details() or fields == {}


def test_api_key(start_server, make_stubs, needle):
    stubs = make_stubs(start_server(api_key="secret"))
    with pytest.raises(grpc.RpcError) as error:
        generate(stubs, text="a")
    assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED
    _, text, _ = generate(stubs, metadata=[("authorization", "Bearer secret")], text=needle.prompt, max_tokens=3,
                          sampling={"temperature": 0})
    assert text == needle.answer


def test_models_and_server_info(stubs):
    models = stubs.ListModels(stubs.messages.ListModelsRequest()).models
    assert [model.name for model in models] == ["lookup"]
    model = stubs.GetModel(stubs.messages.GetModelRequest())
    assert json_format.MessageToDict(model) == json_format.MessageToDict(models[0])
    assert model.n_layers == 3 and model.max_model_len > 1_000_000
    info = stubs.GetServerInfo(stubs.messages.GetServerInfoRequest())
    assert info.version and info.n_pages_total > 0


def test_health(stubs):
    health = health_pb2_grpc.HealthStub(stubs.channel)
    for service in ("", "longhaul.v1.Inference"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as error:
        health.Check(health_pb2.HealthCheckRequest(service="nobody"))
    assert error.value.code() == grpc.StatusCode.NOT_FOUND


def test_reflection(stubs):
    database = ProtoReflectionDescriptorDatabase(stubs.channel)
    assert "longhaul.v1.Inference" in database.get_services()
    file = database.FindFileContainingSymbol("longhaul.v1.GenerateRequest")
    assert file.package == "longhaul.v1"


def test_million_token_messages_fit(stubs):
    """8 MB of text: twice gRPC's default limit. Refused for its length, not for its size."""
    with pytest.raises(grpc.RpcError) as error:
        generate(stubs, text=" the" * 2_000_000)
    assert error.value.code() == grpc.StatusCode.OUT_OF_RANGE
