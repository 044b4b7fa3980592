"""Write the golden files: tiny random reference models, their inputs and results.

    .venv/bin/python tests/oracle/make_golden.py      (after make test-oracles)

`tests/test_golden.py` checks our towers against them without torch; `test_oracles.py`
makes others of other sizes and seeds, and these again to compare.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    SiglipVisionConfig,
    SiglipVisionModel,
    VideoPrismVisionConfig,
    VideoPrismVisionModel,
)

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))
from parity import GRADIENTS  # noqa: E402

torch.set_num_threads(1)


def randomise(model, seed):
    """Weights large enough that every part moves the result: 1/√fan-in, norms ± 0.1."""
    rng = np.random.RandomState(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = rng.standard_normal(p.shape).astype(np.float32)
            fan_in = np.prod(p.shape[1:]) if p.ndim > 1 else 1
            sharp = 2.0 if "q_proj.weight" in name else 1.0  # attention far from uniform
            start = p.numpy().round() if p.ndim == 1 else 0  # SigLIP's biases begin as noise
            scale = sharp * fan_in**-0.5 if p.ndim > 1 else 0.1
            p.copy_(torch.from_numpy(np.asarray(start + noise * scale, np.float32)))
    return model.eval()


def image(rng, *shape):
    return rng.randint(0, 256, shape).astype(np.uint8)


def chw(x, low=-1.0):
    """uint8[..., H, W, 3] → float[..., 3, H, W] in [low, 1]."""
    x = torch.from_numpy(x).float()
    return (x / 127.5 - 1 if low else x / 255).movedim(-1, -3)


def siglip(folder, seed, width=16, layers=3, mlp=0, heads=2, side=16, patch=4, batch=2):
    model = randomise(
        SiglipVisionModel(
            SiglipVisionConfig(
                hidden_size=width, intermediate_size=mlp or 2 * width + 4, num_hidden_layers=layers,
                num_attention_heads=heads, image_size=side, patch_size=patch, vision_use_head=False,
                attn_implementation="eager",
            )
        ),
        seed,
    )  # fmt: skip
    model.save_pretrained(folder)
    images = image(np.random.RandomState(seed), batch, side, side, 3)
    return {"images": images}, {"hidden": model(chw(images)).last_hidden_state}


def videoprism(folder, seed, width=16, layers=2):
    model = randomise(
        VideoPrismVisionModel(
            VideoPrismVisionConfig(
                image_size=16, num_frames=8, tubelet_size=[1, 4, 4], hidden_size=width,
                num_attention_heads=2, intermediate_size=2 * width + 4, num_spatial_layers=layers,
                num_temporal_layers=2, attn_logit_softcapping=2.0, attn_implementation="eager",
            )
        ),
        seed,
    )  # fmt: skip
    model.save_pretrained(folder)
    rng = np.random.RandomState(seed)
    given = {
        "clip": image(rng, 1, 8, 16, 16, 3),
        "grid": image(rng, 1, 2, 24, 16, 3),
        "small": image(rng, 1, 2, 8, 8, 3),
    }

    def run(x):
        return model(chw(x, 0), interpolate_pos_encoding=True)

    spatial = model.layernorm1(run(given["clip"][:, :1]).last_spatial_hidden_state)
    out = {f"clip{t}": run(given["clip"][:, :t]).last_hidden_state for t in (1, 4, 8)}
    rest = {k: run(given[k]).last_hidden_state for k in ("grid", "small")}
    return given, {"spatial": spatial, **out, **rest}


def text_config(width, layers):
    return GemmaConfig(
        vocab_size=64, hidden_size=width, intermediate_size=2 * width + 4, head_dim=8,
        num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=1,
        attn_implementation="eager",
    )  # fmt: skip


def gemma(folder, seed, width=16, layers=2):
    model = randomise(GemmaForCausalLM(text_config(width, layers)), seed)
    model.save_pretrained(folder)
    tokens = np.random.RandomState(seed).randint(3, 64, (2, 9)).astype(np.int32)
    return {"tokens": tokens}, {"logits": model(torch.from_numpy(tokens).long()).logits}


def sequence(folder, seed, width=16, layers=2):
    """Our frames before the text, with a mask of our own making: token by token, no shortcut."""
    model = randomise(GemmaForCausalLM(text_config(width, layers)), seed)
    model.save_pretrained(folder)
    rng, (b, n, k, length) = np.random.RandomState(seed), (2, 5, 3, 8)
    given = {
        "u": rng.standard_normal((2, b, n, width)).astype(np.float32),
        "v": rng.standard_normal((2, b, k, width)).astype(np.float32),
        "tokens": rng.randint(3, 64, (b, length)).astype(np.int32),
        "valid": np.arange(length) < np.array([[length], [length - 2]]),
        "answer": np.tile(np.arange(length) >= 4, (b, 1)),
        "second": np.array([True, False]),
    }
    return given, {"single": _sequence(model, given, 1), "pair": _sequence(model, given, 2)}


def _sequence(model, given, frames):
    """Logits of `frames` frames and the text, the 4D mask filled one rule after another."""
    seen = [torch.from_numpy(given[k][i]) for i in range(frames) for k in "uv"]
    tokens = torch.from_numpy(given["tokens"]).long()
    embeds = torch.cat([*seen, model.get_input_embeddings()(tokens)], 1)
    (b, total, _), size = embeds.shape, seen[0].shape[1] + seen[1].shape[1]
    start = total - tokens.shape[1]
    mask = torch.zeros(b, 1, total, total)
    never = torch.finfo(torch.float32).min
    places = torch.zeros(b, total, dtype=torch.long)
    for row in range(b):
        if frames == 2 and not given["second"][row]:  # nobody sees the duplicate
            mask[row, 0, :, size : 2 * size] = never
        for j in range(start, total):
            if not given["valid"][row, j - start]:  # nor padding
                mask[row, 0, :, j] = never
            if given["answer"][row, j - start]:  # an answer's token is seen from itself on
                mask[row, 0, :j, j] = never
        visible = mask[row, 0, -1] == 0  # the last token sees all that is valid
        places[row] = (visible.cumsum(0) - 1).clamp(min=0)
    logits = model(inputs_embeds=embeds, attention_mask=mask, position_ids=places).logits
    return logits[:, start:] * torch.from_numpy(given["valid"])[..., None]


def paligemma(folder, seed, width=16, layers=2):
    vision = SiglipVisionConfig(
        hidden_size=24, intermediate_size=52, num_hidden_layers=3, num_attention_heads=2,
        image_size=16, patch_size=4, vision_use_head=False,
    )  # fmt: skip
    both = PaliGemmaConfig(
        vision_config=vision.to_dict(), text_config=text_config(width, layers).to_dict(),
        image_token_index=63, projection_dim=width, hidden_size=width,
    )  # fmt: skip
    both._attn_implementation = "eager"
    model = randomise(PaliGemmaForConditionalGeneration(both), seed)
    model.save_pretrained(folder)
    rng, (n, length, answer) = np.random.RandomState(seed), (16, 9, 4)
    images, tokens = image(rng, 2, 16, 16, 3), rng.randint(3, 63, (2, length))
    is_answer = np.tile(np.arange(length) >= length - answer, (2, 1))
    ids = torch.from_numpy(np.concatenate([np.full((2, n), 63), tokens], 1))
    kinds = torch.from_numpy(np.concatenate([np.zeros((2, n), int), is_answer], 1))
    inputs = {"pixel_values": chw(images), "attention_mask": torch.ones_like(ids)}
    labels = torch.where(kinds == 1, ids, -100)
    done = model(input_ids=ids, token_type_ids=kinds, labels=labels, **inputs)
    done.loss.backward()
    out = {"logits": done.logits[:, n:], "loss": done.loss}
    for name, (_, theirs) in GRADIENTS.items():
        out[f"grad_{name}"] = model.get_parameter(f"model.{theirs}.weight").grad
    prompt = n + length - answer
    out["generated"] = _greedy(model, ids[:, :prompt], kinds[:, :prompt], inputs)
    return {"images": images, "tokens": tokens.astype(np.int32), "answer": is_answer}, out


def _greedy(model, ids, kinds, inputs):
    inputs = {**inputs, "attention_mask": torch.ones_like(ids)}
    done = model.generate(
        input_ids=ids, token_type_ids=kinds, **inputs,
        do_sample=False, max_new_tokens=6, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return done[:, ids.shape[1] :].int()


MAKERS = {f.__name__: f for f in (siglip, videoprism, gemma, sequence, paligemma)}


def make(name, folder, seed, **sizes):
    """Write one oracle's checkpoint, inputs and results."""
    folder.mkdir(parents=True, exist_ok=True)
    given, out = MAKERS[name](folder, seed, **sizes)
    tensors = {f"in.{k}": np.ascontiguousarray(v) for k, v in given.items()}
    tensors |= {f"out.{k}": v.detach().contiguous().numpy() for k, v in out.items()}
    save_file(tensors, folder / "expected.safetensors")
    (folder / "generation_config.json").unlink(missing_ok=True)


if __name__ == "__main__":
    for name in MAKERS:
        make(name, TESTS / "golden" / name, seed=0)
