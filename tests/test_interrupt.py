import os
import signal
import threading
import time

import pytest

from flowrl.interrupt import DropIteration, Interrupt


def send(number: signal.Signals) -> None:
    """Send this process a signal and give Python the chance to run its handler."""
    os.kill(os.getpid(), number)
    time.sleep(0.01)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_only_asks(number: signal.Signals, said: list[str]) -> None:
    with Interrupt(say=said.append) as interrupt:
        assert not interrupt.requested
        send(number)
        assert interrupt.requested
        assert interrupt.signal is number
    assert len(said) == 1
    assert "finishing the iteration" in said[0]


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_drops_the_iteration(second: signal.Signals, said: list[str]) -> None:
    with Interrupt(say=said.append) as interrupt:
        send(signal.SIGTERM)
        assert not interrupt.dropping
        with pytest.raises(DropIteration), interrupt.droppable():
            send(second)
        assert interrupt.requested
        assert interrupt.dropping
    assert len(said) == 2


def test_handlers_of_errors_do_not_swallow_a_drop(said: list[str]) -> None:
    assert not issubclass(DropIteration, Exception)


def test_the_end_of_grace_drops_the_iteration(said: list[str]) -> None:
    with Interrupt(grace=0.05, say=said.append) as interrupt:
        start = time.monotonic()
        send(signal.SIGTERM)
        with pytest.raises(DropIteration), interrupt.droppable():
            time.sleep(5)
        assert time.monotonic() - start < 2
    assert "0.05 seconds" in said[0]


def test_a_finished_iteration_cancels_grace(said: list[str]) -> None:
    with Interrupt(grace=0.05, say=said.append):
        send(signal.SIGTERM)
    time.sleep(0.1)
    assert len(said) == 1


def test_outside_what_is_droppable_all_is_finished(said: list[str]) -> None:
    with Interrupt(grace=0.03, say=said.append) as interrupt:
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        time.sleep(0.06)
        assert interrupt.dropping
        assert "finished first" in said[-1]
        with pytest.raises(DropIteration), interrupt.droppable():
            raise AssertionError("a drop that was asked for earlier comes before anything begins")


def test_a_signal_while_a_drop_unwinds_raises_nothing(said: list[str]) -> None:
    def work() -> None:
        try:
            send(signal.SIGTERM)
            send(signal.SIGTERM)
        finally:
            send(signal.SIGTERM)
            unwound.append(True)

    unwound: list[bool] = []
    with Interrupt(say=said.append) as interrupt, pytest.raises(DropIteration), interrupt.droppable():
        work()
    assert unwound == [True]


def test_where_nothing_is_to_be_finished_the_first_signal_drops(said: list[str]) -> None:
    with Interrupt(say=said.append) as interrupt:
        with pytest.raises(DropIteration), interrupt.droppable(at_once=True):
            send(signal.SIGTERM)
        assert said == ["SIGTERM: dropping what is in flight"]
    with Interrupt(say=said.append) as interrupt:
        send(signal.SIGTERM)
        with interrupt.droppable():
            pass
        with pytest.raises(DropIteration), interrupt.droppable(at_once=True):
            raise AssertionError("a stop that was asked for earlier comes before anything begins")


def test_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]
    with pytest.raises(RuntimeError), Interrupt():
        raise RuntimeError
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_outside_the_main_thread_it_can_still_be_asked() -> None:
    seen = []

    def body() -> None:
        with Interrupt(grace=1.0) as interrupt:
            seen.append(interrupt.requested)
            interrupt.request()
            seen.append(interrupt.requested)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [False, True]


def test_the_default_message_goes_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    with Interrupt(grace=60):
        send(signal.SIGINT)
    assert "SIGINT: finishing the iteration within 60 seconds" in capfd.readouterr().err


def test_no_grace_drops_at_once(said: list[str]) -> None:
    with Interrupt(grace=0, say=said.append) as interrupt:
        with pytest.raises(DropIteration), interrupt.droppable():
            send(signal.SIGTERM)
        assert interrupt.requested
    with Interrupt(grace=0, say=said.append) as interrupt:
        send(signal.SIGTERM)
        assert interrupt.dropping


def test_grace_is_not_negative() -> None:
    with pytest.raises(ValueError, match="0 seconds or more"):
        Interrupt(grace=-1)
