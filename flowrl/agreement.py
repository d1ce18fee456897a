"""One answer for all ranks: is the work that they are doing each for itself kept, or dropped?

A rank that dropped an iteration alone would leave the others waiting for it in a collective, where no signal reaches
Python. So ranks meet before the collectives that follow a rollout, in a wait that signals can end; of "all have
arrived" and "one drops it", what is written first holds for all.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

POLL_SECONDS = 0.002
KEEP, DROP = b"keep", b"drop"


class Agreement:
    """The meetings of one run's ranks, by name. Every rank makes one, and calls :meth:`keep` or :meth:`drop` once for
    each name. A single process agrees with itself."""

    _numbers = itertools.count()

    def __init__(self) -> None:
        self._world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        self._store = shared_store(f"{next(self._numbers)}") if self._world > 1 else None

    def keep(self, name: str, wants_drop: Callable[[], bool]) -> bool:
        """This rank's work is done: wait until all have said so (True), or one drops it (False).

        ``wants_drop`` is asked while waiting: whether this rank would drop its work after all.
        """
        if self._store is None:
            return not wants_drop()
        if self._store.add(f"{name}/done", 1) == self._world:
            self._store.compare_set(name, "", KEEP.decode())
        while not self._store.check([name]):
            if wants_drop():
                return self.drop(name)
            time.sleep(POLL_SECONDS)
        return bool(self._store.get(name) == KEEP)

    def drop(self, name: str) -> bool:
        """This rank drops its work. Returns False, or True where all had already agreed to keep it."""
        if self._store is None:
            return False
        return bool(self._store.compare_set(name, "", DROP.decode()) == KEEP)


def shared_store(prefix: str) -> Any:
    """The key-value store that the process group met in, under a prefix of its user's own.

    Its time-out is the process group's, and stays so: setting that of a prefix sets that of all.
    """
    from torch.distributed.distributed_c10d import _get_default_store

    return dist.PrefixStore(f"flowrl-{prefix}", _get_default_store())
