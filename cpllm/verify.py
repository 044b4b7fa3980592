"""Whether what is committed under results/ still follows from what it was made of.

Tables and claims are computed again from the committed predictions, notebooks must carry the hash
of their source and inputs, runs that of the committed manifest, and the default model must give
made clips the scores that it gave them when they were written down.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from cpllm import claims, config, exhibits, infer, judge, records, report, sweep
from cpllm.data import encoding, scenes

TOLERANCE = 0.05
"""Points of 100 of a golden score: sums on other processors differ by 1e-5, encoders by more."""

CELL = 1e-5
"""Relative, of a table's numbers, which are written to six digits."""

CRFS = (10, 31, 46)


def golden(profile: str, results: Path) -> Path:
    """Scores of made clips by the committed model, with the hashes of both."""
    return results / profile / "golden.json"


def scores(weights: Path = infer.DEFAULT) -> dict[str, dict]:
    """Clip → its decoded frames' hash and score, for three encodes of two built-in scenes."""
    scorer, found = judge.load(weights), {}
    some = [s for s in scenes.catalog(config.smoke().data) if s.split == "test"][:2]
    with tempfile.TemporaryDirectory(prefix="cpllm-") as folder:
        for scene in some:
            shots = encoding.planar(scenes.render(scene))
            for crf in CRFS:
                path = Path(folder, f"{scene.name}@crf{crf}.mp4")
                encoding.encode(shots, path, crf, scene.fps)
                found[path.stem] = {"frames": encoding.frames_sha256(path),
                                    "score": round(scorer.score(path).score, 6)}
    return found


def write(profile: str, results: Path) -> Path:
    """Write the golden scores anew; for when the committed weights have changed."""
    path = golden(profile, results)
    records.write_json(path, {"weights_sha256": records.file_hash(infer.DEFAULT),
                              "tolerance": TOLERANCE, "clips": scores()})
    return path


def differences(profile: str, results: Path) -> Iterator[str]:
    """A line for each thing that doesn't follow from what it is said to be made of."""
    yield from _notebooks(profile, results)
    yield from _runs(profile, results)
    yield from _tables(profile, results)
    yield from _golden(profile, results)


def _notebooks(profile: str, results: Path) -> Iterator[str]:
    for name, book in sweep.NOTEBOOKS.items():
        path = results / profile / "notebooks" / f"{name}.ipynb"
        if path.exists() and not book.apart and not sweep.current(book, profile, results.parent):
            yield f"{path.name}: its source or its inputs have changed since it was executed"


def _runs(profile: str, results: Path) -> Iterator[str]:
    """Runs trained on other rows than the committed ones, or without what makes them up."""
    home = results / profile
    videos = set(pd.read_csv(home / "videos.csv")["video"])
    for run in sorted((home / "runs").iterdir()):
        made, cfg = (records.read_json(run / f"{n}.json") for n in ("provenance", "config"))
        data = report.trained_on(profile, bool(cfg.get("data", {}).get("wide_scenes")))
        if lacking := [n for n in ("config.json", "provenance.json", "predictions.csv")
                       if not (run / n).exists()]:
            yield f"{run.name}: {', '.join(lacking)} missing"
        elif (run / "metrics.json").exists() and data not in (None, made["manifest_sha256"]):
            yield f"{run.name}: trained on other rows than data_manifests/{profile} holds"
        elif strange := set(pd.read_csv(run / "predictions.csv")["video"]) - videos:
            yield f"{run.name}: predictions of {len(strange)} videos that videos.csv lacks"


def _tables(profile: str, results: Path) -> Iterator[str]:
    """Tables and claims that the committed predictions don't give, by their first other cell."""
    home = results / profile
    makers = {"table3": report.table3, "codecs": exhibits.codecs,
              **{key: lambda *a, key=key: exhibits.table(key, *a) for key in exhibits.EXHIBITS}}
    with tempfile.TemporaryDirectory(prefix="cpllm-") as folder:
        again = Path(folder)
        shutil.copytree(home, again / profile, ignore=shutil.ignore_patterns("notebooks"))
        shutil.copyfile(results / "paper.csv", again / "paper.csv")
        for path in sorted((home / "tables").glob("*.csv")):
            if path.stem in makers:
                makers[path.stem](profile, again)
                yield from _cells(path, again / profile / "tables" / path.name)
        if (home / "claims.csv").exists():
            claims.claims(profile, again)
            yield from _cells(home / "claims.csv", again / profile / "claims.csv")


def _cells(path: Path, again: Path) -> Iterator[str]:
    was, now = pd.read_csv(path), pd.read_csv(again)
    if list(was) != list(now) or len(was) != len(now):
        yield f"{path.name}: other rows or columns when computed again"
        return
    for column in was:
        a, b = was[column], now[column]
        same = (a.isna() & b.isna()) | (
            pd.Series(np.isclose(a, b, rtol=CELL, atol=1e-9)) if a.dtype.kind in "if" else a == b)
        if not same.all():
            at = int(np.flatnonzero(~same)[0])
            yield (f"{path.name}: row {at + 2}, column {column}: {a[at]} there, {b[at]} when "
                   f"computed again ({(~same).sum()} cells of this column differ)")


def _golden(profile: str, results: Path) -> Iterator[str]:
    path = golden(profile, results)
    if infer.DEFAULT.stem != profile or not (known := records.read_json(path)):
        return
    if known["weights_sha256"] != records.file_hash(infer.DEFAULT):
        yield f"{path.name}: of other weights; cpllm verify --write makes it anew"
        return
    found = scores()
    for clip, was in known["clips"].items():
        if found[clip]["frames"] != was["frames"]:
            yield f"{path.name}: {clip}: made with other frames here (another encoder or renderer)"
        elif abs(found[clip]["score"] - was["score"]) > known["tolerance"]:
            yield (f"{path.name}: {clip}: {was['score']:.3f} there, {found[clip]['score']:.3f} "
                   f"here; tolerance {known['tolerance']}")
