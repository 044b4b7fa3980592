"""What a profile's results are made of: data → trained runs → scores → notebooks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import track

from cpllm import answers, atomic, baselines, calibrate, card, config, grid, records, sweep
from cpllm.data import ladder, manifests, photographs, video
from cpllm.data.batches import frame_store, model_inputs, store_frames

if TYPE_CHECKING:  # they import JAX
    from cpllm.infer import Scorer
    from cpllm.judge import Judge

DATA, RESULTS = sweep.ROOT / "data", sweep.ROOT / "results"
BASELINES = Path(baselines.__file__)
PRETRAIN = sweep.ROOT / "notebooks" / "15_pretrain.ipynb"
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


def build_fit(profile: str, scheduler: str | None = None) -> pd.DataFrame:
    """What the package's own model trains on and is chosen by, under data/<profile>-fit."""
    cfg = grid.read("fit", profile, sweep.ROOT)[0].cfg
    if not cfg.data.wide_scenes:
        raise ValueError(f"{profile}: the grid fit has no wide scenes at this profile; take pocket")
    return _build_wide(cfg, scheduler)


def _build_wide(cfg: config.Config, scheduler: str | None = None) -> pd.DataFrame:
    plain = DATA / cfg.profile
    photographs.fetch()
    return ladder.build(cfg, config.clips(cfg, plain), manifests.TRAINING, scheduler=scheduler,
                        beside=plain)


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
    profile: str, names: Sequence[str], rows: Sequence[str] = (), fresh: Collection[str] = (),
    stale: bool = False, dry_run: bool = False, workers: int | None = None,
    scheduler: str | None = None, score: bool = True,
) -> None:
    """Train the runs of grids (of these rows) that are missing or were made otherwise; score them.

    stale: those by older code too, a seed of each row first, and its others only where that came
    out otherwise; fresh: all of these grids. `GridError` names the runs that failed.
    """
    preset(profile)
    found = {name: grid.read(name, profile, sweep.ROOT) for name in names}
    runs = {r.run_id: r for those in found.values() for r in those
            if not rows or grid.row_of(r.run_id) in rows}
    anew = {r.run_id for name in fresh for r in found[name]} & set(runs)
    table = grid.plan(list(runs.values()), profile, sweep.ROOT)
    again = [name for name, status in zip(table["run"], table["status"], strict=True)
             if name in anew or status in (grid.MISSING, grid.CHANGED)]
    older = [*table["run"][(table["status"] == grid.OLDER) & stale & ~table["run"].isin(again)]]
    grid.show(table, [*again, *older], workers or len(os.sched_getaffinity(0)))
    if dry_run:
        return
    for name in anew:  # all at once, so that a call that is interrupted can go on
        grid.forget(name, profile, sweep.ROOT)
    first = {grid.row_of(name): name for name in reversed(older)}.values()
    failed = _train([*again, *first], runs, table, profile, workers, scheduler)
    if older:
        left = grid.plan([runs[name] for name in older], profile, sweep.ROOT)
        left = left["run"][(left["status"] == grid.OLDER) & ~left["run"].isin(failed)]
        failed |= _train([*left], runs, table, profile, workers, scheduler)
    if score:
        score_runs(profile, again=False)
        make_card(profile, again=False)
    if failed:
        raise grid.GridError("\n".join([f"{len(failed)} of {len([*again, *older])} runs failed", *(
            f"{name}: {error}" for name, error in failed.items())]))


def _train(names: Sequence[str], runs: Mapping[str, grid.Run], table: pd.DataFrame, profile: str,
           workers: int | None, scheduler: str | None) -> dict[str, Exception]:
    """Train these, the longest first, so that none of them is last and alone; the failures."""
    if not names:
        return {}
    _prepare(profile, [runs[name].cfg for name in names])
    longest = table.sort_values("seconds", ascending=False, kind="stable")["run"]
    failed = grid.execute([runs[name] for name in longest if name in names], profile,
                          sweep.ROOT, workers, scheduler)
    _ship(profile, {*names} - {*failed})
    return failed


