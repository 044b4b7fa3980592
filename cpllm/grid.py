"""Grids of training runs: a YAML of rows → papermill runs of the training notebook, in parallel.

A run is a row of a grid with a seed. It is done while its configuration and data are those that it
recorded; if only the training code has changed since, it is kept and called "older code", unless
another seed of its row, trained by both codes, came out the same.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from cpllm import config, notebooks, records
from cpllm.data import ladder, manifests, scenes

NOTEBOOK = "20_train.ipynb"
EQUAL = "equal_code.csv"
MOST = 1000
"""Combinations of a grid's axes: more are a slip of the pen, or take the memory."""

DONE, OLDER, CHANGED, MISSING = "done", "older code", "changed", "not run"
console = Console(stderr=True)


class GridError(ValueError):
    """A grid that can't be planned, or whose runs failed; names the grid or the runs."""


@dataclass(frozen=True)
class Grid:
    """What notebooks/sweeps/<name>.yaml may hold.

    rows: name → flat changes for `configure`; axes: every combination of their values makes a row
    out of each row; include: grids whose rows come first; only: the rows that a profile trains,
    where that is not all of them; profiles: what every row changes at a profile; sets: those that
    its runs are scored on, where that is not every one.
    """

    about: str
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    recipe: str = "table"
    axes: dict[str, list[Any]] = field(default_factory=dict)
    include: tuple[str, ...] = ()
    only: dict[str, list[str]] = field(default_factory=dict)
    profiles: dict[str, dict[str, Any]] = field(default_factory=dict)
    sets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """One training run: its name, what the notebook is told, what that makes, its grid's sets."""

    run_id: str
    parameters: dict[str, Any]
    cfg: config.Config
    sets: tuple[str, ...] = ()


def configure(profile: str, recipe: str, seed: int, changes: dict[str, Any]) -> config.Config:
    """A profile's configuration under a recipe ("preset" or "table") with flat changes.

    `kind` and `mechanism` choose a compared model (`config.rival`), all else goes to
    `config.replace`. ValueError names what is unknown.
    """
    if recipe not in config.RECIPES:
        raise ValueError(f"recipe: expected one of {', '.join(config.RECIPES)}; got {recipe!r}")
    cfg, changes = config.RECIPES[recipe](profile), dict(changes)
    if kind := changes.pop("kind", None):
        cfg = config.rival(cfg, kind, changes.pop("mechanism", True))
    flat = {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()}
    return config.replace(cfg, seed=seed, **flat)


