"""Three-sentence descriptions: content, style, technical quality (Sec. 4.1).

The deterministic describer knows the built-in scenes; its words vary with the video's name.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np

WORDS = ("Bad", "Poor", "Fair", "Good", "Excellent")
"""The five ACR words, for scores of 0–20, 20–40, … 80–100."""

FAULTS = {
    "blur": "blur",
    "motion_blur": "motion blur",
    "noise": "noise",
    "upscale": "softness from upscaling",
    "recompress": "compression artifacts",
    "freeze": "frozen frames",
    "exposure": "wrong exposure",
}
CONTENT = ("The video shows {}.", "The frames show {}.", "This is a view of {}.")
STYLE = ("The style is {}.", "Its style is {}.", "In style it is {}.")
QUALITY = ("The technical quality is {}{}.", "Technically it is {}{}.", "Its quality is {}{}.")


def word(score: float) -> str:
    """The ACR word of a score in 0–100.

    >>> word(0), word(59.9), word(60), word(100)
    ('Bad', 'Fair', 'Good', 'Excellent')
    """
    return WORDS[min(int(score // 20), 4)]


def fault(row: Mapping) -> str:
    """What a manifest row's video suffers from, "" when nothing is worth a word."""
    if row["role"] == "variant":
        return "compression artifacts" if row["proxy"] < 80 else ""
    return FAULTS.get(row["distortion"], "") if row["proxy"] < 90 else ""


def describe(row: Mapping) -> str:
    """Three sentences for a manifest row (`video, content, style, role, distortion, proxy`)."""
    rng = np.random.default_rng(zlib.crc32(row["video"].encode()))
    content, style, quality = (
        forms[rng.integers(len(forms))] for forms in (CONTENT, STYLE, QUALITY)
    )
    cause = fault(row)
    return " ".join(
        [
            content.format(row["content"]),
            style.format(row["style"]),
            quality.format(word(row["proxy"]).lower(), f" because of {cause}" if cause else ""),
        ]
    )
