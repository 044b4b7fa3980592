"""What the notebooks of the paper's figures share; reads runs and clips, never imports JAX."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from cpllm import config, metrics, report
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


def save(figure: plt.Figure, name: str, profile: str, results: Path | str) -> plt.Figure:
    """The figure, saved as `results/<profile>/figures/<name>.png` and closed, to be shown once."""
    folder = Path(results) / profile / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", dpi=90)
    plt.close(figure)
    return figure


def calibrated(runs: pd.DataFrame) -> pd.DataFrame:
    """Test rows of runs with their `scene`; `prediction` on the FR-proxy's scale, seeds averaged.

    By the 4-parameter logistic of each run, fitted to its validation rows; systems without such
    rows or a fit are left out. `raw` is as it was, for orders: the curve's ends are flat. The
    package's model comes first, trivial baselines last.
    """
    found = [runs[:0].assign(raw=[])]
    for _, run in runs[runs.split != ""].groupby("run"):
        known, test = run[run.split == "validation"], run[run.split == "test"]
        beta = metrics.fit_logistic(known.proxy, known.prediction)
        if np.isfinite(beta).all():
            score = np.clip(metrics.logistic(test.prediction, *beta), 0, 100)
            found.append(test.assign(prediction=score, raw=test.prediction))
    rows = pd.concat(found)
    score = rows.groupby(["system", "video"], as_index=False)[["prediction", "raw"]].mean()
    known = rows.drop_duplicates(["system", "video"])
    known = known.drop(columns=["prediction", "raw", "seed", "run"])
    order = dict.fromkeys(["default", "cpllm", *config.RIVALS, *sorted(rows.system.unique())])
    place = {name: i for i, name in enumerate([*(n for n in order if n not in report.BASELINES),
                                               *report.BASELINES])}
    rows = known.merge(score, on=["system", "video"])
    rows["scene"] = rows.video.str.extract("(.+)@")[0]
    return rows.sort_values("system", key=lambda s: s.map(place), kind="stable")


def mean(frame: pd.DataFrame, of: str, draws: int = 2000) -> metrics.Estimate:
    """Mean of a column over rows with its interval; whole sources are drawn."""
    counts = metrics.resamples(n := frame.source.nunique(), draws)
    total, rows = metrics.sums(frame, counts, frame[of].astype(float), np.ones(len(frame)))
    return metrics.estimate(total / rows, n)
