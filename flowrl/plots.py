"""How all plots look, and how their files are written."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from flowrl import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, FAINT = "#1f2328", "#59636e", "#d0d7de"
COLOURS = ("#0072b2", "#d55e00", "#0b5d3b", "#9a2a78", "#665200", "#1c98e5", "#1f2328")
"""Lines in their order. Any two are told apart by the colour-blind, and each stands out from white by 3 to 1."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""Of the same lines, for those who see no colours at all."""
DPI = 200


@contextmanager
def canvas(width: float, height: float, *paths: Path) -> Iterator[Figure]:
    """A figure of so many inches, written to every path at the end in the format of its suffix.

    No window, and no state of pyplot's, is involved; the same figure gives the same bytes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    yield figure
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        undated = {"CreationDate": None} if path.suffix == ".pdf" else {"Software": None}
        with atomic.replacing(path) as temporary:
            figure.savefig(temporary, metadata=undated)
        figure.set_layout_engine("none")  # the first has arranged it; the others are arranged alike


def plain_axes(axes: Axes, points: float) -> None:
    """A faint grid, no box, ticks with labels of ``points``."""
    axes.tick_params(which="both", labelsize=points, colors=MUTED, length=2)
    axes.grid(color=FAINT, lw=0.5, alpha=0.7)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two positive ones, few enough for their labels to stand beside each other.

    >>> log_ticks(20, 900), log_ticks(3, 2e5)
    ([20.0, 50.0, 100.0, 200.0, 500.0], [10.0, 100.0, 1000.0, 10000.0, 100000.0])
    """
    decades = math.log10(high / low)
    factors = (1, 2, 5) if decades <= 2 else (1,)
    every = max(1, math.ceil(decades / 6))
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [factor * 10.0**power for power in powers if power % every == 0 for factor in factors]
    return [tick for tick in found if low <= tick <= high]


def short(value: float) -> str:
    """A tick's label.

    >>> short(25000.0), short(0.05), short(1500.0)
    ('25k', '0.05', '1,500')
    """
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):,.4g}{letter}"
    return f"{value:,.6g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.0e}"
