"""The stages of a profile, on two made scenes; the whole smoke profile under `make test-slow`."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from cpllm import (
    config,
    grid,
    notebooks,
    pipeline,
    pretrain,
    pretrain_low,
    records,
    sweep,
)
from cpllm.data import ladder


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
