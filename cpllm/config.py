"""One frozen configuration; the profiles are presets of it.

Where the paper is silent the field's comment says what we chose and why; the
book collects these on the page "What the paper doesn't say".
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

CRFS = tuple(range(13, 52, 2))
"""Pocket's ladder: 20 distinct levels. The paper's 15…53 holds a duplicate, because
8-bit x264 clamps CRF 53 to 51."""


@dataclass(frozen=True)
class Data:
    """Built-in scenes and their ladders. Counts are scenes; each scene belongs to one source."""

    train_scenes: int = 64  # with a ladder each
    validation_scenes: int = 24
    test_scenes: int = 40
    singles: tuple[int, ...] = (400, 60, 120)  # without: train, validation, each test set
    distorted: int = 3  # faulty originals of a scene with a ladder; in test one at most
    frames: int = 12
    max_lines: int = 1080  # upper bound on the short side of a clip
    crfs: tuple[int, ...] = CRFS
    other_ladders: int = 6  # test scenes that are encoded by VP9, H.265 and AV1 too
    codec: str = "h264"
    preset: str = "veryfast"
    proxy_lines: int = 360  # VMAF compares both clips scaled to this short side
    proxy_every: int = 2  # VMAF looks at each second frame
    wide_scenes: int = 0  # of the grid `fit`, for training: see `data/wide.py`
    wide_fetched: float = 0.35  # share of them that show a fetched photograph
    wide_held: int = 0  # to choose by: each so-many-th of these is kept for validation; 0: none
    wear_noise: tuple[float, ...] = (0.5, 0.25)  # share of them with it, and how strong at most
    wear_upscale: tuple[float, ...] = (0.5, 0.5)
    wear_recompress: tuple[float, ...] = (0.85, 0.65)
    without: tuple[str, ...] = ()  # families of scenes that training leaves out
    without_faults: tuple[str, ...] = ()  # of `distort.DISTORTIONS`, the same
    dataset: str = "scenes"  # built in; anything else is the user's to bring


@dataclass(frozen=True)
class Video:
    """What the model sees of a video."""

    key_frames: int = 5  # M
    high_size: int = 448  # H_h = W_h, aspect ratio ignored
    fit_height: int = 540  # the low-level frame fits within this box, aspect ratio kept
    fit_width: int = 1080
    enlarge: bool = False  # not specified; frames below the box stay as they are
    patches: int = 8  # K
    patch_size: int = 224  # H_p = W_p
    align: int = 1  # pixels of which a patch's corners are multiples; 8: a codec's blocks
    following: bool = False  # a second view, of the key frame half a clip on: MBVQA's motion


@dataclass(frozen=True)
class Siglip:
    """High-level encoder."""

    layers: int
    width: int
    mlp: int
    heads: int
    patch: int
    image: int


@dataclass(frozen=True)
class VideoPrism:
    """Low-level encoder. `image` is the side that the tower takes, `patch` its token's side."""

    layers: int
    temporal_layers: int
    width: int
    mlp: int
    heads: int
    patch: int
    image: int
    frames: int = 16
    softcap: float = 50.0  # of the attention logits; 0: none
    exact_gelu: bool = True  # False: the tanh form


@dataclass(frozen=True)
class Gemma:
    """Language decoder."""

    layers: int
    width: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int


@dataclass(frozen=True)
class Model:
    """Both towers, the decoder and what joins them."""

    high: Siglip
    low: VideoPrism
    decoder: Gemma
    lora_rank: int = 4  # R; 0 switches the adapters off
    high_finetune: Literal["frozen", "head", "all"] = "frozen"
    decoder_finetune: Literal["lora", "all"] = "lora"  # all: pocket's starts from random weights
    predictor: Literal["token", "pooled"] = "token"  # MLP per token, then mean; or mean, then MLP
    predictor_hidden: int = 256
    predictor_sees: Literal["both", "low"] = "both"  # by u few scenes' levels are learnt by heart
    crop_patches: bool = False  # to whole tokens, 224 → 216 pixels; else resized
    clip_patches: bool = False  # a frame's patches as one clip, through the temporal layers
    encoders: Literal["both", "high", "low"] = "both"  # whose tokens predictor and decoder get
    local_norm: bool = False  # pocket: subtract the local mean and divide by the local deviation
    spectrum: bool = False  # pocket: blocks' spectra in the place of pixels
    dtype: str = "float32"  # of products and activations; weights, norms, softmax stay float32
    remat: Literal["", "blocks", "functions"] = ""  # recomputed backward; functions: not products
    unroll: int = 1  # blocks in one turn of the compiled loop over a stack's
    kind: str = "cp-llm"  # or one of RIVALS, the compared models: see `rival`
    mechanism: bool = True  # False: a rival without what it is known for


