"""What the lock lets in: installable without a look for newer releases, with licences that suit."""

import csv
import re
import tomllib
from importlib import metadata

import pytest
from packaging.requirements import Requirement

from cpllm.sweep import ROOT
from tests.test_repo import texts

LIST = ROOT / "licences.csv"
LOCKED = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
LINES = dict(re.findall(r"^([a-z0-9._-]+(?:\[.*?\])?)==([^\s;]+)",
                        (ROOT / "requirements.lock").read_text(), re.MULTILINE))
PINNED = {re.sub(r"\[.*", "", name): version for name, version in LINES.items()}
NAMED = {name.partition("[")[0]: set(name.rstrip("]").partition("[")[2].split(",")) - {""}
         for name in LINES}

FINE = re.compile(r"\b(MIT|BSD|0BSD|Apache|ISC|PSF|Python Software Foundation|MPL|CC0|Zlib|HPND|"
                  r"Mozilla|Public Domain|Unlicense)", re.IGNORECASE)
KEYS = re.compile(r"AIza[\w-]{35}|\b(?:sk|hf|ghp|gho|xox[bp])[-_][A-Za-z0-9]{20,}|"
                  r"\bAKIA[A-Z0-9]{16}\b|-----BEGIN [A-Z ]*PRIVATE KEY-----")


def needs(package: dict, extras: set[str]) -> list[dict]:
    """What a locked package asks for, with what these extras add."""
    optional = package.get("optional-dependencies", {})
    return [*package.get("dependencies", []), *(d for e in extras for d in optional.get(e, []))]


def test_each_need_of_a_locked_package_is_locked_with_its_extras():
    """pip looks for `google-auth[requests]` apart from `google-auth`, and takes the newest."""
    missing = []
    for package in LOCKED:
        if package["name"] not in PINNED:
            continue
        for needed in needs(package, NAMED[package["name"]]):
            asked = needed["name"], set(needed.get("extra", []))
            if asked[0] not in PINNED or not asked[1] <= NAMED[asked[0]]:
                missing.append((package["name"], needed))
    assert missing == []
    assert NAMED["google-auth"] == {"requests"}


def test_each_installed_package_agrees_with_the_lock():
    """By the packages' own metadata, which pip reads: what they ask for is what the lock fixes."""
    wrong = []
    for name, version in PINNED.items():
        try:
            asked = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # of another system or Python
            continue
        for need in map(Requirement, asked):
            if any(need.marker is None or need.marker.evaluate({"extra": extra})
                   for extra in {*NAMED[name], ""}):
                key = re.sub(r"[-_.]+", "-", need.name).lower()
                if key not in PINNED or not need.specifier.contains(PINNED[key], prereleases=True) \
                        or not need.extras <= NAMED[key]:
                    wrong.append(f"{name} {version}: {need}")
    assert wrong == []


def licence(name: str) -> str:
    told = metadata.metadata(name)
    classes = [c.rpartition(" :: ")[2] for c in told.get_all("Classifier") or ()
               if c.startswith("License ::")]
    return told.get("License-Expression") or "; ".join(classes) or told.get("License", "")


def licences() -> list[list[str]]:
    """(package, licence) of what is locked and installed here."""
    rows = []
    for name in sorted(PINNED):
        try:
            rows.append([name, " ".join(licence(name).split())])
        except metadata.PackageNotFoundError:  # of another system or Python
            continue
    return rows


def write() -> None:
    """The committed list anew, by `make lock`."""
    with LIST.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([["package", "licence"], *licences()])


def test_the_committed_list_of_licences_is_that_of_the_lock():
    head, *rows = csv.reader(LIST.read_text().splitlines())
    assert head == ["package", "licence"] and {name for name, _ in rows} <= set(PINNED)
    assert [row for row in licences() if row not in rows] == []


def test_each_licence_lets_the_package_be_used_under_apache():
    """Those of docutils' files that are GPL are not imported; MPL binds only its own files."""
    assert [row for row in licences() if not FINE.search(row[1])] == []


def test_the_program_under_the_gpl_is_an_extra_for_labels_that_scoring_never_imports():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert any(d.startswith("imageio-ffmpeg") for d in project["optional-dependencies"]["labels"])
    assert not any(d.startswith("imageio") for d in project["dependencies"])
    importing = [p.name for p in (ROOT / "cpllm").rglob("*.py")
                 if re.search(r"^\s*(from|import) imageio_ffmpeg", p.read_text(), re.MULTILINE)]
    assert importing == ["labels.py"]


def test_no_key_is_committed():
    found = {name: hit[0][:12] for name, text in texts().items() if (hit := KEYS.search(text))}
    assert found == {}


@pytest.mark.parametrize("key", ["AIza" + "x" * 35, "sk-" + "a1" * 12, "ghp_" + "A" * 36,
                                 "-----BEGIN RSA PRIVATE" + " KEY-----"])
def test_keys_are_recognised(key):
    assert KEYS.search(f"token: {key}\n")
