"""What a card says, against SciPy, a law with a known slope, and hand values."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.spatial.distance import mahalanobis

from cpllm import card, records
from cpllm.calibrate import Calibration
from cpllm.data.video import Sample

RNG = np.random.default_rng(0)
MIXED = np.array([[3.0, 1, 0], [0, 1, 0.5], [0, 0, 0.2]])


def made(limit=3.0, **changes):
    content = card.Content([0.0, 0, 0], [[1.0, 0, 0]], [2.0], 1.0, limit)
    known = {"weights": "w", "calibration": Calibration(0.9, 8.0, 20, 400), "within": 0.5,
             "between": 0.1, "step": 4.0, "lines": (144, 1080), "content": content,
             "readout": card.Readout([0.5, -1.0, 2.0], 0.25)}
    return card.Card(**known | changes)


def sample(height=720, width=1280, count=100, fps=25.0, hdr=False):
    return Sample(np.zeros((1, height, width, 3), np.uint8), (0.0,), count, fps, hdr)


def test_distance_is_mahalanobis_where_every_direction_is_kept():
    train = RNG.normal(size=(500, 3)) @ MIXED + 5
    found = card.fit_content(train, train, pd.Series(range(500)))
    inverse = np.linalg.inv(np.cov(train.T))
    for x in RNG.normal(size=(5, 3)) * 10:
        expected = mahalanobis(x, train.mean(0), inverse) / found.limit
        assert found.distance(x) == pytest.approx(expected, rel=1e-3)


def test_directions_that_training_never_took_are_far():
    """16 of 40 are kept; what lies outside of them counts by the rest's spread."""
    train = RNG.normal(size=(400, 40)) * np.r_[np.full(16, 5.0), np.full(24, 0.1)]
    found = card.fit_content(train, train, pd.Series(range(400)))
    along, across = np.eye(40)[0] * 5, np.eye(40)[39] * 5
    assert found.distance(along) < 1 < 5 < found.distance(across)


def test_the_limit_counts_each_source_once():
    """100 sources of one video, and one that brings 10,000 far ones: 1% of the sources."""
    train = RNG.normal(size=(200, 3))
    near, far = RNG.normal(size=(100, 3)), np.full((10_000, 3), 50.0)
    sources = pd.Series([*range(100), *[100] * 10_000])
    limit = card.fit_content(train, np.vstack([near, far]), sources).limit
    assert limit < 10


@pytest.mark.parametrize("within", [False, True])
def test_slope_is_that_of_the_law_that_made_the_truth(within):
    """Gumbel noise of equal scale: P(first better) = σ(k·difference) exactly (Bradley-Terry)."""
    k, (sources, rows) = 0.2, (400, 6) if within else (700, 1)
    rng = np.random.default_rng(0)
    prediction = rng.uniform(0, 30, sources * rows)
    truth = k * prediction + stats.gumbel_r.rvs(size=len(prediction), random_state=rng)
    frame = pd.DataFrame({"source": np.repeat(np.arange(sources), rows),
                          "prediction": prediction, "proxy": truth})
    assert card.slope(frame, within) == pytest.approx(k, rel=0.15)


def test_a_model_that_orders_nothing_is_never_sure():
    frame = pd.DataFrame({"source": [0, 0, 1, 1], "prediction": [1.0, 2, 3, 4],
                          "proxy": [4.0, 3, 2, 1]})
    assert card.slope(frame, True) == card.slope(frame, False) == 0
    assert made(between=0.0).confidence(50, same_source=False) == 0.5


def test_confidence_grows_from_a_half_with_the_difference():
    known = made()
    assert known.confidence(0, True) == 0.5
    assert known.confidence(-2, True) == known.confidence(2, True) == pytest.approx(0.7310586)
    assert known.confidence(2, False) == pytest.approx(0.5498340)


def test_a_card_comes_back_from_its_file_and_serves_no_other_weights(tmp_path):
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"weights")
    assert card.of(weights) is None
    known = made(weights=records.file_hash(weights))
    known.write(card.beside(weights))
    assert card.of(weights) == known
    weights.write_bytes(b"others")
    assert card.of(weights) is None


@pytest.mark.parametrize(("seen", "word"), [
    ({"height": 2160, "width": 3840}, "2160 lines"), ({"height": 96, "width": 640}, "96 lines"),
    ({"count": 4}, "only 4 of the 5 frames"), ({"count": 501}, "20 s long"),
    ({"hdr": True}, "HDR")])
def test_each_way_out_of_the_domain_is_told(seen, word):
    assert made().warnings(sample(), np.zeros(3), 5) == []
    (text,) = made().warnings(sample(**seen), np.zeros(3), 5)
    assert word in text


def test_more_key_frames_stand_for_a_longer_clip():
    """25 frames a second; five key frames stand for 20 s, ten for 40 s."""
    assert made().warnings(sample(count=1000), np.zeros(3), 10) == []
    (text,) = made().warnings(sample(count=1001), np.zeros(3), 10)
    assert "10 frames may not stand for more than 40 s; ask for 11 key frames" in text


def test_unusual_content_is_told_with_its_distance():
    """√((12/2)²) over the limit of 3 is 2."""
    (text,) = made().warnings(sample(), np.array([12.0, 0, 0]), 5)
    assert "unusual content: farther" in text and "(2.0 times)" in text
    assert made().warnings(sample(), np.array([6.0, 0, 0]), 5) == []


def test_a_portrait_clip_is_measured_by_its_short_side():
    assert made().warnings(sample(1920, 1080), np.zeros(3), 5) == []


def test_what_is_made_of_predictions_holds_for_them():
    """Truth = prediction ± 5: every interval of half-width 5 holds it."""
    rows = [{"video": f"{s}-{p}", "source": s, "prediction": p, "proxy": p + 5 * (-1) ** s}
            for s in range(20) for p in (10.0, 40, 70)]
    found = card.make("w", pd.DataFrame(rows), (144, 1080), made().content)
    assert (found.calibration.half_width, found.calibration.level) == (5, 0.9)
    assert found.read(72) == (72, 67, 77, "Good")
    assert found.within == 10 and found.step == 30
