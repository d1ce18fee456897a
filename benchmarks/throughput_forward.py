"""Milliseconds of a forward, of a training forward and backward, and of what images need: lines of throughput.py."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from phases import seconds_of
from throughput_work import Line, Work, flops_of, peak_memory, reset_peak_memory

from flowrl.policies.flux import FluxPolicy
from flowrl.recipe import Recipe
from flowrl.trainer import Trainer
from flowrl.types import Prompt


def forwards(work: Work, name: str, overrides: Sequence[str], batches: Sequence[int], *, backward: bool) -> list[Line]:
    """Milliseconds per sample of a forward, or of a training forward and backward, by batch size. A forward is the
    continuation's where the recipe approximates it."""
    recipe = work.load(*overrides)
    trainer = work.trainer(recipe)
    policy, device = trainer.policy, trainer.device
    padding = cast(FluxPolicy, policy).speed.padding
    padding.rollout = padding.training = ()  # each batch as it is
    approximation = None if backward else trainer.approximation
    if approximation is not None:
        approximation.refresh()
    lines = []
    for batch in batches:
        cond = policy.encode([Prompt("a photograph", 0)] * batch)
        x = torch.randn(batch, *policy.latent_shape, device=device)
        sigma = torch.linspace(1, 0.1, batch, device=device)

        def run(x: torch.Tensor = x, sigma: torch.Tensor = sigma, cond: Any = cond) -> None:
            if approximation is not None:
                approximation.velocity(x, sigma, cond, keep=False)
                return
            with torch.set_grad_enabled(backward):
                v = policy.velocity(x, sigma, cond)
            if backward:
                trainer.accelerator.backward(v.square().mean())
                trainer.optimizer.zero_grad(set_to_none=True)

        line: Line = {"name": name, "what": "train" if backward else "forward", "tune": work.tune, "batch": batch}
        lines.append(line | {"overrides": list(overrides)} | _settings(trainer))
        try:
            lines[-1] |= _per_sample(run, work, recipe, batch, device, counted=3 if backward else 1)
        except torch.cuda.OutOfMemoryError:
            lines[-1]["failed"] = "memory"
            trainer.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
    return lines


def images(work: Work, name: str, overrides: Sequence[str], batches: Sequence[int]) -> list[Line]:
    """Milliseconds an image to decode it and to score it by each reward, alone on the device, by batch size."""
    trainer = work.trainer(work.load(*overrides))
    policy, device = trainer.policy, trainer.device
    lines: list[Line] = []
    for batch in batches:
        line: Line = {"name": name, "what": "images", "part": "decode", "batch": batch, "overrides": list(overrides)}
        line |= {"scorers": work.scorers}
        try:
            x = torch.randn(batch, *policy.latent_shape, device=device)
            drawn, prompts = policy.decode(x), [Prompt("a photograph", 0)] * batch
            parts: dict[str, Callable[[], Any]] = {"decode": partial(policy.decode, x)}
            parts |= {part: partial(scorer.score, drawn, prompts) for part, scorer in trainer.scorers.items()}
            for part, run in parts.items():
                first, found = _repeated(run, device)
                lines.append(line | {"part": part, "first_seconds": first} | _timed(found, batch))
        except torch.cuda.OutOfMemoryError:
            lines.append(line | {"failed": "memory"})
            torch.cuda.empty_cache()
    return lines


def _settings(trainer: Trainer) -> Line:
    """What a rate depends on: compiled or not, exact or fp8, the share of blocks that are recomputed."""
    blocks = cast(FluxPolicy, trainer.policy).speed.blocks
    share = sum(call.checkpointed for call in blocks.calls) / len(blocks.calls)
    return {
        "compiled": blocks.compiled,
        "precision": trainer.recipe.continuation.precision,
        "checkpointed": bool(share) if share in (0.0, 1.0) else share,
    }


def _per_sample(run: Any, work: Work, recipe: Recipe, batch: int, device: torch.device, counted: int) -> Line:
    first, found = _repeated(run, device)
    timed = _timed(found, batch)
    return timed | {
        "peak_share": counted * flops_of(recipe).per_forward / timed["ms_per_sample"] / 1e9 / work.peak,
        "counted_forwards": counted,
        "first_seconds": first,
        "peak_memory_gb": peak_memory(device),
    }


def _timed(found: Sequence[float], batch: int) -> Line:
    median = statistics.median(found)
    return {"ms_per_sample": 1000 * median / batch, "spread": (max(found) - min(found)) / median}


def _repeated(run: Any, device: torch.device, count: int = 5) -> tuple[float, list[float]]:
    """Seconds of the first call, which compiles, and of ``count`` after two more."""
    first = seconds_of(run, device)
    run()
    reset_peak_memory(device)
    return first, [seconds_of(run, device) for _ in range(count)]
