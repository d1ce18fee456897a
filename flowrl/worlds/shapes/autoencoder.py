"""The build's VAE stage: trains the autoencoder on rendered scenes and measures its latents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flowrl.worlds.shapes.loop import Loop
from flowrl.worlds.shapes.parts import build_vae
from flowrl.worlds.shapes.settings import Settings


def train_vae(
    images: np.ndarray,
    settings: Settings,
    device: torch.device,
    checkpoint: Path,
    *,
    time_limit: float | None = None,
    log: Callable[[str], None] = print,
) -> tuple[Any, dict[str, Any]]:
    """The trained VAE, shift and scale set so that its latents have mean 0 and std 1, and its losses.

    ``images`` uint8 [N, H, W, 3]. Loss: L1 + MSE per pixel number + ``kl_weight`` KL per latent number.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        vae = build_vae(settings.sizes).to(device)
    pixels = torch.from_numpy(images).to(device)
    on_gpu = device.type == "cuda"

    latent = (settings.vae_batch, settings.sizes.latent_channels, *2 * (settings.sizes.latent_size,))

    def batch(generator: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(len(pixels), (settings.vae_batch,), device=device, generator=generator)
        noise = torch.randn(latent, device=device, generator=generator)
        return {"x": to_unit(pixels[rows]).contiguous(), "noise": noise}

    def loss(x: Tensor, noise: Tensor) -> dict[str, Tensor]:
        with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
            mean, logvar = vae.encoder(x).float().chunk(2, dim=1)
            decoded = vae.decoder(mean + (0.5 * logvar).exp() * noise).float()
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        l1, mse = F.l1_loss(decoded, x), F.mse_loss(decoded, x)
        return {"loss": l1 + mse + settings.kl_weight * kl, "l1": l1, "mse": mse, "kl": kl}

    loop = Loop(
        "vae",
        vae,
        settings,
        steps=settings.vae_steps,
        lr=settings.vae_lr,
        device=device,
        checkpoint=checkpoint,
        log=log,
    )
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=True):
        history = loop.run(batch, loss, time_limit=time_limit)
    vae.eval().requires_grad_(False)
    latents = encode_all(vae, images[:20_000], device).float()
    vae.register_to_config(shift_factor=float(latents.mean()), scaling_factor=float(1 / latents.std()))
    per_channel = latents.std(dim=(0, 2, 3)).tolist()
    return vae, {"losses": history, "latent_std_per_channel": [round(value, 3) for value in per_channel]}


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] -> float [B, 3, H, W] in -1..1, the VAE's range."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def encode_all(vae: Any, images: np.ndarray, device: torch.device, batch: int = 1024) -> Tensor:
    """Posterior means [N, C, h, w] of uint8 images [N, H, W, 3], on ``device``, before shift and scale."""
    dtype = next(vae.parameters()).dtype
    chunks = [
        vae.encode(to_unit(torch.from_numpy(images[i : i + batch]).to(device)).to(dtype)).latent_dist.mean.half()
        for i in range(0, len(images), batch)
    ]
    return torch.cat(chunks)


@torch.no_grad()
def round_trip(vae: Any, images: Tensor, batch: int = 256) -> Tensor:
    """Images [B, 3, H, W] in 0..1 after the VAE's encoder and decoder."""
    dtype = next(vae.parameters()).dtype
    decoded = [
        vae.decode(vae.encode(chunk.to(dtype) * 2 - 1).latent_dist.mean).sample.float() for chunk in images.split(batch)
    ]
    return (torch.cat(decoded) / 2 + 0.5).clamp(0, 1)
