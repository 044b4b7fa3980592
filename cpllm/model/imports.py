"""Public checkpoints → our tree: a name table for each, read tensor by tensor.

| checkpoint | form | becomes |
|---|---|---|
| PaliGemma | safetensors, one file or shards | `high`, `project_high`, `decoder` |
| SigLIP, Gemma | the same | `high`; `decoder` |
| VideoPrism | npz (Flax, layers stacked), or safetensors as transformers saves it | `low` |

What no public checkpoint holds (`project_low`, `pool_norm`, `predictor`, LoRA) starts afresh.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open

from cpllm import config
from cpllm.data.text import load_gemma
from cpllm.model import weights
from cpllm.model.cpllm import CPLLM
from cpllm.model.siglip import resize_grid

Tensors = dict[str, np.ndarray]
Readers = dict[str, Callable[[], np.ndarray]]
"""Tensors of a checkpoint by name; calling one reads it."""

# Our modules → theirs; {i} is the layer, stacked on our leading axis.
SIGLIP = {
    "high.embed": "embeddings.patch_embedding",
    "high.positions": "embeddings.position_embedding.weight",
    "high.blocks.norm1": "encoder.layers.{i}.layer_norm1",
    "high.blocks.attention.q": "encoder.layers.{i}.self_attn.q_proj",
    "high.blocks.attention.k": "encoder.layers.{i}.self_attn.k_proj",
    "high.blocks.attention.v": "encoder.layers.{i}.self_attn.v_proj",
    "high.blocks.attention.out": "encoder.layers.{i}.self_attn.out_proj",
    "high.blocks.norm2": "encoder.layers.{i}.layer_norm2",
    "high.blocks.mlp.inner": "encoder.layers.{i}.mlp.fc1",
    "high.blocks.mlp.outer": "encoder.layers.{i}.mlp.fc2",
    "high.norm": "post_layernorm",
}
GEMMA = {
    "decoder.table": "embed_tokens.weight",
    "decoder.blocks.norm1": "layers.{i}.input_layernorm",
    "decoder.blocks.attention.q": "layers.{i}.self_attn.q_proj",
    "decoder.blocks.attention.k": "layers.{i}.self_attn.k_proj",
    "decoder.blocks.attention.v": "layers.{i}.self_attn.v_proj",
    "decoder.blocks.attention.out": "layers.{i}.self_attn.o_proj",
    "decoder.blocks.norm2": "layers.{i}.post_attention_layernorm",
    "decoder.blocks.mlp.gate": "layers.{i}.mlp.gate_proj",
    "decoder.blocks.mlp.up": "layers.{i}.mlp.up_proj",
    "decoder.blocks.mlp.down": "layers.{i}.mlp.down_proj",
    "decoder.norm": "norm",
}
PROJECTOR = {"project_high": "multi_modal_projector.linear"}
VIDEOPRISM = {
    "low.embed": "spatial_embeddings.patch_embeddings.projection",
    "low.positions": "spatial_embeddings.position_embeddings",
    "low.spatial_norm": "layernorm1",
    "low.times": "temporal_embeddings.position_embeddings",
    "low.temporal_norm": "layernorm2",
}
FLAX_VIDEOPRISM = {
    "low.embed": "params/patch_projection/linear",
    "low.positions": "params/spatial_pos_emb/emb_var",
    "low.spatial_norm": "params/spatial_ln",
    "low.times": "params/temporal_pos_emb/emb_var",
    "low.temporal_norm": "params/temporal_ln",
}
for _stack in ("spatial", "temporal"):
    VIDEOPRISM |= {
        f"low.{_stack}.{ours}": f"{_stack}_layers.{{i}}.{theirs}"
        for ours, theirs in {
            "norm1": "layernorm_before",
            "attention.q": "attention.q_proj",
            "attention.k": "attention.k_proj",
            "attention.v": "attention.v_proj",
            "attention.out": "attention.o_proj",
            "norm2": "layernorm_after",
            "mlp.inner": "mlp.fc1",
            "mlp.outer": "mlp.fc2",
        }.items()
    }
    FLAX_VIDEOPRISM |= {
        f"low.{_stack}.{ours}": f"params/{_stack}_encoder/transformers_stack/x_layers/{theirs}"
        for ours, theirs in {
            "norm1": "layer_norm",
            "attention.q": "self_attention/query",
            "attention.k": "self_attention/key",
            "attention.v": "self_attention/value",
            "attention.out": "self_attention/post",
            "norm2": "ff_layer/layer_norm",
            "mlp.inner": "ff_layer/ffn_layer1/linear",
            "mlp.outer": "ff_layer/ffn_layer2/linear",
        }.items()
    }

# Spellings: the hub's and those of transformers 5, which drops `model.` and `vision_model.`.
PREFIXES = {
    "high": r"^(model\.)?(vision_tower\.)?(vision_model\.)?",
    "decoder": r"^(model\.)?(language_model\.)?(model\.)?",
    "project_high": r"^(model\.)?",
    "low": r"^(video_model\.)?(vision_model\.)?",
}
IGNORED = {
    "high": r"text_model\.|logit_|head\.|embeddings\.position_ids",  # of a whole SigLIP
    "decoder": r"lm_head\.|layers\.\d+\.self_attn\.rotary_emb",  # tied; computed
}


def readers(path: Path) -> Readers:
    """Of an .npz, a .safetensors file, or a folder with one or with shards. Never a pickle."""
    if path.is_dir():
        return {k: v for file in _shards(path) for k, v in readers(file).items()}
    if path.suffix == ".npz":
        return _npz(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: expected .safetensors or .npz; pickled weights are not loaded")
    try:
        file = safe_open(path, "numpy", backend="pread")
    except SafetensorError as error:
        raise ValueError(f"{path}: expected a safetensors file ({error})") from error
    return {name: partial(file.get_tensor, name) for name in file.keys()}  # noqa: SIM118


def _npz(path: Path) -> Readers:
    try:
        file = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, BadZipFile) as error:  # a pickle, or no NumPy file at all
        raise ValueError(f"{path}: expected arrays in npz form, without pickles") from error
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise ValueError(f"{path}: expected arrays in npz form, came one array")

    def member(name: str) -> np.ndarray:
        try:
            found = file[name]  # bytes where the member is no array
        except (ValueError, EOFError, MemoryError, BadZipFile) as error:
            raise ValueError(f"{path}: {name}: expected an array ({error})") from error
        if not isinstance(found, np.ndarray):
            raise ValueError(f"{path}: {name}: expected an array, came {len(found):,} bytes")
        return found

    return {name: partial(member, name) for name in file.files}


def _shards(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        return [folder / Path(name).name for name in files]
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    raise ValueError(f"{folder}: expected model.safetensors, or shards with their index")


def canonical(found: Readers, part: str) -> Readers:
    """Names without the prefixes of either spelling, and without what `part` has no use for."""
    plain = {re.sub(PREFIXES[part], "", name): read for name, read in found.items()}
    ignored = IGNORED.get(part)
    return {k: v for k, v in plain.items() if not (ignored and re.match(ignored, k))}


class Source(NamedTuple):
    """What fills one of our leaves: the names of one tensor, or of one per layer."""

    names: list[str]
    layout: Callable[[np.ndarray], np.ndarray]
    per_layer: bool


def torch_source(table: dict[str, str], leaf: str, layers: int) -> Source:
    """Torch names: kernels are [out, in] or convolutions, norms' scales are `weight`."""
    if leaf in table:
        return Source([table[leaf]], lambda x: x.reshape(x.shape[-2:]), False)
    module, kind = leaf.rsplit(".", 1)
    last = module.startswith("high.last")
    name = table[module.replace("high.last", "high.blocks")]
    name += ".bias" if kind == "bias" else ".weight"
    at = [layers] if last else range(layers) if "{i}" in name else [0]
    return Source([name.format(i=i) for i in at], _kernel, "{i}" in name and not last)


