"""The stages of a profile, on two made scenes; the whole smoke profile under `make test-slow`."""

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from flax import nnx
from scipy import ndimage

from cpllm import (
    baselines,
    calibrate,
    card,
    config,
    grid,
    notebooks,
    pipeline,
    pretrain,
    pretrain_low,
    records,
    report,
    scoring,
    sweep,
)
from cpllm.data import ladder, manifests, text
from cpllm.infer import Scorer
from cpllm.model.cpllm import CPLLM

ROW = {"bytes": 6000, "frames": 10}


def test_file_size_is_bits_per_pixel():
    assert baselines.file_size(ROW, np.zeros((2, 60, 80, 3), np.uint8)) == 1.0


def test_sharpness_falls_with_blur():
    rng = np.random.default_rng(0)
    sharp = rng.integers(256, size=(2, 64, 64, 3), dtype=np.uint8)
    blurred = ndimage.gaussian_filter(sharp, (0, 2, 2, 0))
    assert baselines.sharpness(ROW, sharp) > baselines.sharpness(ROW, blurred)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The stages' folders, and a smoke profile small enough to build in a test."""
    small = config.replace(config.smoke(), **{
        "data.train_scenes": 1, "data.validation_scenes": 1, "data.test_scenes": 1,
        "data.crfs": (21, 41), "data.distorted": 0,
    })  # fmt: skip
    monkeypatch.setitem(config.PRESETS, "smoke", lambda: small)
    monkeypatch.setattr(sweep, "DATA", tmp_path / "data")
    monkeypatch.setattr(sweep, "RESULTS", tmp_path / "results")
    return tmp_path


def predictions(place, run_id):
    rows = report.read_runs("smoke", place / "results")
    return rows[rows["run"] == run_id]


def test_scoring_writes_the_model_and_the_baselines_and_keeps_other_splits(place, ffmpeg):
    cfg = config.preset("smoke")
    table = ladder.build(cfg, place / "data" / "smoke", ("validation", "test"), workers=1)
    scorer = Scorer(cfg, CPLLM(cfg.model, nnx.Rngs(0)), text.train_tokenizer(["A cat."], 500))
    scorer.save(place / "data" / "smoke" / "weights" / "default-s0.safetensors")
    scoring.score_runs("smoke")
    whole = predictions(place, "default-s0")
    assert set(whole["split"]) == {"validation", "test"}
    assert whole["video"].is_unique
    assert whole.loc[whole["role"] == "original", "crf"].isna().all()
    repeated = json.loads((place / "results" / "smoke" / "repeatability.json").read_text())
    assert repeated["points"].keys() == calibrate.PROMISED.keys()
    assert all(repeated["points"][k] <= most for k, most in calibrate.PROMISED.items())
    one = table[table["split"] == "test"].iloc[0]["video"]
    assert whole.set_index("video").loc[one, "prediction"] == pytest.approx(
        scorer.frame_scores(scorer.inputs(place / "data" / "smoke" / f"{one}.mp4")).mean(), rel=1e-5
    )
    for name in set(baselines.BASELINES) - set(baselines.FITS):
        assert len(predictions(place, f"{name}-s0")) == len(whole)
    manifests.write(table[table["split"] == "test"], place / "data" / "smoke" / "manifest.csv")
    scoring.score_runs("smoke")
    again = predictions(place, "default-s0").sort_values("video", ignore_index=True)
    pd.testing.assert_frame_equal(again, whole.sort_values("video", ignore_index=True))


def test_a_grids_runs_are_scored_on_its_sets_alone(place, ffmpeg, monkeypatch):
    cfg, data = config.preset("smoke"), place / "data" / "smoke"
    table = ladder.build(cfg, data, ("validation", "test"), workers=1)
    scorer = Scorer(cfg, CPLLM(cfg.model, nnx.Rngs(0)), text.train_tokenizer(["A cat."], 500))
    for run_id in ("single-s0", "k1-s0"):
        scorer.save(data / "weights" / f"{run_id}.safetensors")
    assert grid.sets("pocket", sweep.ROOT)["k1-s0"] == ("lsvq-test",)
    monkeypatch.setattr(grid, "sets", lambda *_: {"k1-s0": ("lsvq-test",)})
    scoring.score_runs("smoke")
    assert set(predictions(place, "single-s0")["video"]) == {*table["video"]}
    chosen = predictions(place, "k1-s0")
    assert set(chosen["video"]) == {*table["video"][table["dataset"] == "lsvq-test"]}


