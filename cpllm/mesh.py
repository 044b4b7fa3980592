"""Devices as a named mesh, where each array lies on it, and processes that train together."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp")

RULES = {"kernel": P("fsdp", None), "table": P("fsdp", None)}
"""Which of a leaf's last two axes is cut over `fsdp`, by the leaf's name; every other leaf (norms,
biases, positions, LoRA's small factors) is whole on each device. Both axes cut the batch."""


def make(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices of all processes (or `devices`), `fsdp` sharing one copy of the parameters.

    ValueError when the number of devices is no multiple of `fsdp`.
    """
    devices = devices or jax.devices()
    count, kinds = len(devices), (AxisType.Auto,) * 2
    if fsdp < 1 or count % fsdp:
        raise ValueError(f"--fsdp: expected a divisor of the {count} devices, got {fsdp}")
    return jax.make_mesh((count // fsdp, fsdp), AXES, axis_types=kinds, devices=devices)


def shardings(tree: Any, mesh: Mesh) -> Any:
    """The sharding of every leaf of a tree of arrays (or their shapes), by `RULES`.

    A dotted key is a path as well. An axis that `fsdp` does not divide stays whole.
    """

    def rule(path, leaf) -> NamedSharding:
        path = ".".join(str(getattr(part, "key", getattr(part, "name", part))) for part in path)
        spec = next((RULES[name] for name in reversed(path.split(".")) if name in RULES), P())
        axes = [None] * (leaf.ndim - len(spec)) + list(spec)
        if any(a and n % mesh.shape[a] for a, n in zip(axes, leaf.shape, strict=False)):
            axes = []
        return NamedSharding(mesh, P(*axes) if leaf.ndim >= len(spec) else P())

    return jax.tree_util.tree_map_with_path(rule, tree)


def spread(tree: Any, mesh: Mesh) -> Any:
    """Arrays that every process holds whole, laid out by `RULES`."""

    def cut(x, where: NamedSharding) -> jax.Array:
        return jax.make_array_from_callback(x.shape, where, lambda at: x[at])

    return jax.tree.map(cut, tree, shardings(tree, mesh))


def known(mesh: Mesh | None) -> AbstractContextManager:
    """Where a model is traced for several devices, so that it gathers what `RULES` cut."""
    several = mesh is not None and mesh.size > 1
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh) if several else nullcontext()


def own(mesh: Mesh) -> range:
    """Numbers of this process's devices among all, in the order in which `put` cuts a batch."""
    mine = [i for i, d in enumerate(mesh.devices.flat) if d.process_index == jax.process_index()]
    return range(mine[0], mine[-1] + 1)


def put(batch: dict, mesh: Mesh) -> dict[str, jax.Array]:
    """A batch (this process holds a part of it) as global arrays, cut over all devices."""
    rows = NamedSharding(mesh, P(AXES))
    return {k: jax.make_array_from_process_local_data(rows, x) for k, x in batch.items()}


def whole(tree: Any, mesh: Mesh) -> Any:
    """The tree with every leaf whole on each device, as scoring and saving need it."""
    if mesh.size == 1:
        return tree
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))(tree)


def join(coordinator: str | None, processes: int | None, index: int | None) -> None:
    """Join the other processes; alone without any of the three.

    coordinator: "host:port" of process 0, or "auto" on TPU VMs and under SLURM, which know it,
    how many there are and which one this is.
    """
    if coordinator or processes:
        jax.distributed.initialize(
            None if coordinator == "auto" else coordinator, processes, index)  # fmt: skip
