import itertools

import numpy as np
import pytest

from cpllm import config
from cpllm.data import distort, scenes

FRAMES = scenes.render(scenes.catalog(config.smoke().data)[0])


def psnr(a, b):
    error = np.mean((a.astype(float) - b) ** 2)
    return 10 * np.log10(255**2 / max(error, 1e-9))


@pytest.mark.parametrize("name", distort.DISTORTIONS)
def test_more_strength_means_less_fidelity(name):
    distorted = [distort.apply(name, s, FRAMES, seed=3) for s in (0.0, 0.35, 0.7, 1.0)]
    assert all(d.shape == FRAMES.shape and d.dtype == np.uint8 for d in distorted)
    levels = [psnr(FRAMES, d) for d in distorted]
    assert levels[0] > 30
    assert all(a > b for a, b in itertools.pairwise(levels)), levels


@pytest.mark.parametrize("name", distort.DISTORTIONS)
def test_same_arguments_give_same_bytes(name):
    once, again = (distort.apply(name, 0.6, FRAMES, seed=5) for _ in range(2))
    assert np.array_equal(once, again)


def test_the_original_is_left_alone():
    before = FRAMES.copy()
    for name in distort.DISTORTIONS:
        distort.apply(name, 0.5, FRAMES, seed=0)
    assert np.array_equal(before, FRAMES)


def test_draws_repeat_and_reach_every_distortion():
    drawn = [distort.draw(seed) for seed in range(200)]
    assert drawn == [distort.draw(seed) for seed in range(200)]
    names = [name for name, _ in drawn]
    assert set(names) == set(distort.DISTORTIONS)
    assert names.count("recompress") > names.count("freeze")
    assert all(0 <= strength <= 1 for _, strength in drawn)


def test_joined_names_follow_each_other():
    both = distort.apply("exposure+noise", 0.5, FRAMES, seed=1)
    assert psnr(FRAMES, both) < psnr(FRAMES, distort.apply("exposure", 0.5, FRAMES, seed=1))
    with pytest.raises(ValueError, match="got 'sepia'"):
        distort.apply("noise+sepia", 0.5, FRAMES, seed=0)


def test_unknown_distortion_names_the_known():
    with pytest.raises(ValueError, match=r"recompress.*got 'sepia'"):
        distort.apply("sepia", 0.5, FRAMES, seed=0)


def test_strength_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"\[0, 1\]; got 1\.5"):
        distort.apply("blur", 1.5, FRAMES, seed=0)
