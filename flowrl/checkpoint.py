"""Checkpoints: folders that are whole or not there, and a reader that names a damaged one and takes the one before.

``checkpoints/iteration_000010/`` holds the state after 10 iterations: ``parameters.safetensors``, ``ema.safetensors``
(where EMA is on), the optimiser's tensors in ``optimizer.safetensors``, its numbers and the schedule's in
``optimizer.pt`` and, written last, ``manifest.json`` with the size and SHA-256 of each of them. Of a sharded model
every process writes its part of the tensors (:mod:`flowrl.shards`); what reads it may be cut in another way, or not.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from flowrl import __version__, atomic, shards
from flowrl.shards import Shards

FORMAT = 2
MANIFEST = "manifest.json"
PARAMETERS = "parameters.safetensors"
EMA = "ema.safetensors"
MOMENTS = "optimizer.safetensors"
OPTIMIZER = "optimizer.pt"
HASHING_THREADS = 8
T = TypeVar("T")
NAME = re.compile(r"iteration_(\d{6,})")


@dataclass(frozen=True)
class State:
    """Everything that the rest of a run depends on.

    Random numbers are functions of (seed, iteration, names), so ``seed`` and ``iteration`` are the whole state of the
    generators, and ``iteration``, the number of iterations done, is the data cursor.
    """

    iteration: int
    seed: int
    parameters: Mapping[str, Tensor]
    """The trainable parameters by name, in the optimiser's order."""
    ema: Mapping[str, Tensor] | None
    """Their exponential moving average by name, None where it is off."""
    optimizer: Mapping[str, Any]
    """``state_dict()`` of the optimiser: tensors, numbers, strings and containers of them."""
    scheduler: Mapping[str, Any]
    """``state_dict()`` of the learning rate's schedule, likewise."""
    recipe: Mapping[str, Any]
    """The resolved recipe, as JSON values."""
    digest: str
    """The digest of what in the recipe enters the trajectory."""


@dataclass(frozen=True)
class Found:
    """What a folder of checkpoints holds: the newest good one (None: none), and why newer ones were passed over."""

    path: Path | None
    skipped: tuple[str, ...] = ()


class Damaged(Exception):  # noqa: N818 - reads as what the checkpoint is
    """A checkpoint that cannot be used; the message says what is wrong with it."""


@dataclass(frozen=True)
class Writers:
    """The processes that write a checkpoint together; by default this one alone.

    ``exchange`` gives every process what each has handed in, in the order of their ranks.
    """

    rank: int = 0
    world: int = 1
    exchange: Callable[[Any], list[Any]] = lambda mine: [mine]

    def all_do(self, work: Callable[[], T]) -> list[T]:
        """What every process's ``work`` returns. Where it fails with an OSError in one, all raise it."""
        try:
            mine, error = work(), None
        except OSError as failure:
            mine, error = None, f"{failure}" if self.world == 1 else f"process {self.rank}: {failure}"
        found = self.exchange((mine, error))
        errors = [error for _, error in found if error is not None]
        if errors:
            raise OSError("; ".join(errors))
        return [result for result, _ in found]

    def first_does(self, work: Callable[[], object]) -> None:
        """``work`` in the first process; when this returns it is done, and seen by all."""
        self.all_do(work if self.rank == 0 else lambda: None)


ALONE = Writers()


