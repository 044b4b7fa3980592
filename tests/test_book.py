"""The book: built without a warning or a request to another server, readable on a phone."""

from __future__ import annotations

import base64
import doctest
import importlib.util
import io
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from cpllm import notebooks
from cpllm.sweep import NOTEBOOKS, ROOT, alone
from tests.test_repo import problems
from tests.test_supply import KEYS

TABLE3 = """system,metric,value,ci_low,ci_high,n_sources,n_items,seeds,status
CP-LLM,FR diff=2,0.1234,0.1,0.15,15,300,3,ok
CP-LLM,FR diff=2 ties,0.0,0,0,15,300,3,ok
filesize,FR diff=2,,,,,,,not run (smoke)
"CP-LLM (paper, LSVQ-test-1080p)",FR diff=2,0.987,,,,,,paper
"""


def load(root: Path):
    """book/_ext/build.py of a checkout, as a module."""
    spec = importlib.util.spec_from_file_location("build", root / "book" / "_ext" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def picture() -> str:
    """A small PNG, as a notebook stores it."""
    from PIL import Image

    data = io.BytesIO()
    Image.new("RGB", (1600, 300), "teal").save(data, "png")
    return base64.b64encode(data.getvalue()).decode()


def executed(title: str, profile: str) -> nbformat.NotebookNode:
    """What cpllm.notebooks leaves: parameters, a wide table, a figure, provenance."""
    wide = "<table><tr>" + "".join(f"<td>0.{i} [0.1, 0.{i}]</td>" for i in range(40))
    wide += "</tr></table>"
    cells = [
        new_markdown_cell(f"# {title}\n\nA sentence with $q \\in [0, 1]$."),
        new_code_cell("profile = 'default'", metadata={"tags": ["parameters"]}),
        new_code_cell(f"profile = '{profile}'", metadata={"tags": ["injected-parameters"]}),
        new_code_cell("show()", execution_count=3, outputs=[
            new_output("execute_result", {"text/html": wide, "text/plain": "-"}, execution_count=3),
            new_output("display_data", {"image/png": picture(), "text/plain": "-"}),
        ]),
        new_code_cell("\n".join(["a = 0", *["a += 1"] * 20]), execution_count=4),
        new_code_cell("tell()", execution_count=5, outputs=[
            new_output("stream", name="stdout", text="told\n" * 60)]),
    ]
    notebook = new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {
        "name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata["cpllm"] = {
        "source": "a.ipynb", "parameters": {"profile": profile},
        "source_sha256": notebooks._cells_hash([*cells[:2], *cells[3:]]),
        "fingerprint": "cd" * 32, "commit": "0123456789abcdef", "dirty": False,
        "started": "2026-01-02T03:04:05+00:00", "duration_s": 61.2, "device": "2 × Abacus",
        "versions": {"python": "3.11"},
    }
    return notebook


def checkout(root: Path) -> Path:
    """The book and what its pages quote, without results."""
    skip = shutil.ignore_patterns("_build", "chapters", "__pycache__")
    shutil.copytree(ROOT / "book", root / "book", ignore=skip)
    shutil.copytree(ROOT / "cpllm", root / "cpllm", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    for name in ("requirements.lock", "CITATION.cff"):
        shutil.copy(ROOT / name, root)
    return root


def build(root: Path, profile: str = "auto") -> subprocess.CompletedProcess:
    """As `make book` does."""
    return subprocess.run([sys.executable, str(root / "book" / "_ext" / "build.py"), profile],
                          capture_output=True, text=True)


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> Path:
    """A pocket book: all chapters but the last executed, the one before that with a parameter
    changed by hand, a Table 3. Returns the checkout.
    """
    root = checkout(tmp_path_factory.mktemp("book"))
    *chapters, _ = NOTEBOOKS
    results = root / "results" / "pocket"
    (results / "notebooks").mkdir(parents=True)
    (results / "tables").mkdir()
    (results / "tables" / "table3.csv").write_text(TABLE3)
    (results / "cost").mkdir()
    (results / "cost" / "memory.csv").write_text("GB,8 H200\nfrozen parameters,12.34\n")
    for name in chapters:
        nbformat.write(executed(f"Chapter {name}", "pocket"),
                       results / "notebooks" / f"{name}.ipynb")
    by_hand = executed(f"Chapter {chapters[-1]}", "pocket")
    by_hand.cells[2].source += "\ndraws = 400"
    nbformat.write(by_hand, results / "notebooks" / f"{chapters[-1]}.ipynb")
    run = build(root)
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"Older than their source or inputs: {chapters[0]}," in run.stdout
    return root


@pytest.fixture(scope="module")
def html(book) -> Path:
    return book / "book" / "_build" / "html"


UNITS = r"%|(?:seconds?|minutes?|hours?|m?s|[kMGT]B|TFLOP/s|points?)\b"
MEASURED = re.compile(rf"(?<![\w.,])(?:\d*\.\d+(?!\.?\d)|\d[\d,]*\s?(?:{UNITS}))")
"""A decimal fraction, or a number with a unit, as a measurement would be typed."""
TYPED = {
    "levels of intervals": ("90%", "95%"), "the paper's own": ("4.1", ".001", ".082"),
    "names and versions": ("2.0", "3.11", "3.12", "2505.16025"),
    "a formula's": ("1.06", "1.96", "0.7"),
    "DOVER's script": ("0.3896", "0.6104"), "MaxText's": ("58%",), "the maker's": ("989 TFLOP/s",),
    "targets, and what they are set for": (
        "0.9", "50%", "60%", "0.3", "0.5", "1 s", "5 s", "8 s", "10 s", "1 GB", "2 points"),
    "what to have ready": ("3 minutes", "1.6", "4 GB", "8 GB", "75 MB"),
}
"""All such numbers that prose may type, by what they are; results come from files."""


def prose(path: Path) -> str:
    """What a page or a notebook says, without code, formulas, links, roles and made pieces."""
    text = path.read_text()
    if path.suffix == ".ipynb":
        cells = nbformat.reads(text, 4).cells
        text = "\n\n".join(c.source for c in cells if c.cell_type == "markdown")
    text = re.sub(r"(?s)<!-- results.*?/results -->", "", text)
    text = re.sub(r"(?ms)^(```|\$\$).*?^\1", "", text)
    return re.sub(r"(\{\w+\})?`[^`]*`|\$[^$]*\$|\]\([^)]*\)", "", text)


def test_prose_types_no_measured_number():
    pages = [*(ROOT / "book").glob("*.md"), *(ROOT / "notebooks").glob("*.ipynb"),
             ROOT / "README.md"]
    found = {(path.name, number) for path in pages for number in MEASURED.findall(prose(path))}
    known = {number for numbers in TYPED.values() for number in numbers}
    assert not [f for f in found if f[1] not in known]
    assert known == {number for _, number in found}


def test_a_typed_measurement_is_found():
    assert MEASURED.findall("It flips 0.123 of them, .5 at most, 12% in 3 s or 1,024 MB.") == [
        "0.123", ".5", "12%", "3 s", "1,024 MB"]
    assert not MEASURED.findall("Table 3, Section 4, 20 levels, H.264, 448 × 448, CRF 51")


class Loads(HTMLParser):
    """Addresses that a page fetches by itself."""

    def __init__(self):
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video", "audio", "embed"):
            self.addresses.append(attrs.get("src") or "")
        if tag == "link":
            self.addresses.append(attrs.get("href") or "")


def pages(html: Path) -> list[Path]:
    """All but the one that only redirects to the first."""
    found = [p for p in html.rglob("*.html")
             if "_static" not in p.parts and p != html / "index.html"]
    assert len(found) > 8
    return found


def test_pages_fetch_nothing_from_elsewhere(html):
    for page in pages(html):
        text = page.read_text()
        parser = Loads()
        parser.feed(text)
        assert parser.addresses
        outside = [a for a in parser.addresses if re.match(r"(https?:)?//", a)]
        assert not outside, f"{page.name}: {outside}"
        assert "thebe" not in text.replace("sphinx-thebe.css", "")
        assert text.count("tex-svg.js") <= 1
    for sheet in (html / "_static").rglob("*.css"):
        outside = re.findall(r"url\([\"']?(?:https?:)?//[^)]*|@import[^;]*//[^;]*",
                             sheet.read_text())
        assert not outside, f"{sheet.name}: {outside}"


def test_an_older_chapter_is_told_with_the_command_that_executes_it():
    maker = load(ROOT).maker
    assert [maker(name) for name in ("30_table3", "20_train", "83_benchmark_step")] == [
        "`make reproduce`", "`make fit`", "`cpllm benchmark step`"]


def test_chapter_carries_profile_and_provenance(html):
    name = next(iter(NOTEBOOKS))
    text = (html / "chapters" / f"{name}.html").read_text()
    assert f"Chapter {name} (pocket)" in text
    assert "Where this page comes from" in text
    for fact in ("0123456789", "2 × Abacus", "61 s", "2026-01-02 03:04 UTC"):
        assert fact in text
    assert "default" not in re.sub(r"<[^>]+>", "", text.split("</h1>")[1].split("Where this")[0])


def test_a_parameter_changed_by_hand_stands_where_provenance_stood(html):
    name = [*NOTEBOOKS][-2]
    text = re.sub(r"<[^>]+>", "", (html / "chapters" / f"{name}.html").read_text())
    assert "Executed by hand" in text and "draws = 400" in text
    assert "Where this page comes from" not in text and "61 s" not in text
    _, *rows = (html / "status.html").read_text().split("<tr ")
    row = next(row for row in rows if f"{name}.html" in row)
    assert "by hand" in row and "2026" not in row


def test_a_long_listing_waits_for_a_click(html):
    text = (html / "chapters" / f"{next(iter(NOTEBOOKS))}.html").read_text()
    before, _, after = text.partition("Show the 60 lines")
    assert "tell" in before and "told" not in before and after.count("told") == 60


def test_an_interval_stays_whole_below_its_value_and_long_code_waits_for_a_click(html):
    text = (html / "chapters" / f"{next(iter(NOTEBOOKS))}.html").read_text()
    assert "<td>0.7 <small>[0.1, 0.7]</small></td>" in text
    assert "Show the code" in text.partition("<details")[2]
    assert "show" in text.partition("<details")[0] and "+=" not in text.partition("<details")[0]


def test_captions_say_the_profile_and_what_a_figure_rests_on(book, monkeypatch):
    module = load(ROOT)
    for holder in (module, sys.modules["fragments"]):
        monkeypatch.setattr(holder, "ROOT", book)
    said = module.pictures(ROOT / "notebooks" / "30_table3.ipynb", "pocket").values()
    (caption,) = (found["mystnb"]["figure"]["caption"] for found in said)
    assert "pocket profile" in caption and "15 sources, 3 seeds" in caption
    said = module.pictures(ROOT / "notebooks" / "50_ablation.ipynb", "pocket").values()
    assert all("not run" in found["mystnb"]["figure"]["caption"] for found in said)


def test_each_picture_of_a_notebook_has_a_caption_that_names_the_profile():
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        for cell in nbformat.read(path, 4).cells:
            if said := cell.metadata.get("mystnb"):
                assert said["image"]["alt"] and "profile" in said["figure"]["caption"], path.stem


def test_what_was_not_executed_says_not_run(html):
    *_, name = NOTEBOOKS
    text = (html / "chapters" / f"{name}.html").read_text()
    assert "(pocket)" in text and "Not run." in text
    assert "not run" in (html / "status.html").read_text()


def test_front_page_shows_measured_values_and_never_the_papers(html):
    text = (html / "intro.html").read_text()
    assert "0.123 [0.100,\u00a00.150]" in text
    assert "not run (smoke)" in text
    assert "15 sources, 3 seeds" in text
    glance = text.split("Table 3 in short (pocket)")[1].split("</table>")[0]
    assert "0.987" not in text and "ties" not in glance


def test_readme_has_the_committed_results():
    text, fragments = (ROOT / "README.md").read_text(), load(ROOT).in_readme
    assert fragments(text, "pocket") == text and "Table 3 in short (pocket)" in text


def test_method_page_has_every_equation(html):
    text = (html / "method.html").read_text()
    numbered = set(re.findall(r'id="equation-(\w+)"', text))
    assert numbered >= {"high", "low", "sequence", "score", "ranking", "regression", "total"}


def test_worked_examples_give_what_the_method_page_prints():
    found = doctest.testfile(str(ROOT / "book" / "method.md"), module_relative=False)
    assert found.failed == 0 and found.attempted > 20


def test_pod_page_shows_what_the_notebook_counted_and_of_the_rest_that_it_was_not_run(html):
    text = (html / "pod.html").read_text()
    assert "12.34" in text
    load(ROOT)
    names = sys.modules["fragments"].COUNTED
    assert text.count("Not run: ") == len(names) - 1
    source = (ROOT / "notebooks" / "85_count_flops.ipynb").read_text()
    assert all(rf'folder / \"{name}.csv\"' in source for name in names)


def test_second_build_does_nothing(book, html):
    before = (html / "method.html").stat().st_mtime_ns
    run = build(book)
    assert run.returncode == 0 and "up to date" in run.stdout
    assert (html / "method.html").stat().st_mtime_ns == before


def test_a_second_build_at_once_is_refused_until_the_first_is_done(book):
    rendering = book / "book" / "_build" / ".part"
    with alone("book", root=book):
        rendering.mkdir()
        run = build(book)
        assert rendering.exists()
    assert run.returncode == 2
    assert re.match(r"error: book: process \d+ is working on it; wait until", run.stderr)


def test_the_package_page_has_what_we_wrote_and_not_pythons_words_for_fields(html):
    text = re.sub("<[^>]+>", "", (html / "api.html").read_text())
    assert "cpllm.metrics.FlipRate" in text and "strict: wrong order" in text
    assert "Alias for field" not in text


def test_no_machine_path_host_name_or_key_is_in_a_page(html):
    for page in (p for p in html.rglob("*") if p.suffix in (".html", ".js", ".txt", ".ipynb")):
        if not {"mathjax", "_static"} & {*page.relative_to(html).parts}:
            text = page.read_text()
            assert (problems(text), KEYS.search(text)) == ([], None), page.name


def one_page(root: Path, text: str = "") -> Path:
    """A checkout whose book is one page, which takes seconds."""
    (root / "book" / "_toc.yml").write_text("format: jb-book\nroot: bibliography\n")
    (root / "book" / "bibliography.md").write_text(f"# Title\n\n{text}\n")
    return root


def test_a_warning_fails_the_build_and_leaves_the_pages_before(tmp_path):
    root = one_page(checkout(tmp_path))
    assert build(root).returncode == 0
    index = root / "book" / "_build" / "html" / "index.html"
    before = index.stat().st_mtime_ns
    one_page(root, "[nowhere](nowhere.md) {config}`video.no_such_field`")
    run = build(root)
    assert run.returncode == 1
    assert "nowhere" in run.stderr and "no field 'video.no_such_field'" in run.stderr
    assert index.stat().st_mtime_ns == before
    one_page(root)
    assert "up to date" in build(root).stdout


def test_auto_shows_smoke_where_only_smoke_has_run(tmp_path, monkeypatch):
    module = load(ROOT)
    monkeypatch.setattr(sys.modules["fragments"], "ROOT", tmp_path)
    assert module.choose("auto") == "pocket"
    path = module.executed(next(iter(NOTEBOOKS)), "smoke")
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    assert module.choose("auto") == "smoke"
    assert module.choose("paper") == "paper"


def test_launch_buttons_open_the_source_notebook_where_the_repository_is_public(monkeypatch):
    module = load(ROOT)
    for name in ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY"):
        monkeypatch.delenv(name, raising=False)
    assert set(module.launches("30_table3").values()) == {"colab-and-binder"}
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://github.com")
    monkeypatch.setenv("GITHUB_REPOSITORY", "ann/cpllm")
    assert module.launches("30_table3") == {
        "Colab": "https://colab.research.google.com/github/ann/cpllm/blob/main/notebooks/"
                 "30_table3.ipynb",
        "Binder": "https://mybinder.org/v2/gh/ann/cpllm/main?urlpath=lab/tree/notebooks/"
                  "30_table3.ipynb"}


def test_a_chapter_executed_by_hand_says_so_with_its_parameters():
    said = load(ROOT).provenance({}, {"profile": "pocket", "draws": 500})
    assert "by hand" in said and "`draws = 500`" in said and "make reproduce" in said


def test_pdf_without_chromium_says_what_to_install(monkeypatch, capsys):
    module = load(ROOT)
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    assert module.print_pdf("pocket") == 1
    assert "apt install chromium" in capsys.readouterr().err
