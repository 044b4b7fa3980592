"""Score, compare and describe videos, with intervals and warnings: what `cpllm.load()` returns."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from cpllm import card, config, infer
from cpllm.data import annotate, text, video
from cpllm.data.batches import Batch, model_inputs
from cpllm.model import weights
from cpllm.verdicts import Comparison, Description, Score

if TYPE_CHECKING:  # what encodes and draws is loaded where it is asked for
    from cpllm.curve import Curve
    from cpllm.damage import Heatmap

ALIKE = 0.8
"""Correlation of the high-level views from which on two clips are taken for encodes of one."""

REDRAWS = 16
"""How often the decoder is asked again, at most, when its word contradicts the score."""

UNKNOWN = "the weights carry no card: neither interval nor training domain is known"


class Seen(NamedTuple):
    """A video as the model sees it."""

    score: Score
    view: np.ndarray  # of the middle key frame
    middle: tuple[jax.Array, ...]  # what the decoder reads


class Judge(infer.Scorer):
    """A model with what its card says of its scores."""

    def __init__(self, *parts, known: card.Card | None = None):
        super().__init__(*parts)
        self.card = known

    def score(self, path: str | Path) -> Score:
        """A file's quality. Raises `VideoError` for a file that is no video."""
        return self._judge(path, *self._look(path)).score

    def scores(self, paths: Iterable[str | Path]) -> Iterator[Score | video.VideoError]:
        """As `score`, in order, the next files being decoded meanwhile; errors are returned."""
        paths, cores = list(paths), os.cpu_count() or 1
        threads = 0 if len(paths) == 1 else 1

        def look(path: str | Path) -> tuple[video.Sample, Batch] | video.VideoError:
            try:
                return self._look(path, threads)
            except video.VideoError as error:
                return error

        with ThreadPoolExecutor(cores) as pool:
            for path, seen in zip(paths, infer.ahead(pool, look, paths, 2 * cores), strict=True):
                yield seen if isinstance(seen, Exception) else self._judge(path, *seen).score

    def compare(self, first: str | Path, second: str | Path) -> Comparison:
        """Which of two videos is better, by score, and in words from their middle key frames.

        The decoder is asked twice, in both orders, so that a taste for "First" shows.
        """
        a, b = (self._judge(path, *self._look(path)) for path in (first, second))
        gap = a.score.score - b.score.score
        same = bool(np.corrcoef(a.view.ravel(), b.view.ravel())[0, 1] >= ALIKE)
        answers = [self.answer([x.middle, y.middle], text.COMPARE) for x, y in ((a, b), (b, a))]
        named = [next((i for i, word in enumerate(text.ANSWERS) if said.startswith(word)), None)
                 for said in answers]
        words = {(0, 1): "first", (1, 0): "second"}.get(tuple(named), "undecided")
        return Comparison(
            a.score, b.score, "first" if gap > 0 else "second" if gap < 0 else "neither",
            self.card and self.card.confidence(gap, same), same, tuple(answers), words)

    def describe(self, path: str | Path, temperature: float = 0.0, seed: int = 0) -> Description:
        """Three sentences on content, style and technical quality, from the middle key frame.

        temperature: 0 takes the likeliest token each time; 1 draws as the model believes. While
        the word for quality lies more than a level from the score, the third sentence is drawn
        anew, at temperature 1 where it was 0, REDRAWS times at most.
        """
        seen, turn = self._judge(path, *self._look(path)), 0
        said = self.answer([seen.middle], text.DESCRIBE, temperature, seed)
        while levels_apart(said, seen.score.score) > 1 and turn < REDRAWS:
            turn += 1
            again = self.answer([seen.middle], text.DESCRIBE, temperature or 1.0, seed + turn)
            said = ". ".join([*said.split(". ")[:-1], again.split(". ")[-1]])
        return Description(seen.score, said, turn)

    def heatmap(self, path: str | Path, stride: int | None = None) -> Heatmap:
        """Where the low-level encoder sees damage in the middle key frame."""
        from cpllm import damage

        return damage.heatmap(path, self, stride)

    def ladder(self, path: str | Path, crfs: Sequence[int] = (), codec: str = "h264",
               preset: str = "medium", seconds: float | None = None) -> Curve:
        """Score against CRF and bitrate of a video's encodes: see `curve.climb`."""
        from cpllm import curve

        return curve.climb(self, path, crfs, codec, preset, seconds)

    def _look(self, path: str | Path, threads: int = 0) -> tuple[video.Sample, Batch]:
        sample = video.sample(path, self.cfg.video.key_frames, threads)
        small = sample._replace(frames=sample.frames[:1].copy())  # waits in memory, the others not
        return small, model_inputs(sample.frames, self.cfg.video)

    def _judge(self, path: str | Path, sample: video.Sample, inputs: Batch) -> Seen:
        tokens, frames = self.see(inputs)
        value, m = float(frames.mean(dtype=np.float64)), len(frames)
        told = (value, annotate.word(value), None, None)
        warnings = [UNKNOWN]
        if self.card:
            reading = self.card.read(value)
            told = (reading.score, reading.word, reading.low, reading.high)
            warnings = self.card.warnings(sample, card.features(tokens), m)
        score = Score(str(path), *told, tuple(map(float, frames)), sample.times, tuple(warnings))
        middle = tuple(x[m // 2: m // 2 + 1] for x in tokens)
        return Seen(score, inputs["view"][m // 2], middle)


def levels_apart(description: str, score: float) -> int:
    """Levels between the word for quality in a description's last sentence and a score's own.

    0 where there is no such word.

    >>> levels_apart("We see a cat. Its style is good. Its quality is poor.", 70)
    2
    """
    names = [name.lower() for name in annotate.WORDS]
    own = annotate.word(score).lower()
    said = [w for w in re.findall(r"\w+", description.split(". ")[-1]) if w in names]
    return abs(names.index((said or [own])[0]) - names.index(own))


def load(path: str | Path | None = None, key_frames: int | None = None) -> Judge:
    """The committed default model, or one from a weights file with its card beside it.

    key_frames: M of each video, 1 or more; the paper takes more of longer ones. By default what the
    weights' configuration says, with which the card's interval was measured.

    Compiled programs are kept in the user's cache folder, unless JAX has been told of one.
    ValueError names the file and what is wrong with it: also a tensor that is not of finite floats.
    """
    if key_frames is not None and key_frames < 1:
        raise ValueError(f"key_frames: expected 1 or more, got {key_frames}")
    _keep_programs()
    path = Path(path or infer.DEFAULT)
    if not path.is_file():  # a FIFO would be waited for
        raise ValueError(f"{path}: expected CP-LLM weights in safetensors form, found no file")
    try:
        model, cfg, tokenizer = weights.load(path)
    except Exception as error:  # those of JSON, of tokenizers and of sizes of 0 share no class
        named = str(path) in str(error)
        raise ValueError(f"{path}: expected CP-LLM weights ({error})" if not named
                         else str(error)) from error
    if bad := [name for name, x in weights.tensors(model).items() if x.dtype.kind in "iub"
               or not np.isfinite(x.astype(np.float32, copy=False)).all()]:
        raise ValueError(f"{path}: expected finite floats, came others in {', '.join(bad)}")
    if key_frames:
        cfg = config.replace(cfg, **{"video.key_frames": key_frames})
    return Judge(cfg, model, tokenizer, known=card.of(path))


def _keep_programs() -> None:
    """JAX's compilation cache in $XDG_CACHE_HOME/cpllm, where that can be written."""
    if jax.config.jax_compilation_cache_dir:
        return
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME", ""))
        folder = (home if home.is_absolute() else Path.home() / ".cache") / "cpllm" / "xla"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # read-only, or nobody's home
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


_default = cache(load)


def score(path: str | Path) -> Score:
    """Score of one file by the default model; for many files keep `load()`."""
    return _default().score(path)


def compare(first: str | Path, second: str | Path) -> Comparison:
    """Comparison of two files by the default model."""
    return _default().compare(first, second)


def describe(path: str | Path) -> Description:
    """Description of one file by the default model."""
    return _default().describe(path)


def ladder(path: str | Path, **how) -> Curve:
    """A file's encodes by the default model; `how` as in `Judge.ladder`."""
    return _default().ladder(path, **how)
