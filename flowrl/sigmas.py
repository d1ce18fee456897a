"""The grid of noise levels that a rollout walks down."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


def shift_sigma(u: float, shift: float) -> float:
    """``shift u / (1 + (shift - 1) u)``: static time shift of rectified flow (SD3, arXiv 2403.03206, Eq. 23).

    >>> shift_sigma(0.5, 3.0)
    0.75
    """
    return shift * u / (1.0 + (shift - 1.0) * u)


@dataclass(frozen=True)
class Grid:
    """T+1 noise levels from 1 to 0: ``u = linspace(1, 0, T+1)``, ``sigma = shift u / (1 + (shift-1) u)``.

    Step k goes from ``sigma[k]`` to ``sigma[k+1]``. With ``lowest`` the last step starts at that u, and the others are
    even down to it: ``u = linspace(1, lowest, T), 0``. diffusers' own grid of T inference steps is that of
    ``lowest = shift_sigma(0.001, shift)``.

    >>> Grid(num_steps=2, shift=3.0).sigma
    (1.0, 0.75, 0.0)
    """

    num_steps: int
    shift: float = 1.0
    lowest: float | None = None

    def __post_init__(self) -> None:
        if self.num_steps < 1 or self.shift <= 0:
            raise ValueError(f"a grid needs num_steps >= 1 and shift > 0, got {self.num_steps} and {self.shift}")
        if self.lowest is not None and not 0 < self.lowest < 1:
            raise ValueError(f"the lowest level of a grid lies between 0 and 1, got {self.lowest}")

    @cached_property
    def u(self) -> tuple[float, ...]:
        """The unshifted levels, [T+1]."""
        if self.lowest is None or self.num_steps == 1:
            return tuple(1.0 - k / self.num_steps for k in range(self.num_steps + 1))
        step = (1.0 - self.lowest) / (self.num_steps - 1)
        return (*(1.0 - k * step for k in range(self.num_steps - 1)), self.lowest, 0.0)

    @cached_property
    def sigma(self) -> tuple[float, ...]:
        """The shifted levels, [T+1]."""
        return tuple(shift_sigma(u, self.shift) for u in self.u)
