"""A notebook executed by papermill, with its provenance and without this machine's names.

An executed notebook is up to date while the hash of its source, its parameters and its input
files is the one that it carries; times on disk play no part, so a fresh clone knows too.
"""

from __future__ import annotations

import ast
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
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
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


def execute(
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
    with tempfile.TemporaryDirectory(prefix="cpllm-") as scratch, progress(tell) as bar:
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
    """How `execute` made what `read` gave: {} where cells were changed by hand since.

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


def progress(tell: Callable | None) -> Progress:
    """A bar with the line that a notebook is at; none where `tell` gets that."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("{task.fields[line]}", markup=False), console=console, transient=True,
        disable=tell is not None,
    )


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


def _reason(error: Exception) -> str:
    """The cell's own error where there is one."""
    name, value = getattr(error, "ename", None), getattr(error, "evalue", None)
    return f"{name}: {value}" if name else f"{type(error).__name__}: {error}"


def _data_hash(profile: str | None) -> str | None:
    """Over the committed manifests of a profile; None where it has none."""
    known = sorted((ROOT / "data_manifests" / (profile or "-")).glob("*.csv"))
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