@dataclass(frozen=True)
class Train:
    """Optimisation and the make-up of a batch."""

    steps: int
    batch: int  # pairs a step
    learning_rate: float = 1e-4
    schedule: Literal["constant", "cosine"] = "constant"  # cosine: after a linear warm-up
    warmup: int = 0
    weight_decay: float = 0.0
    clip_norm: float = 0.0  # 0: no clipping, as the paper
    diverged: float = 3.0  # times its lowest that the loss may rise to, see `train`; 0: any
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)  # of L1, L2, L3: "equal weights"
    ranking: Literal["product", "logistic"] = "product"  # L1 by Eq. 1 or `losses.ranking_logistic`
    input_mode: Literal["single", "pairwise", "mix"] = "mix"
    single_share: float = 0.5  # of a mixed batch; not specified in the paper
    told_pictures: int = 0  # of `pretrain`, beside them for L3: else their words are forgotten
    within_share: float = 0.5  # of pairs: both members from one source; not specified
    regress_on: Literal["originals", "all"] = "originals"  # Eq. 2's set M
    frames: int = 2  # key frames of a training video that are kept decoded; a step draws one
    patches: int = 0  # of a frame in a step; 0: all K
    max_text: int = 512  # L
    augment: bool = False
    relight: bool = True  # `augment` also changes brightness, contrast and the channels' order
    seed: int = 0
    select_every: int = 250  # steps between looks at the validation sources
    save_every: int = 250  # steps between checkpoints
    keep: int = 2  # newest checkpoints that stay, beside the best
    accumulate: int = 1  # batches whose gradients make one update
    pretrained: bool = False  # high tower and decoder start as `cpllm.pretrain` left them
    cache_high: bool = False  # what a frozen high tower makes of the frames, by `cpllm.features`
    select_scenes: int = 0  # validation scenes that a look scores; 0: all


@dataclass(frozen=True)
class Pretrain:
    """What stands in for public checkpoints: see `cpllm.pretrain`."""

    view_steps: int = 4000  # of the high tower, on `views` frames and their captions each
    text_steps: int = 1500  # of the decoder, on `texts` each, half with a frame
    views: int = 48
    texts: int = 32
    pictures: int = 8000  # frames of scenes beside those of training: see `data/pictures.py`
    learning_rate: float = 2e-3


@dataclass(frozen=True)
class PretrainLow:
    """What the low-level encoder learns before training: see `cpllm.pretrain_low`."""

    steps: int = 0  # none: it starts from random weights
    frames: int = 24  # of a step, coded and original
    patches: int = 12  # of a frame
    learning_rate: float = 2e-3


@dataclass(frozen=True)
class Config:
    """Everything that a run depends on besides code and data."""

    profile: str
    model: Model
    train: Train
    video: Video = field(default_factory=Video)
    data: Data = field(default_factory=Data)
    pretrain: Pretrain = field(default_factory=Pretrain)
    pretrain_low: PretrainLow = field(default_factory=PretrainLow)
    seeds: tuple[int, ...] = (0, 1, 2)  # of the tables; the first gives the default weights

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as written to a run's config.json."""
        return dataclasses.asdict(self)


GEMMA_2B = Gemma(18, 2048, 16384, 8, 1, 256, 257216)
SO400M_448 = Siglip(27, 1152, 4304, 16, 14, 448)
VIDEOPRISM_B = VideoPrism(12, 4, 768, 3072, 12, 18, 288)
VIDEOPRISM_L = VideoPrism(24, 4, 1024, 4096, 16, 18, 288, frames=8)


