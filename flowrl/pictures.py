"""The pictures of a run: curves of its metrics, prompts before and after training, and sheets of samples."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from flowrl.plots import COLOURS, DPI, FAINT, INK, MUTED, canvas, plain_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

BETTER, WORSE = "#1a7f37", "#bc4c00"
MAX_LINES = 6
TEXT_POINTS = 7.0
LINE_INCHES = 1.35 * TEXT_POINTS / 72
CHARACTER_INCHES = 0.56 * TEXT_POINTS / 72  # a little more than the mean width of the font's characters


class Panel(NamedTuple):
    """One small plot: the metrics whose names match ``patterns`` (``*`` for one part of a name), in this order."""

    title: str
    patterns: tuple[str, ...]
    scale: Literal["linear", "percent", "log"] = "linear"
    even_if_constant: bool = True


PANELS = (
    Panel("Training reward", ("reward", "reward/*")),
    Panel("Held-out scores", ("test/*",)),
    Panel("Spread of rewards in a group", ("reward_std",)),
    Panel("Clipped actions", ("clip_fraction",), scale="percent", even_if_constant=False),
    Panel("Approximate KL to the rollout's policy", ("approx_kl",), scale="log"),
    Panel("Largest |ratio - 1|", ("ratio_error",), scale="log"),
    Panel("KL to the reference", ("kl",), even_if_constant=False),
    Panel("Gradient norm", ("grad_norm",)),
    Panel("Loss", ("loss",)),
    Panel("Learning rate", ("lr",), even_if_constant=False),
    Panel("Forwards per iteration", ("forwards", "training_forwards"), even_if_constant=False),
    Panel("Seconds per iteration", ("seconds", "seconds/*")),
    Panel("Images with an answer", ("coverage/*", "coverage/test/*"), scale="percent", even_if_constant=False),
    Panel("Dropped groups", ("skipped_groups", "skipped_updates"), even_if_constant=False),
)
MARKED = ("Training reward", "Held-out scores")


class BeforeAfter(NamedTuple):
    """A prompt and its image before and after training, each [3, H, W] in 0..1, with their gold scores if known."""

    prompt: str
    before: Tensor
    after: Tensor
    gold_before: float | None = None
    gold_after: float | None = None


class Label(NamedTuple):
    """A line of text over an image."""

    text: str
    colour: str = MUTED


class Card(NamedTuple):
    """Images side by side, a label over each, and a caption below them."""

    images: tuple[Tensor, ...]
    labels: tuple[Label, ...]
    caption: str


def curves(rows: Sequence[Mapping[str, Any]], path: Path, marks: Mapping[int, str] | None = None) -> None:
    """Small multiples of a run's metrics against the iteration; a panel that has no values is left out.

    ``marks``: words at iterations, shown in the panels of rewards and of held-out scores.
    ``rows`` as :func:`flowrl.tracking.read_rows` returns them. Raises ValueError where no panel has values.
    """
    filled = [(panel, series) for panel in PANELS if (series := _series(rows, panel))]
    if not filled:
        raise ValueError("none of the metrics that have a panel is in the rows")
    num_columns = min(3, len(filled))
    num_rows = math.ceil(len(filled) / num_columns)
    with canvas(3.4 * num_columns, 2.3 * num_rows, path) as figure:
        grid = figure.subplots(num_rows, num_columns, squeeze=False)
        for axes in grid.flat[len(filled) :]:
            axes.remove()
        for (panel, series), axes in zip(filled, grid.flat, strict=False):
            _plot(axes, panel, series)
            if panel.title in MARKED:
                _mark(axes, marks or {})
        figure.tight_layout(pad=1.0, w_pad=1.4, h_pad=1.2)


def grid(rows: Iterable[BeforeAfter], path: Path, *, num_columns: int = 4) -> None:
    """Pairs of images before and after training, with their prompts and, where known, gold scores.

    The score after training is green where it rose and orange where it fell. Raises ValueError for no rows.
    """
    cards = []
    for row in rows:
        labels = (_scored("before", row.gold_before), _scored("after", row.gold_after, row.gold_before))
        cards.append(Card((row.before, row.after), labels, row.prompt))
    sheet(cards, path, num_columns)


def sample_grid(images: Sequence[Tensor], captions: Sequence[str], path: Path, *, num_columns: int = 6) -> None:
    """Images [3, H, W] in 0..1 with a caption below each. Raises ValueError for no images or unequal numbers."""
    sheet([Card((image,), (), caption) for image, caption in zip(images, captions, strict=True)], path, num_columns)


def _series(rows: Sequence[Mapping[str, Any]], panel: Panel) -> dict[str, list[tuple[int, float]]]:
    """Name -> points (iteration, value) of the metrics of a panel that have values, MAX_LINES at most.

    Of two metrics that agree everywhere (a single reward and their sum) the first is shown.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    chosen = dict.fromkeys(name for pattern in panel.patterns for name in names if _matches(name, pattern))
    series: dict[str, list[tuple[int, float]]] = {}
    for name in chosen:
        points = [(row["iteration"], row[name]) for row in rows if isinstance(row.get(name), int | float)]
        varies = len({value for _, value in points}) > 1
        if points and points not in series.values() and (varies or panel.even_if_constant):
            series[name] = points
    return dict(list(series.items())[:MAX_LINES])


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) and name.count("/") == pattern.count("/")


