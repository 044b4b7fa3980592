"""What weights know of themselves: how far a score can be off, and which videos they were made for.

A card is a JSON file beside its weights, made by `cpllm calibrate` from the splits that trained the
model and chose among its steps.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cpllm import records
from cpllm.calibrate import Calibration, Reading, calibrate, read, resolution

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from cpllm.data.video import Sample

LEVEL = 0.9
"""Of the interval: the truth of 9 of 10 videos of a new source lies in it."""

USUAL = 0.99
"""Share of validation videos whose content counts as usual."""

AXES = 16
"""Directions in which the training features' spread is kept; the others have one in common."""

APART = 4.0
"""Seconds that a key frame stands for at most: five of the field's longest clips (YouTube-UGC)."""


@dataclass(frozen=True)
class Content:
    """Training features as a Gaussian: probabilistic PCA (Tipping and Bishop 1999).

    Features are the means, over tokens and key frames, of what both encoders see.
    """

    centre: list[float]
    axes: list[list[float]]  # [AXES][D], orthonormal
    scales: list[float]  # standard deviations along the axes
    rest: float  # along every other direction
    limit: float  # the distance of which a share USUAL of validation videos stays within

    def distance(self, features: NDArray) -> float:
        """Mahalanobis distance √(Σ (aᵢ·x)²/λᵢ + |x's rest|²/σ²) of float[D], over the limit.

        Above 1 is unusual.
        """
        off = np.asarray(features, float) - self.centre
        along = np.asarray(self.axes) @ off
        rest = max(off @ off - along @ along, 0) / self.rest**2
        return float(np.sqrt(np.sum((along / self.scales) ** 2) + rest)) / self.limit


@dataclass(frozen=True)
class Readout:
    """What the pixels under a token of the low-level encoder have lost, as a linear function of it.

    √(1 - SSIM) of luma against the original, which isn't needed: `cpllm.damage.fit` makes one.
    """

    weights: list[float]  # [D_l]
    bias: float

    def __call__(self, tokens: NDArray) -> NDArray:
        """float32[...,D_l] → float32[...]."""
        return tokens @ np.asarray(self.weights, np.float32) + np.float32(self.bias)


def features(seen: tuple) -> NDArray:
    """float[D] of what a model sees of a video, (u, v) [M,T,D]: the means of both."""
    return np.concatenate([np.asarray(x, float).mean((0, 1)) for x in seen])


def fit_content(train: NDArray, validation: NDArray, sources: pd.Series) -> Content:
    """`Content` of training features [n,D]; the limit from validation's, each source counting 1."""
    values, vectors = np.linalg.eigh(np.cov(train.T))
    k = min(AXES, len(values) - 1)
    axes, scales = vectors.T[::-1][:k], np.sqrt(np.maximum(values[::-1][:k], 1e-12))
    rest = np.sqrt(max(values[:-k].mean(), 1e-12))
    found = Content(*(_short(x) for x in (train.mean(0), axes, scales, rest)), 1.0)
    far = np.array([found.distance(x) for x in validation])
    mass = 1 / sources.groupby(sources).transform("size").to_numpy()
    order = np.argsort(far)
    at = np.searchsorted(np.cumsum(mass[order]) / mass.sum(), USUAL - 1e-9)
    return Content(found.centre, found.axes, found.scales, found.rest, _short(far[order][at]))


