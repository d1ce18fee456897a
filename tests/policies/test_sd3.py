"""What is Stable Diffusion 3's own: classifier-free guidance, in rollout and gradient, and its scheduler's grid."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from policies.kinds import GUIDANCE, LORA, PROMPTS, TEXTS, Kind, euler, latents
from policies.tiny_parts import TEXT_TOKENS
from policies.tiny_sd3 import build_pipeline

from flowrl.recipe import load_recipe
from flowrl.sigmas import Grid, shift_sigma
from flowrl.types import Prompt

HALF = torch.full((3,), 0.5)


@pytest.fixture
def sd3(folders: dict[str, Path], cache: str) -> Kind:
    return Kind("sd3", folders["sd3"], cache)


# ---- guidance


@pytest.mark.parametrize(("guidance", "evals"), [(4.5, 2), (1.5, 2), (1.0, 1), (None, 1)])
def test_guided_or_not_it_draws_what_the_pipeline_draws(sd3: Kind, guidance: float | None, evals: int) -> None:
    policy, pipe = sd3.load(guidance=guidance), sd3.pipeline()
    assert policy.evals_per_velocity == sd3.config(guidance=guidance).evals_per_velocity == evals
    x = latents(policy)
    ours = euler(policy, x, policy.pipeline_sigmas(4), policy.encode(PROMPTS))
    torch.testing.assert_close(ours, sd3.call(pipe, x, 4, guidance=guidance or 1.0), rtol=1e-5, atol=1e-5)


def test_one_call_of_twice_the_rows_is_both_halves(sd3: Kind) -> None:
    policy, plain = sd3.load(), sd3.load(guidance=None)
    rows: list[int] = []
    policy.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    x, cond, empty = latents(policy), policy.encode(PROMPTS), policy.encode([Prompt("", 0)] * 3)
    with torch.no_grad():
        guided = policy.velocity(x, HALF, cond)
        conditional, unconditional = plain.velocity(x, HALF, cond), plain.velocity(x, HALF, empty)
    assert rows == [6]
    expected = unconditional + GUIDANCE["sd3"] * (conditional - unconditional)
    torch.testing.assert_close(guided, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lora", [None, LORA])
def test_the_gradient_flows_through_both_halves(sd3: Kind, lora: dict[str, float] | None) -> None:
    """d v / d theta is that of v_uncond + s (v_cond - v_uncond), each half differentiated by itself."""
    torch.manual_seed(0)
    policy = sd3.load(lora=lora)
    x, cond, empty = latents(policy), policy.encode(PROMPTS), policy.encode([Prompt("", 0)] * 3)
    direction = torch.randn_like(x)

    def gradient(evals: int, cond: object, weight: float) -> dict[str, torch.Tensor]:
        policy.evals_per_velocity = evals
        policy.module.zero_grad()
        (weight * policy.velocity(x, HALF, cond) * direction).sum().backward()
        return {n: p.grad.clone() for n, p in policy.module.named_parameters() if p.grad is not None}

    scale = GUIDANCE["sd3"]
    guided, conditional = gradient(2, cond, 1.0), gradient(1, cond, scale)
    unconditional = gradient(1, empty, 1 - scale)
    assert any(g.abs().max() > 1e-3 for g in unconditional.values())
    for name, found in guided.items():
        torch.testing.assert_close(found, conditional[name] + unconditional[name], rtol=1e-4, atol=1e-4)


def test_guidance_below_one_is_refused(sd3: Kind) -> None:
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        sd3.config(guidance=0.5)


# ---- prompts


def test_encode_equals_the_pipeline(sd3: Kind) -> None:
    policy, pipe = sd3.load(), sd3.pipeline()
    with torch.no_grad():
        text, negative, pooled, negative_pooled = pipe.encode_prompt(TEXTS, None, None, max_sequence_length=TEXT_TOKENS)
    for _ in ("miss", "hit"):
        cond = policy.encode(PROMPTS)
        torch.testing.assert_close(cond.tensors["text"], text, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(cond.tensors["pooled"], pooled, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(policy._negative.tensors["text"], negative[:1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(policy._negative.tensors["pooled"], negative_pooled[:1], rtol=1e-5, atol=1e-6)


def test_the_negative_prompt_is_encoded_along_with_the_others(sd3: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, whichever comes first, so that the text encoders are not loaded again for it."""
    from diffusers import StableDiffusion3Pipeline

    said: list[str] = []
    sd3.load().cache_prompts(PROMPTS, say=said.append)
    assert said[0].startswith("encoding 4 of 4 prompts")
    other = Kind("sd3", sd3.folder, f"{sd3.cache}-2").load()
    cond = other.encode(PROMPTS)

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the text encoders were loaded")

    monkeypatch.setattr(StableDiffusion3Pipeline, "from_pretrained", refuse)
    for policy in (other, sd3.load()):
        with torch.no_grad():
            policy.velocity(latents(policy), HALF, cond)


def test_the_size_said_beforehand_is_the_size_on_disk(sd3: Kind) -> None:
    policy = sd3.load()
    policy.cache_prompts(PROMPTS, say=lambda _: None)
    sizes = [path.stat().st_size for path in Path(sd3.cache).rglob("*.safetensors")]
    assert len(sizes) == 4
    assert all(0 < size - policy.shape.embedding_bytes(4) < 400 for size in sizes)  # the header


# ---- the rest


def test_without_second_attentions(tmp_path: Path, cache: str) -> None:
    """As SD3.5 large."""
    large = Kind("sd3", build_pipeline(tmp_path / "large", dual_attention_layers=()), cache)
    policy, pipe = large.load(), large.pipeline()
    x = latents(policy)
    ours = euler(policy, x, policy.pipeline_sigmas(3), policy.encode(PROMPTS))
    torch.testing.assert_close(ours, large.call(pipe, x, 3), rtol=1e-5, atol=1e-5)


def test_adapters_are_where_flow_grpo_has_them(sd3: Kind) -> None:
    policy = sd3.load(lora={})
    adapted = {name.split(".lora_")[0] for name, p in policy.module.named_parameters() if p.requires_grad}
    joint = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj")
    expected = {f"transformer_blocks.{block}.attn.{name}" for block in range(3) for name in joint}
    expected |= {f"transformer_blocks.{block}.attn.to_add_out" for block in range(2)}
    assert adapted == expected
    assert policy.config.lora.rank == 32
    assert policy.config.lora.alpha == 64


def test_the_published_recipe_walks_down_the_schedulers_own_grid(sd3: Kind) -> None:
    for model in ("sd35_medium", "sd35_large"):
        grid = load_recipe("published/flow_grpo", model=model).grid.levels()
        assert grid.sigma == pytest.approx(sd3.load().pipeline_sigmas(10), abs=1e-6)
    assert Grid(10, 3.0, shift_sigma(0.001, 3.0)).sigma == pytest.approx(grid.sigma, abs=1e-6)
