"""Muon: momentum whose matrices are made orthogonal before each step. Learns from far fewer tokens than Adam at this size."""

import collections

import torch


def orthogonal(x, n_steps=5):
    """The nearest orthogonal matrices of a stack [n, rows, columns], roughly, by a Newton-Schulz iteration of fifth order."""
    a, b, c = 3.4445, -4.7750, 2.0315  # steep at zero; ends with singular values between 0.7 and 1.2
    tall = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(n_steps):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(1, 2) if tall else x


class Muon(torch.optim.Optimizer):
    def __init__(self, params, lr, momentum=0.95, weight_decay=0.01):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = collections.defaultdict(list)
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                by_shape[p.shape].append((p, p.grad.lerp(state["momentum"], group["momentum"])))
            for (rows, columns), pairs in by_shape.items():
                scale = group["lr"] * max(1, rows / columns) ** 0.5
                for (p, _), step in zip(pairs, orthogonal(torch.stack([u for _, u in pairs]))):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(step, alpha=-scale)