def _kernel(x: np.ndarray) -> np.ndarray:
    """[out, in] → [in, out]; a convolution's [out, c, (1,) p, q] → [p·q·c, out]."""
    if x.ndim < 4:
        return x.T
    out, c, *_, p, q = x.shape
    return x.reshape(out, c, p, q).transpose(2, 3, 1, 0).reshape(-1, out)


def flax_source(leaf: str) -> Source:
    """VideoPrism's own names; attention kernels are [L,D,N,H], the output's too."""
    if leaf in FLAX_VIDEOPRISM:
        return Source([FLAX_VIDEOPRISM[leaf]], np.asarray, False)
    module, kind = leaf.rsplit(".", 1)
    attention, out = ".attention." in module, module.endswith(".out")
    name = f"{FLAX_VIDEOPRISM[module]}/{kind[0].replace('k', 'w') if attention else kind}"
    if attention and kind == "kernel":
        return Source([name], _output if out else lambda x: x.reshape(*x.shape[:2], -1), False)
    return Source([name], lambda x: x.reshape(len(x), -1) if attention else x, False)


def _output(x: np.ndarray) -> np.ndarray:
    """[L,D,N,H] → [L,N·H,D]."""
    return x.transpose(0, 2, 3, 1).reshape(len(x), -1, x.shape[1])


