import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest

from cpllm import cli, config, sweep
from cpllm.data import distort, encoding, labels, ladder, manifests, scenes

TINY = config.replace(config.smoke(), **{
    "data.train_scenes": 2, "data.validation_scenes": 0, "data.test_scenes": 1, "data.frames": 3,
    "data.singles": (0, 0, 0), "data.other_ladders": 0, "data.distorted": 1,
    "data.crfs": (20, 40), "data.max_lines": 64, "data.proxy_lines": 64})


def build(root, *splits, committed=Path("none"), workers=1):
    return ladder.build(TINY, root, *splits, progress=False, workers=workers, committed=committed)


@pytest.fixture(scope="module")
def built(tmp_path_factory, ffmpeg):
    """The tiny configuration, built in this process."""
    root = tmp_path_factory.mktemp("ladder")
    return root, build(root)


def stamps(root):
    return {p.name: p.stat().st_mtime_ns for p in root.glob("*.mp4")}


# --- building -----------------------------------------------------------------------------------


def test_every_scene_has_its_original_its_ladder_and_its_distortions(built):
    root, table = built
    assert len(table) == 3 * (1 + 2 + 1) and set(table["split"]) == {"train", "test"}
    for scene, rows in table.groupby("scene"):
        clean = rows[rows["distortion"] == "none"].set_index("video")
        assert clean["role"].to_dict() == {f"{scene}@original": "original",
                                           f"{scene}@crf20": "variant", f"{scene}@crf40": "variant"}
        assert clean["crf"].tolist() == [10, 20, 40]
        faulty = rows[rows["distortion"] != "none"]
        assert (faulty["role"] == "original").all() and (faulty["crf"] == 10).all()
        assert (faulty["video"] == f"{scene}@" + faulty["distortion"] + "-0").all()
    assert {f"{v}.mp4" for v in table["video"]} == {p.name for p in root.glob("*.mp4")}
    assert all((root / f"{r.video}.mp4").stat().st_size == r.bytes for r in table.itertuples())


def test_labels_fall_along_the_ladder(built):
    for _, rows in built[1].groupby("scene"):
        by_crf = rows[rows["distortion"] == "none"].sort_values("crf")
        assert all(np.diff(by_crf["proxy"]) < 0) and all(np.diff(by_crf["psnr"]) < 0)


def test_manifest_on_disk_is_the_one_returned(built):
    root, table = built
    pd.testing.assert_frame_equal(manifests.read(root / "manifest.csv"), table)
    assert table["sha256"][0] == encoding.frames_sha256(root / f"{table['video'][0]}.mp4")


def test_record_says_each_encoders_options(built):
    root, table = built
    for scene in table["scene"].unique():
        told = json.loads((root / f"{scene}.json").read_text())["options"]
        assert told[f"{scene}@crf40"] == {"crf": "40", "preset": TINY.data.preset} | distort.X264
        assert told.keys() == set(table["video"][table["scene"] == scene])


def test_frames_do_not_depend_on_avx_512(monkeypatch):
    """Neither x264 nor NumPy may use it; what this processor has is asked of the system."""
    if not (told := Path("/proc/cpuinfo")).exists() or "avx2" not in told.read_text().split():
        pytest.skip("no x86 processor with AVX2, or no Linux to ask about it")
    assert distort.X264 == {"x264-params": "asm=avx2"}
    program = ("from cpllm import data; data.without_avx512();"
               "from cpllm.data import distort as d;"
               "print(d.np.show_config('dicts')['SIMD Extensions']['found'], d.X264)")
    monkeypatch.delenv("NPY_DISABLE_CPU_FEATURES")
    seen = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                          check=True)
    assert seen.stdout == "['X86_V3'] {'x264-params': 'asm=avx2'}\n" and not seen.stderr


def test_workers_started_by_hand_do_without_avx_512_too(monkeypatch):
    """As where a reader executes the notebook of training in Jupyter, which has imported NumPy."""
    monkeypatch.delenv("NPY_DISABLE_CPU_FEATURES")
    code = "__import__('numpy').show_config('dicts')['SIMD Extensions']['found']"
    found = [came for _, came in ladder.spread([(eval, code)] * 2, 2, None)]
    if "X86_V3" not in np.show_config("dicts")["SIMD Extensions"]["found"]:
        pytest.skip("no x86 processor with AVX2")
    assert found == [["X86_V3"]] * 2


