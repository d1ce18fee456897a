"""A program that tries attention backends at one shape; a crash ends it and nobody else.

``python -m flowrl.policies.attention_probe '{"device": ..., "shape": {...}, "trials": [[backend, use], ...]}'`` says on
standard output, one JSON object a line, what it begins and what came of it. :mod:`flowrl.policies.attention` runs it.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
REPEATS = 5


def main(argument: str) -> None:
    """Try what ``argument`` asks for, in its order."""
    wanted: dict[str, Any] = json.loads(argument)
    for backend, use in wanted["trials"]:
        _say({"begin": [backend, use]})
        found: dict[str, Any] = {"backend": backend, "use": use}
        try:
            found |= trial(backend, use == "training", torch.device(wanted["device"]), **wanted["shape"])
        except torch.OutOfMemoryError:
            found["reason"] = "out of memory"
        except RuntimeError as error:  # no such kernel for this shape; after a CUDA error those that follow fail too
            found["reason"] = (str(error).strip().splitlines() or ["RuntimeError"])[0]
            if "CUDA error" in str(error):
                _say(found)
                sys.exit(1)  # the device's state is lost: whoever runs this starts it again for the rest
        _say(found)


def trial(
    backend: str,
    backward: bool,
    device: torch.device,
    *,
    batch: int,
    heads: int,
    tokens: int,
    head_dim: int,
    dtype: str,
) -> dict[str, float]:
    """``seconds`` of a call and its ``error``: of the output, with ``backward`` of the gradients too, the largest
    relative distance to plain matrix products in float32, at the first and last row and head."""
    generator = torch.Generator(device).manual_seed(0)

    def draw() -> Tensor:  # laid out as the transformers do: [batch, tokens, heads, head_dim], seen with heads first
        shape = (batch, tokens, heads, head_dim)
        values = torch.randn(shape, generator=generator, device=device).to(getattr(torch, dtype))
        return values.permute(0, 2, 1, 3).requires_grad_(backward)

    inputs, upstream = [draw() for _ in range(3)], draw().detach()
    seconds = []
    for _ in range(REPEATS + 1):  # the first warms up
        _synchronise(device)
        began = time.perf_counter()
        with sdpa_kernel(BACKENDS[backend]):
            found = _results(inputs, upstream, backward)
        _synchronise(device)
        seconds.append(time.perf_counter() - began)
    at = [0, batch - 1], [0, heads - 1]

    def part(x: Tensor) -> Tensor:
        return x.detach()[at[0]][:, at[1]].float()

    with sdpa_kernel(SDPBackend.MATH):
        parts = [part(x).requires_grad_(backward) for x in inputs]
        exact = _results(parts, part(upstream), backward)
    error = max(float((part(a) - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True))
    return {"seconds": statistics.median(seconds[1:]), "error": error}


def _results(inputs: list[Tensor], upstream: Tensor, backward: bool) -> tuple[Tensor, ...]:
    query, key, value = inputs
    out = scaled_dot_product_attention(query, key, value)
    return (out.detach(), *torch.autograd.grad(out, inputs, upstream)) if backward else (out,)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _say(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
