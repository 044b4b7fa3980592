"""The committed book as a reader meets it: in a browser, light and dark, on a desk and a phone."""

from __future__ import annotations

import functools
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
from chromium import PROGRAM, Browser

from cpllm.sweep import ROOT

needs_browser = pytest.mark.skipif(
    PROGRAM is None, reason="no Chromium here (.ci/run installs it): apt install chromium")
AXE = (ROOT / "tests" / "vendor" / "axe" / "axe.min.js").read_text()
DESK, PHONE = 1280, 390
WHOLE = ("intro.html", "search.html")
"""Judged with the theme's bars and menus, which are the same on all pages."""
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
SEEN = ["color-contrast", "link-in-text-block", "scrollable-region-focusable", "target-size"]
"""axe's tags, and those of its rules that colours and widths decide: all others judge the source,
which is the same in light and dark."""
JUDGE = """axe.run(PLACE, {runOnly: ONLY, resultTypes: ["violations"]})
  .then(found => found.violations.map(v => `${v.id}: ${v.nodes.length} × ${v.nodes[0].html}`))"""
TOKENS = "[...new Set([...document.querySelectorAll('article pre span')].map(e => e.className))]"
SIDEWAYS = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
SPILLED = """(() => {
  const article = document.querySelector("article, main");
  const right = article.getBoundingClientRect().right + 1;
  const clipped = e => e !== article &&
    (getComputedStyle(e).overflowX !== "visible" || clipped(e.parentElement));
  return [...article.querySelectorAll("table, img, pre, mjx-container, video, figure")]
    .filter(e => e.getBoundingClientRect().right > right && !clipped(e.parentElement))
    .map(e => e.outerHTML.slice(0, 120));
})()"""
STUCK = """(async () => {
  const late = () => [...document.querySelectorAll(
    "pre, .cell_output > .output, .pst-scrollable-table-container")].filter(
    e => e.scrollWidth > e.clientWidth && e.tabIndex !== 0);
  for (let i = 0; i < 40 && late().length; i++) await new Promise(done => setTimeout(done, 50));
  return late().map(e => e.outerHTML.slice(0, 120));
})()"""
"""What is too wide and no key scrolls; the theme mends that a moment after the window changes."""
MATH = """[...document.querySelectorAll("article .math")].filter(
  e => !e.querySelector("mjx-container svg") || e.querySelector("[data-mjx-error], merror"))
  .map(e => e.textContent)"""
MUTE = """[...document.querySelectorAll("article img")]
  .filter(e => !e.getAttribute("alt") || /^[./_].*[.](png|svg)$/.test(e.getAttribute("alt")))
  .map(e => e.getAttribute("src"))"""


