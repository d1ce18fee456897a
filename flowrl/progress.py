"""What a run shows while it works: one line an iteration and, on a terminal, a bar with what remains."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

ETA_WINDOW = 10
SHOWN = (("reward", "reward", ".4f"), ("gold", "gold/score", ".4f"), ("forwards", "forwards", ",.0f"))
"""Label, column, format. The gold score is a part of what reward ``gold`` reports."""


class Progress:
    """The display of one run. Where standard output is not a terminal it prints plain lines and nothing else.

    >>> with Progress(12, console=Console(force_terminal=False)) as progress:
    ...     progress.update({"iteration": 1, "reward": 0.5, "forwards": 3520, "seconds": 4.2})
    iteration  1/12  reward 0.5000  forwards 3,520  4.2 s  ETA 0:46
    """

    def __init__(self, iterations: int, done: int = 0, *, enabled: bool = True, console: Console | None = None) -> None:
        """``iterations`` in the whole run, of which ``done`` were before; ``enabled`` on the main process only."""
        self._iterations = iterations
        self._enabled = enabled
        self._console = console or Console(file=sys.stdout, highlight=False)
        self._seconds: deque[float] = deque(maxlen=ETA_WINDOW)
        self._since = time.monotonic()
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("ETA {task.fields[eta]}"),
            console=self._console,
            disable=not (enabled and self._console.is_terminal),
            transient=True,
        )
        self._task = self._bar.add_task("starting", total=iterations, completed=done, eta="-")

    def __enter__(self) -> Progress:
        self._since = time.monotonic()
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def stage(self, text: str) -> None:
        """What is being done now; shown on a terminal only, since it changes several times an iteration."""
        self._bar.update(self._task, description=text)

    def note(self, text: str) -> None:
        """A line that stays."""
        if self._enabled:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def update(self, row: Mapping[str, Any]) -> None:
        """An iteration is done: print its line. ``row`` as :meth:`flowrl.tracking.Tracking.log` returns it."""
        now = time.monotonic()
        seconds = row.get("seconds") or now - self._since
        self._since = now
        self._seconds.append(seconds)
        remaining = (self._iterations - row["iteration"]) * sum(self._seconds) / len(self._seconds)
        width = len(str(self._iterations))
        parts = [f"iteration {row['iteration']:>{width}}/{self._iterations}"]
        parts += [f"{label} {row[name]:{spec}}" for label, name, spec in SHOWN if row.get(name) is not None]
        parts += [
            f"{name.removeprefix('coverage/')} answered {percent(share)} of images"
            for name, share in row.items()
            if name.startswith("coverage/") and share is not None and share < 1
        ]
        parts += [f"not finite: {', '.join(row['non_finite'])}"] if row.get("non_finite") else []
        parts += [f"{seconds:.1f} s", f"ETA {duration(remaining)}"]
        self.note("  ".join(parts))
        self._bar.update(self._task, completed=row["iteration"], eta=duration(remaining))


def percent(share: float) -> str:
    """A coverage, rounded down, so that only all is 100 %.

    >>> percent(0.9999), percent(1.0)
    ('99.9 %', '100.0 %')
    """
    return f"{math.floor(share * 1000) / 10:.1f} %"


def counted(number: int, word: str) -> str:
    """How many there are of something.

    >>> counted(1, "seed"), counted(2000, "seed")
    ('1 seed', '2,000 seeds')
    """
    return f"{number:,} {word}" + "s" * (number != 1)


def duration(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss.

    >>> duration(3725.4), duration(59.6)
    ('1:02:05', '1:00')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
