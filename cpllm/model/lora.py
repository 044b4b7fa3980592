"""Low-rank adapters (LoRA, Hu et al. 2022) and the choice of trainable leaves."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax import Array

from cpllm import config


class Adapter(nnx.Module):
    """ΔW = A·B of rank R, added to a frozen projection. B starts at zero, so ΔW = 0."""

    def __init__(self, n_in: int, n_out: int, rank: int, rngs: nnx.Rngs):
        self.a = nnx.Param(nnx.initializers.he_uniform()(rngs.params(), (n_in, rank)))
        self.b = nnx.Param(jnp.zeros((rank, n_out)))

    def __call__(self, x: Array) -> Array:
        """[..., n_in] → [..., n_out], to be added to the projection's output."""
        rows = x.reshape(-1, x.shape[-1])  # as in `layers.Dense`
        y = (rows @ self.a[...].astype(x.dtype)) @ self.b[...].astype(x.dtype)
        return y.reshape(*x.shape[:-1], y.shape[-1])


def trainable(model: config.Model) -> nnx.filterlib.Filter:
    """Filter over (path, leaf): what the optimiser moves.

    Always: both projections, the low-level encoder with its pooling norm, the predictor
    and the LoRA adapters. The decoder's own weights only with `decoder_finetune="all"`
    (pocket, which has no public decoder to adapt). The high-level encoder by
    `high_finetune`: "frozen", "head" (its last block and final norm; the paper does not
    define the word) or "all".
    """

    def choose(path: tuple, _leaf) -> bool:
        if path[0] == "decoder":
            return "lora" in path or model.decoder_finetune == "all"
        if path[0] == "high":
            return model.high_finetune == "all" or (
                model.high_finetune == "head" and path[1] in ("last", "norm")
            )
        return True

    return choose
