"""Agreement with the truth, flip rate between quality levels, and intervals over sources.

Frames hold one row per scored video: its id `video`, `source` (what was split and is resampled),
`prediction`, a truth such as `proxy`; for flip rates `crf`, `codec` and `ladder`, whose levels may
be paired (else what precedes "@" in `video`, else the source); `seed` where several training runs
scored the same videos. Degenerate input: a ValueError naming rows, or a NaN that is documented.

Pairs: Table 3 by CRF difference; Tables 1 and 4 over all ordered levels of a source, `diff=None`.
The paper defines none for the latter, and its .082 (LSVQ-1080p) is neither the mean of its Table 3
(.050) nor what that table, if it never rises, leaves for all 190 pairs (.028 to .034).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

Statistic = Callable[[pd.DataFrame, NDArray], NDArray]
"""(frame of one seed, counts int[draws, sources]) -> float[draws]. Column j counts how often the
j-th of the sorted sources occurs in the resample; all ones is the sample itself."""

Measure = Callable[[NDArray, NDArray], float]
"""(truth float[n], prediction float[n]) -> number, as `srcc`."""

MOST_SOURCES = 10_000
"""For which `pooled_krcc` has an interval."""

STRATA = {"gap below 2": (-np.inf, 2), "gap 2 to 6": (2, 6), "gap from 6": (6, np.inf)}
"""FR-proxy gaps of a pair, [low, high) points of 0–100, that flip rates are told apart by."""


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


class Difference(NamedTuple):
    """First minus second model, its 95% interval over sources, and a two-sided p-value."""

    value: float
    low: float
    high: float
    p: float
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
    """Pearson after `fit_logistic`; NaN where that is.

    The fit may turn round (β₁ < β₂), so a reversed ranker scores high here: read it beside SRCC.
    """
    beta = fit_logistic(truth, prediction)
    return plcc(truth, logistic(prediction, *beta)) if np.isfinite(beta).all() else float("nan")


def logistic(x: ArrayLike, top: float, bottom: float, middle: float, scale: float) -> NDArray:
    """ŷ = β₂ + (β₁ − β₂) / (1 + exp(−(x − β₃) / |β₄|)), the field's 4-parameter curve."""
    z = np.clip((np.asarray(x, float) - middle) / max(abs(scale), 1e-12), -500, 500)
    return bottom + (top - bottom) / (1 + np.exp(-z))


def fit_logistic(truth: ArrayLike, prediction: ArrayLike) -> NDArray:
    """β of `logistic` by least squares: float[4], from (max y, min y, mean x, std x / 4).

    NaN if a side is constant, with fewer than 4 rows, or where the fit does not converge.
    """
    truth, prediction = _columns(truth, prediction)
    if len(truth) < 4 or np.ptp(truth) == 0 or np.ptp(prediction) == 0:
        return np.full(4, np.nan)
    mean, std = prediction.mean(), prediction.std()
    x = (prediction - mean) / std  # the same curve, well conditioned
    start = [truth.max(), truth.min(), 0.0, 0.25]
    with warnings.catch_warnings():  # of the covariance, which nothing uses
        warnings.simplefilter("ignore", optimize.OptimizeWarning)
        try:
            beta, _ = optimize.curve_fit(logistic, x, truth, start, maxfev=20000)
        except RuntimeError:
            return np.full(4, np.nan)
    return np.array([*beta[:2], mean + std * beta[2], std * beta[3]])


def rmse(truth: ArrayLike, prediction: ArrayLike) -> float:
    """√(mean (ŷ − y)²), in the truth's units. NaN without rows."""
    truth, prediction = _columns(truth, prediction)
    return float(np.sqrt(np.mean((prediction - truth) ** 2))) if len(truth) else float("nan")


def differential(frame: pd.DataFrame, truth: str = "proxy") -> pd.DataFrame:
    """The rows with a level as DMOS: `truth` and `prediction` become reference − variant.

    0 is as good as the reference and more is worse, on both sides: a good model correlates
    positively. The reference is the ladder's only undistorted row without a level; ladders with
    none or several are left out. A column `dmos`, that sign, replaces the difference of truths.
    """
    rows = _laddered(frame)
    keys = [key for key in ("seed", "source", "ladder") if key in rows]
    references = rows[rows.crf.isna() & (rows.get("distortion", "none") == "none")]
    references = references.drop_duplicates(keys, keep=False)[[*keys, truth, "prediction"]]
    joined = rows[rows.crf.notna()].merge(references, on=keys, suffixes=("", "_0"))
    return joined.assign(**{truth: joined.get("dmos", joined[f"{truth}_0"] - joined[truth]),
                            "prediction": joined.prediction_0 - joined.prediction})


