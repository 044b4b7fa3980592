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


@pytest.mark.filterwarnings("error")
def test_the_curve_worked_by_hand():
    # half of the way at the middle, three quarters at ln 3 scales above, and never overflows
    x = 5 + 2 * np.log(3) * np.array([-1, 0, 1])
    np.testing.assert_allclose(metrics.logistic(x, 10, 2, 5, 2), [4, 6, 8])
    np.testing.assert_allclose(metrics.logistic(x, 10, 2, 5, -2), [4, 6, 8])
    np.testing.assert_allclose(metrics.logistic([-1e9, 1e9], 10, 2, 5, 0), [2, 10])


def test_logistic_fit_recovers_a_logistic_relation_that_linear_plcc_misses():
    x = np.linspace(-6, 6, 200)
    truth = 20 + 60 / (1 + np.exp(-(x - 1) / 0.4))
    assert metrics.plcc(truth, x) < 0.97
    assert metrics.plcc_logistic(truth, x) == pytest.approx(1, abs=1e-6)


def test_the_fitted_curve_is_in_the_units_of_prediction_and_truth():
    x = np.linspace(100, 900, 60)
    beta = metrics.fit_logistic(metrics.logistic(x, 80, 20, 450, 90), x)
    np.testing.assert_allclose(beta, [80, 20, 450, 90], rtol=1e-4)


def test_the_fit_needs_four_rows_and_meets_them():
    x = np.array([1.0, 2, 4, 7])
    truth = metrics.logistic(x, 9, 1, 3, 1)
    np.testing.assert_allclose(metrics.fit_logistic(truth, x), [9, 1, 3, 1], rtol=1e-5)
    assert np.isnan(metrics.fit_logistic(truth[:3], x[:3])).all()
    unit = (truth - truth.min()) / np.ptp(truth)
    assert np.isfinite(metrics.fit_logistic(unit, x)).all()
    assert np.isnan(metrics.fit_logistic(np.ones(4), x)).all()


def test_the_fit_starts_where_it_finds_a_step_and_has_time_for_a_line():
    rng = np.random.default_rng(199)  # from other starts it ends elsewhere
    x = rng.normal(size=12)
    truth = 50 * (x > rng.normal()) + rng.normal(size=12)
    fitted = metrics.logistic(x, *metrics.fit_logistic(truth, x))
    assert np.std(fitted - truth) < 1.2
    x = np.linspace(-2, 2, 20)
    assert metrics.plcc_logistic(10 * x + np.random.default_rng(0).normal(size=20), x) > 0.99


def test_a_relation_without_ends_has_no_fit():
    x = np.linspace(-2, 2, 20)
    beta = metrics.fit_logistic(np.exp(x), x)
    assert beta.shape == (4,) and np.isnan(beta).all()
    assert np.isnan(metrics.plcc_logistic(np.exp(x), x))


def test_logistic_fit_ignores_the_scale_of_the_prediction():
    rng = np.random.default_rng(1)
    x = rng.normal(size=300)
    truth = np.tanh(x) + 0.3 * rng.normal(size=300)
    assert metrics.plcc_logistic(truth, 1e4 * x - 7) == pytest.approx(
        metrics.plcc_logistic(truth, x), abs=1e-6)


def dover(split):
    """DOVER's published outputs with MOS, and the fusion with its two weights swapped."""
    file = DOVER / f"dover_{split}.csv"
    if not file.exists():
        pytest.skip("DOVER's outputs lie in ../shared/predictions, which this checkout lacks")
    frame = pd.read_csv(file).rename(columns={"overall": "prediction"})
    frame["source"] = frame.video
    # mean and deviation by which DOVER's evaluation script scales its branches before fusing them
    aesthetic, technical = (frame.aesthetic - 0.1107) / 0.07355, \
        (frame.technical + 0.08285) / 0.03774
    np.testing.assert_allclose(0.3896 * aesthetic + 0.6104 * technical, frame.prediction,
                               atol=1e-4)
    return frame, frame.assign(prediction=0.6104 * aesthetic + 0.3896 * technical)