def test_second_build_makes_nothing(built, monkeypatch):
    root, table = built
    monkeypatch.setattr(ladder, "make", lambda *_: pytest.fail("made again"))
    before = stamps(root)
    again = build(root)
    pd.testing.assert_frame_equal(again, table)
    assert stamps(root) == before


def test_finished_scenes_of_a_neighbour_are_copied_and_others_made(built, tmp_path, monkeypatch):
    root, table = built
    near, made = tmp_path / "near", []
    shutil.copytree(root, near)
    spoilt = table["scene"].iloc[0]
    (near / f"{spoilt}.json").write_text("{}")
    make = ladder.make
    monkeypatch.setattr(ladder, "make", lambda s, *rest: made.append(s.name) or make(s, *rest))
    again = ladder.build(TINY, tmp_path / "new", progress=False, workers=1, beside=near,
                         committed=Path("none"))
    assert made == [spoilt]
    pd.testing.assert_frame_equal(again, table)


def test_damaged_or_missing_clip_is_made_again_and_no_other(built):
    root, table = built
    before = stamps(root)
    hurt, lost = (table[table["scene"] == s]["video"].iloc[1] for s in table["scene"].unique()[:2])
    whole = (root / f"{hurt}.mp4").read_bytes()
    (root / f"{hurt}.mp4").write_bytes(whole[:-1] + b"?")
    (root / f"{lost}.mp4").unlink()
    pd.testing.assert_frame_equal(build(root), table)
    scenes_made = {n.split("@")[0] for n, stamp in stamps(root).items() if stamp != before.get(n)}
    assert (root / f"{hurt}.mp4").read_bytes() == whole
    assert scenes_made == {hurt.split("@")[0], lost.split("@")[0]}


def test_another_recipe_makes_clips_again(built, tmp_path):
    root, _ = built
    scene = scenes.catalog(TINY.data)[0]
    assert ladder._recorded(scene, TINY.data, root) is not None
    assert ladder._recorded(scene, replace(TINY.data, preset="fast"), root) is None
    assert ladder._recorded(replace(scene, seed=scene.seed + 1), TINY.data, root) is None


def test_layout_and_comments_of_the_renderers_do_not_count(tmp_path):
    source = "import os\nx = f(1, 2)\n"
    assert ladder._syntax(source) == ladder._syntax("import os  # why\n\nx = f(1,\n      2)\n")
    assert ladder._syntax(source) != ladder._syntax("import os\nx = f(1, 3)\n")


def test_failed_scene_is_named_when_the_others_are_done(tmp_path, monkeypatch):
    catalog = scenes.catalog(TINY.data)
    broken = replace(catalog[1], family="no such family", source="nowhere")
    monkeypatch.setattr(scenes, "catalog", lambda data: (catalog[0], broken, catalog[2]))
    with pytest.raises(ladder.BuildError) as caught:
        build(tmp_path)
    assert f"1 of 3 scenes failed (first: {broken.name}: " in str(caught.value)
    assert pd.read_csv(tmp_path / "failed.csv")["scene"].tolist() == [broken.name]
    assert {p.stem for p in tmp_path.glob("*.json")} == {catalog[0].name, catalog[2].name}
    assert not (tmp_path / "manifest.csv").exists()


def test_failed_encode_is_named_and_the_scene_s_others_are_made(tmp_path, monkeypatch):
    scene, write = scenes.catalog(TINY.data)[0], encoding.encode
    monkeypatch.setattr(encoding, "encode", lambda frames, path, crf, *more:
                        write(frames, path, crf, *more) if crf != 40 else 1 / 0)
    with pytest.raises(ladder.BuildError, match=f"{scene.name}@crf40: ZeroDivisionError"):
        ladder.make(scene, TINY.data, tmp_path, ladder.read_committed(Path("none")))
    assert {p.name for p in tmp_path.glob("*@crf*")} == {f"{scene.name}@crf20.mp4"}
    assert not list(tmp_path.glob("*.json"))


