"""A page of prompts, what they ask for as the renderer draws it, and what the base model draws."""

from __future__ import annotations

import base64
import html
import io
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flowrl import atomic
from flowrl.seeds import derive_seed
from flowrl.types import Prompt
from flowrl.worlds.shapes.judge import judge
from flowrl.worlds.shapes.prompts import test_prompts, testpoints_of
from flowrl.worlds.shapes.render import render
from flowrl.worlds.shapes.sampling import draw
from flowrl.worlds.shapes.scene import PRIMARY_DIMENSIONS, Scene

PIPELINE = Path(__file__).parent / "pipeline"

STYLE = """
body { font: 15px/1.4 sans-serif; margin: 2em auto; max-width: 60em; }
figure { display: inline-block; margin: 0 6px 4px 0; text-align: center; font-size: 12px; }
img { width: 112px; height: 112px; image-rendering: pixelated; border: 1px solid #bbb; display: block; }
p { margin: 1.2em 0 0.3em; }
"""


def gallery(
    output: Path,
    *,
    pipeline: Path = PIPELINE,
    per_dimension: int = 3,
    samples: int = 4,
    steps: int = 28,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> Path:
    """Writes two views of held-out prompts by dimension to ``output``; returns the path of the first.

    ``gallery.html`` is one self-contained page; ``overview.png`` has the first prompt of each dimension.
    """
    from diffusers import FluxPipeline

    model = FluxPipeline.from_pretrained(pipeline)
    if device is not None:
        model = model.to(device)
    prompts = _chosen(test_prompts(), per_dimension)
    asked = [prompt for prompt in prompts for _ in range(samples)]
    images = draw(model, [prompt.text for prompt in asked], steps=steps, seed=seed)
    verdict = judge(images, [testpoints_of(prompt) for prompt in asked])
    rows, shown = [], []
    for n, prompt in enumerate(prompts):
        rendered = render(Scene.from_json(prompt.meta["scene"]), np.random.default_rng(derive_seed(seed, "gallery", n)))
        captioned = [(rendered, "asked for")]
        for k in range(n * samples, (n + 1) * samples):
            captioned.append((pixels_of(images[k]), f"{sum(verdict.satisfied[k])} of {len(verdict.satisfied[k])}"))
        shown.append((prompt, captioned))
        pictures = [_figure(pixels, caption) for pixels, caption in captioned]
        if n == 0 or prompts[n - 1].meta["dimension"] != prompt.meta["dimension"]:
            rows.append(f"<h2>{html.escape(prompt.meta['dimension'])}</h2>")
        points = "; ".join(point.description for point in testpoints_of(prompt))
        rows.append(f"<p><b>{html.escape(prompt.text)}</b><br>{html.escape(points)}</p>{''.join(pictures)}")
    title = "shapes: what is asked for, what the base model draws"
    page = (
        f"<!doctype html><meta charset=utf-8><title>shapes</title><style>{STYLE}</style><h1>{title}</h1>"
        f"<p>{steps} steps of the plain pipeline on held-out prompts; "
        "under each sample, how many of its testpoints the judge finds.</p>" + "\n".join(rows)
    )
    output.mkdir(parents=True, exist_ok=True)
    _overview(shown[::per_dimension], output / "overview.png")
    target = output / "gallery.html"
    atomic.write_text(target, page)
    return target


def _chosen(prompts: Sequence[Prompt], per_dimension: int) -> list[Prompt]:
    by_dimension: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        by_dimension[prompt.meta["dimension"]].append(prompt)
    return [prompt for name in PRIMARY_DIMENSIONS for prompt in by_dimension[name][:per_dimension]]


def _overview(rows: Sequence[tuple[Prompt, Sequence[tuple[np.ndarray, str]]]], path: Path) -> None:
    """One PNG, a row per prompt: the words, then the captioned pictures."""
    from matplotlib.figure import Figure

    columns = 1 + max(len(captioned) for _, captioned in rows)
    figure = Figure(figsize=(8.6, 1.08 * len(rows)), dpi=84, layout="constrained")
    places = figure.subplots(len(rows), columns, squeeze=False, width_ratios=[2.6] + [1] * (columns - 1))
    for row, (prompt, captioned) in zip(places, rows, strict=True):
        for axes in row:
            axes.axis("off")
        row[0].text(0, 0.95, prompt.meta["dimension"], fontsize=9, weight="bold", va="top")
        row[0].text(0, 0.7, textwrap.fill(prompt.text, 36), fontsize=8, va="top")
        for axes, (pixels, caption) in zip(row[1:], captioned, strict=False):
            axes.imshow(pixels)
            axes.set_title(caption, fontsize=7, pad=2)
    with atomic.replacing(path) as temporary:
        figure.savefig(temporary, pil_kwargs={"optimize": True})


def pixels_of(image: Tensor) -> np.ndarray:
    """uint8 [H, W, 3] of an image [3, H, W] in 0..1."""
    pixels: np.ndarray = (image.permute(1, 2, 0).clamp(0, 1) * 255).round().byte().numpy()
    return pixels


def _figure(pixels: np.ndarray, caption: str) -> str:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="PNG")
    data = base64.b64encode(content.getvalue()).decode()
    return f'<figure><img src="data:image/png;base64,{data}" alt=""><figcaption>{caption}</figcaption></figure>'