def _resample(positions: np.ndarray, tokens: int) -> np.ndarray:
    """Positions of a square grid, [n²,D], bilinearly to another square of `tokens`."""
    side = math.isqrt(tokens)
    if math.isqrt(len(positions)) ** 2 != len(positions):
        raise ValueError(f"{len(positions)} positions are no square grid")
    return np.asarray(resize_grid(jnp.asarray(positions, jnp.float32), side, side))


def fill(path: Path, found: Readers, sources: dict[str, Source], shapes: dict, dtype) -> Tensors:
    """Our leaves of `sources`, read one tensor at a time; ValueError lists all that differs."""
    wanted = {name for source in sources.values() for name in source.names}
    weights.compare(path, dict.fromkeys(wanted), dict.fromkeys(found))
    filled, expected, got = {}, {}, {}
    for leaf, source in sources.items():
        filled[leaf] = np.empty(shapes[leaf], dtype)
        for i, name in enumerate(source.names):
            target = filled[leaf][i] if source.per_layer else filled[leaf]
            expected[name], got[name] = target.shape, _put(target, found[name](), source.layout)
    weights.compare(path, expected, got)
    return filled


def _put(target: np.ndarray, x: np.ndarray, layout: Callable) -> tuple[int, ...]:
    """Write x as laid out into `target` where it fits; returns its shape, laid out."""
    try:
        x = layout(x)
    except ValueError:  # of another rank
        return x.shape
    if x.shape == target.shape:
        target[...] = x
    return x.shape


def read(path: Path, part: str, model: config.Model, dtype="float32") -> Tensors:
    """Leaves of `part` ("high", "low", "decoder" or "project_high") from a checkpoint."""
    shapes = _shapes(model)
    leaves = [k for k in shapes if k.split(".")[0] == part and ".lora." not in k]
    found = canonical(_of_part(readers(path), part), part)
    if path.suffix == ".npz":
        sources = {leaf: flax_source(leaf) for leaf in leaves}
    else:
        table = {"high": SIGLIP, "low": VIDEOPRISM, "decoder": GEMMA, "project_high": PROJECTOR}
        layers = {leaf: shapes[leaf][0] for leaf in leaves}
        layers |= {leaf: model.high.layers - 1 for leaf in leaves if part == "high"}
        sources = {leaf: torch_source(table[part], leaf, layers[leaf]) for leaf in leaves}
    if part == "high":  # a tower of another side than the checkpoint's keeps its pixels' scale
        (rows, _), source = shapes["high.positions"], sources["high.positions"]
        sources["high.positions"] = source._replace(layout=partial(_resample, tokens=rows))
    return fill(path, found, sources, shapes, dtype)


@cache
def _shapes(model: config.Model) -> dict[str, tuple[int, ...]]:
    leaves = weights.parameters(weights.shapes(model))
    return {name: leaf.shape for name, leaf in leaves.items()}


def _of_part(found: Readers, part: str) -> Readers:
    """PaliGemma's tensors for one part; all of a checkpoint that is not PaliGemma."""
    if not any("multi_modal_projector." in name for name in found):
        return found
    others = {"high": r"language_model|lm_head|multi_modal", "decoder": r"vision_tower|multi_modal",
              "project_high": r"language_model|lm_head|vision_tower"}  # fmt: skip
    rest = re.compile(rf"^(model\.)?({others[part]})")
    return {name: read for name, read in found.items() if not rest.match(name)}