def read(name: str, profile: str, root: Path) -> list[Run]:
    """The runs of a grid at a profile, one for each row and seed; GridError names a fault."""
    try:
        grid = _load(name, root)
        here = grid.profiles.get(profile, {})
        rows = {run: (grid.recipe, here | changes) for run, changes in _rows(grid)}
        runs = [run for other in grid.include for run in read(other, profile, root)]
        chosen = grid.only.get(profile, list(rows))
        if unknown := set(chosen) - set(rows):
            raise ValueError(f"only: no row {', '.join(sorted(unknown))}")
        if unknown := set(grid.sets) - set(scenes.SETS):
            raise ValueError(f"sets: no set {', '.join(sorted(unknown))}; known are "
                             f"{', '.join(scenes.SETS)}")
        return runs + [replace(_run(row, *rows[row], seed, profile), sets=grid.sets)
                       for row in chosen for seed in config.preset(profile).seeds]
    except GridError:
        raise
    except (ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise GridError(f"{name}.yaml: {' '.join(str(error).split())}") from error


def status(run: Run, folder: Path, data_hash: str | None) -> str:
    """Whether a run's folder is there, made with this configuration, these data and this code."""
    made = records.read_json(folder / "provenance.json")
    if not made:
        return MISSING
    try:
        same = config.from_dict(records.read_json(folder / "config.json")) == run.cfg
    except ValueError:  # a field of its configuration is no more
        same = False
    if not same or data_hash not in (None, made["manifest_sha256"]):
        return CHANGED
    return DONE if made.get("code_sha256") in codes(folder) else OLDER


def codes(folder: Path) -> set[str]:
    """Today's code, and older ones that train this folder's row to the same bits (`EQUAL`)."""
    known, path = {records.code_sha256()}, folder.parent.with_name(EQUAL)
    if path.exists():
        seen = pd.read_csv(path)
        for r in seen[seen["row"] == row_of(folder.name)][::-1].itertuples():
            if r.newer in known:
                known.add(r.older)
    return known


def row_of(run_id: str) -> str:
    """The row of a grid that a run is a seed of."""
    return run_id.rpartition("-s")[0]


def plan(runs: Sequence[Run], profile: str, root: Path) -> pd.DataFrame:
    """A row a run: `run`, `status`, `seconds` that it took or is likely to take, by its like."""
    seen = {clips: _data_hash(clips) for clips in {_clips(r, root) for r in runs}}
    folder = partial(records.run_folder, root / "results", profile)
    table = pd.DataFrame({
        "run": [r.run_id for r in runs],
        "status": [status(r, folder(r.run_id), seen[_clips(r, root)]) for r in runs],
        "seconds": [records.read_json(folder(r.run_id) / "provenance.json").get("duration_s")
                    for r in runs],
    }).astype({"seconds": float})
    like = table.groupby(table["run"].map(row_of))["seconds"]
    table["seconds"] = table["seconds"].fillna(like.transform("median"))
    likely = pd.Series([_likely(r.cfg, profile, root) for r in runs], table.index, float)
    return table.assign(seconds=table["seconds"].fillna(likely))


def _likely(cfg: config.Config, profile: str, root: Path) -> float:
    """Median seconds, for as many steps, of the recorded runs that are most like it; else NaN."""
    found = {}
    for file in (root / "results" / profile / "runs").glob("*/provenance.json"):
        made = records.read_json(file.with_name("config.json"))
        if steps := made.get("train", {}).get("steps"):
            like = steps == cfg.train.steps, made["model"].get("kind", "cp-llm") == cfg.model.kind
            seconds = records.read_json(file)["duration_s"] * cfg.train.steps / steps
            found.setdefault(like, []).append(seconds)
    return float(np.median(found[max(found)])) if found else np.nan


def _clips(run: Run, root: Path) -> Path:
    return config.clips(run.cfg, root / "data" / run.cfg.profile)


def _data_hash(clips: Path) -> str | None:
    """Of what runs are trained on; None where that is not built."""
    manifest = clips / "manifest.csv"
    rows = manifests.read(manifest) if manifest.exists() else pd.DataFrame({"split": []})
    if not {*manifests.TRAINING} <= {*rows["split"]}:
        return None
    return manifests.sha256(rows, manifests.TRAINING)


def execute(runs: Iterable[Run], profile: str, root: Path, workers: int | None = None,
            scheduler: str | None = None) -> dict[str, Exception]:
    """Train the runs side by side, behind one overview; the failures by the run's name.

    The executed notebooks, failed ones with their traceback, go to data/<profile>/notebooks.
    """
    jobs, failed = [(_train, run, profile, root) for run in runs], {}
    before = {run.run_id: _outcome(run, profile, root) for _, run, *_ in jobs}
    with _overview() as bar:
        total = bar.add_task("runs", total=len(jobs), line="")
        tasks = {}

        def listen(event: tuple[float, dict]) -> None:
            name = event[1]["run"]
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=None, line="")
            bar.update(tasks[name], line=event[1]["line"])

        for run, result in ladder.spread(jobs, workers, scheduler, listen):
            if isinstance(result, Exception):
                failed[run.run_id] = result
            else:
                _compare(run, profile, root, before[run.run_id])
            news = f"failed: {result}" if run.run_id in failed else f"{result:.0f} s"
            bar.console.print(f"{run.run_id}: {news}", highlight=False, markup=False)
            if run.run_id in tasks:
                bar.remove_task(tasks.pop(run.run_id))
            bar.advance(total)
    return failed


def _outcome(run: Run, profile: str, root: Path) -> tuple[str, list]:
    """The code that trained a run, and all else that its outcome is known by."""
    folder = records.run_folder(root / "results", profile, run.run_id)
    made, told, came = (records.read_json(folder / f"{name}.json")
                        for name in ("provenance", "config", "metrics"))
    with suppress(ValueError):  # none, or one with a field that is no more
        told = config.from_dict(told).to_dict()  # with those that came since
    return made.get("code_sha256", ""), [made.get("manifest_sha256"), told, came]


def _compare(run: Run, profile: str, root: Path, before: tuple[str, list]) -> None:
    """Record in `EQUAL` that another code came to the same losses and measures, in all digits."""
    (older, was), (newer, now) = before, _outcome(run, profile, root)
    if was == now and older not in ("", newer):
        path = root / "results" / profile / EQUAL
        line = {"row": row_of(run.run_id), "older": older, "newer": newer, "seen_in": run.run_id}
        seen = pd.read_csv(path).to_dict("records") if path.exists() else []
        records.write_csv(path, pd.DataFrame([*(r for r in seen if r != line), line]))


def forget(run_id: str, profile: str, root: Path) -> None:
    """Remove what says that a run is done, and its checkpoints, so that it is trained anew."""
    data, folder = root / "data" / profile, records.run_folder(root / "results", profile, run_id)
    shutil.rmtree(records.checkpoints(data, run_id), ignore_errors=True)
    for made in (folder / "predictions.csv", folder / "answers.csv", folder / "metrics.json",
                 folder / "provenance.json", data / "weights" / f"{run_id}.safetensors"):
        made.unlink(missing_ok=True)


