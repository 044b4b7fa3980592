"""What a profile's results are made of: steps and notebooks, redone where they are out of date."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from cpllm import notebooks, records
from cpllm.notebooks import ROOT, console, fingerprint

DATA, RESULTS = ROOT / "data", ROOT / "results"


@dataclass(frozen=True)
class Notebook:
    """A notebook of the book. Globs are relative to the checkout; `{profile}` is filled in."""

    name: str  # notebooks/<name>.ipynb -> results/<profile>/notebooks/<name>.ipynb
    inputs: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)  # beside `profile`
    last: bool = False  # not before the others are done: it reads what they write
    apart: bool = False  # times this machine, or fetches: executed by `cpllm benchmark` alone


@dataclass(frozen=True)
class Step:
    """Work outside of notebooks: `run(profile, fresh)`, redone when an input's content changed."""

    name: str
    run: Callable[[str, bool], Any]
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()  # each glob must match something
    once: bool = False  # only where an output is missing, or FRESH=1


MADE = ("cpllm/config.py", *(f"cpllm/data/{name}.py"
                             for name in ("scenes", "families", "ladder", "encoding")))
RUNS = (*(f"results/{{profile}}/runs/*/{name}"
          for name in ("config.json", "predictions.csv", "answers.csv")),
        "results/{profile}/videos.csv", "results/{profile}/outside/*.csv")
TABLE = (*RUNS, "results/paper.csv", "cpllm/metrics.py", "cpllm/report.py", "cpllm/exhibits.py")
FIGURE = ("data_manifests/{profile}/test.csv", "cpllm/figures.py", "cpllm/metrics.py")
MODEL = (*FIGURE, "cpllm/weights/*", "cpllm/infer.py", "cpllm/judge.py", "cpllm/model/*.py")
TOWERS = tuple(f"cpllm/{name}.py" for name in (
    "pretrain", "losses", "data/annotate", "data/batches", "data/families", "data/pictures",
    "data/scenes", "data/text", "model/siglip", "model/gemma", "model/layers"))  # pretrain.CODE

NOTEBOOKS = {
    n.name: n
    for n in (
        Notebook("10_data", ("data_manifests/{profile}/*", *MADE)),
        Notebook("12_lint", ("data_manifests/{profile}/*", "cpllm/data/lint.py", *MADE)),
        Notebook("15_pretrain", TOWERS),
        Notebook("20_train"),
        Notebook("24_figure1", (*FIGURE, *RUNS)),
        Notebook("25_figure2", (*MODEL, *RUNS)),
        Notebook("26_figure3", MODEL),
        Notebook("27_figure4", MODEL),
        *(Notebook(name, TABLE) for name in (
            "28_table1", "29_table2", "30_table3", "31_table4a", "32_table4b", "33_table4c",
            "34_table4d")),
        Notebook("40_figure5", MODEL),
        Notebook("41_figure6", MODEL),
        Notebook("42_text", (*MODEL, "results/{profile}/runs/*/answers.csv")),
        Notebook("43_heatmap", (*MODEL, "cpllm/damage.py")),
        Notebook("50_ablation", TABLE),
        Notebook("60_evaluate", (*RUNS, "results/{profile}/repeatability.json", "cpllm/metrics.py",
                                 "cpllm/evaluation.py", "cpllm/calibrate.py", "cpllm/report.py")),
        Notebook("70_claims", (*RUNS, "results/{profile}/tables/*.csv", "results/paper.csv",
                               "cpllm/metrics.py", "cpllm/claims.py", "cpllm/report.py"),
                 last=True),
        Notebook("75_use", MODEL),
        Notebook("80_benchmark_towers", apart=True),
        Notebook("81_benchmark_encodes", apart=True),
        Notebook("82_benchmark_batches", apart=True),
        Notebook("83_benchmark_step", apart=True),
        Notebook("84_benchmark_bootstrap", apart=True),
        Notebook("85_count_flops", apart=True),
        Notebook("86_benchmark_score", ("cpllm/weights/*",), apart=True),
        Notebook("87_benchmark_footage", ("cpllm/weights/*", "cpllm/footage.py"), apart=True),
        Notebook("88_benchmark_frames", ("cpllm/weights/*", "cpllm/footage.py"), apart=True),
    )
}
"""The executed chapters in reading order."""


