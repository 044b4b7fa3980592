"""Hostile inputs but videos: refused in one line with the row, column, key or tensor named."""

import io
import json
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from cpllm import cli, config, evaluation, grid, records, sweep
from cpllm.data import manifests
from cpllm.judge import load
from cpllm.model import imports

MADE = sweep.ROOT / "data_manifests" / "pocket" / "validation.csv"
CALLED = []


class Bomb:
    """What a pickle or a YAML tag would call."""

    def __reduce__(self):
        return CALLED.append, ("called",)


@pytest.fixture
def lines():
    """The first rows of a committed manifest, as text."""
    return MADE.read_text().splitlines()[:6]


def changed(lines, row, column, value):
    """The manifest with one cell written over; row as an editor counts."""
    at, cells = lines[0].split(","), lines[row - 1].split(",")
    cells[at.index(column)] = value
    return [*lines[:row - 1], ",".join(cells), *lines[row:]]


@pytest.mark.parametrize(("column", "value"), [
    ("video", "../../etc/passwd"), ("video", "-rf"), ("video", ""), ("video", "a/b"),
    ("proxy", "nan"),
    ("proxy", "inf"), ("proxy", "-1"), ("proxy", "100.1"), ("proxy", "=1+1"), ("crf", "31.5"),
    ("crf", "0x1f"), ("width", "1e400"), ("height", "0"), ("frames", "two"), ("split", "Train"),
    ("role", "none"), ("sha256", "xyz")])
def test_a_wrong_cell_of_a_manifest_is_refused_with_its_row_and_column(lines, tmp_path, column,
                                                                       value):
    path = tmp_path / "manifest.csv"
    path.write_text("\n".join(changed(lines, 4, column, value)))
    with pytest.raises(manifests.ManifestError, match=rf"manifest.csv: row 4 .*column {column}:"):
        manifests.read(path)


@pytest.mark.parametrize(("change", "words"), [
    (lambda t: [*t, t[2]], r"row 7 .*column video: expected a name that occurs once"),
    (lambda t: [t[0].replace("proxy,", "prxy,"), *t[1:]], "missing columns: proxy; unknown: prxy"),
    (lambda t: [t[0] + ",video", *(row + ",x" for row in t[1:])], r"unknown: video\.1"),
    (lambda t: [*t[:3], t[3] + ",extra,cells"], "cannot be read as CSV"),
    (lambda t: [], "cannot be read as CSV"), (lambda t: ["\0" * 99], "missing columns"),
    (lambda t: ['"' + t[0], *t[1:]], "CSV|columns")])
def test_a_manifest_of_another_form_is_refused(lines, tmp_path, change, words):
    path = tmp_path / "manifest.csv"
    path.write_text("\n".join(change(lines)))
    with pytest.raises(manifests.ManifestError, match=words):
        manifests.read(path)


def test_a_manifest_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "m.csv").write_bytes(np.random.default_rng(0).bytes(4000))
    with pytest.raises(manifests.ManifestError, match=r"m\.csv"):
        manifests.read(tmp_path / "m.csv")


PREDICTIONS = "video,mos,prediction,source\n" + "".join(f"v{i},{i},{i},s{i}\n" for i in range(9))


@pytest.mark.parametrize(("old", "new", "words"), [
    ("v3,3,3", "v3,3,nan", "column prediction: 1 of 9 rows are blank or no number .*v3"),
    ("v3,3,3", "v3,inf,3", "column mos: 1 of 9 rows are blank or no number .*v3"),
    ("v3,3,3", "v3,3,=cmd()", "column prediction: 1 of 9 rows are blank or no number .*v3"),
    ("v3,3,3", ",3,3", "column video: 1 of 9 rows are blank"), ("v3,3,3", "v4,3,3", "v4"),
    ("mos", "score", "no column mos; has video, score"), (PREDICTIONS, "", "cannot be read as CSV"),
    (PREDICTIONS, "\x89PNG\0\0", "p.csv")])
def test_wrong_predictions_are_refused_with_column_and_video(tmp_path, capsys, old, new, words):
    path = tmp_path / "p.csv"
    path.write_text(PREDICTIONS.replace(old, new, 1))
    with pytest.raises(ValueError, match=words):
        evaluation.read(path, prediction="prediction", mos="mos", source="source")
    asked = ["--prediction", "prediction", "--mos", "mos", "--source", "source"]
    assert cli.main(["evaluate", str(path), *asked]) == 2
    assert capsys.readouterr().err.startswith(f"error: {path}: ")


