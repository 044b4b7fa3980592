"""The language decoder: Gemma (Gemma Team 2024), on embeddings of any kind."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from cpllm import config
from cpllm.model.layers import Attention, Block, ShiftedNorm, dense, run, stack


class GatedMLP(nnx.Module):
    """GeGLU: (gelu(x·W_g) ∘ x·W_u)·W_d, without biases."""

    def __init__(self, width: int, hidden: int, rngs: nnx.Rngs):
        self.gate = dense(width, hidden, rngs, bias=False)
        self.up = dense(width, hidden, rngs, bias=False)
        self.down = dense(hidden, width, rngs, bias=False)

    def __call__(self, x: Array) -> Array:
        """[..., D] → [..., D]."""
        return self.down(jax.nn.gelu(self.gate(x)) * self.up(x))


class Gemma(nnx.Module):
    """Decoder with RMSNorm(1 + w), rotary positions, shared key/value heads and a tied head."""

    def __init__(self, shape: config.Gemma, rank: int, rngs: nnx.Rngs):
        def block(rngs: nnx.Rngs) -> Block:
            attention = Attention(
                shape.width,
                shape.heads,
                rngs,
                kv_heads=shape.kv_heads,
                head_dim=shape.head_dim,
                bias=False,
                rank=rank,
            )
            return Block(
                ShiftedNorm(shape.width, centre=False),
                attention,
                ShiftedNorm(shape.width, centre=False),
                GatedMLP(shape.width, shape.mlp, rngs),
            )

        scale = shape.width**-0.5
        self.table = nnx.Param(jax.random.normal(rngs.params(), (shape.vocab, shape.width)) * scale)
        self.blocks = stack(block, shape.layers, rngs)
        self.norm = ShiftedNorm(shape.width, centre=False)

    def embed(self, tokens: Array) -> Array:
        """int[B,L] → float[B,L,D], scaled by √D; projected visual tokens are not scaled."""
        table = self.table[...]
        return table[tokens] * jnp.sqrt(table.shape[1]).astype(table.dtype)

    def __call__(self, x: Array, mask: Array, positions: Array) -> Array:
        """Embeddings [B,T,D], bool[B,T,T], int[B,T] → hidden states [B,T,D]."""
        return self.norm(run(self.blocks, x, mask, positions))

    def logits(self, hidden: Array) -> Array:
        """[...,D] → float32[...,V] by the tied embedding table."""
        return jnp.asarray(hidden @ self.table[...].T, jnp.float32)
