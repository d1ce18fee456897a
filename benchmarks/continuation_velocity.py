"""The relative error of cheaper velocities, for benchmarks/continuations.py: on shapes, or on a random FLUX.1-dev."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median
from typing import Any

import torch
import yaml
from torch import Tensor

from flowrl.data import load_prompts
from flowrl.markdown import table
from flowrl.policies import flux_blocks, fp8
from flowrl.protocols import Continuation
from flowrl.recipe import load_recipe
from flowrl.sigmas import Grid
from flowrl.types import Cond


def continuation_of(words: str) -> Continuation:
    return Continuation.model_validate({"kind": "strided"} | yaml.safe_load(words))


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Flow:
    """A transformer and what it is called with: ``inputs(x, sigma)`` for a batch x [B, tokens, channels]."""

    transformer: Any
    inputs: Callable[[Tensor, Tensor], dict[str, Any]]
    x: Tensor
    """The noise that the ODE starts from."""
    precision: str
    what: str


def measure(arguments: argparse.Namespace, cheaper: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The numbers of each cheaper continuation, and a table of them."""
    flow = _shapes(arguments) if arguments.model == "shapes" else _random_flux(arguments)
    levels = Grid(arguments.steps, 3.0).sigma
    own = flow.transformer
    dtype = torch.bfloat16 if flow.x.is_cuda or flow.precision == "bf16" else own.proj_out.weight.dtype
    quantised = fp8.quantised_copy(own, [*own.transformer_blocks, *own.single_transformer_blocks], dtype)
    if arguments.compile:
        for module in (own, quantised):
            module.compile_repeated_blocks(fullgraph=True, dynamic=False)
    states = _trajectory(flow, levels)
    rows = []
    exact_seconds = _seconds(lambda: _v(flow, own, states[1], levels[1])[0]) if arguments.time else None
    for words in cheaper:
        continuation = continuation_of(words)
        chosen = quantised if continuation.precision == "fp8" else own
        cache = continuation.cache
        span = cache and cache.span(flux_blocks.num_blocks(own))
        errors = _errors(flow, chosen, span, states, levels, order=cache.order if cache else 0)
        row: dict[str, Any] = {"name": words, "errors": errors, "mean": fmean(e for e in errors if e is not None)}
        if exact_seconds is not None:
            kept = None if span is None else _v(flow, chosen, states[0], levels[0], span=span)[1]
            seconds = _seconds(
                lambda m=chosen, s=span, k=kept: _v(flow, m, states[1], levels[1], span=s, residual=k)[0]
            )
            row |= {"ms": 1000 * seconds, "faster": exact_seconds / seconds}
        rows.append(row)
        print(f"{words}: {row['mean']:.4f}", file=sys.stderr, flush=True)
    timed = exact_seconds is not None
    lines = [f"{flow.what}; relative error of the velocity by noise level.", ""]
    lines += (
        [] if exact_seconds is None else [f"An exact forward of this batch takes {1000 * exact_seconds:.1f} ms.", ""]
    )
    cells = [
        [row["name"], f"{100 * row['mean']:.1f} %"]
        + ["" if e is None else f"{100 * e:.1f} %" for e in row["errors"]]
        + ([f"{row['ms']:.1f}", f"{row['faster']:.2f}"] if timed else [])
        for row in rows
    ]
    steps = [f"{level:.2f}" for level in levels[:-1]]
    lines += table(["continuation", "mean", *steps, *(["ms", "times faster"] if timed else [])], cells)
    return {"what": flow.what, "levels": levels, "exact_seconds": exact_seconds, "rows": rows}, lines


