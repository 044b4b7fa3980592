"""The low-level encoder's pretraining, on made frames and a tower of a few thousand parameters."""

from zlib import crc32

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter

from cpllm import config, pretrain, pretrain_low, train
from cpllm.data import manifests
from cpllm.data.batches import frame_store, stored
from cpllm.model import weights

CFG = config.replace(
    config.smoke(), steps=1, warmup=0, batch=4, learning_rate=0.0, **{
        "model.low": config.VideoPrism(1, 0, 16, 32, 2, 16, 32),
        "model.spectrum": True, "model.local_norm": False,
        "pretrain_low.steps": 80, "pretrain_low.frames": 8, "pretrain_low.patches": 4,
        "pretrain_low.learning_rate": 1e-2,
    },
)  # fmt: skip


def row(scene: str, role: str, crf: int, distortion: str = "none") -> dict:
    name = crc32(f"{scene}{role}{crf}{distortion}".encode())
    return {"video": f"{scene}@{role}{crf}{distortion}", "scene": scene, "source": scene,
            "family": "made", "split": "train", "dataset": "scenes", "role": role,
            "distortion": distortion, "proxy": 100.0 - crf, "sha256": f"{name:016x}",
            "strength": 0.0, "codec": "h264", "crf": crf, "width": 96, "height": 64, "frames": 2,
            "fps": 25.0, "psnr": 40.0, "ssim": 0.9, "bytes": 999, "content": "a wall",
            "style": "plain"}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six scenes of noise, each blurred in its left half, as `train.run` finds them."""
    folder, made, rng = tmp_path_factory.mktemp("data"), [], np.random.default_rng(0)
    store = frame_store(folder, CFG)
    store.mkdir()
    for i in range(6):
        original = rng.normal(128, 40, (2, 64, 96, 3)).clip(0, 255).astype(np.uint8)
        coded = original.copy()
        coded[:, :, :48] = gaussian_filter(coded, (0, 2, 2, 0))[:, :, :48]
        made += [row(f"s{i}", "original", 10), row(f"s{i}", "variant", 40)]
        for frames, of in ((original, made[-2]), (coded, made[-1])):
            np.save(stored(store, pd.Series(of)), frames)
    manifests.write(pd.DataFrame(made), folder / "manifest.csv")
    return folder


@pytest.fixture(scope="module")
def made(data):
    return pretrain_low.ensure(CFG, data)


def test_a_square_has_lost_what_ssim_says_by_hand():
    original = np.full((1, 32, 32, 3), 100, np.uint8)
    coded = original.copy()
    coded[:, :16, 16:] = 110  # the second of four squares
    found = np.asarray(pretrain_low.lost(coded, original, 16))
    ssim = (2 * 100 * 110 + 6.5025) / (100**2 + 110**2 + 6.5025)
    np.testing.assert_allclose(found, [[0, np.sqrt(1 - ssim), 0, 0]], atol=1e-4)


def test_texture_that_is_gone_is_lost_whole_and_its_negative_costs_more():
    stripes = np.zeros((2, 16, 16, 3), np.uint8)
    stripes[:, :, ::2] = 254
    gone = np.stack([np.full_like(stripes[0], 127), 254 - stripes[1]])
    spread, c2 = 127.0**2, 58.5225
    ssim = np.array([c2 / (spread + c2), (-2 * spread + c2) / (2 * spread + c2)])
    np.testing.assert_allclose(
        pretrain_low.lost(gone, stripes, 16)[:, 0], np.sqrt(1 - ssim), rtol=1e-4)


def test_an_encode_meets_the_original_of_its_scene_and_faults_meet_nobody():
    rows = pd.DataFrame([
        row("a", "original", 10), row("a", "original", 10, "blur"), row("a", "variant", 30),
        row("a", "variant", 30, "blur"), row("b", "variant", 20), row("c", "original", 10)])
    (pair,) = manifests.pairs(rows, "clips")
    assert [row.video for row in pair] == ["a@variant30none", "a@original10none"]
    with pytest.raises(ValueError, match=r"encodes and their originals.* among 1 clips"):
        manifests.pairs(rows[rows["scene"] == "b"], "clips")


def test_the_tower_learns_where_a_frame_has_lost_its_texture(data, tmp_path):
    gauge, losses = pretrain_low.fit(CFG, data, tmp_path)
    assert np.mean(losses[-10:]) < 0.3 * np.mean(losses[:10])
    new = np.random.default_rng(9).normal(128, 40, (1, 1, 32, 32, 3)).clip(0, 255)
    new = new.astype(np.uint8)
    blurred = gaussian_filter(new, (0, 0, 2, 2, 0))
    here = [float(gauge(x, np.ones((1, 1), bool)).mean()) for x in (new, blurred)]
    assert here[1] > here[0] + 0.3


def test_training_begins_with_the_pretrained_encoder(data, made, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "validation_look", lambda *_: lambda _: {})
    train.run(CFG, "a-s0", data, tmp_path)  # at a rate of 0
    after, _, _ = weights.read(data / "weights" / "a-s0.safetensors")
    given = pretrain_low.load(made, CFG.model)
    assert {k for k in after if k.startswith("low.")} == set(given)
    assert all((after[k] == x).all() for k, x in given.items())


def test_a_compared_model_takes_the_encoder_where_it_has_one(made):
    own = set(pretrain_low.load(made, CFG.model))
    assert own == set(pretrain_low.load(made, config.rival(CFG, "coinvq").model))
    assert not any(k.startswith("read.") for k in own)


def test_it_is_made_once_for_all_seeds_and_anew_for_other_settings(data, made, monkeypatch):
    monkeypatch.setattr(pretrain_low, "fit", lambda *_: pytest.fail("made again"))
    assert pretrain_low.ensure(config.replace(CFG, seed=5), data) == made
    for change in ({"pretrain_low.steps": 81}, {"model.spectrum": False}, {"video.align": 8}):
        assert pretrain_low.key(config.replace(CFG, **change), data) not in made.name
    log = pd.read_csv(made.with_suffix(".csv"))
    assert list(log.columns) == ["part", "step", "loss"] and len(log) == 80


def test_one_that_was_cut_short_goes_on_to_the_same_encoder(data, made, monkeypatch):
    draw, drawn = pretrain_low._draw, []

    def interrupted(*given):
        drawn.append(given)
        if len(drawn) == 8 * 50:
            raise KeyboardInterrupt
        return draw(*given)

    whole = made.read_bytes()
    made.unlink()
    monkeypatch.setattr(pretrain, "SAVE_EVERY", 20)
    monkeypatch.setattr(pretrain_low, "_draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pretrain_low.ensure(CFG, data)
    assert not made.exists()
    assert pretrain_low.ensure(CFG, data).read_bytes() == whole
    assert len(drawn) == 8 * (50 + 80 - 40)
    assert not made.with_suffix("").exists()


def test_encodes_come_with_their_original_turned_alike(data):
    rows = manifests.read(data / "manifest.csv")
    files = tuple(stored(frame_store(data, CFG), row) for row in manifests.pairs(rows, "clips")[0])
    for seed in range(8):
        drawn = pretrain_low._draw(files, CFG, np.random.default_rng(seed))
        assert drawn["coded"].shape == drawn["original"].shape == (4, 32, 32, 3)
        whole = [(c == o).all() for c, o in zip(drawn["coded"], drawn["original"], strict=True)]
        assert any(whole) and not all(whole)  # right of the middle nothing is lost