def smoke() -> Config:
    """Tiny everything: what tests and CI run."""
    return Config(
        profile="smoke",
        seeds=(0,),
        data=Data(
            6, 3, 3, singles=(4, 2, 1), distorted=1, frames=6, max_lines=144, other_ladders=1,
            proxy_lines=144, proxy_every=1,
        ),
        video=Video(key_frames=2, high_size=32, patches=8, patch_size=32),
        model=Model(
            high=Siglip(1, 32, 64, 2, 16, 32),
            low=VideoPrism(1, 0, 32, 64, 2, 8, 32),
            decoder=Gemma(1, 32, 64, 2, 1, 16, 1024),
            high_finetune="all",
            decoder_finetune="all",
            lora_rank=0,
            predictor_hidden=32,
            local_norm=True,
        ),
        pretrain=Pretrain(view_steps=30, text_steps=30, views=16, texts=8, pictures=20),
        train=Train(
            steps=60, batch=8, learning_rate=2e-3, schedule="cosine", warmup=10, clip_norm=1.0,
            max_text=88, augment=True, select_every=30,
        ),
    )


def pocket() -> Config:
    """Small towers that a laptop trains in a quarter of an hour."""
    return Config(
        profile="pocket",
        # The FR-proxy compares all clips at one size, so the model looks at all at one size too.
        video=Video(key_frames=3, high_size=96, enlarge=True, patches=24, patch_size=64),
        model=Model(
            high=Siglip(3, 96, 384, 4, 16, 96),
            # Neither erf nor a softcap: on a CPU both cost as much as the products between them.
            low=VideoPrism(3, 0, 96, 384, 4, 16, 64, softcap=0.0, exact_gelu=False),
            decoder=Gemma(2, 96, 256, 4, 1, 24, 1024),
            high_finetune="all",
            decoder_finetune="all",
            lora_rank=0,
            local_norm=True,
            unroll=3,  # all layers of a tower: a loop costs a tenth of the step on a CPU
        ),
        train=Train(
            steps=1500, batch=16, learning_rate=1e-3, schedule="cosine", warmup=100, patches=8,
            weight_decay=1e-2, clip_norm=1.0, max_text=88, augment=True, select_every=500,
            regress_on="all",  # the FR-proxy of a variant is measured like an original's
        ),
    )


def paper() -> Config:
    """The paper's values; LSVQ and the public checkpoints are the user's to bring."""
    epochs, videos, batch = 500, 28056, 128
    return Config(
        profile="paper",
        data=Data(dataset="lsvq"),
        model=Model(
            high=SO400M_448, low=VIDEOPRISM_B, decoder=GEMMA_2B, predictor_hidden=2048,
            dtype="bfloat16", remat="blocks",
        ),
        train=Train(steps=epochs * videos // batch, batch=batch),
    )


RIVALS = ("fast-vqa", "dover", "mbvqa", "coinvq", "q-align")
"""The compared models, each with its own mechanism on the same towers: `model/rivals.py`."""

PRESETS = {"smoke": smoke, "pocket": pocket, "paper": paper}

REGIME = {
    "train.pretrained": True, "model.high_finetune": "frozen",
    "model.decoder_finetune": "lora", "model.lora_rank": 4,
}
"""The paper's fine-tuning, from towers pretrained here."""

TABLE: dict[str, dict[str, Any]] = {
    "smoke": {},  # pretraining would cost more than all of its training
    "pocket": {
        **REGIME, "train.steps": 200, "train.patches": 4, "train.select_scenes": 28,
        "train.select_every": 200, "train.save_every": 200, "train.warmup": 30,
        "video.key_frames": 2, "video.patches": 8,
    },
    "paper": {},
}
"""The `table` recipe: changes to a preset with which every row of Tables 1, 2 and 4 is trained."""


def preset(profile: str) -> Config:
    """The configuration of a profile; ValueError names the known ones."""
    if profile not in PRESETS:
        raise ValueError(f"profile: expected one of {', '.join(PRESETS)}; got {profile!r}")
    return PRESETS[profile]()


def table(profile: str) -> Config:
    """The preset under the `table` recipe; a row of a table differs in what the row names."""
    return replace(preset(profile), **TABLE[profile])


RECIPES = {"preset": preset, "table": table}


def clips(config: Config, data: Path) -> Path:
    """Folder of the clips that a configuration trains on, for the profile's folder `data`.

    >>> wide = replace(pocket(), **{"data.wide_scenes": 240})
    >>> clips(smoke(), Path("data/smoke")).name, clips(wide, Path("data/pocket")).name
    ('smoke', 'pocket-fit')
    """
    return data.with_name(f"{data.name}-fit") if config.data.wide_scenes else data


def from_dict(values: dict[str, Any], cls: type = Config, at: str = "config") -> Any:
    """Rebuild a configuration from nested dicts; what is unknown, missing or mistyped is named."""
    if not isinstance(values, dict):
        raise ValueError(f"{at}: expected named values, got {values!r:.80}")
    kinds = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(kinds))
    if unknown:
        raise ValueError(f"{at}: unknown {', '.join(unknown)}; known are {', '.join(kinds)}")
    needed = {f.name for f in dataclasses.fields(cls)
              if f.default is f.default_factory is dataclasses.MISSING}
    if needed - set(values):
        raise ValueError(f"{at}: missing {', '.join(sorted(needed - set(values)))}")
    built = {k: from_dict(v, kinds[k], f"{at}.{k}") if dataclasses.is_dataclass(kinds[k])
             else _typed(v, kinds[k], f"{at}.{k}") for k, v in values.items()}
    return cls(**built)


