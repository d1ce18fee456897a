"""What throughput.py measures: an iteration the published way and ours, a forward, a training step. Lines of JSON."""

from __future__ import annotations

import dataclasses
import gc
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple
from unittest.mock import patch

import torch
from phases import Clock, seconds_of, synchronise
from published_loop import Counts, PublishedLoop, scaled
from random_flux import Kept, RandomFlux, Size, scorer_source, write_skeleton

from flowrl.credit import Rewards
from flowrl.data import PromptOrder
from flowrl.plan import NoiseKey, Plan
from flowrl.recipe import Recipe, Reward, load_recipe
from flowrl.trainer import Trainer
from flowrl.types import Prompt

Line = dict[str, Any]
EAGER = {"autocast": "fp32", "bf16": "bf16", "fp32": "fp32"}
"""The published way's weights: fp32 under bf16 autocast, bf16, or fp32 throughout (a CPU's)."""


class Work(NamedTuple):
    """What a process measures on: sizes, where random weights lie, the recipe and what every line of it shares."""

    size: Size
    folder: Path
    recipe: str
    model: str
    scorers: Literal["full", "small"]
    lora: bool
    overrides: tuple[str, ...]
    world: int
    peak: float
    """TFLOP/s of matrix products, measured first."""

    def load(self, *overrides: str) -> Recipe:
        """The recipe with the shipped model fragment's values, on random weights."""
        size = self.size
        skeleton = write_skeleton(self.folder / f"skeleton_{size.pixels}", size)
        own = [
            f"rollout.prompts={self.world}",
            f"model.source={skeleton}",
            f"model.height={size.pixels}",
            f"model.width={size.pixels}",
            f"model.text_tokens={size.text_tokens}",
            "model.lora={}" if self.lora else "model.lora=null",
        ]
        recipe = load_recipe(
            self.recipe, model=self.model, overrides=[*own, *size.overrides, *self.overrides, *overrides]
        )
        rewards = {name: self._kept(reward) for name, reward in recipe.rewards.items()}
        return recipe.model_copy(update={"model": RandomFlux(**dict(recipe.model)), "rewards": rewards})

    def _kept(self, reward: Reward) -> Reward:
        source = scorer_source(reward.scorer.kind, self.scorers, self.folder)
        scorer = Kept(scorer=reward.scorer.model_copy(update={"source": source}))
        return reward.model_copy(update={"scorer": scorer})

    def trainer(self, recipe: Recipe) -> Trainer:
        prompts = [Prompt(f"a photograph of scene {i}", i) for i in range(max(64, self.world))]
        return Trainer(recipe, PromptOrder(prompts, recipe.rollout.prompts, recipe.run.seed))


class Measured(NamedTuple):
    """A line, and the rewards that it ended with, by noise and granularity."""

    line: Line
    rewards: dict[tuple[NoiseKey, int], list[float]]


# ---- an iteration, ours


def ours(work: Work, name: str, overrides: Sequence[str], *, without_phases: bool) -> Measured:
    """One iteration through the trainer, after a short one that compiles; ``without_phases`` adds one without clock."""
    recipe = work.load(*overrides)
    trainer = work.trainer(recipe)
    device = trainer.device
    first, compiling = _warm_up(trainer)
    reset_peak_memory(device)
    clock = Clock(device)
    graphs = _graphs()
    kept: list[tuple[Plan, Rewards]] = []
    with _observed(trainer, clock, kept) as rows:
        began = time.perf_counter()
        metrics = trainer.iterate()
        synchronise(device)
        seconds = time.perf_counter() - began
    line = _line(work, recipe, name, "ours", overrides, seconds, clock)
    flops = recipe.model.shape().flops_per_forward if isinstance(recipe.model, RandomFlux) else 0
    forwards, of_all = metrics["forwards"] / work.world, sum(rows)
    line |= {
        "forwards": {"rollout": forwards, "rows with padding": of_all, "prefix": _prefix(kept[0][0])},
        "training_forwards": metrics["training_forwards"] / work.world,
        "padding_share": 1 - forwards / of_all if of_all else 0.0,
        "engine_share": line["phases"]["engine"] / seconds,
        "tflops": {"rollout": forwards * flops / clock.seconds["rollout"] / 1e12},
        "first_seconds": first,
        "compile_seconds": compiling,
        "graphs_compiled_while_timed": _graphs() - graphs,
        "peak_memory_gb": peak_memory(device),
        "self_check": metrics.get("self_check"),
        "reward": metrics["reward"],
        "reward_std": metrics["reward_std"],
    }
    line["peak_share"] = line["tflops"]["rollout"] / work.peak
    if without_phases:
        line["seconds_without_phases"] = seconds_of(trainer.iterate, device)
    if work.world > 1:
        line["seconds_by_rank"] = trainer.accelerator.gather(torch.tensor([seconds], device=device)).tolist()
    return Measured(line, _by_noise(*kept[0]))


