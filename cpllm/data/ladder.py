"""One scene → its clips: original, codec ladders, distorted originals, with their labels.

Files lie under one root: `<scene>@original.mp4`, `<scene>@crf31.mp4`, `<scene>@blur-0.mp4`, and
`<scene>.json`, written last, which says how they were made and what came out. A scene whose record
and files agree is not made again, so an interrupted build goes on where it stopped.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import av
import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cpllm import atomic, records
from cpllm.config import Config, Data
from cpllm.data import (
    distort,
    encoding,
    families,
    labels,
    manifests,
    scenes,
    video,
    wide,
    without_avx512,
)

LEVELS = {"vp9": (20, 30, 40, 50, 60), "av1": (20, 30, 40, 50, 60), "hevc": (18, 26, 34, 42, 50)}
"""CRFs of the ladders that test generalisation to other codecs."""

ORIGINAL_CRF = 10
"""Of originals: users' originals too have been compressed, hardly visibly."""

UPLOAD_CRFS = (10, 10, 18, 24, 30)
"""Of distorted uploads: what a phone makes of a faulty picture."""

SPLITS = ("train", "validation", "test")
TOLERANCE = 0.01
"""Of VMAF: its filters' vector code isn't the same on every processor."""

COMMITTED = Path(__file__).resolve().parents[2] / "data_manifests"
console = Console(stderr=True)


def _syntax(source: str) -> str:
    """Digest of a program's syntax tree, to which layout and comments don't count."""
    return hashlib.sha256(ast.dump(ast.parse(source)).encode()).hexdigest()


RENDERERS = [_syntax(Path(m.__file__).read_text("utf-8")) for m in (scenes, families, distort)]
"""Of the code that draws, as imported: what other code drew is made again."""


UNWATCHED = {"distributed.worker.profile.enabled": False, "distributed.admin.tick.interval": "1s",
             "distributed.admin.system-monitor.interval": "5s"}
"""For dask: its looking at itself, for a dashboard that nobody opens, costs a seventh of a core."""


class BuildError(RuntimeError):
    """One line: how many scenes could not be made, which first, and why."""


def build(config: Config, root: Path, splits: Sequence[str] = SPLITS, progress: bool = True,
          workers: int | None = None, committed: Path | None = None,
          scheduler: str | None = None, beside: Path | None = None) -> pd.DataFrame:
    """Make every clip of the splits under `root` that isn't there, label it, list it.

    A label is taken from the committed manifest (`committed`/<split>.csv, by default those of the
    profile in data_manifests/) where the decoded frames' hash is the same, else computed; clips
    that differ are counted and the first is named. Scenes run in parallel: in processes here, or on
    the dask cluster at the address `scheduler`, whose workers see `root` under the same path.
    `beside`: a folder whose finished scenes are copied where this would make the same.

    Returns the manifest, also written to <root>/manifest.csv. BuildError at the end, when the
    other scenes are done, if some failed: <root>/failed.csv names each clip with its error,
    <root>/quarantine/ holds what was written of them, and calling again makes those scenes only.
    """
    root.mkdir(parents=True, exist_ok=True)
    committed = COMMITTED / config.profile if committed is None else committed
    known = read_committed(committed, splits)
    chosen = [s for s in catalog(config.data) if s.split in splits]
    rows = {s.name: done for s in chosen if (done := _recorded(s, config.data, root)
                                             or _adopted(s, config.data, root, beside))}
    waiting = [s for s in chosen if s.name not in rows]
    if progress:
        n = sum(len(clips(s, config.data)) for s in waiting)
        console.print(f"{n:,} clips of {len(waiting):,} scenes to make, "
                      f"{len(chosen) - len(waiting):,} scenes are there", highlight=False)
    shutil.rmtree(root / "quarantine", ignore_errors=True)
    begun = time.monotonic()
    rows |= _each(make, waiting, config.data, root, known, progress, workers, scheduler)
    if progress and waiting:
        console.print(f"made in {(time.monotonic() - begun) / 60:.1f} minutes", highlight=False)
    table = pd.DataFrame([row for scene in chosen for row in rows[scene.name]])
    manifests.write(table, root / "manifest.csv")
    if changed := differing(table[table["dataset"] != wide.NAME], known):  # those are measured here
        console.print(
            f"{len(changed)} of {len(table)} clips differ from the committed manifest (first: "
            f"{changed[0]}): another encoder or renderer; cpllm data --check says which. Their "
            "labels were computed here.", soft_wrap=True)
    return manifests.check(table)


