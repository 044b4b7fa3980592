"""The compared models' mechanisms on CP-LLM's own small towers.

Rows of them read "mechanism at pocket size": they are not the published models. All meet the same
data, batches, steps, selection, L1 and L2 as CP-LLM, have its parameters within 20%, and name the
towers of its shapes alike (`high`, `low`). Kept of each is the mechanism that its docstring names;
not kept are its backbone, its pretraining and its own losses. With `mechanism=False` the same
layers lack just that, so that a pair of rows shows what it does.

Shapes as in `cpllm.py`. `see` gives what `score` needs, an array of B rows each.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from cpllm import config, losses
from cpllm.model.cpllm import CPLLM, prefix_mask
from cpllm.model.gemma import Gemma, positions
from cpllm.model.layers import MLP, Dense, run, stack
from cpllm.model.siglip import Siglip, block
from cpllm.model.videoprism import VideoPrism, local_normalise

SIDE = 4
"""Mini-patches in a row and in a column of a spliced view; FAST-VQA has 7 of 32 pixels."""

FAULTS = 9
"""Kinds of distortion that `batches.causes` numbers, none included."""

LEVELS = 5
"""ACR words; token `LEVELS` asks Q-Align for one."""


def fragments(patches: Array, present: Array) -> Array:
    """K patches of each frame → one view of their quarters, [B,K,P,P,3] → [B,2P,2P,3].

    Each quarter is a mini-patch whose pixels stay as they are; SIDE² of them, drawn evenly from
    the patches that are present and in reading order, are spliced. present: bool[B,K].
    """
    b, k, p = patches.shape[:3]
    q, slot = p // 2, jnp.arange(SIDE**2)
    quarters = patches.reshape(b, k, 2, q, 2, q, 3).swapaxes(3, 4).reshape(b, k, 4, q, q, 3)
    source = slot * present.sum(1, keepdims=True) // SIDE**2
    chosen = quarters[jnp.arange(b)[:, None], source, slot % 4]
    rows = chosen.reshape(b, SIDE, SIDE, q, q, 3).swapaxes(2, 3)
    return rows.reshape(b, SIDE * q, SIDE * q, 3)


def pyramid(x: Array, levels: int = 2) -> list[Array]:
    """Laplacian pyramid (Burt and Adelson 1983): what each halving of [B,H,W,C] takes away."""
    found = []
    for _ in range(levels):
        b, h, w, c = x.shape
        half = jax.image.resize(x, (b, h // 2, w // 2, c), "linear")
        found.append(x - jax.image.resize(half, x.shape, "linear"))
        x = half
    return found


def entropy(logits: Array, labels: Array) -> Array:
    """Mean cross-entropy of [..., n] where a label is known, that is not negative."""
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)[..., 0]
    known = labels >= 0
    return -jnp.where(known, chosen, 0).sum() / jnp.maximum(known.sum(), 1)


class Head(nnx.Module):
    """`layers` more blocks on a tower's tokens, then an MLP for each token, and their mean."""

    def __init__(self, shape, model: config.Model, layers: int, outputs: int, rngs: nnx.Rngs):
        self.blocks = stack(partial(block, shape), layers, rngs) if layers else None
        self.mlp = MLP(shape.width, model.predictor_hidden, outputs, jax.nn.relu, rngs)

    def __call__(self, x: Array, present: Array | None = None) -> Array:
        """[B,T,D] → float32[B,outputs]; present: bool[B,T], the tokens that count."""
        x = x if self.blocks is None else run(self.blocks, x)
        where = None if present is None else present[..., None]
        return self.mlp(x.astype(jnp.float32)).mean(1, where=where)


class Rival(nnx.Module):
    """What the compared models share with CP-LLM's interface; they write no text."""

    inputs = ("view", "patches", "present")

    def own_loss(self, seen: list[tuple[Array, ...]], batch: dict[str, Array]) -> Array:
        """What stands in the place of L3: here nothing."""
        return jnp.float32(0)

    def technical(self, view: Array, patches: Array, present: Array) -> Array:
        """Tokens of the low-level tower on fragments; without mechanism on the resized view."""
        texture = self.low.texture
        if not self.mechanism:
            return self.low.images(texture(view))
        b, k, p = patches.shape[:3]
        normal = texture(patches.reshape(b * k, p, p, 3)).reshape(patches.shape)
        return self.low.images(fragments(normal, present))


