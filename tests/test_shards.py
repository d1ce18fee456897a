"""Tensors cut by rows over files, put together again whatever the cut. Processes that cut them: test_parallel.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from flowrl import shards
from flowrl.shards import Shards

WEIGHT = torch.arange(14.0).reshape(7, 2)


@pytest.fixture
def three(tmp_path: Path) -> Shards:
    """Seven rows by three processes, 3 + 3 + 1; of a bias of two rows the third has none; a number is the first's."""
    cuts = {"weight": (WEIGHT, 3), "bias": (torch.tensor([1.0, 2.0]), 1)}
    for rank in range(3):
        held = {name: tensor[rank * rows : (rank + 1) * rows] for name, (tensor, rows) in cuts.items()}
        held = {name: piece.clone() for name, piece in held.items() if len(piece)}
        rows = {name: (rank * cuts[name][1], len(cuts[name][0])) for name in held}
        if rank == 0:
            held["step"] = torch.tensor(5.0)
        save_file(held, tmp_path / f"all-0000{rank + 1}-of-00003.safetensors", {"rows": json.dumps(rows)})
    return Shards(tmp_path / "all.safetensors", sorted(path.name for path in tmp_path.iterdir()))


def test_pieces_are_whole_again(three: Shards) -> None:
    assert sorted(three.names()) == ["bias", "step", "weight"]
    assert three.shape("weight") == (7, 2)
    assert torch.equal(three.read("weight"), WEIGHT)
    assert torch.equal(three.read("bias"), torch.tensor([1.0, 2.0]))
    assert three.read("step") == 5


@pytest.mark.parametrize(("first", "count"), [(0, 2), (2, 2), (0, 7), (2, 5), (6, 1), (7, 0)])
def test_any_rows_are_found(three: Shards, first: int, count: int) -> None:
    assert torch.equal(three._rows("weight", first, count), WEIGHT[first : first + count])


def test_what_is_whole_is_written_by_the_first(tmp_path: Path) -> None:
    path = tmp_path / "all.safetensors"
    assert shards.write(path, {"weight": WEIGHT}, rank=1, world=2) == []
    assert shards.write(path, {"weight": WEIGHT}, rank=0, world=2) == [path]
    assert torch.equal(Shards(path, [path.name, "other.safetensors"]).read("weight"), WEIGHT)


def test_what_cannot_be_written_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"all\.safetensors"):
        shards.write(tmp_path / "missing" / "all.safetensors", {"weight": WEIGHT}, rank=0, world=1)
