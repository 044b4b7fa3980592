"""One scene → its clean original, its codec ladder and its distorted originals, with labels.

Files lie under one root: `<scene>@original.mp4`, `<scene>@crf31.mp4`, `<scene>@blur-0.mp4`, and
`<scene>.json`, written last, which says how they were made and what came out. A scene whose record
and files agree is not made again, so an interrupted build goes on where it stopped.
"""

from __future__ import annotations

import ast
import hashlib
import json
import multiprocessing
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pandas as pd
from av.video.reformatter import ColorRange, Colorspace
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cpllm.config import Config, Data
from cpllm.data import distort, families, labels, manifests, scenes, video

ENCODERS = {"h264": "libx264"}
TAGS = {Colorspace.ITU709: 1, Colorspace.ITU601: 6}  # ITU-T H.273
ORIGINAL_CRF = 10
"""Of originals: users' originals too have been compressed, hardly visibly."""

SPLITS = ("train", "validation", "test")
COMMITTED = Path(__file__).resolve().parents[2] / "data_manifests"


def _syntax(source: str) -> str:
    """Digest of a program's syntax tree, to which layout and comments don't count."""
    return hashlib.sha256(ast.dump(ast.parse(source)).encode()).hexdigest()


RENDERERS = [_syntax(Path(m.__file__).read_text("utf-8")) for m in (scenes, families, distort)]
"""Of the code that draws, as imported: what other code drew is made again."""


class BuildError(RuntimeError):
    """One line: how many scenes could not be made, which first, and why."""


