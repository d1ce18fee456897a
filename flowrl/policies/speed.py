"""What makes a diffusers policy's forwards fast, in one place: compiled blocks, attention, padding, recomputation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from flowrl.policies.attention import Attention, Setting, recorded_shape
from flowrl.policies.blocks import Blocks, Compile, is_compiled
from flowrl.policies.memory import BlockBytes, Checkpointing, measure, share_of
from flowrl.policies.row_padding import RowPadding, Velocity
from flowrl.types import Cond


class Speed:
    """How the transformer of one policy is run. Uncompiled and with PyTorch's attention it changes nothing.

    The attention is chosen at the first call, when shape and precision are known.
    """

    def __init__(
        self,
        transformer: nn.Module,
        device: torch.device,
        *,
        compile: Compile,
        attention: Setting,
        checkpointing: Checkpointing,
    ) -> None:
        self.attention = Attention(attention, device)
        compiled = is_compiled(compile, device)
        self.blocks = Blocks(transformer, compiled=compiled, attention=self.attention.context)
        self.blocks.checkpoint(math.ceil(share_of(checkpointing) * len(self.blocks.calls)))
        self.padding = RowPadding()
        self.largest = 1
        self.images: int | None = None
        """How many are decoded at once, where a run said so."""
        self.say: Callable[[str], None] = lambda line: None
        """Is told what was chosen."""

    def twin(self, transformer: nn.Module) -> None:
        """Have the blocks of a second transformer, a copy of lower precision, run in the same way."""
        Blocks(transformer, compiled=self.blocks.compiled, attention=self.attention.context)

    def expect(self, *, rollout: Iterable[int] = (), training: Iterable[int] = (), images: int | None = None) -> None:
        """The batch sizes of a run: of calls without gradients, with them (only compiled blocks are held to both), and
        of images that are decoded."""
        rollout, training = tuple(rollout), tuple(training)
        self.largest = max([self.largest, *rollout, *training])
        self.images = images or self.images
        if self.blocks.compiled:
            self.padding.expect(rollout=rollout, training=training)

    def velocity(self, evaluate: Velocity, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """``evaluate(x, sigma, cond)``, rows padded where that is asked for."""
        self.choose_attention(evaluate, x, sigma, cond)
        return self.padding(evaluate, x, sigma, cond)

    def choose_attention(self, evaluate: Velocity, x: Tensor, sigma: Tensor, cond: Cond) -> None:
        """By trial at the shape of these rows, or of the largest batch that is expected, unless that was done."""
        if self.attention.choice is not None:
            return
        with self.blocks.plain():
            shape = recorded_shape(lambda: evaluate(x[:1], sigma[:1], cond[torch.tensor([0])]))
        self.say(self.attention.decide(shape.of_rows(max(self.largest, len(x)))))

    def measure(self, velocity: Velocity, x: Tensor, sigma: Tensor, cond: Cond) -> list[BlockBytes]:
        """What each block saves for the backward pass, measured on these rows."""
        return measure(self.blocks, lambda: velocity(x, sigma, cond), len(x))
