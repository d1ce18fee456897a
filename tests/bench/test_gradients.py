"""The SNR's parts are unbiased: averaged over all equally likely draws from a population they are its own values."""

from itertools import product

import numpy as np
import pytest
import torch
from runs import write_recipe

from flowrl.bench import gradients
from flowrl.bench.gradients import estimates, moments, snr, table
from flowrl.bench.probe import Stand
from flowrl.learner import sites_of
from flowrl.recipe import load_recipe

MEANS = torch.tensor([[1.0, 0.0], [0.5, 2.0], [-0.3, 0.7]], dtype=torch.float64)
NOISE = torch.tensor([[0.5, 0.1], [2.0, -1.0], [0.0, 0.3]], dtype=torch.float64)
"""A prompt's gradient is its mean plus or minus its noise, equally likely."""


def draws(repetitions):
    """Every sample of two prompts out of three (with replacement) and of the signs of all noise."""
    for prompts in product(range(3), repeat=2):
        for signs in product((-1.0, 1.0), repeat=2 * repetitions):
            sign = torch.tensor(signs, dtype=torch.float64).reshape(2, repetitions, 1)
            yield MEANS[list(prompts)][:, None] + sign * NOISE[list(prompts)][:, None]


def test_every_part_is_unbiased():
    found = [estimates(*(part.numpy() for part in moments(sample))) for sample in draws(2)]
    mean = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
    signal = float((MEANS.mean(0) ** 2).sum())
    own = float((MEANS**2).sum(1).mean())
    second = float((MEANS**2 + NOISE**2).sum(1).mean())
    assert mean == pytest.approx(
        {"signal": signal, "noise": second - signal, "own": own, "own_noise": second - own}, abs=1e-12
    )


def test_one_sample_a_prompt_is_the_published_estimator():
    """arXiv 1812.06162, A.1, with batches of 1 and of all."""
    sample = torch.randn(5, 1, 7, dtype=torch.float64)
    cross, square = moments(sample)
    found = estimates(cross.numpy(), square.numpy())
    small, big = float((sample**2).sum(2).mean()), float((sample.mean((0, 1)) ** 2).sum())
    assert found["signal"] == pytest.approx((5 * big - small) / (5 - 1))
    assert found["noise"] == pytest.approx((small - big) / (1 - 1 / 5))
    assert np.isnan(found["own"])


def measurement(sample, method="m"):
    cross, square = moments(sample)
    sizes = {"repetitions": sample.shape[1], "parameters": sample.shape[2], "forwards": 500.0, "training_forwards": 4.0}
    prompts = {"method": method, "seed": 0, "prompts": list(range(len(sample)))}
    return prompts | sizes | {"cross": cross.tolist(), "square": square.tolist()}


def test_the_interval_covers_a_strong_signal_and_not_zero():
    generator = torch.Generator().manual_seed(0)
    found = [measurement(1 + torch.randn(12, 3, 40, generator=generator, dtype=torch.float64)) for _ in range(4)]
    whole, own = (snr(found)[name].interval() for name in ("all", "prompt"))
    assert 0 < whole.low < 1 < whole.high, "40 / 40"
    assert 0 < own.low < 1 < own.high
    cells = table(found).rows[0].cells
    assert cells["scale"].value == pytest.approx(1 / whole.mean)
    assert cells["per_forwards"].value == pytest.approx(2 * whole.mean)


def test_methods_are_compared_in_pairs():
    """A method whose gradients are another's, at half the cost, is twice as good for every resample."""
    generator = torch.Generator().manual_seed(0)
    samples = 1 + torch.randn(12, 3, 40, generator=generator, dtype=torch.float64)
    cheap = measurement(samples, "cheap") | {"forwards": 250.0}
    other = measurement(samples[:5], "other") | {"seed": 7}
    dear, cheap, other = (
        row.cells for row in table([measurement(samples, "dear"), cheap, other], reference="dear").rows
    )
    assert "difference" not in dear
    assert cheap["difference"].value == pytest.approx(dear["per_forwards"].value)
    assert cheap["difference"].low == pytest.approx(dear["per_forwards"].low), "no wider than the one"
    assert other["difference"].value is None, "no seed and prompts in common"


def test_no_signal_has_no_scale():
    generator = torch.Generator().manual_seed(0)
    cells = table([measurement(torch.randn(8, 2, 400, generator=generator, dtype=torch.float64))]).rows[0].cells
    assert cells["snr"].low < 0 < cells["snr"].high
    assert cells["scale"].value is None
    assert "cannot be told from 0" in cells["scale"].note


def test_nothing_to_learn_is_said_so():
    cells = table([measurement(torch.zeros(3, 2, 4))]).rows[0].cells
    assert cells["snr"].value is None
    assert cells["snr"].note


def test_prompts_add_up_to_the_gradient_of_the_iteration(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path / "r", train={"fraction": 0.5}), overrides=["rollout.prompts=3"])
    stand = Stand.of(recipe, 3)
    plan = recipe.plan(1)
    found, training = gradients._gradients(stand, 1, 5)
    rollout, values = stand.roll_out(plan, 5)
    chosen = [tuple(sorted(a for update in recipe.partition(plan, 1, p) for a in update)) for p in range(3)]
    sites = sites_of(plan, chosen, [1.0] * 3)
    count = {"num_sites": len(sites), "scale": 1 / sum(map(len, chosen))}
    stand.trainer.learner.accumulate(plan, rollout, stand.cond, stand.advantage(values, plan), sites, **count)
    together = torch.cat([p.grad.flatten() for p in stand.trainer.parameters.values()])
    weights = torch.tensor([float(len(actions)) for actions in chosen])
    torch.testing.assert_close(together, weights @ found / weights.sum(), rtol=1e-5, atol=1e-8)
    assert training == len(sites)


def test_a_measurement_is_json_and_says_what_it_cost(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path / "r"))
    found = gradients.measure(recipe, num_prompts=3, repetitions=2)
    assert found["forwards"] == recipe.plan().num_forwards
    assert gradients.forwards(recipe, num_prompts=3, repetitions=2) == 6 * recipe.plan().num_forwards
    assert found["method"] == "tiny"
    assert len(found["cross"]) == len(found["square"]) == 3
    assert found["parameters"] == 16 * 11 + 16 + 16 * 6 + 6
    assert table([found]).rows[0].title == "tiny"
