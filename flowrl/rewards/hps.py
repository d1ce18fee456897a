"""HPS v2.1 (arXiv 2306.09341): a CLIP ViT-H/14 tuned on human preferences. The score is the cosine."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from flowrl.protocols import Scorer
from flowrl.rewards.images import as_tensors, normalise
from flowrl.rewards.neural import CosineJudge
from flowrl.rewards.open_clip_model import CONFIG, model_config, own_towers
from flowrl.rewards.open_clip_text import text_files, tokenizer
from flowrl.rewards.weights import WeightsConfig, filled, read_weights
from flowrl.types import Images

FILES = {"v2.1": "HPS_v2.1_compressed.pt", "v2.0": "HPS_v2_compressed.pt"}


class Hps(WeightsConfig, kind="hps"):
    """``open_clip_config.json`` beside the weights names another architecture than ViT-H-14."""

    source: str = "xswu/HPSv2"
    version: Literal["v2.1", "v2.0"] = "v2.1"

    def files(self) -> tuple[Path, ...]:
        """The weights; what else lies beside them, where the architecture is not the official one."""
        (weights,) = self.locate(FILES[self.version])
        config = weights.with_name(CONFIG)
        if not config.is_file():
            return (weights,)
        cfg = own_towers(model_config(config), config)
        return weights, config, *text_files(cfg, weights.parent, "reward hps")

    def load(self, device: torch.device) -> Scorer:
        """About 4 GB of memory for the official weights."""
        import open_clip

        weights, *beside = self.files()
        cfg = model_config(beside[0]) if beside else open_clip.get_model_config("ViT-H-14")
        content = read_weights(weights)
        model: Any = filled(lambda: open_clip.CLIP(**cfg), content.get("state_dict", content), weights).to(device)
        tokenize = tokenizer(cfg, beside[1:])
        size = cfg["vision_cfg"]["image_size"]
        judge = CosineJudge(model.encode_image, lambda texts: model.encode_text(tokenize(texts).to(device)))
        return self.scorer(lambda images: prepare(images, size), judge, device)


def prepare(images: Images, size: int) -> Tensor:
    """[B, 3, size, size]: the long side to ``size`` on floats, black borders, then normalised.

    Where the official code stops, this goes on: transparency is dropped, a picture whose long side is ``size`` gets its
    borders too, and a side never rounds to nothing.
    """
    if isinstance(images, Tensor) and images.shape[2:] == (size, size):
        return normalise(images.float())
    return torch.stack([normalise(letterbox(image, size)) for image in as_tensors(images)])


def letterbox(image: Tensor, size: int) -> Tensor:
    """An image [3, H, W] in the middle of a black square; bicubic with antialiasing, not clamped."""
    height, width = image.shape[1:]
    scale = size / max(height, width)
    if scale != 1:
        height, width = (max(1, round(side * scale)) for side in (height, width))
        image = interpolate(image[None], (height, width), mode="bicubic", antialias=True)[0]
    left, top = (size - width) // 2, (size - height) // 2
    return pad(image, (left, size - width - left, top, size - height - top))
