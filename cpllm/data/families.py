"""Procedural families of the built-in scenes, and the layers that `scenes.render` films.

A family is a function `(rng, width, height, frames, variant) -> list[Layer]`. Width and height are
the canvas's: the frame plus the margin that the camera moves in. The first layer is opaque and as
large as the canvas; the others are cut-outs that move on their own.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.fft
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from scipy import ndimage

PROSE = (
    "quality of moving pictures depends on what we see and how it was made light falls over the "
    "river while people walk along old streets every frame carries detail texture and noise that "
    "coding may lose when bits are few numbers 1984 2,048 37% and names such as Ada or Turing"
)
WORDS = PROSE.split()


@dataclass(frozen=True)
class Layer:
    """One flat thing before the camera.

    image: RGB or RGBA, or one of these per frame; its centre lies at `at` from the frame's centre.
    path: float[N, 2], its own displacement (x, y) in pixels; None stands still.
    spin: float[N], its own rotation in radians; None keeps upright.
    parallax: share of the camera's movement that it follows; 0 is pinned to the screen.
    sway: amplitude in pixels of a slow, smooth deformation, as by wind.
    """

    image: Image.Image | tuple[Image.Image, ...]
    at: tuple[float, float] = (0.0, 0.0)
    path: np.ndarray | None = None
    spin: np.ndarray | None = None
    parallax: float = 1.0
    sway: float = 0.0


# --- textures, colours, masks -------------------------------------------------------------------


def fractal(rng: np.random.Generator, width: int, height: int, slope: float = 1.2) -> np.ndarray:
    """float32[H, W] Gaussian field of zero mean, unit deviation, amplitude 1/frequency^slope."""
    rows, columns = (scipy.fft.next_fast_len(n, real=True) for n in (height, width))
    f = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(columns)[None]).astype(np.float32)
    f[0, 0] = 1
    noise = rng.standard_normal((2, *f.shape), dtype=np.float32)
    spectrum = (noise[0] + 1j * noise[1]) * f**-slope
    spectrum[0, 0] = 0
    field = scipy.fft.irfft2(spectrum, (rows, columns))[:height, :width]
    return (field - field.mean()) / field.std()


def picture(values: np.ndarray) -> Image.Image:
    """An image of float[H, W, 3|4] in [0, 255], clipped and rounded."""
    return Image.fromarray((np.clip(values, 0, 255) + 0.5).astype(np.uint8))


def tone(rng: np.random.Generator, base: tuple[float, ...], spread: float = 25.0):
    """A colour (r, g, b) near `base`: brightness varies more than hue, as in nature."""
    values = np.asarray(base) + rng.normal(0, spread) + rng.normal(0, spread / 3, 3)
    return tuple(int(v) for v in np.clip(values, 4, 251))


def gradient(width: int, height: int, stops: tuple[tuple[float, ...], ...]) -> np.ndarray:
    """float32[H, W, 3] from the first stop at the top to the last at the bottom."""
    rows = np.linspace(0, len(stops) - 1, height)
    column = np.stack([np.interp(rows, range(len(stops)), c) for c in zip(*stops, strict=True)], -1)
    return np.repeat(column[:, None].astype(np.float32), width, axis=1)


def outline(rng: np.random.Generator, x: float, y: float, radius: float, rough: float = 0.25,
            stretch: float = 1.0, points: int = 28) -> list[tuple[float, float]]:
    """A closed wobbly curve about (x, y): a circle with random harmonics, turned at random."""
    a = np.linspace(0, 2 * np.pi, points, endpoint=False)
    k = np.arange(2, 6)
    waves = np.cos(np.outer(a, k) + rng.uniform(0, 6.28, 4)) @ (rng.normal(0, rough, 4) / k)
    r, turn = radius * np.clip(1 + waves, 0.3, 1.7), rng.uniform(0, 6.28)
    u, v = r * np.cos(a) * stretch, r * np.sin(a) / stretch
    return list(zip(x + u * np.cos(turn) - v * np.sin(turn),
                    y + u * np.sin(turn) + v * np.cos(turn), strict=True))


def cut(rng: np.random.Generator, image: Image.Image, rough: float = 0.25) -> Image.Image:
    """An RGBA cut-out of the image with a wobbly, antialiased edge."""
    w, h = image.size
    mask = Image.new("L", (2 * w, 2 * h))
    ImageDraw.Draw(mask).polygon(outline(rng, w, h, 0.66 * min(w, h), rough), fill=255)
    image = image.convert("RGB")
    image.putalpha(mask.reduce(2))
    return image


def drift(rng: np.random.Generator, frames: int, lines: int, speed: float = 1.0) -> np.ndarray:
    """float32[N, 2]: a gently bent path centred on its middle frame, 0.1 to 1% of lines a frame."""
    t = np.arange(frames) - (frames - 1) / 2
    pace, turn, bend = rng.uniform(0.001, 0.01) * lines * speed, rng.uniform(0, 6.28), 0.05
    angle = turn + bend * rng.normal() * t
    return np.stack([pace * t * np.cos(angle), 0.6 * pace * t * np.sin(angle)], -1)


def font(size: float, style: str = "Sans") -> ImageFont.FreeTypeFont:
    """DejaVu as it lies in Matplotlib's wheel, so that every machine draws the same letters."""
    root = Path(importlib.util.find_spec("matplotlib").origin).parent
    return ImageFont.truetype(root / f"mpl-data/fonts/ttf/DejaVu{style}.ttf", max(6, int(size)))


