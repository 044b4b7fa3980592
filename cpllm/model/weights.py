"""Weights on disk: one safetensors file whose metadata holds configuration and tokenizer."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from cpllm import atomic, config
from cpllm.model import rivals


def names(state: nnx.State) -> dict[str, nnx.Variable]:
    """Leaves by their dotted path, such as `low.spatial.attention.q.kernel`."""
    return {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}


def parameters(module: nnx.Module) -> dict[str, nnx.Variable]:
    """What of a module is trained, by its names."""
    return names(nnx.state(module, nnx.Param))


def shapes(model: config.Model) -> nnx.Module:
    """The model with shapes in place of arrays."""
    return nnx.eval_shape(lambda: rivals.build(model, nnx.Rngs(0)))


def save(path: Path, model: nnx.Module, cfg: config.Config, tokenizer: Tokenizer) -> None:
    """Write a model with its configuration and tokenizer."""
    write(path, tensors(model), cfg, tokenizer)


def tensors(model: nnx.Module) -> dict[str, np.ndarray]:
    """A module's parameters by their names."""
    return {k: jax.device_get(v[...]) for k, v in parameters(model).items()}


def fill(state: nnx.State, tensors: Mapping[str, np.ndarray | jax.Array]) -> nnx.State:
    """The state with those leaves replaced that `tensors` names."""
    leaves = [jnp.asarray(tensors[k]) if k in tensors else x[...] for k, x in names(state).items()]
    return jax.tree.unflatten(jax.tree.structure(state), leaves)


def write(
    path: Path, tensors: dict[str, np.ndarray], cfg: config.Config, tokenizer: Tokenizer
) -> None:
    """Write tensors by our names under a temporary file name, then rename."""
    metadata = {"config": json.dumps(cfg.to_dict()), "tokenizer": tokenizer.to_str()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.whole(path) as part:
        save_file(tensors, part, metadata)


def read(path: Path) -> tuple[dict[str, np.ndarray], config.Config, Tokenizer]:
    """What `write` was given; ValueError for a file that it did not write."""
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{path}: expected CP-LLM weights in safetensors form ({error})"
        ) from error
    if missing := {"config", "tokenizer"} - set(metadata):
        raise ValueError(
            f"{path}: expected metadata {', '.join(sorted(missing))}; not written by cpllm"
        )
    cfg = config.from_dict(json.loads(metadata["config"]))
    return tensors, cfg, Tokenizer.from_str(metadata["tokenizer"])


def load(path: Path) -> tuple[nnx.Module, config.Config, Tokenizer]:
    """Read a file that `save` wrote; ValueError names a missing, unexpected or misshapen tensor."""
    tensors, cfg, tokenizer = read(path)
    graph, params, rest = nnx.split(shapes(cfg.model), nnx.Param, ...)
    _check(path, names(params), tensors)
    return nnx.merge(graph, fill(params, tensors), rest), cfg, tokenizer


def given(path: Path, model: config.Model,
          parts: Collection[str] = ()) -> tuple[dict[str, np.ndarray], Tokenizer]:
    """What a training begins with: a file's tensors, and the tokenizer that their words go by.

    parts: first names of the tensors to take, where `model` has them, unadapted (without LoRA); by
    default all. ValueError names a missing, unexpected or misshapen tensor.
    """
    tensors, _, tokenizer = read(path)
    expected = parameters(shapes(model))
    if parts:
        expected = {k: x for k, x in expected.items() if _part(k) in parts and ".lora." not in k}
        has = set(map(_part, expected))
        tensors = {k: x for k, x in tensors.items() if _part(k) in has}
    _check(path, expected, tensors)
    return tensors, tokenizer


def _part(name: str) -> str:
    return name.split(".")[0]


def _check(path: Path, expected: Mapping[str, nnx.Variable], found: Mapping[str, np.ndarray]):
    compare(path, *({k: x.shape for k, x in leaves.items()} for leaves in (expected, found)))


def compare(path: Path, expected: dict[str, tuple], found: dict[str, tuple]) -> None:
    """ValueError that lists every name or shape of `found` that differs from `expected`."""
    wrong = [
        f"{k} {found[k]} for {expected[k]}"
        for k in expected.keys() & found.keys()
        if found[k] != expected[k]
    ]
    problems = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "misshapen": sorted(wrong),
    }
    if any(problems.values()):
        raise ValueError(
            f"{path}: " + "; ".join(f"{k}: {', '.join(v)}" for k, v in problems.items() if v)
        )
