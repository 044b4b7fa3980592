"""Frames to a file by one of four codecs, the same bytes each time, and what a file decodes to."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from cpllm.data import distort, video

ENCODERS = {
    "h264": ("libx264", distort.X264),
    "hevc": ("libx265", {"preset": "superfast",
                         "x265-params": "pools=none:frame-threads=1:info=0:log-level=none"}),
    "vp9": ("libvpx-vp9", {"b": "0", "deadline": "realtime", "cpu-used": "5"}),
    "av1": ("libsvtav1", {"preset": "12", "svtav1-params": "lp=1"}),
}
"""FFmpeg's name and options; H.264's preset is `config.Data.preset`."""

os.environ.setdefault("SVT_LOG", "1")  # errors only: the encoder writes past Python's logging
TAGS = {Colorspace.ITU709: 1, Colorspace.ITU601: 6}  # ITU-T H.273


def encode(frames: np.ndarray | Iterable[av.VideoFrame], path: Path, crf: int, fps: float,
           codec: str = "h264", preset: str = "medium") -> None:
    """Encode uint8[N, H, W, 3] as 8-bit 4:2:0; even sides. The same input gives the same bytes.

    What is encoded several times can come as `planar` made it, which costs a quarter of an encode.
    One thread, because x264's output depends on their number. The file gets its name when whole;
    what a failed encode wrote goes to `quarantine` beside it. `preset` is x264's; the other
    encoders' options are in ENCODERS.
    """
    shots = iter(planar(frames) if isinstance(frames, np.ndarray) else frames)
    first = next(shots)
    width, height = first.width, first.height
    if height % 2 or width % 2:
        raise ValueError(f"{path}: 4:2:0 needs even sides, came {width}x{height}")
    part = path.with_name(f".{path.name}.{os.getpid()}")
    name, given = ENCODERS[codec][0], options(codec, crf, preset)
    try:
        with _usual_priority(), av.open(
                part, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
            rate = Fraction(fps).limit_denominator(1001)
            stream = container.add_stream(name, rate=rate, options=given)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            context = stream.codec_context
            context.thread_count, context.time_base = 1, 1 / rate
            context.color_range = ColorRange.MPEG
            context.colorspace = TAGS[video.default_matrix(height, width)]
            for i, shot in enumerate(chain([first], shots)):
                shot.pts, shot.time_base = i, context.time_base
                container.mux(stream.encode(shot))
            container.mux(stream.encode(None))
        part.replace(path)
    except Exception:
        quarantine(part, path)
        raise
    finally:
        part.unlink(missing_ok=True)


def planar(frames: np.ndarray) -> list[av.VideoFrame]:
    """uint8[N, H, W, 3] RGB to limited-range yuv420p, with the same bits on every machine."""
    matrix = video.default_matrix(*frames.shape[1:3])
    return [av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24").reformat(
        format="yuv420p", src_colorspace=matrix, dst_colorspace=matrix,
        src_color_range=ColorRange.JPEG, dst_color_range=ColorRange.MPEG,
        interpolation=video.EXACT, threads=1) for frame in frames]


def options(codec: str, crf: int, preset: str) -> dict[str, str]:
    """What an encoder is told beside one thread; `preset` is x264's.

    >>> options("h264", 31, "medium")["preset"], options("vp9", 40, "medium")["cpu-used"]
    ('medium', '5')
    """
    own = {"preset": preset} if codec == "h264" else {}
    return {"crf": str(crf)} | own | ENCODERS[codec][1]


def frames_sha256(path: Path) -> str:
    """First 16 hex digits of the SHA-256 of the decoded frames' planes and their size."""
    digest = hashlib.sha256()
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for frame in container.decode(video=0):
            digest.update(repr((frame.width, frame.height, frame.format.name)).encode())
            digest.update(np.ascontiguousarray(frame.to_ndarray()))
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _usual_priority() -> Iterator[None]:
    """Undo that SVT-AV1 makes root's process real-time (SCHED_FIFO 99), which starves all others.

    What the process starts later would inherit it, and a busy one of these takes a core for good.
    """
    if not hasattr(os, "sched_getscheduler"):  # Linux has it
        yield
        return
    usual = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        for thread in map(int, os.listdir("/proc/self/task")):
            with contextlib.suppress(ProcessLookupError):
                if os.sched_getscheduler(thread) == os.SCHED_FIFO != usual[0]:
                    os.sched_setscheduler(thread, *usual)


def quarantine(written: Path, path: Path) -> None:
    """Move what was written of `path`, if anything was, to where nothing takes it for a clip."""
    if written.exists():
        (path.parent / "quarantine").mkdir(exist_ok=True)
        written.replace(path.parent / "quarantine" / path.name)
