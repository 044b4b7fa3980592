"""Training that is really killed, asked to stop or out of space, and goes on."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from safetensors.numpy import load_file

from cpllm import config
from cpllm.data import ladder
from tests.test_train import CFG as TINY

CFG = config.replace(TINY, steps=30, select_every=10, save_every=2)
SCRIPT = """
import json, sys
from pathlib import Path
from cpllm import config, train
cfg = config.from_dict(json.loads(sys.argv[1]))
train.run(cfg, sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory, ffmpeg):
    folder = tmp_path_factory.mktemp("data")
    ladder.build(CFG, folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The run that nothing interrupts."""
    results = tmp_path_factory.mktemp("whole")
    assert start("whole", data, results).wait() == 0
    return outcome("whole", data, results)


def start(run_id: str, data: Path, results: Path, cfg: config.Config = CFG) -> subprocess.Popen:
    words = [sys.executable, "-c", SCRIPT, json.dumps(cfg.to_dict()), run_id, data, results]
    return subprocess.Popen(list(map(str, words)), stderr=subprocess.PIPE, text=True)


def outcome(run_id: str, data: Path, results: Path):
    history = pd.read_csv(results / "smoke" / "runs" / run_id / "history.csv")
    return load_file(data / "weights" / f"{run_id}.safetensors"), history


def wait_for(condition, process: subprocess.Popen) -> None:
    while not condition():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


def saved(data: Path, run_id: str, partial: bool = False) -> list[Path]:
    """Checkpoints with their final name, or what is still being written."""
    folder = data / "checkpoints" / run_id
    return [p for p in folder.glob("*") if p.name.isdigit() is not partial]


def same(a, b) -> bool:
    weights = all((a[0][k] == b[0][k]).all() for k in a[0]) and a[0].keys() == b[0].keys()
    return weights and a[1].equals(b[1])


@pytest.mark.parametrize("moment", ["after a save", "during a save"])
def test_a_killed_run_that_resumes_ends_with_the_same_bits(moment, whole, data, tmp_path):
    run_id = moment.replace(" ", "-")
    process = start(run_id, data, tmp_path)
    wait_for(lambda: len(saved(data, run_id)) > 1, process)
    if moment == "during a save":
        wait_for(lambda: saved(data, run_id, partial=True), process)
    process.kill()
    process.wait()
    assert not (tmp_path / "smoke" / "runs" / run_id / "metrics.json").exists()
    assert start(run_id, data, tmp_path).wait() == 0
    assert same(outcome(run_id, data, tmp_path), whole)
    assert not (data / "checkpoints" / run_id).exists()


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_with_the_same_bits(whole, data, tmp_path):
    for _ in range(20):
        process = start("often", data, tmp_path)
        wait_for(lambda: saved(data, "often"), process)
        time.sleep(random.uniform(0, 3))
        process.kill()
        if process.wait() == 0:
            break
    assert start("often", data, tmp_path).wait() == 0
    assert same(outcome("often", data, tmp_path), whole)


def test_sigterm_saves_and_the_run_goes_on_from_there_under_its_own_configuration_only(
    whole, data, tmp_path
):
    process = start("asked", data, tmp_path)
    wait_for(lambda: saved(data, "asked"), process)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0
    step = max(int(p.name) for p in saved(data, "asked"))
    assert f"step {step} is saved" in process.stderr.read()

    other = start("asked", data, tmp_path, config.replace(CFG, learning_rate=0.5))
    assert other.wait() != 0
    assert "train.learning_rate: 0.002 there, 0.5 here" in other.stderr.read()

    assert start("asked", data, tmp_path).wait() == 0
    assert same(outcome("asked", data, tmp_path), whole)
