"""Pictures of a gallery inside the page: small enough to send, large enough to judge."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import NamedTuple

LARGEST = 512
"""Pixels of the longer side; what is larger is made smaller."""
PIXELATED = 160
"""A picture no larger than this is kept without loss, and its pixels are shown as squares."""
QUALITY = 82


class Inlined(NamedTuple):
    """A picture as an address that holds all of it."""

    uri: str
    width: int
    height: int

    @property
    def pixelated(self) -> bool:
        return max(self.width, self.height) <= PIXELATED


def inlined(path: Path) -> Inlined | None:
    """The picture in ``path`` (WebP, lossless if it is small), or None where there is none that can be read."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except (OSError, UnidentifiedImageError):
        return None
    picture.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    lossless = max(picture.size) <= PIXELATED
    picture.save(content, format="WEBP", lossless=lossless, quality=100 if lossless else QUALITY, method=6)
    return Inlined(f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}", *picture.size)
