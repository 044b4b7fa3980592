"""Odd and hostile files: each gets the score of what a player shows, or one error that names it.

The clips are made here. What a player shows is what the ffmpeg program decodes, another build than
the one that decodes for us. The whole corpus goes through one call of the command line.
"""

import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpllm.cli import NO_VIDEOS
from cpllm.data import video
from cpllm.data.batches import model_inputs
from cpllm.data.video import VideoError
from cpllm.judge import load

SECONDS, MEGABYTES = 60, 2500
"""Of the whole corpus in one call: processor time, and memory (most: two frames of 8K)."""

X264 = ("-c:v", "libx264", "-preset", "ultrafast", "-qp", "0")
X265 = ("-c:v", "libx265", "-x265-params", "log-level=none:pools=none", "-crf", "4")
FFV1, RAW = ("-c:v", "ffv1"), ("-pix_fmt", "bgr24", "-c:v", "rawvideo")
EARLIER = ("-output_ts_offset", "-5", "-avoid_negative_ts", "disabled")
ODD_NAMES = ("-dash.mp4", "--help", " two  spaces .mp4", "new\nline.mp4", "ü ñ 漢字.mp4",
             "%03d.mp4", "concat:a|b", "pipe:0", "-", "[red]markup[.mp4", "\x1b[31mred.mp4",
             "not\udcffutf8.mp4", "clip.txt", "clip.jpg", "clip.mkv", "n" * 250 + ".mp4")

CLIPS = {
    # pixel formats
    "444.mp4": ("-pix_fmt", "yuv444p", *X264), "422.mp4": ("-pix_fmt", "yuv422p", *X264),
    "10-bit.mp4": ("-pix_fmt", "yuv420p10le", *X264),
    "12-bit.mp4": ("-pix_fmt", "yuv420p12le", *X265),
    "422-10-bit.mp4": ("-pix_fmt", "yuv422p10le", *X264),
    "444-12-bit.mp4": ("-pix_fmt", "yuv444p12le", *X265),
    "16-bit.mkv": ("-pix_fmt", "yuv444p16le", *FFV1), "411.mkv": ("-pix_fmt", "yuv411p", *FFV1),
    "440.mkv": ("-pix_fmt", "yuv440p", *FFV1), "410.mkv": ("-pix_fmt", "yuv410p", *FFV1),
    "alpha.mkv": ("-pix_fmt", "yuva420p", *FFV1), "argb.mov": ("-pix_fmt", "argb", "-c:v", "qtrle"),
    "alpha.webm": ("-pix_fmt", "yuva420p", "-c:v", "libvpx-vp9", "-cpu-used", "8", "-crf", "20"),
    "alpha-prores.mov": ("-pix_fmt", "yuva444p10le", "-c:v", "prores_ks"),
    "grey.mkv": ("-pix_fmt", "gray", *FFV1), "grey-10-bit.mkv": ("-pix_fmt", "gray10le", *FFV1),
    "rgb.mkv": ("-pix_fmt", "bgr0", *FFV1), "rgb-16-bit.mkv": ("-pix_fmt", "gbrp16le", *FFV1),
    "rgb.mp4": ("-pix_fmt", "rgb24", "-c:v", "libx264rgb", "-qp", "0"),
    "palette.avi": ("-pix_fmt", "pal8", "-c:v", "rawvideo"),
    "one-bit.avi": ("-pix_fmt", "monow", "-c:v", "rawvideo"), "moving.gif": (),
    "full-range.mp4": ("-vf", "scale=out_range=full,format=yuvj420p", *X264),
    # sizes
    "one-pixel.avi": ("-vf", "scale=1:1", *RAW), "two-pixels.mp4": ("-vf", "scale=2:2", *X264),
    "odd-sides.mkv": ("-vf", "format=yuv444p,crop=127:95", *FFV1),
    "one-line.avi": ("-vf", "scale=4096:1", *RAW), "one-column.avi": ("-vf", "scale=1:400", *RAW),
    "smaller-than-a-patch.mp4": ("-vf", "scale=20:16", *X264),
    "wide-pixels.mp4": ("-vf", "setsar=4/3", *X264),
    "tall-pixels.mkv": ("-vf", "setsar=1/2", *FFV1),
    "rotated.mp4": ("-display_rotation", "90", "-i", "-c", "copy"),
    "mirrored.mp4": ("-display_vflip", "-i", "-c", "copy"),
    # time
    "one-frame.mp4": ("-frames:v", "1", *X264), "two-frames.mp4": ("-frames:v", "2", *X264),
    "still.png": ("-frames:v", "1"), "still.jpg": ("-frames:v", "1", "-q:v", "1"),
    "variable-rate.mp4": ("-vf", "setpts=N*N*0.01/TB", "-fps_mode", "vfr", *X264),
    "frame-an-hour.mp4": ("-vf", "setpts=N*3600/TB", "-r", "1/3600", *X264),
    "negative-times.mkv": ("-c", "copy", *EARLIER),
    "no-times.h264": ("-c", "copy", "-bsf:v", "h264_mp4toannexb"), "no-times.mjpeg": ("-q:v", "1"),
    # containers and streams
    "interlaced.mp4": ("-vf", "setfield=tff", "-flags", "+ildct+ilme", *X264),
    "stream.ts": ("-c", "copy"), "flash.flv": ("-c", "copy"), "raw.y4m": (),
    "old.mpg": ("-c:v", "mpeg1video", "-q:v", "1"), "old.wmv": ("-c:v", "wmv2", "-q:v", "1"),
    "theora.ogv": ("-c:v", "libtheora", "-q:v", "10"), "wavelets.mov": ("-c:v", "jpeg2000"),
    "av1.mp4": ("-c:v", "libsvtav1", "-crf", "10", "-svtav1-params", "lp=1"),
    "two-streams.mkv": ("-map", "0", "-map", "0", "-filter:v:1", "negate", "-disposition:v:0", "0",
                        "-disposition:v:1", "default", *FFV1),
    "with-sound.mkv": ("-f", "lavfi", "-i", "sine", "-shortest", "-map", "0:v", "-map", "1:a",
                       "-c:v", "copy"),
}
"""Name → what ffmpeg makes it with; "-i" stands for the made clip, which else comes first."""


