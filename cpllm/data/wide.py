"""Scenes of the grid `fit`: many more than the tables train on, with a few close levels each.

Photographs and procedural worlds of the training split alone, so that every set that a table reads
stays unseen, and photographs that no set has (`photographs`); larger on the average, because the
clips that people score are.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cpllm.config import Data
from cpllm.data import distort, photographs, scenes

NAME = "wide"
FRAMES = 32
"""Late in a group of pictures a block is what motion compensation carried there, and looks cleaner
than VMAF says: who has seen the first frames alone takes the later ones for better."""
PRESETS = ("veryfast", "medium", "superfast", "fast")
"""Of x264, in turn over the scenes: users' encoders aren't all of one speed."""

WEAR = ("noise", "upscale", "recompress")
"""What the originals carry, in the order in which a camera and an upload do it; `data.wear_noise`
and its like say how many and how strong. The clips that people score were soft, noisy and
compressed before anyone compared them, often at another size; their FR-proxy counts from there."""

KIND = scenes.Set(
    "train",
    ("collage", "text", "leaves", "collage", "cartoon", "terrain", "collage", "solids", "lowlight",
     "bokeh", "pixelart"),
    0.15, (540, 720, 540, 360, 540, 480, 1080, 540, 270, 720, 540, 360),
    (16 / 9, 9 / 16, 16 / 9, 4 / 3, 16 / 9, 1.0, 9 / 16, 2.35),
)


def catalog(data: Data) -> tuple[scenes.Scene, ...]:
    """`data.wide_scenes` scenes; none of a test set, none of a family in `scenes.UNSEEN`.

    With `data.wide_held` those of some photographs are validation's: a model knows the levels of
    scenes that it trained on, so that only others tell recipes apart.
    """
    n, new = data.wide_scenes, round(data.wide_fetched * data.wide_scenes)
    photos = scenes._photographs(NAME, KIND, False, round(KIND.photos * n), data)
    worlds = scenes._worlds(NAME, KIND, False, n - new - len(photos), data)
    made = (*photos, *_fetched(new, data), *worlds)
    return tuple(replace(scene, frames=FRAMES) for scene in made)


def _fetched(count: int, data: Data) -> list[scenes.Scene]:
    """`count` scenes over the fetched photographs in turn: by their sizes, no file is opened."""
    sizes = sorted({scenes._size(lines, aspect, data.max_lines)
                    for lines in KIND.lines for aspect in KIND.aspects}, key=min)
    shots, made = [*photographs.SHOTS.items()], []
    for k in range(count):
        name, shot = shots[k % len(shots)]
        held = data.wide_held and k % len(shots) % data.wide_held == 0
        kind = KIND._replace(split="validation") if held else KIND
        room = scenes._fitting(shot.size, sizes)
        size = room[(7 * (k // len(shots)) + 3 * k) % len(room)]
        made.append(scenes._scene(NAME, kind, False, name, "photo", size, k, data, shot.content,
                                  shot.style))
    return made


def render(scene: scenes.Scene, data: Data) -> np.ndarray:
    """Film a scene of any set, a wide one with its wear: uint8[N, H, W, 3] RGB."""
    film, rng = scenes.render(scene), np.random.default_rng([scene.seed, 2])
    for name, (share, most) in wear(scene, data).items():
        if rng.random() < share:
            strength, seed = rng.uniform(0, most), int(rng.integers(2**31))
            film = distort.apply(name, strength, film, seed)
    return film


def proxy_lines(scene: scenes.Scene, data: Data) -> int:
    """Short side at which VMAF compares a scene's clips: a wide one's own, as users' are judged."""
    own = min(scene.height, scene.width)
    return own if scene.dataset == NAME else data.proxy_lines


def wear(scene: scenes.Scene, data: Data) -> dict[str, tuple[float, ...]]:
    """By fault, in turn: the share of such scenes that carry it, and how strong at most."""
    return {name: getattr(data, f"wear_{name}") for name in WEAR if scene.dataset == NAME}


def recipe(scene: scenes.Scene, data: Data) -> dict:
    """What a scene's clips depend on beside what those of other sets do."""
    return {"wear": worn} if (worn := wear(scene, data)) else {}


def preset(scene: scenes.Scene, data: Data) -> str:
    """x264's preset for a scene."""
    return PRESETS[scene.seed % len(PRESETS)] if scene.dataset == NAME else data.preset


def levels(scene: scenes.Scene) -> list[int]:
    """Up to six CRFs between 11 and 50 in pairs that lie 1 to 3 apart."""
    rng = np.random.default_rng(scene.seed)
    low = rng.integers(11, 48, 3)
    return sorted({*low.tolist(), *(low + rng.integers(1, 4, 3)).tolist()})