@torch.no_grad()
def _v(
    flow: Flow, transformer: Any, x: Tensor, sigma: float, *, span: Any = None, residual: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    inputs = flow.inputs(x, torch.full((len(x),), sigma, device=x.device))
    with torch.autocast(x.device.type, torch.bfloat16, enabled=flow.precision == "bf16"):
        v, made = flux_blocks.velocity(transformer, inputs, span=span, residual=residual)
    return v.float(), made


def _trajectory(flow: Flow, levels: Sequence[float]) -> list[Tensor]:
    """The exact ODE's states at every level but the last."""
    states = [flow.x]
    for level, following in pairwise(levels[:-1]):
        states.append(states[-1] - (level - following) * _v(flow, flow.transformer, states[-1], level)[0])
    return states


def _errors(
    flow: Flow, transformer: Any, span: Any, states: Sequence[Tensor], levels: Sequence[float], *, order: int
) -> list[Any]:
    """By step: of 8-bit products alone at every step; of reuse at every step but the first, from the one or two before
    it as if they had run in full."""
    errors: list[float | None] = []
    made: list[tuple[float, Tensor]] = []
    for x, level in zip(states, levels, strict=False):
        exact, _ = _v(flow, flow.transformer, x, level)
        if span is not None and not made:
            errors.append(None)
        else:
            residual = _reused(made, level, order) if made else None
            found, _ = _v(flow, transformer, x, level, span=span, residual=residual)
            errors.append(float((found - exact).norm() / exact.norm()))
        if span is not None:
            residual = _v(flow, transformer, x, level, span=span)[1]
            assert residual is not None
            made = [*made, (level, residual)][-2:]
    return errors


def _reused(made: Sequence[tuple[float, Tensor]], level: float, order: int) -> Tensor:
    """The last residual, or the line through the last two."""
    latest_level, latest = made[-1]
    if not order or len(made) < 2:
        return latest
    before_level, before = made[-2]
    return latest + (level - latest_level) / (latest_level - before_level) * (latest - before)


def _seconds(call: Callable[[], Tensor], repeats: int = 5) -> float:
    """Median time of a call, the first two apart."""
    times = []
    for _ in range(repeats + 2):
        began = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return median(times[2:])


def _shapes(arguments: argparse.Namespace) -> Flow:
    recipe = load_recipe("g2rpo_wo_mgai")
    device = default_device()
    policy: Any = recipe.model.load(device)
    prompts = load_prompts(recipe.data.train)[: arguments.batch]
    cond: Cond = policy.encode(prompts)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(len(prompts), *policy.latent_shape, generator=generator).to(device)
    what = f"The shapes world's model, {len(prompts)} prompts, {arguments.steps} steps"
    return Flow(policy.transformer, lambda x, sigma: policy.inputs(x, sigma, cond), x, "fp32", what)


def _random_flux(arguments: argparse.Namespace) -> Flow:
    """The architecture of FLUX.1-dev with PyTorch's own initial weights; on a GPU they are bf16."""
    from diffusers import FluxTransformer2DModel

    device = default_device()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    head = arguments.head_dim
    axes = (head // 8, (head - head // 8) // 2, (head - head // 8) // 2)
    torch.set_default_dtype(dtype)
    with device:
        transformer = FluxTransformer2DModel(
            num_layers=arguments.double,
            num_single_layers=arguments.single,
            num_attention_heads=arguments.heads,
            attention_head_dim=head,
            guidance_embeds=True,
            axes_dims_rope=axes,
            joint_attention_dim=4096,
        )
    torch.set_default_dtype(torch.float32)
    transformer.requires_grad_(False).eval()
    side, batch = arguments.size // 16, arguments.batch
    text = torch.randn(batch, arguments.text_tokens, 4096, device=device, dtype=dtype)
    pooled = torch.randn(batch, 768, device=device, dtype=dtype)
    rows = torch.stack(
        [torch.zeros(side * side), *(i.flatten() for i in torch.meshgrid(*[torch.arange(side)] * 2, indexing="ij"))], 1
    )
    ids = {"img_ids": rows.float().to(device), "txt_ids": torch.zeros(arguments.text_tokens, 3, device=device)}

    def inputs(x: Tensor, sigma: Tensor) -> dict[str, Any]:
        guidance = torch.full((len(x),), 3.5, device=device)
        own = {"hidden_states": x.to(dtype), "timestep": sigma, "guidance": guidance}
        return own | {"pooled_projections": pooled, "encoder_hidden_states": text} | ids

    x = torch.randn(batch, side * side, 64, device=device)
    billions = sum(p.numel() for p in transformer.parameters()) / 1e9
    what = (
        f"FLUX.1-dev's architecture with random weights: {arguments.double} + {arguments.single} blocks, width "
        f"{arguments.heads * head}, {billions:.2f} billion parameters in {str(dtype).removeprefix('torch.')}, "
        f"{batch} x {arguments.size}x{arguments.size} pixels, {arguments.text_tokens} text tokens"
    )
    return Flow(transformer, inputs, x, "fp32", what)
