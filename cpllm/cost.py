"""What a training step costs, by counting, and what XLA says of the compiled one.

A product of [m, k] and [k, n] takes 2·m·k·n FLOP, and so does the gradient of each operand. Only
products are counted: the functions between them are bound by memory.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cpllm import config, mesh, train
from cpllm.data.batches import singles
from cpllm.losses import CHUNK
from cpllm.model import weights
from cpllm.model.lora import trainable
from cpllm.model.videoprism import BLOCK, STEPS


class Device(NamedTuple):
    """An accelerator, in its maker's figures."""

    flops: float  # a second, bfloat16 products, dense
    memory: float  # bytes
    link: float  # bytes a second to the others of its slice or machine, one way


DEVICES = {
    "TPU v5e": Device(197e12, 16e9, 200e9),  # cloud.google.com/tpu/docs/v5e: 400 GB/s both ways
    "TPU v5p": Device(459e12, 95 * 2**30, 600e9),  # …/v5p-training: 1,200 GB/s both ways
    "H200": Device(989e12, 141e9, 450e9),  # NVIDIA's data sheet, SXM: NVLink 900 GB/s both ways
}


class Sizes(NamedTuple):
    """What a batch makes of a configuration; T_h, T_l and T as in `model/cpllm.py`."""

    frames: int  # one of a single, two of a pair
    patches: int  # K, of a frame in a step
    high: int  # T_h
    low: int  # T_l
    sequence: int  # T: two frames and the text


