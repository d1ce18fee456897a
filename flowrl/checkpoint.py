"""Checkpoints: folders that are whole or not there, and a reader that names a damaged one and takes the one before.

``checkpoints/iteration_000010/`` holds the state after 10 iterations: ``parameters.safetensors``, ``ema.safetensors``
(where EMA is on), ``optimizer.pt`` and, written last, ``manifest.json`` with the size and SHA-256 of each of them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowrl import __version__, atomic

FORMAT = 1
MANIFEST = "manifest.json"
PARAMETERS = "parameters.safetensors"
EMA = "ema.safetensors"
OPTIMIZER = "optimizer.pt"
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
    """The trainable parameters by name."""
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


def save(folder: Path, state: State, *, keep: int) -> Path:
    """Write ``state`` as ``folder/iteration_NNNNNN`` and then delete all but the newest ``keep`` good checkpoints.

    The folder appears under its name only when all its files are on the disk, so a crash at any moment leaves the
    checkpoints before it as they were. Leftovers of earlier crashes are deleted. One process at a time may save.
    Newer checkpoints than this one, which a resumed run passed over as damaged, are left until it reaches them.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    folder.mkdir(parents=True, exist_ok=True)
    atomic.remove_leftovers(folder)
    path = folder / f"iteration_{state.iteration:06d}"
    with atomic.new_folder(path) as temporary:
        _write(temporary, state)
    older = [other for other in _by_age(folder) if _iteration(other) <= state.iteration]
    good = [other for other in older if _is_complete(other)]
    for other in older:
        if other not in good[:keep]:
            atomic.remove_folder(other)
    return path


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
    for name, recorded in _files_of_right_size(path).items():
        if _sha256(path / name) != recorded["sha256"]:
            raise Damaged(f"{name} differs from its checksum")


def load(path: Path) -> State:
    """The state in a checkpoint that ``newest`` found or ``verify`` accepted, tensors on the CPU.

    Raises Damaged where the manifest is not whole. Nothing in the folder is executed: tensors are read from
    safetensors, the optimiser's state with ``weights_only=True``.
    """
    manifest = read_manifest(path)
    steps = torch.load(path / OPTIMIZER, map_location="cpu", weights_only=True)
    return State(
        iteration=manifest["iteration"],
        seed=manifest["seed"],
        parameters=load_file(path / PARAMETERS),
        ema=load_file(path / EMA) if EMA in manifest["files"] else None,
        optimizer=steps["optimizer"],
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


def _write(folder: Path, state: State) -> None:
    save_file(_on_cpu(state.parameters), folder / PARAMETERS)
    if state.ema is not None:
        save_file(_on_cpu(state.ema), folder / EMA)
    torch.save({"optimizer": dict(state.optimizer), "scheduler": dict(state.scheduler)}, folder / OPTIMIZER)
    files = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(folder.iterdir())}
    manifest = {
        "format": FORMAT,
        "flowrl": __version__,
        "torch": torch.__version__,
        "iteration": state.iteration,
        "seed": state.seed,
        "digest": state.digest,
        "recipe": dict(state.recipe),
        "files": files,
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


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
