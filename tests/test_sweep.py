"""Notebooks run whole, with provenance, without this machine's names, and only when needed."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from cpllm import records, sweep

PARAMETERS = 'profile = "smoke"\nseed = 0'


def write(path: Path, *cells: str, parameters: str = PARAMETERS) -> Path:
    """A notebook source: a title, its parameters cell, then `cells`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    nbformat.write(
        new_notebook(cells=[new_markdown_cell("# Title"), first, *map(new_code_cell, cells)]), path)
    return path


def as_executed(source: Path, parameters: dict, inputs=()) -> nbformat.NotebookNode:
    """What `run_notebook` leaves, without its outputs."""
    notebook = nbformat.read(source, as_version=4)
    given = "\n".join(f"{k} = {v!r}" for k, v in parameters.items())
    injected = new_code_cell(given, metadata={"tags": ["injected-parameters"]})
    notebook.cells += [injected] * bool(parameters)
    notebook.metadata["cpllm"] = sweep.provenance(source, parameters, inputs)
    return notebook


@pytest.fixture(scope="module")
def executed(tmp_path_factory) -> Path:
    """A notebook that prints what must not be published, executed with seed 7."""
    folder = tmp_path_factory.mktemp("executed")
    source = write(
        folder / "notebooks" / "a.ipynb",
        "import pathlib, socket, sys, warnings, cpllm\n"
        "print(pathlib.Path(cpllm.__file__).parent / 'x.csv', pathlib.Path.home(), sys.prefix)\n"
        "print('on', socket.gethostname())\n"
        "print('here', pathlib.Path.cwd().name)\n"
        "warnings.warn('careful')",
        "seed * 6",
    )
    (folder / "input.csv").write_text("value\n1\n")
    sweep.run_notebook(
        source, folder / "out" / "a.ipynb", {"seed": 7}, [folder / "input.csv"])
    return folder


def test_output_has_results_and_provenance(executed):
    notebook = nbformat.read(executed / "out" / "a.ipynb", as_version=4)
    made = notebook.metadata["cpllm"]
    assert notebook.cells[-1].outputs[0].data["text/plain"] == "42"
    assert made["source"] == "a.ipynb"
    assert made["parameters"] == {"seed": 7}
    assert made["duration_s"] > 0
    assert len(made["fingerprint"]) == 64
    assert {"commit", "dirty", "started", "device", "versions"} <= set(made)
    assert [p.name for p in (executed / "out").iterdir()] == ["a.ipynb"]


def test_cells_run_in_the_notebooks_folder(executed):
    assert "here notebooks" in (executed / "out" / "a.ipynb").read_text()


def test_no_path_or_host_name_is_published(executed):
    text = (executed / "out" / "a.ipynb").read_text()
    for secret in (str(sweep.ROOT), str(Path.home()), str(executed), "/ipykernel_"):
        assert secret not in text
    assert f"on {socket.gethostname()}" not in text or socket.gethostname().isalpha()
    assert "./cpllm/x.csv" in text and "careful" in text


def test_scrub_replaces_the_host_name_as_a_word(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "node-7")
    assert sweep.scrub(["on node-7:", "node-77"]) == ["on <host>:", "node-77"]
    monkeypatch.setattr(socket, "gethostname", lambda: "train")
    assert sweep.scrub("train") == "train"


