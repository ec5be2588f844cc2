import os

import pytest

from keras_invdrop._files import replacing


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("before")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        assert temporary.suffix == ".txt"
        temporary.write_text("half of i")
        raise RuntimeError
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
    with (
        pytest.raises(OSError, match="file.txt could not be written: is full"),
        replacing(path),
    ):
        raise OSError(28, "is full")
    assert path.read_text() == "before"


def test_concurrent_writes_do_not_collide(tmp_path):
    path = tmp_path / "file.txt"
    with replacing(path) as one, replacing(path) as other:
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    path = tmp_path / "new" / "folder" / "file.txt"
    whole_fsync, whole_replace, done = os.fsync, os.replace, []

    def fsync(descriptor):
        done.append(os.fstat(descriptor).st_ino)
        whole_fsync(descriptor)

    def replace(old, new):
        done.append("renamed")
        whole_replace(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    with replacing(path) as temporary:
        temporary.write_text("content")
        assert not done
    inode = [p.stat().st_ino for p in (path, path.parent, tmp_path / "new")]
    # Then its name, and those of the new folders, each in the one around it.
    assert done == [
        inode[0],
        "renamed",
        inode[1],
        inode[2],
        tmp_path.stat().st_ino,
    ]
