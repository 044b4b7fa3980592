import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest

from cpllm import config, grid, metrics, records, report

ROOT = Path(__file__).parent.parent
COLUMNS = ["video", "source", "family", "split", "role", "distortion", "codec", "crf", "proxy",
           "prediction"]
CPLLM, OURS = "CP-LLM (paper, LSVQ-test-1080p)", "default"


def save_run(results, name, seed=0, noise=0.0, splits=("validation", "test"), profile="smoke"):
    """A run on disk as training leaves it: 3 sources, 4 scenes, ladders and originals."""
    rng, rows = np.random.default_rng(seed + 1), []
    for split in splits:
        for scene, source in zip("wxyz", "abca", strict=True):
            items = [("original", "", np.nan, 99.0), ("blur", "blur", np.nan, 50.0)]
            items += [(f"crf{crf}", "", crf, 100.0 - crf) for crf in range(13, 52, 2)]
            rows += [(f"{split}-{scene}@{tail}", f"{split}-{source}", "photo", split,
                      "original" if np.isnan(crf) else "variant", kind,
                      "h264", crf, q, q + noise * rng.normal())
                     for tail, kind, crf, q in items]
    folder = results / profile / "runs" / f"{name}-s{seed}"
    folder.mkdir(parents=True)
    pd.DataFrame(rows, columns=COLUMNS).to_csv(folder / "predictions.csv", index=False)
    (folder / "config.json").write_text(json.dumps({"train": {"seed": seed}}))
    (folder / "provenance.json").write_text(json.dumps({
        "commit": "c0ffee", "dirty": False, "versions": {"jax": "0.10.2"}, "device": "cpu",
        "seed": seed, "manifest_sha256": "beef", "duration_s": 61.5}))
    return folder


@pytest.fixture
def results(tmp_path):
    shutil.copy(ROOT / "results" / "paper.csv", tmp_path)
    return tmp_path


def fill(results):
    for seed in (0, 1):
        save_run(results, OURS, seed, noise=3)
    save_run(results, "filesize")
    return results


