"""/v1/completions and /v1/chat/completions through the official client."""

import concurrent.futures
import json

from haystack import make_haystack

LONG = 12  # output tokens: the model would end its answer after four


def complete(client, prompt, **fields):
    fields = {"model": "lookup", "max_tokens": 4, "temperature": 0} | fields
    return client.completions.create(prompt=prompt, **fields)


def test_answer_and_usage(client, needle):
    answer = complete(client, needle.prompt, extra_body={"cache_salt": "usage"})
    assert answer.choices[0].text == needle.answer + "."
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.prompt_tokens == needle.n_tokens
    assert answer.usage.completion_tokens == 4
    assert answer.usage.total_tokens == needle.n_tokens + 4
    assert answer.usage.prompt_tokens_details.cached_tokens == 0
    assert answer.model == "lookup" and answer.object == "text_completion"


def test_same_from_token_ids_and_from_the_cache(server, client, needle):
    ids = server.request("POST", "/tokenize", {"prompt": needle.prompt}).json["tokens"]
    assert len(ids) == needle.n_tokens
    body = {"cache_salt": "ids", "sparse": {"mode": "dense"}}
    cold = complete(client, ids, extra_body=body)
    warm = complete(client, needle.prompt, extra_body=body)
    assert cold.choices[0].text == warm.choices[0].text == needle.answer + "."
    assert cold.usage.prompt_tokens_details.cached_tokens == 0
    assert warm.usage.prompt_tokens_details.cached_tokens >= needle.n_tokens - 64
    other_salt = complete(client, ids, extra_body=body | {"cache_salt": "other tenant"})
    assert other_salt.usage.prompt_tokens_details.cached_tokens == 0


