"""Kernels on an exactly solvable flow: Gaussian data, whose velocity is known in closed form."""

import pytest
import torch

from flowrl.kernels.cps import Cps
from flowrl.kernels.dance_sde import DanceSde
from flowrl.kernels.flow_sde import FlowSde
from flowrl.protocols import Kernel
from flowrl.sigmas import Grid

MEAN, STD = 0.7, 0.5
KERNELS = [FlowSde(), DanceSde(), Cps()]


def velocity(x, s):
    """E[noise - data | x] where x = (1-s) data + s noise, data ~ N(MEAN, STD^2)."""
    variance = (1 - s) ** 2 * STD**2 + s**2
    centred = x - (1 - s) * MEAN
    return s / variance * centred - (MEAN + (1 - s) * STD**2 / variance * centred)


def errors(kernel, num_steps, count=200_000, noise_scale=1.0):
    """Relative error of the std, and error of the mean, of what a rollout ends with; the last step is the ODE's."""
    generator = torch.Generator().manual_seed(0)
    grid = Grid(num_steps)
    x = torch.randn(count, 1, generator=generator, dtype=torch.float64)
    for sigma, sigma_next in zip(grid.sigma, grid.sigma[1:], strict=False):
        v = velocity(x, sigma)
        if kernel is None or sigma_next == 0:
            x = x - v * (sigma - sigma_next)
        else:
            levels = (torch.full((1,), s, dtype=torch.float64) for s in (sigma, sigma_next))
            noise = torch.randn(count, 1, generator=generator, dtype=torch.float64)
            x = kernel.transition(x, v, *levels).sample(noise_scale * noise)
    return float(x.std() / STD - 1), float(x.mean() - MEAN)


def test_every_kernel_is_here():
    assert {type(kernel) for kernel in KERNELS} == set(Kernel.members().values())


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.kind)
def test_marginals(kernel):
    spread, centre = zip(*(errors(kernel, num_steps) for num_steps in (16, 64, 256)), strict=True)
    assert abs(centre[-1]) < 0.01
    if kernel.keeps_marginals:
        assert abs(spread[-1]) < 0.01
        assert abs(spread[-1]) < abs(spread[0])
    else:
        assert all(error < -0.1 for error in spread), "a claim that no longer holds should be made"


def test_the_ode_converges_too():
    assert abs(errors(None, 256)[0]) < 0.01


def test_noise_that_is_not_the_transitions_own_shows():
    assert errors(FlowSde(), 256, noise_scale=0.3)[0] < -0.3


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.kind)
def test_rows_may_differ_in_sigma(kernel):
    x, v = torch.randn(3, 2, 4, dtype=torch.float64), torch.randn(3, 2, 4, dtype=torch.float64)
    sigma = torch.tensor([1.0, 0.9, 0.3], dtype=torch.float64)
    following = torch.tensor([0.9, 0.7, 0.1], dtype=torch.float64)
    together = kernel.transition(x, v, sigma, following)
    for i in range(3):
        alone = kernel.transition(x[i : i + 1], v[i : i + 1], sigma[i : i + 1], following[i : i + 1])
        assert torch.equal(alone.mean[0], together.mean[i])
        assert torch.equal(alone.std[0], together.std[i])


def test_cps_has_no_noise_at_the_clean_end():
    x = torch.randn(2, 3)
    assert float(Cps().transition(x, x, torch.full((2,), 0.1), torch.zeros(2)).std.max()) == 0
