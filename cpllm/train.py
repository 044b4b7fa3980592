"""Training: state, step, loop (Sec. 3.2 and 4.1)."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from flax import nnx
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from tokenizers import Tokenizer

from cpllm import config, features, losses, mesh, metrics, pretrain, pretrain_low, records
from cpllm.data import annotate, manifests, text
from cpllm.data.batches import Batch, PairBatches, frame_store, prefetch, store_frames
from cpllm.infer import Scorer
from cpllm.model import rivals, weights
from cpllm.model.lora import trainable

if TYPE_CHECKING:  # orbax takes a second to import, and a training without a folder needs none
    from cpllm.checkpoint import Checkpoints

Tensors = dict[str, np.ndarray]
PARTS = ("ranking", "regression", "text")
PRINT_EVERY = 100
"""Steps between lines where there is no terminal."""
WINDOW = 50
"""Steps whose losses say whether training diverges."""


class Run(NamedTuple):
    """What training leaves in memory: the scorer, and `history` with a row per look."""

    scorer: Scorer
    history: pd.DataFrame


def optimizer(cfg: config.Train) -> optax.GradientTransformation:
    """Adam (decoupled decay, clipping and schedule as options; the paper states none of them)."""
    rate = cfg.learning_rate
    if cfg.schedule == "cosine":
        updates = cfg.steps // cfg.accumulate
        if cfg.warmup >= updates:
            raise ValueError(f"train.warmup: expected fewer than {updates}, got {cfg.warmup}")
        rate = optax.warmup_cosine_decay_schedule(0.0, rate, cfg.warmup, updates)
    tx = optax.adamw(rate, weight_decay=cfg.weight_decay)
    if cfg.clip_norm:
        tx = optax.chain(optax.clip_by_global_norm(cfg.clip_norm), tx)
    return optax.MultiSteps(tx, cfg.accumulate) if cfg.accumulate > 1 else tx


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


class State(NamedTuple):
    """What a step changes: the trainable parameters and the optimiser's moments of just these."""

    params: nnx.State
    opt_state: optax.OptState


