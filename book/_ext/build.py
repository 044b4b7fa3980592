"""Render the book of one profile: stage what was executed, then jupyter-book, if anything changed.

    python book/_ext/build.py PROFILE     # or: auto
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cpllm.sweep import NOTEBOOKS, read

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"
CHAPTERS = BOOK / "chapters"
STAMP = BOOK / "_build" / ".built"
NOT_RUN = "not run"
COUNTED = ("flops", "memory", "exchange", "time")
"""What notebook 85_count_flops writes under results/<profile>/cost, for the page on pods."""


def main(profile: str) -> int:
    """Stage and build; 0 when the book is whole and without a warning."""
    begun = time.monotonic()
    profile = choose(profile)
    shutil.rmtree(CHAPTERS, ignore_errors=True)
    CHAPTERS.mkdir()
    for name in NOTEBOOKS:
        stage(name, profile)
    (CHAPTERS / "_results.md").write_text(results_table(profile))
    (CHAPTERS / "_execution.md").write_text(execution_table(profile))
    for name in COUNTED:
        (CHAPTERS / f"_cost_{name}.md").write_text(cost_table(name, profile))
    index = BOOK / "_build" / "html" / "index.html"
    digest = sources_hash()
    if index.exists() and STAMP.exists() and STAMP.read_text() == digest:
        print(f"The book ({profile}) is up to date: {index.relative_to(ROOT)}")
        return 0
    print(f"Rendering the book ({profile}) …", flush=True)
    # From nothing: Sphinx repeats no warning for a page that it thinks it has built.
    shutil.rmtree(BOOK / "_build", ignore_errors=True)
    tool = Path(sys.executable).with_name("jupyter-book")
    command = [str(tool), "build", str(BOOK), "-W", "--keep-going", "-n"]
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                         text=True)
    if run.returncode:
        lines = re.sub(r"\x1b\[[0-9;]*m", "", run.stdout).splitlines()  # colours
        faults = [line for line in lines if "WARNING" in line or "ERROR" in line]
        print(*(faults or lines[-40:]), "The book is not whole: warnings count as errors.",
              sep="\n", file=sys.stderr)
        return 1
    STAMP.write_text(digest)
    print(f"The book ({profile}) took {time.monotonic() - begun:.0f} s: {index.relative_to(ROOT)}")
    return 0


def choose(profile: str) -> str:
    """"auto" is pocket, or smoke where only smoke has been executed."""
    if profile != "auto":
        return profile
    return next((p for p in ("pocket", "smoke") if any(executed(n, p).exists() for n in NOTEBOOKS)),
                "pocket")


def executed(name: str, profile: str) -> Path:
    """Where an executed notebook lies."""
    return ROOT / "results" / profile / "notebooks" / f"{name}.ipynb"


def stage(name: str, profile: str) -> None:
    """One chapter: the executed notebook with its profile and provenance, or a page "not run"."""
    path = executed(name, profile)
    if not path.exists():
        title = with_profile(title_of(ROOT / "notebooks" / f"{name}.ipynb", name), profile)
        target = "benchmark" if NOTEBOOKS[name].timed else "reproduce"
        (CHAPTERS / f"{name}.md").write_text(
            f"# {title}\n\nNot run. `make {target} PROFILE={profile}` executes "
            f"`notebooks/{name}.ipynb` and puts its results here.\n")
        return
    notebook = read(path)
    head = notebook["cells"][0]
    if head["cell_type"] != "markdown" or not head["source"].startswith("# "):
        raise SystemExit(f"{name}.ipynb: expected a first cell of markdown that begins with '# '")
    first, _, rest = head["source"].partition("\n")
    head["source"] = f"# {with_profile(first[2:].strip(), profile)}\n{rest}"
    tags = {tag for cell in notebook["cells"] for tag in cell["metadata"].get("tags", [])}
    for cell in notebook["cells"]:
        if "injected-parameters" in tags and "parameters" in cell["metadata"].get("tags", []):
            cell["metadata"]["tags"].append("remove-cell")
    box = provenance(notebook["metadata"].get("cpllm"))
    notebook["cells"].append(
        {"cell_type": "markdown", "id": "provenance", "metadata": {}, "source": box})
    (CHAPTERS / f"{name}.ipynb").write_text(json.dumps(notebook, indent=1, ensure_ascii=False))


def title_of(source: Path, name: str) -> str:
    """A notebook's first heading."""
    text = read(source)["cells"][0]["source"] if source.exists() else ""
    return text.splitlines()[0][2:].strip() if text.startswith("# ") else name


def with_profile(title: str, profile: str) -> str:
    """No page's numbers can pass for another profile's."""
    return title if profile in title else f"{title} ({profile})"


