import re
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parent.parent
PAPER = ROOT / ".." / "shared" / "paper" / "cp-llm.md"
COUNTS = {
    "table1": 4 * 5, "table2": 5 * 4 * 2, "table3": 6 * 6, "table4a": 3 * 2 * 2, "table4b": 3 * 2,
    "table4c": 3 * 2 * 2, "table4d": 3 * 2, "figure1": 4 * (2 + 3 * 2), "figure2": 6,
}


@pytest.fixture(scope="module")
def table():
    return pd.read_csv(ROOT / "results" / "paper.csv", dtype=str, keep_default_na=False)


def test_every_cell_of_every_exhibit_is_there_once(table):
    assert list(table) == ["exhibit", "system", "dataset", "metric", "value"]
    assert table.exhibit.value_counts().to_dict() == COUNTS
    assert not table.duplicated(["exhibit", "system", "dataset", "metric"]).any()
    assert not table.eq("").any().any()


@pytest.mark.parametrize("cell", [
    "table1 | CP-LLM | YT-Compress | MOS SRCC | 0.801",
    "table1 | Q-Align | YT-Compress | DMOS PLCC | 0.581",
    "table1 | DOVER | YT-Compress | FR | 0.170",
    "table2 | FastVQA | YouTube-UGC | SRCC | 0.730",
    "table2 | MBVQA | Shorts-HDR2SDR | PLCC | 0.686",
    "table2 | CP-LLM | Shorts-SDR | SRCC | 0.759",
    "table2 | DOVER | LIVE-YT-Gaming | PLCC | 0.726",
    "table3 | Gemini 2.0 | LSVQ-test-1080p | FR diff=2 | 0.502",
    "table3 | CoINVQ | LSVQ-test-1080p | FR diff=20 | 0.006",
    "table3 | CP-LLM | LSVQ-test-1080p | FR diff=10 | 0.021",
    "table4a | Mix | LSVQ-1080p | PLCC | 0.796",
    "table4b | Pairwise | LSVQ-test | FR | 0.055",
    "table4c | Head | LSVQ-1080p | SRCC | 0.654",
    "table4d | All | LSVQ-1080p | FR | 0.054",
    "figure1 | FastVQA | background blur | score | 3.7",
    "figure1 | DOVER | pixel art | word | Bad",
    "figure1 | Human | low light | word | Good",
    "figure2 | CoINVQ | original and compressed | First | 4.332",
    "figure2 | CoINVQ | original and compressed | Second | 4.301",
])
def test_cells_read_by_hand_from_the_paper(table, cell):
    assert (table == cell.split(" | ")).all(axis=1).sum() == 1


def test_numbers_keep_the_digits_printed(table):
    numbers = table[table.exhibit.str.startswith("table")].value
    assert numbers.str.fullmatch(r"0\.\d{3}").all()


def test_every_row_of_numbers_stands_in_the_paper(table):
    if not PAPER.exists():
        pytest.skip("the paper's text lies in ../shared/paper, which this checkout lacks")
    lines = re.sub(r"</?[bu]>", "", PAPER.read_text()).splitlines()
    for (exhibit, system), rows in table.groupby(["exhibit", "system"]):
        if exhibit == "figure2":
            assert all(any(value in line for line in lines) for value in rows.value), system
            continue
        printed = [re.findall(r"\d\.\d+|Good|Fair|Bad", line.replace(system, ""))
                   for line in lines if line.startswith(system)]
        assert list(rows.value) in printed, f"{exhibit}, {system}"
