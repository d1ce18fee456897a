"""Figures as PNG and PDF: panels beside each other, one legend below, lines of one name alike in all panels."""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flowrl.bench.report import Figure, Line, Panel
from flowrl.escape import one_line
from flowrl.plots import COLOURS, INK, MARKERS, MUTED, canvas, log_ticks, plain_axes, short

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

MAX_COLUMNS = 3
WIDTHS = {1: 5.6, 2: 8.4, 3: 10.5}
"""Inches, by the number of panels in a row. A README shows about 9 inches: letters of 10 points stay readable."""
PANEL_HEIGHT = 3.0
POINTS = 10.0
SYMBOLS = 7
"""Of a line, at equal distances."""


class Style(NamedTuple):
    colour: str
    marker: str
    order: int


def styles(figure: Figure) -> dict[str, Style]:
    """Line title -> how it is drawn, in the order in which titles appear."""
    titles = dict.fromkeys(line.title for panel in figure.panels for line in panel.lines)
    chosen = enumerate(titles)
    shift = len(COLOURS)  # a colour that comes again has another symbol
    return {title: Style(COLOURS[i % shift], MARKERS[(i + i // shift) % len(MARKERS)], i) for i, title in chosen}


def draw(figure: Figure, stem: Path) -> tuple[Path, Path]:
    """Write ``stem``.png and ``stem``.pdf."""
    paths = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.pdf")
    num_rows = max(1, math.ceil(len(figure.panels) / MAX_COLUMNS))
    num_columns = max(1, math.ceil(len(figure.panels) / num_rows))  # four are two by two
    looks = styles(figure)
    width = WIDTHS[num_columns]
    num_legend_columns = _legend_columns(looks, width)
    legend_height = 0.3 * math.ceil(len(looks) / num_legend_columns)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a script that the font lacks: boxes
        with canvas(width, PANEL_HEIGHT * num_rows + legend_height, *paths) as page:
            page.set_layout_engine("constrained", w_pad=0.09, h_pad=0.09)
            grid = page.subplots(num_rows, num_columns, squeeze=False)
            for axes in grid.flat[len(figure.panels) :]:
                axes.remove()
            handles: dict[str, Artist] = {}
            for panel, axes in zip(figure.panels, grid.flat, strict=False):
                handles |= _panel(axes, panel, looks, characters=int(11.5 * width / num_columns))
            if len(looks) > 1:
                legend = page.legend(
                    [handles[title] for title in looks],
                    [textwrap.shorten(one_line(title), 60, placeholder="…") or "…" for title in looks],
                    loc="outside lower center",
                    ncols=num_legend_columns,
                    fontsize=POINTS,
                    frameon=False,
                    labelcolor=INK,
                )
                for text in legend.get_texts():
                    text.set_parse_math(False)
    return paths


def _legend_columns(looks: dict[str, Style], width: float) -> int:
    longest = max((min(60, len(title)) for title in looks), default=0)
    most = max(1, min(len(looks), int(width / (0.085 * longest + 0.7))))
    return math.ceil(max(1, len(looks)) / math.ceil(max(1, len(looks)) / most))


def _panel(axes: Axes, panel: Panel, looks: dict[str, Style], characters: int) -> dict[str, Artist]:
    """Draws a panel; returns what the legend shows of each line."""
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

    handles: dict[str, Artist] = {}
    for line in panel.lines:
        points = positive(line) if panel.log_x else line
        draw_line = _scatter if panel.marks == "points" else _curve
        handles[line.title] = draw_line(axes, points, looks[line.title])
    if not any(line.x for line in panel.lines):
        axes.text(0.5, 0.5, "no values", ha="center", transform=axes.transAxes, fontsize=POINTS, color=MUTED)
    elif panel.log_x:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(log_ticks(*axes.get_xlim())))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda x, _: short(x))
    else:
        counted = all(x.is_integer() for line in panel.lines for x in line.x)  # steps and iterations have no halves
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=counted))
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.10g}")
    title = "\n".join(textwrap.wrap(one_line(panel.title), characters))
    axes.set_title(title, fontsize=POINTS + 1, color=INK, loc="left", fontweight="bold", parse_math=False)
    label: dict[str, Any] = {"fontsize": POINTS, "color": MUTED, "parse_math": False}
    axes.set_xlabel("\n".join(textwrap.wrap(one_line(panel.x), characters)), **label)
    axes.set_ylabel("\n".join(textwrap.wrap(one_line(panel.y), 30)), **label)
    plain_axes(axes, POINTS - 1)
    return handles


def positive(line: Line) -> Line:
    """``line`` without the points that a logarithmic axis does not have."""
    return picked(line, [i for i, x in enumerate(line.x) if x > 0])


def picked(line: Line, kept: Sequence[int]) -> Line:
    """``line`` with these of its points."""
    values = {"x": line.x, "mean": line.mean, "low": line.low, "high": line.high}
    return line.model_copy(update={name: tuple(of[i] for i in kept if of) for name, of in values.items()})


def _curve(axes: Axes, line: Line, style: Style) -> Artist:
    every = max(1, len(line.x) // SYMBOLS)
    (drawn,) = axes.plot(
        line.x,
        line.mean,
        color=style.colour,
        lw=1.7,
        ls="--" if line.dashed else "-",
        marker=style.marker,
        ms=4.5,
        markevery=(style.order % every, every) if every > 1 else 1,
    )
    if line.low and line.high:
        axes.fill_between(line.x, _ends(line.low), _ends(line.high), color=style.colour, alpha=0.16, lw=0)
    return drawn


def _scatter(axes: Axes, line: Line, style: Style) -> Artist:
    if line.low and line.high:
        for x, low, high in zip(line.x, line.low, line.high, strict=True):
            if low is not None and high is not None:
                axes.plot([x, x], [low, high], color=style.colour, lw=1.2, alpha=0.7)
    (drawn,) = axes.plot(line.x, line.mean, color=style.colour, ls="", marker=style.marker, ms=5.5)
    return drawn


def _ends(values: tuple[float | None, ...]) -> list[float]:
    return [math.nan if value is None else value for value in values]
