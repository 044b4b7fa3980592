"""Which checkpoints stay, also where the disk is full."""

import subprocess
import sys

import jax.numpy as jnp
import pytest

from cpllm import config
from cpllm.checkpoint import BEST, Checkpoints

SMALL_DISK = ("unshare", "--user", "--map-root-user", "--mount")
SCRIPT = """
import sys
from pathlib import Path
import jax
from cpllm import config
from cpllm.checkpoint import Checkpoints

kept = Checkpoints(Path(sys.argv[1], "run"), config.smoke().to_dict(), keep=2)
like = {"x": jax.random.normal(jax.random.key(0), 250_000)}  # does not compress
for step in (1, 2):
    kept.save(step, {"x": like["x"] + step}, {"recent": [step]}, {}, wait=True)
Path(sys.argv[1], "other").write_bytes(bytes(int(1.5e6)))
try:
    kept.save(3, {"x": like["x"] + 3}, {"recent": [3]}, {}, wait=True)
except OSError as error:
    print(error)
step, arrays, log = Checkpoints(kept.folder, config.smoke().to_dict(), keep=2).restore(like)
assert log == {"recent": [step]}
print("restored", step, bool((arrays["x"] == like["x"] + step).all()))
"""


def test_the_newest_and_the_best_checkpoints_stay(tmp_path):
    kept = Checkpoints(tmp_path / "run", config.smoke().to_dict(), keep=2)
    assert kept.latest == 0 and config.smoke().train.keep == 2
    for step, srcc in enumerate((0.1, 0.9, 0.3, 0.2, 0.4), 1):
        kept.save(step, {"x": jnp.ones(2) * step}, {}, {BEST: srcc}, wait=True)
    kept.close()
    assert {p.name for p in kept.folder.iterdir()} == {"2", "4", "5"}


def can_mount() -> bool:
    try:
        return subprocess.run([*SMALL_DISK, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not can_mount(), reason="no user namespaces here to mount a small disk in")
def test_a_full_disk_is_named_and_the_last_good_checkpoint_stays(tmp_path):
    mount = 'mount -t tmpfs -o size=4m none "$1" && exec "$2" -c "$3" "$1"'
    words = ["sh", "-c", mount, "sh", str(tmp_path), sys.executable, SCRIPT]
    run = subprocess.run([*SMALL_DISK, *words], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "the checkpoint of step 3 (or the one before it) could not be written" in run.stdout
    assert "Step 2 is kept: free some space and resume" in run.stdout
    assert run.stdout.endswith("restored 2 True\n")
