"""A video's codec ladder in scores: where, on the way to smaller files, quality starts to fall."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from cpllm.data import encoding, video
from cpllm.verdicts import Score, one_line

if TYPE_CHECKING:
    import av
    from matplotlib.figure import Figure

    from cpllm.judge import Judge

CRFS = {"h264": tuple(range(15, 52, 4)), "hevc": tuple(range(15, 52, 4)),
        "vp9": tuple(range(15, 64, 6)), "av1": tuple(range(15, 64, 6))}
"""By default, coarser than a training ladder's; 51 and 63 are the codecs' last."""

NOTICED = 6.0
"""Points of VMAF that three of four viewers notice (Ozer 2017, "Finding the Just Noticeable
Difference with Netflix VMAF")."""


@dataclass(frozen=True)
class Rung:
    """One encode."""

    crf: int
    kbps: float  # of the whole file, in 1,000 bits a second
    score: Score


@dataclass(frozen=True)
class Curve:
    """A video's encodes by CRF."""

    path: str
    codec: str
    preset: str
    rungs: tuple[Rung, ...]
    step: float | None  # points; None where the weights carry no card

    @property
    def knee(self) -> int | None:
        """Where quality starts to fall: the highest CRF before any score is a step below the first.

        A step is what viewers notice, or what the model can tell apart where that is more: the
        difference from which on it orders 9 of 10 validation pairs of a source rightly. None
        where the step isn't known.
        """
        if self.step is None:
            return None
        top, last = self.rungs[0].score.score, self.rungs[0].crf
        for rung in self.rungs:
            if rung.score.score <= top - self.step:
                break
            last = rung.crf
        return last

    def __str__(self) -> str:
        lines = [f"{one_line(self.path)}, {self.codec} {self.preset}",
                 "CRF    kbit/s  score     90%"]
        for r in self.rungs:
            end = "  <- quality starts to fall" if r.crf == self.knee else ""
            lines.append(f"{r.crf:3d} {r.kbps:9,.0f}  {r.score.score:5.1f}  {r.score.interval:>7}"
                         f"  {r.score.word}{end}")
        told = ("where quality starts to fall isn't known: the weights carry no card"
                if self.step is None else f"up to CRF {self.knee} no score is {self.step:.1f} "
                f"points or more below that of CRF {self.rungs[0].crf}")
        warnings = dict.fromkeys(w for r in self.rungs for w in r.score.warnings)
        return "\n".join([*lines, told, *warnings])

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(str(self))}</pre>"

    def draw(self) -> Figure:
        """Score against CRF and against bitrate, with intervals and the knee."""
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

        figure = Figure((9, 3.6), layout="constrained")
        scores = [r.score.score for r in self.rungs]
        for ax, name, x in zip(figure.subplots(1, 2, sharey=True), ("CRF", "kbit/s"),
                               ([r.crf for r in self.rungs], [r.kbps for r in self.rungs]),
                               strict=True):
            ax.plot(x, scores, "o-", color="#036")
            if self.step is not None:
                ax.fill_between(x, *zip(*((r.score.low, r.score.high) for r in self.rungs),
                                        strict=True), color="#9bc", alpha=0.4, lw=0)
                at = next(v for v, r in zip(x, self.rungs, strict=True) if r.crf == self.knee)
                ax.axvline(at, color="#b30", ls="--", label="quality starts to fall")
                ax.legend()
            ax.set(xlabel=name, ylim=(0, 100), yticks=range(0, 101, 20))
            ax.grid(alpha=0.3)
            if name == "kbit/s":
                ax.set_xscale("log")
                ax.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)),
                             major_formatter=ScalarFormatter(), minor_locator=NullLocator())
            else:
                ax.set_ylabel("quality, 0–100")
        figure.suptitle(f"{Path(self.path).name}: {self.codec} {self.preset}")
        return figure


def climb(judge: Judge, path: str | Path, crfs: Sequence[int] = (), codec: str = "h264",
          preset: str = "medium", seconds: float | None = None) -> Curve:
    """Encode a video at CRFs into a temporary folder, one thread each, and score the encodes.

    seconds: only the beginning is encoded. Frames are encoded as they are shown: turned, and SDR;
    an odd last line or column is left out. `preset` is x264's. ValueError for an unknown codec or
    a CRF that it lacks.
    """
    if codec not in CRFS:
        raise ValueError(f"codec: expected one of {', '.join(CRFS)}; got {codec!r}")
    crfs, most = sorted(set(crfs or CRFS[codec])), CRFS[codec][-1]
    if not 0 <= crfs[0] <= crfs[-1] <= most:
        raise ValueError(f"{codec}: expected CRFs from 0 to {most}; got {crfs[0]} to {crfs[-1]}")
    with tempfile.TemporaryDirectory(prefix="cpllm-") as folder:
        files = encodes(path, Path(folder), crfs, codec, preset, seconds)
        rungs = []
        for crf, file, score in zip(crfs, files, judge.scores(files), strict=True):
            if isinstance(score, Exception):
                raise score
            made = video.probe(file)
            kbps = file.stat().st_size * 8 * made.fps / made.frames / 1000
            rungs.append(Rung(crf, kbps, replace(score, path=file.name)))
    step = max(judge.card.step, NOTICED) if judge.card else None
    return Curve(str(path), codec, preset, tuple(rungs), step)


def encodes(path: str | Path, folder: Path, crfs: Sequence[int], codec: str = "h264",
            preset: str = "medium", seconds: float | None = None) -> list[Path]:
    """A video's encodes in a folder, `<stem>@crf<n>.mp4`, made side by side: see `climb`."""
    probe = video.probe(path)
    n = probe.frames if seconds is None else min(probe.frames, max(1, round(seconds * probe.fps)))
    files = [folder / f"{Path(path).stem}@crf{crf}.mp4" for crf in crfs]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(encoding.encode, _shots(path, n), file, crf, probe.fps or 25, codec,
                            preset) for crf, file in zip(crfs, files, strict=True)]
        for job in jobs:
            job.result()
    return files


def _shots(path: str | Path, n: int) -> Iterator[av.VideoFrame]:
    """The first n frames, as shown, in 4:2:0; none waits in memory."""
    for rgb in islice(video.shown(path, threads=1), n):
        height, width = (side // 2 * 2 for side in rgb.shape[:2])
        yield from encoding.planar(rgb[None, :height, :width])
