"""What a profile's results are made of: data → trained runs → scores → notebooks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import track

from cpllm import baselines, config, records, sweep
from cpllm.data import ladder, manifests, video
from cpllm.data.batches import Batch, model_inputs

if TYPE_CHECKING:  # cpllm.infer imports JAX, which rendering and rebuilding tables don't need
    from cpllm.infer import Scorer

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
    start = records.start()
    manifest = DATA / profile / "manifest.csv"
    table = manifests.read(manifest)
    table = table[table["split"] != "train"]
    scorers = _scorers(profile)
    columns = {name: [] for name in (*scorers, *(f"{b}-s0" for b in baselines.BASELINES))}
    watch = partial(_watch, folder=DATA / profile, cfg=preset(profile).video)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        scenes = [rows.to_dict("records") for _, rows in table.groupby("scene", sort=False)]
        for rows in track(scenes, "scoring scenes", console=console):
            for inputs, trivial in pool.map(watch, rows):
                for run_id, scorer in scorers.items():
                    columns[run_id].append(scorer.frame_scores(inputs).mean(dtype=np.float64))
                for name, value in trivial.items():
                    columns[f"{name}-s0"].append(value)
    rows = pd.concat([rows for _, rows in table.groupby("scene", sort=False)])
    for run_id, predictions in columns.items():
        _record(profile, run_id, manifests.prediction_rows(rows).assign(prediction=predictions))
    for name in baselines.BASELINES:
        folder = records.run_folder(RESULTS, profile, f"{name}-s0")
        records.write_json(folder / "config.json", {"baseline": name, "profile": profile})
        records.write_json(
            folder / "provenance.json", records.provenance(start, 0, manifests.sha256(manifest))
        )


def _scorers(profile: str) -> dict[str, Scorer]:
    """The profile's runs whose weights are here: trained ones, else the package's own."""
    from cpllm.infer import DEFAULT, load

    found = {run_id: _trained(profile, run_id) for run_id in run_ids(profile)}
    shipped = _shipped(profile)
    if shipped and not found[shipped].exists():
        found[shipped] = DEFAULT
    return {run_id: load(path) for run_id, path in found.items() if path.exists()}


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
        *(sweep.NOTEBOOKS[name] for name in ("12_lint", "30_table3", "60_evaluate", "70_claims",
                                            "80_benchmark_towers", "85_count_flops")),
    )


def reproduce(profile: str, fresh: bool) -> None:
    """Redo what is not up to date of a profile, up to its executed notebooks."""
    preset(profile)
    sweep.reproduce(profile, fresh, steps(profile, fresh))
