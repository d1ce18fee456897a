"""What is FLUX's own: packed latents, a guidance that is embedded, a shift by the number of tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from policies.kinds import PROMPTS, TEXTS, Kind, euler, latents
from policies.tiny_flux import build_pipeline
from policies.tiny_parts import TEXT_TOKENS

from flowrl.sigmas import Grid


@pytest.fixture
def flux(folder: Path, cache: str) -> Kind:
    return Kind("flux", folder, cache)


def test_a_transformer_without_guidance(tmp_path: Path, cache: str) -> None:
    plain = Kind("flux", build_pipeline(tmp_path / "plain", guidance_embeds=False), cache)
    policy, pipe = plain.load(), plain.pipeline()
    x = latents(policy)
    ours = euler(policy, x, policy.pipeline_sigmas(3), policy.encode(PROMPTS))
    torch.testing.assert_close(ours, plain.call(pipe, x, 3), rtol=1e-5, atol=1e-5)


def test_states_are_packed_and_one_velocity_is_one_evaluation(flux: Kind) -> None:
    policy = flux.load(height=48, width=48)
    assert policy.latent_shape == (36, 16)
    assert policy.evals_per_velocity == 1


def test_pipeline_sigmas_are_those_of_the_dynamic_shift(flux: Kind) -> None:
    assert flux.pipeline().scheduler.config.use_dynamic_shifting
    assert flux.load().pipeline_sigmas(5) != pytest.approx(flux.load(height=64, width=64).pipeline_sigmas(5))
    assert flux.load().pipeline_sigmas(5) != pytest.approx(Grid(5).sigma)


def test_encode_equals_the_pipeline(flux: Kind) -> None:
    policy, pipe = flux.load(), flux.pipeline()
    with torch.no_grad():
        text, pooled, _ = pipe.encode_prompt(TEXTS, max_sequence_length=TEXT_TOKENS)
    for _ in ("miss", "hit"):
        cond = policy.encode(PROMPTS)
        torch.testing.assert_close(cond.tensors["text"], text, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(cond.tensors["pooled"], pooled, rtol=1e-5, atol=1e-6)
