"""Checkpoints of a training run: asynchronous, atomic, the newest few and the best (orbax)."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint.experimental.v1 as ocp

policies = ocp.training.preservation_policies
logging.getLogger("absl").setLevel(logging.ERROR)  # orbax tells every step of every save

BEST = "validation_srcc"
"""The best checkpoint is the one with the highest of this, where a look measured it."""


class Checkpoints:
    """The checkpoints under one folder, all of one configuration, the newest `keep` of them.

    A checkpoint holds the arrays (parameters, optimiser) and, as JSON, the configuration's values
    and the log so far. The place in the data is the step: batches are a function of (seed, step).
    """

    def __init__(self, folder: Path, values: dict[str, Any], keep: int = 1):
        self.folder, self.about = Path(folder), values
        self.orbax = ocp.training.Checkpointer(
            self.folder.resolve(),
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(keep),
                    policies.BestN(
                        get_metric_fn=lambda m: m[BEST], n=1, keep_checkpoints_without_metrics=False
                    ),
                ]
            ),
            cleanup_tmp_directories=True,  # what a kill during a save left behind
        )

    @property
    def latest(self) -> int:
        """The last whole checkpoint's step; 0 where there is none."""
        return self.orbax.latest.step if self.orbax.latest else 0

    def save(self, step: int, arrays: Any, log: dict, measured: dict, wait: bool = False) -> None:
        """Start writing a checkpoint; it takes its name when it is whole.

        log: what the loop needs besides arrays, as JSON; measured: the last look's numbers.
        OSError when this or the save before could not be written; earlier ones stay.
        """
        metrics = {BEST: measured[BEST]} if BEST in measured else None
        about = {"config": self.about, "log": copy.deepcopy(log)}  # written later
        try:
            self.orbax.wait()
            self.orbax.save_async(step, arrays, metrics=metrics, custom_metadata=about, force=True)
            if wait:
                self.orbax.wait()
        except Exception as error:  # tensorstore's errors share no class
            raise OSError(
                f"{self.folder}: the checkpoint of step {step} (or the one before it) could not be "
                f"written ({error}). Step {self.latest} is kept: free some space and resume"
            ) from error

    def restore(self, like: Any) -> tuple[int, Any, dict] | None:
        """(step, arrays, log) of the last checkpoint, None where there is none.

        like: arrays with the wanted shapes and shardings. ValueError names the settings in which
        the checkpoint's configuration differs.
        """
        last = self.orbax.latest
        if last is None:
            return None
        about = self.orbax.checkpointables_metadata(last).custom_metadata
        if different := _differences(about["config"], self.about):
            raise ValueError(
                f"{self.folder}: the checkpoint of step {last.step} has another configuration: "
                f"{'; '.join(different)}. Give it the same one, or train anew in another folder"
            )
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        return last.step, self.orbax.load(last, shapes), about["log"]

    def close(self) -> None:
        """Wait for saves under way."""
        self.orbax.close()


def _differences(theirs: dict, ours: dict, prefix: str = "") -> list[str]:
    """Settings that differ, as "train.steps: 100 there, 200 here"."""
    found = []
    for key in sorted({*theirs, *ours}):
        a, b = theirs.get(key), ours.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{key}.")
        elif json.dumps(a) != json.dumps(b):  # tuples come back as lists
            found.append(f"{prefix}{key}: {a} there, {b} here")
    return found
