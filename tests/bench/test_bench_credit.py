"""Fidelity of credit: on an affine flow with a linear reward the values, and so the correlations, are known."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from linear import LinearPolicy, leaf
from runs import write_recipe

from flowrl.bench import credit, credit_report
from flowrl.bench.probe import Stand
from flowrl.bench.within import ceiling, pearson, spearman
from flowrl.errors import RunFailed, UserError
from flowrl.noise import Noise
from flowrl.recipe import load_recipe

LINEAR = {
    "plugins": ["linear"],
    "model": {"kind": "linear"},
    "rewards": {"a": {"kind": "linear"}, "b": None},
    "evaluation": {"scorers": None},
    "train": {"updates": 1},
    "rollout": {"group": 8, "max_batch": 1000, "decode_batch": 1000},
}
CHAINS = {
    "schedule": {"kind": "all_steps"},
    "continuation": {"kind": "strided", "strides": [1]},
    "advantage": {"kind": "broadcast"},
}
ALONE = {"continuation": {"kind": "strided", "strides": [1]}, "advantage": {"kind": "per_step"}}


def recipe_of(folder, *overrides, **changes):
    changes = LINEAR | changes
    changes["evaluation"] = {"num_steps": 4, "scorers": {}}
    return load_recipe(write_recipe(folder, **changes), overrides=overrides)


def columns_of(found):
    return {name: np.array(values, dtype=float) for name, values in found["columns"].items()}


def test_values_are_those_of_the_methods_own_actions(tmp_path):
    recipe = recipe_of(tmp_path / "r", **ALONE)
    found = columns_of(credit.measure(recipe, num_prompts=3, samples=60))
    stand = Stand.of(recipe, 3)
    plan = recipe.plan()
    rollout, _ = stand.roll_out(plan, 0)
    states = rollout.next.reshape(3, len(plan.actions), 2, 1)
    worst = 0.0
    for e, node in enumerate(plan.actions):
        rows = slice(3 * e, 3 * e + 3)
        assert found["step"][rows].tolist() == [plan.step[node]] * 3
        where = (stand.trainer.policy, recipe.kernel, stand.grid, states[:, e], 1 + plan.step[node], stand.cond)
        exact, _ = leaf(*where, noisy=False)
        assert found["ode1"][rows, 0] == pytest.approx(exact.flatten(1).sum(1).numpy(), abs=1e-4)
        noisy, variance = leaf(*where, noisy=True)
        sampled = (found["sde_a"][rows, 0] + found["sde_b"][rows, 0]) / 2
        error = (sampled - noisy.flatten(1).sum(1).numpy()) / (2 * variance / 60) ** 0.5
        worst = max(worst, abs(error).max())
    assert worst < 4, "standard errors, of 72 values"


def test_an_action_that_is_judged_by_its_own_value_has_perfect_credit(tmp_path):
    found = credit.measure(recipe_of(tmp_path / "r", **ALONE), num_prompts=3, samples=2)
    actions = credit_report.all_actions([found])["tiny"]
    for step in (0, 1, 2):
        rows = actions.only(actions.step == step)
        for target in ("ode1", "ode"):  # an affine flow: every granularity ranks alike
            assert spearman(rows.advantage, rows.targets[target], rows.group, rows.cluster).mean == pytest.approx(1)
        assert pearson(rows.advantage, rows.targets["ode1"], rows.group, rows.cluster).mean > 0.95


def test_a_reward_for_all_steps_is_right_about_each_by_its_share(tmp_path):
    """In an affine flow a chain's reward is the sum of what its actions changed, which are independent: its correlation
    with one of them is that one's share of the standard deviation, and the squares add up to 1."""
    override = ("grid.num_steps=4", "rollout.group=16", "data.train=shapes:train")
    recipe = recipe_of(tmp_path / "r", *override, **CHAINS)
    found = credit.measure(recipe, num_prompts=40, samples=16)
    actions = credit_report.all_actions([found])["tiny"]
    stand = Stand.of(recipe, 1)
    squares = []
    for k in range(3):
        x = torch.zeros(2, 2, 1)
        x[1] = 1
        cond = stand.trainer.policy.encode([stand.prompts[0]] * 2)
        where = (stand.trainer.policy, recipe.kernel, stand.grid)
        after, _ = leaf(*where, x, k + 1, cond, noisy=True)
        sigma, following = (torch.full((2,), level) for level in stand.grid.sigma[k : k + 2])
        std = recipe.kernel.transition(x, x, sigma, following).std[0]
        squares.append(float((after[1] - after[0])[0] * std) ** 2)
    shares = [(square / sum(squares)) ** 0.5 for square in squares]
    measured = []
    for k, share in enumerate(shares):
        rows = actions.only(actions.step == k)
        where = (rows.group, rows.cluster)
        raw = pearson(rows.advantage, rows.targets["sde_change"], *where).mean
        reachable = ceiling(*rows.halves["sde_change"], *where).mean
        error = ((1 - share**2) / (40 * 15)) ** 0.5 / reachable
        assert abs(raw / reachable - share) < 3 * error
        measured.append(raw / reachable)
    assert sum(share**2 for share in measured) == pytest.approx(1, abs=0.12)


