"""The Gaussian: its log-density is torch's, averaged over the latent axes; its KL is the closed form."""

import torch

from flowrl.gaussian import Gaussian

GENERATOR = torch.Generator().manual_seed(0)
MEAN = torch.randn(4, 3, 5, generator=GENERATOR, dtype=torch.float64)
STD = torch.rand(4, 1, 1, generator=GENERATOR, dtype=torch.float64) + 0.1
X = torch.randn(4, 3, 5, generator=GENERATOR, dtype=torch.float64)


def test_log_prob_is_the_density_averaged_over_dimensions():
    reference = torch.distributions.Normal(MEAN, STD.expand_as(MEAN))
    torch.testing.assert_close(Gaussian(MEAN, STD).log_prob(X), reference.log_prob(X).mean((1, 2)))


def test_unit_scale_drops_every_constant():
    torch.testing.assert_close(Gaussian(MEAN, STD, "unit").log_prob(X), -((X - MEAN) ** 2).mean((1, 2)))


def test_kl_is_the_closed_form():
    other = Gaussian(X, STD)
    reference = torch.distributions.kl_divergence(
        torch.distributions.Normal(MEAN, STD.expand_as(MEAN)), torch.distributions.Normal(X, STD.expand_as(X))
    )
    torch.testing.assert_close(Gaussian(MEAN, STD).kl(other), reference.mean((1, 2)))


def test_rows_and_samples():
    gaussian = Gaussian(MEAN, STD)
    rows = torch.tensor([2, 2, 0])
    assert torch.equal(gaussian[rows].mean, MEAN[rows])
    torch.testing.assert_close(gaussian.log_prob(gaussian.sample(torch.zeros_like(X))), gaussian.log_prob(MEAN))
