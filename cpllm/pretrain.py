"""Stand-ins for public checkpoints, so that "frozen" and LoRA mean something at pocket size.

The high-level encoder learns from frames and captions by SigLIP's contrastive loss; the decoder
from descriptions as a language model, and with the projection before it what the encoder's tokens
say, as PaliGemma's does. Training scenes, and pictures of their families that have no clips; one
result serves all seeds and regimes, in a file named after a hash of all that it depends on.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from flax import nnx
from jax import Array
from rich.console import Console
from rich.progress import track
from tokenizers import Tokenizer

from cpllm import config, losses, records
from cpllm.data import annotate, manifests, pictures, text, video
from cpllm.data.batches import Batch, frame_store, store_frames, stored
from cpllm.model import weights
from cpllm.model.cpllm import prefix_mask
from cpllm.model.gemma import Gemma, positions
from cpllm.model.layers import Dense
from cpllm.model.siglip import Siglip

CODE = ("pretrain.py", "losses.py", "data/annotate.py", "data/batches.py", "data/families.py",
        "data/pictures.py", "data/scenes.py", "data/text.py", "model/siglip.py", "model/gemma.py",
        "model/layers.py")
"""The modules that decide what comes out."""

CAPTIONS = 256
"""With which a frame is contrasted in a step, at most: scenes have fewer than half as many."""

PARTS = ("high", "project_high", "decoder")
SAVE_EVERY = 500
"""Steps between checkpoints."""


class Contrast(nnx.Module):
    """Both sides of the contrastive loss. What reads captions, a bag of words, is never used again.

    Not SigLIP's: the mean over tokens in place of an attention pool, no text transformer, a bias
    that starts at -5, since of our captions more than one in thousands is right, and as few as they
    are, all of them to contrast with, not a batch's own alone.
    """

    def __init__(self, model: config.Model, rngs: nnx.Rngs):
        self.high = Siglip(model, rngs)
        shape = model.decoder.vocab, model.high.width
        self.words = nnx.Param(jax.random.normal(rngs.params(), shape))
        self.log_scale, self.bias = nnx.Param(jnp.log(10.0)), nnx.Param(jnp.array(-5.0))

    def see(self, views: Array) -> Array:
        """uint8[B,H,H,3] → unit vectors float[B,D_h]."""
        return _unit(self.high(views).mean(1))

    def read(self, tokens: Array, valid: Array) -> Array:
        """int[B,L] and bool[B,L] → unit vectors float[B,D_h]."""
        return _unit(self.words[...][tokens].mean(1, where=valid[..., None]))


class Reader(nnx.Module):
    """What reads the encoder's tokens: the projection and the decoder, by CP-LLM's names."""

    def __init__(self, model: config.Model, rngs: nnx.Rngs):
        self.project_high = Dense(model.high.width, model.decoder.width, rngs)
        self.decoder = Gemma(model, rngs)


def _unit(x: Array) -> Array:
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-6)


def contrastive_loss(x: Array, y: Array, same: Array, log_scale: Array, bias: Array) -> Array:
    """Zhai et al. 2023, Eq. 1: L = -1/B Σ_i Σ_j log σ(z_ij (t x_i·y_j + b)), t = exp(log_scale).

    x: float[B,D] and y: float[C,D], unit vectors of frames and captions; same: bool[B,C], where
    z_ij = 1 and not -1. Theirs has as many of both, and is the diagonal.
    """
    logits = jnp.exp(log_scale) * x @ y.T + bias
    return -jax.nn.log_sigmoid(jnp.where(same, logits, -logits)).sum() / len(x)


def text_loss(reader: Reader, seen: Array, shown: Array, tokens: Array, valid: Array,
              answer: Array) -> Array:
    """Eq. 3 of [u, text]: -log p of each answer token, given the frame, prompt and those before.

    seen: float[B,T_h,D_h], what the encoder made of a frame; shown: bool[B], False for a text
    without one; tokens, valid and answer as in `CPLLM.read`.
    """
    b, n = seen.shape[:2]
    x = jnp.concatenate([reader.project_high(seen), reader.decoder.embed(tokens)], 1)
    valid = jnp.concatenate([jnp.broadcast_to(shown[:, None], (b, n)), valid], 1)
    mask = prefix_mask(valid, jnp.pad(answer, [(0, 0), (n, 0)]))
    hidden = reader.decoder(x, mask, positions(valid))[:, n:]
    return losses.text_loss(hidden[:, :-1], reader.decoder.logits, tokens[:, 1:], answer[:, 1:])


def captioned(rows: pd.DataFrame, tokenizer: Tokenizer, length: int) -> Batch:
    """The C different captions of manifest rows, `caption` [C], with `tokens` and `valid` [C,L];
    and which of them each row has, `kind` int[N].
    """
    captions, kind = np.unique([annotate.caption(row) for row in rows.to_dict("records")],
                               return_inverse=True)
    packed = text.stack(text.pack(tokenizer, str(c), None, length) for c in captions)
    return {"caption": captions, "tokens": packed["tokens"], "valid": packed["valid"], "kind": kind}


def views(rows: pd.DataFrame, store: Path, size: int) -> np.ndarray:
    """uint8[N,F,size,size,3] of the F stored frames of each row."""
    return np.stack([video.resize(np.load(stored(store, r)), size) for r in rows.itertuples()])


def ensure(cfg: config.Config, data: Path) -> Path:
    """The file of pretrained towers for this configuration; trained now where it is missing.

    data: as in `train.run`. The losses lie beside it, `history` names the file; and until it is
    done its checkpoints, so that one that was cut short goes on.
    """
    path = data / "pretrained" / f"{key(cfg, data)}.safetensors"
    if not path.exists():
        kept = path.with_suffix("")
        tensors, tokenizer, log = fit(cfg, data, kept)
        records.write_csv(history(path), log)
        weights.write(path, tensors, cfg, tokenizer)
        shutil.rmtree(kept)
    return path


def history(path: Path) -> Path:
    """Of a pretrained file: CSV of the columns part, step, loss."""
    return path.with_suffix(".csv")


def key(cfg: config.Config, data: Path) -> str:
    """Hash of the settings, the manifest and the code."""
    package = Path(__file__).parent
    shown = ["data/photographs.py"] if cfg.data.wide_scenes else []  # see `pictures.catalog`
    made_of = {
        "model": [dataclasses.asdict(part) for part in (cfg.model.high, cfg.model.decoder)],
        "input": [cfg.train.max_text, frame_store(data, _plain(cfg)).name],
        "pretrain": dataclasses.asdict(cfg.pretrain),
        "manifest": manifests.sha256(data / "manifest.csv", ["train"]),
        "without": cfg.data.without,
        "code": [records.file_hash(package / name) for name in (*CODE, *shown)],
    }
    return records.key(made_of)


def fit(
    cfg: config.Config, data: Path, kept: Path
) -> tuple[dict[str, np.ndarray], Tokenizer, pd.DataFrame]:
    """(tensors by their names in CP-LLM and the bag of words', tokenizer, losses).

    kept: folder of the checkpoints, from which it goes on.
    """
    rows = annotate.attach(manifests.read(data / "manifest.csv"), data / "descriptions.jsonl")
    rows = manifests.without(rows[rows["split"] == "train"], cfg.data.without)
    described = [annotate.describe(r) for r in rows.to_dict("records")]
    tokenizer = text.train_tokenizer(described, cfg.model.decoder.vocab)
    model = dataclasses.replace(cfg.model, lora_rank=0)
    images, shown = _images(cfg, rows[rows["role"] == "original"], data)
    captions = captioned(shown, tokenizer, cfg.train.max_text)
    contrast, matched = _fit_views(cfg, model, images, captions, kept / "views")
    seen = _features(contrast.high, images)
    reader, read = _fit_text(cfg, model, rows, tokenizer, shown, seen, kept / "text")
    log = [(part, i, loss) for part, done in (("contrastive", matched), ("text", read))
           for i, loss in enumerate(done, 1)]
    tensors = weights.tensors(contrast) | weights.tensors(reader)
    return tensors, tokenizer, pd.DataFrame(log, columns=["part", "step", "loss"])


def _plain(cfg: config.Config) -> config.Config:
    """With frames as coded: what the encoder gets has one size anyway, and all share one result."""
    return config.replace(cfg, **{"video.enlarge": False})


def _images(cfg: config.Config, rows: pd.DataFrame, data: Path) -> tuple[np.ndarray, pd.DataFrame]:
    """uint8[N,S,S,3] and a row of words for each: every kept frame of `rows`, and pictures."""
    cfg, size = _plain(cfg), cfg.model.high.image
    store = frame_store(data, cfg)
    store_frames(rows, data, store, cfg)
    frames = views(rows, store, size)
    images, table = np.concatenate(frames), rows.loc[rows.index.repeat(frames.shape[1])]
    if more := pictured(cfg, data):
        images, table = np.concatenate([images, more[0]]), pd.concat([table, more[1]])
    return images, table


def pictured(cfg: config.Config, data: Path) -> tuple[np.ndarray, pd.DataFrame] | None:
    """Pictures beside training's frames, and their words; data: as in `train.run`."""
    if cfg.data.dataset != config.Data.dataset or not cfg.pretrain.pictures:
        return None
    size = cfg.model.high.image
    return pictures.ensure(cfg.pretrain.pictures, size, cfg.data, data / "pretrained")


def _features(tower: Siglip, images: np.ndarray) -> np.ndarray:
    """float32[N,T_h,D_h], a few hundred images at a time."""
    see = nnx.jit(lambda tower, x: tower(x))
    return np.concatenate([see(tower, x) for x in np.array_split(images, -(-len(images) // 256))])


def _fit_views(cfg, model, images, captions, kept) -> tuple[Contrast, list[float]]:
    def batch(rng: np.random.Generator) -> Batch:
        at = rng.integers(len(images), size=cfg.pretrain.views)
        kind = captions["kind"][at]
        shown = _contrasted(kind, len(captions["caption"]), rng)
        return {"views": np.stack([_cropped(images[i], rng) for i in at]),
                "same": kind[:, None] == shown,
                **{k: captions[k][shown] for k in ("tokens", "valid")}}

    def loss(model: Contrast, batch: Batch) -> Array:
        x, y = model.see(batch["views"]), model.read(batch["tokens"], batch["valid"])
        return contrastive_loss(x, y, batch["same"], model.log_scale[...], model.bias[...])

    return descend(lambda: Contrast(model, nnx.Rngs(0)), loss, batch,
                   cfg.pretrain.view_steps, cfg.pretrain.learning_rate, kept)


def _contrasted(kind: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Of `count` captions those of the numbers in `kind`, and others up to CAPTIONS, int[C]."""
    own = np.unique(kind)
    rest = np.setdiff1d(np.arange(count), own)
    wanted = min(count, max(CAPTIONS, len(kind))) - len(own)
    return np.concatenate([own, rng.choice(rest, wanted, replace=False)])


def _cropped(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A square of 70 to 100% of the side, resized to all of it; half of them mirrored."""
    side = len(image)
    crop = round(side * rng.uniform(0.7, 1))
    y, x = rng.integers(0, side - crop + 1, 2)
    found = video.resize(image[None, y : y + crop, x : x + crop], side)[0]
    return found[:, ::-1] if rng.random() < 0.5 else found


def _fit_text(cfg, model, rows, tokenizer, shown, seen, kept) -> tuple[Reader, list[float]]:
    """Of a batch's texts half are about a frame, of `shown` and `seen`: what it shows and in what
    style, without an end, since quality would follow. One in eight is Figure 2's question with a
    random answer, whose words are then known. The others are descriptions, without their frame.
    """
    words = partial(_texts, tokenizer=tokenizer, length=cfg.train.max_text)
    told = words(text.DESCRIBE, [annotate.describe(r) for r in rows.to_dict("records")])
    asked = words(text.COMPARE, text.ANSWERS)
    portrayed = words(text.DESCRIBE, [annotate.portray(r) for r in shown.to_dict("records")])
    portrayed["answer"] &= portrayed["tokens"] != tokenizer.token_to_id(text.EOS)
    n = cfg.pretrain.texts // 2, cfg.pretrain.texts // 8
    blind = np.zeros((cfg.pretrain.texts - n[0], *seen.shape[1:]), np.float32)

    def batch(rng: np.random.Generator) -> Batch:
        at = (rng.integers(len(seen), size=n[0]), rng.integers(2, size=n[1]),
              rng.integers(len(rows), size=len(blind) - n[1]))
        drawn = {k: np.concatenate([x[i] for x, i in zip(parts, at, strict=True)])
                 for k in told for parts in [(portrayed[k], asked[k], told[k])]}
        return {"seen": np.concatenate([seen[at[0]], blind]),
                "shown": np.arange(cfg.pretrain.texts) < n[0], **drawn}

    return descend(lambda: Reader(model, nnx.Rngs(0)),
                   lambda reader, batch: text_loss(reader, **batch), batch,
                   cfg.pretrain.text_steps, cfg.pretrain.learning_rate, kept)


def _texts(prompt: str, answers: Sequence[str], tokenizer: Tokenizer, length: int) -> Batch:
    return text.stack(text.pack(tokenizer, prompt, answer, length) for answer in answers)


def descend(make: Callable, loss: Callable, batch: Callable, steps: int, rate: float,
            folder: Path) -> tuple[nnx.Module, list[float]]:
    """(model, loss of each step) of AdamW with a warm-up and a cosine, from `make()`.

    `batch(rng)` gives each step's batch, `loss(model, batch)` what it costs; folder: of the
    checkpoints, from whose last one it goes on.
    """
    from cpllm.checkpoint import Checkpoints  # orbax takes a second to import

    graph, _ = nnx.split(nnx.eval_shape(make))
    schedule = optax.warmup_cosine_decay_schedule(0, rate, max(steps // 10, 1), steps + 1)
    tx = optax.adamw(schedule, weight_decay=1e-2)

    @partial(jax.jit, donate_argnums=0)
    def step(at, batch):
        state, moments = at
        value, grads = jax.value_and_grad(lambda s: loss(nnx.merge(graph, s), batch))(state)
        updates, moments = tx.update(grads, moments, state)
        return (optax.apply_updates(state, updates), moments), value

    state = jax.jit(lambda: nnx.state(make()))()
    console = Console(stderr=True, force_jupyter=False)
    with closing(Checkpoints(folder, {})) as kept:
        at = state, tx.init(state)
        start, at, done = kept.restore(at) or (0, at, [])
        for i in track(range(start, steps), folder.name, console=console,
                       disable=not console.is_terminal):
            at, value = step(at, batch(np.random.default_rng([0, i])))
            done.append(float(value))
            if (i + 1) % SAVE_EVERY == 0 or i + 1 == steps:
                kept.save(i + 1, at, done, {})
    return nnx.merge(graph, at[0]), done


def load(path: Path, model: config.Model) -> tuple[dict[str, np.ndarray], Tokenizer]:
    """What a training starts from: the high-level encoder, its projection, the decoder unadapted,
    and the tokenizer by whose numbers that decoder knows its words.

    A compared model takes those of them that it has. ValueError when a tensor is missing or has
    another shape.
    """
    return weights.given(path, model, PARTS)


def load_contrast(path: Path) -> tuple[Contrast, config.Config, Tokenizer]:
    """Both sides of the contrastive loss, to look for captions with."""
    tensors, cfg, tokenizer = weights.read(path)
    graph, state = nnx.split(nnx.eval_shape(lambda: Contrast(cfg.model, nnx.Rngs(0))))
    return nnx.merge(graph, weights.fill(state, tensors)), cfg, tokenizer


def retrieval(path: Path, rows: pd.DataFrame, videos: Path) -> pd.DataFrame:
    """Zero-shot: where each video's caption comes among the rows' distinct ones, by middle frame.

    Columns video, caption, found (the likeliest), rank (1 is right), of (captions there are).
    """
    contrast, cfg, tokenizer = load_contrast(path)
    captions = captioned(rows, tokenizer, cfg.train.max_text)
    names, kind = captions["caption"], captions["kind"]
    images = [video.resize(video.key_frames(videos / f, 1), cfg.model.high.image)
              for f in manifests.files(rows)]
    y = contrast.read(captions["tokens"], captions["valid"])
    scores = np.asarray(contrast.see(np.concatenate(images)) @ y.T)
    own = np.take_along_axis(scores, kind[:, None], 1)
    return pd.DataFrame({
        "video": rows["video"].to_numpy(), "caption": names[kind],
        "found": names[scores.argmax(1)], "rank": 1 + (scores > own).sum(1), "of": len(names)})


def surprise(path: Path, rows: pd.DataFrame, trained: bool = True) -> float:
    """Nats per token of the rows' descriptions to the pretrained decoder, or to one that is new."""
    tensors, cfg, tokenizer = weights.read(path)
    model = dataclasses.replace(cfg.model, lora_rank=0)
    graph, state = nnx.split(Reader(model, nnx.Rngs(0)))
    own = {k: x for k, x in tensors.items() if trained}
    told = [annotate.describe(row) for row in rows.to_dict("records")]
    texts = _texts(text.DESCRIBE, told, tokenizer, cfg.train.max_text)
    unseen = jnp.zeros((len(told), 0, model.high.width)), jnp.zeros(len(told), bool)
    loss = jax.jit(lambda state: text_loss(nnx.merge(graph, state), *unseen, **texts))
    return float(loss(weights.fill(state, own)))
