"""CLIP as open_clip itself computes it: its model, its transform, its tokenizer, and the cosine of the features.

Options: ``model``, what ``open_clip.create_model_from_pretrained`` takes, for example ``local-dir:FOLDER``.
"""

from __future__ import annotations

from typing import Any

from flowrl_worker import Image, Score, serve


def load(options: dict[str, Any], device: str) -> Score:
    import open_clip
    import torch

    model, preprocess = open_clip.create_model_from_pretrained(options["model"], device=device)
    tokenizer = open_clip.get_tokenizer(options["model"])
    model.eval()

    def one(image: Image, prompt: str) -> float:
        with torch.no_grad():
            of_image = model.encode_image(preprocess(image.pil())[None].to(device), normalize=True)
            of_text = model.encode_text(tokenizer([prompt]).to(device), normalize=True)
            return float((of_image @ of_text.T)[0, 0])

    return lambda images, prompts: [one(image, prompt) for image, prompt in zip(images, prompts)]  # noqa: B905


serve(load, packages=("open_clip_torch", "torch", "torchvision", "pillow", "numpy"))
