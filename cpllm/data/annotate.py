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
CONTENT = ("The video shows {}.", "The frames show {}.", "This is a view of {}.", "We see {}.")
STYLE = ("The style is best called {}.", "In style it counts as {}.", "The style may be called {}.",
         "Its style falls under {}.")
QUALITY = ("The technical quality is {}{}.", "Technically it is {}{}.", "Its quality is {}{}.",
           "The picture quality is {}{}.")


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
    judged, cause = word(row["proxy"]).lower(), fault(row)
    link = "despite" if row["proxy"] >= 60 else "because of"  # good despite, poor because of
    return " ".join(
        [
            content.format(row["content"]),
            style.format(row["style"]),
            quality.format(judged, f" {link} {cause}" if cause else ""),
        ]
    )
