"""One prompt's iteration as the published programs run it: one sample at a time, nothing shared, nothing packed.

G2RPO (bcmi/Granular-GRPO): a noiseless image first, whose states every noisy step starts from. Then for each step k
and each sample of the group: a forward for the noisy step, and for each granularity a denoising of its own, an image
decoded alone and scored alone. Then one training forward and backward for each k.

DanceGRPO and MixGRPO: each sample walks from the initial noise to its image by itself; then one training forward and
backward for each sample and trained step.

Transcribed from what the programs do (docs/algorithms/, "Differences to the paper"), not from their text. With the same
noise its rewards are those of :meth:`flowrl.trainer.Trainer.iterate` up to rounding, which a test holds. It may run a
part alone (some k, or some samples), from which :meth:`Counts.of` tells what the whole would do.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from phases import Clock, synchronise
from torch import Tensor

from flowrl.gaussian import Gaussian
from flowrl.noise import Noise
from flowrl.plan import NoiseKey
from flowrl.recipe import Recipe
from flowrl.schedules.singular import Singular
from flowrl.sigmas import Grid
from flowrl.surrogate import clipped_surrogate
from flowrl.trainer import Trainer
from flowrl.types import Arm, Cond, Prompt

ROOT: NoiseKey = ((-1, 0),)


class Counts(NamedTuple):
    """What a loop does: rollout forwards of the noiseless image and of the samples, images, training forwards."""

    anchor: int
    forwards: int
    images: int
    training: int

    @classmethod
    def of(cls, recipe: Recipe) -> Counts:
        """The whole of an iteration's prompt."""
        grid = Grid(recipe.grid.num_steps, recipe.grid.shift)
        arms, group = recipe.arms(0), recipe.rollout.group
        after = [[len(path.sigmas) - 1 for path in recipe.continuation.paths(grid, _end(arm))] for arm in arms]
        images = group * sum(map(len, after))
        if _has_anchor(recipe):
            forwards = group * sum(1 + sum(lengths) for lengths in after)
            return cls(recipe.grid.num_steps, forwards, images + 1, len(arms))
        forwards = group * sum(_end(arm) + sum(lengths) for arm, lengths in zip(arms, after, strict=True))
        return cls(0, forwards, images, group * sum(len(_trained_steps(recipe, arm, 0)) for arm in arms))


@dataclass
class Step:
    """A noisy step that was taken: from ``x`` to one state for each sample, [G, ...], by the transition ``old``."""

    x: Tensor
    sigma: float
    sigma_next: float
    old: Gaussian
    next: Tensor
    advantage: list[float] = field(default_factory=list)


@dataclass
class Part:
    """What a k, or a sample, took."""

    name: int
    forwards: int = 0
    seconds: float = 0.0


