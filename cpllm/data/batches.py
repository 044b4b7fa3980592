"""Manifest rows → deterministic batches of pairs. A batch is a function of (seed, step) alone."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from tokenizers import Tokenizer

from cpllm import config
from cpllm.data import annotate, manifests, text, video

Batch = dict[str, np.ndarray]
VIEWS = 2**31
"""Bytes of resized views that are kept."""


def model_inputs(frames: np.ndarray, cfg: config.Video) -> Batch:
    """uint8[M,H,W,3] → `view` [M,H_h,W_h,3], `patches` [M,K,P,P,3], `present` bool[M,K].

    With `cfg.following` also that, the view of the key frame half a clip on, as `view`.
    """
    low = fitted(frames, cfg)
    places = video.patch_positions(*low.shape[1:3], cfg.patch_size, cfg.patches, None, cfg.align)
    patches, present = video.cut_patches(low, cfg.patch_size, cfg.patches, places)
    view = video.resize(frames, cfg.high_size)
    motion = {"following": np.roll(view, -(len(view) // 2), 0)} if cfg.following else {}
    return {
        "view": view,
        "patches": patches,
        "present": np.broadcast_to(present, patches.shape[:2]).copy(),
        **motion,
    }


def fitted(frames: np.ndarray, cfg: config.Video) -> np.ndarray:
    """uint8[M,H,W,3] as the low-level encoder's patches are cut from them."""
    return video.fit(frames, cfg.fit_height, cfg.fit_width, cfg.enlarge)


def _store_one(source: Path, target: Path, frames: int, cfg: config.Video) -> None:
    part = target.with_suffix(f".{os.urandom(4).hex()}.part.npy")  # others may do the same
    np.save(part, fitted(video.key_frames(source, frames, threads=1), cfg))
    part.replace(target)


def store_frames(rows: pd.DataFrame, videos: Path, store: Path, cfg: config.Config) -> None:
    """Decode the training videos once: `store`/<video>-<sha256>.npy, uint8[frames,H,W,3]."""
    store.mkdir(parents=True, exist_ok=True)
    todo = [
        (videos / name, stored(store, r), cfg.train.frames, cfg.video)
        for name, r in zip(manifests.files(rows), rows.itertuples(), strict=True)
        if not stored(store, r).exists()
    ]
    if todo:  # threads: FFmpeg and Pillow work outside of the interpreter's lock
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_store_one, *zip(*todo, strict=True)))
        _trim()


def _trim() -> None:
    """Give freed memory back: of decoding a few thousand clips glibc keeps gigabytes for itself,
    and the runs' frames then don't stay in the system's cache.
    """
    with suppress(AttributeError, OSError, TypeError):  # glibc's alone
        ctypes.CDLL(None).malloc_trim(0)


def frame_store(data: Path, cfg: config.Config) -> Path:
    """Folder of decoded frames, by what their decoding depends on."""
    size = f"{cfg.video.fit_width}x{cfg.video.fit_height}{'+' * cfg.video.enlarge}"
    return data / f"frames-{cfg.train.frames}-{size}"


def stored(store: Path, row) -> Path:
    """Where a row's decoded frames lie, by their hash or, for a clip brought, by its size."""
    return store / f"{row.video}-{getattr(row, 'sha256', None) or row.bytes}.npy"


def causes(rows: pd.DataFrame) -> dict[str, np.ndarray]:
    """What is known to be wrong with each clip: `fault` int32, 0 for none, `crf` float32 / 51.

    -1 and NaN where the manifest, such as a user's, doesn't say.
    """
    codes = {name: i for i, name in enumerate(("none", *annotate.FAULTS))}
    fault = rows.get("distortion", pd.Series("", rows.index)).map(codes).fillna(-1)
    crf = rows.get("crf", pd.Series(np.nan, rows.index))
    return {"fault": fault.to_numpy(np.int32), "crf": (crf / 51).to_numpy(np.float32)}


def singles(cfg: config.Train) -> int:
    """Single inputs among a batch's `batch` items."""
    share = {"single": 1.0, "pairwise": 0.0, "mix": cfg.single_share}
    return round(share[cfg.input_mode] * cfg.batch)