def test_encode_that_cannot_be_decoded_is_quarantined(tmp_path, monkeypatch):
    scene, write = scenes.catalog(TINY.data)[0], encoding.encode
    bad = tmp_path / f"{scene.name}@crf40.mp4"

    def spoil(frames, path, *more):
        write(frames, path, *more)
        if path == bad:
            path.write_bytes(b"not a video")

    monkeypatch.setattr(encoding, "encode", spoil)
    with pytest.raises(ladder.BuildError, match=f"^{bad.stem}: "):
        ladder.make(scene, TINY.data, tmp_path, ladder.read_committed(Path("none")))
    assert not bad.exists()
    assert (tmp_path / "quarantine" / bad.name).read_bytes() == b"not a video"


def test_bad_files_are_named_and_the_others_are_whole(built, tmp_path):
    root, table = built
    for path in root.glob("*.mp4"):
        shutil.copy(path, tmp_path)
    assert ladder.verify(table, tmp_path) == {}
    corrupt, empty, lost, swapped = table["video"][[0, 2, 4, 6]]
    (tmp_path / f"{corrupt}.mp4").write_bytes(b"not a video" * 99)
    (tmp_path / f"{empty}.mp4").write_bytes(b"")
    (tmp_path / f"{lost}.mp4").rename(tmp_path / "renamed.mp4")
    shutil.copy(tmp_path / f"{table['video'][1]}.mp4", tmp_path / f"{swapped}.mp4")
    wrong = ladder.verify(table, tmp_path)
    assert {*wrong} == {corrupt, empty, lost, swapped}
    assert wrong[empty] == "empty file" and wrong[lost] == "no such file"
    assert wrong[corrupt].startswith("cannot be decoded") and "expected frames" in wrong[swapped]


def test_uploads_of_every_set_are_as_declared():
    data = config.pocket().data
    for scene in scenes.catalog(data):
        rows = ladder.clips(scene, data)
        assert len({r["video"] for r in rows}) == len(rows)
        assert all(r["video"].split("@")[0] == scene.name for r in rows)
        if scene.codecs:
            assert sum(r["role"] == "variant" and r["codec"] == "h264" for r in rows) == 20
        elif scene.dataset == "yt-compress":
            assert [r["codec"] for r in rows] == ["h264", "vp9", "vp9"]
            assert len({(r["distortion"], r["take"]) for r in rows}) == 1
        elif scene.split == "test" and scene.family in scenes.FIGURE1:
            assert [r["distortion"] for r in rows] == ["none", scenes.FIGURE1[scene.family]]
            assert 0.35 <= rows[1]["strength"] <= 1
        elif scene.split == "test":
            assert len(rows) == 1 and rows[0]["role"] == "original"


def test_processes_make_the_same_as_one(built, tmp_path):
    pd.testing.assert_frame_equal(build(tmp_path, workers=2), built[1])


def test_a_cluster_at_an_address_makes_the_same(built, tmp_path):
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, memory_limit=0,
                      dashboard_address=None) as here:
        table = ladder.build(TINY, tmp_path, progress=False, committed=Path("none"),
                             scheduler=here.scheduler_address)
        assert "try" in here.scheduler.task_prefixes  # of `_try`: its worker did it
    pd.testing.assert_frame_equal(table, built[1])


BUILD = "from pathlib import Path; from tests.test_ladder import build; build(Path({root!r}))"


def test_killed_build_goes_on_where_it_stopped(built, tmp_path):
    first = tmp_path / f"{scenes.catalog(TINY.data)[0].name}.json"
    process = subprocess.Popen([sys.executable, "-c", BUILD.format(root=str(tmp_path))],
                               env=os.environ | {"PYTHONPATH": "."})
    deadline = time.monotonic() + 60
    while not first.exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = stamps(tmp_path)
    assert json.loads(first.read_text())["rows"] and not (tmp_path / "manifest.csv").exists()
    table = build(tmp_path)
    pd.testing.assert_frame_equal(table, built[1])
    kept = [n for n in before if n.startswith(first.stem)]
    assert kept and all(stamps(tmp_path)[n] == before[n] for n in kept)


BOTH = "from tests.test_ladder import *; build(Path({root!r}), workers=2)"


def test_a_build_whose_worker_is_killed_makes_all_the_same(built, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", BOTH.format(root=str(tmp_path))],
                               env=os.environ | {"PYTHONPATH": "."})
    while not list(tmp_path.glob("*.mp4")) and process.poll() is None:
        time.sleep(0.001)
    workers = [p for p in psutil.Process(process.pid).children()
               if re.search("spawn_main|dask worker", " ".join(p.cmdline()))]
    workers[0].kill()
    assert process.wait() == 0
    pd.testing.assert_frame_equal(manifests.read(tmp_path / "manifest.csv"), built[1])


