"""Pictures of awkward sizes and modes, and awkward prompts, for comparing scorers: equal on every machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

SIZES = {
    "landscape": (640, 384),
    "portrait": (333, 517),
    "small": (100, 80),
    "square": (512, 512),
    "square_224": (224, 224),
    "wide_noisy": (1360, 768),
}
"""RGB pictures, (width, height)."""
ODD = {
    "16_bit": (300, 301),
    "grey": (400, 300),
    "long_side_224": (224, 150),
    "palette": (257, 301),
    "rgba": (320, 240),
}
"""Pictures of other modes, and one whose size the official HPS code stops at."""
FEW = ("landscape", "portrait", "small", "square", "grey")
"""Those that every official code judges, for large models."""

PROMPTS = (
    "A cat in a red hat.",
    "An aerial photograph of a harbour town at dawn, fishing boats returning through thin mist, gulls over the pier, "
    "tiled roofs in terracotta and ochre stepping up the hillside, laundry between balconies, a white lighthouse at "
    "the end of the mole, long blue shadows, a single bicycle leaning on a wall, wet cobblestones that mirror the sky, "
    "crates of silver fish and coils of green rope, extremely fine detail, shot on medium format film with soft grain",
    'A sign that says "HALF PRICE 50%" &amp; a café menu\n\tof   the naïve school',
    "猫と犬が公園で遊んでいる 😀 WATERCOLOUR",
    "",
)
"""Short; longer than any scorer reads; entities, accents and blanks; another script and a symbol; none."""


def pictures(names: tuple[str, ...] | None = None) -> dict[str, Image]:
    """Name -> picture, those of ``names`` or all."""
    sizes = SIZES | ODD
    return {name: _picture(name, sizes[name]) for name in names or sorted(sizes)}


def _picture(name: str, size: tuple[int, int]) -> Image:
    from PIL import Image

    random = np.random.default_rng(sum(name.encode()))
    pixels = _scene(size, random, noise=60.0 if "noisy" in name else 6.0)
    picture = Image.fromarray(pixels)
    if name == "rgba":
        picture.putalpha(Image.linear_gradient("L").resize(size))
    elif name == "grey":
        picture = picture.convert("L")
    elif name == "palette":
        picture = picture.quantize(31)
    elif name == "16_bit":
        picture = Image.fromarray(pixels.mean(-1).astype(np.uint16) * 257)
    return picture


def _scene(size: tuple[int, int], random: np.random.Generator, noise: float) -> np.ndarray:
    """[H, W, 3] bytes: a gradient, discs and bars in random colours, and noise."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    corners = random.uniform(0, 255, (2, 3))
    along = (x / width + y / height)[..., None] / 2
    scene = corners[0] * (1 - along) + corners[1] * along
    for _ in range(6):
        colour, radius = random.uniform(0, 255, 3), random.uniform(0.05, 0.25) * min(size)
        centre_x, centre_y = random.uniform(0, width), random.uniform(0, height)
        scene[(x - centre_x) ** 2 + (y - centre_y) ** 2 < radius**2] = colour
        scene[np.abs(x + y - random.uniform(0, width + height)) < radius / 6] = random.uniform(0, 255, 3)
    return (scene + random.normal(0, noise, scene.shape)).clip(0, 255).round().astype(np.uint8)
