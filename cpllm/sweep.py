"""Notebooks executed by papermill with their provenance, and what a profile's results are made of.

An executed notebook is up to date while the hash of its source, its parameters and its input
files is the one that it carries; times on disk play no part, so a fresh clone knows too.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import platform
import re
import socket
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cpllm import atomic, records

ROOT = records.ROOT.resolve()
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
MAGIC = re.compile(r"(?m)^\s*[%!].*$")
"""A line that IPython understands and Python doesn't."""

BINARY = ("image/png", "image/jpeg", "image/gif", "video/mp4", "application/pdf")
"""Encoded outputs: a path can't stand in them, and a chance match in base64 would break them."""

console = Console()


class NotebookError(RuntimeError):
    """A notebook that can't be run as asked, or that failed; names it and the cell."""


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


DATA = ("cpllm/config.py", "cpllm/data/scenes.py", "cpllm/data/families.py", "cpllm/data/ladder.py")
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
        Notebook("10_data", ("data_manifests/{profile}/*", *DATA)),
        Notebook("12_lint", ("data_manifests/{profile}/*", "cpllm/data/lint.py", *DATA)),
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
        Notebook("88_benchmark_frames", ("cpllm/weights/*",), apart=True),
    )
}
"""The executed chapters in reading order."""


# --- one notebook ---------------------------------------------------------------------------


def run_notebook(
    source: Path, output: Path, parameters: Mapping[str, Any], inputs: Iterable[Path] = (),
    tell: Callable[[str], Any] | None = None,
) -> None:
    """Execute `source` with `parameters` in this interpreter's environment; write `output` whole.

    Cells run in the notebook's own folder, as they do in Jupyter. A failure leaves the partial
    notebook in `<name>.failed.ipynb` beside `output`, and an older `output` as it was. `tell` gets
    the lines that a progress bar else shows.
    """
    import nbformat
    import papermill
    from traitlets.config import Config

    source, output = Path(source), Path(output)
    notebook = nbformat.read(source, as_version=4)
    notebook.metadata["kernelspec"] = dict(KERNEL)
    _refuse_unknown(source.name, notebook, parameters)
    record = provenance(source, parameters, inputs)
    failed = output.with_suffix(".failed.ipynb")
    output.parent.mkdir(parents=True, exist_ok=True)
    cells = sum(c.cell_type == "code" for c in notebook.cells) + bool(parameters)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cpllm-") as scratch, _progress(tell) as bar:
        partial = Path(scratch) / source.name
        task = bar.add_task(source.stem, total=cells, line="")
        now = {"line": ""}
        say = tell or (lambda line: bar.update(task, line=line))

        def starts(cell: Any, cell_index: int) -> None:
            del cell_index
            now["line"] = next((s for s in cell.source.splitlines() if s.strip()), "")
            say(now["line"])

        # Unix sockets: papermill's TCP ports can be taken by another kernel before ours binds them.
        tail = _Tail(say)
        ipc = {"transport": "ipc", "ip": str(Path(scratch) / "kernel")}
        try:
            tail.attach()
            executed = papermill.execute_notebook(
                notebook, str(partial), parameters=dict(parameters), kernel_name=KERNEL["name"],
                cwd=str(source.resolve().parent), progress_bar=False, log_output=True,
                config=Config({"KernelManager": ipc}),
                extra_arguments=["--log-level=50"],  # else each kernel reports its own shutdown
                on_cell_start=starts,
                on_cell_executed=lambda **_: bar.advance(task),
            )
        except Exception as error:
            if partial.exists():
                _write(nbformat.read(partial, as_version=4), failed, record, begun)
            raise NotebookError(
                f"{source.name}: the cell that begins {now['line']!r} failed: "
                f"{_reason(error)}\nThe notebook as far as it came: {_shown(failed)}"
            ) from error
        finally:
            tail.detach()
    _write(executed, output, record, begun)
    failed.unlink(missing_ok=True)


def up_to_date(
    output: Path, source: Path, parameters: Mapping[str, Any], inputs: Iterable[Path] = ()
) -> bool:
    """Whether `output` was made from this source, these parameters and these inputs' contents."""
    if not Path(output).exists():
        return False
    made = provenance_of(read(output))
    return made.get("fingerprint") == fingerprint(Path(source), parameters, inputs)


def provenance_of(notebook: Mapping[str, Any]) -> dict[str, Any]:
    """How `run_notebook` made what `read` gave: {} where cells were changed by hand since.

    Jupyter keeps a notebook's metadata, whoever executes it.
    """
    record, parts = notebook["metadata"].get("cpllm", {}), {True: [], False: []}
    for cell in notebook["cells"]:
        parts["injected-parameters" in cell["metadata"].get("tags", [])].append(cell)
    same = (record.get("source_sha256") == _cells_hash(parts[False])
            and record.get("parameters") == parameters_of(parts[True]))
    return record if same else {}