def _prepare(profile: str, cfgs: Sequence[config.Config]) -> None:
    """What runs side by side only read: clips, decoded frames, pretrained towers."""
    data = DATA / profile
    if not (data / "manifest.csv").exists():
        build_data(profile)
    if wide := [cfg for cfg in cfgs if cfg.data.wide_scenes]:
        _build_wide(wide[0])
    for cfg in {frame_store(config.clips(cfg, data), cfg): cfg for cfg in cfgs}.values():
        clips = config.clips(cfg, data)
        rows = manifests.read(clips / "manifest.csv").query("split == 'train'")
        store_frames(rows, clips, frame_store(clips, cfg), cfg)
    _pretrain(cfgs, data)


def _pretrain(cfgs: Sequence[config.Config], data: Path) -> None:
    """The towers that these configurations start from, each kind of them once."""
    from cpllm import pretrain, pretrain_low

    for cfg in {pretrain.key(cfg, data): cfg for cfg in cfgs if cfg.train.pretrained}.values():
        pretrain.ensure(cfg, data)
    for cfg in {pretrain_low.key(cfg, data): cfg for cfg in cfgs
                if cfg.pretrain_low.steps}.values():
        pretrain_low.ensure(cfg, data)


def _ship(profile: str, trained: set[str]) -> None:
    """The default model's first seed: its notebook is a chapter, its weights the package's."""
    from cpllm.infer import DEFAULT

    run_id = next(iter(run_ids(profile)))
    if run_id not in trained:
        return
    chapter = RESULTS / profile / "notebooks" / grid.NOTEBOOK
    atomic.copy(DATA / profile / "notebooks" / f"{run_id}.ipynb", chapter)
    if DEFAULT.stem == profile:
        atomic.copy(DATA / profile / "weights" / f"{run_id}.safetensors", DEFAULT)


def pretrain_towers(profile: str, fresh: bool) -> None:
    """Execute the notebook that makes what runs under the `table` recipe start from."""
    if fresh:
        shutil.rmtree(DATA / profile / "pretrained", ignore_errors=True)
    home = RESULTS / profile / "notebooks"
    inputs = sweep.files(sweep.NOTEBOOKS[PRETRAIN.stem].inputs, profile, sweep.ROOT)
    sweep.run_notebook(PRETRAIN, home / PRETRAIN.name, {"profile": profile}, inputs)


def score_runs(profile: str, again: bool = True) -> None:
    """Write predictions.csv of every run whose weights are at hand, and of the baselines.

    Each video is decoded once for all. Rows of splits that are not built here stay as committed,
    and so do baselines that this code has measured. Without `again` of the runs only those that
    have no predictions yet.
    """
    from cpllm.infer import ahead, load

    start = records.start()
    manifest = DATA / profile / "manifest.csv"
    table = manifests.read(manifest)
    table = table[table["split"] != "train"]
    weights = _weights(profile, again)
    if not (weights or again):
        return
    scorers = {run_id: load(path) for run_id, path in weights.items()}
    measures = _measures(profile, table)
    scores = {name: {} for name in (*scorers, *(f"{b}-s0" for b in measures))}
    judge = partial(_judge, folder=DATA / profile, m=preset(profile).video.key_frames,
                    measures=measures, scorers=scorers, sets=_sets(profile))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        judged = ahead(pool, judge, table.to_dict("records"))
        judged = track(judged, "scoring videos", len(table), console=console)
        for name, found in zip(table["video"], judged, strict=True):
            for run_id, value in found.items():
                scores[run_id][name] = value
    known = _record(profile, "videos.csv", manifests.prediction_rows(table))
    for run_id, found in scores.items():
        scored = pd.DataFrame(found.items(), columns=["video", "prediction"])
        _record(profile, f"runs/{run_id}/predictions.csv", scored, known)
    for name in measures:
        folder = records.run_folder(RESULTS, profile, f"{name}-s0")
        records.write_json(folder / "config.json", {
            "baseline": name, "profile": profile, "code_sha256": records.file_hash(BASELINES)})
        records.write_json(
            folder / "provenance.json", records.provenance(start, 0, manifests.sha256(manifest))
        )
    if (run_id := next(iter(run_ids(profile)))) in scorers:
        _repeat(profile, weights[run_id], scores[run_id])