def relabel(config: Config, root: Path, splits: Sequence[str] = SPLITS, progress: bool = True,
            workers: int | None = None, committed: Path | None = None,
            scheduler: str | None = None) -> tuple[pd.DataFrame, list[str]]:
    """Measure the labels of the clips under `root` again: measured − committed, by video.

    Returns float columns `labels.Label._fields` of the clips whose decoded frames are the committed
    ones, and the names of the others, which can't be compared. BuildError as in `build`, ValueError
    where nothing is committed.
    """
    committed = COMMITTED / config.profile if committed is None else committed
    if (known := read_committed(committed, splits)).empty:
        raise ValueError(f"{config.profile}: no labels are committed in data_manifests/ to compare")
    chosen = [s for s in catalog(config.data) if s.split in splits]
    rows = _each(measure, chosen, config.data, root, known.iloc[:0], progress, workers, scheduler)
    table = pd.DataFrame([row for s in chosen for row in rows[s.name]])
    other = differing(table, known)
    table = table.set_index("video").drop(other)[list(labels.Label._fields)]
    return table - known.loc[table.index, table.columns], other


def measure(scene: scenes.Scene, data: Data, root: Path, known: pd.DataFrame) -> list[dict]:
    """`video`, frames' hash and labels of a scene's files, those in `known` apart as in `make`."""
    rows = [{"video": row["video"], "sha256": encoding.frames_sha256(root / f"{row['video']}.mp4")}
            for row in clips(scene, data)]
    _label(rows, wide.render(scene, data), scene, data, root, known)
    return rows


def read_committed(folder: Path, splits: Sequence[str] = SPLITS) -> pd.DataFrame:
    """The committed rows of these splits, indexed by video; empty where there are none."""
    tables = [manifests.read(folder / f"{s}.csv") for s in splits if (folder / f"{s}.csv").exists()]
    if not tables:
        return pd.DataFrame(columns=list(manifests.SCHEMA)).set_index("video")
    return pd.concat(tables).set_index("video")


def differing(table: pd.DataFrame, known: pd.DataFrame) -> list[str]:
    """Videos whose decoded frames aren't those of the committed manifest, in order."""
    if known.empty:
        return []
    hashes = known["sha256"].reindex(table["video"]).to_numpy()
    return table["video"][table["sha256"].to_numpy() != hashes].tolist()


def explain(table: pd.DataFrame, known: pd.DataFrame) -> list[str]:
    """A line per family and codec whose frames aren't the committed ones: how many, and why.

    Where a scene's originals differ, its renderer does, or x264 with them; where only its variants
    do, their encoder.
    """
    other = table[table["video"].isin(differing(table, known))]
    drawn = other["scene"].isin(other.loc[other["role"] == "original", "scene"])
    total = table.groupby(["family", "codec"])["video"].size()
    lines = []
    for (*group, new), rows in other.groupby(["family", "codec", drawn], sort=False):
        why = "originals differ too: the renderer, or x264" if new else \
            f"their originals are the same: the encoder {encoding.ENCODERS[group[1]][0]}"
        lines.append(f"{', '.join(group)}: {len(rows):,} of {total[*group]:,} clips differ from "
                     f"the committed manifest (first: {rows['video'].iloc[0]}); {why}")
    return lines


def commit_manifest(table: pd.DataFrame, folder: Path) -> None:
    """Write `folder`/<split>.csv for every split of the manifest."""
    for split, rows in table.groupby("split", sort=False):
        manifests.write(rows, folder / f"{split}.csv")


