"""Training for real on the smoke profile's data, a few steps."""

import io
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from safetensors.numpy import load_file

from cpllm import config, train
from cpllm.data import encoding, ladder
from cpllm.model import weights

CFG = config.replace(
    config.smoke(), steps=6, warmup=2, batch=4, select_every=3,
    **{"data.train_scenes": 2, "data.validation_scenes": 2, "data.test_scenes": 2,
       "data.crfs": (21, 31, 41, 51), "data.distorted": 1},
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory, ffmpeg):
    folder = tmp_path_factory.mktemp("data")
    ladder.build(CFG, folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def result(data, tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    return train.run(CFG, "default-s0", data, results), results / "smoke" / "runs" / "default-s0"


def test_a_run_leaves_its_record(result, data):
    numbers, folder = result
    history = pd.read_csv(folder / "history.csv")
    assert history["step"].tolist() == [3, 6]
    assert {"ranking", "regression", "text", "validation_srcc"} <= set(history.columns)
    assert json.loads((folder / "metrics.json").read_text()) == numbers
    assert config.from_dict(json.loads((folder / "config.json").read_text())) == CFG
    made = json.loads((folder / "provenance.json").read_text())
    assert {"commit", "dirty", "versions", "device", "seed", "manifest_sha256", "started",
            "duration_s"} <= set(made)  # fmt: skip


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(result, data, tmp_path):
    kept = load_file(data / "weights" / "default-s0.safetensors")
    for run_id, seed, same in (("again", 0, True), ("other", 1, False)):
        train.run(config.replace(CFG, seed=seed), run_id, data, tmp_path)
        other = load_file(data / "weights" / f"{run_id}.safetensors")
        assert all((kept[k] == other[k]).all() for k in kept) is same


def test_training_starts_from_a_weights_file_and_keeps_its_tokenizer(result, data, tmp_path):
    start = data / "weights" / "default-s0.safetensors"
    cfg = config.replace(CFG, steps=1, warmup=0, learning_rate=0.0, seed=1)
    train.run(cfg, "onward", data, tmp_path, start=start)
    (old, _, words), (new, _, same) = map(
        weights.read, (start, data / "weights" / "onward.safetensors"))  # fmt: skip
    assert all((old[k] == new[k]).all() for k in old) and old.keys() == new.keys()
    assert words.to_str() == same.to_str()


def test_trained_leaves_of_a_16_bit_file_become_float32_and_frozen_ones_stay(result, data):
    import jax

    from cpllm import mesh

    lora = {"model.decoder_finetune": "lora", "model.high_finetune": "frozen"}
    cfg = config.replace(CFG, **lora)
    given, _ = weights.given(data / "weights" / "default-s0.safetensors", CFG.model)
    given = {k: x.astype("bfloat16") for k, x in given.items()}
    _, state, frozen = train.init(cfg, train.optimizer(cfg.train), mesh.make(), given)
    assert {x.dtype.name for x in jax.tree.leaves(state.params)} == {"float32"}
    assert {x.dtype.name for x in jax.tree.leaves(frozen)} == {"bfloat16"}


def test_a_start_of_another_shape_is_refused(result, data, tmp_path):
    cfg = config.replace(CFG, **{"model.predictor_hidden": 8})
    with pytest.raises(ValueError, match=r"default-s0.*misshapen: predictor\.mlp\.inner\.bias"):
        train.run(cfg, "other", data, tmp_path, start=data / "weights" / "default-s0.safetensors")


def test_training_opens_no_test_video(data, tmp_path, monkeypatch):
    for path in data.glob("test_*.mp4"):
        path.rename(path.with_suffix(".hidden"))
    try:
        train.run(config.replace(CFG, steps=1, warmup=0), "blind", data, tmp_path)
    finally:
        for path in data.glob("test_*.hidden"):
            path.rename(path.with_suffix(".mp4"))


def test_all_three_losses_fall_on_a_batch_that_is_seen_again_and_again(data):
    import jax
    from flax import nnx

    from cpllm.data import annotate, batches, manifests, text
    from cpllm.model.cpllm import CPLLM
    from cpllm.model.lora import trainable

    cfg = config.replace(CFG, steps=40, warmup=0, schedule="constant", augment=False)
    table = manifests.read(data / "manifest.csv")
    rows = table[table["split"] == "train"]
    store = data / "overfit"
    batches.store_frames(rows, data, store, cfg)
    described = [annotate.describe(r) for r in rows.to_dict("records")]
    tokenizer = text.train_tokenizer(described, cfg.model.decoder.vocab)
    batch = batches.PairBatches(rows, store, tokenizer, cfg)[0]
    graph, params, frozen = nnx.split(CPLLM(cfg.model, nnx.Rngs(0)), trainable(cfg.model), ...)
    tx = train.optimizer(cfg.train)
    step, seen = train.make_step(graph, tx, cfg.train.weights), []
    state = train.State(params, tx.init(params))
    for _ in range(40):
        state, parts = step(state, frozen, batch)
        seen.append(np.asarray(parts))
    assert jax.tree.all(jax.tree.map(lambda x: bool(np.isfinite(x).all()), state.params))
    assert seen[-1][1] < seen[0][1] / 2
    assert seen[-1][2] < seen[0][2] / 2
    assert seen[-1][0] <= seen[0][0]


def test_a_loss_that_is_not_finite_stops_with_step_part_videos_and_last_good_checkpoint(
    data, tmp_path, monkeypatch
):
    spoil = lambda q, q_hat, has_mos: q_hat.sum() * np.nan  # noqa: E731
    monkeypatch.setattr(train.losses, "regression_loss", spoil)
    with pytest.raises(FloatingPointError, match=r"step 1: .*regression=nan.*step 0\..*train_"):
        train.run(CFG, "spoilt", data, tmp_path)


def test_a_loss_that_stays_finite_and_high_stops_with_step_videos_and_the_last_good_checkpoint(
    data, tmp_path
):
    """Far too large a rate: the text's loss rises from 7 nats to over 100 and stays there."""
    cfg = config.replace(CFG, learning_rate=3.0, clip_norm=0.0, warmup=10, steps=80, save_every=5)
    with pytest.raises(FloatingPointError, match=r"last good checkpoint is step 5\. .*train_") as e:
        train.run(cfg, "diverged", data, tmp_path)
    step, most = re.search(r"step (\d+): .* 26 of the last 50 steps cost over ([\d.]+)",
                           str(e.value)).groups()
    assert 26 < int(step) < 50 and 3 < float(most) < 30
    assert {int(p.name) for p in (data / "checkpoints" / "diverged").iterdir()} == {5}


def stops(total, weights=(1.0, 1.0, 1.0), diverged=3.0) -> int:
    """The step at which a total loss of this course ends a training; 0: none."""
    cfg = config.replace(CFG, weights=weights, diverged=diverged).train
    log = {"totals": [], "lowest": []}
    for i, x in enumerate(total, 1):
        if train._diverges(np.array([0, 0, x / weights[2]]), log, cfg)[1]:
            return i
    return 0


def test_a_loss_diverges_where_it_stays_above_three_times_its_lowest():
    falls = np.linspace(7, 1, 100)
    assert stops([*falls, *[4.5] * 50]) == 126  # the last ten's median falls to 1.27
    assert stops([*falls, *[4.5] * 50], diverged=4.0) == stops([1e6] * 200) == 0
    assert stops([*falls, *[1e30] * 50], diverged=0.0) == 0
    assert stops([7, 20, *[1e4] * 50]) == 28  # from the first steps on


def test_no_noise_spike_or_small_rise_counts_as_diverging():
    rng = np.random.default_rng(0)
    falls = np.geomspace(7, 0.3, 2000)
    assert stops(falls * rng.lognormal(0, 0.5, 2000)) == 0
    assert stops(np.where(rng.random(2000) < 0.2, 1e3, falls)) == 0
    assert stops([*falls, *np.linspace(1e-4, 2.2, 1000)]) == 0  # learnt by heart, then not quite
    assert stops(np.linspace(0, 0.2, 500), weights=(1.0, 0.0, 1e-9)) == 0  # ranking alone


def test_parameters_that_are_not_finite_are_not_saved(data, tmp_path, monkeypatch):
    whole = train.make_step

    def spoil(*args):
        step = whole(*args)

        def spoilt(state, *rest):
            state, parts = step(state, *rest)
            return state._replace(params=jax.tree.map(lambda x: x * jnp.nan, state.params)), parts

        return spoilt

    monkeypatch.setattr(train, "make_step", spoil)
    with pytest.raises(FloatingPointError, match=r"step 1: expected finite parameters.*step 0\. "):
        train.run(config.replace(CFG, save_every=1, warmup=0), "bad", data, tmp_path)


@pytest.mark.slow
def test_a_set_that_a_user_brought_trains_from_labels_to_run(tmp_path, monkeypatch):
    """Label lines and clips → manifest → descriptions → a run that validates on held-out rows."""
    from cpllm.data import datasets, manifests
    from tests.conftest import made_frames

    names = [f"ia-batch1/clip{i}.mp4" for i in range(20)]
    (tmp_path / "ia-batch1").mkdir()
    for i, name in enumerate(names):
        encoding.encode(made_frames(6, seed=i), tmp_path / name, 20 + i % 30, 25)
    (tmp_path / "lsvq_train.txt").write_text("".join(
        f"{name}, -1, -1, {90 - i % 30}\n" for i, name in enumerate(names)))
    labels = [tmp_path / "lsvq_train.txt"]
    monkeypatch.setattr(datasets, "HELD_OUT", 0.3)
    table, _, bad = datasets.build("lsvq", tmp_path, labels, progress=False)
    assert not bad and {"train", "validation"} == set(table["split"])
    manifests.write(table, tmp_path / "manifest.csv")
    (tmp_path / "descriptions.jsonl").write_text("".join(
        json.dumps({"video": v, "text": "A square. Synthetic. Its quality is good."}) + "\n"
        for v in table["video"]))
    cfg = config.replace(CFG, steps=2, warmup=0, select_every=2, max_text=120)
    found = train.run(cfg, "brought", tmp_path, tmp_path / "results")
    assert np.isfinite([found[part] for part in train.PARTS]).all()
    assert "validation_srcc" in found and "validation_flip_10" not in found


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_tells_loss_parts_pairs_a_second_and_the_time_left(monkeypatch, terminal):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=160)
    monkeypatch.setattr(train, "Console", lambda **_: console)
    monkeypatch.setattr(train, "PRINT_EVERY", 2)
    recent = []
    with train._bar() as bar:
        task = bar.add_task("train", total=4, completed=0, since=0, news="")
        for i in range(3):
            recent.append([0.5 + i, 0.25, 7.0])
            train._advance(bar, task, recent, 8)
    said = "3/4" if terminal else "step 2/4"
    means = "1.5000" if terminal else "1.0000"
    assert re.search(rf"{said}.*ranking {means}  regression 0\.2500  text 7\.0000 +[\d.]+ pairs/s",
                     out.getvalue())
    assert re.search(r"0:00:\d\d" if terminal else r"\d s left", out.getvalue())


def test_a_cosine_schedule_warms_up_and_ends_at_zero():
    import jax.numpy as jnp

    cfg = config.replace(config.pocket(), weight_decay=0.0, clip_norm=0.0).train
    tx = train.optimizer(cfg)
    params = {"x": jnp.ones(1)}
    state, sizes = tx.init(params), []
    for _ in range(cfg.warmup + 1):
        updates, state = tx.update({"x": jnp.ones(1)}, state, params)
        sizes.append(abs(float(updates["x"][0])))
    assert sizes[0] == 0
    assert sizes[-1] == pytest.approx(cfg.learning_rate, rel=1e-3)


def test_accumulated_batches_make_the_update_of_their_mean_gradient():
    grads = [{"x": jnp.array([g])} for g in (1.0, -3.0, 2.0, 2.5)]
    means = [{"x": (grads[i]["x"] + grads[i + 1]["x"]) / 2} for i in (0, 2)]
    ends = []
    for cfg, given in ((config.replace(CFG, accumulate=2, warmup=0), grads),
                       (config.replace(CFG, steps=3, warmup=0), means)):
        tx, params, seen = train.optimizer(cfg.train), {"x": jnp.ones(1)}, []
        state = tx.init(params)
        for g in given:
            updates, state = tx.update(g, state, params)
            params = {"x": params["x"] + updates["x"]}
            seen.append(float(params["x"][0]))
        ends.append(seen)
    assert ends[0][0] == 1.0 and ends[0][1] == ends[0][2] != 1.0
    assert ends[0][1::2] == pytest.approx(ends[1])


def test_a_warm_up_as_long_as_the_training_is_refused():
    with pytest.raises(ValueError, match=r"train\.warmup: expected fewer than 6, got 6"):
        train.optimizer(config.replace(CFG, warmup=6).train)
