"""Readers and checks of the sets that users bring; made clips always, real rows where they are."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cpllm import cli
from cpllm.data import datasets, encoding, manifests
from cpllm.data.manifests import ManifestError
from tests.conftest import made_frames

LABELS = Path(__file__).resolve().parents[2] / "shared" / "labels"


@pytest.fixture
def root(tmp_path, mp4):
    """A small LSVQ on disk: six clips, the three text files that name them."""
    for i in range(6):
        path = tmp_path / "ia-batch1" / f"clip{i}.mp4"
        path.parent.mkdir(exist_ok=True)
        shutil.copyfile(mp4, path)
    for subset, chosen in {"train": (0, 1, 2), "test": (3, 4), "1080p": (5,)}.items():
        lines = [f"ia-batch1/clip{i}.mp4, -1, -1, {10 * i + 5}.5\n" for i in chosen]
        (tmp_path / f"lsvq_{subset}.txt").write_text("".join(lines))
    return tmp_path


def texts(root):
    return sorted(root.glob("*.txt"))


def run(capsys, action, root, *words):
    labels = ["--labels", *map(str, texts(root))] if action == "build" and texts(root) else []
    code = cli.main(["manifest", action, "lsvq", "--root", str(root), *labels, *words])
    return (code, *capsys.readouterr())


@pytest.mark.parametrize("name", datasets.names())
def test_every_card_is_whole_and_its_patterns_match_the_names_it_tells_of(name):
    card = datasets.card(name)
    assert card.mos.low < card.mos.high and card.mos.better in ("higher", "lower")
    assert all(told["rows"] and told["split"] in ("train", "test")
               for told in card.subsets.values())
    assert all((card.title, card.cite, card.terms, card.obtain, card.unverified, card.labels))


def test_key_frames_are_the_papers():
    """Sec. 4.1, implementation details."""
    m = {name: datasets.card(name).key_frames for name in datasets.names()}
    assert [m[n] for n in ("lsvq", "shorts-sdr", "shorts-hdr2sdr")] == [5, 5, 5]
    assert (m["live-yt-gaming"], m["yt-compress"], m["youtube-ugc"]) == (8, 19, 19)


def test_a_card_that_is_none_is_refused_with_the_known_ones():
    with pytest.raises(ManifestError, match=r"lsvq.*got '\.\./pocket'"):
        datasets.card("../pocket")


def test_text_rows_come_out_in_the_one_schema(tmp_path):
    path = tmp_path / "ugc.txt"
    path.write_text("\ufeffHDR_1080P-1a2b_crf_10_ss_00_t_20.0.mp4, 20.0, 29.97, 4.5\n"
                    "a, b/Vlog_360P-ffff_crf_10_ss_00_t_20.0.mp4, -1, -1, 1\n\n")
    table = datasets.rows(path, datasets.card("youtube-ugc"))
    assert list(table) == list(manifests.SUBJECTIVE)
    assert table["source"].tolist() == ["HDR_1080P-1a2b", "Vlog_360P-ffff"]
    assert table["family"].tolist() == ["HDR", "Vlog"]
    assert table["quality"].tolist() == [87.5, 0.0]  # (4.5 - 1) / (5 - 1)
    assert table["fps"][0] == 29.97 and np.isnan(table["fps"][1])
    assert table["path"][1].startswith("a, b/")
    assert table["video"].str.fullmatch(manifests.NAME).all()


def test_csv_with_is_test_gives_both_subsets_and_training_rows_for_validation(tmp_path):
    path = tmp_path / "labels_train_test.csv"
    made = pd.DataFrame({"name": [f"ia-batch1/{i}.mov" for i in range(400)], "height": 540,
                         "width": 960, "mos": np.linspace(0, 100, 400), "mos_p1": 3.0,
                         "frame_number": 240, "is_test": np.arange(400) % 4 == 0})
    made.to_csv(path, index=False)
    table = datasets.rows(path, datasets.card("lsvq"))
    assert (table["path"] == made["name"] + ".mp4").all()
    assert (table["dataset"] == np.where(made["is_test"], "lsvq-test", "lsvq-train")).all()
    assert set(table["split"][table["dataset"] == "lsvq-test"]) == {"test"}
    held_out = (table["split"] == "validation").sum()
    assert 0 < held_out < 20  # of 300, 2 % expected
    assert table["frames"].dtype == "Int64" and (table["width"] == 960).all()


def test_xlsx_is_read_from_its_sheet_whatever_the_columns_capitals(tmp_path):
    path = tmp_path / "MOS_for_YouTube_UGC_dataset.xlsx"
    with pd.ExcelWriter(path) as book:
        pd.DataFrame({"note": ["read me"]}).to_excel(book, sheet_name="About", index=False)
        pd.DataFrame({"vid": ["Gaming_720P-00ff"], "category": ["Gaming"], "MOSfull": [3.5]}) \
            .to_excel(book, sheet_name="MOS", index=False)
    table = datasets.rows(path, datasets.card("youtube-ugc"))
    assert table["path"].tolist() == ["Gaming_720P-00ff_crf_10_ss_00_t_20.0.mp4"]
    assert table["mos"].tolist() == [3.5]


def test_xlsx_keeps_variants_with_their_source_and_dmos_as_it_comes(tmp_path):
    path = tmp_path / "dmos.xlsx"
    names = [f"Gaming_720P-00ff_{v}" for v in ("orig", "cbr", "vod", "vodlb")]
    made = pd.DataFrame({"vid": names, "MOS": [4, 3, 3.5, 2], "DMOS": ["", -1, 0.5, 2]})
    made.to_excel(path, index=False)
    table = datasets.rows(path, datasets.card("yt-compress"))
    assert table["source"].unique().tolist() == ["Gaming_720P-00ff"]
    assert table["role"].tolist() == ["original", *["variant"] * 3]
    assert np.isnan(table["dmos"][0]) and table["dmos"][1:].tolist() == [-1, 0.5, 2]


def test_a_suffix_is_the_one_on_disk(tmp_path, mp4):
    names = [f"Gaming_720P-00ff_{v}" for v in ("orig", "cbr")]
    for name, suffix in zip(names, (".mp4", ".webm"), strict=True):
        shutil.copyfile(mp4, tmp_path / f"{name}{suffix}")
    pd.DataFrame({"vid": names, "mos": [4, 3]}).to_csv(tmp_path / "l.csv", index=False)
    table, _, bad = datasets.build("yt-compress", tmp_path, [tmp_path / "l.csv"], progress=False)
    assert table["path"].tolist() == [f"{names[0]}.mp4", f"{names[1]}.webm"] and not bad


def test_mat_vectors_become_rows(tmp_path):
    from scipy.io import savemat

    path = tmp_path / "LIVE-YT-Gaming.mat"
    held = {"MOS": np.array([[55.5], [80.0]]), "fps": np.array([30.0]),
            "video_list": np.array([["CSGO-002"], ["GTA-001.mp4"]], object)}
    savemat(path, held)
    table = datasets.rows(path, datasets.card("live-yt-gaming"))
    assert table["path"].tolist() == ["CSGO-002.mp4", "GTA-001.mp4"]
    assert table["mos"].tolist() == [55.5, 80.0]
    assert table["family"].tolist() == ["CSGO", "GTA"]


def test_a_label_file_that_is_damaged_or_unknown_is_named(tmp_path):
    card = datasets.card("lsvq")
    for name, text in {"a.xlsx": "no zip", "b.mat": "no mat", "c.parquet": "", "d_train.txt": "x"
                       }.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(ManifestError, match=name):
            datasets.rows(tmp_path / name, card)


def test_a_missing_column_is_named_with_those_there_are_and_can_be_given(tmp_path):
    path = tmp_path / "shorts.csv"
    path.write_text("clip,rating\nSDR_Animal_01ld,4\n")
    card = datasets.card("shorts-sdr")
    with pytest.raises(ManifestError, match=r"no column for path; the file has clip, rating"):
        datasets.rows(path, card)
    table = datasets.rows(path, card, {"path": "clip", "mos": "rating"})
    assert table["quality"].tolist() == [75.0]


@pytest.mark.parametrize("escape", ["../x.mp4", "/etc/x.mp4", "a/../../x.mp4", "C:/x.mp4",
                                    "a\\..\\x.mp4", ".."])
def test_a_path_out_of_the_root_is_refused_with_its_row(tmp_path, escape):
    path = tmp_path / "lsvq_train.txt"
    path.write_text(f"ok.mp4, -1, -1, 50\n{escape}, -1, -1, 50\n")
    with pytest.raises(ManifestError, match=r"lsvq_train.txt: row 2 .*column (path|video)"):
        datasets.rows(path, datasets.card("lsvq"))


@pytest.mark.parametrize("mos", ["-1", "100.5", "nan", "", "good"])
def test_a_score_outside_of_the_sets_range_is_refused_with_its_row(tmp_path, mos):
    path = tmp_path / "lsvq_test.txt"
    path.write_text(f"a.mp4, -1, -1, 50\nb.mp4, -1, -1, {mos}\n")
    with pytest.raises(ManifestError, match=r"row 2 \(b\), column mos: .* 0 to 100"):
        datasets.rows(path, datasets.card("lsvq"))


def test_where_lower_is_better_quality_is_turned_round(tmp_path):
    card = dataclasses.replace(datasets.card("lsvq"), mos=datasets.Scale(1, 5, "lower"))
    (tmp_path / "lsvq_test.txt").write_text("a.mp4, -1, -1, 1\nb.mp4, -1, -1, 4\n")
    assert datasets.rows(tmp_path / "lsvq_test.txt", card)["quality"].tolist() == [100.0, 25.0]


def test_a_clip_named_twice_is_refused(root):
    texts(root)[0].write_text("ia-batch1/clip3.mp4, -1, -1, 50\n")
    with pytest.raises(ManifestError, match=r"ia-batch1_clip3.*occurs once"):
        datasets.build("lsvq", root, texts(root), progress=False)


def test_a_whole_set_is_built_and_found_whole_again(capsys, root):
    code, out, _ = run(capsys, "build", root)
    table = manifests.read(root / "manifest.csv")
    assert code == 0 and len(table) == 6
    assert "lsvq-1080p: 1 rows (known counts: 3,573; 3,561; 2,575)" in out
    assert manifests.sha256(table) in out
    assert (table[["width", "height", "frames", "fps"]] == [128, 96, 12, 25.0]).all(axis=None)
    assert run(capsys, "check", root)[0] == 0


def test_bad_files_are_named_and_leave_the_rest_intact(capsys, root):
    run(capsys, "build", root)
    (root / "ia-batch1" / "clip1.mp4").rename(root / "ia-batch1" / "renamed.mp4")
    (root / "ia-batch1" / "clip2.mp4").write_bytes(b"")
    whole = (root / "ia-batch1" / "clip3.mp4").read_bytes()
    (root / "ia-batch1" / "clip3.mp4").write_bytes(whole[:len(whole) // 2])
    for action in ("check", "build"):
        code, out, _ = run(capsys, action, root)
        assert code == 1
        assert "ia-batch1/clip1.mp4: missing" in out
        assert "ia-batch1/clip2.mp4: expected a video file, this one is empty" in out
        assert "ia-batch1/clip3.mp4: " in out
        assert f"LSVQ: 1 of 6 clips missing under {root} (first: ia-batch1/clip1.mp4); " \
               "see data_manifests/lsvq.yaml" in out
        assert "2 of 6 clips damaged" in out
    assert set(manifests.read(root / "manifest.csv")["video"]) == {
        f"ia-batch1_clip{i}" for i in (0, 4, 5)}


def test_three_bad_files_among_a_thousand_are_named_and_no_other(tmp_path, mp4):
    names = [f"clip{i}.mp4" for i in range(1000)]
    for name in names:
        (tmp_path / name).hardlink_to(mp4)
    (tmp_path / "lsvq_train.txt").write_text("".join(f"{n}, -1, -1, 50\n" for n in names))
    (tmp_path / "clip7.mp4").rename(tmp_path / "renamed.mp4")
    for name, content in (("clip77.mp4", b""), ("clip777.mp4", mp4.read_bytes()[:-300])):
        (tmp_path / name).unlink()
        (tmp_path / name).write_bytes(content)
    table, _, bad = datasets.build("lsvq", tmp_path, [tmp_path / "lsvq_train.txt"], progress=False)
    assert [*bad] == ["clip7.mp4", "clip77.mp4", "clip777.mp4"]
    assert bad["clip7.mp4"] == "missing" and "empty" in bad["clip77.mp4"]
    assert "truncated" in bad["clip777.mp4"]
    assert table["path"].tolist() == [name for name in names if name not in bad]


def test_a_clip_that_was_exchanged_is_noticed_by_its_size(capsys, root):
    run(capsys, "build", root)
    (root / "ia-batch1" / "clip0.mp4").open("ab").write(b"\0" * 8)
    code, out, _ = run(capsys, "check", root)
    assert code == 1 and "clip0.mp4: expected" in out and "bytes as in the manifest" in out


def test_damage_inside_a_clip_is_found_by_decoding_all_of_it(root):
    path = root / "ia-batch1" / "clip0.mp4"
    encoding.encode(made_frames(), path, 10, 25)
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") - 4
    size = int.from_bytes(data[start:start + 4], "big")
    late = slice(start + size * 3 // 4, start + size)  # the first frames and the index stay
    data[late] = b"\xff" * (late.stop - late.start)
    path.write_bytes(data)
    table = datasets.rows(root / "lsvq_train.txt", datasets.card("lsvq"))
    _, shallow = datasets.inspect(table, root, progress=False)
    _, deep = datasets.inspect(table, root, decode=True, progress=False)
    assert (list(shallow), list(deep)) == ([], ["ia-batch1/clip0.mp4"])


def test_the_wrong_folder_is_refused_with_how_to_obtain_the_set(capsys, root, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    code, _, err = run(capsys, "build", empty)
    assert code == 2 and "request form" in err and "labels_train_test.csv" in err
    code = cli.main(["manifest", "build", "lsvq", "--root", str(empty), "--labels",
                     *map(str, texts(root))])
    assert code == 2 and "none of 6 clips found whole" in capsys.readouterr().err


def test_sources_in_two_splits_are_counted_and_the_first_named(root):
    (root / "ia-batch2").mkdir()
    shutil.copyfile(root / "ia-batch1" / "clip0.mp4", root / "ia-batch2" / "clip0.mp4")
    texts(root)[0].write_text("ia-batch2/clip0.mp4, -1, -1, 50\n")
    _, found, _ = datasets.build("lsvq", root, texts(root), progress=False)
    assert any("1 sources lie in several splits (first: clip0)" in line for line in found)


@pytest.mark.parametrize(("name", "files", "rows"), [
    ("lsvq", ("lsvq_train", "lsvq_test", "lsvq_1080p"), (28056, 7186, 3573)),
    ("youtube-ugc", ("youtube_ugc",), (1147,)), ("konvid-1k", ("konvid",), (1200,))])
def test_real_label_rows_are_read_whole(name, files, rows):
    if not LABELS.exists():
        pytest.skip("no real label rows beside the checkout (../shared/labels)")
    card = datasets.card(name)
    parts = [datasets.rows(LABELS / f"{file}.txt", card) for file in files]
    assert tuple(map(len, parts)) == rows
    table = manifests.check(pd.concat(parts, ignore_index=True))
    assert all("known counts" not in line and "the card knows 96" not in line
               for line in datasets.remarks(table, card))
    assert len(manifests.leaks(table)) == card.leaks
    assert not set(table["source"][table["split"] == "train"]) & set(
        table["source"][table["split"] == "validation"])


def test_families_and_faults_are_left_out_by_name_and_an_unknown_one_is_refused():
    table = pd.DataFrame({"family": ["bokeh", "text", "bokeh"],
                          "distortion": ["none", "blur", "noise"]})
    assert manifests.without(table, ()) is table
    assert manifests.without(table, ["bokeh"])["family"].tolist() == ["text"]
    assert manifests.without(table, ["blur"], "distortion")["distortion"].tolist() == [
        "none", "noise"]
    with pytest.raises(ValueError, match="the family bokhe; known are bokeh, text: see data"):
        manifests.without(table, ["bokhe"])
    with pytest.raises(ValueError, match="the distortion text; known are blur, noise, none: see"):
        manifests.without(table, ["text"], "distortion")


def test_training_and_scoring_read_both_kinds_of_manifest():
    made = pd.DataFrame({"video": ["a@crf31"], "proxy": [70.0]})
    brought = pd.DataFrame({"video": ["a"], "path": ["b/a.webm"], "mos": [4.0], "quality": [75.0]})
    assert manifests.quality(made).tolist() == [70.0]
    assert manifests.quality(brought).tolist() == [75.0]
    assert manifests.files(made).tolist() == ["a@crf31.mp4"]
    assert manifests.files(brought).tolist() == ["b/a.webm"]
