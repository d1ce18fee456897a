"""Sizes and costs from configs equal those of the modules."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_flux import TEXT_TOKENS, build_pipeline

from flowrl.errors import UserError
from flowrl.policies.flux import Flux
from flowrl.types import Prompt

FLUX1_DEV = Flux(source="black-forest-labs/FLUX.1-dev", height=720, width=720)


def test_flux1_dev_is_known_without_its_weights() -> None:
    shape = FLUX1_DEV.shape()
    assert shape.latent_shape == (2025, 64)  # 129,600 dimensions
    assert shape.text_tokens == 512
    assert shape.flops_per_forward == pytest.approx(37.3e12, rel=2e-3)
    assert shape.embedding_bytes(2) == pytest.approx(4.2e6, rel=1e-2)
    assert Flux(source="black-forest-labs/FLUX.1-dev").shape().height == 1024


def test_flux1_dev_parameters_equal_the_modules() -> None:
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        module = FluxTransformer2DModel(guidance_embeds=True)
    assert FLUX1_DEV.shape().num_parameters == sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("guidance_embeds", [True, False])
def test_parameters_and_flops_equal_the_counted(tmp_path: Path, guidance_embeds: bool) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    folder = build_pipeline(tmp_path / "pipeline", guidance_embeds=guidance_embeds)
    config = Flux(source=str(folder), cache_dir=str(tmp_path / "cache"))
    shape = config.shape()
    policy = config.load(torch.device("cpu"))
    assert policy.num_parameters == sum(p.numel() for p in policy.module.parameters())
    assert shape.latent_shape == policy.latent_shape == (16, 16)
    assert shape.text_tokens == TEXT_TOKENS
    cond = policy.encode([Prompt("a cat", 0)])
    # The counter of some versions does not know the fused attention of a CPU; plain products are counted by all.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        policy.velocity(torch.zeros(1, 16, 16), torch.ones(1), cond)
    assert shape.flops_per_forward == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_another_transformer_is_refused(tmp_path: Path) -> None:
    folder = build_pipeline(tmp_path / "pipeline")
    config = folder / "transformer" / "config.json"
    config.write_text(config.read_text().replace("FluxTransformer2DModel", "SD3Transformer2DModel"))
    with pytest.raises(UserError, match="SD3Transformer2DModel, not a FluxTransformer2DModel"):
        Flux(source=str(folder)).shape()