def test_what_baselines_learnt_is_kept_for_a_clone_without_the_training_split(place, ffmpeg):
    data, cfg = place / "data" / "smoke", config.preset("smoke")
    table = ladder.build(cfg, data, ("train", "test"), workers=1)
    scoring.score_runs("smoke")
    before = {name: predictions(place, f"{name}-s0") for name in baselines.BASELINES}
    manifests.write(table[table["split"] == "test"], data / "manifest.csv")
    scoring.score_runs("smoke")
    for name, rows in before.items():
        pd.testing.assert_frame_equal(predictions(place, f"{name}-s0"), rows)


def test_a_clone_with_committed_runs_needs_the_test_split_only(place):
    assert pipeline.needed_splits("smoke", fresh=False) == ladder.SPLITS
    for run_id in (*grid.default_ids("smoke"), *pipeline.table_ids("smoke")):
        records.write_json(place / "results" / "smoke" / "runs" / run_id / "metrics.json", {})
    assert pipeline.needed_splits("smoke", fresh=False) == ("test",)
    assert pipeline.needed_splits("smoke", fresh=True) == ladder.SPLITS


def test_the_first_seed_of_the_default_is_a_chapter_and_the_packages_weights(place, monkeypatch):
    default = place / "package" / "smoke.safetensors"
    monkeypatch.setattr("cpllm.infer.DEFAULT", default)
    for name, held in ("notebooks/default-s0.ipynb", "{}"), ("weights/default-s0.safetensors", "w"):
        (place / "data" / "smoke" / name).parent.mkdir(parents=True)
        (place / "data" / "smoke" / name).write_text(held)
    pipeline._ship("smoke", {"default-s1", "cpllm-s0"})
    assert not default.exists()
    pipeline._ship("smoke", {"default-s0"})
    assert default.read_text() == "w"
    assert (place / "results" / "smoke" / "notebooks" / "20_train.ipynb").read_text() == "{}"


def test_the_packages_weights_get_a_card_from_their_predictions_once(place, monkeypatch):
    cfg, data = config.preset("smoke"), place / "data" / "smoke"
    table = ladder.build(cfg, data, ("train", "validation"), workers=1)
    default = place / "package" / "smoke.safetensors"
    monkeypatch.setattr("cpllm.infer.DEFAULT", default)
    monkeypatch.setattr(card, "LEVEL", 0.5)  # the profile has too few sources for 90%
    Scorer(cfg, CPLLM(cfg.model, nnx.Rngs(0)), text.train_tokenizer(["A cat."], 500)).save(default)
    rows = table[table["split"] == "validation"]
    records.write_csv(place / "results" / "smoke" / "runs" / "default-s0" / "predictions.csv",
                      rows[["video"]].assign(prediction=rows["proxy"] + 3))
    assert scoring.make_card("pocket") is None
    assert scoring.make_card("smoke") == card.beside(default)
    found = card.of(default)
    assert found.calibration.half_width == pytest.approx(3, abs=1e-3)
    assert found.calibration.n_items == len(rows) and found.content.limit > 0
    short = table.loc[table["split"] == "train", ["width", "height"]].min(axis=1)
    assert found.lines == (short.min(), short.max())
    assert scoring.make_card("smoke", again=False) is None
    default.write_bytes(default.read_bytes() + b" ")
    assert card.of(default) is None


def test_chapters_show_the_packages_model_whatever_was_trained_here(place, monkeypatch):
    cfg, default = config.preset("smoke"), place / "package" / "smoke.safetensors"
    own, other = (Scorer(cfg, CPLLM(cfg.model, nnx.Rngs(seed)), text.train_tokenizer(["A."], 500))
                  for seed in (0, 1))
    with pytest.raises(FileNotFoundError, match="default-s0: expected its weights"):
        scoring.default_model("smoke")
    other.save(place / "data" / "smoke" / "weights" / "default-s0.safetensors")

    def first(scorer):
        return nnx.to_flat_state(nnx.state(scorer.model))[0][1][...].tolist()

    assert first(scoring.default_model("smoke")) == first(other)
    monkeypatch.setattr("cpllm.infer.DEFAULT", default)
    own.save(default)
    assert first(scoring.default_model("smoke")) == first(own) != first(other)


APART = ["80_benchmark_towers", "81_benchmark_encodes", "82_benchmark_batches",
         "83_benchmark_step", "84_benchmark_bootstrap", "85_count_flops", "86_benchmark_score",
         "87_benchmark_footage", "88_benchmark_frames"]


