"""The paper's claims: do its own numbers bear them out, and do a profile's?

A claim is a set of duels, each "this cell beats that one". In the paper's numbers, printed without
intervals, plain order decides. At a profile it is the paired 95% interval over test sources: won in
all duels, the claim holds; lost in one, it does not; else undecided. SRCC is with the FR-proxy
there: such a verdict is on the mechanism, not on taste.
"""

from __future__ import annotations

import re
from functools import cache, partial
from itertools import pairwise, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from cpllm import metrics, records, report

SETS = {"table1": ("yt-compress",), "table3": ("lsvq-test", "lsvq-1080p")}
"""Our test sets in the place of an exhibit's; Table 4 has Table 3's."""
LEAD = ("decided_by", "lead", "ci_low", "ci_high", "p", "n_sources", "seeds")


class Cell(NamedTuple):
    """`exhibit`, `system` and `metric` as in paper.csv; the encodes that ours is judged on."""

    exhibit: str
    system: str
    metric: str
    codec: str = "h264"
    sets: tuple[str, ...] = ()  # our test sets, where they are not the exhibit's


class Claim(NamedTuple):
    """`duels` of (better, worse), to be won by more than −`margin`, but `losses` in a column."""

    exhibit: str
    claim: str
    duels: tuple[tuple[Cell, Cell], ...]
    margin: float = 0.0
    losses: int = 0
    human: bool = False  # opinions are needed; an FR-proxy can't stand in


def _duels(exhibit: str, measures: tuple[str, ...], orders: str, codec: str = "h264") -> tuple:
    """Duels for orders such as "Mix > Single > Pairwise; Mix > Head", in each measure."""
    return tuple((Cell(exhibit, a, m, codec), Cell(exhibit, b, m, codec)) for m, order in
                 product(measures, orders.split("; ")) for a, b in pairwise(order.split(" > ")))


_BEST = "CP-LLM > FastVQA; CP-LLM > DOVER; CP-LLM > Q-Align"
_ANSWERS = "; ".join(f"{name} > Gemini 2.0" for name in
                     ("CP-LLM", "CoINVQ", "FastVQA", "DOVER", "Q-Align"))
CLAIMS = (
    Claim("Table 1", "Best MOS SRCC and PLCC on YT-Compress",
          _duels("table1", ("MOS SRCC", "MOS PLCC"), _BEST), human=True),
    Claim("Table 1", "Best DMOS SRCC and PLCC on YT-Compress",
          _duels("table1", ("DMOS SRCC", "DMOS PLCC"), _BEST), human=True),
    Claim("Table 1", "Lowest flip rate on YT-Compress, which is VP9",
          _duels("table1", ("FR",), _BEST, "vp9")),
    Claim("Text on Table 1", "Robust to VP9 though trained on H.264: at most .05 more flips",
          ((Cell("table1", "CP-LLM", "FR", "vp9", ("yt-compress", "lsvq-test")),
            Cell("table4b", "Mix", "FR")),),
          margin=0.05),
    Claim("Text on Table 2", "Top-2 on each of the four cross-set tests",
          _duels("table2", ("SRCC", "PLCC"), _BEST + "; CP-LLM > MBVQA"), losses=1, human=True),
    Claim("Table 3", "Lowest flip rate at every CRF difference",
          _duels("table3", report.STRICT, _BEST + "; CP-LLM > CoINVQ")),
    Claim("Table 3", "The flip rate falls as the CRF difference grows",
          tuple((Cell("table3", "CP-LLM", more), Cell("table3", "CP-LLM", less))
                for less, more in pairwise(report.STRICT))),
    Claim("Text on Table 3", "Text answers flip far more than scores: .10 at every difference",
          _duels("table3", report.STRICT, _ANSWERS), margin=-0.10),
    Claim("Table 4a", "Mix > Single > Pairwise in SRCC",
          _duels("table4a", ("SRCC",), "Mix > Single > Pairwise")),
    Claim("Table 4b", "Pairwise has the lowest flip rate",
          _duels("table4b", ("FR",), "Pairwise > Mix; Pairwise > Single")),
    Claim("Table 4c", "Frozen has the best SRCC",
          _duels("table4c", ("SRCC",), "Frozen > Head; Frozen > All")),
    Claim("Table 4d", "All has the lowest flip rate",
          _duels("table4d", ("FR",), "All > Frozen; All > Head")),
    Claim("Table 4d", "Head has the highest flip rate",
          _duels("table4d", ("FR",), "Frozen > Head; All > Head")),
)


def claims(profile: str, results: Path | str = "results", draws: int = 2000) -> pd.DataFrame:
    """Each claim with both verdicts, written to `results/<profile>/claims.csv`.

    `in_paper`, `paper_evidence`; `at_profile` with the duel that decides it, its lead (margin
    included), the lead's interval and p, sources and seeds; `refuted_by`: the test that would.
    """
    paper = pd.read_csv(Path(results) / "paper.csv", dtype=str)
    runs = report.read_runs(profile, results).query("split == 'test'")
    tables = [pd.read_csv(p) for p in sorted((Path(results) / profile / "tables").glob("*.csv"))]
    printed = pd.concat([pd.DataFrame(columns=report.COLUMNS), *tables])
    rows = [{"exhibit": claim.exhibit, "claim": claim.claim, **in_paper(claim, paper),
             **at_profile(claim, runs, printed, draws), "refuted_by": refutation(claim)}
            for claim in CLAIMS]
    table = pd.DataFrame(rows).astype({"n_sources": "Int64", "seeds": "Int64"})
    records.write_csv(Path(results) / profile / "claims.csv", table)
    return table


