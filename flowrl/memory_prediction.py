"""The memory of an iteration on one GPU, by what holds it: sizes of the model times bytes, nothing being loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flowrl.policies.diffusers_policy import DECODE_PIXELS
from flowrl.policies.shape import PipelineShape
from flowrl.rates import table

if TYPE_CHECKING:
    from flowrl.prediction import Work

GB = 1e9
PASSING = ("rollout", "decoding", "training")
"""Parts that are not there at the same time."""


def memory_of(work: Work) -> dict[str, float]:
    """GB by what holds them, of the GPU that holds most."""
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
    if getattr(recipe.continuation, "precision", "exact") == "fp8":
        found["fp8 copy"] = block_weights(work.shape) / GB
    scorers = table()["scorer_gb"]
    found["scorers"] = sum(scorers.get(reward.scorer.kind, 0.0) for reward in recipe.rewards.values())
    found["states"] = _states(work)
    rows = max(batch.rows for batch in work.batches)
    found["rollout"] = rows * _tokens_times_width(work) * float(table()["activations"]["forward"]) / GB
    found["decoding"] = _decoding(work)
    found["training"] = _activations(work)
    return found


def _activations(work: Work) -> float:
    """What a training forward keeps: of recomputed blocks the inputs and one at a time, of the others all; and the
    gradients of one. Where all weights are trained, those that autocast has converted stay for the backward pass."""
    rows = max((row for rows in work.microbatches() for row in rows), default=0)
    sizes: dict[str, Any] = table()["activations"]
    kept = sizes["full" if work.model.lora is None else "lora"]
    double, single = num_blocks(work.shape)
    unit = rows * _tokens_times_width(work) / GB
    saved = unit * (double * kept["double"] + single * kept["single"])
    inputs = unit * (double + single) * sizes["inputs"]
    casts = block_weights(work.shape) * 2 / GB if work.model.lora is None else 0.0
    share = work.checkpointed
    return share * inputs + (1 - share) * (saved + casts) + 2 * unit * kept["double"]


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
