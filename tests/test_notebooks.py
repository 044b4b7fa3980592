"""Notebooks run whole, with provenance, and without this machine's names."""

from __future__ import annotations

import socket
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from cpllm import notebooks

PARAMETERS = 'profile = "smoke"\nseed = 0'


def write(path: Path, *cells: str, parameters: str = PARAMETERS) -> Path:
    """A notebook source: a title, its parameters cell, then `cells`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    nbformat.write(
        new_notebook(cells=[new_markdown_cell("# Title"), first, *map(new_code_cell, cells)]), path)
    return path


def as_executed(source: Path, parameters: dict, inputs=()) -> nbformat.NotebookNode:
    """What `execute` leaves, without its outputs."""
    notebook = nbformat.read(source, as_version=4)
    given = "\n".join(f"{k} = {v!r}" for k, v in parameters.items())
    injected = new_code_cell(given, metadata={"tags": ["injected-parameters"]})
    notebook.cells += [injected] * bool(parameters)
    notebook.metadata["cpllm"] = notebooks.provenance(source, parameters, inputs)
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
    notebooks.execute(
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
    for secret in (str(notebooks.ROOT), str(Path.home()), str(executed), "/ipykernel_"):
        assert secret not in text
    assert f"on {socket.gethostname()}" not in text or socket.gethostname().isalpha()
    assert "./cpllm/x.csv" in text and "careful" in text


def test_scrub_replaces_the_host_name_as_a_word(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "node-7")
    assert notebooks.scrub(["on node-7:", "node-77"]) == ["on <host>:", "node-77"]
    monkeypatch.setattr(socket, "gethostname", lambda: "train")
    assert notebooks.scrub("train") == "train"


def test_scrub_hides_the_keys_of_the_environment(monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", "a-made-up.key")
    monkeypatch.setenv("EMPTY_TOKEN", "")
    assert notebooks.scrub({"text": ["key=a-made-up.key&"]}) == {"text": ["key=<key>&"]}


def test_scrub_leaves_images_and_longer_names_alone():
    root = str(notebooks.ROOT)
    other = notebooks.scrub(f"{root}-other")
    assert notebooks.scrub(f"{root}/a.csv and {root}-other/a.csv") == f"./a.csv and {other}/a.csv"
    picture = {"data": {"image/png": root, "text/plain": root}}
    assert notebooks.scrub(picture)["data"] == {"image/png": root, "text/plain": "."}


def test_a_redrawn_bar_leaves_its_last_line_alone():
    def said(text, name="stderr"):
        return {"output_type": "stream", "name": name, "text": text}

    bar = [said("\x1b[?25l"), said("\r\x1b[2K\x1b[32m1/2\x1b[0m "), said("\r2/2\nend\r\n\x1b[?25h")]
    table = {"output_type": "execute_result", "data": {}}
    assert notebooks.settle([*bar, table, said(["a\n", "b"], "stdout"), said("\x1b[0m")]) == [
        said("2/2\nend\n"), table, said("a\nb", "stdout")]


def test_up_to_date_follows_contents_not_times(executed):
    source, output = executed / "notebooks" / "a.ipynb", executed / "out" / "a.ipynb"
    data = executed / "input.csv"
    assert notebooks.up_to_date(output, source, {"seed": 7}, [data])
    data.write_text("value\n1\n")
    assert notebooks.up_to_date(output, source, {"seed": 7}, [data])
    assert not notebooks.up_to_date(output, source, {"seed": 8}, [data])
    assert not notebooks.up_to_date(output, source, {"seed": 7}, [])
    assert not notebooks.up_to_date(executed / "out" / "none.ipynb", source, {"seed": 7}, [data])
    data.write_text("value\n2\n")
    assert not notebooks.up_to_date(output, source, {"seed": 7}, [data])
    data.write_text("value\n1\n")
    edited = write(executed / "edited" / "a.ipynb", "seed * 5")
    assert not notebooks.up_to_date(output, edited, {"seed": 7}, [data])


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
    assert notebooks.provenance_of(notebooks.read(again))["parameters"] == {"seed": 7}
    change(notebook.cells)
    nbformat.write(notebook, again)
    assert notebooks.provenance_of(notebooks.read(again)) == {}
    inputs = executed / "notebooks" / "a.ipynb", {"seed": 7}, [executed / "input.csv"]
    assert notebooks.up_to_date(output, *inputs) and not notebooks.up_to_date(again, *inputs)


def test_parameters_are_those_that_ran():
    cells = [new_code_cell("%time\nprofile = 'smoke'\n!ls\ndraws = 2000",
                           metadata={"tags": ["parameters"]}),
             new_code_cell("# Parameters\nprofile = 'pocket'\nseed = int('7')",
                           metadata={"tags": ["injected-parameters"]})]
    assert notebooks.parameters_of(cells) == {
        "profile": "pocket", "draws": 2000, "seed": "int('7')"}


def test_unknown_parameter_is_refused_before_anything_runs(tmp_path):
    source = write(tmp_path / "a.ipynb", f"open({str(tmp_path / 'ran')!r}, 'w')")
    refused = r"a\.ipynb: unknown parameter sede.*profile, seed"
    with pytest.raises(notebooks.NotebookError, match=refused):
        notebooks.execute(source, tmp_path / "out" / "a.ipynb", {"sede": 1})
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


def test_failure_names_the_cell_and_leaves_no_final_file(tmp_path):
    source = write(tmp_path / "a.ipynb", "print('before')", "broken = 1 / 0")
    output = tmp_path / "out" / "a.ipynb"
    named = r"(?s)a\.ipynb.*broken = 1 / 0.*ZeroDivisionError"
    with pytest.raises(notebooks.NotebookError, match=named):
        notebooks.execute(source, output, {"seed": 1})
    assert [p.name for p in output.parent.iterdir()] == ["a.failed.ipynb"]
    assert "before" in (output.parent / "a.failed.ipynb").read_text()
