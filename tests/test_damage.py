"""The heat-map: whose score a place speaks for, how local it is, and that it falls with damage."""

import json
from itertools import pairwise

import numpy as np
import pytest
from flax import nnx
from PIL import Image

import cpllm
from cpllm import cli, config, damage, figures
from cpllm.data import distort, scenes, text, video
from cpllm.data.batches import model_inputs
from cpllm.judge import Judge, load
from cpllm.model import rivals


def untrained(**changes) -> Judge:
    """A tiny model with random weights, which says nothing of quality."""
    cfg = config.replace(config.smoke(), **changes)
    tokenizer = text.train_tokenizer(["The video shows a cat. Its quality is good."], 600)
    return Judge(cfg, rivals.build(cfg.model, nnx.Rngs(0)), tokenizer)


@pytest.fixture(scope="module")
def tiny() -> Judge:
    return untrained()


@pytest.fixture(scope="module")
def noisy() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)


def seen(frame: np.ndarray, scorer: Judge) -> np.ndarray:
    return video.resize(frame[None], scorer.cfg.video.high_size)[0]


@pytest.fixture(scope="module")
def film() -> np.ndarray:
    """Six frames of a test photograph, 256x320, clean."""
    scene = next(s for s in scenes.catalog(config.pocket().data) if s.source == "china")
    films = scenes.render(scene)[:6]
    return np.stack([np.asarray(Image.fromarray(f).resize((320, 256))) for f in films])


def test_a_frame_that_is_the_same_everywhere_has_its_own_score_everywhere(tiny):
    frame = np.full((80, 112, 3), (200, 90, 40), np.uint8)
    own = tiny.frame_scores(model_inputs(frame[None], tiny.cfg.video))[0]
    found = damage.quality(tiny, frame, seen(frame, tiny))
    assert found.shape == (80, 112)
    np.testing.assert_allclose(found, own, rtol=1e-4)  # another program: other sums


def test_patches_at_the_edge_lie_on_the_codecs_grid_too(noisy):
    scorer = untrained(**{"video.align": 8, "model.spectrum": True, "model.local_norm": False})
    patch, frame = scorer.cfg.video.patch_size, noisy[:93, :125]
    filled = np.pad(frame, ((0, 3), (0, 3), (0, 0)), "edge")
    corner = damage.quality(scorer, filled[-patch:, -patch:], seen(frame, scorer))
    found = damage.quality(scorer, frame, seen(frame, scorer), patch)
    assert found[-1, -1] == pytest.approx(corner[-1, -1], rel=1e-4)


def test_each_pixel_is_the_mean_of_the_patches_that_cover_it(tiny, noisy):
    view, patch = seen(noisy, tiny), tiny.cfg.video.patch_size
    corners = [noisy[:patch, left:left + patch] for left in (0, patch // 2)]
    first, second = (damage.quality(tiny, c, view)[0, 0] for c in corners)
    found = damage.quality(tiny, noisy, view, patch // 2)
    assert abs(first - second) > 1e-3
    assert found[0, 0] == pytest.approx(first, abs=1e-3)
    assert found[0, patch // 2] == pytest.approx((first + second) / 2, abs=1e-3)


def test_with_one_view_a_change_moves_only_what_lies_within_a_patch(tiny, noisy):
    view, patch, other = seen(noisy, tiny), tiny.cfg.video.patch_size, noisy.copy()
    other[:16, :16] = 0
    moved = damage.quality(tiny, noisy, view) != damage.quality(tiny, other, view)
    assert moved[:16, :16].all()
    assert not moved[16 + patch:].any() and not moved[:, 16 + patch:].any()


@pytest.mark.parametrize("fault", ["recompress", "blur"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_damage_to_one_half_lowers_the_map_there_and_more_than_elsewhere(film, fault, side):
    model = load()
    bad, clean, half = distort.apply(fault, 0.9, film, 0)[3], film[3], film.shape[2] // 2
    mixed = clean.copy()
    here = np.s_[:, :half] if side == "left" else np.s_[:, half:]
    mixed[here] = bad[here]
    before, after = (damage.quality(model, f, seen(f, model), 32) for f in (clean, mixed))
    fall = before - after
    away = fall[:, half + 64:] if side == "left" else fall[:, :half - 64]
    assert fall[here].mean() > 10
    assert fall[here].mean() > away.mean() + 10


def test_a_frame_smaller_than_a_patch_is_mapped_at_its_own_size(tiny):
    frame = np.zeros((20, 50, 3), np.uint8)
    assert damage.quality(tiny, frame, seen(frame, tiny)).shape == (20, 50)


def test_starts_reach_both_edges_in_steps_of_at_most_the_stride():
    for side in range(32, 140):
        found = damage.starts(side, 32, 12)
        assert found[0] == 0 and found[-1] == side - 32
        assert all(0 < b - a <= 12 for a, b in pairwise(found))


def test_models_without_low_level_patches_and_bad_strides_are_refused_by_name(tiny, noisy):
    view = seen(noisy, tiny)
    for field, name in (("model.kind", "coinvq"), ("model.encoders", "high")):
        with pytest.raises(ValueError, match=name):
            damage.quality(untrained(**{field: name}), noisy, view)
    for stride in (0, 33):
        with pytest.raises(ValueError, match=f"1 to 32 pixels, got {stride}"):
            damage.quality(tiny, noisy, view, stride)


def test_map_of_a_file_belongs_to_its_middle_key_frame(tiny, mp4):
    found = tiny.heatmap(mp4)
    middle = tiny.cfg.video.key_frames // 2
    assert found.score == pytest.approx(tiny.score(mp4).frames[middle], abs=1e-4)
    np.testing.assert_array_equal(found.frame, video.key_frames(mp4, 2)[middle])
    top, left, low = found.lowest()
    assert low == found.quality.min() == found.quality[top, left]
    assert found._repr_png_().startswith(b"\x89PNG")


def test_blocks_are_means_and_the_worst_is_where_two_frames_differ_most():
    x = np.arange(40.0).reshape(5, 8)
    assert figures.block_means(x, 2)[1, 2] == x[2:4, 4:6].mean()
    first = np.zeros((64, 96, 3), np.uint8)
    second = first.copy()
    second[40:44, 70:80], second[5, 5] = 9, 20
    assert figures.worst_block(first, second, 32) == (32, 64)


def test_terminal_prints_the_ends_draws_the_picture_and_gives_blocks_as_json(
        tiny, mp4, tmp_path, capsys):
    weights, plot = tmp_path / "tiny.safetensors", tmp_path / "map.png"
    tiny.save(weights)
    words = ["heatmap", str(mp4), "--weights", str(weights)]
    assert cli.main([*words, "--plot", str(plot)]) == 0
    assert Image.open(plot).width > 300
    assert "lowest, at x" in capsys.readouterr().out
    assert cli.main([*words, "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert np.shape(told["quality"]) == (96 // 32, 128 // 32)
    assert told["lowest"]["quality"] <= np.min(told["quality"]) <= told["highest"]
    assert told["score"] == tiny.heatmap(mp4).score


def test_the_packages_function_is_the_models_method(mp4, tiny):
    assert cpllm.heatmap is damage.heatmap
    np.testing.assert_array_equal(cpllm.heatmap(mp4, tiny).quality, tiny.heatmap(mp4).quality)
