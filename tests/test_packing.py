"""Batches are full almost always, so padding them to one or two sizes costs next to nothing."""

from __future__ import annotations

import pytest

from flowrl.packing import batch_sizes, num_padded, peak_residuals
from flowrl.recipe import load_recipe


@pytest.mark.parametrize(
    ("num_prompts", "num_forwards", "num_batches", "padded"), [(1, 1700, 143, 5), (2, 3400, 285, 0)]
)
def test_g2rpo_at_full_size(num_prompts: int, num_forwards: int, num_batches: int, padded: int) -> None:
    """T 16, G 12, Lambda {1, 2, 3}: one partial batch in an iteration beside that of the first noise."""
    calls = batch_sizes(load_recipe("g2rpo", model="flux1_dev").plan(), num_prompts, 12)
    assert (sum(calls), len(calls)) == (num_forwards, num_batches)
    assert num_padded(calls, [num_prompts, 12]) == padded
    assert len(set(calls)) <= 3


def test_kinds_of_forwards_cost_few_partial_batches() -> None:
    """Eight trunk nodes of one prompt, exact, each a batch of its own."""
    cheaper = ["continuation.precision=fp8", "continuation.cache={every: 2}"]
    calls = batch_sizes(load_recipe("g2rpo", model="flux1_dev", overrides=cheaper).plan(), 1, 12)
    assert (sum(calls), len(calls)) == (1700, 149)
    assert len(set(calls)) == 2


@pytest.mark.parametrize(("order", "held"), [(0, 36), (1, 72)])
def test_residuals_of_a_prompt_that_are_held_at_once(order: int, held: int) -> None:
    """docs/continuations.md: at 12.4 MB each for FLUX.1-dev."""
    recipe = load_recipe("g2rpo", model="flux1_dev", overrides=[f"continuation.cache={{order: {order}}}"])
    assert peak_residuals(recipe.plan(), 1, 12) == held


@pytest.mark.parametrize("recipe", ["mix_grpo", "dance_grpo", "flow_grpo", "g2rpo_wo_mgai"])
@pytest.mark.parametrize("num_prompts", [1, 2])
def test_padding_stays_below_one_percent(recipe: str, num_prompts: int) -> None:
    calls = batch_sizes(load_recipe(recipe, model="flux1_dev").plan(), num_prompts, 12)
    assert num_padded(calls, [num_prompts, 12]) < 0.01 * sum(calls)


@pytest.mark.parametrize(("num_prompts", "num_batches"), [(1, 149), (2, 290)])
@pytest.mark.parametrize("cheaper", [["continuation.precision=fp8"], ["continuation.cache={}"]])
def test_kinds_that_share_no_batch_still_fill_them(cheaper: list[str], num_prompts: int, num_batches: int) -> None:
    recipe = load_recipe("g2rpo", model="flux1_dev", overrides=cheaper)
    calls = batch_sizes(recipe.plan(), num_prompts, 12)
    assert (sum(calls), len(calls)) == (1700 * num_prompts, num_batches)
    assert num_padded(calls, [num_prompts, 12]) == 0
