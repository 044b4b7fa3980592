"""What trained weights say of a profile's clips: scores, answers, and the card of the package's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import track

from cpllm import answers, baselines, calibrate, card, config, grid, records, sweep
from cpllm.data import manifests, video
from cpllm.data.batches import model_inputs

if TYPE_CHECKING:  # they import JAX
    from cpllm.infer import Scorer
    from cpllm.judge import Judge

BASELINES = Path(baselines.__file__)
console = Console(stderr=True)


def score_runs(profile: str, again: bool = True) -> None:
    """Write predictions.csv of every run whose weights are at hand, and of the baselines.

    Each video is decoded once for all. Rows of splits that are not built here stay as committed,
    and so do baselines that this code has measured. Without `again` of the runs only those that
    have no predictions yet.
    """
    from cpllm.infer import load

    start, manifest = records.start(), sweep.DATA / profile / "manifest.csv"
    table = manifests.read(manifest).query("split != 'train'")
    weights = _weights(profile, again)
    if not (weights or again):
        return
    scorers = {run_id: load(path) for run_id, path in weights.items()}
    measures = _measures(profile, table)
    scores = _scores(profile, table, scorers, measures)
    known = _record(profile, "videos.csv", manifests.prediction_rows(table))
    for run_id, found in scores.items():
        scored = pd.DataFrame(found.items(), columns=["video", "prediction"])
        _record(profile, f"runs/{run_id}/predictions.csv", scored, known)
    for name in measures:
        folder = records.run_folder(sweep.RESULTS, profile, f"{name}-s0")
        records.write_json(folder / "config.json", {
            "baseline": name, "profile": profile, "code_sha256": records.file_hash(BASELINES)})
        records.write_json(folder / "provenance.json",
                           records.provenance(start, 0, manifests.sha256(manifest)))
    if (run_id := grid.default_ids(profile)[0]) in scorers:
        _repeat(profile, weights[run_id], scores[run_id])


def default_model(profile: str) -> Judge:
    """The default model's first seed: the package's where that is of the profile, else the run's.

    A chapter says which weights of the package it is made with; of others here it knows nothing.
    """
    from cpllm.infer import DEFAULT
    from cpllm.judge import load

    if DEFAULT.stem == profile:
        return load(DEFAULT)
    run_id = grid.default_ids(profile)[0]
    if not (found := _weights(profile, only=[run_id])):
        raise FileNotFoundError(f"{run_id}: expected its weights under data/{profile}/weights, "
                                f"found none; cpllm train --profile {profile} makes them")
    return load(found[run_id])


def make_card(profile: str, again: bool = True) -> Path | None:
    """Write the card of the package's weights, where the profile's default model is theirs.

    The interval and the confidence come from the run's validation predictions, but for clips with
    faults that its training left out; the domain from what the model sees of one clip of each
    training scene, at each level in turn, and of every fourth validation clip; the heat-map's
    readout from training encodes: 5 minutes of two cores.
    Without `again` only where the card is missing or another file's.
    """
    from cpllm import damage
    from cpllm.infer import DEFAULT, load

    if DEFAULT.stem != profile or (not again and card.of(DEFAULT)):
        return None
    scorer, data, run_id = load(DEFAULT), sweep.DATA / profile, grid.default_ids(profile)[0]
    clips = config.clips(scorer.cfg, data)
    train, validation = (manifests.read(folder / "manifest.csv").query(f"split == '{split}'")
                         for split, folder in (("train", clips), ("validation", data)))
    predicted = pd.read_csv(records.run_folder(sweep.RESULTS, profile, run_id) / "predictions.csv")
    scored = calibrate.taught(validation, scorer.cfg.to_dict()).merge(predicted, on="video")
    if scored.empty or train.empty:
        raise ValueError(f"{run_id}: expected validation clips that it scored under {data} and "
                         f"training clips under {clips}; cpllm data makes them")
    short = train[["width", "height"]].min(axis=1)
    card.make(records.file_hash(DEFAULT), scored, (int(short.min()), int(short.max())),
              _content(scorer, train, clips, validation, data),
              damage.fit(scorer, train, clips)).write(path := card.beside(DEFAULT))
    return path


def _content(scorer: Scorer, train: pd.DataFrame, clips: Path, validation: pd.DataFrame,
             data: Path) -> card.Content:
    """What training looks like to the model; its clips lie in `clips`, validation's in `data`."""
    scenes = train.groupby("scene", sort=False)
    turn = scenes.ngroup() % scenes["scene"].transform("size")
    some = validation.groupby("scene").nth(slice(None, None, 4))
    return card.fit_content(_features(scorer, train[scenes.cumcount() == turn], clips),
                            _features(scorer, some, data), some["source"])


