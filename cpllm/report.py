"""Runs under results/ to tables, figures and sentences. Reads nothing else; never imports JAX.

A run is `results/<profile>/runs/<system>-s<seed>/`. A model run elsewhere is a CSV (video,
prediction, perhaps seed) in `results/<profile>/outside/` and gets a row of its own. Test
predictions feed tables and figures alone; choices are made on `validation_summary`. What has not
been run prints "not run".
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Collection, Iterable
from functools import cache, partial
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from pandas.io.formats.style import Styler
from PIL import Image

from cpllm import config, grid, metrics, records
from cpllm.data import ladder, manifests

OUTSIDE = "outside"
DIFFS = (2, 4, 6, 8, 10, 20)  # CRF differences that Table 3 prints
STRICT = tuple(f"FR diff={d}" for d in DIFFS)
TIES = tuple(f"FR diff={d} ties" for d in DIFFS)
HALF = tuple(f"FR diff={d} half" for d in DIFFS)
SRCC = ("SRCC pooled", "SRCC within source")
AGREEMENT = {
    SRCC[0]: metrics.pooled_srcc, SRCC[1]: metrics.within_source,
    "KRCC pooled": metrics.pooled_krcc,
    "KRCC within source": partial(metrics.within_source, of=metrics.krcc),
    "PLCC pooled": metrics.pooled_plcc,
    "PLCC within source": partial(metrics.within_source, of=metrics.plcc),
}
"""With the FR-proxy, linear; within source: the median source's."""
RUNS = {"CP-LLM": "cpllm", "Mix": "cpllm", "Frozen": "cpllm", "FastVQA": "fast-vqa",
        "Q-Align": "q-align", "Gemini 2.0": "answers"}
"""Paper's row → run (`results/<profile>/runs/<name>-s<seed>`); other rows in lower-case letters.
All are trained by the `table` recipe; the run `default` is the package's own model, trained longer.
"""
BASELINES = ("random", "niqe", "sharpness", "filesize")  # trivial; always in the tables
PAPER = " (paper, LSVQ-test-1080p)"
DASHES = {f"CP-LLM{PAPER}": "--", f"DOVER{PAPER}": "-.", f"Q-Align{PAPER}": ":"}
COLUMNS = ["system", "metric", "value", "ci_low", "ci_high", "n_sources", "n_items", "seeds",
           "status"]
RECORDED = ("commit", "dirty", "seed", "device", "started", "duration_s", "manifest_sha256")
KEPT = ("ok", grid.OLDER, grid.CHANGED)
"""Statuses of rows whose numbers are shown: the last two must be trained again to be today's."""
HEADINGS = {"ci_low": "95% from", "ci_high": "to", "low": "95% from", "high": "to",
            "n_sources": "sources", "n_items": "items", "in_paper": "verdict",
            "paper_evidence": "rests on", "at_profile": "verdict", "decided_by": "decided by",
            "refuted_by": "refuted by"}
COUNTS = dict.fromkeys(("n_sources", "n_items", "seeds"), "Int64")  # absent for the paper's rows


def table3(profile: str, results: Path | str = "results", draws: int = 2000) -> pd.DataFrame:
    """Table 3: flip rate by CRF difference on the TEST split, and `AGREEMENT` with the FR-proxy.

    Tidy rows in `COLUMNS`; `FR diff=2` counts strict flips, `… ties` equal predictions, `… half`
    flips + ties / 2 (the paper does not say which it counts). The paper's rows have the status
    `paper` and never stand in for a missing run. Written to `results/<profile>/tables/table3.csv`.
    """
    ours = _summary(profile, results, "test", draws)
    table = pd.concat([ours, _paper3(results)], ignore_index=True)
    records.write_csv(Path(results) / profile / "tables" / "table3.csv", table)
    table.attrs = {"profile": profile, "exhibit": "Table 3", "split": "test"}
    return table