def encode(frames: np.ndarray, path: Path, crf: int, fps: float, codec: str = "h264",
           preset: str = "medium") -> None:
    """Encode uint8[N, H, W, 3] as 8-bit 4:2:0; even sides. The same input gives the same bytes.

    One thread, because x264's output depends on their number. The file gets its name when whole.
    """
    n, height, width = frames.shape[:3]
    if height % 2 or width % 2:
        raise ValueError(f"{path}: 4:2:0 needs even sides, came {width}x{height}")
    part = path.with_name(f".{path.name}.{os.getpid()}")
    options = {"crf": str(crf), "preset": preset}
    try:
        with av.open(part, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
            rate = Fraction(fps).limit_denominator(1001)
            stream = container.add_stream(ENCODERS[codec], rate=rate, options=options)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            context = stream.codec_context
            context.thread_count, context.time_base = 1, 1 / rate
            matrix = video.default_matrix(height, width)
            context.color_range, context.colorspace = ColorRange.MPEG, TAGS[matrix]
            for i in range(n):
                container.mux(stream.encode(_frame(frames[i], matrix, i)))
            container.mux(stream.encode(None))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def build(config: Config, root: Path, splits: Sequence[str] = SPLITS, progress: bool = True,
          workers: int | None = None, committed: Path | None = None) -> pd.DataFrame:
    """Make every clip of the splits under `root` that isn't there, label it, list it.

    A label is taken from the committed manifest (`committed`/<split>.csv, by default those of the
    profile in data_manifests/) where the decoded frames' hash is the same, else computed; clips
    that differ are counted and the first is named. Scenes run in parallel processes.

    Returns the manifest, also written to <root>/manifest.csv. BuildError at the end, when the
    other scenes are done, if some failed: calling again makes those only.
    """
    root.mkdir(parents=True, exist_ok=True)
    committed = COMMITTED / config.profile if committed is None else committed
    known = read_committed(committed, splits)
    chosen = [s for s in scenes.catalog(config.data) if s.split in splits]
    rows = {s.name: done for s in chosen if (done := _recorded(s, config.data, root)) is not None}
    failed = {}
    waiting = [s for s in chosen if s.name not in rows]
    for scene, result in _each(waiting, config.data, root, known, progress, workers):
        (failed if isinstance(result, Exception) else rows)[scene.name] = result
    if failed:
        name, error = min(failed.items())
        raise BuildError(f"{len(failed)} of {len(chosen)} scenes failed (first: {name}: {error}); "
                         f"the others are in {root}; build again to retry")
    table = pd.DataFrame([row for scene in chosen for row in rows[scene.name]])
    manifests.write(table, root / "manifest.csv")
    if changed := differing(table, known):
        Console(stderr=True).print(
            f"{len(changed)} of {len(table)} clips differ from the committed manifest (first: "
            f"{changed[0]}): another encoder or renderer. Their labels were computed here.",
            soft_wrap=True)
    return manifests.check(table)


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


def commit_manifest(table: pd.DataFrame, folder: Path) -> None:
    """Write `folder`/<split>.csv for every split of the manifest."""
    for split, rows in table.groupby("split", sort=False):
        manifests.write(rows, folder / f"{split}.csv")


def clips(scene: scenes.Scene, data: Data) -> list[dict]:
    """How each clip of a scene is made: its manifest row, as far as it is known beforehand."""
    common = asdict(scene) | {"scene": scene.name, "codec": data.codec}
    common = {k: v for k, v in common.items() if k not in ("name", "seed")}
    clean = {"distortion": "none", "strength": 0.0}
    original = {"role": "original", "crf": ORIGINAL_CRF}
    rows = [{"video": f"{scene.name}@original", **original, **clean}]
    rows += [{"video": f"{scene.name}@crf{crf}", "role": "variant", "crf": crf, **clean}
             for crf in data.crfs]
    for i in range(data.distorted):
        name, strength = distort.draw(_seed(scene, i))
        rows.append({"video": f"{scene.name}@{name}-{i}", **original,
                     "distortion": name, "strength": strength})
    return [common | row for row in rows]


def frames_sha256(path: Path) -> str:
    """First 16 hex digits of the SHA-256 of the decoded RGB frames and their size."""
    frames = video.all_frames(path, threads=1)
    return hashlib.sha256(repr(frames.shape).encode() + frames.tobytes()).hexdigest()[:16]


def make(scene: scenes.Scene, data: Data, root: Path, known: pd.DataFrame) -> list[dict]:
    """Make the scene's files and labels, then the record that vouches for them; its rows."""
    record = root / f"{scene.name}.json"
    record.unlink(missing_ok=True)
    rows, pristine = clips(scene, data), scenes.render(scene)
    for i, row in enumerate(rows):
        frames = pristine
        if row["distortion"] != "none":
            seed = _seed(scene, i - len(rows) + data.distorted)
            frames = distort.apply(row["distortion"], row["strength"], pristine, seed)
        path = root / f"{row['video']}.mp4"
        encode(frames, path, row["crf"], scene.fps, data.codec, data.preset)
        row |= {"bytes": path.stat().st_size, "sha256": frames_sha256(path)}
    _label(rows, pristine, scene, data, root, known)
    files = {row["video"]: _file_sha256(root / f"{row['video']}.mp4") for row in rows}
    part = record.with_suffix(f".{os.getpid()}.part")
    held = {"recipe": _recipe(scene, data), "files": files, "rows": rows}
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
        encode(pristine, reference, crf=0, fps=scene.fps, preset="ultrafast")  # CRF 0: lossless
        paths = [root / f"{row['video']}.mp4" for row in unknown]
        measured = labels.vmaf(paths, reference, data.proxy_lines)
    for row, label in zip(unknown, measured, strict=True):
        row |= label._asdict()


def _each(chosen, data, root, known, progress, workers) -> Iterator[tuple]:
    """(scene, its rows or the exception) as they get done, behind a progress bar."""
    bar = Progress(TextColumn("scenes"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                   console=Console(stderr=True), disable=not progress or not chosen)
    jobs = [(s, data, root, known[known["scene"] == s.name]) for s in chosen]
    workers = min(workers or os.cpu_count(), len(chosen))
    done = _in_processes(jobs, workers) if workers > 1 else ((j[0], _try(*j)) for j in jobs)
    with bar:
        yield from bar.track(done, len(jobs), description="")


def _in_processes(jobs, workers) -> Iterator[tuple]:
    # Not fork: PyAV's and JAX's threads don't survive it.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _end_with_parent)
    try:
        scene = {pool.submit(_try, *job): job[0] for job in jobs}
        for future in as_completed(scene):
            yield scene[future], future.exception() or future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _try(*job) -> list[dict] | Exception:
    try:
        return make(*job)
    except Exception as error:  # reported with its scene when the others are done
        return error


def _end_with_parent() -> None:
    """Let a worker die with its parent, which may be killed; it would wait for work forever."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _frame(array: np.ndarray, matrix: Colorspace, pts: int) -> av.VideoFrame:
    """RGB to limited-range yuv420p, with the same bits on every machine."""
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
    frame = frame.reformat(format="yuv420p", src_colorspace=matrix, dst_colorspace=matrix,
                           src_color_range=ColorRange.JPEG, dst_color_range=ColorRange.MPEG,
                           interpolation=video.EXACT, threads=1)
    frame.pts = pts
    return frame


def _seed(scene: scenes.Scene, i: int) -> int:
    return (scene.seed * 1000 + i) % 2**63


def _recipe(scene: scenes.Scene, data: Data) -> str:
    """Digest of everything that the clips and labels depend on, the renderers' code included."""
    how = {"scene": asdict(scene), "av": av.__version__, "libraries": av.library_versions,
           "rows": clips(scene, data), "preset": data.preset, "lines": data.proxy_lines,
           "renderers": RENDERERS, "conversion": int(video.EXACT)}
    return hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()


def _recorded(scene: scenes.Scene, data: Data, root: Path) -> list[dict] | None:
    """A finished scene's rows, if made by this recipe and its files are as they were."""
    try:
        held = json.loads((root / f"{scene.name}.json").read_text())
        whole = held["recipe"] == _recipe(scene, data) and all(
            _file_sha256(root / f"{name}.mp4") == sha for name, sha in held["files"].items())
        return held["rows"] if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _file_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
