"""What our towers make of an oracle's checkpoint and inputs. Needs no torch.

An oracle's folder holds a checkpoint as transformers saves it (config.json,
model.safetensors) and `expected.safetensors`: `in.*`, the inputs, and `out.*`, the
reference's results under the names that the functions below return.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file

from cpllm import config, losses
from cpllm.model import imports, weights
from cpllm.model.cpllm import CPLLM, positions, prefix_mask

TINY = config.smoke().model


def build(folder, **parts) -> CPLLM:
    """Random CP-LLM whose named parts come from the checkpoint in `folder`."""
    shape = config.Model(
        high=parts.get("high", TINY.high),
        low=parts.get("low", TINY.low),
        decoder=parts.get("decoder", TINY.decoder),
        lora_rank=0,
        predictor_hidden=8,
    )
    model = nnx.jit(lambda: CPLLM(shape, nnx.Rngs(0)))()
    state = nnx.state(model, nnx.Param)
    leaves = weights.names(state)
    more = ["project_high"] if {"high", "decoder"} <= parts.keys() else []
    for part in [*parts, *more]:
        for name, value in imports.read(folder, part, shape).items():
            leaves[name][...] = jnp.asarray(value)
    nnx.update(model, state)
    return model


def siglip(folder, given):
    """`hidden`: last hidden state of uint8 images."""
    model = build(folder, high=imports.siglip_shape(folder))
    return {"hidden": jax.jit(lambda images: model.high(images))(given["images"])}


def videoprism(folder, given):
    """`spatial` of single images; `clip<T>` of T frames; `grid` on an interpolated grid."""
    low = build(folder, low=imports.videoprism_shape(folder)).low

    def clip(frames):
        b, t = frames.shape[:2]
        tokens = low.images(frames.reshape(b * t, *frames.shape[2:]).astype(np.float32) / 255)
        tokens = low.over_time(tokens.reshape(b, t, *tokens.shape[1:]))
        return tokens.reshape(b, -1, tokens.shape[-1])

    @jax.jit
    def results(given):
        out = {f"clip{t}": clip(given["clip"][:, :t]) for t in (1, 4, 8)}
        out |= {name: clip(given[name]) for name in ("grid", "small")}
        return {"spatial": low(given["clip"][:, :1], np.ones((1, 1), bool))[:, 0], **out}

    return results(given)


def gemma(folder, given):
    """`logits` of causal text."""
    decoder = build(folder, decoder=imports.gemma_shape(folder)).decoder
    valid = jnp.ones(given["tokens"].shape, bool)

    @jax.jit
    def logits(tokens):
        x = decoder.embed(tokens)
        return decoder.logits(decoder(x, prefix_mask(valid, valid), positions(valid)))

    return {"logits": logits(given["tokens"])}


def sequence(folder, given):
    """`single`: logits of [u, v, text]; `pair`: of [u1, v1, u2, v2, text], one duplicate masked."""
    model = build(folder, decoder=imports.gemma_shape(folder))
    text = {k: given[k] for k in ("tokens", "valid", "answer")}
    seen = [(given["u"][i], given["v"][i]) for i in range(2)]

    @jax.jit
    def logits(seen, second, text):
        return model.decoder.logits(model.read(seen, second, text)) * text["valid"][..., None]

    single = logits(seen[:1], jnp.ones(2, bool), text)
    return {"single": single, "pair": logits(seen, given["second"], text)}


GRADIENTS = {  # of a vision, the projector's and a decoder weight
    "vision": ("high.blocks.attention.q.kernel", "vision_tower.encoder.layers.0.self_attn.q_proj"),
    "projector": ("project_high.kernel", "multi_modal_projector.linear"),
    "decoder": ("decoder.blocks.mlp.up.kernel", "language_model.layers.0.mlp.up_proj"),
}


def paligemma(folder, given):
    """`logits` of [u, text] as prefix-LM, `loss` on the answer, its gradients; `generated`."""
    model = build(
        folder, high=imports.siglip_shape(folder), decoder=imports.gemma_shape(folder)
    )
    graph, params = nnx.split(model)
    tokens, answer = given["tokens"], given["answer"]

    def loss(params):
        model = nnx.merge(graph, params)
        u = model.project_high(model.high(given["images"]))
        x = jnp.concatenate([u, model.decoder.embed(tokens)], 1)
        is_answer = jnp.concatenate([jnp.zeros(u.shape[:2], bool), answer], 1)
        valid = jnp.ones_like(is_answer)
        hidden = model.decoder(x, prefix_mask(valid, is_answer), positions(valid))
        hidden, logits = hidden[:, u.shape[1] :], model.decoder.logits
        loss = losses.text_loss(hidden[:, :-1], logits, tokens[:, 1:], answer[:, 1:], chunk=2)
        return loss, logits(hidden)

    (value, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    leaves = {k: weights.names(grads)[name][...] for k, (name, _) in GRADIENTS.items()}
    first = {k: (g[0] if g.ndim == 3 else g).T for k, g in leaves.items()}  # layer 0, as torch
    prompt = tokens[:, : -answer.sum(1)[0]]

    @jax.jit
    def generate(images):
        u = model.project_high(model.high(images))
        given = {"tokens": prompt, "valid": np.ones(prompt.shape, bool)}
        return model.generate([(u, u[:, :0])], np.ones(len(u), bool), given, 6, eos=-1)

    out = {"logits": logits, "loss": value, "generated": generate(given["images"])}
    return out | {f"grad_{k}": g for k, g in first.items()}


ORACLES = {f.__name__: f for f in (siglip, videoprism, gemma, sequence, paligemma)}


def differences(name, folder) -> dict[str, float]:
    """Largest absolute difference of each result to the reference's."""
    stored = load_file(folder / "expected.safetensors")
    given = {k[3:]: v for k, v in stored.items() if k.startswith("in.")}
    expected = {k[4:]: v for k, v in stored.items() if k.startswith("out.")}
    ours = {k: np.asarray(v) for k, v in ORACLES[name](folder, given).items()}
    assert ours.keys() <= expected.keys(), sorted(expected.keys() ^ ours.keys())
    assert all(ours[k].shape == expected[k].shape for k in ours)
    return {k: float(np.abs(ours[k] - expected[k]).max()) for k in ours}
