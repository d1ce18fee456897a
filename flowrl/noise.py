"""Noise as a pure function of names. Lambda, M, packing and the number of GPUs cannot change it; methods share it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl.plan import NoiseKey
from flowrl.seeds import derive_seed


@dataclass(frozen=True)
class Noise:
    """The draws of one iteration. ``draw`` is keyed by the prompt's position in the global batch and the node's
    (grid step, sibling) pairs, drawn in float32 on the CPU.

    >>> Noise(42, 0).draw(0, ((-1, 0),), (2,)).equal(Noise(42, 0).draw(0, ((-1, 0),), (2,)))
    True
    """

    seed: int
    iteration: int

    def draw(self, position: int, key: NoiseKey, shape: tuple[int, ...]) -> Tensor:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "noise", self.iteration, position, key))
        return torch.randn(shape, generator=generator)
