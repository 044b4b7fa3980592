"""Ladders of real clips: pinned packages, labels against the clip itself, Table 3's measures."""

import re
import shutil

import pandas as pd
import pytest

from cpllm import baselines, footage, notebooks, report, sweep
from cpllm.data import encoding, labels, scenes
from tests.test_scenes import ONE_PER_FAMILY


def test_every_clip_is_of_a_package_that_is_pinned_by_hash():
    pinned = dict(re.findall(r"(?m)^(\S+)==(\S+) --hash=sha256:[0-9a-f]{64}$",
                             footage.REQUIREMENTS.read_text()))
    folders = {clip.file.split("/")[0] for clip in footage.CLIPS.values()}
    assert {folder.lower().replace("_", "-") for folder in folders} == {
        f"{name}-{version}" for name, version in pinned.items()}


def test_a_ladder_is_labelled_against_the_clip_as_it_came(tmp_path, ffmpeg):
    clip = tmp_path / "clip.mp4"
    encoding.encode(scenes.render(ONE_PER_FAMILY["cartoon"])[:6], clip, 12, 12)
    rows = footage.ladder("drawn", clip, tmp_path / "encodes", (20, 35, 50), seconds=0.25)
    assert rows["source"].unique() == ["drawn"] and set(rows["frames"]) == {3}
    assert rows["proxy"].is_monotonic_decreasing and rows["bytes"].is_monotonic_decreasing
    whole = footage.ladder("whole", clip, tmp_path / "encodes", (20, 50))
    side = min(ONE_PER_FAMILY["cartoon"].height, ONE_PER_FAMILY["cartoon"].width)
    direct = labels.vmaf(whole["video"], clip, side)
    assert whole["proxy"].tolist() == pytest.approx([label.proxy for label in direct], abs=0.5)


def test_footage_is_measured_as_table_3_measures_ladders():
    """80, 81, 81 at CRF 13, 15, 17 is a flip and a tie at difference 2; the other clip has none."""
    rows = pd.DataFrame({
        "system": "default", "seed": 0, "source": ["a"] * 3 + ["b"] * 3, "crf": [13, 15, 17] * 2,
        "proxy": [90.0, 80, 70, 60, 50, 40], "prediction": [80.0, 81, 81, 60, 50, 40]})
    rows["video"] = rows["source"] + rows["crf"].astype(str)
    table = report.of_footage(rows, draws=50).set_index("metric")
    assert table.loc["FR diff=2 half", "value"] == pytest.approx(1.5 / 4)
    assert table.loc["FR diff=2", "value"] == pytest.approx(1 / 4)
    assert table.loc["SRCC within source", "n_items"] == 6


@pytest.mark.slow
def test_the_chapter_measures_a_readers_own_clips_and_fetches_nothing(tmp_path, ffmpeg):
    (own := tmp_path / "own").mkdir()
    for name, file in (("cartoon", "clip.mp4"), ("leaves", "clip.m4v")):
        film = scenes.render(ONE_PER_FAMILY[name])[:6]
        encoding.encode(film, own / file, 12, 12)
    for name in baselines.FITS:
        fit = f"pocket/runs/{name}-s0/fit.csv"
        (tmp_path / fit).parent.mkdir(parents=True)
        shutil.copy(sweep.ROOT / "results" / fit, tmp_path / fit)
    given = {"clips": str(own), "results": str(tmp_path), "step": 18, "draws": 20}
    chapter = sweep.ROOT / "notebooks" / "87_benchmark_footage.ipynb"
    notebooks.execute(chapter, tmp_path / "out.ipynb", given)
    assert "On 2 new real clips" in (tmp_path / "out.ipynb").read_text()
    rows = pd.read_csv(tmp_path / "pocket" / "own_footage.csv")
    assert rows["video"].tolist()[:3] == [f"clip.m4v@crf{c}" for c in (15, 33, 51)]


@pytest.mark.slow
def test_the_chapter_on_key_frames_runs_small(tmp_path, ffmpeg):
    given = {"counts": "1 5", "length": 3, "step": 18, "draws": 40}
    chapter = sweep.ROOT / "notebooks" / "88_benchmark_frames.ipynb"
    notebooks.execute(chapter, tmp_path / "out.ipynb", given)
    said = (tmp_path / "out.ipynb").read_text()
    assert "The package scores by 5 key frames" in said and "24 validation sources" in said
