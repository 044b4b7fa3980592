"""`cpllm evaluate`: anyone's predictions as a CSV, judged, compared, or refused by name."""

import json
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from test_report import save_run

from cpllm import cli, metrics

ROOT = Path(__file__).parent.parent
DOVER = ROOT / ".." / "shared" / "predictions"


@pytest.fixture
def frame():
    """Twelve sources, each a reference and three levels in two codecs; columns of other names."""
    rng = np.random.default_rng(0)
    rows = [(f"s{i}-{level}-{codec}", f"s{i}", level, codec) for i in range(12)
            for codec in ("h264", "vp9") for level in (20, 30, 40)]
    rows += [(f"s{i}-reference", f"s{i}", np.nan, "raw") for i in range(12)]
    frame = pd.DataFrame(rows, columns=["video", "film", "step", "kind"])
    frame["opinion"] = 90 - frame.step.fillna(0) + rng.normal(0, 4, len(frame))
    return frame.assign(model=frame.opinion + rng.normal(0, 8, len(frame)))


@pytest.fixture
def csv(tmp_path):
    def write(frame, name="file.csv"):
        frame.to_csv(tmp_path / name, index=False)
        return tmp_path / name
    return write


def run(capsys, file, *words, mos="opinion", prediction="model"):
    code = cli.main(["evaluate", str(file), "--prediction", prediction, "--mos", mos,
                     "--draws", "100", *map(str, words)])
    return (code, *capsys.readouterr())


def measures(capsys, file, *words, **names):
    code, out, err = run(capsys, file, *words, "--format", "json", **names)
    assert (code, err) == (0, "")
    return json.loads(out)


def test_json_holds_each_correlation_with_its_interval(capsys, csv, frame):
    result = measures(capsys, csv(frame))
    x, y = frame.opinion, frame.model
    for name, value in (("SRCC", stats.spearmanr(x, y).statistic),
                        ("KRCC", stats.kendalltau(x, y).statistic),
                        ("PLCC linear", stats.pearsonr(x, y).statistic),
                        ("PLCC logistic", metrics.plcc_logistic(x, y)),
                        ("RMSE", np.sqrt(np.mean((x - y) ** 2)))):
        found = result["measures"][name]
        assert found["value"] == pytest.approx(value, rel=1e-6)
        assert found["ci_low"] < found["value"] < found["ci_high"] and found["status"] == "ok"
    assert result["rows"] == result["sources"] == 84  # without --source each row is its own
    assert result["seeds"] == 1
    assert "per_source" not in result
    assert not any("within source" in name for name in result["measures"])


def test_levels_give_flip_rates_by_step_codec_and_gap_and_dmos(capsys, csv, frame):
    result = measures(capsys, csv(frame), "--source", "film", "--level", "step", "--codec", "kind",
                      "--proxy", "opinion")
    found = {name: (row["value"], row["n_items"]) for name, row in result["measures"].items()}
    known = frame.rename(columns={"film": "source", "step": "crf", "kind": "codec",
                                  "model": "prediction", "opinion": "proxy"})
    for name, diff, items in (("FR diff=10", 10, 48), ("FR diff=20", 20, 24),
                              ("FR all pairs", None, 72)):
        rate = metrics.flip_rate(known, diff)
        assert found[name] == pytest.approx((rate.strict, items))
        assert found[f"{name} half"] == pytest.approx((rate.half, items))
        assert found[f"{name} ties"] == (0, items)
    assert found["FR vp9"][1] == 36
    assert sum(found[f"FR {name}"][1] for name in metrics.STRATA) == 72
    reference = known[known.crf.isna()].set_index("source")
    levels = known[known.crf.notna()]
    gap = pd.DataFrame({side: levels.source.map(reference[side]) - levels[side]
                        for side in ("proxy", "prediction")})
    assert found["DMOS SRCC"] == pytest.approx(
        (stats.spearmanr(gap["proxy"], gap["prediction"]).statistic, 72))
    assert found["DMOS KRCC"][0] == pytest.approx(
        stats.kendalltau(gap["proxy"], gap["prediction"]).statistic)
    assert found["DMOS RMSE within source"] == pytest.approx((np.median(
        [metrics.rmse(g.proxy, g.prediction) for _, g in gap.groupby(levels.source)]), 72))
    first, *_ = result["per_source"].values()
    assert first["rows"] == 7 and first["FR pairs"] == 6
    assert "reference - variant" in result["conventions"]["dmos"]


def test_levels_without_their_reference_are_listed_and_not_in_dmos(capsys, csv, frame):
    lost = frame[~frame.video.isin(["s3-reference", "s7-reference"])]
    words = "--source", "film", "--level", "step", "--codec", "kind"
    result = measures(capsys, csv(lost), *words)
    assert result["without_reference"] == sorted(
        frame.video[frame.film.isin(["s3", "s7"]) & frame.step.notna()])
    assert result["measures"]["DMOS SRCC"]["n_items"] == 60
    assert "12 rows no reference, so not in DMOS: s3-20-h264, " in run(
        capsys, csv(lost), *words)[1]


