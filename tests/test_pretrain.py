"""Pretraining and cached features, on made frames and a model of a few thousand parameters."""

import shutil

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from conftest import settled
from flax import nnx
from scipy.special import expit

from cpllm import config, features, mesh, pipeline, pretrain, sweep, train
from cpllm.data import annotate, manifests, pictures, scenes, text, video, wide
from cpllm.data.batches import PairBatches, frame_store, stored
from cpllm.model import weights
from cpllm.model.siglip import Siglip

CFG = config.replace(
    config.smoke(), steps=2, warmup=0, batch=4,
    **config.REGIME, **{
        "model.high": config.Siglip(1, 16, 16, 2, 16, 32),
        "model.low": config.VideoPrism(1, 0, 16, 16, 2, 16, 32),
        "model.decoder": config.Gemma(1, 16, 16, 2, 1, 8, 700), "model.predictor_hidden": 8,
        "pretrain.view_steps": 30, "pretrain.text_steps": 30, "pretrain.learning_rate": 1e-2,
        "pretrain.pictures": 0,
    },
)  # fmt: skip
COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "dark": (20, 20, 20)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder as `train.run` finds it: manifest and decoded frames, of three kinds of scene."""
    folder, made, rng = tmp_path_factory.mktemp("data"), [], np.random.default_rng(0)
    for i in range(24):
        name, colour = list(COLOURS.items())[i % 3]
        made.append({"video": f"v{i}", "scene": f"s{i // 2}", "source": f"s{i // 2}",
                     "family": "made", "split": "train", "dataset": "scenes", "role": "original",
                     "distortion": "none", "proxy": float(4 * i), "sha256": f"{i:016}",
                     "strength": 0.0, "codec": "h264", "crf": 10, "width": 96, "height": 64,
                     "frames": 2, "fps": 25.0, "psnr": 40.0, "ssim": 0.9, "bytes": 999,
                     "content": f"a {name} wall", "style": "plain"})  # fmt: skip
        frames = np.clip(rng.normal(colour, 20, (2, 64, 96, 3)), 0, 255).astype(np.uint8)
        store = frame_store(folder, CFG)
        store.mkdir(exist_ok=True)
        np.save(stored(store, pd.Series(made[-1])), frames)
    manifests.write(pd.DataFrame(made), folder / "manifest.csv")
    return folder


@pytest.fixture(scope="module")
def made(data):
    return pretrain.ensure(CFG, data)


@pytest.fixture(scope="module")
def rows(data):
    return manifests.read(data / "manifest.csv")


@pytest.fixture(scope="module")
def batches(rows, data, made):
    tokenizer = weights.read(made)[2]
    return lambda **kw: PairBatches(rows, frame_store(data, CFG), tokenizer, CFG, **kw)


def started(made, cfg=CFG):
    tx = train.optimizer(cfg.train)
    return tx, *train.init(cfg, tx, mesh.make(), pretrain.load(made, cfg.model)[0])


def test_contrastive_loss_is_the_sum_over_all_pairs_of_equation_1():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 3, 4))
    same = np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1]], bool)
    logits = 2.5 * x @ y.T - 1.5
    p = np.where(same, expit(logits), 1 - expit(logits))
    found = pretrain.contrastive_loss(x, y, same, np.log(2.5), -1.5)
    assert float(found) == pytest.approx(-np.log(p).sum() / 3, rel=1e-5)


def test_a_frame_is_contrasted_with_its_own_caption_and_with_others_up_to_a_number(monkeypatch):
    rng, kind = np.random.default_rng(0), np.array([7, 2, 7])
    shown = pretrain._contrasted(kind, 9, rng)
    assert sorted(shown) == list(range(9))  # few enough: every caption there is
    monkeypatch.setattr(pretrain, "CAPTIONS", 5)
    drawn = [pretrain._contrasted(kind, 9, rng) for _ in range(40)]
    assert all(len(set(d)) == 5 and {2, 7} <= set(d) for d in drawn)
    assert set(np.concatenate(drawn)) == set(range(9))  # over the steps all of them
    many = pretrain._contrasted(np.arange(8), 20, rng)  # a batch's own are never left out
    assert sorted(many) == list(range(8))


def test_a_perfect_match_loses_less_than_a_wrong_one():
    x, same = jnp.eye(4), jnp.eye(4, dtype=bool)
    right, wrong = (pretrain.contrastive_loss(x, y, same, np.log(10), -5.0)
                    for y in (x, jnp.roll(x, 1, 0)))
    assert right < wrong / 10


def test_towers_learn_captions_and_descriptions(made, data, rows):
    log = pd.read_csv(pretrain.history(made)).pivot(index="step", columns="part", values="loss")
    assert set(log) == {"contrastive", "text"}
    assert (log.tail(5).mean() < log.head(5).mean() / 1.5).all()
    assert pretrain.surprise(made, rows) < pretrain.surprise(made, rows, trained=False) / 1.5


def test_the_same_inputs_are_trained_on_once_and_others_anew(made, data, monkeypatch):
    monkeypatch.setattr(pretrain, "fit", lambda *_: pytest.fail("trained again"))
    assert pretrain.ensure(config.replace(CFG, seed=5, input_mode="single"), data) == made
    assert pretrain.ensure(config.rival(CFG, "q-align"), data) == made
    for change in ({"pretrain.view_steps": 31}, {"max_text": 90}):
        assert pretrain.key(config.replace(CFG, **change), data) != made.stem
    monkeypatch.setattr(pretrain, "CODE", pretrain.CODE[1:])
    assert pretrain.key(CFG, data) != made.stem


def test_a_pretraining_cut_short_in_its_second_part_does_not_begin_with_the_first(
    data, made, tmp_path, monkeypatch
):
    folder = tmp_path / "data"
    shutil.copytree(data, folder, ignore=shutil.ignore_patterns("pretrained"))
    texts = pretrain.text_loss
    monkeypatch.setattr(pretrain, "text_loss", lambda *_, **__: pytest.fail("interrupted"))
    with pytest.raises(pytest.fail.Exception):
        pretrain.ensure(CFG, folder)
    monkeypatch.setattr(pretrain, "text_loss", texts)
    monkeypatch.setattr(pretrain, "_cropped", lambda *_: pytest.fail("the first part again"))
    path = pretrain.ensure(CFG, folder)
    assert settled(path) == settled(made) and not path.with_suffix("").exists()
    assert pretrain.history(path).read_text() == pretrain.history(made).read_text()


def test_pictures_are_of_no_scene_that_is_judged_and_the_same_at_each_drawing():
    data = config.Data(without=("bokeh",))
    chosen = pictures.catalog(400, data)
    others = {s.seed for s in (*scenes.catalog(data), *wide.catalog(
        config.replace(config.pocket(), **{"data.wide_scenes": 240}).data))}
    assert len({s.seed for s in chosen} - others) == 400
    assert {s.family for s in chosen} == {"photo", *scenes.SEEN} - {"bokeh"}
    assert {scenes.PHOTOS[s.source].split for s in chosen if s.family == "photo"} == {"train"}
    once, rows = pictures.draw(12, 24, data)
    assert once.shape == (12, 24, 24, 3) and rows["video"].is_unique
    np.testing.assert_array_equal(once, pictures.draw(12, 24, data)[0])


def test_pictures_are_drawn_once_and_anew_where_they_would_be_others(tmp_path, monkeypatch):
    data = config.Data()
    seen, rows = pictures.ensure(12, 24, data, tmp_path)
    drawn = pictures.draw(12, 24, data)
    np.testing.assert_array_equal(seen, drawn[0])
    assert rows.equals(drawn[1])
    monkeypatch.setattr(pictures, "draw", lambda *_: pytest.fail("drawn again"))
    assert pictures.ensure(12, 24, data, tmp_path)[1].equals(rows)
    for other in ((13, 24, data), (12, 16, data), (12, 24, config.Data(without=("bokeh",)))):
        with pytest.raises(pytest.fail.Exception):
            pictures.ensure(*other, tmp_path)


def test_words_that_no_clip_has_stay_where_pictures_are_told_of(
    data, made, tmp_path, monkeypatch
):
    words = pd.DataFrame([{"video": f"p{i}", "content": "a blue sea", "style": "painted"}
                          for i in range(4)])
    album = np.full((4, 32, 32, 3), (40, 40, 200), np.uint8), words
    monkeypatch.setattr(pretrain, "pictured", lambda *_: album)
    monkeypatch.setattr(train, "_pretrained", lambda *_: pretrain.load(made, CFG.model))
    monkeypatch.setattr(train, "validation_look", lambda *_: lambda _: {})

    def surprise(told: int) -> float:
        cfg = config.replace(CFG, steps=60, learning_rate=3e-3, told_pictures=told, augment=False,
                             **{"model.decoder_finetune": "all"})
        train.run(cfg, f"told{told}-s0", data, tmp_path)
        model, _, tokenizer = weights.load(data / "weights" / f"told{told}-s0.safetensors")
        asked = config.replace(cfg, told_pictures=4)
        rows = manifests.read(data / "manifest.csv")
        batch = PairBatches(rows, frame_store(data, cfg), tokenizer, asked, pictures=album)[0]
        alone = {k: x[-4:] for k, x in batch.items() if len(x) == len(batch["first"])}
        seen = model.see(*(batch[k][-4:] for k in model.inputs))
        return float(model.own_loss([seen, seen], alone))

    assert surprise(2) < surprise(0) / 2


def test_many_pictures_are_drawn_by_processes_and_come_in_the_same_order():
    many, rows = pictures.draw(100, 16, config.Data())
    scene = pictures.catalog(100, config.Data())[70]
    assert rows["content"][70] == scene.content
    np.testing.assert_array_equal(many[70], video.resize(scenes.render(scene), 16)[0])


def test_the_decoder_learns_what_the_frame_shows(data, tmp_path):
    cfg = config.replace(CFG, **{"pretrain.view_steps": 60, "pretrain.text_steps": 300})
    tensors, tokenizer, _ = pretrain.fit(cfg, data, tmp_path)
    kinds = pd.DataFrame([{"video": "x", "content": f"a {name} wall", "style": "plain"}
                          for name in COLOURS])
    images = np.stack([np.full((32, 32, 3), colour, np.uint8) for colour in COLOURS.values()])
    reader, high = (nnx.merge(graph, weights.fill(state, own)) for graph, state, own in (
        (*nnx.split(pretrain.Reader(cfg.model, nnx.Rngs(0))), tensors),
        (*nnx.split(Siglip(cfg.model, nnx.Rngs(0))),
         {k.removeprefix("high."): x for k, x in tensors.items()})))
    seen, texts = high(images), text.stack(
        text.pack(tokenizer, text.DESCRIBE, annotate.portray(row), cfg.train.max_text)
        for row in kinds.to_dict("records"))

    def lost(order):  # of each kind's own words, by whose frame is shown
        return [float(pretrain.text_loss(reader, seen[np.array([j])], jnp.array([True]),
                                         **{k: x[[i]] for k, x in texts.items()}))
                for i, j in enumerate(order)]

    right, wrong = lost([0, 1, 2]), lost([1, 2, 0])
    assert np.mean(right) < 0.9 * np.mean(wrong)


def test_a_family_that_is_left_out_is_no_part_of_pretraining(data, tmp_path, monkeypatch):
    cfg = config.replace(CFG, **{"data.without": ["made"]})
    assert pretrain.key(cfg, data) != pretrain.key(CFG, data)
    taught = []
    monkeypatch.setattr(text, "train_tokenizer", lambda told, _: taught.append(told) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pretrain.fit(cfg, data, tmp_path)
    assert taught == [[]]


def test_another_shape_than_the_files_is_refused_by_name(made):
    other = config.replace(CFG, **{"model.decoder": config.Gemma(1, 24, 16, 2, 1, 8, 700)})
    with pytest.raises(ValueError, match=r"misshapen: .*decoder\.table"):
        pretrain.load(made, other.model)


@pytest.mark.parametrize(("regime", "moved"), [
    ("frozen", set()), ("head", {"last", "norm"}), ("all", {"embed", "positions", "last", "norm"}),
])  # fmt: skip
def test_training_starts_from_the_file_and_moves_only_what_the_regime_names(
    made, batches, regime, moved
):
    cfg = config.replace(CFG, **{"model.high_finetune": regime})
    tx, graph, state, frozen = started(made, cfg)
    given, _ = pretrain.load(made, cfg.model)
    before = weights.tensors(nnx.merge(graph, state.params, frozen))
    assert all((before[k] == x).all() for k, x in given.items())
    held = weights.names(state.opt_state[1][0].mu)
    assert {k.split(".")[1] for k in held if k.startswith("high.")} == moved
    assert all(".lora." in k for k in held if k.startswith("decoder."))
    step = train.make_step(graph, tx, cfg.train.weights)
    for i in range(2):
        state, _ = step(state, frozen, batches()[i])
    after = weights.tensors(nnx.merge(graph, state.params, frozen))
    changed = {k for k in after if (before[k] != after[k]).any()}
    assert {k.split(".")[1] for k in changed if k.startswith("high.")} == moved
    assert all(".lora." in k for k in changed if k.startswith("decoder."))
    assert any(k.startswith("low.") for k in changed)


def test_a_pretrained_decoder_goes_on_reading_by_its_own_tokenizer(
    data, made, tmp_path, monkeypatch
):
    """Wide clips have other words than those that the towers saw."""
    home, clips = tmp_path / "data", tmp_path / "data-fit"
    for folder in (home, clips):
        shutil.copytree(data, folder)
    rows = manifests.read(clips / "manifest.csv")
    manifests.write(rows.assign(content="a castle above a forest"), clips / "manifest.csv")
    monkeypatch.setattr(train, "validation_look", lambda *_: lambda _: {})
    train.run(config.replace(CFG, **{"data.wide_scenes": 1}), "wide-s0", home, tmp_path / "results")
    kept, before = (weights.read(path)[2].to_str() for path in (
        home / "weights" / "wide-s0.safetensors", made))
    assert kept == before


def test_the_chapter_watches_the_code_that_decides_what_comes_out():
    watched = sweep.NOTEBOOKS["15_pretrain"].inputs
    assert set(watched) == {f"cpllm/{name}" for name in pretrain.CODE}
    assert all((sweep.ROOT / name).exists() for name in watched)


def test_cached_features_give_the_losses_that_pixels_give(made, batches, rows, data, monkeypatch):
    _, graph, state, frozen = started(made)
    model = nnx.merge(graph, state.params, frozen)
    folder = features.ensure(CFG, model.high, rows, frame_store(data, CFG))
    monkeypatch.setattr("cpllm.data.batches.augmentation", lambda *_: lambda x, **_: x)
    pixels, cached = batches()[0], batches(features=folder)[0]
    assert pixels["view"].dtype == np.uint8 and cached["view"].shape[1:] == (4, 16)
    np.testing.assert_allclose(
        train.loss_parts(model, pixels), train.loss_parts(model, cached), rtol=1e-4)
    monkeypatch.setattr(np, "save", lambda *_: pytest.fail("made again"))
    assert features.ensure(CFG, model.high, rows, frame_store(data, CFG)) == folder


def test_features_of_other_weights_lie_elsewhere_and_a_trained_encoder_has_none(
    made, rows, data
):
    _, graph, state, frozen = started(made)
    tower, store = nnx.merge(graph, state.params, frozen).high, frame_store(data, CFG)
    before = features.key(CFG, tower, store)
    assert features.key(config.replace(CFG, **{"video.high_size": 48}), tower, store) != before
    tower.norm.bias[...] += 1
    assert features.key(CFG, tower, store) != before
    with pytest.raises(ValueError, match="high_finetune frozen, got head"):
        features.ensure(config.replace(CFG, **{"model.high_finetune": "head"}), tower, rows, store)


def test_pretraining_precedes_training_where_the_table_recipe_asks_for_it():
    names = {p: [step.name for step in pipeline.steps(p, fresh=True)] for p in ("smoke", "pocket")}
    assert names["pocket"].index("pretrain") == names["pocket"].index("train") - 1
    assert "pretrain" not in names["smoke"]
