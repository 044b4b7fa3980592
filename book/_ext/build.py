"""Render the book of one profile: stage what was executed, then jupyter-book, if anything changed.

    python book/_ext/build.py PROFILE [--pdf]     # PROFILE may be: auto
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parent))
from fragments import NOT_RUN, ROOT, executed, in_readme, pieces, rests_on, rows_of

from cpllm import atomic, grid, notebooks, records
from cpllm.notebooks import read, settle
from cpllm.sweep import NOTEBOOKS, alone

BOOK = ROOT / "book"
CHAPTERS = BOOK / "chapters"
ASIDE = re.compile(r"\[[+-]?[\d.]+, [+-]?[\d.]+\]|\((?:paper [+-][\d.]+|mechanism|older code)\)")
"""What a table says beside a value or a name: an interval, a note."""
LONG = 12
"""Lines of code from which a cell waits for a click: a reader comes for what it shows."""
LISTING = 40
"""Lines that a cell prints from which they wait too; on paper they are left out."""
BUILT = BOOK / "_build"
STAMP = BUILT / ".built"
UNFINISHED = BUILT / ".part"
"""Where pages are rendered; they take the place of those before when all are there."""
PRINTS = ("chromium", "chromium-browser", "google-chrome")


def main(profile: str, pdf: bool = False) -> int:
    """Stage and build; 0 when the book is whole and without a warning."""
    try:
        with alone("book", root=ROOT), emptied(UNFINISHED):
            profile = choose(profile)
            stage_all(profile)
            return print_pdf(profile) if pdf else render(profile)
    except (OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


@contextlib.contextmanager
def emptied(folder: Path) -> Iterator[None]:
    """From nothing: Sphinx repeats no warning for a page that it thinks it has built."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def stage_all(profile: str) -> None:
    """What the pages are made of, and the README's table."""
    shutil.rmtree(CHAPTERS, ignore_errors=True)
    CHAPTERS.mkdir()
    for name in NOTEBOOKS:
        stage(name, profile)
    made = pieces(profile)
    for name, text in made.items():
        (CHAPTERS / f"_{name}.md").write_text(text)
    if older := re.findall(r"\((?:chapters/)(\w+)\).*\| older \|", made["execution"]):
        print("Older than their source or inputs: "
              + "; ".join(f"{name}, which {maker(name)} executes anew" for name in older) + ".")
    readme = ROOT / "README.md"
    if profile == "pocket" and readme.exists():
        records.write(readme, in_readme(readme.read_text(), profile))


def maker(name: str) -> str:
    """The command that executes a chapter."""
    if NOTEBOOKS[name].apart:
        return f"`cpllm benchmark {name.rpartition('_')[2]}`"
    return "`make fit`" if f"{name}.ipynb" == grid.NOTEBOOK else "`make reproduce`"


def render(profile: str) -> int:
    """The pages in book/_build/html, unless they are those already; else the ones before stay."""
    begun = time.monotonic()
    index, digest = BUILT / "html" / "index.html", sources_hash()
    if index.exists() and STAMP.exists() and STAMP.read_text() == digest:
        print(f"The book ({profile}) is up to date: {index.relative_to(ROOT)}")
        return 0
    print(f"Rendering the book ({profile}) …", flush=True)
    if not jupyter_book():
        return 1
    if index.parent.exists():
        index.parent.rename(UNFINISHED / "before")
    (UNFINISHED / "_build" / "html").rename(index.parent)
    records.write(STAMP, digest)
    print(f"The book ({profile}) took {time.monotonic() - begun:.0f} s: {index.relative_to(ROOT)}")
    return 0