@dataclass
class PublishedLoop:
    """Runs the recipe's first iteration for its first prompt, with the policy, scorers and optimiser of a trainer."""

    trainer: Trainer
    clock: Clock
    rewards: dict[tuple[NoiseKey, int], list[float]] = field(default_factory=dict)
    """By the noise of a sample and the granularity."""
    anchor_forwards: int = 0
    forwards: int = 0
    images: int = 0
    training: int = 0
    parts: list[Part] = field(default_factory=list)

    def __post_init__(self) -> None:
        trainer = self.trainer
        self.recipe = trainer.recipe
        self.grid = Grid(self.recipe.grid.num_steps, self.recipe.grid.shift)
        self.noise = Noise(self.recipe.run.seed, 0)
        self.prompt: Prompt = trainer.order[0][0]
        self.cond: Cond = trainer.policy.encode([self.prompt])

    def run(self, parts: Sequence[int] | None = None) -> None:
        """All of it, or these steps k (G2RPO) or samples (the others) alone."""
        run = self._from_the_anchor if _has_anchor(self.recipe) else self._sample_by_sample
        self._train(run(parts))

    # ---- rollout

    @torch.no_grad()
    def _from_the_anchor(self, parts: Sequence[int] | None) -> list[Step]:
        states = self._anchor()
        steps = []
        for arm in self.recipe.arms(0):
            (k,) = arm.fanout
            if parts is not None and k not in parts:
                continue
            with self._part(k):
                taken = [self._noisy_step(states[k], k, (*ROOT, (k, i))) for i in range(self.recipe.rollout.group)]
                scored = [self._finish(step.next[0], k + 1, (*ROOT, (k, i))) for i, step in enumerate(taken)]
            step = taken[0]
            step.next = torch.cat([other.next for other in taken])
            step.advantage = self._advantages(scored)
            steps.append(step)
        return steps

    def _anchor(self) -> list[Tensor]:
        """The states of the noiseless image, which is decoded to be looked at."""
        x = self._draw(ROOT)
        states = [x]
        for k in range(self.grid.num_steps):
            with self.clock.phase("prefix"):
                x = x - self._velocity(x, self.grid.sigma[k]) * (self.grid.sigma[k] - self.grid.sigma[k + 1])
            self.anchor_forwards += 1
            states.append(x)
        self._decode(x)
        return states

    @torch.no_grad()
    def _sample_by_sample(self, parts: Sequence[int] | None) -> list[Step]:
        found: list[tuple[list[Step], list[list[float]]]] = []
        for arm in self.recipe.arms(0):
            for i in range(self.recipe.rollout.group):
                if parts is None or i in parts:
                    with self._part(i):
                        found.append(self._walk(arm, i))
        steps = []
        for (taken, _), advantage in zip(found, self._advantages([scores for _, scores in found]), strict=True):
            for step in taken:
                step.advantage = [advantage]
            steps += taken
        return steps

    def _walk(self, arm: Arm, sample: int) -> tuple[list[Step], list[list[float]]]:
        """A sample from the initial noise to its scores, and those of its noisy steps that are trained."""
        key: NoiseKey = ROOT if arm.roots == 1 else ((-1, sample),)
        x, taken = self._draw(key), {}
        for k in range(_end(arm)):
            if k in arm.fanout:
                key = (*key, (k, sample if arm.fanout[k] > 1 else 0))
                taken[k] = self._noisy_step(x, k, key)
                x = taken[k].next[0]
            else:
                x = self._euler(x, self.grid.sigma[k], self.grid.sigma[k + 1])
        scores = self._finish(x, _end(arm), key)
        return [taken[k] for k in _trained_steps(self.recipe, arm, sample)], scores

    def _noisy_step(self, x: Tensor, k: int, key: NoiseKey) -> Step:
        sigma, sigma_next = self.grid.sigma[k], self.grid.sigma[k + 1]
        with self.clock.phase("branches"):
            v = self._velocity(x, sigma)
            old = self.recipe.kernel.transition(x[None], v[None], *self._levels(sigma, sigma_next))
            following = old.sample(self._draw(key)[None])
        self.forwards += 1
        return Step(x, sigma, sigma_next, old, following)

    def _finish(self, x: Tensor, start: int, key: NoiseKey) -> list[list[float]]:
        """[S][R] the scores of a noisy state: each granularity denoises it anew."""
        table = []
        for stream, path in enumerate(self.recipe.continuation.paths(self.grid, start)):
            y = x
            for sigma, sigma_next in zip(path.sigmas, path.sigmas[1:], strict=False):
                y = self._euler(y, sigma, sigma_next)
            scores = self._score(self._decode(y))
            self.rewards[key, stream] = scores
            table.append(scores)
        return table

    def _euler(self, x: Tensor, sigma: float, sigma_next: float) -> Tensor:
        with self.clock.phase("branches"):
            x = x - self._velocity(x, sigma) * (sigma - sigma_next)
        self.forwards += 1
        return x

    def _velocity(self, x: Tensor, sigma: float) -> Tensor:
        return self.trainer.policy.velocity(x[None], self._levels(sigma)[0], self.cond)[0]

    def _decode(self, x: Tensor) -> Tensor:
        self.images += 1
        with self.clock.phase("decode"):
            return self.trainer.policy.decode(x[None])

    def _score(self, image: Tensor) -> list[float]:
        found = []
        for name, scorer in self.trainer.scorers.items():
            with self.clock.phase(f"score {name}"):
                found.append(float(scorer.score(image, [self.prompt]).values[0]))
        return found

    def _draw(self, key: NoiseKey) -> Tensor:
        return self.noise.draw(0, key, self.trainer.policy.latent_shape).to(self.trainer.device)

    def _levels(self, *sigmas: float) -> list[Tensor]:
        return [torch.tensor([sigma], device=self.trainer.device) for sigma in sigmas]

    # ---- training

    def _advantages(self, scores: Sequence[Sequence[Sequence[float]]]) -> list[float]:
        """[G] of [G][S][R]: each granularity and reward normalised over the group, weighted, summed, clipped."""
        table = torch.tensor(scores, dtype=torch.float64)
        spread = table.std(0) if len(scores) > 1 else torch.ones_like(table[0])
        normalised = (table - table.mean(0)) / (spread + 1e-8)
        weights = torch.tensor([reward.weight for reward in self.recipe.rewards.values()], dtype=torch.float64)
        if self.recipe.advantage.mixing == "weighted_advantages":
            weights = weights / weights.sum()
        limit = self.recipe.advantage.clip or float("inf")
        return (normalised * weights).sum((1, 2)).clamp(-limit, limit).tolist()

    def _train(self, steps: Sequence[Step]) -> None:
        """One forward and backward for each step, then one step of the optimiser."""
        trainer, config = self.trainer, self.recipe.optimizer
        clip = getattr(self.recipe.loss, "clip", 1e-4)
        for step in steps:
            with self.clock.phase("train"):
                levels = self._levels(step.sigma, step.sigma_next)
                v = self._velocity(step.x, step.sigma)
                new = self.recipe.kernel.transition(step.x[None], v[None], *levels)
                log_ratio = new.log_prob(step.next) - step.old.log_prob(step.next)
                advantage = torch.tensor(step.advantage, device=trainer.device)
                loss = clipped_surrogate(log_ratio, advantage, clip, clip).loss.mean() / len(steps)
                trainer.accelerator.backward(loss)
            self.training += 1
        with self.clock.phase("optimiser"):
            torch.nn.utils.clip_grad_norm_(trainer.parameters.values(), config.max_grad_norm or float("inf"))
            trainer.optimizer.step()
            trainer.optimizer.zero_grad(set_to_none=True)

    # ---- counting

    def _part(self, name: int) -> _Timed:
        self.parts.append(Part(name))
        return _Timed(self, self.parts[-1])

    def counts(self) -> Counts:
        return Counts(self.anchor_forwards, self.forwards, self.images, self.training)