class FastVQA(Rival):
    """FAST-VQA (Wu et al. 2022): fragments of the frame in one tower.

    Kept: mini-patches from a uniform grid at the resolution of the fitted frame, spliced into one
    view; positions within and across them; a non-linear regression for each token before the mean.
    Not kept: the video Swin with gated relative biases, fragments aligned over 32 frames (a frame
    is scored by itself). Off: the same layers see the resized view.
    """

    def __init__(self, model: config.Model, rngs: nnx.Rngs):
        self.mechanism = model.mechanism
        self.low = VideoPrism(model, rngs)
        layers = model.high.layers + 2 * model.decoder.layers
        self.head = Head(model.low, model, layers, 1, rngs)

    def see(self, view: Array, patches: Array, present: Array) -> tuple[Array]:
        """The tower's tokens, [B,T,D]."""
        return (self.technical(view, patches, present),)

    def score(self, x: Array) -> Array:
        """Per-frame quality float32[B] in (0, 1)."""
        return jax.nn.sigmoid(self.head(x)[:, 0])


class Dover(Rival):
    """DOVER (Wu et al. 2023): an aesthetic branch on the view, a technical one on fragments.

    Kept: the two views and their branches, each supervised by itself as well, and the fixed weights
    of its evaluation script. Not kept: ConvNeXt and Swin, the pretraining on aesthetics,
    cross-scale regularisation, separate opinions. Off: the technical branch sees the view too.
    """

    def __init__(self, model: config.Model, rngs: nnx.Rngs):
        self.mechanism = model.mechanism
        self.high, self.low = Siglip(model, rngs), VideoPrism(model, rngs)
        self.aesthetic = Head(model.high, model, 1, 1, rngs)
        self.quality = Head(model.low, model, 1, 1, rngs)

    def see(self, view: Array, patches: Array, present: Array) -> tuple[Array, Array]:
        """The branches' qualities, float32[B] in (0, 1)."""
        a = self.aesthetic(self.high(view))[:, 0]
        t = self.quality(self.technical(view, patches, present))[:, 0]
        return jax.nn.sigmoid(a), jax.nn.sigmoid(t)

    def score(self, a: Array, t: Array) -> Array:
        """Per-frame quality float32[B] in (0, 1)."""
        return 0.3896 * a + 0.6104 * t

    def own_loss(self, seen: list[tuple[Array, ...]], batch: dict[str, Array]) -> Array:
        """Limited-view supervision: L2 of each branch alone."""
        q, known = batch["q"][:, 0], batch["has_mos"]
        return sum(losses.regression_loss(q, branch, known) for branch in seen[0])


