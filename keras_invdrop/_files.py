"""Writes files as a whole or not at all, and hashes them."""

import functools
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import suppress
from pathlib import Path
from uuid import uuid4


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path, whose file replaces `path` after the block.

    If the block fails, `path` stays unchanged. After the block the file is
    flushed to disk, so that a power cut loses nothing. The temporary path has
    the same suffix and is unique among all processes on all machines.

    Raises:
        OSError: If the block raises one; the message names `path`.
    """
    temporary = path.with_name(f".{path.stem}.{uuid4().hex}{path.suffix}")
    folders = [path.parent, *path.parent.parents]
    try:
        new = [folder for folder in folders if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        # Flush the folders as well, which contain the names.
        for named in (path, *new):
            _flush(named.parent)
    except OSError as error:
        raise OSError(
            f"{path} could not be written: {error.strerror or error}"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Waits until a file or folder is on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open folders and need not flush them.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits.

    The hash is cached until the file changes.
    """
    status = path.stat()
    return _sha256(path, status.st_mtime_ns, status.st_size)


@functools.cache
def _sha256(path: Path, *changes: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
