"""What a profile's results are made of: data → trained runs → scores → notebooks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import track

from cpllm import answers, baselines, config, grid, records, sweep
from cpllm.data import ladder, manifests, video
from cpllm.data.batches import Batch, model_inputs, store_frames

if TYPE_CHECKING:  # cpllm.infer imports JAX, which rendering and rebuilding tables don't need
    from cpllm.infer import Scorer

DATA, RESULTS = sweep.ROOT / "data", sweep.ROOT / "results"
console = Console(stderr=True)


def run_ids(profile: str) -> dict[str, int]:
    """The default model's runs and their seeds."""
    return {f"default-s{seed}": seed for seed in config.preset(profile).seeds}


def table_ids(profile: str) -> list[str]:
    """The runs that Tables 1, 2 and 4 rest on."""
    return [run.run_id for run in grid.read("table", profile, sweep.ROOT)]


def preset(profile: str) -> config.Config:
    """A profile that this checkout can run; ValueError says what another one needs."""
    cfg = config.preset(profile)
    if cfg.data.dataset != "scenes":
        raise ValueError(
            f"{profile}: {cfg.data.dataset.upper()} and the public checkpoints can't be shipped. "
            f"Bring its videos and label files (whence: data_manifests/{cfg.data.dataset}.yaml; "
            f"cpllm manifest build {cfg.data.dataset} --root DIR reads and checks them, cpllm "
            "annotate DIR/manifest.csv describes them), and SigLIP So400m/14@448, VideoPrism-B and "
            "Gemma-2B (for instance PaliGemma-3B-pt-448 and videoprism-base-f16r288; cpllm "
            "import-weights reads them). The profile pocket needs none of it: --profile pocket"
        )
    return cfg


def build_data(profile: str, splits: Sequence[str] = ladder.SPLITS,
               scheduler: str | None = None) -> pd.DataFrame:
    """The profile's videos, labels and manifest under data/<profile>."""
    return ladder.build(preset(profile), DATA / profile, splits, scheduler=scheduler)


def check_data(profile: str,
               splits: Sequence[str]) -> tuple[pd.DataFrame, dict[str, str], list[str]]:
    """The built manifest's rows, their files' faults and how they differ from the committed ones.

    See `ladder.verify` and `ladder.explain`.
    """
    table = manifests.read(DATA / profile / "manifest.csv")
    table = table[table["split"].isin(splits)]
    known = ladder.read_committed(ladder.COMMITTED / profile, splits)
    return table, ladder.verify(table, DATA / profile), ladder.explain(table, known)


def check_labels(profile: str, splits: Sequence[str],
                 scheduler: str | None) -> tuple[pd.DataFrame, list[str]]:
    """`ladder.relabel` of the profile's clips."""
    return ladder.relabel(preset(profile), DATA / profile, splits, scheduler=scheduler)


def train_grids(
    profile: str, names: Sequence[str], rows: Sequence[str] = (), fresh: bool = False,
    stale: bool = False, dry_run: bool = False, workers: int | None = None,
    scheduler: str | None = None, score: bool = True,
) -> None:
    """Train the runs of grids (of these rows) that are missing or were made otherwise; score them.

    stale: those by older code too; fresh: all. `GridError` names the runs that failed.
    """
    preset(profile)
    runs = {r.run_id: r for name in names for r in grid.read(name, profile, sweep.ROOT)
            if not rows or r.run_id.rpartition("-s")[0] in rows}
    table = grid.plan(list(runs.values()), profile, sweep.ROOT)
    wanted = {grid.MISSING, grid.CHANGED, *([grid.OLDER] if stale else [])}
    again = [name for name, found in zip(table["run"], table["status"], strict=True)
             if fresh or found in wanted]
    grid.show(table, again, workers or len(os.sched_getaffinity(0)))
    if dry_run:
        return
    failed = {}
    if again:
        _prepare(profile, [runs[name].cfg for name in again])
        failed = grid.execute([runs[n] for n in again], profile, sweep.ROOT, workers, scheduler)
        _ship(profile, {*again} - {*failed})
    if score:
        score_runs(profile, again=False)
    if failed:
        raise grid.GridError("\n".join([f"{len(failed)} of {len(again)} runs failed", *(
            f"{name}: {error}" for name, error in failed.items())]))