def of_footage(scored: pd.DataFrame, draws: int = 2000) -> pd.DataFrame:
    """Table 3's measures of ladders that no manifest has; `scored` names system and seed beside
    what `metrics` needs. Its caption is the caller's.
    """
    rows = [row for system, frame in scored.groupby("system", sort=False)
            for row in measure(system, _jobs3(frame), "ok", draws)]
    return pd.DataFrame(rows, columns=COLUMNS).astype(COUNTS)


def validation_summary(profile: str, results: Path | str = "results",
                       draws: int = 2000) -> pd.DataFrame:
    """The rows of `table3` on the validation split, ours only: what choices may look at."""
    table = _summary(profile, results, "validation", draws)
    table.attrs = {"profile": profile, "exhibit": "Validation summary", "split": "validation"}
    return table


def read_runs(profile: str, results: Path | str = "results") -> pd.DataFrame:
    """All predictions of a profile, with their `run`, `system` and `seed`, ours and from outside.

    What a video is comes from `videos.csv` beside the runs. A run without predictions.csv is
    unfinished: one row with its name and nothing else, so that tables can show it. ValueError where
    a folder's `-s<seed>` is not its config.json's, or names a prediction of an unknown video.
    """
    config.preset(profile)  # refuses an unknown one by name
    home = Path(results) / profile
    videos = pd.read_csv(home / "videos.csv") if (home / "videos.csv").exists() else None
    frames = [pd.DataFrame(columns=["run", "system", "seed", "split"])]
    for folder in _folders(profile, results):
        system, suffix = re.fullmatch(r"(.+?)(?:-s(\d+))?", folder.name).groups()
        recorded = records.read_json(folder / "config.json").get("train", {}).get("seed")
        seed = int(suffix) if suffix else recorded or 0
        if recorded not in (None, seed):
            raise ValueError(f"{folder}: its config.json has train.seed {recorded}; rename the "
                             "folder or train it again")
        file = folder / "predictions.csv"
        rows = _predictions(file, videos) if file.exists() else pd.DataFrame({"split": [""]})
        frames.append(rows.assign(run=folder.name, system=system, seed=seed))
    for file in sorted((home / "outside").glob("*.csv")):
        rows = _predictions(file, videos)
        frames.append(rows.assign(run=f"{OUTSIDE}/{file.name}", system=f"{file.stem} ({OUTSIDE})",
                                  seed=rows.get("seed", 0)))
    return pd.concat(frames[1:] or frames, ignore_index=True)


def _predictions(file: Path, videos: pd.DataFrame | None) -> pd.DataFrame:
    """A CSV's predictions and what is known of each video, unless it tells that itself."""
    rows = pd.read_csv(file)
    if "source" in rows:
        return rows
    if absent := sorted({"video", "prediction"} - set(rows)):
        raise ValueError(f"{file}: no column {', '.join(absent)}; has {', '.join(rows)}")
    known = videos if videos is not None else pd.DataFrame({"video": []})
    if len(unknown := rows.video[~rows.video.isin(known.video)]):
        raise ValueError(f"{file}: {len(unknown)} of {len(rows)} videos are not in this profile's "
                         f"videos.csv (first: {unknown.iloc[0]}); names are its manifest's")
    return rows[rows.columns.intersection(["video", "prediction", "seed"])].merge(known, on="video")


def of_ladders(runs: pd.DataFrame, split: str, codec: str = "h264") -> pd.DataFrame:
    """The split's rows from sources with a whole ladder by `codec`: what Table 3 rests on.

    Other sources give a set of uploads with an encode or two; they serve the SRCC of Table 1.
    """
    rows = runs[runs.split == split]
    if "crf" not in rows:
        return rows
    rows = rows[rows.crf.isna() | (rows.get("codec", codec) == codec)]
    return rows[rows.groupby("source").crf.transform("nunique") > 2]


def headed(table: pd.DataFrame) -> pd.DataFrame:
    """The same with headings to read in the place of columns' names."""
    return table.rename(columns=HEADINGS)


