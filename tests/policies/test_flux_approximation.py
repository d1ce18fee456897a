"""FLUX at a lower cost: nothing left out is the model's own forward, reuse is the formula, weights are followed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from policies.redness import write_prompts, write_rewards
from tiny_flux import TEXT_TOKENS

from flowrl.approximation import approximation_of
from flowrl.continuations.strided import Strided
from flowrl.errors import UserError
from flowrl.policies import attention, flux_blocks
from flowrl.policies.flux import Flux, FluxPolicy
from flowrl.recipe import load_recipe
from flowrl.run import train
from flowrl.types import Cond, Prompt

CPU = torch.device("cpu")
PROMPTS = [Prompt("a cat", 0), Prompt("two red dogs", 1)]
LORA = {"rank": 4, "alpha": 6.0}
SIGMA = torch.tensor([0.9, 0.4])


def load(folder: Path, cache: str, **fields: object) -> FluxPolicy:
    return Flux.model_validate({"source": str(folder), "cache_dir": cache, **fields}).load(CPU)


def start(policy: FluxPolicy, seed: int = 0) -> tuple[torch.Tensor, Cond]:
    return torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(seed)), policy.encode(PROMPTS)


def move(policy: FluxPolicy) -> None:
    """Every trainable parameter, as an optimiser would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.module.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("span", [None, (0, 3), (0, 1), (1, 2), (1, 3), (2, 3)])
@torch.no_grad()
def test_the_parts_together_are_the_models_forward(folder: Path, cache: str, lora: object, span: object) -> None:
    policy = load(folder, cache, lora=lora)
    move(policy)
    x, cond = start(policy)
    inputs = policy.inputs(x, SIGMA, cond)
    v, residual = flux_blocks.velocity(policy.transformer, inputs, span=span)
    torch.testing.assert_close(v, policy.velocity(x, SIGMA, cond), rtol=1e-6, atol=1e-6)
    if span is not None:
        again, none = flux_blocks.velocity(policy.transformer, inputs, span=span, residual=residual)
        torch.testing.assert_close(again, v, rtol=1e-5, atol=1e-5)
        assert none is None
        tokens = policy.latent_shape[0] + (TEXT_TOKENS if span[1] < 3 else 0)
        assert residual.shape == (2, tokens, 32)


@torch.no_grad()
def test_a_step_that_reuses_adds_the_residual_of_another(folder: Path, cache: str) -> None:
    """v' = tail(head(x') + middle(head(x)) - head(x)), written out for the block in the middle."""
    policy = load(folder, cache)
    cheap = policy.approximation(Strided.model_validate({"cache": {"blocks": [0.34, 0.67]}}), "fp32")
    (x, cond), (x_next, _) = start(policy), start(policy, seed=1)
    exact = policy.velocity(x, SIGMA, cond)
    v, residual = cheap.velocity(x, SIGMA, cond, keep=True)
    torch.testing.assert_close(v, exact, rtol=1e-6, atol=1e-6)
    found = cheap.velocity_by(x_next, SIGMA - 0.1, cond, residual)
    transformer = policy.transformer
    before = flux_blocks.run_blocks(transformer, flux_blocks.embed(transformer, policy.inputs(x, SIGMA, cond)), 0, 1)
    after = flux_blocks.run_blocks(transformer, before, 1, 2)
    then = flux_blocks.embed(transformer, policy.inputs(x_next, SIGMA - 0.1, cond))
    then = flux_blocks.run_blocks(transformer, then, 0, 1)
    then = then._replace(image=then.image + after.image - before.image, text=then.text + after.text - before.text)
    then = flux_blocks.run_blocks(transformer, then, 2, 3)
    expected = transformer.proj_out(transformer.norm_out(then.image, then.time))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert error(found, policy.velocity(x_next, SIGMA - 0.1, cond)) > 1e-3


@pytest.mark.parametrize("lora", [None, LORA])
@torch.no_grad()
def test_eight_bits_are_close_and_follow_the_weights(folder: Path, cache: str, lora: object) -> None:
    policy = load(folder, cache, lora=lora)
    cheap = policy.approximation(Strided(precision="fp8"), "fp32")
    x, cond = start(policy)
    old = policy.velocity(x, SIGMA, cond)
    v, residual = cheap.velocity(x, SIGMA, cond, keep=True)
    assert 1e-4 < error(v, old) < 0.05
    assert residual is None, "nothing is reused"
    move(policy)
    cheap.refresh()
    new = policy.velocity(x, SIGMA, cond)
    v, _ = cheap.velocity(x, SIGMA, cond, keep=False)
    assert error(v, new) < 0.1 < error(old, new)
    with policy.reference():
        cheap.refresh()
        assert error(cheap.velocity(x, SIGMA, cond, keep=False)[0], old) < 0.05


