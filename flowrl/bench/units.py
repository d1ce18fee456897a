"""Units of work: a training run, an evaluation, a measurement. Each has a key, a folder, and a record when it is over.

FOLDER/runs/KEY/         of ``flowrl train``, ``flowrl eval`` or a measurement
       runs/KEY.again/   of a run that is repeated for its weights alone
       records/KEY.json  what it was and how it ended, written last; the files in its folder are checked by it
       logs/KEY.txt      what it printed
       locks/KEY         held while a process works on it
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, ValidationError

from flowrl import atomic
from flowrl.bench.report import Part, RunRecord
from flowrl.hub import sha256

RUNS, RECORDS, LOGS, LOCKS = "runs", "records", "logs", "locks"
LOG_LINES = 30
"""Of a failed unit's log that its record keeps."""
Kind = Literal["train", "eval", "measure"]


@dataclass(frozen=True)
class Unit:
    """Something to do. Plain values, so that it goes to another process as JSON."""

    key: str
    kind: Kind
    title: str
    seed: int
    recipe_digest: str
    command: str
    """What repeats it."""
    arguments: Mapping[str, Any]
    needs: str | None = None
    """The key of the unit whose run it is about."""
    forwards: float = 0.0
    training_forwards: float = 0.0
    images: float = 0.0
    """Decoded and scored: with the forwards, what it takes."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class UnitRecord(Part):
    """How a unit ended."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: Literal[1] = 1
    run: RunRecord
    kind: Kind
    numerics: int
    arguments: Mapping[str, Any]
    files: Mapping[str, str] = {}
    """Relative path -> sha256, of what tables are made from."""
    finished: float
    """Seconds since the epoch."""
    provenance: Mapping[str, Any]


def make_key(*parts: Any) -> str:
    """A name for what enters a unit, equal on every machine.

    >>> make_key({"a": 1}, 2) == make_key({"a": 1}, 2) != make_key({"a": 2}, 2)
    True
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Store:
    """The folder of all units of all benches."""

    folder: Path
    damaged: dict[str, str] = field(default_factory=dict)
    """Key -> why its record was thrown away, of those that this process has looked at."""
    _known: dict[str, tuple[int, UnitRecord]] = field(default_factory=dict)

    def path(self, key: str) -> Path:
        return self.folder / RUNS / key

    def again(self, key: str) -> Path:
        """Where a run is repeated for its weights alone."""
        return self.folder / RUNS / f"{key}.again"

    def record_path(self, key: str) -> Path:
        return self.folder / RECORDS / f"{key}.json"

    def log(self, key: str) -> Path:
        return self.folder / LOGS / f"{key}.txt"

    def record(self, key: str) -> UnitRecord | None:
        """How a unit ended; None where it has not. One that its files contradict has not, and is named as damaged."""
        path = self.record_path(key)
        try:
            changed = path.stat().st_mtime_ns
        except FileNotFoundError:
            return None
        if key in self._known and self._known[key][0] == changed:
            return self._known[key][1]
        problem, record = self._read(key, path)
        if record is None:
            self.damaged[key] = problem
            return None
        self.damaged.pop(key, None)
        self._known[key] = changed, record
        return record

    def _read(self, key: str, path: Path) -> tuple[str, UnitRecord | None]:
        try:
            record = UnitRecord.model_validate(json.loads(path.read_bytes()))
        except (OSError, ValueError, ValidationError):
            return f"{path.name} cannot be read", None
        if record.run.key != key:
            return f"{path.name} is of {record.run.key}", None
        for name, expected in record.files.items():
            file = self.path(key) / name
            if not file.is_file():
                return f"{name} is missing", None
            if sha256(file) != expected:
                return f"{name} is not as it was written", None
        return "", record

    def forget(self, key: str) -> None:
        """Delete all that a unit left but its log. Only by the process that has claimed it."""
        self.record_path(key).unlink(missing_ok=True)
        if self.path(key).exists():
            atomic.remove_folder(self.path(key))
        self.damaged.pop(key, None)

    def done(self, key: str) -> bool:
        record = self.record(key)
        return record is not None and record.run.status == "done"

    def has_weights(self, key: str) -> bool:
        """Whether a run's weights are here; those of one that an archive brought need not be."""
        return any((self.path(key) / name).exists() for name in WEIGHTS)

    def take_weights(self, key: str) -> None:
        """Move those of the same run :meth:`again` to the run's folder; the rest of it is deleted."""
        for name in reversed(WEIGHTS):  # an average first: where there is one, it is what is evaluated
            if (self.again(key) / name).exists():
                (self.again(key) / name).rename(self.path(key) / name)
        atomic.remove_folder(self.again(key))

    def failed_since(self, key: str, start: float) -> bool:
        """Whether it failed after ``start``: what failed earlier is tried again."""
        record = self.record(key)
        return record is not None and record.run.status == "failed" and record.finished >= start

    @contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Whether this process may work on a unit: False where another one does. Let go when the block or the process
        ends, however it ends."""
        path = self.folder / LOCKS / key
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
                return
            yield True

    def write(self, unit: Unit, *, status: Literal["done", "failed"], seconds: float | None, device: str) -> UnitRecord:
        """The record of a unit that is over, of the files that are in its folder now."""
        from flowrl.evaluation.results import Provenance
        from flowrl.numerics import NUMERICS

        folder = self.path(unit.key)
        folder.mkdir(parents=True, exist_ok=True)
        run = RunRecord(
            key=unit.key,
            title=unit.title,
            recipe=unit.recipe_digest,
            seed=unit.seed,
            command=unit.command,
            device=device,
            seconds=seconds,
            status=status,
            log=None if status == "done" else f"{self.log(unit.key)}:\n{tail(self.log(unit.key))}",
        )
        record = UnitRecord(
            run=run,
            kind=unit.kind,
            numerics=NUMERICS,
            arguments=unit.arguments,
            files={name: sha256(folder / name) for name in small_files(folder)} if status == "done" else {},
            finished=time.time(),
            provenance=Provenance.here().model_dump(mode="json"),
        )
        path = self.record_path(unit.key)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_json(path, record.model_dump(mode="json"))
        return record


SMALL = (
    "recipe.yaml",
    "metrics.jsonl",
    "summary.json",
    "scorers.json",
    "evaluation/*.json",
    "generation.json",
    "results.json",
    "per_prompt.jsonl",
    "unigenbench/unigenbench.json",
    "unigenbench/per_prompt.jsonl",
    "measured.json",
)
"""What tables are made from: the rest of a folder (weights, checkpoints, images) is not needed for it."""
WEIGHTS = ("weights", "weights_ema")
"""Of a run: what is evaluated, and measured."""


def small_files(folder: Path) -> list[str]:
    """Of :data:`SMALL`, those that a unit's folder has."""
    found = (path for pattern in SMALL for path in folder.glob(pattern))
    return sorted(path.relative_to(folder).as_posix() for path in found if path.is_file())


