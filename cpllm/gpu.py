"""What one accelerator makes of the paper's model: `python -m cpllm.gpu results/gpu.json`.

Ceilings of products and copies, attention against plain attention, the towers' forward pass, the
training step and decoding, all with random weights and made-up pixels: no time depends on them.
The notebooks 80 and 83 show the file. Programs are compiled side by side first; what is not ready
when `limit` seconds are over is written down as such.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pandas as pd
from flax import nnx

from cpllm import config, cost, mesh, records, train
from cpllm.model import layers, weights
from cpllm.model.cpllm import prefix_mask
from cpllm.model.gemma import positions
from cpllm.model.lora import trainable

PEAK = cost.DEVICES["H200"].flops
"""bfloat16 products a second by the maker's sheet; the H100's (SXM) is the same."""
ANSWER = 96
"""Tokens of the longest answer."""
STEPS = {
    "blocks": ({"model.remat": "blocks"}, {}),
    "functions": ({"model.remat": "functions"}, {}),
    "functions, slices fused": (
        {"model.remat": "functions"}, {"xla_gpu_enable_dynamic_slice_fusion": True}),
    "functions, cuBLAS alone": (
        {"model.remat": "functions"}, {"xla_gpu_enable_triton_gemm": False}),
    "functions, unrolled": ({"model.remat": "functions", "model.unroll": 18}, {}),
}
"""How a step is compiled: changes of the configuration, and options of the compiler."""


def paper(profile: str) -> config.Config:
    """The paper's regime and types at the size of `profile`."""
    cfg = config.replace(config.preset(profile), **{
        "model.high_finetune": "frozen", "model.decoder_finetune": "lora", "model.lora_rank": 4,
        "model.dtype": "bfloat16", "model.remat": "blocks"})
    return config.replace(cfg, schedule="constant", warmup=0)


def seconds(run: Callable[[], Any], repeats: int) -> float:
    """Mean over `repeats` calls in a row, after one to warm up."""
    jax.block_until_ready(run())
    begun = time.perf_counter()
    for _ in range(repeats):
        found = run()
    jax.block_until_ready(found)
    return (time.perf_counter() - begun) / repeats


def ceilings(n: int) -> dict[str, float]:
    """FLOP/s of a bfloat16 product [n,n]·[n,n]; bytes/s of a copy (read and written) and a read."""
    a, b = (jax.random.normal(jax.random.key(i), (n, n), jnp.bfloat16) for i in range(2))
    long = jnp.ones((16, n, n), jnp.bfloat16)
    product, copy, read = jax.jit(jnp.matmul), jax.jit(jnp.negative), jax.jit(jnp.max)
    return {"product_flops": 2 * n**3 / seconds(lambda: product(a, b), 30),
            "copy_bytes": 2 * long.nbytes / seconds(lambda: copy(long), 20),
            "read_bytes": long.nbytes / seconds(lambda: read(long), 20)}


def attention(batch: int, tokens: int, heads: int, kv: int, dim: int, masked: bool) -> dict:
    """`layers.attend` in bfloat16 against the same in float32: results and gradients, times."""
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, w = (jax.random.normal(key, (batch, tokens, n, dim), jnp.bfloat16)
                  for key, n in zip(keys, (heads, kv, kv, heads), strict=True))
    at = jnp.arange(tokens)[None]
    mask = prefix_mask(at < tokens - 8, at >= 3 * tokens // 4) if masked else None

    def both(q, k, v):
        y, back = jax.vjp(lambda *x: layers.attend(*x, mask), q, k, v)
        return y, back(w.astype(y.dtype))

    ours = jax.jit(both)
    with jax.default_matmul_precision("highest"):
        exact = jax.jit(both)(*(x.astype(jnp.float32) for x in (q, k, v)))
    wrong = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max() / jnp.abs(b).max()),
                         ours(q, k, v), exact)
    work = 14 * batch * heads * tokens**2 * dim  # forward 4, backward 10: scores made again
    return {"shape": [batch, tokens, heads, kv, dim], "masked": masked,
            "fused": layers.has_fused(q, 0.0), "error": wrong[0], "gradient_errors": wrong[1],
            "flops": work / seconds(lambda: ours(q, k, v), 10)}