def test_the_median_within_source_is_over_sources_that_have_a_correlation(capsys, csv, frame):
    rng = np.random.default_rng(2)
    single = pd.DataFrame({"video": [f"v{i}" for i in range(20)], "film": [f"t{i // 2}" for i in
                           range(20)], "opinion": rng.normal(size=20), "model": 0.0})
    result = measures(capsys, csv(pd.concat([frame, single])), "--source", "film")
    within = result["measures"]["SRCC within source"]
    each = {name: metrics.srcc(rows.opinion, rows.model) for name, rows in frame.groupby("film")}
    assert within["value"] == pytest.approx(np.median(list(each.values())))
    assert (within["n_sources"], within["n_items"]) == (12, 84)
    curve = metrics.logistic(frame.model, *metrics.fit_logistic(frame.opinion, frame.model))
    for name, oracle, y in (("KRCC", stats.kendalltau, frame.model),
                            ("PLCC linear", stats.pearsonr, frame.model),
                            ("PLCC logistic", stats.pearsonr, curve)):
        loop = [oracle(rows.opinion, y[rows.index])[0] for _, rows in frame.groupby("film")]
        found = result["measures"][f"{name} within source"]
        assert found["value"] == pytest.approx(np.median(loop), rel=1e-6)
        assert found["ci_low"] < found["value"] < found["ci_high"]
    found = {name: row["SRCC"] for name, row in result["per_source"].items()}
    assert found == pytest.approx(each) and list(found.values()) == sorted(found.values())
    alike = frame.assign(opinion=frame.opinion.where(frame.film != "s4", 50))  # no order to find
    within = measures(capsys, csv(alike), "--source", "film")["measures"]["SRCC within source"]
    assert within["n_sources"] == 11
    assert within["value"] == pytest.approx(np.median([v for k, v in each.items() if k != "s4"]))
    frame.loc[frame.film == "s4", "model"] = 3.0  # a constant source: no number, and named first
    result = measures(capsys, csv(frame), "--source", "film")
    assert result["measures"]["SRCC within source"]["value"] is None
    assert next(iter(result["per_source"].items()))[0] == "s4"


def test_the_readable_report_names_measures_conventions_and_worst_sources(capsys, csv, frame):
    code, out, _ = run(capsys, csv(frame), "--source", "film", "--level", "step", "--codec", "kind")
    assert code == 0
    for text in ("84 rows, 12 sources", "SRCC", "ci_low", "FR diff=10", "lowest SRCC",
                 "cluster bootstrap"):
        assert text in out
    assert "FR diff=10 ties" not in out  # there are none
    plain = run(capsys, csv(frame))[1]
    assert "84 sources, 1 seed" in plain and "dmos:" not in plain and "level:" not in plain


def test_against_compares_on_common_rows_and_lists_the_others(capsys, csv, frame):
    rng = np.random.default_rng(1)
    other = frame.assign(worse=frame.model + rng.normal(0, 15, len(frame)))[["video", "worse"]]
    other.loc[3, "video"] = "renamed"
    words = (csv(frame), "--source", "film", "--against", csv(other, "other.csv"),
             "--against-prediction", "worse")
    result = measures(capsys, *words)
    assert result["rows"] == 83
    assert result["against"]["only_in_file"] == [frame.video[3]]
    assert result["against"]["only_in_against"] == ["renamed"]
    gap = result["against"]["differences"]["SRCC"]
    kept = frame.drop(index=3)
    assert gap["value"] == pytest.approx(
        metrics.srcc(kept.opinion, kept.model)
        - metrics.srcc(kept.opinion, other.worse.drop(index=3)))
    assert 0 < gap["ci_low"] < gap["ci_high"] and gap["p"] < 0.05
    _, out, _ = run(capsys, *words)
    assert "1 rows unmatched, only in against: renamed" in out and "paired" in out