def forward(
    model: nnx.Module, batch: dict[str, Array], groups: int = 1
) -> tuple[Array, list[tuple[Array, ...]]]:
    """Quality float32[B,2] of a batch of pairs and singles, and what was seen of both members."""
    features = model.see(*(batch[k] for k in model.inputs))
    members = [batch["first"], batch["second"]]

    def pick(x: Array, index: Array) -> Array:  # within a group, so that no device asks another
        grouped = x.reshape(groups, len(x) // groups, *x.shape[1:]), index.reshape(groups, -1)
        return jax.vmap(lambda x, i: x[i])(*grouped).reshape(len(index), *x.shape[1:])

    q_hat = model.score(*features)
    seen = [tuple(pick(x, i) for x in features) for i in members]
    return jnp.stack([pick(q_hat, i) for i in members], 1), seen


def loss_parts(
    model: nnx.Module, batch: dict[str, Array], groups: int = 1, ranking: str = "product"
) -> tuple[Array, Array, Array]:
    """L1, L2 and L3, or what a compared model has in its place, of a batch in `groups`."""
    q_hat, seen = forward(model, batch, groups)
    return (
        losses.RANKING[ranking](batch["q"], q_hat),
        losses.regression_loss(batch["q"][:, 0], q_hat[:, 0], batch["has_mos"]),
        model.own_loss(seen, batch),
    )


def init(
    cfg: config.Config,
    tx: optax.GradientTransformation,
    devices: Mesh,
    given: Tensors | None = None,
) -> tuple[nnx.GraphDef, State, nnx.State]:
    """(graph, state, frozen parameters), made on the devices where `mesh.RULES` put each leaf.

    given: leaves by name, as `weights.names` spells them, that do not start from random numbers.
    """
    graph, *_ = nnx.split(weights.shapes(cfg.model), trainable(cfg.model), ...)

    def make(key: Array, given: Tensors):
        model = rivals.build(cfg.model, nnx.Rngs(key))
        _, *states = nnx.split(model, trainable(cfg.model), ...)
        params, frozen = (weights.fill(state, given) for state in states)
        params = jax.tree.map(lambda x: x.astype(jnp.float32), params)  # also of a 16-bit file
        return State(params, tx.init(params)), frozen

    start = jax.random.key(cfg.train.seed), mesh.spread(given or {}, devices)
    where = mesh.shardings(jax.eval_shape(make, *start), devices)
    return graph, *jax.jit(make, out_shardings=where)(*start)


def make_step(
    graph: nnx.GraphDef,
    tx: optax.GradientTransformation,
    weights: tuple,
    devices: Mesh | None = None,
    ranking: str = "product",
) -> Callable:
    """The jitted step (state, frozen, batch) → (state, parts); `state`'s buffers are reused.

    ranking: which of `losses.RANKING`.
    """
    groups = devices.size if devices else 1

    def objective(params, frozen, batch):
        with mesh.known(devices):
            parts = loss_parts(nnx.merge(graph, params, frozen), batch, groups, ranking)
        return losses.total_loss(parts, weights), parts

    @partial(jax.jit, donate_argnums=0)
    def step(state, frozen, batch):
        grads, parts = jax.grad(objective, has_aux=True)(state.params, frozen, batch)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        return State(optax.apply_updates(state.params, updates), opt_state), jnp.stack(parts)

    return step


def fit(
    cfg: config.Config,
    rows: pd.DataFrame,
    videos: Path,
    store: Path,
    look: Callable[[Scorer], dict[str, float]] = lambda _: {},
    folder: Path | None = None,
    fsdp: int = 1,
    given: Tensors | None = None,
    tokenizer: Tokenizer | None = None,
    workers: int = 0,
    shown: tuple[np.ndarray, pd.DataFrame] | None = None,
) -> Run:
    """Train on the manifest's rows; every `select_every` steps `look` measures the model.

    rows: the training split; videos: folder of its files; store: folder for decoded frames;
    folder: of checkpoints, from whose last one training goes on; fsdp: see `mesh.make`;
    given: see `init`; tokenizer: made for the descriptions where there is none; workers: processes
    that prepare batches, else a thread; shown: pictures to tell of, see `PairBatches`.
    Raises FloatingPointError at the first step with a loss that is not finite, and when losses
    diverge (`_diverges`), SystemExit(0) when SIGTERM asked to stop and a checkpoint is saved.
    """
    devices = mesh.make(fsdp)
    store_frames(rows, videos, store, cfg)
    described = [annotate.describe(r) for r in rows.to_dict("records")]
    tokenizer = tokenizer or text.train_tokenizer(described, cfg.model.decoder.vocab)
    tx = optimizer(cfg.train)
    graph, state, frozen = init(cfg, tx, devices, given)
    step = make_step(graph, tx, cfg.train.weights, devices, cfg.train.ranking)

    def scorer(state: State) -> Scorer:
        params = mesh.whole((state.params, frozen), devices)
        return Scorer(cfg, nnx.merge(graph, *params), tokenizer)

    seen = None
    if cfg.train.cache_high:
        seen = features.ensure(cfg, scorer(state).model.high, rows, store)
    batches = PairBatches(rows, store, tokenizer, cfg, devices.size, mesh.own(devices), seen, shown)
    with _checkpoints(folder, cfg) as kept:
        state, log = _loop(
            cfg.train,
            batches,
            state,
            lambda state, batch: step(state, frozen, mesh.put(batch, devices)),
            lambda state: look(scorer(state)),
            kept,
            workers,
        )
    return Run(scorer(state), pd.DataFrame(log["history"]))


def _loop(
    cfg: config.Train, batches, state: State, step, look, kept, workers: int = 0
) -> tuple[State, dict]:
    """Steps from the last checkpoint to the end: (state, log of looks and of losses since)."""
    log = {"history": [], "recent": [], "totals": [], "lowest": []}
    start, state, log = (kept and kept.restore(state)) or (0, state, log)
    ahead = prefetch(batches, start, cfg.steps, workers=workers)
    with _bar() as bar, _preemption() as asked, closing(ahead):
        task = bar.add_task("train", total=cfg.steps, completed=start, since=start, news="")
        for i, batch in enumerate(ahead, start + 1):
            state, parts = step(state, batch)
            parts = np.asarray(parts, float)
            rising, wrong = _diverges(parts, log, cfg)
            if wrong:
                _stop(wrong, i, batches, kept)
            log["recent"].append(parts.tolist())
            _advance(bar, task, log["recent"], cfg.batch)
            looked = {}
            if i % cfg.select_every == 0 or i == cfg.steps:
                looked = {"step": i, **_mean(log["recent"]), **look(state)}
                log = {**log, "history": [*log["history"], looked], "recent": []}
            stop = asked(i)
            if kept and ((i % cfg.save_every == 0 and not rising) or stop):
                norm = jax.block_until_ready(_norm(state.params))  # on all devices, float() on one
                if not np.isfinite(float(norm)):
                    _stop("expected finite parameters after it, got others", i, batches, kept)
                kept.save(i, state, log, looked, wait=stop)
            if stop and i < cfg.steps:
                bar.console.print(f"asked to stop: step {i} is saved; --resume goes on from there")
                raise SystemExit(0)
    return state, log


_norm = jax.jit(optax.tree.norm)
"""As one program: op by op, a sum of cut arrays is many that talk, whose order is each device's own
on CPUs, and processes then wait for each other for ever."""


@contextmanager
def _checkpoints(folder: Path | None, cfg: config.Config) -> Iterator[Checkpoints | None]:
    if folder is None:
        yield None
        return
    from cpllm.checkpoint import Checkpoints

    kept = Checkpoints(folder, cfg.to_dict(), cfg.train.keep)
    try:
        yield kept
    finally:
        kept.close()


@contextmanager
def _preemption() -> Iterator[Callable[[int], bool]]:
    """A question to ask after each step: has SIGTERM asked all processes to stop after it?"""
    asked = threading.Event()
    if jax.process_count() > 1:  # jax's own service agrees on a step that all can save
        yield multihost_utils.reached_preemption_sync_point
    elif threading.current_thread() is not threading.main_thread():
        yield lambda _: False
    else:
        before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
        try:
            yield lambda _: asked.is_set()
        finally:
            signal.signal(signal.SIGTERM, before)


def _bar() -> Progress:
    """Bar with losses and ETA on a terminal; a notebook or log gets a `_line` now and then."""
    console = Console(stderr=True, force_jupyter=False, soft_wrap=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[news]}"),
        console=console,
        disable=not console.is_terminal,
    )


