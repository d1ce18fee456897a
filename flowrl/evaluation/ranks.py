"""The processes of an evaluation: each works for itself and writes its own files; they only wait for each other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch

PATIENCE = timedelta(days=7)
"""How long a process waits for the slowest one; that one died, ``flowrl.launch`` ends all."""


@dataclass(frozen=True)
class Ranks:
    """This process among all."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Until all have come here; what each has written before is then seen by all."""
        if self.world > 1:
            torch.distributed.barrier()

    def say(self, text: str) -> None:
        """A line on the terminal, from the first process alone."""
        if self.is_first:
            print(text, flush=True)


@contextmanager
def ranks() -> Iterator[Ranks]:
    """This process by the variables of torch's launchers, joined to the others."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0")) if world > 1 else 0
    device = _device(int(os.environ.get("LOCAL_RANK", "0")) if world > 1 else 0)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world == 1:
        yield Ranks(rank, world, device)
        return
    torch.distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Ranks(rank, world, device)
    finally:
        torch.distributed.destroy_process_group()


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank % torch.cuda.device_count())