@pytest.mark.parametrize("split, srcc, plcc, logistic, swapped", [
    ("lsvq_test", 0.8879, 0.8885, None, 0.8828), ("lsvq_1080p", 0.7945, 0.8300, 0.832, 0.7883)])
def test_a_real_models_published_numbers_come_out(split, srcc, plcc, logistic, swapped):
    frame, other = dover(split)
    assert metrics.srcc(frame.mos, frame.prediction) == pytest.approx(srcc, abs=1e-3)
    assert metrics.srcc(frame.mos, other.prediction) == pytest.approx(swapped, abs=1e-3)
    assert metrics.plcc(frame.mos, frame.prediction) == pytest.approx(plcc, abs=1e-3)
    if logistic:
        assert metrics.plcc_logistic(frame.mos, frame.prediction) == pytest.approx(
            logistic, abs=1e-3)


def test_a_real_models_swapped_branches_are_a_paired_difference_with_its_interval():
    frame, other = dover("lsvq_1080p")
    statistic = partial(metrics.pooled_srcc, truth="mos")
    found = metrics.difference(frame, other, statistic, draws=200)
    assert found.value == pytest.approx(0.7945 - 0.7883, abs=1e-3)
    assert 0 < found.low < found.value < found.high and found.p < 0.05
    each = [metrics.bootstrap(rows, statistic, draws=200) for rows in (frame, other)]
    assert each[0].low < each[1].high  # unpaired, the two intervals overlap


@few
@given(vectors, st.floats(0.1, 5))
def test_srcc_is_invariant_to_monotone_maps(x, power):
    y = np.random.default_rng(len(x)).normal(size=len(x))
    stretched = np.sign(x) * np.abs(x) ** power
    np.testing.assert_allclose(metrics.srcc(x, y), metrics.srcc(stretched, y))
    np.testing.assert_allclose(metrics.srcc(x, y), -metrics.srcc(-x, y))


@pytest.mark.filterwarnings("error")
def test_rmse_of_no_rows_is_nan():
    assert np.isnan(metrics.rmse([], []))


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
    with pytest.raises(ValueError, match=r"prediction: 4 of 5 .* \(first rows: 1, 2, 3\)$"):
        metrics.srcc(range(5), [1, *[None] * 4])
    with pytest.raises(ValueError, match=r"truth: 1 of 2 rows not finite \(first rows: 0\)"):
        metrics.srcc([None, 2], [1, 2])
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
    assert metrics.flip_pairs(plain).ladder.tolist() == ["film"] * 3
    named = frame.assign(video=[f"film@{i}" for i in range(6)], ladder=list("aaabbb"))
    assert metrics.flip_rate(named)[::3] == (0, 6)


def test_pairs_name_their_ladder_and_levels_and_stay_within_a_seed():
    frame = ladders([[3, 2, 1]]).assign(codec=[None] * 3)
    pairs = metrics.flip_pairs(pd.concat([frame.assign(seed=seed) for seed in (0, 1)]), 2)
    assert pairs.columns.tolist() == ["seed", "source", "ladder", "codec", "crf_low", "crf_high",
                                      "diff", "flip", "tie", "gap"]
    assert pairs.seed.tolist() == [0, 0, 1, 1]
    assert pairs.crf_low.tolist() == [13, 15] * 2 and pairs.crf_high.tolist() == [15, 17] * 2


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
    assert nothing.pairs == 0 and np.isnan(nothing[:3]).all()


