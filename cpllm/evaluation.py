"""Anyone's predictions as a CSV to the numbers that a careful reviewer would ask for."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cpllm import metrics

NUMBERS = ("prediction", "mos", "crf", "proxy", "dmos")
_CURVE = {"curve": True}
MEASURES: dict[str, tuple] = {
    "SRCC": (metrics.pooled_srcc, metrics.srcc, {}),
    "KRCC": (metrics.pooled_krcc, metrics.krcc, {}),
    "PLCC linear": (metrics.pooled_plcc, metrics.plcc, {}),
    "PLCC logistic": (metrics.pooled_plcc, metrics.plcc, _CURVE),
    "RMSE": (metrics.pooled_rmse, metrics.rmse, {}),
    "RMSE logistic": (metrics.pooled_rmse, metrics.rmse, _CURVE),
}
"""Name → over all rows together, of one source's rows, and whether after the logistic curve."""
FEWEST = 3  # rows: a correlation of two is 1 or -1, whatever they hold
FEWEST_DRAWS = 40
CONVENTIONS = {
    "interval": "95%, cluster bootstrap: whole sources are drawn; without a column of sources each "
                "row is its own",
    "mos": "higher is better; SRCC, KRCC (tau-b), PLCC over all rows together; RMSE in its units",
    "within source": f"median over the sources that have {FEWEST} rows or more with unlike truths; "
                     "undefined if the prediction is constant in one",
    "logistic": "4 parameters, from (max, min, mean, std/4), fitted once to all rows, also for "
                "what is then measured within source",
    "dmos": "reference - variant on both sides, so a good model correlates positively; reference: "
            "the one row of a ladder without a level; rows of ladders without one are left out",
    "level": "a higher level never looks better; FR: pairs of one ladder that the prediction "
             "orders wrongly (strict), finds equal (ties), or strict + ties / 2 (half); all pairs: "
             "every two levels of a ladder",
}
_ABOUT = {"within source": "within source", "dmos": "DMOS", "level": "FR"}
"""Conventions that only some measures need."""

Sample = tuple[NDArray, int, int]
"""A measure of one model: `metrics.replicates`, sources, and rows or pairs of a seed."""


def read(path: Path | str, video: str = "video", **columns: str | None) -> pd.DataFrame:
    """A CSV's named columns under the names of `metrics`: prediction, mos, source, crf, codec, …

    Without a source each row is its own. ValueError names the file, and columns that are absent
    beside those that exist, or that nothing would use; or the first rows that are blank, no number,
    or that `metrics.check` refuses.
    """
    try:
        table = pd.read_csv(path, dtype={video: str})
    except ValueError as error:
        raise ValueError(f"{path}: cannot be read as CSV ({error})") from error
    wanted = {"video": video, **{name: column for name, column in columns.items() if column}}
    if absent := [column for column in wanted.values() if column not in table]:
        raise ValueError(f"{path}: no column {', '.join(absent)}; has {', '.join(table)}")
    frame = pd.DataFrame({name: table[column] for name, column in wanted.items()})
    if "crf" not in frame and (idle := {"codec", "proxy", "dmos"} & set(frame)):
        raise ValueError(f"{path}: {', '.join(sorted(idle))}: of no use without a level")
    blank = {"crf": True, "codec": True, "dmos": frame.get("crf", frame.video).isna()}
    for name in wanted:
        value = frame[name]
        if name in NUMBERS:
            value = pd.to_numeric(value, errors="coerce").replace([np.inf, -np.inf], np.nan)
        bad = value.isna() & (frame[name].notna() | np.logical_not(blank.get(name, False)))
        if bad.any():
            names = ", ".join(map(str, frame.video[bad][:3]))
            raise ValueError(f"{path}: column {wanted[name]}: {bad.sum()} of {len(frame)} rows are "
                             f"blank or no number (first: {names})")
        frame[name] = value
    if "crf" in frame and "source" not in frame:
        raise ValueError(f"{path}: levels are compared within a source; name its column as well")
    frame = frame if "source" in frame else frame.assign(source=frame.video)
    try:
        metrics.check(frame)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return _enough(frame, path)


