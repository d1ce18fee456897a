"""The file of answers: a JSON line per image, appended as they arrive, so that no answer is paid for twice."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from flowrl.errors import UserError
from flowrl.evaluation.unigenbench.answers import Reading, read_answer
from flowrl.judges.log import recorded
from flowrl.types import Answer


class Key(NamedTuple):
    """What an answer is an answer to: the file's name, and the sha256 of the picture, the question and the judge."""

    file: str
    image: str
    question: str
    judge: str


@dataclass(frozen=True)
class Judged:
    """An image's answers, one per time that it was asked about; the last one counts."""

    key: Key
    answers: tuple[Answer, ...]

    @property
    def text(self) -> str | None:
        """The last answer there was, verbatim."""
        return next((answer.text for answer in reversed(self.answers) if answer.text is not None), None)

    def reading(self, count: int) -> Reading:
        """What the last answer says of ``count`` testpoints."""
        return read_answer(self.answers[-1].text, count)

    def is_final(self, count: int, max_retries: int) -> bool:
        """Whether nothing more is to be asked: the answer was read, or none of all tries could be."""
        gave_up = len(self.answers) > max_retries and self.answers[-1].text is not None
        return gave_up or self.reading(count).outcome != "unreadable"


class Journal:
    """Answers in ``path``, one writer at a time; a line that a killed process left unfinished is dropped.

    As a context it holds the file open and locked; ``add`` may be called from any thread. Raises UserError where the
    file cannot be written, another process writes to it, or a line in it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    def __enter__(self) -> Journal:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}; name another folder") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise UserError(f"{self.path} is being written by another process; wait for it, or stop it") from None
        self._file.seek(0)
        self._file.truncate(self._file.read().rfind(b"\n") + 1)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self) -> dict[Key, Judged]:
        """Everything that was kept, the newest of equal keys."""
        self._file.seek(0)
        found = {}
        for number, line in enumerate(self._file, start=1):
            try:
                row = json.loads(line)
                key = Key(*(row[name] for name in Key._fields))
                found[key] = Judged(key, tuple(Answer(**answer) for answer in row["answers"]))
            except (ValueError, LookupError, TypeError) as error:
                raise UserError(f"{self.path}, line {number} is damaged ({error}); remove it") from error
        return found

    def add(self, judged: Judged, values: Mapping[str, Any]) -> None:
        """Appends an image's answers, with ``values`` for whoever reads the file."""
        answers = [recorded(answer) for answer in judged.answers]
        row = {**judged.key._asdict(), **values, "answers": answers}
        # A lone surrogate is legal as an escape in JSON, but not in UTF-8.
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        with self._lock:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())


def digest(value: Sequence[Any] | Mapping[str, Any] | str) -> str:
    """The sha256 of a value of JSON, in hex; of equal values in any order of keys the same."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
