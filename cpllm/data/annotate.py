"""Three-sentence descriptions: content, style, technical quality (Sec. 4.1).

The deterministic describer knows the built-in scenes; its words vary with the video's name.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

from cpllm.data import gemini

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
    "exposure+noise": "underexposure and noise",
}
SHOWN = {
    **dict.fromkeys(("autumn leaves on the ground", "pebbles seen from above", "a heap of petals",
                     "scraps of coloured paper", "shards of broken stone"),
                    "overlapping scraps in many colours"),
    **dict.fromkeys(("coloured balls and boxes on a stone floor", "toys on a tiled floor"),
                    "coloured balls and boxes on a floor"),
    **dict.fromkeys(("a cartoon village with houses and trees", "cartoon creatures on a hill"),
                    "cartoon creatures among houses and trees"),
    **dict.fromkeys(("a fruit before a soft background", "a stone before a soft background"),
                    "a rough stone before a soft background"),
}
"""Scenes that a viewer can hardly tell apart, by what all of them show: the catalog's phrases name
what was drawn for each, and words that the pictures don't bear out can't be learnt from them.
"""
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


def attach(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Brought clips with the `description` that `cpllm annotate` wrote to `path`, else "".

    Scenes' clips describe themselves. ValueError when a training original has none.
    """
    if "content" in table:
        return table
    known = {line["video"]: line["text"] for line in gemini.read(path)}
    table = table.assign(description=[known.get(name, "") for name in table["video"]])
    needed = (table["split"] == "train") & (table["role"] == "original")
    if (bare := table["video"][needed & (table["description"] == "")]).any():
        raise ValueError(f"{path}: {len(bare):,} of {needed.sum():,} training clips have no "
                         f"description (first: {bare.iloc[0]}): cpllm annotate writes them")
    return table


def shown(row: Mapping) -> str:
    """What a viewer sees of a scene's `content`.

    >>> shown({"content": "toys on a tiled floor"}), shown({"content": "a brick wall"})
    ('coloured balls and boxes on a floor', 'a brick wall')
    """
    return SHOWN.get(row["content"], row["content"])


def caption(row: Mapping) -> str:
    """What a manifest row's video shows and its style, without a word on quality."""
    if "content" in row:
        return f"{shown(row)}, {row['style']}"
    return portray(row)


def describe(row: Mapping) -> str:
    """Three sentences for a manifest row: its `description` if it has one, else from a scene's
    `video, content, style, role, distortion, proxy`.
    """
    if "content" not in row:
        return row["description"]
    return " ".join(_sentences(row))


def portray(row: Mapping) -> str:
    """The first two of `describe`'s sentences, content and style: `row` needs no label."""
    if "content" not in row:
        return ". ".join(row["description"].split(". ")[:2])
    return " ".join(islice(_sentences(row), 2))


def _sentences(row: Mapping) -> Iterator[str]:
    rng = np.random.default_rng(zlib.crc32(row["video"].encode()))
    content, style, quality = (
        forms[rng.integers(len(forms))] for forms in (CONTENT, STYLE, QUALITY)
    )
    yield content.format(shown(row))
    yield style.format(row["style"])
    judged, cause = word(row["proxy"]).lower(), fault(row)
    link = "despite" if row["proxy"] >= 60 else "because of"  # good despite, poor because of
    yield quality.format(judged, f" {link} {cause}" if cause else "")
