"""Finished units as one small file, to be merged with those of another day or machine."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from flowrl import atomic
from flowrl.bench.calibrate import RATES
from flowrl.bench.units import RECORDS, RUNS, WEIGHTS, Store, UnitRecord
from flowrl.errors import UserError

LIMIT = 16_000_000
KEY = re.compile(r"[0-9a-f]{16}")


class Moved(NamedTuple):
    """Keys that were written or taken in, and those that were not, with the reason."""

    keys: list[str]
    skipped: dict[str, str]
    size: int


def export(store: Store, file: Path, *, keys: Iterable[str] | None = None, weights: bool = False) -> Moved:
    """Write what tables need of every finished unit (or of ``keys``) to ``file``; with ``weights`` those of runs too.

    Raises UserError where the file would be over 16 MB: give fewer tables, or no weights.
    """
    folder = store.folder / RECORDS
    names = sorted(path.stem for path in folder.glob("*.json")) if keys is None else list(keys)
    found: list[str] = []
    skipped: dict[str, str] = {}
    for key in names:
        if store.done(key):
            found.append(key)
        elif key in store.damaged:
            skipped[key] = store.damaged[key]
    if not found:
        raise UserError(f"{store.folder} holds no finished run; there is nothing to export")
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(file) as temporary:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_LZMA) as archive:
            for path in (store.folder / RATES).glob("*.json"):
                archive.write(path, f"{RATES}/{path.name}")
            for key in found:
                record = store.record(key)
                assert record is not None
                archive.write(store.record_path(key), f"{RECORDS}/{key}.json")
                for name in [*record.files, *(_weights(store.path(key)) if weights else ())]:
                    archive.write(store.path(key) / name, f"{RUNS}/{key}/{name}")
        size = temporary.stat().st_size
        if size > LIMIT:
            raise UserError(
                f"{file} would have {size / 1e6:.1f} MB, over the {LIMIT / 1e6:.0f} MB of one archive: name fewer "
                f"tables by --table{', or leave the weights out' if weights else ''}"
            )
    return Moved(found, skipped, size)


def _weights(folder: Path) -> list[str]:
    found = (path for name in WEIGHTS for path in (folder / name).rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in found)


def take_in(store: Store, file: Path) -> Moved:
    """Add an archive's units to the store; one that is here already, whole, is left as it is.

    Raises UserError where the file is no such archive; a unit whose files differ from its record is skipped and named.
    """
    try:
        archive = zipfile.ZipFile(file)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"cannot read {file} as an archive of finished runs: {error}") from error
    with archive:
        members: dict[str, list[str]] = {}
        for name in archive.namelist():
            parts = PurePosixPath(name).parts
            if len(parts) > 2 and parts[0] == RUNS and KEY.fullmatch(parts[1]) and ".." not in parts:
                members.setdefault(parts[1], []).append(name)
        records = [name for name in archive.namelist() if re.fullmatch(rf"{RECORDS}/[0-9a-f]{{16}}\.json", name)]
        if not records:
            raise UserError(f"{file} holds no finished runs; it must be a file of flowrl bench export")
        for name in archive.namelist():
            path = store.folder / RATES / Path(name).name
            if re.fullmatch(rf"{RATES}/[0-9a-f]{{16}}\.json", name) and not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                atomic.write_bytes(path, archive.read(name))
        taken: list[str] = []
        skipped: dict[str, str] = {}
        for name in records:
            key = Path(name).stem
            problem = _take(store, archive, key, archive.read(name), members.get(key, []))
            if problem:
                skipped[key] = problem
            else:
                taken.append(key)
    return Moved(taken, skipped, file.stat().st_size)


def _take(store: Store, archive: zipfile.ZipFile, key: str, record: bytes, names: list[str]) -> str:
    """Why a unit was not taken in; empty where it was."""
    if store.done(key):
        return _take_weights(store, archive, key, record, names)
    try:
        UnitRecord.model_validate(json.loads(record))
    except ValueError:
        return "its record cannot be read"
    with store.claim(key) as mine:
        if not mine:
            return "is being worked on"
        store.forget(key)
        store.path(key).parent.mkdir(parents=True, exist_ok=True)
        with atomic.new_folder(store.path(key)) as folder:
            _extract(archive, names, folder)
        store.record_path(key).parent.mkdir(parents=True, exist_ok=True)
        atomic.write_bytes(store.record_path(key), record)
        if not store.done(key):
            problem = store.damaged.get(key, "is not of a finished run")
            store.forget(key)
            return problem
    return ""


def _take_weights(store: Store, archive: zipfile.ZipFile, key: str, record: bytes, names: list[str]) -> str:
    """Those of a unit that is here without them: why they were not taken in; empty where they were."""
    weights = [name for name in names if PurePosixPath(name).parts[2] in WEIGHTS]
    if store.has_weights(key) or not weights:
        return "is here already"
    if store.record_path(key).read_bytes() != record:
        return "is here already, from another run of it, without weights"
    with store.claim(key) as mine:
        if not mine:
            return "is being worked on"
        with atomic.new_folder(store.again(key)) as folder:
            _extract(archive, weights, folder)
        store.take_weights(key)
    return ""


def _extract(archive: zipfile.ZipFile, names: list[str], folder: Path) -> None:
    """Members ``runs/KEY/PATH`` to ``folder/PATH``."""
    for name in names:
        path = folder / PurePosixPath(*PurePosixPath(name).parts[2:])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(archive.read(name))