def _label(name: str, panel: Panel) -> str:
    """What tells a line from the others of its panel: the name without what the panel's title says already."""
    return "total" if name == panel.patterns[0] else name.rpartition("/")[2]


def _plot(axes: Axes, panel: Panel, series: Mapping[str, list[tuple[int, float]]]) -> None:
    for (name, points), colour in zip(series.items(), COLOURS, strict=False):
        marker = "o" if len(points) <= 25 else None
        axes.plot(*zip(*points, strict=True), color=colour, lw=1.4, marker=marker, ms=2.8, label=_label(name, panel))
    has_legend = list(series) != [panel.patterns[0]]
    axes.set_title(panel.title, fontsize=8.5, color=INK, loc="left", fontweight="bold", pad=17 if has_legend else 6)
    if has_legend:
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(-0.03, 0.97),
            ncols=len(series),
            fontsize=6.5,
            frameon=False,
            labelcolor=INK,
            handlelength=1.2,
            columnspacing=1.0,
            borderpad=0.2,
        )
    _scale(axes, panel, all(value > 0 for points in series.values() for _, value in points))
    plain_axes(axes, 7)


def _mark(axes: Axes, marks: Mapping[int, str]) -> None:
    """A vertical line at each iteration, its word at the bottom, on the side where there is more room."""
    for iteration in marks:
        axes.axvline(iteration, color=MUTED, lw=0.8, ls="--", zorder=1)
    middle = sum(axes.get_xlim()) / 2
    for iteration, word in marks.items():
        text = axes.annotate(
            word,
            (iteration, 0),
            xycoords=axes.get_xaxis_transform(),
            xytext=(2 if iteration < middle else -2, 2),
            textcoords="offset points",
            ha="left" if iteration < middle else "right",
            fontsize=6.5,
            color=MUTED,
        )
        text.set_in_layout(False)


def _scale(axes: Axes, panel: Panel, is_positive: bool) -> None:
    from matplotlib.ticker import LogFormatterSciNotation, MaxNLocator, PercentFormatter

    axes.set_xlabel("iteration", fontsize=7, color=MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    if panel.scale == "percent":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_ylim(bottom=0)
    elif panel.scale == "log" and is_positive:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(LogFormatterSciNotation(minor_thresholds=(1.5, 0.6)))
    else:
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4), useMathText=True)
        axes.yaxis.get_offset_text().set(fontsize=6.5, color=MUTED)


def _scored(word: str, score: float | None, reference: float | None = None) -> Label:
    if score is None:
        return Label(word)
    if reference is None or score == reference:
        return Label(f"{word}  {score:.2f}")
    return Label(f"{word}  {score:.2f}", BETTER if score > reference else WORSE)


def sheet(cards: Sequence[Card], path: Path, num_columns: int) -> None:
    """Cards in rows; all images are drawn at one size, and a row is as high as its longest caption."""
    if not cards:
        raise ValueError("there are no images to show")
    num_images = len(cards[0].images)
    num_columns = min(num_columns, len(cards))
    height, width = cards[0].images[0].shape[-2:]
    image_width = 1.05
    image_height = image_width * height / width
    gap, margin, between = 0.05, 0.15, 0.22
    card_width = num_images * image_width + (num_images - 1) * gap
    captions = [textwrap.wrap(card.caption, int(card_width / CHARACTER_INCHES)) or [""] for card in cards]
    label_height = 1.1 * LINE_INCHES if cards[0].labels else 0.0
    starts = range(0, len(cards), num_columns)
    lines = [max(len(caption) for caption in captions[start : start + num_columns]) for start in starts]
    heights = [label_height + image_height + 0.06 + n * LINE_INCHES for n in lines]
    total_width = 2 * margin + num_columns * card_width + (num_columns - 1) * between
    total_height = 2 * margin + sum(heights) + (len(heights) - 1) * between

    with canvas(total_width, total_height, path) as figure:
        for i, (card, caption) in enumerate(zip(cards, captions, strict=True)):
            row, column = divmod(i, num_columns)
            left = margin + column * (card_width + between)
            top = total_height - margin - sum(heights[:row]) - row * between
            for j, image in enumerate(card.images):
                x = left + j * (image_width + gap)
                if card.labels:
                    _text(figure, x, top, [card.labels[j].text], card.labels[j].colour)
                _image(figure, image, (x, top - label_height - image_height, image_width, image_height))
            _text(figure, left, top - label_height - image_height - 0.06, caption, INK)


def _text(figure: Figure, x: float, top: float, lines: Sequence[str], colour: str) -> None:
    """Lines below (x, top), in inches from the lower left corner of the figure; baselines agree between cards."""
    width, height = figure.get_size_inches()
    for i, line in enumerate(lines):
        baseline = top - (i + 0.8) * LINE_INCHES
        # A prompt may hold dollar signs; parse_math would set what is between two of them as a formula.
        figure.text(x / width, baseline / height, line, color=colour, fontsize=TEXT_POINTS, parse_math=False)


def _image(figure: Figure, image: Tensor, box: tuple[float, float, float, float]) -> None:
    """``image`` in ``box`` (left, bottom, width, height, inches); resampled here, well, and not by the renderer."""
    import numpy as np
    from PIL import Image

    width, height = figure.get_size_inches()
    axes = figure.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height))
    pixels = (image.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    size = (round(box[2] * DPI), round(box[3] * DPI))
    axes.imshow(np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)), aspect="auto")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=FAINT, linewidth=0.5)
