"""The high-level encoder: a SigLIP vision tower (Zhai et al. 2023)."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from cpllm import config
from cpllm.model.layers import MLP, Attention, Block, Dense, Norm, run, stack


def patchify(images: Array, patch: int) -> Array:
    """[B,H,W,C] → [B,(H/p)·(W/p),p·p·C], each token flattened in the order (p, q, c)."""
    b, h, w, c = images.shape
    x = images.reshape(b, h // patch, patch, w // patch, patch, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, patch * patch * c)


class Siglip(nnx.Module):
    """ViT with learned positions, LayerNorm and tanh-GELU.

    The last block stands apart from the stack, so that "head" fine-tuning can take it alone.
    """

    def __init__(self, model: config.Model, rngs: nnx.Rngs):
        shape = model.high

        def block(rngs: nnx.Rngs) -> Block:
            norm = partial(Norm, shape.width)
            mlp = MLP(shape.width, shape.mlp, shape.width, jax.nn.gelu, rngs)
            return Block(norm(), Attention(shape.width, shape.heads, rngs), norm(), mlp)

        self.patch, self.dtype, self.remat = shape.patch, model.dtype, model.remat
        self.embed = Dense(shape.patch**2 * 3, shape.width, rngs)
        tokens = (shape.image // shape.patch) ** 2
        self.positions = nnx.Param(jax.random.normal(rngs.params(), (tokens, shape.width)) * 0.02)
        self.blocks = stack(block, shape.layers - 1, rngs) if shape.layers > 1 else None
        self.last = block(rngs)
        self.norm = Norm(shape.width)

    def __call__(self, images: Array) -> Array:
        """uint8[B,H,H,3] → float[B,T_h,D_h]; pixels are scaled to [-1, 1]."""
        x = patchify(images.astype(jnp.float32) / 127.5 - 1, self.patch)
        x = self.embed(x.astype(self.dtype)) + self.positions[...].astype(self.dtype)
        if self.blocks is not None:
            x = run(self.blocks, x, remat=self.remat)
        return self.norm(self.last(x))
