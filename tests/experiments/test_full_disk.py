"""A full or read-only disk causes one line of error and no loss of files.

The disks are real: tmpfs mounts that no other process sees.
"""

import subprocess
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.one_backend

COMMAND = (
    f"{sys.executable} -m keras_invdrop.experiments train"
    " table2/original/invariant --data digits --limit-train 200"
    " --width 0.05 --epochs 3 --out disk"
)


@pytest.fixture
def shell(tmp_path):
    """Runs a shell script that may mount file systems."""
    (tmp_path / "disk").mkdir()

    def run(script):
        return subprocess.run(
            ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
            + [script],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    try:
        works = run("mount -t tmpfs tmpfs disk").returncode == 0
    except FileNotFoundError:
        works = False
    if not works:
        pytest.skip("no user may mount a file system here")
    return run


def said(process):
    """The command's own message, once per call."""
    return [
        line
        for line in process.stderr.splitlines()
        if line.startswith("keras-invdrop: ") or "Traceback" in line
    ]


def test_full_then_larger(shell, tmp_path):
    # A backup takes half a megabyte: the disk has room for only one.
    process = shell(
        "mount -t tmpfs -o size=800k tmpfs disk;"
        f"{COMMAND}; echo ended with $?; ls -A disk; cp disk/*.npz .;"
        "mount -o remount,size=8m disk;"
        f"{COMMAND}; echo ended with $?; ls -A disk"
    )
    (line,) = said(process)
    assert line.endswith(".npz could not be written: No space left on device")
    first, again = process.stdout.split("ended with 1\n")
    assert first == ""
    listing, again = again.split("\n", 1)
    assert listing.endswith(".npz")
    # The old file is whole.
    with np.load(tmp_path / listing) as backup:
        assert all(np.isfinite(backup[name]).all() for name in backup
                   if name != "state")  # fmt: skip
    # With more room the same command continues.
    _, listing = again.split("ended with 0\n")
    assert sorted(name.rpartition(".")[2] for name in listing.split()) == [
        "csv",
        "json",
        "keras",
    ]


def test_read_only(shell):
    process = shell(
        "mount -t tmpfs tmpfs disk; echo mine > disk/before;"
        f"mount -o remount,ro disk; {COMMAND}; echo ended with $?;"
        "ls -A disk; cat disk/before"
    )
    assert said(process) == [
        "keras-invdrop: disk is not writable: Read-only file system"
    ]
    assert process.stdout == "ended with 1\nbefore\nmine\n"
