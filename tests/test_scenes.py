import collections
import dataclasses
import hashlib
import itertools
import subprocess
import sys

import numpy as np
import pytest
from scipy import ndimage

from cpllm import config
from cpllm.data import scenes

SMOKE = scenes.catalog(config.smoke().data)
POCKET = scenes.catalog(config.pocket().data)
ONE_PER_FAMILY = {s.family: dataclasses.replace(s, width=192, height=144, frames=4) for s in POCKET}


@pytest.mark.parametrize("counts", [(6, 3, 3), (66, 16, 40), (2, 2, 2), (25, 11, 12)])
def test_splits_have_the_configured_counts_and_mix(counts):
    found = scenes.catalog(config.Data(*counts))
    for split, count in zip(scenes.SPLITS, counts, strict=True):
        families = [s.family for s in found if s.split == split]
        assert len(families) == count
        assert {f == "photo" for f in families} == {True, False}


@pytest.mark.parametrize("catalog", [SMOKE, POCKET])
def test_no_source_is_in_two_splits(catalog):
    splits = collections.defaultdict(set)
    for scene in catalog:
        splits[scene.source].add(scene.split)
    assert all(len(s) == 1 for s in splits.values())
    assert len({s.name for s in catalog}) == len(catalog)


def test_one_family_is_seen_in_test_only():
    assert {s.split for s in POCKET if s.family == "game"} == {"test"}
    assert {s.split for s in POCKET if s.family == "collage"} == {"train"}


@pytest.mark.parametrize(("catalog", "lines"), [(SMOKE, 144), (POCKET, 540)])
def test_sizes_are_even_bounded_and_of_both_orientations(catalog, lines):
    assert all(s.width % 2 == s.height % 2 == 0 for s in catalog)
    assert all(144 <= min(s.width, s.height) <= lines for s in catalog)
    assert {np.sign(s.width - s.height) for s in catalog} >= {-1, 1}


def test_a_quarter_of_pocket_has_all_lines_in_photographs_too():
    full = [s for s in POCKET if min(s.width, s.height) == 540]
    assert len(full) >= len(POCKET) / 4
    assert sum(s.family == "photo" for s in full) >= 5


@pytest.mark.parametrize("name", scenes.PHOTOS)
def test_every_photograph_loads(name):
    for view in scenes.photograph(name):
        assert view.mode == "RGB" and min(view.size) >= 170 and np.asarray(view).std() > 5


def test_missing_photograph_names_file_and_package(monkeypatch):
    lost = scenes.Photo("train", "skimage", ("data/lost.png",), "", "")
    monkeypatch.setitem(scenes.PHOTOS, "lost", lost)
    with pytest.raises(FileNotFoundError, match=r"data/lost\.png.*'skimage'"):
        scenes.photograph("lost")


def test_rendering_repeats_to_the_byte():
    for scene in ONE_PER_FAMILY.values():
        assert np.array_equal(scenes.render(scene), scenes.render(scene)), scene.name


def test_another_process_renders_the_same_bytes():
    code = ("import hashlib; from cpllm import config; from cpllm.data import scenes;"
            "s = scenes.catalog(config.smoke().data)[0];"
            "print(hashlib.sha256(scenes.render(s).tobytes()).hexdigest())")
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == hashlib.sha256(scenes.render(SMOKE[0]).tobytes()).hexdigest()


@pytest.mark.parametrize("family", ONE_PER_FAMILY)
def test_frames_have_detail_and_move_by_more_than_a_global_shift(family):
    scene = dataclasses.replace(ONE_PER_FAMILY[family], frames=8)
    film = scenes.render(scene)
    assert film.shape == (8, 144, 192, 3) and film.dtype == np.uint8
    first, last = (film[n].mean(-1) for n in (0, -1))
    assert 8 < first.mean() < 248 and first.std() > 5
    assert all(np.any(a != b) for a, b in itertools.pairwise(film))
    assert unexplained_by_shift(first, last) > 3


def unexplained_by_shift(a, b, reach=16):
    """The largest block's mean absolute difference after the best global integer shift."""
    inner = (slice(reach, -reach),) * 2
    gaps = [ndimage.uniform_filter(np.abs(a - np.roll(b, (y, x), (0, 1))), 16)[inner]
            for y in range(-reach, reach + 1, 2) for x in range(-reach, reach + 1, 2)]
    return min(gaps, key=np.mean).max()