def test_stream_equals_the_whole(client, needle):
    stream = complete(client, needle.prompt, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
    assert text == needle.answer + "."
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert reasons[-1] == "length" and not any(reasons[:-1])
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 4
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_framing_of_the_event_stream(server, needle):
    answer = server.request("POST", "/v1/completions", {"prompt": needle.prompt, "max_tokens": 4, "stream": True})
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    events = answer.text.split("\n\n")
    assert events[-1] == "" and events[-2] == "data: [DONE]"
    for event in events[:-2]:
        assert event.startswith("data: ") and "\n" not in event
        json.loads(event[len("data: "):])


def test_progress_comes_before_text(server):
    haystack = make_haystack(8192, 0.5, seed=3)
    body = {"prompt": haystack.prompt, "max_tokens": 4, "temperature": 0, "stream": True, "return_progress": True,
            "cache_salt": "progress"}
    text = server.request("POST", "/v1/completions", body).text
    chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    progress = [chunk["prompt_progress"] for chunk in chunks if "prompt_progress" in chunk]
    assert len(progress) >= 2
    assert all(p["total"] == 8192 for p in progress)
    done = [p["processed"] for p in progress]
    assert done == sorted(done) and done[-1] == 8192
    first_text = next(i for i, chunk in enumerate(chunks) if chunk["choices"] and chunk["choices"][0]["text"])
    assert all("prompt_progress" not in chunk for chunk in chunks[first_text:])


def test_report_of_the_sparse_prefill(server):
    haystack = make_haystack(16384, 0.5, seed=4)
    body = {"prompt": haystack.prompt, "max_tokens": 4, "temperature": 0, "cache_salt": "report"}
    dense = server.request("POST", "/v1/completions", body | {"sparse": {"mode": "dense"}}).json
    sample = server.request("POST", "/v1/completions", body | {"sparse": {"mode": "sample"}}).json
    assert dense["choices"][0]["text"] == sample["choices"][0]["text"] == haystack.answer + "."
    assert dense["longhaul"]["sparse"]["density"] == 1.0
    report = sample["longhaul"]["sparse"]
    assert report["mode"] == "sample"
    assert 0 < report["density"] < 0.6
    assert 0.95 <= report["recall_mean"] <= 1
    assert 0 <= report["recall_min"] <= report["recall_p1"] <= report["recall_mean"]
    assert report["n_audited"] > 0 and report["n_head_epochs"] > 0
    timings = sample["longhaul"]["timings"]
    assert timings["ttft_s"] >= timings["prefill_s"] > 0


def test_alpha_one_equals_dense(client):
    haystack = make_haystack(4096, 0.1, seed=5)
    logprobs = {}
    for salt, sparse in (("a", {"mode": "dense"}), ("b", {"mode": "sample", "alpha": 1.0})):
        answer = complete(client, haystack.prompt, logprobs=0, extra_body={"sparse": sparse, "cache_salt": salt})
        assert answer.choices[0].text == haystack.answer + "."
        logprobs[salt] = answer.choices[0].logprobs.token_logprobs
    assert all(abs(a - b) < 1e-3 for a, b in zip(logprobs["a"], logprobs["b"]))


def test_stop_string_across_tokens(client, needle):
    stop = needle.answer[2:5]  # its first digit ends one token, the others begin the next
    answer = complete(client, needle.prompt, max_tokens=8, stop=[stop])
    assert answer.choices[0].text == needle.answer[:2]
    assert answer.choices[0].finish_reason == "stop"
    kept = complete(client, needle.prompt, max_tokens=8, stop=[stop], extra_body={"include_stop_str_in_output": True})
    assert kept.choices[0].text == needle.answer[:5]


def test_logprobs_of_completions(client, needle):
    choice = complete(client, needle.prompt, logprobs=3).choices[0]
    assert "".join(choice.logprobs.tokens) == choice.text
    assert choice.logprobs.text_offset == [0, 3, 6, 9]
    for token, logprob, top in zip(choice.logprobs.tokens, choice.logprobs.token_logprobs, choice.logprobs.top_logprobs):
        assert logprob <= 0 and len(top) >= 3
        assert abs(max(top.values()) - logprob) < 1e-6 and token in top


def test_n_choices_share_the_prompt(client, needle):
    answer = complete(client, needle.prompt, n=3, temperature=1, seed=11)
    assert sorted(choice.index for choice in answer.choices) == [0, 1, 2]
    assert answer.usage.prompt_tokens == needle.n_tokens
    again = complete(client, needle.prompt, n=3, temperature=1, seed=11)
    assert [c.text for c in again.choices] == [c.text for c in answer.choices]


def test_echo_and_max_tokens_zero(client, needle):
    answer = complete(client, needle.prompt, max_tokens=0, echo=True)
    assert answer.choices[0].text == needle.prompt
    assert answer.usage.completion_tokens == 0


def test_logit_bias_forbids_and_forces(server, client, needle):
    comma = server.request("POST", "/tokenize", {"prompt": ",", "add_special_tokens": False}).json["tokens"]
    assert len(comma) == 1
    answer = complete(client, needle.prompt, logit_bias={str(comma[0]): 100}, extra_body={"ignore_eos": True})
    assert answer.choices[0].text == ",,,,"


def test_ignore_eos_and_min_tokens(client, needle):
    answer = complete(client, needle.prompt, max_tokens=LONG, extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == LONG and answer.choices[0].finish_reason == "length"


def test_stop_token_ids_end_an_answer_also_without_eos(server, client, needle):
    first = server.request("POST", "/tokenize", {"prompt": needle.answer, "add_special_tokens": False}).json["tokens"][0]
    answer = complete(client, needle.prompt, extra_body={"stop_token_ids": [first], "ignore_eos": True})
    assert answer.choices[0].text == "" and answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].stop_reason == first
    longer = complete(client, needle.prompt, extra_body={"stop_token_ids": [first], "min_tokens": 3})
    assert longer.usage.completion_tokens >= 3


def test_echo_with_logprobs_is_the_prompt_and_the_answer(client, needle):
    ask = {"max_tokens": 4, "echo": True, "logprobs": 2}
    whole = complete(client, needle.prompt, **ask).choices[0]
    assert whole.text == needle.prompt + needle.answer + "."
    assert len(whole.logprobs.tokens) == needle.n_tokens + 4
    assert whole.logprobs.token_logprobs[0] is None and whole.logprobs.top_logprobs[0] is None
    for logprob, top in zip(whole.logprobs.token_logprobs[1:], whole.logprobs.top_logprobs[1:]):
        assert len(top) == 2 and max(top.values()) >= logprob - 1e-6 and logprob <= 0
    chunks = [chunk.choices[0] for chunk in complete(client, needle.prompt, stream=True, **ask)]
    assert "".join(chunk.text for chunk in chunks) == whole.text
    for name in ("tokens", "token_logprobs", "text_offset"):
        parts = [getattr(chunk.logprobs, name) for chunk in chunks if chunk.logprobs]
        assert sum(parts, []) == getattr(whole.logprobs, name)
    # What the answer was drawn from is what the next prompt says of it, dense and in one piece.
    dense = {"sparse": {"mode": "dense"}}
    answer = complete(client, needle.prompt, logprobs=0, extra_body=dense).choices[0]
    again = complete(client, needle.prompt + answer.text, echo=True, logprobs=0, max_tokens=0, extra_body=dense).choices[0]
    for a, b in zip(answer.logprobs.token_logprobs, again.logprobs.token_logprobs[-4:]):
        assert abs(a - b) < 1e-3


def test_prompt_logprobs_have_vllms_shape(client, needle):
    body = {"prompt_logprobs": 2}
    complete(client, needle.prompt)  # in the prefix cache now, and not taken from there
    answer = complete(client, needle.prompt, max_tokens=1, extra_body=body)
    logprobs = answer.choices[0].prompt_logprobs
    assert answer.usage.prompt_tokens_details.cached_tokens == 0
    assert len(logprobs) == needle.n_tokens and logprobs[0] is None
    for token in logprobs[1:]:
        assert 2 <= len(token) <= 3
        ranks = [entry["rank"] for entry in token.values()]
        assert ranks[0] >= 1 and {1, 2} <= set(ranks)
        assert all(entry["logprob"] <= 0 and "decoded_token" in entry for entry in token.values())
    chat = client.chat.completions.create(model="lookup", messages=[{"role": "user", "content": "hi"}],
                                          max_completion_tokens=2, extra_body=body)
    assert len(chat.prompt_logprobs) == chat.usage.prompt_tokens
    assert chat.usage.completion_tokens <= 2


def test_chat_answers_and_streams(client, needle):
    messages = [{"role": "user", "content": needle.prompt}]
    fields = {"model": "lookup", "messages": messages, "max_tokens": 8, "temperature": 0}
    whole = client.chat.completions.create(**fields, logprobs=True, top_logprobs=2)
    message = whole.choices[0].message
    assert message.role == "assistant"
    assert whole.usage.prompt_tokens > needle.n_tokens
    assert len(whole.choices[0].logprobs.content) >= 1
    assert all(len(entry.top_logprobs) == 2 for entry in whole.choices[0].logprobs.content)
    chunks = list(client.chat.completions.create(**fields, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_concurrent_streams_do_not_mix(client):
    haystacks = [make_haystack(512 + 640 * i, i / 12, seed=100 + i) for i in range(12)]

    def ask(haystack):
        stream = complete(client, haystack.prompt, max_tokens=3, stream=True)
        return "".join(choice.text for chunk in stream for choice in chunk.choices)

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, haystacks))
    assert answers == [haystack.answer for haystack in haystacks]


def test_detokenize_inverts_tokenize(server, needle):
    tokens = server.request("POST", "/tokenize", {"prompt": needle.prompt, "add_special_tokens": False}).json["tokens"]
    assert server.request("POST", "/detokenize", {"tokens": tokens}).json["prompt"] == needle.prompt