def shaded(field: np.ndarray, relief: float, light: tuple[float, float]) -> np.ndarray:
    """float32[H, W]: 1 on flat ground, up to 1 ± relief on slopes facing the light (dx, dy)."""
    gy, gx = np.gradient(field)
    slope = gx * light[0] + gy * light[1]
    return 1 + relief * np.tanh(slope / slope.std())


def focused(rng: np.random.Generator, image: Image.Image, reach: float = 0.012) -> Image.Image:
    """The image with a shallow depth of field: parts in focus, others smooth, as behind a lens."""
    lines = min(image.size)
    depth = fractal(rng, *(n // 8 + 1 for n in image.size), 2.5) + rng.normal(0, 0.5)
    mask = Image.fromarray((255 / (1 + np.exp(-3 * depth))).astype(np.uint8))
    soft = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1) * reach * lines))
    return Image.composite(soft, image, mask.resize(image.size, Image.BICUBIC))


# --- families -----------------------------------------------------------------------------------

LEAVES = (
    ("autumn leaves on the ground", ((150, 70, 25), (190, 120, 30), (110, 45, 30), (95, 90, 35))),
    ("wet pebbles on a beach", ((120, 118, 112), (88, 92, 98), (150, 140, 122), (60, 62, 66))),
    ("pastel paper", ((215, 190, 175), (170, 200, 205), (205, 205, 160), (190, 170, 200))),
    ("mossy stones in the shade", ((50, 70, 35), (75, 78, 70), (38, 48, 30), (90, 85, 60))),
)


def leaves(rng, width, height, frames, variant):
    """Dead leaves: occluding shapes of power-law size, each with its own 1/f texture."""
    palette, lines = LEAVES[variant][1], min(width, height)
    flat, knobs = (Image.new("RGB", (2 * width, 2 * height), palette[i]) for i in (3, 0))
    pens = ImageDraw.Draw(flat), ImageDraw.Draw(knobs)
    least, area = rng.uniform(0.025, 0.07), width * height / lines**2
    # Inverse-transform draw from p(r) ~ r^-3: the same picture at every scale between the radii.
    radii = rng.uniform(0.35**-2, least**-2, int(0.18 * area / least**2))
    for r in np.sort(radii**-0.5 * lines)[::-1] * rng.uniform(0.7, 1.4, len(radii)):
        leaf(rng, pens, rng.uniform(0, (2 * width, 2 * height)), 2 * r, palette)
    image = textured(rng, flat.reduce(2), knobs.reduce(2))
    return [Layer(focused(rng, image), sway=0.004 * lines)]


def leaf(rng, pens, spot, radius, palette):
    """One leaf as nested shapes, lit from the upper left; `pens` draw colours and texture gains."""
    shape = np.array(outline(rng, 0, 0, radius, 0.3, rng.uniform(1, 1.6)))
    base = np.array(palette[rng.integers(4)]) * rng.uniform(0.7, 1.25)
    colour = np.array(tone(rng, base, 9))
    gains = tuple(int(v) for v in rng.integers(0, 256, 3))
    pens[1].polygon([*map(tuple, spot + shape)], fill=gains)
    steps = int(np.clip(radius / 8, 3, 10))
    for k in np.arange(steps) / steps:
        lit = tuple(int(v) for v in np.clip(colour * (0.6 + 0.6 * k), 0, 255))
        pens[0].polygon([*map(tuple, spot - 0.15 * k * radius + (1 - 0.85 * k) * shape)], fill=lit)


def textured(rng: np.random.Generator, flat: Image.Image, knobs: Image.Image) -> Image.Image:
    """Multiply flat colours by two textures, fine and coarse; `knobs` holds their local gains."""
    fine = fractal(rng, *flat.size, 0.7)
    coarse = fractal(rng, *flat.size, 1.4)
    gain = np.asarray(knobs, np.float32) / 255
    factor = 1 + 0.12 * gain[..., 0] ** 3 * fine + 0.15 * gain[..., 1] * coarse
    return picture(np.asarray(flat, np.float32) * factor[..., None])


LANDSCAPES = (
    ("snowy mountains under a clear sky", ((70, 120, 200), (150, 190, 230), (215, 228, 238)),
     (120, 125, 135), (70, 95, 50), 0.75),
    ("desert hills at sunset", ((70, 50, 110), (220, 120, 90), (250, 200, 120)),
     (150, 90, 60), (120, 80, 45), 0.0),
    ("green hills under drifting clouds", ((110, 150, 205), (180, 205, 230), (225, 230, 232)),
     (70, 105, 60), (85, 120, 40), 0.0),
    ("dark mountains at dusk", ((12, 16, 40), (50, 45, 85), (170, 100, 90)),
     (40, 42, 60), (22, 30, 24), 0.2),
)


