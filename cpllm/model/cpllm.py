"""CP-LLM: towers → interleaved sequence → decoder, and towers → quality predictor (Fig. 3).

Shapes: B batch, M key frames, K patches, T_h and T_l tokens of the two encoders,
L text tokens, T all tokens of a sequence, D the decoder's width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from cpllm import config, losses
from cpllm.model.gemma import Gemma, positions
from cpllm.model.layers import Dense, Norm
from cpllm.model.quality import Predictor
from cpllm.model.siglip import Siglip
from cpllm.model.videoprism import VideoPrism


def prefix_mask(valid: Array, answer: Array) -> Array:
    """Prefix-LM attention (Fig. 4b): bool[B,T] twice → bool[B,T,T], True where i may see j.

    Valid prefix tokens are seen by all; an answer token only by itself and later ones.
    With a prefix of two, a masked-out duplicate and an answer of two:

    >>> v, a = jnp.array([[1, 1, 0, 1, 1]], bool), jnp.array([[0, 0, 0, 1, 1]], bool)
    >>> prefix_mask(v, a)[0].astype(int).tolist()
    [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]]
    """
    t = jnp.arange(valid.shape[1])
    return valid[:, None, :] & (~answer[:, None, :] | (t[None, :] <= t[:, None]))


class CPLLM(nnx.Module):
    """The whole model. `see` → (u, v); `score` and `read` both start from these."""

    inputs = ("view", "patches", "present")
    """What `see` takes of a batch."""

    def __init__(self, model: config.Model, rngs: nnx.Rngs):
        width = model.decoder.width
        self.high_seen, self.low_seen = model.encoders != "low", model.encoders != "high"
        self.high_scored = model.predictor_sees == "both"
        self.high = Siglip(model, rngs)
        self.low = VideoPrism(model, rngs)
        self.project_high = Dense(model.high.width, width, rngs)
        self.project_low = Dense(model.low.width, width, rngs)
        self.pool_norm = Norm(width)
        self.decoder = Gemma(model, rngs)
        self.predictor = Predictor(width, model, rngs)

    def see(self, view: Array, patches: Array, present: Array) -> tuple[Array, Array]:
        """One key frame of each of B videos → u: [B,T_h,D], v: [B,T_l,D].

        view: uint8[B,H_h,W_h,3], or float[B,T_h,D_h], what the high-level encoder made of it;
        patches: uint8[B,K,P,P,3]; present: bool[B,K], False for the slots of a frame that holds
        fewer than K patches; the mean leaves them out.
        """
        u = self.project_high(self.high(view) if view.dtype == jnp.uint8 else view)
        h = self.project_low(self.low(patches, present))
        v = self.pool_norm(h.mean(1, where=present[..., None, None]))
        return (u if self.high_seen else u[:, :0]), (v if self.low_seen else v[:, :0])

    def score(self, u: Array, v: Array) -> Array:
        """Per-frame quality float32[B] in (0, 1)."""
        return self.predictor(u if self.high_scored else u[:, :0], v)

    def own_loss(self, seen: list[tuple[Array, Array]], batch: dict[str, Array]) -> Array:
        """L3 (Eq. 3) of a batch's texts, from what `see` gave for each pair's two members."""
        words = {k: batch[k] for k in ("tokens", "valid", "answer")}
        hidden = self.read(seen, batch["first"] != batch["second"], words)
        targets, answer = words["tokens"][:, 1:], words["answer"][:, 1:]
        return losses.text_loss(hidden[:, :-1], self.decoder.logits, targets, answer)

    def read(self, seen: list[tuple[Array, Array]], second: Array, text: dict[str, Array]) -> Array:
        """Hidden states [B,L,D] at the text positions of [u1, v1, u2, v2, text] (or [u, v, text]).

        seen: (u, v) of one or two frames; second: bool[B], False where the second frame is
        a duplicate of a single input, masked out of the decoder; text: `tokens` int[B,L],
        `valid` and `answer` bool[B,L].
        """
        x, valid = self._sequence(seen, second, text)
        before = x.shape[1] - text["tokens"].shape[1]
        answer = jnp.pad(text["answer"], [(0, 0), (before, 0)])
        return self.decoder(x, prefix_mask(valid, answer), positions(valid))[:, before:]

    def generate(
        self,
        seen: list[tuple[Array, Array]],
        second: Array,
        prompt: dict[str, Array],
        steps: int,
        eos: int,
        temperature: Array | float = 1.0,
        key: Array | None = None,
    ) -> Array:
        """At most `steps` tokens of an answer, int32[B,steps]; `eos` ends it and fills the rest.

        seen and second as in `read`; prompt: `tokens` and `valid`. Each token is the most likely
        one or, with a key, drawn from softmax(logits/temperature).
        """

        def draw(logits: Array, i: Array) -> Array:
            return jax.random.categorical(jax.random.fold_in(key, i), logits / temperature)

        x, valid = self._sequence(seen, second, prompt)
        return self.decoder.generate(x, valid, steps, eos, draw if key is not None else None)

    def _sequence(
        self, seen: list[tuple[Array, Array]], second: Array, text: dict[str, Array]
    ) -> tuple[Array, Array]:
        """Embeddings [B,T,D] of frames and text, and bool[B,T] where they are to be seen."""
        frames = [jnp.concatenate(pair, 1) for pair in seen]
        b, n = frames[0].shape[:2]
        shown = [jnp.ones((b, n), bool), jnp.broadcast_to(second[:, None], (b, n))][: len(frames)]
        x = jnp.concatenate([*frames, self.decoder.embed(text["tokens"])], 1)
        return x, jnp.concatenate([*shown, text["valid"]], 1)