@pytest.mark.parametrize("sizes", [[4], [1, 3], [2]])
@torch.no_grad()
def test_rows_are_filled_up_as_the_policys_own_are(folder: Path, cache: str, sizes: list[int]) -> None:
    """Compiled blocks are held to a few batch sizes; 3 rows are one call of 4, one of 3, or two of 2."""
    policy = load(folder, cache)
    cheap = policy.approximation(Strided.model_validate({"precision": "fp8", "cache": {"blocks": [0.3, 1.0]}}), "fp32")
    x, cond, rows = torch.randn(3, *policy.latent_shape), policy.encode(PROMPTS), torch.tensor([0, 1, 0])
    sigma, cond = torch.tensor([0.9, 0.6, 0.3]), cond[rows]
    v, residual = cheap.velocity(x, sigma, cond, keep=True)
    reused = cheap.velocity_by(x + 0.1, sigma - 0.1, cond, residual)
    policy.speed.padding.expect(rollout=sizes)
    padded, kept = cheap.velocity(x, sigma, cond, keep=True)
    torch.testing.assert_close(padded, v, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(kept, residual, rtol=1e-4, atol=1e-4)
    again = cheap.velocity_by(x + 0.1, sigma - 0.1, cond, residual)
    torch.testing.assert_close(again, reused, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_attention_is_chosen_before_the_first_forward_of_either(
    folder: Path, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "tried", lambda *args: [attention.Trial("flash", "rollout", 1e-3, 0.0)])
    policy = load(folder, cache, attention="flash")
    x, cond = start(policy)
    policy.approximation(Strided.model_validate({"cache": {}}), "fp32").velocity(x, torch.ones(len(x)), cond, keep=True)
    assert policy.speed.attention.choice is not None


def test_bf16_runs_under_autocast_as_the_trainer_does(folder: Path, cache: str) -> None:
    policy = load(folder, cache)
    x, cond = start(policy)
    for how in ({"precision": "fp8"}, {"cache": {"blocks": [0.34, 1.0]}}):
        cheap = policy.approximation(Strided.model_validate(how), "bf16")
        v, residual = cheap.velocity(x, SIGMA, cond, keep=True)
        assert v.dtype == torch.float32
        assert error(v, policy.velocity(x, SIGMA, cond)) < 0.1
        if residual is not None:
            assert residual.dtype == torch.bfloat16
            assert error(cheap.velocity_by(x, SIGMA, cond, residual), v) < 0.02


def test_it_trains_with_cheaper_continuations(folder: Path, tmp_path: Path) -> None:
    """The rollout's decisions stay exact: the importance ratio starts as close to 1 as without."""
    size = ["model.height=32", "model.width=32", "model.text_tokens=16", "rollout.group=3", "rollout.prompts=2"]
    size += ["grid.num_steps=6", "run.iterations=1", "rollout.max_batch=1", "run.precision=fp32", "run.trackers=[]"]
    size += [f"model.source={folder}", f"model.cache_dir={tmp_path / 'cache'}", f"data.train={write_prompts(tmp_path)}"]
    cheaper = ["continuation.precision=fp8", "continuation.cache={every: 2, blocks: [0.3, 1.0], order: 1}"]
    rows = {}
    for name, extra in (("exact", []), ("cheap", cheaper)):
        rewards = str(write_rewards(tmp_path))
        loaded = load_recipe("g2rpo_wo_mgai", model="flux1_dev", rewards=rewards, overrides=[*size, *extra])
        train(loaded, output=tmp_path / name)
        (rows[name],) = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
    cheap = rows["cheap"]
    counts = loaded.plan().forwards
    assert [cheap[f"forwards/{kind}"] for kind in counts._fields] == [2 * count for count in counts]
    assert counts.cached
    assert cheap["peak_residual_bytes"] > 0
    assert cheap["self_check"] == rows["exact"]["self_check"]
    assert cheap["reward"] != rows["exact"]["reward"]


def test_other_kinds_are_refused_when_the_recipe_is_read() -> None:
    with pytest.raises(UserError, match=r"continuation: model kind sd3 cannot approximate by fp8"):
        load_recipe("g2rpo", model="sd35_medium", overrides=["continuation.precision=fp8"])


def test_policies_that_have_no_approximation_are_refused(folder: Path, cache: str) -> None:
    from tiny import TinyPolicy

    policy = load(folder, cache)
    assert approximation_of(policy, Strided(), "fp32") is None
    assert approximation_of(TinyPolicy(), Strided(), "fp32") is None
    with pytest.raises(UserError, match=r"continuation by fp8: TinyPolicy has no approximation"):
        approximation_of(TinyPolicy(), Strided(precision="fp8"), "fp32")


def test_weights_sharded_by_fsdp_are_refused(folder: Path, cache: str) -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    policy = load(folder, cache)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        fully_shard(policy.transformer, mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(UserError, match=r"continuation by cache does not work with sharded weights \(FSDP\)"):
            approximation_of(policy, Strided.model_validate({"cache": {}}), "fp32")
    finally:
        dist.destroy_process_group()
