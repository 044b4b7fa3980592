"""Manifests: one row per video, one schema, refused with row and column where they are wrong.

Clips made here carry an FR-proxy label (`SCHEMA`); those that users bring carry people's scores
(`SUBJECTIVE`, told by its column `path`). Both share what training and scoring read.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd


class ManifestError(ValueError):
    """One line: which file, row and column, what was expected, what came."""


class Column(NamedTuple):
    """What a column holds: text matching a pattern, or a number in [low, high]; or unknown."""

    kind: type
    low: float = 0
    high: float = np.inf
    pattern: str = r"\S(.*\S)?"
    optional: bool = False


NAME = r"[A-Za-z0-9][\w.@+-]*"
"""Names become file names: no separators, no leading dot or dash."""

SCHEMA = {
    "video": Column(str, pattern=NAME),
    "scene": Column(str, pattern=NAME),
    "source": Column(str, pattern=NAME),
    "family": Column(str),
    "split": Column(str, pattern="train|validation|test"),
    "dataset": Column(str),
    "role": Column(str, pattern="original|variant"),
    "distortion": Column(str),
    "strength": Column(float),
    "codec": Column(str),
    "crf": Column(int, 0, 63),
    "width": Column(int, 1),
    "height": Column(int, 1),
    "frames": Column(int, 1),
    "fps": Column(float, 1e-3),
    "proxy": Column(float, 0, 100),
    "psnr": Column(float, 0, 100),
    "ssim": Column(float, -1, 1),
    "bytes": Column(int, 1),
    "sha256": Column(str, pattern="[0-9a-f]{16}"),
    "file": Column(str, pattern="[0-9a-f]{16}", optional=True),
    "content": Column(str),
    "style": Column(str),
}
"""`video` is the file's stem; `proxy` the FR-proxy (VMAF); `sha256` is over decoded
frames, `file` over the file's bytes."""

PATH = r"(?!/|[A-Za-z]:)(?!(.*/)?\.\.(/|$))[^\\\x00-\x1f]*[^\\\x00-\x1f/]"
"""Relative and below its root on every system."""

SUBJECTIVE = {
    "video": SCHEMA["video"],
    "path": Column(str, pattern=PATH),
    **{c: SCHEMA[c] for c in ("scene", "source", "family", "split", "dataset", "role")},
    "codec": Column(str, optional=True),
    "width": Column(int, 1, optional=True),
    "height": Column(int, 1, optional=True),
    "frames": Column(int, 1, optional=True),
    "fps": Column(float, 1e-3, optional=True),
    "mos": Column(float, -np.inf),
    "dmos": Column(float, -np.inf, optional=True),
    "mos_std": Column(float, optional=True),
    "ratings": Column(int, 1, optional=True),
    "quality": Column(float, 0, 100),
    "bytes": Column(int, 1, optional=True),
}
"""`path` is below the set's root; `mos`, `dmos` and `mos_std` are on the set's own scale, `quality`
is `mos` on 0–100, higher better; `bytes` is the file's size when it was found whole."""


def read(path: str | Path) -> pd.DataFrame:
    """A checked manifest. Text is kept as written: "none" and "NA" are words."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path}: cannot be read as CSV ({error})") from error
    return check(table, path)


def check(table: pd.DataFrame, name: str | Path = "manifest", first: int = 2,
          limits: Mapping[str, tuple[float, float]] | None = None) -> pd.DataFrame:
    """The table with its schema's types; ManifestError names the first wrong row and column.

    first: number that the file's reader sees beside its first row; limits: closer ones of columns.
    The split of public sets is theirs, so a source in two splits is refused in clips made here
    only; see `leaks`.
    """
    schema = _schema(table)
    close = {c: schema[c]._replace(low=low, high=high) for c, (low, high) in (limits or {}).items()}
    schema = {**schema, **close}
    missing = [c for c in schema if c not in table and not schema[c].optional]
    unknown = [str(c) for c in table if c not in schema]
    if missing or unknown:
        raise ManifestError(f"{name}: missing columns: {', '.join(missing) or 'none'}; "
                            f"unknown: {', '.join(unknown) or 'none'}")
    table = table.reindex(columns=list(schema))
    table = pd.DataFrame({c: _typed(table, c, schema[c], name, first) for c in schema})
    if (twice := table["video"].duplicated()).any():
        _refuse(table, twice, "video", "a name that occurs once", name, first)
    home = table.groupby("source")["split"].transform("first")
    if "path" not in schema and (leak := table["split"] != home).any():
        _refuse(table, leak, "split", "one split for all clips of a source", name, first)
    return table


def leaks(table: pd.DataFrame) -> list[str]:
    """Sources with clips in more than one split."""
    splits = table.groupby("source")["split"].nunique()
    return splits.index[splits > 1].tolist()


def quality(table: pd.DataFrame) -> pd.Series:
    """0–100, higher is better: the FR-proxy of clips made here, people's scores of others."""
    return table["proxy" if "proxy" in table else "quality"]


