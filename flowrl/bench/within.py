"""Statistics of actions within their groups, with intervals over prompts.

Rows are actions; ``group`` says whom an action is compared with, ``cluster`` which prompt it belongs to. Axes: n rows,
c clusters (prompts), m sums, b resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flowrl.bench.report import Cell
from flowrl.progress import counted
from flowrl.statistics import Interval

RESAMPLES = 4000
Array = np.ndarray
Statistic = Callable[[Array], Array]
"""Sums [..., m] -> one number each [...], NaN where it is not defined."""


def numbered(*labels: Sequence[object] | Array) -> Array:
    """[n] numbers from 0, equal where all labels are equal."""
    return np.unique(np.stack([np.asarray(label) for label in labels], 1), axis=0, return_inverse=True)[1].reshape(-1)


def centred(values: Array, group: Array) -> Array:
    """``values`` minus their group's mean."""
    return values - (np.bincount(group, values) / np.bincount(group))[group]


def scaled(values: Array, group: Array) -> Array:
    """``values`` centred in their group and divided by their root mean square there; 0 where all are equal."""
    values = centred(values, group)
    size = np.sqrt(np.bincount(group, values**2) / np.bincount(group))[group]
    return np.divide(values, size, out=np.zeros_like(values), where=size > 0)


def ranks(values: Array, group: Array) -> Array:
    """The rank of each value in its group, from 1; equal values share the mean of their ranks."""
    found = np.empty(len(values))
    for rows in members(group):
        below = values[rows][:, None] > values[rows]
        equal = values[rows][:, None] == values[rows]
        found[rows] = below.sum(1) + (equal.sum(1) + 1) / 2
    return found


def members(group: Array) -> list[Array]:
    """The rows of each group, in the order of the groups' numbers."""
    order = np.argsort(group, kind="stable")
    return np.split(order, np.cumsum(np.bincount(group))[:-1])


def sums(parts: Sequence[Array], cluster: Array) -> Array:
    """[c, m] the sums of each part over the rows of each cluster that has any."""
    _, index = np.unique(cluster, return_inverse=True)
    return np.stack([np.bincount(index, part) for part in parts], 1)


def interval(of_clusters: Array, statistic: Statistic, seed: int = 0) -> Interval | None:
    """``statistic`` of the summed rows of ``of_clusters`` [c, m], and the 2.5 % and 97.5 % quantiles of its values over
    resampled clusters (percentile bootstrap). None where it is not defined; one cluster says nothing of its spread and
    has an infinite interval."""
    value = float(statistic(of_clusters.sum(0)))
    if not np.isfinite(value):
        return None
    count = len(of_clusters)
    if count == 1:
        return Interval(value, -np.inf, np.inf)
    drawn = np.random.default_rng(seed).multinomial(count, [1 / count] * count, size=RESAMPLES)
    resampled = statistic(drawn @ of_clusters)
    low, high = np.quantile(resampled[np.isfinite(resampled)], [0.025, 0.975])
    return Interval(value, float(low), float(high))


def correlation(total: Array) -> Array:
    """Of the sums of xy, xx and yy of centred values: ``sum xy / sqrt(sum xx sum yy)``."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(
            (total[..., 1] > 0) & (total[..., 2] > 0), total[..., 0] / np.sqrt(total[..., 1] * total[..., 2]), np.nan
        )


def products(x: Array, y: Array, group: Array, cluster: Array) -> Array:
    """[c, 3] what :func:`correlation` takes, of x and y on one scale within their groups."""
    x, y = scaled(x, group), scaled(y, group)
    return sums([x * y, x * x, y * y], cluster)


def pearson(x: Array, y: Array, group: Array, cluster: Array) -> Interval | None:
    """Correlation within groups: for groups of one size the mean of their own, whatever the spread of each."""
    return interval(products(x, y, group, cluster), correlation)


def spearman(x: Array, y: Array, group: Array, cluster: Array) -> Interval | None:
    """The same of the ranks within each group."""
    return interval(products(ranks(x, group), ranks(y, group), group, cluster), correlation)


def spearman_difference(
    one: tuple[Array, Array, Array, Array], other: tuple[Array, Array, Array, Array]
) -> Interval | None:
    """Spearman's of ``one`` (x, y, group, cluster) minus that of ``other``: both over the clusters that they share,
    which are resampled together, so that what a prompt does to both does not widen the interval."""
    shared = np.intersect1d(one[3], other[3])
    parts = []
    for rows in (one, other):
        x, y, group, cluster = (values[np.isin(rows[3], shared)] for values in rows)
        group = numbered(group)
        parts.append(products(ranks(x, group), ranks(y, group), group, cluster))
    return interval(np.hstack(parts), lambda total: correlation(total[..., :3]) - correlation(total[..., 3:]))


def ceiling(first: Array, second: Array, group: Array, cluster: Array) -> Interval | None:
    """The correlation that the truth itself would have with the mean of two halves of a noisy measurement.

    With r the correlation of the halves within groups, the reliability of their mean is ``2 r / (1 + r)``
    (Spearman 1910, Brown 1910), and the largest expected correlation its square root (Spearman 1904); 0 for r < 0.
    """

    def largest(total: Array) -> Array:
        r = np.clip(correlation(total), 0.0, None)
        return np.sqrt(2 * r / (1 + r))

    return interval(products(first, second, group, cluster), largest)


def seeds_in_words(measurements: Sequence[Mapping[str, Any]]) -> str:
    """How many seeds each method of the measurements has.

    >>> seeds_in_words([{"method": "a", "seed": 0}, {"method": "a", "seed": 1}, {"method": "b", "seed": 0}])
    '1 to 2 seeds'
    """
    seeds: dict[str, set[int]] = {}
    for found in measurements:
        seeds.setdefault(found["method"], set()).add(found["seed"])
    counts = [len(of_method) for of_method in seeds.values()]
    fewest, most = min(counts), max(counts)
    return counted(most, "seed") if fewest == most else f"{fewest} to {counted(most, 'seed')}"


def cell(found: Interval | None, runs: tuple[str, ...] = ()) -> Cell:
    """An interval as a table's entry."""
    if found is None:
        return Cell(note="not defined: nothing differs", runs=runs)
    mean, low, high = ends(found)
    return Cell(value=mean, low=low, high=high, runs=runs)


def ends(found: Interval) -> tuple[float, float | None, float | None]:
    """Mean, low, high; without ends where they are infinite: one value says nothing of its spread."""
    if np.isinf(found.low) or np.isinf(found.high):
        return found.mean, None, None
    return found.mean, found.low, found.high


def rounded(values: Any) -> Any:
    """Numbers with six digits, None where one is not finite: what a measurement stores of tensors and arrays."""
    if isinstance(values, list):
        return [rounded(value) for value in values]
    return float(f"{values:.6g}") if np.isfinite(values) else None


def column(values: Sequence[float | None]) -> Array:
    """A stored column as numbers, NaN for None."""
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
