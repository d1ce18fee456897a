"""Products in e4m3: the quantisation, the layers that are quantised, what is shared, and what follows a new weight."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flowrl.policies import fp8


def test_quantising_keeps_three_bits_of_every_number_in_range() -> None:
    x = torch.randn(64, 96) * torch.logspace(-6, 6, 64)[:, None]
    q, scale = fp8.quantise(x)
    assert q.dtype == torch.float8_e4m3fn
    assert q.float().abs().amax(1).eq(448).all(), "each row uses the whole range"
    back = q.float() * scale
    large = x.abs() > x.abs().amax(1, keepdim=True) / 2**14  # above e4m3's own smallest normal number
    assert ((back - x).abs() <= x.abs() / 16 * 1.001)[large].all()
    zeros, _ = fp8.quantise(torch.zeros(2, 16))
    assert zeros.float().eq(0).all()


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_its_source_to_the_precision_of_e4m3(bias: bool) -> None:
    torch.manual_seed(0)
    source = nn.Linear(256, 48, bias=bias)
    layer = fp8.Fp8Linear(source, torch.float32)
    x = torch.randn(3, 5, 256)
    exact, found = source(x), layer(x)
    assert found.shape == exact.shape
    assert found.dtype == torch.float32
    assert 0.005 < (found - exact).norm() / exact.norm() < 0.05
    assert torch.equal(found[1, 2], layer(x[1, 2])), "a row does not depend on the others"
    assert list(layer.parameters()) == []
    assert layer.weight.element_size() == 1


def test_the_emulation_multiplies_the_quantised_numbers() -> None:
    torch.manual_seed(0)
    source = nn.Linear(32, 16)
    layer = fp8.Fp8Linear(source, torch.float32)
    x = torch.randn(7, 32)
    (q_x, s_x), (q_w, s_w) = fp8.quantise(x), fp8.quantise(source.weight.detach())
    expected = (q_x.double() * s_x) @ (q_w.double() * s_w).T + source.bias.to(torch.bfloat16).double()
    torch.testing.assert_close(layer(x).double(), expected, rtol=2**-8, atol=1e-3)


def test_the_product_that_a_gpu_runs_takes_these_shapes_and_strides() -> None:
    """PyTorch checks them without a GPU: its own shape function, on tensors that hold nothing."""
    source = nn.Linear(64, 32, dtype=torch.bfloat16)
    layer = fp8.Fp8Linear(source, torch.bfloat16).to("meta")
    q, scale = fp8.quantise(torch.empty(10, 64, device="meta"))
    y = fp8.scaled_mm(q, layer.weight.T, scale, layer.scale, layer.bias)
    assert (tuple(y.shape), y.dtype) == ((10, 32), torch.bfloat16)
    with pytest.raises(RuntimeError):
        fp8.scaled_mm(q, layer.weight.T.contiguous(), scale, layer.scale, layer.bias)


class Block(nn.Module):
    """A block as diffusers names its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.ModuleDict({"linear": nn.Linear(16, 96)})
        self.attn = nn.ModuleDict({"to_q": nn.Linear(16, 16), "to_out": nn.ModuleList([nn.Linear(16, 16)])})
        self.ff = nn.Linear(16, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.ff(self.attn["to_out"][0](self.attn["to_q"](x)) + self.norm1["linear"](x)[..., :16])


def test_a_copy_shares_all_but_its_quantised_layers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), Block())
    assert list(fp8.quantised_layers(model[1])) == ["attn.to_q", "attn.to_out.0", "ff"]
    twin = fp8.quantised_copy(model, [model[1]], torch.float32)
    own = {id(p) for p in model.parameters()}
    assert {id(p) for p in twin.parameters()} <= own
    extra = sum(b.nbytes for b in twin.buffers())
    weights = 2 * 16 * 16 + 24 * 16
    assert extra == weights + (4 + 2) * (16 + 16 + 24), "a byte a weight, a scale and a bias a channel"
    assert type(model[1].attn["to_q"]) is nn.Linear
    assert type(model[1]) is type(twin[1])
    x = torch.randn(4, 16)
    before = twin(x)
    assert 0 < (before - model(x)).norm() / model(x).norm() < 0.1
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    fp8.refresh(twin)
    assert 0 < (twin(x) - model(x)).norm() / model(x).norm() < 0.1
    assert not torch.allclose(twin(x), before, rtol=0.2)


def test_what_was_put_around_a_forward_does_not_run_in_the_copy() -> None:
    model = nn.Sequential(Block())
    model[0].forward = lambda x: x * 0
    twin = fp8.quantised_copy(model, [model[0]], torch.float32)
    x = torch.ones(2, 16)
    assert model(x).eq(0).all()
    assert not twin(x).eq(0).all()


def test_adapters_are_merged_before_quantising() -> None:
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(0)
    block = Block().bfloat16()
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=8, target_modules=["to_q"], init_lora_weights=False), block)
    layers = fp8.quantised_layers(block)
    assert list(layers) == ["attn.to_q", "attn.to_out.0", "ff"]
    adapted = block.attn["to_q"]
    for factor in (adapted.lora_A, adapted.lora_B):
        factor["default"].float()
    expected = adapted.base_layer.weight.float() + 2 * (
        adapted.lora_B["default"].weight @ adapted.lora_A["default"].weight
    )
    torch.testing.assert_close(fp8.merged_weight(adapted), expected)
    adapted.enable_adapters(False)
    torch.testing.assert_close(fp8.merged_weight(adapted), adapted.base_layer.weight.float())


def test_blocks_compile_whole_and_stay_valid_after_a_refresh() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Block())
    twin = fp8.quantised_copy(model, [model[0]], torch.float32)
    compiled = torch.compile(twin, fullgraph=True, backend="eager")
    x = torch.randn(4, 16)
    torch.testing.assert_close(compiled(x), twin(x))
    with torch.no_grad():
        model[0].ff.weight.mul_(2)
    fp8.refresh(twin)
    torch.testing.assert_close(compiled(x), twin(x))
