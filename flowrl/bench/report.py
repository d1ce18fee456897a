"""What a bench table says, as data: computed by one part of the bench, written and shown by the others.

Everything on disk is one JSON file per table, :class:`Report`; ``flowrl report`` rebuilds all pages from those alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Budget = Literal["smoke", "small", "full"]
BUDGETS: tuple[Budget, ...] = ("smoke", "small", "full")
"""From the smallest: a table is never replaced by one of a smaller budget."""


class Part(BaseModel):
    """Plain values that go to JSON and come back equal. A number that is not there is null, never NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Cell(Part):
    """One entry of a table."""

    value: float | str | None = None
    """Measured; None where there is none, ``note`` then says why."""
    low: float | None = None
    """Of the 95 % interval."""
    high: float | None = None
    paper: float | None = None
    """What the paper reports for the same entry: shown beside ours and marked as its own."""
    runs: tuple[str, ...] = ()
    """Keys of the runs that it comes from, each in :attr:`Report.runs`."""
    note: str | None = None


class Column(Part):
    """A column and which of its values is the better one (None: neither)."""

    key: str
    title: str
    better: Literal["higher", "lower"] | None = None
    digits: int = 3
    percent: bool = False
    unit: str | None = None


class Row(Part):
    """A row: a method or a setting. ``group`` puts rows under a common heading, within which the best is marked."""

    title: str
    cells: dict[str, Cell]
    group: str | None = None
    failed: str | None = None
    """Why its runs failed, with the path of the log."""


class Table(Part):
    kind: Literal["table"] = "table"
    name: str
    """Of its files."""
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    caption: str = ""
    """What is measured, over how many prompts and seeds, and how the interval is made."""


class Line(Part):
    """A curve with its band; ``x``, ``mean``, ``low``, ``high`` are equally long."""

    title: str
    x: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()
    runs: tuple[str, ...] = ()
    dashed: bool = False


class Panel(Part):
    title: str
    x: str
    y: str
    lines: tuple[Line, ...]
    log_x: bool = False
    marks: Literal["line", "points"] = "line"
    """``points``: a scatter, with error bars where there is a band."""


class Figure(Part):
    """Panels beside each other, drawn as one picture."""

    kind: Literal["figure"] = "figure"
    name: str
    title: str
    panels: tuple[Panel, ...]
    caption: str = ""
    description: str
    """What the picture shows, in words: its alternative text."""


class Picture(Part):
    """An image file beside the report's JSON, and what is written under it."""

    file: str
    label: str
    score: float | None = None


class Comparison(Part):
    """One prompt and seed, drawn by every method. ``chosen`` says by which rule the prompt was taken."""

    prompt: str
    chosen: str
    pictures: tuple[Picture, ...]


class Gallery(Part):
    kind: Literal["gallery"] = "gallery"
    name: str
    title: str
    comparisons: tuple[Comparison, ...]
    caption: str = ""


class Claim(Part):
    """A claim of the paper, what we measured of it, and whether its order is reproduced (None: undecided)."""

    claim: str
    source: str
    measured: str
    reproduced: bool | None


class Text(Part):
    """Findings in words (Markdown paragraphs) and the claims they are about."""

    kind: Literal["text"] = "text"
    name: str
    title: str
    paragraphs: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()


class RunRecord(Part):
    """A run that numbers come from: what it was, where it ran, how it ended."""

    key: str
    title: str
    recipe: str
    """The recipe's digest."""
    seed: int
    command: str
    """What repeats it."""
    device: str
    seconds: float | None = None
    status: Literal["done", "failed"] = "done"
    log: str | None = None
    """Of a failed run: its last lines."""


Block = Annotated[Table | Figure | Gallery | Text, Field(discriminator="kind")]


class Report(Part):
    """One ``flowrl bench --table NAME``: its blocks in reading order, its runs, its provenance."""

    format: Literal[1] = 1
    name: str
    title: str
    model: str
    budget: Budget
    missing: tuple[str, ...] = ()
    """What a complete table of this budget would also have; named in the title of what is written."""
    blocks: tuple[Block, ...]
    runs: Mapping[str, RunRecord] = {}
    provenance: Mapping[str, Any]
    """Command, commit, versions, device, numerics, dates."""
