"""What a profile's results are made of: data → trained runs → scores → notebooks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import track

from cpllm import baselines, config, records, sweep
from cpllm.data import ladder, manifests, video
from cpllm.data.batches import Batch, model_inputs

DATA, RESULTS = sweep.ROOT / "data", sweep.ROOT / "results"
NOTEBOOK = sweep.ROOT / "notebooks" / "20_train.ipynb"
console = Console(stderr=True)


def run_ids(profile: str) -> dict[str, int]:
    """The default model's runs and their seeds."""
    return {f"default-s{seed}": seed for seed in config.preset(profile).seeds}


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


def train_runs(profile: str, fresh: bool) -> None:
    """Execute the training notebook for every seed that has no run yet (`fresh`: for all).

    The first seed's notebook is a chapter, its weights the profile's default.
    """
    from cpllm.infer import DEFAULT

    ids = run_ids(profile)
    for run_id, seed in ids.items():
        folder = records.run_folder(RESULTS, profile, run_id)
        if fresh:
            shutil.rmtree(records.checkpoints(DATA / profile, run_id), ignore_errors=True)
        elif (folder / "metrics.json").exists():
            continue
        home = RESULTS / profile / "notebooks" if run_id == next(iter(ids)) else folder
        sweep.run_notebook(
            NOTEBOOK, home / NOTEBOOK.name, {"profile": profile, "seed": seed, "run_id": run_id}
        )
        if run_id == _shipped(profile):
            DEFAULT.parent.mkdir(exist_ok=True)
            shutil.copyfile(_trained(profile, run_id), DEFAULT)


def _shipped(profile: str) -> str | None:
    """The run whose weights the package carries: the first, where it carries this profile's."""
    from cpllm.infer import DEFAULT

    return next(iter(run_ids(profile))) if DEFAULT.stem == profile else None


def _trained(profile: str, run_id: str) -> Path:
    return DATA / profile / "weights" / f"{run_id}.safetensors"


def score_runs(profile: str, _fresh: bool = False) -> None:
    """Write predictions.csv of every run whose weights are at hand, and of the baselines.

    Each video is decoded once for all. Rows of splits that are not built here stay as committed.
    """
    from cpllm.infer import load

    start = records.start()
    manifest = DATA / profile / "manifest.csv"
    table = manifests.read(manifest)
    table = table[table["split"] != "train"]
    scorers = {run_id: load(path) for run_id, path in _weights(profile).items()}
    columns = {name: [] for name in (*scorers, *(f"{b}-s0" for b in baselines.BASELINES))}
    watch = partial(_watch, folder=DATA / profile, cfg=preset(profile).video)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        seen = _ahead(pool, watch, table.to_dict("records"))
        for inputs, trivial in track(seen, "scoring videos", len(table), console=console):
            for run_id, scorer in scorers.items():
                columns[run_id].append(scorer.frame_scores(inputs).mean(dtype=np.float64))
            for name, value in trivial.items():
                columns[f"{name}-s0"].append(value)
    for run_id, predictions in columns.items():
        _record(profile, run_id, manifests.prediction_rows(table).assign(prediction=predictions))
    for name in baselines.BASELINES:
        folder = records.run_folder(RESULTS, profile, f"{name}-s0")
        records.write_json(folder / "config.json", {"baseline": name, "profile": profile})
        records.write_json(
            folder / "provenance.json", records.provenance(start, 0, manifests.sha256(manifest))
        )
    run_id, path = next(iter(_weights(profile).items()))
    _repeat(profile, path, dict(zip(table["video"], columns[run_id], strict=True)))


def _weights(profile: str) -> dict[str, Path]:
    """The profile's runs whose weights are here: trained ones, else the package's own."""
    from cpllm.infer import DEFAULT

    found = {run_id: _trained(profile, run_id) for run_id in run_ids(profile)}
    shipped = _shipped(profile)
    if shipped and not found[shipped].exists():
        found[shipped] = DEFAULT
    return {run_id: path for run_id, path in found.items() if path.exists()}


def _repeat(profile: str, weights: Path, scores: Mapping[str, float]) -> None:
    """Score the last two videos by `cpllm score` again; the largest differences, in points.

    In another process, among other videos or alone, and on one core; once for a weights file.
    """
    path, sha256 = RESULTS / profile / "repeatability.json", records.file_hash(weights)
    if path.exists() and json.loads(path.read_text())["weights_sha256"] == sha256:
        return
    names = list(scores)[-2:]
    ways = {"run to run": (names, ""), "across batch sizes": (names[1:], "")}
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


def _ahead(pool: Executor, job: Callable, items: Iterable, ahead: int = 8) -> Iterator:
    """Results in order, those of the next `ahead` items in the making meanwhile."""
    waiting: deque[Future] = deque()
    for item in items:
        waiting.append(pool.submit(job, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _watch(row: dict, folder: Path, cfg: config.Video) -> tuple[Batch, dict[str, float]]:
    """What the model sees of a video, and the trivial baselines of its key frames."""
    frames = video.key_frames(folder / f"{row['video']}.mp4", cfg.key_frames, threads=1)
    trivial = {name: measure(row, frames) for name, measure in baselines.BASELINES.items()}
    return model_inputs(frames, cfg), trivial


def _record(profile: str, run_id: str, predictions: pd.DataFrame) -> None:
    """Write a run's predictions beside those of splits that were not scored now."""
    path = records.run_folder(RESULTS, profile, run_id) / "predictions.csv"
    if path.exists():
        kept = pd.read_csv(path, keep_default_na=False, na_values={"crf": ""})
        kept = kept[~kept["split"].isin(predictions["split"])]
        predictions = pd.concat([kept, predictions]) if len(kept) else predictions
    records.write_csv(path, predictions)


def needed_splits(profile: str, fresh: bool) -> tuple[str, ...]:
    """A clone whose runs are committed needs the test split only; what is built stays built."""
    manifest = DATA / profile / "manifest.csv"
    built = set(pd.read_csv(manifest)["split"]) if manifest.exists() else set()
    if fresh or "train" in built or not all(path.exists() for path in _metrics(profile)):
        return ladder.SPLITS
    return ("test",)


def _metrics(profile: str) -> list[Path]:
    return [records.run_folder(RESULTS, profile, r) / "metrics.json" for r in run_ids(profile)]


def steps(profile: str, fresh: bool) -> tuple[sweep.Step | sweep.Notebook, ...]:
    """The stages in order, each with the files that it depends on and those that it makes."""
    splits = needed_splits(profile, fresh)
    trained = tuple(str(path.relative_to(sweep.ROOT)) for path in _metrics(profile))
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
        sweep.Step("train", train_runs, (), trained, once=True),
        sweep.Step("score", score_runs, (manifest, *weights, *judges), (predictions,)),
        sweep.NOTEBOOKS["10_data"],
        *(sweep.NOTEBOOKS[name] for name in ("12_lint", "30_table3", "60_evaluate", "70_claims")),
    )


def reproduce(profile: str, fresh: bool) -> None:
    """Redo what is not up to date of a profile, up to its executed notebooks."""
    preset(profile)
    sweep.reproduce(profile, fresh, steps(profile, fresh))