def jupyter_book(*more: str) -> bool:
    """Whether it built the book without a warning, which else are printed."""
    tool = Path(sys.executable).with_name("jupyter-book")
    run = subprocess.run([str(tool), "build", str(BOOK), "--path-output", str(UNFINISHED),
                          "-W", "--keep-going", "-n", *more],
                         cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for cause in (errno.ENOSPC, errno.EDQUOT) if run.returncode else ():
        if (words := os.strerror(cause)) in run.stdout:
            raise OSError(cause, words, str(UNFINISHED))
    if run.returncode:
        lines = re.sub(r"\x1b\[[0-9;]*m", "", run.stdout).splitlines()  # colours
        faults = [line for line in lines if "WARNING" in line or "ERROR" in line]
        print(*(faults or lines[-40:]), "The book is not whole: warnings count as errors.",
              sep="\n", file=sys.stderr)
    return not run.returncode


def print_pdf(profile: str) -> int:
    """The whole book as one PDF, by Chromium."""
    program = next(filter(None, map(shutil.which, PRINTS)), None)
    if program is None:
        print("make pdf prints with Chromium, which isn't here: apt install chromium",
              file=sys.stderr)
        return 1
    if not jupyter_book("--builder", "singlehtml"):
        return 1
    path = BUILT / f"cpllm-{profile}.pdf"
    with tempfile.TemporaryDirectory() as home, atomic.whole(path) as printed:
        subprocess.run([
            program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", f"--user-data-dir={home}", "--no-pdf-header-footer",
            "--virtual-time-budget=120000", f"--print-to-pdf={printed}",
            (UNFINISHED / "_build" / "singlehtml" / "intro.html").as_uri()],
            check=True, capture_output=True)
    print(f"The book ({profile}) as a PDF: {path.relative_to(ROOT)}")
    return 0


def choose(profile: str) -> str:
    """"auto" is pocket, or smoke where only smoke has been executed."""
    if profile != "auto":
        return profile
    return next((p for p in ("pocket", "smoke") if any(executed(n, p).exists() for n in NOTEBOOKS)),
                "pocket")


def stage(name: str, profile: str) -> None:
    """One chapter: the executed notebook with its profile and provenance, or a page "not run"."""
    path, source = executed(name, profile), ROOT / "notebooks" / f"{name}.ipynb"
    if not path.exists():
        title = with_profile(title_of(source, name), profile)
        target = "benchmark" if NOTEBOOKS[name].apart else "reproduce"
        (CHAPTERS / f"{name}.md").write_text(
            f"# {title}\n\nNot run. `make {target} PROFILE={profile}` executes "
            f"`notebooks/{name}.ipynb` and puts its results here.\n")
        return
    notebook = read(path)
    head = notebook["cells"][0]
    if head["cell_type"] != "markdown" or not head["source"].startswith("# "):
        raise SystemExit(f"{name}.ipynb: expected a first cell of markdown that begins with '# '")
    first, _, rest = head["source"].partition("\n")
    made = notebooks.provenance_of(notebook)
    head["source"] = "\n".join([f"# {with_profile(first[2:].strip(), profile)}\n",
                                strip(name, profile, made), rest])
    described = pictures(source, profile)
    tags = {tag for cell in notebook["cells"] for tag in cell["metadata"].get("tags", [])}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = [legible(output) for output in settle(cell["outputs"])]
            cell["metadata"] |= described.get(cell.get("id"), {})
            if len(cell["source"].splitlines()) > LONG:
                cell["metadata"].setdefault("tags", []).append("hide-input")
            if (printed := lines(cell["outputs"])) > LISTING:
                cell["metadata"].setdefault("tags", []).append("hide-output")
                cell["metadata"]["mystnb"] = cell["metadata"].get("mystnb", {}) | {
                    "code_prompt_show": f"Show the {printed} lines",
                    "code_prompt_hide": "Hide them"}
        if "injected-parameters" in tags and "parameters" in cell["metadata"].get("tags", []):
            cell["metadata"]["tags"].append("remove-cell")
    told = provenance(made, notebooks.parameters_of(notebook["cells"]))
    notebook["cells"].append(
        {"cell_type": "markdown", "id": "provenance", "metadata": {}, "source": told})
    (CHAPTERS / f"{name}.ipynb").write_text(json.dumps(notebook, indent=1, ensure_ascii=False))


def lines(outputs: list[dict[str, Any]]) -> int:
    """How many a cell printed."""
    return sum("".join(out["text"]).count("\n") for out in outputs if "text" in out)


def pictures(source: Path, profile: str) -> dict[str, dict[str, Any]]:
    """What a notebook's cells say of their pictures, by cell: today's words for older pictures.

    In a caption, `{profile}` and a table's name in braces stand for these and what it rests on.
    """
    cells = read(source)["cells"] if source.exists() else []
    found = {cell["id"]: {"mystnb": cell["metadata"]["mystnb"]} for cell in cells
             if "mystnb" in cell["metadata"]}
    known = {path.stem: rests_on(rows_of(profile, f"tables/{path.name}"))
             for path in (ROOT / "results" / profile / "tables").glob("*.csv")}
    facts = defaultdict(lambda: NOT_RUN, known, profile=profile)
    for said in found.values():
        if "figure" in said["mystnb"]:
            figure = said["mystnb"]["figure"]
            figure["caption"] = figure["caption"].format_map(facts)
    return found


def legible(output: dict[str, Any]) -> dict[str, Any]:
    """A table whose intervals and notes stand below their values, whole."""
    html = output.get("data", {}).get("text/html")
    if html and "<table" in "".join(html):
        output["data"]["text/html"] = ASIDE.sub(r"<small>\g<0></small>", "".join(html))
    return output


def title_of(source: Path, name: str) -> str:
    """A notebook's first heading."""
    text = read(source)["cells"][0]["source"] if source.exists() else ""
    return text.splitlines()[0][2:].strip() if text.startswith("# ") else name


def with_profile(title: str, profile: str) -> str:
    """No page's numbers can pass for another profile's."""
    return title if profile in title else f"{title} ({profile})"


def strip(name: str, profile: str, made: dict[str, Any]) -> str:
    """A line under the title: when and where, and the way to the notebook in several forms."""
    when = f"Executed {made['started'][:10]} in {made['duration_s']:,.0f} s, " if made else ""
    launch = [f"[{where}]({address})" for where, address in launches(name).items()]
    links = [f"{{download}}`source notebook <../../notebooks/{name}.ipynb>`",
             f"{{download}}`as executed <../../results/{profile}/notebooks/{name}.ipynb>`",
             "[run records](../runs.md)", *launch]
    return f":::{{div}} made\n{when}profile **{profile}** · {' · '.join(links)}\n:::\n"


def launches(name: str) -> dict[str, str]:
    """Addresses that open a notebook elsewhere; without a public repository, the page on that."""
    address, branch = repository()
    if not address.startswith("https://github.com/"):
        return dict.fromkeys(("Colab", "Binder"), "colab-and-binder")
    place, path = address.removeprefix("https://github.com/"), f"notebooks/{name}.ipynb"
    return {"Colab": f"https://colab.research.google.com/github/{place}/blob/{branch}/{path}",
            "Binder": f"https://mybinder.org/v2/gh/{place}/{branch}?urlpath=lab/tree/{path}"}


def repository() -> tuple[str, str]:
    """The public address of this repository and its branch: _config.yml's, or the workflow's."""
    known = yaml.safe_load((BOOK / "_config.yml").read_text())["repository"]
    server, name = os.environ.get("GITHUB_SERVER_URL"), os.environ.get("GITHUB_REPOSITORY")
    return known["url"] or (f"{server}/{name}" if server and name else ""), known["branch"]


def provenance(made: dict[str, Any], given: dict[str, Any]) -> str:
    """A box that says what, when, how long, where and with what a chapter was executed."""
    values = ", ".join(f"`{k} = {v!r}`" for k, v in given.items()) or "none"
    if not made:
        return (":::{warning}\nExecuted by hand, so that only its parameters are known: "
                f"{values}. `make reproduce` executes it anew and records where, when and with "
                "what.\n:::")
    commit = f"`{made['commit'][:10]}`" if made.get("commit") else "none (not in git)"
    data = made.get("data_sha256")
    rows = {
        "Source": f"`notebooks/{made['source']}`, SHA-256 `{made['source_sha256'][:12]}…`",
        "Parameters": values,
        "Seed": f"{given['seed']}" if "seed" in given else "those of the [runs](../runs.md)",
        "Commit": commit + ", the package with changes not committed" * bool(made.get("dirty")),
        "Executed": f"{made['started'][:16].replace('T', ' ')} UTC in {made['duration_s']:,.0f} s",
        "Device": made["device"],
        "Versions": ", ".join(f"{k} {v}" for k, v in made["versions"].items()),
        "Data": f"manifests' SHA-256 `{data[:12]}…`" if data else "manifests' hash not recorded",
        "Inputs and code": f"SHA-256 `{made['fingerprint'][:12]}…`",
        "Records": "[each run](../runs.md) with configuration, history and predictions",
    }
    facts = "\n\n".join(f"{term}\n: {fact}" for term, fact in rows.items())
    return f":::{{admonition}} Where this page comes from\n:class: note provenance\n\n{facts}\n:::"


def sources_hash() -> str:
    """Over everything that the pages are made of; the package too, which they quote."""
    whole = hashlib.sha256("".join(repository()).encode())
    files = [p for p in BOOK.rglob("*") if p.is_file()] + list((ROOT / "cpllm").rglob("*.py"))
    for path in sorted(files):
        if not {"_build", "__pycache__"} & set(path.parts):
            whole.update(f"{path.relative_to(ROOT)}\0".encode())
            whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--pdf"]
    sys.exit(main(words[0] if words else "auto", pdf="--pdf" in sys.argv))
