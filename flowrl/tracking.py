"""Where metrics go: metrics.jsonl (the record), metrics.csv (the same as a table), and the trackers of accelerate.

A row belongs to an iteration, counted as iterations done: the row of 10 describes the tenth iteration, the checkpoint
iteration_000010 follows it, and 0 is what was measured before the first.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flowrl import atomic
from flowrl.errors import UserError, did_you_mean, listing

JSONL = "metrics.jsonl"
CSV = "metrics.csv"
NON_FINITE = "non_finite"
TRACKER_RUN = "tracker_run.json"
TRACKER_PACKAGES = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "comet_ml": "comet-ml",
    "aim": "aim<4",
    "mlflow": "mlflow",
    "clearml": "clearml",
    "dvclive": "dvclive",
    "swanlab": "swanlab",
    "trackio": "trackio",
}
"""Tracker (also the name of its module) -> what pip installs for it."""

Row = dict[str, Any]


class Tracking:
    """Writes each row to the files and the trackers; on ranks other than the main one it does nothing.

    >>> import tempfile
    >>> with Tracking(Path(tempfile.mkdtemp()), trackers=()) as tracking:
    ...     row = tracking.log(1, {"reward": 0.5, "loss": float("nan")})
    >>> row
    {'iteration': 1, 'reward': 0.5, 'loss': None, 'non_finite': ['loss']}
    """

    def __init__(
        self,
        output: Path,
        *,
        resumed_at: int | None = None,
        trackers: Sequence[str] = ("tensorboard",),
        name: str = "flowrl",
        recipe: Mapping[str, Any] | None = None,
        is_main: bool = True,
    ) -> None:
        """``resumed_at``: the iteration of the checkpoint that is resumed, after which rows are cut off; None begins
        anew. ``name`` is the project that trackers file the run under, ``recipe`` what they show as its settings.

        Raises UserError where a tracker is unknown or its package missing.
        """
        self._files: MetricsFiles | None = None
        self._trackers: list[Any] = []
        if not is_main:
            return
        check_trackers(trackers)
        output.mkdir(parents=True, exist_ok=True)
        self._files = MetricsFiles(output, resumed_at)
        self._trackers = [_start(tracker, output, resumed_at, name, recipe or {}) for tracker in trackers]

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def log(self, iteration: int, metrics: Mapping[str, Any]) -> Row:
        """Write one row and return it as written: numbers, with None for what is not finite.

        Values are numbers, tensors of one number, strings or None. Several rows of one iteration are legal (its
        training, then an evaluation).
        """
        values = {name: _plain(name, value) for name, value in metrics.items()}
        row = make_row(iteration, values)
        if self._files is not None:
            self._files.append(row)
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        for tracker in self._trackers:
            tracker.log(numbers, step=iteration)
        return row

    def log_image(self, iteration: int, name: str, path: Path) -> None:
        """Show a picture that was written to ``path`` in the trackers that take pictures the same way."""
        from PIL import Image

        for tracker in self._trackers:
            if tracker.name == "wandb":
                tracker.log_images({name: [Image.open(path)]}, step=iteration)
            elif tracker.name == "tensorboard":
                import numpy as np

                pixels = np.asarray(Image.open(path).convert("RGB"))[None]
                tracker.log_images({name: pixels}, step=iteration, dataformats="NHWC")

    def close(self) -> None:
        """Finish the trackers and close the files."""
        for tracker in self._trackers:
            tracker.finish()
        self._trackers = []
        if self._files is not None:
            self._files.close()
            self._files = None


class MetricsFiles:
    """metrics.jsonl, appended line by line, and metrics.csv, which follows it and is rewritten when columns grow."""

    def __init__(self, output: Path, resumed_at: int | None = None) -> None:
        self._jsonl, self._csv = output / JSONL, output / CSV
        rows = [] if resumed_at is None else read_rows(output, until=resumed_at)
        atomic.write_text(self._jsonl, "".join(_line(row) for row in rows))
        self._columns = list(dict.fromkeys(["iteration", *(column for row in rows for column in row)]))
        self._rewrite_csv(rows)
        self._file = self._jsonl.open("a", encoding="utf-8")

    def append(self, row: Row) -> None:
        """Write a row to both files, so that a reader at any time finds whole lines."""
        self._file.write(_line(row))
        self._file.flush()
        new = [column for column in row if column not in self._columns]
        if new:
            self._columns += new
            self._rewrite_csv(read_rows(self._jsonl.parent))
        else:
            with self._csv.open("a", encoding="utf-8", newline="") as file:
                self._write_csv(file, [row])

    def close(self) -> None:
        self._file.close()

    def _rewrite_csv(self, rows: Iterable[Row]) -> None:
        with atomic.replacing(self._csv) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(self._columns)
            self._write_csv(file, rows)

    def _write_csv(self, file: Any, rows: Iterable[Row]) -> None:
        writer = csv.DictWriter(file, self._columns, lineterminator="\n")
        for row in rows:
            writer.writerow({**row, NON_FINITE: " ".join(row[NON_FINITE])} if NON_FINITE in row else row)


def read_rows(output: Path, until: int | None = None) -> list[Row]:
    """The rows of a run's metrics.jsonl, those up to iteration ``until`` where given; [] where there is no file.

    A last line without its end (the process was killed while writing it) is left out. Raises UserError for any other
    line that is not a row.
    """
    path = output / JSONL
    if not path.is_file():
        return []
    rows = []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = json.loads(line)
            iteration = row["iteration"]
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{path}, line {number}: expected a JSON object with an iteration, found {line[:60]!r}; "
                "repair or delete the line"
            ) from None
        if until is None or iteration <= until:
            rows.append(row)
    return rows


def check_trackers(trackers: Sequence[str]) -> None:
    """Raise UserError where a tracker is unknown or its package is not installed. Imports nothing heavy."""
    for tracker in trackers:
        if tracker not in TRACKER_PACKAGES:
            raise UserError(
                f"run.trackers: unknown tracker {tracker!r}; known: {listing(TRACKER_PACKAGES)}"
                f"{did_you_mean(tracker, TRACKER_PACKAGES)}"
            )
        if importlib.util.find_spec(tracker) is None:
            raise UserError(
                f"run.trackers: the package of tracker {tracker!r} is not installed; install it with: "
                f"pip install {TRACKER_PACKAGES[tracker]!r}; known trackers: {listing(TRACKER_PACKAGES)}"
            )


def make_row(iteration: int, values: Mapping[str, Any]) -> Row:
    """A row as it is written: values that JSON does not have become None and are named under ``non_finite``."""
    non_finite = [name for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)]
    row: Row = {"iteration": iteration, **values, **dict.fromkeys(non_finite)}
    return {**row, NON_FINITE: non_finite} if non_finite else row


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level with dotted names, lists as text: what trackers take.

    >>> flatten({"loss": {"clip": 1e-4}, "strides": [1, 2]})
    {'loss.clip': 0.0001, 'strides': '[1, 2]'}
    """
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, str | int | float | bool) else str(value)
    return flat


