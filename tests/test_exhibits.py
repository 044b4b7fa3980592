"""Tables 1, 2 and 4: the right rows, the paper's beside them, and differences paired by source."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest

from cpllm import exhibits, metrics, records, report

ROOT = Path(__file__).parent.parent
SETS = ("lsvq-test", "lsvq-1080p", "yt-compress", "youtube-ugc", "live-yt-gaming", "shorts-sdr",
        "shorts-hdr2sdr")
NOTEBOOKS = ("28_table1", "29_table2", "31_table4a", "32_table4b", "33_table4c", "34_table4d",
             "50_ablation")


def videos():
    """Six sources in every set: an upload each, VP9 pairs, and ladders of all codecs."""
    rng, rows = np.random.default_rng(0), []
    for split, sets in (("validation", ["lsvq-validation"]), ("test", SETS)):
        for dataset in sets:
            for n in range(6):
                scene, q = f"{dataset}_{n}", rng.uniform(40, 95)
                blurred = dataset == "yt-compress"
                family = "game" if n == 5 and split == "test" else "photo"
                row = {"source": f"{split}{n}", "family": family, "dataset": dataset,
                       "split": split, "role": "original", "crf": np.nan, "codec": "h264",
                       "distortion": "blur" if blurred else "none"}
                rows.append({**row, "video": f"{scene}@original", "proxy": q})
                for codec, crfs in {"yt-compress": {"vp9": (32, 52)}, "lsvq-test": {
                        "h264": range(13, 52, 2), "vp9": (20, 40), "hevc": (20, 40),
                        "av1": (20, 40)}}.get(dataset, {}).items():
                    rows += [{**row, "role": "variant", "codec": codec, "crf": crf,
                              "video": f"{scene}@{codec}-crf{crf}",
                              "proxy": q - crf / 2 - rng.uniform(0, 0.5)} for crf in crfs]
    return pd.DataFrame(rows)


def save_run(results, name, seed=0, noise=0.0, weights=(1, 1, 1)):
    known, rng = videos(), np.random.default_rng([seed, int(noise)])
    known.to_csv(results / "smoke" / "videos.csv", index=False)
    folder = results / "smoke" / "runs" / f"{name}-s{seed}"
    folder.mkdir(parents=True)
    known[["video"]].assign(prediction=known.proxy + noise * rng.normal(size=len(known))).to_csv(
        folder / "predictions.csv", index=False)
    (folder / "config.json").write_text(json.dumps(
        {"train": {"seed": seed, "weights": weights}, "model": {"dtype": "float32"}}))
    (folder / "provenance.json").write_text(json.dumps({"code_sha256": records.code_sha256(),
                                                        "manifest_sha256": "beef"}))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Three systems of two seeds: a perfect one, a noisy one, and a noisier compared model."""
    results = tmp_path_factory.mktemp("results")
    shutil.copy(ROOT / "results" / "paper.csv", results)
    (results / "smoke").mkdir()
    for seed in (0, 1):
        save_run(results, "cpllm", seed, 1)
        save_run(results, "single", seed, 20, (0, 1, 1))
        save_run(results, "fast-vqa", seed, 40)
    return results


def frame(results, system, dataset):
    runs = report.read_runs("smoke", results)
    return runs[(runs.system == system) & (runs.dataset == dataset)]


def cells(table, system):
    return table[table.system == system].set_index("metric")


def per_seed(rows, measure):
    return np.mean([measure(seed) for _, seed in rows.groupby("seed")])


