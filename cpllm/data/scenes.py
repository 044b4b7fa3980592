"""The built-in scenes: photographs from installed wheels and procedural worlds, filmed.

A source is one photograph (both views of a stereo pair are one) or one procedural seed. Sources are
split first, scenes drawn afterwards, so none appears in two splits. The family `game` occurs only
in the test split, and `collage`, which cuts up the training photographs, only in the train split.
"""

from __future__ import annotations

import functools
import importlib.util
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from cpllm import config
from cpllm.data import families
from cpllm.data.families import Layer

MARGIN = 1.16
"""Canvas side over frame side: the room that the camera moves in."""

LARGEST_ZOOM = 1.3
"""A photograph is enlarged at most so much: beyond, a pristine original looks blurred."""


@dataclass(frozen=True)
class Scene:
    """One source clip. `content` and `style` are short phrases; sides are even, in pixels."""

    name: str
    source: str
    family: str
    split: str
    seed: int
    height: int
    width: int
    frames: int
    fps: int
    content: str
    style: str


@dataclass(frozen=True)
class Photo:
    """A photograph: its files under the package's folder, and a tint for a grey one."""

    split: str
    package: str
    files: tuple[str, ...]
    content: str
    style: str
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)


def _skimage(split: str, file: str, content: str, style: str, *more: str, **tint) -> Photo:
    files = tuple(f"data/{f}" for f in (file, *more))
    return Photo(split, "skimage", files, content, style, **tint)


PHOTOS = {
    "astronaut": _skimage("train", "astronaut.png", "a smiling astronaut in an orange suit",
                          "studio portrait"),
    "coffee": _skimage("train", "coffee.png", "a cup of coffee on a wooden table",
                       "close-up photograph"),
    "motorcycle": _skimage("train", "motorcycle_left.png", "a red motorcycle in a garage",
                           "indoor photograph", "motorcycle_right.png"),
    "chelsea": _skimage("train", "chelsea.png", "a tabby cat looking at the camera",
                        "close-up photograph"),
    "gravel": _skimage("train", "gravel.png", "gravel seen from above", "outdoor texture",
                       tint=(1.06, 1.0, 0.92)),
    "camera": _skimage("train", "camera.png", "a man filming with a camera on a tripod",
                       "black-and-white photograph"),
    "rocket": _skimage("train", "rocket.jpg", "a rocket on its launch pad at dusk",
                       "night photograph"),
    "brick": _skimage("train", "brick.png", "a brick wall", "outdoor texture",
                      tint=(1.25, 0.95, 0.8)),
    "hubble": _skimage("train", "hubble_deep_field.jpg", "galaxies in deep space",
                       "astronomical photograph"),
    "coins": _skimage("train", "coins.png", "old coins in rows", "black-and-white photograph"),
    "page": _skimage("train", "page.png", "a printed page under a lamp", "photographed document"),
    "flower": Photo("validation", "sklearn", ("datasets/images/flower.jpg",),
                    "an orange dahlia in bloom", "close-up photograph"),
    "grass": _skimage("validation", "grass.png", "grass seen from above", "outdoor texture",
                      tint=(0.98, 1.08, 0.65)),
    "moon": _skimage("validation", "moon.png", "craters on the moon", "astronomical photograph"),
    "china": Photo("test", "sklearn", ("datasets/images/china.jpg",),
                   "a Chinese pavilion above a lake", "outdoor photograph"),
    "hopper": Photo("test", "matplotlib", ("mpl-data/sample_data/grace_hopper.jpg",),
                    "a naval officer with glasses before flags", "studio portrait"),
    "ihc": _skimage("test", "ihc.png", "stained tissue under a microscope", "microscope image"),
    "retina": _skimage("test", "retina.jpg", "blood vessels of a retina", "medical photograph"),
    "text": _skimage("test", "text.png", "handwritten formulas on paper", "photographed document"),
}

