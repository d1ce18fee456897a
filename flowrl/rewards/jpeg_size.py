"""The bytes of a picture as a JPEG: a reward for smoke tests, which needs neither weights nor a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field

from flowrl.protocols import Scorer, ScorerConfig
from flowrl.rewards.images import as_pictures, finite, take
from flowrl.types import Images, Prompt, Scores

if TYPE_CHECKING:
    from PIL.Image import Image


class JpegSize(ScorerConfig, kind="jpeg_size"):
    """Kilobytes (1000 bytes) at a JPEG ``quality``; ``prefer: small`` negates them, so that plain pictures win."""

    quality: int = Field(default=95, ge=1, le=95)
    prefer: Literal["small", "large"] = "small"

    def load(self, device: torch.device) -> Scorer:
        return JpegSizeScorer(self.quality, -1 if self.prefer == "small" else 1, device)


class JpegSizeScorer:
    """Works on the CPU; its answers go back to ``device``."""

    scope: Literal["image", "group"] = "image"

    def __init__(self, quality: int, sign: int, device: torch.device) -> None:
        self.quality, self.sign, self.device = quality, sign, device

    def score(self, images: Images, prompts: Sequence[Prompt]) -> Scores:
        valid = torch.tensor(finite(images), dtype=torch.bool)
        rows = valid.nonzero().flatten()
        values = torch.zeros(len(prompts))
        sizes = [self._kilobytes(picture) for picture in as_pictures(take(images, rows.tolist()))]
        values[rows] = self.sign * torch.tensor(sizes)
        return Scores(values.to(self.device), valid.to(self.device))

    def _kilobytes(self, picture: Image) -> float:
        file = BytesIO()
        picture.convert("RGB").save(file, "JPEG", quality=self.quality)
        return len(file.getvalue()) / 1000
