"""Attention, MLPs, norms and stacks of blocks that the three towers share."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import PartitionSpec

from cpllm.model.lora import Adapter


def gathered(x: Array) -> Array:
    """A parameter that devices may hold in parts (`mesh.RULES`), whole where it is used.

    Left to itself XLA cuts activations in the same way and exchanges those instead.
    """
    alone = jax.sharding.get_abstract_mesh().empty
    return x if alone else jax.lax.with_sharding_constraint(x, PartitionSpec())


class Dense(nnx.Module):
    """x·W (+ b) in x's type, so that a tower computes in the type of what it is given.

    Glorot-uniform weights, as ViTs are initialised.
    """

    def __init__(self, n_in: int, n_out: int, rngs: nnx.Rngs, bias: bool = True):
        self.kernel = nnx.Param(nnx.initializers.xavier_uniform()(rngs.params(), (n_in, n_out)))
        self.bias = nnx.Param(jnp.zeros(n_out)) if bias else None

    def __call__(self, x: Array) -> Array:
        """[..., n_in] → [..., n_out]."""
        # One product of two matrices: XLA on a CPU copies an operand of a longer one's gradient.
        y = x.reshape(-1, x.shape[-1]) @ gathered(self.kernel[...].astype(x.dtype))
        y = y if self.bias is None else y + self.bias[...].astype(x.dtype)
        return y.reshape(*x.shape[:-1], y.shape[-1])


class Norm(nnx.Module):
    """y = x̂·w + b in float32, the result in x's type: SigLIP's LayerNorm.

    `shifted` stores the scale around zero, y = x̂·(1 + w) + b, as VideoPrism does; Gemma's
    RMSNorm is that without `centre`, and has no bias.
    """

    def __init__(
        self, width: int, shifted: bool = False, centre: bool = True, eps: float = 1e-6
    ):
        self.scale = nnx.Param(jnp.zeros(width) if shifted else jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width)) if centre else None
        self.shifted, self.centre, self.eps = shifted, centre, eps

    def __call__(self, x: Array) -> Array:
        """Over the last axis; statistics and scale in float32, the result in x's type."""
        y = x.astype(jnp.float32)
        if self.centre:
            y = y - y.mean(-1, keepdims=True)
        scale = self.scale[...].astype(jnp.float32) + self.shifted
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps) * scale
        return (y + self.bias[...] if self.centre else y).astype(x.dtype)


def rotate(x: Array, positions: Array, theta: float = 1e4) -> Array:
    """Rotary position embedding, half-split: pairs are (i, i + H/2). x: [B,T,N,H]."""
    half = x.shape[-1] // 2
    angle = positions[..., None, None] * theta ** (-jnp.arange(half) / half)
    a, b = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    turned = [a * jnp.cos(angle) - b * jnp.sin(angle), b * jnp.cos(angle) + a * jnp.sin(angle)]
    return jnp.concatenate(turned, -1).astype(x.dtype)


def has_fused(q: Array, softcap: float) -> bool:
    """Whether cuDNN takes these queries: an even number, 16 bits, no softcap, H a multiple of 8.

    H is at most 128, or 256 from Hopper on.
    """
    device = jax.devices()[0]
    if softcap or q.dtype.itemsize > 2 or not device.device_kind.startswith("NVIDIA"):
        return False
    most = 256 if float(device.compute_capability) >= 9 else 128
    return q.shape[1] % 2 == 0 and q.shape[-1] % 8 == 0 and q.shape[-1] <= most


def attend(
    q: Array, k: Array, v: Array, mask: Array | None = None, softcap: float = 0.0
) -> Array:
    """softmax(q·kᵀ/√H)·v in q's type, the softmax in float32: [B,T,N,H] → [B,T,N,H].

    k, v: [B,S,N_kv,H]; mask: bool[B,T,S], True where query t may look at key s. cuDNN's fused
    attention where there is one, else XLA's products: on a CPU no other layout was faster.
    """
    if has_fused(q, softcap):
        heads = None if mask is None else mask[:, None]
        return jax.nn.dot_product_attention(q, k, v, mask=heads, implementation="cudnn")
    b, t, _, dim = q.shape
    rows = q.reshape(b, t, k.shape[2], -1, dim).swapaxes(1, 2)  # [B,N_kv,T,queries of a key,H]
    logits = jnp.einsum("bgrd,bsgd->bgrs", rows.reshape(b, k.shape[2], -1, dim), k,
                        preferred_element_type=jnp.float32)  # fmt: skip
    logits = logits * dim**-0.5
    if softcap:
        logits = softcap * jnp.tanh(logits / softcap)
    if mask is not None:
        per_key = logits.reshape(*rows.shape[:4], -1)
        least = jnp.finfo(jnp.float32).min
        logits = jnp.where(mask[:, None, :, None], per_key, least).reshape(logits.shape)
    weights = jax.nn.softmax(logits).astype(q.dtype)
    y = jnp.einsum("bgrs,bsgd->bgrd", weights, v).reshape(rows.shape)
    return y.swapaxes(1, 2).reshape(q.shape)


