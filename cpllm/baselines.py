"""Trivial baselines: what a model must beat before its flip rate means anything.

Each takes a manifest row and the video's key frames, and returns a number that grows with
quality; only its order counts. NIQE and the random encoder are fitted to the training split first.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage, special

from cpllm import config
from cpllm.data import manifests, video
from cpllm.data.batches import model_inputs

Measure = Callable[[Mapping, np.ndarray], float]

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""BT.601."""

SHAPES = np.arange(0.2, 10, 0.001)
RATIOS = special.gamma(2 / SHAPES) ** 2 / (special.gamma(1 / SHAPES) * special.gamma(3 / SHAPES))
"""(E|x|)² / E x² of generalised Gaussians of these shapes; it grows with the shape."""


def file_size(row: Mapping, frames: np.ndarray) -> float:
    """Bits per pixel of the file. Orders any single-codec ladder, and knows nothing of content."""
    return 8 * row["bytes"] / (row["frames"] * frames.shape[1] * frames.shape[2])


def sharpness(row: Mapping, frames: np.ndarray) -> float:
    """Log-variance of the Laplacian of luma (BT.601), averaged over key frames."""
    luma = frames.astype(np.float32) @ LUMA
    y = np.pad(luma, [(0, 0), (1, 1), (1, 1)], mode="edge")
    edges = y[:, :-2, 1:-1] + y[:, 2:, 1:-1] + y[:, 1:-1, :-2] + y[:, 1:-1, 2:] - 4 * luma
    return float(np.log1p(edges.reshape(len(frames), -1).var(1)).mean())


def niqe(frame: np.ndarray, pristine: pd.DataFrame) -> float:
    """NIQE (Mittal, Soundararajan and Bovik 2013) of uint8[H,W,3], its sign turned: ≤ 0.

    D = √((μ₁ − μ₂)ᵀ ((Σ₁ + Σ₂) / 2)⁺ (μ₁ − μ₂)) between Gaussians of the frame's patches and of
    `pristine`, from `fit_niqe`. Kept: features, patches of 96 at full and 48 at half size, the
    distance. Not kept: the authors' 125 photographs, and bicubic halving (here 2×2 means).
    """
    x = niqe_features(frame)[0]
    off = x.mean(0) - pristine.iloc[0].to_numpy()
    spread = (np.cov(x.T) if len(x) > 1 else 0) + pristine.iloc[1:].to_numpy()
    return -float(np.sqrt(off @ np.linalg.pinv(spread / 2) @ off))


def fit_niqe(rows: pd.DataFrame, videos: Path, _: config.Config | None = None) -> pd.DataFrame:
    """The Gaussian of undistorted training originals: a row of means, then 36 of covariance.

    As in the paper only patches count whose mean local deviation exceeds 0.75 of the frame's peak.
    """
    pristine = rows[(rows["role"] == "original") & (rows["distortion"] == "none")]
    found = []
    for frames in _middles(pristine, videos):
        x, sharp = niqe_features(frames[0])
        found.append(x[sharp > 0.75 * sharp.max()])
    x = np.concatenate(found)
    return pd.DataFrame(np.vstack([x.mean(0), np.cov(x.T)]))


