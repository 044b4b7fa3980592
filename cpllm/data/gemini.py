"""Descriptions by Gemini (Sec. 4.1): the paper's prompt on a clip's key frames, one JSON line each.

The paper's annotator, Gemini 2.0, was shut down on 2026-06-01: today's are other training data, and
every line carries its model. A line is found again by its key, a hash of the clip's bytes and of
all that was asked, so that a second run pays only for what is missing.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image
from rich.console import Console
from rich.progress import track

from cpllm.config import Video
from cpllm.data import manifests, text, video

MODEL = "gemini-3.1-flash-lite"
PRICES = {
    "gemini-2.5-flash": (0.30, 2.50),
    "gemini-2.5-flash-lite": (0.10, 0.40),
    "gemini-3.1-flash-lite": (0.25, 1.50),
}
"""US dollars for a million tokens in and out, as published in May 2026."""
KEYS = ("GEMINI_API_KEY", "GOOGLE_API_KEY")
FRAMES = Video().key_frames
"""Not specified in the paper; we send LSVQ's M = 5 key frames, fitted as the model sees them."""

RETRY = {"attempts": 7, "initial_delay": 1.0, "max_delay": 60.0, "exp_base": 2.0, "jitter": 1.0}
"""Waits of google-genai's client after 408, 429, 500, 502, 503, 504 and broken connections."""
GIVE_UP = 5
"""Refusals in a row after which all others would be refused too: a wrong key, a spent quota."""

ANSWER = 1024
"""Most tokens of an answer; three sentences are about a hundred."""


class Cost(NamedTuple):
    """What the missing descriptions take, before the first is asked for."""

    requests: int
    tokens: int
    dollars: float
    minutes: float


def cost(rows: pd.DataFrame, rpm: float, price: tuple[float, float]) -> Cost:
    """Estimate for manifest rows at `rpm` requests a minute and `price` per million tokens."""
    size = rows[["height", "width"]].astype(float).fillna(1e4)
    tokens = sum(FRAMES * _image_tokens(h, w) + 60 for h, w in size.to_numpy())
    dollars = (tokens * price[0] + 100 * len(rows) * price[1]) / 1e6
    return Cost(len(rows), tokens, dollars, len(rows) / rpm)


