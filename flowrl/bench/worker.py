"""A process that works on units one after another, so that what it imports and calibrates serves all of them.

    python -m flowrl.bench.worker FOLDER UNITS.json

It takes the first unit that is not done, whose run is there and that no other process holds, until none is left.
What a unit prints goes to its log; events go to standard output, a JSON object a line. SIGTERM ends it: a
training run saves first (within ``GRACE`` seconds), an evaluation keeps what it has drawn and scored.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TextIO

from flowrl import atomic
from flowrl.bench.units import Agenda, Store, Unit
from flowrl.errors import RunFailed, UserError

if TYPE_CHECKING:
    from flowrl.recipe import Recipe

GRACE_VARIABLE = "FLOWRL_BENCH_GRACE"
"""Seconds that SIGTERM leaves the iteration in flight."""
WAIT_SECONDS = 0.5
Ended = Literal["done", "failed", "stopped"]


class Stopped(BaseException):
    """SIGTERM, in work that need not save anything. Not an Exception, so that no handler swallows it."""


class Worker:
    """One process's part of a list of units."""

    def __init__(
        self, store: Store, units: Sequence[Unit], since: float, say: Callable[[dict[str, Any]], None]
    ) -> None:
        """``since``: when the command began; units that failed after it are not tried again."""
        self.store, self.units, self.since, self.say = store, units, since, say
        self.agenda = Agenda(store, units, since)
        self.stopping = False

    def run(self) -> None:
        """Until no unit is left, or a signal."""
        with suppress(Stopped):
            while not self.stopping:
                state = self._next()
                if state == "over":
                    return
                if state == "waiting":
                    time.sleep(WAIT_SECONDS)

    def _next(self) -> Literal["worked", "waiting", "over"]:
        waiting = False
        for unit in self.units:
            if self.stopping or self.agenda.is_over(unit):
                continue
            if unit.needs is not None and not (self.store.done(unit.needs) and self.store.has_weights(unit.needs)):
                waiting = waiting or not self._is_hopeless(unit)
                continue
            with self.store.claim(unit.key) as mine:
                if not mine:
                    waiting = True
                    continue
                if not self.agenda.is_over(unit):  # another process may have finished it a moment ago
                    self._work(unit)
                    return "worked"
        return "waiting" if waiting else "over"

    def _is_hopeless(self, unit: Unit) -> bool:
        """Whether the run that a unit is about will not come."""
        known = {other.key for other in self.units}
        return unit.needs is None or unit.needs not in known or self.store.failed_since(unit.needs, self.since)

    def _work(self, unit: Unit) -> None:
        self.say({"event": "start", "key": unit.key, "title": unit.title})
        began = time.perf_counter()
        again = self.agenda.is_wanted_again(unit)
        folder = self.store.again(unit.key) if again else self.store.path(unit.key)
        if unit.key in self.store.damaged:
            self.store.forget(unit.key)
        with printing_to(self.store.log(unit.key)):
            ended = self._guarded(unit, folder)
            device = device_label()
        seconds = time.perf_counter() - began
        if ended == "failed":
            self.agenda.fail(unit, seconds=seconds, device=device)
        elif ended == "done" and again:
            self.store.take_weights(unit.key)
        elif ended == "done":
            self.store.write(unit, status="done", seconds=seconds, device=device)
        self.say({"event": ended, "key": unit.key, "title": unit.title, "seconds": seconds})

    def _guarded(self, unit: Unit, folder: Path) -> Ended:
        try:
            result = WORK[unit.kind](unit, folder)
            self.stopping = self.stopping or result.signalled or not result.finished
            return "done" if result.finished else "stopped"
        except Stopped:
            return "stopped"
        except (UserError, RunFailed) as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
        except Exception:
            traceback.print_exc()
        finally:
            release_memory()
        return "stopped" if self.stopping else "failed"

    def stop(self, number: int, frame: FrameType | None) -> None:
        """The handler of SIGTERM where no training run has its own."""
        self.stopping = True
        raise Stopped


# ---- the kinds of work


class Result(NamedTuple):
    """``signalled``: it has answered a signal to end itself, and nothing is to follow it."""

    finished: bool
    signalled: bool = False


def _train(unit: Unit, output: Path) -> Result:
    from flowrl.output import RECIPE
    from flowrl.run import train

    recipe = _recipe(unit)
    resume = (output / RECIPE).is_file()
    if not resume and output.exists():
        atomic.remove_folder(output)  # it was killed before anything was worth keeping
    output.parent.mkdir(parents=True, exist_ok=True)
    grace = float(os.environ.get(GRACE_VARIABLE, "20"))
    try:
        summary = train(recipe, output=output, resume=resume, grace=grace, pictures=False)
    except UserError as error:
        if not resume:
            raise
        print(f"what is there cannot be gone on with, the run begins anew: {error}", flush=True)
        atomic.remove_folder(output)
        summary = train(recipe, output=output, grace=grace, pictures=False)
    if summary.finished:
        for name in ("checkpoints", "evaluation/before.pt", "evaluation/after.pt"):  # nothing goes on from here
            path = output / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return Result(summary.finished, summary.signal is not None)


def _evaluate(unit: Unit, output: Path) -> Result:
    from flowrl.evaluation.harness import Request, prepare, run

    given = {key: value for key, value in unit.arguments.items() if key != "of"}
    output.parent.mkdir(parents=True, exist_ok=True)
    run(prepare(Request(output=output, model_or_run=unit.arguments["of"], **given)))
    return Result(True)


def _measure(unit: Unit, output: Path) -> Result:
    module, _, name = unit.arguments["function"].partition(":")
    function = getattr(importlib.import_module(module), name)
    output.mkdir(parents=True, exist_ok=True)
    atomic.write_json(output / "measured.json", function(_recipe(unit), **unit.arguments["options"]))
    return Result(True)


def _recipe(unit: Unit) -> Recipe:
    from flowrl.recipe import load_recipe

    given = unit.arguments
    overrides = list(given["overrides"])
    return load_recipe(given["recipe"], model=given["model"], rewards=given["rewards"], overrides=overrides)


WORK: dict[str, Callable[[Unit, Path], Result]] = {"train": _train, "eval": _evaluate, "measure": _measure}


# ---- the process


@contextmanager
def printing_to(path: Path) -> Iterator[None]:
    """Inside, all that this process and its children print is added to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with path.open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for old, number in zip(kept, (1, 2), strict=True):
            os.dup2(old, number)
            os.close(old)


def device_label() -> str:
    import torch

    from flowrl.summary import device_name

    return device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def release_memory() -> None:
    """What one unit held on the GPU is the next one's."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def main(folder: str, file: str) -> None:
    """Work until nothing is left."""
    given = json.loads(Path(file).read_text())
    units = [Unit(**values) for values in given["units"]]
    events: TextIO = os.fdopen(os.dup(1), "w", buffering=1)

    def say(event: dict[str, Any]) -> None:
        with suppress(BrokenPipeError):
            events.write(json.dumps(event) + "\n")

    worker = Worker(Store(Path(folder)), units, given["since"], say)
    signal.signal(signal.SIGTERM, worker.stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's is answered by the process that started this one
    worker.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
