"""Fixtures shared by the tests: small made clips, real clips where there are some, ffmpeg."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

os.environ["NPY_DISABLE_CPU_FEATURES"] = ""  # as in this process, so in those that tests start
REAL_CLIPS = Path(__file__).resolve().parents[2] / "shared" / "clips"


def made_frames(n=12, height=96, width=128, seed=0):
    """uint8[N, H, W, 3]: smooth random texture that pans, a moving square, fine grain."""
    rng = np.random.default_rng(seed)
    field = rng.normal(size=(height + n, width + 2 * n, 3))
    canvas = sum(ndimage.gaussian_filter(field, (s, s, 0)) * s for s in (1, 3, 9))
    canvas = 128 + 50 * canvas / canvas.std()
    frames = np.stack([canvas[i:i + height, 2 * i:2 * i + width] for i in range(n)])
    for i in range(n):
        frames[i, 10 + i:30 + i, 40 - i:60 - i] = (230, 60, 40)
    return np.clip(frames + rng.normal(0, 2, frames.shape), 0, 255).astype(np.uint8)


def settled(path: Path) -> bytes:
    """A file's bytes; safetensors writes the texts of its header in any order, here in one."""
    data = path.read_bytes()
    if path.name == "repeatability.json":  # holds the hash of such a file
        return json.dumps(json.loads(data)["points"]).encode()
    if path.suffix != ".safetensors":
        return data
    end = 8 + int.from_bytes(data[:8], "little")
    return json.dumps(json.loads(data[8:end]), sort_keys=True).encode() + data[end:]


def pytest_terminal_summary(terminalreporter, config):
    """How to repeat this order, which pytest -q would leave out."""
    if (seed := config.getoption("randomly_seed", None)) is not None:
        terminalreporter.write_line(f"order: --randomly-seed={seed}")


@pytest.fixture(autouse=True)
def environment():
    """What a test, or what it calls, writes into the environment ends with it."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def frames():
    return made_frames()


@pytest.fixture(scope="session")
def mp4(tmp_path_factory, frames):
    """The made clip as H.264 with B-frames at CRF 31, its index at the end of the file."""
    from cpllm.data import encoding

    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    encoding.encode(frames, path, crf=31, fps=25)
    return path


@pytest.fixture(scope="session")
def ffmpeg():
    """The ffmpeg program of the `labels` extra."""
    return pytest.importorskip("imageio_ffmpeg", reason="extra `labels` is not installed") \
        .get_ffmpeg_exe()


@pytest.fixture(scope="session")
def real_clips():
    clips = sorted(REAL_CLIPS.glob("*.mp4"))
    if not clips:
        pytest.skip("no real clips beside the checkout (../shared/clips)")
    return clips


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A tiny untrained model's file: its scores mean nothing, behaviour does."""
    from flax import nnx

    from cpllm import config
    from cpllm.data import text
    from cpllm.infer import Scorer
    from cpllm.model.cpllm import CPLLM

    cfg = config.smoke()
    tokenizer = text.train_tokenizer(["The video shows a cat. Its quality is good."], 600)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    Scorer(cfg, CPLLM(cfg.model, nnx.Rngs(0)), tokenizer).save(path)
    return path


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The stages' folders, and a smoke profile small enough to build in a test."""
    from cpllm import config, sweep

    small = config.replace(config.smoke(), **{
        "data.train_scenes": 1, "data.validation_scenes": 1, "data.test_scenes": 1,
        "data.crfs": (21, 41), "data.distorted": 0,
    })  # fmt: skip
    monkeypatch.setitem(config.PRESETS, "smoke", lambda: small)
    monkeypatch.setattr(sweep, "DATA", tmp_path / "data")
    monkeypatch.setattr(sweep, "RESULTS", tmp_path / "results")
    return tmp_path
