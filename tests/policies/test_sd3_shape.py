"""Sizes and costs of Stable Diffusion 3 from configs equal those of the modules."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from policies.kinds import CPU, Kind
from policies.tiny_parts import TEXT_TOKENS
from policies.tiny_sd3 import build_pipeline

from flowrl.costs import iteration_cost
from flowrl.errors import UserError
from flowrl.policies.sd3 import SD3
from flowrl.policies.sd3_shape import PUBLISHED
from flowrl.recipe import load_recipe
from flowrl.types import Prompt

MEDIUM, LARGE = (f"stabilityai/stable-diffusion-3.5-{size}" for size in ("medium", "large"))


def test_the_published_models_are_known_without_their_weights() -> None:
    shape = SD3(source=MEDIUM, height=512, width=512, text_tokens=128).shape()
    assert shape.latent_shape == (16, 64, 64)
    assert shape.embedding_bytes(2) == 2 * ((77 + 128) * 4096 + 2048)
    assert (SD3(source=LARGE).shape().height, SD3(source=LARGE).shape().text_tokens) == (1024, 256)


@pytest.mark.parametrize(("source", "billions"), [(MEDIUM, 2.24), (LARGE, 8.06)])
def test_published_parameters_equal_the_modules(source: str, billions: float) -> None:
    from diffusers import SD3Transformer2DModel

    config = dict(PUBLISHED[source].transformer)
    config["caption_projection_dim"] = config["attention_head_dim"] * config["num_attention_heads"]
    with torch.device("meta"):
        module = SD3Transformer2DModel(**config)
    num_parameters = SD3(source=source).shape().num_parameters
    assert num_parameters == sum(p.numel() for p in module.parameters())
    assert num_parameters == pytest.approx(1e9 * billions, rel=2e-3)


@pytest.mark.parametrize("dual_attention_layers", [(), (0, 1)])
@pytest.mark.parametrize("guidance", [None, 4.5])
def test_parameters_and_flops_equal_the_counted(
    tmp_path: Path, dual_attention_layers: tuple[int, ...], guidance: float | None
) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    folder = build_pipeline(tmp_path / "pipeline", dual_attention_layers=dual_attention_layers)
    kind = Kind("sd3", folder, str(tmp_path / "cache"))
    config, policy = kind.config(guidance=guidance), kind.load(guidance=guidance)
    shape = config.shape()
    assert policy.num_parameters == sum(p.numel() for p in policy.module.parameters())
    assert shape.latent_shape == policy.latent_shape == (4, 8, 8)
    assert (shape.clip_tokens, shape.text_tokens) == (TEXT_TOKENS, TEXT_TOKENS)
    cond = policy.encode([Prompt("a cat", 0)])
    # The counter of some versions does not know the fused attention of a CPU; plain products are counted by all.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        policy.velocity(torch.zeros(1, 4, 8, 8), torch.ones(1), cond)
    assert config.evals_per_velocity * shape.flops_per_forward == counter.get_total_flops()


def test_a_plan_counts_both_halves() -> None:
    """Flow-GRPO's: 10 forwards of 24 samples, 9 of them trained, with a backward without weights and a reference."""
    recipe = load_recipe("published/flow_grpo", model="sd35_medium")
    cost, shape = iteration_cost(recipe), recipe.model.shape()
    assert cost.flops.per_forward == 2 * shape.flops_per_forward
    assert cost.flops.rollout == 10 * 24 * cost.flops.per_forward
    assert cost.flops.training == 9 * 24 * 3 * cost.flops.per_forward
    unguided = load_recipe("published/flow_grpo", model="sd35_medium", overrides=["model.guidance=null"])
    assert 2 * iteration_cost(unguided).flops.rollout == cost.flops.rollout


def test_a_size_beyond_the_table_of_positions_is_named(folders: dict[str, Path]) -> None:
    """It would have no position embedding."""
    with pytest.raises(UserError, match=r"model\.width must be at most 96 pixels for .*, got 104"):
        SD3(source=str(folders["sd3"]), width=104).load(CPU)
