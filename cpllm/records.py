"""A run on disk: configuration, provenance, metrics, history and predictions."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import time
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from cpllm.data import manifests

ROOT = Path(__file__).parent.parent
VERSIONS = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "safetensors",
            "numpy", "scipy", "pandas", "av", "pillow", "scikit-image", "scikit-learn", "cpllm")
"""Of what may move a number: arrays, steps, batches, tokens, frames and photographs."""


def git_state() -> tuple[str, bool]:
    """(commit, whether tracked files differ from it); ("unknown", True) outside a checkout."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "-uno", "--", "cpllm"))
    except (OSError, subprocess.CalledProcessError):
        return "unknown", True


def device() -> str:
    """Processor and cores, then any NVIDIA device, in words."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists() and (found := re.search(r"model name\s*:\s*(.+)", info.read_text())):
        cpu = found[1]
    gpu = ""
    if shutil.which("nvidia-smi"):
        gpu = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True, text=True, check=False,
        ).stdout.strip().replace("\n", ", ")
    return f"{os.cpu_count()} × {cpu}" + (f"; {gpu}" if gpu else "")


def start() -> dict[str, Any]:
    """When, and from which code, work began; for `provenance` when it is done."""
    commit, dirty = git_state()
    return {"commit": commit, "dirty": dirty, "started": time.time(), "code_sha256": code_sha256()}


def provenance(begun: dict[str, Any], seed: int, data_hash: str) -> dict[str, Any]:
    """What another person needs to know about a run that `start` opened."""
    return {
        **begun,
        "versions": {name: metadata.version(name) for name in VERSIONS},
        "device": device(),
        "cores": len(os.sched_getaffinity(0)),
        "seed": seed,
        "manifest_sha256": data_hash,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(begun["started"])),
        "duration_s": round(time.time() - begun["started"], 1),
    }


@cache
def code_sha256(entry: str = "cpllm/train.py", root: Path = ROOT) -> str:
    """SHA-256 of the modules that training depends on; docstrings and lines of comment don't count.

    These are `entry` and what the package's modules import from the package, wherever they do.
    """
    found, queue = {}, [root / entry]
    while queue:
        path = queue.pop()
        if path in found or not path.exists():
            continue
        tree = ast.parse(text := path.read_text())
        found[path] = _statements(tree, text)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "cpllm":
                base = root / node.module.replace(".", "/")
                queue += [base.with_suffix(".py"), *(base / f"{a.name}.py" for a in node.names)]
    named = [[str(path.relative_to(root)), found[path]] for path in sorted(found)]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()


def _statements(tree: ast.Module, text: str) -> list[str]:
    """A module's lines but docstrings, comments and blanks; Pythons differ in unparsing."""
    lines = text.splitlines()
    for node in ast.walk(tree):
        if (isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
                and ast.get_docstring(node, clean=False) is not None):
            first, last = node.body[0].lineno, node.body[0].end_lineno
            lines[first - 1 : last] = [""] * (last - first + 1)
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote; nothing where there is no file."""
    return json.loads(path.read_text()) if path.exists() else {}


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def key(made_of: Any) -> str:
    """Twelve digits that name a file after all that it is made of, plain values."""
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:12]


def write(path: Path, content: str) -> None:
    """Write under a temporary name, then rename: no half-written file under a final name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Stable, readable JSON."""
    write(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Rows with floats to six significant digits, which no table shows more of."""
    write(path, frame.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def run_folder(results: Path, profile: str, run_id: str) -> Path:
    """results/<profile>/runs/<run_id>."""
    return results / profile / "runs" / run_name(run_id)


def checkpoints(data: Path, run_id: str) -> Path:
    """Folder of an unfinished run's checkpoints; absent when it is done."""
    return data / "checkpoints" / run_name(run_id)


def run_name(run_id: str) -> str:
    """The name of a run, which names files; ValueError where it could leave their folder."""
    if not re.fullmatch(manifests.NAME, run_id):
        raise ValueError(f"run {run_id!r}: expected a name of letters, digits and . _ @ + -")
    return run_id