class Attention(nnx.Module):
    """Multi-head attention with shared key/value heads; optional logit softcap and LoRA on q, k, v.

    The logits are q·k/√H, then cap·tanh(logits/cap) when `softcap` is set (VideoPrism: 50).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        rngs: nnx.Rngs,
        *,
        kv_heads: int = 0,
        head_dim: int = 0,
        bias: bool = True,
        softcap: float = 0.0,
        rank: int = 0,
    ):
        self.heads, self.kv = heads, kv_heads or heads
        self.dim, self.softcap = head_dim or width // heads, softcap
        self.q = Dense(width, self.heads * self.dim, rngs, bias)
        self.k = Dense(width, self.kv * self.dim, rngs, bias)
        self.v = Dense(width, self.kv * self.dim, rngs, bias)
        self.out = Dense(self.heads * self.dim, width, rngs, bias)
        self.lora = nnx.Dict(
            {
                name: Adapter(width, n * self.dim, rank, rngs)
                for name, n in (("q", self.heads), ("k", self.kv), ("v", self.kv))
            }
            if rank
            else {}
        )

    def _heads(self, name: str, x: Array) -> Array:
        y = getattr(self, name)(x)
        if name in self.lora:
            y = y + self.lora[name](x)
        return y.reshape(*x.shape[:-1], -1, self.dim)

    def project(self, x: Array, positions: Array | None = None) -> tuple[Array, Array, Array]:
        """Queries [B,T,N,H], keys and values [B,T,N_kv,H] of x, turned by its positions [B,T]."""
        q, k, v = (self._heads(name, x) for name in "qkv")
        if positions is not None:
            q, k = rotate(q, positions), rotate(k, positions)
        return q, k, v

    def join(self, y: Array) -> Array:
        """What the heads found, [B,T,N,H] → [B,T,D]."""
        return self.out(y.reshape(*y.shape[:2], -1))

    def __call__(
        self, x: Array, mask: Array | None = None, positions: Array | None = None
    ) -> Array:
        """x: [B,T,D]; mask: bool[B,T,S], True where query t may look at key s; positions: [B,T]."""
        return self.join(attend(*self.project(x, positions), mask, self.softcap))


class Block(nnx.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, norm1: nnx.Module, attention: Attention, norm2: nnx.Module, mlp: nnx.Module):
        self.norm1, self.attention, self.norm2, self.mlp = norm1, attention, norm2, mlp

    def __call__(
        self, x: Array, mask: Array | None = None, positions: Array | None = None
    ) -> Array:
        """x: [B,T,D]; mask and positions as in `Attention`."""
        x = x + self.attention(self.norm1(x), mask, positions)
        return x + self.mlp(self.norm2(x))


class MLP(nnx.Module):
    """Two linear layers with a pointwise function between."""

    def __init__(self, width: int, hidden: int, out: int, activation: Callable, rngs: nnx.Rngs):
        self.inner, self.outer = Dense(width, hidden, rngs), Dense(hidden, out, rngs)
        self.activation = activation

    def __call__(self, x: Array) -> Array:
        """[..., D] → [..., out]."""
        return self.outer(self.activation(self.inner(x)))


def stack(make: Callable[[nnx.Rngs], Block], layers: int, rngs: nnx.Rngs) -> Block:
    """`layers` blocks as one whose parameters have a leading axis, for `run`."""
    return nnx.vmap(make, in_axes=0, out_axes=0)(rngs.split(layers))


def run(
    blocks: Block,
    x: Array,
    mask: Array | None = None,
    positions: Array | None = None,
    remat: str = "",
    unroll: int = 1,
) -> Array:
    """Apply stacked blocks in order, `unroll` in one turn of the compiled loop.

    remat: what the backward pass makes again: "blocks" keeps the input of each alone,
    "functions" the results of its products and of fused attention too, "" all that it needs.
    """
    graph, params = nnx.split(blocks)
    keep = {"blocks": None, "functions": _is_product}

    def step(x, layer):
        return nnx.merge(graph, layer)(x, mask, positions), None

    step = jax.checkpoint(step, policy=keep[remat]) if remat else step
    return jax.lax.scan(step, x, params, unroll=unroll)[0]


def _is_product(primitive, *shapes, **parameters) -> bool:
    weighed = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    fused = primitive.name.startswith("dot_product_attention_fwd")
    return fused or weighed(primitive, *shapes, **parameters)