def flip_pairs(frame: pd.DataFrame, diff: float | None = None,
               truth: str = "proxy") -> pd.DataFrame:
    """Pairs of one ladder's levels, and whether the prediction orders them wrongly.

    Section 4.1: flip rate is "the percentage of incorrectly ranked pairs of videos derived from
    the same source but with different compression levels". The truth is the paper's assumption
    that a higher CRF never looks better. Rows without a CRF are originals and form no pair;
    `diff` keeps the pairs whose CRFs differ by exactly that. `gap`, where the frame has the
    column `truth`: by how much that prefers the lower CRF. Worked example, diff=2:
        crf 13 15 17, prediction 80 81 81  ->  (13, 15) flip, (15, 17) tie
    """
    levels = _laddered(frame)
    levels = levels[levels.crf.notna()]
    keys = [key for key in ("seed", "source", "ladder", "codec") if key in levels]
    if (twice := levels.duplicated([*keys, "crf"])).any():
        raise ValueError(f"flip_pairs: {twice.sum()} levels occur twice in a ladder (first: "
                         f"{levels.video[twice].iloc[0]}); a column codec or ladder tells apart")
    row = levels.groupby(keys, sort=False, dropna=False).ngroup().to_numpy()
    ladders = levels[keys].drop_duplicates()  # in the order in which `row` numbers them
    crfs, column = np.unique(levels.crf.to_numpy(float), return_inverse=True)
    grid = np.full((len(ladders), len(crfs)), -1)  # place in `levels` of ladder by level
    grid[row, column] = np.arange(len(levels))
    low, high = np.triu_indices(len(crfs), 1)
    wanted = (diff is None) | (crfs[high] - crfs[low] == diff)
    ladder, pair = np.nonzero(wanted & (grid[:, low] >= 0) & (grid[:, high] >= 0))
    low, high = low[pair], high[pair]
    first, second = grid[ladder, low], grid[ladder, high]
    value, known = levels.prediction.to_numpy(), levels.get(truth, levels.crf * np.nan).to_numpy()
    return ladders.iloc[ladder].reset_index(drop=True).assign(
        crf_low=crfs[low], crf_high=crfs[high], diff=crfs[high] - crfs[low],
        flip=value[first] < value[second], tie=value[first] == value[second],
        gap=known[first] - known[second])


def flip_rate(frame: pd.DataFrame, diff: float | None = None) -> FlipRate:
    """Flip rate over all pairs (of all seeds); NaN with 0 pairs. See `flip_pairs`."""
    pairs = flip_pairs(frame, diff)
    if pairs.empty:
        return FlipRate(float("nan"), float("nan"), float("nan"), 0)
    strict, ties = float(pairs.flip.mean()), float(pairs.tie.mean())
    return FlipRate(strict, ties, strict + ties / 2, len(pairs))


def flip_table(frame: pd.DataFrame, by: str | list[str],
               diff: float | None = None) -> pd.DataFrame:
    """`FlipRate`'s fields, a row for each "source", "codec", "diff" or several of them."""
    pairs = flip_pairs(frame, diff).astype({"flip": float, "tie": float})
    table = pairs.groupby(by).agg(strict=("flip", "mean"), ties=("tie", "mean"),
                                  pairs=("tie", "size"))
    table.insert(2, "half", table.strict + table.ties / 2)
    return table


def flips(frame: pd.DataFrame, counts: NDArray, diff: float | None = None, kind: str = "strict",
          gap: tuple[float, float] | None = None, truth: str = "proxy") -> NDArray:
    """`flip_rate`'s strict, ties or half as a Statistic: a draw is a ratio of weighted counts.

    `gap` keeps the pairs whose FR-proxy gap is in [low, high), see `STRATA`.
    """
    pairs = flip_pairs(frame, diff, truth)
    if gap:
        pairs = pairs[pairs.gap.between(*gap, inclusive="left")]
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


