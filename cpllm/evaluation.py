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
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from cpllm import metrics

NUMBERS = ("prediction", "mos", "crf", "proxy", "dmos")
DMOS = ("SRCC", "PLCC linear", "PLCC logistic")
CONVENTIONS = {
    "interval": "95%, cluster bootstrap: whole sources are drawn",
    "mos": "higher is better; SRCC, KRCC (tau-b), PLCC over all rows together; RMSE in its units",
    "logistic": "4 parameters, from (max, min, mean, std/4), fitted once to all rows",
    "dmos": "reference - variant on both sides, so a good model correlates positively; reference: "
            "the one row of a ladder without a level; no DMOS without one",
    "level": "a higher level never looks better; FR: pairs of one ladder that the prediction "
             "orders wrongly (strict), finds equal (ties), or strict + ties / 2 (half)",
}
Sample = tuple[NDArray, int, int]
"""A measure of one model: `metrics.replicates`, sources, and rows or pairs of a seed."""


def read(path: Path | str, video: str = "video", **columns: str | None) -> pd.DataFrame:
    """A CSV's named columns under the names of `metrics`: prediction, mos, source, crf, codec, …

    Without a source each row is its own. ValueError names the file, and columns that are absent
    beside those that exist, or the first rows that are blank or no number.
    """
    try:
        table = pd.read_csv(path, dtype={video: str})
    except ValueError as error:
        raise ValueError(f"{path}: cannot be read as CSV ({error})") from error
    wanted = {"video": video, **{name: column for name, column in columns.items() if column}}
    if absent := [column for column in wanted.values() if column not in table]:
        raise ValueError(f"{path}: no column {', '.join(absent)}; has {', '.join(table)}")
    frame = pd.DataFrame({name: table[column] for name, column in wanted.items()})
    for name in wanted:
        value = frame[name]
        if name in NUMBERS:
            value = pd.to_numeric(value, errors="coerce").replace([np.inf, -np.inf], np.nan)
        bad = value.isna() & (frame[name].notna() | (name not in ("crf", "codec", "dmos")))
        if bad.any():
            names = ", ".join(map(str, frame.video[bad][:3]))
            raise ValueError(f"{path}: column {wanted[name]}: {bad.sum()} of {len(frame)} rows are "
                             f"blank or no number (first: {names})")
        frame[name] = value
    if len(frame) < 3:
        raise ValueError(f"{path}: {len(frame)} rows; a correlation needs 3 or more")
    if "crf" in frame and "source" not in frame:
        raise ValueError(f"{path}: levels are compared within a source; name its column as well")
    frame = frame if "source" in frame else frame.assign(source=frame.video)
    metrics.check(frame)
    return frame


