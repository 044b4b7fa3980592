"""A trained model at work: what it sees of a video, its scores and its words.

What a user gets to see of them is `cpllm.judge`'s.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from flax import nnx
from tokenizers import Tokenizer

from cpllm import config
from cpllm.data import manifests, text, video
from cpllm.data.batches import Batch, model_inputs
from cpllm.model import weights

DEFAULT = Path(__file__).parent / "weights" / "pocket.safetensors"


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

    def see(self, inputs: Batch) -> tuple[tuple[jax.Array, ...], np.ndarray]:
        """What the model sees in M key frames, (u, v), and their scores, float32[M] in 0–100."""
        seen, scores = _see(*self._split, inputs)
        return seen, np.asarray(scores)

    def frame_scores(self, inputs: Batch) -> np.ndarray:
        """float32[M] in 0–100; a video's score is their mean (Sec. 3.1.4)."""
        return self.see(inputs)[1]

    def middle(self, inputs: Batch) -> tuple[jax.Array, ...]:
        """What the model sees in the middle key frame alone."""
        at = self.cfg.video.key_frames // 2
        return self.see({k: x[at : at + 1] for k, x in inputs.items()})[0]

    def answer(
        self, seen: list[tuple[jax.Array, ...]], prompt: str, temperature: float = 0.0,
        seed: int = 0,
    ) -> str:
        """The decoder's words on one or two frames; one stands twice, its duplicate masked.

        temperature: 0 takes the likeliest token each time; 1 draws as the model believes.
        ValueError from a model that has no decoder.
        """
        if not hasattr(self.model, "generate"):
            raise ValueError(f"{self.cfg.model.kind}: this model has scores and no words")
        second = jnp.array([len(seen) > 1])
        packed = text.pack(self.tokenizer, prompt, None, self.cfg.train.max_text)
        n, eos = int(packed.valid.sum()), self.tokenizer.token_to_id(text.EOS)
        given = {k: getattr(packed, k)[None, :n] for k in ("tokens", "valid")}
        key = jax.random.key(seed) if temperature else None
        steps, both = self.cfg.train.max_text - n, [seen[0], seen[-1]]
        tokens = _write(*self._split, steps, eos, both, second, given, temperature, key)
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


def load(path: str | Path | None = None) -> Scorer:
    """The committed default model, or one from a weights file."""
    model, cfg, tokenizer = weights.load(Path(path or DEFAULT))
    return Scorer(cfg, model, tokenizer)


def ahead(pool: Executor, job: Callable, items: Iterable, most: int = 8) -> Iterator:
    """Results in order, those of the next `most` items in the making meanwhile."""
    waiting: deque[Future] = deque()
    for item in items:
        waiting.append(pool.submit(job, item))
        if len(waiting) > most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