@dataclass(frozen=True)
class Card:
    """What stands beside a weights file."""

    weights: str  # SHA-256 of the file that it belongs to
    calibration: Calibration
    within: float  # see `confidence`
    between: float
    step: float  # points from which on 9 of 10 pairs of one source are ordered rightly
    lines: tuple[int, int]  # shortest and longest short side of a training clip
    content: Content
    readout: Readout | None = None  # None: no heat-map is drawn

    def read(self, prediction: float) -> Reading:
        """Score, interval and word.

        The interval is split-conformal over validation sources (`calibrate.calibrate`): it covers
        the FR-proxy, VMAF of the encode against its source, of 9 in 10 videos of a new source like
        those. It is no promise for other kinds of video, and none about people's opinions.
        """
        return read(prediction, self.calibration)

    def confidence(self, difference: float, same_source: bool) -> float:
        """Chance, in [½, 1], that the truth orders two videos as their scores do.

        σ(k·|difference|): k is fitted to the pairs of validation videos, of one source or of two,
        by maximum likelihood; each source, or pair of sources, counts 1 and equal truths as half.
        """
        k = self.within if same_source else self.between
        return float(1 / (1 + np.exp(-k * abs(difference))))

    def warnings(self, sample: Sample, features: NDArray, m: int) -> list[str]:
        """In what a video, of which M key frames were seen, is unlike those of training."""
        short, seconds = min(sample.frames.shape[1:3]), sample.count / sample.fps
        low, high = self.lines
        far, longest = self.content.distance(features), APART * m
        found = {
            f"{short} lines: training clips had {low} to {high}": not low <= short <= high,
            f"only {sample.count} of the {m} frames that are looked at": sample.count < m,
            f"{seconds:.0f} s long: {m} frames may not stand for more than {longest:.0f} s; "
            f"ask for {np.ceil(seconds / APART):.0f} key frames": seconds > longest,
            "HDR: scored as tone-mapped to SDR": sample.hdr,
            f"unusual content: farther from the training clips than {USUAL:.0%} of validation "
            f"clips are ({far:.1f} times)": far > 1,
        }
        return [text for text, holds in found.items() if holds]

    def write(self, path: Path) -> None:
        """As JSON, atomically."""
        records.write_json(path, asdict(self) | {"calibration": self.calibration._asdict()})


def make(weights: str, predictions: pd.DataFrame, lines: tuple[int, int],
         content: Content, readout: Readout | None = None) -> Card:
    """The card of validation `predictions` with columns source, prediction and proxy."""
    within, between = (slope(predictions, same) for same in (True, False))
    return Card(weights, calibrate(predictions, level=LEVEL), within, between,
                _short(resolution(predictions, within=True)), lines, content, readout)


def slope(frame: pd.DataFrame, within: bool) -> float:
    """K of `Card.confidence`: the root of Σ w·d·(y − σ(k·d)) over pairs; 0 where none is right."""
    from scipy import optimize

    source = frame["source"].astype("category").cat.codes.to_numpy()
    a, b = np.triu_indices(len(frame), 1)
    kept = (source[a] == source[b]) == within
    a, b = a[kept], b[kept]
    x, y = (frame[name].to_numpy(float) for name in ("prediction", "proxy"))
    d, right = np.abs(x[a] - x[b]), (1 + np.sign(x[a] - x[b]) * np.sign(y[a] - y[b])) / 2
    _, group, size = np.unique(np.minimum(source[a], source[b]) * (source.max() + 1)
                               + np.maximum(source[a], source[b]),
                               return_inverse=True, return_counts=True)

    def gradient(k: float) -> float:
        return float(np.sum(d * (right - 1 / (1 + np.exp(-k * d))) / size[group]))

    if gradient(0) <= 0:
        return 0.0
    return _short(optimize.brentq(gradient, 0, 10)) if gradient(10) < 0 else 10.0


def beside(weights: Path) -> Path:
    """Where a weights file's card lies."""
    return weights.with_suffix(".json")


def of(weights: Path) -> Card | None:
    """The card beside a weights file; None where there is none, or another file's."""
    if not (values := records.read_json(beside(weights))):
        return None
    known = {**values, "calibration": Calibration(**values["calibration"]),
             "content": Content(**values["content"]), "lines": tuple(values["lines"])}
    if told := known.get("readout"):
        known["readout"] = Readout(**told)
    return Card(**known) if known["weights"] == records.file_hash(weights) else None


def _short(x: Any) -> Any:
    """As plain numbers of five digits: the file stays small."""
    return json.loads(json.dumps(np.asarray(x, float).tolist()),
                      parse_float=lambda text: float(f"{float(text):.5g}"))
