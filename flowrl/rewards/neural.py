"""What scorers that are networks share: batches, invalid images, precision, and the cache of text features."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from flowrl.rewards.images import finite, take
from flowrl.types import Images, Prompt, Scores

Prepare = Callable[[Images], Tensor]
"""B images into what the network sees, [B, 3, S, S]."""
Judge = Callable[[Tensor, Sequence[str]], Tensor]
"""That and B texts into B numbers."""

GPU_PIXELS = 64 * 224 * 224
"""Of a batch on a GPU, where the launching of kernels for few small images takes longer than the kernels."""


@dataclass
class NeuralScorer:
    """Scores images one by one, in batches, in float32 whatever autocast surrounds it, or with ``half`` under an
    autocast to float16 of its own. An image that is not finite never reaches ``prepare`` or ``judge``.
    """

    prepare: Prepare
    judge: Judge
    device: torch.device
    batch_size: int
    half: bool = False
    scope: Literal["image", "group"] = "image"
    _pixels: int | None = field(default=None, init=False)
    """Of an image as the network sees it."""

    def rows_at_once(self, images: Images) -> int:
        """How many of the images go through the network at a time; the first of them shows what it sees."""
        if self.device.type == "cpu" or not len(images):
            return self.batch_size
        if self._pixels is None:
            self._pixels = self.prepare(take(images, [0]))[0, 0].numel()
        return max(self.batch_size, GPU_PIXELS // self._pixels)

    @torch.no_grad()
    def score(self, images: Images, prompts: Sequence[Prompt]) -> Scores:
        """One prompt per image; ``values`` are 0 where not ``valid``."""
        valid = finite(images)
        rows = [row for row, is_finite in enumerate(valid) if is_finite]
        values = torch.zeros(len(prompts), device=self.device)
        with torch.autocast(self.device.type, torch.float16, enabled=self.half):
            size = self.rows_at_once(take(images, rows[:1]))
            for start in range(0, len(rows), size):
                batch = rows[start : start + size]
                pixels = self.prepare(take(images, batch)).to(self.device)
                values[batch] = self.judge(pixels, [prompts[row].text for row in batch]).float()
        answered = torch.tensor(valid, dtype=torch.bool, device=self.device) & values.isfinite()
        return Scores(values.where(answered, 0), answered)


class CosineJudge:
    """``scale`` times the cosine of image and text features; the features of a text are computed once."""

    def __init__(
        self,
        encode_images: Callable[[Tensor], Tensor],
        encode_texts: Callable[[Sequence[str]], Tensor],
        scale: float = 1.0,
    ) -> None:
        self.encode_images = encode_images
        self.text_features = TextCache(lambda texts: normalize(encode_texts(texts).float(), dim=-1))
        self.scale = scale

    def __call__(self, pixels: Tensor, texts: Sequence[str]) -> Tensor:
        """[B] of pixels [B, 3, S, S]."""
        features = normalize(self.encode_images(pixels).float(), dim=-1)
        return self.scale * (features * self.text_features(texts)).sum(-1)


class TextCache:
    """text -> features, for the ``limit`` texts used last."""

    def __init__(self, encode: Callable[[Sequence[str]], Tensor], limit: int = 2048, batch_size: int = 64) -> None:
        self.encode, self.limit, self.batch_size = encode, limit, batch_size
        self._features: OrderedDict[str, Tensor] = OrderedDict()

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Features [B, D], encoding what is not known in batches."""
        missing = [text for text in dict.fromkeys(texts) if text not in self._features]
        for start in range(0, len(missing), self.batch_size):
            batch = missing[start : start + self.batch_size]
            self._features.update(zip(batch, self.encode(batch), strict=True))
        for text in texts:
            self._features.move_to_end(text)
        rows = torch.stack([self._features[text] for text in texts])
        while len(self._features) > self.limit:
            self._features.popitem(last=False)
        return rows
