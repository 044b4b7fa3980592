"""The built-in scenes: photographs from installed wheels and procedural worlds, filmed.

A source is one photograph (both views of a stereo pair are one) or one procedural seed. Sources are
split first, scenes drawn afterwards, so none appears in two splits. Each set of the paper has a
counterpart in `SETS`. The families in `UNSEEN` occur in test sets only.
"""

from __future__ import annotations

import functools
import importlib.util
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from cpllm import config
from cpllm.data import families
from cpllm.data.families import Layer

MARGIN = 1.16
"""Canvas side over frame side: the room that the camera moves in."""

FETCHED = Path(__file__).resolve().parents[2] / "data" / "photographs"
"""Packages that are there for their photographs alone: see `wide`."""

LARGEST_ZOOM = 1.3
"""A photograph is enlarged at most so much: beyond, a pristine original looks blurred."""


@dataclass(frozen=True)
class Scene:
    """One source clip. `content` and `style` are short phrases; sides are even, in pixels.

    codecs: those whose ladders it is encoded at; none if it stands for one upload.
    """

    name: str
    source: str
    family: str
    split: str
    dataset: str
    codecs: tuple[str, ...]
    seed: int
    height: int
    width: int
    frames: int
    fps: int
    content: str
    style: str


class Photo(NamedTuple):
    """A photograph: its files under the package's folder, and a tint for a grey one.

    split: one of SPLITS, or "fit" for those of wide scenes, whose packages lie in FETCHED.
    """

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
    "cell": _skimage("test", "cell.png", "a living cell under a microscope", "microscope image",
                     tint=(0.9, 1.0, 0.95)),
    "retina": _skimage("test", "retina.jpg", "blood vessels of a retina", "medical photograph"),
    "text": _skimage("test", "text.png", "handwritten formulas on paper", "photographed document"),
}

WORLDS = {
    "leaves": ("computer-drawn texture", "autumn leaves on the ground", "pebbles seen from above",
               "scraps of coloured paper", "shards of broken stone", "a heap of petals"),
    "terrain": ("rendered landscape", "snowy mountains under a clear sky", "desert hills at sunset",
                "green hills under drifting clouds", "dark mountains at dusk"),
    "solids": ("3-D rendering", "coloured balls and boxes on a stone floor",
               "toys on a tiled floor", "dark solids on a floor at night"),
    "cartoon": ("flat cartoon", "a cartoon village with houses and trees",
                "a cartoon town at night", "cartoon creatures on a hill"),
    "text": ("screen content", "a page of printed text that scrolls",
             "a code editor with coloured lines", "closing credits on black",
             "a slide with headlines and a picture"),
    "lowlight": ("intentional low light", "a street at night with lit windows",
                 "distant lamps in the dark", "dark trees and lanterns at night"),
    "bokeh": ("shallow depth of field", "a flower before a blurred garden",
              "a ball before blurred lights", "a fruit before a soft background",
              "a stone before a soft background"),
    "pixelart": ("pixel art", "hills and creatures in pixel art", "a quiet pixel-art landscape"),
    "collage": ("collage of photographs", "overlapping scraps of photographs"),
    "game": ("video game", "a side-scrolling platform game", "a retro space shooter",
             "a top-down dungeon game with monsters"),
    "astronomy": ("astronomical view", "a nebula and its stars", "a cluster of galaxies",
                  "the Milky Way in the night sky"),
    "weave": ("fabric close-up", "woven cloth in folds", "knitwear with buttons",
              "a mosaic of small tiles"),
}
"""Family → style, then the contents in the order of its variants."""

UNSEEN = ("game", "astronomy", "weave")
SEEN = tuple(name for name in WORLDS if name not in UNSEEN)
FIGURE1 = {"lowlight": "exposure+noise", "bokeh": "blur", "astronomy": "blur",
           "pixelart": "upscale", "game": "upscale"}
"""What looks degraded and isn't, with the real defect that its twin has."""

SCREENS = ("cartoon", "text", "game", "pixelart")
EXPOSED = ("leaves", "terrain", "solids", "collage", "bokeh", "weave", "photo")
"""Their exposure is the camera's choice; the others' darkness or flatness is meant."""

