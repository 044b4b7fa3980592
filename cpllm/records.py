"""A run on disk: configuration, provenance, metrics, history and predictions."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(__file__).parent.parent
VERSIONS = ("jax", "flax", "optax", "numpy", "scipy", "av", "scikit-image", "scikit-learn", "cpllm")


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
    return {"commit": commit, "dirty": dirty, "started": time.time()}


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


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write(path: Path, content: str) -> None:
    """Write under a temporary name, then rename: no half-written file under a final name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(content)
    part.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Stable, readable JSON."""
    write(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Rows with floats to six significant digits, which no table shows more of."""
    write(path, frame.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def run_folder(results: Path, profile: str, run_id: str) -> Path:
    """results/<profile>/runs/<run_id>."""
    return results / profile / "runs" / run_id


def checkpoints(data: Path, run_id: str) -> Path:
    """Folder of an unfinished run's checkpoints; absent when it is done."""
    return data / "checkpoints" / run_id
