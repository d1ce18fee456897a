"""CLIP score: the cosine of a prompt and a picture under any open_clip model. The papers' is DFN5B's ViT-H/14."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from flowrl.errors import UserError
from flowrl.protocols import Scorer
from flowrl.rewards.images import as_pictures
from flowrl.rewards.neural import CosineJudge, NeuralScorer
from flowrl.rewards.open_clip_text import CONFIG, model_config, needs_vocabulary, tokenizer
from flowrl.rewards.weights import WeightsConfig, in_short, uninitialised
from flowrl.types import Images

WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # the order in which open_clip looks


class Clip(WeightsConfig, kind="clip"):
    """Architecture, image size and preprocessing are those of ``open_clip_config.json`` beside the weights."""

    source: str = "apple/DFN5B-CLIP-ViT-H-14-378"

    def files(self) -> tuple[Path, ...]:
        weights, config = self.locate(WEIGHTS, CONFIG)
        beside = ["tokenizer.json"] if needs_vocabulary(model_config(config)) else []
        return self.locate(weights.name, CONFIG, *beside)

    def load(self, device: torch.device) -> Scorer:
        """About 4 GB of memory for a ViT-H/14."""
        import open_clip

        weights, config, *_ = self.files()
        try:
            with uninitialised():
                model, transform = open_clip.create_model_from_pretrained(f"local-dir:{weights.parent}")
        except Exception as error:  # zip, pickle, safetensors and open_clip each have their own
            raise UserError(f"{weights} and {CONFIG} beside it are no open_clip model: {in_short(error)}") from error
        model = model.float().eval().requires_grad_(False).to(device)
        tokenize = tokenizer(model_config(config), weights.parent)

        def prepare(images: Images) -> Tensor:
            return torch.stack([transform(picture) for picture in as_pictures(images)])

        judge = CosineJudge(model.encode_image, lambda texts: model.encode_text(tokenize(texts).to(device)))
        return NeuralScorer(prepare, judge, device, self.batch_size)
