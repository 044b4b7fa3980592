"""Which of two encodes looks better, in words: Table 3's row whose output is an answer, no score.

Every pair is asked twice, each member standing first once, so that a taste for "First" shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cpllm import metrics
from cpllm.data import gemini, manifests, text, video

if TYPE_CHECKING:  # cpllm.infer imports JAX, which measuring doesn't need
    from cpllm.infer import Scorer

Odds = Callable[[Sequence[str], Sequence[str]], NDArray]
"""(files shown first, files shown second) → float[n], above 0 where the answer is "First."."""

KEYS = ["source", "scene", "codec"]
RATES = ("balanced accuracy", "consistency", "share of First")


def pairs(rows: pd.DataFrame, diffs: Sequence[int]) -> pd.DataFrame:
    """Pairs of a ladder's levels whose CRFs differ by one of `diffs`; `better` has the lower."""
    levels = rows.assign(file=manifests.files(rows)).query("role == 'variant'")
    levels = levels[[*KEYS, "crf", "file"]]
    found = levels.merge(levels, on=KEYS, suffixes=("_low", "_high"))
    found["diff"] = found["crf_high"] - found["crf_low"]
    found = found[found["diff"].isin(diffs)].reset_index(drop=True)
    return found.rename(columns={"file_low": "better", "file_high": "worse"})


def ask(pairs: pd.DataFrame, odds: Odds) -> pd.DataFrame:
    """The pairs with `first` and `second`: the odds when the better stands there."""
    better, worse = pairs["better"].tolist(), pairs["worse"].tolist()
    return pairs.assign(first=odds(better, worse), second=odds(worse, better))


def by_decoder(scorer: Scorer, videos: Path, batch: int = 64) -> Odds:
    """A model's own answers: log-odds of "First." over "Second." at the first token of an answer.

    The middle key frame of each video is seen once, each ordered pair read once. ValueError where
    the tokenizer gives both words one first token.
    """
    import jax
    from flax import nnx

    graph, params = nnx.split(scorer.model)
    prompt, ids = _question(scorer)
    seen: dict[str, tuple] = {}

    @jax.jit
    def read(params, first, second, given):
        model = nnx.merge(graph, params)
        hidden = model.read([first, second], given["valid"][:, 0], given)[:, -1]
        return model.decoder.logits(hidden)[:, ids]

    def look(name: str) -> tuple:
        if name not in seen:
            seen[name] = scorer.middle(scorer.inputs(videos / name))
        return seen[name]

    def some(firsts: Sequence[str], seconds: Sequence[str]) -> NDArray:
        sides = [
            tuple(np.concatenate(x) for x in zip(*map(look, names), strict=True))
            for names in (firsts, seconds)
        ]
        given = {k: np.repeat(x, len(firsts), 0) for k, x in prompt.items()}
        logits = np.asarray(read(params, *sides, given))
        return logits[:, 0] - logits[:, 1]

    def odds(firsts: Sequence[str], seconds: Sequence[str]) -> NDArray:
        parts = range(0, len(firsts), batch)
        return np.concatenate([some(firsts[i:i + batch], seconds[i:i + batch]) for i in parts])

    return odds


def by_gemini(videos: Path, model: str = gemini.MODEL, rpm: float = 15) -> Odds:
    """Gemini's answers on the middle frames, ±1, or 0 where it names neither or both.

    RuntimeError without a key or the extra `gemini`.
    """
    which = partial(gemini.compare, gemini.client(), model, gemini.Pace(rpm))

    @cache
    def look(name: str) -> NDArray:
        return video.fit(video.key_frames(videos / name, 1))[0]

    return lambda firsts, seconds: np.array(
        [which(look(a), look(b)) for a, b in zip(firsts, seconds, strict=True)])


def _question(scorer: Scorer) -> tuple[dict[str, NDArray], NDArray]:
    """The question, ready for `read`, and the two answers' first tokens."""
    length = scorer.cfg.train.max_text
    asked = text.pack(scorer.tokenizer, text.COMPARE, None, length)
    n = int(asked.valid.sum())
    packed = [text.pack(scorer.tokenizer, text.COMPARE, words, length) for words in text.ANSWERS]
    ids = np.array([p.tokens[n] for p in packed])
    if ids[0] == ids[1]:
        raise ValueError(f"tokenizer: expected {' and '.join(text.ANSWERS)} to differ in their "
                         f"first token, both have {ids[0]}")
    return {k: getattr(asked, k)[None, :n] for k in ("tokens", "valid", "answer")}, ids


def measures(table: pd.DataFrame, draws: int = 2000) -> pd.DataFrame:
    """Tidy rows of what `ask` returned: RATES, and flip rates by CRF difference, with intervals.

    Balanced accuracy: the mean of both orders'. Consistency: both orders prefer the same video.
    An answer that names neither counts as wrong in accuracy, as a tie in the flip rate, and as
    half a "First".
    """
    jobs = {name: (table, partial(_rate, of=name)) for name in RATES}
    for diff, rows in table.groupby("diff"):
        jobs |= {f"FR diff={diff:g}{end}": (rows, partial(_rate, of=of))
                 for of, end in (("wrong", ""), ("neither", " ties"))}
    found = []
    for name, (rows, statistic) in jobs.items():
        n = rows["source"].nunique()
        counts = metrics.resamples(n, draws)
        value, low, high, _ = metrics.estimate(statistic(rows, counts), n)
        found.append({"metric": name, "value": value, "ci_low": low, "ci_high": high,
                      "n_sources": n, "n_items": 2 * len(rows)})
    return pd.DataFrame(found)


def _rate(table: pd.DataFrame, counts: NDArray, of: str) -> NDArray:
    """A share of the answers as a `metrics.Statistic`."""
    says = np.sign(table[["first", "second"]].to_numpy())  # 1: "First.", -1: "Second.", 0: neither
    right = says * [1, -1]
    shares = {
        "balanced accuracy": (right > 0).mean(1),
        "consistency": (says[:, 0] * says[:, 1] < 0).astype(float),
        "share of First": ((says + 1) / 2).mean(1),
        "wrong": (right < 0).mean(1),
        "neither": (right == 0).mean(1),
    }
    n, total = metrics.sums(table, counts, np.ones(len(table)), shares[of])
    return total / n
