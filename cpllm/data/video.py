"""Real video in, uint8 RGB arrays out: key frames, resizing, patches.

Shapes: N frames of a clip, M key frames, K patches of side P, H×W pixels.

What is read from a file is its decoded pixels, and the tags without which they mean
nothing: display matrix, colour matrix, range, and of HDR transfer and primaries. Bitrate,
quantisers, names and sizes are not.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation
from PIL import Image

from cpllm.data import hdr

MATRICES = {1: Colorspace.ITU709, 4: Colorspace.FCC, 5: Colorspace.ITU601, 6: Colorspace.ITU601,
            7: Colorspace.SMPTE240M, 9: Colorspace.BT2020, 10: Colorspace.BT2020}
"""ITU-T H.273 matrix code → swscale's name."""

CURVES = {ColorTrc.SMPTE2084: hdr.pq, ColorTrc.ARIB_STD_B67: hdr.hlg}
"""The transfer characteristics (ITU-T H.273) that mark a frame as HDR."""

EXACT = (Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
         | Interpolation.FULL_CHR_H_INT)
"""Chroma is interpolated bilinearly, with the same bits on every machine. Without FULL_CHR_H_INT
swscale takes a short cut that darkens every pixel by 1 to 2 levels."""

REFUSED = {"tty", "bin", "xbin", "adf", "idf", "hls", "dash", "concat"}
"""Demuxers that turn text into pictures or follow it to other files."""

MAX_PIXELS = 2**26
"""Of a frame as displayed: 8192×8192, twice 8K. A file of kilobytes can ask for any number."""

PATIENCE = 20.0
"""Seconds to look for the next packet: endless zeros hold none."""


class VideoError(ValueError):
    """One line: which file, what was expected, what came."""


@dataclass(frozen=True)
class Probe:
    """What a viewer sees of a clip: size after rotation; frames counted, not declared."""

    width: int
    height: int
    frames: int
    fps: float
    rotation: int
    codec: str
    pix_fmt: str


class Sample(NamedTuple):
    """What is looked at of a clip."""

    frames: np.ndarray  # uint8[M, H, W, 3] RGB, as displayed
    times: tuple[float, ...]  # seconds of each from the clip's beginning, at its mean frame rate
    count: int  # of the clip's frames
    fps: float  # their mean rate
    hdr: bool  # by its tag: PQ or HLG


