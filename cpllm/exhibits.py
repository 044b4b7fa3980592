"""Tables 1, 2 and 4 and what goes beyond them: each row's numbers, and its paired distance to ours.

Reads runs as `cpllm.report` does. The truth is the FR-proxy wherever the paper has MOS; the columns
are named after the paper's test sets, whose place the profile's sets of the same name take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from cpllm import grid, metrics, records, report
from cpllm.data.scenes import UNSEEN

REFERENCE = "cpllm"
CODECS = ("h264", "vp9", "hevc", "av1")
LEADS = ["system", "metric", "lead", "ci_low", "ci_high", "p", "n_sources", "seeds", "paper",
         "points"]


class Measure(NamedTuple):
    """A column: which of a test set's rows it takes, the statistic, and 1 where more is better."""

    name: str
    rows: Callable[[pd.DataFrame], pd.DataFrame]
    statistic: metrics.Statistic
    sign: int = 1


class Exhibit(NamedTuple):
    """A table: the paper's test set → ours, and its metric → our measure (or one of our own)."""

    title: str
    sets: dict[str, str]
    measures: dict[str, Measure]


def _uploads(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows.role == "original"]


def _new_content(rows: pd.DataFrame) -> pd.DataFrame:
    """Uploads of the families that are held out whole."""
    return rows[(rows.role == "original") & rows.family.isin(UNSEEN)]


def _against_upload(rows: pd.DataFrame) -> pd.DataFrame:
    """Differences to the upload, faulty or not: the reference of YT-Compress."""
    return metrics.differential(rows.assign(distortion="none"))


def _correlations(rows: Callable, before: str = "", prefix: str = "") -> dict[str, Measure]:
    """SRCC, linear PLCC, and PLCC after the logistic curve, of which the paper says nothing."""
    return {f"{before}{name}": Measure(f"{prefix}{name}", rows, statistic) for name, statistic in (
        ("SRCC", metrics.pooled_srcc), ("PLCC", metrics.pooled_plcc),
        ("PLCC logistic", partial(metrics.pooled_plcc, curve=True)))}


_LSVQ = {"LSVQ-test": "lsvq-test", "LSVQ-1080p": "lsvq-1080p"}
_FLIPS = {"FR": Measure("FR", partial(report.of_ladders, split="test"), metrics.flips, -1)}
_VARIANTS = {"FR": Measure("FR", lambda rows: rows[rows.role == "variant"], metrics.flips, -1)}
EXHIBITS = {
    "table1": Exhibit("Table 1", {"YT-Compress": "yt-compress"}, {
        **_correlations(lambda rows: rows, "MOS "),
        **_correlations(_against_upload, "DMOS ", "differential "), **_VARIANTS}),
    "table2": Exhibit("Table 2", {
        "YouTube-UGC": "youtube-ugc", "LIVE-YT-Gaming": "live-yt-gaming",
        "Shorts-SDR": "shorts-sdr", "Shorts-HDR2SDR": "shorts-hdr2sdr"}, {
            **_correlations(_uploads),
            "unseen": Measure("SRCC unseen", _new_content, metrics.pooled_srcc)}),
    "table4a": Exhibit("Table 4a", _LSVQ, _correlations(_uploads)),
    "table4b": Exhibit("Table 4b", _LSVQ, _FLIPS),
    "table4c": Exhibit("Table 4c", _LSVQ, _correlations(_uploads)),
    "table4d": Exhibit("Table 4d", _LSVQ, _FLIPS),
    "ablation": Exhibit("All runs", {"LSVQ-test": "lsvq-test"},
                        {**_correlations(_uploads), **_FLIPS}),
}


def table(key: str, profile: str, results: Path | str = "results",
          draws: int = 2000) -> pd.DataFrame:
    """An exhibit's rows on the TEST split beside the paper's, tidy in `report.COLUMNS`.

    Flip rates are over all pairs of ordered levels of one ladder, SRCC and PLCC with the FR-proxy
    over all rows together. Written to `results/<profile>/tables/<key>.csv`.
    """
    exhibit, runs, rows = EXHIBITS[key], report.read_runs(profile, results), []
    paper = _paper(key, results)
    for system in _systems(key, paper, runs):
        frame = _test(runs, system)
        note = report.status(system, runs, frame, profile, results)
        rows += report.measure(system, _jobs(exhibit, frame), note, draws)
    printed = [report.row(f"{r.system} (paper)", r.metric, r.value, n_sources=None, n_items=None,
                          seeds=None, status="paper") for r in paper.itertuples()]
    whole = pd.DataFrame(rows + printed, columns=report.COLUMNS).astype(report.COUNTS)
    records.write_csv(Path(results) / profile / "tables" / f"{key}.csv", whole)
    whole.attrs = {"profile": profile, "exhibit": exhibit.title, "split": "test", "key": key}
    return whole


