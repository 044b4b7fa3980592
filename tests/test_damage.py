"""The heat-map: what is read off tokens, how local it is, and that it rises with damage."""

import json
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from conftest import made_frames
from flax import nnx
from PIL import Image
from scipy import ndimage

import cpllm
from cpllm import card, cli, config, damage, figures, records
from cpllm.calibrate import Calibration
from cpllm.data import distort, encoding, scenes, text, video
from cpllm.judge import Judge, load
from cpllm.model import rivals

ANY = card.Readout(np.random.default_rng(1).normal(0, 0.1, 32).tolist(), 3.0)
"""Of the tiny model's tokens; the bias keeps what it reads above zero."""


def known(readout: card.Readout | None, weights: str = "") -> card.Card:
    content = card.Content([0.0] * 64, [[1.0, *[0.0] * 63]], [1.0], 1.0, 1.0)
    return card.Card(weights, Calibration(0.9, 8.0, 20, 400), 0.5, 0.1, 4.0, (144, 1080), content,
                     readout)


def untrained(**changes) -> Judge:
    """A tiny model with random weights, which says nothing of quality."""
    cfg = config.replace(config.smoke(), **changes)
    tokenizer = text.train_tokenizer(["The video shows a cat. Its quality is good."], 600)
    return Judge(cfg, rivals.build(cfg.model, nnx.Rngs(0)), tokenizer, known=known(ANY))


@pytest.fixture(scope="module")
def tiny() -> Judge:
    return untrained()


@pytest.fixture(scope="module")
def noisy() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)


@pytest.fixture(scope="module")
def film() -> np.ndarray:
    """Six frames of a test photograph, 256x320, clean."""
    scene = next(s for s in scenes.catalog(config.pocket().data) if s.source == "china")
    films = scenes.render(scene)[:6]
    return np.stack([np.asarray(Image.fromarray(f).resize((320, 256))) for f in films])


def test_each_pixel_shows_what_is_read_off_the_token_over_it(tiny, noisy):
    patch = tiny.cfg.video.patch_size
    corner = noisy[:patch, :patch]
    tokens = damage.tokens(tiny, corner[None])[0]  # four by four, each over 8x8 pixels
    expected = tokens @ np.array(ANY.weights) + ANY.bias
    found = damage.lost(tiny, corner, ANY)
    np.testing.assert_allclose(found[::8, ::8].ravel(), expected, rtol=1e-4)
    np.testing.assert_array_equal(found, np.kron(found[::8, ::8], np.ones((8, 8))))


def test_patches_at_the_edge_lie_on_the_codecs_grid_too(noisy):
    scorer = untrained(**{"video.align": 8, "model.spectrum": True, "model.local_norm": False})
    patch, frame = scorer.cfg.video.patch_size, noisy[:93, :125]
    filled = np.pad(frame, ((0, 3), (0, 3), (0, 0)), "edge")
    corner = damage.lost(scorer, filled[-patch:, -patch:], ANY)
    found = damage.lost(scorer, frame, ANY, patch)
    assert found.shape == (93, 125)
    assert found[-1, -1] == pytest.approx(corner[-1, -1], rel=1e-4)