OTHER_CODECS = ("hevc", "vp9", "av1")
SPLITS = ("train", "validation", "test")
WIDE, TALL = (16 / 9, 4 / 3, 16 / 9, 1.0, 9 / 16), (9 / 16, 9 / 16, 3 / 4)
LINES = (270, 360, 540, 240, 288, 540, 240, 720, 270, 360, 216, 540)
SMALL = (240, 540, 270, 216, 360, 270, 288, 240)


class Set(NamedTuple):
    """A counterpart of one of the paper's sets: where its scenes come from and how large they are.

    photos: the share of photographs; lines: short sides in turn, in pixels; share: of the number
    of scenes without a ladder that the configuration names, for 150 originals each.
    """

    split: str
    worlds: tuple[str, ...]
    photos: float
    lines: tuple[int, ...]
    aspects: tuple[float, ...] = WIDE
    share: float = 1.0


SETS = {
    "lsvq-train": Set("train", SEEN, 0.25, LINES),
    "lsvq-validation": Set("validation", SEEN, 0.2, LINES),
    "lsvq-test": Set("test", (*UNSEEN, *SEEN), 0.25, LINES, share=0.45),
    "lsvq-1080p": Set("test", (*UNSEEN, *SEEN), 0.1,
                      (540, 540, 540, 600) * 3 + (540, 540, 720, 1080), share=0.95),
    "yt-compress": Set("test", ("terrain", "game", "collage", "bokeh", "weave"), 0.3, SMALL,
                       share=1.25),
    "youtube-ugc": Set("test", ("text", "lowlight", "game", "collage", "astronomy", "cartoon"), 0.3,
                       SMALL),
    "live-yt-gaming": Set("test", ("game", "solids", "pixelart", "game", "cartoon"), 0.0, SMALL,
                          share=0.8),
    "shorts-sdr": Set("test", ("collage", "bokeh", "text", "leaves", "lowlight"), 0.3, SMALL, TALL),
    "shorts-hdr2sdr": Set("test", ("terrain", "lowlight", "bokeh", "collage", "solids"), 0.3, SMALL,
                          TALL),
}
"""Not the sets themselves, which the user must bring: made scenes of their kind."""


# --- catalog ------------------------------------------------------------------------------------


def catalog(data: config.Data) -> tuple[Scene, ...]:
    """All scenes: of each split's first set some with a ladder, of every set some without."""
    ladders = dict(zip(SPLITS, (data.train_scenes, data.validation_scenes, data.test_scenes),
                       strict=True))
    singles = dict(zip(SPLITS, data.singles, strict=True))
    scenes = []
    for name, kind in SETS.items():
        count = ladders.pop(kind.split, 0)
        for ladder, n in ((True, count), (False, round(singles[kind.split] * kind.share))):
            photos = _photographs(name, kind, ladder, round(kind.photos * n), data)
            scenes += [*photos, *_worlds(name, kind, ladder, n - len(photos), data)]
    return tuple(scenes)


