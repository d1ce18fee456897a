"""Resumable stages: a stage whose output carries the digest of what it depends on is not run again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowrl import atomic


def digest(*values: Any) -> str:
    """A short digest of JSON values.

    >>> digest(1, [2]) == digest(1, (2,)) != digest(1, 2)
    True
    """
    content = json.dumps(values, sort_keys=True, default=dict)
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def source_digest(files: Sequence[Path]) -> str:
    """A digest of source files, so that what they make is made anew when they change."""
    return digest([[file.name, file.read_text(encoding="utf-8")] for file in sorted(files)])


@dataclass(frozen=True)
class Stage:
    """One stage's folder, and the digest of everything its output depends on."""

    folder: Path
    digest: str
    log: Callable[[str], None] = print

    @property
    def record(self) -> Path:
        return self.folder / "stage.json"

    def done(self) -> bool:
        if not self.record.exists():
            return False
        return bool(json.loads(self.record.read_text(encoding="utf-8"))["digest"] == self.digest)

    def result(self) -> dict[str, Any]:
        """What the finished stage recorded."""
        record: dict[str, Any] = json.loads(self.record.read_text(encoding="utf-8"))
        return record

    @contextmanager
    def running(self) -> Iterator[dict[str, Any]]:
        """Fill the yielded record; it is written, and the stage thereby finished, when the block ends well."""
        self.record.unlink(missing_ok=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        record: dict[str, Any] = {}
        yield record
        self.checkpoint.unlink(missing_ok=True)
        atomic.write_json(self.record, {"digest": self.digest, **record})

    @property
    def checkpoint(self) -> Path:
        """Where a long stage keeps its state; its name holds the digest, so no other settings' state is taken up."""
        return self.folder / f"checkpoint-{self.digest}.pt"
