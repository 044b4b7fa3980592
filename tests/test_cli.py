"""`cpllm` in a terminal, with a tiny untrained model: scores mean nothing here, behaviour does."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

import cpllm
from cpllm import card, cli, config
from cpllm.data import encoding
from cpllm.judge import load


@pytest.fixture(scope="session")
def model(weights):
    return load(weights)


@pytest.fixture(scope="session")
def bad(tmp_path_factory, mp4):
    """Files that hold no whole video, by what is wrong with them."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "empty.mp4").touch()
    data = mp4.read_bytes()
    (folder / "truncated.mp4").write_bytes(data[: len(data) // 2])
    with av.open(folder / "audio.mp4", "w") as container:
        stream = container.add_stream("aac", rate=44100)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.rate = 44100
        container.mux(stream.encode(silence))
        container.mux(stream.encode(None))
    return [*sorted(folder.iterdir()), folder / "missing.mp4"]


def run(capsys, *words) -> tuple[int, str, str]:
    code = cli.main([str(word) for word in words])
    return (code, *capsys.readouterr())


def test_json_keeps_argument_order_and_full_precision(capsys, weights, model, mp4, bad):
    files = [bad[0], mp4, bad[1], mp4]
    code, out, _ = run(capsys, "score", *files, "--format", "json", "--weights", weights)
    rows = json.loads(out)
    assert code == 2
    assert [row["path"] for row in rows] == [str(f) for f in files]
    assert rows[1]["score"] == rows[3]["score"] == model.score(mp4).score
    assert rows[1]["error"] is None


def test_each_bad_file_gets_one_line_that_names_it_and_the_others_are_scored(
    capsys, weights, mp4, bad
):
    code, out, err = run(capsys, "score", *bad, mp4, "--format", "json", "--weights", weights)
    rows, lines = json.loads(out), err.splitlines()
    assert code == 2
    assert len(bad) == 4
    assert len(lines) == len(bad)
    for path, row, line in zip(bad, rows, lines, strict=False):
        assert str(path) in line
        assert row["score"] is None
        assert str(path) in row["error"]
    assert rows[-1]["score"] is not None


def test_good_files_exit_with_zero_in_every_format(capsys, weights, mp4):
    for form in ("table", "json", "csv"):
        code, out, err = run(capsys, "score", mp4, "--format", form, "--weights", weights)
        assert (code, err) == (0, "")
        assert out.strip()


def test_csv_has_a_row_per_file_with_empty_cells_for_errors(capsys, weights, mp4, bad):
    _, out, _ = run(capsys, "score", bad[0], mp4, "--format", "csv", "--weights", weights)
    broken, fine = csv.DictReader(io.StringIO(out))
    assert broken["score"] == "" != broken["error"]
    assert float(fine["score"]) > 0 == len(fine["error"])


def test_as_many_key_frames_are_looked_at_as_are_asked_for(capsys, weights, mp4):
    asked = ("score", mp4, "--weights", weights, "--format", "json", "--key-frames")
    code, out, _ = run(capsys, *asked, "4")
    assert code == 0 and len(json.loads(out)[0]["frames"]) == 4
    code, _, err = run(capsys, *asked, "0")
    assert code == 2 and "key_frames: expected 1 or more, got 0" in err


def test_a_lossless_copy_gets_the_same_score(model, mp4, tmp_path):
    """Other codec, container, name, size and bitrate; the same decoded pixels."""
    copy = tmp_path / "renamed.mkv"
    with av.open(mp4) as source, av.open(copy, "w") as target:
        stream = source.streams.video[0]
        out = target.add_stream("ffv1", rate=stream.average_rate)
        out.width, out.height, out.pix_fmt = stream.width, stream.height, stream.pix_fmt
        out.codec_context.colorspace = stream.codec_context.colorspace
        out.codec_context.color_range = stream.codec_context.color_range
        for frame in source.decode(stream):
            frame.pict_type = 0
            target.mux(out.encode(frame))
        target.mux(out.encode(None))
    assert copy.stat().st_size > 2 * mp4.stat().st_size
    assert model.score(copy).score == model.score(mp4).score


def test_a_score_is_the_mean_of_its_frames_and_repeats_exactly(model, mp4):
    first, again = model.score(mp4), model.score(mp4)
    assert first == again
    assert len(first.frames) == model.cfg.video.key_frames
    assert first.score == pytest.approx(np.mean(first.frames))
    assert 0 < first.score < 100


def test_compression_changes_the_score(model, frames, mp4, tmp_path):
    encoding.encode(frames, tmp_path / "worse.mp4", 51, 25)
    assert model.score(tmp_path / "worse.mp4").score != model.score(mp4).score


def test_compare_names_the_better_by_score_in_either_order(capsys, weights, frames, mp4, tmp_path):
    other = tmp_path / "other.mp4"
    encoding.encode(frames, other, 51, 25)
    answers = []
    for pair in ((mp4, other), (other, mp4)):
        code, out, _ = run(capsys, "compare", *pair, "--format", "json", "--weights", weights)
        result = json.loads(out)
        assert code == 0
        answers.append(pair[result["better"] == "second"])
    assert answers[0] == answers[1]


def test_describe_prints_text_and_score(capsys, weights, model, mp4):
    code, out, _ = run(capsys, "describe", mp4, "--weights", weights)
    assert code == 0
    assert f"{model.score(mp4).score:.1f}" in out


def test_describe_and_compare_refuse_a_bad_file_in_one_line(capsys, weights, mp4, bad):
    for words in (("describe", bad[0]), ("compare", mp4, bad[0])):
        code, out, err = run(capsys, *words, "--weights", weights)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert str(bad[0]) in err


def test_weights_that_are_none_are_refused_by_name(capsys, mp4):
    code, _, err = run(capsys, "score", mp4, "--weights", mp4)
    assert code == 2
    assert str(mp4) in err
    assert "safetensors" in err


def test_what_is_brought_trains_under_any_profile(capsys, tmp_path, monkeypatch):
    from cpllm import train

    seen = []
    monkeypatch.setattr(train, "run", lambda cfg, *rest: seen.append((cfg.profile, rest[-2])))
    brought = ["--data", str(tmp_path), "--start", str(tmp_path / "start.safetensors")]
    code, *_ = run(capsys, "train", "--profile", "paper", *brought)
    assert code == 0 and seen == [("paper", tmp_path / "start.safetensors")]
    assert config.paper().data.dataset != "scenes"


def test_the_paper_profile_says_what_to_bring(capsys):
    for verb in ("data", "train", "reproduce"):
        code, _, err = run(capsys, verb, "--profile", "paper")
        assert code == 2
        assert "LSVQ" in err
        assert "VideoPrism" in err
        assert "cpllm manifest build lsvq --root DIR" in err


def test_importing_the_package_costs_no_jax():
    code = "import sys, cpllm, cpllm.cli; sys.exit('jax' in sys.modules or 'av' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_package_offers_what_it_lists():
    assert all(callable(getattr(cpllm, name)) for name in cpllm.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = cpllm.nonsense


def test_a_fifo_is_refused_without_waiting(capsys, weights, tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    code, _, err = run(capsys, "score", tmp_path / "pipe.mp4", "--weights", weights)
    assert code == 2
    assert "no regular file" in err


def test_the_shipped_card_is_that_of_the_shipped_weights():
    if not card.beside(cpllm.infer.DEFAULT).exists():
        pytest.skip("no card is committed yet")
    assert card.of(cpllm.infer.DEFAULT) is not None, "cpllm calibrate makes it anew"


def test_the_shipped_model_scores_the_real_clips(real_clips, capsys):
    if not Path(cpllm.infer.DEFAULT).exists():
        pytest.skip("no default weights are committed yet")
    code, out, _ = run(capsys, "score", *real_clips, "--format", "json")
    rows = json.loads(out)
    assert code == 0
    assert len(rows) == len(real_clips)
    assert all(0 < row["score"] < 100 for row in rows)


# --- folders, patterns, plots -------------------------------------------------------------------


@pytest.fixture(scope="module")
def shelf(tmp_path_factory, mp4, bad):
    """Good and bad files, some of them deep or hidden, and what is no video."""
    folder = tmp_path_factory.mktemp("shelf")
    (folder / "deep" / "er").mkdir(parents=True)
    for name in ("b.mp4", "a.MKV", "deep/er/c.webm", "._b.mp4", "notes.txt", "deep/d"):
        (folder / name).write_bytes(mp4.read_bytes())
    (folder / "deep" / "bad.mp4").write_bytes(bad[2].read_bytes())
    return folder


def test_a_folder_is_scored_with_all_below_it_but_what_is_hidden_or_no_video(
        capsys, weights, shelf, model, mp4):
    code, out, err = run(capsys, "score", mp4, shelf, "--format", "json", "--weights", weights)
    rows = json.loads(out)
    assert (code, len(err.splitlines())) == (2, 1)
    assert [row["path"] for row in rows] == [str(mp4), *(
        str(shelf / name) for name in ("a.MKV", "b.mp4", "deep/bad.mp4", "deep/er/c.webm"))]
    expected = model.score(mp4).score
    assert [row["score"] for row in rows] == [expected, expected, expected, None, expected]


def test_a_pattern_is_matched_where_no_file_is_called_so(capsys, weights, shelf, monkeypatch):
    monkeypatch.chdir(shelf)

    def paths(*words):
        _, out, _ = run(capsys, "score", *words, "--format", "json", "--weights", weights)
        return [row["path"] for row in json.loads(out)]

    assert paths("*.mp4") == ["b.mp4"]
    assert paths("**/c.*", "b.mp4") == ["deep/er/c.webm", "b.mp4"]
    assert paths("*.avi") == ["*.avi"]
    (shelf / "b[1].mp4").write_bytes((shelf / "b.mp4").read_bytes())
    found = paths("b[1].mp4")
    (shelf / "b[1].mp4").unlink()  # the shelf serves other tests
    assert found == ["b[1].mp4"]


def test_a_folder_without_videos_is_refused_by_name(capsys, weights, tmp_path):
    code, _, err = run(capsys, "score", tmp_path, "--weights", weights)
    assert (code, len(err.splitlines())) == (2, 1)
    assert f"{tmp_path}: expected a video file, this is a directory, and nothing below" in err
    assert ".mkv" in err


def test_per_frame_shows_each_key_frame_with_its_time(capsys, weights, model, mp4):
    expected = model.score(mp4)
    _, out, _ = run(capsys, "score", mp4, "--per-frame", "--format", "csv", "--weights", weights)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [float(row["time"]) for row in rows] == list(expected.times)
    assert [float(row["frame_score"]) for row in rows] == list(expected.frames)
    assert {row["score"] for row in rows} == {str(expected.score)}
    _, out, _ = run(capsys, "score", mp4, "--per-frame", "--weights", weights)
    for time, score in zip(expected.times, expected.frames, strict=True):
        assert any(f"at {time:.2f} s" in line and f"{score:.1f}" in line
                   for line in out.splitlines())


def test_a_table_fits_a_narrow_terminal_and_a_pipe_keeps_names_whole(
        capsys, weights, tmp_path, mp4, monkeypatch):
    long = tmp_path / f"{'name-' * 20}.mp4"
    long.write_bytes(mp4.read_bytes())
    monkeypatch.setenv("COLUMNS", "50")
    _, out, _ = run(capsys, "score", long, "--weights", weights)
    assert max(map(len, out.splitlines())) <= 50
    monkeypatch.delenv("COLUMNS")
    _, out, _ = run(capsys, "score", long.relative_to(tmp_path.parent), mp4, "--weights", weights)
    assert str(mp4) in out


def test_warnings_are_a_list_in_json_and_footnotes_in_a_table(capsys, weights, mp4):
    _, out, _ = run(capsys, "score", mp4, mp4, "--format", "json", "--weights", weights)
    first, second = json.loads(out)
    (text,) = first["warnings"]
    assert second["warnings"] == [text] and first["low"] is None
    _, out, _ = run(capsys, "score", mp4, mp4, "--weights", weights)
    assert out.count(text) == 1 and f"1  {text}" in out


def test_plots_are_written_and_a_bad_name_for_one_is_refused_after_the_scores(
        capsys, weights, mp4, tmp_path):
    for words in (("score", mp4), ("ladder", mp4, "--crfs", 20, 40)):
        plot = tmp_path / f"{words[0]}.png"
        code, out, _ = run(capsys, *words, "--plot", plot, "--weights", weights)
        assert code == 0 and out and plot.read_bytes()[1:4] == b"PNG"
        code, out, err = run(capsys, *words, "--plot", tmp_path / "x.odd", "--weights", weights)
        assert code == 2 and out and "odd" in err


def test_a_ladder_in_json_has_a_row_per_crf(capsys, weights, mp4):
    code, out, _ = run(capsys, "ladder", mp4, "--crfs", 20, 40, "--format", "json",
                       "--weights", weights)
    found = json.loads(out)
    assert code == 0 and [r["crf"] for r in found["rungs"]] == [20, 40] and found["knee"] is None


def test_a_reader_that_leaves_early_is_no_error(weights, mp4):
    program = "import sys; from cpllm.cli import main; sys.exit(main())"
    command = f"{sys.executable} -c '{program}' score {mp4} --weights {weights} | true"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True,
                          text=True, check=False)
    assert done.stderr == ""
