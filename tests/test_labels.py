import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from cpllm.data import encoding, labels, manifests
from cpllm.data.manifests import ManifestError
from tests.conftest import made_frames


@pytest.fixture(scope="module")
def pristine(tmp_path_factory, frames):
    path = tmp_path_factory.mktemp("labels") / "pristine.mp4"
    encoding.encode(frames, path, crf=0, fps=25, preset="ultrafast")
    return path


@pytest.fixture
def variant(tmp_path, frames):
    def make(crf, frames=frames):
        path = tmp_path / f"{crf}-{len(frames)}.mp4"
        encoding.encode(frames, path, crf, 25)
        return path
    return make


def test_identical_clip_scores_at_the_top(ffmpeg, pristine):
    label = labels.vmaf([pristine], pristine, 96)[0]
    assert label.proxy > 95 and label.psnr == 60


def test_proxy_and_psnr_fall_with_compression(ffmpeg, pristine, variant):
    found = labels.vmaf([variant(crf) for crf in (13, 25, 37, 49)], pristine, 96)
    assert all(np.diff([f.proxy for f in found]) < 0)
    assert all(np.diff([f.psnr for f in found]) < 0)


def test_psnr_is_that_of_luma(ffmpeg, pristine, variant):
    import av

    path, luma = variant(31), []
    for name in (path, pristine):
        with av.open(str(name)) as container:
            luma.append(np.stack([f.to_ndarray()[:96] for f in container.decode(video=0)], 0))
    error = ((luma[0].astype(float) - luma[1]) ** 2).mean((1, 2))
    expected = (10 * np.log10(255**2 / error)).mean()
    assert labels.vmaf([path], pristine, 96)[0].psnr == pytest.approx(expected, abs=1e-3)


def test_ssim_is_what_the_plain_filter_says(ffmpeg, pristine, variant):
    path = variant(31)
    said = subprocess.run([ffmpeg, "-i", path, "-i", pristine, "-lavfi", "ssim", "-f", "null", "-"],
                          capture_output=True, text=True, check=True).stderr
    expected = float(said.split("SSIM Y:")[1].split()[0])
    assert labels.vmaf([path], pristine, 96)[0].ssim == pytest.approx(expected, abs=1e-4)


def test_every_second_frame_gives_nearly_the_same(ffmpeg, pristine, variant):
    path = variant(37)
    every, second = (labels.vmaf([path], pristine, 96, n)[0] for n in (1, 2))
    assert second.ssim == every.ssim
    assert second.proxy != every.proxy and abs(second.proxy - every.proxy) < 3


def test_dmos_proxy_is_what_the_variant_lost_against_its_own_original():
    rows = [("a", "original", "none", 95.0), ("a", "variant", "none", 70.0),
            ("a", "original", "blur", 60.0), ("a", "variant", "blur", 55.0),
            ("b", "variant", "none", 40.0)]
    table = pd.DataFrame(rows, columns=["scene", "role", "distortion", "proxy"])
    lost = labels.dmos_proxy(table.assign(strength=0.0))
    np.testing.assert_array_equal(lost, [np.nan, 25, np.nan, 5, np.nan])


def test_proxy_is_what_the_plain_filter_says(ffmpeg, pristine, variant, tmp_path):
    """libvmaf takes the distorted clip first; swapped, it gives another number."""
    path = variant(37)
    subprocess.run([ffmpeg, "-v", "error", "-i", path, "-i", pristine, "-lavfi",
                    "[0:v][1:v]libvmaf=log_fmt=json:log_path=log.json", "-f", "null", "-"],
                   cwd=tmp_path, check=True)
    plain = json.loads((tmp_path / "log.json").read_text())["pooled_metrics"]["vmaf"]["mean"]
    assert labels.vmaf([path], pristine, 96)[0].proxy == pytest.approx(plain, abs=1e-3)


def test_labels_keep_their_order_over_several_processes(ffmpeg, pristine, variant, monkeypatch):
    paths = [variant(crf) for crf in (40, 20, 30)]
    together = labels.vmaf(paths, pristine, 96)
    monkeypatch.setattr(labels, "GROUP", 2)
    assert labels.vmaf(paths, pristine, 96) == together


def test_timestamps_do_not_count(ffmpeg, pristine, variant, tmp_path):
    """Mismatched timestamps once gave 80.5 for 98.0."""
    usual, late = variant(25), tmp_path / "late.mkv"
    subprocess.run([ffmpeg, "-v", "error", "-itsscale", "3.7", "-i", usual, "-c", "copy",
                    "-output_ts_offset", "1.3", late], check=True)
    found = labels.vmaf([usual, late], pristine, 96)
    assert found[0] == found[1]


def test_lost_frame_is_refused(ffmpeg, pristine, variant, frames):
    with pytest.raises(labels.LabelError, match=r"25-11\.mp4: expected 12 frames .* came 11"):
        labels.vmaf([variant(25, frames=frames[:11])], pristine, 96)


