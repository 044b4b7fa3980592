"""Single frames of thousands of scenes beside those that have clips: what public encoders bring.

A frame costs a hundredth of a clip with its labels, and a caption needs no measurement.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context

import numpy as np
import pandas as pd

from cpllm.config import Data
from cpllm.data import photographs, scenes, video, without_avx512

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
    rows = [{"video": s.name, "content": s.content, "style": s.style} for s in chosen]
    return np.stack(drawn), pd.DataFrame(rows)


def _one(scene: scenes.Scene, size: int) -> np.ndarray:
    return video.resize(scenes.render(scene), size)[0]
