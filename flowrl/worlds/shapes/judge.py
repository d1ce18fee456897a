"""The gold judge of the shapes world: images and testpoints -> what holds, and how good the picture is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flowrl.worlds.shapes.checks import Answer, evaluate
from flowrl.worlds.shapes.perception import look
from flowrl.worlds.shapes.scene import CANVAS, Testpoint

_TRUTH = 0.6  # weight of a testpoint's degree of truth in its grade; its credit has the rest
_CLEAN = 0.15  # share of the quality that a dirty picture loses


class Verdict(NamedTuple):
    """What the judge says of B images.

    ``satisfied``: per image, 0 or 1 per testpoint; ``grades``: the same, continuous. ``score`` [B]: the fraction of
    testpoints satisfied. ``quality`` [B] in 0..1: the mean grade, less up to 15 % for a picture that is not clean.
    ``clean`` [B]: 1 without blots, specks or blur, 0 for noise.
    """

    satisfied: list[list[int]]
    grades: list[list[float]]
    quality: Tensor
    score: Tensor
    clean: Tensor


def judge(images: Tensor, testpoints: Sequence[Sequence[Testpoint]]) -> Verdict:
    """Judges images [B, 3, 64, 64] in 0..1, each by its own testpoints, from the pixels alone.

    An image without testpoints has no answer: quality and score are nan. Raises ValueError on other shapes, and where
    an image is not finite.
    """
    if images.ndim != 4 or images.shape[1:] != (3, CANVAS, CANVAS) or len(images) != len(testpoints):
        raise ValueError(
            f"expected images [B, 3, {CANVAS}, {CANVAS}] and B lists of testpoints, "
            f"got {list(images.shape)} and {len(testpoints)}"
        )
    if not torch.isfinite(images).all():
        raise ValueError("an image holds values that are not finite")
    pixels = (images.detach().float().clamp(0, 1) * 255 + 0.5).byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()
    pictures, clean = look(pixels)
    answers = [
        [evaluate(testpoint.check, picture) for testpoint in asked]
        for picture, asked in zip(pictures, testpoints, strict=True)
    ]
    satisfied = [[int(answer.degree >= 0.5) for answer in row] for row in answers]
    grades = [[_grade(answer) for answer in row] for row in answers]
    quality = np.array([_mean(row) for row in grades]) * (1 - _CLEAN * (1 - clean))
    score = np.array([_mean(row) for row in satisfied])
    return Verdict(satisfied, grades, *(torch.from_numpy(of_each).float() for of_each in (quality, score, clean)))


def _grade(answer: Answer) -> float:
    return _TRUTH * answer.degree + (1 - _TRUTH) * answer.credit


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