def landscape(rng, width, height, frames, variant):
    """Fractal mountain ridges in haze under a cloudy sky, meadow in front, birds in the air."""
    _, sky, rock, grass, snow = LANDSCAPES[variant]
    scene = gradient(width, height, sky)
    clouds = np.clip(fractal(rng, width, height, 1.6) - rng.uniform(0, 0.8), 0, 1)[..., None]
    scene += clouds * (np.array(sky[-1], np.float32) + 25 - scene) * 0.9
    y = np.arange(height, dtype=np.float32)[:, None]
    for depth in range(5):
        near = (depth + 1) / 5
        ridge = height * (0.3 + 0.11 * depth) + 0.09 * height * fractal(rng, width, 8, 1.3)[0]
        relief = fractal(rng, width, height, 2.0)
        ground = np.array(rock if depth < 3 else grass, np.float32) * (0.8 + 0.3 * rng.random())
        if snow and depth < 3:
            cap = np.clip(2 - (y - ridge) / (0.05 * height) + relief, 0, 1)[..., None] * snow
            ground = ground + cap * (238 - ground)
        plants = 0.12 * near * fractal(rng, width, height, 1.0)
        lit = ground * (shaded(relief, 0.2 + 0.25 * near, (0.8, 0.5)) + plants)[..., None]
        hazy = lit + (1 - near) ** 1.3 * 0.85 * (np.array(sky[-1], np.float32) - lit)
        scene += np.clip(y - ridge + 0.5, 0, 1)[..., None] * (hazy - scene)
    lines = min(width, height)
    meadow = blades(rng, width, height // 3, 500, grass, 0.12)
    front = Layer(meadow, at=(0, 0.36 * height), parallax=1.25)
    return [Layer(picture(scene)), front, *birds(rng, width, height, frames, lines)]


def birds(rng, width, height, frames, lines):
    """Three dark birds that cross the sky with beating wings."""
    flock, heading = [], drift(rng, frames, lines, 1.6)
    for _ in range(3):
        w, beat = int(rng.uniform(0.05, 0.1) * lines) + 4, rng.uniform(0, 6.28)
        poses = []
        for n in range(frames):
            pose, lift = Image.new("RGBA", (4 * w, 4 * w), (20, 20, 25, 0)), np.sin(beat + 0.7 * n)
            wings = [(0, 2 * w - lift * w), (w, 1.8 * w), (2 * w, 2.2 * w), (3 * w, 1.8 * w),
                     (4 * w, 2 * w - lift * w), (2.3 * w, 2.5 * w), (1.7 * w, 2.5 * w)]
            ImageDraw.Draw(pose).polygon(wings, fill=(30, 28, 30, 255))
            poses.append(pose.reduce(4))
        spot = (rng.uniform(-0.35, 0.35) * width, rng.uniform(-0.4, -0.1) * height)
        flock.append(Layer(tuple(poses), spot, heading + drift(rng, frames, lines, 0.2)))
    return flock


def blades(rng, width, height, count, base, length):
    """RGBA strip of grass blades that grow from its lower edge, nearest last."""
    strip = Image.new("RGBA", (2 * width, 2 * height), (*base, 0))
    pen = ImageDraw.Draw(strip)
    for k in range(count):
        near = k / count
        x, y = rng.uniform(0, 2 * width), 2 * height * (0.45 + 0.6 * near)
        tall = 2 * width * length * rng.uniform(0.3, 0.8) * (0.4 + 0.6 * near)
        lean, wide = rng.normal(0, 0.3) * tall, (1.5 + 4 * near) * width / 960 + 0.8
        colour = tone(rng, np.array(base) * (0.6 + 0.6 * near), 18)
        pen.polygon([(x - wide, y), (x + 0.35 * lean - 0.7 * wide, y - 0.6 * tall),
                     (x + lean, y - tall), (x + 0.35 * lean + 0.7 * wide, y - 0.6 * tall),
                     (x + wide, y)], fill=(*colour, 255))
    return strip.reduce(2)


FOLIAGE = (
    ("tall grass in the wind", (70, 105, 35), (170, 190, 140)),
    ("dry reeds by the water", (165, 135, 80), (120, 140, 150)),
    ("dense undergrowth in a forest", (35, 70, 30), (40, 55, 40)),
    ("wild flowers in a meadow", (60, 110, 45), (150, 175, 200)),
)


def foliage(rng, width, height, frames, variant):
    """Thin blades and flowers over an out-of-focus background, swaying in the wind."""
    _, base, far = FOLIAGE[variant]
    lines = min(width, height)
    scene = bokeh(rng, width, height, base, far)
    tall = rng.uniform(0.35, 0.8) * lines / width
    for count, soft in ((200, 0.006), (int(rng.uniform(150, 700)), 0.0)):
        strip = blades(rng, width, height, count, base, tall)
        strip = strip.filter(ImageFilter.GaussianBlur(soft * lines)) if soft else strip
        scene.paste(strip, (0, 0), strip)
    movers = [Layer(blossom(rng, int(rng.uniform(0.06, 0.2) * lines)),
                    tuple(rng.uniform(-0.4, 0.4, 2) * (width, height)),
                    drift(rng, frames, lines, 0.6), rng.normal(0, 0.03) * np.arange(frames), 1.2)
              for _ in range(rng.integers(2, 7))]
    return [Layer(scene, sway=0.012 * lines), *movers]


def bokeh(rng, width, height, base, far):
    """RGB smooth background: light falling from above, discs far out of focus."""
    lines, light = min(width, height), np.array(far)
    image = picture(gradient(width, height, (light * 1.25, light, np.array(base) * 0.5)))
    pen = ImageDraw.Draw(image)
    for _ in range(70):
        x, y, r = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0.02, 0.1) * lines
        mix = light * 1.2 + (np.array(base) * 0.6 - light * 1.2) * (y / height + rng.normal(0, 0.2))
        pen.ellipse((x - r, y - r, x + r, y + r), fill=tone(rng, mix, 20))
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0.008, 0.03) * lines))