def _weights(profile: str, again: bool = True, only: Iterable[str] = ()) -> dict[str, Path]:
    """The profile's runs whose weights are here: the package's own, and trained ones.

    Without `again` those without predictions, with `only` none but these.
    """
    from cpllm.infer import DEFAULT

    found = {next(iter(run_ids(profile))): DEFAULT} if DEFAULT.stem == profile else {}
    found |= {p.stem: p for p in sorted((DATA / profile / "weights").glob("*.safetensors"))}
    done = {p.parent.name for p in (RESULTS / profile / "runs").glob("*/predictions.csv")}
    return {name: path for name, path in found.items()
            if (again or name not in done) and name in (only or found)}


def default_model(profile: str) -> Judge:
    """The default model's first seed, ready to use: the package's own, or the one trained here."""
    from cpllm.judge import load

    run_id = next(iter(run_ids(profile)))
    if run_id not in (found := _weights(profile, only=[run_id])):
        raise FileNotFoundError(f"{run_id}: expected its weights under data/{profile}/weights, "
                                f"found none; cpllm train --profile {profile} makes them")
    return load(found[run_id])


def _measures(profile: str, table: pd.DataFrame) -> dict[str, baselines.Measure]:
    """The baselines that this code has not measured yet on all of the table's videos."""

    def done(name: str) -> bool:
        folder = records.run_folder(RESULTS, profile, f"{name}-s0")
        made = records.read_json(folder / "config.json").get("code_sha256")
        path = folder / "predictions.csv"
        return (made == records.file_hash(BASELINES) and path.exists()
                and table["video"].isin(pd.read_csv(path)["video"]).all())

    fits = {name: fit for name, fit in _fits(profile).items() if not done(name)}
    ready = baselines.measures(preset(profile), fits)
    return {name: measure for name, measure in ready.items() if not done(name)}


