"""The quality predictor f: R^{(T_h+T_l)×D} → R (Sec. 3.1.4)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from cpllm import config
from cpllm.model.layers import MLP


class Predictor(nnx.Module):
    """Two-layer MLP with a ReLU between, on the visual embeddings [u, v] of a frame.

    Not specified in the paper: how (T_h+T_l)×D inputs become one number. "token" applies
    the MLP to each token and takes the mean; "pooled" takes the means of u and of v first
    (flattening would need millions of inputs). A sigmoid bounds the score without ties. All in
    float32: bfloat16 would move in steps of nearly half a point.
    """

    def __init__(self, width: int, model: config.Model, rngs: nnx.Rngs):
        self.pooled = model.predictor == "pooled"
        self.mlp = MLP(
            2 * width if self.pooled else width, model.predictor_hidden, 1, jax.nn.relu, rngs
        )

    def __call__(self, u: Array, v: Array) -> Array:
        """u: [B,T_h,D], v: [B,T_l,D] → quality float32[B] in (0, 1)."""
        u, v = u.astype(jnp.float32), v.astype(jnp.float32)
        if self.pooled:
            means = [x.mean(1) if x.shape[1] else x.sum(1) for x in (u, v)]  # none: unseen
            q = self.mlp(jnp.concatenate(means, -1))[..., 0]
        else:
            q = self.mlp(jnp.concatenate([u, v], 1))[..., 0].mean(1)
        return jax.nn.sigmoid(q)