def _features(scorer: Scorer, rows: pd.DataFrame, videos: Path) -> np.ndarray:
    """`card.features` of a manifest's rows: float[n,D]."""
    from cpllm.infer import ahead

    paths = [videos / name for name in manifests.files(rows)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        inputs = track(ahead(pool, scorer.inputs, paths), "seeing videos", len(paths),
                       console=console)
        return np.stack([card.features(scorer.see(x)[0]) for x in inputs])


def answer_runs(profile: str, _fresh: bool = False) -> None:
    """Write answers.csv of the default runs whose weights are here: Table 3's pairs, in words."""
    from cpllm import report
    from cpllm.infer import load

    rows = report.of_ladders(manifests.read(sweep.DATA / profile / "manifest.csv"), "test")
    pairs = answers.pairs(rows, report.DIFFS)
    for run_id, path in _weights(profile, only=grid.default_ids(profile)).items():
        table = answers.ask(pairs, answers.by_decoder(load(path), sweep.DATA / profile))
        path = records.run_folder(sweep.RESULTS, profile, run_id) / "answers.csv"
        records.write_csv(path, table.drop(columns=["better", "worse"]))


def _weights(profile: str, again: bool = True, only: Iterable[str] = ()) -> dict[str, Path]:
    """The profile's runs whose weights are here: the package's own, and trained ones.

    Without `again` those without predictions, with `only` none but these.
    """
    from cpllm.infer import DEFAULT

    found = {grid.default_ids(profile)[0]: DEFAULT} if DEFAULT.stem == profile else {}
    found |= {p.stem: p for p in sorted((sweep.DATA / profile / "weights").glob("*.safetensors"))}
    done = {p.parent.name for p in (sweep.RESULTS / profile / "runs").glob("*/predictions.csv")}
    return {name: path for name, path in found.items()
            if (again or name not in done) and name in (only or found)}


def _measures(profile: str, table: pd.DataFrame) -> dict[str, baselines.Measure]:
    """The baselines that this code has not measured yet on all of the table's videos."""

    def done(name: str) -> bool:
        folder = records.run_folder(sweep.RESULTS, profile, f"{name}-s0")
        made = records.read_json(folder / "config.json").get("code_sha256")
        path = folder / "predictions.csv"
        return (made == records.file_hash(BASELINES) and path.exists()
                and table["video"].isin(pd.read_csv(path)["video"]).all())

    fits = {name: fit for name, fit in _fits(profile).items() if not done(name)}
    ready = baselines.measures(config.preset(profile), fits)
    return {name: measure for name, measure in ready.items() if not done(name)}


def _fits(profile: str) -> dict[str, pd.DataFrame]:
    """What baselines learnt from the training split; made where that is here and they are not."""
    rows = manifests.read(sweep.DATA / profile / "manifest.csv").query("split == 'train'")
    files = {name: records.run_folder(sweep.RESULTS, profile, f"{name}-s0") / "fit.csv"
             for name in baselines.FITS}
    for name, file in files.items():
        if len(rows) and not file.exists():
            fit = baselines.FITS[name](rows, sweep.DATA / profile, config.preset(profile))
            records.write(file, fit.to_csv(index=False))  # all digits: a covariance is inverted
    return {name: pd.read_csv(file) for name, file in files.items() if file.exists()}


def _scores(profile: str, table: pd.DataFrame, scorers: Mapping[str, Scorer],
            measures: Mapping[str, baselines.Measure]) -> dict[str, dict[str, float]]:
    """Run → video → score, over all of the table's videos, the next ones decoded meanwhile."""
    from cpllm.infer import ahead

    scores = {name: {} for name in (*scorers, *(f"{b}-s0" for b in measures))}
    judge = partial(_judge, folder=sweep.DATA / profile, m=config.preset(profile).video.key_frames,
                    measures=measures, scorers=scorers, sets=grid.sets(profile, sweep.ROOT))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        judged = ahead(pool, judge, table.to_dict("records"))
        judged = track(judged, "scoring videos", len(table), console=console)
        for name, found in zip(table["video"], judged, strict=True):
            for run_id, value in found.items():
                scores[run_id][name] = value
    return scores


def _judge(
    row: dict, folder: Path, m: int, measures: Mapping[str, baselines.Measure],
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


def _repeat(profile: str, weights: Path, scores: Mapping[str, float]) -> None:
    """Score some eight videos by `cpllm score` again; the largest differences, in points.

    In another process, among other videos or one alone, and on one core; once for a weights file.
    """
    path, sha256 = sweep.RESULTS / profile / "repeatability.json", records.file_hash(weights)
    if path.exists() and json.loads(path.read_text())["weights_sha256"] == sha256:
        return
    names = list(scores)[:: max(len(scores) // 8, 1)]
    ways = {"run to run": (names, ""), "across batch sizes": (names[:1], "")}
    if hasattr(os, "sched_setaffinity"):
        ways["across thread counts"] = names, "import os; os.sched_setaffinity(0, {0})\n"

    def differ(files: list[str], first: str) -> float:
        program = first + "import sys; from cpllm.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", program, "score", "--format=json", f"--weights={weights}"]
        command += [str(sweep.DATA / profile / f"{name}.mp4") for name in files]
        again = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        return max(abs(row["score"] - scores[name])
                   for name, row in zip(files, json.loads(again.stdout), strict=True))

    with ThreadPoolExecutor() as pool:
        found = dict(zip(ways, pool.map(lambda way: differ(*way), ways.values()), strict=True))
    records.write_json(path, {"weights_sha256": sha256, "points": found})


def _record(
    profile: str, name: str, rows: pd.DataFrame, known: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Write rows beside those of splits that were not scored now; both together.

    known: the videos that there are, where the rows don't say their split.
    """
    path = sweep.RESULTS / profile / name
    if path.exists():
        kept = pd.read_csv(path, keep_default_na=False, na_values={"crf": ""})[list(rows)]
        kept = kept[~kept["video"].isin(rows["video"]) & (
            ~kept["split"].isin(rows["split"]) if known is None
            else kept["video"].isin(known["video"]))]
        rows = pd.concat([kept, rows]) if len(kept) else rows
    records.write_csv(path, rows)
    return rows