class MBVQA(Rival):
    """MBVQA (Wen et al. 2024): a base quality that two rectifiers scale and shift.

    Kept: the base from the resized view; a spatial rectifier from a Laplacian pyramid at the
    resolution of the fitted frame, a temporal one from frame differences; both give (scale, shift),
    joined by geometric and arithmetic mean. Not kept: CLIP, ResNet-18 and SlowFast; the pyramid is
    of K patches, not of the frame; the difference is of two key frames half a clip apart, not of
    neighbours at full rate; no rectifier is dropped at random in training. Off: the rectifiers see
    the view, as the base does.

    The tower sees of each band what it sees of the others' patches: spectra, or normalised pixels.
    """

    inputs = (*Rival.inputs, "following")

    def __init__(self, model: config.Model, rngs: nnx.Rngs):
        self.mechanism = model.mechanism
        half = dataclasses.replace(model.high, layers=(model.high.layers + 1) // 2)
        self.high, self.low = Siglip(model, rngs), VideoPrism(model, rngs)
        self.motion = Siglip(dataclasses.replace(model, high=half), rngs)
        self.base = Head(model.high, model, 0, 1, rngs)
        self.spatial = Head(model.low, model, 0, 2, rngs)
        self.temporal = Head(model.high, model, 0, 2, rngs)

    def see(self, view: Array, patches: Array, present: Array, following: Array) -> tuple:
        """Base float32[B,1], and (log-scale, shift) float32[B,2] by space and by time."""
        here = view.astype(jnp.float32)
        moved = 127.5 + 2 * (here - following) if self.mechanism else here
        spatial = self._space(patches, present) if self.mechanism else self._plain(here)
        return self.base(self.high(view)), spatial, self.temporal(self.motion(moved))

    def score(self, base: Array, spatial: Array, temporal: Array) -> Array:
        """Per-frame quality float32[B] in (0, 1): σ(√(α_s α_t) q + (β_s + β_t) / 2)."""
        scale, shift = ((spatial + temporal) / 2).T
        return jax.nn.sigmoid(jnp.exp(scale) * base[:, 0] + shift)

    def _plain(self, view: Array) -> Array:
        return self.spatial(self.low.images(self.low.texture(view)))

    def _space(self, patches: Array, present: Array) -> Array:
        b, k, p = patches.shape[:3]
        bands = pyramid(patches.reshape(b * k, p, p, 3).astype(jnp.float32))
        tokens = [self.low.images(self.low.texture(band)) for band in bands]
        x = jnp.concatenate(tokens, 1)
        x, counted = x.reshape(b, -1, x.shape[-1]), jnp.repeat(present, x.shape[1], 1)
        return self.spatial(x, counted)


class CoINVQ(Rival):
    """CoINVQ (Wang et al. 2021): subnets for content, distortion and compression, aggregated.

    Kept: three towers (on the view, on the patches, on every second patch), of which the distortion
    subnet learns which kind of distortion a clip has and the compression subnet its CRF, from the
    manifest; one MLP on their features together. Not kept: the subnets' own corpora and stages
    (all is trained at once), content labels, compression from several frames. Off: no such labels.
    """

    def __init__(self, model: config.Model, rngs: nnx.Rngs):
        self.mechanism = model.mechanism
        self.high, self.low = Siglip(model, rngs), VideoPrism(model, rngs)
        self.compression = VideoPrism(model, rngs)
        self.fault, self.crf = Dense(model.low.width, FAULTS, rngs), Dense(model.low.width, 1, rngs)
        width = model.high.width + 2 * model.low.width
        self.aggregate = MLP(width, model.predictor_hidden, 1, jax.nn.relu, rngs)

    def see(self, view: Array, patches: Array, present: Array) -> tuple[Array, Array, Array]:
        """Features float32[B,D], logits of the fault float32[B,FAULTS], CRF/51 float32[B]."""
        content = self.high(view).mean(1)
        half = patches[:, ::2], present[:, ::2]
        distortion, compression = (
            tower(*what).mean((1, 2), where=what[1][..., None, None])
            for tower, what in ((self.low, (patches, present)), (self.compression, half))
        )
        found = jnp.concatenate([content, distortion, compression], -1).astype(jnp.float32)
        return found, self.fault(distortion), self.crf(compression)[:, 0]

    def score(self, features: Array, *_: Array) -> Array:
        """Per-frame quality float32[B] in (0, 1)."""
        return jax.nn.sigmoid(self.aggregate(features)[:, 0])

    def own_loss(self, seen: list[tuple[Array, ...]], batch: dict[str, Array]) -> Array:
        """Cross-entropy of the fault and squared error of CRF/51, where the manifest knows them."""
        if not self.mechanism:
            return super().own_loss(seen, batch)
        fault, crf = (jnp.stack([member[i] for member in seen], 1) for i in (1, 2))
        known = jnp.isfinite(batch["crf"])
        error = jnp.where(known, crf - jnp.where(known, batch["crf"], 0), 0)
        squared = (error**2).sum() / jnp.maximum(known.sum(), 1)
        return entropy(fault, batch["fault"]) + squared


class QAlign(Rival):
    """Q-Align (Wu et al. 2024): the decoder's probabilities of the five level words are the score.

    Kept: one vision encoder on the resized frame (of twice the side, its only view), the decoder,
    cross-entropy on the level word alone, Σ p·level at inference. Not kept: CLIP, the visual
    abstractor and LLaMA; the question, the same for all, is one token; a video is the mean of its
    frames. Off: the decoder's last state gives a number, by L1 and L2.

    Where the low-level tower of the others sees normalised frames or, which a resized view
    doesn't hold, spectra of coded blocks, this one's encoder sees normalised frames. It still
    learns slowly at pocket size. On plain frames the table's 200 steps reached a validation SRCC
    of .08 to .10, with a cross-entropy of 1.52 where guessing by frequency has 1.48. Measured
    since on 399 training and 140 validation clips, one seed: statistics of the same 192-pixel
    views made by hand give .58 by a forest (.64 on native patches), so the views hold it; on
    normalised frames 120 steps of words gave −.04, a number in their place .15 after 75, MBVQA on
    native patches .44 after 80. So a tower on a resized view takes more than these steps, and
    words more than a number. More steps or pixels for this row alone would not be the same
    recipe.
    """

    inputs = ("view",)

    def __init__(self, model: config.Model, rngs: nnx.Rngs):
        self.mechanism, self.normalised = model.mechanism, model.local_norm or model.spectrum
        layers = 2 * model.decoder.layers + model.low.layers
        shape = dataclasses.replace(model.decoder, layers=layers, vocab=LEVELS + 1)
        self.high = Siglip(model, rngs)
        self.project_high = Dense(model.high.width, shape.width, rngs)
        self.reader = Gemma(dataclasses.replace(model, decoder=shape), rngs)
        self.number = Dense(shape.width, 1, rngs)

    def see(self, view: Array) -> tuple[Array]:
        """Logits of the words, float32[B,LEVELS]; without mechanism a number's, float32[B,1]."""
        if self.normalised:
            view = 127.5 * (1 + local_normalise(view.astype(jnp.float32) / 255))
        u = self.project_high(self.high(view))
        ask = self.reader.embed(jnp.full((len(u), 1), LEVELS))
        x = jnp.concatenate([u, ask], 1)
        seen = jnp.ones(x.shape[:2], bool)
        last = self.reader(x, prefix_mask(seen, ~seen), positions(seen))[:, -1]
        return (self.reader.logits(last)[:, :LEVELS] if self.mechanism else
                self.number(last).astype(jnp.float32),)

    def score(self, logits: Array) -> Array:
        """Per-frame quality float32[B] in (0, 1): Σ p·level, a level being its fifth's middle.

        L1 and L2 don't move it: only the words are learnt.
        """
        if not self.mechanism:
            return jax.nn.sigmoid(logits[:, 0])
        middles = (jnp.arange(LEVELS) + 0.5) / LEVELS
        return jax.lax.stop_gradient(jax.nn.softmax(logits) @ middles)

    def own_loss(self, seen: list[tuple[Array, ...]], batch: dict[str, Array]) -> Array:
        """Cross-entropy of both members' level words."""
        if not self.mechanism:
            return super().own_loss(seen, batch)
        levels = jnp.clip(batch["q"] * LEVELS, 0, LEVELS - 1).astype(jnp.int32)
        return entropy(jnp.stack([member[0] for member in seen], 1), levels)


KINDS = dict(zip(("cp-llm", *config.RIVALS), (CPLLM, FastVQA, Dover, MBVQA, CoINVQ, QAlign),
                 strict=True))


def build(model: config.Model, rngs: nnx.Rngs) -> nnx.Module:
    """The model of a configuration's `kind`; ValueError names the known ones."""
    if model.kind not in KINDS:
        raise ValueError(f"model.kind: expected one of {', '.join(KINDS)}; got {model.kind!r}")
    return KINDS[model.kind](model, rngs)
