"""What is measured on a device: here on a processor, at smoke size."""

import threading
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import pytest

from cpllm import config, cost, gpu, records


@pytest.mark.slow
def test_every_kind_of_number_is_measured_and_shown(tmp_path):
    path, only = tmp_path / "gpu.json", "ceilings|SigLIP|step: functions, cu|batch 1, layers"
    gpu.measure("smoke", path, limit=600, only=only, batch=2)
    found = records.read_json(path)
    assert not found["errors"] and set(gpu.SHOWN) <= set(found)
    for part in gpu.SHOWN:
        shown = gpu.table(path, part)
        assert set(shown["device"]) == {jax.devices()[0].device_kind}
        assert (shown.select_dtypes("number") > 0).all(axis=None)
    step = found["step"]["functions, cuBLAS alone"]
    assert step["mfu"] * gpu.PEAK * step["seconds"] == pytest.approx(step["model_flop"])
    assert found["attention"]["SigLIP"]["error"] < 0.01


def test_an_error_is_written_down_and_the_rest_measured(tmp_path):
    todo = gpu.Measured(tmp_path / "gpu.json", 60, "sums|late", {"device": "none"})
    todo.add("sums", "fails", lambda: {"of": 1 / 0})
    todo.add("other", "not asked for", dict)
    todo.program("sums", "of zeros", jax.jit(jnp.sum), (jnp.zeros(3),),
                 lambda compiled: {"of": compiled(jnp.zeros(3))})
    todo.program("late", "option unknown", jax.jit(jnp.sum), (jnp.zeros(3),), dict, {"no_such": 1})
    todo.measure()
    found = records.read_json(tmp_path / "gpu.json")
    assert found["sums"] == {"of zeros": {"of": 0}} and found["device"] == "none"
    assert found["errors"]["sums: fails"] == "ZeroDivisionError: division by zero"
    assert "no_such" in found["errors"]["late: option unknown"]
    assert not {"other", "late"} & set(found)


def test_what_compiles_too_long_is_an_error_by_name(tmp_path, monkeypatch):
    ready = threading.Event()
    endless = Mock(**{"lower.return_value.compile": lambda **_: ready.wait()})
    todo = gpu.Measured(tmp_path / "gpu.json", 0.1, "", {})
    monkeypatch.setattr(todo, "left", lambda: 0.01)
    todo.program("step", "endless", endless, (), dict)
    todo.measure()
    ready.set()
    assert "TimeoutError" in records.read_json(tmp_path / "gpu.json")["errors"]["step: endless"]


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_compared_with_itself_in_float32(masked):
    found = gpu.attention(1, 16, 4, 2, 8, masked)
    assert found["error"] < 0.02 and max(found["gradient_errors"]) < 0.02
    assert found["flops"] > 0 and found["shape"] == [1, 16, 4, 2, 8]


def test_what_was_not_measured_is_shown_as_not_run(tmp_path):
    assert gpu.table(tmp_path / "gpu.json", "step")["device"].tolist() == ["not run"]
    records.write_json(tmp_path / "gpu.json", {"device": "NVIDIA H200", "ceilings": {
        "ceilings": {"product_flops": 7.9e14, "copy_bytes": 4.3e12, "read_bytes": 4.4e12}}})
    shown = gpu.table(tmp_path / "gpu.json", "ceilings")
    assert shown["product, TFLOP/s"].tolist() == pytest.approx([790])
    assert gpu.table(tmp_path / "gpu.json", "step")["device"].tolist() == ["not run"]


def test_an_answer_of_a_made_batch_is_its_last_tokens():
    batch = cost.random_batch(config.smoke(), 20)
    assert {k: x.shape for k, x in batch.items()} == {
        k: x.shape for k, x in cost.batch_shapes(config.smoke()).items()}
    assert (batch["answer"].argmax(1) == config.smoke().train.max_text - 20).all()
    assert batch["answer"][:, -1].all() and (batch["second"] < len(batch["view"])).all()