def provenance(made: dict[str, Any] | None) -> str:
    """A box that says what, when, how long, where and with what a chapter was executed."""
    if not made:
        return ":::{warning}\nNo provenance: not executed by cpllm.sweep.\n:::"
    commit = f"`{made['commit'][:10]}`" if made.get("commit") else "none (not in git)"
    rows = {
        "Source": f"`notebooks/{made['source']}`, SHA-256 `{made['source_sha256'][:12]}…`",
        "Parameters": ", ".join(f"`{k} = {v!r}`" for k, v in made["parameters"].items()) or "none",
        "Commit": commit + (", with changes not committed" if made.get("dirty") else ""),
        "Executed": f"{made['started'][:16].replace('T', ' ')} UTC in {made['duration_s']:,.0f} s",
        "Device": made["device"],
        "Versions": ", ".join(f"{k} {v}" for k, v in made["versions"].items()),
        "Inputs and code": f"SHA-256 `{made['fingerprint'][:12]}…`",
    }
    facts = "\n\n".join(f"{term}\n: {fact}" for term, fact in rows.items())
    return f":::{{admonition}} Where this page comes from\n:class: note provenance\n\n{facts}\n:::"


def results_table(profile: str) -> str:
    """Table 3 as computed here: systems by metrics, with intervals; "not run" where absent."""
    path = ROOT / "results" / profile / "tables" / "table3.csv"
    caption = f"**Table 3 ({profile}).** "
    if not path.exists():
        return caption + f"Not run: `make reproduce PROFILE={profile}` computes it.\n"
    with path.open(newline="") as stream:
        rows = [r for r in csv.DictReader(stream) if r["status"] != "paper"]
    shown = [r for r in rows if not r["metric"].endswith((" ties", " half"))]
    metrics = list(dict.fromkeys(r["metric"] for r in shown))
    systems = list(dict.fromkeys(r["system"] for r in shown))
    cells = {(r["system"], r["metric"]): measured(r) for r in shown}
    rests_on = ", ".join(filter(None, (counted(rows, "n_sources", "source"),
                                       counted(rows, "seeds", "seed"))))
    names = [f"CP-LLM ({profile})" if s == "default" else s for s in systems]
    body = [[m, *(cells.get((s, m), NOT_RUN) for s in systems)] for m in metrics]
    return table(
        ["", *names], body,
        f"{caption}FR: flip rate by difference of CRF, lower is better. SRCC: with the FR-proxy, "
        f"not with opinions. In brackets: 95% intervals over sources"
        f"{f' ({rests_on})' if rests_on else ''}.\n")


def measured(row: dict[str, str]) -> str:
    """"0.125 [0.101, 0.149]", or the row's status where it has no value."""
    try:
        value, low, high = (float(row[k] or "nan") for k in ("value", "ci_low", "ci_high"))
    except ValueError:
        return row.get("status") or NOT_RUN
    if math.isnan(value):
        return row.get("status") or NOT_RUN
    note = "" if row.get("status") in ("ok", "", None) else f" ({row['status']})"
    return f"{value:.3f}" + ("" if math.isnan(low) else f" [{low:.3f},\u00a0{high:.3f}]") + note


def counted(rows: list[dict[str, str]], column: str, word: str) -> str:
    """"15 sources", "12 to 15 sources"; empty where no row says."""
    numbers = sorted({int(float(r[column])) for r in rows if r[column] not in ("", "nan")} - {0})
    if not numbers:
        return ""
    span = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    return f"{span} {word}{'' if span == '1' else 's'}"


def cost_table(name: str, profile: str) -> str:
    """One of the `COUNTED` tables; "not run" where it has not been counted."""
    path = ROOT / "results" / profile / "cost" / f"{name}.csv"
    if not path.exists():
        return f"Not run: `notebooks/85_count_flops.ipynb` writes `{path.relative_to(ROOT)}`.\n"
    with path.open(newline="") as stream:
        head, *rows = csv.reader(stream)
    return table(head, rows)


def execution_table(profile: str) -> str:
    """Each chapter: when, how long, at which commit; "not run" where it has not."""
    rows = []
    for name in NOTEBOOKS:
        path = executed(name, profile)
        made = read(path)["metadata"].get("cpllm") if path.exists() else None
        rows.append([f"[{name}](chapters/{name})", *(
            [NOT_RUN, "", "", ""] if not made else [
                made["started"][:10], f"{made['duration_s']:,.0f} s",
                (made["commit"] or "none")[:10], made["device"]])])
    return table(["Chapter", "Executed", "Took", "Commit", "Device"], rows,
                 f"Profile: **{profile}**.\n")


def table(head: list[str], rows: list[list[str]], before: str = "") -> str:
    """Markdown table; a bar in a cell is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    body = ["| " + " | ".join(str(c).replace("|", "\\|") for c in line) + " |" for line in lines]
    return "\n".join([*([before] if before else []), *body]) + "\n"


def sources_hash() -> str:
    """Over everything that the pages are made of; the package too, which they quote."""
    whole = hashlib.sha256()
    files = [p for p in BOOK.rglob("*") if p.is_file()] + list((ROOT / "cpllm").rglob("*.py"))
    for path in sorted(files):
        if not {"_build", "__pycache__"} & set(path.parts):
            whole.update(f"{path.relative_to(ROOT)}\0".encode())
            whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "auto"))
