"""Matrix products in 8-bit floating point: a transformer that shares all with another but its quantised layers.

Row-wise dynamic scaling. With e4m3 (largest value 448) and W [out, in], x [rows, in]:

    s_x[i] = max_j |x[i, j]| / 448,   q_x = e4m3(x / s_x),     s_w[o], q_w likewise over each row of W
    y = bf16((q_x q_w^T) s_x s_w + bias)

The weights are quantised when they change, the activations in every call. On CUDA devices of capability 8.9 and above
(Ada, Hopper, Blackwell) ``torch._scaled_mm`` computes it where both sides are multiples of 16; elsewhere the same
numbers are multiplied in the layer's own precision, which costs time and shows the same error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max
SMALLEST_SCALE = 1e-12
"""A row of zeros is divided by it."""
MULTIPLE = 16
"""What torch._scaled_mm needs both sides of a weight to be a multiple of."""


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """e4m3 [rows, columns] and its scale [rows, 1] in float32.

    >>> q, scale = quantise(torch.tensor([[0.0, 448.0], [0.0, -1.0]]))
    >>> (q.float() * scale).tolist()
    [[0.0, 448.0], [0.0, -1.0]]
    """
    x = x.float()
    scale = (x.abs().amax(-1, keepdim=True) / LARGEST).clamp(min=SMALLEST_SCALE)
    return (x / scale).clamp(-LARGEST, LARGEST).to(E4M3), scale


def has_fp8_products(device: torch.device) -> bool:
    """Whether the device multiplies e4m3 by itself."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def scaled_mm(q: Tensor, weight: Tensor, scale: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """[rows, out] in bfloat16 of q [rows, in] and weight [in, out] (column-major), scales [rows, 1] and [1, out]."""
    return torch._scaled_mm(q, weight, scale, weight_scale, bias, out_dtype=torch.bfloat16, use_fast_accum=True)


class Fp8Linear(nn.Module):
    """A linear layer's product in e4m3, one byte a weight. ``source`` is read at every :meth:`refresh`, never changed.

    ``dtype``: of the answer. Adapters of the source are merged in float32 before its weight is quantised.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, source: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        base = _base(source)
        self._source = [source]  # in a list: not a submodule, whose parameters would count twice
        self.dtype = dtype
        self.native = has_fp8_products(base.weight.device) and not (
            base.in_features % MULTIPLE or base.out_features % MULTIPLE
        )
        self.register_buffer("weight", torch.empty_like(base.weight, dtype=E4M3, requires_grad=False))
        self.register_buffer("scale", torch.empty(1, base.out_features, device=base.weight.device))
        bias = None if base.bias is None else base.bias.detach().to(torch.bfloat16)
        self.register_buffer("bias", bias)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Quantise the source's present weight, in place, so that compiled code and its addresses stay valid."""
        weight, scale = quantise(merged_weight(self._source[0]))
        self.weight.copy_(weight)
        self.scale.copy_(scale.T)
        if self.bias is not None:
            self.bias.copy_(_base(self._source[0]).bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        q, scale = quantise(rows)
        if self.native:
            y = scaled_mm(q, self.weight.T, scale, self.scale, self.bias)
        else:
            y = F.linear(q.to(self.dtype), self.weight.to(self.dtype)).float() * scale * self.scale
            y = (y if self.bias is None else y + self.bias).to(torch.bfloat16)
        return y.to(self.dtype).reshape(*x.shape[:-1], y.shape[-1])


def _base(layer: nn.Module) -> nn.Linear:
    """The linear layer itself, without the adapters that peft puts around it."""
    return cast(nn.Linear, getattr(layer, "base_layer", layer))


def merged_weight(layer: nn.Module) -> Tensor:
    """The weight in float32, active adapters added: W + alpha / rank B A. For what is not trained by it alone: rounded
    to a lower precision, most of a young update is lost (docs/flux.md)."""
    weight = _base(layer).weight.detach().float()
    if layer is _base(layer):
        return weight
    adapted = cast(Any, layer)
    if adapted.disable_adapters:
        return weight
    for adapter in adapted.active_adapters:
        if adapter in adapted.lora_A:
            weight = weight + adapted.get_delta_weight(adapter).detach().float()
    return weight


def quantised_layers(block: nn.Module) -> dict[str, nn.Module]:
    """The linear layers of a transformer block that every token passes, by name, with their adapters.

    Those inside its norms (``norm...``) shift and scale by the noise level; they see one row a sample, so they would
    win no time.
    """
    found: dict[str, nn.Module] = {}
    for name, module in block.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if not inside and isinstance(_base(module), nn.Linear) and not name.startswith("norm"):
            found[name] = module
    return found


def quantised_copy(transformer: nn.Module, blocks: list[nn.Module], dtype: torch.dtype) -> nn.Module:
    """A second module object: all parameters and buffers are those of ``transformer``, but the linear layers of
    ``blocks`` are :class:`Fp8Linear`. One byte for each of their weights is all the memory that it takes."""
    layers = [layer for block in blocks for layer in quantised_layers(block).values()]
    return _twin(transformer, {layer: Fp8Linear(layer, dtype) for layer in layers})


def _twin(module: nn.Module, replaced: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """The module's own class over the module's own tensors; of what was put around its ``forward`` nothing is left."""
    if module in replaced:
        return replaced[module]
    twin = module.__class__.__new__(module.__class__)
    wrapped = {"forward", "_original_forward", "_compiled_call_impl"}
    twin.__dict__ = {name: value for name, value in module.__dict__.items() if name not in wrapped}
    twin.__dict__["_modules"] = {name: child and _twin(child, replaced) for name, child in module._modules.items()}
    return twin


def refresh(module: nn.Module) -> None:
    """Let every quantised layer of a module follow its source."""
    for layer in module.modules():
        if isinstance(layer, Fp8Linear):
            layer.refresh()
