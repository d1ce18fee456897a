"""The FLUX policy agrees with FluxPipeline in every part."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_flux import SIZE, TEXT_TOKENS, build_pipeline

from flowrl.errors import UserError
from flowrl.policies.diffusers_policy import DECODE_PIXELS
from flowrl.policies.flux import Flux, FluxPolicy
from flowrl.protocols import PolicyConfig
from flowrl.sigmas import Grid
from flowrl.types import Cond, Prompt

CPU = torch.device("cpu")
PROMPTS = [Prompt("a cat", 0), Prompt("two red dogs", 1), Prompt("a blue square", 2)]
LORA = {"rank": 4, "alpha": 6.0}


def load(folder: Path, cache: str, **fields: object) -> FluxPolicy:
    return Flux.model_validate({"source": str(folder), "cache_dir": cache, **fields}).load(CPU)


def latents(policy: FluxPolicy, rows: int = len(PROMPTS), seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, *policy.latent_shape, generator=torch.Generator().manual_seed(seed))


def pipeline(folder: Path) -> Any:
    from diffusers import FluxPipeline

    pipe = FluxPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def euler(policy: FluxPolicy, x: torch.Tensor, sigmas: tuple[float, ...], cond: Cond) -> torch.Tensor:
    for sigma, sigma_next in itertools.pairwise(sigmas):
        x = x - (sigma - sigma_next) * policy.velocity(x, torch.full((len(x),), sigma), cond)
    return x


def call(pipe: Any, x: torch.Tensor, num_steps: int, output_type: str = "latent", size: int = SIZE) -> torch.Tensor:
    """FluxPipeline on the unshifted grid, which its scheduler then shifts by its own rule."""
    return pipe(
        prompt=[prompt.text for prompt in PROMPTS],
        height=size,
        width=size,
        latents=x,
        sigmas=list(Grid(num_steps).u[:-1]),
        guidance_scale=3.5,
        max_sequence_length=TEXT_TOKENS,
        output_type=output_type,
    ).images


def train_randomly(policy: FluxPolicy) -> None:
    """Moves every trainable parameter, as training would."""
    generator = torch.Generator().manual_seed(1)
    for parameter in policy.module.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


# ---- agreement with the pipeline


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_ode_rollout_equals_the_pipeline(folder: Path, cache: str, shift: float) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    policy, pipe = load(folder, cache), pipeline(folder)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=shift, use_dynamic_shifting=False)
    x = latents(policy)
    ours = euler(policy, x, Grid(6, shift).sigma, policy.encode(PROMPTS))
    torch.testing.assert_close(ours, call(pipe, x, 6), rtol=1e-5, atol=1e-5)
    assert (ours - x).abs().mean() > 0.01


def test_pipeline_sigmas_are_those_of_the_pipelines_own_dynamic_shift(folder: Path, cache: str) -> None:
    policy, pipe = load(folder, cache), pipeline(folder)
    assert pipe.scheduler.config.use_dynamic_shifting
    x = latents(policy)
    ours = euler(policy, x, policy.pipeline_sigmas(5), policy.encode(PROMPTS))
    torch.testing.assert_close(ours, call(pipe, x, 5), rtol=1e-5, atol=1e-5)
    assert policy.pipeline_sigmas(5)[1] != pytest.approx(Grid(5).sigma[1])


def test_a_transformer_without_guidance_and_another_size(tmp_path: Path, cache: str) -> None:
    folder = build_pipeline(tmp_path / "plain", guidance_embeds=False)
    policy, pipe = load(folder, cache, height=48, width=48), pipeline(folder)
    assert policy.latent_shape == (36, 16)
    x = latents(policy)
    ours = euler(policy, x, policy.pipeline_sigmas(3), policy.encode(PROMPTS))
    torch.testing.assert_close(ours, call(pipe, x, 3, size=48), rtol=1e-5, atol=1e-5)


def test_decode_equals_the_pipeline(folder: Path, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, pipe = load(folder, cache), pipeline(folder)
    monkeypatch.setitem(DECODE_PIXELS, "cpu", 2 * SIZE * SIZE)  # chunks of 2 and 1
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


# ---- velocity


def test_rows_of_mixed_sigmas_equal_each_alone(folder: Path, cache: str) -> None:
    policy = load(folder, cache)
    x, sigma, cond = latents(policy), torch.tensor([1.0, 0.5, 0.03]), policy.encode(PROMPTS)
    with torch.no_grad():
        together = policy.velocity(x, sigma, cond)
        for row in range(3):
            rows = torch.tensor([row])
            torch.testing.assert_close(together[rows], policy.velocity(x[rows], sigma[rows], cond[rows]))


@pytest.mark.parametrize("lora", [None, LORA])
def test_velocity_keeps_the_dtype_of_the_state_under_autocast(folder: Path, cache: str, lora: Any) -> None:
    policy = load(folder, cache, lora=lora, dtype="bf16", gradient_checkpointing=True)
    assert {p.dtype for p in policy.module.parameters() if p.requires_grad} == {torch.float32}
    x, sigma, cond = latents(policy), torch.full((3,), 0.5), policy.encode(PROMPTS)
    with torch.no_grad():
        exact = load(folder, cache).velocity(x, sigma, cond)
    with torch.autocast("cpu", torch.bfloat16):
        v = policy.velocity(x, sigma, cond)
    assert v.dtype == torch.float32
    assert policy.decode(x).dtype == torch.float32
    assert (v - exact).norm() < 0.05 * exact.norm()
    v.square().mean().backward()
    gradients = [p.grad for p in policy.module.parameters() if p.requires_grad]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    if lora is not None:
        with torch.no_grad():
            assert policy.velocity(x, sigma, cond).dtype == torch.float32  # a bf16 base without autocast


# ---- reference


@pytest.mark.parametrize("lora", [None, LORA])
def test_reference_is_the_untrained_policy(folder: Path, cache: str, lora: Any) -> None:
    policy = load(folder, cache, lora=lora)
    x, sigma, cond = latents(policy), torch.full((3,), 0.5), policy.encode(PROMPTS)
    with torch.no_grad():
        before = policy.velocity(x, sigma, cond)
    train_randomly(policy)
    trainable = [name for name, p in policy.module.named_parameters() if p.requires_grad]
    after = policy.velocity(x, sigma, cond)
    with torch.no_grad(), policy.reference():
        reference = policy.velocity(x, sigma, cond)
    assert torch.equal(reference, before)
    assert (after - before).abs().max() > 1e-3
    assert torch.equal(policy.velocity(x, sigma, cond), after)
    assert [name for name, p in policy.module.named_parameters() if p.requires_grad] == trainable
    after.sum().backward()  # the graph that was built before the reference still reaches the parameters
    assert all(p.grad is not None for p in policy.module.parameters() if p.requires_grad)


def test_the_reference_is_not_mixed_with_the_trained_inside_one_autocast(folder: Path, cache: str) -> None:
    policy = load(folder, cache)
    x, sigma, cond = latents(policy), torch.full((3,), 0.5), policy.encode(PROMPTS)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        before = policy.velocity(x, sigma, cond)
        train_randomly(policy)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        after = policy.velocity(x, sigma, cond)
        with policy.reference():
            assert torch.equal(policy.velocity(x, sigma, cond), before)
        assert torch.equal(policy.velocity(x, sigma, cond), after)
    assert not torch.equal(before, after)


# ---- saved weights in the plain pipeline


def test_lora_weights_load_into_the_plain_pipeline(folder: Path, cache: str, tmp_path: Path) -> None:
    policy, pipe = load(folder, cache, lora=LORA), pipeline(folder)
    train_randomly(policy)
    policy.save_pretrained(tmp_path / "lora")
    assert [path.name for path in (tmp_path / "lora").iterdir()] == ["pytorch_lora_weights.safetensors"]
    x = latents(policy)
    ours = euler(policy, x, policy.pipeline_sigmas(3), policy.encode(PROMPTS))
    base = call(pipe, x, 3)
    pipe.load_lora_weights(tmp_path / "lora")
    torch.testing.assert_close(ours, call(pipe, x, 3), rtol=1e-5, atol=1e-5)
    assert (ours - base).abs().max() > 1e-3


def test_full_weights_load_as_a_transformer(folder: Path, cache: str, tmp_path: Path) -> None:
    from diffusers import FluxTransformer2DModel

    policy, pipe = load(folder, cache), pipeline(folder)
    train_randomly(policy)
    policy.save_pretrained(tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["transformer"]
    pipe.transformer = FluxTransformer2DModel.from_pretrained(tmp_path / "full" / "transformer")
    x = latents(policy)
    ours = euler(policy, x, policy.pipeline_sigmas(3), policy.encode(PROMPTS))
    torch.testing.assert_close(ours, call(pipe, x, 3), rtol=1e-5, atol=1e-5)


def test_the_adapter_follows_the_global_seed(folder: Path, cache: str) -> None:
    factors = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        policy = load(folder, cache, lora=LORA)
        factors.append(torch.cat([p.detach().flatten() for p in policy.module.parameters() if p.requires_grad]))
    assert torch.equal(factors[0], factors[1])
    assert not torch.equal(factors[0], factors[2])


# ---- config


def test_the_config_round_trips_and_names_unknown_keys(folder: Path) -> None:
    config = PolicyConfig.model_validate({"kind": "flux", "source": str(folder), "lora": {"rank": 2}})
    assert PolicyConfig.model_validate(config.model_dump()) == config
    with pytest.raises(ValueError, match="rnk"):
        Flux.model_validate({"source": "shapes", "lora": {"rnk": 2}})


def test_sizes_and_targets_that_do_not_fit_are_named(folder: Path, cache: str) -> None:
    with pytest.raises(UserError, match=r"model\.height must be a multiple of 8 .* got 30; try 32"):
        load(folder, cache, height=30)
    with pytest.raises(UserError, match=r"at most 512.*got 600"):
        load(folder, cache, text_tokens=600)
    with pytest.raises(UserError, match=r"'attn\.to_qq'; did you mean 'attn\.to_q'"):
        load(folder, cache, lora={"targets": ["attn.to_qq"]})