def pooled_krcc(frame: pd.DataFrame, counts: NDArray, truth: str = "proxy") -> NDArray:
    """KRCC (tau-b) over all rows as a Statistic, from concordances between sources.

    With C[s, t] = Σ sign(xᵢ − xⱼ) sign(yᵢ − yⱼ) over rows i of s and j of t, a resample with
    counts w has P − Q = wᵀCw / 2; rows drawn twice tie with themselves and add nothing. With over
    `MOST_SOURCES`, whose C would take 400 MB and more, the sample's own value and NaN elsewhere.
    """
    names, source = np.unique(frame.source, return_inverse=True)
    x, y = _columns(frame[truth], frame.prediction)
    if len(names) > MOST_SOURCES:
        return np.where((counts == 1).all(axis=1), krcc(x, y), np.nan)
    order = np.argsort(source, kind="stable")
    source, x, y = source[order], x[order], y[order]
    starts = np.flatnonzero(np.r_[True, np.diff(source) > 0])
    concordance = np.zeros((len(names), len(names)), np.float32)
    for rows in np.array_split(np.arange(len(x)), len(x) // 500 + 1):
        agree = np.sign(x[rows, None] - x) * np.sign(y[rows, None] - y)
        np.add.at(concordance, source[rows], np.add.reduceat(agree, starts, axis=1))
    drawn = counts.astype(np.float32)
    agreed = np.einsum("ds,ds->d", drawn @ concordance, drawn, dtype=float)
    weights = counts[:, source].astype(float)
    untied = [weights.sum(1) ** 2 - (_ties(v, weights)[2] ** 2).sum(1) for v in (x, y)]
    with np.errstate(invalid="ignore"):
        return agreed / np.sqrt(untied[0] * untied[1])


def pooled_plcc(frame: pd.DataFrame, counts: NDArray, truth: str = "proxy",
                curve: bool = False) -> NDArray:
    """PLCC over all rows as a Statistic; with `curve` after `fit_logistic`.

    The curve is fitted once, not in each draw: an interval takes its four numbers as given.
    """
    x, y = _sides(frame, truth, curve)
    vary, x, y = np.ptp(x) * np.ptp(y) > 0, x - x.mean(), y - y.mean()
    n, sx, sy, sxx, syy, sxy = sums(frame, counts, x ** 0, x, y, x * x, y * y, x * y)
    spread = [ss - s * s / n for s, ss in ((sx, sxx), (sy, syy))]
    vary &= (spread[0] > 1e-12 * sxx) & (spread[1] > 1e-12 * syy)  # more than rounding leaves
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(vary, (sxy - sx * sy / n) / np.sqrt(spread[0] * spread[1]), np.nan)


def pooled_rmse(frame: pd.DataFrame, counts: NDArray, truth: str = "proxy",
                curve: bool = False) -> NDArray:
    """RMSE over all rows as a Statistic, in the truth's units; `curve` as in `pooled_plcc`."""
    x, y = _sides(frame, truth, curve)
    n, square = sums(frame, counts, x ** 0, (x - y) ** 2)
    return np.sqrt(square / n)


def within_source(frame: pd.DataFrame, counts: NDArray, truth: str = "proxy", of: Measure = srcc,
                  curve: bool = False) -> NDArray:
    """Median over sources of `of` (`srcc`, `krcc`, `plcc`, `rmse`) among one source's rows.

    A Statistic. With `curve` after `fit_logistic`, fitted to all rows together as in `pooled_plcc`:
    four numbers for each source would fit its few rows whatever they hold. NaN everywhere if one
    source has no value, its predictions or truth being constant: dropping it would flatter.
    """
    x, y = _sides(frame, truth, curve)
    sources = frame.groupby("source").indices.values()
    each = np.array([of(x[i], y[i]) if np.isfinite(y[i]).all() else np.nan for i in sources])
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
    return estimate(replicates(frame, statistic, draws, seed), frame.source.nunique())


def difference(first: pd.DataFrame, second: pd.DataFrame, statistic: Statistic,
               draws: int = 2000, seed: int = 0, other: Statistic | None = None) -> Difference:
    """Paired `bootstrap` of first − second: both meet the same resampled sources.

    `other` is the second's statistic where it differs. ValueError unless both have the same
    sources (`match` sees to it).
    """
    if unlike := sorted(set(map(str, first.source)) ^ set(map(str, second.source))):
        raise ValueError(f"difference: {len(unlike)} sources are in one frame only (first: "
                         f"{unlike[0]}); expected the same in both")
    return contrast(replicates(first, statistic, draws, seed),
                    replicates(second, other or statistic, draws, seed), first.source.nunique())


def estimate(values: NDArray, n_sources: int) -> Estimate:
    """The first of `replicates` with the interval of the others."""
    return Estimate(float(values[0]), *_interval(values[1:], n_sources), n_sources)


def contrast(first: NDArray, second: NDArray, n_sources: int) -> Difference:
    """`estimate` of the difference of two models' `replicates`, and its p.

    p is the level at which the interval would just touch 0, never below that of 1 in draws + 1;
    NaN where the interval is.
    """
    value, low, high, n = estimate(values := first - second, n_sources)
    beyond = 1 + min(np.sum(values[1:] <= 0), np.sum(values[1:] >= 0))
    reach = np.sqrt((n - 1) / n) * stats.norm.ppf(min(beyond / len(values), 0.5))
    p = 2 * stats.t.cdf(reach, n - 1) if np.isfinite(low) else np.nan
    return Difference(value, low, high, float(p), n)


def match(first: pd.DataFrame, second: pd.DataFrame
          ) -> tuple[pd.DataFrame, pd.DataFrame, tuple[list, list]]:
    """Both models' rows of the videos that both scored, and the names that only one did.

    The second needs `video`, `prediction` and perhaps `seed`; the rest is taken from the first.
    """
    known = first.drop(columns=["prediction", "seed"], errors="ignore").drop_duplicates("video")
    columns = [name for name in ("video", "prediction", "seed") if name in second]
    only = [sorted(set(a.video) - set(b.video)) for a, b in ((first, second), (second, first))]
    joined = second[columns].merge(known, on="video")
    if joined.empty:
        raise ValueError(f"no video is in both (first: {first.video.iloc[0]} and "
                         f"{second.video.iloc[0]}); names must be spelt alike")
    return first[first.video.isin(joined.video)], joined, tuple(only)


def replicates(frame: pd.DataFrame, statistic: Statistic, draws: int = 2000,
               seed: int = 0) -> NDArray:
    """float[1 + draws]: the statistic of the sample, then of each resample; seeds averaged."""
    check(frame)
    runs = frame.groupby(frame.get("seed", np.zeros(len(frame))))
    counts = resamples(frame.source.nunique(), draws, seed)
    return np.mean([statistic(rows, counts) for _, rows in runs], axis=0)


@lru_cache(maxsize=2)
def resamples(n: int, draws: int, seed: int = 0) -> NDArray:
    """int[1 + draws, n]: how often each source is drawn; the sample itself comes first."""
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws)
    return np.vstack([np.ones((1, n), int), drawn])


