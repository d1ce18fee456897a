"""What the official packages scored on random weights, and the pictures and prompts that they scored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from PIL.Image import Image as Picture
from torch import Tensor

from flowrl.types import Prompt

GOLDEN = Path(__file__).parents[1] / "golden" / "scorers"
TOLERANCE = {"hps": 1e-6, "clip": 1e-6, "image_reward": 1e-5, "pickscore": 1e-4}
KINDS = tuple(TOLERANCE)
AS_OFFICIAL: Mapping[str, Mapping[str, Any]] = {"pickscore": {"scale": "raw"}}


class Official(NamedTuple):
    """Pictures and prompts, pair by pair, and the official score of each."""

    images: list[Picture]
    prompts: list[Prompt]
    scores: Tensor
    facts: Mapping[str, Any]


def golden(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


def texts() -> list[str]:
    prompts: list[str] = golden("prompts")
    return prompts


def pictures() -> dict[str, Picture]:
    return {file.name: Image.open(file) for file in sorted((GOLDEN / "images").iterdir())}


def official(kind: str, part: str = "scores") -> Official:
    """``part``: ``scores`` of the tiny weights, or ``full``."""
    facts, shown, asked = golden(kind), pictures(), texts()
    pairs = [(file, index) for file, row in facts[part].items() for index in range(len(row))]
    prompts = [Prompt(asked[index], index) for _, index in pairs]
    scores = torch.tensor([facts[part][file][index] for file, index in pairs])
    return Official([shown[file] for file, _ in pairs], prompts, scores, facts)


def write_official_vocabulary(folder: Path) -> None:
    """The pieces of the official run's vocabulary that the prompts can touch, at their places; the rest is filler."""
    known = {index: piece for piece, index in golden("bert_pieces").items()}
    pieces = (known.get(index, f"[filler{index}]") for index in range(30522))
    (folder / "bert-base-uncased" / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces))


def edge_pictures() -> dict[str, Picture]:
    """Pictures of every mode and of awkward sizes, as they come out of PNG files."""
    fall, ring = Image.linear_gradient("L"), Image.radial_gradient("L")
    colours = Image.merge("RGB", (fall, ring, fall.transpose(Image.Transpose.ROTATE_90))).resize((300, 200))
    alpha = ring.resize(colours.size)
    sixteen = np.asarray(alpha).astype(np.uint16) * 257
    made = {
        "rgba": Image.merge("RGBA", (*colours.split(), alpha)),
        "grey": alpha,
        "grey_alpha": Image.merge("LA", (colours.getchannel(0), alpha)),
        "palette": colours.quantize(12),
        "bilevel": colours.convert("1"),
        "sixteen_bit": Image.fromarray(sixteen),
        "one_pixel": Image.new("RGB", (1, 1), (200, 30, 90)),
        "black": Image.new("RGB", (64, 64)),
        "strip": colours.resize((1000, 10)),
        "pole": colours.resize((10, 1000)),
        "long_side_224": colours.resize((224, 100)),
    }
    return {name: through_file(picture) for name, picture in made.items()}


def through_file(picture: Picture) -> Picture:
    file = BytesIO()
    picture.save(file, "PNG")
    return Image.open(file)