def test_both_clips_are_scaled_to_the_declared_lines(ffmpeg, pristine, variant):
    path = variant(37)
    assert labels.vmaf([path], pristine, 96) != labels.vmaf([path], pristine, 192)
    graph = labels._graph(1, labels.video.probe(pristine), 540, 1)
    assert graph.count("scale=720:540") == 2


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(labels.LabelError, match=r"extra `labels`.*pip install"):
        labels.program()


def test_file_names_cannot_reach_the_filter_graph(ffmpeg, pristine, tmp_path, frames):
    path = tmp_path / "a b;c[d]'e,f:g=h.mp4"
    encoding.encode(frames, path, 31, 25)
    assert labels.vmaf([path], pristine, 96)[0].proxy > 20


# --- manifests ----------------------------------------------------------------------------------


def table(n=4):
    rows = [{"video": f"s{i}@crf31", "scene": f"s{i}", "source": f"s{i}", "family": "photo",
             "split": ("train", "test")[i % 2], "dataset": "lsvq-train", "role": "variant",
             "distortion": "none", "strength": 0.0, "codec": "h264", "crf": 31, "width": 64,
             "height": 48, "frames": 12, "fps": 25.0, "proxy": 70.0 + i, "psnr": 33.5,
             "ssim": 0.9, "bytes": 1000, "sha256": f"{i:016x}", "file": f"{i:016x}",
             "content": "a cat, asleep", "style": "NA"} for i in range(n)]
    return pd.DataFrame(rows)


def test_manifest_survives_writing_and_reading(tmp_path):
    manifests.write(table(), tmp_path / "m.csv")
    again = manifests.read(tmp_path / "m.csv")
    pd.testing.assert_frame_equal(again, table(), check_dtype=False)
    assert (again["style"] == "NA").all() and again["crf"].dtype == int
    assert [p.name for p in tmp_path.iterdir()] == ["m.csv"]


def test_digest_ignores_row_order_but_no_value(tmp_path):
    manifests.write(table(), tmp_path / "m.csv")
    digest = manifests.sha256(table())
    assert manifests.sha256(table()[::-1]) == digest == manifests.sha256(tmp_path / "m.csv")
    assert manifests.sha256(table().assign(proxy=71.0)) != digest


def test_digest_of_training_data_ignores_test_rows():
    seen = table().assign(split="train")
    names = {c: "t" + seen[c] for c in ("video", "scene", "source")}
    both = pd.concat([seen, seen.assign(split="test", **names)])
    digest = manifests.sha256(both, manifests.TRAINING)
    assert digest == manifests.sha256(seen) != manifests.sha256(both)


@pytest.mark.parametrize(("column", "value", "expected"), [
    ("proxy", 100.5, "a number from 0 to 100"), ("proxy", np.nan, "a number from 0 to 100"),
    ("proxy", "high", "a number"), ("crf", 31.5, "a whole number from 0 to 63"),
    ("strength", np.inf, "a number"), ("split", "tset", "text matching train|validation|test"),
    ("video", "../escape", "text matching"), ("video", "s0@crf31", "a name that occurs once"),
    ("content", "", "text matching"), ("sha256", "XYZ", "text matching"),
])
def test_wrong_value_is_refused_with_its_row_and_column(tmp_path, column, value, expected):
    wrong = table().astype({column: object})
    wrong.loc[2, column] = value
    wrong.to_csv(tmp_path / "m.csv", index=False)
    with pytest.raises(ManifestError) as caught:
        manifests.read(tmp_path / "m.csv")
    text = str(caught.value)
    assert f"row 4 ({wrong['video'][2]}), column {column}: expected {expected}" in text
    assert "m.csv" in text and "\n" not in text


def test_missing_and_unknown_columns_are_named(tmp_path):
    table().rename(columns={"proxy": "mos"}).to_csv(tmp_path / "m.csv", index=False)
    with pytest.raises(ManifestError, match=r"missing columns: proxy; unknown: mos"):
        manifests.read(tmp_path / "m.csv")


def test_source_in_two_splits_is_refused():
    leaky = table().assign(source="one photograph")
    with pytest.raises(ManifestError, match="column source"):
        manifests.check(leaky)
    leaky = table().assign(source="photo")
    with pytest.raises(ManifestError, match=r"row 3 .* column split: expected one split"):
        manifests.check(leaky)
    parts = {s: t for s, t in leaky.groupby("split")}
    with pytest.raises(ManifestError, match="'photo' lies in both"):
        manifests.check_splits(parts)


def test_missing_or_garbled_file_is_named(tmp_path):
    (tmp_path / "m.csv").write_text('a,b\n1,2,3\n"')
    for name in ("no.csv", "m.csv"):
        with pytest.raises(ManifestError, match=name):
            manifests.read(tmp_path / name)


def test_made_frames_are_the_same_every_time():
    np.testing.assert_array_equal(made_frames(3), made_frames(3))