def test_table_1_takes_its_columns_from_uploads_and_variants(results):
    ours = cells(exhibits.table("table1", "smoke", results, 20), "fast-vqa")
    rows = frame(results, "fast-vqa", "yt-compress")
    assert ours.value["SRCC"] == pytest.approx(
        per_seed(rows, lambda r: metrics.srcc(r.proxy, r.prediction)))
    assert ours.n_items["SRCC"] == 18 and ours.n_items["differential SRCC"] == 12

    def loss(r):
        top = r[r.role == "original"].set_index("source")[["proxy", "prediction"]]
        low = r[r.role == "variant"].set_index("source")
        return metrics.srcc(top.proxy.reindex(low.index) - low.proxy,
                            top.prediction.reindex(low.index) - low.prediction)

    assert ours.value["differential SRCC"] == pytest.approx(per_seed(rows, loss))

    def flip(r):
        wide = r[r.role == "variant"].pivot(index="source", columns="crf", values="prediction")
        return np.mean(wide[32] < wide[52])

    assert ours.value["FR"] == pytest.approx(per_seed(rows, flip)) and ours.n_items["FR"] == 6
    assert set(ours.status) == {"ok"} and set(ours.seeds) == {2} and set(ours.n_sources) == {6}


def test_table_2_has_a_column_for_each_set_and_the_papers_numbers(results):
    table = exhibits.table("table2", "smoke", results, 20)
    ours, paper = cells(table, "cpllm"), cells(table, "CP-LLM (paper)")
    rows = frame(results, "cpllm", "shorts-sdr")
    assert ours.value["Shorts-SDR PLCC"] == pytest.approx(
        per_seed(rows, lambda r: metrics.plcc(r.proxy, r.prediction)))
    assert paper.value["Shorts-SDR PLCC"] == 0.804 and paper.status["Shorts-SDR PLCC"] == "paper"
    new = rows[rows.family == "game"]
    assert len(new) == 2 and ours.n_items["Shorts-SDR SRCC unseen"] == 1
    assert {"mbvqa", *report.BASELINES, "default"} <= set(table.system[table.value.isna()])
    assert set(cells(table, "mbvqa").status) == {"not run (smoke)"}
    written = pd.read_csv(results / "smoke" / "tables" / "table2.csv")
    assert list(written) == report.COLUMNS and len(written) == len(table)


def test_table_4_counts_flips_of_whole_h264_ladders_and_says_where_there_are_none(results):
    table = exhibits.table("table4b", "smoke", results, 20)
    ours = cells(table, "single")
    rows = frame(results, "single", "lsvq-test")
    assert ours.n_items["LSVQ-test FR"] == 6 * 190
    assert ours.value["LSVQ-test FR"] == pytest.approx(
        per_seed(rows[rows.codec == "h264"], lambda r: metrics.flip_rate(r).strict))
    assert ours.status["LSVQ-1080p FR"] == "no such videos"
    shown = exhibits.side_by_side(table, "FR")
    order = list(shown.data.index)
    assert order.index("cpllm") == order.index("Mix (paper)") + 1
    assert "smoke profile" in shown.caption and "FR-proxy" in shown.caption


def test_rivals_are_labelled_as_mechanisms(results):
    table = exhibits.table("table1", "smoke", results, 20)
    assert "fast-vqa (mechanism)" in exhibits.side_by_side(table, "SRCC").data.index


def test_a_table_of_leads_is_turned_rather_than_wide(results):
    leads = exhibits.leads("table2", "smoke", results, 20)
    shown = exhibits.leads_table(leads).data
    assert list(shown.columns) == list(leads.system.unique())
    assert list(shown.index) == list(leads.metric.unique()) and len(shown) > len(shown.columns)


def test_leads_are_paired_and_positive_where_the_reference_is_better(results):
    leads = exhibits.leads("table4b", "smoke", results, 200).set_index(["system", "metric"])
    lead = leads.loc["single", "LSVQ-test FR"]
    ours, theirs = (frame(results, s, "lsvq-test").query("codec == 'h264'")
                    for s in ("cpllm", "single"))
    difference = metrics.difference(ours, theirs, metrics.flips, 200)
    assert lead.lead == pytest.approx(-difference.value) and lead.lead > 0
    assert (lead.ci_low, lead.ci_high) == pytest.approx((-difference.high, -difference.low))
    assert lead.paper == pytest.approx(0.217 - 0.072) and len(lead.points) == 2
    assert np.mean(lead.points) == pytest.approx(lead.lead)
    assert np.isnan(leads.lead["single", "LSVQ-1080p FR"])


