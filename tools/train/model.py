"""A Llama: grouped queries, rotary positions, RMSNorm, SwiGLU, tied embeddings. Parameter names are those of the published format."""

import torch
import torch.nn.functional as F
from torch import nn


INITIAL_EMBEDDING = 0.04  # standard deviation


class Linear(nn.Module):
    """Only holds its weight: blocks multiply by several weights at once."""

    def __init__(self, n_in, n_out, std):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in) * std)


class Norm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))


def rms_norm(x, weight, eps):
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def rotate(x, cos, sin):
    """x [batch, tokens, heads, head_dim]; cos, sin [batch, tokens, 1, 2, head_dim / 2], the first half of sin negative."""
    halves = x.unflatten(-1, (2, -1)).float()
    return (halves * cos + halves.flip(-2) * sin).flatten(-2).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = p.n_heads, p.n_kv_heads, p.head_dim
        std = p.hidden_size**-0.5
        self.q_proj = Linear(p.hidden_size, p.n_heads * p.head_dim, std)
        self.k_proj = Linear(p.hidden_size, p.n_kv_heads * p.head_dim, std)
        self.v_proj = Linear(p.hidden_size, p.n_kv_heads * p.head_dim, std)
        self.o_proj = Linear(p.n_heads * p.head_dim, p.hidden_size, 0.0)

    def forward(self, x, cos, sin):
        batch, n_tokens, _ = x.shape
        weight = torch.cat((self.q_proj.weight, self.k_proj.weight, self.v_proj.weight))
        qkv = F.linear(x, weight).view(batch, n_tokens, -1, self.head_dim)
        qk, v = qkv.split((self.n_heads + self.n_kv_heads, self.n_kv_heads), dim=2)
        q, k = rotate(qk, cos, sin).split((self.n_heads, self.n_kv_heads), dim=2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return F.linear(out.transpose(1, 2).reshape(batch, n_tokens, -1), self.o_proj.weight)


class Mlp(nn.Module):
    def __init__(self, p):
        super().__init__()
        std = p.hidden_size**-0.5
        self.gate_proj = Linear(p.hidden_size, p.intermediate_size, std)
        self.up_proj = Linear(p.hidden_size, p.intermediate_size, std)
        self.down_proj = Linear(p.intermediate_size, p.hidden_size, 0.0)

    def forward(self, x):
        weight = torch.cat((self.gate_proj.weight, self.up_proj.weight))
        gate, up = F.linear(x, weight).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, self.down_proj.weight)


class Layer(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.eps = p.rms_norm_eps
        self.input_layernorm = Norm(p.hidden_size)
        self.self_attn = Attention(p)
        self.post_attention_layernorm = Norm(p.hidden_size)
        self.mlp = Mlp(p)

    def forward(self, x, cos, sin):
        x = x + self.self_attn(rms_norm(x, self.input_layernorm.weight, self.eps), cos, sin)
        return x + self.mlp(rms_norm(x, self.post_attention_layernorm.weight, self.eps))


class Decoder(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.embed_tokens = Linear(p.hidden_size, p.vocab_size, INITIAL_EMBEDDING)
        self.layers = nn.ModuleList(Layer(p) for _ in range(p.n_layers))
        self.norm = Norm(p.hidden_size)


class Llama(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.eps = p.rms_norm_eps
        self.model = Decoder(p)
        # In double, as the engine computes them: at position 100000 a float32 frequency is off by a noticeable angle.
        pairs = torch.arange(p.head_dim // 2, dtype=torch.float64)
        self.frequencies = p.rope_theta ** (-2 * pairs / p.head_dim)

        self.start_looking_back(p)

    @torch.no_grad()
    def start_looking_back(self, p):
        """Lets the heads of the first layer begin with the token one, two or three back: the heads that look up what followed the
        last tokens before need these first, and they are what takes longest to form. A direction that all embeddings share
        carries it (the softmax over tokens does not see it); all of it is trained on."""
        n_pairs, n_shared = 8, p.hidden_size**0.5
        direction = F.normalize(torch.randn(p.hidden_size), dim=0)
        self.model.embed_tokens.weight += INITIAL_EMBEDDING * n_shared * direction
        # Behind the norm half of the energy is shared, which makes the shared part (hidden_size / 2)^0.5 long.
        row = 8 / (p.hidden_size / 2) ** 0.5 * direction
        angles = self.frequencies[:n_pairs].float().unsqueeze(1)
        attention, half = self.model.layers[0].self_attn, p.head_dim // 2
        for head in range(p.n_kv_heads):
            attention.k_proj.weight[head * p.head_dim :][:n_pairs] += row
        for head in range(p.n_heads):
            n_back = (1, 2, 1, 3)[head % 4]
            attention.q_proj.weight[head * p.head_dim :][:n_pairs] += (n_back * angles).cos() * row
            attention.q_proj.weight[head * p.head_dim + half :][:n_pairs] -= (n_back * angles).sin() * row

    def rotations(self, positions):
        """Positions int64 [batch, tokens] -> cos, sin as rotate() takes them."""
        angles = positions.double().unsqueeze(-1) * self.frequencies.to(positions.device)
        cos, sin = angles.cos().float(), angles.sin().float()
        return torch.stack((cos, cos), -2).unsqueeze(2), torch.stack((-sin, sin), -2).unsqueeze(2)

    def hidden_rotated(self, tokens, cos, sin):
        """Tokens int64 [batch, tokens] -> normed states [batch, tokens, hidden], float32."""
        x = F.embedding(tokens, self.model.embed_tokens.weight)
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        return rms_norm(x, self.model.norm.weight, self.eps)

    def hidden(self, tokens, positions):
        return self.hidden_rotated(tokens, *self.rotations(positions))

    def logits(self, hidden):
        return F.linear(hidden, self.model.embed_tokens.weight)


def matrices_and_rest(model):
    """The weights of the blocks, which Muon steps, and the embedding and norms, which Adam steps."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return matrices, rest
