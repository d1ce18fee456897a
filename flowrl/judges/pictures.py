"""Pictures as judges want them: RGB, resized where asked, and as a data URL for those that are far away."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL.Image import Image

JPEG_QUALITY = 95
"""What the published clients re-encode with."""


def prepared(image: Image, resize: tuple[int, int] | None = None) -> Image:
    """The picture in RGB (transparency is dropped, as the published clients do), bicubic to (width, height) if given.

    Raises OSError or ValueError where the picture cannot be read.
    """
    from PIL.Image import Resampling

    picture = image.convert("RGB")
    return picture if resize is None else picture.resize(resize, Resampling.BICUBIC)


def encoded(picture: Image, image_format: Literal["jpeg", "png"]) -> bytes:
    """The bytes of a file: JPEG of quality 95, or PNG, which loses nothing."""
    buffer = io.BytesIO()
    if image_format == "jpeg":
        picture.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    else:
        picture.save(buffer, format="PNG")
    return buffer.getvalue()


def data_url(content: bytes, image_format: Literal["jpeg", "png"]) -> str:
    """A file inside a URL.

    >>> data_url(b"abc", "png")
    'data:image/png;base64,YWJj'
    """
    return f"data:image/{image_format};base64,{base64.b64encode(content).decode()}"
