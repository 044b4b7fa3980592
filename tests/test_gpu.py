"""What is measured on a device: here on a processor, at smoke size."""

import jax
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