def test_pairs_are_told_apart_by_how_much_the_proxy_prefers_the_better():
    frame = ladders([[80, 82, 81, 70]]).assign(proxy=[90.0, 89, 84, 70])
    # gaps: 13-15 1 (flip), 15-17 5, 17-19 14, 13-17 6 (flip), 15-19 19, 13-19 20
    ones = np.ones((1, 1), int)
    rates = [metrics.flips(frame, ones, gap=gap)[0] for gap in metrics.STRATA.values()]
    assert rates == [1, 0, 1 / 4]
    mos = frame.rename(columns={"proxy": "mos"})
    assert metrics.flips(mos, ones, gap=(2, 7), truth="mos") == [1 / 2]
    assert metrics.flip_pairs(frame).gap.tolist() == [1, 6, 20, 5, 19, 14]
    assert metrics.flip_pairs(frame.drop(columns="proxy")).gap.isna().all()


def test_flip_rates_by_source_codec_and_difference():
    frame = ladders([[3, 2, 1], [10, 20, 20]]).assign(codec="h264")
    table = metrics.flip_table(frame, "source")
    assert table.loc["source0"].tolist() == [0, 0, 0, 3]
    assert table.loc["source1"].tolist() == pytest.approx([2 / 3, 1 / 3, 5 / 6, 3])
    assert metrics.flip_table(frame, ["codec", "diff"]).strict.to_dict() == pytest.approx(
        {("h264", 2.0): 1 / 4, ("h264", 4.0): 1 / 2})
    assert table.columns.tolist() == ["strict", "ties", "half", "pairs"]
    assert metrics.flip_table(frame, "source", diff=4).strict.tolist() == [0, 1]


# DMOS

def test_dmos_is_reference_minus_variant_on_both_sides():
    frame = ladders([[80, 70, 60], [8, 6, 7]])
    reference = frame.iloc[[0, 3]].assign(video=["scene0@ref", "scene1@ref"], crf=np.nan,
                                          prediction=[85.0, 9.0], proxy=100.0)
    distorted = reference.iloc[[0]].assign(video="scene0@blur", distortion="blur", prediction=1.0)
    rows = metrics.differential(
        pd.concat([frame, reference, distorted]).fillna({"distortion": "none"}))
    assert rows.prediction.tolist() == [5, 15, 25, 1, 3, 2]
    assert rows.proxy.tolist() == [13, 15, 17] * 2
    given = metrics.differential(pd.concat([frame, reference]).assign(dmos=7.0))
    assert given.proxy.tolist() == [7.0] * 6
    twice = metrics.differential(pd.concat([frame, reference, distorted.assign(
        distortion="none", ladder="scene0")]).drop(columns="distortion"))
    assert set(twice.ladder) == {"scene1"}


def test_dmos_refers_to_the_original_of_the_same_seed_source_and_ladder():
    rows = []
    for i, (seed, source, ladder) in enumerate(np.ndindex(2, 2, 2)):
        of = {"seed": seed, "source": f"s{source}", "ladder": f"l{ladder}"}
        names = [f"s{source}l{ladder}@{end}" for end in ("ref", "crf13")]
        rows += [{**of, "video": names[0], "crf": np.nan, "prediction": 50.0 * i, "proxy": 99.0},
                 {**of, "video": names[1], "crf": 13, "prediction": 49.0 * i, "proxy": 98.0}]
    assert metrics.differential(pd.DataFrame(rows)).prediction.tolist() == list(range(8))


# Statistics on weighted sources

@pytest.mark.parametrize("name", ["pooled", "kendall", "linear", "curve", "rmse", "rmse curve",
                                  "strict", "ties", "half"])
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
        flip = metrics.flip_rate(rows, 2)
        curve = metrics.logistic(rows.prediction, *beta)
        return {"pooled": stats.spearmanr(rows.proxy, rows.prediction).statistic,
                "kendall": stats.kendalltau(rows.proxy, rows.prediction).statistic,
                "linear": stats.pearsonr(rows.proxy, rows.prediction).statistic,
                "curve": stats.pearsonr(rows.proxy, curve).statistic,
                "rmse": metrics.rmse(rows.proxy, rows.prediction),
                "rmse curve": metrics.rmse(rows.proxy, curve),
                "strict": flip.strict, "ties": flip.ties, "half": flip.half}[name]

    beta = metrics.fit_logistic(frame.proxy, frame.prediction)  # fitted once, to the sample
    statistic = {"pooled": metrics.pooled_srcc,
                 "kendall": metrics.pooled_krcc, "linear": metrics.pooled_plcc,
                 "curve": partial(metrics.pooled_plcc, curve=True), "rmse": metrics.pooled_rmse,
                 "rmse curve": partial(metrics.pooled_rmse, curve=True)}.get(
        name, partial(metrics.flips, diff=2, kind=name))
    np.testing.assert_allclose(statistic(frame, counts), [repeated(row) for row in counts],
                               rtol=1e-6)


