"""HDR files, really encoded in 10 bits by x265 and tagged, come out as SDR computed by hand."""

import doctest
from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.reformatter import ColorPrimaries, ColorRange, ColorTrc

from cpllm.data import hdr, scenes, video

TRANSFER = {"pq": (ColorTrc.SMPTE2084, "smpte2084"), "hlg": (ColorTrc.ARIB_STD_B67, "arib-std-b67")}
BT2020_NCL = 9  # ITU-T H.273
FILM = {"black": (0, 0, 0), "grey": (0.5,) * 3, "white": (0.75,) * 3, "orange": (0.7, 0.5, 0.3)}
"""Signals R'G'B' in [0, 1]."""


def codes(signal):
    """10-bit limited-range Y, Cb and Cr of a BT.2020 signal, from the primaries' definition."""
    r, g, b = signal
    y = 0.2627 * r + 0.6780 * g + 0.0593 * b
    return round(64 + 876 * y), round(512 + 896 * (b - y) / 1.8814), round(
        512 + 896 * (r - y) / 1.4746)


def write(path, kind, patches, primaries=ColorPrimaries.BT2020):
    """Two frames of 32 x 32 patches side by side: lossless HEVC Main 10, tagged."""
    trc, name = TRANSFER[kind]
    # Without B-frames: of a clip shorter than their reordering x265 makes up the timestamps.
    told = f"lossless=1:bframes=0:pools=none:frame-threads=1:log-level=none:transfer={name}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx265", rate=25, options={
            "profile": "main10", "preset": "ultrafast", "x265-params": told})
        stream.width, stream.height, stream.pix_fmt = 32 * len(patches), 32, "yuv420p10le"
        context = stream.codec_context
        context.time_base, context.color_trc = Fraction(1, 25), trc
        context.color_primaries, context.colorspace = primaries, BT2020_NCL
        context.color_range = ColorRange.MPEG
        for pts in range(2):
            frame = av.VideoFrame(stream.width, stream.height, stream.pix_fmt)
            for plane, side, channel in zip(frame.planes, (32, 16, 16), range(3), strict=True):
                line = np.repeat([codes(p)[channel] for p in patches], side).astype("<u2")
                rows = np.zeros((plane.height, plane.line_size // 2), "<u2")
                rows[:, :len(line)] = line
                plane.update(rows.tobytes())
            frame.pts = pts
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def decoded(path):
    with av.open(str(path)) as container:
        return next(container.decode(video=0))


def middles(array, n):
    return [array[16, 32 * i + 16].tolist() for i in range(n)]


def test_documented_examples_hold():
    assert doctest.testmod(hdr).failed == 0


@pytest.mark.parametrize(("kind", "expected"), [("pq", (0, 158, 254)), ("hlg", (0, 131, 194))])
def test_greys_of_a_ten_bit_file_are_those_of_the_hand_calculation(tmp_path, kind, expected):
    """PQ's 0.5 is 92.2 cd/m² and its 0.75 983; HLG's 0.5 is 1000 · (1/12)^1.2 = 50.7, its 0.75 203.

    For the first, with whites of 203 and the peak at w = 1000/203 of them: x = 92.2/203 = 0.4544;
    x (1 + x/w²) / (1 + x) = 0.3183; 255 · 0.3183^(1/2.4) = 158. As it is stored: 128.
    """
    frame = decoded(write(tmp_path / "a.mp4", kind, [FILM[k] for k in ("black", "grey", "white")]))
    assert frame.format.name == "yuv420p10le" and frame.color_trc == TRANSFER[kind][0]
    seen = middles(video.to_rgb(frame), 3)
    np.testing.assert_allclose(seen, np.repeat(expected, 3).reshape(3, 3), atol=1)


def to_xyz(*corners):
    """Linear RGB of these primaries, of white D65, to CIE XYZ (SMPTE RP 177)."""
    columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in corners]).T
    white = np.array([0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])
    return columns * np.linalg.solve(columns, white)


def shown(light):
    """The curve, of linear light in cd/m²."""
    x, w = np.maximum(light, 0) / 203, 1000 / 203
    return 255 * np.clip(x * (1 + x / w**2) / (1 + x), 0, 1) ** (1 / 2.4)


@pytest.mark.parametrize("kind", TRANSFER)
@pytest.mark.parametrize("primaries", [ColorPrimaries.BT2020, ColorPrimaries.BT709])
def test_colours_keep_their_place_in_the_smaller_gamut(tmp_path, kind, primaries):
    """Wide primaries are turned into BT.709's in linear light; those of BT.709 stay."""
    frame = decoded(write(tmp_path / "a.mp4", kind, [FILM["orange"]] * 2, primaries))
    signal = np.array(FILM["orange"])
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = [s**2 / 3 if s <= 0.5 else (np.exp((s - c) / a) + b) / 12 for s in signal]
    light = scenes.pq_decode(1023 * signal) if kind == "pq" else 1000 * np.array(scene) * np.dot(
        (0.2627, 0.6780, 0.0593), scene) ** 0.2
    if primaries == ColorPrimaries.BT2020:
        wide = to_xyz((0.708, 0.292), (0.170, 0.797), (0.131, 0.046))
        narrow = to_xyz((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
        light = np.linalg.solve(narrow, wide @ light)
    np.testing.assert_allclose(middles(video.to_rgb(frame), 1)[0], shown(light), atol=2)


def test_a_tall_frame_is_the_same_in_bands(tmp_path, monkeypatch):
    frame = decoded(write(tmp_path / "a.mp4", "hlg", list(FILM.values())))
    whole = video.to_rgb(frame)
    monkeypatch.setattr(hdr, "BAND", 10)
    np.testing.assert_array_equal(video.to_rgb(frame), whole)
    assert whole.shape == (32, 128, 3) and whole.dtype == np.uint8


def test_key_frames_of_an_hdr_clip_are_tone_mapped_and_its_sdr_twin_is_not(tmp_path):
    """PQ's 0.5 as above; the same codes without the tag are 0.5 of 255."""
    write(tmp_path / "hdr.mp4", "pq", [FILM["grey"]] * 2)
    plain = tmp_path / "plain.mkv"
    with av.open(str(tmp_path / "hdr.mp4")) as old, av.open(str(plain), "w") as new:
        stream = new.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p10le"
        for frame in old.decode(video=0):
            frame.color_trc = ColorTrc.BT709
            new.mux(stream.encode(frame))
        new.mux(stream.encode(None))
    assert abs(video.key_frames(tmp_path / "hdr.mp4", 2) - 158.0).max() <= 1
    assert abs(video.key_frames(plain, 2) - 127.5).max() <= 1