def tail(path: Path, lines: int = LOG_LINES) -> str:
    """The last lines of a log."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "it left no log"
    return "\n".join(text.splitlines()[-lines:])


@dataclass(frozen=True)
class Agenda:
    """What is left of a list of units, some of which need the weights of others.

    ``since``: what failed after it is not tried again; by default all that failed is left.
    """

    store: Store
    units: Sequence[Unit]
    since: float = math.inf

    @cached_property
    def users(self) -> dict[str, list[Unit]]:
        """Run -> what needs its weights."""
        found: dict[str, list[Unit]] = {}
        for unit in self.units:
            if unit.needs is not None:
                found.setdefault(unit.needs, []).append(unit)
        return found

    def left(self) -> list[Unit]:
        """In their order."""
        return [unit for unit in self.units if not self.is_over(unit)]

    def is_over(self, unit: Unit) -> bool:
        return self.has_ended(unit) and not self.is_wanted_again(unit)

    def has_ended(self, unit: Unit) -> bool:
        return self.store.done(unit.key) or self.store.failed_since(unit.key, self.since)

    def is_wanted_again(self, unit: Unit) -> bool:
        """Whether a finished run has no weights (an archive brought it), and something unfinished needs them."""
        is_bare = unit.kind == "train" and self.store.done(unit.key) and not self.store.has_weights(unit.key)
        return is_bare and not all(map(self.has_ended, self.users.get(unit.key, ())))

    def fail(self, unit: Unit, *, seconds: float | None, device: str) -> None:
        """Record that a unit failed. A finished run that was to be repeated stays as it is: what needs it failed."""
        failed = [unit]
        if self.store.done(unit.key):
            failed = [user for user in self.users.get(unit.key, ()) if not self.store.done(user.key)]
        for one in failed:
            if one is not unit:
                with self.store.log(one.key).open("a") as log:
                    log.write(f"the weights that it needs could not be had again: {self.store.log(unit.key)}\n")
            self.store.write(one, status="failed", seconds=seconds, device=device)
