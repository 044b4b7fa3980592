"""Changes that mutmut makes to the losses and measures: each fails a test, or is explained.

`mutants.csv` lists those that no test can notice, by what a line was and became. All 1,388 take
about a quarter of an hour on 2 idle cores, and are given up after 90 minutes.
"""

import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cpllm.sweep import ROOT

EXPLAINED = Path(__file__).parent / "mutants.csv"
CONFIG = """
[tool.mutmut]
source_paths = ["cpllm"]
only_mutate = ["cpllm/losses.py", "cpllm/metrics.py"]
pytest_add_cli_args_test_selection = ["tests/test_losses.py", "tests/test_metrics.py"]
pytest_add_cli_args = ["-p", "no:randomly", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
process_isolation = "forkserver"  # JAX has threads once it computes, and they don't outlive a fork
track_dependencies = false
use_git_change_detection = false
"""
LIMIT = 5400
"""Seconds of a command."""


def mutmut(folder: Path, *words: str) -> str:
    return subprocess.run([sys.executable, "-m", "mutmut", *words], cwd=folder, text=True,
                          stdout=subprocess.PIPE, check=True, timeout=LIMIT).stdout


def change(folder: Path, mutant: str) -> tuple[str, str, str]:
    """(function, what its lines were, what they became)."""
    lines = mutmut(folder, "show", mutant).splitlines()
    was, became = (" ".join(line[1:].strip() for line in lines
                            if line.startswith(sign) and not line.startswith(3 * sign))
                   for sign in "-+")
    return re.sub(r".*\.x_|__mutmut_\d+", "", mutant), was, became


@pytest.mark.slow
def test_each_change_to_losses_and_measures_fails_a_test_or_is_explained(tmp_path):
    shutil.copytree(ROOT / "cpllm", tmp_path / "cpllm")
    (tmp_path / "tests").mkdir()
    for name in ("conftest.py", "test_losses.py", "test_metrics.py"):
        shutil.copy(ROOT / "tests" / name, tmp_path / "tests")
    (tmp_path / "pyproject.toml").write_text(CONFIG)
    mutmut(tmp_path, "run", "--max-children", "2")
    ends = re.findall(r"(\S+): (.+)", mutmut(tmp_path, "results", "--all", "true"))
    assert len(ends) > 1000 and {end for _, end in ends} <= {"killed", "survived", "timeout"}
    _, *rows = csv.reader(EXPLAINED.read_text().splitlines())
    explained = {tuple(row[:3]) for row in rows if row[3]}
    survived = {change(tmp_path, mutant) for mutant, end in ends if end == "survived"}
    assert survived - explained == set()
