"""Some prompts of an evaluation with their images and scores, to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flowrl.evaluation.results import ImageRecord, PromptResult, ScoreRecord
from flowrl.pictures import Card, Label, sheet

if TYPE_CHECKING:
    from torch import Tensor

NUM_PROMPTS = 24
NUM_IMAGES = 4
"""Of a prompt."""
IMAGES_IN_A_ROW = 8


def draw(
    folder: Path,
    images: Sequence[ImageRecord],
    prompts: Sequence[PromptResult],
    scores: Mapping[str, Mapping[tuple[int, int], ScoreRecord]],
    path: Path,
) -> None:
    """Prompts at equal distances, the first and the last among them; over an image its score by the first metric,
    below a prompt its means by all."""
    places = np.linspace(0, len(prompts) - 1, min(NUM_PROMPTS, len(prompts))).round().astype(int)
    count = min(NUM_IMAGES, 1 + max(image.j for image in images))
    by_key = {(image.index, image.j): image for image in images}
    first = next(iter(scores))
    cards = []
    for place in places:
        prompt = prompts[place]
        shown = [by_key[prompt.index, j] for j in range(count)]
        labels = tuple(Label(_short(first, scores[first][image.key].value)) for image in shown)
        means = ", ".join(_short(name, value) for name, value in prompt.scores.items())
        pixels = tuple(_pixels(folder / image.file) for image in shown)
        cards.append(Card(pixels, labels, f"{prompt.index}: {prompt.prompt} ({means})"))
    sheet(cards, path, max(1, IMAGES_IN_A_ROW // count))


def _short(name: str, value: float | None) -> str:
    return f"{name} {'none' if value is None else f'{value:.3f}'}"


def _pixels(path: Path) -> Tensor:
    """[3, H, W] in 0..1."""
    from PIL import Image

    from flowrl.rewards.images import as_tensors

    with Image.open(path) as picture:
        return as_tensors([picture])[0]
