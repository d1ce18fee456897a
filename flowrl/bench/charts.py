"""Figures as SVG inside the page: they take its colours, stay sharp, and tell their values."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from flowrl.bench.figures import SYMBOLS, Style, picked, positive, styles
from flowrl.bench.markup import Html, el, said
from flowrl.bench.report import Figure, Line, Panel
from flowrl.escape import one_line
from flowrl.plots import COLOURS, log_ticks, short

WIDTH, HEIGHT = 340, 250
TOP, RIGHT, BOTTOM = 12, 12, 46
MAX_POINTS = 160
"""Drawn of a line: about one for two pixels."""
_SHAPES = {
    "o": "M-3.4 0a3.4 3.4 0 1 0 6.8 0a3.4 3.4 0 1 0-6.8 0z",
    "s": "M-3-3h6v6h-6z",
    "^": "M0-4L3.8 3h-7.6z",
    "D": "M0-4.2L4.2 0L0 4.2L-4.2 0z",
    "v": "M0 4L3.8-3h-7.6z",
    "P": "M-1.4-4h2.8v2.6h2.6v2.8h-2.6v2.6h-2.8v-2.6h-2.6v-2.8h2.6z",
    "X": "M-4-2L-2-4L0-2L2-4L4-2L2 0L4 2L2 4L0 2L-2 4L-4 2L-2 0z",
}


class Axis(NamedTuple):
    """From values to pixels, and where the ticks are."""

    pixel: Callable[[float], float]
    ticks: tuple[float, ...]


def charts(figure: Figure, described_by: str) -> Html:
    """The panels beside or below each other, and what the lines are."""
    looks = styles(figure)
    panels = [_panel(panel, looks, described_by) for panel in figure.panels]
    legend = el("ul", [_legend(title, style) for title, style in looks.items()], class_="legend")
    return el("div", el("div", panels, class_="panels"), legend if len(looks) > 1 else None)


def _legend(title: str, style: Style) -> Html:
    line = el("path", d="M0 8h28", class_="line")
    swatch = el(
        "svg",
        line,
        _symbol(14, 8, style),
        viewBox="0 0 28 16",
        width=28,
        height=16,
        class_=_class(style),
        aria_hidden="true",
    )
    return el("li", swatch, said(title))


def _panel(panel: Panel, looks: dict[str, Style], described_by: str) -> Html:
    lines = [positive(line) if panel.log_x else line for line in panel.lines]
    lines = [_thinned(line) for line in lines if line.x]
    heading = el("p", said(panel.title), class_="panel-title")
    axis_title = el("p", said(panel.y), class_="axis")
    if not lines:
        return el("div", heading, axis_title, el("p", "no values", class_="nothing"), class_="panel")
    y = _axis(_values(lines), TOP, HEIGHT - BOTTOM, flip=True)
    left = 12 + 7 * max(len(short(tick)) for tick in y.ticks)
    x = _axis([value for line in lines for value in line.x], left, WIDTH - RIGHT, log=panel.log_x)
    parts = [*_grid(x, y, left, panel)]
    for line in lines:
        style = looks[line.title]
        drawn = _scatter(line, style, x, y) if panel.marks == "points" else _curve(line, style, x, y)
        parts.append(el("g", [*drawn], class_=_class(style) + " dashed" * line.dashed))
    label = f"{one_line(panel.title)}: {one_line(panel.y)} against {one_line(panel.x)}; {len(lines)} lines."
    plot = el(
        "svg",
        parts,
        el("path", class_="cursor", d=f"M0 {TOP}V{HEIGHT - BOTTOM}"),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        tabindex=0,
        aria_label=f"{label} Left and right keys read the values.",
        aria_describedby=described_by,
        data_points=_points(lines, looks, x, y),
        data_x=one_line(panel.x),
        data_marks=panel.marks,
    )
    tip = el("div", class_="tip", role="status", hidden=True)
    return el("div", heading, axis_title, plot, tip, class_="panel")


def _values(lines: Sequence[Line]) -> list[float]:
    ends = (value for line in lines for value in (*line.mean, *line.low, *line.high))
    return [value for value in ends if value is not None]


def _axis(values: Sequence[float], start: float, end: float, *, flip: bool = False, log: bool = False) -> Axis:
    from matplotlib.ticker import MaxNLocator

    scale: Callable[[float], float] = math.log10 if log else float
    low, high = scale(min(values)), scale(max(values))
    pad = 0.04 * (high - low) or (0.5 if log else abs(low) * 0.05 or 0.5)
    low, high = low - pad, high + pad
    if log:
        found = log_ticks(10**low, 10**high)
    else:
        counted = all(float(value).is_integer() for value in values)  # steps and iterations have no halves
        locator = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10], integer=counted)
        found = [float(tick) for tick in locator.tick_values(low, high)]

    def pixel(value: float) -> float:
        share = (scale(value) - low) / (high - low)
        return round(end - share * (end - start) if flip else start + share * (end - start), 1)

    return Axis(pixel, tuple(tick for tick in found if low <= scale(tick) <= high))


def _grid(x: Axis, y: Axis, left: float, panel: Panel) -> Iterator[Html]:
    bottom = HEIGHT - BOTTOM
    lines = [f"M{left} {y.pixel(tick)}H{WIDTH - RIGHT}" for tick in y.ticks]
    yield el("path", class_="grid", d="".join(lines + [f"M{x.pixel(tick)} {TOP}V{bottom}" for tick in x.ticks]))
    for tick in y.ticks:
        yield el("text", short(tick), x=left - 6, y=y.pixel(tick) + 4, class_="tick", text_anchor="end")
    for tick in x.ticks:
        yield el("text", short(tick), x=x.pixel(tick), y=bottom + 17, class_="tick", text_anchor="middle")
    title = one_line(panel.x)
    title = title if len(title) <= 48 else f"{title[:47]}…"
    middle = (left + WIDTH - RIGHT) / 2
    yield el("text", title, x=middle, y=HEIGHT - 8, class_="axis-title", text_anchor="middle")


def _curve(line: Line, style: Style, x: Axis, y: Axis) -> Iterator[Html]:
    at = [x.pixel(value) for value in line.x]
    for start, end in _banded(line):
        up = [f"{at[i]} {y.pixel(_known(line.high[i]))}" for i in range(start, end)]
        down = [f"{at[i]} {y.pixel(_known(line.low[i]))}" for i in reversed(range(start, end))]
        yield el("path", class_="band", d=f"M{'L'.join(up + down)}z")
    yield el("path", class_="line", d="M" + "L".join(f"{a} {y.pixel(b)}" for a, b in zip(at, line.mean, strict=True)))
    every = max(1, len(at) // SYMBOLS)
    for i in range(style.order % every, len(at), every):
        yield _symbol(at[i], y.pixel(line.mean[i]), style)


def _scatter(line: Line, style: Style, x: Axis, y: Axis) -> Iterator[Html]:
    for start, end in _banded(line):
        for i in range(start, end):
            a, low, high = x.pixel(line.x[i]), y.pixel(_known(line.low[i])), y.pixel(_known(line.high[i]))
            yield el("path", class_="error", d=f"M{a} {low}V{high}")
    for a, b in zip(line.x, line.mean, strict=True):
        yield _symbol(x.pixel(a), y.pixel(b), style)


def _banded(line: Line) -> Iterator[tuple[int, int]]:
    """Stretches [start, end) of points that have an interval."""
    if not line.low or not line.high:
        return
    has = [low is not None and high is not None for low, high in zip(line.low, line.high, strict=True)]
    start = None
    for i, there in enumerate([*has, False]):
        if there and start is None:
            start = i
        elif not there and start is not None:
            yield start, i
            start = None


def _known(value: float | None) -> float:
    assert value is not None
    return value


def _points(lines: Sequence[Line], looks: dict[str, Style], x: Axis, y: Axis) -> str:
    """What the pointer finds: per line its title, its class, and of each point pixels and texts."""
    found = []
    for line in lines:
        points = []
        for i, (a, b) in enumerate(zip(line.x, line.mean, strict=True)):
            low, high = (ends[i] if ends else None for ends in (line.low, line.high))
            ends = "" if low is None or high is None else f" [{low:.4g}, {high:.4g}]"
            points.append([x.pixel(a), y.pixel(b), f"{a:,.6g}", f"{b:.4g}{ends}"])
        found.append([one_line(line.title), _class(looks[line.title]), points])
    return json.dumps(found, ensure_ascii=False, separators=(",", ":"))


def _thinned(line: Line) -> Line:
    """At most MAX_POINTS points at equal distances, the first and the last among them."""
    n = len(line.x)
    if n <= MAX_POINTS:
        return line
    return picked(line, [round(i * (n - 1) / (MAX_POINTS - 1)) for i in range(MAX_POINTS)])


def _symbol(x: float, y: float, style: Style) -> Html:
    return el("path", class_="symbol", d=_SHAPES[style.marker], transform=f"translate({x} {y})")


def _class(style: Style) -> str:
    return f"c{style.order % len(COLOURS)}"
