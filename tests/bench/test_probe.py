"""Values of stored states converge to the closed form of an affine flow with a linear reward."""

import pytest
import torch
from linear import LinearPolicy, LinearScorer, leaf
from test_approximation import Rounded
from tiny import TinyPolicy, TinyScorer, prompts_of

from flowrl.bench.credit import EXACT, halves, per_stream
from flowrl.bench.probe import Setup, States, Tail, exact_probe, noisy_probe
from flowrl.continuations.strided import Strided
from flowrl.kernels.dance_sde import DanceSde
from flowrl.kernels.flow_sde import FlowSde
from flowrl.noise import Noise
from flowrl.plan import compile_plan
from flowrl.sigmas import Grid
from flowrl.types import Arm

GRID = Grid(6, 3.0)
CPU = torch.device("cpu")


def setup_of(policy, scorer, kernel=None, **batches):
    return Setup(policy, kernel or FlowSde(), {"r": scorer}, CPU, dtype=torch.float64, **batches)


def states_of(policy, count):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, *policy.latent_shape, generator=generator, dtype=torch.float64)
    return States(x, tuple(i % 2 for i in range(count)), tuple(f"state {i}" for i in range(count)))


@pytest.mark.parametrize("grid", [GRID, Grid(6, 3.0, lowest=0.01)], ids=["even", "lowest"])
def test_a_tail_is_the_rest_of_the_grid(grid):
    for start in range(6):
        tail = Tail.of(grid, start)
        assert tail.sigma == grid.sigma[start:]
        assert tail.num_steps == 6 - start


@pytest.mark.parametrize("start", [0, 1, 4, 5])
def test_exact_values_are_the_closed_form(start):
    policy, prompts = LinearPolicy(), prompts_of(2)
    states = states_of(policy, 3)
    plan = exact_probe(GRID, start, Strided())
    values = setup_of(policy, LinearScorer()).values(plan, states, prompts, policy.encode(prompts), seed=0)
    cond = policy.encode(prompts)[torch.tensor(states.prompt)]
    expected, _ = leaf(policy, FlowSde(), GRID, states.x, start, cond, noisy=False)
    torch.testing.assert_close(values[:, 0, 0], expected.flatten(1).sum(1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kernel", [FlowSde(), DanceSde()], ids=lambda k: k.kind)
@pytest.mark.parametrize("start", [1, 4])
def test_noisy_values_converge_to_the_closed_form(kernel, start):
    policy, prompts, samples = LinearPolicy(), prompts_of(2), 2000
    states = states_of(policy, 2)
    plan = noisy_probe(GRID, start, samples)
    setup = setup_of(policy, LinearScorer(), kernel, max_batch=1000, decode_batch=1000)
    values = setup.values(plan, states, prompts, policy.encode(prompts), seed=0)[..., 0]
    mean, variance = leaf(policy, kernel, GRID, states.x, start, policy.encode(prompts), noisy=True)
    error = (2 * variance / samples) ** 0.5  # of a sum of two independent dimensions
    assert (values.mean(1) - mean.flatten(1).sum(1)).abs().max() < 4 * error
    assert values.var(1).tolist() == pytest.approx([2 * variance] * 2, rel=0.15)


def test_the_last_step_has_no_noise_and_one_leaf():
    plan = noisy_probe(GRID, 5, 64)
    assert len(plan.leaves) == 1
    assert plan.num_forwards == 1


def test_forwards_are_those_of_a_shared_first_step():
    assert noisy_probe(GRID, 2, 64).num_forwards == 1 + 64 * 3
    assert noisy_probe(GRID, 2, 64).actions == ()


def test_the_granularities_are_those_of_the_method():
    """From a state at grid index 1 the probe visits the levels that the method's own continuation does."""
    plan = exact_probe(GRID, 1, EXACT)
    visited = {
        stream: tuple(plan.sigma[node] for node in reversed(list(plan.ancestry(leaf))))
        for leaf, stream in plan.readings
    }
    assert tuple(visited.values()) == tuple(path.sigmas for path in EXACT.paths(GRID, 1))


def test_a_state_does_not_depend_on_its_company(monkeypatch):
    policy, prompts = TinyPolicy(), prompts_of(2)
    states, setup = states_of(policy, 5), setup_of(policy, TinyScorer(), max_batch=7, decode_batch=3)
    plan = noisy_probe(GRID, 2, 4)
    together = setup.values(plan, states, prompts, policy.encode(prompts), seed=3)
    monkeypatch.setattr("flowrl.bench.probe.LEAVES_AT_ONCE", 8)
    chunked = setup.values(plan, states, prompts, policy.encode(prompts), seed=3)
    torch.testing.assert_close(chunked, together, rtol=1e-6, atol=1e-7)
    other = setup.values(plan, states, prompts, policy.encode(prompts), seed=4)
    assert (other - together).abs().min() > 0


def test_halves_and_streams():
    values = torch.arange(8.0).reshape(1, 8, 1)
    assert halves(values).flatten().tolist() == [1.5, 5.5]
    assert halves(values[:, :1]).flatten().tolist() == [0.0, 0.0]
    plan = exact_probe(GRID, 4, EXACT)  # granularities 2 and 3 coincide near the end: one leaf, two streams
    columns = torch.arange(float(len(plan.leaves))).reshape(1, -1, 1)
    assert per_stream(plan, columns).shape == (1, 3, 1)


def test_what_a_method_approximates_its_values_do_not():
    policy, prompts = TinyPolicy(), prompts_of(2)
    cheaper = Rounded(policy)
    setup = setup_of(policy, TinyScorer(), approximation=cheaper)
    plan = compile_plan(GRID, [Arm({0: 3})], Strided().paths, approximate=True)
    setup.roll_out(plan, prompts, policy.encode(prompts), Noise(0, 0), "parent")
    approximated = len(cheaper.full)
    assert approximated == 2 * 3 * 5
    setup.values(exact_probe(GRID, 1, EXACT), states_of(policy, 2), prompts, policy.encode(prompts), seed=0)
    assert len(cheaper.full) == approximated
