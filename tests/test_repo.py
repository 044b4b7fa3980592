"""Promises of the repository as a whole: what is committed, and what README and CI say."""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from cpllm.sweep import NOTEBOOKS, ROOT

PUBLIC = {"pypi.org", "files.pythonhosted.org"}
MACHINE = re.compile(r"(?<![\w.~-])/(?:root|home|Users|work|opt|mnt|tmp)/[a-zA-Z]")
INDEX = re.compile(r"https?://(?!pypi\.org/)[^\s/\"']+/(?:[\w.+-]+/)*simple\b")
"""Another package index than the public one."""


def tracked() -> list[Path]:
    """Committed files; those about to be are not ours to judge."""
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout here: what is committed can't be listed")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True,
                           check=True).stdout.split("\0")
    return [ROOT / n for n in names if n and (ROOT / n).is_file()]


def texts() -> dict[str, str]:
    """Committed text files but the locks and what others wrote."""
    found = {}
    for path in tracked():
        name = str(path.relative_to(ROOT))
        if path.suffix != ".lock" and "/vendor/" not in name:
            try:
                found[name] = path.read_text()
            except UnicodeDecodeError:
                continue
    return found


def problems(text: str, home: str = str(Path.home()), host: str | None = None,
             user: str = getpass.getuser()) -> list[str]:
    """Absolute paths and indexes of a machine, this one's home folder and names, in a text.

    A name of letters alone is a word, which any text may hold.
    """
    host = host or socket.gethostname()
    found = [text[max(0, m.start() - 20):m.end() + 20]
             for kind in (MACHINE, INDEX) for m in kind.finditer(text)]
    if len(home) > 1 and re.search(rf"(?<![\w.~-]){re.escape(home)}(?!\w)", text):
        found.append(home)
    return found + [name for name in (host, user) if not name.isalpha()
                    and re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text)]


@pytest.mark.parametrize("name", ["uv.lock", "requirements.lock"])
def test_lock_names_only_the_public_index(name):
    text = (ROOT / name).read_text()
    assert set(re.findall(r"https?://([^/\s\"']+)", text)) <= PUBLIC
    assert "file:" not in text and "@ " not in text and problems(text) == []


def test_requirements_lock_is_hashed_and_fixes_every_direct_dependency():
    text = (ROOT / "requirements.lock").read_text()
    fixed = dict(re.findall(r"^([a-z0-9._-]+)(?:\[.*?\])?==(\S+)", text, re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    direct = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"],
              *project["project"]["optional-dependencies"]["labels"]]
    names = {re.match(r"[\w.-]+", d)[0].lower() for d in direct}
    assert names <= set(fixed)
    assert "setuptools" in fixed, "make setup builds the package without another download"
    assert text.count("--hash=sha256:") >= len(fixed)
    locked = {p["name"]: p.get("version") for p in
              tomllib.loads((ROOT / "uv.lock").read_text())["package"]}
    assert {n: locked[n] for n in names} == {n: fixed[n] for n in names}


def test_each_dependency_states_its_reason():
    text = (ROOT / "pyproject.toml").read_text()
    project = tomllib.loads(text)
    extras = project["project"]["optional-dependencies"]
    named = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"],
             *(d for wanted in extras.values() for d in wanted)]
    assert len(named) > 20
    bare = [d for d in named if not re.search(rf'"{re.escape(d)}"[\],]*\s+# \w+', text)]
    assert bare == []


def test_no_machine_path_or_host_name_is_committed():
    bad = {name: found for name, text in texts().items()
           if (found := problems(text))}
    assert bad == {}


def test_machine_paths_are_recognised():
    root = "/" + "root"
    assert problems(f"see {root}/a", "/x", "h") and problems(f"'{root}/ann/b'", "/x", "h")
    assert problems("at /srv/ann/b", "/srv/ann", "h")
    assert problems("on builder-17 today", "/x", "builder-17")
    assert problems("made by ann_7", "/x", "h", "ann_7")
    assert problems("from http" + f"://mirror.lan{root}/py/simple", "/x", "h")
    assert problems("in /" + "tmp/a.csv", "/x", "h")
    assert not problems("https://pypi.org/simple and a simple /tmp", "/x", "h")
    assert not problems(f"~{root}/a, ..{root}/a, https://a.org{root}/x and {root}", "/x", "h")


def test_notebook_sources_have_no_outputs():
    sources = sorted((ROOT / "notebooks").glob("*.ipynb"))
    for path in sources:
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] == "code":
                assert not cell["outputs"] and cell["execution_count"] is None, path.name
    assert {p.stem for p in sources} >= set(NOTEBOOKS)


def test_each_chapter_is_in_the_contents():
    contents = (ROOT / "book" / "_toc.yml").read_text()
    listed = re.findall(r"chapters/(\w+)", contents)
    assert listed == list(NOTEBOOKS)


def test_tree_is_small():
    assert 3e6 < sum(p.stat().st_size for p in tracked()) < 30e6


def test_ci_runs_the_tests_as_the_readme_says():
    readme, entry = (ROOT / "README.md").read_text(), ROOT / ".ci" / "run"
    for command in ("make reproduce", "make test", "make book"):
        assert re.search(rf"^{command}\b", readme, re.MULTILINE)
    assert re.search(r"^make test\b", entry.read_text(), re.MULTILINE)
    assert entry.stat().st_mode & stat.S_IXUSR


def test_readme_names_only_files_that_exist():
    named = re.findall(r"`((?:cpllm|book|results|data_manifests)/[\w./]+\.\w+)`",
                       (ROOT / "README.md").read_text())
    assert len(named) > 10
    assert [n for n in named if not (ROOT / n).exists()] == []


def test_make_help_lists_every_target():
    makefile = (ROOT / "Makefile").read_text()
    phony = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split())
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True,
                           env={**os.environ, "MAKEFLAGS": ""}).stdout
    assert set(re.findall(r"^  make (\S+)", shown, re.MULTILINE)) == phony


@pytest.mark.parametrize(("trick", "said"), [
    ("sys.version_info = (3, 9, 2); sys.version = '3.9.2 (old)'",
     r"Python 3\.11 or newer is needed; .*python is 3\.9\.2"),
    ("sys.modules['ensurepip'] = None", r"lacks its venv module .*apt install python3-venv"),
    (None, r"was not found: sudo apt install python3"),
], ids=["too old", "without venv", "without Python"])
def test_setup_says_what_is_missing(tmp_path, trick, said):
    fake = tmp_path / "python"
    if trick:
        fake.write_text(f"#!/bin/sh\nexec {sys.executable} -c \"import sys; {trick}; "
                        "exec(sys.argv[1])\" \"$2\"\n")
        fake.chmod(0o755)
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    run = subprocess.run(["make", "setup", f"PYTHON={fake}"], cwd=tmp_path, capture_output=True,
                         text=True, env={**os.environ, "MAKEFLAGS": ""})
    assert run.returncode and re.search(said, run.stderr)
    assert not (tmp_path / ".venv").exists()


def test_environment_yml_only_points_at_the_lock():
    wanted = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    *plain, pip = wanted
    assert {re.match(r"\w+", name)[0] for name in plain} == {"python", "pip"}
    assert pip == {"pip": ["-r requirements.lock"]}


def test_citation_names_paper_and_software():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["type"] == "software" and cited["license"] == "Apache-2.0"
    assert cited["preferred-citation"]["title"].startswith("CP-LLM: Context and Pixel Aware")
