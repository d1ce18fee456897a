"""The engine over a policy draws what the plain pipeline draws."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from policies.kinds import CPU, PROMPTS, Kind

from flowrl.continuations.strided import Strided
from flowrl.engine import execute
from flowrl.kernels.flow_sde import FlowSde
from flowrl.noise import Noise
from flowrl.plan import compile_plan
from flowrl.schedules.singular import Singular
from flowrl.sigmas import Grid
from flowrl.types import Arm

STEPS, SHIFT = 6, 3.0


@pytest.mark.parametrize("max_batch", [2, 16])
def test_a_pure_ode_rollout_is_the_pipelines(kind: Kind, max_batch: int) -> None:
    """Same latents, unshifted sigmas: the scheduler's static shift is the grid's."""
    policy = kind.load()
    plan = compile_plan(Grid(STEPS, SHIFT), [Arm({})], Strided().paths)
    found: dict[int, torch.Tensor] = {}
    rollout = execute(
        plan,
        policy,
        policy.encode(PROMPTS),
        FlowSde(),
        Noise(42, 0),
        positions=range(3),
        on_leaves=lambda x, rows: found.update({prompt: row for (prompt, _), row in zip(rows, x, strict=True)}),
        device=CPU,
        max_batch=max_batch,
    )
    assert rollout.num_forwards == 3 * STEPS
    root = plan.noise_key[plan.roots[0]]
    pipe = kind.pipeline()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    x = torch.stack([Noise(42, 0).draw(position, root, policy.latent_shape) for position in range(3)])
    theirs = kind.call(pipe, x, STEPS, even=True)
    torch.testing.assert_close(torch.stack([found[p] for p in range(3)]), theirs, rtol=1e-5, atol=1e-5)


def test_a_tree_of_mixed_sigmas_does_not_depend_on_its_packing(kind: Kind) -> None:
    policy = kind.load()
    arms = Singular().arms(num_steps=STEPS, group=3, iteration=0, iterations=1, seed=0)
    plan = compile_plan(Grid(STEPS, SHIFT), arms, Strided(strides=(1, 2)).paths)

    def leaves(max_batch: int) -> torch.Tensor:
        found: dict[tuple[int, int], torch.Tensor] = {}
        rollout = execute(
            plan,
            policy,
            policy.encode(PROMPTS[:2]),
            FlowSde(),
            Noise(42, 0),
            positions=range(2),
            on_leaves=lambda x, rows: found.update(zip(rows, x, strict=True)),
            device=CPU,
            max_batch=max_batch,
        )
        assert rollout.num_forwards == 2 * plan.num_forwards
        return torch.stack([found[row] for row in sorted(found)])

    torch.testing.assert_close(leaves(1), leaves(64), rtol=1e-5, atol=1e-5)
