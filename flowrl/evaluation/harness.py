"""An evaluation from what was asked for to the files: everything is checked before anything is drawn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flowrl.data import load_prompts
from flowrl.errors import UserError
from flowrl.evaluation.generate import check_folder, generate
from flowrl.evaluation.metrics import ALL, MetricsFragment, find_metrics
from flowrl.evaluation.ranks import ranks
from flowrl.evaluation.results import GENERATION, Generation, Provenance, Results, read_manifest
from flowrl.evaluation.score import score
from flowrl.evaluation.table import tabulate
from flowrl.sampling import Sampler, Sigmas, Source, drawing, find_source
from flowrl.types import Prompt

Stage = Literal["all", "generate", "score", "table"]
BARE_METRICS = "official"
"""The metrics fragment of a pipeline that no model fragment describes."""


@dataclass(frozen=True)
class Request:
    """What ``flowrl eval`` was asked for; None is the model's own."""

    output: Path
    model_or_run: str | None = None
    stage: Stage = "all"
    metrics: str = ALL
    prompts: str | None = None
    num_steps: int | None = None
    sigmas: Sigmas = "pipeline"
    size: str | None = None
    images_per_prompt: int = 1
    hybrid_steps: int | None = None
    seed: int = 0
    limit: int | None = None
    resume: bool = False


@dataclass(frozen=True)
class Images:
    """The images that are asked for."""

    source: Source
    generation: Generation
    prompts: Sequence[Prompt]


@dataclass(frozen=True)
class Evaluation:
    """A request that can be carried out."""

    request: Request
    images: Images | None
    """None where images are not drawn."""
    metrics: MetricsFragment | None
    """None where nothing is scored."""


def prepare(request: Request) -> Evaluation:
    """Check everything that can be checked without loading a model. Raises UserError."""
    if request.resume and not (request.output / GENERATION).is_file():
        raise UserError(f"--resume: {request.output} holds no evaluation ({GENERATION} is missing)")
    draws = request.stage in ("all", "generate")
    images = _images(request) if draws else None
    if not draws:
        read_manifest(request.output)
    metrics = None
    if request.stage in ("all", "score"):
        fragment = images.generation.metrics if images else Generation.load(request.output / GENERATION).metrics
        metrics = find_metrics(request.metrics, fragment)
    return Evaluation(request, images, metrics)


def run(evaluation: Evaluation) -> Results | None:
    """Carry it out in the stages asked for; every process of several calls this.

    Returns the results on the first process where they are tabulated, else None.
    """
    request, folder = evaluation.request, evaluation.request.output
    with ranks() as here:
        if evaluation.images is not None:
            made = evaluation.images
            sampler = Sampler(made.source, made.generation.drawing, here.device)
            generate(folder, made.generation, made.prompts, sampler, here)
            del sampler  # a scorer needs its memory
        if evaluation.metrics is not None:
            score(folder, evaluation.metrics.metrics, here)
        if request.stage in ("all", "table") and here.is_first:
            return tabulate(folder)
    return None


def _images(request: Request) -> Images:
    if request.model_or_run is None:
        raise UserError(f"--stage {request.stage} draws images: name a MODEL_OR_RUN")
    source = find_source(request.model_or_run)
    source.config.check()
    own = source.evaluation.generate if source.evaluation is not None else None
    height, width = _size(request.size) if request.size else (None, None)
    steps = request.num_steps
    if steps is None and own is not None and request.sigmas == "pipeline":
        steps = own.num_steps
    how = drawing(
        source,
        num_steps=steps,
        sigmas=request.sigmas,
        height=height or (own.height if own else None),
        width=width or (own.width if own else None),
        seed=request.seed,
        hybrid_steps=request.hybrid_steps,
    )
    named = request.prompts or source.prompts
    if named is None:
        raise UserError(f"{request.model_or_run} names no test prompts (data.test); give some by --prompts")
    prompts = load_prompts(named)[: request.limit]
    generation = Generation(
        model=request.model_or_run,
        model_digest=source.digest(),
        recipe_digest=source.recipe_digest,
        drawing=how,
        prompts=named,
        num_prompts=len(prompts),
        images_per_prompt=request.images_per_prompt,
        metrics=source.evaluation.metrics if source.evaluation is not None else BARE_METRICS,
        provenance=Provenance.here(),
    )
    check_folder(request.output, generation, prompts)
    return Images(source, generation, prompts)


def _size(text: str) -> tuple[int, int]:
    """Height and width.

    >>> _size("720x1280")
    (720, 1280)
    """
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if found is None:
        raise UserError(f"--size must be HEIGHTxWIDTH in pixels, for example 1024x1024, got {text!r}")
    return int(found[1]), int(found[2])