def verify(table: pd.DataFrame, root: Path) -> dict[str, str]:
    """What is wrong with the manifest's files under `root`, by video; empty if nothing is.

    A missing, empty, unreadable or exchanged file is named; the others are still looked at.
    """
    paths = [root / f"{video}.mp4" for video in table["video"]]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        faults = pool.map(_fault, paths, table["sha256"])
        return {video: fault for video, fault in zip(table["video"], faults, strict=True) if fault}


def _fault(path: Path, sha256: str) -> str:
    """What is wrong with a clip whose frames' hash is known; empty if nothing is."""
    try:
        if not path.is_file() or not path.stat().st_size:
            return "empty file" if path.is_file() else "no such file"
        came = encoding.frames_sha256(path)
    except (OSError, ValueError, av.FFmpegError) as error:
        return f"cannot be decoded: {error}"
    return "" if came == sha256 else f"expected frames {sha256}, came {came}"


def clips(scene: scenes.Scene, data: Data) -> list[dict]:
    """How each clip of a scene is made: its manifest row, as far as it is known beforehand.

    `take` numbers the fault that the frames carry before they are encoded; it is no column.
    """
    rows = (_close if scene.dataset == wide.NAME else _laddered if scene.codecs else _uploaded)(
        scene, data)
    common = asdict(scene) | {"scene": scene.name, "codec": data.codec}
    common = {k: v for k, v in common.items() if k not in ("name", "seed", "codecs")}
    return [common | row for row in rows]


def catalog(data: Data) -> tuple[scenes.Scene, ...]:
    """All scenes that a configuration asks for."""
    return (*scenes.catalog(data), *wide.catalog(data))


def _close(scene, data) -> list[dict]:
    """Of a wide scene: its clean original at close levels, a faulty one at one."""
    rng = np.random.default_rng([scene.seed, 1])
    clean, faulty = _original(scene), _faulty(scene, 0, int(rng.choice(UPLOAD_CRFS)))
    return [clean, *(_variant(clean, data.codec, crf) for crf in wide.levels(scene)),
            faulty, _variant(faulty, data.codec, int(rng.choice(data.crfs)))]


def _laddered(scene, data) -> list[dict]:
    """The clean original, every level of every codec, and distorted originals; in test, one."""
    rows = [_original(scene)]
    for codec in scene.codecs:
        other = codec != data.codec
        rows += [_variant(rows[0], codec, crf, other)
                 for crf in (LEVELS[codec] if other else data.crfs)]
    takes = min(data.distorted, 1) if scene.split == "test" else data.distorted
    return rows + [_faulty(scene, take) for take in range(takes)]


def _uploaded(scene, data) -> list[dict]:
    """What stands for one upload.

    Of a scene of Figure 1 the clean original and its twin with the real defect; of the others a
    clean or a distorted original. Training gets a coded and another distorted one beside it,
    YT-Compress two encodes by VP9.
    """
    rng = np.random.default_rng(scene.seed)
    fresh = scene.dataset == "yt-compress"  # whose variants are made of the original as it is
    crf = ORIGINAL_CRF if fresh else int(rng.choice(UPLOAD_CRFS))
    clean, faulty = _original(scene), _faulty(scene, 0, crf)
    if scene.split != "test":
        third = clean if rng.random() < 0.3 else _faulty(scene, 1, int(rng.choice(UPLOAD_CRFS)))
        return [third, faulty, _variant(clean, data.codec, int(rng.choice(data.crfs)))]
    if fresh:
        first = clean if rng.random() < 0.3 else faulty
        levels = np.sort(rng.choice(range(24, 61, 4), 2, replace=False))
        return [first, *(_variant(first, "vp9", int(crf), True) for crf in levels)]
    if scene.family in scenes.FIGURE1:
        return [clean, faulty]
    return [clean if rng.random() < 0.2 else faulty]