def side_by_side(table: pd.DataFrame, *names: str) -> Styler:
    """The columns of these measures: each row of the paper's with ours below, then the others."""
    exhibit = EXHIBITS[table.attrs["key"]]
    columns = tuple(m for _, m, measure in _cells(exhibit) if measure.name in names)
    paper = table.system[table.status == "paper"].str.removesuffix(" (paper)").unique()
    order = [name for system in paper for name in (f"{system} (paper)", report.run_of(system))]
    order = list(dict.fromkeys([*order, *table.system]))
    shown = table.set_index("system").loc[order].reset_index()
    rivals = {report.run_of(s) for s in paper} - {REFERENCE}
    if table.attrs["key"] in ("table1", "table2"):
        shown["system"] = [f"{s} (mechanism)" if s in rivals else s for s in shown.system]
    shown.attrs = table.attrs
    return report.styled(shown, columns).set_caption(caption(table))


def caption(table: pd.DataFrame) -> str:
    """What a table rests on; Table 3's has its own conventions."""
    return report.title(table).replace(
        "FR: strict flips.", "FR: strict flips of all ordered pairs of a ladder.")


def leads(key: str, profile: str, results: Path | str = "results", draws: int = 2000,
          reference: str = REFERENCE) -> pd.DataFrame:
    """By how much `reference` is better than each other row, paired on the same test sources.

    `LEADS`: lead with its 95% interval and p, positive where the reference is better (more SRCC,
    fewer flips), `paper`: the paper's lead, `points`: the lead of each seed.
    """
    runs, paper = report.read_runs(profile, results), _paper(key, results)
    known = paper.assign(system=paper.system.map(report.run_of)).set_index(["system", "metric"])
    ours, rows = _test(runs, reference), []
    for system in _systems(key, paper, runs):
        theirs = _test(runs, system)
        if system == reference or ours.empty or theirs.empty:
            continue
        for dataset, metric, measure in _cells(EXHIBITS[key]):
            found = _lead(*(measure.rows(f[f.dataset == dataset]) for f in (ours, theirs)),
                          measure, draws)
            printed = [known.value.get((name, metric), np.nan) for name in (reference, system)]
            rows.append([system, metric, *found[:-1], measure.sign * (printed[0] - printed[1]),
                         found[-1]])
    table = pd.DataFrame(rows, columns=LEADS)
    table.attrs = {"profile": profile, "exhibit": EXHIBITS[key].title, "reference": reference}
    return table


def reading(leads: pd.DataFrame) -> str:
    """How often our leads agree in sign with the paper's, as Markdown; computed, not judged."""
    at, both = leads.attrs, leads.dropna(subset=["lead", "paper"])
    both = both[both.paper != 0]
    limits = (f"The truth is the FR-proxy, never MOS, and the {at['profile']} networks and videos "
              "are not the paper's: an agreement speaks for the mechanism, not for its numbers.")
    if both.empty:
        return (f"Nothing of {at['exhibit']} can be compared yet: its rows are not run "
                f"({at['profile']}). {limits}")
    same = np.sign(both.lead) == np.sign(both.paper)
    clear = (both.ci_low > 0) | (both.ci_high < 0)
    against = both[~same & clear]
    named = "; ".join(f"{r.system}, {r.metric}: {_interval(r)}, in the paper {r.paper:+.3f}"
                      for r in against.itertuples())
    return (f"Of {len(both)} differences between **{at['reference']}** and another row that the "
            f"paper prints numbers for, {same.sum()} have the paper's sign here, "
            f"{(same & clear).sum()} of them with a 95% interval clear of zero; "
            f"{len(against)} have the other sign clear of zero{f' ({named})' if named else ''}. "
            f"The rest can't be told apart. {limits}")


def leads_table(leads: pd.DataFrame) -> Styler:
    """Systems by metrics, or turned where there are more of these: `lead [interval] (paper …)`."""
    text = [_interval(r) + ("" if np.isnan(r.paper) else f" (paper {r.paper:+.3f})")
            for r in leads.itertuples()]
    wide = leads.assign(text=text).pivot(index="system", columns="metric", values="text")
    wide = wide.reindex(index=leads.system.unique(), columns=leads.metric.unique())
    wide = wide.T if wide.shape[1] > wide.shape[0] else wide
    note = (f"{leads.attrs['exhibit']}, {leads.attrs['profile']} profile: lead of "
            f"{leads.attrs['reference']}, paired by source; positive is better")
    return Styler(wide.rename_axis(index=None, columns=None), caption=note, uuid="leads",
                  cell_ids=False)