def blossom(rng, size):
    """RGBA flower: petals around a dark or yellow eye, shaded from the middle outwards."""
    image = Image.new("RGBA", (4 * size, 4 * size))
    pen, petals = ImageDraw.Draw(image), int(rng.integers(5, 14))
    hue = ((225, 70, 90), (240, 215, 90), (230, 225, 235), (140, 90, 200))[rng.integers(4)]
    for k in range(petals):
        a = 2 * np.pi * k / petals
        for s in (1.0, 0.8, 0.55):
            x, y = 2 * size * (1 + 0.6 * s * np.cos(a)), 2 * size * (1 + 0.6 * s * np.sin(a))
            r, colour = 0.62 * size * s, tone(rng, np.array(hue) * (0.55 + 0.45 * s), 8)
            pen.ellipse((x - r, y - r, x + r, y + r), fill=(*colour, 255))
    r = 0.5 * size
    pen.ellipse((2 * size - r, 2 * size - r, 2 * size + r, 2 * size + r), fill=(110, 70, 20, 255))
    return image.reduce(4)


WATER = (
    ("sunlit waves on the open sea", (12, 60, 90), (150, 195, 225), 1.0),
    ("a pond that mirrors trees at dusk", (18, 32, 22), (150, 120, 90), 0.35),
    ("shallow turquoise water over sand", (40, 140, 140), (225, 235, 215), 0.6),
    ("a grey river under an overcast sky", (60, 66, 66), (170, 175, 178), 0.8),
)


def water(rng, width, height, frames, variant):
    """Waves of a dispersive spectrum that reflect the sky, with balls adrift: a dynamic texture."""
    _, deep, sky, glint = WATER[variant]
    deep, sky = np.array(deep, np.float32), np.array(sky, np.float32)
    # Grazing view: more of the sky is mirrored further away, that is, higher in the picture.
    mirror = np.linspace(0.75, 0.3, height, dtype=np.float32)[:, None]
    poses = []
    for slope in waves(rng, width, height, frames):
        shine = np.clip(mirror + 0.22 * np.tanh(slope), 0, 1)[..., None]
        spark = 220 * glint * np.clip(slope - 2.2, 0, 1)[..., None]
        poses.append(picture(deep + shine * (sky - deep) + spark))
    lines = min(width, height)
    ball = sphere(rng, int(rng.uniform(0.06, 0.12) * lines), tone(rng, (190, 80, 50), 45))
    spots = rng.uniform(-0.35, 0.35, (2, 2)) * (width, height)
    return [Layer(tuple(poses)), *(Layer(ball, tuple(p), drift(rng, frames, lines)) for p in spots)]


def waves(rng, width, height, frames):
    """Per frame float32[H, W]: the surface's slope towards the viewer, of unit deviation."""
    rows, columns = (scipy.fft.next_fast_len(n, real=True) for n in (height, width))
    fy, fx = np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(columns)[None] * rng.uniform(2, 4)
    f = np.hypot(fx, fy).astype(np.float32) * min(width, height)
    crest = rng.uniform(4, 12)
    noise = rng.standard_normal((2, *f.shape), dtype=np.float32)
    start = (noise[0] + 1j * noise[1]) * (f > crest) / np.maximum(f, 1) ** rng.uniform(2.3, 3)
    # Deep water: the phase speed falls with the square root of the frequency.
    turn = np.exp(1j * rng.uniform(0.06, 0.12) * np.sqrt(f)).astype(np.complex64)
    start, scale = (start * fy * 1j).astype(np.complex64), None
    for _ in range(frames):
        slope = scipy.fft.irfft2(start, (rows, columns))[:height, :width]
        scale, start = scale or slope.std(), start * turn
        yield slope / scale


SOLIDS = (
    ("coloured balls and columns on a stone floor", (150, 145, 140), (190, 200, 215)),
    ("toy balls on a wooden table", (150, 100, 60), (215, 195, 170)),
    ("dark spheres on a checked floor at night", (60, 60, 75), (18, 20, 32)),
)


def solids(rng, width, height, frames, variant):
    """Shaded spheres and columns with cast shadows on a textured floor in perspective."""
    _, ground, wall = SOLIDS[variant]
    lines, horizon = min(width, height), rng.uniform(0.22, 0.38) * height
    scene = floor(rng, width, height, horizon, np.array(ground, np.float32), wall)
    canvas = picture(scene)
    movers = []
    for k in range(11):
        near = 0.15 + 0.85 * k / 10
        r = int(lines * (0.04 + 0.11 * near) * rng.uniform(0.7, 1.2)) + 3
        x, y = rng.uniform(0, width), horizon + (0.85 * height - horizon) * near
        colour = tone(rng, rng.uniform(30, 225, 3), 10)
        body = sphere(rng, r, colour) if rng.random() < 0.65 else column(rng, r, colour)
        canvas.paste((0, 0, 0), (int(x - r), int(y - r)), shadow(r))
        if k % 4 == 2:
            spot = (x - width / 2, y - body.height / 2 - height / 2)
            path = drift(rng, frames, lines, 1.3) * (1, 0.2)
            movers.append(Layer(body, spot, path, path[:, 0] / r if body.height == 2 * r else None))
        else:
            canvas.paste(body, (int(x - r), int(y - body.height)), body)
    return [Layer(canvas), *movers]


