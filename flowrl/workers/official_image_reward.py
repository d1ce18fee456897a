"""Scores of the official package: image-reward 1.5's own ``ImageReward.load(...).score(prompt, image)``.

Options: ``weights``, a checkpoint, and ``med_config``, its BERT configuration (by default what the package fetches);
``tokenizer_in``, a folder that holds ``bert-base-uncased/``; ``trunk``, the sizes of a smaller image transformer.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

from flowrl_worker import Image, Score, serve


def load(options: dict[str, Any], device: str) -> Score:
    """The package names its tokenizer ``bert-base-uncased``, which a folder of that name in the working folder is."""
    warnings.filterwarnings("ignore")
    paths = {key: os.path.abspath(options[key]) for key in ("weights", "med_config") if options.get(key)}
    import ImageReward
    import torch

    if options.get("tokenizer_in"):
        os.chdir(options["tokenizer_in"])
    if options.get("trunk"):
        from ImageReward.models.BLIP import blip_pretrain
        from ImageReward.models.BLIP.vit import VisionTransformer

        trunk = VisionTransformer(**options["trunk"])
        blip_pretrain.create_vit = lambda *args, **kwargs: (trunk, options["trunk"]["embed_dim"])
    name = paths.get("weights", "ImageReward-v1.0")
    model = ImageReward.load(name, device=device, med_config=paths.get("med_config"))

    def score(images: list[Image], prompts: list[str]) -> list[Any]:
        with torch.no_grad():
            return [model.score(prompt, image.pil()) for image, prompt in zip(images, prompts)]  # noqa: B905

    return score


serve(load, packages=("image-reward", "transformers", "tokenizers", "timm", "torch", "torchvision", "pillow"))
