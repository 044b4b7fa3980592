"""Pieces of the book's pages that are made from results/: tables of results, runs, versions.

Each function gives the Markdown of one piece; what has not been run says so.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import math
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from cpllm import cli, grid, records
from cpllm.notebooks import provenance_of, read
from cpllm.sweep import NOTEBOOKS, current

ROOT = Path(__file__).resolve().parents[2]
NOT_RUN = "not run"
COUNTED = ("flops", "memory", "exchange", "time")
"""What notebook 85_count_flops writes under results/<profile>/cost, for the page on pods."""
OURS = ("default", "cpllm")
GLANCE = ("FR diff=2", "FR diff=10", "SRCC pooled")
VERDICTS = ("holds", "does not hold", "undecided", "not testable", NOT_RUN)
KEPT = ("config.json", "provenance.json", "metrics.json", "history.csv", "predictions.csv",
        "answers.csv", "fit.csv")
SHOWN = ("jax", "flax", "optax", "grain", "orbax-checkpoint", "transformers", "numpy", "scipy",
         "pandas", "av", "pillow", "papermill", "jupyter-book")


def pieces(profile: str) -> dict[str, str]:
    """All of them, by the name under which pages include them."""
    made = {"results": results_table(profile), "flips": flip_figure(profile),
            "claims": claims_table(profile), "execution": execution_table(profile),
            "runs": runs_table(profile), "versions": versions_table(profile), "cite": citation()}
    made |= {f"cost_{name}": cost_table(name, profile) for name in COUNTED}
    return made | {f"help_{verb}": text for verb, text in help_texts().items()}


def results_table(profile: str) -> str:
    """Table 3 in short: systems by three of its measures, with intervals."""
    rows = [r for r in rows_of(profile, "tables/table3.csv") if r["status"] != "paper"]
    caption = f"**Table 3 in short ({profile}).** "
    if not rows:
        return caption + f"Not run: `make reproduce PROFILE={profile}` computes it.\n"
    cells = {(r["system"], r["metric"]): measured(r) for r in rows}
    basis = rests_on(rows)
    systems = sorted(dict.fromkeys(r["system"] for r in rows), key=lambda s: s not in OURS)
    body = [[f"CP-LLM, `{s}`" if s in OURS else f"`{s}`",
             *(cells.get((s, m), "–") for m in GLANCE)] for s in systems]
    return table(["", *GLANCE], body, (
        f"{caption}FR: share of pairs of encodes ranked wrongly, by their difference of CRF; lower "
        "is better. SRCC: with the FR-proxy, not with opinions; higher is better. In brackets: "
        f"95% intervals over sources{f' ({basis})' if basis else ''}.\n"))


def in_readme(text: str, profile: str) -> str:
    """README.md with its table of results as computed here."""
    return re.sub(r"(<!-- results: .*? -->\n).*?(<!-- /results -->)",
                  lambda m: f"{m[1]}{results_table(profile)}{m[2]}", text, flags=re.DOTALL)


def flip_figure(profile: str) -> str:
    """Table 3 as curves; nothing where there is none."""
    path = ROOT / "results" / profile / "figures" / "table3_flip_rate.svg"
    return "" if not path.exists() else (
        f"```{{figure}} ../results/{profile}/figures/{path.name}\n"
        ":alt: Curves of flip rate against the CRF difference of a pair, one for each of our "
        "models with a band for its interval, and in grey three that the paper prints. All fall "
        "to the right. The table above has the same numbers.\n:width: 100%\n\n"
        f"Flip rate by CRF difference ({profile} profile, test split; "
        f"{rests_on(rows_of(profile, 'tables/table3.csv'))}). Bands are 95% intervals by a "
        "bootstrap over sources, points single seeds; grey lines are what the paper prints for "
        "other videos.\n```\n")


def claims_table(profile: str) -> str:
    """Each claim of the paper's with both verdicts, after their counts."""
    rows = rows_of(profile, "claims.csv")
    if not rows:
        return f"Not run: `make reproduce PROFILE={profile}` judges them.\n"
    ours = Counter(r["at_profile"].partition(":")[0] for r in rows)
    said = ", ".join(f"{v} {ours[v]}" for v in VERDICTS if ours[v])
    held = sum(r["in_paper"] == "holds" for r in rows)
    return table(["Exhibit", "Claim", "In the paper", f"Here ({profile})"], [
        [r["exhibit"], r["claim"], r["in_paper"], r["at_profile"]] for r in rows], (
        f"Of {len(rows)} claims, the paper's own numbers bear out {held}. "
        f"In our runs: {said}.\n"))


def cost_table(name: str, profile: str) -> str:
    """One of the `COUNTED` tables."""
    path = ROOT / "results" / profile / "cost" / f"{name}.csv"
    if not path.exists():
        return f"Not run: `notebooks/85_count_flops.ipynb` writes `{path.relative_to(ROOT)}`.\n"
    with path.open(newline="") as stream:
        head, *rows = csv.reader(stream)
    return table(head, rows)


def execution_table(profile: str) -> str:
    """Each chapter: when, how long, at which commit, and whether it is older than its inputs."""
    rows, devices = [], set()
    for name, book in NOTEBOOKS.items():
        path, link = executed(name, profile), f"[{name}](chapters/{name})"
        if not path.exists():
            rows.append([link, NOT_RUN, "", "", ""])
            continue
        if not (made := provenance_of(read(path))):
            rows.append([link, "by hand", "", "", "not recorded"])
            continue
        devices.add(made["device"])
        rows.append([link, made["started"][:10], f"{made['duration_s']:,.0f} s",
                     f"`{(made['commit'] or 'none')[:7]}`",
                     "as they are" if current(book, profile, ROOT) else "older"])
    head = ["Chapter", "Executed", "Took", "Commit", "Source and inputs"]
    return (f"Profile: **{profile}**. Devices: {'; '.join(sorted(devices)) or NOT_RUN}.\n\n"
            + table(head, rows))


