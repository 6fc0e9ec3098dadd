"""A trained model answers: facts told in a long text are asked for in a chat, and the answers are right.

The model is small and need not be right always: of four facts at four depths, three at least.
"""

import pytest
from facts import make_story
from server_process import ROOT, ServerProcess

MODEL = ROOT / "models" / "longhaul-mini"
N_TOKENS = 8400  # two epochs and some more: the second question and the next find them in the prefix cache
LEAST_RIGHT = 3


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    with ServerProcess(tmp_path_factory.mktemp("mini") / "log", model=MODEL) as process:
        yield process


@pytest.fixture(scope="module")
def story(mini):
    return make_story(N_TOKENS, seed=1, count_tokens=lambda text: mini.request(
        "POST", "/tokenize", {"prompt": text}).json["count"])


def ask(server, prompt, mode):
    """The answer, and the reply that holds it."""
    body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 32, "temperature": 0,
            "sparse": {"mode": mode}, "cache_salt": mode}
    reply = server.request("POST", "/v1/chat/completions", body).json
    return reply["choices"][0]["message"]["content"], reply


@pytest.mark.parametrize("mode", ["dense", "sample"])
def test_facts_of_a_long_text(mini, story, mode):
    replies = [ask(mini, story.prompt(fact), mode) for fact in story.facts]
    answers = [(fact.value, answer) for fact, (answer, _) in zip(story.facts, replies)]
    assert sum(value in answer for value, answer in answers) >= LEAST_RIGHT, answers
    _, first = replies[0]
    assert first["usage"]["prompt_tokens"] == pytest.approx(N_TOKENS, rel=0.03)
    sparse = first["longhaul"]["sparse"]
    assert (sparse["density"] == 1) == (mode == "dense")
    assert sparse["recall_mean"] >= 0.9


def test_the_same_over_grpc(mini, story, make_stubs):
    stubs, prompt = make_stubs(mini), story.prompt(story.facts[1])
    over_http, _ = ask(mini, prompt, "sample")
    request = stubs.messages.GenerateRequest(max_tokens=32, sampling={"temperature": 0}, sparse={"mode": "sample"},
                                             cache_salt="sample")
    request.messages.messages.add(role="user", content=prompt)
    text = "".join(m.delta.text for m in stubs.Generate(request, timeout=120) if m.WhichOneof("event") == "delta")
    assert text == over_http and story.facts[1].value in text
