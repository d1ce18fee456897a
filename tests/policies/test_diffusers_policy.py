"""A policy agrees with its plain pipeline in every part, whichever the pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from policies.kinds import LORA, PROMPTS, Kind, euler, latents, train_randomly
from policies.tiny_parts import SIZE

from flowrl.errors import UserError
from flowrl.policies.diffusers_policy import DECODE_PIXELS, config_of
from flowrl.protocols import PolicyConfig
from flowrl.sigmas import Grid

# ---- agreement with the pipeline


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_ode_rollout_equals_the_pipeline(kind: Kind, shift: float) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    policy, pipe = kind.load(), kind.pipeline()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=shift, use_dynamic_shifting=False)
    x = latents(policy)
    ours = euler(policy, x, Grid(6, shift).sigma, policy.encode(PROMPTS))
    torch.testing.assert_close(ours, kind.call(pipe, x, 6, even=True), rtol=1e-5, atol=1e-5)
    assert (ours - x).abs().mean() > 0.01


def test_pipeline_sigmas_are_the_pipelines_own(kind: Kind) -> None:
    policy, pipe = kind.load(), kind.pipeline()
    x = latents(policy)
    ours = euler(policy, x, policy.pipeline_sigmas(5), policy.encode(PROMPTS))
    torch.testing.assert_close(ours, kind.call(pipe, x, 5), rtol=1e-5, atol=1e-5)
    assert policy.pipeline_sigmas(5)[1] != pytest.approx(Grid(5).sigma[1])


def test_another_size(kind: Kind) -> None:
    policy, pipe = kind.load(height=48, width=48), kind.pipeline()
    x = latents(policy)
    ours = euler(policy, x, policy.pipeline_sigmas(3), policy.encode(PROMPTS))
    torch.testing.assert_close(ours, kind.call(pipe, x, 3, size=48), rtol=1e-5, atol=1e-5)


def test_decode_equals_the_pipeline(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, pipe = kind.load(), kind.pipeline()
    monkeypatch.setitem(DECODE_PIXELS, "cpu", 2 * SIZE * SIZE)  # chunks of 2 and 1
    x = latents(policy)
    images = policy.decode(kind.call(pipe, x, 3))
    assert images.shape == (3, 3, SIZE, SIZE)
    assert images.dtype == torch.float32
    torch.testing.assert_close(images, kind.call(pipe, x, 3, output_type="pt"), rtol=1e-5, atol=1e-5)


# ---- velocity


def test_rows_of_mixed_sigmas_equal_each_alone(kind: Kind) -> None:
    policy = kind.load()
    x, sigma, cond = latents(policy), torch.tensor([1.0, 0.5, 0.03]), policy.encode(PROMPTS)
    with torch.no_grad():
        together = policy.velocity(x, sigma, cond)
        for row in range(3):
            rows = torch.tensor([row])
            torch.testing.assert_close(together[rows], policy.velocity(x[rows], sigma[rows], cond[rows]))


@pytest.mark.parametrize("lora", [None, LORA])
def test_velocity_keeps_the_dtype_of_the_state_under_autocast(kind: Kind, lora: Any) -> None:
    policy = kind.load(lora=lora, dtype="bf16", gradient_checkpointing=True)
    assert {p.dtype for p in policy.module.parameters() if p.requires_grad} == {torch.float32}
    x, sigma, cond = latents(policy), torch.full((3,), 0.5), policy.encode(PROMPTS)
    with torch.no_grad():
        exact = kind.load().velocity(x, sigma, cond)
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


@pytest.mark.gpu
@pytest.mark.parametrize("lora", [None, LORA])
def test_a_gpu_computes_what_the_cpu_does(kind: Kind, lora: Any) -> None:
    """Embeddings, velocity, its gradient and images; in bf16 the velocity to its precision."""
    on_cpu, on_gpu = kind.load(lora=lora), kind.config(lora=lora).load(torch.device("cuda"))
    on_gpu.transformer.load_state_dict(on_cpu.transformer.state_dict())
    x, sigma, cond = latents(on_cpu), torch.tensor([1.0, 0.5, 0.03]), on_cpu.encode(PROMPTS)
    expected = on_cpu.velocity(x, sigma, cond)
    expected.square().mean().backward()
    gradient = torch.cat([p.grad.flatten() for p in on_cpu.module.parameters() if p.requires_grad])
    for precision in (torch.bfloat16, torch.float32):
        on_gpu.module.zero_grad()
        with torch.autocast("cuda", precision, enabled=precision != torch.float32):
            found = on_gpu.velocity(x.cuda(), sigma.cuda(), on_gpu.encode(PROMPTS))
            found.square().mean().backward()
        there = torch.cat([p.grad.cpu().flatten() for p in on_gpu.module.parameters() if p.requires_grad])
        assert found.dtype == torch.float32
        assert there.isfinite().all()
        assert (found.cpu() - expected).norm() < (0.05 if precision == torch.bfloat16 else 0.01) * expected.norm()
    assert (there - gradient).norm() < 0.02 * gradient.norm()
    torch.testing.assert_close(on_gpu.decode(x.cuda()).cpu(), on_cpu.decode(x), rtol=1e-2, atol=1e-2)


# ---- reference


@pytest.mark.parametrize("lora", [None, LORA])
def test_reference_is_the_untrained_policy(kind: Kind, lora: Any) -> None:
    policy = kind.load(lora=lora)
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


def test_the_reference_is_not_mixed_with_the_trained_inside_one_autocast(kind: Kind) -> None:
    policy = kind.load()
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


def test_lora_weights_load_into_the_plain_pipeline(kind: Kind, tmp_path: Path) -> None:
    policy, pipe = kind.load(lora=LORA), kind.pipeline()
    train_randomly(policy)
    policy.save_pretrained(tmp_path / "lora")
    assert [path.name for path in (tmp_path / "lora").iterdir()] == ["pytorch_lora_weights.safetensors"]
    x = latents(policy)
    ours = euler(policy, x, policy.pipeline_sigmas(3), policy.encode(PROMPTS))
    base = kind.call(pipe, x, 3)
    pipe.load_lora_weights(tmp_path / "lora")
    torch.testing.assert_close(ours, kind.call(pipe, x, 3), rtol=1e-5, atol=1e-5)
    assert (ours - base).abs().max() > 1e-3


def test_full_weights_load_as_a_transformer(kind: Kind, tmp_path: Path) -> None:
    policy, pipe = kind.load(), kind.pipeline()
    train_randomly(policy)
    policy.save_pretrained(tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["transformer"]
    pipe.transformer = kind.config().transformer_class.from_pretrained(tmp_path / "full" / "transformer")
    x = latents(policy)
    ours = euler(policy, x, policy.pipeline_sigmas(3), policy.encode(PROMPTS))
    torch.testing.assert_close(ours, kind.call(pipe, x, 3), rtol=1e-5, atol=1e-5)


def test_the_adapter_follows_the_global_seed(kind: Kind) -> None:
    factors = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        policy = kind.load(lora=LORA)
        factors.append(torch.cat([p.detach().flatten() for p in policy.module.parameters() if p.requires_grad]))
    assert torch.equal(factors[0], factors[1])
    assert not torch.equal(factors[0], factors[2])


# ---- config


def test_the_config_round_trips_and_names_unknown_keys(kind: Kind) -> None:
    config = kind.config(lora={"rank": 2})
    assert PolicyConfig.model_validate(config.model_dump()) == config
    with pytest.raises(ValueError, match="rnk"):
        kind.config(lora={"rnk": 2})


def test_sizes_and_targets_that_do_not_fit_are_named(kind: Kind) -> None:
    with pytest.raises(UserError, match=r"model\.height must be a multiple of 8 .* got 30; try 32"):
        kind.load(height=30)
    with pytest.raises(UserError, match=r"at most 512.*got 600"):
        kind.load(text_tokens=600)
    with pytest.raises(UserError, match=r"'attn\.to_qq'; did you mean 'attn\.to_q'"):
        kind.load(lora={"targets": ["attn.to_qq"]})


def test_a_bare_pipeline_names_its_own_kind(kind: Kind, tmp_path: Path) -> None:
    found = config_of(str(kind.folder))
    assert (found.kind, found.source) == (kind.name, str(kind.folder))
    (tmp_path / "model_index.json").write_text('{"_class_name": "OtherPipeline"}')
    with pytest.raises(UserError, match="is a OtherPipeline; known: FluxPipeline, StableDiffusion3Pipeline"):
        config_of(str(tmp_path))


def test_another_kinds_pipeline_is_refused(kind: Kind, folders: dict[str, Path]) -> None:
    (other,) = [name for name in folders if name != kind.name]
    with pytest.raises(
        UserError, match=rf"transformer is a \w+, not a {kind.config().transformer_name}|not a complete"
    ):
        PolicyConfig.model_validate({"kind": kind.name, "source": str(folders[other])}).check()


def test_frozen_parts_have_the_dtype_of_the_text_encoder(kind: Kind, tmp_path: Path) -> None:
    (tmp_path / "text_encoder").mkdir()
    for stored, expected in {"float32": torch.float32, "float16": torch.bfloat16, "bfloat16": torch.bfloat16}.items():
        (tmp_path / "text_encoder" / "config.json").write_text(f'{{"dtype": "{stored}"}}')
        assert kind.config().frozen_dtype(tmp_path) == expected
        assert kind.config(dtype="fp32").frozen_dtype(tmp_path) == torch.float32