def changes(profile: str, results: Path | str = "results",
            reference: str = REFERENCE) -> pd.Series:
    """In what each system's recorded configuration differs from the reference's, in words.

    Of another kind of model only whether it has its mechanism; "another recipe" where more than
    six fields differ. A field that only one of both runs knows is left out: it came later.
    """
    runs = sorted((Path(results) / profile / "runs").glob("*/config.json"))
    flat = {grid.row_of(p.parent.name): pd.json_normalize(records.read_json(p)).iloc[0]
            for p in reversed(runs)}
    base = flat.get(reference, pd.Series(dtype=object)).drop("train.seed", errors="ignore")

    def told(values: pd.Series) -> str:
        if values.get("model.kind") != base.get("model.kind"):
            return "mechanism" if values["model.mechanism"] else "without its mechanism"
        words = [f"{key.rpartition('.')[2]} {values[key]}" for key in base.index
                 if key in values and str(values[key]) != str(base[key])]
        return ", ".join(words) if len(words) <= 6 else "another recipe"

    return pd.Series({system: told(values) for system, values in flat.items()
                      if "model.dtype" in values}, dtype=object)


def effects(leads: pd.DataFrame, metrics_: tuple[str, ...], labels: pd.Series) -> plt.Figure:
    """A row a system: lead of the reference with its paired interval, seeds as points."""
    with plt.rc_context(report.style()):
        systems = leads.system.unique()
        figure, axes = plt.subplots(1, len(metrics_), sharey=True, layout="constrained",
                                    figsize=(5 * len(metrics_), 1.5 + 0.3 * len(systems)))
        for axis, metric in zip(np.atleast_1d(axes), metrics_, strict=True):
            for at, row in enumerate(leads[leads.metric == metric].itertuples()):
                axis.plot([row.ci_low, row.ci_high], [at, at], color="C0", lw=2)
                axis.plot(row.lead, at, "o", color="C0")
                axis.plot(row.points, [at] * len(row.points), ".", color="0.4")
            axis.axvline(0, color="0.3", lw=1)
            axis.set(xlabel=f"lead of {leads.attrs['reference']} in {metric}",
                     title=f"{metric}, {leads.attrs['profile']} profile",
                     yticks=range(len(systems)),
                     yticklabels=[f"{s}: {labels.get(s) or 'as it is'}" for s in systems])
    plt.close(figure)
    return figure


def scatter(table: pd.DataFrame) -> plt.Figure:
    """Flip rate against SRCC with their intervals, a point for every system that has both.

    Names stand to the right in the order of flip rates, joined to points that lie close together.
    """
    wide = table[table.status != "paper"].pivot(index="system", columns="metric")
    wide = wide.dropna(subset=[("value", "SRCC"), ("value", "FR")]).sort_values(("value", "FR"))
    with plt.rc_context(report.style()):
        figure, axis = plt.subplots(figsize=(7, 5), layout="constrained")
        heights = (np.arange(len(wide)) + 0.5) / len(wide)
        for (system, row), height in zip(wide.iterrows(), heights, strict=True):
            x, y = row["value", "SRCC"], row["value", "FR"]
            axis.plot([row["ci_low", "SRCC"], row["ci_high", "SRCC"]], [y, y], color="0.8", lw=1)
            axis.plot([x, x], [row["ci_low", "FR"], row["ci_high", "FR"]], color="0.8", lw=1)
            axis.plot(x, y, "o", color="C1" if system in report.BASELINES else "C0")
            axis.annotate(system, (x, y), (1.06, height), textcoords="axes fraction", va="center",
                          fontsize="small", arrowprops={"arrowstyle": "-", "color": "0.7"})
        axis.set(xlabel="SRCC with the FR-proxy, uploads", ylabel="flip rate, all pairs",
                 title=f"Flip rate and SRCC, {table.attrs['profile']} profile")
    plt.close(figure)
    return figure


