import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from cpllm import metrics

CRFS = np.arange(13, 52, 2)
DOVER = Path(__file__).parent.parent / ".." / "shared" / "predictions"
vectors = arrays(float, st.integers(3, 30), elements=st.integers(-50, 50))
few = settings(max_examples=30, deadline=None)


def ladders(predictions, crfs=CRFS, sources=None, **columns):
    """One ladder per row of predictions[ladder, level]; by default each is its own source."""
    scenes, levels = np.shape(predictions)
    sources = sources or [f"source{i}" for i in range(scenes)]
    frame = pd.DataFrame({
        "video": [f"scene{i}@crf{c}" for i in range(scenes) for c in crfs[:levels]],
        "source": np.repeat(sources, levels),
        "ladder": np.repeat([f"scene{i}" for i in range(scenes)], levels),
        "crf": np.tile(crfs[:levels], scenes).astype(float),
        "proxy": np.tile(100.0 - np.array(crfs[:levels]), scenes),
        "prediction": np.ravel(predictions).astype(float),
    })
    return frame.assign(**columns)


def noisy(rng, scenes, levels=5, scale=(1, 4)):
    """Ladders that fall with CRF, each scene with its own noise."""
    noise = rng.uniform(*scale, scenes)[:, None] * rng.normal(size=(scenes, levels))
    return noise - CRFS[:levels]


# Correlations