def styled(table: pd.DataFrame, columns: tuple[str, ...] = (*STRICT, *SRCC)) -> Styler:
    """Wide table for a notebook: systems by metrics, `value [95% interval]` or the status."""
    text = [_cell(row) for row in table.itertuples()]
    wide = table.assign(text=text).pivot(index="system", columns="metric", values="text")
    wide = wide.reindex(index=table.system.unique(), columns=list(columns)).fillna("–")
    lacking = table[table.value.notna() & ~table.status.isin(["ok", "paper"])]
    notes = lacking.groupby("system").status.first()
    wide = wide.rename(index={name: f"{name} ({note})" for name, note in notes.items()})
    wide = wide.rename_axis(index=None, columns=None)
    caption = title(table) if table.attrs else None
    return Styler(wide, caption=caption, uuid="table", cell_ids=False)


def title(table: pd.DataFrame) -> str:
    """Exhibit, profile, split and what the intervals rest on, for captions and figures."""
    ours = table[table.seeds > 0]
    counts = (f"{_plural(ours.n_sources.max(), 'source')}, {_plural(ours.seeds.max(), 'seed')}"
              if len(ours) else "not run")
    at = table.attrs
    return (f"{at['exhibit']}, {at['profile']} profile: {at['split']} split of the built-in scenes "
            f"({counts}). FR: strict flips. SRCC: with the FR-proxy (VMAF), not MOS. "
            "In brackets: 95% cluster bootstrap by source.")


def flip_curve(table: pd.DataFrame, results: Path | str = "results") -> plt.Figure:
    """Strict flip rate against CRF difference: band = interval, points = seeds, grey = paper.

    Saved as `results/<profile>/figures/table3_flip_rate.svg` and `.png`.
    """
    profile = table.attrs["profile"]
    runs = of_ladders(read_runs(profile, results), "test")
    colours = iter(sns.color_palette("colorblind", 20))
    with plt.rc_context(style()):
        figure, axes = plt.subplots(figsize=(9, 4.4), layout="constrained")
        for system, rows in table[table.metric.isin(STRICT)].groupby("system", sort=False):
            rates = rows.value.to_numpy()
            if (rows.status == "paper").all():
                if system in DASHES:
                    axes.plot(DIFFS, rates, DASHES[system], color="0.35", label=system)
                continue
            if np.isnan(rates).all():
                continue  # the table says why
            colour = next(colours)
            trivial = "--" if system in BASELINES else "-"
            axes.plot(DIFFS, rates, trivial, color=colour, label=f"{system} ({profile})")
            axes.fill_between(DIFFS, rows.ci_low, rows.ci_high, color=colour, alpha=0.2, lw=0)
            for _, seed in runs[runs.system == system].groupby("seed"):
                axes.plot(DIFFS, [metrics.flip_rate(seed, d).strict for d in DIFFS], ".",
                          color=colour, clip_on=False)
        axes.set(xlabel="CRF difference of the pair", ylabel="flip rate (strict)", xticks=DIFFS,
                 ylim=(0, None), title=f"Flip rate, {profile} profile (built-in scenes, test)")
        figure.legend(fontsize="small", loc="outside right upper")
        (folder := Path(results) / profile / "figures").mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / "table3_flip_rate.svg", metadata={"Date": None})
        figure.savefig(folder / "table3_flip_rate.png", dpi=144)
    plt.close(figure)  # a notebook shows what is returned; left open it would show twice
    return figure


def style() -> dict:
    """The one figure style, as rcParams; SVGs come out the same bytes for the same data."""
    return {**sns.axes_style("whitegrid"), **sns.plotting_context("notebook", font_scale=0.95),
            "svg.hashsalt": "cpllm", "axes.titlesize": "medium"}


