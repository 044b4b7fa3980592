"""What the notebooks of the paper's figures share; reads runs and clips, never imports JAX."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from cpllm import metrics
from cpllm.data import video


def block_means(x: NDArray, size: int) -> NDArray:
    """Means of size×size blocks of [H,W]: [H//size,W//size]; the rest at the edges is cut off.

    >>> block_means(np.arange(8).reshape(2, 4), 2).tolist()
    [[2.5, 4.5]]
    """
    rows, columns = (side // size for side in x.shape)
    return x[:rows * size, :columns * size].reshape(rows, size, columns, size).mean((1, 3))


def worst_block(first: NDArray, second: NDArray, size: int) -> tuple[int, int]:
    """Top and left of the size×size block in which two frames uint8[H,W,3] differ most, by MSE."""
    error = block_means(np.square(first.astype(float) - second).mean(-1), size)
    row, column = np.unravel_index(error.argmax(), error.shape)
    return int(row) * size, int(column) * size


def middle(path: str | Path) -> NDArray:
    """uint8[H,W,3]: the middle frame of a clip."""
    return video.key_frames(path, 1)[0]


def box(axes: tuple[plt.Axes, plt.Axes], frame: NDArray, corner: tuple[int, int],
        size: int) -> None:
    """A frame with a red box, and on the second axes what is in the box, its pixels enlarged."""
    top, left = corner
    axes[0].imshow(frame)
    axes[0].add_patch(Rectangle((left, top), size, size, fill=False, color="red", lw=1.5))
    axes[1].imshow(frame[top:top + size, left:left + size], interpolation="nearest")
    for axis in axes:
        axis.set(xticks=[], yticks=[])
    for spine in axes[1].spines.values():
        spine.set(color="red", linewidth=1.5)


def calibrated(runs: pd.DataFrame) -> pd.DataFrame:
    """Test rows of runs, `prediction` on the FR-proxy's scale 0–100, seeds averaged.

    By the 4-parameter logistic of each run, fitted to its validation rows; systems for which there
    are none or no fit are left out.
    """
    found = []
    for _, run in runs[runs.split != ""].groupby("run"):
        known, test = run[run.split == "validation"], run[run.split == "test"]
        beta = metrics.fit_logistic(known.proxy, known.prediction)
        if np.isfinite(beta).all() and len(test):
            score = np.clip(metrics.logistic(test.prediction, *beta), 0, 100)
            found.append(test.assign(prediction=score))
    if not found:
        return runs[:0].assign(scene=[])
    rows = pd.concat(found)
    mean = rows.groupby(["system", "video"]).prediction.mean().rename("prediction")
    known = rows.drop(columns=["prediction", "seed", "run"]).drop_duplicates(["system", "video"])
    scene = known.video.str.extract("(.+)@")[0]
    return known.assign(scene=scene).merge(mean, on=["system", "video"])


def mean(frame: pd.DataFrame, of: str, draws: int = 2000) -> metrics.Estimate:
    """Mean of a column with its interval; rows need `source`, whole sources are drawn."""
    counts = metrics.resamples(n := frame.source.nunique(), draws)
    return metrics.estimate(_mean(frame, counts, of), n)


def _mean(frame: pd.DataFrame, counts: NDArray, of: str) -> NDArray:
    total, n = metrics.sums(frame, counts, frame[of].astype(float), np.ones(len(frame)))
    return total / n