def _prepare(profile: str, cfgs: Sequence[config.Config]) -> None:
    """What runs side by side only read: clips, decoded frames, pretrained towers."""
    from cpllm import train

    data = DATA / profile
    if not (data / "manifest.csv").exists():
        build_data(profile)
    rows = manifests.read(data / "manifest.csv").query("split == 'train'")
    for cfg in {train.store(data, cfg): cfg for cfg in cfgs}.values():
        store_frames(rows, data, train.store(data, cfg), cfg)
    for cfg in {(cfg.model.high, cfg.model.decoder): cfg for cfg in cfgs
                if cfg.train.pretrained}.values():
        from cpllm import pretrain

        pretrain.ensure(cfg, data)


def _ship(profile: str, trained: set[str]) -> None:
    """The default model's first seed: its notebook is a chapter, its weights the package's."""
    from cpllm.infer import DEFAULT

    run_id = next(iter(run_ids(profile)))
    if run_id not in trained:
        return
    chapter = RESULTS / profile / "notebooks" / grid.NOTEBOOK
    chapter.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(DATA / profile / "notebooks" / f"{run_id}.ipynb", chapter)
    if DEFAULT.stem == profile:
        DEFAULT.parent.mkdir(exist_ok=True)
        shutil.copyfile(DATA / profile / "weights" / f"{run_id}.safetensors", DEFAULT)


def score_runs(profile: str, again: bool = True) -> None:
    """Write predictions.csv of every run whose weights are at hand, and of the baselines.

    Each video is decoded once for all. Rows of splits that are not built here stay as committed.
    Without `again` of the runs only those that have no predictions yet.
    """
    start = records.start()
    manifest = DATA / profile / "manifest.csv"
    table = manifests.read(manifest)
    table = table[table["split"] != "train"]
    scorers = _scorers(profile, again)
    if not (scorers or again):
        return
    measures = baselines.measures(preset(profile), _fits(profile))
    columns = {name: [] for name in (*scorers, *(f"{b}-s0" for b in measures))}
    views = {scorer.cfg.video for scorer in scorers.values()}
    usual = preset(profile).video.key_frames
    watch = partial(_watch, folder=DATA / profile, m=usual, measures=measures, views=views)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        scenes = [rows.to_dict("records") for _, rows in table.groupby("scene", sort=False)]
        for rows in track(scenes, "scoring scenes", console=console):
            for inputs, trivial in pool.map(watch, rows):
                for run_id, scorer in scorers.items():
                    scores = scorer.frame_scores(inputs[scorer.cfg.video])
                    columns[run_id].append(scores.mean(dtype=np.float64))
                for name, value in trivial.items():
                    columns[f"{name}-s0"].append(value)
    rows = pd.concat([rows for _, rows in table.groupby("scene", sort=False)])
    known = _record(profile, "videos.csv", manifests.prediction_rows(rows))
    for run_id, predictions in columns.items():
        scored = rows[["video"]].assign(prediction=predictions)
        _record(profile, f"runs/{run_id}/predictions.csv", scored, known)
    for name in measures:
        folder = records.run_folder(RESULTS, profile, f"{name}-s0")
        records.write_json(folder / "config.json", {"baseline": name, "profile": profile})
        records.write_json(
            folder / "provenance.json", records.provenance(start, 0, manifests.sha256(manifest))
        )


def answer_runs(profile: str, _fresh: bool = False) -> None:
    """Write answers.csv of the default runs whose weights are here: Table 3's pairs, in words."""
    from cpllm import report

    rows = report.of_ladders(manifests.read(DATA / profile / "manifest.csv"), "test")
    pairs = answers.pairs(rows, report.DIFFS)
    for run_id, scorer in _scorers(profile, again=True, only=run_ids(profile)).items():
        table = answers.ask(pairs, answers.by_decoder(scorer, DATA / profile))
        path = records.run_folder(RESULTS, profile, run_id) / "answers.csv"
        records.write_csv(path, table.drop(columns=["better", "worse"]))


def _scorers(profile: str, again: bool, only: Iterable[str] = ()) -> dict[str, Scorer]:
    """The profile's runs whose weights are here: the package's own, and trained ones.

    Without `again` those without predictions, with `only` none but these.
    """
    from cpllm.infer import DEFAULT, load

    found = {next(iter(run_ids(profile))): DEFAULT} if DEFAULT.stem == profile else {}
    found |= {p.stem: p for p in sorted((DATA / profile / "weights").glob("*.safetensors"))}
    done = {p.parent.name for p in (RESULTS / profile / "runs").glob("*/predictions.csv")}
    return {name: load(path) for name, path in found.items()
            if (again or name not in done) and name in (only or found)}