@pytest.fixture(scope="module")
def html(tmp_path_factory) -> Path:
    """The book of the committed results, rendered elsewhere."""
    root = tmp_path_factory.mktemp("checkout")
    for name in ("cpllm", "notebooks", "results", "requirements.lock", "CITATION.cff"):
        (root / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "book", root / "book",
                    ignore=shutil.ignore_patterns("_build", "chapters", "__pycache__"))
    run = subprocess.run([sys.executable, str(root / "book" / "_ext" / "build.py"), "pocket"],
                         capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return root / "book" / "_build" / "html"


def names(html: Path) -> list[str]:
    """All pages but the one that only redirects to the first."""
    found = sorted(str(p.relative_to(html)) for p in html.rglob("*.html"))
    return [n for n in found if not n.startswith("_static") and n != "index.html"]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site(html):
    """Its address on this machine."""
    serve = functools.partial(Quiet, directory=str(html))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    tab = Browser(tmp_path_factory.mktemp("browser"))
    yield tab
    tab.close()


def judge(browser: Browser, place: object = "document", rules: Sequence[str] = ()) -> list[str]:
    """What axe objects to, at a place in the page; by all rules of `WCAG` if none are named."""
    only = {"type": "rule", "values": rules} if rules else {"type": "tag", "values": WCAG}
    return browser.run(JUDGE.replace("PLACE", json.dumps(place) if place != "document" else
                                     "document").replace("ONLY", json.dumps(only)))


@pytest.fixture(scope="module")
def seen(html, site, browser) -> dict[str, dict]:
    """What each page does: opened in dark at a desk, then in light on a phone.

    Code is judged where it has a kind of token that no page before it had: the colours of the same
    kinds on the same ground are the same.
    """
    found, known = {}, set()
    for name in names(html):
        browser.open(f"{site}/{name}", DESK, dark=True)
        browser.run(AXE + "; 1")
        tokens = set(browser.run(TOKENS))
        place = {"include": ["main"], "exclude": [] if tokens - known else ["pre"]}
        place, known = "document" if name in WHOLE else place, known | tokens
        facts = {"axe, dark": judge(browser, place), "math": browser.run(MATH),
                 "mute": browser.run(MUTE), "spilled": browser.run(SPILLED),
                 "equations": browser.run("document.querySelectorAll('article .math').length"),
                 "theme": browser.run("document.documentElement.dataset.theme")}
        browser.scheme(dark=False)
        browser.view(PHONE)
        facts |= {"stuck": browser.run(STUCK),
                  "axe, light": judge(browser, place, SEEN), "sideways": browser.run(SIDEWAYS),
                  "spilled on a phone": browser.run(SPILLED)}
        facts["outside"] = [a for a in browser.asked if not a.startswith((site, "data:", "blob:"))]
        found[name] = facts | {"said": browser.said}
    return found


def faults(seen: dict[str, dict], *kinds: str) -> dict[str, list]:
    """Pages with something of these kinds."""
    return {f"{page}, {kind}": facts[kind] for page, facts in seen.items() for kind in kinds
            if facts[kind]}


@needs_browser
def test_no_page_asks_another_server_or_reports_an_error(seen):
    assert len(seen) > 25
    assert not faults(seen, "outside", "said")


@needs_browser
def test_no_page_hinders_people_by_wcag_a_and_aa(seen):
    assert not faults(seen, "axe, dark", "axe, light", "stuck")


@needs_browser
def test_axe_finds_what_is_wrong(browser):
    """The check above can fail."""
    browser.open("data:text/html,<title>a</title><p style='color:silver'>pale<img src='data:,'>",
                 DESK)
    browser.run(AXE + "; 1")
    told = " ".join(judge(browser))
    assert "color-contrast" in told and "image-alt" in told and "html-has-lang" in told
    assert [line.partition(":")[0] for line in judge(browser, rules=SEEN)] == ["color-contrast"]
    browser.open("data:text/html,<pre style='overflow:auto;width:9px'>wide", DESK)
    assert browser.run(STUCK)


@needs_browser
def test_no_page_scrolls_sideways_on_a_phone_and_nothing_leaves_its_container(seen):
    wide = {page: facts["sideways"] for page, facts in seen.items() if facts["sideways"] > 0}
    assert not wide
    assert not faults(seen, "spilled", "spilled on a phone")


@needs_browser
def test_equations_are_drawn(seen):
    assert not faults(seen, "math")
    assert seen["method.html"]["equations"] > 40


@needs_browser
def test_each_picture_is_described(seen):
    assert not faults(seen, "mute")


@needs_browser
def test_dark_follows_the_system_and_the_switch_is_remembered(seen, site, browser):
    assert {facts["theme"] for facts in seen.values()} == {"dark"}
    theme = "document.documentElement.dataset.theme"
    browser.open(f"{site}/intro.html", DESK)
    assert browser.run(theme) == "light"
    for _ in range(3):
        browser.run("document.querySelector('.theme-switch-button').click()")
        if browser.run(theme) == "dark":
            break
    browser.open(f"{site}/method.html", DESK)
    assert browser.run(theme) == "dark"
    ground = browser.run("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", ground)[:3])) < 64
    browser.run("localStorage.clear()")


@needs_browser
def test_search_finds_a_page_by_the_keyboard_alone(html, site, browser):
    browser.open(f"{site}/intro.html", DESK)
    browser.run("document.querySelector('.search-button-field').click()")
    browser.wait("document.activeElement.matches('input[type=search]')")
    browser.type("flip rate")
    with browser.arrival():
        browser.key("Enter", 13, "\r")
    assert browser.run("location.pathname") == "/search.html"
    browser.wait("/finished/.test(document.querySelector('#search-results')?.textContent)")
    found = browser.run("[...document.querySelectorAll('#search-results li a')].map(a => a.href)")
    assert any("method" in address for address in found)


class Links(HTMLParser):
    """A page's links and the places that links can point to."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.places = [], {"", "top"}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.places |= {attrs.get("id"), attrs.get("name") if tag == "a" else None}
        self.links += [attrs[k] for k in ("href", "src") if attrs.get(k)]


def test_each_link_inside_the_book_leads_somewhere(html):
    pages = {html / name: Links((html / name).read_text()) for name in names(html)}
    dead, checked = [], 0
    for page, parsed in pages.items():
        for link in parsed.links:
            if re.match(r"[a-z]+:|//", link):
                continue
            path, place = map(unquote, urldefrag(link))
            target = (page.parent / path.partition("?")[0]).resolve() if path else page
            checked += 1
            if not target.is_file() or (target in pages and place not in pages[target].places):
                dead.append(f"{page.name}: {link}")
    assert checked > 1000
    assert sorted(set(dead)) == []