def _repeat(profile: str, weights: Path, scores: Mapping[str, float]) -> None:
    """Score some eight videos by `cpllm score` again; the largest differences, in points.

    In another process, among other videos or one alone, and on one core; once for a weights file.
    """
    path, sha256 = RESULTS / profile / "repeatability.json", records.file_hash(weights)
    if path.exists() and json.loads(path.read_text())["weights_sha256"] == sha256:
        return
    names = list(scores)[:: max(len(scores) // 8, 1)]
    ways = {"run to run": (names, ""), "across batch sizes": (names[:1], "")}
    if hasattr(os, "sched_setaffinity"):
        ways["across thread counts"] = names, "import os; os.sched_setaffinity(0, {0})\n"

    def differ(files: list[str], first: str) -> float:
        program = first + "import sys; from cpllm.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", program, "score", "--format=json", f"--weights={weights}"]
        command += [str(DATA / profile / f"{name}.mp4") for name in files]
        again = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        return max(abs(row["score"] - scores[name])
                   for name, row in zip(files, json.loads(again.stdout), strict=True))

    with ThreadPoolExecutor() as pool:
        found = dict(zip(ways, pool.map(lambda way: differ(*way), ways.values()), strict=True))
    records.write_json(path, {"weights_sha256": sha256, "points": found})


def make_card(profile: str, again: bool = True) -> Path | None:
    """Write the card of the package's weights, where the profile's default model is theirs.

    The interval and the confidence come from the run's validation predictions, but for clips with
    faults that its training left out; the domain from what the model sees of one clip of each
    training scene, at each level in turn, and of every fourth validation clip; the heat-map's
    readout from training encodes: 5 minutes of two cores.
    Without `again` only where the card is missing or another file's.
    """
    from cpllm import damage
    from cpllm.infer import DEFAULT, ahead, load

    if DEFAULT.stem != profile or (not again and card.of(DEFAULT)):
        return None
    scorer, data, run_id = load(DEFAULT), DATA / profile, next(iter(run_ids(profile)))
    folders = {"train": config.clips(scorer.cfg, data), "validation": data}
    rows = {split: manifests.read(folder / "manifest.csv").query(f"split == '{split}'")
            for split, folder in folders.items()}
    predicted = pd.read_csv(records.run_folder(RESULTS, profile, run_id) / "predictions.csv")
    validation = calibrate.taught(rows["validation"], scorer.cfg.to_dict()).merge(
        predicted, on="video")
    if validation.empty or rows["train"].empty:
        raise ValueError(f"{run_id}: expected validation clips that it scored under {data} and "
                         f"training clips under {folders['train']}; cpllm data makes them")
    scenes = rows["train"].groupby("scene", sort=False)
    turn = scenes.ngroup() % scenes["scene"].transform("size")
    seen = {"train": rows["train"][scenes.cumcount() == turn],
            "validation": rows["validation"].groupby("scene").nth(slice(None, None, 4))}
    paths = [folders[split] / name for split in seen for name in manifests.files(seen[split])]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        inputs = track(ahead(pool, scorer.inputs, paths), "seeing videos", len(paths),
                       console=console)
        features = np.stack([card.features(scorer.see(x)[0]) for x in inputs])
    n, short = len(seen["train"]), rows["train"][["width", "height"]].min(axis=1)
    content = card.fit_content(features[:n], features[n:], seen["validation"]["source"])
    path = card.beside(DEFAULT)
    card.make(records.file_hash(DEFAULT), validation, (int(short.min()), int(short.max())), content,
              damage.fit(scorer, rows["train"], folders["train"])).write(path)
    return path


def answer_runs(profile: str, _fresh: bool = False) -> None:
    """Write answers.csv of the default runs whose weights are here: Table 3's pairs, in words."""
    from cpllm import report
    from cpllm.infer import load

    rows = report.of_ladders(manifests.read(DATA / profile / "manifest.csv"), "test")
    pairs = answers.pairs(rows, report.DIFFS)
    for run_id, path in _weights(profile, only=run_ids(profile)).items():
        table = answers.ask(pairs, answers.by_decoder(load(path), DATA / profile))
        path = records.run_folder(RESULTS, profile, run_id) / "answers.csv"
        records.write_csv(path, table.drop(columns=["better", "worse"]))


def _fits(profile: str) -> dict[str, pd.DataFrame]:
    """What baselines learnt from the training split; made where that is here and they are not."""
    rows = manifests.read(DATA / profile / "manifest.csv").query("split == 'train'")
    files = {b: records.run_folder(RESULTS, profile, f"{b}-s0") / "fit.csv" for b in baselines.FITS}
    for name, file in files.items():
        if len(rows) and not file.exists():
            fit = baselines.FITS[name](rows, DATA / profile, preset(profile))
            records.write(file, fit.to_csv(index=False))  # all digits: a covariance is inverted
    return {name: pd.read_csv(file) for name, file in files.items() if file.exists()}


def _sets(profile: str) -> dict[str, tuple[str, ...]]:
    """The sets that runs are scored on, where their grid has not all."""
    runs = (run for name in grid.names(sweep.ROOT) for run in grid.read(name, profile, sweep.ROOT))
    return {run.run_id: run.sets for run in runs if run.sets}


def _judge(
    row: dict, folder: Path, m: int, measures: dict[str, baselines.Measure],
    scorers: Mapping[str, Scorer], sets: Mapping[str, tuple[str, ...]],
) -> dict[str, float]:
    """A video's score by each run that is scored on its set, and by the trivial baselines, which
    see m key frames.
    """
    here = {run_id: scorer for run_id, scorer in scorers.items()
            if row["dataset"] in sets.get(run_id, (row["dataset"],))}
    views, path = {scorer.cfg.video for scorer in here.values()}, folder / f"{row['video']}.mp4"
    frames = {n: video.key_frames(path, n, threads=1)
              for n in {m, *(view.key_frames for view in views)}}
    inputs = {view: model_inputs(frames[view.key_frames], view) for view in views}
    scores = {run_id: scorer.frame_scores(inputs[scorer.cfg.video]).mean(dtype=np.float64)
              for run_id, scorer in here.items()}
    return scores | {f"{name}-s0": measure(row, frames[m]) for name, measure in measures.items()}


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
    done = all(path.exists() for path in _metrics(profile, run_ids(profile)))
    if fresh or "train" in built or not done:
        return ladder.SPLITS
    return ("test",)


def _metrics(profile: str, ids: Iterable[str]) -> list[Path]:
    return [records.run_folder(RESULTS, profile, run_id) / "metrics.json" for run_id in ids]


def _unfinished(profile: str) -> Path:
    """There while FRESH=1 has not trained all of the tables' runs; another call goes on."""
    return sweep.ROOT / ".cache" / "reproduce" / profile / "unfinished"


def _pretrained(profile: str) -> list[Path]:
    """The notebook of pretraining, where the profile's `table` recipe asks for it."""
    asked = config.table(profile).train.pretrained
    return [RESULTS / profile / "notebooks" / PRETRAIN.name] * asked


def steps(profile: str, fresh: bool) -> tuple[sweep.Step | sweep.Notebook, ...]:
    """The stages in order, each with the files that it depends on and those that it makes."""
    splits = needed_splits(profile, fresh)
    trained, tabled, pretrained = (
        tuple(str(path.relative_to(sweep.ROOT)) for path in paths)
        for paths in (_metrics(profile, run_ids(profile)), _metrics(profile, table_ids(profile)),
                      _pretrained(profile)))
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

    # FRESH=1 trains the tables' runs anew, not a default model of a longer recipe: that is
    # `make fit`. Side by side, so that no core waits.
    grids = ["fit", *(["table"] if fresh or _unfinished(profile).exists() else [])]
    old = ["table"] if config.TABLE[profile] else grids

    def train(profile: str, fresh: bool) -> None:
        if fresh:
            records.write(_unfinished(profile), "")
        train_grids(profile, grids, fresh=old if fresh else (), score=False)
        _unfinished(profile).unlink(missing_ok=True)

    tabled = tabled if "table" in grids else ()
    return (
        sweep.Step("build data", build, makers, (manifest,)),
        *(sweep.Step("pretrain", pretrain_towers, (), (path,), once=True)
          for path in pretrained if tabled),
        sweep.Step("train", train, (), (*trained, *tabled), once=True),
        sweep.Step("score", lambda profile, _: score_runs(profile),
                   (manifest, *weights, *judges), (predictions,)),
        sweep.Step("card", lambda profile, _: make_card(profile, again=False),
                   ("cpllm/weights/{profile}.safetensors",)),
        sweep.Step("answers", answer_runs, (), said, once=True),
        *(book for name, book in sweep.NOTEBOOKS.items()
          if name not in ("15_pretrain", "20_train") and not book.apart),
    )


def benchmark(profile: str, names: Sequence[str] = ()) -> None:
    """Execute the notebooks that `reproduce` leaves alone (of these names), one after another."""
    preset(profile)
    known = {name.rpartition("_")[2]: name for name, book in sweep.NOTEBOOKS.items() if book.apart}
    if unknown := set(names) - set(known):
        raise ValueError(f"benchmark: expected some of {', '.join(known)}; got {min(unknown)!r}")
    for name in (known[short] for short in names or known):
        source = sweep.ROOT / "notebooks" / f"{name}.ipynb"
        inputs = sweep.files(sweep.NOTEBOOKS[name].inputs, profile, sweep.ROOT)
        sweep.run_notebook(
            source, RESULTS / profile / "notebooks" / source.name, {"profile": profile}, inputs)
        console.print(f"{name}: done", highlight=False)


def reproduce(profile: str, fresh: bool) -> None:
    """Redo what is not up to date of a profile, up to its executed notebooks."""
    preset(profile)
    for home in (DATA, RESULTS):
        atomic.tidy(home / profile)
    sweep.reproduce(profile, fresh, steps(profile, fresh))
