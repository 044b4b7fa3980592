"""The language decoder: Gemma (Gemma Team 2024), on embeddings of any kind."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from cpllm import config
from cpllm.model.layers import Attention, Block, Dense, Norm, attend, gathered, run, stack

Cache = tuple[Array, Array]
"""Keys and values of all layers, each [layers,B,S,N_kv,H]."""


def positions(valid: Array) -> Array:
    """Position of each token among the valid ones, so that a masked frame leaves no gap."""
    return jnp.maximum(jnp.cumsum(valid, 1) - 1, 0)


class GatedMLP(nnx.Module):
    """GeGLU: (gelu(x·W_g) ∘ x·W_u)·W_d, without biases."""

    def __init__(self, width: int, hidden: int, rngs: nnx.Rngs):
        self.gate = Dense(width, hidden, rngs, bias=False)
        self.up = Dense(width, hidden, rngs, bias=False)
        self.down = Dense(hidden, width, rngs, bias=False)

    def __call__(self, x: Array) -> Array:
        """[..., D] → [..., D]."""
        return self.down(jax.nn.gelu(self.gate(x)) * self.up(x))


class Gemma(nnx.Module):
    """Decoder with RMSNorm(1 + w), rotary positions, shared key/value heads and a tied head."""

    def __init__(self, model: config.Model, rngs: nnx.Rngs):
        shape = model.decoder
        norm = partial(Norm, shape.width, shifted=True, centre=False)

        def block(rngs: nnx.Rngs) -> Block:
            attention = Attention(
                shape.width,
                shape.heads,
                rngs,
                kv_heads=shape.kv_heads,
                head_dim=shape.head_dim,
                bias=False,
                rank=model.lora_rank,
            )
            return Block(norm(), attention, norm(), GatedMLP(shape.width, shape.mlp, rngs))

        self.dtype, scale = model.dtype, shape.width**-0.5
        self.remat, self.unroll = model.remat, model.unroll
        self.table = nnx.Param(jax.random.normal(rngs.params(), (shape.vocab, shape.width)) * scale)
        self.blocks = stack(block, shape.layers, rngs)
        self.norm = norm()

    def embed(self, tokens: Array) -> Array:
        """int[B,L] → float[B,L,D], scaled by √D; projected visual tokens are not scaled."""
        x = self.table[...][tokens].astype(self.dtype)
        return x * jnp.sqrt(x.shape[-1]).astype(x.dtype)

    def __call__(self, x: Array, mask: Array, positions: Array) -> Array:
        """Embeddings [B,T,D], bool[B,T,T], int[B,T] → hidden states [B,T,D]."""
        return self.norm(run(self.blocks, x, mask, positions, self.remat, self.unroll))

    def empty(self, batch: int, size: int) -> Cache:
        """A cache with `size` slots for each of `batch` sequences."""
        layer = self.blocks.attention
        shape = len(layer.k.kernel[...]), batch, size, layer.kv, layer.dim
        return jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype)

    def extend(
        self, x: Array, mask: Array, positions: Array, cache: Cache, at: Array | int,
        layers: list[Block] | None = None,
    ) -> tuple[Array, Cache]:  # fmt: skip
        """`__call__` for new tokens x [B,T,D] alone, whose keys and values fill slots from `at` on.

        mask: bool[B,T,S], over the cache's S slots; layers: of `apart`, where it was called before.
        """

        def step(x: Array, block: Block, past: Cache) -> tuple[Array, Cache]:
            q, *new = block.attention.project(block.norm1(x), positions)
            put = jax.lax.dynamic_update_slice_in_dim
            k, v = (put(old, y, at, 1) for old, y in zip(past, new, strict=True))
            x = x + block.attention.join(attend(q, k, v, mask))
            return x + block.mlp(block.norm2(x)), (k, v)

        if layers is None:
            graph, params = nnx.split(self.blocks)
            x, cache = jax.lax.scan(lambda x, layer: step(x, nnx.merge(graph, layer[0]), layer[1]),
                                    x, (params, cache))  # fmt: skip
        else:
            cache = list(cache)
            for i, block in enumerate(layers):
                x, cache[i] = step(x, block, cache[i])
        return self.norm(x), cache

    def apart(self) -> list[Block] | None:
        """The layers one by one where `unroll` covers them all, with a copy of their weights.

        A loop over tokens then reads each weight where it lies, and slices no stack every time.
        """
        graph, params = nnx.split(self.blocks)
        n = len(jax.tree.leaves(params)[0])
        cut = [jax.tree.map(lambda x, i=i: x[i], params) for i in range(n)]
        return [nnx.merge(graph, layer) for layer in cut] if self.unroll >= n > 1 else None

    def generate(
        self,
        x: Array,
        valid: Array,
        steps: int,
        eos: int,
        choose: Callable[[Array, Array], Array] | None = None,
    ) -> Array:
        """Tokens int32[B,steps] after a prefix that sees all of itself; `eos` ends and fills them.

        x: [B,T,D]; valid: bool[B,T]; choose: (logits float32[B,V], step) → int[B], else argmax.
        What earlier tokens gave as keys and values is kept, so that a step costs one token.
        """
        (b, n), length = valid.shape, valid.sum(1, keepdims=True)
        slots, shown = jnp.arange(n + steps), jnp.pad(valid, [(0, 0), (0, steps)])[:, None]
        prefix = jnp.broadcast_to(shown, (b, n, n + steps))
        layers, cache = self.apart(), self.empty(b, n + steps)
        if layers:
            cache = list(zip(*cache, strict=True))
        hidden, cache = self.extend(x, prefix, positions(valid), cache, 0, layers)

        def step(state: tuple) -> tuple:
            i, done, hidden, cache, tokens = state
            logits = self.logits(hidden)
            token = jnp.where(done, eos, choose(logits, i) if choose else logits.argmax(-1))
            mask = shown | ((n <= slots) & (slots <= n + i))
            hidden, cache = self.extend(
                self.embed(token[:, None]), mask, length + i, cache, n + i, layers)
            return i + 1, done | (token == eos), hidden[:, 0], cache, tokens.at[:, i].set(token)

        last = hidden[jnp.arange(b), (jnp.arange(n) * valid).argmax(1)]
        state = 0, jnp.zeros(b, bool), last, cache, jnp.full((b, steps), eos, jnp.int32)
        return jax.lax.while_loop(lambda s: (s[0] < steps) & ~s[1].all(), step, state)[-1]

    def logits(self, hidden: Array) -> Array:
        """[...,D] → float32[...,V] by the tied embedding table."""
        table = gathered(self.table[...].astype(hidden.dtype))
        return jnp.einsum("...d,vd->...v", hidden, table, preferred_element_type=jnp.float32)