def test_the_longest_runs_are_trained_first(place, monkeypatch):
    runs = [grid.Run(f"a-s{seed}", {}, config.preset("smoke")) for seed in range(3)]
    plan = pd.DataFrame({"run": [r.run_id for r in runs], "status": grid.MISSING,
                         "seconds": [9.0, np.nan, 30.0]})
    order = []
    monkeypatch.setattr(grid, "read", lambda *_: runs)
    monkeypatch.setattr(grid, "plan", lambda *_: plan)
    monkeypatch.setattr(pipeline, "_prepare", lambda *_: None)
    monkeypatch.setattr(grid, "execute",
                        lambda runs, *_: order.extend(r.run_id for r in runs) or {})
    pipeline.train_grids("smoke", ["a"], score=False)
    assert order == ["a-s2", "a-s0", "a-s1"]


def test_each_kind_of_pretraining_is_done_once_before_runs_start(place, monkeypatch):
    small = config.replace(config.preset("smoke"), pretrained=True)
    longer = config.replace(small, **{"pretrain.view_steps": 40, "pretrain_low.steps": 7})
    fewer = config.replace(small, **{"pretrain.view_steps": 50, "data.without": ("leaves",)})
    least = config.replace(fewer, **{"data.without": ("leaves", "text")})
    ladder.build(small, place / "data" / "smoke", ("train",), workers=1)
    asked = []
    monkeypatch.setattr(pretrain, "ensure", lambda cfg, _: asked.append(cfg.pretrain.view_steps))
    monkeypatch.setattr(pretrain_low, "ensure",
                        lambda cfg, _: asked.append(cfg.pretrain_low.steps))
    pipeline._prepare("smoke", [
        small, config.replace(small, seed=1), longer, config.replace(longer, seed=1), fewer, least])
    assert asked == [small.pretrain.view_steps, 40, 50, 50, 7]


def test_reproduce_leaves_benchmarks_alone():
    steps = {step.name for step in pipeline.steps("smoke", fresh=True)}
    assert "28_table1" in steps and not steps & set(APART)


def test_benchmark_runs_what_stands_apart_and_no_other(place, monkeypatch):
    ran = []
    monkeypatch.setattr(notebooks, "execute", lambda *job: ran.append(job))
    pipeline.benchmark("smoke", ["encodes"])
    home = place / "results" / "smoke" / "notebooks"
    assert ran == [(sweep.ROOT / "notebooks" / f"{APART[1]}.ipynb", home / f"{APART[1]}.ipynb",
                    {"profile": "smoke"}, [])]
    pipeline.benchmark("smoke")
    assert [source.stem for source, *_ in ran[1:]] == APART
    inputs = {source.stem: {p.name for p in found} for source, *_, found in ran}
    assert inputs["86_benchmark_score"] == {"pocket.json", "pocket.safetensors"}
    with pytest.raises(ValueError, match=r"towers, encodes, .*; got 'encoders'"):
        pipeline.benchmark("smoke", ["encoders"])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "parameters", "shown"), [
    ("81_benchmark_encodes", {"clips": 1, "repeats": 1, "crfs": "20 50"}, "hevc"),
    ("82_benchmark_batches", {"clips": 4, "steps": 3}, "of which it waits")])
def test_benchmarks_run_small(place, ffmpeg, name, parameters, shown):
    ladder.build(config.preset("smoke"), place / "data" / "smoke", ("train",), workers=1)
    given = {"profile": "smoke", **parameters}
    if name.endswith("batches"):
        given["data"] = str(place / "data")
    notebooks.execute(sweep.ROOT / "notebooks" / f"{name}.ipynb", place / "out.ipynb", given)
    assert shown in (place / "out.ipynb").read_text()


@pytest.mark.slow
def test_the_smoke_profile_goes_from_nothing_to_a_book(tmp_path, request):
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", request.config.rootpath, clone], check=True)
    here = {**os.environ, "PYTHONPATH": str(clone)}
    for words in (["-m", "cpllm.cli", "reproduce", "--profile", "smoke", "--fresh"],
                  ["book/_ext/build.py", "smoke"]):  # fmt: skip
        subprocess.run([sys.executable, *words], cwd=clone, env=here, check=True)
    table = pd.read_csv(clone / "results" / "smoke" / "tables" / "table3.csv")
    ours = table[(table["system"] == "default") & table["metric"].str.startswith("FR diff=10")]
    assert (ours["status"] == "ok").all()
    assert ours["value"].notna().all()
    assert (clone / "book" / "_build" / "html" / "index.html").exists()