def sizes(cfg: config.Config) -> Sizes:
    """Frames and tokens of a step."""
    model, t = cfg.model, cfg.train
    side = cfg.video.patch_size if model.crop_patches else model.low.image
    high, low = (model.high.image // model.high.patch) ** 2, (side // model.low.patch) ** 2
    frames = 2 * t.batch - singles(t)
    return Sizes(frames, t.patches or cfg.video.patches, high, low, 2 * (high + low) + t.max_text)


def flops(cfg: config.Config, answer: int = CHUNK) -> pd.DataFrame:
    """FLOP of a batch by part: `forward` and `step` (forward, backward, recomputed).

    answer: tokens of the longest answer, for which logits are made in chunks. A weight that is
    trained costs its gradient, one before which something is trained its input's as well.
    """
    m, n, b = cfg.model, sizes(cfg), cfg.train.batch
    images, d, inner = n.frames * n.patches, m.decoder.width, m.decoder.heads * m.decoder.head_dim
    kv, rank, every = m.decoder.kv_heads * m.decoder.head_dim, m.lora_rank, m.high_finetune == "all"
    head, adapted = m.high_finetune != "frozen", m.decoder_finetune == "all"
    blocks = m.remat == "blocks"
    high, pixels = _block(n.frames, n.high, m.high), 6 * m.high.patch**2 * m.high.width
    low, temporal = _block(images, n.low, m.low), _block(n.frames * n.low, n.patches, m.low)
    lora = 2 * b * n.sequence * rank * (3 * d + inner + 2 * kv)
    decoder = _products(b, n.sequence, d, inner, kv, 3 * m.decoder.mlp)
    chunks = math.ceil(answer / CHUNK) * CHUNK
    channels = len(STEPS) if m.spectrum else 3
    rows = [  # part, forward, operands whose gradients are made, whether it is made again
        ("high", n.frames * n.high * pixels, every, 0),
        ("high", (m.high.layers - 1) * high[0], 2 * every, every and blocks),
        ("high", (m.high.layers - 1) * high[1], 2 * every, every and m.remat),
        ("high", sum(high), 2 * head, 0),
        ("project_high", 2 * n.frames * n.high * m.high.width * d, 1 + head, 0),
        ("low", images * n.low * 2 * channels * m.low.patch**2 * m.low.width, 1, 0),
        ("low", images * m.local_norm * 24 * cfg.video.patch_size**3, 0, 0),
        ("low", images * m.spectrum * (6 + 4 * BLOCK) * cfg.video.patch_size**2, 0, 0),
        ("low", m.low.layers * low[0], 2, blocks),
        ("low", m.low.layers * low[1], 2, m.remat),
        ("low", m.clip_patches * m.low.temporal_layers * temporal[0], 2, blocks),
        ("low", m.clip_patches * m.low.temporal_layers * temporal[1], 2, m.remat),
        ("project_low", 2 * images * n.low * m.low.width * d, 2, 0),
        ("predictor", 2 * n.frames * (n.high + n.low) * m.predictor_hidden * (d + 1), 2, 0),
        ("decoder", m.decoder.layers * decoder[0], 1 + adapted, blocks),
        ("decoder", m.decoder.layers * decoder[1], 2, m.remat),
        ("decoder", m.decoder.layers * lora, 2, blocks),
        ("logits", 2 * b * chunks * d * m.decoder.vocab, 1 + adapted, 1),
    ]
    table = pd.DataFrame(rows, columns=["part", "forward", "gradients", "again"])
    table["step"] = table["forward"] * (1 + table["gradients"] + table["again"].astype(bool))
    return table.groupby("part", sort=False)[["forward", "step"]].sum()


def _products(n: int, tokens: int, width: int, inner: int, kv: int, mlp: int) -> tuple[int, int]:
    """FLOP of a block's weights, 2·n·T·(2·D·N·H + 2·D·N_kv·H + D·F), and attention, 4·n·T²·N·H."""
    return 2 * n * tokens * width * (2 * (inner + kv) + mlp), 4 * n * tokens**2 * inner


def _block(n: int, tokens: int, shape: config.Siglip | config.VideoPrism) -> tuple[int, int]:
    return _products(n, tokens, shape.width, shape.width, shape.width, 2 * shape.mlp)


def memory(cfg: config.Config, devices: Mesh) -> pd.Series:
    """Bytes on each device between and within steps, by what they hold.

    Activations: each block's input is kept in `model.dtype`, and where only functions are
    recomputed the results of its products (of gate and up, q, k, v, attention, both ways out; and
    what adapters add to q, k, v) as well. Working set: one decoder block, with its three MLP
    products and, where attention is not fused, the float32 logits, their softmax and its gradient;
    the embeddings, which a lookup gathers in float32 and the text's logits need in `model.dtype`;
    and three times a chunk of these logits.
    """
    state, frozen = _state(cfg)
    m, n, width = cfg.model, sizes(cfg), np.dtype(cfg.model.dtype).itemsize
    share = cfg.train.batch / devices.size
    low = n.frames / devices.size * n.patches * n.low * m.low.layers
    text = share * n.sequence * m.decoder.layers
    q, kv = (heads * m.decoder.head_dim for heads in (m.decoder.heads, m.decoder.kv_heads))
    results = 2 * (m.decoder.mlp + q + kv + m.decoder.width) + bool(m.lora_rank) * (q + 2 * kv)
    kept = low * (6 * m.low.width + m.low.mlp) + text * results
    one = 3 * m.decoder.mlp * width, 3 * 4 * m.decoder.heads * n.sequence
    trained = _held(state.params, devices)
    copied = 4 if devices.shape["fsdp"] > 1 else width if width < 4 else 0
    return pd.Series({
        "frozen parameters": _held(frozen, devices), "trained parameters": trained,
        "their gradients": trained, "Adam's moments": _held(state.opt_state, devices),
        "block inputs": width * (low * m.low.width + text * m.decoder.width),
        "products' results": width * kept * (m.remat == "functions"),
        "one block's MLP": share * n.sequence * one[0],
        "one block's attention": share * n.sequence * one[1],
        "whole embeddings": copied * m.decoder.vocab * m.decoder.width,
        "one chunk's logits": 3 * 4 * share * CHUNK * m.decoder.vocab,
    })  # fmt: skip


def _held(tree: Any, devices: Mesh) -> int:
    leaves = zip(*map(jax.tree.leaves, (tree, mesh.shardings(tree, devices))), strict=True)
    return sum(math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize for x, s in leaves)


def _state(cfg: config.Config) -> tuple[train.State, nnx.State]:
    """Shapes of what a step takes."""
    _, params, frozen = nnx.split(weights.shapes(cfg.model), trainable(cfg.model), ...)
    return train.State(params, jax.eval_shape(train.optimizer(cfg.train).init, params)), frozen


def compiled(cfg: config.Config, devices: Mesh) -> jax.stages.Compiled:
    """The step of `cfg` on a mesh, compiled from shapes; nothing is allocated or run."""

    def placed(tree: Any, where: Any) -> Any:
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
                            tree, where)  # fmt: skip

    tx, (state, frozen), batch = train.optimizer(cfg.train), _state(cfg), batch_shapes(cfg)
    graph, *_ = nnx.split(weights.shapes(cfg.model), trainable(cfg.model), ...)
    rows = NamedSharding(devices, P(mesh.AXES))
    args = [placed(tree, mesh.shardings(tree, devices)) for tree in (state, frozen)]
    step = train.make_step(graph, tx, cfg.train.weights, devices)
    return step.lower(*args, placed(batch, dict.fromkeys(batch, rows))).compile()