ROWS = "about: x\nrows:\n  plain: {}\n"


@pytest.mark.parametrize(("text", "words"), [
    ("about: !!python/object/apply:tests.test_refusals.CALLED.append [1]", "line 1.*python/object"),
    ("about: !!python/name:os.system", "python/name"), ("about: [", "line 1"), ("", "named values"),
    ("- a\n- b", "named values"), ("abut: x", "unknown abut"), ("rows: {}", "missing about"),
    ("about: x\nrows:\n  ../../out: {}", r"run '\.\./\.\./out-s0'"),
    ("about: x\nrows:\n  /out: {}", "run '/out-s0'"),
    ("about: x\nrows: [1]", "grid.rows: expected dict"),
    ("about: x\nrows:\n  a: {steps: many}", "config.train.steps: expected int, got 'many'"),
    ("about: x\nrows:\n  a: {steps: 1.5}", "config.train.steps: expected int, got 1.5"),
    ("about: x\nrows:\n  a: {augment: 1}", "config.train.augment: expected bool, got 1"),
    ("about: x\nrows:\n  a: {data.crfs: [1, x]}", r"config.data.crfs\[1\]: expected int, got 'x'"),
    ("about: x\nrows:\n  a: {model.kind: [__import__]}", "config.model.kind: expected str"),
    ("about: x\nrows:\n  a: {__class__: 1}", "unknown '__class__'"),
    ("about: x\nrecipe: eval\nrows:\n  a: {}", "recipe: expected one of"),
    ("about: x\nrows:\n  a: {}\ninclude: [../../../etc/passwd]", "no grid"),
    (ROWS + "axes:\n" + "".join(f"  a{i}: {[*range(10)]}\n" for i in range(9)), "1,000,000,000"),
])
def test_a_hostile_grid_is_refused_by_name_and_builds_no_object(tmp_path, text, words):
    folder = tmp_path / "notebooks" / "sweeps"
    folder.mkdir(parents=True)
    (folder / "bad.yaml").write_text(text)
    with pytest.raises(grid.GridError, match=words):
        grid.read("bad", "smoke", tmp_path)
    assert not CALLED


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "", ".", "-x", "a\nb", "x\0"])
def test_a_run_cannot_leave_its_folder(tmp_path, name):
    for place in (lambda: records.run_folder(tmp_path, "smoke", name),
                  lambda: records.checkpoints(tmp_path, name)):
        with pytest.raises(ValueError, match="expected a name of letters"):
            place()


@pytest.mark.parametrize("values", [[], "x", None, 3])
def test_a_configuration_that_is_none_is_refused(values):
    with pytest.raises(ValueError, match="config: expected named values"):
        config.from_dict(values)


def test_committed_configurations_still_fit():
    known = sorted((sweep.RESULTS / "pocket" / "runs").glob("*/config.json"))
    trained = [path for path in known if "model" in records.read_json(path)]
    assert len(trained) > 20
    for path in trained:
        config.from_dict(records.read_json(path))


def rewritten(weights, path, change=lambda t: t, **metadata):
    with safe_open(weights, "numpy") as file:
        kept = file.metadata()
    save_file(change(load_file(weights)), path, kept | metadata)
    return path


def spoilt(value, kind=None):
    """Tensors of which project_low.bias holds a value, or is of another kind."""
    def change(tensors):
        x = tensors["project_low.bias"].copy()
        x[0] = value
        return tensors | {"project_low.bias": x if kind is None else x.astype(kind)}
    return change


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(("change", "metadata", "words"), [
    (spoilt(np.nan), {}, "finite floats, came others in project_low.bias"),
    (spoilt(np.inf), {}, "finite floats, came others in project_low.bias"),
    (spoilt(1, np.int64), {}, "finite floats, came others in project_low.bias"),
    (dict, {"config": "{"}, "x.safetensors: "), (dict, {"config": "[]"}, "expected CP-LLM weights"),
    (dict, {"config": DEEP}, "x.safetensors: "), (dict, {"config": '{"profile": NaN}'}, "missing"),
    (dict, {"tokenizer": "{}"}, "expected CP-LLM weights"),
    (dict, {"tokenizer": ""}, "expected CP-LLM weights"),
])
def test_weights_that_would_score_wrongly_are_refused_by_name(weights, tmp_path, change, metadata,
                                                              words):
    path = rewritten(weights, tmp_path / "x.safetensors", change, **metadata)
    with pytest.raises(ValueError, match=words) as caught:
        load(path)
    assert str(path) in str(caught.value)