@pytest.mark.parametrize("side", ["proxy", "prediction"])
@pytest.mark.parametrize("scale, shift", [(1e-9, 0), (1e9, 0), (1, 1e8)])
def test_weighted_plcc_does_not_depend_on_units(side, scale, shift):
    frame, counts = ladders(noisy(np.random.default_rng(3), 4)), metrics.resamples(4, 20)
    other = frame.assign(**{side: scale * frame[side] + shift})
    np.testing.assert_allclose(metrics.pooled_plcc(other, counts),
                               metrics.pooled_plcc(frame, counts), rtol=1e-5)


@pytest.mark.parametrize("of, oracle, curve", [
    (metrics.srcc, lambda x, y: stats.spearmanr(x, y).statistic, False),
    (metrics.krcc, lambda x, y: stats.kendalltau(x, y).statistic, False),
    (metrics.plcc, lambda x, y: stats.pearsonr(x, y).statistic, False),
    (metrics.plcc, lambda x, y: stats.pearsonr(x, y).statistic, True),
    (metrics.rmse, lambda x, y: np.sqrt(((x - y) ** 2).mean()), False),
], ids=["srcc", "krcc", "plcc", "plcc after the curve", "rmse"])
def test_the_median_within_source_is_that_of_a_plain_loop_over_the_drawn_sources(
        of, oracle, curve):
    rng = np.random.default_rng(3)
    frame = ladders(np.round(noisy(rng, 6, scale=(1, 9))), sources=list("dabacd"))
    frame["proxy"] = np.round(frame.proxy + rng.normal(size=len(frame)))
    counts = np.array([[1, 1, 1, 1], [0, 3, 1, 0], [2, 0, 0, 2], [0, 2, 1, 1],
                       [2, 1, 1, 1], [0, 3, 1, 1], [1, 0, 0, 2]])
    beta = metrics.fit_logistic(frame.proxy, frame.prediction)  # once, to all rows
    y = metrics.logistic(frame.prediction, *beta) if curve else frame.prediction
    each = [oracle(frame.proxy[frame.source == s], y[frame.source == s]) for s in "abcd"]
    np.testing.assert_allclose(metrics.within_source(frame, counts, of=of, curve=curve),
                               [np.median(np.repeat(each, row)) for row in counts])
    assert len({round(v, 6) for v in each}) == 4  # else the median could be anyone's


def test_srcc_of_many_draws_is_that_of_each():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"source": np.arange(1100), "proxy": rng.normal(size=1100)})
    frame["prediction"] = frame.proxy + rng.normal(size=1100)
    counts = metrics.resamples(1100, 2000)  # more than are held in memory at a time
    found = metrics.pooled_srcc(frame, counts)
    assert found.shape == (2001,)
    for draw in 0, 1, 1000, 2000:
        rows = frame.loc[np.repeat(frame.index, counts[draw])]
        assert found[draw] == pytest.approx(stats.spearmanr(rows.proxy, rows.prediction).statistic)


def test_midranks_worked_by_hand():
    # 5 7 7 with weights 2 1 1 are the sample 5 5 7 7
    ranks = metrics._midranks(np.array([7.0, 5, 7]), np.array([[1.0, 2, 1], [1, 1, 0]]))
    assert ranks.tolist() == [[3.5, 1.5, 3.5], [2, 1, 2]]


