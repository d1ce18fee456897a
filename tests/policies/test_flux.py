"""The FLUX policy agrees with FluxPipeline in every part."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from tiny_flux import SIZE, TEXT_TOKENS, build_pipeline

from flowrl.policies.flux import Flux, FluxPolicy
from flowrl.sigmas import Grid
from flowrl.types import Cond, Prompt

CPU = torch.device("cpu")
PROMPTS = [Prompt("a cat", 0), Prompt("two red dogs", 1), Prompt("a blue square", 2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_pipeline(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture
def cache(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


def load(folder: Path, cache: str, **fields: object) -> FluxPolicy:
    return Flux.model_validate({"source": str(folder), "cache_dir": cache, **fields}).load(CPU)


def latents(policy: FluxPolicy, rows: int = len(PROMPTS), seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, *policy.latent_shape, generator=torch.Generator().manual_seed(seed))


def pipeline(folder: Path):
    from diffusers import FluxPipeline

    pipe = FluxPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def euler(policy: FluxPolicy, x: torch.Tensor, sigmas: tuple[float, ...], cond: Cond) -> torch.Tensor:
    with torch.no_grad():
        for sigma, sigma_next in itertools.pairwise(sigmas):
            x = x - (sigma - sigma_next) * policy.velocity(x, torch.full((len(x),), sigma), cond)
    return x


def call(pipe, x: torch.Tensor, num_steps: int, output_type: str = "latent"):
    """FluxPipeline on the unshifted grid, which its scheduler then shifts by its own rule."""
    return pipe(
        prompt=[prompt.text for prompt in PROMPTS],
        height=SIZE,
        width=SIZE,
        latents=x,
        sigmas=list(Grid(num_steps).u[:-1]),
        guidance_scale=3.5,
        max_sequence_length=TEXT_TOKENS,
        output_type=output_type,
    ).images


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_ode_rollout_equals_the_pipeline(folder: Path, cache: str, shift: float) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    policy, pipe = load(folder, cache), pipeline(folder)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=shift, use_dynamic_shifting=False)
    x = latents(policy)
    ours = euler(policy, x, Grid(6, shift).sigma, policy.encode(PROMPTS))
    torch.testing.assert_close(ours, call(pipe, x, 6), rtol=1e-5, atol=1e-5)
    assert (ours - x).abs().mean() > 0.01


def test_decode_equals_the_pipeline(folder: Path, cache: str) -> None:
    policy, pipe = load(folder, cache), pipeline(folder)
    x = latents(policy)
    images = policy.decode(call(pipe, x, 3))
    assert images.shape == (3, 3, SIZE, SIZE)
    assert images.dtype == torch.float32
    torch.testing.assert_close(images, call(pipe, x, 3, output_type="pt"), rtol=1e-5, atol=1e-5)


def test_encode_equals_the_pipeline(folder: Path, cache: str) -> None:
    policy, pipe = load(folder, cache), pipeline(folder)
    with torch.no_grad():
        text, pooled, _ = pipe.encode_prompt([p.text for p in PROMPTS], max_sequence_length=TEXT_TOKENS)
    for _ in ("miss", "hit"):
        cond = policy.encode(PROMPTS)
        torch.testing.assert_close(cond.tensors["text"], text, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(cond.tensors["pooled"], pooled, rtol=1e-5, atol=1e-6)
