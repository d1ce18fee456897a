"""A file to which what judges say is appended, a JSON object a line."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowrl.errors import RunFailed, UserError
from flowrl.types import Answer


def recorded(answer: Answer) -> dict[str, str | None]:
    """An answer as logs keep it, verbatim: ``body`` only where something else came in its place."""
    kept = {"text": answer.text, "error": answer.error}
    return kept if answer.body is None else kept | {"body": answer.body}


class AnswerLog:
    """Appends records to ``path`` from any thread, or writes nothing where it is None.

    The first record makes the file and its folder. A record is one write to a file opened for appending, so that
    several processes of a machine may share the file. Raises UserError where it cannot be written.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._lock = threading.Lock()
        if path is not None and (reason := _unwritable(path)):
            raise UserError(f"log: cannot write {path}: {reason}; name another file")

    def append(self, record: Mapping[str, Any]) -> None:
        """One line; what JSON does not have (NaN) is a ValueError. Raises RunFailed where the disk is full or gone."""
        if self.path is None:
            return
        line = (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "backslashreplace")
        try:
            with self._lock:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("ab", buffering=0) as file:
                    written = file.write(line)
        except OSError as error:
            raise RunFailed(f"log: cannot write {self.path}: {error.strerror}") from error
        if written != len(line):
            raise RunFailed(f"log: cannot write {self.path}: the disk took {written} of {len(line)} bytes")


def _unwritable(path: Path) -> str | None:
    """Why a file cannot be written, as far as can be told without making it."""
    if path.is_dir():
        return os.strerror(errno.EISDIR)
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if there != path and not there.is_dir():
        return os.strerror(errno.ENOTDIR)
    return None if os.access(there, os.W_OK) else os.strerror(errno.EACCES)
