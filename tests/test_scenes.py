import collections
import dataclasses
import hashlib
import itertools
import subprocess
import sys

import numpy as np
import pytest
from scipy import ndimage

from cpllm import config, grid, records
from cpllm.data import encoding, labels, ladder, photographs, scenes, wide

SMOKE = scenes.catalog(config.smoke().data)
POCKET = scenes.catalog(config.pocket().data)
FIT = grid.read("fit", "pocket", records.ROOT)[0].cfg
ONE_PER_FAMILY = {s.family: dataclasses.replace(s, width=192, height=144, frames=4) for s in POCKET}


def test_every_set_has_the_configured_counts():
    found = scenes.catalog(config.Data(5, 4, 3, singles=(8, 2, 6)))
    ladders = collections.Counter(s.dataset for s in found if s.codecs)
    assert ladders == {"lsvq-train": 5, "lsvq-validation": 4, "lsvq-test": 3}
    singles = collections.Counter(s.dataset for s in found if not s.codecs)
    counts = {"train": 8, "validation": 2, "test": 6}
    assert singles == {name: round(counts[kind.split] * kind.share)
                       for name, kind in scenes.SETS.items()}
    assert all(s.split == scenes.SETS[s.dataset].split for s in found)


@pytest.mark.parametrize("catalog", [SMOKE, POCKET])
def test_no_source_is_in_two_splits(catalog):
    splits = collections.defaultdict(set)
    for scene in catalog:
        splits[scene.source].add(scene.split)
    assert all(len(s) == 1 for s in splits.values())
    assert len({s.name for s in catalog}) == len({s.seed for s in catalog}) == len(catalog)


def test_three_procedural_families_are_seen_in_test_sets_only():
    splits = collections.defaultdict(set)
    for scene in POCKET:
        splits[scene.family].add(scene.split)
    assert [f for f in splits if splits[f] == {"test"}] == [*scenes.UNSEEN]
    assert len(scenes.UNSEEN) == 3
    assert all(splits[f] == {*scenes.SPLITS} for f in scenes.SEEN)


def test_every_ladder_has_a_source_of_its_own():
    for split, count in (("train", 64), ("validation", 24), ("test", 40)):
        sources = [s.source for s in POCKET if s.codecs and s.split == split]
        assert len(sources) == len(set(sources)) == count


def test_photographs_are_never_shared_between_splits():
    for scene in POCKET:
        if scene.family == "photo":
            assert scenes.PHOTOS[scene.source].split == scene.split


@pytest.mark.parametrize(("catalog", "lines"), [(SMOKE, 144), (POCKET, 1080)])
def test_sizes_are_even_bounded_and_of_both_orientations(catalog, lines):
    assert all(s.width % 2 == s.height % 2 == 0 for s in catalog)
    assert all(144 <= min(s.width, s.height) <= lines for s in catalog)
    assert {np.sign(s.width - s.height) for s in catalog} >= {-1, 1}


def test_shorts_are_upright_and_the_1080p_set_is_large():
    for scene in POCKET:
        if scene.dataset.startswith("shorts"):
            assert scene.height > scene.width
        if scene.dataset == "lsvq-1080p":
            assert min(scene.height, scene.width) >= 540


def test_each_of_pocket_s_test_sets_has_150_originals():
    data = config.pocket().data
    originals = collections.Counter(
        s.dataset for s in POCKET if s.split == "test"
        for clip in ladder.clips(s, data) if clip["role"] == "original")
    assert len(originals) == 7 and min(originals.values()) >= 150, originals


def test_a_quarter_of_pocket_s_clips_has_540_lines_or_more_and_all_have_12_frames():
    data = config.pocket().data
    lines = [min(s.width, s.height) for s in POCKET for _ in ladder.clips(s, data)]
    assert np.mean(np.array(lines) >= 540) >= 1 / 4
    assert {s.frames for s in POCKET} == {12}


def test_other_codecs_are_for_test_scenes_only():
    several = [s for s in POCKET if len(s.codecs) > 1]
    assert len(several) == 6 and {s.split for s in several} == {"test"}
    assert {s.family == "photo" for s in several} == {True, False}


@pytest.mark.parametrize("name", sorted(scenes.PHOTOS.keys() - photographs.SHOTS))
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
    assert 2 < first.mean() < 248 and first.std() > 2.5
    assert all(np.any(a != b) for a, b in itertools.pairwise(film))
    assert unexplained_by_shift(first, last) > 3


def test_low_light_is_dark_and_bokeh_has_sharp_and_soft_parts():
    dark = scenes.render(ONE_PER_FAMILY["lowlight"])
    assert dark.mean() < 60
    bokeh = scenes.render(dataclasses.replace(ONE_PER_FAMILY["bokeh"], width=384, height=288))
    detail = ndimage.uniform_filter(np.abs(ndimage.laplace(bokeh[0].mean(-1))), 24)
    assert np.percentile(detail, 98) > 3 * np.percentile(detail, 20)