def _typed(value: Any, kind: Any, at: str) -> Any:
    """The value, a list as a tuple; ValueError where it is none of `kind`."""
    wanted = typing.get_origin(kind) or kind
    if wanted is tuple and isinstance(value, list | tuple):
        each = typing.get_args(kind)[0]
        return tuple(_typed(v, each, f"{at}[{i}]") for i, v in enumerate(value))
    if wanted is Literal:
        value = "" if value is False else value  # `remat` before its ways had names
        if value in typing.get_args(kind):
            return value
        known = ", ".join(map(repr, typing.get_args(kind)))
        raise ValueError(f"{at}: expected one of {known}; got {value!r:.80}")
    whole = isinstance(value, int) and not isinstance(value, bool)
    if (isinstance(value, wanted) and (wanted is not int or whole)) or (wanted is float and whole):
        return value
    raise ValueError(f"{at}: expected {wanted.__name__}, got {value!r:.80}")


def replace(config: Config, **changes: Any) -> Config:
    """Copy with flat changes, each key "section.field", "section.part.field" or the bare name of a
    `train` field. ValueError names what is unknown or mistyped.

    >>> replace(smoke(), seed=3, **{"model.lora_rank": 2}).train.seed
    3
    >>> replace(smoke(), **{"model.high.patch": 8}).model.high.patch
    8
    """
    for name, value in changes.items():
        key = name if "." in name else f"train.{name}"
        config = _changed(config, key.split("."), value, key)
    return config


def _changed(part: Any, path: list[str], value: Any, key: str) -> Any:
    """`part` with the value at a path, which is all of `key`."""
    (name, *rest), kinds = path, typing.get_type_hints(type(part))
    if name not in kinds:
        known = ", ".join(kinds) or "none"
        raise ValueError(f"config: unknown {name!r} in {key!r}; known are {known}")
    value = (_changed(getattr(part, name), rest, value, key) if rest
             else _typed(value, kinds[name], f"config.{key}"))
    return dataclasses.replace(part, **{name: value})


def rival(config: Config, kind: str, mechanism: bool = True) -> Config:
    """A compared model's configuration: the rest of `config` stays.

    Its towers are trained whole, as their authors do; MBVQA and Q-Align see what they need.

    >>> rival(smoke(), "q-align").video.high_size, smoke().video.high_size
    (64, 32)
    """
    sees = {"mbvqa": {"video.following": True},
            "q-align": {"video.high_size": 2 * config.video.high_size}}
    return replace(config, **{
        "model.kind": kind, "model.mechanism": mechanism, "model.high_finetune": "all",
        "model.decoder_finetune": "all", "model.lora_rank": 0, **sees.get(kind, {})})
