"""Trivial baselines: what a model must beat before its flip rate means anything.

Each takes a manifest row and the video's key frames, and returns a number that grows with
quality; only its order counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np


def file_size(row: Mapping, frames: np.ndarray) -> float:
    """Bits per pixel of the file. Orders any single-codec ladder, and knows nothing of content."""
    return 8 * row["bytes"] / (row["frames"] * frames.shape[1] * frames.shape[2])


def sharpness(row: Mapping, frames: np.ndarray) -> float:
    """Log-variance of the Laplacian of luma (BT.601), averaged over key frames."""
    luma = frames.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    y = np.pad(luma, [(0, 0), (1, 1), (1, 1)], mode="edge")
    edges = y[:, :-2, 1:-1] + y[:, 2:, 1:-1] + y[:, 1:-1, :-2] + y[:, 1:-1, 2:] - 4 * luma
    return float(np.log1p(edges.reshape(len(frames), -1).var(1)).mean())


BASELINES: dict[str, Callable[[Mapping, np.ndarray], float]] = {
    "filesize": file_size,
    "sharpness": sharpness,
}
