"""The product's promise, end to end: a key planted at any depth is answered, dense and sparse, cold and
from the prefix cache."""

import pytest
from haystack import make_haystack

DEPTHS = [n / 10 for n in range(11)]


@pytest.mark.parametrize("mode", ["dense", "sample", "auto"])
@pytest.mark.parametrize("n_tokens", [1024, 16384])
def test_every_depth_cold_and_cached(server, n_tokens, mode):
    for depth in DEPTHS:
        haystack = make_haystack(n_tokens, depth, seed=int(depth * 10))
        body = {"prompt": haystack.prompt, "max_tokens": 3, "temperature": 0, "sparse": {"mode": mode},
                "cache_salt": f"needle-{mode}-{n_tokens}"}
        for run in ("cold", "cached"):
            answer = server.request("POST", "/v1/completions", body).json
            assert answer["choices"][0]["text"] == haystack.answer, f"{run}, depth {depth}"
        cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        # Where the policy may be sparse, pages are shared by whole epochs.
        if mode == "dense" or n_tokens > 4096:
            assert cached > n_tokens // 2, f"depth {depth}: {cached} cached"
