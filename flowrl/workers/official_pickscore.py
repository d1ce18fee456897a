"""PickScore as its authors' README computes it, with transformers 4: by default its slow image processor, on Pillow,
and its fast tokenizer. The slow tokenizer would read a prompt with HTML entities differently.

Options: ``model`` and ``processor``, folders or hub ids. The score is logit_scale * cosine, not divided by 100.
"""

from __future__ import annotations

import warnings
from typing import Any

from flowrl_worker import Image, Score, serve


def load(options: dict[str, Any], device: str) -> Score:
    warnings.filterwarnings("ignore")
    import torch
    from transformers import AutoModel, AutoProcessor

    processor = AutoProcessor.from_pretrained(options.get("processor", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"))
    model = AutoModel.from_pretrained(options.get("model", "yuvalkirstain/PickScore_v1")).eval().to(device)

    def one(image: Image, prompt: str) -> float:
        cut = {"padding": True, "truncation": True, "max_length": 77, "return_tensors": "pt"}
        picture = processor(images=[image.pil()], **cut).to(device)
        text = processor(text=prompt, **cut).to(device)
        with torch.no_grad():
            of_image = model.get_image_features(**picture)
            of_text = model.get_text_features(**text)
            of_image = of_image / torch.norm(of_image, dim=-1, keepdim=True)
            of_text = of_text / torch.norm(of_text, dim=-1, keepdim=True)
            return float((model.logit_scale.exp() * (of_text @ of_image.T))[0][0])

    return lambda images, prompts: [one(image, prompt) for image, prompt in zip(images, prompts)]  # noqa: B905


serve(load, packages=("transformers", "tokenizers", "torch", "pillow", "numpy"))
