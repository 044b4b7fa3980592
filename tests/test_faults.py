"""Two processes at once, a disk that can't be written, a kill: nothing half-made, nothing lost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cpllm import atomic, cli, records, sweep
from tests import test_book
from tests.test_notebooks import write as write_notebook

HOLD = """
import sys, time
from pathlib import Path
from cpllm import sweep
with sweep.alone("smoke", root=Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that works on the profile `smoke`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_on_the_same_output_is_refused_until_the_first_is_gone(holder, tmp_path):
    with pytest.raises(RuntimeError, match=f"smoke: process {holder.pid} is working on it"), \
            sweep.alone("smoke", root=tmp_path):
        pass
    with sweep.alone("pocket", root=tmp_path), sweep.alone("smoke", "default-s0", root=tmp_path):
        pass
    holder.send_signal(signal.SIGKILL)  # leaves no lock behind
    holder.wait()
    with sweep.alone("smoke", root=tmp_path):
        pass


@pytest.mark.parametrize("words", [["data"], ["sweep", "table"], ["reproduce"]])
def test_every_long_verb_is_refused_while_another_works_on_its_profile(
        words, holder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "ROOT", tmp_path)
    monkeypatch.setattr(sweep, "DATA", tmp_path / "data")
    assert cli.main([*words, "--profile", "smoke"]) == 2
    assert f"process {holder.pid} is working on it" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def unwritable(folder):
    """The environment in which a program can't write below `folder`, or a skip."""
    words = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c",
             'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && shift && exec "$@"', "sh",
             str(folder)]
    try:
        if subprocess.run([*words, "true"], capture_output=True).returncode:
            pytest.skip("no user namespaces here to mount a read-only disk in")
    except FileNotFoundError:
        pytest.skip("no unshare here")
    return words


WRITE = """
import sys
from pathlib import Path
from cpllm import records
try:
    records.write(Path(sys.argv[1], "a.json"), "new" * 2_000_000)
except OSError as error:
    sys.exit(f"{error.strerror}: {error.filename}")
"""


def test_a_read_only_disk_is_named_and_what_was_there_stays(tmp_path):
    records.write(tmp_path / "a.json", "old")
    run = subprocess.run([*unwritable(tmp_path), sys.executable, "-c", WRITE, str(tmp_path)],
                         capture_output=True, text=True)
    assert run.returncode == 1 and "Read-only file system" in run.stderr
    assert (tmp_path / "a.json").read_text() == "old"


@pytest.mark.parametrize("words", [["data"], ["sweep", "table"], ["reproduce"]])
def test_every_long_verb_names_the_read_only_disk(words):
    # coverage, which watches programs that tests start, couldn't write its own file there either
    env = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")}
    run = subprocess.run([*unwritable(sweep.ROOT), sys.executable, "-m", "cpllm.cli", *words,
                          "--profile", "smoke"], cwd=sweep.ROOT, capture_output=True, text=True,
                         env=env)
    assert (run.returncode, len(run.stderr.splitlines())) == (2, 1), run.stderr
    assert run.stderr.startswith("error: ") and "Read-only file system" in run.stderr


SMALL = """
disk=$1; shift; mkdir -p "$disk" "$disk.before"
mount -t tmpfs -o size=1m none "$disk" && cp -r "$disk.before/." "$disk" || exit 9
"$@"; code=$?; cp -r "$disk/." "$disk.after"; exit $code
"""


def on_small_disk(disk: Path, *command) -> tuple[subprocess.CompletedProcess, dict[str, int]]:
    """Run a command while a folder is a disk of 1 MB that begins with what `disk`.before holds.

    Returns what it says and, by name, the bytes of each file that it leaves on the disk.
    """
    words = unwritable(sweep.ROOT)
    words[words.index("-c") + 1], words[-1] = SMALL, str(disk)
    run = subprocess.run([*words, *map(str, command)], capture_output=True, text=True,
                         env=os.environ | {"PYTHONPATH": str(sweep.ROOT)})
    after = Path(f"{disk}.after")
    return run, {str(p.relative_to(after)): p.stat().st_size for p in after.rglob("*")
                 if p.is_file()}


