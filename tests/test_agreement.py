"""Ranks as threads over one store: whatever the order, all get the same answer."""

import threading
import time
from datetime import timedelta

import pytest
from torch import distributed
from torch.distributed import HashStore, TCPStore

from flowrl.agreement import Agreement, shared_store


@pytest.fixture
def ranks() -> list[Agreement]:
    store, found = HashStore(), [Agreement() for _ in range(3)]
    for agreement in found:
        agreement._world, agreement._store = 3, store
    return found


def ask(ranks: list[Agreement], *bodies) -> list[bool]:
    """The ranks' answers, each found by its own body."""
    answers: list[bool | None] = [None] * len(ranks)

    def run(rank: int) -> None:
        answers[rank] = bodies[rank](ranks[rank])

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(ranks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    return answers


def arrives(agreement: Agreement) -> bool:
    return agreement.keep("work", lambda: False)


def arrives_late(agreement: Agreement) -> bool:
    time.sleep(0.1)
    return agreement.keep("work", lambda: False)


def never_finishes(agreement: Agreement) -> bool:
    time.sleep(0.1)
    return agreement.drop("work")


def changes_its_mind(agreement: Agreement) -> bool:
    until = time.monotonic() + 0.05
    return agreement.keep("work", lambda: time.monotonic() > until)


def test_what_all_finish_is_kept(ranks: list[Agreement]) -> None:
    assert ask(ranks, arrives, arrives_late, arrives) == [True] * 3


def test_what_one_drops_all_drop(ranks: list[Agreement]) -> None:
    assert ask(ranks, arrives, never_finishes, arrives) == [False] * 3


def test_one_that_waits_may_still_drop(ranks: list[Agreement]) -> None:
    assert ask(ranks, arrives, changes_its_mind, arrives_late) == [False] * 3


def test_what_is_agreed_stays(ranks: list[Agreement]) -> None:
    assert ask(ranks, arrives, arrives, arrives) == [True] * 3
    assert ranks[0].drop("work"), "too late"
    assert not ranks[0].drop("other work")


def test_the_store_of_the_process_group_keeps_its_time_out() -> None:
    """NCCL's first collective waits in that store for the slowest rank."""
    server = TCPStore("localhost", 0, is_master=True, timeout=timedelta(hours=2))
    distributed.init_process_group("gloo", store=server, rank=0, world_size=1)
    try:
        store = shared_store("own")
        store.set("key", "value")
        assert store.get("key") == b"value"
        assert server.timeout == timedelta(hours=2)
        with pytest.raises(distributed.DistStoreError):
            store.wait(["never"], timedelta(milliseconds=10))
        assert server.timeout == timedelta(hours=2)
    finally:
        distributed.destroy_process_group()


def test_a_single_process_agrees_with_itself() -> None:
    assert Agreement().keep("work", lambda: False)
    assert not Agreement().keep("work", lambda: True)
    assert not Agreement().drop("work")