def box(data: bytes, name: bytes, offset: int, kind: str, *values: int) -> bytes:
    """An MP4 with numbers of its first box of this name written over."""
    at = data.index(name) + 4 + offset
    made = struct.pack(kind, *values)
    return data[:at] + made + data[at + len(made):]


def png(side: int) -> bytes:
    """A black picture of side × side, 1,000 times smaller than its pixels."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(1 + 3 * side)) for _ in range(side)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", packed), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c)) + t + c + struct.pack(">I", zlib.crc32(t + c)) for t, c in chunks)


def tagged(curve: str) -> tuple[str, ...]:
    """10-bit BT.2020 of this transfer characteristic."""
    tags = f"log-level=none:pools=none:colorprim=bt2020:colormatrix=bt2020nc:transfer={curve}"
    return ("-pix_fmt", "yuv420p10le", "-c:v", "libx265", "-x265-params", tags)


HDR = {"hdr10.mp4": tagged("smpte2084"), "hlg.mp4": tagged("arib-std-b67")}
"""Tone-mapped as tests/test_hdr.py says; the ffmpeg program doesn't by itself."""


NOISE = np.random.default_rng(0).bytes(20_000)
FOREIGN = {
    "zeros.mp4": bytes(5000), "random.mp4": NOISE, "text.mp4": b"hello, world\n" * 50,
    "page.mp4": b"<!DOCTYPE html><html><body>404 Not Found</body></html>" * 9,
    "zip.mp4": b"PK\3\4" + NOISE[:500],
    "subtitles.mp4": b"1\n00:00:01,000 --> 00:00:04,000\nhi\n\n",
    "playlist.mp4": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nclip.mp4\n#EXT-X-ENDLIST\n",
    "list.mp4": b"ffconcat version 1.0\nfile clip.mp4\n",
    "terminal.ans": b"\x1b[31mred\x1b[0m\n" * 99,
    "letters.xb": b"XBIN\x1a" + struct.pack("<HHBB", 80, 25, 16, 0) + bytes(4000),
    "letters.idf": b"\x041.4" + NOISE,
    "session.mp4": b"v=0\nc=IN IP4 127.0.0.1\nm=video 1 RTP/AVP 96\n",
    "drawing.svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="/etc/passwd"/></svg>',
    "presentation.mp4": b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
    "only-data.mp4": struct.pack(">I4s", 20_008, b"mdat") + NOISE,
    "half-picture.png": png(64)[:60],
}