def test_too_many_sources_for_a_matrix_leave_the_samples_krcc_without_interval(monkeypatch):
    monkeypatch.setattr(metrics, "MOST_SOURCES", 5)
    frame = ladders(noisy(np.random.default_rng(0), 6))
    found = metrics.bootstrap(frame, metrics.pooled_krcc, 50)
    assert found.value == pytest.approx(stats.kendalltau(frame.proxy, frame.prediction).statistic)
    assert np.isnan([found.low, found.high]).all()
    monkeypatch.setattr(metrics, "MOST_SOURCES", 6)
    assert metrics.bootstrap(frame, metrics.pooled_krcc, 50).low < found.value


def test_within_source_srcc_can_be_perfect_where_pooled_is_not():
    frame = ladders([[3, 2, 1], [30, 20, 10], [300, 200, 100]])
    ones = np.ones((1, 3), int)
    assert metrics.within_source(frame, ones) == [1]
    assert metrics.pooled_srcc(frame, ones)[0] < 0.5


@pytest.mark.filterwarnings("error")
def test_a_constant_source_makes_srcc_nan_and_never_a_number():
    frame = ladders([[3, 2, 1], [5, 5, 5]])
    for of, curve in (metrics.srcc, False), (metrics.krcc, False), (metrics.plcc, True):
        within = partial(metrics.within_source, of=of, curve=curve)
        assert np.isnan(metrics.bootstrap(frame, within, 20)[:3]).all()
        one = ladders([[3, 2]], crfs=CRFS[:2])  # too few rows for a fit
        assert np.isnan(metrics.within_source(one, np.ones((1, 1), int), curve=True)).all()
    constant = frame.assign(prediction=5.0)
    for statistic in metrics.pooled_srcc, metrics.pooled_plcc:
        assert np.isnan(metrics.bootstrap(constant, statistic, 20)[:3]).all()


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


def two_models(rng, sources, rows=4):
    """Truth and two models that err alike by source and video, the second more besides."""
    n = sources * rows
    source = np.repeat(np.arange(sources), rows)
    truth = rng.normal(size=sources)[source] + rng.normal(size=n)
    shared = 0.5 * rng.normal(size=sources)[source] + 0.8 * rng.normal(size=n)
    frame = pd.DataFrame({"video": np.arange(n), "source": source, "proxy": truth})
    return [frame.assign(prediction=truth + shared + scale * rng.normal(size=n))
            for scale in (0.2, 0.8)]


def test_intervals_of_paired_differences_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    ones = np.ones((1, 50_000), int)
    true = float(np.subtract(*(metrics.pooled_plcc(model, ones)
                               for model in two_models(rng, 50_000)))[0])
    hits = 0
    for trial in range(400):
        found = metrics.difference(*two_models(rng, 20), metrics.pooled_plcc, 400, seed=trial)
        hits += found.low <= true <= found.high
    assert 0.92 <= hits / 400 <= 0.97


def test_pairing_narrows_the_interval_and_swapping_the_models_turns_it():
    first, second = two_models(np.random.default_rng(0), 30)
    ahead = metrics.difference(first, second, metrics.pooled_plcc, 400)
    back = metrics.difference(second, first, metrics.pooled_plcc, 400)
    assert ahead[:3] == pytest.approx((-back.value, -back.high, -back.low))
    assert ahead.p == back.p
    one, two = (metrics.bootstrap(model, metrics.pooled_plcc, 400) for model in (first, second))
    assert ahead.value == pytest.approx(one.value - two.value)
    assert ahead.high - ahead.low < 0.8 * np.hypot(one.high - one.low, two.high - two.low)


def test_p_is_below_five_percent_just_where_the_interval_excludes_zero():
    rng, seen = np.random.default_rng(2), set()
    for trial in range(30):
        first, second = two_models(rng, 15)
        found = metrics.difference(first, second, metrics.pooled_plcc, 1000, seed=trial)
        apart = found.low > 0 or found.high < 0
        if abs(found.p - 0.05) > 0.01:  # nearer than that the quantile interpolates
            assert (found.p < 0.05) == apart
        seen.add(apart)
    assert seen == {True, False}