def _fits(profile: str) -> dict[str, pd.DataFrame]:
    """What baselines learnt from the training split; made where that is here and they are not."""
    rows = manifests.read(DATA / profile / "manifest.csv").query("split == 'train'")
    files = {b: records.run_folder(RESULTS, profile, f"{b}-s0") / "fit.csv" for b in baselines.FITS}
    for name, file in files.items():
        if len(rows) and not file.exists():
            fit = baselines.FITS[name](rows, DATA / profile, preset(profile))
            records.write(file, fit.to_csv(index=False))  # all digits: a covariance is inverted
    return {name: pd.read_csv(file) for name, file in files.items() if file.exists()}


def _watch(
    row: dict, folder: Path, m: int, measures: dict[str, baselines.Measure],
    views: set[config.Video],
) -> tuple[dict[config.Video, Batch], dict[str, float]]:
    """What models of these `views` see of a video, and the trivial baselines of M key frames."""
    path = folder / f"{row['video']}.mp4"
    frames = {n: video.key_frames(path, n, threads=1)
              for n in {m, *(view.key_frames for view in views)}}
    trivial = {name: measure(row, frames[m]) for name, measure in measures.items()}
    return {view: model_inputs(frames[view.key_frames], view) for view in views}, trivial


def _record(
    profile: str, name: str, rows: pd.DataFrame, known: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Write rows beside those of splits that were not scored now; both together.

    known: the videos that there are, where the rows don't say their split.
    """
    path = RESULTS / profile / name
    if path.exists():
        kept = pd.read_csv(path, keep_default_na=False, na_values={"crf": ""})[list(rows)]
        kept = kept[~kept["video"].isin(rows["video"]) & (
            ~kept["split"].isin(rows["split"]) if known is None
            else kept["video"].isin(known["video"]))]
        rows = pd.concat([kept, rows]) if len(kept) else rows
    records.write_csv(path, rows)
    return rows


def needed_splits(profile: str, fresh: bool) -> tuple[str, ...]:
    """A clone whose runs are committed needs the test split only; what is built stays built."""
    manifest = DATA / profile / "manifest.csv"
    built = set(pd.read_csv(manifest)["split"]) if manifest.exists() else set()
    ids = [*run_ids(profile), *table_ids(profile)]
    if fresh or "train" in built or not all(p.exists() for p in _metrics(profile, ids)):
        return ladder.SPLITS
    return ("test",)


def _metrics(profile: str, ids: Iterable[str]) -> list[Path]:
    return [records.run_folder(RESULTS, profile, run_id) / "metrics.json" for run_id in ids]


def steps(profile: str, fresh: bool) -> tuple[sweep.Step | sweep.Notebook, ...]:
    """The stages in order, each with the files that it depends on and those that it makes."""
    splits = needed_splits(profile, fresh)
    trained, tabled = (tuple(str(p.relative_to(sweep.ROOT)) for p in _metrics(profile, names))
                       for names in (run_ids(profile), table_ids(profile)))
    said = tuple(name.replace("metrics.json", "answers.csv") for name in trained[:1])
    manifest, predictions = (
        "data/{profile}/manifest.csv",
        "results/{profile}/runs/*/predictions.csv",
    )
    makers = ("cpllm/data/*.py", "cpllm/config.py")
    judges = ("cpllm/infer.py", "cpllm/baselines.py", "cpllm/model/*.py", "cpllm/data/*.py")
    weights = ("cpllm/weights/*", "data/{profile}/weights/*")

    def build(profile: str, _fresh: bool) -> None:
        build_data(profile, splits)

    return (
        sweep.Step("build data", build, makers, (manifest,)),
        # FRESH=1 trains the tables' runs anew, not the default model: `cpllm sweep default` does.
        sweep.Step("train", lambda profile, _: train_grids(profile, ["default"], score=False), (),
                   trained, once=True),
        sweep.Step("train the tables", lambda profile, fresh: train_grids(
            profile, ["table"], fresh=fresh, score=False), (), tabled, once=True),
        sweep.Step("score", lambda profile, _: score_runs(profile),
                   (manifest, *weights, *judges), (predictions,)),
        sweep.Step("answers", answer_runs, (), said, once=True),
        sweep.NOTEBOOKS["10_data"],
        *(book for name, book in sweep.NOTEBOOKS.items() if name not in ("10_data", "20_train")),
    )


def reproduce(profile: str, fresh: bool) -> None:
    """Redo what is not up to date of a profile, up to its executed notebooks."""
    preset(profile)
    sweep.reproduce(profile, fresh, steps(profile, fresh))