def test_scrub_hides_the_keys_of_the_environment(monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", "a-made-up.key")
    monkeypatch.setenv("EMPTY_TOKEN", "")
    assert sweep.scrub({"text": ["key=a-made-up.key&"]}) == {"text": ["key=<key>&"]}


def test_scrub_leaves_images_and_longer_names_alone():
    inside = f"{sweep.ROOT}/a.csv and {sweep.ROOT}-other/a.csv"
    assert sweep.scrub(inside) == f"./a.csv and {sweep.scrub(f'{sweep.ROOT}-other')}/a.csv"
    picture = {"data": {"image/png": str(sweep.ROOT), "text/plain": str(sweep.ROOT)}}
    assert sweep.scrub(picture)["data"] == {"image/png": str(sweep.ROOT), "text/plain": "."}


def test_a_redrawn_bar_leaves_its_last_line_alone():
    def said(text, name="stderr"):
        return {"output_type": "stream", "name": name, "text": text}

    bar = [said("\x1b[?25l"), said("\r\x1b[2K\x1b[32m1/2\x1b[0m "), said("\r2/2\nend\r\n\x1b[?25h")]
    table = {"output_type": "execute_result", "data": {}}
    assert sweep.settle([*bar, table, said(["a\n", "b"], "stdout"), said("\x1b[0m")]) == [
        said("2/2\nend\n"), table, said("a\nb", "stdout")]


def test_up_to_date_follows_contents_not_times(executed):
    source, output = executed / "notebooks" / "a.ipynb", executed / "out" / "a.ipynb"
    data = executed / "input.csv"
    assert sweep.up_to_date(output, source, {"seed": 7}, [data])
    data.write_text("value\n1\n")
    assert sweep.up_to_date(output, source, {"seed": 7}, [data])
    assert not sweep.up_to_date(output, source, {"seed": 8}, [data])
    assert not sweep.up_to_date(output, source, {"seed": 7}, [])
    assert not sweep.up_to_date(executed / "out" / "none.ipynb", source, {"seed": 7}, [data])
    data.write_text("value\n2\n")
    assert not sweep.up_to_date(output, source, {"seed": 7}, [data])
    data.write_text("value\n1\n")
    edited = write(executed / "edited" / "a.ipynb", "seed * 5")
    assert not sweep.up_to_date(output, edited, {"seed": 7}, [data])


@pytest.mark.parametrize("change", [
    lambda cells: cells[2].update(source='# Parameters\nseed = 4 + 4'),
    lambda cells: cells[1].update(source=f"{PARAMETERS}\ndraws = 400"),
    lambda cells: cells[-1].update(source="seed * 5"),
    lambda cells: cells.pop(2),
], ids=["value", "parameter", "cell", "without"])
def test_a_notebook_changed_by_hand_has_no_provenance(executed, tmp_path, change):
    output = executed / "out" / "a.ipynb"
    notebook = nbformat.read(output, as_version=4)
    again = tmp_path / "a.ipynb"
    nbformat.write(notebook, again)
    assert sweep.provenance_of(sweep.read(again))["parameters"] == {"seed": 7}
    change(notebook.cells)
    nbformat.write(notebook, again)
    assert sweep.provenance_of(sweep.read(again)) == {}
    inputs = executed / "notebooks" / "a.ipynb", {"seed": 7}, [executed / "input.csv"]
    assert sweep.up_to_date(output, *inputs) and not sweep.up_to_date(again, *inputs)


def test_parameters_are_those_that_ran():
    cells = [new_code_cell("%time\nprofile = 'smoke'\n!ls\ndraws = 2000",
                           metadata={"tags": ["parameters"]}),
             new_code_cell("# Parameters\nprofile = 'pocket'\nseed = int('7')",
                           metadata={"tags": ["injected-parameters"]})]
    assert sweep.parameters_of(cells) == {"profile": "pocket", "draws": 2000, "seed": "int('7')"}


def test_unknown_parameter_is_refused_before_anything_runs(tmp_path):
    source = write(tmp_path / "a.ipynb", f"open({str(tmp_path / 'ran')!r}, 'w')")
    refused = r"a\.ipynb: unknown parameter sede.*profile, seed"
    with pytest.raises(sweep.NotebookError, match=refused):
        sweep.run_notebook(source, tmp_path / "out" / "a.ipynb", {"sede": 1})
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


def test_failure_names_the_cell_and_leaves_no_final_file(tmp_path):
    source = write(tmp_path / "a.ipynb", "print('before')", "broken = 1 / 0")
    output = tmp_path / "out" / "a.ipynb"
    named = r"(?s)a\.ipynb.*broken = 1 / 0.*ZeroDivisionError"
    with pytest.raises(sweep.NotebookError, match=named):
        sweep.run_notebook(source, output, {"seed": 1})
    assert [p.name for p in output.parent.iterdir()] == ["a.failed.ipynb"]
    assert "before" in (output.parent / "a.failed.ipynb").read_text()


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

    monkeypatch.setattr(sweep, "run_notebook", execute)
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
