"""All stages of `make reproduce PROFILE=smoke`, stopped anywhere and run again, end as if never."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import settled

from cpllm.sweep import ROOT
from tests import test_book

SMALLER = """
PRESETS["smoke"] = lambda: replace(smoke(), **{
    "data.train_scenes": 1, "data.validation_scenes": 1, "data.test_scenes": 1,
    "data.singles": (0, 0, 0), "data.crfs": (21, 41), "data.other_ladders": 0,
    "train.steps": 12, "train.select_every": 6, "train.save_every": 2})
"""
FEWER = """
NOTEBOOKS = {name: book if name in ("12_lint", "28_table1") else Notebook(name, apart=True)
             for name, book in NOTEBOOKS.items()}
"""
STAGES = {"data": ("build data …", 5), "training": ("train …", 15), "scores": ("score …", 10),
          "notebooks": ("answers: done", 6), "book": ("Rendering the book", 4)}
"""Stage → the line after which it has begun, and about how many seconds it takes."""

SAME = re.compile(
    r"data/smoke/[^.][^/]*\.(mp4|csv|json)|data/smoke/(weights|frames[^/]*)/[^.][^/]*(?<!\.part)\.\w+"
    r"|results/smoke/(.*/)?[^./][^/]*(?<!provenance)\.(csv|json)|book/_build/html/[^_.].*\.html")
"""Files of which no byte depends on when they were made, or how often that was begun."""


def checkout(root: Path) -> Path:
    """What `make reproduce` needs; the profile smoke with few clips, steps, notebooks and pages."""
    test_book.one_page(test_book.checkout(root))
    (root / "results").mkdir()
    shutil.copy(ROOT / "results" / "paper.csv", root / "results")
    for name, more in (("config", SMALLER), ("sweep", FEWER)):
        with (root / "cpllm" / f"{name}.py").open("a") as file:
            file.write(more)
    return root


class Work:
    """Commands in a process group of their own, as a shell starts them."""

    def __init__(self, root: Path, *verbs: str):
        python = f"'{sys.executable}'"
        commands = [f"{python} -m cpllm.cli {verb} --profile smoke" for verb in verbs] or [
            f"{python} -m cpllm.cli reproduce --profile smoke",
            f"{python} book/_ext/build.py smoke"]
        told = {"PYTHONPATH": str(root), "PYTHONUNBUFFERED": "1",
                "JAX_COMPILATION_CACHE_DIR": str(root.parent / "compiled")}
        self.lines = []
        self.process = subprocess.Popen(
            ["sh", "-c", " && ".join(commands)], cwd=root, start_new_session=True, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | told,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # nohup ignores it

    def reaches(self, words: str) -> bool:
        """Whether a line begins so, now or later; else all is done."""
        for line in self.process.stdout:
            self.lines.append(line)
            if line.startswith(words):
                return True
        return False

    def stop(self, how: signal.Signals) -> bool:
        """Send a signal to all processes of the group; whether there still was work to do."""
        if working := self.process.poll() is None:
            os.killpg(self.process.pid, how)
        self.lines += self.process.communicate()[0].splitlines(keepends=True)
        return working

    def finish(self) -> None:
        self.lines += self.process.communicate()[0].splitlines(keepends=True)
        assert self.process.returncode == 0, "".join(self.lines[-30:])


def made(root: Path) -> dict[str, bytes]:
    """What stands there under a final name; notebooks, which hold times, must be whole."""
    for path in root.glob("*/smoke/notebooks/[!.]*.ipynb"):
        json.loads(path.read_text())
    names = (str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())
    return {n: settled(root / n) for n in names if SAME.fullmatch(n)}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder for checkouts, which share what XLA has compiled."""
    return tmp_path_factory.mktemp("kills")


@pytest.fixture(scope="module")
def whole(place):
    """What is made where nothing stops it."""
    Work(checkout(place / "whole")).finish()
    found = made(place / "whole")
    kinds = {(Path(name).parts[0], Path(name).suffix) for name in found}
    assert kinds >= {("data", ".mp4"), ("data", ".npy"), ("data", ".safetensors"),
                     ("results", ".csv"), ("results", ".json"), ("book", ".html")}
    return found


def same(root: Path, whole: dict[str, bytes]) -> list[str]:
    """Files whose bytes are others than those of `whole`."""
    return [name for name, held in made(root).items() if held != whole.get(name)]


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow)
                                       for seed in range(1, 11))])
def test_what_is_killed_in_each_stage_goes_on_and_ends_with_the_same_files(seed, whole, place):
    rng, root, kills = random.Random(seed), checkout(place / f"killed-{seed}"), 0
    for begins, seconds in STAGES.values():
        work = Work(root)
        if work.reaches(begins):
            time.sleep(rng.uniform(0, seconds))
            kills += work.stop(signal.SIGKILL)
            assert same(root, whole) == []
        else:
            work.finish()
    Work(root).finish()
    assert made(root).keys() == whole.keys() and same(root, whole) == []
    assert kills  # a fast machine is done with some stages before
    shutil.rmtree(root)


def begin(place: Path, name: str, verb: str) -> tuple[Path, Work]:
    """A sweep of which a run has saved a checkpoint, in a checkout where clips are made."""
    root = place / name
    shutil.copytree(place / "whole", root)
    shutil.rmtree(root / "data" / "smoke" / "weights")
    shutil.rmtree(root / "results" / "smoke" / "runs")
    work = Work(root, verb)
    while not any(p.name.isdigit() for p in root.glob("data/smoke/checkpoints/*/*")):
        assert work.process.poll() is None, work.process.communicate()[0]
        time.sleep(0.01)
    return root, work


def runs(found: dict[str, bytes], *names: str) -> dict[str, bytes]:
    """Of what was made, the weights and records of these runs."""
    return {file: held for file, held in found.items() if any(name in file for name in names)
            and not file.endswith("answers.csv")}


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_sweep_that_is_stopped_goes_on_and_ends_with_the_same_run(how, whole, place):
    root, work = begin(place, how.name, "sweep fit")
    assert work.stop(how)
    assert how != signal.SIGINT or "the same command goes on" in "".join(work.lines)
    Work(root, "sweep fit").finish()
    assert runs(made(root), "default-s0") == runs(whole, "default-s0")


@pytest.mark.slow
@pytest.mark.usefixtures("whole")
def test_a_sweep_that_loses_a_worker_ends_with_the_same_runs(place):
    names = ("single", "pairwise")
    root, work = begin(place, "lost", f"sweep table --workers 2 --rows {' '.join(names)}")
    workers = [p for p in psutil.Process(work.process.pid).children(recursive=True)
               if re.search("spawn_main|dask worker", " ".join(p.cmdline())) and p.children()]
    workers[0].kill()
    work.finish()
    lost = runs(made(root), *names)
    Work(root, f"sweep table --fresh --rows {' '.join(names)}").finish()
    assert lost and lost == runs(made(root), *names)