def measure(frame: pd.DataFrame, draws: int = 2000) -> dict[str, Sample]:
    """Every measure that the frame's columns allow, by name."""
    jobs = {"SRCC": metrics.pooled_srcc, "KRCC": metrics.pooled_krcc,
            "PLCC linear": metrics.pooled_plcc,
            "PLCC logistic": partial(metrics.pooled_plcc, curve=True),
            "RMSE": metrics.pooled_rmse, "RMSE logistic": partial(metrics.pooled_rmse, curve=True),
            "SRCC within source": metrics.within_srcc}
    if frame.source.nunique() == frame.video.nunique():
        del jobs["SRCC within source"]
    cells = [(name, frame, partial(job, truth="mos"), len(frame)) for name, job in jobs.items()]
    if "crf" in frame:
        rows = metrics.differential(frame, "mos")
        cells += [(f"DMOS {name}", rows, partial(job, truth="mos"), len(rows))
                  for name, job in jobs.items() if name in DMOS and len(rows)]
        cells += _flip_cells(frame)
    seeds = frame.seed.nunique() if "seed" in frame else 1
    return {name: (metrics.replicates(rows, job, draws), rows.source.nunique(), items // seeds)
            for name, rows, job, items in cells}


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
        status = ("undefined: a constant side, or no pairs" if np.isnan(found.value) else
                  "ok" if np.isfinite(found.low) else
                  "no interval: one source" if n < 2 else "no interval: undefined in some draws")
        rows[name] = {"value": found.value, "ci_low": found.low, "ci_high": found.high,
                      **({"p": found.p} if against else {}),
                      "n_sources": n, "n_items": items, "status": status}
    return pd.DataFrame.from_dict(rows, orient="index")


def per_source(frame: pd.DataFrame) -> pd.DataFrame:
    """SRCC and, where there are levels, flip rates within each source, the worst first."""
    found = pd.DataFrame({name: {"rows": len(rows), "SRCC": metrics.srcc(rows.mos, rows.prediction)}
                          for name, rows in frame.groupby("source")}).T.astype({"rows": int})
    if "crf" in frame:
        found = found.join(metrics.flip_table(frame, "source").add_prefix("FR "))
    return found.sort_values("SRCC")


def evaluate(path: Path | str, against: Path | str | None = None,
             against_prediction: str | None = None, draws: int = 2000, **columns: Any) -> dict:
    """All that `cpllm evaluate` prints, as plain values; `columns` as in `read`.

    With `against` both models are measured on the videos that both scored; the others are listed.
    """
    frame = read(path, **columns)
    result = {"file": str(path), "prediction": columns["prediction"], "mos": columns["mos"]}
    if against:
        named = against_prediction or columns["prediction"]
        other = read(against, columns.get("video", "video"), prediction=named)
        frame, other, (here, there) = metrics.match(frame, other)
    samples = measure(frame, draws)
    result |= {"rows": len(frame), "sources": frame.source.nunique(), "draws": draws,
               "conventions": CONVENTIONS, "measures": _plain(table(samples))}
    if frame.source.duplicated().any():
        result["per_source"] = _plain(per_source(frame))
    if against:
        theirs = measure(other, draws)
        result["against"] = {
            "file": str(against), "prediction": named, "only_in_file": here,
            "only_in_against": there, "measures": _plain(table(theirs)),
            "differences": _plain(table(samples, theirs))}
    return result


def show(result: dict) -> None:
    """The readable report of what `evaluate` returned."""
    console = Console(highlight=False)
    title = "{file}: {prediction} against {mos}, {rows:,} rows, {sources:,} sources"
    console.print(_grid(title.format(**result), result["measures"]))
    if worst := dict(list(result.get("per_source", {}).items())[:3]):
        console.print(_grid("Sources with the lowest SRCC", worst))
    if against := result.get("against"):
        for side in ("only_in_file", "only_in_against"):
            if names := against[side]:
                console.print(f"{len(names):,} rows unmatched, {side.replace('_', ' ')}: "
                              f"{', '.join(names[:5])}{', …' * (len(names) > 5)}", markup=False)
        console.print(_grid("{file}: {prediction}, same rows".format(**against),
                            against["measures"]))
        console.print(_grid("First minus second model, paired", against["differences"]))
    for name, text in result["conventions"].items():
        console.print(f"[dim]{name}: {text}[/]")


def _grid(title: str, rows: dict[str, dict]) -> Table:
    """Rows by name; ties and halves of a flip rate only where there are ties."""
    def cell(value: Any) -> str:
        return ("–" if value is None else f"{value:.4f}" if isinstance(value, float) else
                f"{value:,}" if isinstance(value, int) else str(value))

    grid = Table(Column("", no_wrap=True), *next(iter(rows.values())), title=escape(title),
                 box=None, title_justify="left")
    for name, row in rows.items():
        ties = rows.get(re.sub(" (ties|half)$", " ties", name), {})
        if not name.endswith((" ties", " half")) or ties.get("value"):
            grid.add_row(escape(name), *map(cell, row.values()))
    return grid


def _plain(frame: pd.DataFrame) -> dict[str, dict]:
    """Rows by name for JSON; what is not finite becomes null."""
    return json.loads(frame.to_json(orient="index", double_precision=15))
