"""The three losses of Sec. 3.2, one function each, and their weighted sum."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

CHUNK = 32
"""Answer tokens of each text whose logits exist at a time."""


def ranking_loss(q: Array, q_hat: Array) -> Array:
    """Eq. 1: L1 = 1/B Σ max(0, -(q⁽¹⁾ - q⁽²⁾)(q̂⁽¹⁾ - q̂⁽²⁾)).

    q, q_hat: float[B,2] in [0, 1]. A duplicated single input has q⁽¹⁾ = q⁽²⁾ and adds 0.

    >>> float(ranking_loss(jnp.array([[0.8, 0.3]]), jnp.array([[0.4, 0.6]])))  # 0.5 · 0.2
    0.10000000149011612
    """
    return jnp.maximum(0, -(q[:, 0] - q[:, 1]) * (q_hat[:, 0] - q_hat[:, 1])).mean()


def ranking_logistic(q: Array, q_hat: Array, steepness: float = 5.0) -> Array:
    """In the place of Eq. 1: the mean of log(1 + exp(-s Δz sign(Δq))) over pairs with Δq ≠ 0.

    q, q_hat as in `ranking_loss`; Δz: difference of the logits of q̂; s: steepness. Not the
    paper's: Eq. 1 weighs a pair by Δq, so that levels which VMAF's ceiling brings together, where
    most flips are, teach next to nothing. Burges et al. 2005 (RankNet).
    """
    order = jnp.sign(q[:, 0] - q[:, 1])
    bounded = jnp.clip(q_hat, 1e-6, 1 - 1e-6)
    z = jnp.log(bounded) - jnp.log1p(-bounded)
    lost = jax.nn.softplus(-steepness * order * (z[:, 0] - z[:, 1]))
    return jnp.where(order != 0, lost, 0).sum() / jnp.maximum((order != 0).sum(), 1)


RANKING = {"product": ranking_loss, "logistic": ranking_logistic}
"""Forms of L1, by `config.Train.ranking`."""


def regression_loss(q: Array, q_hat: Array, has_mos: Array) -> Array:
    """Eq. 2: L2 = Σ 1[q⁽¹⁾ ∈ M](q⁽¹⁾ - q̂⁽¹⁾)² / max(Σ 1[q⁽¹⁾ ∈ M], 1).

    q, q_hat: float[B] of the first member; has_mos: bool[B], where q⁽¹⁾ is the score of an
    original video and not the pseudo-MOS of a variant.
    """
    return jnp.where(has_mos, (q - q_hat) ** 2, 0).sum() / jnp.maximum(has_mos.sum(), 1)


def text_loss(
    hidden: Array,
    logits: Callable[[Array], Array],
    targets: Array,
    answer: Array,
    chunk: int = CHUNK,
) -> Array:
    """Eq. 3: L3 = -1/Σ O_i Σ_i Σ_k log p̂_{i,k}(z_{i,k}), over answer tokens alone.

    hidden: [B,L,D] at the position before each target, and `logits` makes float32[...,V] of it;
    targets: int[B,L]; answer: bool[B,L], True where the target belongs to the answer.
    Answers move to the front of each text; logits exist for `chunk` of them at a time,
    float32[B,chunk,V], and again in the backward pass; a chunk without answers costs nothing.
    """
    order = jnp.argsort(~answer, axis=1, stable=True)

    def chunks(x: Array) -> Array:  # [B,L,...] → [L/chunk,B,chunk,...]
        x = jnp.take_along_axis(x, order.reshape(*order.shape, *[1] * (x.ndim - 2)), 1)
        x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % chunk), *[(0, 0)] * (x.ndim - 2)])
        return x.reshape(len(x), -1, chunk, *x.shape[2:]).swapaxes(0, 1)

    def entropy(hidden: Array, targets: Array, answer: Array) -> Array:
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits(hidden)), targets[..., None], -1)
        return -jnp.where(answer, chosen[..., 0], 0).sum()

    @jax.checkpoint
    def add(total: Array, part: tuple[Array, Array, Array]) -> tuple[Array, None]:
        return total + jax.lax.cond(part[2].any(), entropy, lambda *_: jnp.float32(0), *part), None

    total, _ = jax.lax.scan(add, jnp.float32(0), tuple(map(chunks, (hidden, targets, answer))))
    return total / jnp.maximum(answer.sum(), 1)


def total_loss(parts: tuple[Array, Array, Array], weights: tuple[float, float, float]) -> Array:
    """L = Σ w_i L_i; "equal weights" in the paper. Needs q in [0, 1]: with 0–100, L2 drowns L3."""
    return sum(w * part for w, part in zip(weights, parts, strict=True))
