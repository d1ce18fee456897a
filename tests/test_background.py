"""Calls beside the main thread: their order, how many wait, what becomes of exceptions and of a caller that leaves."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from flowrl import background
from flowrl.background import Background


def test_calls_are_made_in_order_on_one_other_thread_and_all_end():
    seen = []
    with Background(2) as beside:
        for number in range(20):
            beside.wait_for_room()
            beside.call(lambda number: seen.append((number, threading.get_ident())), number)
    assert [number for number, _ in seen] == list(range(20))
    (thread,) = {thread for _, thread in seen}
    assert thread != threading.get_ident()


def test_without_room_for_any_a_call_is_made_in_line():
    seen = []
    with Background(0) as beside:
        beside.wait_for_room()
        beside.call(lambda: seen.append(threading.get_ident()))
        assert seen == [threading.get_ident()]
    with pytest.raises(ValueError, match="0 or more"):
        Background(-1)


@pytest.mark.parametrize("limit", [1, 3])
def test_no_more_than_the_limit_are_unfinished(limit):
    gate, waiting = threading.Event(), threading.Event()
    with Background(limit) as beside:
        for _ in range(limit):
            beside.wait_for_room()
            beside.call(gate.wait, 60)
        opener = threading.Thread(target=lambda: (waiting.wait(60), gate.set()))
        opener.start()
        assert not beside._room.acquire(timeout=0.05), "there is no room while none has ended"
        waiting.set()
        beside.wait_for_room()
        beside.call(lambda: None)
        opener.join()


def test_an_exception_reaches_the_caller_and_ends_the_calls():
    made = []

    def fail() -> None:
        raise ZeroDivisionError("the scorer's own")

    def feed(beside: Background) -> None:
        for call in (lambda: made.append(1), fail, lambda: made.append(2)):
            beside.wait_for_room()
            beside.call(call)

    with pytest.raises(ZeroDivisionError, match="the scorer's own"), Background(1) as beside:
        feed(beside)
    with pytest.raises(ZeroDivisionError), Background(8) as beside:
        feed(beside)
    assert made == [1, 1]


@pytest.mark.parametrize("at", ["the body", "the end"])
def test_a_caller_that_leaves_drops_what_waits(at, monkeypatch):
    """As a signal does, wherever the caller is held up; a call that never ends does not keep it."""
    monkeypatch.setattr(background, "PATIENCE", 0.05)
    gate, made = threading.Event(), []

    class LeaveError(Exception):
        pass

    def leave(*_: object) -> None:
        raise LeaveError

    def be_used(beside: Background) -> None:
        with beside:
            for call in (lambda: gate.wait(60), lambda: made.append(1)):
                beside.wait_for_room()
                beside.call(call)
            if at == "the body":
                leave()
            monkeypatch.setattr(beside._room, "acquire", leave)

    beside, began = Background(3), time.monotonic()
    with pytest.raises(LeaveError):
        be_used(beside)
    assert time.monotonic() - began < 30
    gate.set()
    assert beside._ended.wait(60)
    assert not made


def test_an_input_is_freed_before_there_is_room_for_another():
    import weakref

    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0
    with Background(2) as beside:
        for _ in range(10):
            beside.wait_for_room()
            images = torch.zeros(3)
            alive.append(weakref.ref(images))
            most = max(most, sum(ref() is not None for ref in alive))
            beside.call(lambda images: None, images)
            del images
    assert most <= 2


def test_all_calls_on_a_gpu_have_one_stream(monkeypatch):
    """PyTorch keeps the memory and the workspaces of every stream that there was."""
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: [device])
    background._stream.cache_clear()
    assert background._stream(0) is background._stream(0)
    assert background._stream(0) is not background._stream(1)
    background._stream.cache_clear()


@pytest.mark.gpu
def test_on_a_gpu_calls_run_beside_and_see_what_was_there_before_them():
    """The caller overwrites its memory at once; a call reads what was its input, later, on a stream of its own."""
    streams, found = set(), []

    def read(x):
        streams.add(torch.cuda.current_stream().cuda_stream)
        torch.cuda._sleep(20_000_000)
        found.append(x.sum().item())

    with Background(2) as beside:
        for number in range(6):
            beside.wait_for_room()
            torch.cuda._sleep(20_000_000)
            x = torch.full((1 << 20,), float(number), device="cuda")
            beside.call(read, x)
            del x
            torch.full((1 << 20,), -1.0, device="cuda")  # would be given the same memory
    assert found == [number * float(1 << 20) for number in range(6)]
    assert streams.isdisjoint({torch.cuda.current_stream().cuda_stream})
    assert len(streams) == 1


@pytest.mark.gpu
def test_on_a_gpu_a_call_has_ended_when_its_kernels_have():
    out = torch.zeros(1, device="cuda")

    def write():
        torch.cuda._sleep(100_000_000)
        out.add_(1)

    with Background(1) as beside:
        beside.wait_for_room()
        beside.call(write)
    assert out.item() == 1.0
