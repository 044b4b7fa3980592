"""The ladder linter on real x264 encodes and on made tables."""

import shutil
import subprocess

import pandas as pd
import pytest

from cpllm import cli
from cpllm.data import encoding, lint, manifests
from cpllm.data.manifests import ManifestError
from tests.conftest import made_frames

PAPER = range(45, 54, 2)
"""The end of the paper's 15, 17, …, 53."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A ladder of the paper's, its last rungs, in a folder of its own."""
    path = tmp_path_factory.mktemp("ladder") / "sub"
    path.mkdir()
    for crf in PAPER:
        encoding.encode(made_frames(8), path / f"ball@crf{crf}.mp4", crf, 25)
    return path


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def kinds(path):
    return [(f.kind, f.videos) for f in lint.lint_path(path)[1]]


def table(**changes):
    made = {"ladder": "x", "crf": [21, 31, 41], "video": list("abc"), "sha256": list("123"),
            "frames": 8, "bytes": [900, 500, 100], "proxy": [95.0, 80.0, 40.0]}
    return pd.DataFrame(made | changes)


def test_crf_53_is_crf_51_and_is_named(folder, capsys):
    """Real encodes by the real encoder: the same frames, byte for byte the same picture data."""
    n, found = lint.lint_path(folder)
    assert n == 5
    assert [(f.kind, f.videos) for f in found] == [
        ("duplicate", ("ball@crf51.mp4", "ball@crf53.mp4"))]
    assert cli.main(["lint-ladder", str(folder.parent)]) == 1
    out = capsys.readouterr().out
    assert "sub/ball: duplicate: sub/ball@crf51.mp4, sub/ball@crf53.mp4: CRF 51 and 53" in out
    assert "5 rungs, 1 findings" in out


def test_pockets_levels_hold_no_duplicate(copy, capsys):
    (copy / "ball@crf53.mp4").unlink()
    assert cli.main(["lint-ladder", str(copy)]) == 0
    assert "4 rungs, 0 findings" in capsys.readouterr().out


def test_a_renamed_rung_is_a_duplicate_and_its_bytes_do_not_fall(copy):
    shutil.copyfile(copy / "ball@crf45.mp4", copy / "ball@crf49.mp4")
    (copy / "ball@crf53.mp4").unlink()
    assert kinds(copy) == [("duplicate", ("ball@crf45.mp4", "ball@crf49.mp4")),
                           ("rate", ("ball@crf47.mp4", "ball@crf49.mp4"))]


def test_a_lost_frame_is_named(copy):
    (copy / "ball@crf53.mp4").unlink()
    encoding.encode(made_frames(8)[:7], copy / "ball@crf47.mp4", 47, 25)
    assert ("frames", ("ball@crf47.mp4",)) in kinds(copy)


def test_drifting_timestamps_are_named(copy, ffmpeg):
    """The same packets, shown 10 % slower."""
    (copy / "ball@crf53.mp4").unlink()
    subprocess.run([ffmpeg, "-v", "error", "-itsscale", "1.1", "-i", copy / "ball@crf47.mp4",
                    "-c", "copy", copy / "slow.mp4"], check=True)
    (copy / "slow.mp4").replace(copy / "ball@crf47.mp4")
    found = [f for f in lint.lint_path(copy)[1] if f.kind == "timestamps"]
    assert [f.videos for f in found] == [("ball@crf47.mp4",)]
    assert "0.028 s" in found[0].text  # a tenth of 7 frames of 40 ms


def test_one_damaged_rung_is_named_and_the_rest_checked(copy):
    (copy / "ball@crf45.mp4").write_bytes(b"")
    assert [k for k, _ in kinds(copy)] == ["damaged", "duplicate"]
    (copy / "ball@crf45.mp4").write_bytes(b"nonsense")
    assert [k for k, _ in kinds(copy)] == ["damaged", "duplicate"]


def test_a_proxy_that_rises_is_named_with_both_values():
    assert lint.lint(table()) == []
    found = lint.lint(table(proxy=[95.0, 40.0, 40.5]))
    assert found == [lint.Finding("x", "proxy", ("b", "c"),
                                  "FR-proxy rises from CRF 31 to 41: 40.00 to 40.50")]


def test_rungs_are_compared_in_order_of_crf_and_within_their_ladder():
    mixed = pd.concat([table().iloc[::-1], table(ladder="y", sha256=list("456"))])
    assert lint.lint(mixed) == []
    assert lint.lint(table(bytes=[900, 100, 100]))[0].kind == "rate"


def test_a_duplicate_is_not_reported_again_as_a_rate_that_does_not_fall():
    found = lint.lint(table(sha256=["1", "2", "2"], bytes=[900, 500, 500]))
    assert [f.kind for f in found] == ["duplicate"]


def test_a_manifest_is_linted_by_its_columns(tmp_path, capsys):
    row = {"source": "s", "family": "photo", "split": "test", "distortion": "none", "strength": 0.0,
           "dataset": "x", "ssim": 0.9,
           "codec": "h264", "width": 64, "height": 48, "frames": 12, "fps": 25.0, "psnr": 33.5,
           "content": "a cat", "style": "flat", "scene": "s", "role": "variant"}
    rows = [row | {"video": f"s@crf{crf}", "crf": crf, "proxy": float(proxy), "bytes": 9000 - crf,
                   "sha256": f"{i:016x}"}
            for i, (crf, proxy) in enumerate(((21, 90), (31, 70), (41, 71)))]
    rows.append(rows[0] | {"video": "s@original", "role": "original", "crf": 10, "bytes": 1})
    manifests.write(pd.DataFrame(rows), tmp_path / "m.csv")
    assert cli.main(["lint-ladder", str(tmp_path / "m.csv")]) == 1
    out = capsys.readouterr().out
    assert "s h264: proxy: s@crf31, s@crf41" in out and "3 rungs, 1 findings" in out


def test_a_folder_without_ladders_is_refused(tmp_path):
    with pytest.raises(ManifestError, match="expected clips named like"):
        lint.lint_path(tmp_path)


@pytest.mark.parametrize("name", ["a@crf31", "a_crf_31", "a-crf31", "a.crf31"])
def test_common_names_of_rungs_are_understood(name):
    match = lint.RUNG.search(name)
    assert (match["scene"], int(match["crf"])) == ("a", 31)


def test_hash_is_over_frames_not_files(copy, ffmpeg):
    """Another container of the same packets is the same clip."""
    subprocess.run([ffmpeg, "-v", "error", "-i", copy / "ball@crf45.mp4", "-c", "copy",
                    copy / "ball@crf44.mkv"], check=True)
    assert ("duplicate", ("ball@crf44.mkv", "ball@crf45.mp4")) in kinds(copy)
