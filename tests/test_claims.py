import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_report import save_run

from cpllm import claims

ROOT = Path(__file__).parent.parent
HUMAN = "not testable: needs human MOS"


@pytest.fixture
def results(tmp_path):
    shutil.copy(ROOT / "results" / "paper.csv", tmp_path)
    return tmp_path


def verdicts(results, draws=60):
    return claims.claims("smoke", results, draws).set_index("claim")


def row(table, words):
    (found,) = [name for name in table.index if words in name]
    return table.loc[found]


def test_the_papers_numbers_bear_out_all_claims_but_top_two(results):
    table = verdicts(results)
    assert (table.in_paper == "holds").sum() == len(table) - 1
    top = row(table, "Top-2")
    assert top.in_paper == "does not hold"
    assert top.paper_evidence == ("Shorts-SDR SRCC: CP-LLM 0.759, FastVQA 0.791; "
                                  "Shorts-SDR SRCC: CP-LLM 0.759, DOVER 0.768")
    assert row(table, "Robust to VP9").paper_evidence == \
        "YT-Compress FR: CP-LLM 0.085, Mix 0.082 (LSVQ-1080p)"


def test_a_claim_that_the_papers_numbers_contradict_is_said_to_fail(results):
    paper = pd.read_csv(results / "paper.csv", dtype=str)
    paper.loc[(paper.exhibit == "table4a") & (paper.system == "Single")
              & (paper.dataset == "LSVQ-test") & (paper.metric == "SRCC"), "value"] = "0.6"
    paper.loc[(paper.system == "Gemini 2.0") & (paper.metric == "FR diff=8"), "value"] = "0.2"
    paper.to_csv(results / "paper.csv", index=False)
    table = verdicts(results)
    mix = row(table, "Mix > Single")
    assert mix.in_paper == "does not hold"
    assert mix.paper_evidence == "LSVQ-test SRCC: Single 0.6, Pairwise 0.667"
    assert "FastVQA 0.150, Gemini 2.0 0.2" in row(table, "Text answers").paper_evidence


def test_what_was_not_run_is_named_and_what_needs_people_says_so(results):
    table = verdicts(results)
    assert row(table, "Pairwise has").at_profile == "not run: cpllm, pairwise, single"
    assert row(table, "Robust to VP9").at_profile == "not run: cpllm, cpllm (vp9)"
    assert set(table.at_profile[table.at_profile == HUMAN].index) == {
        "Best MOS SRCC and PLCC on YT-Compress", "Best DMOS SRCC and PLCC on YT-Compress",
        "Top-2 on each of the four cross-set tests"}
    assert table.at_profile.str.startswith("not ").all() and table.lead.isna().all()
    save_run(results, "cpllm")
    table = verdicts(results)
    assert row(table, "Robust to VP9").at_profile == "not run: cpllm (vp9)"
    assert row(table, "every CRF").at_profile == "not run: coinvq, dover, fast-vqa, q-align"


def test_a_claim_is_computed_as_soon_as_its_runs_exist(results):
    for name, noise in ("pairwise", 0.1), ("cpllm", 30), ("single", 30):
        for seed in (0, 1):
            save_run(results, name, seed, noise)
    table = verdicts(results)
    lowest = row(table, "Pairwise has")
    assert lowest.at_profile == "holds" and 0 < lowest.ci_low < lowest.lead
    assert (lowest.n_sources, lowest.seeds) == (3, 2) and "pairwise over" in lowest.decided_by
    order = row(table, "Mix > Single")
    assert order.at_profile == "does not hold" and order.ci_high < 0
    assert order.decided_by == "single over pairwise in SRCC"


def test_an_interval_that_holds_zero_leaves_a_claim_undecided(results):
    for name, reversed_source in ("all", "test-b"), ("cpllm", "test-a"), ("head", "test-a"):
        file = save_run(results, name) / "predictions.csv"
        rows = pd.read_csv(file)
        rows["prediction"] = rows.proxy.where(rows.source != reversed_source, -rows.proxy)
        rows.to_csv(file, index=False)
    found = row(verdicts(results), "All has")
    assert found.at_profile == "undecided" and found.ci_low < 0 < found.lead < found.ci_high


def test_robustness_allows_the_stated_margin(results):
    folder = save_run(results, "cpllm", noise=3)
    rows = pd.read_csv(folder / "predictions.csv")
    vp9 = rows[rows.codec == "h264"].assign(codec="vp9", video=lambda f: f.video + "-vp9")

    def verdict(prediction):
        pd.concat([rows, vp9.assign(prediction=prediction)]).to_csv(
            folder / "predictions.csv", index=False)
        return row(verdicts(results), "Robust to VP9")
    assert verdict(vp9.prediction)[["at_profile", "lead"]].tolist() == ["holds", 0.05]
    assert verdict(-vp9.prediction).at_profile == "does not hold"


def test_text_answers_count_by_their_table(results):
    for name in ("cpllm", "coinvq", "fast-vqa", "dover", "q-align"):
        save_run(results, name, noise=1)
    (results / "smoke" / "tables").mkdir()
    systems = {"answers": 0.5, "cpllm": 0.1, "coinvq": 0.1, "fast-vqa": 0.1, "dover": 0.1,
               "q-align": 0.1}
    pd.DataFrame([{"system": name, "metric": f"FR diff={d}", "value": value,
                   "ci_low": value - 0.02, "ci_high": value + 0.02, "n_sources": 3, "n_items": 9,
                   "seeds": 1, "status": "ok"}
                  for name, value in systems.items() for d in (2, 4, 6, 8, 10, 20)]).to_csv(
        results / "smoke" / "tables" / "table3.csv", index=False)
    found = row(verdicts(results), "Text answers")
    assert found.at_profile == "holds" and "unpaired" in found.decided_by
    assert (found.lead, found.ci_low, found.ci_high) == pytest.approx((0.3, 0.26, 0.34))
    assert np.isnan(found.p)


def test_each_claim_states_the_test_that_would_refute_it(results):
    table = verdicts(results)
    assert row(table, "Lowest flip rate on").refuted_by == (
        "On unseen sources: a paired 95% interval of the lead over FastVQA or DOVER or Q-Align "
        "wholly below 0")
    assert row(table, "Robust to VP9").refuted_by.endswith("wholly below -0.05")
    assert "with human opinions" in row(table, "Best MOS").refuted_by
    assert row(table, "Top-2").refuted_by.endswith("wholly below 0, twice in one column")
    assert "of the lead wholly" in row(table, "falls").refuted_by
    assert row(table, "Text answers").refuted_by.endswith("below 0.1")


def test_the_file_holds_the_table(results):
    table = claims.claims("smoke", results, 20)
    written = pd.read_csv(results / "smoke" / "claims.csv")
    assert list(written) == list(table) == [
        "exhibit", "claim", "in_paper", "paper_evidence", "at_profile", "decided_by", "lead",
        "ci_low", "ci_high", "p", "n_sources", "seeds", "refuted_by"]
    assert written.at_profile.tolist() == table.at_profile.tolist()
    assert json.loads(written.to_json())
