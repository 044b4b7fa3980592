"""Grids: planned before anything runs, trained side by side, resumed, and never trained twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from test_labels import table
from test_notebooks import write

from cpllm import cli, config, grid, pipeline, records, scoring, sweep
from cpllm.data import manifests

STAND_IN = '''profile = "smoke"
seed = 0
run_id = ""
recipe = "preset"
changes = "{}"'''
TRAIN = '''import json, os, time
from pathlib import Path
from cpllm import grid, records
cfg = grid.configure(profile, recipe, seed, json.loads(changes))
print("step 1 of", cfg.train.steps)
if cfg.train.steps == 13:
    raise FloatingPointError("step 7: not finite")
if cfg.train.steps == 17:
    raise SystemExit(0)  # as training does when it was asked to stop
if cfg.train.steps == 99 and not Path("go").exists():
    Path("waits").touch()
    time.sleep(600)
folder = Path("../results", profile, "runs", run_id)
records.write_json(folder / "config.json", cfg.to_dict())
told = {"cores": sorted(os.sched_getaffinity(0)), "pid": os.getpid(), "at": time.time()}
records.write_json(folder / "metrics.json", {"loss": 0.5} if cfg.train.steps == 40 else told)
records.write_json(folder / "provenance.json", records.provenance(records.start(), seed, "beef"))'''


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout whose training notebook is a stand-in that leaves a run's record."""
    write(tmp_path / "notebooks" / grid.NOTEBOOK, TRAIN, parameters=STAND_IN)
    (tmp_path / "data" / "smoke").mkdir(parents=True)
    for module, name in ((sweep, "ROOT"), (sweep, "DATA"), (sweep, "RESULTS")):
        folder = {"ROOT": "", "DATA": "data", "RESULTS": "results"}[name]
        monkeypatch.setattr(module, name, tmp_path / folder)
    monkeypatch.setattr(pipeline, "_prepare", lambda *_: None)
    monkeypatch.setattr(scoring, "score_runs", lambda *_, **__: None)
    return tmp_path


def save_grid(root, text, name="g"):
    (root / "notebooks" / "sweeps").mkdir(parents=True, exist_ok=True)
    (root / "notebooks" / "sweeps" / f"{name}.yaml").write_text(f"about: a test\n{text}")


def record(root, run_id, cfg, **made):
    """A run as training leaves it, unless `made` says otherwise."""
    folder = records.run_folder(root / "results", "smoke", run_id)
    records.write_json(folder / "config.json", cfg.to_dict())
    records.write_json(folder / "provenance.json", {
        "code_sha256": records.code_sha256(), "manifest_sha256": "beef", "duration_s": 40.0,
        **made})
    return folder


def folder(checkout, run):
    return records.run_folder(checkout / "results", "smoke", run.run_id)


def run(root, *options):
    return cli.main(["sweep", "g", "--profile", "smoke", "--workers", "1", *options])


TWO = "recipe: preset\nrows:\n  a: {steps: 20}\n  b: {steps: 30, input_mode: single}\n"


def test_rows_axes_and_included_grids_make_runs(checkout):
    save_grid(checkout, "recipe: preset\nrows:\n  a: {steps: 20}\n", "base")
    save_grid(checkout, "recipe: preset\ninclude: [base]\nrows:\n  x:\n  y: {batch: 4}\n"
              "axes:\n  model.predictor_hidden: [8, 16]\n  weights: [[1.0, 0.0, 1.0]]\n")
    runs = {r.run_id: r.cfg for r in grid.read("g", "smoke", checkout)}
    assert next(iter(runs)) == "a-s0" and len(runs) == 5
    (y,) = [cfg for name, cfg in runs.items() if name.startswith("y-predictor_hidden16")]
    assert (y.train.batch, y.model.predictor_hidden) == (4, 16)
    assert y.train.weights == (1.0, 0.0, 1.0)


def test_a_profile_trains_its_share_of_the_rows_for_each_seed(checkout, monkeypatch):
    save_grid(checkout, TWO + "only:\n  smoke: [b]\n")
    assert [r.run_id for r in grid.read("g", "smoke", checkout)] == ["b-s0"]
    assert [r.run_id for r in grid.read("g", "pocket", checkout)] == [
        f"{row}-s{seed}" for row in "ab" for seed in (0, 1, 2)]


