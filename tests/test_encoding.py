"""Encodes by the real encoders: the same bytes each time, worse with each CRF, no trace left."""

import os
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
import pytest

from cpllm.data import distort, encoding, video


def test_encoding_is_deterministic(tmp_path, frames):
    for name in ("a.mp4", "b.mp4"):
        encoding.encode(frames, tmp_path / name, 31, 25)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["a.mp4", "b.mp4"]


def test_encode_keeps_size_rate_count_and_says_its_settings(tmp_path, frames):
    encoding.encode(frames, tmp_path / "a.mp4", 37, 29.97)
    seen = video.probe(tmp_path / "a.mp4")
    assert (seen.height, seen.width, seen.frames) == (*frames.shape[1:3], 12)
    assert seen.fps == pytest.approx(29.97, abs=1e-3)
    options = (tmp_path / "a.mp4").read_bytes()
    for said in (b"threads=1 ", b"crf=37.0", b"subme=7", b"keyint=250"):  # subme 7: preset medium
        assert said in options


def test_rate_and_quality_fall_along_the_ladder(tmp_path, frames):
    sizes, errors = [], []
    for crf in range(13, 52, 2):
        encoding.encode(frames, tmp_path / "a.mp4", crf, 25)
        sizes.append((tmp_path / "a.mp4").stat().st_size)
        errors.append(((video.all_frames(tmp_path / "a.mp4").astype(float) - frames) ** 2).mean())
    assert all(np.diff(sizes) < 0) and all(np.diff(errors) > 0)


def test_crf_0_is_a_lossless_reference(tmp_path, frames):
    encoding.encode(frames, tmp_path / "a.mp4", 0, 25, preset="ultrafast")
    with av.open(str(tmp_path / "a.mp4")) as container:
        planes = [f.to_ndarray() for f in container.decode(video=0)]
    np.testing.assert_array_equal(planes, [f.to_ndarray() for f in encoding.planar(frames)])


def test_frames_converted_once_give_the_bytes_of_those_converted_for_each_encode(tmp_path, frames):
    shots = encoding.planar(frames)
    for name, codec, crf in (("a", "h264", 20), ("b", "vp9", 40), ("c", "h264", 40)):
        encoding.encode(shots, tmp_path / f"{name}.mp4", crf, 25, codec, "veryfast")
        encoding.encode(frames, tmp_path / "again.mp4", crf, 25, codec, "veryfast")
        assert (tmp_path / f"{name}.mp4").read_bytes() == (tmp_path / "again.mp4").read_bytes()


def test_odd_sides_are_refused(tmp_path, frames):
    with pytest.raises(ValueError, match="even sides, came 127x96"):
        encoding.encode(frames[:, :, :127], tmp_path / "a.mp4", 31, 25)


def test_what_a_failed_encode_wrote_is_quarantined(tmp_path, frames):
    shots = [*encoding.planar(frames)[:5], "no frame"]
    with pytest.raises(AttributeError):
        encoding.encode(shots, tmp_path / "a.mp4", 31, 25, preset="ultrafast")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [tmp_path / "quarantine" / "a.mp4"]


def test_encoder_is_told_what_is_recorded(tmp_path, frames):
    """x264 writes its options into the stream, as do the other encoders in part."""
    encoding.encode(frames, tmp_path / "a.mp4", 33, 25, preset="faster")
    assert b"subme=4" in (tmp_path / "a.mp4").read_bytes()
    told = encoding.options("h264", 33, "faster")
    assert told == {"crf": "33", "preset": "faster"} | distort.X264
    assert encoding.options("hevc", 33, "faster")["preset"] == "superfast"
    assert "preset" not in encoding.options("vp9", 33, "faster")


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="Linux has scheduling policies")
@pytest.mark.parametrize("threads", [0, 1], ids=["main thread", "other thread"])
def test_an_encoder_leaves_no_thread_real_time(tmp_path, frames, threads):
    """SVT-AV1 makes root's process SCHED_FIFO, under which a busy child takes a core for good."""
    with ThreadPoolExecutor(1) as pool:
        run = (lambda f, *a: pool.submit(f, *a).result()) if threads else (lambda f, *a: f(*a))
        run(encoding.encode, frames, tmp_path / "a.mp4", 40, 24, "av1")
        policies = {os.sched_getscheduler(int(t)) for t in os.listdir("/proc/self/task")}
    assert policies == {os.sched_getscheduler(0)} == {os.SCHED_OTHER}


@pytest.mark.parametrize("codec", ["vp9", "hevc", "av1"])
def test_other_codecs_are_deterministic_and_lose_quality_with_crf(tmp_path, frames, codec):
    errors = []
    for name, crf in (("a", 20), ("b", 50), ("c", 50)):
        encoding.encode(frames, tmp_path / f"{name}.mp4", crf, 25, codec)
        made = video.all_frames(tmp_path / f"{name}.mp4")
        assert made.shape == frames.shape
        errors.append(((made.astype(float) - frames) ** 2).mean())
    assert errors[0] < errors[1] == errors[2]
    assert (tmp_path / "b.mp4").read_bytes() == (tmp_path / "c.mp4").read_bytes()