def test_the_reading_counts_agreements_with_the_paper(results):
    leads = exhibits.leads("table4b", "smoke", results, 200)
    assert "Of 1 differences" in exhibits.reading(leads) and "1 have the paper's sign" in \
        exhibits.reading(leads) and "1 of them with" in exhibits.reading(leads)
    turned = leads.assign(lead=-leads.lead, ci_low=-leads.ci_high, ci_high=-leads.ci_low)
    turned.attrs = leads.attrs
    assert "1 have the other sign clear of zero (single, LSVQ-test FR: -" in \
        exhibits.reading(turned)
    assert "Nothing of Table 4b" in exhibits.reading(leads.iloc[:0])


def test_a_change_is_named_from_the_recorded_configuration(results):
    assert exhibits.changes("smoke", results).to_dict() == {
        "cpllm": "", "fast-vqa": "", "single": "weights [0, 1, 1]"}


def test_of_another_kind_of_model_only_its_mechanism_is_named(results, tmp_path):
    shutil.copytree(results, tmp_path, dirs_exist_ok=True)
    for run in tmp_path.glob("smoke/runs/fast-vqa-s*/config.json"):
        made = records.read_json(run)
        made["model"] |= {"kind": "fast-vqa", "mechanism": False, "high_finetune": "all"}
        records.write_json(run, made)
    assert exhibits.changes("smoke", tmp_path)["fast-vqa"] == "without its mechanism"


def test_a_field_that_came_later_is_no_change(results, tmp_path):
    shutil.copytree(results, tmp_path, dirs_exist_ok=True)
    for run in tmp_path.glob("smoke/runs/cpllm-s*/config.json"):
        records.write_json(run, records.read_json(run) | {"data": {"without_faults": []}})
    assert exhibits.changes("smoke", tmp_path)["single"] == "weights [0, 1, 1]"


def test_codecs_are_judged_on_scenes_that_all_of_them_encoded(results):
    table = exhibits.codecs("smoke", results, 20)
    ours = cells(table, "single")
    assert ours.n_items["av1 FR"] == 6 and ours.n_items["h264 FR"] == 6 * 190
    rows = frame(results, "single", "lsvq-test").query("codec == 'vp9'")
    assert ours.value["vp9 FR"] == pytest.approx(
        per_seed(rows, lambda r: metrics.flip_rate(r).strict))


def test_families_held_out_whole_are_counted(results):
    counts = exhibits.families("smoke", results)
    assert counts.loc["youtube-ugc"].to_dict() == {"game": 1, "photo": 5, "held out": 1}
    assert counts.loc["lsvq-test", "held out"] == counts.loc["lsvq-test", "game"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_each_notebook_runs_with_runs_and_without(results, tmp_path, name, capsys):
    shutil.copy(ROOT / "results" / "paper.csv", tmp_path)
    cells = [c for c in nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4).cells
             if c.cell_type == "code"]
    for folder, said in (results, "cpllm-s0"), (tmp_path, "runs: not run"):
        space = {}
        for cell in cells:
            exec(re.sub(r"^%.*$", "", cell.source, flags=re.MULTILINE), space)
            if "parameters" in cell.metadata.get("tags", []):
                space.update(results=str(folder), draws=20)
        assert said in capsys.readouterr().out


def test_what_a_notebook_shows_names_profile_rows_and_what_is_missing(results, tmp_path):
    papermill.execute_notebook(
        ROOT / "notebooks" / "28_table1.ipynb", tmp_path / "out.ipynb", kernel_name="python3",
        parameters={"profile": "smoke", "results": str(results), "draws": 20}, progress_bar=False)
    notebook = nbformat.read(tmp_path / "out.ipynb", 4)
    shown = json.dumps([cell.get("outputs", []) for cell in notebook.cells])
    assert "smoke profile" in shown and "fast-vqa" in shown and "not run (smoke)" in shown
