"""What a user is told of a video: frozen results that print in a terminal and in a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Score:
    """A video's quality: `score` 0–100, higher is better, with its ACR `word`.

    `low` to `high` is the interval of `card.Card`; None where the weights carry no card.
    """

    path: str
    score: float
    word: str
    low: float | None
    high: float | None
    frames: tuple[float, ...]  # of each key frame; `score` is their mean
    times: tuple[float, ...]  # seconds of each
    warnings: tuple[str, ...] = ()  # in what the video is outside the training domain

    @property
    def interval(self) -> str:
        """Both ends in words, or a dash.

        >>> Score("a.mp4", 73.4, "Good", 61.2, 85.6, (73.4,), (0.1,)).interval
        '61–86'
        """
        return "-" if self.low is None else f"{self.low:.0f}–{self.high:.0f}"

    def __str__(self) -> str:
        line = f"{self.score:5.1f}  {self.interval:>7}  {self.word:9}  {one_line(self.path)}"
        return "\n".join([line, *(f"       {text}" for text in self.warnings)])

    def _repr_html_(self) -> str:
        return table_html([self])


@dataclass(frozen=True)
class Comparison:
    """Both scores, the better of the two, how sure that is, and the decoder's own answers."""

    first: Score
    second: Score
    better: str  # "first", "second" or "neither"
    confidence: float | None  # see `card.Card.confidence`; None where the weights carry no card
    same_source: bool  # whether the two look like encodes of one clip
    answers: tuple[str, str]  # shown as they are given, and the other way round
    words: str  # "first" or "second" where both answers name that video, else "undecided"

    def __str__(self) -> str:
        sure = "" if self.confidence is None else f", {self.confidence:.0%} sure"
        kind = "two encodes of one clip" if self.same_source else "two different clips"
        better = self.better if self.better == "neither" else f"the {self.better}{sure}"
        answers = f"{self.answers[0]!r}, and {self.answers[1]!r} with the order turned"
        return (f"{self.first}\n{self.second}\nbetter by score: {better} ({kind})\n"
                f"in words: {self.words} (the decoder says {answers})")

    def _repr_html_(self) -> str:
        last = escape(str(self).split("better by score: ")[-1]).replace("\n", "<br>")
        return f"{table_html([self.first, self.second])}<p>Better by score: {last}</p>"


@dataclass(frozen=True)
class Description:
    """The decoder's three sentences beside the predicted score."""

    score: Score
    text: str
    redrawn: int = 0  # how often the third sentence was, because it contradicted the score

    def __str__(self) -> str:
        return f"{self.text}\n{self.score}"

    def _repr_html_(self) -> str:
        return f"<p>{escape(self.text)}</p>{table_html([self.score])}"


def one_line(text: object) -> str:
    """A file's name or an error as one line that a terminal obeys no command of."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def footnotes(scores: Sequence[Score]) -> dict[str, int]:
    """Each warning once, with its number."""
    found = dict.fromkeys(text for score in scores for text in score.warnings)
    return {text: i for i, text in enumerate(found, 1)}


def table_html(scores: Sequence[Score]) -> str:
    """Scores with bars from 0 to 100 on which the interval stands, and footnotes, as HTML."""
    marks, rows = footnotes(scores), []
    for s in scores:
        low, high = (s.score, s.score) if s.low is None else (s.low, s.high)
        bar = ("<svg width='104' height='12' role='img'><title>0 to 100</title>"
               "<rect width='104' height='12' fill='#ddd'/>"
               f"<rect x='{low:.1f}' width='{high - low + 4:.1f}' height='12' fill='#9bc'/>"
               f"<rect x='{s.score:.1f}' width='4' height='12' fill='#036'/></svg>")
        notes = " ".join(str(marks[text]) for text in s.warnings)
        rows.append(f"<tr><td>{escape(Path(s.path).name)}<sup>{notes}</sup></td><td>{s.score:.1f}"
                    f"</td><td>{s.interval}</td><td>{bar}</td><td>{s.word}</td></tr>")
    foot = "".join(f"<br><small><sup>{mark}</sup> {escape(text)}</small>"
                   for text, mark in marks.items())
    head = "".join(f"<th>{name}</th>" for name in ("video", "score", "90%", "", "quality"))
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>{foot}"


def draw(scores: Sequence[Score]) -> Figure:
    """Every video's key frames over its time, with its score and interval."""
    from matplotlib.figure import Figure

    columns = min(len(scores), 3)
    rows = -(-len(scores) // columns)
    figure = Figure((4 * columns, 2.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for ax, s in zip(axes, scores, strict=False):
        ax.plot(s.times, s.frames, "o-", color="#036")
        ax.axhline(s.score, color="#036", lw=0.8, ls="--")
        if s.low is not None:
            ax.axhspan(s.low, s.high, color="#9bc", alpha=0.4, lw=0)
        ax.set(title=f"{Path(s.path).name}: {s.score:.1f}", ylim=(0, 100), yticks=range(0, 101, 20))
        ax.set_xlim(left=0)
    for ax in axes[len(scores):]:
        ax.set_axis_off()
    figure.supxlabel("seconds")
    figure.supylabel("quality, 0–100")
    return figure
