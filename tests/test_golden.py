"""The zoo against numbers of the published implementations (tests/golden; see its README)."""

import json
import math
from pathlib import Path as File

import pytest
import torch

from flowrl.advantages.broadcast import Broadcast
from flowrl.advantages.mgai_sum import MgaiSum
from flowrl.continuations.compressed import Compressed
from flowrl.continuations.strided import Strided
from flowrl.credit import Rewards
from flowrl.kernels.cps import Cps
from flowrl.kernels.dance_sde import DanceSde
from flowrl.kernels.flow_sde import FlowSde
from flowrl.plan import compile_plan
from flowrl.schedules.sliding_window import SlidingWindow
from flowrl.sigmas import Grid
from flowrl.types import Arm


def golden(name):
    return json.loads((File(__file__).parent / "golden" / f"{name}.json").read_text())


def transition(kernel, case):
    grid = Grid(case["T"], case["shift"])
    x, v = torch.tensor(case["x"], dtype=torch.float64), torch.tensor(case["v"], dtype=torch.float64)
    k = case["index"]
    sigma, sigma_next = torch.full((2,), grid.sigma[k]), torch.full((2,), grid.sigma[k + 1])
    return kernel.transition(x, v, sigma.double(), sigma_next.double())


@pytest.mark.parametrize("case", golden("kernels"), ids=lambda c: f"T{c['T']}-eta{c['eta']}-k{c['index']}")
@pytest.mark.parametrize("kind", ["flow_sde", "dance_sde"])
def test_kernels(case, kind):
    kernel = {"flow_sde": FlowSde, "dance_sde": DanceSde}[kind](eta=case["eta"])
    ours, theirs = transition(kernel, case), case[kind]
    following = torch.tensor(theirs["next"], dtype=torch.float64)
    torch.testing.assert_close(ours.mean.float(), torch.tensor(theirs["mean"]), rtol=1e-4, atol=2e-5)
    assert float(ours.std.flatten()[0]) == pytest.approx(theirs["std"], rel=1e-5)
    torch.testing.assert_close(ours.sample(torch.tensor(case["noise"]).double()), following, rtol=1e-4, atol=2e-5)
    logged = torch.tensor(theirs["log_prob_mean_over_dims"], dtype=torch.float64)
    torch.testing.assert_close(ours.log_prob(following), logged, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("case", golden("transcribed")["cps"], ids=lambda c: f"k{c['index']}-eta{c['eta']}")
def test_cps(case):
    ours = transition(Cps(eta=case["eta"]), case)
    torch.testing.assert_close(ours.mean.float(), torch.tensor(case["mean"]), rtol=1e-5, atol=1e-5)
    assert float(ours.std.flatten()[0]) == pytest.approx(case["std"], rel=1e-5)
    log_prob = ours.log_prob(torch.tensor(case["next"], dtype=torch.float64))
    torch.testing.assert_close(log_prob.float(), torch.tensor(case["log_prob_unit"]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", golden("grids"), ids=lambda c: f"k{c['k']}-lambda{c['lam']}")
@pytest.mark.parametrize(("option", "key"), [("published", "published_drop"), ("published_keep",) * 2, ("paper",) * 2])
def test_granularity_grids(case, option, key):
    grid = Grid(case["T"], 3.0)
    (path,) = Strided(strides=(case["lam"],), grid=option).paths(grid, case["k"] + 1)
    assert path.sigmas == (*(grid.sigma[i] for i in case[key]), 0.0)


@pytest.mark.parametrize("case", golden("granularity"), ids=lambda c: f"k{c['k']}-lambda{c['lam']}")
def test_granularity_as_run_by_the_published_code(case):
    grid = Grid(case["T"], 3.0)
    (path,) = Strided(strides=(case["lam"],)).paths(grid, case["k"] + 1)
    assert path.sigmas == (*(grid.sigma[i] for i in case["evaluated_grid_indices"]), 0.0)


def window_of(config):
    fields = {"width": config["group_size"], "hold": config["iters_per_group"], "roll_back": config["roll_back"]}
    fields["strategy"] = config["sample_strategy"]
    fields["stride"] = config["prog_overlap_step"] if config["prog_overlap"] else config["group_size"]
    if config["sample_strategy"] == "decay":
        fields |= {"hold": config["max_iters_per_group"], "min_hold": config["min_iters_per_group"]}
    if config["sample_strategy"] == "exp_decay":
        fields |= {"threshold": config["exp_decay_thre_timestep"], "rate": config["exp_decay_k"]}
    return SlidingWindow(**fields)


@pytest.mark.parametrize("case", golden("windows"), ids=lambda c: c["config"]["sample_strategy"])
@pytest.mark.parametrize("last_step", ["T-2", "T-3"])
def test_windows(case, last_step):
    schedule = window_of(case["config"]).model_copy(update={"last_step": last_step})
    num_steps = case["config"]["max_timesteps"] + int(last_step[-1]) - 1
    last = None
    for iteration, published in enumerate(case["windows"]):
        last = published or last
        (arm,) = schedule.arms(num_steps=num_steps, group=7, iteration=iteration, iterations=10**6, seed=0)
        assert sorted(arm.fanout) == last
        assert arm.fanout[last[0]] == 7


@pytest.mark.parametrize("case", golden("compressed"), ids=lambda c: f"T{c['T']}-{c['window']}-{c['ratio']}")
def test_compressed_tail(case):
    from flowrl.engine import dpmpp_2m_step

    grid = Grid(case["T"], case["shift"])
    (path,) = Compressed(ratio=case["ratio"]).paths(grid, case["window"][1])
    assert path.sigmas == pytest.approx(case["tail_sigmas"], abs=1e-6)
    assert len(path.sigmas) == case["points"]
    plan = compile_plan(grid, [Arm({case["window"][1] - 1: 1})], lambda *_: [path])
    states = dict.fromkeys(range(len(plan.parent)))
    decision, tip = plan.decisions[0], plan.actions[0]
    states[decision], states[tip] = (
        torch.tensor(case[key], dtype=torch.float64) for key in ("x_at_last_decision", "x_after_window")
    )

    def velocity(x):
        return torch.tanh(x) - 0.3

    x0 = {decision: states[decision] - plan.sigma[decision] * velocity(states[decision])}
    seen, node = [], tip
    while plan.children[node]:
        (child,) = plan.children[node]
        x, sigma = states[node], plan.sigma[node]
        x0[node] = x - sigma * velocity(x)
        if plan.history[child] >= 0:
            history = plan.history[child]
            levels = [torch.tensor([s]) for s in (plan.sigma[history], sigma, plan.sigma[child])]
            states[child] = dpmpp_2m_step(x, x0[node], x0[history], *levels)
        else:
            states[child] = x - velocity(x) * (sigma - plan.sigma[child])
        seen.append(states[child])
        node = child
    torch.testing.assert_close(torch.stack(seen), torch.tensor(case["tail_states"]).double(), rtol=1e-4, atol=1e-5)


def rewards_of(values, weights=None):
    count = values.shape[-1]
    names = tuple(f"r{i}" for i in range(count))
    return Rewards(values, torch.ones_like(values, dtype=torch.bool), names, tuple(weights or [1.0] * count))


@pytest.mark.parametrize("case", golden("advantages"))
def test_mgai_sum(case):
    values = torch.tensor(case["rewards"], dtype=torch.float64)  # [R, J, G, K]
    num_rewards, streams, group, steps = values.shape
    grid = Grid(4 * steps)
    plan = compile_plan(grid, [Arm({k: group}) for k in range(steps)], Strided(strides=(1, 2, 3)[:streams]).paths)
    table = torch.zeros(1, len(plan.leaves), num_rewards, dtype=torch.float64)
    for leaf, stream in plan.readings:
        (step, sibling) = plan.noise_key[leaf][-1]
        table[0, plan.leaves.index(leaf)] = values[:, stream, sibling, step]
    advantage = MgaiSum().per_action(rewards_of(table), plan)[0]
    expected = torch.tensor(case["advantage"], dtype=torch.float64)
    for action, node in enumerate(plan.actions):
        (step, sibling) = plan.noise_key[node][-1]
        assert float(advantage[action]) == pytest.approx(float(expected[sibling, step]), abs=1e-5)


@pytest.mark.parametrize(
    ("key", "fields"),
    [
        ("mixgrpo_weighted_advantages", {"mixing": "weighted_advantages"}),
        (
            "flow_grpo_weighted_rewards_batch_std",
            {"mixing": "weighted_rewards", "scope": "batch", "ddof": 0, "eps": 1e-4},
        ),
        ("flow_grpo_weighted_rewards_group_std", {"mixing": "weighted_rewards", "ddof": 0, "eps": 1e-4}),
    ],
)
def test_reward_mixing(key, fields):
    case = golden("transcribed")["mixing"]
    values = torch.tensor(case["rewards_PGR"], dtype=torch.float64)
    plan = compile_plan(Grid(4), [Arm({0: values.shape[1]})], Strided().paths)
    ours = Broadcast(**fields, clip=None).per_action(rewards_of(values, case["weights"]), plan)
    torch.testing.assert_close(ours, torch.tensor(case[key], dtype=torch.float64), rtol=1e-5, atol=1e-5)


def test_first_latent_noise_scale_is_finite_at_sigma_one():
    kernel = FlowSde().transition(torch.zeros(1, 3), torch.zeros(1, 3), torch.ones(1), torch.full((1,), 0.9783))
    assert math.isfinite(float(kernel.std))