def _interval(values: ArrayLike, n: int) -> tuple[float, float]:
    if n < 2 or not len(values):
        return float("nan"), float("nan")
    tail = stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf(0.025, n - 1))
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


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


def _laddered(frame: pd.DataFrame) -> pd.DataFrame:
    """The checked frame with its ladders' names."""
    check(frame, "crf")
    scene = frame.video.astype(str).str.extract("(.+)@")[0].fillna(frame.source.astype(str))
    return frame.assign(ladder=frame.get("ladder", scene))


def _sides(frame: pd.DataFrame, truth: str, curve: bool) -> tuple[NDArray, NDArray]:
    """Truth and prediction; with `curve` the latter on the truth's scale, NaN without a fit."""
    x, y = _columns(frame[truth], frame.prediction)
    return x, logistic(y, *fit_logistic(x, y)) if curve else y


def sums(frame: pd.DataFrame, counts: NDArray, *columns: NDArray) -> NDArray:
    """float[columns, draws]: sums over the rows of each resample."""
    source = np.unique(frame.source, return_inverse=True)[1]
    return np.stack([np.bincount(source, column) for column in columns]) @ counts.T


def _ties(values: NDArray, weights: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """(order, starts, float[draws, groups]): groups of equal values and their weights."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(values[order]) != 0])
    return order, starts, np.add.reduceat(weights[:, order], starts, axis=1)


def _midranks(values: NDArray, weights: NDArray) -> NDArray:
    """float[draws, n]: midrank of each row when row i occurs weights[d, i] times.

    values 5 7 7 with weights 2 1 1 are the sample 5 5 7 7: ranks 1.5, 3.5, 3.5.
    """
    order, starts, tied = _ties(values, weights)
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
