"""A file is whole under its name, whatever happens while it is written."""

import os

import pytest

from cpllm import atomic


def test_a_file_gets_its_name_when_all_is_written(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("old")
    with atomic.whole(path) as part:
        part.write_text("new")
        assert part.suffix == ".png" and path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_file_before_and_nothing_else(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("old")
    with pytest.raises(OSError, match=r"full: '.*/a\.png'"), atomic.whole(path) as part:
        part.write_text("n")
        raise OSError(28, "full")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


LEFT = (".a.csv.4711.part", ".a.4711.part.png", ".a.mp4.4711", "a.4711.part", "a.0f.part.npy")


def test_what_was_left_unfinished_goes_when_nobody_writes_it_any_more(tmp_path):
    for name in (*LEFT, "a.csv", "run.12", ".hidden", ".a.mp4.4712", "parts.npy"):
        (tmp_path / "below").mkdir(exist_ok=True)
        (tmp_path / "below" / name).write_text("")
        if name != ".a.mp4.4712":
            os.utime(tmp_path / "below" / name, (0, 0))
    atomic.tidy(tmp_path)
    assert {p.name for p in (tmp_path / "below").iterdir()} == {
        "a.csv", "run.12", ".hidden", ".a.mp4.4712", "parts.npy"}
    atomic.tidy(tmp_path / "nowhere")