def _warm_up(trainer: Trainer) -> tuple[float, float]:
    """An iteration of the same batches with the shortest continuation and a learning rate of 0, which leaves the
    weights as they are; seconds, and those of them that torch's compiler says it took."""
    recipe, before = trainer.recipe, _compile_seconds()
    if hasattr(recipe.continuation, "strides"):
        short = recipe.continuation.model_copy(update={"strides": (recipe.grid.num_steps,)})
        trainer.recipe = recipe.model_copy(update={"continuation": short})
    rates = [group["lr"] for group in trainer.optimizer.param_groups]
    for group in trainer.optimizer.param_groups:
        group["lr"] = 0.0
    seconds = seconds_of(trainer.iterate, trainer.device)
    for group, rate in zip(trainer.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    trainer.recipe, trainer.iteration = recipe, 0
    return seconds, _compile_seconds() - before


@contextmanager
def _observed(trainer: Trainer, clock: Clock, kept: list[tuple[Plan, Rewards]]) -> Iterator[list[int]]:
    """Inside, the trainer's parts are phases of the clock and its rewards are kept; yields the rows of each forward of
    the rollout, padding included."""
    rows: list[int] = []

    def count(_: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        if not torch.is_grad_enabled():
            rows.append(len(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]))

    def keep(scoring: Any) -> Any:
        rewards, parts = gather(scoring)
        kept.append((trainer.recipe.plan(trainer.iteration), rewards))
        return rewards, parts

    policy, gather, learner = trainer.policy, trainer._gather, trainer.learner
    velocity = clock.timed(lambda: "train" if torch.is_grad_enabled() else "rollout", policy.velocity)
    replaced: list[tuple[Any, str, Any]] = [
        (policy, "velocity", velocity),
        (policy, "decode", clock.timed("decode", policy.decode)),
        (policy, "encode", clock.timed("encode", policy.encode)),
        (trainer, "learner", dataclasses.replace(learner, backward=clock.timed("train", learner.backward))),
        (trainer, "_step", clock.timed("optimiser", trainer._step)),
        (trainer, "_gather", keep),
    ]
    replaced += [(scorer, "score", clock.timed("score", scorer.score)) for scorer in trainer.scorers.values()]
    with ExitStack() as stack:
        for owner, name, replacement in replaced:
            stack.enter_context(patch.object(owner, name, replacement))
        hook = policy.module.register_forward_pre_hook(count, with_kwargs=True)
        stack.callback(hook.remove)
        yield rows


def _prefix(plan: Plan) -> int:
    """Forwards at nodes that lead to a decision, or are one."""
    leading = {node for decision in plan.decisions for node in plan.ancestry(decision)}
    return sum(1 for node in leading if plan.children[node])


def _by_noise(plan: Plan, rewards: Rewards) -> dict[tuple[NoiseKey, int], list[float]]:
    """The first prompt's."""
    column = {node: i for i, node in enumerate(plan.leaves)}
    return {(plan.noise_key[leaf], s): rewards.values[0, column[leaf]].tolist() for leaf, s in plan.readings}


# ---- an iteration, the published way


def published(work: Work, weights: str, parts: Sequence[int] | None, overrides: Sequence[str]) -> Measured:
    """One sample at a time, eager; of ``parts`` alone, scaled to the whole by what is counted."""
    own = [f"model.dtype={EAGER[weights]}", f"run.precision={'fp32' if weights == 'fp32' else 'bf16'}", *overrides]
    recipe = work.load(*own)
    trainer = work.trainer(recipe)
    device = trainer.device
    _touch(trainer)
    reset_peak_memory(device)
    clock = Clock(device)
    loop = PublishedLoop(trainer, clock)
    measured = seconds_of(lambda: loop.run(parts), device)
    phases = clock.seconds
    done, whole = loop.counts(), Counts.of(recipe)
    phases, seconds = scaled(phases, measured, done, whole)
    each = [part.seconds / part.forwards for part in loop.parts]
    line = _line(work, recipe, f"published, {weights} weights", "published", own, seconds, None, phases)
    flops = recipe.model.shape().flops_per_forward if isinstance(recipe.model, RandomFlux) else 0
    line |= {
        "weights": weights,
        "parts": [part.name for part in loop.parts],
        "seconds_measured": measured,
        "counted": done._asdict(),
        "whole": whole._asdict(),
        "seconds_per_forward": {str(part.name): part.seconds / part.forwards for part in loop.parts},
        "spread": (max(each) - min(each)) / statistics.mean(each),
        "forwards": {"rollout": whole.anchor + whole.forwards, "prefix": whole.anchor},
        "training_forwards": whole.training,
        "tflops": {
            "rollout": (done.forwards + done.anchor) * flops / _rollout_seconds(clock.seconds) / 1e12,
        },
        "peak_memory_gb": peak_memory(device),
    }
    line["peak_share"] = line["tflops"]["rollout"] / work.peak
    return Measured(line, loop.rewards)


def _rollout_seconds(phases: Mapping[str, float]) -> float:
    return phases.get("prefix", 0.0) + phases["branches"]


def _touch(trainer: Trainer) -> None:
    """Every kernel of the published way once, so that loading them is not timed."""
    policy, prompt = trainer.policy, trainer.order[0][0]
    cond = policy.encode([prompt])
    x = torch.zeros(1, *policy.latent_shape, device=trainer.device)
    with torch.no_grad():
        image = policy.decode(policy.velocity(x, torch.ones(1, device=trainer.device), cond))
        for scorer in trainer.scorers.values():
            scorer.score(image, [prompt])
    trainer.accelerator.backward(policy.velocity(x, torch.ones(1, device=trainer.device), cond).square().mean())
    trainer.optimizer.zero_grad(set_to_none=True)


# ---- a forward, a training step


def forwards(work: Work, name: str, overrides: Sequence[str], batches: Sequence[int], *, backward: bool) -> list[Line]:
    """Milliseconds per sample of a forward, or of a training forward and backward, by batch size."""
    recipe = work.load(*overrides)
    trainer = work.trainer(recipe)
    policy, device = trainer.policy, trainer.device
    flops = recipe.model.shape().flops_per_forward if isinstance(recipe.model, RandomFlux) else 0
    lines = []
    for batch in batches:
        cond = policy.encode([Prompt("a photograph", 0)] * batch)
        x = torch.randn(batch, *policy.latent_shape, device=device)
        sigma = torch.linspace(1, 0.1, batch, device=device)

        def run(x: torch.Tensor = x, sigma: torch.Tensor = sigma, cond: Any = cond) -> None:
            with torch.set_grad_enabled(backward):
                v = policy.velocity(x, sigma, cond)
            if backward:
                trainer.accelerator.backward(v.square().mean())
                trainer.optimizer.zero_grad(set_to_none=True)

        try:
            first, found = _repeated(run, device)
        except torch.cuda.OutOfMemoryError:
            lines.append({"name": name, "what": "train" if backward else "forward", "batch": batch, "failed": "memory"})
            trainer.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            continue
        per_sample = statistics.median(found) / batch
        counted = 3 if backward else 1
        lines.append(
            {
                "name": name,
                "what": "train" if backward else "forward",
                "tune": "lora" if work.lora else "full",
                "overrides": list(overrides),
                "batch": batch,
                "ms_per_sample": 1000 * per_sample,
                "spread": (max(found) - min(found)) / statistics.median(found),
                "peak_share": counted * flops / per_sample / 1e12 / work.peak,
                "counted_forwards": counted,
                "first_seconds": first,
                "peak_memory_gb": peak_memory(device),
            }
        )
    return lines


def _repeated(run: Any, device: torch.device, count: int = 5) -> tuple[float, list[float]]:
    """Seconds of the first call, which compiles, and of ``count`` after two more."""
    first = seconds_of(run, device)
    run()
    reset_peak_memory(device)
    return first, [seconds_of(run, device) for _ in range(count)]


# ---- lines


def _line(
    work: Work,
    recipe: Recipe,
    name: str,
    way: str,
    overrides: Sequence[str],
    seconds: float,
    clock: Clock | None,
    phases: Mapping[str, float] | None = None,
) -> Line:
    found = dict(clock.seconds if clock is not None else phases or {})
    found["engine"] = max(0.0, seconds - sum(found.values()))
    return {
        "what": "iteration",
        "recipe": work.recipe,
        "name": name,
        "way": way,
        "tune": "lora" if work.lora else "full",
        "world": work.world,
        "overrides": list(overrides),
        "rollout": recipe.rollout.model_dump(),
        "seconds": seconds,
        "phases": found,
        "beside": clock.beside if clock is not None else {},
    }


def compare(first: Measured, other: Measured) -> Line:
    """How much faster ``other`` is, and how far its rewards are from those of the same noise."""
    shared = first.rewards.keys() & other.rewards.keys()
    apart = [abs(a - b) for key in shared for a, b in zip(first.rewards[key], other.rewards[key], strict=True)]
    spread = torch.tensor([first.rewards[key] for key in shared]).std(0).mean() if len(shared) > 1 else torch.nan
    return {
        "what": "ratio",
        "recipe": other.line["recipe"],
        "tune": other.line["tune"],
        "slow": first.line["name"],
        "fast": other.line["name"],
        "ratio": first.line["seconds"] / other.line["seconds"],
        "rewards_compared": len(apart),
        "max_reward_difference": max(apart, default=None),
        "mean_reward_difference": statistics.fmean(apart) if apart else None,
        "reward_std": float(spread) if apart else None,
    }


# ---- the device


def peak_memory(device: torch.device) -> float | None:
    """GB, the text encoders not counted: they are never loaded."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None


def reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def free() -> None:
    """Give back what is no longer referred to, compiled code included: each line begins on an empty device."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _compile_seconds() -> float:
    """What torch's compiler says it has taken, all frames together."""
    from torch._dynamo.utils import compilation_time_metrics

    return float(sum(compilation_time_metrics.get("_compile.compile_inner", [0.0])))


def _graphs() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])
