"""Batches are full almost always, so padding them to one or two sizes costs next to nothing."""

from __future__ import annotations

import pytest

from flowrl.packing import batch_sizes, num_padded
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


@pytest.mark.parametrize("recipe", ["mix_grpo", "dance_grpo", "flow_grpo", "g2rpo_wo_mgai"])
@pytest.mark.parametrize("num_prompts", [1, 2])
def test_padding_stays_below_one_percent(recipe: str, num_prompts: int) -> None:
    calls = batch_sizes(load_recipe(recipe, model="flux1_dev").plan(), num_prompts, 12)
    assert num_padded(calls, [num_prompts, 12]) < 0.01 * sum(calls)