def _original(scene, crf: int = ORIGINAL_CRF) -> dict:
    return {"video": f"{scene.name}@original", "role": "original", "crf": crf, "take": -1,
            "distortion": "none", "strength": 0.0}


def _faulty(scene, take: int, crf: int = ORIGINAL_CRF) -> dict:
    """A distorted original; the first of a scene of Figure 1 has the defect that it seems to."""
    name, strength = distort.draw(_seed(scene, take))
    if take == 0 and scene.family in scenes.FIGURE1:
        name, strength = scenes.FIGURE1[scene.family], round(0.35 + 0.65 * strength, 3)
    return _original(scene, crf) | {"video": f"{scene.name}@{name}-{take}", "take": take,
                                    "distortion": name, "strength": strength}


def _variant(original: dict, codec: str, crf: int, named: bool = False) -> dict:
    video = original["video"].removesuffix("@original") + ("@", "-")[original["take"] >= 0]
    return original | {"video": f"{video}{codec + '-' if named else ''}crf{crf}",
                       "role": "variant", "codec": codec, "crf": crf}


def make(scene: scenes.Scene, data: Data, root: Path, known: pd.DataFrame) -> list[dict]:
    """Make the scene's files and labels, then the record that vouches for them; its rows.

    A clip that can't be made doesn't keep the others from being made; BuildError names it.
    """
    record = root / f"{scene.name}.json"
    record.unlink(missing_ok=True)
    rows, pristine, shots, failed = clips(scene, data), wide.render(scene, data), {}, {}
    preset = wide.preset(scene, data)
    for row in rows:
        path, take = root / f"{row['video']}.mp4", row.pop("take")
        try:
            if take not in shots:
                shots[take] = encoding.planar(pristine if take < 0 else distort.apply(
                    row["distortion"], row["strength"], pristine, _seed(scene, take)))
            path.unlink(missing_ok=True)
            encoding.encode(shots[take], path, row["crf"], scene.fps, row["codec"], preset)
            row |= {"bytes": path.stat().st_size, "file": records.file_hash(path)[:16]}
            same = row["video"] in known.index and known.at[row["video"], "file"] == row["file"]
            row["sha256"] = (known.at[row["video"], "sha256"] if same
                             else encoding.frames_sha256(path))
        except Exception as error:  # of one clip; named below, with the others
            encoding.quarantine(path, path)
            failed[row["video"]] = f"{type(error).__name__}: {error}"
    if failed:
        raise BuildError("; ".join(f"{video}: {error}" for video, error in failed.items()))
    _label(rows, pristine, scene, data, root, known)
    files = {row["video"]: row["file"] for row in rows}
    part = record.with_suffix(f".{os.getpid()}.part")
    told = {row["video"]: encoding.options(row["codec"], row["crf"], preset) for row in rows}
    held = {"recipe": _recipe(scene, data), "files": files, "options": told, "rows": rows}
    part.write_text(json.dumps(held, indent=1))
    part.replace(record)
    return rows


def _label(rows, pristine, scene, data, root, known) -> None:
    """Fill in `proxy` and `psnr`, in place; only clips with unknown frames are measured."""
    unknown = []
    for row in rows:
        if row["video"] in known.index and known.at[row["video"], "sha256"] == row["sha256"]:
            row |= {k: float(known.at[row["video"], k]) for k in labels.Label._fields}
        else:
            unknown.append(row)
    if not unknown:
        return
    with tempfile.TemporaryDirectory() as folder:
        reference = Path(folder, "pristine.mp4")
        encoding.encode(pristine, reference, 0, scene.fps, preset="ultrafast")  # CRF 0: lossless
        paths = [root / f"{row['video']}.mp4" for row in unknown]
        lines = wide.proxy_lines(scene, data)
        measured = labels.vmaf(paths, reference, lines, data.proxy_every)
    for row, label in zip(unknown, measured, strict=True):
        row |= label._asdict()