def test_what_an_action_changed_is_counted_from_its_own_state(tmp_path):
    """In a chain the state before an action is the one that the action before it led to."""
    found = credit.measure(recipe_of(tmp_path / "r", **CHAINS), num_prompts=2, samples=2)
    columns = columns_of(found)
    group, prompts = 8, 2
    by_step = {k: columns["step"] == k for k in range(5)}
    assert (columns["before_a"][by_step[0]] == 0).all(), "siblings share their state"
    assert (columns["before_ode"][by_step[0]] == 0).all()
    assert (columns["decision"][by_step[0]] == 0).all()
    for k in range(1, 5):
        assert by_step[k].sum() == group * prompts
        np.testing.assert_array_equal(
            np.sort(columns["before_b"][by_step[k]].ravel()), np.sort(columns["sde_b"][by_step[k - 1]].ravel())
        )
        np.testing.assert_array_equal(
            np.sort(columns["before_ode"][by_step[k]].ravel()), np.sort(columns["ode"][by_step[k - 1]].ravel())
        )
        assert (columns["decision"][by_step[k]] == -1).all()
    own = recipe_of(tmp_path / "own", **CHAINS | {"schedule": {"kind": "all_steps", "roots": "own"}})
    columns = columns_of(credit.measure(own, num_prompts=2, samples=2))
    first = columns["step"] == 0
    assert (columns["before_a"][first] != 0).all(), "independent initial noises are valued too"
    assert len(np.unique(columns["before_a"][first])) == group * prompts


def test_a_moving_schedule_is_seen_at_all_its_places(tmp_path):
    window = CHAINS | {"schedule": {"kind": "sliding_window", "width": 2}}
    recipe = recipe_of(tmp_path / "r", "run.iterations=8", **window)
    assert credit.places(recipe) == [0, 2, 4, 6]
    found = credit.measure(recipe, num_prompts=1, samples=2)
    assert sorted(set(zip(found["columns"]["repetition"], found["columns"]["step"], strict=True))) == [
        (place, place + i) for place in range(4) for i in range(2)
    ]
    assert found["actions"] == 16


def test_rewards_are_put_on_one_scale_and_methods_share_it(tmp_path):
    """A reward a hundred times as large weighs no more; its spread is that of independent images."""
    recipe = recipe_of(tmp_path / "r", "rewards.b={kind: linear, factor: 100}", **ALONE)
    found = credit.measure(recipe, num_prompts=2, samples=2)
    assert found["variance"][1] == pytest.approx(1e4 * found["variance"][0], rel=1e-4)
    stand = Stand.of(recipe, 2)
    roots = [torch.stack([Noise(42, -1).draw(p, ((-1, i),), (2, 1)) for i in range(8)]) for p in range(2)]
    where = (stand.trainer.policy, recipe.kernel, stand.grid)
    end = [leaf(*where, x, 0, _row(stand, p), noisy=False)[0] for p, x in enumerate(roots)]
    assert found["variance"][0] == pytest.approx(float(np.mean([x.flatten(1).sum(1).var() for x in end])), rel=1e-3)
    actions = credit_report.all_actions([found])["tiny"]
    alone = np.array([row[0] for row in found["columns"]["ode1"]]) / found["variance"][0] ** 0.5
    np.testing.assert_allclose(actions.targets["ode1"], 2 * alone, rtol=1e-3)