def before(disk: Path, name: str) -> None:
    """A good file of 4 bytes that the disk begins with."""
    path = Path(f"{disk}.before") / name
    path.parent.mkdir(parents=True)
    path.write_text("old\n")


def test_a_full_disk_leaves_the_old_file_and_no_half_of_the_new_one(tmp_path):
    before(tmp_path / "disk", "a.json")
    run, left = on_small_disk(tmp_path / "disk", sys.executable, "-c", WRITE, tmp_path / "disk")
    assert run.returncode == 1 and "No space left on device" in run.stderr
    assert left == {"a.json": 4}


CLIPS = """
import dataclasses, sys
from pathlib import Path
from cpllm.data import ladder
from tests.test_ladder import TINY
data = dataclasses.replace(TINY.data, frames=60, max_lines=720)
try:
    ladder.build(dataclasses.replace(TINY, data=data), Path(sys.argv[1]), progress=False, workers=1)
except (ladder.BuildError, OSError) as error:
    sys.exit(f"error: {error}")
"""


def test_a_full_disk_is_named_by_the_clips_that_found_no_room(ffmpeg, tmp_path):
    run, left = on_small_disk(tmp_path / "disk", sys.executable, "-c", CLIPS, tmp_path / "disk")
    assert (run.returncode, len(run.stderr.splitlines())) == (1, 1), run.stderr
    assert "No space left on device" in run.stderr
    assert "manifest.csv" not in left and not any(atomic.UNFINISHED.search(n) for n in left), left


RUN = """
import sys
from pathlib import Path
from cpllm import notebooks
try:
    notebooks.execute(Path(sys.argv[1]), Path(sys.argv[2]), {"seed": 1})
except (notebooks.NotebookError, OSError) as error:
    sys.exit(f"error: {error}")
"""


def test_a_notebook_that_finds_the_disk_full_leaves_the_one_before(tmp_path):
    source = write_notebook(tmp_path / "a.ipynb", "print('new' * 2_000_000)")
    before(tmp_path / "disk", "a.ipynb")
    run, left = on_small_disk(tmp_path / "disk", sys.executable, "-c", RUN, source,
                              tmp_path / "disk" / "a.ipynb")
    assert (run.returncode, len(run.stderr.splitlines())) == (1, 1), run.stderr
    assert "No space left on device" in run.stderr and "disk/a.ipynb" in run.stderr
    assert left == {"a.ipynb": 4}


def test_a_book_that_finds_the_disk_full_leaves_the_pages_before(tmp_path):
    root = test_book.one_page(test_book.checkout(tmp_path))
    disk = root / "book" / "_build"
    before(disk, "html/index.html")
    run, left = on_small_disk(disk, sys.executable, root / "book" / "_ext" / "build.py", "smoke")
    assert (run.returncode, len(run.stderr.splitlines())) == (2, 1), run.stderr
    assert "No space left on device" in run.stderr and str(disk) in run.stderr
    assert left == {"html/index.html": 4}


KILLED = """
import sys
from pathlib import Path
from cpllm import records
for i in range(10**6):
    records.write_json(Path(sys.argv[1], "a.json"), [i] * 20_000)
"""


@pytest.mark.parametrize("kill", [pytest.param(i, marks=[pytest.mark.slow] * (i >= 5))
                                  for i in range(50)])
def test_a_kill_while_a_file_is_written_leaves_the_one_before_whole(kill, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path])
    path, deadline = tmp_path / "a.json", time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(kill * 0.0137 % 0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    held = records.read_json(path)
    assert len(held) == 20_000 and len(set(held)) == 1


def test_the_packages_weights_are_copied_whole_or_not_at_all(tmp_path, monkeypatch):
    (tmp_path / "new").write_text("new" * 1000)
    (tmp_path / "old").write_text("old")

    def half(source, target):
        target.write_text(source.read_text()[:100])
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(atomic.shutil, "copyfile", half)
    with pytest.raises(OSError, match="No space left"):
        atomic.copy(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old").read_text() == "old"