def _each(work, chosen, data, root, known, progress, workers, scheduler) -> dict[str, list[dict]]:
    """Each scene's rows by `work(scene, data, root, its part of known)`, behind a progress bar.

    BuildError when all are done, if some failed: <root>/failed.csv lists them.
    """
    bar = Progress(TextColumn("scenes"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                   console=console, disable=not progress or not chosen)
    longest = sorted(chosen, key=lambda s: -s.height * s.width * len(clips(s, data)))
    jobs = [(work, s, data, root, known[known["scene"] == s.name]) for s in longest]
    done = spread(jobs, workers, scheduler)
    with bar:
        results = {s.name: came for s, came in bar.track(done, len(jobs), description="")}
    failed = {name: came for name, came in results.items() if isinstance(came, Exception)}
    (root / "failed.csv").unlink(missing_ok=True)
    if failed:
        pd.Series(failed, name="error").to_csv(root / "failed.csv", index_label="scene")
        name, error = min(failed.items())
        raise BuildError(f"{len(failed)} of {len(chosen)} scenes failed (first: {name}: {error}); "
                         f"all are listed in {root / 'failed.csv'}, the others are done; the same "
                         "command tries again")
    return results


def spread(jobs, workers, scheduler, listen=None) -> Iterator[tuple]:
    """(job[1], result) of each job (function, key, …) by a dask cluster's workers, as they come.

    scheduler: a cluster's address; None: processes of this machine, `workers` or one a core. A
    failed job's result is its exception. `listen` gets (time, message) of each event that a worker
    logs under the topic "progress".
    """
    workers = min(workers or os.cpu_count(), len(jobs))
    if workers <= 1 and scheduler is None:
        yield from ((job[1], _try(*job)) for job in jobs)
        return
    import dask
    from distributed import Client, LocalCluster, as_completed

    without_avx512()
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set(UNWATCHED))
        here = scheduler or stack.enter_context(LocalCluster(
            n_workers=workers, threads_per_worker=1, memory_limit=0, dashboard_address=":0"))
        client = stack.enter_context(Client(here))
        if listen:
            client.subscribe_topic("progress", listen)
        scene = {client.submit(_try, *job, pure=False): job[1] for job in jobs}
        for future in as_completed(scene):
            came = future.exception() or future.result()
            future.release()  # else done again where the worker that keeps the result dies
            yield scene[future], came


def _try(work, *job) -> list[dict] | Exception:
    try:
        return work(*job)
    except Exception as error:  # reported with its scene when the others are done
        return error


def _seed(scene: scenes.Scene, i: int) -> int:
    return (scene.seed * 1000 + i) % 2**63


def _recipe(scene: scenes.Scene, data: Data) -> str:
    """Digest of everything that the clips and labels depend on, the renderers' code included."""
    how = {"scene": asdict(scene), "av": av.__version__, "libraries": av.library_versions,
           "rows": clips(scene, data), "preset": wide.preset(scene, data),
           "encoders": encoding.ENCODERS,
           "labels": (wide.proxy_lines(scene, data), data.proxy_every), "renderers": RENDERERS,
           "conversion": int(video.EXACT), **wide.recipe(scene, data)}
    return hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()


def _recorded(scene: scenes.Scene, data: Data, root: Path) -> list[dict] | None:
    """A finished scene's rows, if made by this recipe and its files are as they were."""
    try:
        held = json.loads((root / f"{scene.name}.json").read_text())
        whole = held["recipe"] == _recipe(scene, data) and all(
            records.file_hash(root / f"{name}.mp4")[:16] == sha
            for name, sha in held["files"].items())
        return held["rows"] if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _adopted(scene: scenes.Scene, data: Data, root: Path, beside: Path | None) -> list[dict] | None:
    """A scene's rows, if another folder has it finished; it is copied, the record last."""
    rows = _recorded(scene, data, beside) if beside else None
    for name in (*(row["video"] + ".mp4" for row in rows), f"{scene.name}.json") if rows else ():
        atomic.copy(beside / name, root / name)
    return rows
