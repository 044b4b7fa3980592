"""Trivial baselines: what a model must beat before its flip rate means anything.

Each takes a manifest row and the video's key frames, and returns a number that grows with
quality; only its order counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from scipy import ndimage


def file_size(row: Mapping, frames: np.ndarray) -> float:
    """Bits per pixel of the file. Orders any single-codec ladder, and knows nothing of content."""
    return 8 * row["bytes"] / (row["frames"] * frames.shape[1] * frames.shape[2])


def sharpness(row: Mapping, frames: np.ndarray) -> float:
    """Log-variance of the Laplacian of luma (BT.601), averaged over key frames."""
    luma = frames @ np.array([0.299, 0.587, 0.114])
    return float(np.mean([np.log1p(ndimage.laplace(frame).var()) for frame in luma]))


BASELINES: dict[str, Callable[[Mapping, np.ndarray], float]] = {
    "filesize": file_size,
    "sharpness": sharpness,
}
