"""Seconds and memory that are predicted: the arithmetic, against sums by hand, and what the command says."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from flowrl.cli import app
from flowrl.memory_prediction import block_weights, lora_parameters, num_blocks, width
from flowrl.policies.flux import Flux
from flowrl.policies.lora import FLOW_GRPO_TARGETS
from flowrl.prediction import Prediction, Work, predict
from flowrl.rates import Rates, gpu
from flowrl.recipe import Recipe, load_recipe

FLUX1_DEV = Flux(source="black-forest-labs/FLUX.1-dev", height=720, width=720).shape()


PLAIN = ("model.compile=none", "rollout.score_ahead=0")


def predicted(*overrides: str, recipe: str = "g2rpo", gpu_name: str = "h200", gpus: int = 1) -> Prediction:
    return predict(dev(*overrides, recipe=recipe, gpus=gpus), gpu_name=gpu_name, gpus=gpus)


def dev(*overrides: str, recipe: str = "g2rpo", gpus: int = 1) -> Recipe:
    of_all = [f"rollout.prompts={gpus}", "model.lora={}"]
    return load_recipe(recipe, model="flux1_dev", overrides=[*of_all, *overrides])


def test_one_prompt_on_an_h200_by_hand() -> None:
    found = predicted(*PLAIN, "model.gradient_checkpointing=true", "run.microbatch=4")
    assert found.seconds["rollout"] == pytest.approx(1700 * 0.0915)  # a row costs the same in every batch
    assert found.seconds["decode"] == pytest.approx(288 * 0.0415)
    assert found.seconds["score"] == pytest.approx(288 * 0.031)
    assert found.seconds["train"] == pytest.approx(8 * 0.466)
    assert found.seconds["communication"] == 0
    assert found.total_seconds == pytest.approx(sum(found.seconds.values()))
    assert found.prompts_per_gpu == 1
    assert found.fits


def test_ranks_wait_for_the_one_with_most_prompts() -> None:
    one, two, three = (predicted(*PLAIN, "rollout.prompts=3", gpus=n).seconds["rollout"] for n in (3, 2, 1))
    assert two == pytest.approx(2 * one)
    assert three == pytest.approx(3 * one)


def test_scoring_ahead_hides_a_part_of_it() -> None:
    beside, in_line = predicted("rollout.score_ahead=2"), predicted("rollout.score_ahead=0")
    for phase in ("decode", "score"):
        assert 0 < beside.seconds[phase] < in_line.seconds[phase]
    assert any("score hidden" in text for text in beside.estimates)


def test_half_the_blocks_recomputed_lies_between() -> None:
    rates = Rates(gpu("h200"))
    none, half, everything = (rates.training(compiled=True, checkpointed=c, lora=True) for c in (0.0, 0.5, 1.0))
    assert (none, half, everything) == pytest.approx((255, 279, 303))


def test_another_gpu_is_estimated_by_the_peaks_and_says_so() -> None:
    a100, h200 = predicted(gpu_name="a100"), predicted()
    assert a100.seconds["rollout"] == pytest.approx(h200.seconds["rollout"] * gpu("h200").matmul_tflops / 244)
    assert any("ratio of matmul peaks" in text for text in a100.estimates)
    assert not any("ratio of matmul peaks" in text for text in h200.estimates)


def test_all_weights_fit_on_four_gpus_but_not_on_one() -> None:
    alone, sharded = predicted("model.lora=null"), predicted("model.lora=null", gpus=4)
    held = "trained weights, gradients, optimiser"
    assert alone.memory_gb[held] == pytest.approx(16 * FLUX1_DEV.num_parameters / 1e9)
    assert sharded.memory_gb[held] == pytest.approx(alone.memory_gb[held] / 4)
    assert sharded.sharded
    assert not alone.sharded
    assert not alone.fits
    assert sharded.fits
    assert sharded.seconds["communication"] > predicted(gpus=4).seconds["communication"] > 0


def test_guidance_doubles_what_another_model_costs() -> None:
    loaded = load_recipe("flow_grpo", model="sd35_medium", overrides=["rollout.prompts=1", "model.compile=none"])
    found = predict(loaded, gpu_name="h200", gpus=1)
    shape = loaded.model.shape()
    assert shape is not None
    per_forward = 0.0915 * 2 * shape.flops_per_forward / FLUX1_DEV.flops_per_forward
    assert found.seconds["rollout"] == pytest.approx(loaded.plan().num_forwards * per_forward)
    assert any("scaled by FLOPs" in text for text in found.estimates)


def test_memory_decides_what_is_recomputed() -> None:
    """As the trainer does, by the same rule: all eight rows at once where they fit, else fewer."""
    roomy, tight = (Work(dev("run.microbatch=auto"), Rates(gpu(name)), 1, 0) for name in ("h200", "a100"))
    assert roomy.fitted.microbatch > tight.fitted.microbatch
    assert roomy.fitted.checkpointed == tight.fitted.checkpointed == 0  # a smaller microbatch is less work
    asked = Work(dev("run.microbatch=8"), Rates(gpu("a100")), 1, 0)
    assert asked.fitted.microbatch == 8
    assert 0 < asked.checkpointed < 1
    assert sum(asked.microbatches()) == 8


def test_recomputation_saves_memory() -> None:
    kept, recomputed = (predicted(f"model.gradient_checkpointing={c}", "run.microbatch=4") for c in ("false", "true"))
    assert recomputed.memory_gb["training"] < kept.memory_gb["training"] / 4
    assert kept.peak_gb > recomputed.peak_gb


def test_cheaper_continuations_cost_less() -> None:
    exact, fp8 = (predicted(f"continuation.precision={p}").seconds["rollout"] for p in ("exact", "fp8"))
    padding = 16  # docs/performance.md: of 1700 rows that are exact
    assert exact == pytest.approx((1700 + padding) * 0.066)
    assert fp8 == pytest.approx(8 * 0.066 + 1692 * 0.0499, rel=0.01)
    both = predicted("continuation.precision=fp8", "continuation.cache={every: 2, blocks: [0.25, 0.75]}")
    assert both.seconds["rollout"] < 0.85 * fp8
    assert both.memory_gb["residuals"] > 0
    assert both.memory_gb["fp8 copy"] == pytest.approx(8.6, rel=0.02)  # docs/continuations.md
    assert any("cached overhead" in text for text in both.estimates)


def test_sizes_of_the_transformer_are_the_modules() -> None:
    from diffusers import FluxTransformer2DModel
    from torch import device, nn

    from flowrl.policies.lora import LoRA, add_lora

    with device("meta"):
        module = FluxTransformer2DModel(guidance_embeds=True)
        add_lora(module, LoRA(rank=4))
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert lora_parameters(FLUX1_DEV, 4, FLOW_GRPO_TARGETS) == trained
    blocks = [*module.transformer_blocks, *module.single_transformer_blocks]
    assert (width(FLUX1_DEV), num_blocks(FLUX1_DEV)) == (3072, (19, 38))
    linear = [
        part.weight.numel()
        for block in blocks
        for name, part in block.named_modules()
        if isinstance(part, nn.Linear) and "norm" not in name and "lora" not in name
    ]
    assert block_weights(FLUX1_DEV) == sum(linear)


# ---- the command


def plan(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["plan", "g2rpo", "--model", "flux1_dev", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_says_seconds_memory_and_estimates() -> None:
    found = json.loads(plan("model.lora={}", "--gpu", "h200", "--gpus", "16", "--json"))
    assert found["forwards"] == 1700
    prediction = found["prediction"]
    assert prediction["prompts_per_gpu"] == 1
    assert prediction["total_seconds"] == pytest.approx(sum(prediction["seconds"].values()), abs=0.01)
    text = plan("model.lora={}", "--gpu", "a100")
    assert "does not fit" not in text
    assert "fits" in text
    assert "ratio of matmul peaks" in text
    assert "prediction" not in json.loads(plan("--json"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpu", "h20"], "no rates for the GPU 'h20'; did you mean 'h200'? (known: a100, h100, h200)"),
        (["--gpus", "4"], "--gpus needs the kind of GPU"),
        (["--gpu", "h200", "--gpus", "0"], "--gpus must be 1 or more, got 0"),
        (["--gpu", "h200", "--model", "shapes"], "no rates for the model 'shapes'"),
    ],
)
def test_mistakes_are_one_message(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(app, ["plan", "g2rpo", "--model", "flux1_dev", *arguments])
    assert result.exit_code == 2
    assert words in result.output
    assert result.output.count("\n") == 1
