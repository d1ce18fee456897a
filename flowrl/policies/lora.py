"""Low-rank adapters of a transformer, saved as plain diffusers loads them. Never merged: see docs/flux.md."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt

from flowrl.errors import UserError, did_you_mean

FLOW_GRPO_TARGETS = (
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
    "ff.net.0.proj",
    "ff.net.2",
    "ff_context.net.0.proj",
    "ff_context.net.2",
)
"""What Flow-GRPO adapts in FLUX (its train_flux.py)."""


class LoRA(BaseModel):
    """``W + alpha / rank * B A`` on every linear layer whose name ends in a target (arXiv 2106.09685).

    B starts at zero; A is drawn from torch's global generator, which the trainer seeds alike on every rank.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    rank: PositiveInt = 32
    alpha: PositiveFloat = 64.0
    targets: tuple[str, ...] = FLOW_GRPO_TARGETS


def add_lora(transformer: Any, lora: LoRA) -> None:
    """Freezes the transformer and adds fp32 factors. UserError where a target names no linear layer."""
    from peft import LoraConfig

    linear = [name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)]
    for target in lora.targets:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            suffixes = {".".join(name.split(".")[-parts:]) for name in linear for parts in (1, 2, 3, 4)}
            raise UserError(f"model.lora.targets: no linear layer ends in {target!r}{did_you_mean(target, suffixes)}")
    transformer.requires_grad_(False)
    transformer.add_adapter(
        LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets), init_lora_weights="gaussian")
    )
    for parameter in transformer.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


@contextmanager
def adapter_off(transformer: Any) -> Iterator[None]:
    """Inside, the transformer is the untrained one."""
    transformer.disable_adapters()
    try:
        yield
    finally:
        transformer.enable_adapters()


def save_lora(transformer: Any, folder: Path, pipeline_class: Any) -> None:
    """Writes ``pytorch_lora_weights.safetensors``, rank and alpha included, for ``pipe.load_lora_weights(folder)``."""
    from peft import get_peft_model_state_dict

    pipeline_class.save_lora_weights(
        folder,
        transformer_lora_layers=get_peft_model_state_dict(transformer),
        transformer_lora_adapter_metadata=_metadata(transformer),
    )


def _metadata(transformer: Any) -> dict[str, Any]:
    config = transformer.peft_config["default"].to_dict()
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