STYLES = {
    "leaves": "computer-drawn texture", "landscape": "rendered landscape",
    "foliage": "rendered nature close-up", "water": "rendered water", "solids": "3-D rendering",
    "cartoon": "flat cartoon", "city": "rendered city view", "text": "screen content",
    "game": "video game", "collage": "collage of photographs",
}
WORLDS = {name: getattr(families, name) for name in STYLES if name != "collage"}
VARIANTS = {"leaves": families.LEAVES, "landscape": families.LANDSCAPES,
            "foliage": families.FOLIAGE, "water": families.WATER, "solids": families.SOLIDS,
            "cartoon": families.CARTOONS, "city": families.CITIES, "text": families.TEXTS,
            "game": families.GAMES, "collage": (("overlapping scraps of photographs",),)}
ONLY = {"game": "test", "collage": "train"}
SCREENS = ("cartoon", "text", "game")
SPLITS = ("train", "validation", "test")

PHOTO_SHARE = 0.45
SHARES = (1.0, 2 / 3, 1.0, 0.5, 8 / 9, 4 / 9, 1.0, 0.75)
"""Short sides, as shares of data.max_lines; small ones stop at 144 lines."""
ASPECTS = (16 / 9, 3 / 4, 4 / 3, 9 / 16, 16 / 9, 1.0, 16 / 9)


# --- catalog ------------------------------------------------------------------------------------


def catalog(data: config.Data) -> tuple[Scene, ...]:
    """All scenes: the configured count per split, photographs and procedural worlds mixed."""
    counts = (data.train_scenes, data.validation_scenes, data.test_scenes)
    return tuple(scene for split, count in zip(SPLITS, counts, strict=True)
                 for scene in _photographs(split, round(PHOTO_SHARE * count), data)
                 + _worlds(split, count - round(PHOTO_SHARE * count), data))


