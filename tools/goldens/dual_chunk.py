"""Logits of a Qwen2 model under dual chunk attention, by its definition (An et al., arXiv 2402.17463, and the
constants of Qwen2.5-1M), in float64 and without a cache. transformers has no such attention.

With c = chunk_size - local_size, a key at position j is rotated by j mod c. A query at position i is rotated
  by i mod c                              for keys of its own chunk of c,
  by min(i mod c + c, chunk_size)         for keys of the chunk before,
  by min(2 c - 1, chunk_size)             for keys of all earlier chunks,
and its scores are multiplied by max(1, 1 + 0.1 ln((i + 1) / original_max_position_embeddings)). (Published
code takes the length of the whole prompt in place of i + 1, so that a row depends on what comes after it;
the last row is the same.)
"""

import torch


def rotate(x, positions, theta):
    """x [H, N, D]: element d and d + D / 2 as a complex number, turned by position * theta^(-2 d / D)."""
    half = x.shape[-1] // 2
    angles = positions.double()[:, None] * theta ** (-torch.arange(half).double() / half)
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], dim=-1)


def attend(q, k, v, theta, dual):
    """q [H, N, D], k and v [KH, N, D] not rotated."""
    n = q.shape[1]
    at = torch.arange(n)
    c = dual["chunk_size"] - dual["local_size"]
    k = rotate(k, at % c, theta).repeat_interleave(q.shape[0] // k.shape[0], dim=0)
    v = v.repeat_interleave(q.shape[0] // v.shape[0], dim=0)
    places = [at % c, (at % c + c).clamp(max=dual["chunk_size"]),
              torch.full_like(at, min(2 * c - 1, dual["chunk_size"]))]
    scores = [rotate(q, place, theta) @ k.transpose(1, 2) for place in places]
    distance = at[:, None] // c - at[None, :] // c
    score = torch.where(distance == 0, scores[0], torch.where(distance == 1, scores[1], scores[2]))
    if dual.get("original_max_position_embeddings"):
        length = (at + 1).double() / dual["original_max_position_embeddings"]
        score = score * (1 + 0.1 * length.log()).clamp(min=1)[:, None]
    score = score / q.shape[-1] ** 0.5
    return score.masked_fill(at[:, None] < at[None, :], float("-inf")).softmax(-1) @ v


def dual_chunk_logits(model, input_ids, dual, theta):
    """[N, V] of every position; model: Qwen2ForCausalLM."""
    model = model.double()
    n = len(input_ids)
    x = model.model.embed_tokens(input_ids)
    for layer in model.model.layers:
        normed = layer.input_layernorm(x)
        attention = layer.self_attn
        dim = attention.head_dim
        q, k, v = (projection(normed).view(n, -1, dim).transpose(0, 1)
                   for projection in (attention.q_proj, attention.k_proj, attention.v_proj))
        x = x + attention.o_proj(attend(q, k, v, theta, dual).transpose(0, 1).reshape(n, -1))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return model.lm_head(model.model.norm(x)).float()
