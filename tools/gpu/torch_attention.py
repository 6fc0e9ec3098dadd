#!/usr/bin/env python3
"""PyTorch's scaled_dot_product_attention on the shapes of bench_attention.cc, each back end by itself.
One JSON object per line on stdout. Needs a GPU."""
import json
import statistics
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


def seconds(op):
    runs = []
    for i in range(8):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        op()
        torch.cuda.synchronize()
        if i > 0:
            runs.append(time.perf_counter() - begin)
    return statistics.median(runs)


def main():
    tokens = 4096
    while tokens <= 131072:
        q = torch.randn(1, HEADS, tokens, HEAD_DIM, device="cuda", dtype=torch.bfloat16)
        k = torch.randn(1, KV_HEADS, tokens, HEAD_DIM, device="cuda", dtype=torch.bfloat16)
        v = torch.randn_like(k)
        pairs = HEADS * tokens * (tokens + 1) // 2
        for name, backend in BACKENDS.items():
            try:
                with sdpa_kernel(backend), torch.no_grad():
                    s = seconds(lambda: torch.nn.functional.scaled_dot_product_attention(
                        q, k, v, is_causal=True, enable_gqa=True))
            except RuntimeError as error:
                print(json.dumps({"bench": f"torch_{name}", "tokens": tokens, "error": str(error)[:200]}), flush=True)
                continue
            print(json.dumps({"bench": f"torch_{name}", "tokens": tokens, "ms": round(s * 1e3, 3),
                              "tflops": round(4 * HEAD_DIM * pairs / s * 1e-12, 1)}), flush=True)
        del q, k, v
        tokens *= 2


if __name__ == "__main__":
    main()
