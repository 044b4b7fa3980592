"""What the figures' notebooks share: one scale for all systems, and means with intervals."""

import numpy as np
import pandas as pd
import pytest

from cpllm import figures


@pytest.fixture
def runs() -> pd.DataFrame:
    """A system on a logit scale with two seeds, and a trivial baseline, 20 sources a split."""
    proxy = np.linspace(10, 90, 20)
    logit = np.log(proxy / (100 - proxy))
    made = []
    for system, seed, output in (("random", 0, logit), ("mine", 0, 3 * logit), ("mine", 1, logit)):
        for split in ("validation", "test"):
            names = [f"{split}{i}" for i in range(20)]
            made.append(pd.DataFrame({
                "run": f"{system}-s{seed}", "system": system, "seed": seed, "split": split,
                "source": names, "video": [f"{n}@original" for n in names], "proxy": proxy,
                "prediction": output}))
    return pd.concat(made, ignore_index=True)


def test_outputs_on_any_scale_come_onto_the_proxys(runs):
    found = figures.calibrated(runs)
    assert (found.split == "test").all() and len(found) == 40
    np.testing.assert_allclose(found.prediction, found.proxy, atol=0.5)
    mine = found[found.system == "mine"]
    np.testing.assert_allclose(mine.raw, 2 * np.log(mine.proxy / (100 - mine.proxy)))
    assert mine.scene.iloc[0] == "test0"


def test_trivial_baselines_stand_last_and_systems_without_a_fit_are_left_out(runs):
    flat = runs[runs.system == "mine"].assign(system="flat", run="flat-s0", prediction=1.0)
    unseen = runs[(runs.system == "mine") & (runs.split == "test")].assign(
        system="unseen", run="unseen-s0")
    found = figures.calibrated(pd.concat([runs, flat, unseen]))
    assert list(found.system.unique()) == ["mine", "random"]


def test_nothing_to_calibrate_gives_no_rows_but_all_columns(runs):
    found = figures.calibrated(runs[:0])
    assert found.empty and {"system", "scene", "prediction", "raw"} <= set(found)


def test_mean_is_the_rows_and_its_interval_draws_whole_sources():
    frame = pd.DataFrame({"source": ["a"] * 3 + ["b"], "hit": [True, True, True, False]})
    found = figures.mean(frame, "hit", 500)
    assert found.value == 0.75 and found.n_sources == 2
    assert (found.low, found.high) == (0, 1)