def parameters_of(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A notebook's parameters with the values that it ran with: its own, and those set outside.

    What isn't a plain value, as a reader may write it, is its source; magics count for nothing.
    """
    found = {}
    for tag in ("parameters", "injected-parameters"):
        for cell in cells:
            if tag in cell["metadata"].get("tags", []):
                found |= {node.targets[0].id: _value(node.value)
                          for node in ast.parse(MAGIC.sub("", cell["source"])).body
                          if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)}
    return found


def _value(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


def current(book: Notebook, profile: str, root: Path = ROOT) -> bool:
    """Whether a profile's executed notebook is made of today's source and inputs.

    One that trained a run is so while the run's record is of its commit: a later training isn't
    this notebook's.
    """
    name = f"{book.name}.ipynb"
    record = provenance_of(read(root / "results" / profile / "notebooks" / name))
    given = record.get("parameters", {})
    if run := given.get("run_id"):
        folder = records.run_folder(root / "results", profile, run)
        if records.read_json(folder / "provenance.json").get("commit") != record.get("commit"):
            return False
    return record.get("fingerprint") == fingerprint(
        root / "notebooks" / name, given, files(book.inputs, profile, root))


def read(path: Path) -> dict[str, Any]:
    """A notebook's plain values, each cell's source one string.

    Not by nbformat, whose import costs seconds, where nothing but reading is asked.
    """
    notebook = json.loads(Path(path).read_text())
    if notebook.get("nbformat") != 4:
        raise NotebookError(f"{path}: expected nbformat 4, came {notebook.get('nbformat')}")
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"])
    return notebook


def fingerprint(source: Path | None, parameters: Mapping[str, Any], inputs: Iterable[Path]) -> str:
    """SHA-256 over the source's cells, the parameters and the inputs' names and contents."""
    whole = {
        "source": _source_hash(source) if source else None,
        "parameters": dict(sorted(parameters.items())),
        "inputs": [[_shown(p), records.file_hash(p)] for p in sorted(set(inputs))],
    }
    return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()


def provenance(
    source: Path, parameters: Mapping[str, Any], inputs: Iterable[Path]
) -> dict[str, Any]:
    """What an executed notebook carries under `metadata.cpllm`."""
    commit, dirty = records.git_state()
    names = ("jax", "flax", "numpy", "papermill")
    return {
        "source": source.name,
        "source_sha256": _source_hash(source),
        "parameters": dict(parameters),
        "fingerprint": fingerprint(source, parameters, inputs),
        "data_sha256": _data_hash(parameters.get("profile")),
        "commit": commit,
        "dirty": dirty,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": records.device(),
        "versions": {"python": platform.python_version()} | {n: version(n) for n in names},
    }


def settle(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    r"""A cell's outputs as a terminal leaves them: streams joined, bars drawn once, no colours.

    >>> settle([{"output_type": "stream", "name": "stderr", "text": t} for t in ("1/2", "\r2/2")])
    [{'output_type': 'stream', 'name': 'stderr', 'text': '2/2'}]
    """
    done: list[dict[str, Any]] = []
    for out in outputs:
        if out["output_type"] != "stream":
            done.append(out)
        elif done and done[-1].get("name") == out["name"]:
            done[-1]["text"].append("".join(out["text"]))
        else:
            done.append({**out, "text": ["".join(out["text"])]})
    for out in done:
        if out["output_type"] == "stream":
            text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", "".join(out["text"]))
            lines = (line.rstrip("\r").rsplit("\r")[-1].rstrip() for line in text.split("\n"))
            out["text"] = "\n".join(lines)
    return [out for out in done if out["output_type"] != "stream" or out["text"].strip()]


def scrub(node: Any) -> Any:
    """Copy of a notebook's plain values without this machine's folders, name and keys.

    >>> scrub({"text": f"{ROOT}/results/paper.csv"})
    {'text': './results/paper.csv'}
    """
    swaps = _machine_names()

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            for pattern, word in swaps:
                value = pattern.sub(word, value)
            return value
        if isinstance(value, list):
            return [clean(v) for v in value]
        if isinstance(value, dict):
            return {k: v if k in BINARY else clean(v) for k, v in value.items()}
        return value

    return clean(node)


# --- a profile ------------------------------------------------------------------------------


@contextlib.contextmanager
def alone(*names: str, root: Path = ROOT) -> Iterator[None]:
    """Hold what these names stand for, as a profile, against other processes on this machine.

    RuntimeError at once where another holds it. The lock ends with its process, however that ends.
    """
    path = root / ".cache" / "locks" / "-".join(names)
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
        kept = not anyway and up_to_date(output, source, parameters, inputs)
        if kept:
            console.print(f"{book.name}: up to date", highlight=False)
        else:
            jobs.append((source, output, parameters, inputs))
    if not jobs:
        return []

    def run(job: tuple) -> None:
        task = bar.add_task(job[0].stem, total=None, line="")
        run_notebook(*job, tell=lambda line: bar.update(task, line=line))
        bar.remove_task(task)
        bar.console.print(f"{job[0].stem}: done", highlight=False)

    # Papermill goes into the notebook's folder and back, for all threads: be there before.
    with contextlib.chdir(root / "notebooks"), _progress(None) as bar, \
            ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(run, sorted(jobs, key=lambda job: -_duration(job[1]))))
    return [source.stem for source, *_ in jobs]


def _duration(output: Path) -> float:
    """Seconds that a notebook took the last time; without one endless."""
    return read(output)["metadata"].get("cpllm", {}).get("duration_s", 0) if output.exists() \
        else float("inf")


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


# --- helpers --------------------------------------------------------------------------------


class _Tail(logging.Handler):
    """Shows the last line that a running cell printed; papermill passes them on as log records."""

    logger = logging.getLogger("papermill")

    def __init__(self, show: Callable[[str], Any]):
        super().__init__()
        self.show, self.kept = show, (self.logger.level, self.logger.propagate)

    def emit(self, record: logging.LogRecord) -> None:
        if lines := record.getMessage().strip().splitlines():
            self.show(lines[-1])

    def attach(self) -> None:
        """Listen, and keep the lines off the terminal."""
        self.logger.addHandler(self)
        self.logger.setLevel(logging.INFO)
        self.logger.propagate = False

    def detach(self) -> None:
        """Leave the logger as it was."""
        self.logger.removeHandler(self)
        self.logger.setLevel(self.kept[0])
        self.logger.propagate = self.kept[1]


def _refuse_unknown(name: str, notebook: Any, parameters: Mapping[str, Any]) -> None:
    """Papermill itself only warns."""
    import papermill

    known = papermill.inspect_notebook(notebook)
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise NotebookError(
            f"{name}: unknown parameter {', '.join(unknown)}; its parameters cell has "
            f"{', '.join(known) or 'none'}"
        )


def _write(notebook: Any, path: Path, record: dict[str, Any], begun: float) -> None:
    """Scrubbed, with its provenance, and whole."""
    import nbformat

    plain = scrub(notebook)
    for cell in plain["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = settle(cell["outputs"])
    notebook = nbformat.from_dict(plain)
    notebook.metadata.pop("papermill", None)
    notebook.metadata["kernelspec"] = dict(KERNEL)
    notebook.metadata["cpllm"] = scrub(
        record | {"duration_s": round(time.monotonic() - begun, 1)})
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell["id"] = "injected-parameters"  # papermill's is random
    with atomic.whole(path) as part:
        part.write_text(nbformat.writes(notebook) + "\n")


def _machine_names() -> list[tuple[re.Pattern[str], str]]:
    """What to look for and what stands there instead: keys, then the longest folder first."""
    folders = {
        str(ROOT): ".", str(Path.home()): "~", tempfile.gettempdir(): "<tmp>",
        sys.prefix: "<venv>", sysconfig.get_path("stdlib"): "<python>",
    }
    cell = [(re.compile(r"(?:/[\w.-]+)*/ipykernel_\d+/\d+\.py"), "<cell>")]
    paths = [
        (re.compile(rf"(?<![\w.-]){re.escape(f)}(?![\w-])"), word)
        for f, word in sorted(folders.items(), key=lambda item: -len(item[0])) if len(f) > 1
    ]
    host = socket.gethostname()
    # A name of letters alone is a word, which a table may hold ("train"): left as it is.
    named = [] if host.isalpha() or not host else [
        (re.compile(rf"(?<![\w-]){re.escape(host)}(?![\w-])"), "<host>")]
    keys = [(re.compile(re.escape(value)), "<key>") for name, value in os.environ.items()
            if name.endswith(("_API_KEY", "_TOKEN")) and len(value) > 7]
    return keys + cell + paths + named


def _progress(tell: Callable | None) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("{task.fields[line]}", markup=False), console=console, transient=True,
        disable=tell is not None,
    )


def _reason(error: Exception) -> str:
    """The cell's own error where there is one."""
    name, value = getattr(error, "ename", None), getattr(error, "evalue", None)
    return f"{name}: {value}" if name else f"{type(error).__name__}: {error}"


def _data_hash(profile: str | None) -> str | None:
    """Over the committed manifests of a profile; None where it has none."""
    known = files(("data_manifests/{profile}/*.csv",), profile or "-", ROOT)
    return fingerprint(None, {}, known) if known else None


def _source_hash(source: Path) -> str:
    """Over cell types, sources and tags, so that an editor's metadata changes nothing."""
    return _cells_hash(read(source)["cells"])


def _cells_hash(cells: Iterable[Mapping[str, Any]]) -> str:
    text = json.dumps([[c["cell_type"], c["source"], c["metadata"].get("tags", [])] for c in cells])
    return hashlib.sha256(text.encode()).hexdigest()


def _shown(path: Path) -> str:
    """Relative to the checkout where it lies in it."""
    path = Path(path).resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