def test_each_pixel_is_the_mean_of_the_patches_that_cover_it(tiny, noisy):
    patch = tiny.cfg.video.patch_size
    corners = [noisy[:patch, left:left + patch] for left in (0, patch // 2)]
    first, second = (damage.lost(tiny, c, ANY) for c in corners)
    found = damage.lost(tiny, noisy, ANY, patch // 2)
    assert abs(first[0, patch // 2] - second[0, 0]) > 1e-3
    assert found[0, 0] == pytest.approx(first[0, 0], abs=1e-4)
    both = (first[0, patch // 2] + second[0, 0]) / 2
    assert found[0, patch // 2] == pytest.approx(both, abs=1e-4)


def test_a_change_moves_only_what_lies_within_a_patch(tiny, noisy):
    patch, other = tiny.cfg.video.patch_size, noisy.copy()
    other[:16, :16] = 0
    moved = damage.lost(tiny, noisy, ANY) != damage.lost(tiny, other, ANY)
    assert moved[:16, :16].all()
    assert not moved[16 + patch:].any() and not moved[:, 16 + patch:].any()


def half_blurred(frames: np.ndarray) -> np.ndarray:
    found = ndimage.gaussian_filter(frames, (0, 2, 2, 0))
    found[:, :, 64:] = frames[:, :, 64:]
    return found


def test_a_readout_learns_from_encodes_what_a_scene_that_it_never_saw_has_lost(tmp_path):
    """A tower of random weights knows enough; the right halves lose what one mild encode takes."""
    scorer, rows = untrained(**{"model.spectrum": True, "model.local_norm": False}), []
    for i in range(6):
        frames = made_frames(3, seed=i)
        for role, film in (("original", frames), ("variant", half_blurred(frames))):
            encoding.encode(film, tmp_path / f"{i}-{role}.mp4", crf=20, fps=25)
            rows.append({"video": f"{i}-{role}", "scene": i, "role": role, "distortion": "none"})
    rows.append({"video": "worn", "scene": 0, "role": "variant", "distortion": "blur"})
    readout = damage.fit(scorer, pd.DataFrame(rows), tmp_path)
    found = damage.lost(scorer, half_blurred(made_frames(3, seed=9))[1], readout)
    assert found[:, :56].mean() > 2 * found[:, 72:].mean() > 0
    with pytest.raises(ValueError, match="among 6 clips; got none"):
        damage.fit(scorer, pd.DataFrame(rows).query("role == 'original'"), tmp_path)


@pytest.mark.parametrize("fault", ["recompress", "blur"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_damage_to_one_half_raises_the_map_there_and_more_than_elsewhere(film, fault, side):
    model = load()
    bad, clean, half = distort.apply(fault, 0.9, film, 0)[3], film[3], film.shape[2] // 2
    mixed = clean.copy()
    here = np.s_[:, :half] if side == "left" else np.s_[:, half:]
    mixed[here] = bad[here]
    before, after = (damage.lost(model, f, model.card.readout, 32) for f in (clean, mixed))
    rise = after - before
    away = rise[:, half + 64:] if side == "left" else rise[:, :half - 64]
    assert rise[here].mean() > 0.1
    assert rise[here].mean() > away.mean() + 0.1


def test_a_frame_smaller_than_a_patch_is_mapped_at_its_own_size(tiny):
    assert damage.lost(tiny, np.zeros((20, 50, 3), np.uint8), ANY).shape == (20, 50)


def test_starts_reach_both_edges_in_steps_of_at_most_the_stride():
    for side in range(32, 140):
        found = damage.starts(side, 32, 12)
        assert found[0] == 0 and found[-1] == side - 32
        assert all(0 < b - a <= 12 for a, b in pairwise(found))


def test_what_no_map_can_be_made_of_is_refused_by_name(tiny, noisy, mp4):
    for field, name in (("model.kind", "coinvq"), ("model.encoders", "high")):
        with pytest.raises(ValueError, match=name):
            damage.lost(untrained(**{field: name}), noisy, ANY)
    for stride in (0, 33):
        with pytest.raises(ValueError, match=f"1 to 32 pixels, got {stride}"):
            damage.lost(tiny, noisy, ANY, stride)
    bare = Judge(tiny.cfg, tiny.model, tiny.tokenizer)
    with pytest.raises(ValueError, match=r"expected a readout .*cpllm.damage.fit makes one"):
        bare.heatmap(mp4)
    assert damage.heatmap(mp4, bare, readout=ANY).lost.shape == (96, 128)


def test_map_of_a_file_belongs_to_its_middle_key_frame(tiny, mp4):
    found = tiny.heatmap(mp4)
    middle = tiny.cfg.video.key_frames // 2
    assert found.score == pytest.approx(tiny.score(mp4).frames[middle], abs=1e-4)
    np.testing.assert_array_equal(found.frame, video.key_frames(mp4, 2)[middle])
    top, left, most = found.worst()
    assert most == found.lost.max() == found.lost[top, left]
    assert found._repr_png_().startswith(b"\x89PNG")


def test_blocks_are_means_and_the_worst_is_where_two_frames_differ_most():
    x = np.arange(40.0).reshape(5, 8)
    assert figures.block_means(x, 2)[1, 2] == x[2:4, 4:6].mean()
    first = np.zeros((64, 96, 3), np.uint8)
    second = first.copy()
    second[40:44, 70:80], second[5, 5] = 9, 20
    assert figures.worst_block(first, second, 32) == (32, 64)


def test_terminal_prints_the_worst_place_draws_the_picture_and_gives_blocks_as_json(
        tiny, mp4, tmp_path, capsys):
    weights, plot = tmp_path / "tiny.safetensors", tmp_path / "map.png"
    tiny.save(weights)
    words = ["heatmap", str(mp4), "--weights", str(weights)]
    assert cli.main(words) == 2
    assert "expected a readout" in capsys.readouterr().err
    known(ANY, records.file_hash(weights)).write(card.beside(weights))
    assert cli.main([*words, "--plot", str(plot)]) == 0
    assert Image.open(plot).width > 300
    assert "where most is, at x" in capsys.readouterr().out
    assert cli.main([*words, "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert np.shape(told["lost"]) == (96 // 32, 128 // 32)
    assert told["mean"] < np.max(told["lost"]) <= told["worst"]["lost"]
    assert told["score"] == tiny.heatmap(mp4).score


def test_the_packages_function_is_the_models_method(mp4, tiny):
    assert cpllm.heatmap is damage.heatmap
    np.testing.assert_array_equal(cpllm.heatmap(mp4, tiny).lost, tiny.heatmap(mp4).lost)
