"""The build's transformer stage: flow matching on VAE latents, the text encoders trained along."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowrl.worlds.shapes.loop import Loop
from flowrl.worlds.shapes.settings import Settings


def tokenize(pipeline: Any, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """CLIP and T5 token ids, int16 [N, length] each, padded as FluxPipeline pads them.

    Raises ValueError where a text does not fit.
    """
    ids = []
    for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_2):
        length = tokenizer.model_max_length
        rows = np.full((len(texts), length), tokenizer.pad_token_id, np.int16)
        # The library's own batch call spends most of its time on Python objects that nobody reads here.
        for row, text, encoding in zip(rows, texts, tokenizer.backend_tokenizer.encode_batch_fast(texts), strict=True):
            if len(encoding.ids) > length:
                raise ValueError(f"a caption has {len(encoding.ids)} tokens, more than {length}: {text!r}")
            row[: len(encoding.ids)] = encoding.ids
        ids.append(rows)
    return ids[0], ids[1]


def pack(latents: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, h/2 * w/2, 4C], FLUX's 2x2 packing."""
    batch, channels, height, width = latents.shape
    blocks = latents.view(batch, channels, height // 2, 2, width // 2, 2)
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(batch, height * width // 4, 4 * channels)


def position_ids(side: int, device: torch.device) -> Tensor:
    """Image ids [side^2, 3]: zero, row, column of each packed token."""
    ids = torch.zeros(side, side, 3, device=device)
    ids[..., 1] = torch.arange(side, device=device)[:, None]
    ids[..., 2] = torch.arange(side, device=device)[None, :]
    return ids.view(-1, 3)


class Velocity(nn.Module):
    """Text encoders and transformer as one module: tokens and a noisy packed latent -> velocity."""

    def __init__(self, pipeline: Any, side: int, text_length: int) -> None:
        super().__init__()
        self.clip, self.t5 = pipeline.text_encoder, pipeline.text_encoder_2
        self.transformer = pipeline.transformer
        self.register_buffer("image_ids", position_ids(side, torch.device("cpu")), persistent=False)
        self.register_buffer("text_ids", torch.zeros(text_length, 3), persistent=False)

    def forward(self, x: Tensor, sigma: Tensor, guidance: Tensor, clip_ids: Tensor, t5_ids: Tensor) -> Tensor:
        return self.transformer(
            hidden_states=x,
            timestep=sigma,
            guidance=guidance,
            pooled_projections=self.clip(clip_ids).pooler_output,
            encoder_hidden_states=self.t5(t5_ids)[0],
            img_ids=self.image_ids,
            txt_ids=self.text_ids,
            return_dict=False,
        )[0]


def train_flow(
    pipeline: Any,
    latents: Tensor,
    captions: list[str],
    settings: Settings,
    device: torch.device,
    checkpoint: Path,
    *,
    time_limit: float | None = None,
    log: Callable[[str], None] = print,
) -> list[dict[str, float]]:
    """Trains the pipeline's transformer and text encoders in place; returns the losses.

    ``latents`` [N, C, h, w] before shift and scale. Loss: |v - (noise - x0)|^2 at x = (1 - sigma) x0 + sigma noise,
    with u logit-normal or even and sigma = shift u / (1 + (shift - 1) u) (Esser et al. 2024, section 3.1 and Eq. 23).
    """
    sizes, config = settings.sizes, pipeline.vae.config
    # cuDNN's attention fails in the bf16 backward on some releases; the other kernels are as fast at this size.
    torch.backends.cuda.enable_cudnn_sdp(False)
    model = Velocity(pipeline, sizes.latent_size // 2, sizes.text_length).to(device).train()
    if settings.compile and device.type == "cuda":
        model.transformer.compile_repeated_blocks(fullgraph=True)
    data = pack((latents.to(device).float() - config.shift_factor) * config.scaling_factor).to(torch.bfloat16)
    clip_ids, t5_ids = (torch.from_numpy(ids).to(device) for ids in tokenize(pipeline, captions))
    low, high = settings.guidance

    def batch(generator: torch.Generator) -> dict[str, Tensor]:
        count = settings.batch
        rows = torch.randint(len(data), (count,), device=device, generator=generator)
        normal = torch.randn(count, device=device, generator=generator).sigmoid()
        even = torch.rand(count, device=device, generator=generator)
        u = torch.where(torch.rand(count, device=device, generator=generator) < settings.even, even, normal)
        return {
            "x0": data[rows].float(),
            "noise": torch.randn((count, *data.shape[1:]), device=device, generator=generator),
            "sigma": settings.shift * u / (1 + (settings.shift - 1) * u),
            "guidance": low + (high - low) * torch.rand(count, device=device, generator=generator),
            "clip": clip_ids[rows].long(),
            "t5": t5_ids[rows].long(),
        }

    def loss(x0: Tensor, noise: Tensor, sigma: Tensor, guidance: Tensor, clip: Tensor, t5: Tensor) -> dict[str, Tensor]:
        level = sigma[:, None, None]
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            v = model((1 - level) * x0 + level * noise, sigma, guidance, clip, t5)
        return {"loss": F.mse_loss(v.float(), noise - x0)}

    loop = Loop(
        "transformer",
        model,
        settings,
        steps=settings.steps,
        lr=settings.lr,
        device=device,
        checkpoint=checkpoint,
        together=True,
        log=log,
    )
    history = loop.run(batch, loss, time_limit=time_limit)
    model.eval().requires_grad_(False)
    return history