def in_paper(claim: Claim, paper: pd.DataFrame) -> dict:
    """Verdict by the printed numbers, and what it rests on: the duels lost, else the closest."""
    rows = []
    for better, worse in claim.duels:
        won, lost = (paper[(paper.exhibit == cell.exhibit) & (paper.system == cell.system) &
                           (paper.metric == cell.metric)] for cell in (better, worse))
        same = lost.dataset.isin(won.dataset)  # the codecs' tables have no set in common
        for a, b in zip(won.itertuples(), lost[same | ~same.any()].iloc[-len(won):].itertuples(),
                        strict=True):
            lead = round(_sign(better) * (float(a.value) - float(b.value)) + claim.margin, 6)
            rows.append({"column": f"{a.dataset} {a.metric}", "lead": lead, "text":
                         f"{a.dataset} {a.metric}: {a.system} {a.value}, {b.system} {b.value}"
                         + f" ({b.metric if a.metric != b.metric else b.dataset})"
                         * ((a.metric, a.dataset) != (b.metric, b.dataset))})
    duels = pd.DataFrame(rows)
    lost = duels[duels.lead <= 0]
    failed = lost[lost.groupby("column").lead.transform("size") > claim.losses]
    return {"in_paper": "holds" if failed.empty else "does not hold", "paper_evidence":
            "; ".join((duels.nsmallest(1, "lead") if failed.empty else failed).text)}


def at_profile(claim: Claim, runs: pd.DataFrame, tables: pd.DataFrame, draws: int) -> dict:
    """Verdict by paired intervals over the sources of the test runs; what lacks is named."""
    blank = dict.fromkeys(LEAD)
    if claim.human:
        return {"at_profile": "not testable: needs human MOS", **blank}
    leads = [_lead(*duel, claim.margin, runs, tables, draws) for duel in claim.duels]
    if lacking := sorted({name for lead in leads for name in lead.get("lacking", ())}):
        return {"at_profile": f"not run: {', '.join(lacking)}", **blank}
    leads = pd.DataFrame(leads)
    verdict = ("does not hold" if (leads.ci_high < 0).any() else
               "holds" if (leads.ci_low > 0).all() else "undecided")
    by = leads["ci_high" if verdict == "does not hold" else "ci_low"].fillna(-np.inf)
    return {"at_profile": verdict, **leads.loc[by.idxmin()]}


def refutation(claim: Claim) -> str:
    """The test that would refute a claim, in words."""
    rivals = dict.fromkeys(b.system for a, b in claim.duels if b.system != a.system)
    return (f"On unseen sources{' with human opinions' * claim.human}: a paired 95% interval of "
            f"the lead{' over ' * bool(rivals)}{' or '.join(rivals)} wholly below "
            f"{0 - claim.margin:g}{', twice in one column' * bool(claim.losses)}")


def _lead(better: Cell, worse: Cell, margin: float, runs: pd.DataFrame, tables: pd.DataFrame,
          draws: int) -> dict:
    """One duel, paired on the sources that both have.

    Where a system's rows are no scores (text answers), by the intervals of its table, unpaired.
    """
    scored = [_rows(runs, cell) for cell in (better, worse)]
    known = [tables[(tables.system == _run(cell)) & (tables.metric == cell.metric) &
                    tables.status.isin(report.KEPT)] for cell in (better, worse)]
    text = f"{_name(better)} over {_name(worse)} in {better.metric}"
    if not any(rows.empty for rows in scored):
        a, b = (rows[rows.source.isin(other.source)]
                for rows, other in zip(scored, scored[::-1], strict=True))
        won, lost = (_sign(cell) * report.replicates(rows, _statistic(cell.metric), draws)
                     for cell, rows in ((better, a), (worse, b)))
        found = metrics.contrast(won.mean(0) + margin, lost.mean(0), a.source.nunique())
        return dict(zip(LEAD, (text, *found, min(len(won), len(lost))), strict=True))
    if any(rows.empty for rows in known):
        return {"lacking": [_name(cell) for cell, *rows in zip(
            (better, worse), scored, known, strict=True) if all(r.empty for r in rows)] or [text]}
    x, y = (rows.iloc[0] for rows in known)
    lead, *ends = (_sign(better) * (p - q) + margin for p, q in
                   ((x.value, y.value), (x.ci_low, y.ci_high), (x.ci_high, y.ci_low)))
    return dict(zip(LEAD, (f"{text}, unpaired", lead, min(ends), max(ends), np.nan,
                           min(x.n_sources, y.n_sources), min(x.seeds, y.seeds)), strict=True))


@cache
def _statistic(metric: str) -> metrics.Statistic:
    diff = re.search(r"diff=(\d+)", metric)
    return partial(metrics.flips, diff=float(diff[1]) if diff else None) if metric.startswith(
        "FR") else metrics.pooled_srcc


def _rows(runs: pd.DataFrame, cell: Cell) -> pd.DataFrame:
    rows = runs[(runs.system == _run(cell)) & (runs.get("codec") == cell.codec)]
    if "dataset" in rows:
        rows = rows[rows.dataset.isin(cell.sets or SETS.get(cell.exhibit, SETS["table3"]))]
    if cell.metric in ("SRCC", "PLCC") and len(rows):  # people rated what was uploaded
        rows = rows[rows.role == "original"]
    return rows[rows.prediction.notna()] if len(rows) else rows


def _sign(cell: Cell) -> int:
    return -1 if cell.metric.startswith("FR") else 1


def _run(cell: Cell) -> str:
    return report.run_of(cell.system)


def _name(cell: Cell) -> str:
    return _run(cell) + (f" ({cell.codec})" if cell.codec != "h264" else "")
