"""Steps and notebooks are redone when they are out of date, and only then."""

import dataclasses

import nbformat
import pytest

from cpllm import notebooks, records, sweep
from tests.test_notebooks import as_executed, write


def test_a_training_chapter_is_current_while_its_run_is_the_one_it_trained(tmp_path):
    source, given = write(tmp_path / "notebooks" / "20_train.ipynb", "1"), {"run_id": "default-s0"}
    notebook = as_executed(source, given)
    notebook.metadata["cpllm"]["commit"] = "abc"
    home = tmp_path / "results" / "pocket"
    (home / "notebooks").mkdir(parents=True)
    nbformat.write(notebook, home / "notebooks" / source.name)
    record = home / "runs" / "default-s0" / "provenance.json"
    for commit, holds in (("abc", True), ("def", False)):
        records.write_json(record, {"commit": commit})
        assert sweep.current(sweep.NOTEBOOKS["20_train"], "pocket", tmp_path) is holds


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with one step and one notebook, execution replaced by a note of it."""
    write(tmp_path / "notebooks" / "30_table.ipynb", "1")
    (tmp_path / "in.csv").write_text("1")
    ran: list[str] = []

    def build(profile: str, fresh: bool) -> None:
        ran.append("build")
        (tmp_path / "results" / profile).mkdir(parents=True, exist_ok=True)
        (tmp_path / "results" / profile / "made.csv").write_text((tmp_path / "in.csv").read_text())

    def execute(source, output, parameters, inputs=(), tell=None):
        ran.append(source.stem)
        output.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(as_executed(source, parameters, inputs), output)

    monkeypatch.setattr(notebooks, "execute", execute)
    steps = [
        sweep.Step("build data", build, ("in.csv",), ("results/{profile}/made.csv",)),
        sweep.Notebook("30_table", ("results/{profile}/made.csv",)),
    ]
    return tmp_path, steps, ran


def test_second_reproduce_does_nothing(checkout):
    root, steps, ran = checkout
    assert sweep.reproduce("smoke", False, steps, root) == ["build data", "30_table"]
    assert sweep.reproduce("smoke", False, steps, root) == []
    assert ran == ["build", "30_table"]


def test_changed_input_reexecutes_what_depends_on_it(checkout):
    root, steps, _ = checkout
    sweep.reproduce("smoke", False, steps, root)
    (root / "in.csv").write_text("2")
    assert sweep.reproduce("smoke", False, steps, root) == ["build data", "30_table"]
    (root / "results" / "smoke" / "made.csv").write_text("3")
    assert sweep.reproduce("smoke", False, steps, root) == ["30_table"]


def test_missing_output_and_fresh_redo_the_step(checkout):
    root, steps, _ = checkout
    sweep.reproduce("smoke", False, steps, root)
    (root / "results" / "smoke" / "made.csv").unlink()
    assert sweep.reproduce("smoke", False, steps, root) == ["build data", "30_table"]
    assert sweep.reproduce("smoke", True, steps, root) == ["build data", "30_table"]


def test_after_a_step_only_notebooks_that_read_results_run_again(checkout):
    root, steps, _ = checkout
    for name in ("10_data", "40_long"):
        write(root / "notebooks" / f"{name}.ipynb")
    books = [sweep.Notebook("10_data", ("in.csv",)), *steps[1:],
             sweep.Notebook("40_long", ("results/{profile}/made.csv",))]
    sweep.reproduce("smoke", False, [steps[0], *books], root)
    took = root / "results" / "smoke" / "notebooks" / "40_long.ipynb"
    notebook = nbformat.read(took, as_version=4)
    notebook.metadata["cpllm"]["duration_s"] = 60
    nbformat.write(notebook, took)
    assert sweep._duration(took) == 60 > sweep._duration(took.with_name("30_table.ipynb"))
    worked = sweep.Step("works", lambda profile, fresh: None)
    assert sweep.reproduce("smoke", False, [worked, *books], root) == [
        "works", "30_table", "40_long"]


def test_once_means_only_when_missing_or_fresh(checkout):
    root, steps, _ = checkout
    once = [dataclasses.replace(steps[0], once=True)]
    sweep.reproduce("smoke", False, once, root)
    (root / "in.csv").write_text("2")
    assert sweep.reproduce("smoke", False, once, root) == []
    assert sweep.reproduce("smoke", True, once, root) == ["build data"]
    (root / "results" / "smoke" / "made.csv").unlink()
    assert sweep.reproduce("smoke", False, once, root) == ["build data"]


def test_a_step_that_fails_is_not_taken_for_done(checkout):
    root, steps, ran = checkout

    def fails(profile: str, fresh: bool) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        sweep.reproduce("smoke", False, [sweep.Step("fails", fails), *steps], root)
    assert ran == []
    worked = sweep.Step("fails", lambda profile, fresh: ran.append("now"))
    assert "fails" in sweep.reproduce("smoke", False, [worked], root)