def floor(rng, width, height, horizon, ground, wall):
    """float32[H, W, 3]: a wall with a soft light on it, above a tiled, veined floor."""
    y = np.arange(height, dtype=np.float32)[:, None] - horizon
    depth = 0.4 * height / np.maximum(y, 1.5)
    across = (np.arange(width, dtype=np.float32)[None] - width / 2) / width * 2 * depth
    vein = fractal(rng, 512, 512, 1.1)
    u, v = 160 * across + 256 + 0 * depth, 240 * depth + 0 * across
    grain = ndimage.map_coordinates(vein, (v, u), order=1, mode="grid-wrap")
    tile = np.tanh(np.sin(6 * across) * np.sin(9 * depth) * 12 / (0.3 + depth**2))
    fade = 1 / (1 + 0.08 * depth**2)
    lower = ground * (1 + fade[..., None] * (0.14 * grain + 0.25 * tile)[..., None])
    glow = np.exp(-(across / depth * 1.2) ** 2 - (y / height * 1.5) ** 2)
    plaster = 0.6 + 0.5 * glow + 0.03 * fractal(rng, width, height, 1)
    upper = np.array(wall, np.float32) * plaster[..., None]
    return np.where(y[..., None] > 0, lower * (0.75 + 0.35 * glow)[..., None], upper)


def sphere(rng, radius, colour):
    """RGBA ball of the radius, lit from the upper left, with a veined or striped skin."""
    n = 2 * radius
    y, x = (np.mgrid[:n, :n].astype(np.float32) + 0.5 - radius) / radius
    z = np.sqrt(np.clip(1 - x**2 - y**2, 0, 1))
    diffuse = np.clip(-0.5 * x - 0.6 * y + 0.62 * z, 0, 1)
    skin = fractal(rng, n, n, rng.uniform(0.8, 1.6)) * 0.14
    if rng.random() < 0.5:
        bands = rng.uniform(4, 9) * np.arcsin(np.clip(y, -1, 1)) + 1.5 * skin
        skin = 0.35 * np.tanh(4 * np.sin(bands))
    shine = 190 * np.clip(-0.33 * x - 0.4 * y + 0.85 * z, 0, 1) ** 40
    body = np.array(colour) * ((0.22 + 0.85 * diffuse) * (1 + skin))[..., None] + shine[..., None]
    edge = np.clip((1 - np.hypot(x, y)) * radius + 0.5, 0, 1) * 255
    return picture(np.dstack([body, edge]))


def column(rng, radius, colour):
    """RGBA upright cylinder, three radii tall, with rough skin."""
    n, tall = 2 * radius, 3 * radius
    x = (np.arange(n, dtype=np.float32) + 0.5 - radius) / radius
    light = 0.25 + 0.8 * np.clip(0.7 * np.sqrt(1 - x**2) - 0.6 * x, 0, 1)
    skin = 1 + 0.13 * fractal(rng, n, tall, 1.0)
    body = np.array(colour) * (light[None] * skin)[..., None]
    y, cap = np.arange(tall, dtype=np.float32)[:, None], 0.25 * radius * np.sqrt(1 - x**2)[None]
    top = y - 0.25 * radius
    body[abs(top) < cap] = np.array(colour) * 1.15
    edge = np.clip(np.minimum(top + cap, tall - 1 - 0.5 * radius - top + cap) + 0.5, 0, 1)
    return picture(np.dstack([body, 255 * edge]))


def shadow(radius):
    """L mask of a soft oval shadow, cast to the lower right."""
    y, x = (np.mgrid[:2 * radius, :3 * radius].astype(np.float32) - radius) / radius
    dark = 150 * np.exp(-((x - 0.4) ** 2) / 0.5 - (y / 0.3) ** 2)
    return Image.fromarray(dark.astype(np.uint8))


INK = (25, 22, 30)

CARTOONS = (
    ("a cartoon village with houses and trees", ((120, 200, 240), (215, 240, 250)), (120, 190, 80)),
    ("a cartoon town at night", ((20, 24, 70), (70, 50, 120)), (40, 80, 70)),
    ("a cartoon beach with huts", ((90, 190, 235), (255, 225, 180)), (240, 215, 140)),
)


def cartoon(rng, width, height, frames, variant):
    """Flat fills with dark outlines, and two bouncing figures."""
    _, sky, ground = CARTOONS[variant]
    lines, image = min(width, height), picture(gradient(2 * width, 2 * height, sky))
    pen, line = ImageDraw.Draw(image), max(2, int(0.008 * lines))
    for _ in range(4):
        x, y = rng.uniform(0, 2 * width), rng.uniform(0.1, 0.6) * height
        r = rng.uniform(0.05, 0.12) * lines
        for cx in (x - 1.2 * r, x, x + 1.2 * r):
            pen.ellipse((cx - r, y - 0.8 * r, cx + r, y + 0.8 * r), (245, 245, 250))
    for k in range(3):
        colour = tone(rng, np.array(ground) * (0.75 + 0.13 * k), 8)
        hill(rng, pen, (2 * width, 2 * height), k, colour, (0.18 + 0.1 * k) * lines, line)
    crew = [Layer(figure(rng, int(rng.uniform(0.18, 0.3) * lines)),
                  (rng.uniform(-0.3, 0.3) * width, rng.uniform(0, 0.3) * height),
                  drift(rng, frames, lines, 1.5) + hop(rng, frames, lines)) for _ in range(2)]
    return [Layer(image.reduce(2)), *crew]