def show(table: pd.DataFrame, again: Sequence[str], workers: int) -> None:
    """The plan and its cost, in words."""
    for row in table.itertuples():
        does = "train" if row.run in again else "keep"
        cost = "unknown" if np.isnan(row.seconds) else f"{row.seconds:.0f} s"
        console.print(f"{does:6} {row.run:24} {row.status:11} {cost}", highlight=False)
    seconds = table["seconds"][table["run"].isin(again)]
    cost = ("no earlier run says how long" if seconds.isna().any() else
            f"about {seconds.sum() / workers / 60:.0f} minutes with {workers} at once")
    console.print(f"{len(again)} of {len(table)} runs to train: {cost if again else 'nothing'}")


def names(root: Path) -> list[str]:
    """The grids that there are."""
    return sorted(path.stem for path in (root / "notebooks" / "sweeps").glob("*.yaml"))


def default_ids(profile: str) -> list[str]:
    """The default model's runs, one a seed; the first one's weights are the package's."""
    return [f"default-s{seed}" for seed in config.preset(profile).seeds]


def sets(profile: str, root: Path) -> dict[str, tuple[str, ...]]:
    """The sets that runs are scored on, where their grid has not all."""
    runs = (run for name in names(root) for run in read(name, profile, root))
    return {run.run_id: run.sets for run in runs if run.sets}


def _load(name: str, root: Path) -> Grid:
    path = root / "notebooks" / "sweeps" / f"{name}.yaml"
    if not path.exists():
        raise GridError(f"no grid {name}; known are {', '.join(names(root))}")
    return config.from_dict(yaml.safe_load(path.read_text()), Grid, "grid")


def _rows(grid: Grid) -> Iterable[tuple[str, dict[str, Any]]]:
    """(name, changes): `single` and, under axes, `single-lora_rank4`."""
    if (n := prod(map(len, grid.axes.values()))) > MOST:
        raise ValueError(f"axes: expected at most {MOST:,} combinations, got {n:,}")
    for (name, changes), values in product(grid.rows.items(), product(*grid.axes.values())):
        at = dict(zip(grid.axes, values, strict=True))
        parts = [f"-{key.rpartition('.')[2]}{value}" for key, value in at.items()]
        yield name + re.sub(r"[^\w.-]+", "_", "".join(parts)), (changes or {}) | at


def _run(row: str, recipe: str, changes: dict[str, Any], seed: int, profile: str) -> Run:
    run_id = f"{row}-s{seed}"
    records.run_name(run_id)
    told = {"profile": profile, "seed": seed, "run_id": run_id, "recipe": recipe,
            "changes": json.dumps(changes)}
    return Run(run_id, told, configure(profile, recipe, seed, changes))


def _train(run: Run, profile: str, root: Path) -> float:
    """Train one run, maybe as a dask worker's task; the seconds that it took."""
    data, folder = root / "data" / profile, records.run_folder(
        root / "results", profile, run.run_id)
    kept = records.checkpoints(data, run.run_id)
    began = kept.with_name(f"{run.run_id}.json")
    now = {"config": json.dumps(run.cfg.to_dict()), "code_sha256": records.code_sha256(),
           "manifest_sha256": _data_hash(_clips(run, root))}
    if (folder / "provenance.json").exists() or records.read_json(began) != now:
        forget(run.run_id, profile, root)  # else it goes on where it stopped
        records.write_json(began, now)
    output = data / "notebooks" / f"{run.run_id}.ipynb"
    with _one_core() as worker, _surroundings(data.parent / "compiled"):
        tell = partial(_tell, worker, run.run_id)
        tell("starts")
        notebooks.execute(root / "notebooks" / NOTEBOOK, output, run.parameters, tell=tell)
    if not (made := records.read_json(folder / "provenance.json")):
        raise GridError("stopped before its last step; the same command goes on from its last "
                        f"checkpoint, in {kept}")
    return made["duration_s"]


@contextmanager
def _one_core() -> Iterator[Any]:
    """Keep to one core, as other workers do to theirs; yields the dask worker, if this is one's.

    XLA then starts one thread: a run's numbers depend neither on how many cores there are nor on
    what else trains.
    """
    from distributed import get_worker

    try:
        worker, name = (worker := get_worker()), str(worker.name)
    except ValueError:
        worker, name = None, "0"
    cores = sorted(before := os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[(int(name) if name.isdigit() else os.getpid()) % len(cores)]})
    try:
        yield worker
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def _surroundings(folder: Path) -> Iterator[None]:
    """What is started meanwhile keeps its compiled programs in a folder, if told of no other.

    And its memory: dask has its workers give back what is freed, and each step fetched its buffers
    anew: 11,565 page faults in the place of 388, and 16% of its time with the system, not 6%. In
    large pages, too, as under make: the runs of a bare `cpllm sweep` take no longer.
    """
    before = dict(os.environ)
    os.environ.pop("MALLOC_TRIM_THRESHOLD_", None)
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _tell(worker: Any, run_id: str, line: str) -> None:
    if worker:
        worker.log_event("progress", {"run": run_id, "line": line})


def _overview() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[line]}", markup=False), console=console,
    )