def _row(stand, p):
    return stand.cond[torch.full((8,), p)]


def test_a_group_without_an_answer_is_left_out(tmp_path):
    found = credit.measure(recipe_of(tmp_path / "r", **ALONE), num_prompts=2, samples=2)
    whole = credit_report.all_actions([found])["tiny"]
    found["columns"]["sde_a"][0] = [None]
    assert len(credit_report.all_actions([found])["tiny"].step) == len(whole.step) - 8


def test_measurements_merge_and_the_blocks_are_plain_data(tmp_path):
    recipe = recipe_of(tmp_path / "r", **ALONE)
    first = credit.measure(recipe, num_prompts=2, samples=2)
    second = credit.measure(recipe_of(tmp_path / "s", "run.seed=7", **ALONE), num_prompts=2, samples=2)
    chains = credit.measure(recipe_of(tmp_path / "c", **CHAINS), num_prompts=2, samples=2) | {"method": "chains"}
    assert json.loads(json.dumps(first)) == first
    ranks, values, figure = credit_report.blocks([first, second, chains], {"tiny": ("k",)})
    assert [row.title for row in ranks.rows] == ["tiny", "chains"]
    assert ranks.rows[0].cells["ode1"].runs == ("k",)
    assert ranks.rows[0].cells["forwards"].value == recipe.plan().num_forwards
    assert "2 seeds" in ranks.caption
    assert 0 <= values.rows[0].cells["sde_ceiling"].value <= 1
    assert len(figure.panels) == 4
    assert figure.panels[0].lines[1].x == (0, 1, 2, 3, 4)
    *_, differences, claims = credit_report.blocks([first, chains], reference="tiny")
    assert [row.title for row in differences.rows] == ["chains"]
    whole, chain = credit_report.all_actions([first, chains]).values()
    one, other = (spearman(*a.pair("ode_change")).mean for a in (whole, chain.only(chain.step < 3)))
    assert differences.rows[0].cells["ode_change"].value == pytest.approx(one - other), "of the steps that both have"
    assert one == pytest.approx(1)
    assert all(claim.reproduced in (True, None) for claim in claims.claims)
    assert f"{one - other:+.2f}" in claims.claims[0].measured


def test_a_reward_that_never_answers(tmp_path):
    recipe = recipe_of(tmp_path / "r", "rewards.a.factor=0")
    with pytest.raises(RunFailed, match=r"reward a tells no image .*variance 0"):
        credit.measure(recipe, num_prompts=1, samples=2)


def test_more_prompts_than_there_are(tmp_path):
    with pytest.raises(UserError, match=r"8 prompts are asked for, .* has 7"):
        credit.measure(recipe_of(tmp_path / "r"), num_prompts=8)


@pytest.mark.parametrize("roots", ["shared", "own"])
def test_the_cost_is_known_before(tmp_path, roots, monkeypatch):
    recipe = recipe_of(tmp_path / "r", **CHAINS | {"schedule": {"kind": "all_steps", "roots": roots}})
    rows = []
    original = LinearPolicy.velocity
    monkeypatch.setattr(
        LinearPolicy, "velocity", lambda self, x, *rest: rows.append(len(x)) or original(self, x, *rest)
    )
    credit.measure(recipe, num_prompts=2, samples=4)
    assert sum(rows) == credit.forwards(recipe, num_prompts=2, samples=4)


def test_two_halves_need_two_samples(tmp_path):
    with pytest.raises(ValueError, match="samples must be 2"):
        credit.measure(recipe_of(tmp_path / "r"), samples=1)
