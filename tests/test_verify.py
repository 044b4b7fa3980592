"""`make verify` finds what no longer follows from what it was made of, and passes what does."""

import shutil

import pandas as pd
import pytest

from cpllm import cli, records, sweep, verify

HOME = sweep.RESULTS / "pocket"


@pytest.fixture
def results(tmp_path):
    """The committed pocket results with one of the tables."""
    shutil.copytree(HOME / "runs", tmp_path / "results" / "pocket" / "runs")
    shutil.copyfile(HOME / "videos.csv", tmp_path / "results" / "pocket" / "videos.csv")
    shutil.copyfile(sweep.RESULTS / "paper.csv", tmp_path / "results" / "paper.csv")
    verify.exhibits.table("table4d", "pocket", tmp_path / "results")
    return tmp_path / "results"


def test_a_table_follows_from_predictions_until_they_change(results):
    assert list(verify._tables("pocket", results)) == []
    path = results / "pocket" / "runs" / "cpllm-s0" / "predictions.csv"
    rows = pd.read_csv(path)
    records.write_csv(path, rows.assign(prediction=rows["prediction"].to_numpy()[::-1]))
    found = list(verify._tables("pocket", results))
    assert found and all(line.startswith("table4d.csv: row ") for line in found)
    assert any("column value" in line and "there" in line for line in found)


def test_a_run_on_other_rows_or_with_a_lost_file_is_named(results):
    before = set(verify._runs("pocket", results))
    home = results / "pocket" / "runs"
    made = records.read_json(home / "single-s0" / "provenance.json")
    records.write_json(home / "single-s0" / "provenance.json", {**made, "manifest_sha256": "x"})
    (home / "all-s0" / "config.json").unlink()
    new = set(verify._runs("pocket", results)) - before
    assert "all-s0: config.json missing" in new
    assert any(line.startswith("single-s0: trained on other rows") for line in new | before)


def test_no_committed_rows_are_asked_of_a_run_on_wide_clips(results):
    home = results / "pocket" / "runs" / "default-s0"
    assert not any(line.startswith("default-s0:") for line in verify._runs("pocket", results))
    told = records.read_json(home / "config.json")
    records.write_json(home / "config.json", {**told, "data": {**told["data"], "wide_scenes": 0}})
    assert any(line.startswith("default-s0: trained on other rows")
               for line in verify._runs("pocket", results))


@pytest.mark.parametrize(("was", "now", "words"), [
    ("a,b\n1,x\n2,y\n", "a,b\n1,x\n2,z\n", "row 3, column b: y there, z when"),
    ("a\n1\n", "a\n1.0001\n", "row 2, column a: 1"), ("a\n1\n", "a\n1\n2\n", "other rows"),
    ("a\n1\n", "b\n1\n", "other rows"), ("a,b\n,x\n", "a,b\n3,x\n", "row 2, column a: nan there")])
def test_the_first_other_cell_is_named(tmp_path, was, now, words):
    for name, text in (("was.csv", was), ("now.csv", now)):
        (tmp_path / name).write_text(text)
    found = list(verify._cells(tmp_path / "was.csv", tmp_path / "now.csv"))
    assert len(found) == 1 and words in found[0]
    assert list(verify._cells(tmp_path / "was.csv", tmp_path / "was.csv")) == []


def test_a_notebook_whose_source_changed_is_named(results, monkeypatch):
    notebooks = results / "pocket" / "notebooks"
    notebooks.mkdir()
    (notebooks / "28_table1.ipynb").write_text("{}")
    monkeypatch.setattr(sweep, "current", lambda book, *_: book.name != "28_table1")
    assert list(verify._notebooks("pocket", results)) == [
        "28_table1.ipynb: its source or its inputs have changed since it was executed"]


def test_the_committed_model_gives_the_golden_scores():
    known = records.read_json(verify.golden("pocket", sweep.RESULTS))
    assert len(known["clips"]) == 6 and known["tolerance"] == verify.TOLERANCE
    found = list(verify._golden("pocket", sweep.RESULTS))
    assert [line for line in found if "other frames" not in line] == []


def test_a_drifted_score_and_other_weights_are_named(tmp_path, monkeypatch):
    path = verify.golden("pocket", tmp_path)
    known = {"weights_sha256": records.file_hash(verify.infer.DEFAULT), "tolerance": 0.05,
             "clips": {"a": {"frames": "x", "score": 50.0}, "b": {"frames": "x", "score": 50.0}}}
    monkeypatch.setattr(verify, "scores", lambda: {"a": {"frames": "x", "score": 50.04},
                                                   "b": {"frames": "x", "score": 50.06}})
    records.write_json(path, known)
    assert list(verify._golden("pocket", tmp_path)) == [
        "golden.json: b: 50.000 there, 50.060 here; tolerance 0.05"]
    records.write_json(path, {**known, "weights_sha256": "x"})
    assert list(verify._golden("pocket", tmp_path)) == [
        "golden.json: of other weights; cpllm verify --write makes it anew"]


def test_the_verb_counts_what_it_finds_and_fails_on_a_difference(monkeypatch, capsys):
    for found, code in ((["x: y"], 1), ([], 0)):
        monkeypatch.setattr(verify, "differences", lambda *_, found=found: iter(found))
        assert cli.main(["verify"]) == code
        assert capsys.readouterr().out.endswith(f"pocket: {len(found)} differences\n")
