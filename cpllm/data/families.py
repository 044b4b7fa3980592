"""Procedural families of the built-in scenes, and the layers that `scenes.render` films.

A family is a function `(rng, width, height, frames, variant) -> list[Layer]`. Width and height are
the canvas's: the frame plus the margin that the camera moves in. The first layer is opaque and as
large as the canvas; the others are cut-outs that move on their own. Palette, contrast, spectral
slope, counts, sizes and speeds are drawn from `rng`, so that each seed looks like another film.
"""

from __future__ import annotations

import colorsys
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
INK = (25, 22, 30)


@dataclass(frozen=True)
class Layer:
    """One flat thing before the camera.

    image: RGB or RGBA, or one of these per frame; its centre lies at `at` from the frame's centre.
    path: float[N, 2], its own displacement (x, y) in pixels; None stands still.
    spin: float[N], its own rotation in radians; None keeps upright.
    parallax: share of the camera's movement that it follows; 0 is pinned to the screen.
    """

    image: Image.Image | tuple[Image.Image, ...]
    at: tuple[float, float] = (0.0, 0.0)
    path: np.ndarray | None = None
    spin: np.ndarray | None = None
    parallax: float = 1.0


# --- textures, colours, masks -------------------------------------------------------------------


def fractal(rng: np.random.Generator, width: int, height: int, slope: float = 1.2) -> np.ndarray:
    """float32[H, W] Gaussian field of zero mean, unit deviation, amplitude 1/frequency^slope."""
    rows, columns = (scipy.fft.next_fast_len(n, real=True) for n in (height, width))
    f = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(columns)[None]).astype(np.float32)
    f[0, 0] = 1
    noise = rng.standard_normal((*f.shape, 2), dtype=np.float32)
    spectrum = noise.view(np.complex64)[..., 0] * f ** np.float32(-slope)
    spectrum[0, 0] = 0
    field = scipy.fft.irfft2(spectrum, (rows, columns))[:height, :width]
    return (field - field.mean()) / field.std()


def picture(values: np.ndarray) -> Image.Image:
    """An image of float[H, W, 3|4] in [0, 255], clipped and rounded."""
    return Image.fromarray((np.clip(values, 0, 255) + 0.5).astype(np.uint8))


def palette(rng: np.random.Generator, count: int, value: float = 0.55) -> np.ndarray:
    """float[count, 3] in 0–255: hues near or far apart, dull or vivid, about a brightness."""
    hue = rng.random() + rng.normal(0, rng.uniform(0.02, 0.3), count)
    saturation = np.clip(rng.uniform(0.05, 0.75) + rng.normal(0, 0.12, count), 0, 1)
    bright = np.clip(value + rng.normal(0, rng.uniform(0.06, 0.28), count), 0.07, 0.97)
    hsv = zip(hue % 1, saturation, bright, strict=True)
    return 255 * np.array([colorsys.hsv_to_rgb(*colour) for colour in hsv])


def tone(rng: np.random.Generator, base, spread: float = 25.0) -> tuple[int, ...]:
    """A colour (r, g, b) near `base`: brightness varies more than hue, as in nature."""
    values = np.asarray(base) + rng.normal(0, spread) + rng.normal(0, spread / 3, 3)
    return tuple(int(v) for v in np.clip(values, 4, 251))


def gradient(width: int, height: int, stops) -> np.ndarray:
    """float32[H, W, 3] from the first stop at the top to the last at the bottom."""
    rows = np.linspace(0, len(stops) - 1, height)
    column = np.stack([np.interp(rows, range(len(stops)), c) for c in zip(*stops, strict=True)], -1)
    return np.repeat(column[:, None].astype(np.float32), width, axis=1)


def textured(rng: np.random.Generator, width: int, height: int, base, depth: float) -> np.ndarray:
    """float32[H, W, 3]: colour `base` times 1/f texture of random slope, coarse hue drift."""
    fine = 1 + depth * fractal(rng, width, height, rng.uniform(0.7, 1.6))
    hue = ndimage.zoom(fractal(rng, 24, 24, 1.5), (height / 24, width / 24), order=1)
    drift = rng.normal(0, 0.12, 3).astype(np.float32) * hue[:height, :width, None]
    return np.asarray(base, np.float32) * (fine[..., None] + drift)


def outline(rng: np.random.Generator, radius: float, rough: float = 0.25, stretch: float = 1.0,
            points: int = 26) -> np.ndarray:
    """float[points, 2]: a closed wobbly curve about 0, a circle with harmonics, turned."""
    a = np.linspace(0, 2 * np.pi, points, endpoint=False)
    k = np.arange(2, 6)
    waves = np.cos(np.outer(a, k) + rng.uniform(0, 6.28, 4)) @ (rng.normal(0, rough, 4) / k)
    r, turn = radius * np.clip(1 + waves, 0.3, 1.7), rng.uniform(0, 6.28)
    u, v = r * np.cos(a) * stretch, r * np.sin(a) / stretch
    return np.stack([u * np.cos(turn) - v * np.sin(turn), u * np.sin(turn) + v * np.cos(turn)], -1)


def cut(rng: np.random.Generator, image: Image.Image, rough: float = 0.25) -> Image.Image:
    """An RGBA cut-out of the image with a wobbly, antialiased edge."""
    w, h = image.size
    mask = Image.new("L", (2 * w, 2 * h))
    edge = outline(rng, 0.66 * min(w, h), rough) + np.array((w, h))
    ImageDraw.Draw(mask).polygon([*map(tuple, edge)], fill=255)
    image = image.convert("RGB")
    image.putalpha(mask.reduce(2))
    return image


