"""The low-level encoder: VideoPrism's factorised ViT (Zhao et al. 2024), used on patches."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from scipy.fft import dct

from cpllm import config
from cpllm.model.layers import MLP, Attention, Block, Dense, Norm, run, stack
from cpllm.model.siglip import patchify, resize_grid


def box_mean(x: Array, size: int) -> Array:
    """Mean over a size×size window, size odd, clipped at the border. x: [...,H,W,C]."""
    h, w, c = x.shape[-3:]
    rows = x.reshape(*x.shape[:-2], w * c)  # the next pixel's channel lies c further
    sums = _window_sums(_window_sums(rows, size, x.ndim - 3, 1), size, x.ndim - 2, c)
    lines, columns = (np.convolve(np.ones(n), np.ones(size), "same") for n in (h, w))
    return sums.reshape(x.shape) / (lines[:, None, None] * columns[:, None]).astype(np.float32)


def _window_sums(x: Array, size: int, axis: int, stride: int) -> Array:
    """Sums over `size` neighbours, zero beyond the border; sums of 2, 4, 8 … make them up.

    Twice as fast on a CPU as a product with a band matrix, and eight times as a sum of slices.
    """
    n, half = x.shape[axis], size // 2 * stride
    x = jnp.pad(x, [(half, half) if i == axis else (0, 0) for i in range(x.ndim)])
    cut = partial(jax.lax.slice_in_dim, axis=axis)
    total, first, width = jnp.zeros((), x.dtype), 0, stride  # x holds sums of width / stride
    while True:
        if size & (width // stride):
            total, first = total + cut(x, first, first + n), first + width
        if 2 * width > size * stride:
            return total
        x = cut(x, 0, x.shape[axis] - width) + cut(x, width, x.shape[axis])
        width *= 2


def local_normalise(x: Array, size: int = 9, floor: float = 8 / 255) -> Array:
    """(x - mean) / (deviation + floor) over a local window, as MSCN coefficients in BRISQUE.

    Removes the content's brightness and contrast and leaves the texture in which coding
    artefacts live. x: float[...,H,W,C] in [0, 1].
    """
    mean = box_mean(x, size)
    variance = jnp.maximum(box_mean(x * x, size) - mean * mean, 0)
    return (x - mean) / (jnp.sqrt(variance) + floor)


BLOCK = 8
"""Side of a block of `spectrum`: of H.264's larger transform, and of JPEG's."""

COSINES = dct(np.eye(BLOCK), axis=0, norm="ortho").astype(np.float32)
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
STEPS = np.array([0.25, 1, 4, 16], np.float32)
"""Levels of luma against which `spectrum` holds a coefficient, the channels of its image."""


def spectrum(x: Array) -> Array:
    """What quantisation zeroes: 2c² / (c² + t²) - 1 of blocks' DCT coefficients c of luma.

    A codec that saves bits rounds small coefficients to nothing, which pixels hardly show. Each
    stands in its place, once for each t of STEPS: -1 far below t, 1 far above. In the place of c₀₀
    is the mean, from 0 to 1. x: float[...,H,W,3] in [0, 1], sides multiples of BLOCK →
    float[...,H,W,len(STEPS)].
    """
    h, w = x.shape[-3:-1]
    blocks = (255 * x @ LUMA).reshape(*x.shape[:-3], h // BLOCK, BLOCK, w // BLOCK, BLOCK)
    found = jnp.einsum("ij,...hjwk,lk->...hiwl", COSINES, blocks, COSINES)[..., None]
    shares = 2 * found**2 / (found**2 + STEPS**2) - 1
    mean = found[..., :1, :, :1, :] / (255 * BLOCK)
    return shares.at[..., :1, :, :1, :].set(mean).reshape(*x.shape[:-1], len(STEPS))


def centre_crop(x: Array, side: int) -> Array:
    """The middle side×side pixels of [B,H,W,C]."""
    top, left = (x.shape[1] - side) // 2, (x.shape[2] - side) // 2
    return x[:, top : top + side, left : left + side]


class VideoPrism(nnx.Module):
    """Spatial stack per image, then (if it has layers) a temporal stack over a clip."""

    def __init__(self, model: config.Model, rngs: nnx.Rngs):
        shape = model.low
        norm = partial(Norm, shape.width, shifted=True)

        def block(rngs: nnx.Rngs) -> Block:
            attention = Attention(shape.width, shape.heads, rngs, softcap=shape.softcap)
            gelu = partial(jax.nn.gelu, approximate=not shape.exact_gelu)
            return Block(
                norm(), attention, norm(), MLP(shape.width, shape.mlp, shape.width, gelu, rngs)
            )

        if model.clip_patches and not shape.temporal_layers:
            raise ValueError("model.clip_patches: needs model.low.temporal_layers, got 0")
        self.shape, self.local_norm, self.spectrum = shape, model.local_norm, model.spectrum
        self.crop, self.as_clip = model.crop_patches, model.clip_patches
        self.dtype, self.remat, self.unroll = model.dtype, model.remat, model.unroll
        channels = len(STEPS) if model.spectrum else 3
        self.embed = Dense(shape.patch**2 * channels, shape.width, rngs)
        tokens = (shape.image // shape.patch) ** 2
        self.positions = nnx.Param(jax.random.normal(rngs.params(), (tokens, shape.width)) * 0.02)
        self.spatial = stack(block, shape.layers, rngs)
        self.spatial_norm = norm()
        if shape.temporal_layers:
            self.times = nnx.Param(
                jax.random.normal(rngs.params(), (shape.frames, shape.width)) * 0.02
            )
            self.temporal = stack(block, shape.temporal_layers, rngs)
            self.temporal_norm = norm()

    def __call__(self, patches: Array, present: Array) -> Array:
        """K patches of each frame, uint8[B,K,P,P,3] → float[B,K,T_l,D_l]; present: bool[B,K].

        Not specified in the paper: whether the patches pass as images or as one clip, and what
        224 pixels are to tokens of 18. By default a patch is an image, which the temporal layers
        don't see, scaled bilinearly to the tower's side, where its positions fit as they are.
        `crop_patches` keeps the pixels, cuts the middle and interpolates the positions instead.
        """
        b, k, side = patches.shape[:3]
        x = self.texture(patches.reshape(b * k, side, side, 3))
        if self.crop:
            x = centre_crop(x, side // self.shape.patch * self.shape.patch)
        elif side != self.shape.image:
            x = jax.image.resize(x, (b * k, self.shape.image, self.shape.image, 3), "bilinear")
        x = self.images(x)
        x = x.reshape(b, k, *x.shape[1:])
        return self.over_time(x, present) if self.as_clip else x

    def texture(self, x: Array) -> Array:
        """[B,H,W,3] in 0–255 → float[B,H,W,C]: in [0, 1], spectra, or normalised, as configured."""
        x = x.astype(jnp.float32) / 255
        if self.spectrum:
            return spectrum(x)
        if not self.local_norm:
            return x
        # A few at a time: XLA on a CPU else computes each pixel anew for whatever reads it.
        return jax.lax.map(local_normalise, x, batch_size=8)

    def images(self, x: Array) -> Array:
        """The spatial stack alone: float[B,H,W,C] as of `texture` → float[B,T_l,D_l].

        Positions of another grid than the tower's own are interpolated.
        """
        p = self.shape.patch
        grid = resize_grid(self.positions[...], x.shape[1] // p, x.shape[2] // p)
        x = self.embed(patchify(x, p).astype(self.dtype)) + grid.astype(self.dtype)
        return self.spatial_norm(run(self.spatial, x, remat=self.remat, unroll=self.unroll))

    def over_time(self, x: Array, present: Array | None = None) -> Array:
        """The temporal stack over the T tokens of each place: float[B,T,T_l,D_l] → the same.

        present: bool[B,T], the frames that are looked at.
        """
        b, t, n, d = x.shape
        times = self.times[...]
        if t != len(times):
            times = jax.image.resize(times, (t, d), "bilinear")
        x = x.swapaxes(1, 2).reshape(b * n, t, d) + times.astype(x.dtype)
        mask = None if present is None else jnp.repeat(present, n, 0)[:, None]
        x = self.temporal_norm(run(self.temporal, x, mask, remat=self.remat, unroll=self.unroll))
        return x.reshape(b, n, t, d).swapaxes(1, 2)
