"""A file to which what judges say is appended, a JSON object a line."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowrl.errors import UserError


class AnswerLog:
    """Appends records to ``path`` from any thread, or writes nothing where it is None.

    A record is one write to a file opened for appending, so that several processes may share the file. Raises
    UserError where it cannot be written.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._lock = threading.Lock()
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.open("ab").close()
            except OSError as error:
                raise UserError(f"log: cannot write {path}: {error.strerror}; name another file") from error

    def append(self, record: Mapping[str, Any]) -> None:
        """One line; what JSON does not have (NaN) is a ValueError."""
        if self.path is None:
            return
        line = (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "backslashreplace")
        with self._lock:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(descriptor, line)
            finally:
                os.close(descriptor)