def key_indices(n: int, m: int) -> list[int]:
    """Indices of M uniformly spaced key frames: the middle frame of each M-th of the clip.

    index_i = floor((i + 1/2) N / M). Not specified in the paper beyond "uniformly sample"; the
    middles avoid fades at the ends. A clip shorter than M repeats frames.

    >>> key_indices(12, 5), key_indices(2, 5)
    ([1, 3, 6, 8, 10], [0, 0, 1, 1, 1])
    """
    return [(2 * i + 1) * n // (2 * m) for i in range(m)]


def key_frames(path: str | Path, m: int, threads: int = 0) -> np.ndarray:
    """The M uniformly spaced key frames of a clip, as displayed: uint8[M, H, W, 3] RGB."""
    return sample(path, m, threads).frames


def sample(path: str | Path, m: int, threads: int = 0) -> Sample:
    """A clip's key frames, with what their choice depends on.

    M frames are held. The whole clip is decoded unless less than half of it is enough, and sure to
    give the same frames: see `_sought`; what is skipped may then be damaged. Which frames are
    chosen depends on the number of frames alone. `threads` of the decoder: 0 is one per core.
    """
    index = _index(path)
    n, chosen = index.count, key_indices(index.count, m)
    found = _sought(path, index, chosen, threads)
    if found is None:
        found, n = _collect(path, chosen, threads)
    if n != index.count:  # hidden or undecodable packets: choose again by what was decoded
        chosen = key_indices(n, m)
        found, n = _collect(path, chosen, threads)
    frames = _stack(path, [found[i] for i in chosen if i in found])
    return Sample(frames, tuple(i / index.fps for i in chosen), n, index.fps, index.hdr)


def shown(path: str | Path, threads: int = 0) -> Iterator[np.ndarray]:
    """Every frame of a clip as displayed, uint8[H, W, 3] RGB, one after another."""
    with _open(path, threads) as (_, stream):
        for frame in _frames(path, stream):
            yield _shown(path, stream, frame)


def all_frames(path: str | Path, threads: int = 0) -> np.ndarray:
    """Every frame of a clip: uint8[N, H, W, 3] RGB. For short clips; memory grows with N."""
    return _stack(path, list(shown(path, threads)))


def probe(path: str | Path) -> Probe:
    """Size, frame count and format; reads every packet, decodes one frame."""
    with _open(path, threads=1) as (_, stream):
        first = next(_frames(path, stream), None)
        if first is None:
            raise VideoError(f"{path}: expected video frames, none could be decoded")
        size = _squared(first.height, first.width, stream.sample_aspect_ratio)
        height, width = _orient(np.empty(size, bool), first).shape
        rate = float(stream.average_rate or stream.guessed_rate or 0)
    return Probe(width, height, _index(path).count, rate, first.rotation,
                 stream.codec_context.name, first.format.name)


def to_rgb(frame: av.VideoFrame, aspect: Fraction | None = None) -> np.ndarray:
    """A decoded frame as displayed: uint8[H, W, 3], rotated and mirrored as its matrix says.

    aspect: width / height of its pixels; others than square ones are stretched to be square.

    Colour matrix and range are the frame's tags. Untagged: limited range, and BT.709 from 720
    lines up, BT.601 below, as players do and as `encoding.encode` writes. PQ and HLG are mapped to
    SDR by `hdr.to_sdr`.
    """
    if curve := CURVES.get(frame.color_trc):
        yuv = _converted(frame, "yuv444p16le", Colorspace.BT2020, ColorRange.MPEG)
        array = hdr.to_sdr(yuv, curve, frame.color_primaries == ColorPrimaries.BT2020)
    else:
        matrix = MATRICES.get(frame.colorspace, default_matrix(frame.height, frame.width))
        array = _converted(frame, "rgb24", matrix, ColorRange.JPEG)
    if (size := _squared(*array.shape[:2], aspect)) != array.shape[:2]:
        array = _resample(array[None], *size)[0]
    return np.ascontiguousarray(_orient(array, frame))


def _converted(frame: av.VideoFrame, kind: str, matrix: Colorspace, span: ColorRange) -> np.ndarray:
    return _unsited(frame).to_ndarray(format=kind, src_colorspace=matrix, dst_colorspace=matrix,
                                      dst_color_range=span, interpolation=EXACT, threads=1)


def default_matrix(height: int, width: int) -> Colorspace:
    """The colour matrix that an untagged clip of this size is taken to have."""
    return Colorspace.ITU709 if min(height, width) >= 720 else Colorspace.ITU601


def fit(frames: np.ndarray, height: int = 540, width: int = 1080,
        enlarge: bool = False) -> np.ndarray:
    """Frames uint8[M, H, W, 3] scaled to fit within height × width, aspect ratio kept.

    Pillow's BILINEAR, whose support widens with the reduction (antialiased). Enlarging only
    on request: not specified in the paper; blur that we add is not the video's.
    """
    h, w = frames.shape[1:3]
    scale = min(height / h, width / w)
    if scale == 1 or (scale > 1 and not enlarge):
        return frames
    return _resample(frames, max(1, round(h * scale)), max(1, round(w * scale)))


def resize(frames: np.ndarray, size: int) -> np.ndarray:
    """Frames at size × size, aspect ratio ignored: the high-level encoder's view."""
    return _resample(frames, size, size)


def patch_positions(height: int, width: int, patch: int, k: int,
                    rng: np.random.Generator | None = None, align: int = 1) -> np.ndarray:
    """Top-left corners of K non-overlapping patches, spread uniformly: int[K', 2], K' ≤ K.

    Not specified in the paper beyond "non-overlapping, uniformly". We divide the frame into rows
    of equal height, each row into cells of equal width, as nearly square as possible and none
    smaller than a patch, K cells in all, and centre a patch in each; with `rng`, put it
    anywhere in its cell (for training; both members of a pair take the same positions). Where
    fewer than K patches fit (K' < K) it is the densest grid. All corners are multiples of `align`,
    and so are cells' and patches' sides for this purpose.

    >>> patch_positions(540, 960, 224, 8).tolist()
    [[23, 8], [23, 248], [23, 488], [23, 728], [293, 8], [293, 248], [293, 488], [293, 728]]
    >>> len(patch_positions(540, 720, 224, 8)), len(patch_positions(540, 304, 224, 8))
    (6, 2)
    """
    if align > 1:
        return align * patch_positions(height // align, width // align, -(-patch // align), k, rng)
    cells = _cells(max(height, patch), max(width, patch), patch, k)
    slack = cells[:, 2:] - cells[:, :2] - patch
    step = slack // 2 if rng is None else rng.integers(0, slack + 1)
    return cells[:, :2] + step


def cut_patches(frames: np.ndarray, patch: int, k: int,
                positions: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """K patches of every frame, at the same places, and which of the K slots are filled.

    uint8[M, H, W, 3] → uint8[M, K, P, P, 3] and bool[K]. `positions` int[K', 2] come from
    `patch_positions`. Empty slots are zero, and False in the mask. A frame
    smaller than a patch is padded to one patch by repeating its edge.
    """
    m, h, w = frames.shape[:3]
    if positions is None:
        positions = patch_positions(h, w, patch, k)
    short = [(0, 0), (0, max(0, patch - h)), (0, max(0, patch - w)), (0, 0)]
    frames = np.pad(frames, short, mode="edge") if h < patch or w < patch else frames
    patches = np.zeros((m, k, patch, patch, 3), np.uint8)
    for slot, (top, left) in enumerate(positions):
        patches[:, slot] = frames[:, top:top + patch, left:left + patch]
    return patches, np.arange(k) < len(positions)


def _cells(height: int, width: int, patch: int, k: int) -> np.ndarray:
    """int[K', 4] of top, left, bottom, right; see `patch_positions`."""
    most_rows, most_columns = height // patch, width // patch
    k = min(k, most_rows * most_columns)
    fitting = [r for r in range(1, most_rows + 1) if r <= k <= r * most_columns]
    rows = min(fitting, key=lambda r: abs(np.log(height * k / (r * r * width))))
    ends = [(2 * r * k + rows) // (2 * rows) for r in range(rows + 1)]  # 8 in 3 rows: 3, 2, 3
    cells = []
    for r in range(rows):
        top, bottom, n = r * height // rows, (r + 1) * height // rows, ends[r + 1] - ends[r]
        cells += [(top, c * width // n, bottom, (c + 1) * width // n) for c in range(n)]
    return np.array(cells)


def _resample(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(f).resize((width, height), Image.BILINEAR))
                     for f in frames])


def _squared(height: int, width: int, aspect: Fraction | None) -> tuple[int, int]:
    """The size with square pixels. Enlarged, as players do, so that no pixel is lost."""
    aspect = aspect or 1
    return round(height / min(aspect, 1)), round(width * max(aspect, 1))


def _collect(
    path: str | Path, indices: list[int], threads: int
) -> tuple[dict[int, np.ndarray], int]:
    """The frames at `indices`, by them, and the number of decoded frames."""
    wanted, kept, n = set(indices), {}, 0
    with _open(path, threads) as (_, stream):
        for n, frame in enumerate(_frames(path, stream), 1):
            if n - 1 in wanted:
                kept[n - 1] = _shown(path, stream, frame)
    return kept, n


def _sought(
    path: str | Path, index: _Index, indices: list[int], threads: int
) -> dict[int, np.ndarray] | None:
    """The frames at `indices`, decoded from the clean starts before them on.

    None where that saves less than half of the clip, or where what is decoded isn't, frame after
    frame, what the index says.
    """
    begins = {i: max((s for s in index.starts if s <= i), default=0) for i in set(indices)}
    runs = {s: list(group) for s, group in groupby(sorted(begins), begins.get)}
    if not index.starts or 2 * sum(run[-1] - s + 1 for s, run in runs.items()) > index.count:
        return None
    kept = {}
    with _open(path, threads) as (container, stream):
        for start, run in runs.items():
            container.seek(index.pts[start], stream=stream)
            shown = _frames(path, stream)
            for at in range(start, run[-1] + 1):
                frame = next(shown, None)
                if frame is None or frame.pts != index.pts[at]:
                    return None
                if at in begins:
                    kept[at] = _shown(path, stream, frame)
    return kept


def _stack(path: str | Path, frames: list[np.ndarray]) -> np.ndarray:
    if not frames:
        raise VideoError(f"{path}: expected video frames, none could be decoded")
    _check_sizes(path, {f.shape[1::-1] for f in frames})
    return np.stack(frames)


def _shown(path: str | Path, stream: av.VideoStream, frame: av.VideoFrame) -> np.ndarray:
    try:
        return to_rgb(frame, stream.sample_aspect_ratio)
    except (av.FFmpegError, ValueError) as error:
        raise VideoError(f"{path}: expected frames that can be shown as RGB, came "
                         f"{frame.format.name} ({error})") from error


def _frames(path: str | Path, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    n, sizes = 0, set()
    try:
        for frame in stream.container.decode(stream):
            sizes.add((frame.width, frame.height))
            _check_sizes(path, sizes)
            height, width = _squared(frame.height, frame.width, stream.sample_aspect_ratio)
            if height * width > MAX_PIXELS:
                raise VideoError(f"{path}: expected frames of at most {MAX_PIXELS:,} pixels, came "
                                 f"{width}x{height} as displayed")
            n += 1
            yield frame
    except av.FFmpegError as error:
        size = f", or larger than {MAX_PIXELS:,} pixels" * isinstance(error, av.ArgumentError)
        raise VideoError(f"{path}: expected a decodable video, frame {n} is damaged{size} "
                         f"({_reason(error)})") from error


def _check_sizes(path: str | Path, sizes: set[tuple[int, int]]) -> None:
    if len(sizes) > 1:
        named = " and ".join(f"{width}x{height}" for width, height in sorted(sizes))
        raise VideoError(f"{path}: expected frames of one size, the clip changes between {named}")


def _reason(error: Exception) -> str:
    """What FFmpeg says; of our own interruption what it is."""
    if isinstance(error, av.ExitError | av.BlockingIOError):
        return f"no more of it was found in {PATIENCE:g} s"
    return getattr(error, "strerror", None) or str(error)


class _Index(NamedTuple):
    """What a clip's packets say of its frames."""

    count: int
    pts: list[int]  # in the order of display; none where they don't tell it
    starts: list[int]  # positions from which on nothing before is needed; none where that is unsure
    fps: float
    hdr: bool


def _index(path: str | Path) -> _Index:
    """Reads every packet; VideoError where the file's index promises more than it holds."""
    with _open(path, threads=1) as (container, stream):
        context, sizes, damaged, pts, clean = stream.codec_context, 0, False, [], set()
        try:
            for packet in container.demux(stream):
                if packet.size:
                    sizes, damaged = sizes + 1, packet.is_corrupt
                    if not packet.is_discard:
                        pts.append(packet.pts)
                        clean |= {packet.pts} if _refreshes(packet, context) else set()
        except av.FFmpegError as error:
            raise VideoError(f"{path}: expected a whole video, it is damaged after frame {sizes} "
                             f"({_reason(error)})") from error
        promised, fps = len(stream.index_entries), stream.average_rate or stream.guessed_rate or 25
        hdr = context.color_trc in CURVES
    if damaged or sizes < promised:
        raise VideoError(f"{path}: truncated: expected {max(promised, sizes)} frames, "
                         f"the file holds {sizes - damaged}")
    told = sizes == len(set(pts)) and None not in pts
    order = sorted(pts) if told else []
    starts = [i for i, at in enumerate(order) if at in clean]
    return _Index(len(pts), order, starts, float(fps), hdr)


def _refreshes(packet: av.Packet, context: av.VideoCodecContext) -> bool:
    """Whether a packet holds an IDR picture of H.264 or H.265, which no later one looks past.

    Other key frames may be such, but open groups of pictures and gradual refreshes have them too.
    """
    kinds = {"h264": (4, 0, 31, range(1, 6), {5}), "hevc": (21, 1, 63, range(32), {19, 20})}
    if not packet.is_keyframe or context.name not in kinds:
        return False
    at, shift, mask, pictures, refreshing = kinds[context.name]
    data, extra, place, units = bytes(packet), context.extradata or b"", 0, []
    if extra[:1] == b"\1" and len(extra) > at:  # ISO/IEC 14496-15: lengths stand before the units
        size = (extra[at] & 3) + 1
        while place + size < len(data):
            units.append(data[place + size])
            place += size + int.from_bytes(data[place:place + size], "big")
    else:  # Annex B: start codes do
        units = [part[0] for part in data.split(b"\0\0\1")[1:] if part]
    found = [kind for unit in units if (kind := unit >> shift & mask) in pictures]
    return bool(found) and set(found) <= refreshing


@contextmanager
def _open(path: str | Path, threads: int) -> Iterator[tuple]:
    """A container and its main video stream: the default one, else the first; no cover art."""
    _check_file(path)
    # "file:" keeps a name such as "concat:a|b" or "-" from being taken for a protocol.
    options = {"protocol_whitelist": "file", "max_pixels": str(MAX_PIXELS)}
    try:
        container = av.open(f"file:{os.fspath(path)}", options=options, timeout=PATIENCE,
                            metadata_errors="replace")
    except (av.FFmpegError, ValueError) as error:
        raise VideoError(f"{path}: expected a video, came a file that is damaged, truncated or of "
                         f"an unknown format ({_reason(error)})") from error
    with container:
        if container.format.name in REFUSED:
            raise VideoError(f"{path}: expected a video, came {container.format.long_name}")
        pictures = [s for s in container.streams.video
                    if not s.disposition & av.stream.Disposition.attached_pic]
        if not pictures:
            kinds = sorted({s.type for s in container.streams}) or ["nothing"]
            raise VideoError(f"{path}: expected a video stream, found only {', '.join(kinds)}")
        stream = next((s for s in pictures if s.disposition & av.stream.Disposition.default),
                      pictures[0])
        if stream.codec_context is None:
            raise VideoError(f"{path}: expected a known video codec; this one has no decoder")
        stream.thread_type, stream.codec_context.thread_count = "AUTO", threads
        stream.codec_context.options = {"max_pixels": options["max_pixels"]}
        yield container, stream


def _check_file(path: str | Path) -> None:
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise VideoError(f"{path}: expected a video file, found none ({reason})") from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "no regular file"
        raise VideoError(f"{path}: expected a video file, this is {kind}")
    if not status.st_size:
        raise VideoError(f"{path}: expected a video file, this one is empty (0 bytes)")
    try:
        end = _declared_end(Path(path))
    except OSError as error:
        raise VideoError(f"{path}: cannot be read ({error.strerror})") from error
    if end > status.st_size:
        raise VideoError(f"{path}: truncated: expected {end:,} bytes, "
                         f"the file has {status.st_size:,}")


def _declared_end(path: Path) -> int:
    """Where an MP4, Matroska or AVI file says that it ends; 0 where it doesn't say.

    Exact at every offset, whereas counting packets can't tell when only an index was lost.
    """
    with path.open("rb") as file:
        head = file.read(16)
        if head[:4] == b"RIFF":
            return 8 + int.from_bytes(head[4:8], "little")
        if head[:4] == b"\x1a\x45\xdf\xa3":
            return _matroska_end(file)
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            return _boxes_end(file)
    return 0


def _boxes_end(file) -> int:
    """End of the last top-level box (ISO/IEC 14496-12, 4.2)."""
    at = file.seek(0)
    while len(head := file.read(16)) >= 8:
        size = int.from_bytes(head[:4], "big")
        size = int.from_bytes(head[8:], "big") if size == 1 else size
        if size < 8 or not head[4:8].isalnum():  # 0: to the end of the file; else trailing bytes
            return 0
        at += size
        file.seek(at)
    return at


def _matroska_end(file) -> int:
    """End of the Segment (RFC 8794: element id, then its size); 0 where the size is unknown."""
    file.seek(4)
    file.seek(_vint(file) + file.tell())  # the EBML header
    if file.read(4) != b"\x18\x53\x80\x67":
        return 0
    size = _vint(file)
    return 0 if size < 0 else file.tell() + size


def _vint(file) -> int:
    """A variable-length integer; -1 for "unknown" (all ones) or where the file ends."""
    first = file.read(1)
    if not first or not first[0]:
        return -1
    length = 9 - first[0].bit_length()
    rest = file.read(length - 1)
    value = int.from_bytes(bytes([first[0] & (0xFF >> length)]) + rest, "big")
    return -1 if value == (1 << 7 * length) - 1 or len(rest) < length - 1 else value


def _unsited(frame: av.VideoFrame) -> av.VideoFrame:
    """The frame without its chroma siting, which decoders of one and the same picture tell apart.

    H.264 says "left", a lossless copy often nothing, and swscale then interpolates differently.
    """
    kind = frame.format
    if (kind.chroma_width(frame.width), kind.chroma_height(frame.height)) == (frame.width,
                                                                              frame.height):
        return frame
    bare = av.VideoFrame(frame.width, frame.height, kind.name)
    for old, new in zip(frame.planes, bare.planes, strict=True):
        rows = [np.frombuffer(p, np.uint8).reshape(p.height, -1) for p in (old, new)]
        used = min(r.shape[1] for r in rows)
        rows[1][:, :used] = rows[0][:, :used]
    bare.colorspace, bare.color_range = frame.colorspace, frame.color_range
    return bare


def _orient(array: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """Apply the display matrix: x' = a x + c y, y' = b x + d y, to the nearest quarter turn."""
    data = next((s for s in frame.side_data if s.type.name == "DISPLAYMATRIX"), None)
    if data is None:
        return array
    a, b, _, c, d = np.frombuffer(bytes(data), "<i4")[:5]
    if abs(b) > abs(a):
        array, a, d = array.swapaxes(0, 1), c, b
    return array[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
