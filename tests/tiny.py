"""A policy small enough to differentiate in float64, and a scorer for its two-pixel images.

As a plugin of recipes (``plugins: [tiny]``) it is the kinds ``tiny`` of policies and scorers.
"""

from __future__ import annotations

import time
from contextlib import contextmanager

import torch
from torch import nn

from flowrl.errors import UserError
from flowrl.protocols import PolicyConfig, ScorerConfig
from flowrl.types import Cond, Prompt, Scores


class TinyPolicy:
    """v(x, sigma, prompt) of a two-layer net over six latent dimensions."""

    latent_shape = (3, 2)
    evals_per_velocity = 1

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        torch.manual_seed(seed)
        self.module: nn.Module = nn.Sequential(nn.Linear(6 + 1 + 4, 16), nn.Tanh(), nn.Linear(16, 6)).to(dtype)
        self.frozen = {name: value.detach().clone() for name, value in self.module.state_dict().items()}
        self.calls: list[int] = []

    def encode(self, prompts: list[Prompt]) -> Cond:
        rows = [torch.randn(4, generator=torch.Generator().manual_seed(p.index)) for p in prompts]
        return Cond({"text": torch.stack(rows)})

    def velocity(self, x, sigma, cond):
        self.calls.append(len(x))
        text = cond.tensors["text"].to(x.dtype)
        return self.module(torch.cat([x.flatten(1), sigma[:, None], text], 1)).reshape(x.shape)

    def save_pretrained(self, folder):
        torch.save(self.module.state_dict(), folder / "tiny.pt")

    def decode(self, x):
        return x.sigmoid().reshape(len(x), 3, 2, 1)

    @contextmanager
    def reference(self):
        current = {name: value.detach().clone() for name, value in self.module.state_dict().items()}
        self.module.load_state_dict(self.frozen)
        yield
        self.module.load_state_dict(current)


class TinyScorer:
    """Brightness against a target that the prompt's index names."""

    scope = "image"

    def __init__(self, channel: int = 0, sign: int = 1) -> None:
        self.channel, self.sign = channel, sign

    def score(self, images, prompts):
        target = torch.tensor([0.3 + 0.1 * (p.index % 4) for p in prompts], device=images.device)
        values = -((images[:, self.channel].flatten(1).double() - target[:, None].double()) ** 2).sum(1) * self.sign
        return Scores(values, torch.ones(len(images), dtype=torch.bool), {"mean": values})


class Tiny(PolicyConfig, kind="tiny"):
    seed: int = 0

    def load(self, device):
        policy = TinyPolicy(self.seed, torch.float32)
        policy.module.to(device)
        return policy


class TinyReward(ScorerConfig, kind="tiny"):
    channel: int = 0
    broken_at: tuple[int, ...] = ()
    seconds: float = 0.0
    sign: int = 1
    missing: str | None = None

    def check(self):
        if self.missing is not None:
            raise UserError(f"reward tiny: {self.missing} is missing")

    def load(self, device):
        if not self.broken_at and not self.seconds:
            return TinyScorer(self.channel, self.sign)
        return BrokenScorer(self.channel, self.broken_at, self.seconds)


class BrokenScorer(TinyScorer):
    """Answers NaN for prompts of the given indices, and takes its time."""

    def __init__(self, channel, broken_at, seconds):
        super().__init__(channel)
        self.broken_at, self.seconds = broken_at, seconds

    def score(self, images, prompts):
        time.sleep(self.seconds)
        values, _, parts = super().score(images, prompts)
        broken = torch.tensor([p.index in self.broken_at for p in prompts], device=values.device)
        return Scores(values.where(~broken, torch.nan), ~broken, parts)


def prompts_of(count: int) -> list[Prompt]:
    return [Prompt(f"prompt {i}", index=i) for i in range(count)]
