import json

import numpy as np
import pandas as pd
import pytest

from cpllm import calibrate, metrics


def frame(residuals, prediction=50.0):
    """Rows by source: residuals {source: [...]} of truths around one prediction."""
    rows = [(f"{source}-{i}", source, prediction, prediction + r)
            for source, values in residuals.items() for i, r in enumerate(values)]
    return pd.DataFrame(rows, columns=["video", "source", "prediction", "proxy"])


def sampled(rng, sources, rows=6):
    """Truths that err by source more than by video."""
    errors = 8 * rng.normal(size=(sources, 1)) + 4 * rng.normal(size=(sources, rows))
    return frame({f"s{i}": list(row) for i, row in enumerate(errors)})


def test_each_source_weighs_the_same_and_the_unseen_one_takes_a_share():
    # 9 sources and an unseen one: a tenth each. Up to residual 8, eight tenths; at 9, nine tenths.
    found = calibrate.calibrate(frame({f"s{i}": [i, -i] for i in range(1, 10)}), level=0.9)
    assert (found.half_width, found.n_sources, found.n_items) == (9, 9, 18)
    for level, half in (0.8, 8), (0.55, 6):
        assert calibrate.calibrate(frame({f"s{i}": [i, -i] for i in range(1, 10)}),
                                   level=level).half_width == half
    # the copies of one source's rows change nothing
    uneven = {f"s{i}": [i] * (1 + 5 * (i == 2)) for i in range(9, 0, -1)}
    assert calibrate.calibrate(frame(uneven), level=0.65).half_width == 7


def test_too_few_sources_are_refused_with_the_number_that_would_do():
    with pytest.raises(ValueError, match="8 sources; a 90% interval needs 9 or more"):
        calibrate.calibrate(frame({f"s{i}": [i] for i in range(8)}))


def test_intervals_hold_on_new_sources_as_often_as_promised():
    rng, shares = np.random.default_rng(0), []
    for _ in range(150):
        shares.append(calibrate.coverage(
            sampled(rng, 40), calibrate.calibrate(sampled(rng, 20)), draws=2).value)
    assert 0.90 <= np.mean(shares) <= 0.95  # at least 19/21, at most one source's share more


def test_coverage_is_the_mean_over_sources_with_its_interval():
    rows = frame({"a": [0, 0, 30, 30], "b": [0], "c": [0, 30]})
    found = calibrate.coverage(rows, calibrate.Calibration(0.9, 10.0, 9, 9), draws=200)
    assert found.value == pytest.approx((0.5 + 1 + 0.5) / 3) and found.n_sources == 3
    assert found.low <= found.value <= found.high


def test_a_reading_is_clipped_to_the_scale_and_has_its_word():
    known = calibrate.Calibration(0.9, 15.0, 12, 400)
    assert calibrate.read(92, known) == (92, 77, 100, "Excellent")
    assert calibrate.read(-3, known) == (0, 0, 15, "Bad")


def test_a_curve_brings_another_models_outputs_onto_the_scale():
    x = np.linspace(-2, 2, 50)
    truth = metrics.logistic(x, 90, 10, 0.3, 0.5)
    curve = tuple(metrics.fit_logistic(truth, x))
    known = calibrate.Calibration(0.9, 5.0, 12, 400, curve)
    assert calibrate.read(0.3, known).score == pytest.approx(50)
    rows = frame({f"s{i}": [0] for i in range(9)}, 0.3).assign(proxy=52.0)
    assert calibrate.calibrate(rows, curve=curve).half_width == pytest.approx(2)
    assert calibrate.Calibration(**json.loads(json.dumps(known._asdict()))).half_width == 5


def test_resolution_is_the_smallest_difference_that_can_be_relied_on():
    rows = pd.DataFrame({"video": range(4), "source": list("aabb"),
                         "prediction": [10.0, 40, 60, 70], "proxy": [10.0, 60, 50, 70]})
    # between sources: gaps 60, 50, 30 right, 20 wrong; within: gaps 30 and 10, both right
    assert calibrate.resolution(rows, within=False, share=1.0) == 30
    assert calibrate.resolution(rows, within=False, share=0.75) == 20
    assert calibrate.resolution(rows, within=True) == 10
    assert np.isnan(calibrate.resolution(rows.assign(proxy=-rows.proxy), within=True))


def test_the_card_says_what_was_measured_and_what_was_not():
    text = calibrate.card(
        calibrate.Calibration(0.9, 12.34, 12, 400), metrics.Estimate(0.93, 0.88, 0.97, 27),
        {"of one source": 3.21, "of two sources": float("nan")},
        {"run to run": 0.0, "across thread counts": 0.5})
    for part in ("± 12.3 points at 90%", "400 videos of 12 sources", "93.0% of a source's videos",
                 "[88.0%, 97.0%], over 27 sources", "of one source.** 3.2 points",
                 "of two sources.** At no distance", "FR-proxy",
                 "run to run.** At most 0 points apart; promised: bit-identical, kept",
                 "thread counts.** At most 0.5 points apart; promised: 0.001, broken",
                 "batch sizes.** Not measured"):
        assert part in text


def test_faults_that_a_training_left_out_do_not_count():
    rows = pd.DataFrame({"distortion": ["none", "blur", "noise"]})
    told = {"data": {"without_faults": ["blur", "freeze"]}}
    assert calibrate.taught(rows, told).distortion.tolist() == ["none", "noise"]
    assert calibrate.taught(rows, {"data": {}}).equals(rows)
    assert calibrate.taught(rows, {}).equals(rows)
