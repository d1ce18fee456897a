"""What every registered variant of every family promises. A new file in a family's folder is tested from here on."""

import pytest
import torch
from pydantic import ValidationError

from flowrl.credit import Rewards
from flowrl.gaussian import Gaussian
from flowrl.plan import compile_plan
from flowrl.protocols import Advantage, Continuation, Kernel, Loss, Schedule
from flowrl.sigmas import Grid
from flowrl.surrogate import Actions
from flowrl.types import Arm, Path

FAMILIES = (Schedule, Continuation, Kernel, Advantage, Loss)


def members(*families):
    found = [
        cls for family in families for _, cls in sorted(family.members().items()) if cls.__module__[:7] == "flowrl."
    ]
    return pytest.mark.parametrize("variant", found, ids=lambda cls: f"{cls.__mro__[1].__name__}-{cls.kind}")


@members(*FAMILIES)
def test_is_its_own_frozen_config(variant):
    instance = variant()
    family = next(family for family in FAMILIES if isinstance(instance, family))
    assert variant.__doc__
    assert family.model_validate(variant.kind) == instance
    assert family.model_validate(instance.model_dump(mode="json")) == instance
    with pytest.raises(ValidationError):
        family.model_validate({"kind": variant.kind, "no_such_key": 1})
    if variant.model_fields:
        with pytest.raises(ValidationError):
            setattr(instance, next(iter(variant.model_fields)), None)


@members(*FAMILIES)
def test_lives_alone_in_a_file_that_is_named_after_it(variant):
    assert variant.__module__.rpartition(".")[2] == variant.kind


@members(Schedule)
@pytest.mark.parametrize("num_steps", [8, 16, 25])
def test_schedules_are_pure_and_compile(variant, num_steps):
    schedule = variant()
    for iteration in (0, 1, 17, 59):
        where = {"num_steps": num_steps, "group": 5, "iteration": iteration, "iterations": 60, "seed": 3}
        arms = schedule.arms(**where)
        assert arms == schedule.arms(**where) == Schedule.model_validate(schedule.model_dump()).arms(**where)
        plan = compile_plan(Grid(num_steps, 3.0), arms, lambda grid, start: [Path(grid.sigma[start:])])
        assert plan.actions
        plan.peers("step")


@members(Continuation)
@pytest.mark.parametrize("num_steps", [2, 8, 25])
def test_continuations_lead_from_anywhere_to_the_end(variant, num_steps):
    grid = Grid(num_steps, 3.0)
    streams = {len(variant().paths(grid, start)) for start in range(num_steps + 1)}
    assert len(streams) == 1
    for start in range(num_steps):
        compile_plan(grid, [Arm({start: 2})] if start else [Arm({})], variant().paths)


@members(Kernel)
def test_kernels_are_differentiable_distributions_at_every_step(variant):
    grid = Grid(8, 3.0)
    x = torch.randn(7, 4, 3, dtype=torch.float64)
    v = torch.randn_like(x).requires_grad_()
    levels = torch.tensor(grid.sigma, dtype=torch.float64)
    transition = variant().transition(x, v, levels[:7], levels[1:8])
    assert transition.mean.shape == x.shape
    assert (transition.std > 0).all()
    log_prob = transition.log_prob(transition.sample(torch.randn_like(x)).detach())
    assert log_prob.shape == (7,)
    log_prob.sum().backward()
    assert v.grad.isfinite().all()
    assert (v.grad.flatten(1).abs().sum(1) > 0).all()


@members(Advantage)
def test_advantages_are_relative_and_silent_without_differences(variant):
    plan = compile_plan(Grid(8), [Arm({0: 6})], lambda grid, start: [Path(grid.sigma[start:])])
    names, weights = ("a", "b"), (1.0, 2.0)
    values = torch.rand(3, 6, 2, dtype=torch.float64)
    valid = torch.ones_like(values, dtype=torch.bool)
    unclipped = variant(clip=None)  # a clipped outlier would leave the mean off 0
    advantage = unclipped.per_action(Rewards(values, valid, names, weights), plan)
    assert advantage.shape == (3, 6)
    assert advantage.abs().sum() > 0
    torch.testing.assert_close(advantage.mean(1), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-6)
    shifted = unclipped.per_action(Rewards(values + 5, valid, names, weights), plan)
    torch.testing.assert_close(shifted, advantage, rtol=1e-6, atol=1e-6)
    clipped = variant(clip=0.5).per_action(Rewards(values, valid, names, weights), plan)
    torch.testing.assert_close(clipped, advantage.clamp(-0.5, 0.5))
    equal = variant().per_action(Rewards(torch.full_like(values, 0.7), valid, names, weights), plan)
    assert torch.equal(equal, torch.zeros_like(equal))


@members(Loss)
def test_losses_start_as_the_policy_gradient(variant):
    mean = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    std = torch.full((5, 1), 0.3, dtype=torch.float64)
    old = Gaussian(mean.detach(), std)
    advantage = torch.linspace(-2, 2, 5, dtype=torch.float64)
    following = old.sample(torch.randn(5, 4, dtype=torch.float64))
    levels = torch.full((5,), 0.9, dtype=torch.float64), torch.full((5,), 0.8, dtype=torch.float64)
    terms = variant().terms(Gaussian(mean, std), Actions(following, old, advantage, *levels), None)
    assert all(term.shape == (5,) for term in terms)
    (gradient,) = torch.autograd.grad(terms.total.sum(), mean)
    (expected,) = torch.autograd.grad((-advantage * Gaussian(mean, std).log_prob(following)).sum(), mean)
    torch.testing.assert_close(gradient, expected)
    assert not terms.clipped.any()
