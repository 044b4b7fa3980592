"""Agreement with the truth, flip rate between quality levels, and intervals over sources.

Frames hold one row per scored video: its id `video`, `source` (what was split and is resampled),
`prediction`, a truth such as `proxy`; for flip rates `crf`, `codec` and `ladder`, whose levels may
be paired (else what precedes "@" in `video`, else the source); `seed` where several training runs
scored the same videos. Degenerate input: a ValueError naming rows, or a NaN that is documented.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

Statistic = Callable[[pd.DataFrame, NDArray], NDArray]
"""(frame of one seed, counts int[draws, sources]) -> float[draws]. Column j counts how often the
j-th of the sorted sources occurs in the resample; all ones is the sample itself."""


class FlipRate(NamedTuple):
    """Shares of pairs in [0, 1]. `strict`: wrong order; `half`: strict + ties / 2."""

    strict: float
    ties: float
    half: float
    pairs: int


class Estimate(NamedTuple):
    """A value with its 95% interval over sources; NaN where the interval is undefined."""

    value: float
    low: float
    high: float
    n_sources: int


def srcc(truth: ArrayLike, prediction: ArrayLike) -> float:
    """Spearman: the Pearson correlation of midranks. NaN if a side is constant (or one row)."""
    truth, prediction = _columns(truth, prediction)
    return _or_nan(truth, prediction, lambda: stats.spearmanr(truth, prediction).statistic)


def krcc(truth: ArrayLike, prediction: ArrayLike) -> float:
    """Kendall's tau-b = (P − Q) / √((P+Q+T)(P+Q+U)), ties corrected. NaN if a side is constant."""
    truth, prediction = _columns(truth, prediction)
    return _or_nan(truth, prediction, lambda: stats.kendalltau(truth, prediction).statistic)


def plcc(truth: ArrayLike, prediction: ArrayLike) -> float:
    """Pearson: cov(x, y) / (σx σy), nothing fitted before. NaN if a side is constant."""
    truth, prediction = _columns(truth, prediction)
    return _or_nan(truth, prediction, lambda: stats.pearsonr(truth, prediction).statistic)


def plcc_logistic(truth: ArrayLike, prediction: ArrayLike) -> float:
    """Pearson after ŷ = β₂ + (β₁ − β₂) / (1 + exp(−(x − β₃) / |β₄|)) is fitted to the truth.

    Start: β = (max truth, min truth, mean x, std x / 4). The fit may turn round (β₁ < β₂), so a
    reversed ranker scores high here: read it beside SRCC. NaN if a side is constant, with fewer
    than 4 rows, or where the fit does not converge.
    """
    truth, prediction = _columns(truth, prediction)
    if len(truth) < 4 or np.ptp(truth) == 0 or np.ptp(prediction) == 0:
        return float("nan")
    x = (prediction - prediction.mean()) / prediction.std()  # the same curve, well conditioned
    start = [truth.max(), truth.min(), 0.0, 0.25]
    try:
        beta, _ = optimize.curve_fit(_logistic, x, truth, start, maxfev=20000)
    except RuntimeError:
        return float("nan")
    return plcc(truth, _logistic(x, *beta))


def rmse(truth: ArrayLike, prediction: ArrayLike) -> float:
    """√(mean (ŷ − y)²), in the truth's units. NaN without rows."""
    truth, prediction = _columns(truth, prediction)
    return float(np.sqrt(np.mean((prediction - truth) ** 2))) if len(truth) else float("nan")


