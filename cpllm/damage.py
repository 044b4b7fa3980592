"""Where the low-level encoder sees damage: the score that each place of a frame speaks for.

A frame's v is the mean over its K patches (Sec. 3.1.2). Here one patch takes the place of all K,
while u stays the frame's own, and the quality predictor says what the frame would then be worth.
That patch slides over the whole frame; where patches overlap, their scores are averaged.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from itertools import product
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx
from jax import Array

from cpllm import figures, report
from cpllm.data import video
from cpllm.data.batches import model_inputs
from cpllm.infer import Scorer
from cpllm.judge import load

BATCH = 64
"""Patches at once; the last batch is filled up: one compilation serves frames of any size."""


@dataclass(frozen=True, eq=False)
class Heatmap:
    """Quality by place in a video's middle key frame; shows itself as a picture in a notebook.

    score: this frame's, 0–100, from its K patches. frame: uint8[H,W,3], as the patches are cut from
    it. quality: float32[H,W], 0–100, higher is better; its detail is that of a patch, of which
    each pixel averages several.
    """

    path: str
    score: float
    frame: np.ndarray = field(repr=False)
    quality: np.ndarray = field(repr=False)

    def lowest(self) -> tuple[int, int, float]:
        """Row and column of the pixel with the least quality, and that quality."""
        top, left = np.unravel_index(self.quality.argmin(), self.quality.shape)
        return int(top), int(left), float(self.quality[top, left])

    def blocks(self, size: int = 32) -> np.ndarray:
        """Means over size×size pixels: float32[H//size,W//size]."""
        return figures.block_means(self.quality, size)

    def draw(self) -> plt.Figure:
        """The frame beside its map, dark where damage is seen."""
        height, width = self.quality.shape
        with plt.rc_context(report.style()):
            wide = 11 if width >= height else 7
            figure, axes = plt.subplots(1, 2, figsize=(wide, 0.6 + wide * 0.43 * height / width),
                                        layout="constrained")
            axes[0].imshow(self.frame)
            shown = axes[1].imshow(self.quality, "cividis")
            figure.colorbar(shown, ax=axes[1], label="quality spoken for (0–100)", shrink=0.8)
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


def heatmap(path: str | Path, scorer: Scorer | None = None, stride: int | None = None) -> Heatmap:
    """Quality by place in the middle key frame of a video, by the default model or another.

    stride: pixels between neighbouring patches; by default a quarter of a patch. `VideoError` for
    a file that is no video, ValueError for a model without a low-level encoder of patches.
    """
    scorer = scorer or load()
    cfg = scorer.cfg.video
    frames, at = video.key_frames(path, cfg.key_frames), cfg.key_frames // 2
    inputs = model_inputs(frames, cfg)
    frame = video.fit(frames[at:at + 1], cfg.fit_height, cfg.fit_width, cfg.enlarge)[0]
    found = quality(scorer, frame, inputs["view"][at], stride)
    return Heatmap(str(path), float(scorer.frame_scores(inputs)[at]), frame, found)


def quality(scorer: Scorer, frame: np.ndarray, view: np.ndarray,
            stride: int | None = None) -> np.ndarray:
    """float32[H,W] of a fitted frame uint8[H,W,3], given the high-level encoder's view of it.

    With one patch at each place of a grid with this stride, the last row and column at the edge.
    """
    if scorer.cfg.model.kind != "cp-llm" or scorer.cfg.model.encoders == "high":
        raise ValueError(f"heat-map: expected a cp-llm with its low-level encoder, got a "
                         f"{scorer.cfg.model.kind} with encoders {scorer.cfg.model.encoders}")
    patch, align = scorer.cfg.video.patch_size, scorer.cfg.video.align
    stride = patch // 4 if stride is None else stride
    if not 1 <= stride <= patch:
        raise ValueError(f"heat-map: expected a stride of 1 to {patch} pixels, got {stride}")
    height, width = frame.shape[:2]
    sides = [max(-(-side // align) * align, patch) for side in (height, width)]
    frame = np.pad(frame, ((0, sides[0] - height), (0, sides[1] - width), (0, 0)), "edge")
    places = np.array(list(product(*(starts(s, patch, stride) for s in sides))))
    total, covered = np.zeros(sides, np.float32), np.zeros(sides, np.float32)
    for some in np.split(places, range(BATCH, len(places), BATCH)):
        filled = np.resize(some, (BATCH, 2))
        patches, _ = video.cut_patches(frame[None], patch, BATCH, filled)
        scores = np.asarray(_speak(*scorer._split, view[None], patches[0]))
        for (top, left), score in zip(some, scores, strict=False):
            here = np.s_[top:top + patch, left:left + patch]
            total[here] += score
            covered[here] += 1
    return (total / covered)[:height, :width]


def starts(side: int, patch: int, stride: int) -> list[int]:
    """First pixels of patches along a side: every `stride`, and one that ends at the edge.

    >>> starts(150, 64, 32)
    [0, 32, 64, 86]
    """
    return [*range(0, side - patch, stride), side - patch]


@partial(jax.jit, static_argnums=0)
def _speak(graph: nnx.GraphDef, params: nnx.State, view: Array, patches: Array) -> Array:
    """float32[N] in 0–100: the frame's score if all patches were like each of uint8[N,P,P,3]."""
    model, n = nnx.merge(graph, params), len(patches)
    high = jnp.repeat(model.high(view), n, 0)
    u, v = model.see(high, patches[:, None], jnp.ones((n, 1), bool))
    return 100 * model.score(u, v)