def _advance(bar: Progress, task: int, recent: list, batch: int) -> None:
    """One step on: losses over the last 50 and pairs a second, in the bar or as a line."""
    now = bar.tasks[task]
    done = now.completed - now.fields["since"] + 1
    news = f"{_show(recent[-50:])}  {done * batch / now.elapsed:.1f} pairs/s"
    bar.update(task, advance=1, news=news)
    if bar.disable and now.completed % PRINT_EVERY == 0:
        left = now.elapsed / done * (now.total - now.completed)
        bar.console.print(f"step {now.completed:.0f}/{now.total:.0f}  {news}  {left:.0f} s left")


def _mean(recent: list[np.ndarray]) -> dict[str, float]:
    return dict(zip(PARTS, np.mean(recent, 0).tolist(), strict=True))


def _show(recent: list[np.ndarray]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in _mean(recent).items())


def _diverges(parts: np.ndarray, log: dict, cfg: config.Train) -> tuple[bool, str]:
    """(whether this step's loss is too high to save after it, why training has to stop or "").

    The total loss diverges when more than half of the last WINDOW steps cost more than
    `cfg.diverged` times the lowest median of ten steps so far, which counts as 1/4 a loss at least.
    Noise, spikes and ranking's rise from nearly zero are none of that: an untrained model's L2
    alone is below 1/4, and a run that learns does not stay at three times what it had reached.
    """
    if not np.isfinite(parts).all():
        found = ", ".join(f"{n}={v}" for n, v in zip(PARTS, parts, strict=True))
        return True, f"expected finite losses, got {found}"
    log["totals"] = [*log["totals"], float(losses.total_loss(parts, cfg.weights))][-WINDOW:]
    log["lowest"] = [min([*log["lowest"], float(np.median(log["totals"][-10:]))])]
    most = cfg.diverged * max(*log["lowest"], sum(cfg.weights) / 4)
    high = [x for x in log["totals"] if x > most > 0]
    wrong = f"the loss diverges: {len(high)} of the last {WINDOW} steps cost over {most:.4g}, " \
            f"{cfg.diverged:g} times the lowest so far (train.diverged); now {_show([parts])}"
    return log["totals"][-1] in high, wrong if 2 * len(high) > WINDOW else ""


