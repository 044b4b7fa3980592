"""Manifests: one row per video, one schema, refused with row and column where they are wrong."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd


class ManifestError(ValueError):
    """One line: which file, row and column, what was expected, what came."""


class Column(NamedTuple):
    """What a column holds: text matching a pattern, or a number in [low, high]."""

    kind: type
    low: float = 0
    high: float = np.inf
    pattern: str = r"\S(.*\S)?"


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
    "content": Column(str),
    "style": Column(str),
}
"""`video` is the file's stem; `proxy` the FR-proxy (VMAF); `sha256` is over decoded frames."""


def read(path: str | Path) -> pd.DataFrame:
    """A checked manifest. Text is kept as written: "none" and "NA" are words."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path}: cannot be read as CSV ({error})") from error
    return check(table, path)


def check(table: pd.DataFrame, name: str | Path = "manifest") -> pd.DataFrame:
    """The table with its schema's types; ManifestError names the first wrong row and column."""
    missing = [c for c in SCHEMA if c not in table]
    unknown = [str(c) for c in table if c not in SCHEMA]
    if missing or unknown:
        raise ManifestError(f"{name}: missing columns: {', '.join(missing) or 'none'}; "
                            f"unknown: {', '.join(unknown) or 'none'}")
    table = pd.DataFrame({c: _typed(table, c, name) for c in SCHEMA})
    if (twice := table["video"].duplicated()).any():
        _refuse(table, twice, "video", "a name that occurs once", name)
    home = table.groupby("source")["split"].transform("first")
    if (leaks := table["split"] != home).any():
        _refuse(table, leaks, "split", "one split for all clips of a source", name)
    return table


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


def sha256(table: pd.DataFrame | str | Path) -> str:
    """Hex digest of a manifest's rows in order of `video`: what a run was trained or tested on."""
    table = check(table) if isinstance(table, pd.DataFrame) else read(table)
    return hashlib.sha256(_text(table.sort_values("video")).encode()).hexdigest()


def _text(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, columns=list(SCHEMA), lineterminator="\n")


def _typed(table: pd.DataFrame, column: str, name: str | Path) -> pd.Series:
    kind, low, high, pattern = SCHEMA[column]
    values = table[column]
    if kind is str:
        wrong = values.isna() | ~values.astype(str).str.fullmatch(pattern)
        expected = f"text matching {pattern}"
    else:
        values = pd.to_numeric(values, errors="coerce")
        wrong = ~values.between(low, high) | np.isinf(values)
        expected = f"a number from {low:g} to {high:g}"
        if kind is int:
            wrong, expected = wrong | (values % 1 != 0), f"a whole {expected[2:]}"
    if wrong.any():
        _refuse(table, wrong, column, expected, name)
    return values.astype(kind)


def _refuse(table, wrong, column, expected, name) -> None:
    at = int(np.flatnonzero(wrong)[0])
    raise ManifestError(f"{name}: row {at + 2} ({table['video'].iloc[at]}), column {column}: "
                        f"expected {expected}, came {table[column].iloc[at]!r}")


def prediction_rows(table: pd.DataFrame) -> pd.DataFrame:
    """What predictions.csv repeats of a manifest. An original's own CRF is no level: left empty."""
    columns = ["video", "source", "family", "split", "role", "distortion", "codec", "crf", "proxy"]
    return table[columns].assign(crf=table["crf"].where(table["role"] == "variant"))