def test_p_worked_by_hand():
    # of 99 draws 4 (the first among them) are not above 0: 1 + 4 in 100, whichever side leads
    draws = np.r_[1.0, -1, 0, -2, -3, np.ones(95)]
    for first in draws, -draws:
        assert metrics.contrast(first, np.zeros(100), 10**6).p == pytest.approx(0.1, rel=1e-4)
    # 3 sources: Φ⁻¹(0.05) √(2/3) = -1.3430, below which Student's t with 2 lies with 0.1557
    assert metrics.contrast(draws, np.zeros(100), 3).p == pytest.approx(0.3114, abs=1e-4)
    assert metrics.contrast(np.ones(100), np.zeros(100), 10**6).p == pytest.approx(0.02, rel=1e-4)
    assert np.isnan(metrics.contrast(np.r_[draws, np.nan], np.zeros(101), 3).p)


def test_the_interval_worked_by_hand():
    # many sources: the percentiles 2.5 and 97.5 of the draws 2 and 4; two sources: all of them;
    # ten: t₀.₀₂₅,₉ = -2.2622, times √(10/9) = -2.3845, below which the normal lies with 0.00855
    draws = np.array([3.0, 2, 4])
    assert metrics.estimate(draws, 10**6) == pytest.approx((3, 2.05, 3.95, 10**6), rel=1e-4)
    assert metrics.estimate(draws, 2) == pytest.approx((3, 2, 4, 2))
    assert metrics.estimate(draws, 10) == pytest.approx((3, 2.0171, 3.9829, 10), abs=2e-4)


def test_unless_told_otherwise_there_are_2000_draws_of_seed_0():
    first, second = two_models(np.random.default_rng(0), 9)
    assert metrics.bootstrap(first, metrics.pooled_plcc) == \
        metrics.bootstrap(first, metrics.pooled_plcc, 2000, 0)
    assert metrics.difference(first, second, metrics.pooled_plcc) == \
        metrics.difference(first, second, metrics.pooled_plcc, 2000, 0)
    told = metrics.replicates(first, metrics.pooled_plcc, 2000, 0)
    assert metrics.replicates(first, metrics.pooled_plcc).tolist() == told.tolist()


@pytest.mark.filterwarnings("error")
def test_a_model_against_itself_differs_by_nothing_with_certainty_of_nothing():
    model, _ = two_models(np.random.default_rng(0), 9)
    assert metrics.difference(model, model, metrics.pooled_srcc, 50) == (0, 0, 0, 1, 9)
    one = model.assign(source="a")
    assert np.isnan(metrics.difference(one, one, metrics.pooled_srcc, 50)[1:4]).all()


def test_differences_average_the_seeds_of_each_model():
    first, second = two_models(np.random.default_rng(0), 12)
    both = pd.concat([first.assign(seed=0), second.assign(seed=1)])
    each = [metrics.difference(model, second, metrics.pooled_plcc, 100).value
            for model in (first, second)]
    assert metrics.difference(both, second, metrics.pooled_plcc, 100).value == \
        pytest.approx(np.mean(each))


def test_models_on_other_sources_are_refused_by_name():
    first, second = two_models(np.random.default_rng(0), 5)
    with pytest.raises(ValueError, match=r"2 sources are in one frame only \(first: 3\)"):
        metrics.difference(first, second[second.source < 3], metrics.pooled_srcc, 50)


def test_matching_keeps_what_both_scored_and_lists_the_rest():
    first, second = two_models(np.random.default_rng(0), 3, rows=2)
    second = second[["video", "prediction"]].replace({"video": {5: 99}})
    a, b, (here, there) = metrics.match(first, second)
    assert a.video.tolist() == b.video.tolist() == [0, 1, 2, 3, 4]
    assert b.proxy.tolist() == a.proxy.tolist() and (here, there) == ([5], [99])
    with pytest.raises(ValueError, match=r"no video is in both \(first: 0 and 99\)"):
        metrics.match(first, second[second.video == 99])