class PairBatches:
    """The training set of one configuration; `batches[step]` is that step's batch.

    Modes (Table 4a): "single" has originals only, "pairwise" pairs only, "mix" both by
    `single_share`. A pair's order is random, so that "First" carries no information. The
    paper does not say where pairs come from: `within_share` of them join two videos of one
    scene, the others two scenes.

    Beside them stand `train.told_pictures` of `pictures`, arrays uint8[N,H_h,H_h,3] and their rows
    of words. Only L3 has them, for what they show: among the patches of another clip.

    A batch lies in `groups`, one for each device that trains, with equal shares of the singles,
    of the pairs and of the pictures. Every process draws the whole batch and prepares only its
    `own` groups.
    """

    def __init__(
        self,
        rows: pd.DataFrame,
        store: Path,
        tokenizer: Tokenizer,
        cfg: config.Config,
        groups: int = 1,
        own: range = range(1),
        features: Path | None = None,
        pictures: tuple[np.ndarray, pd.DataFrame] | None = None,
    ):
        self.rows, self.tokenizer, self.cfg = rows.reset_index(drop=True), tokenizer, cfg
        self.quality = (manifests.quality(self.rows) / 100).to_numpy(np.float32)
        self.original = (self.rows["role"] == "original").to_numpy()
        self.originals = np.flatnonzero(self.original)
        self.causes = causes(self.rows)
        self.scene = self.rows.groupby("scene").indices
        self.stored = [stored(store, r) for r in self.rows.itertuples()]
        self.features = features and [stored(features, r) for r in self.rows.itertuples()]
        self._remember()
        self.descriptions = [
            self._pack(text.DESCRIBE, annotate.describe(r)) for r in self.rows.to_dict("records")
        ]
        self.answers = [self._pack(text.COMPARE, answer) for answer in text.ANSWERS]
        self.pictures, told = pictures or (np.empty(0), pd.DataFrame())
        self.portraits = [self._pack(text.DESCRIBE, annotate.portray(r), ends=False)
                          for r in told.to_dict("records")]
        if cfg.train.told_pictures and (features or cfg.video.following or not self.portraits):
            raise ValueError(
                f"train.told_pictures: expected pictures ({len(self.portraits)} are there, see "
                "pretrain.pictures), and train.cache_high and video.following off"
            )
        self.groups, self.own = groups, own
        counts = singles(cfg.train), cfg.train.batch - singles(cfg.train), cfg.train.told_pictures
        if any(n % groups for n in counts):
            raise ValueError(
                f"train.batch, train.told_pictures: expected singles, pairs and pictures that "
                f"{groups} devices can share equally, got {counts[0]}, {counts[1]} and {counts[2]}"
            )

    def _remember(self) -> None:
        """A view is small, and its resizing a third of a batch's cost."""
        self.view = lru_cache(VIEWS // (3 * self.cfg.video.high_size**2))(self._view)

    def __getstate__(self) -> dict:
        """What another process gets: all but the memory of views."""
        return {k: v for k, v in vars(self).items() if k != "view"}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._remember()

    def __len__(self) -> int:
        return self.cfg.train.steps

    def _pack(self, prompt: str, answer: str, ends: bool = True) -> text.Text:
        return text.pack(self.tokenizer, prompt, answer, self.cfg.train.max_text, ends)

    def _frame(self, i: int, at: int) -> np.ndarray:
        """uint8[1,H,W,3], read where it is used. Files are opened anew: systems allow about a
        thousand open ones.
        """
        return np.load(self.stored[i], mmap_mode="r")[at : at + 1]

    def _view(self, i: int, at: int) -> np.ndarray:
        return video.resize(self._frame(i, at), self.cfg.video.high_size)[0]

    def _draw_single(self, rng: np.random.Generator) -> int:
        every = self.cfg.train.regress_on == "all"
        return int(rng.integers(len(self.rows)) if every else rng.choice(self.originals))

    def _draw_pair(self, rng: np.random.Generator) -> tuple[int, int]:
        while True:
            i, j = rng.integers(len(self.rows), size=2)
            mates = self.scene[self.rows["scene"][i]]
            if len(mates) > 1 and rng.random() < self.cfg.train.within_share:
                j = rng.choice(mates)
            if self.quality[i] != self.quality[j]:
                return int(i), int(j)

    def _draw(self, step: int) -> list[tuple]:
        """(members, key frame, seed of the cells, augmentation) of every item of a batch."""
        rng = np.random.default_rng([self.cfg.train.seed, step])
        n = singles(self.cfg.train)
        items = [(self._draw_single(rng),) for _ in range(n)]
        items += [self._draw_pair(rng) for _ in range(self.cfg.train.batch - n)]
        return [
            (item, rng.integers(self.cfg.train.frames), int(rng.integers(2**31)),
             augmentation(rng, self.cfg.train.relight) if self.cfg.train.augment else _same)
            for item in items
        ]

    def videos(self, step: int) -> list[str]:
        """The names of all videos in a batch."""
        return [self.rows["video"][i] for items, *_ in self._draw(step) for i in items]

    def __getitem__(self, step: int) -> Batch:
        """The own groups, one after the other; frames of singles stand once: `first` and `second`
        int[B] index into the frames of their group.
        """
        drawn, told = self._draw(step), self._draw_pictures(step)
        parts = [self._told(self._group(drawn[g :: self.groups]), told[g :: self.groups])
                 for g in self.own]
        return {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}

    def _draw_pictures(self, step: int) -> np.ndarray:
        rng = np.random.default_rng([self.cfg.train.seed, step, 1])
        n = self.cfg.train.told_pictures
        return rng.integers(len(self.portraits), size=n) if n else np.empty(0, int)

    def _told(self, batch: Batch, at: np.ndarray) -> Batch:
        """A group and these pictures after it, with the patches of its first frames."""
        n, at = len(at), at.tolist()
        if not n:
            return batch
        index = np.arange(len(batch["view"]), len(batch["view"]) + n, dtype=np.int32)
        more = {
            "view": self.pictures[at], **{k: batch[k][:n] for k in ("patches", "present")},
            **text.stack(self.portraits[i] for i in at), "first": index, "second": index,
            "q": np.zeros((n, 2), np.float32), "has_mos": np.zeros(n, bool),
            "fault": np.full((n, 2), -1, np.int32), "crf": np.full((n, 2), np.nan, np.float32),
        }
        return {k: np.concatenate([x, more[k]]) for k, x in batch.items()}

    def _group(self, drawn: list[tuple]) -> Batch:
        items = [item for item, *_ in drawn]
        frames = [frame for item in drawn for frame in self._frames(*item)]
        first = np.cumsum([0, *map(len, items[:-1])]).astype(np.int32)
        second = first + np.array([len(item) - 1 for item in items], np.int32)
        q = np.array([[self.quality[item[0]], self.quality[item[-1]]] for item in items])
        has_mos = np.array(
            [self.cfg.train.regress_on == "all" or self.original[item[0]] for item in items]
        )
        return {
            **{k: np.stack([f[k] for f in frames]) for k in frames[0]},
            **text.stack(self._text(item) for item in items),
            "first": first,
            "second": second,
            "q": q,
            "has_mos": has_mos,
            **{k: np.array([[x[i[0]], x[i[-1]]] for i in items]) for k, x in self.causes.items()},
        }

    def _text(self, item: tuple[int, ...]) -> text.Text:
        if len(item) == 1:
            return self.descriptions[item[0]]
        return self.answers[int(self.quality[item[1]] > self.quality[item[0]])]

    def _frames(self, item: tuple[int, ...], at: int, seed: int, change: Callable) -> list[Batch]:
        """One random key frame per member; cells and augmentation are the same for both."""
        cfg, out = self.cfg.video, []
        k = self.cfg.train.patches or cfg.patches
        for i in item:
            frame = self._frame(i, at)
            jitter = np.random.default_rng(seed) if self.cfg.train.augment else None
            cells = video.patch_positions(
                *frame.shape[1:3], cfg.patch_size, k, jitter, cfg.align)
            patches, present = video.cut_patches(frame, cfg.patch_size, k, cells)
            view = (np.load(self.features[i])[at] if self.features
                    else change(self.view(i, at), upright=True))
            out.append({"view": view, "patches": change(patches)[0], "present": present})
            if cfg.following:
                half = (at + self.cfg.train.frames // 2) % self.cfg.train.frames
                out[-1]["following"] = change(self.view(i, half), upright=True)
        return out


def _same(x: np.ndarray, upright: bool = False) -> np.ndarray:
    return x


def augmentation(rng: np.random.Generator, relight: bool = True):
    """A random flip and transpose for square uint8 images, and if they may be `relight`, a channel
    order, contrast and brightness, which round away what one level tells. What stays `upright` is
    flipped from left to right alone: skies are above.
    """
    flip_h, flip_w, turn = rng.random(3) < 0.5
    channels, gain, bias = rng.permutation(3), rng.uniform(0.7, 1.3), rng.uniform(-20, 20)
    levels = np.clip((np.arange(256) - 128) * gain + 128 + bias, 0, 255).astype(np.uint8)

    def change(x: np.ndarray, upright: bool = False) -> np.ndarray:
        x = x.swapaxes(-3, -2) if turn and not upright else x
        x = x[..., ::-1, :, :] if flip_h and not upright else x
        x = x[..., ::-1, :] if flip_w else x
        return levels[x[..., channels]] if relight else x

    return change


def prefetch(
    batches: PairBatches, start: int, stop: int, ahead: int = 2, threads: int = 1,
    workers: int = 0,
) -> Iterator[Batch]:
    """Batches in order, the next `ahead` prepared by threads while the device works.

    workers: processes that do it in their place, where an accelerator is fed by many cores.
    The same batches whatever the number of either. grain's iterator: `get_state()` says where it
    is, and after `set_state()` it goes on there.
    """
    import grain  # five seconds

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(ahead, threads))
    steps = grain.MapDataset.source(batches).slice(slice(start, stop))
    dataset = steps.to_iter_dataset(options)
    if workers:
        from absl import flags

        flags.FLAGS.mark_as_parsed()  # grain reads absl's flags, which no program here parses
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(dataset)
