"""What a frozen high-level encoder makes of the training frames, kept on disk.

An option, `train.cache_high`, for small sets with a large encoder. At pocket size it is off: the
frozen encoder and the augmentation of its views are 3% of a step under the `table` recipe (0.013 of
0.44 CPU-seconds: 24 views, AMD EPYC), and views that are kept can't be augmented.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import jax
import numpy as np
import pandas as pd
from flax import nnx

from cpllm import config
from cpllm.data import video
from cpllm.data.batches import stored
from cpllm.model import weights
from cpllm.model.siglip import Siglip


def ensure(cfg: config.Config, tower: Siglip, rows: pd.DataFrame, store: Path) -> Path:
    """Folder with float32[F,T_h,D_h] of each row's F frames in `store`; what is missing is made.

    It lies beside `store`. Its name is a hash of the encoder's weights and of the preprocessing;
    a file's name has that of its video (`batches.stored`). ValueError for a trained encoder.
    """
    if cfg.model.high_finetune != "frozen":
        raise ValueError("train.cache_high: expected model.high_finetune frozen, got "
                         f"{cfg.model.high_finetune}")
    folder = store.with_name(f"features-{key(cfg, tower, store)}")
    folder.mkdir(parents=True, exist_ok=True)
    graph, state = nnx.split(tower)
    see = jax.jit(lambda state, x: nnx.merge(graph, state)(x))
    for row in rows.itertuples():
        if not (path := stored(folder, row)).exists():
            x = see(state, video.resize(np.load(stored(store, row)), cfg.video.high_size))
            part = path.with_suffix(".part.npy")
            np.save(part, np.asarray(x, np.float32))
            part.replace(path)
    return folder


def key(cfg: config.Config, tower: Siglip, store: Path) -> str:
    """Hash of the encoder's weights and type, and of all that comes before it."""
    made_of = json.dumps([cfg.video.high_size, cfg.model.dtype, store.name])
    found = hashlib.sha256(made_of.encode())
    for name, x in sorted(weights.tensors(tower).items()):
        found.update(name.encode() + np.ascontiguousarray(x).tobytes())
    return found.hexdigest()[:12]
