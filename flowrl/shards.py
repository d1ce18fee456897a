"""Tensors in safetensors files, whole or cut by rows over several of them, read back whole or cut in another way.

``parameters.safetensors`` holds whole tensors. ``parameters-00002-of-00004.safetensors`` holds what the second of four
processes had: of a DTensor its rows, whose place among all the file's header records; of others the first process
writes all. A reader takes the rows that it needs from whichever files have them, so that any number of processes, or
one, may go on with what any number has written. Nothing in such a file is executed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeGuard, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

ROWS = "rows"


class Piece(NamedTuple):
    """The rows of a tensor that a process holds: ``local`` [rows, ...] from row ``first`` of ``total``."""

    local: Tensor
    first: int
    total: int
    is_mine: bool
    """Whether this process is the one of those that hold the same rows which writes them."""


def is_cut(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether it is a DTensor; without importing them, which takes half a second that one process has no use for."""
    return hasattr(tensor, "placements")


def piece_of(tensor: DTensor) -> Piece:
    """This process's rows of a tensor that FSDP has cut along its first axis: n rows over w processes are ceil(n / w)
    each, the last ones with fewer or none."""
    mesh, total = tensor.device_mesh, tensor.shape[0]
    cut = [axis for axis, placement in enumerate(tensor.placements) if placement.is_shard(0)]
    copied = [axis for axis, placement in enumerate(tensor.placements) if placement.is_replicate()]
    if len(cut) != 1 or len(cut) + len(copied) != mesh.ndim:
        raise ValueError(f"only tensors cut once along their first axis are stored, got {tensor.placements}")
    rows = -(-total // mesh.size(cut[0]))
    first = min(mesh.get_local_rank(cut[0]) * rows, total)
    is_mine = all(mesh.get_local_rank(axis) == 0 for axis in copied)
    return Piece(tensor.to_local(), first, total, is_mine)


def write(path: Path, tensors: Mapping[str, Tensor], *, rank: int, world: int) -> list[Path]:
    """Write what this process has of ``tensors`` to ``path``, or to its own part of it; returns the files.

    Every process calls it, none waits for another. Raises OSError.
    """
    held: dict[str, Tensor] = {}
    rows: dict[str, tuple[int, int]] = {}
    for name, tensor in tensors.items():
        if is_cut(tensor):
            piece = piece_of(tensor)
            if piece.is_mine and len(piece.local):
                held[name], rows[name] = piece.local, (piece.first, piece.total)
        elif rank == 0:
            held[name] = tensor
    if not held and rank > 0:
        return []
    if any(map(is_cut, tensors.values())):
        path = path.with_stem(f"{path.stem}-{rank + 1:05d}-of-{world:05d}")
    on_cpu = {name: value.detach().cpu().contiguous() for name, value in held.items()}
    try:
        save_file(on_cpu, path, {ROWS: json.dumps(rows)} if rows else None)
    except SafetensorError as error:
        raise OSError(f"{path.name}: {error}") from error
    return [path]


class Shards:
    """What was written to ``path`` or to parts of it, among the ``files`` of its folder."""

    def __init__(self, path: Path, files: Iterable[str]) -> None:
        names = [name for name in files if name == path.name or name.startswith(f"{path.stem}-")]
        self._files = [safe_open(path.with_name(name), framework="pt", device="cpu") for name in sorted(names)]
        self._pieces: dict[str, list[tuple[int, int]]] = {}  # name -> (file, first row)
        self._shape: dict[str, tuple[int, ...]] = {}
        for index, file in enumerate(self._files):
            rows = json.loads((file.metadata() or {}).get(ROWS, "{}"))
            for name in file.keys():  # noqa: SIM118 - not a dict
                shape = tuple(file.get_slice(name).get_shape())
                first, total = rows.get(name, (0, shape[0] if shape else 1))
                self._pieces.setdefault(name, []).append((index, first))
                self._shape[name] = (total, *shape[1:]) if shape else shape

    def __len__(self) -> int:
        return len(self._files)

    def names(self) -> list[str]:
        return list(self._pieces)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole tensor."""
        return self._shape[name]

    def read(self, name: str, like: Tensor | None = None) -> Tensor:
        """The tensor: cut as ``like`` is, on its device, where that is a DTensor, else whole on the CPU."""
        if like is not None and is_cut(like):
            found: Tensor = torch.empty_like(like, requires_grad=False)
            piece = piece_of(cast("DTensor", found))
            with torch.no_grad():
                piece.local.copy_(self._rows(name, piece.first, len(piece.local)))
            return found
        shape = self._shape[name]
        return self._rows(name, 0, shape[0]) if shape else self._files[self._pieces[name][0][0]].get_tensor(name)

    def _rows(self, name: str, first: int, count: int) -> Tensor:
        """Rows ``first`` to ``first + count`` from whichever pieces have them."""
        parts = []
        for index, start in sorted(self._pieces[name], key=lambda piece: piece[1]):
            stored = self._files[index].get_slice(name)
            low, high = max(first - start, 0), min(first + count - start, stored.get_shape()[0])
            if low < high:
                parts.append(stored[low:high])
        if not parts:
            index = self._pieces[name][0][0]
            return self._files[index].get_slice(name)[0:0]
        return parts[0] if len(parts) == 1 else torch.cat(parts)
