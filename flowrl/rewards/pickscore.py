"""PickScore (arXiv 2305.01569): a CLIP ViT-H/14 tuned on users' choices. exp(logit_scale), about 100, times cosine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from flowrl.errors import UserError, all_of, in_short
from flowrl.foreign_code import refuse_kernels
from flowrl.hub import read_json
from flowrl.protocols import Scorer
from flowrl.rewards.images import as_pictures, as_tensors, crop_centre, normalise, resize_short_side
from flowrl.rewards.neural import CosineJudge
from flowrl.rewards.weights import WeightsConfig
from flowrl.types import Images

IMAGES = "preprocessor_config.json"


class Pickscore(WeightsConfig, kind="pickscore"):
    """``scale``: ``raw`` as the authors' code gives it, ``divided_by_100`` as the papers' tables do.

    ``processor``: where tokenizer and picture sizes come from, if they lie neither beside the weights nor in
    ``processor/`` there. The official weights go with the processor of the CLIP that they were tuned from.
    """

    source: str = "yuvalkirstain/PickScore_v1"
    processor: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    scale: Literal["raw", "divided_by_100"] = "divided_by_100"

    def files(self) -> tuple[Path, ...]:
        weights, processor = all_of(lambda: self.locate("model.safetensors", "config.json"), self._processor)
        return *weights, *processor

    def _processor(self) -> tuple[Path, ...]:
        """Beside the weights, where they are there."""
        folder = self.folder("model.safetensors")
        beside = () if folder is None else (folder / "processor", folder)
        source = next((str(folder) for folder in beside if (folder / IMAGES).is_file()), self.processor)
        try:
            return self.locate(IMAGES, "tokenizer.json", source=source)
        except UserError:
            return self.locate(IMAGES, "vocab.json", "merges.txt", source=source)

    def load(self, device: torch.device) -> Scorer:
        """About 4 GB of memory for the official weights."""
        from transformers import CLIPTokenizer

        weights, config, sizes, *_ = self.files()
        refuse_kernels(config)
        model = load_model(weights).to(device)
        tokenize = CLIPTokenizer.from_pretrained(str(sizes.parent), local_files_only=True)
        options = {
            "padding": True,
            "truncation": True,
            "max_length": model.config.text_config.max_position_embeddings,
            "return_tensors": "pt",
        }

        def encode_texts(texts: Sequence[str]) -> Tensor:
            return pooled(model.get_text_features(**tokenize(list(texts), **options).to(device)))

        def encode_images(pixels: Tensor) -> Tensor:
            return pooled(model.get_image_features(pixel_values=pixels))

        scale = model.logit_scale.exp().item() / (1 if self.scale == "raw" else 100)
        values = read_json(sizes, "size", "crop_size", "image_mean", "image_std")
        judge = CosineJudge(encode_images, encode_texts, scale)
        return self.scorer(lambda images: prepare(images, values), judge, device)


def load_model(weights: Path) -> Any:
    """The CLIPModel in a folder, in float32. Raises UserError where a weight is missing or does not fit."""
    from transformers import CLIPModel

    from flowrl.policies.quiet import quietly

    try:
        with quietly():
            model, found = CLIPModel.from_pretrained(
                str(weights.parent),
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
    except Exception as error:  # safetensors, transformers and the config each have their own
        raise UserError(f"{weights} and config.json beside it are no CLIPModel: {in_short(error)}") from error
    if missing := sorted(found["missing_keys"]):
        raise UserError(f"{weights} does not hold the weights of this architecture: it lacks {', '.join(missing[:3])}")
    return model.eval().requires_grad_(False)


def pooled(features: Any) -> Tensor:
    """Features [B, D]; transformers 5 wraps them."""
    return features if isinstance(features, Tensor) else features.pooler_output


def prepare(images: Images, values: dict[str, Any]) -> Tensor:
    """[B, 3, S, S]: RGB, the short side to ``size`` on bytes, the centre (margins rounded down), normalised."""
    size, crop = side(values["size"]), side(values["crop_size"])
    pictures = [
        crop_centre(resize_short_side(picture.convert("RGB"), size), crop, rounded=False)
        for picture in as_pictures(images)
    ]
    return torch.stack([normalise(x, values["image_mean"], values["image_std"]) for x in as_tensors(pictures)])


def side(size: int | dict[str, int]) -> int:
    """A side in pixels, as processors' files write it: a number, or a mapping.

    >>> side({"shortest_edge": 224}), side({"height": 224, "width": 224}), side(224)
    (224, 224, 224)
    """
    return size if isinstance(size, int) else size.get("shortest_edge") or size["height"]