def test_seeds_are_averaged(capsys, csv, frame):
    rng = np.random.default_rng(1)
    runs = [frame.assign(run=seed, model=frame.model + rng.normal(0, 9, len(frame)))
            for seed in range(3)]
    result = measures(capsys, csv(pd.concat(runs)), "--source", "film", "--seed", "run")
    assert result["measures"]["SRCC"]["value"] == pytest.approx(
        np.mean([metrics.srcc(f.opinion, f.model) for f in runs]))
    assert result["measures"]["SRCC"]["n_items"] == 84 and result["seeds"] == 3
    assert result["per_source"]["s5"]["rows"] == 7
    assert result["per_source"]["s5"]["SRCC"] == pytest.approx(np.mean(
        [metrics.srcc(f.opinion, f.model) for f in (g[g.film == "s5"] for g in runs)]))
    other = csv(frame.assign(model=-frame.opinion), "other.csv")  # one run, no column of seeds
    for against, value in (other, -1), (csv(pd.concat(runs), "same.csv"), None):
        found = measures(capsys, csv(pd.concat(runs)), "--source", "film", "--seed", "run",
                         "--against", against)
        mine = result["measures"]["SRCC"]["value"]
        assert found["against"]["measures"]["SRCC"]["value"] == pytest.approx(value or mine)
        assert found["against"]["differences"]["SRCC"]["value"] == pytest.approx(
            mine - (value or mine), abs=1e-9)


def test_a_constant_model_and_a_single_source_are_stated_and_no_number(capsys, csv, frame):
    constant = measures(capsys, csv(frame.assign(model=5)))["measures"]
    for name in ("SRCC", "KRCC", "PLCC linear", "PLCC logistic"):
        assert constant[name]["value"] is None and "constant" in constant[name]["status"]
    one = measures(capsys, csv(frame.assign(film="a")), "--source", "film")["measures"]
    assert one["SRCC"]["value"] > 0 and one["SRCC"]["ci_low"] is None
    assert one["SRCC"]["status"] == "no interval: one source"
    short = frame[frame.step.notna()]
    lacking = measures(capsys, csv(short), "--source", "film", "--level", "step", "--codec", "kind")
    assert "DMOS SRCC" not in lacking["measures"]
    assert len(lacking["without_reference"]) == 72
    words = "--source", "film", "--level", "step"
    two = pd.concat([frame[frame.film == "s0"][:2], frame[frame.video == "s0-reference"]])
    assert not any("DMOS" in name for name in measures(capsys, csv(two), *words)["measures"])
    three = measures(capsys, csv(frame[:3]))["measures"]["PLCC logistic"]
    assert three["value"] is None and "no fit" in three["status"]


@pytest.mark.parametrize("spoil, words, message", [
    (lambda f: f, ["--source", "movie"],
     "no column movie; has video, film, step, kind, opinion, model"),
    (lambda f: f, ["--id", "name"], "no column name; has video"),
    (lambda f: f.assign(model=f.model.where(f.index != 1)), [],
     "column model: 1 of 84 rows are blank or no number (first: s0-30-h264)"),
    (lambda f: f.assign(opinion=f.opinion.astype(str).where(f.index != 0, "good")), [],
     "column opinion: 1 of 84 rows"),
    (lambda f: f.assign(opinion=f.opinion.where(f.index != 2, np.inf)), [], "column opinion: 1 of"),
    (lambda f: f.assign(video="a"), [], "83 of 84 rows with an id that occurs before (first: a"),
    (lambda f: f, ["--draws", "5"], "draws: expected 40 or more"),
    (lambda f: f[:2], [], "2 rows; a correlation needs 3 or more"),
    (lambda f: f, ["--level", "step"], "levels are compared within a source"),
    (lambda f: f, ["--level", "step", "--source", "film"],
     "36 levels occur twice in a ladder (first: s0-20-vp9); a column codec"),
    (lambda f: pd.concat([f[:2].assign(run=i) for i in range(3)]), ["--seed", "run"],
     "file.csv: 2 rows; a correlation needs 3 or more"),
    (lambda f: f.assign(drop=f.opinion.where(f.index != 4)),
     ["--source", "film", "--level", "step", "--codec", "kind", "--dmos", "drop"],
     "column drop: 1 of 84 rows are blank or no number (first: s0-30-vp9)"),
    (lambda f: f, ["--codec", "kind", "--proxy", "opinion"],
     "codec, proxy: of no use without a level"),
], ids=["column", "id", "blank", "word", "infinite", "duplicates", "draws", "few", "no source",
        "no codec", "few videos", "blank dmos", "no level"])
def test_what_cannot_be_judged_is_refused_by_name(capsys, csv, frame, spoil, words, message):
    code, out, err = run(capsys, csv(spoil(frame)), *words)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert message in err


def test_files_that_cannot_be_read_or_matched_are_refused(capsys, csv, frame, tmp_path):
    (tmp_path / "empty.csv").touch()
    for file in (tmp_path / "none.csv", tmp_path / "empty.csv"):
        code, _, err = run(capsys, file)
        assert code == 2 and file.name in err
    other = csv(frame.assign(video="x" + frame.video), "other.csv")
    code, _, err = run(capsys, csv(frame), "--against", other)
    assert code == 2 and "no video is in both (first: s0-20-h264 and xs0-20-h264)" in err
    other = frame.assign(video=frame.video.where(frame.index < 2, "x" + frame.video))
    code, _, err = run(capsys, csv(frame), "--against", csv(other, "other.csv"))
    assert code == 2 and "common to both: 2 rows; a correlation needs 3" in err
    twice = csv(pd.concat([frame, frame[:1]]), "other.csv")
    code, _, err = run(capsys, csv(frame), "--against", twice)
    assert code == 2 and "other.csv: predictions: 1 of 85 rows with an id" in err