def _start(tracker: str, output: Path, resumed_at: int | None, name: str, recipe: Mapping[str, Any]) -> Any:
    """A started tracker of accelerate's; resuming continues the run that it shows."""
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # the trackers refuse to start without; a trainer has made it already
    cls = LOGGER_TYPE_TO_CLASS[tracker]
    if tracker == "tensorboard":
        # purge_step hides what an interrupted run wrote after its checkpoint.
        started = cls(tracker, output, purge_step=None if resumed_at is None else resumed_at + 1)
        started.start()
        # Not store_init_configuration: it would add a second run, of hyperparameters alone, at every start.
        started.tracker.add_text("recipe", f"```json\n{json.dumps(recipe, indent=2, default=str)}\n```")
        return started
    options: dict[str, Any] = {}
    if tracker == "wandb":
        options = {"id": _tracker_run(output, resumed_at), "resume": "allow", "dir": str(output)}
    elif cls.requires_logging_directory:
        options = {"logging_dir": output}
    started = cls(name, **options)
    started.start()
    started.store_init_configuration(flatten(recipe))
    return started


def _tracker_run(output: Path, resumed_at: int | None) -> str:
    """The id under which a tracking service knows this run: drawn once, kept in the output folder."""
    path = output / TRACKER_RUN
    if resumed_at is None or not path.is_file():
        atomic.write_json(path, {"id": uuid.uuid4().hex})
    return str(json.loads(path.read_text())["id"])


def _plain(name: str, value: Any) -> int | float | str | None:
    value = value.item() if hasattr(value, "item") else value
    if value is not None and not isinstance(value, int | float | str):
        raise TypeError(f"metric {name!r} is a {type(value).__name__}; expected a number, a string or None")
    return value


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
