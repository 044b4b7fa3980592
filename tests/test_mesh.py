"""The same training on one device, on eight, and in two processes that talk over loopback."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pandas as pd
import pytest

from cpllm import config, mesh, train
from cpllm.data import ladder
from cpllm.model import weights
from tests.test_train import CFG as TINY

CFG = config.replace(TINY, steps=4, batch=16, warmup=1, select_every=1)
SCRIPT = """
import json, sys
from pathlib import Path
from cpllm import config, mesh, train
from cpllm.data import manifests
cfg, data, out, fsdp, *join = json.loads(sys.argv[1])
if join:
    mesh.join(*join)
table = manifests.read(Path(data, "manifest.csv"))
rows = table[table["split"] == "train"]
run = train.fit(config.from_dict(cfg), rows, Path(data), Path(data, "frames"), fsdp=fsdp)
run.history.to_json(out)
"""

LONG = config.replace(CFG, steps=60, select_every=20, save_every=5)
COMMAND = """
import json, sys
from pathlib import Path
from cpllm import cli, config, sweep
cfg, results, *words = json.loads(sys.argv[1])
config.PRESETS["smoke"] = lambda: config.from_dict(cfg)
sweep.RESULTS = Path(results)
sys.exit(cli.main(["train", "--profile", "smoke", *words]))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory, ffmpeg):
    folder = tmp_path_factory.mktemp("data")
    ladder.build(CFG, folder, progress=False)
    return folder


def start(data, out, devices, fsdp=1, *join) -> subprocess.Popen:
    words = json.dumps([CFG.to_dict(), str(data), str(out), fsdp, *join])
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, words], env=os.environ | flags)


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """Losses of every step on one device."""
    out = tmp_path_factory.mktemp("alone") / "losses.json"
    assert start(data, out, 1).wait() == 0
    return pd.read_json(out)


@pytest.mark.parametrize("fsdp", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_eight_devices_give_the_losses_of_one(alone, data, tmp_path, fsdp):
    assert start(data, tmp_path / "losses.json", 8, fsdp).wait() == 0
    np.testing.assert_allclose(pd.read_json(tmp_path / "losses.json"), alone, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_two_processes_of_two_devices_give_the_losses_of_one(alone, data, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    outs = [tmp_path / f"{i}.json" for i in range(2)]
    both = [start(data, out, 2, 2, address, 2, i) for i, out in enumerate(outs)]
    assert [process.wait(600) for process in both] == [0, 0]
    for out in outs:
        np.testing.assert_allclose(pd.read_json(out), alone, rtol=0, atol=1e-5)


def command(data, results, run_id, *words, devices=2) -> subprocess.Popen:
    words = [LONG.to_dict(), str(results), "--data", str(data), "--run-id", run_id, *words]
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    return subprocess.Popen([sys.executable, "-c", COMMAND, json.dumps(words)],
                            env=os.environ | flags, stderr=subprocess.PIPE, text=True)


def two(data, results, *words) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    return [command(data, results, "two", "--fsdp", "2", "--coordinator", address,
                    "--processes", "2", "--process", str(i), *words) for i in range(2)]


def history(results, run_id) -> pd.DataFrame:
    return pd.read_csv(results / "smoke" / "runs" / run_id / "history.csv")


@pytest.mark.slow
def test_sigterm_to_one_of_two_processes_saves_in_both_and_the_same_command_goes_on(data, tmp_path):
    kept = data / "checkpoints" / "two"
    both = two(data, tmp_path)
    while not any(p.name.isdigit() for p in kept.glob("*")):
        assert all(p.poll() is None for p in both), [p.stderr.read() for p in both]
        time.sleep(0.01)
    both[1].send_signal(signal.SIGTERM)
    said = [p.communicate(timeout=600)[1] for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    step = max(int(p.name) for p in kept.glob("*") if p.name.isdigit())
    assert step < LONG.train.steps and all(f"step {step} is saved" in text for text in said)

    both = two(data, tmp_path, "--resume")
    said = [p.communicate(timeout=600)[1] for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    assert not kept.exists()
    assert command(data, tmp_path, "one", devices=1).wait() == 0
    parts = list(train.PARTS)
    np.testing.assert_allclose(
        history(tmp_path, "two")[parts], history(tmp_path, "one")[parts], rtol=0, atol=1e-4)


def test_big_matrices_are_cut_over_fsdp_and_the_rest_is_whole():
    from flax import nnx

    devices = jax.sharding.AbstractMesh((4, 2), mesh.AXES)
    state = nnx.state(weights.shapes(config.paper().model), nnx.Param)
    cut = nnx.to_flat_state(mesh.shardings(state, devices))
    specs = {"/".join(path): tuple(jax.tree.leaves(leaf)[0].spec) for path, leaf in cut}
    assert specs["decoder/blocks/mlp/gate/kernel"] == (None, "fsdp", None)
    assert specs["predictor/mlp/inner/kernel"] == ("fsdp", None)
    assert not any(any(spec) for name, spec in specs.items() if name.endswith(("bias", "scale")))


def test_a_number_of_devices_that_cannot_share_a_copy_is_refused():
    with pytest.raises(ValueError, match="--fsdp: expected a divisor of the 1 devices, got 3"):
        mesh.make(3)


@pytest.mark.parametrize("given, passed", [
    ((None, None, None), None),
    (("auto", None, None), (None, None, None)),
    (("host:1234", 2, 1), ("host:1234", 2, 1)),
])  # fmt: skip
def test_processes_join_by_name_or_by_what_the_cluster_knows(monkeypatch, given, passed):
    seen = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args: seen.append(args))
    mesh.join(*given)
    assert seen == ([passed] if passed else [])
