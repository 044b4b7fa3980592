"""The high-level encoder: a SigLIP vision tower (Zhai et al. 2023)."""

from __future__ import annotations

import math
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


def resize_grid(positions: Array, rows: int, columns: int) -> Array:
    """Positions [n²,D] of a square grid, resampled bilinearly to [rows·columns,D]."""
    n = math.isqrt(len(positions))
    if (rows, columns) == (n, n):
        return positions
    grid = jax.image.resize(
        positions.reshape(n, n, -1), (rows, columns, positions.shape[1]), "bilinear"
    )
    return grid.reshape(rows * columns, -1)


def block(shape: config.Siglip | config.VideoPrism, rngs: nnx.Rngs) -> Block:
    """One layer of a vision transformer of this width."""
    norm = partial(Norm, shape.width)
    mlp = MLP(shape.width, shape.mlp, shape.width, jax.nn.gelu, rngs)
    return Block(norm(), Attention(shape.width, shape.heads, rngs), norm(), mlp)


class Siglip(nnx.Module):
    """ViT with learned positions, LayerNorm and tanh-GELU.

    The last block stands apart from the stack, so that "head" fine-tuning can take it alone.
    """

    def __init__(self, model: config.Model, rngs: nnx.Rngs):
        shape = model.high
        self.patch, self.dtype = shape.patch, model.dtype
        self.remat, self.unroll = model.remat, model.unroll
        self.embed = Dense(shape.patch**2 * 3, shape.width, rngs)
        tokens = (shape.image // shape.patch) ** 2
        self.positions = nnx.Param(jax.random.normal(rngs.params(), (tokens, shape.width)) * 0.02)
        make = partial(block, shape)
        self.blocks = stack(make, shape.layers - 1, rngs) if shape.layers > 1 else None
        self.last = make(rngs)
        self.norm = Norm(shape.width)

    def __call__(self, images: Array) -> Array:
        """0–255 of any type, [B,H,W,3] → float[B,T_h,D_h]; pixels are scaled to [-1, 1].

        Positions of another grid than the tower's own are interpolated.
        """
        x = patchify(images.astype(jnp.float32) / 127.5 - 1, self.patch)
        grid = [n // self.patch for n in images.shape[1:3]]
        positions = resize_grid(self.positions[...], *grid)
        x = self.embed(x.astype(self.dtype)) + positions.astype(self.dtype)
        if self.blocks is not None:
            x = run(self.blocks, x, remat=self.remat, unroll=self.unroll)
        return self.norm(self.last(x))
