"""Training: state, step, loop (Sec. 3.2 and 4.1)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from flax import nnx
from jax import Array
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeRemainingColumn,
)

from cpllm import config, losses, metrics, records
from cpllm.data import annotate, manifests, text
from cpllm.data.batches import Batch, PairBatches, prefetch, store_frames
from cpllm.infer import Scorer
from cpllm.model import weights
from cpllm.model.cpllm import CPLLM
from cpllm.model.lora import trainable

PARTS = ("ranking", "regression", "text")
PRINT_EVERY = 100
"""Steps between lines where there is no terminal."""


class Run(NamedTuple):
    """What training leaves in memory: the scorer, and `history` with a row per look."""

    scorer: Scorer
    history: pd.DataFrame


def optimizer(cfg: config.Train) -> optax.GradientTransformation:
    """Adam (decoupled decay, clipping and schedule as options; the paper states none of them)."""
    rate = cfg.learning_rate
    if cfg.schedule == "cosine":
        if cfg.warmup >= cfg.steps:
            raise ValueError(
                f"train.warmup: expected fewer than {cfg.steps} steps, got {cfg.warmup}"
            )
        rate = optax.warmup_cosine_decay_schedule(0.0, rate, cfg.warmup, cfg.steps)
    adam = optax.adamw(rate, weight_decay=cfg.weight_decay)
    return optax.chain(optax.clip_by_global_norm(cfg.clip_norm), adam) if cfg.clip_norm else adam


def parameter_table(model: config.Model) -> pd.DataFrame:
    """Parameters of each part, and how many of them are trained. Builds shapes only."""
    chosen = nnx.filterlib.to_predicate(trainable(model))
    leaves = [
        (path, leaf, np.prod(leaf.shape, dtype=int))
        for path, leaf in nnx.to_flat_state(nnx.state(weights.shapes(model), nnx.Param))
    ]
    table = pd.DataFrame(
        [(path[0], n, n * bool(chosen(path, leaf))) for path, leaf, n in leaves],
        columns=["part", "parameters", "trained"],
    )
    return table.groupby("part", sort=False).sum()


def forward(model: CPLLM, batch: dict[str, Array]) -> tuple[Array, Array]:
    """Quality float32[B,2] and the text's hidden states [B,L,D] of a batch of pairs and singles."""
    u, v = model.see(batch["view"], batch["patches"], batch["present"])
    members = [batch["first"], batch["second"]]
    q_hat = model.score(u, v)
    seen = [(u[i], v[i]) for i in members]
    hidden = model.read(
        seen, members[0] != members[1], {k: batch[k] for k in ("tokens", "valid", "answer")}
    )
    return jnp.stack([q_hat[i] for i in members], 1), hidden


def loss_parts(model: CPLLM, batch: dict[str, Array]) -> tuple[Array, Array, Array]:
    """L1, L2 and L3 of a batch."""
    q_hat, hidden = forward(model, batch)
    targets, answer = batch["tokens"][:, 1:], batch["answer"][:, 1:]
    return (
        losses.ranking_loss(batch["q"], q_hat),
        losses.regression_loss(batch["q"][:, 0], q_hat[:, 0], batch["has_mos"]),
        losses.text_loss(hidden[:, :-1], model.decoder.logits, targets, answer),
    )


