"""What the low-level encoder learns first: how much the pixels under each token have lost.

In the place of VideoPrism's public weights. A clip's one score is little to learn a tower from,
while its original says of each place what the encode took away. So the tower, which sees the coded
clip alone, first tells that of every token; what it is read off with is never used again. Encodes
of training scenes without a fault; one result serves all seeds, in a file named after a hash of
all that it depends on.
"""

from __future__ import annotations

import dataclasses
import shutil
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pandas as pd
from flax import nnx
from jax import Array
from safetensors.numpy import load_file, save_file

from cpllm import atomic, config, pretrain, records
from cpllm.data import manifests, video
from cpllm.data.batches import Batch, augmentation, frame_store, store_frames, stored
from cpllm.model import weights
from cpllm.model.layers import Dense
from cpllm.model.siglip import patchify
from cpllm.model.videoprism import LUMA, VideoPrism

CODE = ("pretrain_low.py", "pretrain.py", "data/batches.py", "data/video.py",
        "model/layers.py", "model/siglip.py", "model/videoprism.py")
"""The modules that decide what comes out."""

C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
"""SSIM's constants for levels of 0 to 255."""


class Gauge(nnx.Module):
    """The low-level encoder, by CP-LLM's name, and what reads a number off each of its tokens."""

    def __init__(self, model: config.Model, rngs: nnx.Rngs):
        self.low = VideoPrism(model, rngs)
        self.read = Dense(model.low.width, 1, rngs)

    def __call__(self, patches: Array, present: Array) -> Array:
        """uint8[B,K,P,P,3], bool[B,K] → float[B,K,T_l]."""
        return self.read(self.low(patches, present))[..., 0]


def lost(coded: Array, original: Array, side: int) -> Array:
    """What squares of `side` pixels have lost: √(1 - SSIM) of luma, 0 (nothing) to √2.

    uint8[...,P,P,3] twice → float32[...,(P/side)²]. SSIM with one window, the square itself (Wang
    et al. 2004, Eq. 13); the root spreads out the small losses, where most encodes are.
    """
    def squares(x: Array) -> Array:  # [N, squares, pixels]
        luma = x.astype(jnp.float32) @ LUMA
        return patchify(luma.reshape(-1, *x.shape[-3:-1], 1), side)

    x, y = squares(coded), squares(original)
    mx, my = x.mean(-1), y.mean(-1)
    shared = ((x - mx[..., None]) * (y - my[..., None])).mean(-1)
    ssim = (2 * mx * my + C1) / (mx**2 + my**2 + C1) * (2 * shared + C2) / (
        x.var(-1) + y.var(-1) + C2)
    return jnp.sqrt(jnp.maximum(1 - ssim, 0)).reshape(*coded.shape[:-3], -1)


def loss(model: Gauge, batch: Batch, side: int) -> Array:
    """Mean squared error of what the gauge says of each token, over the patches there are."""
    missed = model(batch["coded"], batch["present"]) - lost(batch["coded"], batch["original"], side)
    return jnp.square(missed).mean(where=batch["present"][..., None])


def fit(cfg: config.Config, clips: Path, kept: Path) -> tuple[Gauge, list[float]]:
    """The gauge, and the loss of each step.

    clips: folder with `manifest.csv` and its videos; kept: of checkpoints, from which it goes on.
    """
    rows = manifests.read(clips / "manifest.csv").query("split == 'train'")
    rows = manifests.without(rows, cfg.data.without)
    store = frame_store(clips, cfg)
    store_frames(rows, clips, store, cfg)
    wanted = manifests.pairs(rows, f"pretrain_low.steps, {clips}")
    known = [tuple(stored(store, row) for row in pair) for pair in wanted]
    of = cfg.pretrain_low

    def batch(rng: np.random.Generator) -> Batch:
        drawn = [_draw(known[i], cfg, rng) for i in rng.integers(len(known), size=of.frames)]
        return {k: np.stack([one[k] for one in drawn]) for k in drawn[0]}

    side = cfg.video.patch_size // (cfg.model.low.image // cfg.model.low.patch)
    return pretrain.descend(lambda: Gauge(cfg.model, nnx.Rngs(0)), partial(loss, side=side), batch,
                            of.steps, of.learning_rate, kept)


def _draw(files: tuple[Path, Path], cfg: config.Config, rng: np.random.Generator) -> Batch:
    """The same patches of one key frame, coded and original, turned alike."""
    at, change = rng.integers(cfg.train.frames), augmentation(rng, relight=False)
    frames = np.stack([np.load(file, mmap_mode="r")[at] for file in files])
    k, side = cfg.pretrain_low.patches, cfg.video.patch_size
    places = video.patch_positions(*frames.shape[1:3], side, k, rng, cfg.video.align)
    patches, present = video.cut_patches(frames, side, k, places)
    coded, original = change(patches)
    return {"coded": coded, "original": original, "present": present}


def ensure(cfg: config.Config, data: Path) -> Path:
    """The file of this configuration's pretrained low-level encoder; trained now where missing.

    data: as in `train.run`. The losses lie beside it, `pretrain.history` names the file, and until
    it is done its checkpoints.
    """
    path = data / "pretrained" / f"low-{key(cfg, data)}.safetensors"
    if not path.exists():
        kept = path.with_suffix("")
        gauge, losses = fit(cfg, config.clips(cfg, data), kept)
        log = pd.DataFrame({"part": "low", "step": range(1, len(losses) + 1), "loss": losses})
        records.write_csv(pretrain.history(path), log)
        with atomic.whole(path) as part:
            save_file(weights.tensors(gauge), part)
        shutil.rmtree(kept)
    return path


def load(path: Path, model: config.Model) -> dict[str, np.ndarray]:
    """What of the file's tensors `model` has, by their names."""
    own = weights.parameters(weights.shapes(model))
    return {k: x for k, x in load_file(path).items() if k in own}


def key(cfg: config.Config, data: Path) -> str:
    """Hash of the settings, the manifest and the code."""
    package, clips, model = Path(__file__).parent, config.clips(cfg, data), cfg.model
    made_of = {
        "model": [dataclasses.asdict(model.low), model.local_norm, model.spectrum, model.dtype],
        "input": [cfg.video.patch_size, cfg.video.align, frame_store(clips, cfg).name],
        "pretrain": dataclasses.asdict(cfg.pretrain_low),
        "manifest": manifests.sha256(clips / "manifest.csv", ["train"]),
        "without": cfg.data.without,
        "code": [records.file_hash(package / name) for name in CODE],
    }
    return records.key(made_of)
