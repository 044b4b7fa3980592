"""Data sets that users bring: a card each, a reader of its label files, checks against the disk."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from rich.console import Console
from rich.progress import track

from cpllm import config
from cpllm.data import manifests, video
from cpllm.data.manifests import ManifestError

CARDS = Path(__file__).resolve().parents[2] / "data_manifests"
HELD_OUT = 0.02
"""Of training sources, for validation. Not specified in the paper; LSVQ has no such split."""

FIELDS = ("path", "mos", "dmos", "mos_std", "ratings", "width", "height", "frames", "fps", "codec",
          "test")
TEXT = ("path", "duration", "fps", "mos")
"""Columns of the text form that public programs share; −1 is "unknown"."""


@dataclass(frozen=True)
class Scale:
    """Range of a set's scores, and whether `higher` or `lower` is better."""

    low: float
    high: float
    better: str


@dataclass(frozen=True)
class Card:
    """What `data_manifests/<name>.yaml` says of a set; `unverified` is what nobody here has seen.

    subsets: name → its `split`, the known numbers of `rows` and a pattern in the label `file`'s
    name; columns: our field → the label files' names for it; suffixes: of clips that labels name
    without one; source and variant: patterns in a clip's name, family in its path.
    """

    name: str
    title: str
    cite: str
    role: str
    terms: str
    obtain: str
    folder: str
    mos: Scale
    key_frames: int
    subsets: Mapping[str, Mapping]
    labels: tuple[str, ...]
    columns: Mapping[str, Sequence[str]]
    suffixes: tuple[str, ...]
    unverified: tuple[str, ...]
    sheet: str = ""
    source: str = r"^(.+)\.\w+$"
    family: str = "^$"
    variant: str = "^$"
    leaks: int = 0
    notes: tuple[str, ...] = ()


def names() -> list[str]:
    """Sets that have a card."""
    return sorted(path.stem for path in CARDS.glob("*.yaml"))


def card(name: str) -> Card:
    """A set's card; ManifestError names the known ones."""
    if name not in names():
        raise ManifestError(f"data set: expected one of {', '.join(names())}; got {name!r}")
    text = (CARDS / f"{name}.yaml").read_text("utf-8")
    return config.from_dict({"name": name, **yaml.safe_load(text)}, Card, f"{name}.yaml")


def read_labels(path: Path, sheet: str = "") -> pd.DataFrame:
    """A label file's rows as text under its own column names: .csv, .xlsx, .mat or the text form.

    A .mat's columns are its vectors as long as the longest one. Raises ManifestError.
    """
    readers = {".csv": _read_csv, ".txt": _read_text, ".mat": _read_mat,
               ".xlsx": partial(pd.read_excel, sheet_name=sheet or 0, dtype=str)}
    if path.suffix.lower() not in readers:
        raise ManifestError(f"{path}: expected a label file {', '.join(readers)}")
    try:
        table = readers[path.suffix.lower()](path)
    except ManifestError:
        raise
    except Exception as error:  # openpyxl and SciPy raise whatever a damaged file leads them to
        raise ManifestError(f"{path}: cannot be read ({type(error).__name__}: {error}); save it as "
                            "csv, or as text lines `path, duration, fps, MOS`") from error
    return table.fillna("").astype(str).apply(lambda column: column.str.strip())