def hill(rng, pen, sides, k, colour, size, line):
    """The k-th hill from the back, with houses and trees on its ridge."""
    x = np.linspace(0, sides[0], 60)
    wave = np.sin(2 * x / sides[0] * rng.uniform(1.5, 4) + rng.uniform(0, 6.28))
    y = sides[1] * (0.475 + 0.15 * k + 0.05 * wave)
    ridge = list(zip(x, y, strict=True))
    pen.polygon([*ridge, sides, (0, sides[1])], fill=colour)
    pen.line(ridge, fill=INK, width=line)
    for i in rng.integers(3, 57, 5):
        draw = house if rng.random() < 0.5 else tree
        draw(rng, lambda kind, points, fill, i=i: getattr(pen, kind)(
            [(x[i] + size * u, y[i] + size * v) for u, v in points], fill, INK, line))


def hop(rng, frames, lines):
    """float[N, 2]: a bouncing up and down."""
    bounce = -np.abs(np.sin(rng.uniform(0.25, 0.5) * np.arange(frames) + rng.uniform(0, 3)))
    return np.stack([0 * bounce, 0.06 * lines * bounce], -1)


def house(rng, put):
    """A house in units of its size, its foot at the origin; `put(kind, points, fill)` draws it."""
    put("rectangle", ((-0.5, -0.8), (0.5, 0.1)), tone(rng, (225, 190, 150), 30))
    put("polygon", ((-0.62, -0.8), (0, -1.35), (0.62, -0.8)), tone(rng, (185, 70, 55), 30))
    put("rectangle", ((-0.1, -0.35), (0.12, 0.1)), (110, 70, 45))
    for x in (-0.38, 0.22):
        put("rectangle", ((x, -0.65), (x + 0.17, -0.42)), (250, 235, 150))


def tree(rng, put):
    """A tree with a crown of three balls, drawn as a house is."""
    crown = tone(rng, (60, 140, 70), 25)
    put("rectangle", ((-0.08, -0.7), (0.08, 0.1)), (115, 75, 45))
    for x, y in ((-0.28, -0.8), (0.28, -0.8), (0, -1.1)):
        put("ellipse", ((x - 0.36, y - 0.36), (x + 0.36, y + 0.36)), crown)


