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

_UPRIGHT = ("", "up", "down", "arms up", "arms out", "arms down", "H", "T", "U", "X", "Y")
_ASIDE = ("left", "right", "lying", "C", "E", "K")
"""Details of members that look the same with left and right exchanged, and with top and bottom."""

_AXES = 50  # principal axes
_SHRINKAGE, _FLOOR = 0.3, 1e-3
_FIT, _FIT_WIDTH = 8.0, 0.6  # squared distance from the likeliest member at which a thing has no known form
_MARGIN = 0.25  # difference of log densities per axis that decides between two forms


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
    filled = _fill(mask, (first != second)[:, None, None])
    inside = filled.sum(axis=(1, 2))
    return Patches(
        filled=filled.reshape(len(first), SIDE * SIDE).astype(float),
        hollow=(np.maximum(filled - painted, 0).sum(axis=(1, 2)) / np.maximum(inside, 1e-6)).astype(float),
        area=inside * scale**2,
    )


def _fill(mask: NDArray[np.float32], joined: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The masks [N, 16, 16] with their holes closed: a hole has the mask on all four sides; between ``joined`` parts,
    on two opposite ones."""
    turned = mask[:, ::-1, ::-1]
    walls = [np.maximum.accumulate(mask, axis=axis) for axis in (1, 2)]
    walls += [np.maximum.accumulate(turned, axis=axis)[:, ::-1, ::-1] for axis in (1, 2)]
    down, across = np.minimum(walls[0], walls[2]), np.minimum(walls[1], walls[3])
    return np.where(joined, np.maximum(down, across), np.minimum(down, across))


class Silhouettes(NamedTuple):
    """What the silhouettes of each member look like: a normal distribution in the ``axes`` along which all vary most.

    ``centre`` [256] and ``axes`` [256, K]; per member and stranger, whitened by its own covariance: ``whiten``
    [K, M' K], ``mean`` [M', K], ``volume`` [M'] the log of the covariance's determinant over K; ``unit_area`` [F]: of
    each form at radius 1.
    """

    centre: Floats
    axes: Floats
    whiten: Floats
    mean: Floats
    volume: Floats
    unit_area: Floats

    @classmethod
    def learn(cls, patches: Patches, member: Ints, radius: Floats) -> Silhouettes:
        """From examples: ``member`` [N], an index into MEMBERS or behind them for a stranger, and ``radius`` [N].

        Quadratic discriminant analysis in the principal axes, each covariance shrunk towards that of all members.
        """
        filled, of = _mirrored(patches.filled, member)
        centre = filled.mean(axis=0)
        axes = np.linalg.eigh(np.cov((filled - centre).T))[1][:, -_AXES:]
        found = (filled - centre) @ axes
        groups = [found[of == k] for k in range(member.max() + 1)]
        own = np.stack([np.cov(group.T) for group in groups])
        pooled = own.mean(axis=0)
        floor = _FLOOR * np.trace(pooled) / _AXES * np.eye(_AXES)
        values, vectors = np.linalg.eigh((1 - _SHRINKAGE) * own + _SHRINKAGE * pooled + floor)
        whiten = vectors / np.sqrt(values * _AXES)[:, None, :]  # an example lies about 1 from its member's mean
        volume = np.log(values).mean(axis=1)
        mean = np.stack([group.mean(axis=0) @ matrix for group, matrix in zip(groups, whiten, strict=True)])
        form = np.array([FORMS.index(MEMBERS[k][0]) if k < len(MEMBERS) else len(FORMS) for k in member])
        area = (np.bincount(form, patches.area / radius**2) / np.bincount(form))[: len(FORMS)]
        return cls(centre, axes, np.concatenate(list(whiten), axis=1), mean, volume - volume.mean(), area)

    def recognise(self, patches: Patches) -> tuple[Floats, Floats, Floats]:
        """Degrees per form [N, F] and per member [N, M], and radii [N]."""
        found = (patches.filled - self.centre) @ self.axes
        away = (found @ self.whiten).reshape(len(found), *self.mean.shape) - self.mean
        square = (away**2).sum(axis=2)
        by_member = square + self.volume
        of_form = [[k for k, (form, _) in enumerate(MEMBERS) if form == name] for name in FORMS]
        by_form = np.stack([by_member[:, members].min(axis=1) for members in of_form], axis=1)
        radius = np.sqrt(np.maximum(patches.area, 1) / self.unit_area[by_form.argmin(axis=1)])
        known = step(-square[np.arange(len(square)), by_member.argmin(axis=1)], -_FIT, _FIT_WIDTH)[:, None]
        by_form = np.concatenate([by_form, by_member[:, len(MEMBERS) :]], axis=1)
        forms, members = preference(by_form, _MARGIN) * known, preference(by_member, _MARGIN) * known
        return forms[:, : len(FORMS)], members[:, : len(MEMBERS)], radius


def _mirrored(filled: Floats, member: Ints) -> tuple[Floats, Ints]:
    """The examples and the mirror images of those whose member is its own mirror image."""
    upright = np.array([detail in _UPRIGHT for _, detail in MEMBERS])
    aside = np.array([detail in _ASIDE for _, detail in MEMBERS])
    pictures = filled.reshape(-1, SIDE, SIDE)
    parts, of = [filled], [member]
    for own, image in ((upright, pictures[:, :, ::-1]), (aside, pictures[:, ::-1])):
        chosen = own[np.minimum(member, len(MEMBERS) - 1)] & (member < len(MEMBERS))
        parts.append(image[chosen].reshape(-1, SIDE * SIDE))
        of.append(member[chosen])
    return np.concatenate(parts), np.concatenate(of)


def preference(distance: Floats, width: float) -> Floats:
    """How much nearer each option is than the best of the others, as a degree: [N, K] -> [N, K]."""
    if len(distance) == 0:
        return distance
    best, second = np.partition(distance, 1, axis=1)[:, :2].T
    other = np.where(distance <= best[:, None], second[:, None], best[:, None])
    return 1 / (1 + np.exp(-(other - distance) / width * 2))


def step(values: Floats, threshold: float, width: float) -> Floats:
    return 1 / (1 + np.exp(-(values - threshold) / width))
