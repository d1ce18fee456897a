"""Pictures from the plain pipeline, as any user of diffusers draws them; an image's seed depends on its index alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowrl.seeds import derive_seed


def draw(
    pipeline: Any,
    texts: Sequence[str],
    *,
    steps: int,
    seed: int = 0,
    guidance: float = 3.5,
    batch: int = 100,
    first_index: int = 0,
) -> Tensor:
    """Images [B, 3, H, W] in 0..1 on the CPU, one per text."""
    pipeline.set_progress_bar_config(disable=True)
    size = pipeline.vae.config.sample_size
    images = []
    for start in range(0, len(texts), batch):
        chunk = list(texts[start : start + batch])
        generators = [
            torch.Generator().manual_seed(derive_seed(seed, "draw", first_index + start + i)) for i in range(len(chunk))
        ]
        drawn = pipeline(
            chunk,
            height=size,
            width=size,
            num_inference_steps=steps,
            guidance_scale=guidance,
            max_sequence_length=pipeline.tokenizer_2.model_max_length,
            generator=generators,
            output_type="pt",
        )
        images.append(drawn.images.float().cpu())
    return torch.cat(images)
