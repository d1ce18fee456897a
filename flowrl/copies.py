"""Copies of the trainable parameters, whole or sharded as these are: what training averages, and what it began with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Copy:
    """The parameters as they are now, which can take the policy's place.

    They are exchanged in place, one at a time, each process its part: that takes the memory of one more parameter and
    no collective. Under FSDP the weights must not be gathered meanwhile.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = dict(parameters)
        self.values: dict[str, Tensor] = {name: p.detach().clone() for name, p in parameters.items()}

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Inside, the policy's parameters are the copy."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, value in self.values.items():
            held = self.parameters[name].detach().clone()
            self.parameters[name].copy_(value)
            value.copy_(held)


class Ema(Copy):
    """An exponential moving average of the trainable parameters, in float32: ``e <- decay e + (1 - decay) p``."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        super().__init__(parameters)
        self.decay = decay

    @torch.no_grad()
    def update(self) -> None:
        for name, average in self.values.items():
            average.lerp_(self.parameters[name], 1 - self.decay)
