"""Presets: everything that the recipe decides about size, schedule and vocabulary, in one place."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of training with one window length."""

    n_tokens: int  # tokens of this phase
    window_tokens: int  # length of a row
    batch_tokens: int  # tokens of one optimiser step; a multiple of window_tokens
    micro_tokens: int  # tokens of one forward and backward pass; memory decides
    task_share: float  # rows with retrieval tasks; the others are plain book text


@dataclasses.dataclass(frozen=True)
class Preset:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    phases: tuple[Phase, ...]
    head_dim: int = 64
    # Pairs 16 to 31 of a head turn less than 1.4 radians in 131072 tokens: half of a head compares contents at any distance,
    # the other half tells distances apart.
    rope_theta: float = 1e10
    max_position: int = 131072
    rms_norm_eps: float = 1e-6
    muon_lr: float = 0.02
    adam_lr: float = 3e-3
    warmup_steps: int = 100
    final_lr_share: float = 0.05  # of the peak, reached linearly
    decay_share: float = 0.4  # the last part of all steps, in which the rate falls
    # Book text predicts this share of its positions: the output matrix is a third of the work of a model of this size.
    book_loss_share: float = 0.5

    compiled: bool = True  # by torch.compile: half again as fast, after a minute or two

    @property
    def n_tokens(self):
        return sum(phase.n_tokens for phase in self.phases)


PRESETS = {
    # One H100 or H200 class card, about half an hour.
    "gpu": Preset(
        vocab_size=8192,
        hidden_size=384,
        intermediate_size=1024,
        n_layers=8,
        n_heads=6,
        n_kv_heads=2,
        phases=(
            Phase(1_000_000_000, 2048, 262144, 65536, 0.5),
            Phase(300_000_000, 16384, 262144, 65536, 0.5),
            Phase(100_000_000, 65536, 262144, 65536, 0.6),
        ),
    ),
    # Two CPU cores, hours.
    "cpu": Preset(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=512,
        n_layers=4,
        n_heads=4,
        n_kv_heads=2,
        phases=(
            Phase(6_000_000, 256, 8192, 4096, 0.7),  # retrieval forms within 3 million tokens
            Phase(8_000_000, 512, 16384, 4096, 0.6),
            Phase(7_000_000, 2048, 16384, 4096, 0.6),
            Phase(1_000_000, 8192, 24576, 8192, 0.6),
            Phase(15_000_000, 1024, 16384, 4096, 0.8),
            Phase(6_000_000, 2048, 16384, 4096, 0.8),
            Phase(2_000_000, 8192, 24576, 8192, 0.7),
        ),
    ),
    # A few seconds: for the test of the recipe.
    "smoke": Preset(
        vocab_size=600,
        hidden_size=128,
        intermediate_size=128,
        n_layers=2,
        n_heads=2,
        n_kv_heads=1,
        compiled=False,
        warmup_steps=2,
        phases=(
            Phase(16384, 256, 2048, 1024, 0.5),
            Phase(4096, 512, 2048, 1024, 0.5),
        ),
    ),
}
