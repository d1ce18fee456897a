"""Records in files, one JSON object a line, that several processes write together and that outlive a kill.

Each process appends to a part of its own; the first merges the parts into the whole, in order, and deletes them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from flowrl import atomic
from flowrl.errors import UserError

Line = Mapping[str, Any]


def part(path: Path, rank: int) -> Path:
    """The file that a process writes before all are merged into ``path``.

    >>> part(Path("scores/gold.jsonl"), 1).as_posix()
    'scores/gold.part-1.jsonl'
    """
    return path.with_name(f"{path.stem}.part-{rank}{path.suffix}")


def parts(path: Path) -> list[Path]:
    """The parts that there are, of this attempt and of those that were killed."""
    return sorted(path.parent.glob(f"{path.stem}.part-*{path.suffix}"))


def append(path: Path, lines: Iterable[Line]) -> None:
    """Add lines to a part, flushed to the disk: what is in it is done for good."""
    text = "".join(to_json(line) + "\n" for line in lines)
    with path.open("ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            text = text if file.read(1) == b"\n" else f"\n{text}"  # after a line that a kill has torn
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a whole file; none where it does not exist. Raises UserError for what is not one JSON object a line.

    A part may hold a torn line, where a process was killed: use :func:`read_all`.
    """
    if not path.is_file():
        return []
    try:
        return [_parse(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except ValueError as error:
        raise UserError(f"{path}: each line must be a JSON object: {error}; delete the file to make it anew") from error


def read_all(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of the whole file, then those of its parts, torn ones left out. A later line replaces an earlier."""
    yield from read(path)
    for file in parts(path):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                yield _parse(line)
            except ValueError:
                continue


def merge(path: Path, lines: Iterable[Line]) -> None:
    """Make ``lines`` the whole file, then delete the parts."""
    atomic.write_text(path, "".join(to_json(line) + "\n" for line in lines))
    for file in parts(path):
        file.unlink()


def to_json(line: Line) -> str:
    return json.dumps(dict(line), ensure_ascii=False, allow_nan=False)


def _parse(line: str) -> dict[str, Any]:
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError(f"got {line[:80]}")
    return value