def make_step(graph: nnx.GraphDef, tx: optax.GradientTransformation, weights: tuple) -> Callable:
    """The jitted step (params, frozen, opt_state, batch) → (params, opt_state, parts)."""

    def objective(params, frozen, batch):
        parts = loss_parts(nnx.merge(graph, params, frozen), batch)
        return losses.total_loss(parts, weights), parts

    @partial(jax.jit, donate_argnums=(0, 2))
    def step(params, frozen, opt_state, batch):
        grads, parts = jax.grad(objective, has_aux=True)(params, frozen, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, jnp.stack(parts)

    return step


def fit(
    cfg: config.Config,
    rows: pd.DataFrame,
    videos: Path,
    store: Path,
    look: Callable[[Scorer], dict[str, float]] = lambda _: {},
) -> Run:
    """Train on the manifest's rows; every `select_every` steps `look` measures the model.

    rows: the training split; videos: folder of its files; store: folder for decoded frames.
    Raises FloatingPointError at the first step with a loss that is not finite.
    """
    store_frames(rows, videos, store, cfg)
    described = [annotate.describe(r) for r in rows.to_dict("records")]
    tokenizer = text.train_tokenizer(described, cfg.model.decoder.vocab)
    batches = PairBatches(rows, store, tokenizer, cfg)
    model = CPLLM(cfg.model, nnx.Rngs(cfg.train.seed))
    graph, params, frozen = nnx.split(model, trainable(cfg.model), ...)
    tx = optimizer(cfg.train)
    step, opt_state = make_step(graph, tx, cfg.train.weights), tx.init(params)
    history, recent = [], []
    with _bar() as bar:
        task = bar.add_task("train", total=cfg.train.steps, losses="")
        for i, batch in enumerate(prefetch(batches, 0, cfg.train.steps), 1):
            params, opt_state, parts = step(params, frozen, opt_state, batch)
            recent.append(_finite(np.asarray(parts), i))
            bar.update(task, advance=1, losses=_show(recent[-50:]))
            if bar.disable and i % PRINT_EVERY == 0:
                bar.console.print(_line(bar.tasks[task], recent[-50:]))
            if i % cfg.train.select_every == 0 or i == cfg.train.steps:
                scorer = Scorer(cfg, nnx.merge(graph, params, frozen), tokenizer)
                history.append({"step": i, **_mean(recent), **look(scorer)})
                recent = []
    return Run(scorer, pd.DataFrame(history))


def _bar() -> Progress:
    """Bar with losses and ETA on a terminal; a notebook or log gets a `_line` now and then."""
    console = Console(stderr=True, force_jupyter=False, soft_wrap=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[losses]}"),
        console=console,
        disable=not console.is_terminal,
    )


def _line(task: Task, recent: list[np.ndarray]) -> str:
    left = task.elapsed * (task.total / task.completed - 1)
    return f"step {task.completed:.0f}/{task.total:.0f}  {_show(recent)}  {left:.0f} s left"


def _mean(recent: list[np.ndarray]) -> dict[str, float]:
    return dict(zip(PARTS, np.mean(recent, 0).tolist(), strict=True))


def _show(recent: list[np.ndarray]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in _mean(recent).items())


def _finite(parts: np.ndarray, step: int) -> np.ndarray:
    if not np.isfinite(parts).all():
        found = ", ".join(f"{n}={v}" for n, v in zip(PARTS, parts, strict=True))
        raise FloatingPointError(f"step {step}: expected finite losses, got {found}")
    return parts


def validation_look(rows: pd.DataFrame, videos: Path) -> Callable[[Scorer], dict[str, float]]:
    """A `look` that scores the validation rows: pooled SRCC, and flip rate at diff=10."""
    cache: dict[str, Batch] = {}

    def look(scorer: Scorer) -> dict[str, float]:
        table = scorer.predict(rows, videos, cache)
        return {
            "validation_srcc": metrics.srcc(table["prediction"], table["proxy"]),
            "validation_flip_10": metrics.flip_rate(table, 10).strict,
        }

    return look


def _store(data: Path, cfg: config.Config) -> Path:
    """Folder of decoded frames, by what their decoding depends on."""
    size = f"{cfg.video.fit_width}x{cfg.video.fit_height}{'+' * cfg.video.enlarge}"
    return data / f"frames-{cfg.train.frames}-{size}"


def run(cfg: config.Config, run_id: str, data: Path, results: Path) -> dict[str, Any]:
    """Train one configuration and write its run record; returns the metrics.

    data: folder that `ladder.build` filled (videos and `manifest.csv`). The weights go to
    `data/weights/<run_id>.safetensors`; test rows are never opened here.
    """
    begun = records.start()
    table = manifests.read(data / "manifest.csv")
    rows = {s: table[table["split"] == s] for s in ("train", "validation")}
    look = validation_look(rows["validation"], data)
    done = fit(cfg, rows["train"], data, _store(data, cfg), look)
    folder = records.run_folder(results, cfg.profile, run_id)
    done.scorer.save(data / "weights" / f"{run_id}.safetensors")
    numbers = done.history.iloc[-1].to_dict()
    records.write_csv(folder / "history.csv", done.history)
    records.write_json(folder / "config.json", cfg.to_dict())
    records.write_json(folder / "metrics.json", numbers)
    records.write_json(
        folder / "provenance.json",
        records.provenance(begun, cfg.train.seed, manifests.sha256(data / "manifest.csv")),
    )
    return numbers
