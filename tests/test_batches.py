import contextlib
import dataclasses
import os
import shutil

import numpy as np
import pandas as pd
import pytest

from cpllm import config, losses
from cpllm.data import annotate, batches, text

CFG = config.replace(config.smoke(), batch=6)
SIZES = {"a": (144, 192), "b": (192, 144), "c": (96, 128)}


@pytest.fixture(scope="module")
def rows():
    made = []
    for scene in SIZES:
        for i, proxy in enumerate((98.0, 80.0, 41.0, 7.0)):
            made.append({
                "video": f"{scene}@{i}", "scene": scene, "role": "original" if i < 2 else "variant",
                "distortion": "none", "proxy": proxy + len(made) / 10, "sha256": "0" * 16,
                "content": f"the letter {scene}", "style": "plain",
            })  # fmt: skip
    return pd.DataFrame(made)


@pytest.fixture(scope="module")
def store(rows, tmp_path_factory):
    """Decoded frames whose first pixels' values tell which row they came from."""
    folder, rng = tmp_path_factory.mktemp("frames"), np.random.default_rng(0)
    base = {s: rng.integers(256, size=(2, *size, 3), dtype=np.uint8) for s, size in SIZES.items()}
    for row in rows.itertuples():
        np.save(batches.stored(folder, row), base[row.scene])
    return folder


@pytest.fixture(scope="module")
def tokenizer(rows):
    return text.train_tokenizer([annotate.describe(r) for r in rows.to_dict("records")], 700)


def make(rows, store, tokenizer, **changes):
    return batches.PairBatches(rows, store, tokenizer, config.replace(CFG, **changes))


def assert_same(one, other):
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def test_a_batch_is_a_function_of_seed_and_step(rows, store, tokenizer):
    one, again = (make(rows, store, tokenizer)[3] for _ in range(2))
    assert_same(one, again)
    other = make(rows, store, tokenizer)[4], make(rows, store, tokenizer, seed=1)[3]
    assert all((one["patches"].shape != o["patches"].shape)
               or (one["patches"] != o["patches"]).any() for o in other)


@pytest.mark.parametrize(("mode", "singles"), [("single", 6), ("pairwise", 0), ("mix", 3)])
def test_input_modes_set_the_share_of_duplicated_singles(rows, store, tokenizer, mode, singles):
    batch = make(rows, store, tokenizer, input_mode=mode)[0]
    assert (batch["first"] == batch["second"]).sum() == singles
    assert len(batch["view"]) == 2 * 6 - singles


def test_both_members_of_a_pair_are_augmented_alike(rows, store, tokenizer):
    """All videos of a scene hold the same frames here, so equal treatment gives equal pixels."""
    made = make(rows, store, tokenizer, input_mode="pairwise", within_share=1.0)
    for step in range(3):
        batch = made[step]
        for k in ("view", "patches"):
            np.testing.assert_array_equal(batch[k][batch["first"]], batch[k][batch["second"]])


@pytest.fixture(scope="module")
def album():
    """Pictures whose pixels tell which one they are, and their words."""
    size = CFG.video.high_size
    words = [{"video": f"p{i}", "content": f"picture {i}", "style": "plain"} for i in range(9)]
    return np.stack([np.full((size, size, 3), i, np.uint8) for i in range(9)]), pd.DataFrame(words)


def told(rows, store, tokenizer, album, groups=1, **changes):
    cfg = config.replace(CFG, **{"told_pictures": 2, **changes})
    return batches.PairBatches(rows, store, tokenizer, cfg, groups, range(groups), None, album)


def test_pictures_stand_after_a_batch_that_is_otherwise_the_same(rows, store, tokenizer, album):
    plain, more = make(rows, store, tokenizer)[3], told(rows, store, tokenizer, album)[3]
    assert_same(plain, {k: x[: len(plain[k])] for k, x in more.items()})
    assert {k: len(x) - len(plain[k]) for k, x in more.items()} == dict.fromkeys(plain, 2)
    again = told(rows, store, tokenizer, album)
    assert_same(more, again[3])
    assert {int(v[0, 0, 0]) for s in range(30) for v in again[s]["view"][-2:]} == set(range(9))


def test_a_picture_is_told_of_and_its_answer_goes_on(rows, store, tokenizer, album):
    batch = told(rows, store, tokenizer, album)[0]
    for i in (-1, -2):
        assert batch["first"][i] == batch["second"][i] == len(batch["view"]) + i
        said = tokenizer.decode(batch["tokens"][i][batch["answer"][i]].tolist())
        number = batch["view"][i][0, 0, 0]
        assert said.strip() == annotate.portray(album[1].iloc[number].to_dict())
        assert f"picture {number}" in said
        end = batch["tokens"][i][batch["valid"][i]][-1]
        assert end != tokenizer.token_to_id(text.EOS)


