"""The grid, evenly spaced or down to a lowest level."""

from __future__ import annotations

import pytest

from flowrl.recipe import load_recipe
from flowrl.sigmas import Grid, shift_sigma


def test_a_grid_is_even_and_shifted() -> None:
    assert Grid(4).u == (1.0, 0.75, 0.5, 0.25, 0.0)
    assert Grid(4, 3.0).sigma == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])


def test_a_lowest_level_is_where_the_last_step_starts() -> None:
    assert Grid(4, lowest=0.1).u == pytest.approx([1.0, 0.7, 0.4, 0.1, 0.0])
    assert Grid(4, lowest=0.25).u == pytest.approx(Grid(4).u)
    assert Grid(1, lowest=0.1).u == (1.0, 0.0)


@pytest.mark.parametrize("num_steps", [2, 10, 40])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_it_can_be_the_schedulers_own(num_steps: int, shift: float) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(num_steps)
    assert Grid(num_steps, shift, shift_sigma(0.001, shift)).sigma == pytest.approx(scheduler.sigmas.tolist(), abs=1e-6)


def test_a_recipe_names_it() -> None:
    recipe = load_recipe("g2rpo", overrides=["grid.lowest=0.01"])
    assert recipe.grid.levels() == Grid(8, 3.0, 0.01)
    assert recipe.plan().sigma[0] == 1.0
    assert min(level for level in recipe.plan().sigma if level) == pytest.approx(shift_sigma(0.01, 3.0))


@pytest.mark.parametrize("lowest", [0.0, 1.0, -0.1])
def test_a_level_outside_the_grid_is_refused(lowest: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Grid(4, lowest=lowest)