def _photographs(dataset: str, kind: Set, ladder: bool, count: int, data) -> list[Scene]:
    """`count` scenes over the split's photographs in turn, each with its own crop and path.

    A photograph has one ladder at most, so that ladders count as sources.
    """
    sizes = sorted({_size(lines, aspect, data.max_lines)
                    for lines in kind.lines for aspect in kind.aspects}, key=min)
    room = {name: _fitting(photograph(name)[0].size, sizes) for name in album(kind.split)}
    names = [name for name in room if room[name]]
    scenes = []
    for k in range(min(count, len(names)) if ladder else count):
        name = names[k % len(names)]
        size = room[name][(7 * (k // len(names)) + 3 * k) % len(room[name])]
        scenes.append(_scene(dataset, kind, ladder, name, "photo", size, k, data,
                             PHOTOS[name].content, PHOTOS[name].style))
    return scenes


def _fitting(photo: tuple[int, int], sizes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The sizes that the photograph fills, with margin, without being enlarged too much."""
    return [s for s in sizes
            if all(a * MARGIN <= b * LARGEST_ZOOM for a, b in zip(s, photo, strict=True))]


def _worlds(dataset: str, kind: Set, ladder: bool, count: int, data) -> list[Scene]:
    """`count` procedural scenes over the set's families in turn, each with its own seed."""
    scenes = []
    for k in range(count):
        family = kind.worlds[k % len(kind.worlds)]
        style, *contents = WORLDS[family]
        turn = k + k // len(kind.lines)  # so that no family always has the same size
        size = _size(kind.lines[turn % len(kind.lines)], kind.aspects[k % len(kind.aspects)],
                     data.max_lines)
        content = contents[(k // len(kind.worlds)) % len(contents)]
        scenes.append(_scene(dataset, kind, ladder, family, family, size, k, data, content, style))
    return scenes


def _scene(dataset, kind, ladder, source, family, size, k, data, content, style) -> Scene:
    name = f"{dataset}_{source}-{'ladder' if ladder else 'single'}{k}"
    several = kind.split == "test" and 2 * k < data.other_ladders  # a photograph and a world each
    codecs = (data.codec, *(OTHER_CODECS if several else ())) if ladder else ()
    return Scene(name, source if family == "photo" else name, family, kind.split, dataset, codecs,
                 zlib.crc32(name.encode()), size[1], size[0], data.frames, (30, 25)[k % 2],
                 content, style)


def _size(lines: int, aspect: float, most: int) -> tuple[int, int]:
    """Even (width, height) whose short side is `lines`, at most `most`."""
    short = min(lines, most)
    width, height = (short * aspect, short) if aspect >= 1 else (short, short / aspect)
    return round(width / 2) * 2, round(height / 2) * 2


# --- photographs --------------------------------------------------------------------------------


def album(split: str) -> list[str]:
    """Photographs that scenes of a split show; those of "fit" show training's too."""
    splits = {split, "train"} if split == "fit" else {split}
    return [name for name, photo in PHOTOS.items() if photo.split in splits]


@functools.cache
def photograph(name: str) -> tuple[Image.Image, ...]:
    """The views of a photograph as RGB, tinted where the catalog says so."""
    photo = PHOTOS[name]
    root = FETCHED / photo.package
    if photo.split in SPLITS:
        root = Path(importlib.util.find_spec(photo.package).origin).parent
    views = []
    for file in photo.files:
        if not (root / file).is_file():
            raise FileNotFoundError(f"scene {name!r} needs {file}, which the package "
                                    f"{photo.package!r} lacks (looked in {root}); reinstall it, or "
                                    "let cpllm data --fit fetch it")
        view = np.asarray(Image.open(root / file).convert("RGB"), np.float32) * photo.tint
        views.append(families.picture(view))
    return tuple(views)


def _photo_layers(rng: np.random.Generator, scene: Scene, width: int, height: int) -> list[Layer]:
    """A window of the photograph as the canvas, and cut-outs of the same photograph that move."""
    views = photograph(scene.source)
    photo = views[rng.integers(len(views))]
    if rng.random() < 0.5:
        photo = photo.transpose(Image.FLIP_LEFT_RIGHT)
    largest, lines = min(photo.width / width, photo.height / height), min(width, height)
    scale = max(min(largest, 1 / LARGEST_ZOOM), rng.uniform(0.6, 1.0) * largest)
    layers = [Layer(_window(rng, photo, width, height, scale))]
    for size in rng.uniform(0.12, 0.3, rng.integers(1, 4)) * lines:
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
    change = _development(rng, scene, layers[0].image)
    layers = [replace(layer, image=_every(layer.image, change)) for layer in layers]
    if rng.random() < 0.1:
        layers.append(families.caption(rng, scene.width, scene.height))
    moves, noise = _camera(rng, scene), _grain(rng, scene)
    bar = round(scene.height * rng.uniform(0.06, 0.13)) if rng.random() < 0.06 else 0
    film = np.zeros((scene.frames, scene.height, scene.width, 3), np.uint8)
    for n in range(scene.frames):
        shot = np.asarray(_shoot(layers, scene, n, *(m[n] for m in moves)))
        film[n, bar:scene.height - bar] = noise(shot)[bar:scene.height - bar]
    return tone_map(film, rng) if scene.dataset == "shorts-hdr2sdr" else film


def _layers(rng: np.random.Generator, scene: Scene) -> list[Layer]:
    """What stands before the camera, back to front."""
    width, height = (round(MARGIN * side) for side in (scene.width, scene.height))
    if scene.family == "photo":
        return _photo_layers(rng, scene, width, height)
    if scene.family == "collage":
        pool = [photograph(name)[0] for name in album(scene.split)]
        return families.collage(rng, width, height, scene.frames, pool)
    variant = WORLDS[scene.family].index(scene.content) - 1
    return getattr(families, scene.family)(rng, width, height, scene.frames, variant)


def _every(image, change):
    """An image or each of several changed; transparency is kept."""
    if isinstance(image, tuple):
        return tuple(_every(one, change) for one in image)
    changed = change(image.convert("RGB"))
    if image.mode == "RGBA":
        changed.putalpha(image.getchannel("A"))
    return changed


def _development(rng: np.random.Generator, scene: Scene, canvas: Image.Image):
    """What this camera makes of the light: lens blur, saturation, exposure, balance, gamma.

    Automatic exposure spreads most scenes over most levels, at most 1.8 times; a fifth stay dull.
    Drawn worlds are sharper than any lens; screens are filmed by none, photographs by theirs.
    """
    s, luma = rng.uniform(0.45, 1.15), (0.299, 0.587, 0.114)
    matrix = [(1 - s) * luma[j] + s * (i == j) if j < 3 else 0 for i in range(3) for j in range(4)]
    low, high = np.percentile(np.asarray(canvas.convert("L")), (1, 99))
    black, white = rng.uniform(0, 40), rng.uniform(185, 255)
    gain = np.clip((white - black) / max(high - low, 1), 0.5, 1.8)
    if rng.random() < 0.2:
        gain, black = 0.85, low * 0.85 + 20
    if scene.family not in EXPOSED:
        gain, black = 1.0, low
    x = np.clip((black + (np.arange(256) - low) * gain) / 255, 0, 1)
    balance, gamma = 1 + rng.normal(0, 0.03, 3), rng.uniform(0.85, 1.2)
    curves = [int(min(255, 255 * v * b + 0.5)) for b in balance for v in x**gamma]
    sharp = scene.family in ("photo", *SCREENS)
    lens = None if sharp else ImageFilter.GaussianBlur(rng.uniform(0.1, 0.7))

    def change(image: Image.Image) -> Image.Image:
        image = image.convert("RGB", matrix).point(curves)
        return image.filter(lens) if lens else image

    return change


def _camera(rng: np.random.Generator, scene: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per frame the pan (x, y) in pixels, the zoom and the angle in radians.

    A quarter of the cameras stand on a tripod; the others pan, zoom and shake a little, and a fifth
    turn. All stay within the margin: pan 4.5% and shake 0.5% of the short side, zoom 1 or more.
    """
    t = np.linspace(-1, 1, scene.frames)
    lines = min(scene.height, scene.width)
    moving = rng.random() > 0.25
    turn, reach = rng.uniform(0, 2 * np.pi), moving * rng.uniform(0.003, 0.045) * lines
    pan = reach * t[:, None] * np.array([np.cos(turn), np.sin(turn)])
    pulse = rng.uniform(0.3, 0.9, (2, 1)) * np.arange(scene.frames) + rng.uniform(0, 6.28, (2, 1))
    pan = pan + rng.uniform(0, 0.005) * lines * moving * np.sin(pulse).T
    zoom = 1.04 + moving * rng.uniform(-0.04, 0.04) * t
    return pan, zoom, moving * (rng.random() < 0.2) * rng.uniform(-0.012, 0.012) * t


def _shoot(layers, scene, n, pan, zoom, angle) -> Image.Image:
    """The RGB frame n: every layer put in place, back to front."""
    frame = Image.new("RGB", (scene.width, scene.height))
    for layer in layers:
        image = layer.image[n] if isinstance(layer.image, tuple) else layer.image
        path = np.zeros(2) if layer.path is None else layer.path[n]
        turn = angle * layer.parallax + (0 if layer.spin is None else layer.spin[n])
        scale = 1 + (zoom - 1) * layer.parallax
        spot = np.array([scene.width, scene.height]) / 2 + (np.array(layer.at) + path
                                                            - layer.parallax * pan) * scale
        (_turned if turn else _upright)(frame, image, spot, scale, turn)
    return frame


def _upright(frame, image, spot, scale, turn) -> None:
    """Draw an image into the frame, in place: bicubic, its whole pixels only."""
    size = np.array(image.size) * scale
    low, high = spot - size / 2, spot + size / 2
    left, top = np.maximum(np.ceil(low - 1e-6), 0).astype(int)
    right, bottom = np.minimum(np.floor(high + 1e-6), frame.size).astype(int)
    if right <= left or bottom <= top:
        return
    box = np.clip((np.array([left, top, right, bottom]) - [*low, *low]) / scale, 0,
                  [*image.size, *image.size])
    patch = image.resize((right - left, bottom - top), Image.BICUBIC, tuple(box))
    frame.paste(patch, (left, top), patch if patch.mode == "RGBA" else None)


def _turned(frame, image, spot, scale, turn) -> None:
    """Draw a rotated image into the frame, in place; only the box that it covers is resampled."""
    c, s = abs(np.cos(turn)) * scale / 2, abs(np.sin(turn)) * scale / 2
    half = np.array([c * image.width + s * image.height, s * image.width + c * image.height]) + 1
    left, top = np.maximum(np.floor(spot - half), 0).astype(int)
    right, bottom = np.minimum(np.ceil(spot + half), frame.size).astype(int)
    if right <= left or bottom <= top:
        return
    cos, sin = np.cos(turn) / scale, np.sin(turn) / scale
    linear = np.array([[cos, sin], [-sin, cos]])
    shift = np.array(image.size) / 2 - linear @ (spot - (left, top))
    matrix = np.column_stack([linear, shift]).ravel()
    patch = image.transform((right - left, bottom - top), Image.AFFINE, matrix, Image.BICUBIC)
    frame.paste(patch, (left, top), patch if patch.mode == "RGBA" else None)


def _grain(rng: np.random.Generator, scene: Scene):
    """A function that adds sensor noise, new at each call, to uint8[H, W, 3].

    Shifts of one field stand for fresh fields, at a tenth of the cost; luma noise is stronger.
    Screens have none.
    """
    low, high = (0.8, 3.0) if scene.family == "lowlight" else (0.25, 1.8)
    sigma, reach = np.exp(rng.uniform(np.log(low), np.log(high))), 64
    if scene.family in SCREENS:
        return lambda shot: shot
    shape = (scene.height + reach, scene.width + reach)
    field = 16 * sigma * rng.standard_normal(shape, dtype=np.float32)
    luma, chroma = (0.85 * field).astype(np.int16), (0.4 * field).astype(np.int16)

    def draw(of):
        y, x = rng.integers(0, reach, 2)
        return of[y:y + scene.height, x:x + scene.width]

    def noise(shot: np.ndarray) -> np.ndarray:
        both = np.stack([draw(chroma) for _ in range(3)], -1) + (draw(luma) + 8)[..., None]
        return np.clip(shot + (both >> 4), 0, 255).astype(np.uint8)

    return noise


# --- high dynamic range -------------------------------------------------------------------------

PQ = (2610 / 16384, 2523 / 4096 * 128, 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32)
"""m1, m2, c1, c2, c3 of SMPTE ST 2084."""


def pq_encode(light: np.ndarray) -> np.ndarray:
    """10-bit full-range code values 0–1023 of luminance in cd/m², 0 to 10,000 (ST 2084)."""
    m1, m2, c1, c2, c3 = PQ
    y = np.clip(light / 10_000, 0, 1) ** m1
    return np.round(1023 * ((c1 + c2 * y) / (1 + c3 * y)) ** m2).astype(np.uint16)


def pq_decode(code: np.ndarray) -> np.ndarray:
    """Luminance in cd/m² of 10-bit full-range code values."""
    m1, m2, c1, c2, c3 = PQ
    v = (code / 1023) ** (1 / m2)
    return 10_000 * (np.maximum(v - c1, 0) / (c2 - c3 * v)) ** (1 / m1)


def tone_map(film: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a phone shows of a 10-bit PQ film: uint8[N, H, W, 3] to the same, tone-mapped.

    The film's light is stretched to a peak of 600 to 4,000 cd/m², stored in PQ with 10 bits, and
    brought back to SDR by an extended Reinhard curve, channel by channel. All three are functions
    of one level, hence a table.
    """
    peak, gain, bend = rng.uniform(600, 4000), rng.uniform(0.7, 1.6), rng.uniform(1.0, 1.5)
    linear = (np.arange(256) / 255) ** 2.4
    light = 203 * gain * linear + (peak - 203 * gain) * linear ** (3 * bend)  # highlights
    seen = pq_decode(pq_encode(light)) / 203
    white = seen[-1]
    sdr = seen * (1 + seen / white**2) / (1 + seen)
    return (255 * np.clip(sdr / sdr[-1], 0, 1) ** (1 / 2.4) + 0.5).astype(np.uint8)[film]