def test_a_job_that_is_done_is_not_done_again_when_its_worker_dies(tmp_path):
    """To train a run of a grid anew forgets the first."""
    from distributed import LocalCluster

    killed, notes = tmp_path / "killed", tmp_path / "notes"
    note = f"open({str(notes)!r}, 'a').write('.')"
    waits = f"import os, time\nwhile not os.path.exists({str(killed)!r}): time.sleep(0.01)"
    with LocalCluster(n_workers=1, threads_per_worker=1, memory_limit=0,
                      dashboard_address=None) as here:
        done = ladder.spread([(exec, note), (exec, waits)], None, here.scheduler_address)
        assert next(done) == (note, None)
        psutil.Process(here.workers[0].pid).kill()
        killed.touch()
        assert [*done] == [(waits, None)]
    assert notes.read_text() == "."


def test_a_job_that_kills_each_worker_is_named_when_the_others_are_done():
    done = dict(ladder.spread([(os._exit, 3), (abs, -2)], 2, None))
    assert done.pop(-2) == 2
    assert "died" in str(done[3])


# --- committed labels ---------------------------------------------------------------------------


@pytest.fixture
def committed(built, tmp_path):
    """Committed manifests whose labels differ from what VMAF gives, to tell where one is from."""
    table = built[1].assign(proxy=12.5, psnr=34.5)
    ladder.commit_manifest(table, tmp_path / "committed")
    assert sorted(os.listdir(tmp_path / "committed")) == ["test.csv", "train.csv"]
    return tmp_path / "committed"


def made_here(scene, root, committed):
    known = ladder.read_committed(committed)
    rows = ladder.make(scene, TINY.data, root, known[known["scene"] == scene.name])
    return pd.DataFrame(rows).set_index("video")


def test_committed_labels_are_taken_where_frames_are_the_same(tmp_path, committed, monkeypatch):
    monkeypatch.setattr(labels, "vmaf", lambda *_: pytest.fail("VMAF was run"))
    rows = made_here(scenes.catalog(TINY.data)[0], tmp_path, committed)
    assert (rows["proxy"] == 12.5).all() and (rows["psnr"] == 34.5).all()


def test_frames_of_a_committed_file_are_not_decoded_again(tmp_path, committed, built, monkeypatch):
    scene = scenes.catalog(TINY.data)[0]
    first, path = f"{scene.name}@original", committed / "train.csv"
    table = manifests.read(path)
    table.loc[table["video"] == first, "file"] = "0" * 16
    manifests.write(table, path)
    decoded, hashed = [], encoding.frames_sha256
    monkeypatch.setattr(encoding, "frames_sha256", lambda p: decoded.append(p.stem) or hashed(p))
    rows = made_here(scene, tmp_path, committed)
    truth = built[1].set_index("video").loc[rows.index]
    assert decoded == [first]
    assert (rows["sha256"] == truth["sha256"]).all() and (rows["file"] == truth["file"]).all()


def test_label_is_computed_where_frames_differ(built, tmp_path, committed):
    scene = scenes.catalog(TINY.data)[0]
    other, path = f"{scene.name}@crf40", committed / "train.csv"
    table = manifests.read(path)
    table.loc[table["video"] == other, ["sha256", "file"]] = "0" * 16
    manifests.write(table, path)
    rows = made_here(scene, tmp_path, committed)
    truth = built[1].set_index("video")
    assert rows.at[other, "proxy"] == truth.at[other, "proxy"]
    assert (rows.drop(other)["proxy"] == 12.5).all()


def test_differing_clips_are_counted_and_the_first_is_named(built, committed, capsys):
    path = committed / "test.csv"
    changed = manifests.read(path)
    changed["sha256"] = "0" * 16
    manifests.write(changed, path)
    build(built[0], committed=committed)
    first = changed["video"][0]
    assert f"4 of 12 clips differ from the committed manifest (first: {first})" in \
        capsys.readouterr().err


def test_agreeing_clips_are_not_mentioned(built, committed, capsys):
    build(built[0], committed=committed)
    assert not capsys.readouterr().err