def codecs(profile: str, results: Path | str = "results", draws: int = 2000) -> pd.DataFrame:
    """Flip rate and SRCC by codec, on the test scenes that all codecs encoded: tidy, every system.

    Training saw H.264 alone. Written to `results/<profile>/tables/codecs.csv`.
    """
    runs, rows = report.read_runs(profile, results), []
    for system in dict.fromkeys(runs.system):
        whole = frame = _test(runs, system)
        if whole.empty:
            continue
        scene = frame.video.str.extract("(.+)@")[0]
        frame = frame[frame.crf.notna() & (frame.dataset == "lsvq-test") & (
            frame.codec.groupby(scene).transform("nunique") >= len(CODECS))]
        note = report.status(system, runs, whole, profile, results)
        for codec in CODECS:
            part = frame[frame.codec == codec]
            jobs = [(f"{codec} FR", part, metrics.flips, len(metrics.flip_pairs(part))),
                    (f"{codec} SRCC", part, metrics.pooled_srcc, len(part))]
            rows += report.measure(system, jobs if len(part) else [], note, draws)
    table = pd.DataFrame(rows, columns=report.COLUMNS).astype(report.COUNTS)
    records.write_csv(Path(results) / profile / "tables" / "codecs.csv", table)
    table.attrs = {"profile": profile, "exhibit": "Codecs", "split": "test"}
    return table


def families(profile: str, results: Path | str = "results") -> pd.DataFrame:
    """Test videos by set and family; `held out`: those of families with no source to learn from."""
    runs = report.read_runs(profile, results)
    if "family" not in runs:
        return pd.DataFrame()
    rows = runs[runs.split == "test"].drop_duplicates("video")
    held = rows.family.isin(UNSEEN).groupby(rows.dataset).sum()
    return pd.crosstab(rows.dataset, rows.family).assign(**{"held out": held})


def _systems(key: str, paper: pd.DataFrame, runs: pd.DataFrame) -> list[str]:
    own = report.systems(paper.system.unique() if key != "ablation" else ["CP-LLM"], runs)
    return own if key != "ablation" else list(dict.fromkeys([*own, *runs.system]))


def _paper(key: str, results: Path | str) -> pd.DataFrame:
    """The paper's rows of an exhibit, each metric under the name of our column."""
    rows = pd.read_csv(Path(results) / "paper.csv", dtype=str).query("exhibit == @key")
    exhibit = EXHIBITS[key]
    names = [_column(exhibit, r.dataset, exhibit.measures[r.metric].name)
             for r in rows.itertuples()]
    return rows.assign(metric=names, value=rows.value.astype(float))


def _cells(exhibit: Exhibit) -> Iterator[tuple[str, str, Measure]]:
    """(our data set, column, measure) of each column."""
    for printed, dataset in exhibit.sets.items():
        for measure in exhibit.measures.values():
            yield dataset, _column(exhibit, printed, measure.name), measure


def _column(exhibit: Exhibit, printed: str, name: str) -> str:
    return f"{printed} {name}" if len(exhibit.sets) > 1 else name


def _jobs(exhibit: Exhibit, frame: pd.DataFrame) -> Iterator[tuple]:
    """(column, rows, Statistic, items) as `report.measure` takes them."""
    for dataset, column, measure in _cells(exhibit):
        rows = frame[frame.dataset == dataset] if len(frame) else frame
        rows = measure.rows(rows) if len(rows) else rows
        flips = measure.statistic is metrics.flips and len(rows)
        yield column, rows, measure.statistic, len(metrics.flip_pairs(rows) if flips else rows)


def _test(runs: pd.DataFrame, system: str) -> pd.DataFrame:
    rows = runs[(runs.system == system) & (runs.split == "test")]
    return rows[rows.prediction.notna()] if "prediction" in rows else rows


def _lead(ours: pd.DataFrame, theirs: pd.DataFrame, measure: Measure, draws: int) -> tuple:
    """(lead, low, high, p, sources, seeds, points) on the videos that both have."""
    both = set(ours.video) & set(theirs.video)
    pair = [rows[rows.video.isin(both)] for rows in (ours, theirs)]
    if not both:
        return (np.nan,) * 4 + (0, 0, ())
    ours, theirs = (measure.sign * report.replicates(rows, measure.statistic, draws)
                    for rows in pair)
    found = metrics.contrast(ours.mean(0), theirs.mean(0), pair[0].source.nunique())
    points = tuple(ours[:, 0] - theirs[:, 0]) if len(ours) == len(theirs) else ()
    return *found, min(len(ours), len(theirs)), points


def _interval(row) -> str:
    return "–" if np.isnan(row.lead) else f"{row.lead:+.3f} [{row.ci_low:.3f}, {row.ci_high:.3f}]"