class _Timed:
    """Adds forwards and seconds of what runs inside to a part."""

    def __init__(self, loop: PublishedLoop, part: Part) -> None:
        self.loop, self.part = loop, part

    def __enter__(self) -> None:
        synchronise(self.loop.trainer.device)
        self.forwards, self.began = self.loop.forwards, time.perf_counter()

    def __exit__(self, *_: object) -> None:
        synchronise(self.loop.trainer.device)
        self.part.forwards = self.loop.forwards - self.forwards
        self.part.seconds = time.perf_counter() - self.began


def scaled(phases: Mapping[str, float], seconds: float, done: Counts, whole: Counts) -> tuple[dict[str, float], float]:
    """Phases and seconds of the whole, from those of a part: each phase by the count that it is made of. What is in no
    phase grows with the forwards; the noiseless image and the optimiser's step are there once."""
    factors = {
        "branches": whole.forwards / done.forwards,
        "decode": whole.images / done.images,
        "score": whole.images / done.images,
        "train": whole.training / done.training,
    }
    found = {name: value * factors.get(name.split()[0], 1.0) for name, value in phases.items()}
    rest = max(0.0, seconds - sum(phases.values())) * factors["branches"]
    return found, sum(found.values()) + rest


def _has_anchor(recipe: Recipe) -> bool:
    return isinstance(recipe.schedule, Singular)


def _end(arm: Arm) -> int:
    return 1 + max(arm.fanout)


def _trained_steps(recipe: Recipe, arm: Arm, sample: int) -> list[int]:
    """The noisy steps of a sample that are trained: a random ``train.fraction`` of them."""
    steps = sorted(arm.fanout)
    count = max(1, int(recipe.train.fraction * len(steps) + 1e-9))
    return sorted(random.Random(sample).sample(steps, count))
