"""What a score says: its scale, an interval that holds on unseen sources, and a score card.

The interval is split-conformal for data in groups (Lee, Barber and Willett 2023, "Distribution-free
inference with hierarchical data"): videos of one source resemble each other, so what counts is the
number of sources, not of videos.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from cpllm.data.annotate import word

if TYPE_CHECKING:  # SciPy's optimisers and distributions, which reading a score doesn't need
    from cpllm import metrics

PROMISED = {"run to run": 0.0, "across batch sizes": 0.0, "across thread counts": 1e-3}
"""Largest difference, in points, between two scores of one file on one machine."""


class Calibration(NamedTuple):
    """What weights carry to turn a prediction into a reading; plain numbers, for JSON."""

    level: float
    half_width: float  # points
    n_sources: int
    n_items: int
    curve: tuple[float, ...] | None = None  # β of `metrics.logistic`; None: it is 0–100 already


class Reading(NamedTuple):
    """A score 0–100 with its interval, clipped to the scale, and its ACR word."""

    score: float
    low: float
    high: float
    word: str


def taught(rows: pd.DataFrame, configuration: Mapping) -> pd.DataFrame:
    """The rows without faults that a run's training left out (`data.without_faults`).

    rows: predictions; the column `distortion` is read only where faults were left out.
    configuration: as in the run's config.json; {} or an older one leaves all.
    """
    untaught = configuration.get("data", {}).get("without_faults")
    return rows[~rows["distortion"].isin(untaught)] if untaught else rows


def calibrate(frame: pd.DataFrame, truth: str = "proxy", level: float = 0.9,
              curve: tuple[float, ...] | None = None) -> Calibration:
    """Half-width h with P(|truth − score| ≤ h) ≥ level for a random video of a new source.

    The level-quantile of validation residuals, each weighing 1 / (its source's rows · (K + 1));
    the K + 1st share stands for the unseen source. Holds where sources are exchangeable with the
    K given ones and none of them trained the model or the `curve`. ValueError with K too few.
    """
    from cpllm import metrics

    metrics.check(frame, truth)
    sources = frame.source.nunique()
    if level * (sources + 1) > sources + 1e-9:
        raise ValueError(f"calibrate: {sources} sources; a {level:.0%} interval needs "
                         f"{int(np.ceil(level / (1 - level) - 1e-9))} or more")
    residual = np.abs(frame[truth].to_numpy(float) - _score(frame.prediction, curve))
    rows = frame.groupby("source").source.transform("size").to_numpy()
    order = np.argsort(residual)
    mass = np.cumsum(1 / (rows[order] * (sources + 1)))
    half = residual[order][np.searchsorted(mass, level - 1e-9)]
    return Calibration(level, float(half), sources, len(frame), curve)


def read(prediction: float, calibration: Calibration) -> Reading:
    """Score, interval and ACR word of one prediction."""
    score = float(_score(prediction, calibration.curve))
    low, high = np.clip([score - calibration.half_width, score + calibration.half_width], 0, 100)
    return Reading(score, float(low), float(high), word(score))


def coverage(frame: pd.DataFrame, calibration: Calibration, truth: str = "proxy",
             draws: int = 2000) -> metrics.Estimate:
    """Share of a source's videos inside their interval, mean over sources, with its own interval.

    `frame` must hold sources that neither trained nor calibrated the model.
    """
    from cpllm import metrics

    def inside(rows: pd.DataFrame, counts: NDArray) -> NDArray:
        hit = np.abs(rows[truth] - _score(rows.prediction, calibration.curve))
        share = (hit <= calibration.half_width).groupby(rows.source).mean().to_numpy()
        return counts @ share / counts.sum(axis=1)

    return metrics.bootstrap(frame, inside, draws)


def resolution(frame: pd.DataFrame, within: bool, truth: str = "proxy",
               share: float = 0.9) -> float:
    """Smallest difference d, in predictions, that can be relied on.

    Of the pairs at least d apart, within one source or from two, `share` or more are ordered as
    the truth orders them (equal truths count half). NaN where no difference does.
    """
    first, second = np.triu_indices(len(frame), 1)
    source = frame.source.to_numpy()
    kept = (source[first] == source[second]) == within
    x, y = (frame[name].to_numpy(float) for name in ("prediction", truth))
    gap, gain = (v[first[kept]] - v[second[kept]] for v in (x, y))
    order = np.argsort(-np.abs(gap), kind="stable")
    right = np.cumsum((1 + np.sign(gap) * np.sign(gain))[order] / 2)
    enough = np.flatnonzero(right / np.arange(1, len(right) + 1) >= share)
    return float(np.abs(gap)[order][enough[-1]]) if len(enough) else float("nan")


def card(calibration: Calibration, covered: metrics.Estimate, resolutions: Mapping[str, float],
         repeated: Mapping[str, float], truth: str = "VMAF, an FR-proxy (nobody looked)") -> str:
    """The score card in Markdown; what was not measured says so.

    `resolutions`: kind of pair → `resolution`; `repeated`: key of `PROMISED` → points measured.
    """
    lines = [
        f"**Scale.** 0 to 100, higher is better; a point is one point of {truth}. 20 points are "
        "one ACR word: bad, poor, fair, good, excellent.",
        f"**Interval.** ± {calibration.half_width:.1f} points at {calibration.level:.0%}, from "
        f"{calibration.n_items:,} videos of {calibration.n_sources} sources that did not train it.",
        f"**On unseen sources.** It holds the truth for {covered.value:.1%} of a source's videos "
        f"[{covered.low:.1%}, {covered.high:.1%}], over {covered.n_sources} sources. Promised only "
        "for sources like those that calibrated it."]
    for kind, size in resolutions.items():
        text = (f"{size:.1f} points apart or more, 9 of 10 pairs are" if np.isfinite(size) else
                "At no distance are 9 of 10 pairs") + " ordered as the truth orders them."
        lines.append(f"**Two videos {kind}.** {text}")
    for name, limit in PROMISED.items():
        verdict = "broken" if repeated.get(name, 0) > limit else "kept"
        text = (f"At most {repeated[name]:.2g} points apart; promised: "
                f"{f'{limit:g}' if limit else 'bit-identical'}, {verdict}." if name in repeated
                else "Not measured.")
        lines.append(f"**Same file, {name}.** {text}")
    return "\n".join(f"- {line}" for line in lines)


def _score(prediction: ArrayLike, curve: tuple[float, ...] | None) -> NDArray:
    value = np.asarray(prediction, float)
    if curve is not None:
        from cpllm import metrics

        value = metrics.logistic(value, *curve)
    return np.clip(value, 0, 100)
