"""The low-level encoder: VideoPrism's factorised ViT (Zhao et al. 2024), used on patches."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from cpllm import config
from cpllm.model.layers import MLP, Attention, Block, ShiftedNorm, dense, run, stack
from cpllm.model.siglip import patchify


def box_mean(x: Array, size: int) -> Array:
    """Mean over a size×size window, clipped at the border. x: [B,H,W,C]."""

    def band(n: int) -> Array:
        near = jnp.abs(jnp.arange(n)[:, None] - jnp.arange(n)) <= size // 2
        return near / near.sum(1, keepdims=True)

    return jnp.einsum("ih,jw,bhwc->bijc", band(x.shape[1]), band(x.shape[2]), x)


def local_normalise(x: Array, size: int = 9, floor: float = 8 / 255) -> Array:
    """(x - mean) / (deviation + floor) over a local window, as MSCN coefficients in BRISQUE.

    Removes the content's brightness and contrast and leaves the texture in which coding
    artefacts live. x: float[B,H,W,C] in [0, 1].
    """
    mean = box_mean(x, size)
    variance = jnp.maximum(box_mean(x * x, size) - mean * mean, 0)
    return (x - mean) / (jnp.sqrt(variance) + floor)


class VideoPrism(nnx.Module):
    """Spatial stack per image, then (if it has layers) a temporal stack over a clip."""

    def __init__(self, shape: config.VideoPrism, local_norm: bool, rngs: nnx.Rngs):
        def block(rngs: nnx.Rngs) -> Block:
            norm = partial(ShiftedNorm, shape.width, centre=True)
            attention = Attention(shape.width, shape.heads, rngs, softcap=shape.softcap)
            gelu = partial(jax.nn.gelu, approximate=False)
            return Block(
                norm(), attention, norm(), MLP(shape.width, shape.mlp, shape.width, gelu, rngs)
            )

        self.shape, self.local_norm = shape, local_norm
        self.embed = dense(shape.patch**2 * 3, shape.width, rngs)
        tokens = (shape.image // shape.patch) ** 2
        self.positions = nnx.Param(jax.random.normal(rngs.params(), (tokens, shape.width)) * 0.02)
        self.spatial = stack(block, shape.layers, rngs)
        self.spatial_norm = ShiftedNorm(shape.width, centre=True)
        if shape.temporal_layers:  # in the checkpoint; see __call__
            self.times = nnx.Param(
                jax.random.normal(rngs.params(), (shape.frames, shape.width)) * 0.02
            )
            self.temporal = stack(block, shape.temporal_layers, rngs)
            self.temporal_norm = ShiftedNorm(shape.width, centre=True)

    def __call__(self, patches: Array) -> Array:
        """uint8[B,P,P,3] → float[B,T_l,D_l]; pixels in [0, 1], resized bilinearly to the tower.

        A patch is an image to the tower (T=1): the temporal stack is not applied. The paper
        does not say whether the K patches pass as images or as one clip.
        """
        x = patches.astype(jnp.float32) / 255
        if self.local_norm:
            x = local_normalise(x)
        if x.shape[1] != self.shape.image:
            size = (x.shape[0], self.shape.image, self.shape.image, 3)
            x = jax.image.resize(x, size, "bilinear")
        x = self.embed(patchify(x, self.shape.patch)) + self.positions[...]
        return self.spatial_norm(run(self.spatial, x))