def _image_tokens(height: float, width: float) -> int:
    """258 for every tile of Gemini's documented tiling, after fitting; one tile up to 384 px."""
    scale = min(1, Video.fit_height / height, Video.fit_width / width)
    height, width = round(height * scale), round(width * scale)
    if max(height, width) <= 384:
        return 258
    unit = max(1, int(min(height, width) / 1.5))
    return 258 * -(-height // unit) * -(-width // unit)


def read(path: Path) -> list[dict]:
    """Lines written so far. A last line torn by a kill is cut off; ValueError for other damage."""
    data = path.read_bytes() if path.exists() else b""
    whole = data[:data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    try:
        return [json.loads(line) for line in whole.splitlines()]
    except ValueError as error:
        raise ValueError(f"{path}: expected one JSON object a line ({error})") from error


def missing(rows: pd.DataFrame, out: Path, model: str) -> pd.DataFrame:
    """Training originals that `out` holds no description of by this model."""
    done = {line["video"] for line in read(out) if line["model"] == model}
    needed = (rows["role"] == "original") & (rows["split"] == "train")
    return rows[needed & ~rows["video"].isin(done)]


def annotate(rows: pd.DataFrame, root: Path, out: Path, model: str = MODEL, rpm: float = 15,
             workers: int = 4) -> dict[str, str]:
    """Describe clips, each in `out` as soon as it is there; returns file → fault of the others.

    The key comes from the environment and goes nowhere but into the request's header. Busy and
    broken answers (429, 5xx) are asked again, later and later. RuntimeError when `GIVE_UP` requests
    in a row are refused: the same command goes on from there.
    """
    ask = partial(_ask, client(), model, Pace(rpm))
    known = {line["key"]: line for line in read(out)}
    todo = dict(zip(manifests.files(rows), rows["video"], strict=True))
    bad, refused = {}, 0
    out.parent.mkdir(parents=True, exist_ok=True)
    pool = ThreadPoolExecutor(workers)
    try:
        jobs = {pool.submit(_describe, root / name, known, model, ask): name for name in todo}
        with out.open("a") as file:
            for name, result in _watch(jobs):
                if isinstance(result, Exception):
                    bad[name] = _hidden(str(result).removeprefix(f"{root / name}: "))
                    refused += not isinstance(result, video.VideoError)
                    if refused == GIVE_UP:
                        raise RuntimeError(f"{GIVE_UP} requests in a row failed (last: {name}: "
                                           f"{bad[name]}); {out} keeps what came before")
                    continue
                refused = 0
                file.write(json.dumps({**result, "video": todo[name]}) + "\n")
                file.flush()
                os.fsync(file.fileno())
    finally:
        pool.shutdown(cancel_futures=True)
    return bad


def _watch(jobs: dict) -> Iterator[tuple[str, dict | Exception]]:
    bar = track(as_completed(jobs), "describing", len(jobs), console=Console(stderr=True))
    for job in bar:
        yield jobs[job], job.exception() or job.result()


def client():
    """google-genai's client with retries; RuntimeError names what is not there."""
    key = _key()
    if not key:
        raise RuntimeError(f"descriptions by Gemini need a key in the environment: {KEYS[0]}")
    try:
        from google import genai
        from google.genai import types
    except ImportError as error:
        raise RuntimeError("descriptions by Gemini need google-genai, the extra `gemini`: "
                           "pip install 'cpllm[gemini]'") from error
    options = types.HttpOptions(timeout=120_000, retry_options=types.HttpRetryOptions(**RETRY))
    return genai.Client(api_key=key, vertexai=False, http_options=options)


class Pace:
    """At most `rpm` requests a minute, evenly spaced, whatever the number of threads."""

    def __init__(self, rpm: float):
        self.gap, self.next, self.lock = 60 / rpm, 0.0, threading.Lock()

    def wait(self) -> None:
        """Sleep until it is this request's turn."""
        with self.lock:
            now = time.monotonic()
            turn = max(now, self.next)
            self.next = turn + self.gap
        time.sleep(turn - now)


def _describe(path: Path, known: dict, model: str, ask: Callable) -> dict:
    if not path.is_file():
        raise video.VideoError(f"{path}: missing")
    key = _content(path, model)
    if key in known:
        return known[key]
    frames = video.key_frames(path, FRAMES, threads=1)
    return {"key": key, "model": model, **ask(video.fit(frames))}


def _content(path: Path, model: str) -> str:
    asked = json.dumps([model, text.DESCRIBE, FRAMES, Video.fit_height, Video.fit_width])
    with path.open("rb") as file:
        clip = hashlib.file_digest(file, "sha256").digest()
    return hashlib.sha256(asked.encode() + clip).hexdigest()


def compare(client, model: str, pace: Pace, first: np.ndarray, second: np.ndarray) -> float:
    """Which of two frames uint8[H,W,3] looks better, in Gemini's words: 1 first, -1 second.

    0 where the answer names neither or both, as "They are identical" does.
    """
    words = _ask(client, model, pace, [first, second], text.COMPARE)["text"].lower()
    return float(("first" in words) - ("second" in words))


def _ask(client, model: str, pace: Pace, frames, prompt: str = text.DESCRIBE) -> dict:
    from google.genai import types

    parts = [types.Part.from_bytes(data=_jpeg(f), mime_type="image/jpeg") for f in frames]
    pace.wait()
    answer = client.models.generate_content(
        model=model, contents=[*parts, prompt],
        config=types.GenerateContentConfig(temperature=0, seed=0, max_output_tokens=ANSWER))
    words = " ".join((answer.text or "").split())
    reason = answer.candidates[0].finish_reason if answer.candidates else None
    if not words or reason not in (None, types.FinishReason.STOP):
        raise ValueError(f"expected an answer, came {words[:40]!r}, ended by {reason}")
    used = answer.usage_metadata
    return {"text": words, "tokens_in": used and used.prompt_token_count,
            "tokens_out": used and used.candidates_token_count}


def _jpeg(frame: np.ndarray) -> bytes:
    held = io.BytesIO()
    Image.fromarray(frame).save(held, "JPEG", quality=95)
    return held.getvalue()


def _key() -> str:
    return next((os.environ[name] for name in KEYS if os.environ.get(name)), "")


def _hidden(message: str) -> str:
    return " ".join(message.split()).replace(_key(), "***")[:300]