def test_a_terminal_judges_with_numpy_scipy_and_pandas_alone(csv, frame):
    code = ("import sys; sys.modules.update(dict.fromkeys(sys.argv.pop(1).split())); "
            "from cpllm.cli import main; sys.exit(main())")
    others = "jax flax optax rich matplotlib seaborn yaml av PIL skimage sklearn transformers dask"
    words = "evaluate", csv(frame), "--prediction", "model", "--mos", "opinion", "--draws", "40"
    subprocess.run([sys.executable, "-c", code, others, *words], check=True, capture_output=True)


def test_score_cards_and_claims_import_no_jax():
    code = "import sys, cpllm.calibrate, cpllm.claims; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("split, srcc, plcc", [
    ("lsvq_test", 0.8879, 0.8885), ("lsvq_1080p", 0.7945, 0.8300)])
def test_a_real_models_outputs_give_its_published_numbers(capsys, split, srcc, plcc):
    file = DOVER / f"dover_{split}.csv"
    if not file.exists():
        pytest.skip("DOVER's outputs lie in ../shared/predictions, which this checkout lacks")
    from cpllm import evaluation

    frame = evaluation.read(file, prediction="overall", mos="mos")
    for name, statistic in ("SRCC", metrics.pooled_srcc), ("PLCC", metrics.pooled_plcc):
        found = metrics.bootstrap(frame, lambda f, c, s=statistic: s(f, c, "mos"), draws=100)
        assert found.value == pytest.approx({"SRCC": srcc, "PLCC": plcc}[name], abs=1e-3)
        assert found.low < found.value < found.high


def cells(name):
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4).cells


def play(name, monkeypatch, **parameters):
    """A notebook's variables after its code cells have run, here, with other parameters."""
    monkeypatch.chdir(ROOT / "notebooks")
    space = {}
    with plt.rc_context({"backend": "agg"}):
        for cell in (c for c in cells(name) if c.cell_type == "code"):
            exec(cell.source, space)
            if "parameters" in cell.metadata.get("tags", []):
                space |= parameters
    plt.close("all")
    return space


@pytest.mark.parametrize("runs", [False, True])
def test_the_notebooks_run_without_published_predictions_and_say_what_was_not_run(
        tmp_path, monkeypatch, runs):
    shutil.copy(ROOT / "results" / "paper.csv", tmp_path)
    for seed in (0, 1) if runs else ():
        save_run(tmp_path, "default", seed, noise=5)
    shown = play("60_evaluate", monkeypatch, results=str(tmp_path), draws=20,
                 published=str(tmp_path / "none.csv"))
    assert shown["who"] == "a made file" and shown["rows"]["SRCC"]["value"] > 0
    readings = shown["readings"]
    assert readings.score.is_monotonic_increasing and readings.word.nunique() > 1
    assert ((readings.low >= 0) & (readings.high <= 100)).all() and shown["scale"].n_sources == 133
    assert 0.8 < shown["covered"].value < 1
    assert ("± " in shown["text"] and "at 75%" in shown["text"]) if runs else \
        shown["text"] == "not run"
    assert ("FR diff=2" in shown["ours"].index) == runs and len(shown["each"]) == 3 * runs
    claimed = play("70_claims", monkeypatch, results=str(tmp_path), draws=20)
    assert (claimed["low"], claimed["high"]) == pytest.approx((0.0284, 0.0339), abs=1e-4)
    assert claimed["rates"].mean() == pytest.approx(0.0497, abs=1e-4)


def test_the_bootstraps_speed_is_told_for_single_and_for_shared_sources(monkeypatch):
    table = play("84_benchmark_bootstrap", monkeypatch, rows=60, draws=20)["table"]
    assert (list(table.index), list(table)) == (["3 sources", "60 sources"], ["PLCC", "SRCC"])
    assert (table > 0).all(axis=None)


@pytest.mark.parametrize("name", ["60_evaluate", "70_claims", "84_benchmark_bootstrap"])
def test_the_notebooks_have_flat_parameters_and_a_sentence_before_each_cell(name):
    all_cells = cells(name)
    (parameters,) = [c for c in all_cells if "parameters" in c.metadata.get("tags", [])]
    assert parameters.source.startswith('profile = "')
    assert not any("def " in c.source for c in all_cells if c.cell_type == "code")
    for before, cell in pairwise(all_cells):
        assert cell.cell_type != "code" or before.cell_type == "markdown"
