"""Scores of the official package: hpsv2 1.2.0's own ``hpsv2.img_score.score``, which reads the weights at every call.

Options: ``weights``, a checkpoint (by default the file in the download cache); ``version``, v2.0 or v2.1 (default);
``model_configs``, a folder with another ``ViT-H-14.json`` for a smaller model.
"""

from __future__ import annotations

import pathlib
import sys
import types
import warnings
from typing import Any

from flowrl_worker import Image, Score, serve


def stand_in_for_turtle() -> None:
    """The package needs ``turtle.forward`` to exist, which it never calls; a Python without tkinter has no turtle."""
    try:
        import turtle  # noqa: F401
    except ImportError:
        module: Any = types.ModuleType("turtle")
        module.forward = None
        sys.modules["turtle"] = module


def load(options: dict[str, Any], device: str) -> Score:
    """The model is made as the package's evaluation.py makes it: its score() would first fetch another CLIP of 4 GB,
    whose weights it then writes over."""
    warnings.filterwarnings("ignore")
    stand_in_for_turtle()
    from hpsv2 import img_score
    from hpsv2.src.open_clip import add_model_config, create_model_and_transforms

    if options.get("model_configs"):
        add_model_config(pathlib.Path(options["model_configs"]))
    img_score.device = device
    model, _, preprocess = create_model_and_transforms(
        "ViT-H-14",
        None,
        precision="amp",
        device=device,
        jit=False,
        force_quick_gelu=False,
        force_custom_text=False,
        force_patch_dropout=False,
        force_image_size=None,
        pretrained_image=False,
        image_mean=None,
        image_std=None,
        light_augmentation=True,
        aug_cfg={},
        output_dict=True,
        with_score_predictor=False,
        with_region_predictor=False,
    )
    img_score.model_dict.update(model=model, preprocess_val=preprocess)
    version = options.get("version", "v2.1")

    def score(images: list[Image], prompts: list[str]) -> list[Any]:
        scores = [None] * len(images)
        for prompt in dict.fromkeys(prompts):
            rows = [row for row, other in enumerate(prompts) if other == prompt]
            pictures = [images[row].pil() for row in rows]
            found = img_score.score(pictures, prompt, cp=options.get("weights"), hps_version=version)
            for row, value in zip(rows, found):  # noqa: B905 - old Pythons
                scores[row] = value
        return scores

    return score


serve(load, packages=("hpsv2", "torch", "torchvision", "pillow", "numpy"))