def test_correlations_agree_with_scipy_with_ties():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 20, 200), rng.integers(0, 20, 200) + np.arange(200) / 20
    assert metrics.srcc(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert metrics.krcc(x, y) == pytest.approx(stats.kendalltau(x, y).statistic)
    assert metrics.plcc(x, y) == pytest.approx(stats.pearsonr(x, y).statistic)


def test_correlations_worked_by_hand():
    # ranks 1 2 3 4 against 1 3 2 4: SRCC = 1 - 6*2/60; one of six pairs discordant
    truth, prediction = [1, 2, 3, 4], [10, 30, 20, 90]
    assert metrics.srcc(truth, prediction) == pytest.approx(0.8)
    assert metrics.krcc(truth, prediction) == pytest.approx(4 / 6)
    # deviations -1.5 -.5 .5 1.5 against -2 1 -2 3: covariance 6, squares 5 and 18
    assert metrics.plcc(truth, [1, 4, 1, 6]) == pytest.approx(6.0 / np.sqrt(5 * 18))
    assert metrics.rmse(truth, [1, 4, 1, 6]) == pytest.approx(np.sqrt((0 + 4 + 4 + 4) / 4))


def test_logistic_fit_recovers_a_logistic_relation_that_linear_plcc_misses():
    x = np.linspace(-6, 6, 200)
    truth = 20 + 60 / (1 + np.exp(-(x - 1) / 0.4))
    assert metrics.plcc(truth, x) < 0.97
    assert metrics.plcc_logistic(truth, x) == pytest.approx(1, abs=1e-6)


def test_logistic_fit_ignores_the_scale_of_the_prediction():
    rng = np.random.default_rng(1)
    x = rng.normal(size=300)
    truth = np.tanh(x) + 0.3 * rng.normal(size=300)
    assert metrics.plcc_logistic(truth, 1e4 * x - 7) == pytest.approx(
        metrics.plcc_logistic(truth, x), abs=1e-6)


@pytest.mark.parametrize("split, srcc, plcc, swapped", [
    ("lsvq_test", 0.8879, 0.8885, 0.8828), ("lsvq_1080p", 0.7945, 0.8300, 0.7883)])
def test_a_real_models_published_numbers_come_out(split, srcc, plcc, swapped):
    file = DOVER / f"dover_{split}.csv"
    if not file.exists():
        pytest.skip("DOVER's outputs lie in ../shared/predictions, which this checkout lacks")
    frame = pd.read_csv(file)
    assert metrics.srcc(frame.mos, frame.overall) == pytest.approx(srcc, abs=1e-4)
    assert metrics.plcc(frame.mos, frame.overall) == pytest.approx(plcc, abs=1e-4)
    if split == "lsvq_1080p":
        assert metrics.plcc_logistic(frame.mos, frame.overall) == pytest.approx(0.832, abs=1e-3)


@few
@given(vectors, st.floats(0.1, 5))
def test_srcc_is_invariant_to_monotone_maps(x, power):
    y = np.random.default_rng(len(x)).normal(size=len(x))
    stretched = np.sign(x) * np.abs(x) ** power
    np.testing.assert_allclose(metrics.srcc(x, y), metrics.srcc(stretched, y))
    np.testing.assert_allclose(metrics.srcc(x, y), -metrics.srcc(-x, y))


@pytest.mark.parametrize("measure", [metrics.srcc, metrics.krcc, metrics.plcc,
                                     metrics.plcc_logistic])
@pytest.mark.filterwarnings("error")
def test_constant_predictions_and_a_single_row_give_nan(measure):
    assert np.isnan(measure([1, 2, 3, 4, 5], [7, 7, 7, 7, 7]))
    assert np.isnan(measure([3, 3, 3, 3, 3], [1, 2, 3, 4, 5]))
    assert np.isnan(measure([1], [1]))
    assert np.isnan(measure([], []))


def test_a_row_that_is_not_finite_is_refused_by_position():
    with pytest.raises(ValueError, match=r"prediction: 2 of 4 rows not finite \(first rows: 1, 3"):
        metrics.srcc([1, 2, 3, 4], [1, np.nan, 2, np.inf])
    with pytest.raises(ValueError, match=r"truth: 1 of 2"):
        metrics.rmse([np.nan, 1], [1, 2])
    with pytest.raises(ValueError, match=r"\(3,\) and \(2,\)"):
        metrics.plcc([1, 2, 3], [1, 2])


# Flip rate

def test_flip_rate_worked_by_hand():
    # crf 13 15 17 19, prediction 80 81 81 70: (13,15) flips, (15,17) ties, (17,19) right
    frame = ladders([[80, 81, 81, 70]])
    assert metrics.flip_rate(frame, 2) == pytest.approx((1 / 3, 1 / 3, 1 / 2, 3))
    assert metrics.flip_rate(frame, 4) == pytest.approx((1 / 2, 0, 1 / 2, 2))
    assert metrics.flip_rate(frame) == pytest.approx((2 / 6, 1 / 6, 2.5 / 6, 6))


def test_twenty_levels_make_twenty_minus_k_pairs_a_step_and_190_in_all():
    frame = ladders(noisy(np.random.default_rng(0), 3, levels=20))
    assert [metrics.flip_rate(frame, d).pairs for d in (2, 4, 6, 8, 10, 20)] == [
        57, 54, 51, 48, 45, 30]
    assert metrics.flip_rate(frame).pairs == 3 * 190


def test_pairs_stay_within_a_ladder_and_a_codec_when_scenes_share_a_source():
    frame = ladders([[3, 2, 1], [30, 20, 10]], sources=["film", "film"])
    assert metrics.flip_rate(frame).strict == 0
    both = pd.concat([frame.assign(codec="h264"),
                      frame.assign(codec="vp9", video="vp9-" + frame.video, prediction=-1.0)])
    pairs = metrics.flip_pairs(both, 2)
    assert len(pairs) == 8 and pairs.groupby("codec").tie.mean().to_dict() == {"h264": 0, "vp9": 1}


def test_without_a_ladder_column_the_scene_before_the_at_sign_is_the_ladder():
    frame = ladders([[3, 2, 1], [30, 20, 10]], sources=["film", "film"]).drop(columns="ladder")
    assert metrics.flip_rate(frame)[::3] == (0, 6)
    plain = frame[:3].assign(video=[1, 2, 3])
    assert metrics.flip_rate(plain)[::3] == (0, 3)


def test_originals_form_no_pair():
    frame = ladders([[3, 2, 1]])
    original = frame.iloc[[0]].assign(video="scene0@original", crf=np.nan, prediction=-99.0)
    assert metrics.flip_rate(pd.concat([frame, original])).pairs == 3


@few
@given(arrays(float, (2, 8), elements=st.floats(-1e6, 1e6), unique=True))
def test_a_perfect_ranker_never_flips_and_a_reversed_one_always(predictions):
    falling = -np.sort(-predictions, axis=1)
    assert metrics.flip_rate(ladders(falling)) == (0, 0, 0, 56)
    assert metrics.flip_rate(ladders(falling[:, ::-1])) == (1, 0, 1, 56)


@few
@given(arrays(float, (2, 8), elements=st.integers(0, 4)))
def test_reversing_predictions_mirrors_flips_and_counts_ties_half(predictions):
    ahead, back = metrics.flip_rate(ladders(predictions)), metrics.flip_rate(ladders(-predictions))
    assert ahead.ties == back.ties
    assert ahead.strict + ahead.ties + back.strict == pytest.approx(1)
    assert ahead.half + back.half == pytest.approx(1)


def test_constant_predictions_are_all_ties_and_no_pairs_are_nan():
    assert metrics.flip_rate(ladders(np.ones((2, 4)))) == (0, 1, 0.5, 12)
    nothing = metrics.flip_rate(ladders(np.ones((2, 4))), diff=3)
    assert nothing.pairs == 0 and np.isnan(nothing.strict) and np.isnan(nothing.half)


# Statistics on weighted sources

@pytest.mark.parametrize("name", ["pooled", "within", "strict", "half"])
def test_weighted_statistics_equal_those_of_the_repeated_rows(name):
    rng = np.random.default_rng(3)
    frame = ladders(np.round(noisy(rng, 6, scale=(1, 9))), sources=list("aabcdd"))
    frame["proxy"] = np.round(frame.proxy + rng.normal(size=len(frame)))
    counts = np.array([[1, 1, 1, 1], [0, 3, 1, 0], [2, 0, 0, 2], [0, 2, 1, 1]])

    def repeated(row):
        parts = [frame[frame.source == s].assign(source=f"{s}{k}", ladder=lambda f, k=k: f.ladder
                 + str(k), video=lambda f, k=k: f.video + str(k))
                 for s, n in zip("abcd", row, strict=True) for k in range(n)]
        rows = pd.concat(parts)
        each = [stats.spearmanr(g.proxy, g.prediction).statistic
                for _, g in rows.groupby("source")]
        flip = metrics.flip_rate(rows, 2)
        return {"pooled": stats.spearmanr(rows.proxy, rows.prediction).statistic,
                "within": np.median(each), "strict": flip.strict, "half": flip.half}[name]

    statistic = {"pooled": metrics.pooled_srcc, "within": metrics.within_srcc}.get(
        name, partial(metrics.flips, diff=2, kind=name))
    np.testing.assert_allclose(statistic(frame, counts), [repeated(row) for row in counts])


def test_within_source_srcc_can_be_perfect_where_pooled_is_not():
    frame = ladders([[3, 2, 1], [30, 20, 10], [300, 200, 100]])
    ones = np.ones((1, 3), int)
    assert metrics.within_srcc(frame, ones) == [1]
    assert metrics.pooled_srcc(frame, ones)[0] < 0.5


@pytest.mark.filterwarnings("error")
def test_a_constant_source_makes_srcc_nan_and_never_a_number():
    frame = ladders([[3, 2, 1], [5, 5, 5]])
    assert np.isnan(metrics.bootstrap(frame, metrics.within_srcc, 20)[:3]).all()
    constant = frame.assign(prediction=5.0)
    assert np.isnan(metrics.bootstrap(constant, metrics.pooled_srcc, 20)[:3]).all()


# Bootstrap

def test_intervals_cover_the_truth_as_often_as_they_say_with_fifteen_sources():
    rng = np.random.default_rng(1)
    true = metrics.flip_rate(ladders(noisy(rng, 20_000)), 2).strict
    frame = ladders(noisy(rng, 15))
    hits = 0
    for trial in range(250):
        frame["prediction"] = noisy(rng, 15).ravel()
        found = metrics.bootstrap(frame, partial(metrics.flips, diff=2), draws=300, seed=trial)
        hits += found.low <= true <= found.high
    assert 0.92 <= hits / 250 <= 0.97


def test_the_value_lies_in_the_interval_and_is_the_plain_statistic():
    frame = ladders(noisy(np.random.default_rng(0), 12, levels=20, scale=(4, 9)))
    found = metrics.bootstrap(frame, metrics.pooled_srcc, 300)
    assert found.value == pytest.approx(metrics.srcc(frame.proxy, frame.prediction))
    assert found.low < found.value < found.high and found.n_sources == 12


def test_more_alike_rows_of_the_same_sources_do_not_narrow_the_interval():
    frame = ladders(noisy(np.random.default_rng(0), 12))
    again = frame.assign(video="again-" + frame.video, ladder="again-" + frame.ladder)
    twice = pd.concat([frame, again])
    statistic = partial(metrics.flips, diff=2)
    assert metrics.bootstrap(twice, statistic, 300) == metrics.bootstrap(frame, statistic, 300)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    frame = ladders(noisy(np.random.default_rng(0), 12))
    first, same, other = (metrics.bootstrap(frame, metrics.pooled_srcc, 200, seed)
                          for seed in (0, 0, 1))
    assert first == same and first != other


def test_seeds_are_averaged_inside_each_draw():
    rng = np.random.default_rng(0)
    runs = [ladders(noisy(rng, 12), seed=seed) for seed in (0, 1, 2)]
    each = [metrics.bootstrap(run, metrics.pooled_srcc, 200).value for run in runs]
    together = metrics.bootstrap(pd.concat(runs), metrics.pooled_srcc, 200)
    assert together.value == pytest.approx(np.mean(each)) and together.n_sources == 12
    # a model and its mirror image have the mean 0 in every draw, whatever each one's spread
    mirror = runs[0].assign(seed=1, prediction=-runs[0].prediction)
    assert metrics.bootstrap(pd.concat([runs[0], mirror]), metrics.pooled_srcc, 200)[:3] == \
        pytest.approx((0, 0, 0))


def test_seven_thousand_rows_take_under_ten_seconds():
    rng = np.random.default_rng(0)
    frame = ladders(noisy(rng, 350, levels=20))
    start = time.process_time()
    metrics.bootstrap(frame, metrics.pooled_srcc, 2000)
    assert time.process_time() - start < 10


@pytest.mark.filterwarnings("error")
def test_fewer_than_two_sources_have_a_value_but_no_interval():
    found = metrics.bootstrap(ladders([[3, 1, 2]]), partial(metrics.flips, diff=2), 50)
    assert found.value == 0.5 and np.isnan([found.low, found.high]).all()


def test_a_draw_without_any_pair_leaves_the_interval_nan():
    frame = pd.concat([ladders([[3, 1, 2]]), ladders([[1]], sources=["short"]).assign(
        video="short@crf13", ladder="short")])
    found = metrics.bootstrap(frame, partial(metrics.flips, diff=2), 50)
    assert found.value == 0.5 and np.isnan([found.low, found.high]).all()


@pytest.mark.parametrize("spoil, message", [
    (lambda f: f.assign(prediction=f.prediction.where(f.index != 1)),
     r"1 of 6 rows not finite \(first: scene0@crf15"),
    (lambda f: f.assign(video=f.video.where(f.index != 4, f.video[3])),
     r"1 of 6 rows with an id that occurs before \(first: scene1@crf13"),
    (lambda f: f.assign(source=f.source.where(f.index != 2)),
     r"1 of 6 rows without a source \(first: scene0@crf17"),
    (lambda f: f.drop(columns="source"), "no column source"),
    (lambda f: f[:0], "no rows"),
    (lambda f: pd.concat([f.assign(seed=0), f[1:].assign(seed=1)]),
     r"1 videos are not scored by every seed \(first: scene0@crf13"),
], ids=["nan", "duplicate", "no source", "no column", "empty", "uneven seeds"])
def test_unfit_rows_are_refused_by_name(spoil, message):
    frame = spoil(ladders([[3, 2, 1], [1, 2, 3]]))
    for call in (lambda: metrics.bootstrap(frame, metrics.pooled_srcc, 10),
                 lambda: metrics.flip_rate(frame)):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_level_that_occurs_twice_in_a_ladder_is_refused_by_name():
    frame = ladders([[3, 2, 1]], crfs=np.array([13, 13, 15])).assign(video=list("abc"))
    with pytest.raises(ValueError, match=r"1 levels occur twice in a ladder \(first: b\)"):
        metrics.flip_rate(frame)
    with pytest.raises(ValueError, match="no column crf"):
        metrics.flip_rate(frame.drop(columns="crf"))


def test_frames_without_a_ladder_have_no_pairs_and_a_shuffled_one_has_the_same():
    frame = ladders(noisy(np.random.default_rng(0), 4))
    originals = frame.assign(crf=np.nan)
    assert metrics.flip_rate(originals).pairs == 0
    mixed = frame.sample(frac=1, random_state=0)
    assert metrics.flip_rate(mixed, 2) == metrics.flip_rate(frame, 2)
    pd.testing.assert_series_equal(
        metrics.flip_pairs(mixed, 2).groupby("ladder").flip.sum(),
        metrics.flip_pairs(frame, 2).groupby("ladder").flip.sum())
