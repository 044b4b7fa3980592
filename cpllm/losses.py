"""The three losses of Sec. 3.2, one function each, and their weighted sum."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def ranking_loss(q: Array, q_hat: Array) -> Array:
    """Eq. 1: L1 = 1/B Σ max(0, -(q⁽¹⁾ - q⁽²⁾)(q̂⁽¹⁾ - q̂⁽²⁾)).

    q, q_hat: float[B,2] in [0, 1]. A duplicated single input has q⁽¹⁾ = q⁽²⁾ and adds 0.

    >>> float(ranking_loss(jnp.array([[0.8, 0.3]]), jnp.array([[0.4, 0.6]])))  # 0.5 · 0.2
    0.10000000149011612
    """
    return jnp.maximum(0, -(q[:, 0] - q[:, 1]) * (q_hat[:, 0] - q_hat[:, 1])).mean()


def regression_loss(q: Array, q_hat: Array, has_mos: Array) -> Array:
    """Eq. 2: L2 = Σ 1[q⁽¹⁾ ∈ M](q⁽¹⁾ - q̂⁽¹⁾)² / max(Σ 1[q⁽¹⁾ ∈ M], 1).

    q, q_hat: float[B] of the first member; has_mos: bool[B], where q⁽¹⁾ is the score of an
    original video and not the pseudo-MOS of a variant.
    """
    return jnp.where(has_mos, (q - q_hat) ** 2, 0).sum() / jnp.maximum(has_mos.sum(), 1)


def text_loss(logits: Array, targets: Array, answer: Array) -> Array:
    """Eq. 3: L3 = -1/Σ O_i Σ_i Σ_k log p̂_{i,k}(z_{i,k}), over answer tokens alone.

    logits: float[B,L,V], at the position before each target; targets: int[B,L];
    answer: bool[B,L], True where the target belongs to the answer.
    """
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
    return -jnp.where(answer, chosen, 0).sum() / jnp.maximum(answer.sum(), 1)


def total_loss(parts: tuple[Array, Array, Array], weights: tuple[float, float, float]) -> Array:
    """L = Σ w_i L_i; "equal weights" in the paper. Needs q in [0, 1]: with 0–100, L2 drowns L3."""
    return sum(w * part for w, part in zip(weights, parts, strict=True))
