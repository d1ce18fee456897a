"""Connected components of a batch of class maps, by union of the runs of their rows. B images, N components."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

Labels = NDArray[np.int32]


class Components(NamedTuple):
    """``labels`` [B, H, W]: the component of each pixel, -1 outside all; and per component [N]: its image, class,
    number of pixels, centre, and box (in pixel edges: right and bottom lie behind the last pixel)."""

    labels: Labels
    image: Ints
    kind: Ints
    area: Floats
    x: Floats
    y: Floats
    left: Ints
    top: Ints
    right: Ints
    bottom: Ints


def components(classes: NDArray[np.uint8], num_kinds: int) -> Components:
    """The 4-connected components of equal class below ``num_kinds`` in class maps [B, H, W], ordered by image."""
    height, width = classes.shape[1:]
    flat = classes.reshape(-1)
    begins = np.empty(flat.size, bool)
    begins[0] = True
    np.not_equal(flat[1:], flat[:-1], out=begins[1:])
    begins[::width] = True
    start = np.flatnonzero(begins)
    length = np.diff(start, append=flat.size)
    counted = flat[start] < num_kinds
    run = np.where(counted, np.cumsum(counted) - 1, -1)
    runs = np.repeat(run, length).reshape(classes.shape)
    start, length = start[counted], length[counted]

    joined = (classes[:, 1:] == classes[:, :-1]) & (runs[:, 1:] >= 0)
    roots = _union(len(start), *_distinct(runs[:, :-1][joined], runs[:, 1:][joined]))
    number, of_run = np.unique(roots, return_inverse=True)
    labels = np.where(run >= 0, np.append(of_run, -1)[run], -1).astype(np.int32)

    row, column = start // width % height, start % width
    area = np.bincount(of_run, length, len(number)).astype(float)
    return Components(
        labels=np.repeat(labels, np.diff(np.flatnonzero(begins), append=flat.size)).reshape(classes.shape),
        image=start[number] // (height * width),
        kind=flat[start[number]].astype(np.int64),
        area=area,
        x=np.bincount(of_run, length * (column + length / 2), len(number)) / np.maximum(area, 1),
        y=np.bincount(of_run, length * (row + 0.5), len(number)) / np.maximum(area, 1),
        left=_extreme(np.minimum, of_run, column, len(number), width),
        top=_extreme(np.minimum, of_run, row, len(number), height),
        right=_extreme(np.maximum, of_run, column + length, len(number), 0),
        bottom=_extreme(np.maximum, of_run, row + 1, len(number), 0),
    )


def mended(parts: Components, gap: int, share: float) -> Components:
    """The components, with fragments joined to what they broke off from.

    That is the largest part of the same class that is at most ``gap`` pixels of no component away, along a row or
    column, and of whose area the fragment has less than ``share``.
    """
    found = [_beside(parts.labels, axis, gap) for axis in (1, 2)]
    a, b = np.concatenate(found, axis=1)
    swap = parts.area[a] > parts.area[b]
    small, large = np.where(swap, b, a), np.where(swap, a, b)
    good = (parts.kind[a] == parts.kind[b]) & (parts.area[small] < share * parts.area[large])
    if not good.any():
        return parts
    small, large = small[good], large[good]
    order = np.lexsort((-parts.area[large], small))
    of, first = np.unique(small[order], return_index=True)  # a fragment between two things does not make them one
    number, of_part = np.unique(_union(len(parts.area), of, large[order][first]), return_inverse=True)
    area = np.bincount(of_part, parts.area).astype(float)
    height, width = parts.labels.shape[1:]
    return Components(
        labels=np.append(of_part, -1)[parts.labels].astype(np.int32),
        image=parts.image[number],
        kind=parts.kind[number],
        area=area,
        x=np.bincount(of_part, parts.area * parts.x) / area,
        y=np.bincount(of_part, parts.area * parts.y) / area,
        left=_extreme(np.minimum, of_part, parts.left, len(number), width),
        top=_extreme(np.minimum, of_part, parts.top, len(number), height),
        right=_extreme(np.maximum, of_part, parts.right, len(number), 0),
        bottom=_extreme(np.maximum, of_part, parts.bottom, len(number), 0),
    )


def _beside(labels: Labels, axis: int, gap: int) -> Ints:
    """Pairs [2, P] of different components with at most ``gap`` pixels of none between them along an axis."""
    lines = labels if axis == 2 else labels.transpose(0, 2, 1)
    image, line, place = np.nonzero((lines[:, :, :-1] >= 0) & (lines[:, :, 1:] < 0))  # last pixels
    before = lines[image, line, place]
    pairs = []
    open_ = np.ones(len(image), bool)
    for step in range(2, gap + 2):
        reached = place + step < lines.shape[2]
        after = np.where(reached, lines[image, line, np.minimum(place + step, lines.shape[2] - 1)], -1)
        hit = open_ & (after >= 0)
        pairs.append(np.stack([before[hit], after[hit]]))
        open_ &= after < 0
    found = np.concatenate(pairs, axis=1).astype(np.int64)
    return found[:, found[0] != found[1]]


def _distinct(a: Ints, b: Ints) -> tuple[Ints, Ints]:
    """The pairs without immediate repetitions."""
    if a.size == 0:
        return a, b
    new = np.empty(a.size, bool)
    new[0] = True
    new[1:] = (a[1:] != a[:-1]) | (b[1:] != b[:-1])
    return a[new], b[new]


def _union(count: int, a: Ints, b: Ints) -> Ints:
    """For each of ``count`` nodes the smallest node that the edges (a, b) connect it with."""
    parent = np.arange(count)
    while a.size:
        a, b = parent[a], parent[b]
        apart = a != b
        a, b = a[apart], b[apart]
        np.minimum.at(parent, np.maximum(a, b), np.minimum(a, b))
        while True:
            grandparent = parent[parent]
            if np.array_equal(grandparent, parent):
                break
            parent = grandparent
    return parent


def _extreme(pick: np.ufunc, of_run: Ints, values: Ints, count: int, start: int) -> Ints:
    found = np.full(count, start)
    pick.at(found, of_run, values)
    return found