def _stop(wrong: str, step: int, batches: PairBatches, kept) -> None:
    last = f"the last good checkpoint is step {kept.latest}" if kept else "no checkpoint was kept"
    raise FloatingPointError(
        f"step {step}: {wrong}; {last}. "
        f"Videos of this batch: {', '.join(batches.videos(step - 1))}"
    )


def validation_look(rows: pd.DataFrame, videos: Path) -> Callable[[Scorer], dict[str, float]]:
    """A `look` that scores the validation rows: pooled SRCC, and flip rate at diff=10."""
    cache: dict[str, Batch] = {}

    def look(scorer: Scorer) -> dict[str, float]:
        table = scorer.predict(rows, videos, cache)
        found = {"validation_srcc": metrics.srcc(table["prediction"], manifests.quality(rows))}
        if "crf" in table:
            found["validation_flip_10"] = metrics.flip_rate(table, 10).strict
        return found

    return look


def _some_scenes(rows: pd.DataFrame, n: int) -> pd.DataFrame:
    """Rows of `n` scenes, spread evenly over their names; 0: of all."""
    scenes = sorted(rows["scene"].unique())
    return rows[rows["scene"].isin(scenes[:: max(len(scenes) // n, 1)][:n])] if n else rows


def _pretrained(cfg: config.Config, data: Path) -> tuple[Tensors, Tokenizer | None]:
    """What training begins with where no file is given, as far as the configuration asks."""
    tensors, tokenizer = {}, None
    if cfg.train.pretrained:
        tensors, tokenizer = pretrain.load(pretrain.ensure(cfg, data), cfg.model)
    if cfg.pretrain_low.steps:
        tensors |= pretrain_low.load(pretrain_low.ensure(cfg, data), cfg.model)
    return tensors, tokenizer


def run(
    cfg: config.Config,
    run_id: str,
    data: Path,
    results: Path,
    resume: bool = True,
    fsdp: int = 1,
    start: Path | None = None,
    workers: int = 0,
) -> dict[str, Any]:
    """Train one configuration and write its run record; returns the metrics.

    data: folder that `ladder.build` filled (videos and `manifest.csv`), or with wide scenes the
    neighbour that `config.clips` names; start: weights file to begin with; workers: see `fit`.
    The weights go to `data/weights/<run_id>.safetensors`; test rows are never opened
    here. A run that was cut short goes on from its last checkpoint in `data/checkpoints/<run_id>`,
    or anew without `resume`; once the record is written the checkpoints are removed.
    """
    begun = records.start()
    clips = config.clips(cfg, data)
    table = annotate.attach(manifests.read(clips / "manifest.csv"), clips / "descriptions.jsonl")
    rows = {s: table[table["split"] == s] for s in manifests.TRAINING}
    for of, names in (("family", cfg.data.without), ("distortion", cfg.data.without_faults)):
        rows["train"] = manifests.without(rows["train"], names, of)
    look = validation_look(_some_scenes(rows["validation"], cfg.train.select_scenes), clips)
    kept = records.checkpoints(data, run_id)
    if not resume:
        shutil.rmtree(kept, ignore_errors=True)
    given = weights.given(start, cfg.model) if start else _pretrained(cfg, data)
    store = frame_store(clips, cfg)
    shown = pretrain.pictured(cfg, data) if cfg.train.told_pictures else None
    done = fit(cfg, rows["train"], clips, store, look, kept, fsdp, *given, workers=workers,
               shown=shown)
    numbers = done.history.iloc[-1].to_dict()
    if jax.process_index() == 0:
        done.scorer.save(data / "weights" / f"{run_id}.safetensors")
        folder = records.run_folder(results, cfg.profile, run_id)
        records.write_csv(folder / "history.csv", done.history)
        records.write_json(folder / "config.json", cfg.to_dict())
        records.write_json(folder / "metrics.json", numbers)
        seen = manifests.sha256(clips / "manifest.csv", manifests.TRAINING)
        made = records.provenance(begun, cfg.train.seed, seen)
        records.write_json(folder / "provenance.json", made)
        shutil.rmtree(kept, ignore_errors=True)
    return numbers
