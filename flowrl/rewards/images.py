"""Images as scorers want them: pictures from a policy are tensors, those from files come in any mode and size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from flowrl.types import Images

if TYPE_CHECKING:
    from PIL.Image import Image


def as_tensors(images: Images) -> list[Tensor]:
    """Each image [3, H, W] in 0..1, float32; files are converted to RGB first."""
    if isinstance(images, Tensor):
        return list(images.float())
    rgb = [np.asarray(image.convert("RGB")) for image in images]
    return [torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255 for pixels in rgb]


def as_pictures(images: Images) -> list[Image]:
    """Each image as it would lie in a file: tensors are rounded to bytes, RGB; what comes from files is left alone."""
    if not isinstance(images, Tensor):
        return list(images)
    from PIL.Image import fromarray

    pixels = (images.detach().float().clamp(0, 1) * 255).round().to("cpu", torch.uint8).permute(0, 2, 3, 1)
    return [fromarray(image.numpy()) for image in pixels]