@pytest.mark.parametrize(("text", "named"), [
    ("recipe: preset\nrows:\n  a: {stepz: 2}\n", "stepz"),
    ("recipe: preset\nrows:\n  a: {model.lora: 2}\n", "model.lora"),
    ("recipe: presto\nrows:\n  a:\n", "presto"),
    ("rowz: {}\n", "rowz"),
    ("recipe: preset\nrows:\n  a:\nonly:\n  smoke: [z]\n", "no row z"),
    ("include: [nowhere]\n", "nowhere"),
    ("recipe: preset\nsets: [lsvq-tset]\nrows:\n  a:\n", "no set lsvq-tset; known are lsvq-train"),
])
def test_what_is_unknown_is_refused_before_anything_runs(checkout, capsys, text, named):
    save_grid(checkout, text)
    assert run(checkout) == 2
    assert named in capsys.readouterr().err
    assert not (checkout / "results").exists()


def test_yaml_can_not_make_objects(checkout, capsys):
    save_grid(checkout, "rows: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(Exception, match="python/object"):
        grid.read("g", "smoke", checkout)


def test_the_committed_grids_can_be_planned():
    for path in sorted((records.ROOT / "notebooks" / "sweeps").glob("*.yaml")):
        for profile in ("smoke", "pocket"):
            runs = grid.read(path.stem, profile, records.ROOT)
            assert len({r.run_id for r in runs}) == len(runs)
    rows = {r.run_id[:-3] for r in grid.read("table", "pocket", records.ROOT)}
    assert rows == {"cpllm", "single", "pairwise", "head", "all", *config.RIVALS}


def test_what_a_profile_changes_holds_for_every_row_of_it_and_for_no_other(checkout):
    save_grid(checkout, TWO + "profiles:\n  pocket: {batch: 6}\n")
    pocket, smoke = (grid.read("g", profile, checkout) for profile in ("pocket", "smoke"))
    assert {run.cfg.train.batch for run in pocket} == {6}
    assert 6 not in {run.cfg.train.batch for run in smoke}


def test_unchanged_runs_are_skipped_and_changed_ones_are_not(checkout):
    save_grid(checkout, TWO)
    runs = grid.read("g", "smoke", checkout)
    record(checkout, "a-s0", runs[0].cfg)
    record(checkout, "b-s0", config.replace(runs[1].cfg, steps=31))
    assert grid.plan(runs, "smoke", checkout)["status"].tolist() == ["done", "changed"]
    assert grid.status(runs[0], folder(checkout, runs[0]), "beef") == "done"
    assert grid.status(runs[0], folder(checkout, runs[0]), "cafe") == "changed"
    old = record(checkout, "a-s0", runs[0].cfg) / "config.json"
    values = json.loads(old.read_text())
    del values["train"]["keep"]  # a field that is new, with its default
    old.write_text(json.dumps(values))
    assert grid.status(runs[0], folder(checkout, runs[0]), "beef") == "done"


def test_a_run_that_was_never_made_is_likely_to_take_as_long_as_its_like(checkout):
    save_grid(checkout, "rows:\n  a: {steps: 30}\n  b: {kind: dover, steps: 30}\n"
                        "  c: {steps: 31}\n")
    runs = grid.read("g", "smoke", checkout)
    cfg = config.replace(runs[0].cfg, input_mode="single")
    assert grid.plan(runs, "smoke", checkout)["seconds"].isna().all()
    for name, seconds in ("x-s0", 50.0), ("x-s1", 70.0):
        record(checkout, name, cfg, duration_s=seconds)
    assert grid.plan(runs, "smoke", checkout)["seconds"].tolist() == [60, 60, 62]
    record(checkout, "y-s0", config.rival(cfg, "dover"), duration_s=9.0)
    assert grid.plan(runs, "smoke", checkout)["seconds"].tolist() == [60, 9, 62]


def test_another_test_split_changes_no_run(checkout):
    save_grid(checkout, TWO)
    (first, _) = grid.read("g", "smoke", checkout)
    rows = pd.concat([table().assign(split=split, **{
        c: split + table()[c] for c in ("video", "scene", "source")})
        for split in ("train", "validation", "test")])
    seen = manifests.sha256(rows, manifests.TRAINING)
    record(checkout, first.run_id, first.cfg, manifest_sha256=seen)

    def told(rows):
        manifests.write(rows, checkout / "data" / "smoke" / "manifest.csv")
        return grid.plan([first], "smoke", checkout)["status"].item()

    assert told(rows) == told(rows[rows["split"] != "test"]) == "done"
    assert told(rows.assign(proxy=70.5)) == "changed"


def test_runs_by_older_code_are_kept_until_stale_is_asked_for(checkout, capsys):
    save_grid(checkout, TWO)
    for r in grid.read("g", "smoke", checkout):
        record(checkout, r.run_id, r.cfg, code_sha256="older")
    assert run(checkout, "--dry-run") == 0
    assert capsys.readouterr().err.count("older code") == 2
    assert run(checkout, "--dry-run", "--stale") == 0
    assert "2 of 2 runs to train: about 1 minutes" in capsys.readouterr().err


def test_a_seed_that_newer_code_trains_to_the_same_speaks_for_its_row(checkout):
    save_grid(checkout, "recipe: preset\nrows:\n  same: {steps: 40}\n  other: {steps: 41}\n")
    runs = grid.read("g", "pocket", checkout)
    folders = {r.run_id: records.run_folder(checkout / "results", "pocket", r.run_id) for r in runs}
    for r in runs:
        told = r.cfg.to_dict()
        del told["data"]["without_faults"]  # as if the field had come later
        records.write_json(folders[r.run_id] / "config.json", told)
        records.write_json(folders[r.run_id] / "metrics.json", {"loss": 0.5})
        records.write_json(folders[r.run_id] / "provenance.json", {
            "code_sha256": "older", "manifest_sha256": "beef", "duration_s": 1.0})
    assert cli.main(["sweep", "g", "--profile", "pocket", "--workers", "1", "--stale"]) == 0
    assert {*grid.plan(runs, "pocket", checkout)["status"]} == {"done"}
    assert {name for name, folder in folders.items() if records.read_json(
        folder / "provenance.json")["code_sha256"] == "older"} == {"same-s1", "same-s2"}
    kept = pd.read_csv(checkout / "results" / "pocket" / grid.EQUAL)
    assert kept.to_dict("records") == [{"row": "same", "older": "older", "seen_in": "same-s0",
                                        "newer": records.code_sha256()}]


def test_what_came_out_the_same_twice_in_turn_is_the_same(checkout, monkeypatch):
    folder = records.run_folder(checkout / "results", "smoke", "a-s1")
    lines = [("a", "first", "second"), ("b", "other", "third"), ("a", "second", "third")]
    records.write_csv(checkout / "results" / "smoke" / grid.EQUAL,
                      pd.DataFrame(lines, columns=["row", "older", "newer"]))
    monkeypatch.setattr(records, "code_sha256", lambda: "third")
    assert grid.codes(folder) == {"first", "second", "third"}


def test_a_dry_run_runs_nothing_and_prints_the_cost_of_seeds_like_those_that_ran(checkout, capsys):
    save_grid(checkout, TWO)
    assert run(checkout, "--dry-run") == 0
    assert "no earlier run says how long" in capsys.readouterr().err
    record(checkout, "a-s0", grid.read("g", "smoke", checkout)[0].cfg, duration_s=120.0)
    assert run(checkout, "--dry-run") == 0
    assert "1 of 2 runs to train: about 3 minutes with 1 at once" in capsys.readouterr().err
    assert not list((checkout / "results").rglob("metrics.json"))


def test_failures_keep_their_traceback_and_are_listed_after_the_others(checkout, capsys):
    save_grid(checkout, "recipe: preset\nrows:\n  bad: {steps: 13}\n  good: {steps: 20}\n")
    assert run(checkout) == 2
    err = capsys.readouterr().err
    assert "1 of 2 runs failed" in err and "bad-s0" in err and "FloatingPointError" in err
    kept = (checkout / "data" / "smoke" / "notebooks" / "bad-s0.failed.ipynb").read_text()
    assert "Traceback" in kept and "not finite" in kept
    assert (checkout / "results" / "smoke" / "runs" / "good-s0" / "metrics.json").exists()
    assert [r.run_id for r in grid.read("g", "smoke", checkout)
            if grid.status(r, folder(checkout, r), None) == "not run"] == ["bad-s0"]


def test_a_run_trained_anew_forgets_its_predictions_answers_and_weights(checkout):
    save_grid(checkout, TWO)
    runs = grid.read("g", "smoke", checkout)
    folder = record(checkout, "a-s0", config.replace(runs[0].cfg, steps=21))
    said = [folder / "predictions.csv", folder / "answers.csv"]
    for path in said:
        path.write_text("video,prediction\n")
    weights = checkout / "data" / "smoke" / "weights" / "a-s0.safetensors"
    weights.parent.mkdir()
    weights.touch()
    assert grid.execute(runs[:1], "smoke", checkout, workers=1) == {}
    assert not any(path.exists() for path in (*said, weights))


def test_a_run_that_was_asked_to_stop_says_that_it_can_go_on(checkout, capsys):
    save_grid(checkout, "recipe: preset\nrows:\n  a: {steps: 17}\n")
    assert run(checkout) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "a-s0: stopped before its last step; the same command goes on" in said
    assert "duration_s" not in said


def test_an_interrupted_run_goes_on_only_from_its_own_code_and_data(checkout, monkeypatch):
    save_grid(checkout, TWO)
    (first, _) = grid.read("g", "smoke", checkout)
    left = records.checkpoints(checkout / "data" / "smoke", first.run_id) / "20"
    folder = records.run_folder(checkout / "results", "smoke", first.run_id)

    def goes_on():
        """Whether a checkpoint that is left is still there when the run is trained."""
        left.mkdir(parents=True, exist_ok=True)
        (folder / "provenance.json").unlink(missing_ok=True)
        grid.execute([first], "smoke", checkout, workers=1)
        return left.exists()

    assert [goes_on(), goes_on()] == [False, True]
    monkeypatch.setattr(records, "code_sha256", lambda: "other")
    assert [goes_on(), goes_on()] == [False, True]
    monkeypatch.setattr(grid, "_data_hash", lambda *_: "other")
    assert [goes_on(), goes_on()] == [False, True]


def test_two_runs_at_once_keep_to_a_core_each(checkout):
    save_grid(checkout, TWO)
    runs = grid.read("g", "smoke", checkout)
    assert grid.execute(runs, "smoke", checkout, workers=2) == {}
    made = [records.read_json(checkout / "results" / "smoke" / "runs" / r.run_id / "metrics.json")
            for r in runs]
    assert all(len(m["cores"]) == 1 for m in made) and made[0]["pid"] != made[1]["pid"]
    if len(os.sched_getaffinity(0)) > 1:
        assert made[0]["cores"] != made[1]["cores"]


def test_a_killed_sweep_goes_on_with_what_was_not_done(checkout):
    save_grid(checkout, "recipe: preset\nrows:\n  a: {steps: 20}\n  slow: {steps: 99}\n")
    code = (f"from pathlib import Path; from cpllm import grid; root = Path({str(checkout)!r})\n"
            "grid.execute(grid.read('g', 'smoke', root), 'smoke', root, workers=1)")
    process = subprocess.Popen([sys.executable, "-c", code], cwd=records.ROOT)
    waits = checkout / "notebooks" / "waits"
    until = time.time() + 300
    while not waits.exists() and time.time() < until and process.poll() is None:
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    runs = grid.read("g", "smoke", checkout)
    found = grid.plan(runs, "smoke", checkout)["status"].tolist()
    assert waits.exists() and found == ["done", "not run"]
    (checkout / "notebooks" / "go").touch()
    first = checkout / "results" / "smoke" / "runs" / "a-s0" / "metrics.json"
    before = first.read_text()
    assert run(checkout) == 0
    assert grid.plan(runs, "smoke", checkout)["status"].tolist() == ["done", "done"]
    assert first.read_text() == before


def test_the_training_code_is_told_from_plotting_and_prose(tmp_path):
    package = tmp_path / "cpllm"
    package.mkdir()
    (package / "train.py").write_text('"""Doc."""\nfrom cpllm import losses\n# note\nx = 1\n')
    (package / "losses.py").write_text("def f():\n    '''Doc.'''\n    return 1\n")
    (package / "report.py").write_text("y = 1\n")

    def digest():
        return records.code_sha256.__wrapped__("cpllm/train.py", tmp_path)

    before = digest()
    (package / "report.py").write_text("y = 2\n")
    (package / "losses.py").write_text("def f():\n    '''Other words.'''\n\n    return 1\n")
    (package / "train.py").write_text('"""Doc!"""\nfrom cpllm import losses\nx = 1\n')
    assert digest() == before
    (package / "losses.py").write_text("def f():\n    return 2\n")
    assert digest() != before


def test_where_programs_are_kept_is_told_only_to_what_is_started_meanwhile(tmp_path, monkeypatch):
    for name in ("JAX_COMPILATION_CACHE_DIR", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")  # as dask tells its workers
    before = dict(os.environ)
    with grid._surroundings(tmp_path):
        assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path)
        assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
        assert "MALLOC_TRIM_THRESHOLD_" not in os.environ
    assert dict(os.environ) == before
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "mine")
    with grid._surroundings(tmp_path):
        assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "mine"