def niqe_features(frame: np.ndarray, side: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """float[patches,36] of a uint8[H,W,3] frame, and each patch's mean local deviation.

    A frame smaller than a patch is one patch.
    """
    luma = frame @ LUMA
    side = min(side, *luma.shape) // 2 * 2
    h, w = (n // side * side for n in luma.shape)
    luma = luma[:h, :w]
    half = luma.reshape(h // 2, 2, w // 2, 2).mean((1, 3))
    full, sharp = _scale(luma, side)
    return np.hstack([full, _scale(half, side // 2)[0]]), sharp


def _scale(luma: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """18 features of each patch at one scale, from MSCN coefficients and their four neighbours."""

    def blur(x: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(x, 7 / 6, mode="nearest", radius=3)

    def patches(x: np.ndarray) -> np.ndarray:
        h, w = x.shape[0] // side, x.shape[1] // side
        return x.reshape(h, side, w, side).swapaxes(1, 2).reshape(h * w, -1)

    mean = blur(luma)
    deviation = np.sqrt(np.abs(blur(luma * luma) - mean * mean))
    normal = (luma - mean) / (deviation + 1)
    shape, _, left, right = _asymmetric(patches(normal))
    columns = [shape, (left + right) / 2]
    for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
        columns += _asymmetric(patches(normal * np.roll(normal, shift, (0, 1))))
    return np.stack(columns, 1), patches(deviation).mean(1)


def _asymmetric(x: np.ndarray) -> tuple[np.ndarray, ...]:
    """Asymmetric generalised Gaussians by moments: shape, mean, left and right scale of each row.

    The shape solves ρ(α) = r̂ (γ³ + 1)(γ + 1) / (γ² + 1)², γ = σ_l / σ_r, r̂ = (E|x|)² / E x².
    """
    square, low = x * x, x < 0
    sides = [np.sqrt((square * side).sum(1) / np.maximum(side.sum(1), 1)) for side in (low, ~low)]
    left, right = (np.maximum(s, 1e-6) for s in sides)
    g = left / right
    ratio = np.abs(x).mean(1) ** 2 / np.maximum(square.mean(1), 1e-12)
    shape = np.interp(ratio * (g**3 + 1) * (g + 1) / (g**2 + 1) ** 2, RATIOS, SHAPES)
    unit = np.sqrt(special.gamma(1 / shape) / special.gamma(3 / shape))
    mean = (right - left) * unit * special.gamma(2 / shape) / special.gamma(1 / shape)
    return shape, mean, left * unit, right * unit


def random_features(cfg: config.Config) -> Callable[[np.ndarray], np.ndarray]:
    """A CP-LLM that was never trained: frames uint8[M,H,W,3] → float[M,4D].

    The means and deviations over tokens of u and of v.
    """
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from cpllm.model.cpllm import CPLLM

    graph, params = nnx.split(nnx.jit(lambda: CPLLM(cfg.model, nnx.Rngs(0)))())

    @jax.jit
    def look(inputs):
        seen = nnx.merge(graph, params).see(*inputs)
        return jnp.concatenate([f(x, 1) for x in seen for f in (jnp.mean, jnp.std)], -1)

    def features(frames: np.ndarray) -> np.ndarray:
        inputs = model_inputs(frames, cfg.video)
        return np.asarray(look([inputs[k] for k in CPLLM.inputs]), float)

    return features


def fit_random(rows: pd.DataFrame, videos: Path, cfg: config.Config) -> pd.DataFrame:
    """Ridge regression of the training clips' quality on `random_features` of their middle frames.

    One column: 4D coefficients, then the intercept. The penalty is the one of 10⁻³ … 10⁵ whose
    leave-one-out error is least.
    """
    from sklearn.linear_model import RidgeCV

    look = random_features(cfg)
    x = np.concatenate([look(frames) for frames in _middles(rows, videos)])
    mean, scale = x.mean(0), x.std(0) + 1e-6
    model = RidgeCV(np.logspace(-3, 5, 17)).fit((x - mean) / scale, manifests.quality(rows))
    weights = model.coef_ / scale
    return pd.DataFrame([*weights, model.intercept_ - mean @ weights])


FITS = {"niqe": fit_niqe, "random": fit_random}
"""Baselines that are fitted to the training split: (rows, folder of videos, cfg) → numbers."""

BASELINES = ("filesize", "sharpness", *FITS)


def measures(cfg: config.Config, fits: Mapping[str, pd.DataFrame]) -> dict[str, Measure]:
    """The baselines ready to use, those of `FITS` where their numbers are given."""
    ready: dict[str, Measure] = {"filesize": file_size, "sharpness": sharpness}
    if "niqe" in fits:
        ready["niqe"] = lambda _, frames: niqe(frames[len(frames) // 2], fits["niqe"])
    if "random" in fits:
        look, weights = random_features(cfg), fits["random"].to_numpy()[:, 0]
        ready["random"] = lambda _, frames: float(
            (look(frames[len(frames) // 2][None]) @ weights[:-1] + weights[-1])[0])
    return ready


def _middles(rows: pd.DataFrame, videos: Path) -> Iterator[np.ndarray]:
    """Each clip's middle frame, uint8[1,H,W,3]."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(lambda name: video.key_frames(videos / name, 1, threads=1),
                            manifests.files(rows))
