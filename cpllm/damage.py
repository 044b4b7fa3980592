"""Where the low-level encoder sees damage: what its tokens say that their pixels have lost.

A linear readout (Alain and Bengio 2016) of the tokens before they are averaged over patches (Sec.
3.1.2): the encoder isn't changed by it, and what it doesn't know can't be read off it. One patch
slides over the whole frame; what overlapping tokens say of a pixel is averaged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from flax import nnx
from jax import Array

from cpllm import figures, report
from cpllm.card import Readout
from cpllm.data import batches, manifests, video
from cpllm.infer import Scorer
from cpllm.judge import load

if TYPE_CHECKING:
    from cpllm import config

BATCH = 64
"""Patches at once; the last batch is filled up: one compilation serves frames of any size."""

ENCODES = 300
"""On which a readout is fitted, at most."""

PLAIN = 0.5
"""What is lost where the map is darkest, at least: a frame with little damage looks light."""


@dataclass(frozen=True, eq=False)
class Heatmap:
    """Damage by place in a video's middle key frame; shows itself as a picture in a notebook.

    score: this frame's, 0–100, from its K patches. frame: uint8[H,W,3], as the patches are cut from
    it. lost: float32[H,W], √(1 - SSIM) as the tokens tell it without a reference, from 0 (nothing)
    to about 1; its detail is a token's.
    """

    path: str
    score: float
    frame: np.ndarray = field(repr=False)
    lost: np.ndarray = field(repr=False)

    def worst(self) -> tuple[int, int, float]:
        """Row and column of the pixel where most is lost, and how much that is."""
        top, left = np.unravel_index(self.lost.argmax(), self.lost.shape)
        return int(top), int(left), float(self.lost[top, left])

    def blocks(self, size: int = 32) -> np.ndarray:
        """Means over size×size pixels: float32[H//size,W//size]."""
        return figures.block_means(self.lost, size)

    def draw(self) -> plt.Figure:
        """The frame beside its map, dark where damage is seen."""
        height, width = self.lost.shape
        with plt.rc_context(report.style()):
            wide = 11 if width >= height else 7
            figure, axes = plt.subplots(1, 2, figsize=(wide, 0.6 + wide * 0.43 * height / width),
                                        layout="constrained")
            axes[0].imshow(self.frame)
            shown = axes[1].imshow(self.lost, "cividis_r", vmin=0, vmax=max(PLAIN, self.worst()[2]))
            figure.colorbar(shown, ax=axes[1], label="structure lost, √(1 − SSIM)", shrink=0.8)
            axes[0].set_title(f"middle key frame, score {self.score:.1f}")
            axes[1].set_title("where the low-level encoder sees damage: dark")
            for axis in axes:
                axis.axis("off")
        plt.close(figure)
        return figure

    def _repr_png_(self) -> bytes:
        data = BytesIO()
        self.draw().savefig(data, format="png", dpi=80)
        return data.getvalue()


def heatmap(path: str | Path, scorer: Scorer | None = None, stride: int | None = None,
            readout: Readout | None = None) -> Heatmap:
    """Damage by place in the middle key frame of a video, by the default model or another.

    stride: pixels between neighbouring patches; by default a quarter of a patch. readout: as `fit`
    makes it; by default the one in the model's card. `VideoError` for a file that is no video,
    ValueError for a model without a low-level encoder of patches or without a readout.
    """
    scorer = scorer or load()
    readout = readout or own(scorer)
    if readout is None:
        raise ValueError("heat-map: expected a readout of the low-level encoder in the card beside "
                         "the weights, found none; cpllm.damage.fit makes one from encodes")
    cfg = scorer.cfg.video
    frames, at = video.key_frames(path, cfg.key_frames), cfg.key_frames // 2
    frame = fitted(frames[at], cfg)
    score = scorer.frame_scores(batches.model_inputs(frames, cfg))[at]
    return Heatmap(str(path), float(score), frame, lost(scorer, frame, readout, stride))


def own(scorer: Scorer) -> Readout | None:
    """The readout that a model's card holds, if it has one."""
    known = getattr(scorer, "card", None)
    return known and known.readout


def fit(scorer: Scorer, rows: pd.DataFrame, videos: Path) -> Readout:
    """The readout, by least squares on the middle frames of ENCODES encodes and their originals.

    rows: of a manifest, training's; videos: its folder. ValueError where no encode without a fault
    has its original among them.
    """
    from cpllm import pretrain_low

    pairs = pd.Series(manifests.pairs(rows.assign(file=manifests.files), f"heat-map, {videos}"))
    patch, x, y = scorer.cfg.video.patch_size, [], []
    for pair in pairs.sample(min(ENCODES, len(pairs)), random_state=0):
        frames = (fitted(figures.middle(videos / row.file), scorer.cfg.video) for row in pair)
        coded, original = (patches(frame, scorer.cfg.video, patch)[0] for frame in frames)
        told = tokens(scorer, coded)
        x.append(told.reshape(-1, told.shape[-1]))
        y.append(np.ravel(pretrain_low.lost(coded, original, patch // _across(told))))
    x, y = np.concatenate(x), np.concatenate(y)
    centre = x.mean(0)  # a norm's outputs lie in a plane, along which alone they can tell
    weights = np.linalg.lstsq(x - centre, y - y.mean(), rcond=1e-3)[0]
    return Readout(weights.tolist(), float(y.mean() - centre @ weights))


def lost(scorer: Scorer, frame: np.ndarray, readout: Readout,
         stride: int | None = None) -> np.ndarray:
    """float32[H,W] of a fitted frame uint8[H,W,3]: √(1 - SSIM) as its tokens tell it.

    From patches at each place of a grid with this stride, the last row and column at the edge.
    """
    cfg = scorer.cfg.video
    patch = cfg.patch_size
    stride = patch // 4 if stride is None else stride
    if not 1 <= stride <= patch:
        raise ValueError(f"heat-map: expected a stride of 1 to {patch} pixels, got {stride}")
    cut, places = patches(frame, cfg, stride)
    told = tokens(scorer, cut)
    n = _across(told)
    over = np.arange(patch) * n // patch  # each row's and column's token
    total, covered = np.zeros((2, *places.max(0) + patch), np.float32)
    for (top, left), found in zip(places, readout(told).reshape(-1, n, n), strict=True):
        here = np.s_[top:top + patch, left:left + patch]
        total[here] += found[np.ix_(over, over)]
        covered[here] += 1
    height, width = frame.shape[:2]
    return np.maximum(total / covered, 0)[:height, :width]


def fitted(frame: np.ndarray, cfg: config.Video) -> np.ndarray:
    """uint8[H,W,3] as the low-level encoder's patches are cut from it."""
    return batches.fitted(frame[None], cfg)[0]


def patches(frame: np.ndarray, cfg: config.Video, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8[N,P,P,3] that cover a fitted frame, and their corners, int[N,2]."""
    patch, (height, width) = cfg.patch_size, frame.shape[:2]
    sides = [max(-(-side // cfg.align) * cfg.align, patch) for side in (height, width)]
    frame = np.pad(frame, ((0, sides[0] - height), (0, sides[1] - width), (0, 0)), "edge")
    places = np.array(list(product(*(starts(s, patch, stride) for s in sides))))
    return video.cut_patches(frame[None], patch, len(places), places)[0][0], places


def starts(side: int, patch: int, stride: int) -> list[int]:
    """First pixels of patches along a side: every `stride`, and one that ends at the edge.

    >>> starts(150, 64, 32)
    [0, 32, 64, 86]
    """
    return [*range(0, side - patch, stride), side - patch]


def tokens(scorer: Scorer, patches: np.ndarray) -> np.ndarray:
    """float32[N,T_l,D_l]: what the low-level encoder makes of each of uint8[N,P,P,3]."""
    model = scorer.cfg.model
    if model.kind != "cp-llm" or model.encoders == "high":
        raise ValueError(f"heat-map: expected a cp-llm with its low-level encoder, got a "
                         f"{model.kind} with encoders {model.encoders}")
    split = nnx.split(scorer.model.low)
    filled = np.resize(patches, (-(-len(patches) // BATCH) * BATCH, *patches.shape[1:]))
    found = [np.asarray(_encode(*split, some)) for some in np.split(filled, len(filled) // BATCH)]
    return np.concatenate(found)[:len(patches)]


@partial(jax.jit, static_argnums=0)
def _encode(graph: nnx.GraphDef, params: nnx.State, patches: Array) -> Array:
    """float32[N,T_l,D_l] of uint8[N,P,P,3], each in a frame of its own."""
    present = jnp.ones((len(patches), 1), bool)
    return nnx.merge(graph, params)(patches[:, None], present)[:, 0].astype(jnp.float32)


def _across(tokens: np.ndarray) -> int:
    """Tokens along a patch's side, of [N,T_l,D_l]."""
    return math.isqrt(tokens.shape[1])