def flip_pairs(frame: pd.DataFrame, diff: float | None = None) -> pd.DataFrame:
    """Pairs of one ladder's levels, and whether the prediction orders them wrongly.

    Section 4.1: flip rate is "the percentage of incorrectly ranked pairs of videos derived from
    the same source but with different compression levels". The truth is the paper's assumption
    that a higher CRF never looks better. Rows without a CRF are originals and form no pair;
    `diff` keeps the pairs whose CRFs differ by exactly that. Worked example, diff=2:
        crf 13 15 17, prediction 80 81 81  ->  (13, 15) flip, (15, 17) tie
    """
    check(frame, "crf")
    levels = frame[frame.crf.notna()]
    scene = levels.video.astype(str).str.extract("(.+)@")[0].fillna(levels.source.astype(str))
    levels = levels.assign(ladder=levels.get("ladder", scene))
    keys = [key for key in ("seed", "source", "ladder", "codec") if key in levels]
    if (twice := levels.duplicated([*keys, "crf"])).any():
        raise ValueError(f"flip_pairs: {twice.sum()} levels occur twice in a ladder (first: "
                         f"{levels.video[twice].iloc[0]})")
    row = levels.groupby(keys, sort=False, dropna=False).ngroup().to_numpy()
    ladders = levels[keys].drop_duplicates()  # in the order in which `row` numbers them
    crfs, column = np.unique(levels.crf.to_numpy(float), return_inverse=True)
    grid = np.full((len(ladders), len(crfs)), np.nan)  # prediction of ladder by level
    grid[row, column] = levels.prediction
    low, high = np.triu_indices(len(crfs), 1)
    wanted = (diff is None) | (crfs[high] - crfs[low] == diff)
    ladder, pair = np.nonzero(wanted & ~np.isnan(grid[:, low] + grid[:, high]))
    low, high = low[pair], high[pair]
    better, worse = grid[ladder, low], grid[ladder, high]
    return ladders.iloc[ladder].reset_index(drop=True).assign(
        crf_low=crfs[low], crf_high=crfs[high], diff=crfs[high] - crfs[low],
        flip=better < worse, tie=better == worse)


def flip_rate(frame: pd.DataFrame, diff: float | None = None) -> FlipRate:
    """Flip rate over all pairs (of all seeds); NaN with 0 pairs. See `flip_pairs`."""
    pairs = flip_pairs(frame, diff)
    if pairs.empty:
        return FlipRate(float("nan"), float("nan"), float("nan"), 0)
    strict, ties = float(pairs.flip.mean()), float(pairs.tie.mean())
    return FlipRate(strict, ties, strict + ties / 2, len(pairs))


def flips(frame: pd.DataFrame, counts: NDArray, diff: float | None = None,
          kind: str = "strict") -> NDArray:
    """`flip_rate`'s strict, ties or half as a Statistic: a draw is a ratio of weighted counts."""
    pairs = flip_pairs(frame, diff)
    wrong = {"strict": pairs.flip, "ties": pairs.tie, "half": pairs.flip + pairs.tie / 2}[kind]
    sums = pd.DataFrame({"wrong": wrong.astype(float), "pairs": 1.0}).groupby(pairs.source).sum()
    sums = sums.reindex(np.unique(frame.source), fill_value=0.0)
    with np.errstate(invalid="ignore"):
        return (counts @ sums.wrong.to_numpy()) / (counts @ sums.pairs.to_numpy())


