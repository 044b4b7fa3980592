"""Small Sphinx extension: values of the configuration in prose, and faults of the toolchain.

Mended: thebe's scripts, loaded although no page uses them, twice, from another server;
MathJax's, once more on pages without an equation; the bibliography's list roles; names of the
theme's buttons that differ from what they show.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

from cpllm.config import PRESETS

THEBE = re.compile(
    r'<script type="text/x-thebe-config">.*?</script>\s*<script>kernelName.*?</script>', re.DOTALL)
SCROLLS = "pst-scrollable-table-container"
NAMES = ((re.compile(r'(<button class="btn search-button-field[^>]*?) aria-label="[^"]*"'), r"\1"),
         (re.compile(r'(<i class="theme-switch [^>]*?) title="[^"]*"'), r"\1"))
"""WCAG 2.5.3: a button that shows text is called by it; an icon's title is no name of its own."""


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the role and the page clean-up."""
    app.add_role("config", config_role)
    app.connect("config-inited", unnumber, priority=900)
    app.connect("html-page-context", mend_page, priority=900)
    app.connect("build-finished", mend_names)
    app.connect("autodoc-process-docstring", mend_docstring)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def unnumber(app: Sphinx, config: Any) -> None:
    """No numbers for the book's own figures, as an extension asks: "Figure 1" is the paper's."""
    config.numfig = False


def config_role(name, rawtext, text, lineno, inliner, options=None, content=None):
    """{config}`video.patches` prints the field and its value, by profile where they differ."""
    try:
        return [nodes.literal(text, text), nodes.Text(f" ({by_profile(text)})")], []
    except (AttributeError, TypeError):
        message = inliner.reporter.error(f"config: no field {text!r}", line=lineno)
        return [inliner.problematic(rawtext, rawtext, message)], [message]


def by_profile(field: str) -> str:
    """"8", or "smoke 2, pocket 5, paper 5" where the presets differ."""
    values = {name: preset() for name, preset in PRESETS.items()}
    for part in field.split("."):
        values = {name: getattr(value, part) for name, value in values.items()}
    words = {name: in_words(value) for name, value in values.items()}
    if len(set(words.values())) == 1:
        return next(iter(words.values()))
    return ", ".join(f"{name} {value}" for name, value in words.items())


def in_words(value: Any) -> str:
    """A configured value as a reader writes it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        shown = [in_words(v) for v in value]
        return ", ".join(shown if len(shown) <= 4 else [*shown[:2], "…", shown[-1]])
    return f"{value:,}" if isinstance(value, int) else str(value)


def mend_page(app: Sphinx, page: str, template: str, context: dict, doctree) -> None:
    """Drop thebe and repeated scripts from a page; make the bibliography's entries list items."""
    seen: set[str] = set()
    kept = []
    for script in context.get("script_files", []):
        name = str(getattr(script, "filename", script) or getattr(script, "attributes", {}))
        if "thebe" in name.lower() or name in seen:
            continue
        seen.add(name)
        kept.append(script)
    context["script_files"] = kept
    if "body" in context:
        body = THEBE.sub("", context["body"])
        # ARIA: what stands in a list must be a list item; docutils says doc-biblioentry.
        body = body.replace('role="doc-biblioentry"', 'role="listitem"')
        # A toggle is called by what it shows.
        body = body.replace('<summary aria-label="Toggle hidden content">', "<summary>")
        # The theme lets keys scroll what is of this class, where it is too wide.
        context["body"] = re.sub(r'<(div class="math |figure class=")',
                                 lambda m: m[0].replace('="', f'="{SCROLLS} '), body)


def mend_names(app: Sphinx, error: Exception | None) -> None:
    """The theme's buttons, which its templates write after all events of a page."""
    if error or app.builder.format != "html":
        return
    for path in Path(app.outdir).rglob("*.html"):
        before = text = path.read_text()
        for pattern, mended in NAMES:
            text = pattern.sub(mended, text)
        if text != before:
            path.write_text(text)


def mend_docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any,
                   lines: list[str]) -> None:
    """Docstrings are written to be read as they are: their code is code, nothing else is markup.

    Python's own words on a named tuple's field tell nothing.
    """
    lines[:] = [line for line in lines if not line.startswith("Alias for field number")]
    for i in range(len(lines) - 1, 0, -1):  # an indented line begins a block of its own
        if lines[i - 1].rstrip().endswith(":") and re.match(r" {4}\S", lines[i]):
            lines.insert(i, "")
    for i, line in enumerate(lines):
        if line.lstrip().startswith((">>>", "...")):
            continue
        parts = re.split(r"(`[^`]+`)", line)
        lines[i] = "".join(f"`{part}`" if part.startswith("`") else
                           re.sub(r"([*|\\_])", r"\\\1", part) for part in parts)