def figure(rng, size):
    """RGBA cartoon figure: a striped body with eyes."""
    n, line = 4 * size, max(3, size // 12)
    image = Image.new("RGBA", (n, n))
    pen, colour = ImageDraw.Draw(image), tone(rng, rng.uniform(90, 240, 3), 10)
    pen.ellipse((0.15 * n, 0.2 * n, 0.85 * n, 0.98 * n), colour, INK, line)
    for y in 0.45 + 0.08 * np.arange(5):
        pen.arc((0.2 * n, y * n, 0.8 * n, (y + 0.17) * n), 20, 160, INK, line // 2)
    for x in (0.36, 0.64):
        pen.ellipse(((x - 0.12) * n, 0.08 * n, (x + 0.12) * n, 0.36 * n), (250,) * 3, INK, line)
        pen.ellipse(((x - 0.03) * n, 0.19 * n, (x + 0.06) * n, 0.28 * n), INK)
    return image.reduce(4)


CITIES = (
    ("a city skyline at night with lit windows", ((8, 10, 28), (50, 35, 60)), 34, (250, 205, 120)),
    ("office towers in hazy daylight", ((140, 170, 205), (215, 220, 222)), 150, (70, 90, 110)),
    ("brick houses in evening light", ((90, 100, 150), (240, 180, 130)), 115, (245, 215, 150)),
)


def city(rng, width, height, frames, variant):
    """Rows of facades with windows, a street in front, cars that pass by."""
    _, sky, wall, pane = CITIES[variant]
    lines, image = min(width, height), picture(gradient(2 * width, 2 * height, sky))
    pen, brick = ImageDraw.Draw(image), (1.12, 0.9, 0.78) if variant == 2 else (1, 1, 1.06)
    for near in (0.25, 0.5, 0.75, 1.0):
        x, base = -0.1 * width, near * wall * np.array(brick) + (1 - near) * np.array(sky[1])
        while x < 2 * width:
            w = rng.uniform(0.14, 0.34) * lines * (1 + near)
            top = height * (0.52 * near + rng.uniform(-0.06, 0.5))
            pitch = rng.uniform(0.012, 0.026) * (1 + near) * lines
            tower(rng, pen, (x, top, x + w, 2 * height), tone(rng, base, 12), pane, pitch)
            x += w + rng.exponential(0.03) * lines
    pen.rectangle((0, 1.72 * height, 2 * width, 2 * height), tone(rng, (wall * 0.5,) * 3, 5))
    for x in np.arange(9) * 0.25 * width:
        pen.rectangle((x, 1.83 * height, x + 0.1 * width, 1.845 * height), (190, 190, 180))
    image = textured(rng, image.reduce(2), Image.new("RGB", (width, height), (170, 90, 0)))
    cars = [Layer(car(rng, int(rng.uniform(0.16, 0.26) * lines)),
                  (rng.uniform(-0.4, 0.4) * width, (0.36 + 0.05 * k) * height),
                  drift(rng, frames, lines, 2.0) * (1, 0)) for k in range(3)]
    return [Layer(image), *cars]


def tower(rng, pen, box, colour, pane, pitch):
    """A facade with a shaded edge and a grid of windows, each in its own state."""
    left, top, right, bottom = box
    wide, tall = pitch * rng.uniform(0.6, 1.3), pitch * rng.uniform(0.8, 1.6)
    pen.rectangle(box, colour)
    edge = left + 0.12 * (right - left)
    pen.rectangle((left, top, edge, bottom), tuple(int(c * 0.75) for c in colour))
    for y in np.arange(top + pitch, bottom, 2 * pitch):
        for x in np.arange(edge + 0.5 * pitch, right - pitch, 1.8 * pitch):
            lit = rng.random()
            shade = pane if lit < 0.45 else tuple(int(c * (0.35 + 0.5 * lit)) for c in colour)
            pen.rectangle((x, y, x + wide, y + tall), shade)


def car(rng, size):
    """RGBA car seen from the side, with shine and lamps."""
    w, h = 8 * size, 4 * size
    image, colour = Image.new("RGBA", (w, h)), tone(rng, rng.uniform(40, 220, 3), 15)
    pen = ImageDraw.Draw(image)
    cabin = ((0.2, 0.45), (0.32, 0.1), (0.66, 0.1), (0.8, 0.45))
    pen.polygon([(x * w, y * h) for x, y in cabin], (60, 75, 90))
    pen.rounded_rectangle((0.02 * w, 0.4 * h, 0.98 * w, 0.8 * h), 0.1 * h, colour)
    pen.rectangle((0.05 * w, 0.46 * h, 0.95 * w, 0.5 * h), tone(rng, np.array(colour) + 60, 5))
    for x in (0.22, 0.76):
        pen.ellipse((x * w - 0.2 * h, 0.6 * h, x * w + 0.2 * h, h), (15, 15, 18))
        pen.ellipse((x * w - 0.1 * h, 0.7 * h, x * w + 0.1 * h, 0.9 * h), (150, 150, 155))
    pen.rectangle((0.93 * w, 0.5 * h, 0.98 * w, 0.6 * h), (255, 245, 200))
    return image.reduce(4)


TEXTS = (
    ("a page of printed text that scrolls", "Serif", (238, 234, 224), (35, 32, 30), 0.035),
    ("a code editor with coloured lines", "SansMono", (28, 30, 38), (200, 205, 200), 0.032),
    ("closing credits on black", "Sans-Bold", (6, 6, 8), (225, 225, 225), 0.05),
    ("a slide with headlines and a picture", "Sans", (250, 250, 252), (30, 50, 90), 0.055),
)


def text(rng, width, height, frames, variant):
    """Scrolling letters over paper, an editor, credits or a slide."""
    _, style, paper, ink, size = TEXTS[variant]
    lines = min(width, height)
    size *= lines * rng.uniform(0.85, 1.25)
    back = np.array(paper, np.float32) * (1 + 0.02 * fractal(rng, width, height, 1.3))[..., None]
    back *= gradient(width, height, ((0.95,) * 3, (1.02,) * 3))
    sheet = Image.new("RGBA", (width, 2 * height), (*ink, 0))
    pen, face = ImageDraw.Draw(sheet), font(size, style)
    code = style == "SansMono"
    for y in np.arange(0, 2 * height, 1.45 * size):
        indent = rng.integers(0, 4) * 2 * size if code else 0.04 * width
        words = " ".join(rng.choice(WORDS, int(rng.integers(4, 24))))
        colour = tone(rng, rng.uniform(80, 240, 3), 5) if code else tone(rng, ink, 6)
        pen.text((indent, y), words, font=face, fill=colour)
    speed = -rng.uniform(0.004, 0.015) * lines * np.arange(frames)
    scroll = Layer(sheet, path=np.stack([0 * speed, speed], -1))
    side = int(rng.uniform(0.3, 0.5) * lines)
    inset = np.dstack([b + 45 * fractal(rng, side, side, 1.5) for b in rng.uniform(60, 200, 3)])
    spot = tuple(rng.uniform(-0.3, 0.3, 2) * lines)
    return [Layer(picture(back)), scroll,
            Layer(cut(rng, picture(inset)), spot, drift(rng, frames, lines))]


GAMES = (
    ("a side-scrolling platform game", ((60, 110, 200), (150, 200, 240)), (150, 95, 55)),
    ("a retro space shooter with pixel-art enemies", ((5, 5, 20), (25, 10, 45)), (80, 80, 110)),
    ("a top-down dungeon game with monsters", ((50, 42, 48), (70, 60, 62)), (120, 112, 105)),
)


def game(rng, width, height, frames, variant):
    """Pixel-art tiles, sprites on their own courses and a pinned score line."""
    _, sky, block = GAMES[variant]
    lines, zoom = min(width, height), max(1, round(min(width, height) / 200))
    w, h = -(-width // zoom), -(-height // zoom)
    image = picture(gradient(w, h, sky) + rng.normal(0, 4, (h, w, 1)))
    for y in range(0, h, 16):
        for x in range(0, w, 16):
            solid = y > 0.75 * h or rng.random() < (0.12, 0.02, 0.35)[variant]
            if solid:
                image.paste(tile(rng, block), (x, y))
    back = image.resize((w * zoom, h * zoom), Image.NEAREST).crop((0, 0, width, height))
    hoard = [Layer(monster(rng, zoom * int(rng.integers(1, 3))),
                   tuple(rng.uniform(-0.4, 0.4, 2) * (width, height)),
                   drift(rng, frames, lines, 2.0) + hop(rng, frames, lines)) for _ in range(9)]
    score, words = Image.new("RGBA", (width, int(0.09 * lines)), (0, 0, 0, 90)), rng.integers(10**6)
    ImageDraw.Draw(score).text((0.12 * width, 0.01 * lines), f"SCORE {words:07d}   LIVES x3",
                               "white", font(0.06 * lines, "SansMono-Bold"))
    return [Layer(back), *hoard, Layer(score, (0, -0.38 * height), parallax=0.0)]


def tile(rng, base):
    """RGB 16 x 16 block with a bevel and speckles."""
    block = np.array(base) * (1 + 0.12 * rng.standard_normal((16, 16, 1)))
    block[:2], block[:, :2] = 1.4 * block[:2], 1.2 * block[:, :2]
    block[-2:], block[:, -2:] = 0.6 * block[-2:], 0.7 * block[:, -2:]
    return picture(block)


def monster(rng, zoom):
    """RGBA mirror-symmetric pixel-art creature of 12 x 12 big pixels, with two eyes."""
    half = rng.random((12, 6)) < np.linspace(0.35, 0.85, 6)
    body = np.hstack([half, half[:, ::-1]])
    colours = np.stack([tone(rng, rng.uniform(60, 230, 3), 10) for _ in range(3)])
    pick = rng.integers(0, 3, (12, 6))
    rgb = colours[np.hstack([pick, pick[:, ::-1]])].astype(np.float32)
    rgb[4:6, [3, 8]], body[4:6, [3, 8]] = 250, True
    return picture(np.dstack([rgb, 255.0 * body])).resize((12 * zoom, 12 * zoom), Image.NEAREST)


def collage(rng, width, height, frames, photos):
    """Dead leaves whose leaves are cut from photographs: natural statistics at any size."""
    lines = min(width, height)
    canvas = snip(rng, photos, max(width, height)).crop((0, 0, width, height))
    radii = rng.uniform(0.4**-2, rng.uniform(0.08, 0.14) ** -2, 60) ** -0.5
    for r in np.sort(radii)[::-1] * lines:
        piece = cut(rng, snip(rng, photos, int(2 * r)), 0.35)
        x, y = rng.uniform(-r, (width - r, height - r))
        shade = piece.getchannel("A").filter(ImageFilter.BoxBlur(3)).point(lambda v: v // 2)
        canvas.paste((10, 10, 12), (int(x + 0.04 * r), int(y + 0.04 * r)), shade)
        canvas.paste(piece, (int(x), int(y)), piece)
    movers = [Layer(cut(rng, snip(rng, photos, int(size * lines))),
                    tuple(rng.uniform(-0.35, 0.35, 2) * (width, height)),
                    drift(rng, frames, lines), rng.normal(0, 0.02) * np.arange(frames))
              for size in rng.uniform(0.18, 0.4, 4)]
    return [Layer(focused(rng, canvas), sway=0.006 * lines), *movers]


def snip(rng, photos, side):
    """RGB square window of a random photograph, mirrored at random, hardly ever enlarged."""
    photo = photos[rng.choice([k for k, p in enumerate(photos) if min(p.size) > 0.7 * side]
                              or [np.argmax([min(p.size) for p in photos])])]
    window = int(np.clip(rng.uniform(0.8, 2.0) * side, 16, min(photo.size)))
    x, y = (int(rng.integers(0, n - window + 1)) for n in photo.size)
    piece = photo.resize((side, side), Image.LANCZOS, (x, y, x + window, y + window))
    return piece.transpose(Image.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else piece


def caption(rng, width, height):
    """A line of text or a mark pinned over the picture, as users' videos often carry."""
    lines = min(width, height)
    words = " ".join(rng.choice(WORDS, int(rng.integers(1, 6))))
    face = font(rng.uniform(0.04, 0.085) * lines, rng.choice(("Sans-Bold", "Sans", "Serif-Bold")))
    sheet = Image.new("RGBA", (width, int(0.14 * lines)))
    ink = ((255, 255, 255, 255), (250, 220, 60, 255), (255, 255, 255, 120))[rng.integers(3)]
    ImageDraw.Draw(sheet).text((width / 2, 0.07 * lines), words, ink, face, "mm",
                               stroke_width=int(0.006 * lines), stroke_fill=(0, 0, 0, ink[3]))
    return Layer(sheet, (0, rng.choice((-0.33, 0.33)) * height), parallax=0.0)