def current(book: Notebook, profile: str, root: Path = ROOT) -> bool:
    """Whether a profile's executed notebook is made of today's source and inputs.

    One that trained a run is so while the run's record is of its commit: a later training isn't
    this notebook's.
    """
    name = f"{book.name}.ipynb"
    made = notebooks.read(root / "results" / profile / "notebooks" / name)
    record = notebooks.provenance_of(made)
    given = record.get("parameters", {})
    if run := given.get("run_id"):
        folder = records.run_folder(root / "results", profile, run)
        if records.read_json(folder / "provenance.json").get("commit") != record.get("commit"):
            return False
    return record.get("fingerprint") == fingerprint(
        root / "notebooks" / name, given, files(book.inputs, profile, root))


@contextlib.contextmanager
def alone(*names: str, root: Path | None = None) -> Iterator[None]:
    """Hold what these names stand for, as a profile, against other processes on this machine.

    RuntimeError at once where another holds it. The lock ends with its process, however that ends.
    """
    path = (root or ROOT) / ".cache" / "locks" / "-".join(names)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RuntimeError(f"{' '.join(names)}: process {file.read() or 'unknown'} is working "
                               "on it; wait until it is done, or end it") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def reproduce(
    profile: str, fresh: bool, steps: Sequence[Step | Notebook], root: Path = ROOT
) -> list[str]:
    """Redo what is not up to date, in order; returns the names of what ran.

    `fresh` redoes everything. Where a step had to run, as on a fresh clone, the notebooks that
    follow it and read results run again as well, so that a reader sees them made here.
    """
    done: list[str] = []
    worked = False
    for kind, group in groupby(steps, lambda s: getattr(s, "last", False) or type(s)):
        if kind is Step:
            ran = [step.name for step in group if _redo_step(step, profile, fresh, root)]
            worked = worked or bool(ran)
        else:
            ran = _redo_notebooks(list(group), profile, fresh, worked, root)
        done += ran
    return done


def _redo_notebooks(
    books: list[Notebook], profile: str, fresh: bool, worked: bool, root: Path
) -> list[str]:
    """Execute those that are out of date side by side, one on each core, the longest first."""
    jobs = []
    for book in books:
        source = root / "notebooks" / f"{book.name}.ipynb"
        output = root / "results" / profile / "notebooks" / source.name
        parameters = {"profile": profile, **book.parameters}
        inputs = files(book.inputs, profile, root)
        anyway = fresh or (worked and any(glob.startswith("results/") for glob in book.inputs))
        kept = not anyway and notebooks.up_to_date(output, source, parameters, inputs)
        if kept:
            console.print(f"{book.name}: up to date", highlight=False)
        else:
            jobs.append((source, output, parameters, inputs))
    if not jobs:
        return []

    def run(job: tuple) -> None:
        task = bar.add_task(job[0].stem, total=None, line="")
        notebooks.execute(*job, tell=lambda line: bar.update(task, line=line))
        bar.remove_task(task)
        bar.console.print(f"{job[0].stem}: done", highlight=False)

    # Papermill goes into the notebook's folder and back, for all threads: be there before.
    with contextlib.chdir(root / "notebooks"), notebooks.progress(None) as bar, \
            ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(run, sorted(jobs, key=lambda job: -_duration(job[1]))))
    return [source.stem for source, *_ in jobs]


def _duration(output: Path) -> float:
    """Seconds that a notebook took the last time; without one endless."""
    if not output.exists():
        return float("inf")
    return notebooks.read(output)["metadata"].get("cpllm", {}).get("duration_s", 0)


def _redo_step(step: Step, profile: str, fresh: bool, root: Path) -> bool:
    stamp = root / ".cache" / "reproduce" / profile / (step.name.replace(" ", "-") + ".sha256")
    there = all(files((glob,), profile, root) for glob in step.outputs)
    before = fingerprint(None, {"step": step.name}, files(step.inputs, profile, root))
    known = stamp.exists() and stamp.read_text() == before
    if there and not fresh and (step.once or known):
        console.print(f"{step.name}: up to date", highlight=False)
        return False
    console.print(f"{step.name} …", highlight=False)
    step.run(profile, fresh)
    records.write(stamp, before)
    console.print(f"{step.name}: done", highlight=False)
    return True


def files(globs: Iterable[str], profile: str, root: Path) -> list[Path]:
    """What a notebook's or a step's globs match, in order."""
    found = {p for g in globs for p in root.glob(g.format(profile=profile)) if p.is_file()}
    return sorted(found)
