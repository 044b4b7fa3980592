"""Small Sphinx extension: values of the configuration in prose, and three faults of the toolchain.

Mended: thebe's scripts, loaded although no page uses them, twice, from another server;
MathJax's, once more on pages without an equation; the bibliography's list roles.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

from cpllm.config import PRESETS

THEBE = re.compile(
    r'<script type="text/x-thebe-config">.*?</script>\s*<script>kernelName.*?</script>', re.DOTALL)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the role and the page clean-up."""
    app.add_role("config", config_role)
    app.connect("html-page-context", mend_page, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


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
        context["body"] = body.replace('role="doc-biblioentry"', 'role="listitem"')
