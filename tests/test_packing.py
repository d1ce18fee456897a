"""Batches are full almost always, so padding them to one or two sizes costs next to nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from flowrl.engine import execute
from flowrl.kernels.flow_sde import FlowSde
from flowrl.noise import Noise
from flowrl.packing import Batch, batch_sizes, num_padded, pack
from flowrl.recipe import load_recipe
from flowrl.types import Cond


@pytest.mark.parametrize(
    ("num_prompts", "num_forwards", "num_batches", "padded"), [(1, 1700, 143, 16), (2, 3400, 285, 20)]
)
def test_g2rpo_at_full_size(num_prompts: int, num_forwards: int, num_batches: int, padded: int) -> None:
    """T 16, G 12, Lambda {1, 2, 3}: one partial batch in an iteration beside that of the first noise."""
    calls = pack(load_recipe("g2rpo", model="flux1_dev").plan(), num_prompts, 12).rows
    assert (sum(calls), len(calls)) == (num_forwards, num_batches)
    assert batch_sizes(calls, num_prompts, 12) == (12,), "not another compilation for one batch of an iteration"
    assert num_padded(calls, [12]) == padded < 0.01 * sum(calls)
    assert len(set(calls)) <= 3


def test_kinds_of_forwards_cost_few_partial_batches() -> None:
    """Eight trunk nodes of one prompt, exact, each a batch of its own."""
    cheaper = ["continuation.precision=fp8", "continuation.cache={every: 2}"]
    calls = pack(load_recipe("g2rpo", model="flux1_dev", overrides=cheaper).plan(), 1, 12).rows
    assert (sum(calls), len(calls)) == (1700, 149)
    assert len(set(calls)) == 2


@pytest.mark.parametrize(
    ("order", "num_prompts", "together", "in_turn"),
    [(0, 1, 36, 34), (1, 1, 72, 58), (0, 4, 144, 37), (1, 4, 288, 75), (0, 16, 3840, 51), (1, 16, 7296, 154)],
)
def test_residuals_that_are_held_at_once(order: int, num_prompts: int, together: int, in_turn: int) -> None:
    """docs/continuations.md: at 15.6 MB each for FLUX.1-dev."""
    recipe = load_recipe("g2rpo", model="flux1_dev", overrides=[f"continuation.cache={{order: {order}}}"])
    held = [pack(recipe.plan(), num_prompts, 12, in_turn=one).peak_residuals for one in (False, True)]
    assert held == [together, in_turn]


@pytest.mark.parametrize("recipe", ["mix_grpo", "dance_grpo", "flow_grpo", "g2rpo_wo_mgai"])
@pytest.mark.parametrize("num_prompts", [1, 2])
def test_padding_stays_below_one_percent(recipe: str, num_prompts: int) -> None:
    calls = pack(load_recipe(recipe, model="flux1_dev").plan(), num_prompts, 12).rows
    assert num_padded(calls, batch_sizes(calls, num_prompts, 12)) < 0.01 * sum(calls)


@pytest.mark.parametrize(("num_prompts", "num_batches"), [(1, 149), (2, 290)])
@pytest.mark.parametrize("cheaper", [["continuation.precision=fp8"], ["continuation.cache={}"]])
def test_kinds_that_share_no_batch_still_fill_them(cheaper: list[str], num_prompts: int, num_batches: int) -> None:
    recipe = load_recipe("g2rpo", model="flux1_dev", overrides=cheaper)
    calls = pack(recipe.plan(), num_prompts, 12).rows
    assert (sum(calls), len(calls)) == (1700 * num_prompts, num_batches)
    assert batch_sizes(calls, num_prompts, 12) == (num_prompts, 12)
    assert num_padded(calls, [num_prompts, 12]) == 0


@pytest.mark.parametrize("in_turn", [False, True])
@pytest.mark.parametrize(("prompts", "max_batch"), [(1, 12), (2, 12), (3, 64)])
def test_batches_are_those_of_the_engine(prompts: int, max_batch: int, in_turn: bool) -> None:
    overrides = ["continuation.cache={every: 2}", "continuation.precision=fp8", "grid.num_steps=8"]
    plan = load_recipe("g2rpo", model="flux1_dev", overrides=overrides).plan()
    engine = Recorder()
    rollout = execute(
        plan,
        engine,
        Cond(),
        FlowSde(),
        Noise(0, 0),
        positions=range(prompts),
        on_leaves=lambda x, rows: None,
        device=torch.device("cpu"),
        max_batch=max_batch,
        approximation=engine.approximation(),
        in_turn=in_turn,
    )
    found = pack(plan, prompts, max_batch, in_turn=in_turn)
    assert list(found.batches) == engine.batches
    assert found.peak_residuals == rollout.peak_residuals


class Recorder:
    """A policy and its approximation that stand still and note their batches."""

    latent_shape = (1,)

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def velocity(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        self.batches.append(Batch("exact", len(x)))
        return torch.zeros_like(x)

    def approximation(self) -> SimpleNamespace:
        def full(x: Tensor, sigma: Tensor, cond: Cond, *, keep: bool) -> tuple[Tensor, Tensor]:
            self.batches.append(Batch("full", len(x)))
            return torch.zeros_like(x), torch.zeros_like(x)

        def cached(x: Tensor, sigma: Tensor, cond: Cond, residual: Tensor) -> Tensor:
            self.batches.append(Batch("cached", len(x)))
            return torch.zeros_like(x)

        return SimpleNamespace(refresh=lambda: None, velocity=full, velocity_by=cached)
