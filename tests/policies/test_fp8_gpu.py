"""8-bit products on a GPU that has them: the same numbers as their emulation, eager and compiled."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flowrl.policies import fp8

CUDA = torch.device("cuda", 0)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or not fp8.has_fp8_products(CUDA), reason="needs a GPU of capability 8.9"
    ),
]


def layer_of(inputs: int, outputs: int, *, bias: bool) -> fp8.Fp8Linear:
    torch.manual_seed(0)
    return fp8.Fp8Linear(nn.Linear(inputs, outputs, bias=bias, device=CUDA, dtype=torch.bfloat16), torch.bfloat16)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 13, 2537])
@torch.no_grad()
def test_the_native_product_is_the_emulated_one(rows: int, bias: bool) -> None:
    layer = layer_of(3072, 768, bias=bias)
    assert layer.native
    x = torch.randn(rows, 3072, device=CUDA, dtype=torch.bfloat16)
    native = layer(x).float()
    compiled = torch.compile(layer, fullgraph=True, dynamic=False)(x).float()
    layer.native = False
    emulated = layer(x).float()
    for found in (native, compiled):
        assert (found - emulated).norm() / emulated.norm() < 0.01


@torch.no_grad()
def test_other_sizes_are_emulated() -> None:
    layer = layer_of(40, 24, bias=True)
    assert not layer.native
    assert layer(torch.randn(3, 40, device=CUDA, dtype=torch.bfloat16)).shape == (3, 24)
