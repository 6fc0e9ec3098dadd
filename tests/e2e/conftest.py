"""Fixtures: one server for the tests that only ask, and a factory for those that start, break or stop one."""

import importlib
import sys
from pathlib import Path

import grpc
import openai
import pytest
from grpc_tools import protoc

sys.path.insert(0, str(Path(__file__).resolve().parent))
TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path[:0] = [str(TOOLS), str(TOOLS / "lookup")]
from haystack import make_haystack  # noqa: E402
from server_process import BINARY, ROOT, ServerProcess  # noqa: E402


def pytest_configure():
    if not BINARY.exists():
        pytest.exit(f"{BINARY} is missing: build the target longhaul, or set LONGHAUL_BINARY", returncode=2)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    with ServerProcess(tmp_path_factory.mktemp("server") / "log") as process:
        yield process


@pytest.fixture
def start_server(tmp_path):
    """start_server(flag=value, ...): a server of the test's own, stopped at its end."""
    started = []

    def start(**flags):
        started.append(ServerProcess(tmp_path / f"log{len(started)}", **flags))
        started[-1].start()
        return started[-1]

    yield start
    for process in started:
        process.stop()


def client_of(server, **options):
    return openai.OpenAI(base_url=server.url + "/v1", api_key=options.pop("api_key", "none"), max_retries=0, timeout=120,
                         **options)


@pytest.fixture
def client(server):
    return client_of(server)


@pytest.fixture(scope="session")
def needle():
    """A prompt of 1024 tokens and what the model answers to it."""
    return make_haystack(1024, 0.3, seed=7)


@pytest.fixture(scope="session")
def make_stubs(tmp_path_factory):
    """make_stubs(server): a client of its gRPC service; `.messages` is the generated module."""
    out = tmp_path_factory.mktemp("stubs")
    proto = ROOT / "proto"
    status = protoc.main(["protoc", f"-I{proto}", f"--python_out={out}", f"--grpc_python_out={out}",
                          str(proto / "longhaul" / "v1" / "inference.proto")])
    assert status == 0
    sys.path.insert(0, str(out))
    messages = importlib.import_module("longhaul.v1.inference_pb2")
    services = importlib.import_module("longhaul.v1.inference_pb2_grpc")

    def make(server):
        limits = [("grpc.max_send_message_length", 64 << 20), ("grpc.max_receive_message_length", 64 << 20)]
        channel = grpc.insecure_channel(server.grpc_target, options=limits)
        stubs = services.InferenceStub(channel)
        stubs.channel, stubs.messages = channel, messages
        return stubs

    return make


@pytest.fixture(scope="session")
def stubs(server, make_stubs):
    return make_stubs(server)
