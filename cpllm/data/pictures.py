"""Single frames of thousands of scenes beside those that have clips: what public encoders bring.

A frame costs a hundredth of a clip with its labels, and a caption needs no measurement.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd

from cpllm import atomic, records
from cpllm.config import Data
from cpllm.data import families, photographs, scenes, video, without_avx512

NAME = "pictures"
KIND = scenes.Set("train", scenes.SEEN, 0.1, (160, 216, 160, 270, 192),
                  (*scenes.WIDE, *scenes.TALL))
"""Small ones: they are resized to the encoder's side anyway."""


def catalog(count: int, data: Data) -> tuple[scenes.Scene, ...]:
    """Scenes of one frame: training photographs, and families in `scenes.SEEN` less `without`.

    Beside wide scenes they show the fetched photographs too, whole and in collages.
    """
    kind = KIND._replace(split="fit" if data.wide_scenes else KIND.split,
                         worlds=tuple(w for w in KIND.worlds if w not in data.without))
    photos = scenes._photographs(NAME, kind, False, round(kind.photos * count), data)
    worlds = scenes._worlds(NAME, kind, False, count - len(photos), data)
    return tuple(replace(scene, frames=1) for scene in (*photos, *worlds))


def draw(count: int, size: int, data: Data) -> tuple[np.ndarray, pd.DataFrame]:
    """uint8[count,size,size,3], and rows of each one's `video` (a name), `content`, `style`.

    Errors as `photographs.fetch`, where its photographs are shown and missing.
    """
    if data.wide_scenes:
        photographs.fetch()
    chosen, one = catalog(count, data), partial(_one, size=size)
    if count < 100:  # less than what processes take to start
        drawn = [one(scene) for scene in chosen]
    else:
        without_avx512()
        with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
            drawn = list(pool.map(one, chosen, chunksize=20))
    return np.stack(drawn), _words(chosen)


def ensure(count: int, size: int, data: Data, folder: Path) -> tuple[np.ndarray, pd.DataFrame]:
    """`draw`'s pictures, from a file of `folder` named after all that they depend on.

    Read where they are used: a few thousand of them are hundreds of megabytes.
    """
    code = [records.file_hash(Path(module.__file__))
            for module in (scenes, families, video, *[photographs] * bool(data.wide_scenes))]
    chosen = catalog(count, data)
    path = folder / f"pictures-{records.key([[asdict(s) for s in chosen], size, code])}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with atomic.whole(path) as part:
            np.save(part, draw(count, size, data)[0])
    return np.load(path, mmap_mode="r"), _words(chosen)


def _words(chosen: Sequence[scenes.Scene]) -> pd.DataFrame:
    return pd.DataFrame(
        [{"video": s.name, "content": s.content, "style": s.style} for s in chosen])


def _one(scene: scenes.Scene, size: int) -> np.ndarray:
    return video.resize(scenes.render(scene), size)[0]