@pytest.fixture
def filled(results):
    return fill(results)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(results, Table 3) of two seeds and one baseline, for the tests that change neither."""
    results = tmp_path_factory.mktemp("results")
    shutil.copy(ROOT / "results" / "paper.csv", results)
    return fill(results), report.table3("smoke", results, draws=100)


def cells(table, system):
    return table[table.system == system].set_index("metric")


def test_importing_the_report_does_not_import_jax():
    code = "import sys, cpllm.report, cpllm.metrics; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_table3_averages_the_seeds_flip_rates_over_the_test_split(made):
    filled, table = made
    frames = [pd.read_csv(filled / "smoke" / "runs" / f"default-s{seed}" / "predictions.csv")
              .query("split == 'test'") for seed in (0, 1)]
    ours = cells(table, OURS)
    for diff in report.DIFFS:
        rates = [metrics.flip_rate(frame, diff) for frame in frames]
        assert ours.value[f"FR diff={diff}"] == pytest.approx(np.mean([r.strict for r in rates]))
        assert ours.n_items[f"FR diff={diff}"] == rates[0].pairs == 4 * (20 - diff // 2)
    assert 0 < ours.value["FR diff=2"] < 1
    assert ours.value["SRCC pooled"] == pytest.approx(
        np.mean([metrics.srcc(frame.proxy, frame.prediction) for frame in frames]))
    assert ours.n_items["SRCC pooled"] == len(frames[0])
    assert set(ours.n_sources) == {3} and set(ours.seeds) == {2} and set(ours.status) == {"ok"}
    assert (ours.ci_low <= ours.value).all() and (ours.value <= ours.ci_high).all()


def test_table3_is_written_with_every_column(made):
    filled, table = made
    written = pd.read_csv(filled / "smoke" / "tables" / "table3.csv")
    assert list(written) == ["system", "metric", "value", "ci_low", "ci_high", "n_sources",
                             "n_items", "seeds", "status"]
    np.testing.assert_allclose(written.value, table.value, rtol=1e-5)


def test_ties_are_counted_apart_and_half_in_the_half_rate(results):
    folder = save_run(results, OURS)
    rows = pd.read_csv(folder / "predictions.csv").assign(prediction=50.0)
    rows.loc[0, "prediction"] = 51.0
    rows.loc[len(rows) - 1, "prediction"] = 51.0  # the last scene's crf 51 beats all others
    rows.to_csv(folder / "predictions.csv", index=False)
    ours = cells(report.table3("smoke", results, draws=20), OURS).value
    assert ours["FR diff=2"] == pytest.approx(1 / 76)
    assert ours["FR diff=2 ties"] == pytest.approx(75 / 76)
    assert ours["FR diff=2 half"] == pytest.approx((1 + 75 / 2) / 76)


def test_the_papers_rows_are_marked_and_have_no_interval(made):
    paper = made[1].query("status == 'paper'")
    assert len(paper) == 36 and paper.system.str.endswith(" (paper, LSVQ-test-1080p)").all()
    assert paper[["ci_low", "ci_high", "n_sources", "n_items", "seeds"]].isna().all().all()
    assert cells(paper, CPLLM).value["FR diff=10"] == 0.021


def test_a_missing_run_says_not_run_and_never_the_papers_number(results):
    table = report.table3("smoke", results, draws=20)
    ours = table[table.status != "paper"]
    assert set(ours.system) == {"cpllm", "coinvq", "fast-vqa", "dover", "q-align", "answers",
                                "default", *report.BASELINES}
    assert set(ours.status) == {"not run (smoke)"} and ours.value.isna().all()
    wide = report.styled(table).data
    assert set(wide.loc[OURS]) == {"not run (smoke)"} and "not run" in report.title(table)
    assert "not run" in report.reading(table)
    report.flip_curve(table, results)


def test_a_run_without_predictions_is_named_and_not_counted(filled):
    (filled / "smoke" / "runs" / "default-s1" / "predictions.csv").unlink()
    save_run(filled, "sharpness", splits=["validation"])
    table = report.table3("smoke", filled, draws=20)
    assert set(cells(table, OURS).status) == {"no test rows: default-s1"}
    assert set(cells(table, OURS).seeds) == {1}
    assert set(cells(table, "sharpness").status) == {"no test rows: sharpness-s0"}
    assert "default (no test rows: default-s1)" in report.styled(table).data.index


def test_the_validation_summary_reads_the_validation_split_alone(results):
    save_run(results, OURS, noise=3, splits=["validation"])
    before = report.validation_summary("smoke", results, draws=20)
    with (results / "smoke" / "runs" / "default-s0" / "predictions.csv").open("a") as file:
        file.write("test-w@crf13,test-a,photo,test,variant,,h264,13,1,99\n")
    pd.testing.assert_frame_equal(before, report.validation_summary("smoke", results, draws=20))
    assert "paper" not in set(before.status) and "validation split" in report.title(before)
    assert not (results / "smoke" / "tables").exists()


def outside(results, table, name="vmaf-nr"):
    """A CSV of predictions made elsewhere, and videos.csv, which says what the videos are."""
    known = pd.read_csv(results / "smoke" / "runs" / "filesize-s0" / "predictions.csv")
    known.drop(columns="prediction").to_csv(results / "smoke" / "videos.csv", index=False)
    (results / "smoke" / "outside").mkdir(exist_ok=True)
    table(known).to_csv(results / "smoke" / "outside" / f"{name}.csv", index=False)


def test_predictions_from_outside_are_matched_by_name_and_get_a_row(filled):
    outside(filled, lambda known: known[["video"]].assign(prediction=-known.proxy, note="x"))
    theirs = cells(report.table3("smoke", filled, draws=20), "vmaf-nr (outside)")
    assert theirs.value["FR diff=2"] == 1 and theirs.value["SRCC pooled"] == pytest.approx(-1)
    assert set(theirs.status) == {"ok"} and set(theirs.n_sources) == {3}


def test_predictions_of_some_videos_only_say_how_many(filled):
    outside(filled, lambda known: known[["video"]].assign(prediction=known.proxy)[:-1])
    theirs = cells(report.table3("smoke", filled, draws=20), "vmaf-nr (outside)")
    assert set(theirs.status) == {"87 of 88 videos"} and theirs.value["SRCC pooled"] == 1


@pytest.mark.parametrize(("table", "named"), [
    (lambda known: known[["video"]].assign(prediction=1.0, video=lambda f: f.video + ".mp4"),
     r"vmaf-nr.csv: 176 of 176 videos are not in .*first: validation-w@original\.mp4"),
    (lambda known: known[["video"]].assign(score=1.0), "no column prediction; has video, score"),
])
def test_outside_predictions_that_can_not_be_matched_are_refused_by_name(filled, table, named):
    outside(filled, table)
    with pytest.raises(ValueError, match=named):
        report.table3("smoke", filled)


def test_a_run_by_older_training_code_is_named_as_such(filled):
    folder = filled / "smoke" / "runs" / "default-s0"
    made = json.loads((folder / "provenance.json").read_text())
    for code, status in (records.code_sha256(), "ok"), ("beef", "older code"):
        for seed in (0, 1):
            folder = filled / "smoke" / "runs" / f"default-s{seed}"
            (folder / "config.json").write_text(json.dumps({"model": {}, "train": {"seed": seed}}))
            (folder / "provenance.json").write_text(json.dumps({**made, "code_sha256": code}))
        table = report.table3("smoke", filled, draws=20)
        assert set(cells(table, OURS).status) == {status}
    assert "default (older code)" in report.styled(table).data.index


def test_a_run_of_other_settings_than_its_grid_s_is_named_changed(filled, monkeypatch):
    runs = {f"default-s{i}": config.replace(config.smoke(), seed=i) for i in (0, 1)}
    planned = {name: grid.Run(name, {}, cfg) for name, cfg in runs.items()}
    monkeypatch.setattr(report, "_planned", lambda *_: planned)
    monkeypatch.setattr(report, "trained_on", lambda *_: None)
    for steps, status in (config.smoke().train.steps, "ok"), (1, "changed"):
        for name, cfg in runs.items():
            folder = filled / "smoke" / "runs" / name
            made = {"code_sha256": records.code_sha256(), "manifest_sha256": ""}
            records.write_json(folder / "provenance.json", made)
            records.write_json(folder / "config.json", config.replace(cfg, steps=steps).to_dict())
        assert set(cells(report.table3("smoke", filled, draws=20), OURS).status) == {status}


def test_a_folder_whose_seed_is_not_its_configurations_is_refused(filled):
    (filled / "smoke" / "runs" / "default-s1").rename(filled / "smoke" / "runs" / "default-s7")
    with pytest.raises(ValueError, match=r"default-s7: its config.json has train.seed 1"):
        report.table3("smoke", filled)


def test_an_unknown_profile_is_refused_and_leaves_nothing_behind(results):
    with pytest.raises(ValueError, match="smokey"):
        report.table3("smokey", results)
    assert not (results / "smokey").exists()


def test_constant_predictions_are_stated_as_undefined(results):
    folder = save_run(results, OURS)
    rows = pd.read_csv(folder / "predictions.csv").assign(prediction=50.0)
    rows.to_csv(folder / "predictions.csv", index=False)
    table = report.table3("smoke", results, draws=20)
    assert report.styled(table).data.loc[OURS, "SRCC pooled"].startswith("undefined")
    assert cells(table, OURS).value["FR diff=2"] == 0


def test_the_styled_table_carries_profile_sources_seeds_and_intervals(made):
    table = made[1]
    styled = report.styled(table)
    assert "smoke profile" in styled.caption and "3 sources, 2 seeds" in styled.caption
    row = cells(table, OURS).loc["FR diff=2"]
    assert styled.data.loc[OURS, "FR diff=2"] == \
        f"{row.value:.3f} [{row.ci_low:.2f}, {row.ci_high:.2f}]"
    assert styled.data.loc[CPLLM, "FR diff=2"] == "0.125"
    assert styled.data.loc[CPLLM, "SRCC pooled"] == "–"
    ties = report.styled(table[table.status != "paper"], report.TIES)
    assert list(ties.data) == list(report.TIES) and "smoke profile" in ties.caption


def test_the_figure_shows_ours_with_seeds_and_marks_the_papers_lines(made):
    filled, table = made
    figure = report.flip_curve(table, filled)
    (axes,) = figure.axes
    (legend,) = figure.legends  # beside the axes, off the curves
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["default (smoke)", "filesize (smoke)",
                      "DOVER (paper, LSVQ-test-1080p)", "Q-Align (paper, LSVQ-test-1080p)", CPLLM]
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    np.testing.assert_allclose(lines["default (smoke)"],
                               cells(table, OURS).value[list(report.STRICT)])
    assert sum(line.get_marker() == "." for line in axes.lines) == 3  # two seeds and one baseline
    assert len(axes.collections) == 2 and "smoke" in axes.get_title()


def test_the_figure_file_is_the_same_bytes_each_time(made):
    (filled, table), files = made, []
    for _ in range(2):
        report.flip_curve(table, filled)
        files.append((filled / "smoke" / "figures" / "table3_flip_rate.svg").read_bytes())
    assert files[0] == files[1]
    assert (filled / "smoke" / "figures" / "table3_flip_rate.png").exists()


def test_the_reading_takes_its_numbers_from_the_table(made):
    table = made[1]
    text = report.reading(table)
    for metric in ("FR diff=2", "FR diff=20", "SRCC pooled", "SRCC within source"):
        assert f"{cells(table, OURS).value[metric]:.3f}" in text
    assert "never MOS" in text and "not LSVQ" in text and "never rises" in text
    assert "baseline filesize" in text and "flip rate alone proves nothing" in text
    raised = table.copy()
    raised.loc[(raised.system == OURS) & (raised.metric == "FR diff=8"), "value"] = 0.9
    assert "rises at least once" in report.reading(raised)


def test_provenance_prints_parameters_and_what_each_run_recorded(filled, capsys):
    (filled / "smoke" / "runs" / "filesize-s0" / "provenance.json").unlink()
    report.provenance("smoke", filled, draws=7)
    first, *runs = capsys.readouterr().out.splitlines()
    assert first == "profile=smoke draws=7" and len(runs) == 3
    for fact in ("default-s0", "commit c0ffee", "seed 0", "device cpu", "duration_s 61.5",
                 "manifest_sha256 beef", "jax 0.10.2"):
        assert fact in runs[0]
    assert "commit not recorded" in runs[2]
    report.provenance("pocket", filled)
    assert "not run" in capsys.readouterr().out


def run_notebook(results, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    papermill.execute_notebook(
        "notebooks/30_table3.ipynb", tmp_path / "out.ipynb", cwd="notebooks", kernel_name="python3",
        parameters={"profile": "smoke", "results": str(results), "draws": 20}, progress_bar=False)
    notebook = nbformat.read(tmp_path / "out.ipynb", 4)
    return json.dumps([cell.get("outputs", []) for cell in notebook.cells])


def test_the_notebook_runs_with_a_missing_run_and_shows_it(filled, tmp_path, monkeypatch):
    shown = run_notebook(filled, tmp_path, monkeypatch)
    assert "Table 3, smoke profile" in shown and "sharpness" in shown and "not run" in shown
    assert CPLLM in shown and "never MOS" in shown and "c0ffee" in shown


def test_the_notebook_is_stored_without_outputs_and_with_tagged_parameters():
    notebook = nbformat.read(ROOT / "notebooks" / "30_table3.ipynb", 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    (parameters,) = [c for c in code if "parameters" in c.metadata.get("tags", [])]
    assert parameters.source.splitlines() == [
        'profile = "smoke"', 'results = "../results"', "draws = 2000"]
    assert not any("def " in cell.source for cell in code)
    for before, cell in zip(notebook.cells, notebook.cells[1:], strict=False):
        assert cell.cell_type != "code" or before.cell_type == "markdown"


def test_text_answers_are_a_row_of_table_3_and_not_run_without_them(filled):
    def answered():
        return cells(report.table3("smoke", filled, draws=20), "answers")

    assert set(answered().status) == {"not run (smoke)"}
    pairs = pd.DataFrame([{"source": s, "scene": s, "codec": "h264", "crf_low": 13,
                           "crf_high": 13 + d, "diff": d, "first": 1.0, "second": second}
                          for s in "abc" for d in (2, 20) for second in (1.0, -1.0)])
    pairs.to_csv(filled / "smoke" / "runs" / "default-s0" / "answers.csv", index=False)
    ours = answered()
    assert ours.value["FR diff=2"] == 0.25 and ours.value["share of First"] == 0.75
    assert ours.n_items["FR diff=2"] == 12 and set(ours.seeds) == {1}
    assert set(ours.status) == {"ok"}
    folder = filled / "smoke" / "runs" / "default-s0"
    (folder / "config.json").write_text(json.dumps({"model": {}, "train": {"seed": 0}}))
    (folder / "provenance.json").write_text(json.dumps({"code_sha256": "beef"}))
    assert set(answered().status) == {"older code"}  # as the run that answered


def test_kept_draws_are_those_of_the_rows_asked_for(filled):
    rows = report.of_ladders(report.read_runs("smoke", filled).query("system == @OURS"), "test")
    for frame in (rows, rows.assign(prediction=-rows.prediction), rows[rows.seed == 1], rows):
        drawn = report.replicates(frame, metrics.pooled_srcc, 20)
        assert len(drawn) == frame.seed.nunique()
        np.testing.assert_array_equal(
            drawn.mean(0), metrics.replicates(frame, metrics.pooled_srcc, 20))
    assert report.replicates(rows, metrics.pooled_srcc, 20) is drawn
    assert report.replicates(rows, metrics.pooled_srcc, 21) is not drawn
