"""The embedded world's structure as a policy: the same class, its whole pipeline saved."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from flowrl.policies.flux import Flux, FluxPolicy
from flowrl.types import Prompt
from flowrl.worlds.shapes.parts import Sizes, assemble

CPU = torch.device("cpu")
WORDS = ["a", "red", "blue", "circle", "square", "the", "is"]
PROMPTS = [Prompt("a red circle", 0), Prompt("the square is blue", 1)]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("worlds")
    assemble(folder / "shapes" / "pipeline", WORDS)
    return folder


@pytest.fixture
def policy(worlds: Path, cache: str, monkeypatch: pytest.MonkeyPatch) -> FluxPolicy:
    monkeypatch.setattr("flowrl.hub.WORLDS", worlds)
    return Flux(source="shapes", cache_dir=cache).load(CPU)


def test_sizes_come_from_the_pipeline(policy: FluxPolicy) -> None:
    assert policy.latent_shape == (64, 4 * Sizes().latent_channels)
    assert policy.shape.text_tokens == 32
    assert policy.frozen_dtype == torch.float32
    assert {parameter.dtype for parameter in policy.module.parameters()} == {torch.float32}
    assert policy.num_parameters == sum(parameter.numel() for parameter in policy.module.parameters())


def test_the_saved_pipeline_draws_what_the_policy_draws(policy: FluxPolicy, tmp_path: Path) -> None:
    from diffusers import FluxPipeline

    with torch.no_grad():
        for parameter in policy.module.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    policy.save_pretrained(tmp_path / "saved")
    pipe = FluxPipeline.from_pretrained(tmp_path / "saved")
    pipe.set_progress_bar_config(disable=True)
    x = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    theirs = pipe(
        [prompt.text for prompt in PROMPTS],
        height=64,
        width=64,
        latents=x,
        num_inference_steps=4,
        max_sequence_length=32,
        output_type="pt",
    ).images
    sigmas, cond = policy.pipeline_sigmas(4), policy.encode(PROMPTS)
    with torch.no_grad():
        for sigma, sigma_next in itertools.pairwise(sigmas):
            x = x - (sigma - sigma_next) * policy.velocity(x, torch.full((2,), sigma), cond)
    torch.testing.assert_close(policy.decode(x), theirs, rtol=1e-4, atol=1e-4)