@pytest.mark.parametrize("form", ["product", "logistic"])
def test_pictures_have_no_part_in_ranking_and_regression(rows, store, tokenizer, album, form):
    batch = told(rows, store, tokenizer, album, regress_on="all")[0]
    def parts(guess):
        q = np.stack([guess[batch["first"]], guess[batch["second"]]], 1)
        return (float(losses.RANKING[form](batch["q"], q)),
                float(losses.regression_loss(batch["q"][:, 0], q[:, 0], batch["has_mos"])))

    guess = np.random.default_rng(0).uniform(0.1, 0.9, len(batch["view"]))
    other = np.concatenate([guess[:-2], [0.01, 0.99]])
    assert parts(guess) == parts(other)


def test_devices_share_pictures_equally(rows, store, tokenizer, album):
    whole = told(rows, store, tokenizer, album, batch=4)[0]
    halves = told(rows, store, tokenizer, album, 2, batch=4)[0]
    seen = [sorted(v[0, 0, 0] for v in x["view"] if (v == v[0, 0, 0]).all()) for x in
            (whole, halves)]
    assert seen[0] == seen[1] and len(seen[0]) == 2
    with pytest.raises(ValueError, match=r"pictures \(0 are there, see pretrain\.pictures"):
        told(rows, store, tokenizer, None)
    with pytest.raises(ValueError, match=r"pictures that 2 devices can share.*got 2, 2 and 1"):
        told(rows, store, tokenizer, album, 2, batch=4, told_pictures=1)


def test_augmentation_changes_pixels_between_steps(rows, store, tokenizer):
    plain = make(rows, store, tokenizer, augment=False, input_mode="single")
    views = {plain[s]["view"][0].tobytes() for s in range(20)}
    assert len(views) <= 2 * len(SIZES)  # two key frames of each scene, untouched
    varied = make(rows, store, tokenizer, input_mode="single")
    assert len({varied[s]["view"][0].tobytes() for s in range(20)}) > 15


def test_without_relighting_augmentation_only_moves_pixels():
    image = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8)
    changes = [batches.augmentation(np.random.default_rng(s), relight=False) for s in range(40)]
    made = {change(image).tobytes() for change in changes}
    assert len(made) == 8  # the symmetries of a square
    for change in changes:
        found, before = (np.sort(x.reshape(-1, 3).view("u1,u1,u1"), 0)
                         for x in (np.ascontiguousarray(change(image)), image))
        assert (found == before).all()


def test_a_view_keeps_its_sky_above():
    image = np.broadcast_to(np.arange(8, dtype=np.uint8)[:, None, None], (8, 8, 3))
    for seed in range(20):
        change = batches.augmentation(np.random.default_rng(seed), relight=False)
        np.testing.assert_array_equal(change(image, upright=True), image)
    sides = {change(image.swapaxes(0, 1), upright=True)[0, 0, 0] for change in (
        batches.augmentation(np.random.default_rng(s), relight=False) for s in range(20))}
    assert sides == {0, 7}


def test_singles_are_originals_and_only_originals_count_in_the_regression(rows, store, tokenizer):
    q = set(np.float32(rows["proxy"][rows["role"] == "original"] / 100))
    for step in range(5):
        batch = make(rows, store, tokenizer)[step]
        single = batch["first"] == batch["second"]
        assert batch["has_mos"][single].all()
        assert {bool(x in q) for x in batch["q"][batch["has_mos"], 0]} == {True}
        assert not any(x in q for x in batch["q"][~batch["has_mos"], 0])


def test_the_answer_names_the_better_member_and_order_carries_no_information(
    rows, store, tokenizer
):
    made, first = make(rows, store, tokenizer, input_mode="pairwise"), 0
    for step in range(20):
        batch = made[step]
        for i in range(6):
            words = text.unpack(tokenizer, batch["tokens"][i][batch["answer"][i]])
            better = batch["q"][i, 0] > batch["q"][i, 1]
            assert words == ("First." if better else "Second.")
            first += better
    assert 0.35 < first / 120 < 0.65


def test_pairs_come_from_one_scene_or_two_as_asked(rows, store, tokenizer):
    scene_of = dict(zip(np.float32(rows["proxy"] / 100), rows["scene"], strict=True))
    for share, same in ((1.0, {True}), (0.0, {True, False})):
        made = make(rows, store, tokenizer, input_mode="pairwise", within_share=share)
        seen = {scene_of[a] == scene_of[b] for step in range(5) for a, b in made[step]["q"]}
        assert seen == same


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_prefetch_keeps_the_order_whatever_the_number_of_threads(rows, store, tokenizer, threads):
    made = make(rows, store, tokenizer)
    found = list(batches.prefetch(made, 2, 9, threads=threads))
    assert len(found) == 7
    for step, batch in zip(range(2, 9), found, strict=True):
        assert_same(batch, made[step])


def test_processes_prepare_the_same_batches_in_the_same_order(rows, store, tokenizer):
    made = make(rows, store, tokenizer)
    with contextlib.closing(batches.prefetch(made, 1, 4, workers=2)) as ahead:
        for i, batch in enumerate(ahead, 1):
            assert_same(batch, made[i])
    assert i == 3


