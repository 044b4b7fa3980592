"""Files that are whole under their name: written under another, which they lose at the end."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

HOUR = 3600
UNFINISHED = re.compile(r"\.part(\.\w+)?$|^\..+\.\d+$")
"""Names under which this package writes: .table1.csv.4711.part, .clip.mp4.4711, 08a1.part.npy."""


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name to write under; `path` is that file when the block is left, or what it was before.

    An OSError that doesn't say its file, as one of a full disk, then says this one.
    """
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield part
        part.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


def copy(source: Path, target: Path) -> None:
    """Copy a file's content, into a folder that is made where there is none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole(target) as part:
        shutil.copyfile(source, part)


def tidy(folder: Path) -> None:
    """Remove what killed processes have left unfinished below a folder.

    That is what nobody has written to for an hour: others may be at work there.
    """
    for path in folder.rglob("*"):
        if UNFINISHED.search(path.name) and time.time() - path.lstat().st_mtime > HOUR:
            path.unlink(missing_ok=True)