def slider(pictures: Iterable[np.ndarray], labels: Iterable[str], name: str, say: str) -> str:
    """HTML that shows one of several pictures, uint8[H, W, 3] each, by a slider that keys move too.

    Without loss and pixel by pixel, twice as large. `name` stands at the slider; a picture's
    description is `say` and its label. Nothing moves by itself.
    """
    choose = ("const f = this.closest('figure'), all = [...f.querySelectorAll('img')];"
              "all.forEach((e, i) => e.style.display = i == this.value ? '' : 'none');"
              "f.querySelector('output').value = all[this.value].title;"
              "this.setAttribute('aria-valuetext', all[this.value].title)")
    shown, labels = [], list(labels)
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        Image.fromarray(picture).save(data := BytesIO(), "webp", lossless=True, method=6)
        shown.append(f'<img src="data:image/webp;base64,{b64encode(data.getvalue()).decode()}" '
                     f'alt="{say}, {label}" title="{label}" width="{2 * picture.shape[1]}" style="'
                     f'image-rendering: pixelated{"; display: none" * (i > 0)}">')
    return (f'<figure>{"".join(shown)}<figcaption><label>{name} <input type="range" min="0" '
            f'max="{len(labels) - 1}" value="0" aria-valuetext="{labels[0]}" oninput="{choose}">'
            f'</label> <output>{labels[0]}</output></figcaption></figure>')


def reading(table: pd.DataFrame, system: str = "default") -> str:
    """Sentences that `table3` supports, as Markdown; every number comes from the table."""
    profile, split = table.attrs["profile"], table.attrs["split"]
    ours = table[table.system == system].set_index("metric")
    limits = ("The truth here is CRF order and VMAF, an FR-proxy, never MOS; the videos are "
              f"built-in scenes, not LSVQ. So no {profile} number reproduces one of the paper's. "
              "It shows whether the model orders compression levels, not what people would say.")
    if ours.value.isna().all():
        return (f"**{system}** has no {split} result in profile {profile} "
                f"({ours.status.iloc[0]}), so nothing is compared. {limits}")
    fr = ours.loc[list(STRICT)]
    course = "rises at least once" if (np.diff(fr.value) > 0).any() else "never rises"
    pooled, within = (ours.loc[name] for name in SRCC)
    sentences = [
        f"**{system}** flips {_cell(fr.iloc[0])} of the pairs at CRF difference {DIFFS[0]} and "
        f"{_cell(fr.iloc[-1])} at {DIFFS[-1]}; the rate {course} between them. Equal "
        f"predictions, {ours.value[TIES[0]]:.3f} of the pairs at {DIFFS[0]}, are no flips here.",
        f"SRCC with the proxy is {_cell(pooled)} pooled over contents and {_cell(within)} within "
        f"the median source, from {_plural(fr.n_sources.iloc[0], 'source')} and "
        f"{_plural(fr.seeds.iloc[0], 'seed')}."]
    for other in BASELINES:
        theirs = table[(table.system == other) & (table.seeds > 0)].set_index("metric")
        if len(theirs):
            flip, rank = theirs.loc[STRICT[0]], theirs.loc[SRCC[0]]
            sentences.append(f"The trivial baseline {other} flips {_cell(flip)} at {DIFFS[0]} with "
                             f"a pooled SRCC of {_cell(rank)}" +
                             (", no more than the model: flip rate alone proves nothing."
                              if flip.value <= fr.value.iloc[0] else "."))
    if ((fr.value == 0) & (fr.ci_high == 0)).any():
        sentences.append("An interval of zero width says that no pair flipped, not that none can.")
    if (n := fr.n_sources.iloc[0]) < 10:
        sentences.append(f"With only {_plural(n, 'source')} the intervals are indications.")
    return " ".join([*sentences, limits])


def provenance(profile: str, results: Path | str = "results", **parameters: object) -> None:
    """Print the notebook's parameters and what each run recorded about its origin."""
    print(f"profile={profile}", *(f"{key}={value}" for key, value in parameters.items()))
    for folder in (folders := _folders(profile, results)):
        made = records.read_json(folder / "provenance.json")
        facts = dict.fromkeys(RECORDED, "not recorded") | made
        facts |= facts.pop("versions", {})
        print(f"{folder.name}: " + " · ".join(f"{key} {value}" for key, value in facts.items()))
    if not folders:
        print("runs: not run")