def batch_shapes(cfg: config.Config) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of what CP-LLM takes of a batch."""
    n, b, v = sizes(cfg), cfg.train.batch, cfg.video
    pixels = {"view": (v.high_size,) * 2, "patches": (n.patches, v.patch_size, v.patch_size)}
    kinds = {
        **{k: ("uint8", (n.frames, *shape, 3)) for k, shape in pixels.items()},
        "present": ("bool", (n.frames, n.patches)),
        **{k: (t, (b, cfg.train.max_text))
           for k, t in (("tokens", "int32"), ("valid", "bool"), ("answer", "bool"))},
        "first": ("int32", (b,)), "second": ("int32", (b,)),
        "q": ("float32", (b, 2)), "has_mos": ("bool", (b,)),
    }  # fmt: skip
    return {k: jax.ShapeDtypeStruct(shape, kind) for k, (kind, shape) in kinds.items()}


def random_batch(cfg: config.Config, answer: int) -> dict[str, np.ndarray]:
    """Random pixels and tokens in the shapes of training; the last `answer` are the answer."""
    rng, frames = np.random.default_rng(0), sizes(cfg).frames
    batch = {k: rng.integers(0, 2 if x.dtype == bool else 250, x.shape).astype(x.dtype)
             for k, x in batch_shapes(cfg).items()}
    batch |= {k: batch[k] % frames for k in ("first", "second")}
    batch |= {k: np.ones_like(batch[k]) for k in ("present", "valid")}
    batch["q"] = rng.random(batch["q"].shape, np.float32)
    batch["answer"][:] = np.arange(cfg.train.max_text) >= cfg.train.max_text - answer
    return batch


def timed(profile: str, repeats: int, cores: int) -> pd.Series:
    """A profile's training step beside a product of two matrices, on so many cores of this machine.

    In a process of its own, because XLA's threads are as many as the cores that it starts with.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_timed, profile, repeats, cores).result()


def _timed(profile: str, repeats: int, cores: int) -> pd.Series:
    """Medians of `repeats` runs in turn, so that whatever else the machine does falls on both."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    cfg, devices = config.preset(profile), mesh.make(1, jax.devices()[:1])
    tx, answer = train.optimizer(cfg.train), cfg.train.max_text // 2
    graph, state, frozen = train.init(cfg, tx, devices)
    step = train.make_step(graph, tx, cfg.train.weights, devices, cfg.train.ranking)
    batch = mesh.put(random_batch(cfg, answer), devices)
    matrix, product = jnp.ones((2048, 2048)), jax.jit(jnp.matmul)

    def once() -> jax.Array:
        nonlocal state
        state, parts = step(state, frozen, batch)
        return parts

    runs = [(_seconds(product, matrix, matrix), _seconds(once)) for _ in range(repeats + 2)][2:]
    matmul_s, step_s = np.median(runs, axis=0)
    work, rate = flops(cfg, answer)["step"].sum(), 2 * len(matrix) ** 3 / matmul_s
    return pd.Series({
        "step, ms": 1e3 * step_s, "items a second": cfg.train.batch / step_s,
        "GFLOP of a step": work / 1e9, "GFLOP/s, step": work / step_s / 1e9,
        "GFLOP/s, product": rate / 1e9, "share": work / step_s / rate}).round(3)


def _seconds(run: Callable, *given: Any) -> float:
    begun = time.perf_counter()
    jax.block_until_ready(run(*given))
    return time.perf_counter() - begun


COLLECTIVE = re.compile(
    r"= (\S.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)\(")
CALLED = re.compile(r"(?:body|calls|to_apply|(?:true|false)_computation)=%?([\w.-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
SHAPE = re.compile(r"([a-z]+\d*)\[([\d,]*)\]")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8}


def collectives(hlo: str) -> dict[str, int]:
    """Bytes of the results of each kind of collective on a device in one run of a compiled text.

    What a loop holds counts as often as it runs, and of a condition's branches all. A ring moves
    (n-1)/n of a gather's bytes through each device's link, and twice that of an all-reduce's.
    """
    bodies: dict[str, list[str]] = {}
    for line in hlo.splitlines():
        if line.endswith("{") and (head := re.match(r"(ENTRY )?%?([\w.-]+) \(", line)):
            bodies[name := "ENTRY" if head[1] else head[2]] = []
        elif line.startswith(" ") and bodies:
            bodies[name].append(line)

    def total(name: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for line in bodies.get(name, ()):
            if made := COLLECTIVE.search(line):
                found[made[2]] = found.get(made[2], 0) + _size(made[1])
            times = int(trips[1]) if (trips := TRIPS.search(line)) else 1
            inner = CALLED.findall(line)
            if branches := BRANCHES.search(line):
                inner += [b.strip(" %") for b in branches[1].split(",")]
            for part in inner:
                for kind, size in total(part).items():
                    found[kind] = found.get(kind, 0) + times * size
        return found

    return total("ENTRY")


def _size(shapes: str) -> int:
    return sum(BYTES[kind] * math.prod(map(int, filter(None, sides.split(","))))
               for kind, sides in SHAPE.findall(shapes))  # fmt: skip