def save(folder: Path, state: State, *, keep: int, writers: Writers = ALONE) -> Path:
    """Write ``state`` as ``folder/iteration_NNNNNN`` and then delete all but the newest ``keep`` good checkpoints.

    All processes call it, each with its part of the state, and it returns in all when the checkpoint is there. The
    folder appears under its name only when all files of all processes are on the disk, so a crash at any moment leaves
    the checkpoints before it as they were. Leftovers of earlier crashes are deleted. One run at a time may save.
    Newer checkpoints than this one, which a resumed run passed over as damaged, are left until it reaches them.
    Raises OSError, in all processes alike, where one of them cannot write.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    path = folder / f"iteration_{state.iteration:06d}"
    temporary = folder / f"{atomic.LEFTOVER}{path.name}"

    def begin() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        atomic.remove_leftovers(folder)
        temporary.mkdir()

    def finish() -> None:
        _write_manifest(temporary, state, {name: record for part in written for name, record in part.items()})
        atomic.publish(temporary, path)
        _remove_older(folder, state.iteration, keep)

    try:
        writers.first_does(begin)
        written = writers.all_do(lambda: _write(temporary, state, writers))
        writers.first_does(finish)
    finally:
        if writers.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
    return path


def _remove_older(folder: Path, iteration: int, keep: int) -> None:
    older = [other for other in _by_age(folder) if _iteration(other) <= iteration]
    good = [other for other in older if _is_complete(other)]
    for other in older:
        if other not in good[:keep]:
            atomic.remove_folder(other)


def newest(folder: Path) -> Found:
    """The newest checkpoint in ``folder`` whose every byte is as written; damaged newer ones are named with the reason.

    Changes nothing on the disk, so that every rank of a run may ask and gets the same answer.
    """
    skipped: list[str] = []
    for path in _by_age(folder):
        try:
            verify(path)
        except Damaged as damage:
            skipped.append(f"{path.name}: {damage}")
        else:
            return Found(path, tuple(skipped))
    return Found(None, tuple(skipped))


def verify(path: Path) -> None:
    """Compare every file with the manifest. Raises Damaged with the reason where one is missing or differs."""
    files = _files_of_right_size(path)
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        found = pool.map(_sha256, [path / name for name in files])
        for (name, recorded), digest in zip(files.items(), found, strict=True):
            if digest != recorded["sha256"]:
                raise Damaged(f"{name} differs from its checksum")


def load(path: Path, like: Mapping[str, Tensor] | None = None) -> State:
    """The state in a checkpoint that ``newest`` found or ``verify`` accepted.

    ``like``: the reader's parameters. What belongs to a sharded one is read in its cut and onto its device; all else
    is whole and on the CPU. Raises Damaged where the manifest is not whole. Nothing in the folder is executed: tensors
    are read from safetensors, the rest of the optimiser's state with ``weights_only=True``.
    """
    manifest = read_manifest(path)
    like = like or {}
    parameters, ema, moments = (Shards(path / name, manifest["files"]) for name in (PARAMETERS, EMA, MOMENTS))
    steps = torch.load(path / OPTIMIZER, map_location="cpu", weights_only=True)
    entries: dict[int, dict[str, Tensor]] = {}
    order = {name: index for index, name in enumerate(steps["order"])}
    for full_name in moments.names():
        name, _, entry = full_name.rpartition(".")
        cut = like.get(name)
        fits = cut is not None and cut.shape == moments.shape(full_name)
        entries.setdefault(order[name], {})[entry] = moments.read(full_name, cut if fits else None)
    return State(
        iteration=manifest["iteration"],
        seed=manifest["seed"],
        parameters={name: parameters.read(name, like.get(name)) for name in steps["order"]},
        ema={name: ema.read(name, like.get(name)) for name in ema.names()} if len(ema) else None,
        optimizer={**steps["optimizer"], "state": {index: entries[index] for index in sorted(entries)}},
        scheduler=steps["scheduler"],
        recipe=manifest["recipe"],
        digest=manifest["digest"],
    )


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, checked against its own checksum. Raises Damaged where it is not whole."""
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise Damaged(f"{MANIFEST} is missing: the checkpoint was not finished") from None
    except ValueError:
        raise Damaged(f"{MANIFEST} is not valid JSON") from None
    if not isinstance(manifest, dict) or manifest.pop("sha256", None) != _digest(manifest):
        raise Damaged(f"{MANIFEST} differs from its checksum")
    if manifest["format"] != FORMAT:
        raise Damaged(f"{MANIFEST} has format {manifest['format']}; this is flowrl {__version__}, which reads {FORMAT}")
    if manifest["iteration"] != _iteration(path):
        raise Damaged(f"{MANIFEST} is of iteration {manifest['iteration']}")
    return manifest


def _write(folder: Path, state: State, writers: Writers) -> dict[str, dict[str, Any]]:
    """This process's part of the files; what the manifest will say of each."""
    order = list(state.parameters)
    moments = {
        f"{order[index]}.{entry}": value
        for index, entries in state.optimizer["state"].items()
        for entry, value in entries.items()
    }
    paths: list[Path] = []
    for name, tensors in ((PARAMETERS, state.parameters), (EMA, state.ema), (MOMENTS, moments)):
        if tensors is not None:
            paths += shards.write(folder / name, tensors, rank=writers.rank, world=writers.world)
    if writers.rank == 0:
        numbers = {**state.optimizer, "state": {}}
        torch.save({"optimizer": numbers, "scheduler": dict(state.scheduler), "order": order}, folder / OPTIMIZER)
        paths.append(folder / OPTIMIZER)
    for path in paths:
        atomic.sync(path)
    return {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in paths}


def _write_manifest(folder: Path, state: State, files: Mapping[str, Any]) -> None:
    manifest = {
        "format": FORMAT,
        "flowrl": __version__,
        "torch": torch.__version__,
        "iteration": state.iteration,
        "seed": state.seed,
        "digest": state.digest,
        "recipe": dict(state.recipe),
        "files": dict(sorted(files.items())),
    }
    manifest = json.loads(json.dumps(manifest))  # what a reader will see: tuples as lists, keys as strings
    atomic.write_json(folder / MANIFEST, {**manifest, "sha256": _digest(manifest)})


def _files_of_right_size(path: Path) -> dict[str, dict[str, Any]]:
    """What the manifest records of each file, after a look at names and sizes. Raises Damaged."""
    files: dict[str, dict[str, Any]] = read_manifest(path)["files"]
    for name, recorded in files.items():
        if not (path / name).is_file():
            raise Damaged(f"{name} is missing")
        size = (path / name).stat().st_size
        if size < recorded["bytes"]:
            raise Damaged(f"{name} is truncated: {size} of {recorded['bytes']} bytes")
        if size > recorded["bytes"]:
            raise Damaged(f"{name} is too long: {size} bytes where {recorded['bytes']} were written")
    return files


def _is_complete(path: Path) -> bool:
    """Whether all files are there at their sizes; without their checksums, which take reading every byte."""
    try:
        _files_of_right_size(path)
    except Damaged:
        return False
    return True


def _by_age(folder: Path) -> list[Path]:
    """The checkpoints in ``folder``, whole or not, newest first."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if NAME.fullmatch(path.name)), key=_iteration, reverse=True)


def _iteration(path: Path) -> int:
    match = NAME.fullmatch(path.name)
    if match is None:
        raise Damaged(f"a checkpoint's folder is named iteration_ and at least 6 digits, not {path.name!r}")
    return int(match[1])


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