def _photographs(split: str, count: int, data: config.Data) -> list[Scene]:
    """`count` scenes over the split's photographs in turn, each with its own crop and path."""
    names = [name for name, photo in PHOTOS.items() if photo.split == split]
    scenes = []
    for k in range(count):
        name = names[k % len(names)]
        size = _fit(photograph(name)[0].size, k, data.max_lines)
        scenes.append(_scene(split, name, "photo", zlib.crc32(f"{name}{k}".encode()), size, k, data,
                             PHOTOS[name].content, PHOTOS[name].style, k // len(names)))
    return scenes


def _worlds(split: str, count: int, data: config.Data) -> list[Scene]:
    """`count` procedural scenes over the split's families in turn, each with its own seed."""
    names = [name for name in STYLES if ONLY.get(name, split) == split]
    # A family of one split leads there: it must occur however few the scenes.
    names.sort(key=lambda name: name not in ONLY)
    scenes = []
    for k in range(count):
        name, seed = names[k % len(names)], 10_000 * (SPLITS.index(split) + 1) + k
        content = VARIANTS[name][(k // len(names)) % len(VARIANTS[name])][0]
        size = _size(SHARES[k % len(SHARES)], ASPECTS[k % len(ASPECTS)], data.max_lines)
        scenes.append(_scene(split, f"{name}_{seed}", name, seed, size, k, data, content,
                             STYLES[name]))
    return scenes


def _scene(split, source, family, seed, size, k, data, content, style, take=None) -> Scene:
    name = source if take is None else f"{source}_{take}"
    return Scene(f"{split}_{name}", source, family, split, seed, size[1], size[0], data.frames,
                 (30, 25)[k % 2], content, style)


def _size(share: float, aspect: float, max_lines: int) -> tuple[int, int]:
    """Even (width, height) whose short side is the share of `max_lines`, 144 or more if allowed."""
    short = min(max_lines, max(144, round(share * max_lines)))
    width, height = (short * aspect, short) if aspect >= 1 else (short, short / aspect)
    return round(width / 2) * 2, round(height / 2) * 2


def _fit(photo: tuple[int, int], k: int, max_lines: int) -> tuple[int, int]:
    """The k-th size that the photograph fills, with margin, without being enlarged too much.

    Odd k takes the largest such size, so that photographs too reach the most lines.
    """
    if k % 7 == 3 and min(photo) * LARGEST_ZOOM >= max_lines:
        return _size(1.0, 16 / 9, max_lines)

    def fits(size):
        return all(a * MARGIN <= b * LARGEST_ZOOM for a, b in zip(size, photo, strict=True))

    sizes = [_size(s, a, max_lines) for s in sorted(set(SHARES)) for a in sorted(set(ASPECTS))]
    sizes = sorted({s for s in sizes if fits(s)}, key=min)
    if not sizes:
        return _size(min(photo) * LARGEST_ZOOM / MARGIN / max_lines, 1.0, max_lines)
    largest = [s for s in sizes if min(s) == min(sizes[-1])]
    return (largest if k % 2 else sizes)[(5 * k) % len(largest if k % 2 else sizes)]


# --- photographs --------------------------------------------------------------------------------


@functools.cache
def photograph(name: str) -> tuple[Image.Image, ...]:
    """The views of a photograph as RGB, tinted where the catalog says so."""
    photo = PHOTOS[name]
    root = Path(importlib.util.find_spec(photo.package).origin).parent
    views = []
    for file in photo.files:
        if not (root / file).is_file():
            raise FileNotFoundError(f"scene {name!r} needs {file}, which the installed package "
                                    f"{photo.package!r} lacks (looked in {root}); reinstall it")
        view = np.asarray(Image.open(root / file).convert("RGB"), np.float32) * photo.tint
        views.append(families.picture(view))
    return tuple(views)


def _photo_layers(rng: np.random.Generator, scene: Scene, width: int, height: int) -> list[Layer]:
    """A window of the photograph as the canvas, and cut-outs of the same photograph that move.

    A frame too wide for the photograph shows it upright between blurred sides, as phones do.
    """
    views = photograph(scene.source)
    photo = views[rng.integers(len(views))]
    if rng.random() < 0.5:
        photo = photo.transpose(Image.FLIP_LEFT_RIGHT)
    largest, lines = min(photo.width / width, photo.height / height), min(width, height)
    scale = min(largest, max(1 / LARGEST_ZOOM, rng.uniform(0.75, 1.0) * largest))
    canvas = _window(rng, photo, width, height, scale)
    layers = [Layer(canvas, sway=rng.uniform(0.002, 0.012) * lines)]
    if largest < 1 / LARGEST_ZOOM:
        scale = photo.height / scene.height
        upright = _window(rng, photo, round(rng.uniform(0.6, 0.9) * lines), scene.height, scale)
        layers = [Layer(canvas.filter(ImageFilter.GaussianBlur(0.04 * lines))),
                  Layer(upright.convert("RGBA"), parallax=0.0)]
    for size in rng.uniform(0.15, 0.3, rng.integers(1, 3)) * lines:
        piece = families.cut(rng, _window(rng, photo, int(size), int(size), scale))
        turn, spin = rng.uniform(0, 2 * np.pi), rng.normal(0, 0.015) * np.arange(scene.frames)
        spot = 0.36 * width * np.cos(turn), 0.36 * height * np.sin(turn)  # faces are in the middle
        layers.append(Layer(piece, spot, families.drift(rng, scene.frames, lines), spin))
    return layers


def _window(rng, photo, width, height, scale) -> Image.Image:
    """RGB of width x height from a random window `scale` times as large."""
    w, h = min(photo.width, width * scale), min(photo.height, height * scale)
    x, y = rng.uniform(0, photo.width - w), rng.uniform(0, photo.height - h)
    return photo.resize((width, height), Image.LANCZOS, (x, y, x + w, y + h))


# --- filming ------------------------------------------------------------------------------------


def render(scene: Scene) -> np.ndarray:
    """Film the scene: uint8[N, H, W, 3] RGB, the same bytes at every call."""
    rng = np.random.default_rng(scene.seed)
    layers = _layers(rng, scene)
    moves, noise = _camera(rng, scene), _grain(rng, scene)
    shots = [_shoot(layers, scene, n, *(m[n] for m in moves)) for n in range(scene.frames)]
    # Drawn worlds are sharper than any lens; screens are filmed by none, photographs by theirs.
    if scene.family not in ("photo", *SCREENS):
        lens = ImageFilter.GaussianBlur(rng.uniform(0.2, 0.9))
        shots = [shot.filter(lens) for shot in shots]
    colours, curves = _grade(rng, shots[0])
    bar = round(scene.height * rng.uniform(0.06, 0.13)) if rng.random() < 0.08 else 0
    film = np.zeros((scene.frames, scene.height, scene.width, 3), np.uint8)
    for n, shot in enumerate(shots):
        frame = np.asarray(shot.convert("RGB", colours).point(curves), np.float32) + noise()
        film[n, bar:scene.height - bar] = np.clip(frame, 0, 255)[bar:scene.height - bar]
    return film


def _layers(rng: np.random.Generator, scene: Scene) -> list[Layer]:
    """What stands before the camera, back to front; a tenth of it under a caption."""
    width, height = (round(MARGIN * side) for side in (scene.width, scene.height))
    if scene.family == "photo":
        layers = _photo_layers(rng, scene, width, height)
    elif scene.family == "collage":
        pool = [photograph(n)[0] for n, photo in PHOTOS.items() if photo.split == scene.split]
        layers = families.collage(rng, width, height, scene.frames, pool)
    else:
        variant = [v[0] for v in VARIANTS[scene.family]].index(scene.content)
        layers = WORLDS[scene.family](rng, width, height, scene.frames, variant)
    marked = rng.random() < 0.1
    return [*layers, families.caption(rng, scene.width, scene.height)] if marked else layers


def _camera(rng: np.random.Generator, scene: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per frame the pan (x, y) in pixels, the zoom and the angle in radians.

    A quarter of the cameras stand on a tripod; the others pan, zoom, turn and shake a little. All
    stay within the margin: pan 4.5% and shake 0.5% of the short side, zoom 1 or more.
    """
    t = np.linspace(-1, 1, scene.frames)
    lines = min(scene.height, scene.width)
    moving = rng.random() > 0.25
    turn, reach = rng.uniform(0, 2 * np.pi), moving * rng.uniform(0.003, 0.045) * lines
    pan = reach * t[:, None] * np.array([np.cos(turn), np.sin(turn)])
    pulse = rng.uniform(0.3, 0.9, (2, 1)) * np.arange(scene.frames) + rng.uniform(0, 6.28, (2, 1))
    pan = pan + rng.uniform(0, 0.005) * lines * moving * np.sin(pulse).T
    zoom = 1.04 + moving * rng.uniform(-0.04, 0.04) * t
    return pan, zoom, moving * rng.uniform(-0.012, 0.012) * t


def _shoot(layers, scene, n, pan, zoom, angle) -> Image.Image:
    """The RGB frame n: every layer put in place, back to front."""
    frame = None
    for layer in layers:
        image = layer.image[n] if isinstance(layer.image, tuple) else layer.image
        path = np.zeros(2) if layer.path is None else layer.path[n]
        turn = angle * layer.parallax + (0 if layer.spin is None else layer.spin[n])
        scale = 1 + (zoom - 1) * layer.parallax
        spot = np.array([scene.width, scene.height]) / 2 + (np.array(layer.at) + path
                                                            - layer.parallax * pan) * scale
        if frame is None:
            frame = _project(image, (scene.width, scene.height), spot, scale, turn, layer.sway, n)
        else:
            _overlay(frame, image, spot, scale, turn)
    return frame


def _matrix(image, spot, scale, turn) -> np.ndarray:
    """float[2, 3]: output pixel -> pixel of the image, whose centre lies at `spot`."""
    c, s = np.cos(turn) / scale, np.sin(turn) / scale
    linear = np.array([[c, s], [-s, c]])
    return np.column_stack([linear, np.array(image.size) / 2 - linear @ spot])


def _project(image, size, spot, scale, turn, sway, n) -> Image.Image:
    """Resample the canvas: bicubic over a mesh whose corners are moved by camera and wind."""
    matrix, (width, height) = _matrix(image, spot, scale, turn), size
    xs, ys = (np.linspace(0, side, 9).round().astype(int) for side in size)
    x, y = np.meshgrid(xs, ys)
    u, v = np.einsum("ij,jhw->ihw", matrix, np.stack([x, y, np.ones_like(x)]))
    u = u + sway * np.sin(0.35 * n + 9.0 * y / height + 4.0 * x / width)
    v = v + 0.6 * sway * np.sin(0.27 * n + 7.0 * x / width + 2.0 * y / height)
    u, v = np.clip(u, 0, image.width), np.clip(v, 0, image.height)
    mesh = [((xs[i], ys[j], xs[i + 1], ys[j + 1]),
             tuple(w[r, c] for r, c in ((j, i), (j + 1, i), (j + 1, i + 1), (j, i + 1))
                   for w in (u, v)))
            for j in range(8) for i in range(8)]
    return image.transform((width, height), Image.MESH, mesh, Image.BICUBIC)


def _overlay(frame, image, spot, scale, turn) -> None:
    """Draw a cut-out into the frame, in place; only the box that it covers is resampled."""
    c, s = abs(np.cos(turn)) * scale / 2, abs(np.sin(turn)) * scale / 2
    half = np.array([c * image.width + s * image.height, s * image.width + c * image.height]) + 1
    left, top = np.maximum(np.floor(spot - half), 0).astype(int)
    right, bottom = np.minimum(np.ceil(spot + half), frame.size).astype(int)
    if right <= left or bottom <= top:
        return
    matrix, (w, h) = _matrix(image, spot - (left, top), scale, turn), (right - left, bottom - top)
    corners = matrix @ np.array([[0, w, 0, w], [0, 0, h, h], [1, 1, 1, 1]])
    x0, y0 = np.maximum(corners.min(1) - 3, 0).astype(int)
    x1, y1 = np.minimum(corners.max(1) + 4, image.size).astype(int)
    matrix[:, 2] -= x0, y0
    patch = image.crop((x0, y0, x1, y1))
    patch = patch.transform((w, h), Image.AFFINE, matrix.ravel(), Image.BICUBIC)
    frame.paste(patch, (left, top), patch)


def _grade(rng: np.random.Generator, shot: Image.Image) -> tuple[tuple[float, ...], list[int]]:
    """What this camera makes of the light: a colour matrix, and a table of 3 x 256 levels.

    Automatic exposure spreads most scenes over most levels, at most 1.8 times; a fifth stay dull.
    """
    s, luma = rng.uniform(0.45, 1.1), (0.299, 0.587, 0.114)
    matrix = [(1 - s) * luma[j] + s * (i == j) if j < 3 else 0 for i in range(3) for j in range(4)]
    low, high = np.percentile(np.asarray(shot.convert("L")), (1, 99))
    black, white = rng.uniform(0, 35), rng.uniform(205, 255)
    gain = np.clip((white - black) / max(high - low, 1), 0.5, 1.8)
    if rng.random() < 0.2:
        gain, black = 0.85, low * 0.85 + 20
    x = np.clip((black + (np.arange(256) - low) * gain) / 255, 0, 1)
    balance, gamma = 1 + rng.normal(0, 0.03, 3), rng.uniform(0.85, 1.2)
    return tuple(matrix), [int(min(255, 255 * v * b + 0.5)) for b in balance for v in x**gamma]


def _grain(rng: np.random.Generator, scene: Scene):
    """A function that gives float32[H, W, 3] sensor noise, new at each call, plus 0.5 to round.

    Shifts of one field stand for fresh fields, at a tenth of the cost; luma noise is stronger.
    """
    sigma, reach = np.exp(rng.uniform(np.log(0.25), np.log(1.8))), 64
    shape = (scene.height + reach, scene.width + reach)
    field = rng.standard_normal(shape, dtype=np.float32) * np.float32(sigma)

    def draw(share):
        y, x = rng.integers(0, reach, 2)
        return share * field[y:y + scene.height, x:x + scene.width]

    def noise():
        luma = draw(np.float32(0.85)) + np.float32(0.5)
        return np.stack([luma + draw(np.float32(0.4)) for _ in range(3)], -1)

    return noise
