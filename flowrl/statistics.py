"""Bootstrap intervals of a mean and of a paired difference, over prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MAX_DRAWS_IN_MEMORY = 4_000_000


class Interval(NamedTuple):
    """A mean and the ends of its interval.

    >>> f"{Interval(0.1234, 0.1, 0.15):+.3f}"
    '+0.123 (95 % interval +0.100 to +0.150)'
    """

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of 0."""
        return self.low > 0 or self.high < 0

    def __format__(self, spec: str) -> str:
        return f"{self.mean:{spec}} (95 % interval {self.low:{spec}} to {self.high:{spec}})"


def mean_interval(values: Sequence[float] | np.ndarray, seed: int = 0, resamples: int = 10_000) -> Interval:
    """The mean of n values and its 95 % percentile bootstrap interval (Efron 1979).

    One value per prompt: images of one prompt are not independent, so average over them first. The ends are the
    2.5 % and 97.5 % quantiles of the means of ``resamples`` draws of n values with replacement, equal for equal
    seeds. Raises ValueError where there are no values, more axes than one, or one that is not finite.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"an interval needs one axis with at least one value, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{int((~np.isfinite(values)).sum())} of {values.size} values are not finite")
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    rows = max(1, MAX_DRAWS_IN_MEMORY // values.size)
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        means[start:stop] = values[generator.integers(values.size, size=(stop - start, values.size))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))


def difference_interval(
    before: Sequence[float] | np.ndarray, after: Sequence[float] | np.ndarray, seed: int = 0, resamples: int = 10_000
) -> Interval:
    """The mean of ``after - before`` and its interval, paired: entry i of both belongs to the same prompt.

    Resampling the differences keeps the pairing, so what prompts have in common (some are hard) does not widen it.
    Raises ValueError where the two differ in length.
    """
    before, after = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if before.shape != after.shape:
        raise ValueError(f"paired values must be equally many, got {before.shape} before and {after.shape} after")
    return mean_interval(after - before, seed, resamples)