MENDED = {
    "endless-duration.mp4": lambda d: box(box(d, b"mvhd", 16, ">I", 2**32 - 9), b"mdhd", 16, ">I",
                                          2**32 - 9),
    "no-size-in-header.mp4": lambda d: box(d, b"avc1", 24, ">HH", 0, 0),
    "lying-size-in-header.mp4": lambda d: box(d, b"avc1", 24, ">HH", 65535, 65535),
    "two-thousand-million-chunks.mp4": lambda d: box(d, b"stco", 4, ">I", 2**31 - 1),
    "trailing-bytes.mp4": lambda d: d + bytes(4096), "another-behind.mp4": lambda d: d + d,
}
"""Faults that a player sees past, made of the clip's bytes."""

BROKEN = {
    "empty.mp4": (lambda d: b"", "empty"), "head-only.mp4": (lambda d: d[:32], "expected a video"),
    "unknown-codec.mp4": (lambda d: d.replace(b"avc1", b"zzzz"), "known video codec"),
    "wrong-codec.mp4": (lambda d: d.replace(b"avc1", b"hvc1"), "decodable"),
    "no-codec-setup.mp4": (lambda d: d.replace(b"avcC", b"xxxx"), "expected"),
    "two-thousand-million-samples.mp4": (lambda d: box(d, b"stsz", 8, ">I", 2**31 - 1), "expected"),
    "chunk-beyond-the-end.mp4": (lambda d: box(d, b"stco", 8, ">I", 2**31 - 1), "truncated"),
    "overwritten.mp4": (lambda d: d[:len(d) // 3] + b"\xff" * (len(d) // 3) + d[len(d) // 3 * 2:],
                        "expected"),
    "bomb.png": (lambda d: png(9000), "67,108,864 pixels"),
    "bomb.gif": (lambda d: b"GIF89a" + struct.pack("<HHBBB", 65000, 65000, 0, 0, 0) +
                 b",\0\0\0\0\x09\0\x09\0\0\x02\x02\x4c\x01\0;", "67,108,864 pixels"),
    **{f"cut-at-{tenth}0%.mp4": (lambda d, tenth=tenth: d[:len(d) * tenth // 10], "truncated")
       for tenth in range(1, 10)},
    **{name: (lambda d, data=data: data, "expected") for name, data in FOREIGN.items()},
}
MADE_BROKEN = {
    "bomb-in-h264.mp4": (("-vf", "scale=8448:8448:flags=neighbor", "-frames:v", "1", *X264),
                         "67,108,864 pixels"),
    "absurd-pixels.mp4": (("-vf", "scale=2048:1024:flags=neighbor,setsar=99", *X264),
                          "67,108,864 pixels"),
    "only-sound.mp4": (("-f", "lavfi", "-i", "sine=duration=1", "-map", "1:a"), "video stream"),
    "encrypted.mp4": (("-c", "copy", "-encryption_scheme", "cenc-aes-ctr", "-encryption_key",
                       "0" * 32, "-encryption_kid", "1" * 32), "decodable"),
    "never-shown.mp4": (("-c", "copy", *EARLIER), "none could be decoded"),
}
PLACES = {
    "missing.mp4": "No such file", "folder.mp4": "directory", "pipe.mp4": "no regular file",
    "socket.mp4": "no regular file", "loop.mp4": "expected a video file",
    "dangling.mp4": "No such file", "into-a-file.mp4/clip.mp4": "Not a directory",
    "n" * 300 + ".mp4": "name too long", "bad\nline.mp4": "No such file",
}
JOINED = {"grows.ts": ("small.ts", "big.ts"), "shrinks-late.ts": (*["big.ts"] * 4, "small.ts")}
REFUSED = {n: words for n, (_, words) in (BROKEN | MADE_BROKEN).items()} | PLACES | dict.fromkeys(
    JOINED, "of one size, the clip changes between 64x48 and 128x96")
SHOWN = (*CLIPS, *HDR, *MENDED, *ODD_NAMES, "8k.mp4", "linked.mp4")


def make(ffmpeg: str, clip: Path, words: tuple, target: Path) -> None:
    at = words.index("-i") if "-i" in words and "lavfi" not in words else 0
    words = (*words[:at], "-i", clip, *words[at + bool(at):])
    subprocess.run([ffmpeg, "-y", "-v", "error", "-nostdin", *map(str, words), target], check=True)


@pytest.fixture(scope="module")
def corpus(ffmpeg, mp4, tmp_path_factory):
    """A folder with every kind of file."""
    folder = tmp_path_factory.mktemp("corpus")
    whole = mp4.read_bytes()
    for name, words in (CLIPS | HDR).items():
        make(ffmpeg, mp4, words, folder / name)
    for name, (words, _) in MADE_BROKEN.items():
        make(ffmpeg, mp4, words, folder / name)
    make(ffmpeg, mp4, ("-frames:v", "2", "-vf", "scale=7680:4320:flags=neighbor", "-c:v", "libx264",
                       "-preset", "ultrafast", "-crf", "20"), folder / "8k.mp4")
    for name, change in MENDED.items():
        (folder / name).write_bytes(change(whole))
    for name, (change, _) in BROKEN.items():
        (folder / name).write_bytes(change(whole))
    for name in ODD_NAMES:
        (folder / name).write_bytes(whole)
    for name, size in (("small.ts", "64:48"), ("big.ts", "128:96")):
        make(ffmpeg, mp4, ("-vf", f"scale={size}", *X264), folder / name)
    for name, parts in JOINED.items():
        (folder / name).write_bytes(b"".join((folder / part).read_bytes() for part in parts))
    (folder / "folder.mp4").mkdir()
    os.mkfifo(folder / "pipe.mp4")
    here = os.getcwd()
    os.chdir(folder)  # a socket's path is short
    socket.socket(socket.AF_UNIX).bind("socket.mp4")
    os.chdir(here)
    (folder / "loop.mp4").symlink_to("loop.mp4")
    (folder / "dangling.mp4").symlink_to("nowhere.mp4")
    (folder / "linked.mp4").symlink_to(mp4)
    (folder / "into-a-file.mp4").write_bytes(whole)
    return folder


@pytest.fixture(scope="module")
def model(weights):
    return load(weights)


MEASURE = """
import json, resource, subprocess, sys
code = subprocess.run(sys.argv[2:]).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
with open(sys.argv[1], "w") as file:
    json.dump([used.ru_utime + used.ru_stime, used.ru_maxrss / 1024], file)
sys.exit(code)
"""  # from a process of its own: to a child's peak counts what its parent held at its start


@pytest.fixture(scope="module")
def told(corpus, weights, tmp_path_factory):
    """What one call of the command line says of the whole corpus: (process, rows, usage)."""
    names, usage = [*SHOWN, *REFUSED], tmp_path_factory.mktemp("usage") / "usage.json"
    command = [sys.executable, "-c", MEASURE, usage, sys.executable, "-m", "cpllm.cli", "score",
               "--format", "json", "--weights", weights, "--", *names]
    process = subprocess.run(command, cwd=corpus, capture_output=True, timeout=10 * SECONDS,
                             env={**os.environ, "PYTHONPATH": str(Path(video.__file__).parents[2])})
    assert process.stdout, process.stderr.decode()[-3000:]
    rows = json.loads(process.stdout)
    return process, dict(zip(names, rows, strict=True)), json.loads(usage.read_text())


def player(ffmpeg: str, path: Path, m: int) -> np.ndarray:
    """The key frames that the ffmpeg program shows, with square pixels: uint8[M, H, W, 3]."""
    chain = "scale='if(gt(sar,1),round(iw*sar),iw)':'if(between(sar,0.001,1),round(ih/sar),ih)':" \
            "flags=bilinear+accurate_rnd+full_chroma_int+full_chroma_inp,format=rgb24," \
            "showinfo=checksum=0"
    command = [ffmpeg, "-v", "info", "-nostdin", "-i", f"file:{path}", "-vf", chain,
               "-fps_mode", "passthrough", "-f", "rawvideo", "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    width, height = map(int, re.findall(rb" s:(\d+)x(\d+) ", done.stderr)[-1])
    frames = np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 3)
    return frames[video.key_indices(len(frames), m)]


def test_there_are_at_least_45_kinds():
    kinds = {re.sub(r"cut-at.*", "cut", name) for name in (*SHOWN, *REFUSED)}
    assert len(kinds) >= 100


@pytest.mark.parametrize("name", SHOWN, ids=ascii)
def test_an_odd_clip_gets_the_score_of_what_a_player_shows(name, corpus, ffmpeg, model, told):
    frames = video.key_frames(corpus / name, model.cfg.video.key_frames)
    if name not in HDR:
        shown = player(ffmpeg, corpus / name, len(frames))
        some = slice(None, None, 1 + len(frames[0]) // 1000)
        assert frames.shape == shown.shape
        assert abs(frames[:, some, some].astype(int) - shown[:, some, some]).mean() < 2.5
    score = model.frame_scores(model_inputs(frames, model.cfg.video)).mean()
    assert told[1][name]["error"] is None
    assert told[1][name]["score"] == pytest.approx(score, abs=1e-3)


@pytest.mark.parametrize("name", REFUSED, ids=ascii)
def test_no_whole_video_gets_one_error_that_names_it(name, corpus, told):
    with pytest.raises(VideoError) as caught:
        video.key_frames(corpus / name, 2)
    row = told[1][name]
    told_more = NO_VIDEOS * os.path.isdir(corpus / name)  # Path.is_dir refuses a long name
    assert row["score"] is None
    assert row["error"] == str(caught.value).replace(f"{corpus}/", "") + told_more
    assert row["error"].startswith(f"{name}: ") and REFUSED[name] in row["error"]
    assert "\n" not in row["error"].removeprefix(name)


def test_the_whole_corpus_is_done_in_time_and_memory_with_a_line_for_each_refusal(told):
    process, _, (seconds, megabytes) = told
    lines = process.stderr.decode().splitlines()
    assert process.returncode == 2
    assert len(lines) == len(REFUSED) and all(line.startswith("error: ") for line in lines)
    assert (seconds < SECONDS, megabytes < MEGABYTES) == (True, True), (seconds, megabytes)


@pytest.mark.parametrize("form", ["table", "csv"])
def test_no_file_name_breaks_the_output(form, corpus, weights, capfd, monkeypatch):
    from cpllm import cli

    monkeypatch.chdir(corpus)
    code = cli.main(["score", "--format", form, "--weights", str(weights), "--", *ODD_NAMES])
    out, err = capfd.readouterr()
    assert (code, err) == (0, "") and "\x1b[31m" not in out * (form == "table")


@pytest.mark.parametrize("name", ["stream.ts", "no-times.h264", "two-streams.mkv", "palette.avi"])
def test_endless_zeros_behind_a_clip_end_in_an_error(name, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(video, "PATIENCE", 0.5)
    path = tmp_path / name
    path.write_bytes((corpus / name).read_bytes())
    os.truncate(path, 2**40)  # takes no room
    begun = time.monotonic()
    with pytest.raises(VideoError, match=r"no more of it was found in 0\.5 s"):
        video.key_frames(path, 2)
    assert time.monotonic() - begun < 10


SEEDS = ("into-a-file.mp4", "negative-times.mkv", "palette.avi", "stream.ts", "alpha.webm",
         "moving.gif", "theora.ogv", "flash.flv", "no-times.h264", "still.png", "old.mpg",
         "wavelets.mov")
CHANGES = st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), max_size=12)


def decode_changed(corpus, folder, name, changes, end, suffix):
    """A corpus file with bytes written over and its end cut off is decoded, or refused by name."""
    data = bytearray((corpus / name).read_bytes())
    for place, value in changes:
        at = int(place**3 * len(data))  # heads are where structure is
        data[at:at + len(value)] = value
    path = folder / f"changed{suffix}"
    path.write_bytes(data[:int(end * len(data))])
    try:
        frames = video.key_frames(path, 2)
    except VideoError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert frames.dtype == np.uint8 and frames.shape[0] == 2 and frames.shape[3] == 3


def fuzz(examples, corpus, folder, derandomize):
    suffixes = st.sampled_from(("", ".mp4", ".cdg", ".raw", ".h264", ".tga", ".idf", ".dv"))

    @settings(max_examples=examples, deadline=None, derandomize=derandomize, database=None)
    @given(st.sampled_from(SEEDS), CHANGES, st.sampled_from((1.0, 1.0, 0.9, 0.5, 0.1)), suffixes)
    def check(name, changes, end, suffix):
        decode_changed(corpus, folder, name, changes, end, suffix)

    check()


def test_changed_bytes_are_decoded_or_refused(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(video, "PATIENCE", 2.0)
    fuzz(250, corpus, tmp_path, derandomize=True)


@pytest.mark.slow
def test_many_changed_bytes_are_decoded_or_refused(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(video, "PATIENCE", 2.0)
    fuzz(20_000, corpus, tmp_path, derandomize=False)