def runs_table(profile: str) -> str:
    """Each run with its provenance and its files."""
    rows, devices = [], set()
    for folder in sorted((ROOT / "results" / profile / "runs").glob("[!.]*/")):
        made = records.read_json(folder / "provenance.json")
        if not made:
            rows.append([f"`{folder.name}`", *[NOT_RUN] * 6])
            continue
        files = [f"{{download}}`{Path(n).stem} <../results/{profile}/runs/{folder.name}/{n}>`"
                 for n in KEPT if (folder / n).exists()]
        trained = "model" in records.read_json(folder / "config.json")
        code = "as it is" if made["code_sha256"] in grid.codes(folder) else "older"
        devices.add(made["device"])
        rows.append([f"`{folder.name}`", made["started"][:10],
                     f"{made['duration_s']:,.0f} s, {made['cores']} core"
                     + "s" * (made["cores"] > 1),
                     f"`{made['commit'][:7]}`" + " and changes" * made["dirty"],
                     code if trained else "–", f"`{made['manifest_sha256'][:7]}`",
                     " · ".join(files)])
    if not rows:
        return f"Not run: `make reproduce PROFILE={profile} FRESH=1` trains them.\n"
    head = ["Run", "Begun", "Took", "Commit", "Training code", "Data", "Records"]
    return (f"Profile: **{profile}**. Devices: {'; '.join(sorted(devices))}.\n\n:::{{div}} runs\n"
            + table(head, rows) + ":::\n")


def versions_table(profile: str) -> str:
    """Direct dependencies as the lock fixes them, beside those that made the chapters."""
    fixed: dict[str, list[str]] = {}
    for name, version, since in re.findall(
            r"^([\w.-]+)(?:\[.*?\])?==(\S+)(?: ; python_full_version (\S+ '[\d.]+'))?",
            (ROOT / "requirements.lock").read_text(), re.MULTILINE):
        only = since.replace("'", "").replace(">=", "≥")
        fixed.setdefault(name, []).append(f"{version} (Python {only})" if only else version)
    found: dict[str, set[str]] = {}
    for path in [executed(n, profile) for n in NOTEBOOKS if executed(n, profile).exists()]:
        for name, version in provenance_of(read(path)).get("versions", {}).items():
            found.setdefault(name, set()).add(version)
    for path in (ROOT / "results" / profile / "runs").glob("*/provenance.json"):
        for name, version in json.loads(path.read_text()).get("versions", {}).items():
            found.setdefault(name, set()).add(version)
    return table(["Package", "Locked", "Executed with"], [
        [name, ", ".join(fixed.get(name, "–")),
         ", ".join(sorted(found.get(name, ()))) or "not recorded"]
        for name in ("python", *SHOWN)])


def citation() -> str:
    """What CITATION.cff says, as two BibTeX entries."""
    ours = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    paper = ours["preferred-citation"]
    return ("```bibtex\n" + bibtex("article", "wen2025cpllm", paper, journal=paper["journal"]) +
            "\n\n" + bibtex("software", "cpllm_companion", ours, version=ours["version"],
                            license=ours["license"]) + "\n```\n")


def bibtex(kind: str, key: str, entry: dict[str, Any], **more: str) -> str:
    """One entry."""
    names = " and ".join(a.get("name") or f"{a['family-names']}, {a['given-names']}"
                         for a in entry["authors"])
    fields = {"title": f"{{{entry['title']}}}", "author": names, **more}
    if "year" in entry:
        fields["year"] = str(entry["year"])
    width = max(map(len, fields))
    lines = (f"  {name:{width}} = {{{value}}}" for name, value in fields.items())
    return f"@{kind}{{{key},\n" + ",\n".join(lines) + "\n}"


def help_texts() -> dict[str, str]:
    """`cpllm VERB --help` of each verb, as the parser prints it."""
    with mock.patch.dict(os.environ, {"COLUMNS": "88"}), contextlib.suppress(StopIteration):
        verbs = next(a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction))
        return {verb: f"```text\n$ cpllm {verb} --help\n{sub.format_help()}```\n"
                for verb, sub in verbs.choices.items()}
    return {}


def executed(name: str, profile: str) -> Path:
    """Where an executed notebook lies."""
    return ROOT / "results" / profile / "notebooks" / f"{name}.ipynb"


def rows_of(profile: str, name: str) -> list[dict[str, str]]:
    """A result file's rows; none where there is no file."""
    path = ROOT / "results" / profile / name
    if not path.exists():
        return []
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


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


def rests_on(rows: list[dict[str, str]]) -> str:
    """"40 sources, 1 to 3 seeds"."""
    return ", ".join(filter(None, (counted(rows, "n_sources", "source"),
                                   counted(rows, "seeds", "seed"))))


def counted(rows: list[dict[str, str]], column: str, word: str) -> str:
    """"15 sources", "12 to 15 sources"; empty where no row says."""
    numbers = sorted({int(float(r[column])) for r in rows if r[column] not in ("", "nan")} - {0})
    if not numbers:
        return ""
    span = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    return f"{span} {word}{'' if span == '1' else 's'}"


def table(head: list[str], rows: list[list[str]], before: str = "") -> str:
    """Markdown table; a bar in a cell is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    body = ["| " + " | ".join(str(c).replace("|", "\\|") for c in line) + " |" for line in lines]
    return "\n".join([*([before] if before else []), *body]) + "\n"
