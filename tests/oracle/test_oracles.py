"""Our towers against transformers' torch classes: `make test-oracles`."""

from pathlib import Path

import numpy as np
import parity
import pytest
from safetensors.numpy import load_file

from cpllm import config

pytest.importorskip("torch", reason="make test-oracles installs it")
import make_golden

GOLDEN = Path(__file__).parents[1] / "golden"
SIZES = {"siglip": {"width": 32, "layers": 1}, "videoprism": {"width": 24, "layers": 1},
         "gemma": {"width": 24, "layers": 3}, "sequence": {"width": 24, "layers": 3},
         "paligemma": {"width": 24, "layers": 3}}  # fmt: skip


@pytest.mark.parametrize("name", parity.ORACLES)
def test_our_results_equal_torch_at_other_sizes(name, tmp_path):
    make_golden.make(name, tmp_path, seed=7, **SIZES[name])
    found = parity.differences(name, tmp_path)
    assert max(found.values()) <= 1e-5, found


@pytest.mark.slow
def test_siglip_at_its_real_size_equals_torch(tmp_path):
    c = config.SO400M_448
    sizes = {"width": c.width, "layers": c.layers, "mlp": c.mlp, "heads": c.heads}
    make_golden.make("siglip", tmp_path, 0, **sizes, side=c.image, patch=c.patch, batch=1)
    assert parity.differences("siglip", tmp_path)["hidden"] <= 1e-5


@pytest.mark.parametrize("name", parity.ORACLES)
def test_the_script_makes_the_committed_golden_files(name, tmp_path):
    make_golden.make(name, tmp_path, seed=0)
    for file in ("model.safetensors", "expected.safetensors"):
        new, old = (load_file(folder / file) for folder in (tmp_path, GOLDEN / name))
        assert new.keys() == old.keys()
        for key in new:
            np.testing.assert_allclose(new[key], old[key], atol=1e-5, err_msg=key)
