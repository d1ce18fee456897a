"""The same prompts and noise drawn by every method, shown where a rule says: the best, the median and the worst.

Pictures travel inside the measurement (PNG in base64, no side above ``THUMBNAIL``): it is all that a page needs. For
each prompt let d be its score by one method minus its score by the untrained model, the mean over seeds. Chosen are
those of the highest, the median (of an even number the lower of the two) and the lowest d, the first among equals, and
of each the pictures of the first seed.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowrl import atomic
from flowrl.bench.report import Comparison, Gallery, Picture
from flowrl.bench.within import rounded
from flowrl.data import load_prompts
from flowrl.errors import UserError
from flowrl.progress import counted
from flowrl.recipe import Recipe
from flowrl.sampling import Sampler, drawing, find_source
from flowrl.types import Prompt

THUMBNAIL = 256
RULES = ("highest", "median", "lowest")


# ---- measuring


def forwards(recipe: Recipe, *, num_prompts: int = 64, **_: Any) -> int:
    """Velocity evaluations of :func:`measure`."""
    return num_prompts * (recipe.evaluation.generate.num_steps or recipe.evaluation.num_steps)


def measure(recipe: Recipe, *, num_prompts: int = 64, seed: int = 0, score: str = "gold") -> dict[str, Any]:
    """Draw the first test prompts with the recipe's model through plain diffusers, and judge them; JSON values.

    ``seed`` of the noise, the same for every method. ``score``: a scorer of ``evaluation.scorers``.
    Raises UserError where the recipe has no such scorer or no test prompts.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scorers = recipe.evaluation.scorers
    if score not in scorers or recipe.data.test is None:
        raise UserError(f"a gallery needs data.test and evaluation.scorers.{score}")
    prompts = load_prompts(recipe.data.test)[:num_prompts]
    model: Any = recipe.model
    source = replace(find_source(model.source), config=model, evaluation=recipe.evaluation)
    how = drawing(source, **recipe.evaluation.generate.model_dump(), seed=seed)
    sampler, judge = Sampler(source, how, device), scorers[score].load(device)
    values: list[float | None] = []
    pictures: list[str] = []
    for start in range(0, len(prompts), sampler.batch):
        chunk: list[Prompt] = prompts[start : start + sampler.batch]
        images = sampler.draw(chunk)
        found = judge.score(images.to(device), chunk)
        values += rounded(found.values.double().where(found.valid, torch.nan).cpu().tolist())
        pictures += [encoded(image) for image in images]
    return {
        "kind": "gallery",
        "method": recipe.name,
        "seed": recipe.run.seed,
        "noise": seed,
        "score": score,
        "prompts": [[prompt.index, prompt.text] for prompt in prompts],
        "values": values,
        "pictures": pictures,
    }


def encoded(image: Tensor) -> str:
    """[3, H, W] in 0..1 as a PNG of at most ``THUMBNAIL`` pixels a side, in base64."""
    from PIL import Image

    pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    picture = Image.fromarray(pixels)
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    into = io.BytesIO()
    picture.save(into, "PNG", optimize=True)
    return base64.b64encode(into.getvalue()).decode()


# ---- what it shows


def chosen(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, float]]:
    """(rule, place of the prompt, difference). ``before``, ``after``: measurements by seed, of the same prompts.

    Prompts without an answer in one of them are not chosen. Fewer prompts than rules: those there are.
    """
    means = [np.array([m["values"] for m in found], dtype=np.float64).mean(0) for found in (before, after)]
    difference = means[1] - means[0]
    order = sorted(np.flatnonzero(np.isfinite(difference)).tolist(), key=lambda place: (-difference[place], place))
    if not order:
        return []
    lowest = min(place for place in order if difference[place] == difference[order[-1]])
    places = zip(RULES, (order[0], order[len(order) // 2], lowest), strict=True)
    found: dict[int, str] = {}
    for rule, place in places:
        found.setdefault(place, rule)
    return [(rule, place, float(difference[place])) for place, rule in found.items()]


def gallery(
    measurements: Mapping[str, Sequence[Mapping[str, Any]]], *, base: str, reference: str
) -> tuple[Gallery, dict[str, bytes]]:
    """The gallery, and the files that lie beside its report.

    ``measurements``: method's title -> by seed; ``base`` is the untrained model's and ``reference`` the method that the
    rule is about.
    """
    found = chosen(measurements[base], measurements[reference])
    first = measurements[base][0]
    comparisons, files = [], {}
    for rule, place, difference in found:
        index, text = first["prompts"][place]
        pictures = []
        for number, (name, by_seed) in enumerate(measurements.items()):
            file = f"gallery/{index}_{number}.png"
            files[file] = base64.b64decode(by_seed[0]["pictures"][place])
            pictures.append(Picture(file=file, label=name, score=by_seed[0]["values"][place]))
        why = f"{rule} difference of {first['score']} between {reference} and {base}: {difference:+.3f}"
        comparisons.append(Comparison(prompt=text, chosen=why, pictures=tuple(pictures)))
    count = len(first["prompts"])
    runs = counted(len(measurements[base]), "seed")
    shown = Gallery(
        name="gallery",
        title="The same prompts and noise",
        comparisons=tuple(comparisons),
        caption=f"Of the first {count} test prompts those with the highest, the median and the lowest difference of "
        f"{first['score']} between {reference} and {base} (means over {runs}); noise seed "
        f"{first['noise']}, pictures of the first run.",
    )
    return shown, files


def write(files: Mapping[str, bytes], folder: Path) -> None:
    """The pictures, beside the report."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        atomic.write_bytes(folder / name, content)
