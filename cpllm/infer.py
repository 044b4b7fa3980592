"""Score, compare and describe videos with a trained model."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from flax import nnx
from tokenizers import Tokenizer

from cpllm import config
from cpllm.data import annotate, manifests, text, video
from cpllm.data.batches import Batch, model_inputs
from cpllm.model import weights

DEFAULT = Path(__file__).parent / "weights" / "pocket.safetensors"


@dataclass(frozen=True)
class Score:
    """A video's quality: `score` 0–100, higher is better, with its ACR `word`."""

    path: str
    score: float
    word: str
    frames: tuple[float, ...]  # of each key frame; `score` is their mean


@dataclass(frozen=True)
class Comparison:
    """Both scores, the better of the two by score, and the decoder's own answer in words."""

    first: Score
    second: Score
    better: str  # "first" or "second"
    answer: str


@dataclass(frozen=True)
class Description:
    """The decoder's three sentences beside the predicted score."""

    score: Score
    text: str


@partial(jax.jit, static_argnums=0)
def _see(graph: nnx.GraphDef, params: nnx.State, inputs: Batch):
    """What the model sees in M key frames, (u, v), and their scores 0–100: float32[M]."""
    model = nnx.merge(graph, params)
    seen = model.see(*(inputs[k] for k in model.inputs))
    return seen, 100 * model.score(*seen)


@partial(jax.jit, static_argnums=(0, 2, 3))
def _write(graph: nnx.GraphDef, params: nnx.State, steps: int, eos: int, *given):
    """Tokens of an answer, int32[1,steps]; given: seen, second, prompt, temperature, key."""
    seen, second, prompt, temperature, key = given
    return nnx.merge(graph, params).generate(seen, second, prompt, steps, eos, temperature, key)


class Scorer:
    """A model ready to use: `load()` makes one."""

    def __init__(self, cfg: config.Config, model: nnx.Module, tokenizer: Tokenizer):
        self.cfg, self.model, self.tokenizer = cfg, model, tokenizer

    @cached_property
    def _split(self) -> tuple[nnx.GraphDef, nnx.State]:
        return nnx.split(self.model)

    def save(self, path: Path) -> None:
        """Write the weights with their configuration and tokenizer."""
        weights.save(path, self.model, self.cfg, self.tokenizer)

    def inputs(self, path: str | Path) -> Batch:
        """What the model sees of a file: its decoded key frames, nothing else."""
        return model_inputs(video.key_frames(path, self.cfg.video.key_frames), self.cfg.video)

    def frame_scores(self, inputs: Batch) -> np.ndarray:
        """float32[M] in 0–100."""
        return np.asarray(_see(*self._split, inputs)[1])

    def middle(self, inputs: Batch) -> tuple[jax.Array, ...]:
        """What the model sees in the middle key frame alone."""
        at = self.cfg.video.key_frames // 2
        return _see(*self._split, {k: x[at : at + 1] for k, x in inputs.items()})[0]

    def score(self, path: str | Path) -> Score:
        """Mean over key frames (Sec. 3.1.4). Raises `VideoError` for a file that is no video."""
        return _result(path, self.frame_scores(self.inputs(path)))

    def compare(self, first: str | Path, second: str | Path) -> Comparison:
        """Which of two videos is better, by score, and in words from their middle key frames."""
        both = [self.inputs(path) for path in (first, second)]
        scores = [
            _result(p, self.frame_scores(i)) for p, i in zip((first, second), both, strict=True)
        ]
        better = "first" if scores[0].score >= scores[1].score else "second"
        return Comparison(*scores, better, self._answer(both, text.COMPARE))

    def describe(self, path: str | Path, temperature: float = 0.0, seed: int = 0) -> Description:
        """Three sentences on content, style and technical quality, from the middle key frame.

        temperature: 0 takes the likeliest token each time; 1 draws as the model believes.
        """
        inputs = self.inputs(path)
        words = self._answer([inputs, inputs], text.DESCRIBE, temperature, seed)
        return Description(_result(path, self.frame_scores(inputs)), words)

    def heatmap(self, path: str | Path, stride: int | None = None):
        """Where the low-level encoder sees damage in the middle key frame: `damage.Heatmap`."""
        # By name: what draws maps is no part of the code that a run's hash is taken of.
        return import_module("cpllm.damage").heatmap(path, self, stride)

    def _answer(
        self, both: list[Batch], prompt: str, temperature: float = 0.0, seed: int = 0
    ) -> str:
        """A single input stands twice, its duplicate masked, as in training."""
        if not hasattr(self.model, "generate"):
            raise ValueError(f"{self.cfg.model.kind}: this model has scores and no words")
        seen = [self.middle(inputs) for inputs in both]
        second = jnp.array([both[0] is not both[1]])
        packed = text.pack(self.tokenizer, prompt, None, self.cfg.train.max_text)
        n, eos = int(packed.valid.sum()), self.tokenizer.token_to_id(text.EOS)
        given = {k: getattr(packed, k)[None, :n] for k in ("tokens", "valid")}
        key = jax.random.key(seed) if temperature else None
        steps = self.cfg.train.max_text - n
        tokens = _write(*self._split, steps, eos, seen, second, given, temperature, key)
        return text.unpack(self.tokenizer, np.asarray(tokens)[0])

    def predict(
        self, rows: pd.DataFrame, videos: Path, cache: dict[str, Batch] | None = None
    ) -> pd.DataFrame:
        """Predictions of manifest rows, one line each; `cache` keeps their decoded inputs."""
        cache = {} if cache is None else cache
        new = rows[~rows["video"].isin(list(cache))]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            decoded = pool.map(self.inputs, (videos / name for name in manifests.files(new)))
            cache.update(zip(new["video"], decoded, strict=True))
        scores = [self.frame_scores(cache[n]).mean(dtype=np.float64) for n in rows["video"]]
        return manifests.prediction_rows(rows).assign(prediction=scores)


def _result(path: str | Path, frames: np.ndarray) -> Score:
    score = float(frames.mean(dtype=np.float64))
    return Score(str(path), score, annotate.word(score), tuple(map(float, frames)))


def load(path: str | Path | None = None) -> Scorer:
    """The committed default model, or one from a weights file."""
    model, cfg, tokenizer = weights.load(Path(path or DEFAULT))
    return Scorer(cfg, model, tokenizer)


def score(path: str | Path) -> Score:
    """Score of one file by the default model; for many files keep `load()`."""
    return load().score(path)


def compare(first: str | Path, second: str | Path) -> Comparison:
    """Comparison of two files by the default model."""
    return load().compare(first, second)


def describe(path: str | Path) -> Description:
    """Description of one file by the default model."""
    return load().describe(path)
