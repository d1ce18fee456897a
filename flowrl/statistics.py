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


def study_interval(values: Sequence[Sequence[float]] | np.ndarray) -> Interval:
    """The mean of ``values`` [seeds, prompts] and its 95 % interval, for new seeds and new prompts at once.

    Both seeds (training runs) and prompts are drawn from many, and every seed meets every prompt: the two-way random
    effects model ``x[s, p] = m + seed_s + prompt_p + rest[s, p]`` (Scheffe 1959, ch. 7). With the mean squares A of
    seeds, B of prompts and E of the rest,

        Var(mean) = (A + B - E) / (seeds * prompts),    mean +- t(df) sqrt(Var(mean)),

    df by Satterthwaite (1946): (A + B - E)^2 / (A^2 / df_A + B^2 / df_B + E^2 / df_E). Few seeds make it wide, as they
    must: a bootstrap over 5 seeds covers too little. Where A + B - E is below A or B the larger of the two is taken.
    With one seed it is over prompts alone, with one prompt over seeds alone; a single value says nothing of its spread
    and has an infinite interval. For a paired comparison give the
    differences: entry [s, p] of both from the same seed and prompt. Raises ValueError where a value is not finite.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"an interval needs [seeds, prompts] with at least one value, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{int((~np.isfinite(values)).sum())} of {values.size} values are not finite")
    seeds, prompts = values.shape
    mean = float(values.mean())
    if values.size == 1:
        return Interval(mean, -np.inf, np.inf)
    of_seed, of_prompt = values.mean(1), values.mean(0)
    a = prompts * float(of_seed.var(ddof=1)) if seeds > 1 else 0.0
    b = seeds * float(of_prompt.var(ddof=1)) if prompts > 1 else 0.0
    rest = values - of_seed[:, None] - of_prompt + mean
    degrees = (seeds - 1) * (prompts - 1)
    e = float((rest**2).sum()) / degrees if degrees else 0.0
    total = max(a + b - e, a, b)
    if total <= 1e-12 * (np.square(values).mean() + 1e-300):
        return Interval(mean, mean, mean)
    if total == a + b - e:
        below = a**2 / max(seeds - 1, 1) + b**2 / max(prompts - 1, 1) + (e**2 / degrees if degrees else 0.0)
        df = total**2 / below
    else:
        df = float(seeds - 1 if total == a else prompts - 1)
    half = t_quantile(df) * (total / values.size) ** 0.5
    return Interval(mean, mean - half, mean + half)


def t_quantile(df: float, probability: float = 0.975) -> float:
    """The quantile of Student's t with ``df`` > 0 degrees of freedom (need not be whole).

    With t = sqrt(df) tan(a) the density is proportional to cos(a)^(df - 1) on (-pi/2, pi/2), integrated here on a grid.

    >>> round(t_quantile(4), 3)
    2.776
    """
    centre = (np.arange(40_000) + 0.5) / 40_000 * (np.pi / 2)
    density = np.cos(centre) ** (df - 1)
    below = np.cumsum(density) / density.sum()  # of |a|
    angle = np.interp(2 * probability - 1, below, centre + np.pi / 160_000)
    return float(np.sqrt(df) * np.tan(angle))