def test_prefetch_goes_on_exactly_where_its_state_says(rows, store, tokenizer):
    made = make(rows, store, tokenizer)
    first = batches.prefetch(made, 0, 8)
    seen = [next(first) for _ in range(3)]
    state, rest = first.get_state(), list(first)
    again = batches.prefetch(made, 0, 8)
    again.set_state(state)
    resumed = list(again)
    assert len(seen) + len(resumed) == 8
    for one, other in zip(rest, resumed, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("mode", ["single", "pairwise", "mix"])
def test_groups_of_all_processes_together_hold_the_items_of_the_whole_batch(
    rows, store, tokenizer, mode
):
    cfg = config.replace(CFG, input_mode=mode, single_share=1 / 3)
    whole = batches.PairBatches(rows, store, tokenizer, cfg)[3]
    parts = [batches.PairBatches(rows, store, tokenizer, cfg, 2, range(p, p + 1))[3]
             for p in (0, 1)]  # fmt: skip
    both = batches.PairBatches(rows, store, tokenizer, cfg, 2, range(2))[3]
    order = [0, 2, 4, 1, 3, 5]
    for k in whole:
        np.testing.assert_array_equal(both[k], np.concatenate([part[k] for part in parts]))
    for k in ("q", "tokens", "answer", "has_mos"):
        np.testing.assert_array_equal(both[k], whole[k][order])
    for member in ("first", "second"):
        for k in ("view", "patches", "present"):
            members = np.concatenate([part[k][part[member]] for part in parts])
            np.testing.assert_array_equal(members, whole[k][whole[member]][order])


def test_a_batch_that_devices_cannot_share_is_refused(rows, store, tokenizer):
    with pytest.raises(ValueError, match=r"4 devices .* got 3, 3 and 0"):
        batches.PairBatches(rows, store, tokenizer, CFG, 4)


def test_fewer_patches_can_be_drawn_than_a_score_looks_at(rows, store, tokenizer):
    batch = make(rows, store, tokenizer, patches=3)[0]
    assert batch["patches"].shape[1] == batch["present"].shape[1] == 3


def test_the_videos_of_a_batch_are_known_by_name(rows, store, tokenizer):
    made = make(rows, store, tokenizer)
    q = dict(zip(rows["video"], np.float32(rows["proxy"] / 100), strict=True))
    pairs = made[4]["q"]
    members = [*pairs[:3, 0], *pairs[3:].ravel()]
    assert [q[name] for name in made.videos(4)] == pytest.approx(members)


def test_no_file_stays_open(rows, store, tokenizer):
    """A training set has more files than a system lets a process open."""
    made, before = make(rows, store, tokenizer), len(os.listdir("/proc/self/fd"))
    kept = [made[step] for step in range(3)]
    assert len(kept) == 3 and len(os.listdir("/proc/self/fd")) == before


def test_two_processes_may_decode_a_video_into_one_store(mp4, tmp_path, monkeypatch):
    """The second does all of its work between the first one's writing and renaming."""
    target, save = tmp_path / "a-0.npy", np.save
    store = lambda: batches._store_one(mp4, target, 2, CFG.video)  # noqa: E731

    def interrupted(path, frames):
        save(path, frames)
        monkeypatch.setattr(np, "save", save)
        store()

    monkeypatch.setattr(np, "save", interrupted)
    store()
    assert np.load(target).shape[0] == 2
    assert list(tmp_path.iterdir()) == [target]


def test_rows_of_a_brought_set_make_batches_of_their_own_clips(rows, store, tokenizer, tmp_path):
    """One clip a source, so pairs join two scenes; people's scores; descriptions by Gemini."""
    brought = pd.DataFrame({
        "video": list("abc"), "path": ["a.mp4", "b.mp4", "c.mp4"], "scene": list("abc"),
        "role": "original", "mos": [1.0, 3.0, 5.0], "quality": [0.0, 50.0, 100.0],
        "bytes": [10, 20, 30], "description": [annotate.describe(r) for r in
                                               rows[::4].to_dict("records")]})
    for row, scene in zip(brought.itertuples(), SIZES, strict=True):
        shutil.copyfile(store / f"{scene}@0-{'0' * 16}.npy", batches.stored(tmp_path, row))
    batch = make(brought, tmp_path, tokenizer, within_share=1.0)[0]
    assert set(batch["q"].ravel()) <= {0.0, 0.5, 1.0}
    assert batch["has_mos"].all()
    assert (batch["q"][3:, 0] != batch["q"][3:, 1]).all()


def test_model_inputs_have_the_configured_shapes():
    frames = np.zeros((2, 100, 300, 3), np.uint8)
    inputs = batches.model_inputs(frames, dataclasses.replace(CFG.video, patch_size=64))
    assert inputs["view"].shape == (2, 32, 32, 3)
    assert inputs["patches"].shape == (2, 8, 64, 64, 3)
    assert inputs["present"].sum(1).tolist() == [4, 4]  # 1 × 4 patches of 64 fit in 100 × 300