class Model:
    """The paper's model on one device, frozen weights in bfloat16."""

    def __init__(self, cfg: config.Config):
        self.cfg, self.devices = cfg, mesh.make(1, jax.devices()[:1])
        self.tx = train.optimizer(cfg.train)
        _, self.state, frozen = train.init(cfg, self.tx, self.devices)
        halve = jax.jit(partial(jax.tree.map, lambda x: x.astype(jnp.bfloat16)), donate_argnums=0)
        self.frozen = jax.block_until_ready(halve(frozen))

    def graph(self, cfg: config.Config) -> nnx.GraphDef:
        """Of another configuration with the same leaves."""
        return nnx.split(weights.shapes(cfg.model), trainable(cfg.model), ...)[0]

    def part(self, name: str, cfg: config.Config) -> tuple[nnx.GraphDef, nnx.State]:
        """A tower in bfloat16: what can be jitted, and its arrays."""
        merged = nnx.merge(self.graph(cfg), self.state.params, self.frozen)
        graph, state = nnx.split(getattr(merged, name))
        return graph, jax.tree.map(lambda x: x.astype(jnp.bfloat16), state)


def forwards(model: Model, images: int) -> dict[str, tuple]:
    """Name → (what to compile, its arguments, images or tokens, FLOP)."""
    cfg, n = model.cfg, cost.sizes(model.cfg)
    work, side = cost.flops(cfg)["forward"], cfg.model.low.image
    width, length = cfg.model.decoder.width, n.sequence
    view = jax.random.randint(jax.random.key(0), (images, *(cfg.video.high_size,) * 2, 3), 0, 256)
    patches = jax.random.uniform(jax.random.key(1), (8 * images, side, side, 3), jnp.bfloat16)
    x = jax.random.normal(jax.random.key(2), (images // 8 or 1, length, width), jnp.bfloat16)
    seen = jnp.ones(x.shape[:2], bool)

    def tower(name: str, call: Callable, given: jax.Array) -> tuple:
        graph, state = model.part(name, cfg)
        run = jax.jit(lambda state, x: call(nnx.merge(graph, state), x))
        return run, (state, given)

    def decode(decoder, x):
        return decoder(x, prefix_mask(seen, jnp.arange(length)[None] >= length - ANSWER),
                       positions(seen))

    return {
        "SigLIP, images": (*tower("high", lambda m, x: m(x), view.astype(jnp.uint8)),
                           images, images * work["high"] / n.frames),
        "VideoPrism, patches": (*tower("low", lambda m, x: m.images(x), patches), len(patches),
                                len(patches) * work["low"] / n.frames / n.patches),
        "Gemma, tokens": (*tower("decoder", decode, x), x.shape[0] * length,
                          len(x) * work["decoder"] / cfg.train.batch),
    }


def stepped(model: Model, changes: dict, batch: int) -> tuple:
    """(configuration, the jitted step, its batch)."""
    cfg = config.replace(model.cfg, batch=batch, **changes)
    step = train.make_step(model.graph(cfg), model.tx, cfg.train.weights, model.devices)
    return cfg, step, mesh.put(cost.random_batch(cfg, ANSWER), model.devices)


def step_numbers(
    model: Model, cfg: config.Config, batch: dict, repeats: int, step: Callable
) -> dict:
    """MFU counts no operation twice; `hfu` counts what is recomputed as well."""

    def once():
        model.state, parts = step(model.state, model.frozen, batch)
        return parts

    took, counted = seconds(once, repeats), cost.flops(cfg, ANSWER)
    plain = cost.flops(config.replace(cfg, **{"model.remat": ""}), ANSWER)
    useful = plain["step"].sum() - plain.loc["logits", "forward"]
    held = step.memory_analysis()
    return {
        "batch": cfg.train.batch, "tokens": cost.sizes(cfg).sequence, "seconds": took,
        "items_per_s": cfg.train.batch / took,
        "model_flop": useful, "mfu": useful / took / PEAK,
        "hfu": counted["step"].sum() / took / PEAK, "model_flops": useful / took,
        "bytes": held.argument_size_in_bytes + held.temp_size_in_bytes
        + held.output_size_in_bytes - held.alias_size_in_bytes,
        "losses": once().tolist(),
        "peak_bytes": (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
    }


def decoding(model: Model, batch: int, steps: int, unroll: int) -> tuple:
    """(jitted greedy decoding after two frames and a prompt, its arguments, bytes of a step)."""
    cfg = config.replace(model.cfg, **{"model.unroll": unroll})
    graph, state = model.part("decoder", cfg)
    n, d = cost.sizes(cfg), cfg.model.decoder
    length = 2 * (n.high + n.low) + 64
    x = jax.random.normal(jax.random.key(0), (batch, length, d.width), jnp.bfloat16)
    run = jax.jit(lambda state, x: nnx.merge(graph, state).generate(
        x, jnp.ones(x.shape[:2], bool), steps, -1))
    read = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    return run, (state, x), read + batch * 4 * d.layers * d.kv_heads * d.head_dim * (length + steps)


SHOWN = {
    "ceilings": {"product_flops": ("product, TFLOP/s", 1e-12), "copy_bytes": ("copy, TB/s", 1e-12),
                 "read_bytes": ("read, TB/s", 1e-12)},
    "attention": {"fused": ("cuDNN", 1), "error": ("error", 1), "flops": ("TFLOP/s", 1e-12)},
    "forward": {"count": ("batch", 1), "per_s": ("a second", 1), "flops": ("TFLOP/s", 1e-12),
                "mfu": ("MFU, %", 100)},
    "step": {"batch": ("items", 1), "seconds": ("seconds", 1), "items_per_s": ("items a second", 1),
             "bytes": ("GB", 1e-9), "model_flops": ("TFLOP/s", 1e-12), "mfu": ("MFU, %", 100)},
    "decoding": {"step_s": ("ms a step", 1e3), "tokens_per_s": ("tokens a second", 1),
                 "share_of_bound": ("of the bound, %", 100)},
}
"""What the notebooks show of each part: column → heading and unit."""


def table(path: Path, part: str) -> pd.DataFrame:
    """A part of the file that `measure` wrote, a row for each name; "not run" where it isn't."""
    found = records.read_json(path)
    if part not in found:
        return pd.DataFrame({"device": ["not run"]})
    rows = {name: {"device": found["device"]} | {
        heading: numbers[k] if unit == 1 else numbers[k] * unit
        for k, (heading, unit) in SHOWN[part].items()} for name, numbers in found[part].items()}
    return pd.DataFrame(rows).T


class Measured:
    """Numbers by part and name, written to `path` after each; programs compile side by side."""

    def __init__(self, path: Path, limit: float, only: str, about: dict[str, Any]):
        self.path, self.only, self.begun, self.limit = path, only, time.perf_counter(), limit
        self.found = {**about, "errors": {}}
        self.pool, self.programs, self.jobs = ThreadPoolExecutor(6), [], []

    def left(self) -> float:
        """Seconds."""
        return max(self.limit - (time.perf_counter() - self.begun), 1)

    def say(self, *words: Any) -> None:
        """A line of progress."""
        print(f"{self.limit - self.left():6.1f} s ", *words, flush=True)

    def add(self, part: str, name: str, make: Callable[[], dict]) -> None:
        """Something to measure later, in the order of adding."""
        if not self.only or any(word in f"{part}: {name}" for word in self.only.split("|")):
            self.jobs.append((part, name, make))

    def program(self, part: str, name: str, run: Callable, args: tuple, numbers: Callable,
                options: dict | None = None) -> None:
        """`add` of what is compiled first: `numbers` takes the compiled `run`."""
        def make() -> dict:
            return numbers(program.result(timeout=self.left()))

        before = len(self.jobs)
        self.add(part, name, make)
        if len(self.jobs) > before:
            lowered = run.lower(*args)
            program = self.pool.submit(lambda: lowered.compile(compiler_options=options or None))
            self.programs.append(program)

    def measure(self) -> None:
        """Do all that was added; an error is written down, and the rest goes on."""
        self.say(len(self.programs), "programs are being compiled")
        wait(self.programs, 0.6 * self.limit)  # nothing is timed while something compiles
        for program in self.programs:
            program.cancel()
        for part, name, make in self.jobs:
            try:
                found = jax.tree.map(lambda x: x.item() if hasattr(x, "item") else x, make())
                self.found.setdefault(part, {})[name] = found
            except Exception as error:  # an option this compiler lacks, too little memory
                found = f"{type(error).__name__}: {error}"[:500]
                self.found["errors"][f"{part}: {name}"] = found
            self.say(f"{part}: {name}", found)
            self.found["seconds"] = self.limit - self.left()
            records.write_json(self.path, self.found)


def measure(profile: str, path: Path, limit: float, only: str, batch: int) -> None:
    """Write the numbers to `path`."""
    device, cfg = jax.devices()[0], paper(profile)
    big, n, m = device.platform == "gpu", cost.sizes(cfg), cfg.model
    repeats, steps = (5, 256) if big else (1, 4)
    todo = Measured(path, limit, only, {
        "device": device.device_kind, "profile": profile, "peak_flops": PEAK,
        "versions": {p: metadata.version(p) for p in ("jax", "jaxlib", "flax", "optax")}})
    model = Model(cfg)
    memory = (device.memory_stats() or {}).get("bytes_limit", 0)
    batch = batch or (2 if not big else 12 if memory > 100e9 else 8)
    todo.say(device.device_kind, f"{memory / 1e9:.0f} GB, weights made")

    todo.add("ceilings", "ceilings", partial(ceilings, 8192 if big else 256))
    heads = m.high.heads, m.high.heads, m.high.width // m.high.heads
    todo.add("attention", "SigLIP", partial(attention, 8 if big else 1, n.high, *heads, False))
    heads = m.decoder.heads, m.decoder.kv_heads, m.decoder.head_dim
    todo.add("attention", "Gemma", partial(attention, 2 if big else 1, n.sequence, *heads, True))

    def forward(args: tuple, count: int, work: float, go: Callable) -> dict:
        took = seconds(lambda: go(*args), repeats)
        return {"count": count, "per_s": count / took, "flops": work / took,
                "mfu": work / took / PEAK}

    def decode(args: tuple, b: int, held: int, go: Callable) -> dict:
        took = seconds(lambda: go(*args), 2) / steps
        bound = held / todo.found["ceilings"]["ceilings"]["copy_bytes"]
        return {"tokens_per_s": b / took, "bytes": held, "share_of_bound": bound / took,
                "step_s": took}

    for name, (changes, options) in STEPS.items():
        changed, step, data = stepped(model, changes, batch)
        todo.program("step", name, step, (model.state, model.frozen, data),
                     partial(step_numbers, model, changed, data, repeats), options)
    for b, unroll in ((1, 18), (8, 18), (1, 1)):
        run, args, held = decoding(model, b, steps, unroll)
        name = f"batch {b}, {'layers apart' if unroll > 1 else 'stack'}"
        todo.program("decoding", name, run, args, partial(decode, args, b, held))
    for name, (run, args, count, work) in forwards(model, 64 if big else 2).items():
        todo.program("forward", name, run, args, partial(forward, args, count, work))
    todo.measure()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--profile", default="paper", choices=config.PRESETS)
    parser.add_argument("--limit", type=float, default=230, help="seconds in all")
    parser.add_argument("--only", default="", help="parts and names, such as 'decoding|blocks'")
    parser.add_argument("--batch", type=int, default=0, help="items of a step; 0: by memory")
    args = parser.parse_args()
    measure(args.profile, args.out, args.limit, args.only, args.batch)
    os._exit(0)  # compilations that took too long still run


if __name__ == "__main__":
    main()
