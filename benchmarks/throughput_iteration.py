"""A prompt's iteration, ours and the published way: lines of throughput.py, and how much faster one is."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from phases import Clock, seconds_of, synchronise
from published_loop import Counts, PublishedLoop, scaled
from throughput_work import Line, Work, device_name, flops_of, peak_memory, predicted, reset_peak_memory, say

from flowrl.background import Background
from flowrl.credit import Rewards
from flowrl.plan import NoiseKey, Plan
from flowrl.recipe import Recipe
from flowrl.trainer import Trainer

EAGER = {"autocast": "fp32", "bf16": "bf16", "fp32": "fp32"}
"""The published way's weights: fp32 under bf16 autocast, bf16, or fp32 throughout (a CPU's)."""

PLAIN = {"compile": "none", "attention": "auto", "gradient_checkpointing": "true"}
"""How the published programs run the model, attention by the fastest kernel that works."""


Rewarded = dict[tuple[NoiseKey, int], list[float]]
"""By the noise of a sample and the granularity, each reward."""


class Measured(NamedTuple):
    """A line, and the rewards that it ended with."""

    line: Line
    rewards: Rewarded


# ---- an iteration, ours


def ours(work: Work, name: str, overrides: Sequence[str], *, without_phases: bool) -> Measured:
    """One iteration through the trainer, after a short one that compiles; ``without_phases`` adds one without clock."""
    began = time.perf_counter()
    recipe = work.load(*overrides)
    trainer = work.trainer(recipe)
    device = trainer.device
    loading = time.perf_counter() - began
    say(f"{name}: model and scorers are there after {loading:.0f} s; a short iteration compiles")
    first, compiling = _warm_up(trainer)
    say(f"{name}: compiled {compiling:.0f} s of the {first:.0f} s of that iteration; now the one that is timed")
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
    forwards, of_all, plan = metrics["forwards"] / work.world, sum(rows), kept[0][0]
    prompts = recipe.rollout.prompts // work.world
    line |= {
        "forwards": {"rollout": forwards, "rows with padding": of_all, "prefix": _prefix(plan)},
        "images": len(plan.leaves) * prompts,
        "training_forwards": metrics["training_forwards"] / work.world,
        "padding_share": 1 - forwards / of_all if of_all else 0.0,
        "engine_share": line["phases"]["engine"] / seconds,
        "tflops": {"rollout": flops_of(recipe).rollout * prompts / _rollout_seconds(line["phases"]) / 1e12},
        "load_seconds": loading,
        "first_seconds": first,
        "compile_seconds": compiling,
        "graphs_compiled_while_timed": _graphs() - graphs,
        "peak_memory_gb": peak_memory(device),
        "self_check": metrics.get("self_check"),
        "reward": metrics["reward"],
        "reward_std": metrics["reward_std"],
        "predicted": predicted(recipe, device_name(device), work.world),
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
        steps = 1 if recipe.continuation.cache is None else 4  # some of which reuse blocks
        short = recipe.continuation.model_copy(update={"strides": (max(1, recipe.grid.num_steps // steps),)})
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

    def counted(velocity: Any) -> Any:
        def call(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            rows.append(len(x))
            return velocity(x, *args, **kwargs)

        return call

    @contextmanager
    def gathered() -> Iterator[None]:
        with ExitStack() as stack:
            with clock.phase("gathering"):
                stack.enter_context(gather_weights())
            yield

    def keep(scoring: Any) -> Any:
        rewards, parts = gather(scoring)
        kept.append((trainer.recipe.plan(trainer.iteration), rewards))
        return rewards, parts

    policy, gather, learner, gather_weights = trainer.policy, trainer._gather, trainer.learner, trainer.layout.gathered
    velocity = clock.timed(lambda: "train" if torch.is_grad_enabled() else "rollout", policy.velocity)
    replaced: list[tuple[Any, str, Any]] = [
        (policy, "velocity", velocity),
        (policy, "decode", clock.timed("decode", policy.decode)),
        (policy, "encode", clock.timed("encode", policy.encode)),
        (trainer, "learner", dataclasses.replace(learner, backward=clock.timed("train", learner.backward))),
        (trainer, "_step", clock.timed("optimiser", trainer._step)),
        (trainer, "_gather", keep),
        (trainer.layout, "gathered", gathered),
        (Background, "wait_for_room", clock.timed("waiting", Background.wait_for_room)),
        (Background, "finish", clock.timed("waiting", Background.finish)),
    ]
    for name, scorer in trainer.scorers.items():
        replaced.append((scorer, "score", clock.timed(f"score {name}", scorer.score)))
    if trainer.approximation is not None:
        for method in ("velocity", "velocity_by"):
            timed = clock.timed("continuations", counted(getattr(trainer.approximation, method)))
            replaced.append((trainer.approximation, method, timed))
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


def _by_noise(plan: Plan, rewards: Rewards) -> Rewarded:
    """The first prompt's."""
    column = {node: i for i, node in enumerate(plan.leaves)}
    return {(plan.noise_key[leaf], s): rewards.values[0, column[leaf]].tolist() for leaf, s in plan.readings}