def huge(**changes):
    cfg = config.smoke().to_dict()
    for key, value in changes.items():
        cfg["model"]["high"][key] = value
    return json.dumps(cfg)


@pytest.mark.parametrize("changes", [{"width": 2**40}, {"layers": 10**9}, {"mlp": 10**12},
                                     {"patch": 0}, {"heads": 0}, {"width": -1}])
def test_weights_whose_configuration_asks_for_any_size_are_refused(weights, tmp_path, changes):
    path = rewritten(weights, tmp_path / "x.safetensors", config=huge(**changes))
    with pytest.raises(ValueError, match=r"x\.safetensors"):
        load(path)


def header(size: int, text: bytes = b"{}") -> bytes:
    return struct.pack("<Q", size) + text


TENSOR = b'{"a": {"dtype": "F32", "shape": [%d], "data_offsets": [0, %d]}}'


@pytest.mark.parametrize("content", [
    b"", b"\0" * 8, header(2**63), header(2**40), header(200_000_000), header(2, b"[]"),
    *(header(len(t), t) for t in (TENSOR % (2**62, 2**64 - 1), TENSOR % (1, 4), TENSOR % (-1, 4),
                                  b"{" * 5000, b'{"a": 1}')),
    pickle.dumps(Bomb())], ids=range(12))
def test_safetensors_with_lying_headers_are_refused(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    for read in (load, imports.readers):
        with pytest.raises(ValueError, match=r"x\.safetensors: expected"):
            read(path)
    assert not CALLED


def test_weights_that_are_no_file_are_refused_without_waiting(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.safetensors")
    for path in (tmp_path / "pipe.safetensors", tmp_path, tmp_path / "none.safetensors"):
        assert cli.main(["score", "x.mp4", "--weights", str(path)]) == 2
        assert capsys.readouterr().err.startswith(f"error: {path}: expected CP-LLM weights")


def npz(path, **members):
    with zipfile.ZipFile(path, "w") as file:
        for name, value in members.items():
            held = io.BytesIO()
            if isinstance(value, bytes):
                held.write(value)
            else:
                np.lib.format.write_array(held, value, allow_pickle=True)
            file.writestr(f"{name}.npy", held.getvalue())
    return path


@pytest.mark.parametrize("bad", [
    np.array([Bomb()], object), pickle.dumps(Bomb()), b"", b"\x93NUMPY\x01\0\xff\xff{'shape':",
    b"\x93NUMPY\x01\0v\0%-117s\n" % b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d,)}"
    % 10**13], ids=range(5))
def test_an_npz_member_that_is_no_array_is_refused_by_name_and_never_unpickled(tmp_path, bad):
    found = imports.readers(npz(tmp_path / "x.npz", good=np.ones(3), params_bad=bad))
    assert found["good"]().sum() == 3
    with pytest.raises(ValueError, match=r"x\.npz: params_bad: expected an array"):
        found["params_bad"]()
    assert not CALLED


@pytest.mark.parametrize("content", [b"", b"PK\3\4broken", pickle.dumps(Bomb()), b"\0" * 99])
def test_an_npz_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npz: expected arrays in npz form"):
        imports.readers(tmp_path / "x.npz")
    np.save(tmp_path / "y.npy", np.ones(3))
    (tmp_path / "y.npy").rename(tmp_path / "y.npz")
    with pytest.raises(ValueError, match="came one array"):
        imports.readers(tmp_path / "y.npz")
    assert not CALLED


def test_shards_cannot_point_out_of_their_folder(tmp_path):
    (tmp_path / "in").mkdir()
    save_file({"secret": np.ones(1)}, tmp_path / "outside.safetensors")
    (tmp_path / "in" / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"secret": "../outside.safetensors"}}))
    with pytest.raises((ValueError, OSError), match=r"in/outside\.safetensors"):
        imports.readers(tmp_path / "in")


@pytest.mark.parametrize("words", [
    ["train", "--run-id", "../../x", "--profile", "smoke"], ["benchmark", "../x"],
    ["sweep", "../../x"], ["manifest", "build", "../x", "--root", "."], ["lint-ladder", "nowhere"],
    ["annotate", "nowhere.csv"], ["evaluate", "nowhere.csv", "--prediction", "p", "--mos", "m"],
    ["import-weights", "--videoprism", "no.npz", "--paligemma", "no", "--out", "o.safetensors"]])
def test_every_verb_refuses_what_is_not_there_in_one_line(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and len(err.splitlines()) == 1, err
    assert not list(tmp_path.iterdir())
