"""The memory of an iteration on one GPU, by what holds it: sizes of the model times bytes, nothing being loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flowrl.policies.diffusers_policy import DECODE_PIXELS
from flowrl.policies.memory import BlockBytes
from flowrl.policies.shape import PipelineShape
from flowrl.rates import table

if TYPE_CHECKING:
    from flowrl.prediction import Work

GB = 1e9
PASSING = ("rollout", "decoding", "training")
"""Parts that are not there at the same time."""


def held_of(work: Work) -> dict[str, float]:
    """GB of what stays, by what holds it."""
    recipe, model, num_parameters = work.recipe, work.model, work.shape.num_parameters
    found = {"CUDA and kernels": work.rates.guess("context_gb"), "VAE": float(table()["vae_gb"])}
    if model.lora is not None:
        found["frozen weights"] = num_parameters * (4 if model.dtype == "fp32" else 2) / GB
    elif work.sharded:
        found["gathered weights"] = num_parameters * 2 / GB
    numbers = work.num_trained / (work.gpus if work.sharded else 1)
    found["trained weights, gradients, optimiser"] = numbers * 16 / GB
    if recipe.optimizer.ema is not None:
        found["average"] = numbers * 4 / GB
    if recipe.continuation.precision == "fp8":
        found["fp8 copy"] = block_weights(work.shape) / GB
    if work.packing.peak_residuals:
        found["residuals"] = work.packing.peak_residuals * _tokens_times_width(work) * 2 / GB
    scorers = table()["scorer_gb"]
    found["scorers"] = sum(scorers.get(reward.scorer.kind, 0.0) for reward in recipe.rewards.values())
    found["states"] = _states(work)
    return found


def passing_of(work: Work) -> dict[str, float]:
    """GB of what comes and goes, one after the other."""
    rows = max(batch.rows for batch in work.packing.batches)
    return {
        "rollout": rows * _tokens_times_width(work) * float(table()["activations"]["forward"]) / GB,
        "decoding": _decoding(work),
        "training": work.fitted.needed / GB,
    }


def block_bytes(work: Work) -> list[BlockBytes]:
    """What each block keeps for the backward pass; where all weights are trained, their bf16 copies too."""
    sizes: dict[str, Any] = table()["activations"]
    kept = sizes["full" if work.model.lora is None else "lora"]
    unit = _tokens_times_width(work)
    inputs, weight = round(unit * sizes["inputs"]), 2 * width(work.shape) ** 2 * (work.model.lora is None)
    double, single = num_blocks(work.shape)
    return [BlockBytes(round(unit * kept["double"]), inputs, once=24 * weight)] * double + [
        BlockBytes(round(unit * kept["single"]), inputs, once=12 * weight)
    ] * single


def _decoding(work: Work) -> float:
    """Of the images that are decoded at once."""
    pixels = work.shape.height * work.shape.width
    images = max(1, min(work.recipe.rollout.decode_batch, DECODE_PIXELS["cuda"] // pixels))
    return images * pixels / 1e6 * float(table()["decode_gb_per_megapixel"])


def _states(work: Work) -> float:
    """Latents in fp32: decisions and their means, actions, and at most a leaf's worth of all that waits."""
    plan = work.plan
    latents = 2 * len(plan.decisions) + len(plan.actions) + len(plan.leaves)
    return work.prompts * latents * math.prod(work.shape.latent_shape) * 4 / GB


def _tokens_times_width(work: Work) -> float:
    """Of a velocity's evaluation, both halves of guidance included."""
    shape = work.shape
    latent = shape.latent_shape  # [tokens, channels], or [channels, rows, columns] of which 2x2 are a token
    image_tokens = latent[0] if len(latent) == 2 else latent[1] * latent[2] // 4
    text_tokens = shape.text_tokens + vars(shape).get("clip_tokens", 0)
    return (image_tokens + text_tokens) * width(shape) * work.model.evals_per_velocity


# ---- the transformer


def width(shape: PipelineShape) -> int:
    """Of the hidden states."""
    sizes = vars(shape)
    return int(sizes["attention_head_dim"] * sizes["num_attention_heads"])


def num_blocks(shape: PipelineShape) -> tuple[int, int]:
    """Blocks with a stream for the text and one for the image, and blocks with one for both."""
    sizes = vars(shape)
    return int(sizes["num_layers"]), int(sizes.get("num_single_layers", 0))


def block_weights(shape: PipelineShape) -> int:
    """Numbers in the blocks' matrices that tokens pass: 24 and 12 times the width squared."""
    double, single = num_blocks(shape)
    return (24 * double + 12 * single) * width(shape) ** 2


def lora_parameters(shape: PipelineShape, rank: int, targets: Sequence[str]) -> int:
    """Numbers in the factors: ``rank`` times inputs and outputs of every target, in widths."""
    double, single = num_blocks(shape)
    of_double = sum(5 if target.startswith("ff") else 2 for target in targets if not target.startswith("proj_"))
    in_single = {"attn.to_q": 2, "attn.to_k": 2, "attn.to_v": 2, "proj_mlp": 5, "proj_out": 6}
    of_single = sum(in_single.get(target, 0) for target in targets)
    return rank * width(shape) * (double * of_double + single * of_single)
