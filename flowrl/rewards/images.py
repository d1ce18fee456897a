"""Images as scorers want them: pictures from a policy are tensors, those from files come in any mode and size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from flowrl.types import Images

if TYPE_CHECKING:
    from PIL.Image import Image

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


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

    return [fromarray(image.numpy()) for image in as_bytes(images).cpu().permute(0, 2, 3, 1)]


def as_bytes(images: Tensor) -> Tensor:
    """[B, 3, H, W] in 0..1 as uint8, on their device."""
    return (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)


def finite(images: Images) -> list[bool]:
    """Whether each image has finite values only; of the modes of files, only floats ("F") can fail."""
    if isinstance(images, Tensor):
        return images.isfinite().flatten(1).all(1).tolist()
    return [image.mode != "F" or bool(np.isfinite(np.asarray(image)).all()) for image in images]


def take(images: Images, rows: Sequence[int]) -> Images:
    """Some of the images, in the order of ``rows``."""
    return images[list(rows)] if isinstance(images, Tensor) else [images[row] for row in rows]


def resize_short_side(picture: Image, size: int) -> Image:
    """The short side to ``size``, bicubic on bytes as Pillow does it; the long side is rounded down."""
    from PIL.Image import Resampling

    short = min(picture.size)
    if short == size:
        return picture
    width, height = (size if side == short else int(size * side / short) for side in picture.size)
    return picture.resize((width, height), Resampling.BICUBIC)


def crop_centre(picture: Image, size: int, *, rounded: bool) -> Image:
    """The square of side ``size`` in the middle. An odd margin is ``rounded`` half to even, or rounded down."""
    margins = [(side - size) / 2 for side in picture.size]
    left, top = (round(margin) if rounded else int(margin // 1) for margin in margins)
    return picture.crop((left, top, left + size, top + size))


def normalise(pixels: Tensor, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD) -> Tensor:
    """(pixels - mean) / std by channel, [..., 3, H, W]."""
    return (pixels - pixels.new_tensor(mean)[:, None, None]) / pixels.new_tensor(std)[:, None, None]