def test_matching_keeps_each_models_own_predictions_and_seeds():
    first, second = two_models(np.random.default_rng(0), 3, rows=2)
    first = pd.concat([first.assign(seed=seed, answer=f"by {seed}") for seed in (0, 1)])
    a, b, _ = metrics.match(first, second.assign(seed=7))
    assert len(a) == 12 and a.prediction.tolist() == first.prediction.tolist()
    assert b.prediction.tolist() == second.prediction.tolist() and set(b.seed) == {7}


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


@pytest.mark.filterwarnings("error")
def test_fewer_than_two_sources_have_a_value_but_no_interval():
    found = metrics.bootstrap(ladders([[3, 1, 2]]), partial(metrics.flips, diff=2), 50)
    assert found.value == 0.5 and np.isnan([found.low, found.high]).all()


@pytest.mark.filterwarnings("error")
def test_a_draw_in_which_a_side_is_constant_leaves_the_interval_nan():
    frame = ladders([[0.1], [-0.1], [0.6]]).assign(proxy=[0.1, -0.5, 0.4])
    counts = np.array([[1, 1, 1], [3, 0, 0], [0, 3, 0], [0, 0, 3], [1, 2, 0]])
    for statistic in metrics.pooled_plcc, metrics.pooled_srcc, metrics.pooled_krcc:
        found = statistic(frame, counts)
        assert np.isnan(found[1:4]).all() and found[4] == pytest.approx(1)
        assert np.isnan(metrics.bootstrap(frame, statistic, 50)[1:3]).all()


@pytest.mark.parametrize("side", ["proxy", "prediction"])
@pytest.mark.parametrize("scale", [1, 1e6])
def test_a_draw_in_which_one_side_alone_is_constant_has_no_plcc(side, scale):
    sides = {"proxy": [0.1, -0.5, 0.4], "prediction": [0.1, -0.1, 0.6]}
    sides[side] = [0.1 * scale, 0.1 * scale, 0.7 * scale]
    frame = ladders([[0], [0], [0]]).assign(**sides)
    counts = np.array([[1, 1, 1], [2, 1, 0], [1, 2, 0], [5, 2, 0], [3, 8, 0]])
    assert np.isnan(metrics.pooled_plcc(frame, counts)).tolist() == [False, *[True] * 4]


@pytest.mark.filterwarnings("error")
def test_a_draw_without_any_pair_leaves_the_interval_nan():
    frame = pd.concat([ladders([[3, 1, 2]]), ladders([[1]], sources=["short"]).assign(
        video="short@crf13", ladder="short")])
    found = metrics.bootstrap(frame, partial(metrics.flips, diff=2), 50)
    assert found.value == 0.5 and np.isnan([found.low, found.high]).all()


@pytest.mark.parametrize("spoil, message", [
    (lambda f: f.assign(prediction=f.prediction.where(f.index != 1)),
     r"1 of 6 rows not finite \(first: scene0@crf15"),
    (lambda f: f.assign(prediction=np.inf),
     r"6 of 6 rows not finite \(first: scene0@crf13, scene0@crf15, scene0@crf17\)$"),
    (lambda f: f.assign(video=f.video.where(f.index != 4, f.video[3])),
     r"1 of 6 rows with an id that occurs before \(first: scene1@crf13"),
    (lambda f: f.assign(source=f.source.where(f.index != 2)),
     r"1 of 6 rows without a source \(first: scene0@crf17"),
    (lambda f: f[["prediction", "crf"]], "no column video, source; has prediction, crf$"),
    (lambda f: f[:0], "^predictions: no rows$"),
    (lambda f: pd.concat([f.assign(seed=0), f[1:].assign(seed=1)]),
     r"1 videos are not scored by every seed \(first: scene0@crf13"),
], ids=["nan", "infinite", "duplicate", "no source", "no column", "empty", "uneven seeds"])
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
