"""Authentic-like faults of an original: what user-made video carries before it is coded again.

Each function takes frames uint8[N, H, W, 3] RGB, a strength in [0, 1] (0 next to invisible, 1
awful) and a generator, and returns frames of the same shape. Lengths in pixels grow with the
frame's short side, because blur is seen relative to the picture.
"""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
from PIL import Image, ImageFilter

AVX2 = {"X86_V3", "AVX2"} & {*np.show_config("dicts")["SIMD Extensions"]["found"]}
X264 = {"x264-params": "asm=avx2"} if AVX2 else {}
"""With AVX-512 x264 decides otherwise, as its reciprocals are rounded otherwise. Kept from it, it
gives the bytes that it gives on processors without."""


def apply(name: str, strength: float, frames: np.ndarray, seed: int) -> np.ndarray:
    """Distort frames uint8[N, H, W, 3]; the same arguments give the same bytes.

    `name` may join several, as "exposure+noise": they follow each other.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"distortion {name}: expected a strength in [0, 1]; got {strength}")
    rng = np.random.default_rng(seed)
    for part in name.split("+"):
        if part not in DISTORTIONS:
            raise ValueError(f"distortion: expected one of {', '.join(DISTORTIONS)}; got {part!r}")
        frames = DISTORTIONS[part](frames, strength, rng)
    return frames


def draw(seed: int) -> tuple[str, float]:
    """A random fault and its strength; what users' video suffers most from comes most often."""
    rng = np.random.default_rng(seed)
    weights = np.array([WEIGHTS[name] for name in DISTORTIONS])
    name = rng.choice(list(DISTORTIONS), p=weights / weights.sum())
    return str(name), round(float(rng.uniform(0.1, 1)), 3)


def blur(frames, strength, rng):
    """Defocus: a Gaussian of 0.3 to 5 pixels at 540 lines."""
    soft = ImageFilter.GaussianBlur(0.3 + 4.7 * strength**1.5 * _unit(frames))
    return _each(frames, lambda image: image.filter(soft))


def motion_blur(frames, strength, rng):
    """Camera shake: the mean along a line, up to 22 pixels at 540 lines, in any direction."""
    angle, half = rng.uniform(0, np.pi), 11 * strength**1.5 * _unit(frames)
    steps = np.linspace(-half, half, 2 * int(np.ceil(half)) + 1)
    offsets = np.outer(steps, (np.sin(angle), np.cos(angle))).round().astype(int)
    reach, (_, height, width, _) = np.abs(offsets).max(), frames.shape
    padded = np.pad(frames, ((0, 0), (reach, reach), (reach, reach), (0, 0)), "edge")
    total = np.zeros(frames.shape, np.uint16)
    for dy, dx in offsets + reach:
        total += padded[:, dy:dy + height, dx:dx + width]
    return ((total + len(offsets) // 2) // len(offsets)).astype(np.uint8)


def noise(frames, strength, rng):
    """A dim sensor: Gaussian noise of 1 to 30 levels, new in every frame, weaker in chroma."""
    sigma = np.float32(1 + 29 * strength**1.3)
    noisy = np.empty_like(frames)
    for n, frame in enumerate(frames):
        field = rng.standard_normal((*frame.shape[:2], 1), dtype=np.float32)
        field = 0.85 * field + 0.5 * rng.standard_normal(frame.shape, dtype=np.float32)
        noisy[n] = np.clip(frame + sigma * field + 0.5, 0, 255)
    return noisy


def upscale(frames, strength, rng):
    """Too few pixels: made 1.05 to 7 times smaller, and enlarged again by one of three filters."""
    height, width = frames.shape[1:3]
    factor = 1.05 * (7 / 1.05) ** strength**1.3
    small = max(8, round(width / factor)), max(8, round(height / factor))
    enlarge = (Image.BICUBIC, Image.BILINEAR, Image.LANCZOS)[rng.integers(3)]
    return _each(frames, lambda im: im.resize(small, Image.BOX).resize((width, height), enlarge))


def recompress(frames, strength, rng):
    """A previous upload: H.264 at CRF 18 to 49, coded by a fast or a thorough preset."""
    preset = ("ultrafast", "veryfast", "medium")[rng.integers(3)]
    options = {"crf": str(round(18 + 31 * strength)), "preset": preset, "threads": "1"} | X264
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("libx264", rate=Fraction(25), options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    file.seek(0)
    with av.open(file) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def freeze(frames, strength, rng):
    """Dropped frames: pictures stand still for up to two thirds of the clip."""
    count = len(frames)
    held = round(strength * count * 2 / 3)
    start = int(rng.integers(0, count - held))
    shown = np.arange(count)
    shown[start:start + held + 1] = start
    return frames[shown]


def exposure(frames, strength, rng):
    """Underexposure: 0.05 to 1 stop too dark. Too bright is left out: VMAF takes it for better."""
    stops = -(0.05 + 0.95 * strength)
    # Gain acts on linear light; 2.2 is close enough to the transfer curve of all cameras.
    curve = np.clip((np.arange(256) / 255) * 2 ** (stops / 2.2), 0, 1) * 255
    return (curve + 0.5).astype(np.uint8)[frames]


DISTORTIONS = {f.__name__: f
               for f in (blur, motion_blur, noise, upscale, recompress, freeze, exposure)}

WEIGHTS = {"blur": 3, "motion_blur": 2, "noise": 2, "upscale": 4, "recompress": 6, "freeze": 1,
           "exposure": 1}


def _unit(frames: np.ndarray) -> float:
    """Short side over 540, at least 0.4: a pixel is the least that can be blurred."""
    return max(0.4, min(frames.shape[1:3]) / 540)


def _each(frames: np.ndarray, change) -> np.ndarray:
    return np.stack([np.asarray(change(Image.fromarray(frame))) for frame in frames])