def siglip_shape(path: Path) -> config.Siglip:
    """From config.json of a SigLIP or PaliGemma checkpoint."""
    c = _config(path)
    c = getattr(c, "vision_config", c)
    return config.Siglip(
        c.num_hidden_layers, c.hidden_size, c.intermediate_size, c.num_attention_heads,
        c.patch_size, c.image_size,
    )  # fmt: skip


def gemma_shape(path: Path) -> config.Gemma:
    """From config.json of a Gemma or PaliGemma checkpoint; other members of the family differ."""
    c = _config(path).get_text_config()
    if c.model_type != "gemma":
        raise ValueError(f"{path}: expected Gemma 1 (model_type gemma), got {c.model_type}")
    return config.Gemma(
        c.num_hidden_layers, c.hidden_size, c.intermediate_size, c.num_attention_heads,
        c.num_key_value_heads, c.head_dim, c.vocab_size,
    )  # fmt: skip


def videoprism_shape(path: Path) -> config.VideoPrism:
    """From config.json, or from the arrays of an npz."""
    if path.suffix != ".npz":
        c = _config(path)
        patch = c.tubelet_size[1]
        return config.VideoPrism(
            c.num_spatial_layers, c.num_temporal_layers, c.hidden_size, c.intermediate_size,
            c.num_attention_heads, patch, c.image_size, c.num_frames, c.attn_logit_softcapping,
        )  # fmt: skip
    found = readers(path)
    weights.compare(path, dict.fromkeys(_flax_names()), dict.fromkeys(found))
    at = {s: f"params/{s}_encoder/transformers_stack/x_layers" for s in ("spatial", "temporal")}
    layers, width, heads, _ = found[f"{at['spatial']}/self_attention/query/w"]().shape
    patch = math.isqrt(len(found["params/patch_projection/linear/kernel"]()) // 3)
    return config.VideoPrism(
        layers, len(found[f"{at['temporal']}/layer_norm/scale"]()), width,
        found[f"{at['spatial']}/ff_layer/ffn_layer1/linear/bias"]().shape[1], heads, patch,
        patch * math.isqrt(len(found["params/spatial_pos_emb/emb_var"]())),
        len(found["params/temporal_pos_emb/emb_var"]()),
    )  # fmt: skip


def _flax_names() -> list[str]:
    leaves = _shapes(config.paper().model)
    return [flax_source(leaf).names[0] for leaf in leaves if leaf.startswith("low.")]


def _config(path: Path):
    from transformers import AutoConfig

    folder = path if path.is_dir() else path.parent
    if not (folder / "config.json").is_file():
        raise ValueError(f"{path}: expected a checkpoint with its config.json, found none")
    return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def import_weights(
    out: Path,
    cfg: config.Config,
    low: Path,
    high: Path,
    decoder: Path,
    tokenizer: Path | None = None,
    dtype: str = "float32",
) -> config.Config:
    """Write one checkpoint that `weights.load` reads; returns its configuration.

    high and decoder may be the same PaliGemma folder, whose projector comes along. The shapes
    are the checkpoints' own; everything else is `cfg`'s, also the side of the views: positions
    of a SigLIP of another side (384) are resampled. New parts start from `cfg.train.seed`.
    """
    paths = {"high": high, "low": low, "decoder": decoder}
    if high == decoder:
        paths["project_high"] = high
    cfg = config.replace(
        cfg,
        **{
            "model.high": dataclasses.replace(siglip_shape(high), image=cfg.video.high_size),
            "model.low": videoprism_shape(low),
            "model.decoder": gemma_shape(decoder),
        },
    )
    words = load_gemma(tokenizer or decoder)
    tensors: Tensors = {}
    for part, path in paths.items():
        tensors |= read(path, part, cfg.model, dtype)
    weights.write(out, tensors | _fresh(cfg, set(tensors), dtype), cfg, words)
    return cfg


def _fresh(cfg: config.Config, known: set[str], dtype: str) -> Tensors:
    """Initial values of all other leaves; under jit those that are known are never made."""

    @jax.jit
    def make() -> dict[str, jax.Array]:
        model = CPLLM(cfg.model, nnx.Rngs(cfg.train.seed))
        leaves = weights.parameters(model)
        return {k: v[...].astype(jnp.dtype(dtype)) for k, v in leaves.items() if k not in known}

    return jax.device_get(make())