def drift(rng: np.random.Generator, frames: int, lines: int, speed: float = 1.0) -> np.ndarray:
    """float[N, 2]: a gently bent path about its middle frame, 0.05 to 1.2% of lines a frame."""
    t = np.arange(frames) - (frames - 1) / 2
    pace = np.exp(rng.uniform(np.log(5e-4), np.log(0.012))) * lines * speed
    angle = rng.uniform(0, 6.28) + 0.05 * rng.normal() * t
    return np.stack([pace * t * np.cos(angle), 0.6 * pace * t * np.sin(angle)], -1)


def hop(rng: np.random.Generator, frames: int, lines: int) -> np.ndarray:
    """float[N, 2]: a bouncing up and down."""
    bounce = -np.abs(np.sin(rng.uniform(0.1, 0.5) * np.arange(frames) + rng.uniform(0, 3)))
    return np.stack([0 * bounce, 0.06 * lines * bounce], -1)


def somewhere(rng: np.random.Generator, width: int, height: int, reach: float = 0.38):
    """A spot (x, y) off the frame's centre."""
    return tuple(rng.uniform(-reach, reach, 2) * (width, height))


def font(size: float, style: str = "Sans") -> ImageFont.FreeTypeFont:
    """DejaVu as it lies in Matplotlib's wheel, so that every machine draws the same letters."""
    root = Path(importlib.util.find_spec("matplotlib").origin).parent
    return ImageFont.truetype(root / f"mpl-data/fonts/ttf/DejaVu{style}.ttf", max(6, int(size)))


def prose(rng: np.random.Generator, least: int, most: int) -> str:
    """Some words in no order."""
    return " ".join(rng.choice(PROSE.split(), int(rng.integers(least, most))))


def shaded(field: np.ndarray, relief: float, light: tuple[float, float]) -> np.ndarray:
    """float32[H, W]: 1 on flat ground, up to 1 ± relief on slopes facing the light (dx, dy)."""
    gy, gx = np.gradient(field)
    slope = gx * light[0] + gy * light[1]
    return 1 + relief * np.tanh(slope / slope.std())


def discs(rng: np.random.Generator, width: int, height: int, count: int, sizes, colours) -> tuple:
    """RGB lights out of focus on black, and the same in focus, to be added to a dark picture."""
    soft, sharp = Image.new("RGB", (width, height)), Image.new("RGB", (width, height))
    for _ in range(count):
        x, y, r = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(*sizes)
        colour = tone(rng, colours[rng.integers(len(colours))], 20)
        ImageDraw.Draw(soft).ellipse((x - r, y - r, x + r, y + r), colour)
        ImageDraw.Draw(sharp).ellipse((x - r / 6, y - r / 6, x + r / 6, y + r / 6), colour)
    return soft, sharp


# --- nature -------------------------------------------------------------------------------------


def leaves(rng, width, height, frames, variant):
    """Dead leaves: occluding shapes of power-law size, each with its own colour and texture."""
    lines, count = min(width, height), rng.integers(4, 9)
    colours = palette(rng, count)
    least, area = rng.uniform(0.02, 0.06), width * height / lines**2
    # Inverse-transform draw from p(r) ~ r^-3: the same picture at every scale between the radii.
    largest = rng.uniform(0.15, 0.45)
    radii = rng.uniform(largest**-2, least**-2, int(0.16 * area / least**2)) ** -0.5 * lines
    canvas = mosaic(rng, width, height, np.sort(radii)[::-1], colours, variant)
    movers = []
    for _ in range(rng.integers(1, 6)):
        side = int(rng.uniform(0.08, 0.3) * lines) + 8
        piece = picture(textured(rng, side, side, colours[rng.integers(count)], 0.18))
        movers.append(Layer(cut(rng, piece, 0.4), somewhere(rng, width, height),
                            drift(rng, frames, lines), rng.normal(0, 0.02) * np.arange(frames)))
    return [Layer(canvas), *movers]