def _summary(profile: str, results: Path | str, split: str, draws: int) -> pd.DataFrame:
    """Every metric of every row of Table 3, run or not, on one split; tidy."""
    runs, rows = read_runs(profile, results), []
    paper = pd.read_csv(Path(results) / "paper.csv").query("exhibit == 'table3'").system.unique()
    for system in systems(paper, runs):
        if (system, split) == ("answers", "test") and (said := _answers(profile, results, draws)):
            rows += said
            continue
        frame = of_ladders(runs[runs.system == system], split)
        jobs = _jobs3(frame) if len(frame) else [(name, frame, None, 0) for name in
                                                 (*STRICT, *TIES, *HALF, *AGREEMENT)]
        rows += measure(system, jobs, status(system, runs, frame, profile, results, split), draws)
    return pd.DataFrame(rows, columns=COLUMNS).astype(COUNTS)


def _answers(profile: str, results: Path | str, draws: int) -> list[dict]:
    """The row of text answers: what the default runs' decoders said, if they were asked."""
    from cpllm import answers

    files = sorted((Path(results) / profile / "runs").glob("default-s*/answers.csv"))
    found = answers.measures(pd.concat(map(pd.read_csv, files)), draws) if files else pd.DataFrame()
    state = _state({file.parent.name for file in files}, profile, Path(results))
    return [row("answers", r.metric, r.value, r.ci_low, r.ci_high, r.n_sources,
                r.n_items // len(files), len(files), state) for r in found.itertuples()]


def systems(paper: Iterable[str], runs: pd.DataFrame) -> list[str]:
    """A table's own rows: the paper's, the package's model, baselines, those from outside."""
    outside = runs.system[runs.system.str.endswith(f"({OUTSIDE})")]
    return list(dict.fromkeys([*map(run_of, paper), "default", *BASELINES, *outside]))


def run_of(system: str) -> str:
    """The run that stands for a row of the paper's."""
    return RUNS.get(system, re.sub("[^a-z]", "", system.lower()))


def status(system: str, runs: pd.DataFrame, frame: pd.DataFrame, profile: str,
           results: Path | str, split: str = "test") -> str:
    """"ok", or what a reader must know of the system's rows `frame`: absent, partial, outdated."""
    names = set(runs.run[runs.system == system])
    if not names:
        return f"not run ({profile})"
    if lacking := sorted(names - set(frame.run)):
        return f"no {split} rows: {', '.join(lacking)}"
    rows = runs[runs.split == split]
    if "dataset" in rows:  # a grid's runs may be scored on some
        rows = rows[rows.dataset.isin(rows.dataset[rows.system == system])]
    known = rows.groupby("system").video.nunique()
    if known[system] < known.max():
        return f"{known[system]} of {known.max()} videos"
    return _state(names, profile, Path(results))


def _state(names: Collection[str], profile: str, results: Path) -> str:
    """"ok", or in what one of these runs at least is outdated."""
    states = {_state_of(name, profile, results) for name in names}
    return next((s for s in (grid.CHANGED, grid.OLDER) if s in states), "ok")


def _state_of(name: str, profile: str, results: Path) -> str:
    """Whether a run is by today's settings, data and code; settings and data, where known."""
    folder = results / profile / "runs" / name
    if "model" not in records.read_json(folder / "config.json"):
        return grid.DONE  # nothing was trained
    if run := _planned(results.resolve().parent, profile).get(name):
        return grid.status(run, folder, trained_on(profile, bool(run.cfg.data.wide_scenes)))
    made = records.read_json(folder / "provenance.json").get("code_sha256")
    return grid.DONE if made in grid.codes(folder) else grid.OLDER


@cache
def trained_on(profile: str, wide: bool = False) -> str | None:
    """The hash of the committed clips that runs are trained on and chosen by, where some are.

    Those of a run on `wide` scenes are not committed.
    """
    if wide:
        return None
    rows = ladder.read_committed(ladder.COMMITTED / profile, manifests.TRAINING).reset_index()
    return manifests.sha256(rows, manifests.TRAINING) if len(rows) else None


@cache
def _planned(root: Path, profile: str) -> dict[str, grid.Run]:
    """The runs of all grids of a checkout, by name."""
    names = sorted(path.stem for path in (root / "notebooks" / "sweeps").glob("*.yaml"))
    return {run.run_id: run for name in names for run in grid.read(name, profile, root)}


def _jobs3(frame: pd.DataFrame) -> list[tuple]:
    """(metric, rows, Statistic, items) of Table 3."""
    jobs = [(name, frame, statistic, len(frame)) for name, statistic in AGREEMENT.items()]
    for diff, *names in zip(DIFFS, STRICT, TIES, HALF, strict=True):
        pairs = metrics.flip_rate(frame, diff).pairs
        jobs += [(name, frame, partial(metrics.flips, diff=diff, kind=kind), pairs)
                 for name, kind in zip(names, ("strict", "ties", "half"), strict=True)]
    return jobs


def measure(system: str, jobs: Iterable[tuple], status: str, draws: int) -> list[dict]:
    """Rows of a table: each (metric, rows, Statistic, items) with its interval over sources."""
    found = []
    for name, frame, statistic, items in jobs:
        if frame.empty:
            note = "no such videos" if status in KEPT else status
            found.append(row(system, name, status=note))
            continue
        values = replicates(frame, statistic, draws)
        estimate = metrics.estimate(values.mean(0), frame.source.nunique())
        note = "undefined (no pairs or constant)" if np.isnan(estimate.value) else status
        found.append(row(system, name, *estimate, items // len(values), len(values), note))
    return found


def replicates(frame: pd.DataFrame, statistic: metrics.Statistic, draws: int) -> np.ndarray:
    """`metrics.replicates` of each seed, float[seeds, 1 + draws].

    Kept, because a table, its leads and several claims ask for the same ones; `statistic` has to be
    the same object then.
    """
    held = frame[[c for c in ("video", "seed", "proxy", "prediction") if c in frame]]
    key = statistic, draws, pd.util.hash_pandas_object(held, index=False).to_numpy().tobytes()
    if key not in _kept:
        _kept[key] = np.stack([metrics.replicates(rows, statistic, draws)
                               for _, rows in frame.groupby("seed")])
    return _kept[key]


_kept: dict[tuple, np.ndarray] = {}


def _paper3(results: Path | str) -> pd.DataFrame:
    paper = pd.read_csv(Path(results) / "paper.csv", dtype=str).query("exhibit == 'table3'")
    rows = [row(r.system + PAPER, r.metric, float(r.value), n_sources=None, n_items=None,
                seeds=None, status="paper") for r in paper.itertuples()]
    return pd.DataFrame(rows, columns=COLUMNS).astype(COUNTS)


def row(system: str, metric: str, value: float = np.nan, low: float = np.nan,
        high: float = np.nan, n_sources: int | None = 0, n_items: int | None = 0,
        seeds: int | None = 0, status: str = "ok") -> dict:
    """A table's tidy row; without a value it shows its status."""
    return dict(zip(COLUMNS, (system, metric, value, low, high, n_sources, n_items, seeds, status),
                    strict=True))


def _cell(row: pd.Series) -> str:
    """`value [interval]`; without a value the status, and a dash where the paper prints none."""
    if np.isnan(row.value):
        return "–" if row.status == "paper" else row.status
    return f"{row.value:.3f}" + ("" if np.isnan(row.ci_low) else
                                 f" [{row.ci_low:.2f}, {row.ci_high:.2f}]")


def _plural(n: float, noun: str) -> str:
    return f"{n:.0f} {noun}" + ("" if n == 1 else "s")


def _folders(profile: str, results: Path | str) -> list[Path]:
    return sorted(p for p in (Path(results) / profile / "runs").glob("[!.]*") if p.is_dir())