def test_splits_are_built_alone_and_read_their_own_labels(built, tmp_path, committed):
    table = build(tmp_path / "only", ("test",), committed=committed)
    assert set(table["split"]) == {"test"} and (table["proxy"] == 12.5).all()
    assert table["sha256"].tolist() == built[1].query("split == 'test'")["sha256"].tolist()


# --- checking against what is committed ---------------------------------------------------------


@pytest.fixture
def command(built, tmp_path, monkeypatch):
    """`cpllm VERB --profile smoke` where smoke is the tiny configuration, built and committed."""
    monkeypatch.setitem(config.PRESETS, "smoke", lambda: TINY)
    monkeypatch.setattr(sweep, "DATA", tmp_path / "data")
    monkeypatch.setattr(ladder, "COMMITTED", tmp_path / "committed")
    shutil.copytree(built[0], tmp_path / "data" / "smoke")
    ladder.commit_manifest(built[1], tmp_path / "committed" / "smoke")
    return lambda *words: cli.main([*words, "--profile", "smoke"])


def change(folder, split, **columns):
    """Change the committed manifest's rows: column=(mask of a row, value)."""
    table = manifests.read(folder / f"{split}.csv")
    for name, (chosen, value) in columns.items():
        table.loc[chosen(table), name] = value
    manifests.write(table, folder / f"{split}.csv")


def test_labels_measured_again_are_the_committed_ones(built, command, capsys):
    assert command("labels", "--splits", "test") == 0
    said = capsys.readouterr().out
    assert "4 clips have the committed frames, 0 have others" in said
    assert "proxy: largest difference 0.000000" in said


def test_changed_label_is_reported_by_name_and_differing_frames_are_not_compared(
        built, tmp_path, command, capsys):
    hurt, other = built[1].query("split == 'test'")["video"].iloc[[1, 2]]
    away = built[1].set_index("video").at[hurt, "proxy"] - 0.02
    change(tmp_path / "committed" / "smoke", "test",
           proxy=(lambda t: t["video"] == hurt, away),
           sha256=(lambda t: t["video"] == other, "0" * 16),
           psnr=(lambda t: t["video"] == other, 1.0))
    assert command("labels", "--splits", "test") == 1
    said = capsys.readouterr().out
    assert f"3 clips have the committed frames, 1 have others (first: {other})" in said
    assert f"proxy: largest difference 0.020000 ({hurt})" in said
    assert "psnr: largest difference 0.000000" in said


def test_profile_without_committed_labels_is_refused(tmp_path, command, capsys):
    shutil.rmtree(tmp_path / "committed")
    assert command("labels") == 2
    assert "smoke: no labels are committed" in capsys.readouterr().err


def test_check_names_each_bad_file_and_exits_with_2(built, tmp_path, command, capsys):
    assert command("data", "--check") == 0
    assert capsys.readouterr().out == "12 clips, 0 bad\n"
    lost, empty = built[1]["video"][[3, 7]]
    (tmp_path / "data" / "smoke" / f"{lost}.mp4").unlink()
    (tmp_path / "data" / "smoke" / f"{empty}.mp4").write_bytes(b"")
    assert command("data", "--check") == 2
    assert capsys.readouterr().out == (
        f"{lost}: no such file\n{empty}: empty file\n12 clips, 2 bad\n")


def test_check_says_whether_the_renderer_or_the_encoder_differs(built, tmp_path, command, capsys):
    one, two = (rows for _, rows in built[1].query("split == 'train'").groupby("scene"))
    other = "0" * 16
    coded = one[one["role"] == "variant"]["video"].tolist()
    change(tmp_path / "committed" / "smoke", "train",
           sha256=(lambda t: t["video"].isin([*coded, *two["video"]]), other))
    assert command("data", "--check") == 0
    said = capsys.readouterr().out
    family, total = one["family"].iloc[0], len(built[1].query("family == @one.family.iloc[0]"))
    assert f"{family}, h264: 2 of {total} clips differ from the committed manifest (first: " \
        f"{coded[0]}); their originals are the same: the encoder libx264" in said
    assert f"{two['family'].iloc[0]}, h264: 4 of " in said
    assert f"(first: {two['video'].iloc[0]}); originals differ too: the renderer, or x264" in said