# ---- an iteration, the published way


def published(work: Work, weights: str, parts: Sequence[int] | None, overrides: Sequence[str]) -> Measured:
    """One sample at a time, eager; of ``parts`` alone, scaled to the whole by what is counted."""
    own = [f"model.dtype={EAGER[weights]}", f"run.precision={'fp32' if weights == 'fp32' else 'bf16'}"]
    own += [f"model.{key}={value}" for key, value in PLAIN.items()]
    own += ["rollout.max_batch=1", "run.microbatch=1", *overrides]
    recipe = work.load(*own)
    trainer = work.trainer(recipe)
    device = trainer.device
    _touch(trainer)
    say(f"{weights}, published: model and scorers are there, every kernel has run once")
    reset_peak_memory(device)
    clock = Clock(device)
    loop = PublishedLoop(trainer, clock)
    measured = seconds_of(lambda: loop.run(parts), device)
    phases = clock.seconds
    done, whole = loop.counts(), Counts.of(recipe)
    phases, seconds = scaled(phases, measured, done, whole)
    each = [part.seconds / part.forwards for part in loop.parts]
    line = _line(work, recipe, f"published, {weights} weights", "published", own, seconds, None, phases)
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
        "tflops": {"rollout": sum(done[:2]) * flops_of(recipe).per_forward / _rollout_seconds(clock.seconds) / 1e12},
        "peak_memory_gb": peak_memory(device),
    }
    line["peak_share"] = line["tflops"]["rollout"] / work.peak
    return Measured(line, loop.rewards)


def _rollout_seconds(phases: Mapping[str, float]) -> float:
    return sum(phases.get(name, 0.0) for name in ("prefix", "rollout", "branches", "continuations"))


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
    of_each = dict(clock.seconds if clock is not None else phases or {})
    found: dict[str, float] = defaultdict(float)
    for phase, value in of_each.items():  # the scorers together
        found[phase.split()[0]] += value
    found["engine"] = max(0.0, seconds - sum(found.values()))
    return {
        "what": "iteration",
        "recipe": work.recipe,
        "name": name,
        "way": way,
        "tune": work.tune,
        "world": work.world,
        "overrides": list(overrides),
        "rollout": recipe.rollout.model_dump(),
        "seconds": seconds,
        "phases": dict(found),
        "scores": {phase.split()[1]: value for phase, value in of_each.items() if " " in phase},
        "beside": clock.beside if clock is not None else {},
    }


def compare(first: Measured, other: Measured) -> Line:
    """How much faster ``other`` is, and how far its rewards are from those of the same noise: by how much they differ,
    and the mean rank correlation (Spearman's) inside a group."""
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
        "rank_correlation": _rank_correlation(first.rewards, other.rewards),
    }


def _rank_correlation(first: Rewarded, other: Rewarded) -> float | None:
    """Mean over groups (samples with noise at the same steps, of one granularity) and rewards; None without any."""
    groups: dict[tuple[object, ...], list[tuple[NoiseKey, int]]] = defaultdict(list)
    for key, stream in first.keys() & other.keys():
        groups[tuple(step for step, _ in key), stream].append((key, stream))
    found = []
    for group in groups.values():
        ranks = [torch.tensor([of[key] for key in group]).argsort(0).argsort(0).double() for of in (first, other)]
        if len(group) > 1:
            a, b = (rank - rank.mean(0) for rank in ranks)
            found += ((a * b).sum(0) / (a.square().sum(0) * b.square().sum(0)).sqrt()).tolist()
    return statistics.fmean(found) if found else None


def _compile_seconds() -> float:
    """What torch's compiler says it has taken, all frames together."""
    from torch._dynamo.utils import compilation_time_metrics as metrics

    return float(max(sum(metrics.get(name, [])) for name in ("entire_frame_compile", "_compile.compile_inner")))


def _graphs() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])
