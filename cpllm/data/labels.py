"""The FR-proxy: VMAF of a clip against its pristine rendering. Never "MOS": nobody looked.

VMAF v0.6.1's scale holds at one viewing geometry, so both clips are scaled to one declared
resolution; scores at different resolutions don't compare. It saturates above CRF 25.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from cpllm.data import video

GROUP = 9
"""Clips per ffmpeg process: start-up and the reference are shared, memory stays below 300 MB."""


class LabelError(RuntimeError):
    """One line: which clip, what was expected, what came."""


class Label(NamedTuple):
    """VMAF (0–100), PSNR (dB, 60 for identical frames) and SSIM of luma, means over the frames."""

    proxy: float
    psnr: float
    ssim: float


def dmos_proxy(table: pd.DataFrame) -> pd.Series:
    """FR-proxy that each variant lost: VMAF(its original, pristine) − VMAF(variant, pristine).

    0 where nothing was lost, up to 100; NaN for originals. A variant's original is the one of its
    scene with the same distortion and strength; its own may be absent, then NaN too.
    """
    keys = ["scene", "distortion", "strength"]
    originals = table[table["role"] == "original"].drop_duplicates(keys).set_index(keys)["proxy"]
    before = originals.reindex(pd.MultiIndex.from_frame(table[keys])).to_numpy()
    return (before - table["proxy"]).where(table["role"] == "variant").rename("dmos_proxy")


def vmaf(clips: Sequence[Path], reference: Path, lines: int, every: int = 1) -> list[Label]:
    """FR-proxy of each clip against one reference, at a common short side of `lines` pixels.

    every: VMAF and PSNR look at each so-many-th frame, SSIM at all.

    Frame n is compared with frame n: timestamps of both are replaced by their frame number,
    since mismatched ones once gave 80.5 for 98.0; frame counts are asserted.
    """
    return [label for at in range(0, len(clips), GROUP)
            for label in _group(clips[at:at + GROUP], reference, lines, every)]


def program() -> str:
    """The ffmpeg program with libvmaf that imageio-ffmpeg's wheel carries."""
    try:
        import imageio_ffmpeg
        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise LabelError("computing FR-proxy labels needs imageio-ffmpeg, the extra `labels`: "
                         "pip install 'cpllm[labels]'") from error


def _group(clips: Sequence[Path], reference: Path, lines: int, every: int) -> list[Label]:
    seen = video.probe(reference)
    for clip in clips:
        if (came := video.probe(clip).frames) != seen.frames:
            raise LabelError(f"{clip}: expected {seen.frames} frames as in {reference.name}, "
                             f"came {came}")
    with tempfile.TemporaryDirectory() as folder:
        command = [program(), "-v", "error", "-nostdin", "-filter_complex_threads", "1"]
        for path in (reference, *clips):
            command += ["-threads", "1", "-i", f"file:{Path(path).absolute()}"]
        command += ["-filter_complex", _graph(len(clips), seen, lines, every)]
        for i in range(len(clips)):
            for kind in "os":
                command += ["-map", f"[{kind}{i}]", "-fps_mode", "passthrough", "-f", "null", "-"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise LabelError(f"{clips[0]}: ffmpeg failed: {done.stderr.strip()[-300:]}")
        return [_read(Path(folder, f"{i}.json"), clip, seen.frames, every)
                for i, clip in enumerate(clips)]


def _graph(n: int, seen: video.Probe, lines: int, every: int) -> str:
    """The filter graph: input 0 is the reference, inputs 1…n are compared with it."""
    scale = lines / min(seen.height, seen.width)
    width, height = (2 * round(side * scale / 2) for side in (seen.width, seen.height))
    prepare = (f"settb=1/1000,setpts=N,scale={width}:{height}:flags=bicubic+accurate_rnd+bitexact,"
               "format=yuv420p")
    graph = [f"[0:v]{prepare},split={2 * n}" + "".join(f"[r{i}][t{i}]" for i in range(n))]
    graph += [f"[{i + 1}:v]{prepare},split[d{i}][e{i}];[d{i}][r{i}]libvmaf=log_fmt=json:"
              f"log_path={i}.json:model=version=vmaf_v0.6.1:n_threads=1:n_subsample={every}:"
              f"feature=name=psnr:shortest=1[o{i}];[e{i}][t{i}]ssim=stats_file={i}.txt[s{i}]"
              for i in range(n)]
    return ";".join(graph)


def _read(log: Path, clip: Path, frames: int, every: int) -> Label:
    values = json.loads(log.read_text())
    ssim = [float(line.split("Y:")[1].split()[0])
            for line in log.with_suffix(".txt").read_text().splitlines()]
    for came, expected in ((len(values["frames"]), -(-frames // every)), (len(ssim), frames)):
        if came != expected:
            raise LabelError(f"{clip}: expected measures of {expected} frames, came {came}")
    pooled = values["pooled_metrics"]
    return Label(round(pooled["vmaf"]["mean"], 4), round(pooled["psnr_y"]["mean"], 4),
                 round(sum(ssim) / frames, 6))
