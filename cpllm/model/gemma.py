"""The language decoder: Gemma (Gemma Team 2024), on embeddings of any kind."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from cpllm import config
from cpllm.model.layers import Attention, Block, Dense, Norm, run, stack


class GatedMLP(nnx.Module):
    """GeGLU: (gelu(x·W_g) ∘ x·W_u)·W_d, without biases."""

    def __init__(self, width: int, hidden: int, rngs: nnx.Rngs):
        self.gate = Dense(width, hidden, rngs, bias=False)
        self.up = Dense(width, hidden, rngs, bias=False)
        self.down = Dense(hidden, width, rngs, bias=False)

    def __call__(self, x: Array) -> Array:
        """[..., D] → [..., D]."""
        return self.down(jax.nn.gelu(self.gate(x)) * self.up(x))


class Gemma(nnx.Module):
    """Decoder with RMSNorm(1 + w), rotary positions, shared key/value heads and a tied head."""

    def __init__(self, model: config.Model, rngs: nnx.Rngs):
        shape = model.decoder
        norm = partial(Norm, shape.width, shifted=True, centre=False)

        def block(rngs: nnx.Rngs) -> Block:
            attention = Attention(
                shape.width,
                shape.heads,
                rngs,
                kv_heads=shape.kv_heads,
                head_dim=shape.head_dim,
                bias=False,
                rank=model.lora_rank,
            )
            return Block(norm(), attention, norm(), GatedMLP(shape.width, shape.mlp, rngs))

        self.dtype, self.remat, scale = model.dtype, model.remat, shape.width**-0.5
        self.table = nnx.Param(jax.random.normal(rngs.params(), (shape.vocab, shape.width)) * scale)
        self.blocks = stack(block, shape.layers, rngs)
        self.norm = norm()

    def embed(self, tokens: Array) -> Array:
        """int[B,L] → float[B,L,D], scaled by √D; projected visual tokens are not scaled."""
        x = self.table[...][tokens].astype(self.dtype)
        return x * jnp.sqrt(x.shape[-1]).astype(x.dtype)

    def __call__(self, x: Array, mask: Array, positions: Array) -> Array:
        """Embeddings [B,T,D], bool[B,T,T], int[B,T] → hidden states [B,T,D]."""
        return self.norm(run(self.blocks, x, mask, positions, self.remat))

    def logits(self, hidden: Array) -> Array:
        """[...,D] → float32[...,V] by the tied embedding table."""
        table = self.table[...].astype(hidden.dtype)
        return jnp.einsum("...d,vd->...v", hidden, table, preferred_element_type=jnp.float32)
