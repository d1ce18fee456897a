"""A flow whose every value is known: Gaussian data, so the velocity is affine in x, and a reward linear in the leaf.

As a plugin of recipes (``plugins: [linear]``) it is the kinds ``linear`` of policies and scorers.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import nn

from flowrl.protocols import PolicyConfig, ScorerConfig
from flowrl.types import Cond, Scores

STD = 0.5


class LinearPolicy:
    """v = E[noise - data | x] for data N(m, STD^2) in each dimension, m the prompt's own; ``weight`` can be trained."""

    latent_shape = (2, 1)
    evals_per_velocity = 1

    def __init__(self, dtype=torch.float64):
        self.module = nn.Linear(1, 1).to(dtype)
        nn.init.zeros_(self.module.weight)
        nn.init.zeros_(self.module.bias)

    def encode(self, prompts):
        return Cond({"mean": torch.tensor([0.5 + 0.1 * p.index for p in prompts])})

    def velocity(self, x, sigma, cond):
        s, mean = sigma.reshape(-1, 1, 1).to(x.dtype), cond.tensors["mean"].reshape(-1, 1, 1).to(x.dtype)
        variance = (1 - s) ** 2 * STD**2 + s**2
        centre = x - (1 - s) * mean
        return s / variance * centre - (mean + (1 - s) * STD**2 / variance * centre) + self.module(x)

    def decode(self, x):
        return x.reshape(len(x), 1, 2, 1).expand(-1, 3, -1, -1)

    def save_pretrained(self, folder): ...

    def reference(self):
        return nullcontext()


class LinearScorer:
    """The sum of the picture's pixels times ``factor``."""

    scope = "image"

    def __init__(self, factor=1.0):
        self.factor = factor

    def score(self, images, prompts):
        return Scores(self.factor * images[:, 0].flatten(1).sum(1), torch.ones(len(images), dtype=torch.bool))


class Linear(PolicyConfig, kind="linear"):
    def load(self, device):
        return LinearPolicy(torch.float32)


class LinearReward(ScorerConfig, kind="linear"):
    factor: float = 1.0

    def load(self, device):
        return LinearScorer(self.factor)


def leaf(policy, kernel, grid, x, start, cond, *, noisy):
    """Mean [N, 2, 1] and variance (of each dimension) of the leaf that x comes to from grid index ``start``, with noise
    at every step but the last, or without any."""
    variance = 0.0
    for k in range(start, grid.num_steps):
        levels = [torch.full((len(x),), grid.sigma[i], dtype=x.dtype) for i in (k, k + 1)]

        def step(x, levels=levels, k=k):
            v = policy.velocity(x, levels[0], cond).detach()
            if noisy and k < grid.num_steps - 1:
                return kernel.transition(x, v, *levels)
            return x - v * (grid.sigma[k] - grid.sigma[k + 1])

        here, shifted = step(x), step(x + 1)
        if noisy and k < grid.num_steps - 1:
            slope = float((shifted.mean - here.mean).flatten()[0])
            variance = slope**2 * variance + float(here.std.flatten()[0]) ** 2
            x = here.mean
        else:
            slope = float((shifted - here).flatten()[0])
            variance = slope**2 * variance
            x = here
    return x, variance