def _read_csv(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def _read_text(path: Path) -> pd.DataFrame:
    lines = path.read_text("utf-8-sig").splitlines()
    rows = [line.rsplit(",", 3) for line in lines if line.strip()]
    if wrong := [n for n, row in enumerate(rows, 1) if len(row) != len(TEXT)]:
        raise ManifestError(f"{path}: line {wrong[0]}: expected {', '.join(TEXT)}, "
                            f"came {','.join(rows[wrong[0] - 1])!r}")
    return pd.DataFrame(rows, columns=list(TEXT))


def _read_mat(path: Path) -> pd.DataFrame:
    from scipy.io import loadmat

    held = {k: np.atleast_1d(v) for k, v in loadmat(path, simplify_cells=True).items()}
    n = max(len(v) for v in held.values())
    return pd.DataFrame({k: v for k, v in held.items() if v.shape == (n,)})


def rows(path: Path, card: Card, columns: Mapping[str, str] | None = None) -> pd.DataFrame:
    """A label file's rows in the one schema, without what only the clips tell.

    columns: our field → the file's column, where the card's names are not the file's. Raises
    ManifestError with row and column, also for a path that leaves the root.
    """
    held, known = read_labels(path, card.sheet), {**card.columns, **(columns or {})}
    made = pd.DataFrame({f: held[c] for f in FIELDS if (c := _column(held, f, known)) is not None})
    if missing := [f for f in ("path", "mos") if f not in made]:
        raise ManifestError(f"{path}: no column for {missing[0]}; the file has "
                            f"{', '.join(map(str, held))}: name one with --column "
                            f"{missing[0]}=COLUMN")
    facts = [f for f in ("width", "height", "frames", "fps", "ratings") if f in made]
    made[facts] = made[facts].mask(made[facts].isin(["-1", "-1.0"]), "")
    name = made["path"].map(lambda p: p if p.endswith(card.suffixes) else p + card.suffixes[0])
    stem = name.str.rsplit("/", n=1).str[-1]
    subset = _subsets(path, card, made.pop("test") if "test" in made else None, len(made))
    source = _bare(_match(stem, card.source, stem))
    split = [_split(card.subsets[s]["split"], n) for s, n in zip(subset, source, strict=True)]
    made = made.assign(
        path=name, video=_bare(name.str.rsplit(".", n=1).str[0]), source=source, scene=source,
        family=_match(name, card.family, card.title), split=split,
        dataset=[_dataset(card, s) for s in subset],
        role=np.where(stem.str.contains(card.variant), "variant", "original"),
        quality=_quality(made["mos"], card.mos))
    return manifests.check(made, path, first=1 if path.suffix.lower() == ".txt" else 2,
                           limits={"mos": (card.mos.low, card.mos.high)})


def _dataset(card: Card, subset: str) -> str:
    return card.name if len(card.subsets) == 1 else f"{card.name}-{subset}"


def _bare(names: pd.Series) -> pd.Series:
    return names.str.replace(r"[^\w.@+-]+", "_", regex=True)


def _quality(mos: pd.Series, scale: Scale) -> pd.Series:
    score = (pd.to_numeric(mos, errors="coerce") - scale.low) / (scale.high - scale.low) * 100
    return score if scale.better == "higher" else 100 - score


def _column(held: pd.DataFrame, field: str, known: Mapping) -> str | None:
    """The file's column for a field; capitals, spaces and underscores don't count."""
    def bare(name) -> str:
        return re.sub(r"[\W_]", "", str(name)).lower()

    names = [known[field]] if isinstance(known.get(field), str) else [*known.get(field, ()), field]
    wanted = [bare(name) for name in names]
    return next((c for c in held if bare(c) in wanted), None)


def _match(names: pd.Series, pattern: str, default) -> pd.Series:
    return names.str.extract(f"(?:{pattern})", expand=True).iloc[:, 0].fillna(default) \
        if re.compile(pattern).groups else pd.Series(default, index=names.index)


def _subsets(path: Path, card: Card, test: pd.Series | None, n: int) -> list[str]:
    """By an is_test column, else the one subset whose pattern the label file's name matches."""
    if test is not None:
        return np.where(test.str.lower().isin(["true", "1", "1.0"]), "test", "train").tolist()
    found = [s for s, told in card.subsets.items() if re.search(told["file"], path.stem.lower())]
    if len(found) != 1:
        raise ManifestError(f"{path}: expected a file name that says which of "
                            f"{', '.join(card.subsets)} it holds")
    return found * n


def _split(split: str, source: str) -> str:
    held_out = split == "train" and zlib.crc32(source.encode()) % 1000 < 1000 * HELD_OUT
    return "validation" if held_out else split


def inspect(table: pd.DataFrame, root: Path, decode: bool = False,
            progress: bool = True) -> tuple[pd.DataFrame, dict[str, str]]:
    """Rows whose clip is whole, with what was measured, and for the others path → reason.

    Every packet is read and one frame decoded; with `decode` all frames.
    """
    look = partial(_look, root=root, decode=decode)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(track(pool.map(look, table.to_dict("records")), "checking clips", len(table),
                           console=Console(stderr=True), disable=not progress))
    bad = {p: f for p, f in zip(table["path"], found, strict=True) if isinstance(f, str)}
    whole = [f for f in found if not isinstance(f, str)]
    return pd.DataFrame(whole, columns=list(manifests.SUBJECTIVE)), bad


def verify(name: str, path: Path, root: Path, decode: bool = False,
           progress: bool = True) -> tuple[list[str], dict[str, str]]:
    """Remarks on a built manifest's rows, and path → fault of clips that are no longer whole."""
    table = manifests.read(path)
    _, bad = inspect(table, root, decode, progress)
    told = card(name)
    return [*remarks(table, told), *faults(bad, told, root, len(table))], bad


def _look(row: dict, root: Path, decode: bool) -> dict | str:
    path = root / row["path"]
    try:
        seen = video.probe(path)
        if decode:
            video.key_frames(path, 1, threads=1)
    except video.VideoError as error:
        return str(error).removeprefix(f"{path}: ") if path.exists() else "missing"
    size = path.stat().st_size
    if pd.notna(row["bytes"]) and row["bytes"] != size:
        return f"expected {row['bytes']:,} bytes as in the manifest, came {size:,}"
    return row | {k: getattr(seen, k) for k in ("width", "height", "frames", "codec")} | {
        "fps": seen.fps or row["fps"], "bytes": size}


def build(name: str, root: Path, labels: Sequence[Path] = (),
          columns: Mapping[str, str] | None = None, decode: bool = False,
          progress: bool = True) -> tuple[pd.DataFrame, list[str], dict[str, str]]:
    """A set's manifest from its label files and clips: the whole rows, remarks, and path → fault.

    labels: by default those that the card names, under `root`. Raises ManifestError for a label
    row that is wrong, and where no clip at all is found.
    """
    told = card(name)
    labels = list(labels) or [p for n in told.labels if (p := root / n).is_file()]
    if not labels:
        raise ManifestError(f"{told.title}: expected label files ({', '.join(told.labels)}) under "
                            f"{root}, found none; name them with --labels. {told.obtain}")
    table = pd.concat([rows(path, told, columns) for path in labels], ignore_index=True)
    table["path"] = table["path"].map(partial(_named, root=root, suffixes=told.suffixes))
    whole, bad = inspect(manifests.check(table, name), root, decode, progress)
    if not len(whole):
        path, reason = next(iter(bad.items()))
        raise ManifestError(f"{told.title}: none of {len(bad):,} clips found whole under {root} "
                            f"(first: {path}: {reason}); {told.folder}")
    found = [*remarks(table, told), *faults(bad, told, root, len(table))]
    return manifests.check(whole, name), found, bad


def _named(path: str, root: Path, suffixes: Sequence[str]) -> str:
    """The path with whichever of the set's suffixes is on disk."""
    stem = next((path.removesuffix(s) for s in suffixes if path.endswith(s)), path)
    return next((stem + s for s in suffixes if (root / (stem + s)).exists()), path)


def remarks(table: pd.DataFrame, card: Card) -> Iterator[str]:
    """Counts beside the card's, and sources that lie in two splits."""
    known = {_dataset(card, subset): told["rows"] for subset, told in card.subsets.items()}
    for name, part in table.groupby("dataset"):
        counts = known.get(name, ())
        fits = "as known" if len(part) in counts else f"known counts: {_list(counts)}"
        yield f"{name}: {len(part):,} rows ({fits})"
    if found := manifests.leaks(table):
        yield (f"{card.title}: {len(found):,} sources lie in several splits (first: {found[0]}); "
               + ("the card knows" if len(found) == card.leaks else f"the card knows {card.leaks}"))


def _list(numbers: Sequence[int]) -> str:
    return "; ".join(f"{n:,}" for n in numbers)


def faults(bad: Mapping[str, str], card: Card, root: Path, n: int) -> Iterator[str]:
    """One line for clips that are missing, one for those that are not whole."""
    missing = [path for path, reason in bad.items() if reason == "missing"]
    for kind, paths in (("missing", missing), ("damaged", [p for p in bad if p not in missing])):
        if paths:
            yield (f"{card.title}: {len(paths):,} of {n:,} clips {kind} under {root} "
                   f"(first: {paths[0]}); see data_manifests/{card.name}.yaml")
