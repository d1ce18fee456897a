"""Silhouettes: components brought to one size, and the form each shows.

N components, F forms, M members, S known silhouettes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowrl.worlds.shapes.checks import MEMBERS
from flowrl.worlds.shapes.components import Components
from flowrl.worlds.shapes.scene import FORMS

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SIDE = 16  # samples along a silhouette

_FIT, _FIT_WIDTH = 1.7, 0.1  # distance from the nearest known silhouette at which a thing has no known form
_MARGIN = 0.12  # difference of distances that decides between two forms
_SHRINKAGE = 0.3  # of the covariance towards a multiple of the unit matrix


class Patches(NamedTuple):
    """``filled`` [N, 256]: silhouettes, holes closed. ``hollow`` [N]: the share of a silhouette where there is only
    background. ``area`` [N]: pixels inside."""

    filled: Floats
    hollow: Floats
    area: Floats


def patches_of(parts: Components, first: Ints, second: Ints) -> Patches:
    """The silhouettes of components ``first`` joined with ``second`` (the same for single ones).

    The longer side of the box fills the patch; masks are sampled bilinearly.
    """
    left, top = np.minimum(parts.left[first], parts.left[second]), np.minimum(parts.top[first], parts.top[second])
    right = np.maximum(parts.right[first], parts.right[second])
    bottom = np.maximum(parts.bottom[first], parts.bottom[second])
    scale = np.maximum(right - left, bottom - top) / SIDE
    steps = np.arange(SIDE) + 0.5 - SIDE / 2
    x = ((left + right) / 2)[:, None] + steps * scale[:, None] - 0.5
    y = ((top + bottom) / 2)[:, None] + steps * scale[:, None] - 0.5
    x0, y0 = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    along, down = (x - x0).astype(np.float32)[:, None, :], (y - y0).astype(np.float32)[:, :, None]
    a, b, image = first[:, None, None], second[:, None, None], parts.image[first][:, None, None]
    mask, painted = (np.zeros((len(first), SIDE, SIDE), np.float32) for _ in range(2))
    last = parts.labels.shape[1] - 1
    for dy, weight_y in ((0, 1 - down), (1, down)):
        for dx, weight_x in ((0, 1 - along), (1, along)):
            rows, columns = np.clip(y0 + dy, 0, last)[:, :, None], np.clip(x0 + dx, 0, last)[:, None, :]
            owner = parts.labels[image, rows, columns]
            weight = weight_x * weight_y
            mask += ((owner == a) | (owner == b)) * weight
            painted += (owner >= 0) * weight
    filled = _fill(mask)
    inside = filled.sum(axis=(1, 2))
    return Patches(
        filled=filled.reshape(len(first), SIDE * SIDE).astype(float),
        hollow=(np.maximum(filled - painted, 0).sum(axis=(1, 2)) / np.maximum(inside, 1e-6)).astype(float),
        area=inside * scale**2,
    )


def _fill(mask: NDArray[np.float32]) -> NDArray[np.float32]:
    """The masks [N, 16, 16] with their holes closed: a hole has the mask on all four sides."""
    turned = mask[:, ::-1, ::-1]
    walls = [np.maximum.accumulate(mask, axis=axis) for axis in (1, 2)]
    walls += [np.maximum.accumulate(turned, axis=axis)[:, ::-1, ::-1] for axis in (1, 2)]
    return np.minimum(np.minimum(walls[0], walls[1]), np.minimum(walls[2], walls[3]))


class Silhouettes(NamedTuple):
    """Known silhouettes, seen through ``whiten`` [256, 256], which makes their jitter round.

    ``known`` [S, 256] whitened; ``member`` [S]: an index into MEMBERS; ``unit_area`` [F]: of each form at radius 1.
    """

    whiten: Floats
    known: Floats
    member: Ints
    unit_area: Floats

    @classmethod
    def learn(cls, patches: Patches, case: Ints, member: Ints, radius: Floats) -> Silhouettes:
        """From examples: ``case`` [N] counts the kinds of example, each with its ``member`` [S] and ``radius`` [S].

        The distance is that of linear discriminant analysis: Mahalanobis, with the covariance within cases, shrunk.
        """
        counts = np.bincount(case)
        mean = np.stack([patches.filled[case == k].mean(axis=0) for k in range(len(counts))])
        spread = patches.filled - mean[case]
        covariance = spread.T @ spread / len(spread)
        shrunk = covariance + _SHRINKAGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        values, vectors = np.linalg.eigh(shrunk)
        whiten = vectors / np.sqrt(values * len(values))  # an example lies about 1 from its case's mean
        area = np.bincount(case, patches.area) / counts / radius**2
        form = np.array([FORMS.index(MEMBERS[k][0]) for k in member])
        return cls(whiten, mean @ whiten, member, np.bincount(form, area) / np.bincount(form))

    def recognise(self, patches: Patches) -> tuple[Floats, Floats, Floats]:
        """Degrees per form [N, F] and per member [N, M], and radii [N]."""
        found = patches.filled @ self.whiten
        square = (found**2).sum(axis=1)[:, None] + (self.known**2).sum(axis=1) - 2 * found @ self.known.T
        distance = np.sqrt(np.maximum(square, 0))
        by_member = np.stack([distance[:, self.member == k].min(axis=1) for k in range(len(MEMBERS))], axis=1)
        of_form = [[k for k, (form, _) in enumerate(MEMBERS) if form == name] for name in FORMS]
        by_form = np.stack([by_member[:, members].min(axis=1) for members in of_form], axis=1)
        radius = np.sqrt(np.maximum(patches.area, 1) / self.unit_area[by_form.argmin(axis=1)])
        return _recognised(by_form), _recognised(by_member), radius


def _recognised(distance: Floats) -> Floats:
    return preference(distance, _MARGIN) * step(-distance, -_FIT, _FIT_WIDTH)


def preference(distance: Floats, width: float) -> Floats:
    """How much nearer each option is than the best of the others, as a degree: [N, K] -> [N, K]."""
    if len(distance) == 0:
        return distance
    best, second = np.partition(distance, 1, axis=1)[:, :2].T
    other = np.where(distance <= best[:, None], second[:, None], best[:, None])
    return 1 / (1 + np.exp(-(other - distance) / width * 2))


def step(values: Floats, threshold: float, width: float) -> Floats:
    return 1 / (1 + np.exp(-(values - threshold) / width))