def mosaic(rng, width, height, radii, colours, variant) -> Image.Image:
    """Shapes painted large to small; colour, shading and texture are looked up by shape."""
    n, sides, stretch = len(radii), (26, 26, 4, 3, 12)[variant], rng.uniform(1, 2)
    spots = rng.uniform(0, (2 * width, 2 * height), (n, 2))
    ids = Image.new("I", (2 * width, 2 * height))
    for i, (spot, r) in enumerate(zip(spots, radii, strict=True)):
        shape = outline(rng, 2 * r, (0.3, 0.06, 0.1, 0.2, 0.6)[variant], stretch, sides)
        ImageDraw.Draw(ids).polygon([*map(tuple, spot + shape)], fill=i)
    ids = np.asarray(ids)
    paint = colours[rng.integers(len(colours), size=n)] * rng.uniform(0.6, 1.3, (n, 1))
    flat = picture(paint + rng.normal(0, 7, (n, 3)))  # as a picture of n x 1, for its rounding
    flat = Image.fromarray(np.asarray(flat)[ids]).reduce(2)
    ids = ids[::2, ::2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    tilt = (rng.normal(0, 0.25, (2, n)) / radii).astype(np.float32)
    light = 1 + tilt[0][ids] * (x - spots[ids, 0] / 2) + tilt[1][ids] * (y - spots[ids, 1] / 2)
    depth = (rng.uniform(0.03, 0.25) * rng.random((2, n)) ** 2).astype(np.float32)
    for k, slope in enumerate(rng.uniform((0.5, 1.0), (1.0, 2.0))):
        light += depth[k][ids] * fractal(rng, width, height, slope)
    return picture(np.asarray(flat, np.float32) * np.clip(light, 0.2, 1.8)[..., None])


SKIES = (((70, 120, 200), (150, 190, 230), (215, 228, 238)),
         ((70, 50, 110), (220, 120, 90), (250, 200, 120)),
         ((110, 150, 205), (180, 205, 230), (225, 230, 232)),
         ((30, 34, 62), (70, 62, 100), (190, 120, 100)))
GROUNDS = ((120, 125, 135), (150, 90, 60), (70, 105, 60), (50, 52, 72))


def terrain(rng, width, height, frames, variant):
    """Fractal mountain ridges in haze under a cloudy sky, grass in front, birds in the air."""
    sky, lines = np.array(SKIES[variant]) + rng.normal(0, 12, 3), min(width, height)
    rock = np.array(tone(rng, GROUNDS[variant], 15), np.float32)
    relief = fractal(rng, width, height, rng.uniform(1.5, 2.1))
    plants = fractal(rng, width, height, rng.uniform(0.5, 1.1))
    scene = gradient(width, height, sky)
    clouds = np.clip(np.flip(relief) - rng.uniform(0, 1), 0, 1)[..., None] * 0.9
    scene += clouds * (sky[-1].astype(np.float32) + 25 - scene)
    y, count = np.arange(height, dtype=np.float32)[:, None], int(rng.integers(2, 6))
    snow, haze = variant == 0, rng.uniform(0.5, 1)
    for depth in range(count):
        near = (depth + 1) / count
        ridge = height * (0.25 + 0.5 * near * rng.uniform(0.8, 1))
        ridge = ridge + rng.uniform(0.03, 0.12) * height * fractal(rng, width, 8, 1.3)[0]
        shift = tuple(rng.integers(0, (height, width)))
        bumps = np.roll(relief, shift, (0, 1))
        lit = shaded(bumps, 0.2 + 0.3 * near, (0.8, 0.5)) + 0.14 * near * np.roll(plants, shift)
        ground = rock * rng.uniform(0.7, 1.15) * lit[..., None]
        if snow and near < 0.8:
            cap = np.clip(2 - (y - ridge) / (0.05 * height) + bumps, 0, 1)[..., None]
            ground += 0.8 * cap * (238 * lit[..., None] - ground)
        ground += (1 - near) * haze * (sky[-1].astype(np.float32) - ground)
        scene += np.clip(y - ridge + 0.5, 0, 1)[..., None] * (ground - scene)
    strip = blades(rng, width, height // 3, int(rng.integers(100, 500)), 0.7 * rock)
    front = Layer(strip, at=(0, 0.38 * height), parallax=1.25)
    return [Layer(picture(scene)), front, *birds(rng, width, height, frames, lines)]


def birds(rng, width, height, frames, lines):
    """Dark birds that cross the sky with beating wings."""
    flock, heading = [], drift(rng, frames, lines, 1.6)
    for _ in range(rng.integers(1, 4)):
        w, beat = int(rng.uniform(0.03, 0.09) * lines) + 4, rng.uniform(0, 6.28)
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


def blades(rng, width, height, count, base, length=0.12):
    """RGBA strip of grass blades that grow from its lower edge, nearest last."""
    strip = Image.new("RGBA", (2 * width, 2 * height), (*map(int, base), 0))
    pen = ImageDraw.Draw(strip)
    for near in np.arange(count) / count:
        x, y = rng.uniform(0, 2 * width), 2 * height * (0.45 + 0.6 * near)
        tall = 2 * width * length * rng.uniform(0.3, 0.8) * (0.4 + 0.6 * near)
        lean, wide = rng.normal(0, 0.3) * tall, (1.5 + 4 * near) * width / 960 + 0.8
        colour = tone(rng, np.array(base) * (0.6 + 0.7 * near), 18)
        pen.polygon([(x - wide, y), (x + 0.35 * lean - 0.7 * wide, y - 0.6 * tall),
                     (x + lean, y - tall), (x + 0.35 * lean + 0.7 * wide, y - 0.6 * tall),
                     (x + wide, y)], fill=(*colour, 255))
    return strip.reduce(2)


# --- what looks degraded and isn't (Figure 1) ---------------------------------------------------


def lowlight(rng, width, height, frames, variant):
    """Night: most of the picture near black, a few lamps with halos, lit windows or a moon."""
    lines, dark = min(width, height), rng.uniform(8, 34)
    base = palette(rng, 3, 0.6)
    scene = textured(rng, width, height, dark * base[0] / max(base[0].mean(), 1), 0.3)
    scene *= gradient(width, height, (np.full(3, rng.uniform(0.3, 1)), np.full(3, 1.2)))
    image = picture(scene)
    pen, x = ImageDraw.Draw(image), -0.1 * width
    while variant != 1 and x < width:  # silhouettes: houses, trunks or heads
        w, top = rng.uniform(0.06, 0.3) * lines, rng.uniform(0.1, 0.8) * height
        shade = tone(rng, (dark * 0.5,) * 3, 3)
        if variant == 0:
            facade(rng, pen, (x, top, x + w, height), shade, base[1] * 0.7 + 60)
        else:
            crown = outline(rng, w, 0.3, 1.3) + np.array((x, height - w / 2))
            pen.polygon([*map(tuple, crown)], shade)
        x += w * rng.uniform(0.7, 2)
    sizes = (0.03 * lines, 0.12 * lines)
    soft, sharp = discs(rng, width, height, int(rng.integers(3, 12)), sizes, base * 0.6 + 90)
    glow = np.asarray(soft.filter(ImageFilter.GaussianBlur(0.04 * lines)), np.float32)
    scene = np.asarray(image, np.float32) + rng.uniform(0.3, 0.7) * glow + np.asarray(sharp)
    lamp = Image.merge("RGBA", (*sharp_lamp(lines, tone(rng, base[2] * 0.5 + 110, 15)),))
    passing = [Layer(lamp, somewhere(rng, width, height), drift(rng, frames, lines, 1.5))
               for _ in range(rng.integers(1, 5))]
    return [Layer(picture(scene)), *passing]


def sharp_lamp(lines, colour) -> list[Image.Image]:
    """Channels of a small light with a halo."""
    n = int(0.1 * lines) // 2 * 2 + 8
    y, x = np.mgrid[:n, :n].astype(np.float32) + 0.5 - n / 2
    r = np.hypot(x, y) / (n / 2)
    halo = np.clip(1.6 * np.exp(-5 * r) * (1 - r), 0, 1)
    return [Image.new("L", (n, n), c) for c in colour] + [
        Image.fromarray((255 * halo).astype(np.uint8))]


def facade(rng, pen, box, colour, pane):
    """A house front with a grid of windows, some of them lit."""
    left, top, right, bottom = box
    pen.rectangle(box, colour)
    pitch = (right - left) / rng.integers(3, 8)
    for y in np.arange(top + pitch / 2, bottom, pitch * 1.4):
        for x in np.arange(left + pitch / 4, right - pitch / 2, pitch):
            if rng.random() < 0.4:
                pen.rectangle((x, y, x + pitch / 2, y + pitch * 0.7), tone(rng, pane, 30))


def bokeh(rng, width, height, frames, variant):
    """A sharp subject before a background far out of focus; the blur is depth, not a fault."""
    lines, colours = min(width, height), palette(rng, 5, rng.uniform(0.3, 0.7))
    back = gradient(width, height, colours[:3]) + 12 * fractal(rng, width, height, 2)[..., None]
    image, pen_sizes = picture(back), (0.02 * lines, 0.11 * lines)
    soft, _ = discs(rng, width, height, int(rng.integers(15, 80)), pen_sizes, colours)
    mask = soft.convert("L").point(lambda v: min(255, 4 * v))
    image.paste(soft, (0, 0), mask)
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.008, 0.035) * lines))
    subjects = []
    for _ in range(rng.integers(1, 4)):
        side = int(rng.uniform(0.28, 0.6) * lines)
        body = subject(rng, side, colours[rng.integers(3, 5)], variant)
        spin = rng.normal(0, 0.01) * np.arange(frames)
        subjects.append(Layer(body, somewhere(rng, width, height, 0.28),
                              drift(rng, frames, lines, 0.6), spin, 1.2))
    if rng.random() < 0.5:
        strip = blades(rng, width, height, int(rng.integers(40, 300)), colours[1], 0.4)
        subjects.append(Layer(strip, (0, 0.2 * height), None, None, 1.3))
    return [Layer(image, parallax=0.8), *subjects]


