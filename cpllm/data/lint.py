"""The ladder linter: what a codec ladder holds that its CRF values don't tell.

x264 clamps CRF 53 to 51 for 8-bit video: two rungs of the paper's 15, 17, …, 53 are one clip, and
every flip rate over them counts an exact tie.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pandas as pd

from cpllm.data import manifests, video

RUNG = re.compile(r"(?P<scene>.+?)[@_.-]*crf[_-]?(?P<crf>\d+)")
"""A rung's name: `<scene>@crf31`, as `ladder.build` writes, or with _, - or . before the CRF."""


class Finding(NamedTuple):
    """What is wrong with which clips of which ladder."""

    ladder: str
    kind: str  # duplicate | frames | timestamps | rate | proxy | damaged
    videos: tuple[str, ...]
    text: str


def lint(rungs: pd.DataFrame) -> list[Finding]:
    """Findings on ladders: `ladder, video, crf, bytes, frames, sha256`, perhaps `proxy, times`.

    Rungs are compared with the next one in order of CRF; frame counts and timestamps (in seconds
    after the first frame) with what most rungs of the ladder have.
    """
    found = []
    for name, rows in rungs.sort_values("crf").groupby("ladder", sort=False):
        found += [Finding(name, *what) for check in (_duplicates, _drifts, _orders)
                  for what in check(rows)]
    return found


def _duplicates(rows: pd.DataFrame) -> Iterator[tuple]:
    for _, same in rows.groupby("sha256", sort=False):
        if len(same) > 1:
            crfs = " and ".join(map(str, same["crf"]))
            yield "duplicate", tuple(same["video"]), f"CRF {crfs} decode to the same frames"


def _drifts(rows: pd.DataFrame) -> Iterator[tuple]:
    usual = Counter(rows["frames"]).most_common(1)[0][0]
    for row in rows[rows["frames"] != usual].itertuples():
        yield "frames", (row.video,), f"expected {usual} frames as in most rungs, came {row.frames}"
    if "times" not in rows:
        return
    whole = rows[rows["frames"] == usual]
    times = np.stack(whole["times"])
    late = np.abs(times - np.median(times, 0)).max(1)
    step = np.median(np.diff(times)) if usual > 1 else np.inf
    for name, seconds in zip(whole["video"], late, strict=True):
        if seconds > step / 2:
            yield "timestamps", (name,), f"frames are up to {seconds:.3f} s off the other rungs'"


def _orders(rows: pd.DataFrame) -> Iterator[tuple]:
    for i in range(len(rows) - 1):
        a, b = rows.iloc[i], rows.iloc[i + 1]
        if a["sha256"] == b["sha256"]:
            continue
        names, crfs = (a["video"], b["video"]), f"from CRF {a['crf']} to {b['crf']}"
        if b["bytes"] >= a["bytes"]:
            yield "rate", names, f"bytes don't fall {crfs}: {a['bytes']:,} to {b['bytes']:,}"
        if "proxy" in rows and b["proxy"] > a["proxy"]:
            yield "proxy", names, f"FR-proxy rises {crfs}: {a['proxy']:.2f} to {b['proxy']:.2f}"


def from_manifest(path: Path) -> pd.DataFrame:
    """The ladders of a manifest of clips made here, by its own columns; no clip is opened."""
    table = manifests.read(path)
    if "crf" not in table:
        raise manifests.ManifestError(f"{path}: expected a manifest with column crf; give the "
                                      "folder of the clips")
    rows = table[table["role"] == "variant"]
    return rows.assign(ladder=rows["scene"] + " " + rows["codec"])


def from_folder(folder: Path) -> tuple[pd.DataFrame, list[Finding]]:
    """The ladders of a folder by its files' names, all frames decoded; and what can't be."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and RUNG.search(p.stem))
    if not paths:
        raise manifests.ManifestError(f"{folder}: expected clips named like <scene>@crf31.mp4, "
                                      "found none")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        seen = list(pool.map(lambda p: _measure(p, folder), paths))
    bad = [f for f in seen if isinstance(f, Finding)]
    return pd.DataFrame([row for row in seen if not isinstance(row, Finding)]), bad


def _measure(path: Path, folder: Path) -> dict | Finding:
    """Frames are hashed as decoded, before conversion to RGB; few are in memory at a time."""
    name, match = str(path.relative_to(folder)), RUNG.search(path.stem)
    ladder = str(path.with_name(match["scene"]).relative_to(folder))
    digest, times = hashlib.sha256(), []
    try:
        video.probe(path)
        with av.open(f"file:{path}") as container:
            for frame in container.decode(video=0):
                digest.update(frame.to_ndarray().tobytes())
                times.append(frame.time or 0.0)
    except (video.VideoError, av.FFmpegError, ValueError) as error:
        return Finding(ladder, "damaged", (name,), str(error).removeprefix(f"{path}: "))
    return {"ladder": ladder, "video": name, "crf": int(match["crf"]), "frames": len(times),
            "bytes": path.stat().st_size, "sha256": digest.hexdigest(),
            "times": np.array(times) - times[0]}


def lint_path(path: Path) -> tuple[int, list[Finding]]:
    """Number of rungs and findings of a folder or of a manifest."""
    rungs, found = from_folder(path) if path.is_dir() else (from_manifest(path), [])
    return len(rungs) + len(found), [*found, *(lint(rungs) if len(rungs) else ())]
