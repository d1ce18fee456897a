"""Granularity: each statistic by hand, and a measurement against paths rolled out alone."""

import json

import numpy as np
import pytest
import torch
from runs import write_recipe

from flowrl.bench import granularity
from flowrl.bench.granularity import STREAMS, Groups, groups_of
from flowrl.bench.probe import Stand, States, exact_probe
from flowrl.continuations.strided import Strided
from flowrl.recipe import load_recipe

ONE, TWO = ("published", 1), ("published", 2)


def groups(one, two):
    """Groups of siblings whose rewards at granularities 1 and 2 are given; all others are 0."""
    values = np.zeros((len(one), len(one[0]), len(STREAMS)))
    values[..., 0], values[..., 1] = one, two
    return Groups(values, np.zeros(len(one), int), np.arange(len(one)))


def test_equal_rewards_differ_in_nothing():
    same = groups([[1.0, 2.0, 3.0]] * 2, [[1.0, 2.0, 3.0]] * 2)
    assert granularity.difference(same, TWO, ONE).mean == 0
    assert granularity.rank_correlation(same, TWO, ONE).mean == pytest.approx(1)
    assert granularity.kendall(same, TWO, ONE).mean == pytest.approx(1)
    assert granularity.other_best(same, TWO, ONE).mean == 0


def test_by_hand():
    """Group 1 swaps its lower two, group 2 is turned round."""
    found = groups([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]], [[2.0, 1.0, 3.0], [3.0, 2.0, 1.0]])
    assert granularity.difference(found, TWO, ONE).mean == pytest.approx((2 / 3 + 4 / 3) / 2)
    assert granularity.rank_correlation(found, TWO, ONE).mean == pytest.approx((0.5 - 1) / 2)
    assert granularity.kendall(found, TWO, ONE).mean == pytest.approx((1 / 3 - 1) / 2)
    assert granularity.other_best(found, TWO, ONE).mean == pytest.approx(0.5)


def test_ties():
    """tau-b with one tie of three pairs; a best that is shared is no other one."""
    found = groups([[1.0, 1.0, 2.0]], [[1.0, 2.0, 2.0]])
    assert granularity.kendall(found, TWO, ONE).mean == pytest.approx(1 / 2)
    assert granularity.other_best(found, TWO, ONE).mean == 0
    flat = groups([[1.0, 1.0, 1.0]], [[1.0, 2.0, 3.0]])
    assert granularity.kendall(flat, TWO, ONE) is None
    assert granularity.difference(flat, TWO, ONE) is None, "nothing to measure it by"


@pytest.mark.parametrize(
    ("two", "expected"),
    [([1.0, 3.0], (1, 0, 0)), ([11.0, 13.0], (4 / 104, 100 / 104, 0)), ([3.0, 1.0], (0, 0, 1))],
    ids=["actions alone", "a shift", "turned round"],
)
def test_parts_of_variance(two, expected):
    found = granularity.parts_of_variance(groups([[1.0, 3.0]], [two]), "published", (1, 2))
    assert [part.mean for part in found.values()] == pytest.approx(expected)


def test_a_measurement_is_the_rewards_of_each_path(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path / "r"), overrides=["rollout.group=3"])
    found = granularity.measure(recipe, num_prompts=2)
    assert json.loads(json.dumps(found)) == found
    assert found["names"] == ["a", "b"], "the monitor a is the reward of that name"
    assert sorted(set(found["steps"])) == [0, 1, 2, 3, 4]
    stand = Stand.of(recipe, 2)
    rewards = torch.tensor(found["rewards"]["a"])
    action = next(e for e, step in enumerate(found["steps"]) if step == 1)
    plan = granularity.singular_plan(recipe)
    rollout, _ = stand.roll_out(plan, 0)
    states = rollout.next.reshape(2, len(plan.actions), 3, 2)
    for place, (grid, stride) in enumerate(STREAMS):
        probe = exact_probe(stand.grid, 2, Strided(strides=(stride,), grid=grid))
        alone = stand.setup.values(
            probe, States(states[:, action], (0, 1), ("p", "q")), stand.prompts, stand.cond, seed=0
        )
        torch.testing.assert_close(rewards[:, action, place].double(), alone[:, 0, 0], rtol=1e-4, atol=1e-6)


def test_measurements_merge_into_tables_and_figures(tmp_path):
    path = write_recipe(tmp_path / "r")
    measured = [granularity.measure(load_recipe(path, overrides=[f"run.seed={s}"]), num_prompts=2) for s in (0, 1)]
    assert len(groups_of(measured, "b").values) == 2 * 2 * 5
    measured[0]["rewards"]["b"][0][0][0] = None
    assert len(groups_of(measured, "b").values) == 2 * 2 * 5 - 1
    pairs, variance, ranks, differences = granularity.blocks(measured, ("k",))
    assert {row.group for row in pairs.rows} == {"a", "b"}
    shares = [sum(entry.value for entry in row.cells.values()) for row in variance.rows]
    assert shares == pytest.approx([1] * len(shares))
    assert [panel.title for panel in ranks.panels] == ["a", "b"]
    assert differences.panels[0].lines[0].x[0] == 0
    assert "2 seeds" in pairs.caption
