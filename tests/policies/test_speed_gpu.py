"""On a GPU, at FLUX.1-dev's width and tokens (a few blocks, random weights): ``pytest -m gpu tests/policies``."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from flowrl.policies.lora import LoRA, add_lora
from flowrl.policies.memory import needed_bytes
from flowrl.policies.speed import Speed
from flowrl.types import Cond

pytestmark = pytest.mark.gpu
TOKENS, TEXT = 45 * 45, 512
DEVICE = "cuda"


def transformer(num_layers: int = 1, num_single_layers: int = 2) -> Any:
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    with torch.device(DEVICE):
        module = FluxTransformer2DModel(
            num_layers=num_layers, num_single_layers=num_single_layers, guidance_embeds=True
        ).to(torch.bfloat16)
    add_lora(module, LoRA())
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data += 1e-3 * torch.randn_like(parameter)
    return module


class Tried:
    """A transformer and its speed; called as a policy's velocity, under the training's precision."""

    def __init__(self, module: Any, **settings: Any) -> None:
        self.module = module
        defaults = {
            "compile": "none",
            "attention": "flash",
            "checkpointing": False,
        }  # native may take cuDNN, which crashes
        self.speed = Speed(module, torch.device(DEVICE), **(defaults | settings))
        self.said: list[str] = []
        self.speed.say = self.said.append

    def velocity(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        return self.speed.velocity(self.evaluate, x, sigma, cond)

    def evaluate(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        ids = torch.zeros(TEXT + TOKENS, 3, device=DEVICE)
        ids[TEXT:, 1] = torch.arange(TOKENS, device=DEVICE) // 45
        ids[TEXT:, 2] = torch.arange(TOKENS, device=DEVICE) % 45
        with torch.autocast(DEVICE, torch.bfloat16):
            return self.module(
                hidden_states=x.bfloat16(),
                timestep=sigma,
                guidance=torch.full_like(sigma, 3.5),
                pooled_projections=cond.tensors["pooled"],
                encoder_hidden_states=cond.tensors["text"],
                txt_ids=ids[:TEXT],
                img_ids=ids[TEXT:],
                return_dict=False,
            )[0].float()

    def gradients(self, *at: Any) -> Tensor:
        self.module.zero_grad()
        self.velocity(*at).square().mean().backward()
        return torch.cat([p.grad.flatten() for p in self.module.parameters() if p.grad is not None])


def inputs(rows: int) -> tuple[Tensor, Tensor, Cond]:
    generator = torch.Generator(DEVICE).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(rows, *shape, device=DEVICE, generator=generator)

    cond = Cond({"text": draw(TEXT, 4096).bfloat16(), "pooled": draw(768).bfloat16()})
    return draw(TOKENS, 64), torch.linspace(0.9, 0.1, rows, device=DEVICE), cond


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def milliseconds(call: Any, repeats: int = 5) -> float:
    call()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - began) / repeats


def test_compiled_with_chosen_attention_is_the_plain_forward_and_faster() -> None:
    torch._dynamo.reset()
    counters.clear()
    plain = Tried(transformer())
    fast = Tried(transformer(), compile="auto", attention="auto", checkpointing=0.5)
    fast.speed.expect(rollout=[1, 4], training=[2])
    with torch.no_grad():
        for rows in (1, 3, 4):
            at = inputs(rows)
            assert distance(fast.velocity(*at), plain.velocity(*at)) < 0.03
        at = inputs(4)
        times = [milliseconds(lambda tried=tried: tried.velocity(*at)) for tried in (plain, fast)]
    assert distance(fast.gradients(*inputs(2)), plain.gradients(*inputs(2))) < 0.1
    assert fast.speed.padding.num_padded == 1
    # Sizes 1 and 4 without gradients, 2 with, in which the first double block's input needs none.
    assert counters["stats"]["unique_graphs"] <= 3 * 3 + 2
    print(*fast.said, f"4 rows: plain {times[0]:.1f} ms, compiled {times[1]:.1f} ms", sep="\n")
    assert times[1] < times[0]


@pytest.mark.parametrize("compile", ["none", "blocks"])
@pytest.mark.parametrize("count", [0, 3, 6])
def test_the_planned_memory_is_enough_and_not_far_off(compile: str, count: int) -> None:
    torch._dynamo.reset()
    rows = 2
    tried = Tried(transformer(2, 4), compile=compile)
    at = inputs(rows)
    blocks = tried.speed.measure(tried.velocity, *at)
    tried.speed.blocks.checkpoint(count)
    tried.gradients(*at)  # compiles, and makes the gradients that are then there
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    tried.velocity(*at).square().mean().backward()
    peak = torch.cuda.max_memory_allocated() - before
    planned = needed_bytes(blocks, count, rows)
    print(f"{compile}, {count} of 6 recomputed: {peak / 1e9:.2f} GB, planned {planned / 1e9:.2f} GB")
    assert peak <= 1.05 * planned + 0.2e9
    assert planned <= 1.6 * peak + 0.5e9
