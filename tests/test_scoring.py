"""Runs are scored, the package's model gets its card: on a few made scenes."""

import json

import pandas as pd
import pytest
from flax import nnx

from cpllm import baselines, calibrate, card, config, grid, records, report, scoring, sweep
from cpllm.data import ladder, manifests, text
from cpllm.infer import Scorer
from cpllm.model.cpllm import CPLLM


def untrained(seed: int = 0) -> Scorer:
    """A model of the smoke profile with random weights."""
    cfg = config.preset("smoke")
    tokenizer = text.train_tokenizer(["A cat."], 500)
    return Scorer(cfg, CPLLM(cfg.model, nnx.Rngs(seed)), tokenizer)


def predictions(place, run_id):
    rows = report.read_runs("smoke", place / "results")
    return rows[rows["run"] == run_id]


def test_scoring_writes_the_model_and_the_baselines_and_keeps_other_splits(place, ffmpeg):
    cfg = config.preset("smoke")
    table = ladder.build(cfg, place / "data" / "smoke", ("validation", "test"), workers=1)
    scorer = untrained()
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
    scorer = untrained()
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


def test_the_packages_weights_get_a_card_from_their_predictions_once(place, monkeypatch):
    cfg, data = config.preset("smoke"), place / "data" / "smoke"
    table = ladder.build(cfg, data, ("train", "validation"), workers=1)
    default = place / "package" / "smoke.safetensors"
    monkeypatch.setattr("cpllm.infer.DEFAULT", default)
    monkeypatch.setattr(card, "LEVEL", 0.5)  # the profile has too few sources for 90%
    untrained().save(default)
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
    default = place / "package" / "smoke.safetensors"
    own, other = untrained(), untrained(seed=1)
    with pytest.raises(FileNotFoundError, match="default-s0: expected its weights"):
        scoring.default_model("smoke")
    other.save(place / "data" / "smoke" / "weights" / "default-s0.safetensors")

    def first(scorer):
        return nnx.to_flat_state(nnx.state(scorer.model))[0][1][...].tolist()

    assert first(scoring.default_model("smoke")) == first(other)
    monkeypatch.setattr("cpllm.infer.DEFAULT", default)
    own.save(default)
    assert first(scoring.default_model("smoke")) == first(own) != first(other)


def test_predictions_are_kept_for_splits_that_were_not_scored(place):
    rows = pd.DataFrame({"video": ["v", "t"], "split": ["validation", "test"], "crf": [1.0, 2.0]})
    known = scoring._record("smoke", "videos.csv", rows)
    scoring._record("smoke", "runs/a-s0/predictions.csv",
                    rows[["video"]].assign(prediction=[1.0, 2.0]), known)
    test = rows[rows.split == "test"].assign(video="t2")
    known = scoring._record("smoke", "videos.csv", test)
    assert known.video.tolist() == ["v", "t2"]
    scoring._record("smoke", "runs/a-s0/predictions.csv",
                    test[["video"]].assign(prediction=[3.0]), known)
    written = pd.read_csv(place / "results" / "smoke" / "runs" / "a-s0" / "predictions.csv")
    assert written.to_dict("list") == {"video": ["v", "t2"], "prediction": [1.0, 3.0]}