def measure(frame: pd.DataFrame, draws: int = 2000) -> dict[str, Sample]:
    """Every measure that the frame's columns and rows allow, by name."""
    cells = _agreement(frame)
    if "crf" in frame:
        rows = metrics.differential(frame, "mos")
        if rows.video.nunique() >= FEWEST:
            cells += [(f"DMOS {name}", *cell) for name, *cell in _agreement(rows)]
        cells += _flip_cells(frame)
    return {name: (metrics.replicates(rows, job, draws), rows.source.nunique(),
                   items // _seeds(frame)) for name, rows, job, items in cells}


def _agreement(frame: pd.DataFrame) -> list[tuple]:
    """(measure, rows, Statistic, rows) of each of `MEASURES`: pooled, and within source."""
    several = _several(frame)
    several = several[several.groupby("source").mos.transform("nunique") > 1]
    pooled = [(name, frame, partial(job, truth="mos", **curve), len(frame))
              for name, (job, _, curve) in MEASURES.items()]
    within = [(f"{name} within source", several,
               partial(metrics.within_source, truth="mos", of=of, **curve), len(several))
              for name, (_, of, curve) in MEASURES.items()]
    return pooled + within if len(several) else pooled


def _flip_cells(frame: pd.DataFrame) -> list[tuple]:
    """(measure, rows, Statistic, pairs) of each flip rate: by difference, in all, by gap, codec."""
    frame = frame[frame.crf.notna()]
    pairs = metrics.flip_pairs(frame)
    chosen = [(f"diff={d:g}", frame, {"diff": d}, (pairs["diff"] == d).sum())
              for d in sorted(pairs["diff"].unique())]
    chosen.append(("all pairs", frame, {}, len(pairs)))
    chosen += [(name, frame, {"gap": gap}, pairs.gap.between(*gap, inclusive="left").sum())
               for name, gap in metrics.STRATA.items() if "proxy" in frame]
    if "codec" in pairs and pairs.codec.nunique() > 1:
        chosen += [(codec, frame[frame.codec == codec], {}, len(rows))
                   for codec, rows in pairs.groupby("codec")]
    return [(f"FR {name}{'' if kind == 'strict' else ' ' + kind}", rows,
             partial(metrics.flips, kind=kind, **options), items)
            for name, rows, options, items in chosen for kind in ("strict", "ties", "half")]


def table(samples: dict[str, Sample], against: dict[str, Sample] | None = None) -> pd.DataFrame:
    """A row a measure: value, ci_low, ci_high, n_sources, n_items, status.

    With `against`: the differences `samples` − `against`, with a column p.
    """
    rows = {}
    for name, (values, n, items) in samples.items():
        found = (metrics.contrast(values, against[name][0], n) if against else
                 metrics.estimate(values, n))
        status = ("undefined: a constant side, no pairs or no fit" if np.isnan(found.value) else
                  "ok" if np.isfinite(found.low) else
                  "no interval: one source" if n < 2 else
                  f"no interval: over {metrics.MOST_SOURCES:,} sources"
                  if "KRCC" in name and n > metrics.MOST_SOURCES else
                  "no interval: undefined in some draws")
        rows[name] = {"value": found.value, "ci_low": found.low, "ci_high": found.high,
                      **({"p": found.p} if against else {}),
                      "n_sources": n, "n_items": items, "status": status}
    return pd.DataFrame.from_dict(rows, orient="index")


def per_source(frame: pd.DataFrame) -> pd.DataFrame:
    """SRCC and, where there are levels, flip rates within each source of 3 rows or more.

    The worst first, and before them sources that have no SRCC: one side is constant. Seeds are
    averaged.
    """
    frame, each = _several(frame), []
    for _, rows in frame.groupby(frame.get("seed", np.zeros(len(frame)))):
        found = pd.DataFrame.from_dict(
            {name: [len(one), metrics.srcc(one.mos, one.prediction)]
             for name, one in rows.groupby("source")}, orient="index", columns=["rows", "SRCC"])
        if "crf" in frame:
            found = found.join(metrics.flip_table(rows, "source").add_prefix("FR "))
        each.append(found)
    whole = {name: "Int64" for name in ("rows", "FR pairs") if name in found}
    return (sum(each) / len(each)).astype(whole).sort_values("SRCC", na_position="first")


def evaluate(path: Path | str, against: Path | str | None = None,
             against_prediction: str | None = None, draws: int = 2000, **columns: Any) -> dict:
    """All that `cpllm evaluate` prints, as plain values; `columns` as in `read`.

    With `against` both models are measured on the videos that both scored; the others are listed,
    as are those with a level whose ladder has no reference. The other model may have several seeds,
    in a column of the same name, or one.
    """
    if draws < FEWEST_DRAWS:
        raise ValueError(f"draws: expected {FEWEST_DRAWS} or more, a tail being 2.5% of them; "
                         f"got {draws}")
    frame = read(path, **columns)
    result = {"file": str(path), "prediction": columns["prediction"], "mos": columns["mos"]}
    if against:
        named, seed = against_prediction or columns["prediction"], columns.get("seed")
        if seed and seed not in pd.read_csv(against, nrows=0):
            seed = None
        other = read(against, columns.get("video", "video"), prediction=named, seed=seed)
        frame, other, (here, there) = metrics.match(frame, other)
        _enough(frame, f"{path} and {against}, common to both")
    samples = measure(frame, draws)
    result |= {"rows": len(frame), "sources": frame.source.nunique(), "seeds": _seeds(frame),
               "draws": draws, "conventions": CONVENTIONS, "measures": _plain(table(samples))}
    if len(_several(frame)):
        result["per_source"] = _plain(per_source(frame))
    if "crf" in frame:
        known = metrics.differential(frame, "mos").video
        result["without_reference"] = sorted(set(frame.video[frame.crf.notna()]) - set(known))
    if against:
        theirs = measure(other, draws)
        result["against"] = {
            "file": str(against), "prediction": named, "only_in_file": here,
            "only_in_against": there, "measures": _plain(table(theirs)),
            "differences": _plain(table(samples, theirs))}
    return result


def show(result: dict) -> None:
    """The readable report of what `evaluate` returned."""
    rows, sources, seeds = (_plural(result[name], name) for name in ("rows", "sources", "seeds"))
    _print("{file}: {prediction} against {mos}".format(**result) + f", {rows}, {sources}, {seeds}",
           result["measures"])
    if worst := dict(list(result.get("per_source", {}).items())[:3]):
        _print("Sources with the lowest SRCC, or none", worst)
    _list("no reference, so not in DMOS", result.get("without_reference"))
    if against := result.get("against"):
        _list("unmatched, only in file", against["only_in_file"])
        _list("unmatched, only in against", against["only_in_against"])
        _print("{file}: {prediction}, same rows and truth".format(**against), against["measures"])
        _print("First minus second model, paired", against["differences"])
    measured = " ".join(result["measures"])
    for name, text in result["conventions"].items():
        if _ABOUT.get(name, "") in measured:
            print(f"{name}: {text}")


def _plural(n: int, noun: str) -> str:
    return f"{n:,} {noun if n != 1 else noun.removesuffix('s')}"


def _print(title: str, rows: dict[str, dict]) -> None:
    """Rows by name; ties and halves of a flip rate only where there are ties."""
    kept = [name for name in rows if not name.endswith((" ties", " half"))
            or rows[re.sub("(ties|half)$", "ties", name)]["value"]]
    shown = pd.DataFrame.from_dict(rows, orient="index").loc[kept]
    shown = shown.astype(object).where(shown.notna(), np.nan)  # None would be printed as such
    print(title, shown.to_string(na_rep="-", float_format="{:.4f}".format), sep="\n", end="\n\n")


def _list(what: str, names: list[str] | None) -> None:
    if names:
        print(f"{len(names):,} rows {what}: {', '.join(names[:5])}{', …' * (len(names) > 5)}\n")


def _several(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of sources that have enough for a correlation among themselves."""
    return frame[frame.groupby("source").video.transform("nunique") >= FEWEST]


def _seeds(frame: pd.DataFrame) -> int:
    return frame.seed.nunique() if "seed" in frame else 1


def _enough(frame: pd.DataFrame, where: Path | str) -> pd.DataFrame:
    """The frame, unless it has too few rows."""
    if (rows := frame.video.nunique()) < FEWEST:
        raise ValueError(f"{where}: {rows} rows; a correlation needs {FEWEST} or more")
    return frame


def _plain(frame: pd.DataFrame) -> dict[str, dict]:
    """Rows by name for JSON; what is not finite becomes null."""
    return json.loads(frame.to_json(orient="index", double_precision=15))