def test_pq_codes_survive_a_round_trip_and_know_their_anchors():
    """SMPTE ST 2084: 100 cd/m² is 50.8% of the signal range, 10,000 cd/m² all of it."""
    codes = np.arange(1024)
    np.testing.assert_array_equal(scenes.pq_encode(scenes.pq_decode(codes)), codes)
    assert scenes.pq_encode(np.array([0, 100, 10_000])).tolist() == [0, 520, 1023]


def test_tone_mapping_keeps_order_black_and_white():
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)
    mapped = scenes.tone_map(ramp, np.random.default_rng(3))[0, ..., 0].ravel().astype(int)
    assert mapped[0] == 0 and mapped[-1] == 255 and (np.diff(mapped) >= 0).all()
    assert mapped[128] != 128


def unexplained_by_shift(a, b, reach=16):
    """The largest block's mean absolute difference after the best global integer shift."""
    inner = (slice(reach, -reach),) * 2
    gaps = [ndimage.uniform_filter(np.abs(a - np.roll(b, (y, x), (0, 1))), 16)[inner]
            for y in range(-reach, reach + 1, 2) for x in range(-reach, reach + 1, 2)]
    return min(gaps, key=np.mean).max()


def test_wide_scenes_share_nothing_with_sets_that_are_scored():
    """The default model may train on them: by family and by source they are training's own."""
    made, scored = wide.catalog(FIT.data), [s for s in POCKET if s.split != "train"]
    assert len(made) == FIT.data.wide_scenes and {s.split for s in made} == {"train"}
    assert not {s.source for s in made} & {s.source for s in scored}
    assert not {s.family for s in made} & set(scenes.UNSEEN)
    chosen = [s for s in ladder.catalog(FIT.data) if s.split == "validation"]
    assert chosen == [s for s in POCKET if s.split == "validation"]


def test_a_wide_scene_is_judged_at_its_own_lines(tmp_path):
    scene = dataclasses.replace(wide.catalog(FIT.data)[0], height=180, width=320, frames=4)
    rows = ladder.make(scene, FIT.data, tmp_path, ladder.read_committed(tmp_path))
    reference, last = tmp_path / "reference.mp4", rows[-3]
    encoding.encode(wide.render(scene, FIT.data), reference, 0, scene.fps, preset="ultrafast")
    own, declared = (labels.vmaf([tmp_path / f"{last['video']}.mp4"], reference, lines,
                                 FIT.data.proxy_every)[0].proxy for lines in (180, 360))
    assert last["crf"] > 20 and last["proxy"] == own != declared


def test_wide_levels_come_in_close_pairs_that_x264_knows():
    for scene in wide.catalog(FIT.data)[:50]:
        levels = wide.levels(scene)
        assert 2 <= len(levels) <= 6 and min(levels) >= 11 and max(levels) <= 51
        assert np.diff(levels).min() <= 3
        rows = ladder.clips(scene, FIT.data)
        assert [r["crf"] for r in rows if r["video"].startswith(f"{scene.name}@crf")] == levels


def test_most_wide_originals_are_worn_alike_at_each_call_and_others_never():
    small = [dataclasses.replace(s, width=96, height=64, frames=3)
             for s in wide.catalog(FIT.data) if s.source not in photographs.SHOTS][::12]
    films = [wide.render(s, FIT.data) for s in small]
    worn = [not np.array_equal(films[i], scenes.render(s)) for i, s in enumerate(small)]
    assert len(small) / 2 < sum(worn) < len(small)
    assert np.array_equal(films[0], wide.render(small[0], FIT.data))
    other = ONE_PER_FAMILY["leaves"]
    assert np.array_equal(wide.render(other, FIT.data), scenes.render(other))


def test_wear_is_as_the_configuration_says():
    """Another share makes other clips, and a folder of the ones before is not taken for them."""
    scene = dataclasses.replace(wide.catalog(FIT.data)[0], width=96, height=64, frames=3)
    none = dataclasses.replace(FIT.data, **{f"wear_{name}": (0.0, 1.0) for name in wide.WEAR})
    noise = dataclasses.replace(none, wear_noise=(1.0, 0.9))
    clean, noisy = wide.render(scene, none), wide.render(scene, noise)
    assert np.array_equal(clean, scenes.render(scene)) and not np.array_equal(clean, noisy)
    assert len({ladder._recipe(scene, data) for data in (FIT.data, none, noise)}) == 3
    other = ONE_PER_FAMILY["leaves"]
    assert ladder._recipe(other, none) == ladder._recipe(other, noise)
