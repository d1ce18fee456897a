"""Files and folders that appear whole or not at all: written beside their place, flushed to disk, then renamed.

Leftovers of a write that was killed carry ``LEFTOVER`` in front of their name; ``remove_leftovers`` deletes them.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

LEFTOVER = ".unfinished-"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write a file to; when the block ends without an error it becomes ``path``.

    The temporary name ends like the final one, so libraries that look at the suffix write the right format.

    >>> with replacing(Path("/tmp/weights.bin")) as temporary:
    ...     _ = temporary.write_bytes(b"1234")
    """
    temporary = _beside(path)
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def write_bytes(path: Path, content: bytes) -> None:
    """``content`` as the whole of ``path``: a reader sees the old file or the new one, never a part."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """``content`` in UTF-8 as the whole of ``path``, atomically; line ends are written as given."""
    write_bytes(path, content.encode())


def write_json(path: Path, value: Any) -> None:
    """``value`` as indented JSON, atomically. Raises ValueError for NaN and infinities, which JSON does not have."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill; when the block ends without an error it becomes ``path``, replacing what was there.

    An older folder of that name is moved aside first, so between the two renames ``path`` does not exist: a reader
    sees the old folder, none, or the new one.
    """
    temporary = _beside(path)
    temporary.mkdir()
    try:
        yield temporary
        publish(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish(temporary: Path, path: Path) -> None:
    """Flush a folder that is filled, and give it its name, as ``new_folder`` does at its end."""
    for file in sorted(temporary.rglob("*")):
        sync(file)
    sync(temporary)
    if path.exists():
        remove_folder(path)
    os.replace(temporary, path)
    sync(path.parent)


def remove_folder(path: Path) -> None:
    """Delete a folder so that an interruption leaves it whole or as a leftover, never half empty under its name."""
    doomed = _beside(path)
    os.replace(path, doomed)
    shutil.rmtree(doomed)


def remove_leftovers(folder: Path) -> None:
    """Delete what killed writes left in ``folder``. Only where no other process is writing to it."""
    for leftover in folder.glob(f"{LEFTOVER}*"):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(path: Path) -> Path:
    """A name nobody else uses, in the same folder and thus on the same file system, where a rename is atomic."""
    return path.with_name(f"{LEFTOVER}{uuid.uuid4().hex[:12]}-{path.name}")