def pooled_srcc(frame: pd.DataFrame, counts: NDArray, truth: str = "proxy") -> NDArray:
    """SRCC over all rows together as a Statistic: equals `srcc` of the rows repeated by counts."""
    source = np.unique(frame.source, return_inverse=True)[1]
    x, y = _columns(frame[truth], frame.prediction)
    values = []
    for part in np.array_split(counts, max(1, counts.shape[0] * len(x) // 1_000_000)):
        weights = part[:, source].astype(float)
        values += [*_pearson(_midranks(x, weights), _midranks(y, weights), weights)]
    return np.array(values)


def within_srcc(frame: pd.DataFrame, counts: NDArray, truth: str = "proxy") -> NDArray:
    """Median over sources of the SRCC among one source's rows, as a Statistic.

    NaN everywhere if one source has constant predictions or truth: dropping it would flatter.
    """
    each = np.array([srcc(rows[truth], rows.prediction) for _, rows in frame.groupby("source")])
    if np.isnan(each).any():
        return np.full(len(counts), np.nan)
    order = np.argsort(each)
    upto, total = np.cumsum(counts[:, order], axis=1), counts.sum(axis=1, keepdims=True)
    lower, upper = (upto > (total - 1) // 2).argmax(axis=1), (upto > total // 2).argmax(axis=1)
    return (each[order][lower] + each[order][upper]) / 2


def bootstrap(frame: pd.DataFrame, statistic: Statistic, draws: int = 2000,
              seed: int = 0) -> Estimate:
    """Cluster bootstrap: sources drawn with replacement, 95% expanded percentile interval.

    The plain percentiles 2.5 and 97.5 cover too seldom with few sources (91% with 15), so the
    tails are Φ(√(n/(n−1)) t₀.₀₂₅,ₙ₋₁), after Hesterberg (2015); for many sources both agree.
    Several seeds are averaged inside each draw, so the interval speaks of sources, not of
    training noise. The draws depend on `seed` and the number of sources alone: two models on the
    same sources meet the same. The interval is NaN with 1 source, or if a draw is undefined.
    """
    check(frame)
    runs, n = frame.groupby(frame.get("seed", np.zeros(len(frame)))), frame.source.nunique()
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws)
    counts = np.vstack([np.ones((1, n), int), drawn])  # the sample itself comes first
    value, *values = np.mean([statistic(rows, counts) for _, rows in runs], axis=0)
    if n < 2:
        return Estimate(float(value), float("nan"), float("nan"), n)
    tail = stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf(0.025, n - 1))
    low, high = np.quantile(values, [tail, 1 - tail])
    return Estimate(float(value), float(low), float(high), n)


def check(frame: pd.DataFrame, *more: str) -> None:
    """Refuse, naming the rows: absent columns, no rows, not finite, twice, unlike seeds."""
    if absent := [name for name in ("video", "source", "prediction", *more) if name not in frame]:
        raise ValueError(f"predictions: no column {', '.join(absent)}; has {', '.join(frame)}")
    if frame.empty:
        raise ValueError("predictions: no rows")
    ids = ["seed", "video"] if "seed" in frame else ["video"]
    for fault, rows in (("not finite", ~np.isfinite(frame.prediction.astype(float))),
                        ("without a source", frame.source.isna()),
                        ("with an id that occurs before", frame.duplicated(ids))):
        if rows.any():
            names = ", ".join(map(str, frame.video[rows][:3]))
            raise ValueError(f"predictions: {rows.sum()} of {len(frame)} rows {fault} "
                             f"(first: {names})")
    if "seed" in frame:
        times = frame.groupby("video").seed.nunique()
        if (lacking := times[times < frame.seed.nunique()]).any():
            raise ValueError(f"predictions: {len(lacking)} videos are not scored by every seed "
                             f"(first: {lacking.index[0]})")


def _columns(truth: ArrayLike, prediction: ArrayLike) -> tuple[NDArray, NDArray]:
    """Two float vectors of one length; a row that is not finite is named by its position."""
    x, y = np.asarray(truth, float), np.asarray(prediction, float)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"expected two vectors of one length; got {x.shape} and {y.shape}")
    for name, values in (("truth", x), ("prediction", y)):
        if len(rows := np.flatnonzero(~np.isfinite(values))):
            raise ValueError(f"{name}: {len(rows)} of {len(values)} rows not finite "
                             f"(first rows: {', '.join(map(str, rows[:3]))})")
    return x, y


def _or_nan(x: NDArray, y: NDArray, correlate: Callable[[], float]) -> float:
    """The correlation, or NaN where a side is constant (one row is) or there are no rows."""
    if len(x) == 0 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(correlate())


def _logistic(x: NDArray, top: float, bottom: float, middle: float, scale: float) -> NDArray:
    z = np.clip((x - middle) / max(abs(scale), 1e-12), -500, 500)  # exp stays finite
    return bottom + (top - bottom) / (1 + np.exp(-z))


def _midranks(values: NDArray, weights: NDArray) -> NDArray:
    """float[draws, n]: midrank of each row when row i occurs weights[d, i] times.

    values 5 7 7 with weights 2 1 1 are the sample 5 5 7 7: ranks 1.5, 3.5, 3.5.
    """
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(values[order]) != 0])
    tied = np.add.reduceat(weights[:, order], starts, axis=1)
    ranks = np.cumsum(tied, axis=1) - (tied - 1) / 2
    out = np.empty_like(weights)
    out[:, order] = np.repeat(ranks, np.diff(np.r_[starts, len(values)]), axis=1)
    return out


def _pearson(x: NDArray, y: NDArray, weights: NDArray) -> NDArray:
    """Weighted Pearson along the last axis; NaN where a side does not vary."""
    total = weights.sum(axis=1, keepdims=True)
    x = x - (weights * x).sum(axis=1, keepdims=True) / total
    y = y - (weights * y).sum(axis=1, keepdims=True) / total
    xy, xx, yy = ((weights * a * b).sum(axis=1) for a, b in ((x, y), (x, x), (y, y)))
    with np.errstate(invalid="ignore"):
        return xy / np.sqrt(xx * yy)