def subject(rng, side, colour, variant):
    """RGBA thing in focus: a blossom, a ball, a fruit-like body or a cut stone."""
    if variant == 0:
        return blossom(rng, side, colour)
    if variant == 1:
        return sphere(rng, side // 2, colour)
    body = textured(rng, side, side, colour, rng.uniform(0.1, 0.3))
    body *= shaded(fractal(rng, side, side, 1.7), 0.4, (0.7, 0.6))[..., None]
    return cut(rng, picture(body), 0.15 if variant == 2 else 0.5)


def blossom(rng, size, hue):
    """RGBA flower: veined petals around a dark or yellow eye, shaded from the middle outwards."""
    image = Image.new("RGBA", (2 * size, 2 * size))
    pen, petals = ImageDraw.Draw(image), int(rng.integers(5, 22))
    for s in (1.0, 0.8, 0.6, 0.4):
        for a in 2 * np.pi * (np.arange(petals) + s) / petals:
            tip, flank = 0.97 * size * s, 2.6 * s * size / petals
            out, side = np.array((np.cos(a), np.sin(a))), np.array((-np.sin(a), np.cos(a)))
            edge = [out * u * tip + side * v * flank + size
                    for u, v in ((0, 0), (0.55, -1), (0.9, -0.6), (1, 0), (0.9, 0.6), (0.55, 1))]
            colour = tone(rng, np.asarray(hue) * (0.6 + 0.5 * s), 8)
            pen.polygon([*map(tuple, edge)], (*colour, 255))
            pen.line([(size, size), tuple(edge[3])], (*tone(rng, np.array(colour) * 0.8, 4), 255))
    r = rng.uniform(0.12, 0.25) * size
    pen.ellipse((size - r, size - r, size + r, size + r), (*tone(rng, (120, 85, 25), 20), 255))
    for x, y in rng.normal(0, 0.4 * r, (60, 2)) + size:
        pen.ellipse((x - 1, y - 1, x + 2, y + 2), (*tone(rng, (190, 150, 50), 30), 255))
    return image.reduce(2)


def astronomy(rng, width, height, frames, variant):
    """Stars of power-law brightness over a nebula, galaxies or the void; a satellite passes."""
    lines, colours = min(width, height), palette(rng, 2, 0.6)
    scene = np.full((height, width, 3), rng.uniform(2, 12), np.float32)
    if variant != 1:
        cloud = np.exp(fractal(rng, width, height, 1.7) * rng.uniform(0.6, 1))
        veil = np.clip(fractal(rng, width, height, 1.4), 0, 2)
        for field, colour in zip((cloud, veil), colours, strict=True):
            scene += rng.uniform(0.05, 0.18) * field[..., None] * colour.astype(np.float32)
    flux = np.zeros((height, width, 3), np.float32)
    count = int(rng.uniform(0.0008, 0.005) * width * height)
    y, x = rng.integers(0, height, count), rng.integers(0, width, count)
    bright = np.minimum(60 * rng.random(count) ** -0.8, 9000)[:, None]
    np.add.at(flux, (y, x), bright * (1 + rng.normal(0, 0.15, (count, 3))))
    scene += ndimage.gaussian_filter(flux, (rng.uniform(0.6, 1.1),) * 2 + (0,))
    image = picture(scene)
    for _ in range(rng.integers(8, 30) if variant == 1 else rng.integers(0, 4)):
        disc = galaxy(rng, int(rng.uniform(0.03, 0.16) * lines) + 6)
        image.paste(disc, tuple(int(rng.uniform(0, n)) for n in (width, height)), disc)
    spark = Image.merge("RGBA", sharp_lamp(lines // 3, (240, 240, 235)))
    return [Layer(image), Layer(spark, somewhere(rng, width, height), drift(rng, frames, lines, 2))]


def galaxy(rng, size):
    """RGBA spiral galaxy, tilted at random."""
    y, x = (np.mgrid[:2 * size, :2 * size].astype(np.float32) + 0.5 - size) / size
    turn, flat = rng.uniform(0, 3.14), rng.uniform(1, 3)
    u, v = x * np.cos(turn) + y * np.sin(turn), (y * np.cos(turn) - x * np.sin(turn)) * flat
    r = np.hypot(u, v)
    arms = 0.6 + 0.4 * np.cos(2 * np.arctan2(v, u) + rng.choice((-9, 9)) * r)
    light = np.exp(-4 * r) * (arms * (r > 0.1) + (r <= 0.1)) * np.clip(3 - 3 * r, 0, 1)
    rgb = np.broadcast_to(np.array(tone(rng, (225, 205, 190), 20), np.float32), (*r.shape, 3))
    return picture(np.dstack([rgb, 255 * np.clip(1.5 * light, 0, 1)]))


def pixelart(rng, width, height, frames, variant):
    """Few colours on big pixels: dithered hills and sky, blocky creatures that walk."""
    lines = min(width, height)
    zoom = max(2, round(lines / rng.integers(70, 150)))
    w, h = -(-width // zoom), -(-height // zoom)
    colours = palette(rng, int(rng.integers(5, 14)), rng.uniform(0.35, 0.6))
    colours = colours[np.argsort(colours.sum(1))]
    y = np.arange(h)[:, None]
    level = 0.95 - 0.5 * y / h + 0.05 * fractal(rng, w, h, 1.6)
    for k in range(rng.integers(2, 5)):
        ridge = h * (0.35 + 0.17 * k) + 0.09 * h * fractal(rng, w, 8, 1.2)[0]
        level = np.where(y > ridge, 0.75 - 0.18 * k + 0.06 * fractal(rng, w, h, 0.9), level)
    bayer = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]]) / 16 - 0.5
    dither = np.tile(bayer, (h // 4 + 1, w // 4 + 1))[:h, :w] * rng.integers(0, 2)
    index = np.clip(level * (len(colours) - 1) + dither + 0.5, 0, len(colours) - 1).astype(int)
    image = picture(colours[index])
    for _ in range(rng.integers(5, 40) if variant != 1 else 3):
        thing = monster(rng, 1) if rng.random() < 0.3 else tile(rng, colours[rng.integers(3)])
        spot = (int(rng.integers(0, w)), int(rng.integers(h // 2, h)) // 8 * 8)
        image.paste(thing, spot, thing if thing.mode == "RGBA" else None)
    back = image.resize((w * zoom, h * zoom), Image.NEAREST).crop((0, 0, width, height))
    crowd = []
    for _ in range(rng.integers(2, 8)):
        path = drift(rng, frames, lines, 2) + hop(rng, frames, lines)
        crowd.append(Layer(monster(rng, zoom), somewhere(rng, width, height),
                           np.round(path / zoom) * zoom))  # from big pixel to big pixel
    return [Layer(back), *crowd]


# --- drawn worlds -------------------------------------------------------------------------------


def solids(rng, width, height, frames, variant):
    """Shaded balls and boxes with cast shadows on a textured floor in perspective."""
    lines, horizon = min(width, height), rng.uniform(0.15, 0.45) * height
    value = (0.6, 0.5, 0.2)[variant]
    canvas = picture(floor(rng, width, height, horizon, *palette(rng, 2, value)))
    movers, colours, count = [], palette(rng, 6, rng.uniform(0.3, 0.7)), int(rng.integers(5, 16))
    for k in range(count):
        near = 0.15 + 0.85 * k / count
        r = int(lines * (0.04 + 0.13 * near) * rng.uniform(0.6, 1.3)) + 3
        x, y = rng.uniform(0, width), horizon + (0.85 * height - horizon) * near
        make = sphere if rng.random() < 0.6 else box
        body = make(rng, r, colours[rng.integers(6)])
        canvas.paste((0, 0, 0), (int(x - r), int(y - r)), shadow(r))
        if k % 4 == 2:
            spot = (x - width / 2, y - body.height / 2 - height / 2)
            path = drift(rng, frames, lines, 1.3) * (1, 0.2)
            movers.append(Layer(body, spot, path, path[:, 0] / r if make is sphere else None))
        else:
            canvas.paste(body, (int(x - r), int(y - body.height)), body)
    return [Layer(canvas), *movers]


def floor(rng, width, height, horizon, ground, wall):
    """float32[H, W, 3]: a wall with a soft light on it, above a tiled, veined floor."""
    y = np.arange(height, dtype=np.float32)[:, None] - horizon
    depth = 0.4 * height / np.maximum(y, 1.5)
    across = (np.arange(width, dtype=np.float32)[None] - width / 2) / width * 2 * depth
    vein, pace = fractal(rng, 512, 512, rng.uniform(0.6, 1.4)), rng.uniform(3, 12, 2)
    u, v = 160 * across + 256 + 0 * depth, 240 * depth + 0 * across
    grain = ndimage.map_coordinates(vein, (v, u), order=1, mode="grid-wrap")
    tile = np.tanh(np.sin(pace[0] * across) * np.sin(pace[1] * depth) * 12 / (0.3 + depth**2))
    fade = 1 / (1 + 0.08 * depth**2)
    pattern = rng.uniform(0.05, 0.25) * grain + rng.uniform(0, 0.35) * tile
    lower = ground.astype(np.float32) * (1 + fade * pattern)[..., None]
    glow = np.exp(-(across / depth * 1.2) ** 2 - (y / height * 1.5) ** 2)
    plaster = 0.6 + 0.5 * glow + rng.uniform(0.01, 0.1) * fractal(rng, width, height, 1)
    upper = wall.astype(np.float32) * plaster[..., None]
    return np.where(y[..., None] > 0, lower * (0.75 + 0.35 * glow)[..., None], upper)


def sphere(rng, radius, colour):
    """RGBA ball of the radius, lit from the upper left, with a veined or striped skin."""
    n = 2 * radius
    y, x = (np.mgrid[:n, :n].astype(np.float32) + 0.5 - radius) / radius
    z = np.sqrt(np.clip(1 - x**2 - y**2, 0, 1))
    diffuse = np.clip(-0.5 * x - 0.6 * y + 0.62 * z, 0, 1)
    skin = fractal(rng, n, n, rng.uniform(0.6, 1.6)) * rng.uniform(0, 0.22)
    if rng.random() < 0.4:
        bands = rng.uniform(4, 9) * np.arcsin(np.clip(y, -1, 1)) + 1.5 * skin
        skin = 0.35 * np.tanh(4 * np.sin(bands))
    shine = rng.uniform(0, 210) * np.clip(-0.33 * x - 0.4 * y + 0.85 * z, 0, 1) ** 40
    body = np.array(colour) * ((0.22 + 0.85 * diffuse) * (1 + skin))[..., None] + shine[..., None]
    edge = np.clip((1 - np.hypot(x, y)) * radius + 0.5, 0, 1) * 255
    return picture(np.dstack([body, edge]))


def box(rng, radius, colour):
    """RGBA block seen from a corner above: three faces, each with its own light and grain."""
    n, lean = 4 * radius, rng.uniform(0.3, 0.7)
    image, base = Image.new("RGBA", (n, n)), np.array(colour)
    pen, x = ImageDraw.Draw(image), lean * n
    top = ((0, 0.25 * n), (x, 0.02 * n), (n, 0.2 * n), (n - x, 0.45 * n))
    pen.polygon(top, tone(rng, base * 1.2, 4))
    pen.polygon((top[0], top[3], (n - x, n - 1), (0, 0.8 * n)), tone(rng, base * 0.85, 4))
    pen.polygon((top[3], top[2], (n, 0.75 * n), (n - x, n - 1)), tone(rng, base * 0.5, 4))
    image = image.reduce(2)
    grain = 1 + rng.uniform(0, 0.15) * fractal(rng, *image.size, rng.uniform(0.6, 1.5))
    rgba = np.array(image, np.float32)
    rgba[..., :3] *= grain[..., None]
    return picture(rgba)


def shadow(radius):
    """L mask of a soft oval shadow, cast to the lower right."""
    y, x = (np.mgrid[:2 * radius, :3 * radius].astype(np.float32) - radius) / radius
    dark = 150 * np.exp(-((x - 0.4) ** 2) / 0.5 - (y / 0.3) ** 2)
    return Image.fromarray(dark.astype(np.uint8))


def weave(rng, width, height, frames, variant):
    """Regular texture: cloth, knitwear, tiles or wickerwork in folds, a button or two on it."""
    lines, colours = min(width, height), palette(rng, 3, 0.55)
    folds = fractal(rng, width, height, 2.2)
    y, x = np.mgrid[:height, :width].astype(np.float32) / (lines * rng.uniform(0.012, 0.05))
    x, y = x + 0.8 * folds, y + 0.6 * np.roll(folds, height // 3, 0)
    turn = rng.uniform(0, 1.57) * (variant != 2)
    x, y = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    if variant == 0:  # over and under
        light = np.where(np.sin(x) * np.sin(y) > 0, np.abs(np.sin(x)), np.abs(np.sin(y)))
    elif variant == 1:  # stitches
        light = np.abs(np.sin(x + 0.8 * np.abs(np.sin(y / 2)) * 2)) ** 0.6
    else:  # tiles with joints
        light = 0.5 + 0.5 * np.clip(np.minimum(np.abs(np.sin(x)), np.abs(np.sin(y))) * 6, 0, 1)
    band = np.clip(0.5 + 2 * np.sin(x / rng.uniform(4, 20)), 0, 1)[..., None]
    cloth = colours[0] + band * (colours[1] - colours[0])
    grain = 1 + rng.uniform(0.02, 0.1) * fractal(rng, width, height, 0.5)
    scene = cloth * ((0.5 + 0.5 * light) * grain * shaded(folds, 0.3, (0.7, 0.5)))[..., None]
    buttons = [Layer(sphere(rng, int(rng.uniform(0.04, 0.1) * lines) + 3, colours[2]),
                     somewhere(rng, width, height), drift(rng, frames, lines))
               for _ in range(rng.integers(1, 5))]
    return [Layer(picture(scene)), *buttons]


def cartoon(rng, width, height, frames, variant):
    """Flat fills with dark outlines, hills with houses and trees, and bouncing figures."""
    sky, ground = palette(rng, 2, (0.85, 0.3, 0.75)[variant]), palette(rng, 1, 0.6)[0]
    lines, image = min(width, height), picture(gradient(2 * width, 2 * height, sky))
    pen, line = ImageDraw.Draw(image), max(2, int(rng.uniform(0.002, 0.01) * lines))
    for _ in range(rng.integers(0, 7)):
        x, y = rng.uniform(0, 2 * width), rng.uniform(0.1, 0.6) * height
        r = rng.uniform(0.05, 0.12) * lines
        for cx in (x - 1.2 * r, x, x + 1.2 * r):
            pen.ellipse((cx - r, y - 0.8 * r, cx + r, y + 0.8 * r), tone(rng, (240,) * 3, 5))
    for k in range(rng.integers(2, 5)):
        colour = tone(rng, ground * (0.75 + 0.13 * k), 8)
        hill(rng, pen, (2 * width, 2 * height), k, colour, (0.18 + 0.1 * k) * lines, line)
    crew = [Layer(figure(rng, int(rng.uniform(0.15, 0.4) * lines)),
                  (rng.uniform(-0.3, 0.3) * width, rng.uniform(0, 0.3) * height),
                  drift(rng, frames, lines, 1.5) + hop(rng, frames, lines))
            for _ in range(rng.integers(1, 5))]
    return [Layer(image.reduce(2)), *crew]


def hill(rng, pen, sides, k, colour, size, line):
    """The k-th hill from the back, with houses and trees on its ridge."""
    x = np.linspace(0, sides[0], 60)
    wave = np.sin(2 * x / sides[0] * rng.uniform(1.5, 4) + rng.uniform(0, 6.28))
    y = sides[1] * (0.475 + 0.15 * k + 0.05 * wave)
    ridge = list(zip(x, y, strict=True))
    pen.polygon([*ridge, sides, (0, sides[1])], fill=colour)
    pen.line(ridge, fill=INK, width=line)
    for i in rng.integers(3, 57, rng.integers(2, 8)):
        draw = house if rng.random() < 0.5 else tree
        draw(rng, lambda kind, points, fill, i=i: getattr(pen, kind)(
            [(x[i] + size * u, y[i] + size * v) for u, v in points], fill, INK, line))


def house(rng, put):
    """A house in units of its size, its foot at the origin; `put(kind, points, fill)` draws it."""
    wall, roof = palette(rng, 2, 0.75)
    put("rectangle", ((-0.5, -0.8), (0.5, 0.1)), tone(rng, wall, 10))
    put("polygon", ((-0.62, -0.8), (0, -1.35), (0.62, -0.8)), tone(rng, roof, 10))
    put("rectangle", ((-0.1, -0.35), (0.12, 0.1)), (110, 70, 45))
    for x in (-0.38, 0.22):
        put("rectangle", ((x, -0.65), (x + 0.17, -0.42)), (250, 235, 150))


def tree(rng, put):
    """A tree with a crown of three balls, drawn as a house is."""
    crown = tone(rng, (60, 140, 70), 35)
    put("rectangle", ((-0.08, -0.7), (0.08, 0.1)), (115, 75, 45))
    for x, y in ((-0.28, -0.8), (0.28, -0.8), (0, -1.1)):
        put("ellipse", ((x - 0.36, y - 0.36), (x + 0.36, y + 0.36)), crown)


def figure(rng, size):
    """RGBA cartoon figure: a striped body with eyes."""
    n, line = 4 * size, max(3, size // 12)
    image = Image.new("RGBA", (n, n))
    pen, colour = ImageDraw.Draw(image), tone(rng, rng.uniform(90, 240, 3), 10)
    pen.ellipse((0.15 * n, 0.2 * n, 0.85 * n, 0.98 * n), colour, INK, line)
    for y in 0.45 + 0.08 * np.arange(rng.integers(0, 6)):
        pen.arc((0.2 * n, y * n, 0.8 * n, (y + 0.17) * n), 20, 160, INK, line // 2)
    for x in (0.36, 0.64):
        pen.ellipse(((x - 0.12) * n, 0.08 * n, (x + 0.12) * n, 0.36 * n), (250,) * 3, INK, line)
        pen.ellipse(((x - 0.03) * n, 0.19 * n, (x + 0.06) * n, 0.28 * n), INK)
    return image.reduce(4)


TEXTS = (("Serif", (238, 234, 224), (35, 32, 30), 0.035),
         ("SansMono", (28, 30, 38), (200, 205, 200), 0.032),
         ("Sans-Bold", (6, 6, 8), (225, 225, 225), 0.05),
         ("Sans", (250, 250, 252), (30, 50, 90), 0.055))


def text(rng, width, height, frames, variant):
    """Scrolling letters over paper, an editor, credits or a slide with a picture."""
    style, paper, ink, size = TEXTS[variant]
    if rng.random() < 0.4:
        paper, ink = rng.permutation([palette(rng, 1, v)[0] for v in (0.15, 0.85)])
    lines, ink = min(width, height), tuple(int(v) for v in np.clip(ink, 0, 255))
    size *= lines * rng.uniform(0.6, 1.6)
    back = np.broadcast_to(np.array(paper, np.float32), (height, width, 3))
    if variant == 0:
        back = textured(rng, width, height, paper, 0.02)
    sheet = Image.new("RGBA", (width, 2 * height), (*ink, 0))
    pen, face, code = ImageDraw.Draw(sheet), font(size, style), style == "SansMono"
    for y in np.arange(0, 2 * height, rng.uniform(1.2, 1.9) * size):
        indent = rng.integers(0, 4) * 2 * size if code else 0.04 * width
        colour = tone(rng, rng.uniform(80, 240, 3), 5) if code else tone(rng, ink, 6)
        pen.text((indent, y), prose(rng, 4, 24), font=face, fill=colour)
    speed = -np.round(rng.uniform(0, 0.012) * lines) * np.arange(frames)
    layers = [Layer(picture(back)), Layer(sheet, path=np.stack([0 * speed, speed], -1))]
    if variant == 3 or rng.random() < 0.4:
        side = int(rng.uniform(0.25, 0.6) * lines)
        inset = picture(textured(rng, side, side, palette(rng, 1)[0], 0.3))
        spot = tuple(rng.uniform(-0.3, 0.3, 2) * lines)
        layers.append(Layer(inset.convert("RGBA"), spot, drift(rng, frames, lines)))
    return layers


def game(rng, width, height, frames, variant):
    """A sprite game: bevelled tiles, sprites on their own courses and a pinned score line."""
    lines = min(width, height)
    zoom = max(1, round(lines / rng.integers(150, 260)))
    w, h = -(-width // zoom), -(-height // zoom)
    sky, block = palette(rng, 2, (0.7, 0.12, 0.3)[variant]), palette(rng, 1, 0.5)[0]
    image = picture(gradient(w, h, sky) + rng.normal(0, 4, (h, w, 1)))
    for y in range(0, h, 16):
        for x in range(0, w, 16):
            if y > 0.75 * h or rng.random() < (0.12, 0.02, 0.35)[variant]:
                image.paste(tile(rng, block), (x, y))
    back = image.resize((w * zoom, h * zoom), Image.NEAREST).crop((0, 0, width, height))
    hoard = [Layer(monster(rng, zoom * int(rng.integers(1, 3))), somewhere(rng, width, height),
                   drift(rng, frames, lines, 2.0) + hop(rng, frames, lines))
             for _ in range(rng.integers(3, 14))]
    score = Image.new("RGBA", (width, int(0.09 * lines)), (0, 0, 0, 90))
    words = f"SCORE {rng.integers(10**6):07d}   LIVES x3"
    ImageDraw.Draw(score).text((0.12 * width, 0.01 * lines), words,
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
    pick = rng.integers(0, 3, (12, 6))
    rgb = palette(rng, 3, 0.6)[np.hstack([pick, pick[:, ::-1]])].astype(np.float32)
    rgb[4:6, [3, 8]], body[4:6, [3, 8]] = 250, True
    return picture(np.dstack([rgb, 255.0 * body])).resize((12 * zoom, 12 * zoom), Image.NEAREST)


# --- from photographs ---------------------------------------------------------------------------


def collage(rng, width, height, frames, photos):
    """Dead leaves whose leaves are cut from photographs: natural statistics at any size."""
    lines = min(width, height)
    canvas = snip(rng, photos, max(width, height)).crop((0, 0, width, height))
    radii = rng.uniform(0.4**-2, rng.uniform(0.08, 0.2) ** -2, rng.integers(8, 40)) ** -0.5
    for r in np.sort(radii)[::-1] * lines:
        piece = cut(rng, snip(rng, photos, int(2 * r)), 0.35)
        x, y = rng.uniform(-r, (width - r, height - r))
        shade = piece.getchannel("A").filter(ImageFilter.BoxBlur(3)).point(lambda v: v // 2)
        canvas.paste((10, 10, 12), (int(x + 0.04 * r), int(y + 0.04 * r)), shade)
        canvas.paste(piece, (int(x), int(y)), piece)
    movers = [Layer(cut(rng, snip(rng, photos, int(size * lines))),
                    somewhere(rng, width, height), drift(rng, frames, lines),
                    rng.normal(0, 0.02) * np.arange(frames))
              for size in rng.uniform(0.18, 0.45, rng.integers(1, 5))]
    return [Layer(canvas), *movers]


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
    face = font(rng.uniform(0.04, 0.085) * lines, rng.choice(("Sans-Bold", "Sans", "Serif-Bold")))
    sheet = Image.new("RGBA", (width, int(0.14 * lines)))
    ink = ((255, 255, 255, 255), (250, 220, 60, 255), (255, 255, 255, 120))[rng.integers(3)]
    ImageDraw.Draw(sheet).text((width / 2, 0.07 * lines), prose(rng, 1, 6), ink, face, "mm",
                               stroke_width=int(0.006 * lines), stroke_fill=(0, 0, 0, ink[3]))
    return Layer(sheet, (0, rng.choice((-0.33, 0.33)) * height), parallax=0.0)
