"""What blocks save is what PyTorch really saves, and the plan made of it is the least work that fits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from flowrl.policies.blocks import Blocks
from flowrl.policies.lora import LoRA, add_lora
from flowrl.policies.memory import (
    BlockBytes,
    free_bytes,
    measure,
    needed_bytes,
    plan_training,
    share_of,
)

TOKENS, TEXT = 23, 7
"""No multiple of them is the width of a weight."""


def transformer(lora: bool = False) -> Any:
    torch.manual_seed(0)
    module = FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    if lora:
        add_lora(module, LoRA(rank=2))
    return module


def call(module: Any, rows: int) -> Tensor:
    ids = torch.zeros(TOKENS, 3)
    return module(
        hidden_states=torch.ones(rows, TOKENS, 16),
        timestep=torch.ones(rows),
        pooled_projections=torch.ones(rows, 16),
        encoder_hidden_states=torch.ones(rows, TEXT, 24),
        txt_ids=ids[:TEXT],
        img_ids=ids,
        return_dict=False,
    )[0]


def really_saved(module: Any, rows: int) -> int:
    """Bytes of all storages that a whole forward keeps for its backward, parameters apart."""
    held = {p.untyped_storage().data_ptr() for p in module.parameters()}
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in held:
            found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = call(module, rows)
    assert out.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


# ---- measured


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("rows", [1, 3])
def test_what_is_measured_is_what_a_forward_saves(lora: bool, rows: int) -> None:
    module = transformer(lora)
    blocks = Blocks(module, compiled=False)
    found = measure(blocks, lambda: call(module, rows), rows)
    assert len(found) == 5
    assert found[0] == found[1] != found[2] == found[4]
    assert not any(call.checkpointed for call in blocks.calls)
    assert all(block.once == 0 for block in found)  # nothing is converted in float32
    total = rows * sum(block.saved for block in found)
    real = really_saved(module, rows)
    # Around the blocks little is saved; a block's output that the next one saves too is counted with both.
    assert 0.9 * real <= total <= 1.15 * real
    d = 32
    assert 4 * d * (TOKENS + TEXT) <= found[0].inputs <= 2 * 4 * d * (TOKENS + TEXT) + 10_000


def test_recomputed_blocks_keep_their_inputs_alone() -> None:
    module = transformer()
    blocks = Blocks(module, compiled=False)
    found = measure(blocks, lambda: call(module, 2), 2)
    before = really_saved(module, 2)
    outside = before - 2 * sum(block.saved for block in found)
    for count in range(1, 6):
        blocks.checkpoint(count)
        kept = 2 * sum(block.saved for block in found[count:])
        inputs = 2 * sum(block.inputs for block in found[:count])
        # checkpoint() keeps its arguments beside what the hooks see, so here only what is left of the others shows
        assert kept + outside - inputs <= really_saved(module, 2) <= kept + outside + inputs


def test_weights_that_autocast_converts_count_once() -> None:
    module = transformer()
    blocks = Blocks(module, compiled=False)

    def under_autocast(rows: int) -> list[BlockBytes]:
        def evaluate() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return call(module, rows)

        return measure(blocks, evaluate, rows)

    one, four = under_autocast(1), under_autocast(4)
    weights = [sum(p.numel() * 2 for p in c.block.parameters() if p.ndim == 2) for c in blocks.calls]
    for a, b, converted in zip(one, four, weights, strict=True):
        assert a.once == b.once == pytest.approx(converted, rel=0.1)
        assert a.saved == pytest.approx(b.saved, rel=0.1)


@pytest.mark.parametrize("count", [0, 2, 5])
def test_recomputing_changes_no_gradient(count: int) -> None:
    plain, module = transformer(), transformer()
    Blocks(module, compiled=False).checkpoint(count)
    for each in (plain, module):
        call(each, 2).square().mean().backward()
    for a, b in zip(module.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_gradients_and_moments_that_do_not_exist_yet_are_set_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sysconf", lambda name: 1 << 20)  # 2^20 pages of 2^20 bytes
    parameter = nn.Parameter(torch.zeros(1000))
    available = free_bytes(torch.device("cpu"), [], has_state=True)
    assert available == int(0.95 * (1 << 40))
    assert free_bytes(torch.device("cpu"), [parameter], has_state=False) == pytest.approx(available - 12_000, abs=1)
    parameter.grad = torch.zeros(1000)
    assert free_bytes(torch.device("cpu"), [parameter], has_state=True) == available


# ---- planned

FLUX = [BlockBytes(saved=700, inputs=17)] * 19 + [BlockBytes(saved=450, inputs=17)] * 38
"""Of the order of FLUX.1-dev's at 720x720, in millions of bytes."""


def plan(budget: int, num_rows: int = 8, microbatch: int | None = None, checkpointed: int | None = None):
    return plan_training(FLUX, budget=budget, num_rows=num_rows, microbatch=microbatch, checkpointed=checkpointed)


def test_everything_is_kept_where_it_fits_and_in_one_batch() -> None:
    found = plan(budget=10**6)
    assert (found.microbatch, found.checkpointed, found.fits) == (8, 0, True)


def test_as_many_blocks_as_fit_are_kept() -> None:
    found = plan(budget=50_000, microbatch=4)
    assert 0 < found.checkpointed < 57
    assert found.needed <= 50_000 < needed_bytes(FLUX, found.checkpointed - 1, 4)
    assert plan(budget=60_000, microbatch=4).checkpointed < found.checkpointed


def test_a_smaller_microbatch_is_better_than_recomputing() -> None:
    found = plan(budget=65_000)
    assert (found.microbatch, found.checkpointed) == (2, 0)
    assert needed_bytes(FLUX, 0, 3) > 65_000


def test_the_microbatch_divides_the_rows_or_pads_little() -> None:
    for num_rows in range(1, 20):
        found = plan(budget=10**6, num_rows=num_rows)
        assert found.microbatch == num_rows
        found = plan(budget=100_000, num_rows=num_rows, checkpointed=0)
        assert -(-num_rows // found.microbatch) * found.microbatch - num_rows <= num_rows / 4


def test_what_was_asked_for_is_kept_even_if_it_does_not_fit() -> None:
    found = plan(budget=1000, microbatch=4)
    assert (found.microbatch, found.checkpointed, found.fits) == (4, 57, False)
    found = plan(budget=1000, microbatch=4, checkpointed=0)
    assert (found.microbatch, found.checkpointed, found.fits) == (4, 0, False)
    assert plan(budget=1000).microbatch == 1


@pytest.mark.parametrize(("setting", "share"), [(True, 1.0), (False, 0.0), (0.25, 0.25), ("auto", 1.0)])
def test_the_share_of_a_setting(setting: Any, share: float) -> None:
    assert share_of(setting) == share
