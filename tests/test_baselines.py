"""Trivial baselines, by hand."""

import numpy as np
from scipy import ndimage

from cpllm import baselines

ROW = {"bytes": 6000, "frames": 10}


def test_file_size_is_bits_per_pixel():
    assert baselines.file_size(ROW, np.zeros((2, 60, 80, 3), np.uint8)) == 1.0


def test_sharpness_falls_with_blur():
    rng = np.random.default_rng(0)
    sharp = rng.integers(256, size=(2, 64, 64, 3), dtype=np.uint8)
    blurred = ndimage.gaussian_filter(sharp, (0, 2, 2, 0))
    assert baselines.sharpness(ROW, sharp) > baselines.sharpness(ROW, blurred)
