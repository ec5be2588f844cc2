"""A training killed at any moment ends like an undisturbed one."""

import io
import json
import random
import signal
import time
import zipfile
from pathlib import Path

import h5py
import pytest
from warm import Program

PROGRAM = Path(__file__).with_name("killed_training.py")

# The step at which each process dies: writing backups and results.
# `make test` runs every third one of these.
SPOTS = [
    ("begin", ".npz", 2),
    ("rename", ".npz", 3),
    ("renamed", ".npz", 2),
    ("begin", ".keras", 1),
    ("rename", ".csv", 1),
    ("begin", ".json", 1),
]


def files(directory):
    """The files of each training, without times and durations."""
    found = {}
    for path in sorted(directory.iterdir()):
        content = path.read_bytes()
        if path.suffix == ".json":
            content = json.loads(content) | {"seconds": 0}
        if path.suffix == ".keras":
            content = weights(content)
        found[path.name] = content
    return found


def weights(archive):
    """The bytes of each array in a `.keras` file."""
    found = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            found[name] = item[()].tobytes()

    with (
        zipfile.ZipFile(io.BytesIO(archive)) as whole,
        h5py.File(io.BytesIO(whole.read("model.weights.h5"))) as file,
    ):
        file.visititems(visit)
    return found


# On the other backends test_exact_resume.py kills trainings, and
# test_callbacks.py resumes those of the experiments.
@pytest.mark.thorough_elsewhere
def test_killed_again_and_again(tmp_path, record_property, thorough):
    process = Program(PROGRAM, tmp_path / "undisturbed")
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    expected = files(tmp_path / "undisturbed")
    # The file of results names the command alike, and nothing is left over.
    assert len(expected) == 2 * 3
    assert {Path(name).suffix for name in expected} == {
        ".csv",
        ".json",
        ".keras",
    }

    directory = tmp_path / "killed"
    rng = random.Random(0)
    # At random moments: at the start and in the middle of an epoch.
    for delay, lines in ((0.2, 1), (0.05, 2)):
        process = Program(PROGRAM, directory)
        process.wait_for_lines(lines)
        time.sleep(rng.uniform(0, delay))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    spots = SPOTS if thorough else SPOTS[1::3]
    for spot in spots:
        process = Program(PROGRAM, directory, *spot)
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors
        assert list(directory.glob(".*")) or spot[0] == "renamed"
    process = Program(PROGRAM, directory)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert files(directory) == expected
    # On three backends, of all spots: more than 20.
    record_property("kills survived", 2 + len(spots))
