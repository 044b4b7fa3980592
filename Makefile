# `make help` lists the targets. Each does its own set-up in .venv; nothing else is installed.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Large pages for XLA's buffers: a training step spends a fifth of its time on page faults else.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
MAKEFLAGS += --no-builtin-rules --no-print-directory

PYTHON ?= python3
PROFILE ?= pocket
FRESH ?=
GRID ?= table
PORT ?= 8000
BIN := .venv/bin
LOCKED := .venv/.locked
READY := .venv/.ready
# The book shows the profile named on the command line; else pocket, or smoke where only that has run.
BOOK_PROFILE = $(if $(filter file,$(origin PROFILE)),auto,$(PROFILE))
fresh := $(if $(filter-out 0 no false,$(FRESH)),--fresh)

define CHECK_PYTHON
import sys
found = sys.version.split()[0]
if sys.version_info < (3, 11):
    sys.exit(f"Python 3.11 or newer is needed; $(PYTHON) is {found}. Install one and name it: make setup PYTHON=python3.12")
try:
    import ensurepip, venv
except ImportError:
    sys.exit(f"Python {found} lacks its venv module (ensurepip): sudo apt install python3-venv, then make again")
endef
export CHECK_PYTHON

# pip, asked for `-r requirements.lock` alone, looks for a package with its extras apart from the
# one without, and then takes the newest release, which has no hash here. So the lock names both.
define WITH_EXTRAS
import pathlib, re, tomllib
extras = {}
for package in tomllib.loads(pathlib.Path("uv.lock").read_text())["package"]:
    for needed in package.get("dependencies", []):
        extras.setdefault(needed["name"], set()).update(needed.get("extra", []))
def named(found):
    wanted = ",".join(sorted(extras.get(found[1], ())))
    return f"{found[1]}[{wanted}]==" if wanted else found[0]
lock = pathlib.Path("requirements.lock")
lock.write_text(re.sub(r"(?m)^([a-z0-9._-]+)==", named, lock.read_text()))
endef
export WITH_EXTRAS

define ENOUGH
import json, sys
totals = json.load(sys.stdin)["totals"]
shares = [totals[f"percent_{kind}_covered"] for kind in ("statements", "branches")]
print("lines {:.1f}%, branches {:.1f}%; 90% of each are expected".format(*shares))
sys.exit(min(shares) < 90)
endef
export ENOUGH

.PHONY: help setup reproduce sweep book test coverage test-slow test-oracles verify lint serve pdf data labels benchmark train fit lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "  variables: PROFILE=smoke|pocket|paper (now $(PROFILE)), FRESH=1 trains anew, GRID=$(GRID), PYTHON=$(PYTHON), PORT=$(PORT)"

setup: $(READY) ## make .venv from requirements.lock (about 3 minutes, 1.6 GB, once)

pip = PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install $$([ -t 1 ] || echo -q)

$(LOCKED): requirements.lock
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found: sudo apt install python3 python3-venv, or name another: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c "$$CHECK_PYTHON"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@echo "Installing the locked packages into .venv (about 3 minutes, 1.6 GB, once)"
	@$(pip) --no-deps --require-hashes -r requirements.lock
	@touch $@

$(READY): $(LOCKED) pyproject.toml
	@$(pip) --no-build-isolation --no-deps -e .
	@touch $@

reproduce: $(READY) ## redo what is not up to date: data, scores, notebooks, book
	@$(BIN)/cpllm reproduce --profile $(PROFILE) $(fresh)
	@$(BIN)/python book/_ext/build.py $(PROFILE)

sweep: $(READY) ## train the runs that a grid of notebooks/sweeps lacks: GRID=table4
	@$(BIN)/cpllm sweep $(GRID) --profile $(PROFILE) $(fresh)

book: $(READY) ## render what is committed under results/ (a minute at most)
	@$(BIN)/python book/_ext/build.py $(BOOK_PROFILE)

pdf: $(READY) ## the book as one PDF, printed by Chromium: book/_build/cpllm-PROFILE.pdf
	@$(BIN)/python book/_ext/build.py $(BOOK_PROFILE) --pdf

serve: book ## show the book at http://localhost:PORT
	@$(BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory book/_build/html

# loadfile: tests of a file share what they build. Files come in random order, and tests in them.
pytest = -m pytest -n 2 --dist loadfile --no-loadscope-reorder
QUICK = -m "not slow" --ignore tests/oracle

test: $(READY) ## run the tests
	@$(BIN)/python $(pytest) $(QUICK)

coverage: $(READY) ## run the tests and report the lines and branches of cpllm that they reach
	@$(BIN)/coverage erase
	@$(BIN)/coverage run $(pytest) $(QUICK)
	@$(BIN)/coverage combine -q
	@$(BIN)/coverage report
	@$(BIN)/coverage json -q -o - | $(BIN)/python -c "$$ENOUGH"

test-slow: $(READY) ## run the tests that take minutes
	@$(BIN)/python $(pytest) -m slow

# Outside of the lock: only these tests need torch, and its newest build brings gigabytes of CUDA.
test-oracles: $(READY) ## compare the towers with transformers' torch classes (installs torch)
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(pip) torch==2.13.0
	@$(BIN)/python -m pytest -m "not slow" tests/oracle

lint: $(READY) ## ruff, and no outputs in notebook sources
	@$(BIN)/ruff check .
	@find notebooks -name '*.ipynb' -not -path '*/.ipynb_checkpoints/*' -print0 | xargs -0 -r $(BIN)/nbstripout --verify --keep-id

verify: $(READY) ## compute committed tables and scores again; fail where they differ
	@$(BIN)/cpllm verify --profile $(PROFILE)

data: $(READY) ## film the built-in scenes, encode and label them
	@$(BIN)/cpllm data --profile $(PROFILE)

labels: data ## measure the labels again and compare the committed ones
	@$(BIN)/cpllm labels --profile $(PROFILE)

benchmark: $(READY) ## time this machine, which should idle; measure on real clips
	@$(BIN)/cpllm benchmark --profile $(PROFILE)

fit: $(READY) ## train the package's own model anew, three seeds (three and a half hours on 2 cores, its clips included; fetches 137 MB of photographs)
	@$(BIN)/cpllm sweep fit --profile $(PROFILE) --fresh
	@$(BIN)/cpllm calibrate --profile $(PROFILE)

train: $(READY) ## train one model
	@$(BIN)/cpllm train --profile $(PROFILE)

lock: $(READY) ## resolve uv.lock and requirements.lock again (maintainers)
	@$(BIN)/uv --version >/dev/null 2>&1 || $(BIN)/python -m pip install -q uv
	@export UV_DEFAULT_INDEX=https://pypi.org/simple; \
	  $(BIN)/uv lock; \
	  $(BIN)/uv export -q --no-emit-project --extra labels --extra gemini --group dev --no-header -o requirements.lock
	@$(BIN)/python -c "$$WITH_EXTRAS"
	@$(BIN)/python -c 'from tests.test_supply import write; write()'

clean: ## remove what is built again in a minute (keeps .venv, data, results)
	@rm -rf book/_build book/chapters build .coverage* .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