def without(table: pd.DataFrame, values: Sequence[str], of: str = "family") -> pd.DataFrame:
    """The rows with other values of a column; ValueError where one of these has no row."""
    if unknown := set(values) - (known := set(table.get(of, ()))):
        raise ValueError(f"no training scene has the {of} {', '.join(sorted(unknown))}; known are "
                         f"{', '.join(sorted(known))}: see data.without and data.without_faults")
    return table[~table[of].isin(values)] if values else table


def files(table: pd.DataFrame) -> pd.Series:
    """Where each row's clip lies below the manifest's root."""
    return table["path"] if "path" in table else table["video"] + ".mp4"


def pairs(table: pd.DataFrame, whose: str) -> list[tuple[Any, Any]]:
    """Rows, as named tuples, of each encode without a fault and of the original that it is of.

    ValueError where there is none; whose: what wants them and where, for its message.
    """
    sound = table[table["distortion"] == "none"]
    originals = {row.scene: row for row in sound[sound["role"] == "original"].itertuples()}
    coded = sound[(sound["role"] == "variant") & sound["scene"].isin(originals)]
    if coded.empty:
        raise ValueError(f"{whose}: expected encodes and their originals, both without a fault, "
                         f"among {len(table)} clips; got none")
    return [(row, originals[row.scene]) for row in coded.itertuples()]


def check_splits(tables: dict[str, pd.DataFrame]) -> None:
    """ManifestError where a source lies in two of the named tables."""
    home: dict[str, str] = {}
    for name, table in tables.items():
        for source in table["source"].unique():
            if home.setdefault(source, name) != name:
                raise ManifestError(f"source {source!r} lies in both {home[source]} and {name}: "
                                    "split by source")


def write(table: pd.DataFrame, path: str | Path) -> None:
    """Check, then write whole or not at all."""
    path = Path(path)
    text = _text(check(table, path))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text)
    part.replace(path)


TRAINING = ("train", "validation")
"""The splits that a run depends on; the test split is read when it is done."""


def sha256(table: pd.DataFrame | str | Path, splits: Sequence[str] = ()) -> str:
    """Hex digest of a manifest's rows (of these splits) in order of `video`."""
    table = check(table) if isinstance(table, pd.DataFrame) else read(table)
    table = table[table["split"].isin(splits)] if splits else table
    return hashlib.sha256(_text(table.sort_values("video")).encode()).hexdigest()


def _schema(table: pd.DataFrame) -> dict[str, Column]:
    return SUBJECTIVE if "path" in table else SCHEMA


def _text(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, columns=list(_schema(table)), lineterminator="\n")


def _typed(table, column: str, held: Column, name: str | Path, first: int) -> pd.Series:
    kind, low, high, pattern, optional = held
    values = table[column]
    unknown = values.isna() | (values == "")
    if kind is str:
        wrong = values.isna() | ~values.astype(str).str.fullmatch(pattern)
        expected = f"text matching {pattern}"
    else:
        values = pd.to_numeric(values, errors="coerce")
        wrong = ~values.between(low, high) | np.isinf(values)
        expected = f"a number from {low:g} to {high:g}"
        if kind is int:
            wrong, expected = wrong | (values % 1 != 0), f"a whole {expected[2:]}"
    if optional:
        wrong, kind = wrong & ~unknown, {int: "Int64", str: object}.get(kind, kind)
        values = values.astype(object).where(~unknown, "") if kind is object else values
    if wrong.any():
        _refuse(table, wrong, column, expected, name, first)
    return values.astype(kind)


def _refuse(table, wrong, column, expected, name, first) -> None:
    at = int(np.flatnonzero(wrong)[0])
    raise ManifestError(f"{name}: row {at + first} ({table['video'].iloc[at]}), column {column}: "
                        f"expected {expected}, came {table[column].iloc[at]!r}")


def prediction_rows(table: pd.DataFrame) -> pd.DataFrame:
    """What predictions.csv repeats of a manifest. An original's own CRF is no level: left empty."""
    columns = ["video", "source", "family", "dataset", "split", "role", "distortion", "codec",
               "crf", "proxy", "mos", "dmos"]
    rows = table[[c for c in columns if c in table]]
    return rows.assign(crf=rows["crf"].where(rows["role"] == "variant")) if "crf" in rows else rows
