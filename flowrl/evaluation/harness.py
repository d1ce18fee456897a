"""An evaluation from what was asked for to the files: everything is checked before anything is drawn."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flowrl.data import load_prompts
from flowrl.errors import UserError
from flowrl.evaluation import benchmarks
from flowrl.evaluation.generate import check_folder, generate
from flowrl.evaluation.metrics import ALL, MetricsFragment, find_metrics
from flowrl.evaluation.ranks import Ranks, ranks
from flowrl.evaluation.results import GENERATION, Generation, Provenance, Results, read_manifest
from flowrl.evaluation.score import score
from flowrl.evaluation.table import tabulate
from flowrl.evaluation.unigenbench.benchmark import Benchmark
from flowrl.sampling import Drawing, Sampler, Sigmas, Source, drawing, find_source
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
    benchmark: str | None = None
    """The prompts of UniGenBench++."""
    resume: bool = False


@dataclass(frozen=True)
class Images:
    """Images that are asked for, in a folder of their own."""

    folder: Path
    generation: Generation
    prompts: Sequence[Prompt]


@dataclass(frozen=True)
class Evaluation:
    """A request that can be carried out."""

    request: Request
    source: Source | None
    """None where no images are drawn."""
    images: Sequence[Images]
    metrics: MetricsFragment
    benchmark: Benchmark | None


def prepare(request: Request) -> Evaluation:
    """Check everything that can be checked without loading a model. Raises UserError."""
    folder = request.output
    if request.resume and not _recorded(folder):
        raise UserError(f"--resume: {folder} holds no evaluation ({GENERATION} is missing)")
    if request.stage == "table":
        return Evaluation(request, None, (), MetricsFragment(), None)
    if request.stage == "score":
        if not _recorded(folder):
            read_manifest(folder)  # says what is missing
        metrics = find_metrics(request.metrics, Generation.load(_recorded(folder)[0]).metrics)
        metrics.check()
        return Evaluation(request, None, (), metrics, _benchmark(request, metrics))
    source = _source(request)
    metrics = find_metrics(request.metrics, source.evaluation.metrics if source.evaluation else BARE_METRICS)
    if request.stage == "all":
        metrics.check()
    benchmark = _benchmark(request, metrics)
    return Evaluation(request, source, list(_images(request, source, metrics, benchmark)), metrics, benchmark)


def run(evaluation: Evaluation) -> Results | None:
    """Carry it out in the stages asked for; every process of several calls this.

    Returns the results on the first process where they are tabulated, else None.
    """
    request, folder = evaluation.request, evaluation.request.output
    with ranks() as here:
        if evaluation.source is not None:
            sampler = Sampler(evaluation.source, evaluation.images[0].generation.drawing, here.device)
            for images in evaluation.images:
                sampler.how = images.generation.drawing  # they differ in the number of steps alone
                generate(images.folder, images.generation, images.prompts, sampler, here)
            del sampler  # a scorer needs its memory
        if request.stage in ("all", "score"):
            _score(evaluation, here)
        if request.stage in ("all", "table") and here.is_first:
            return tabulate(folder)
    return None


def _score(evaluation: Evaluation, here: Ranks) -> None:
    metrics, folder = evaluation.metrics, evaluation.request.output
    if metrics.metrics:
        score(folder, metrics.metrics, here)
    config, benchmark = metrics.benchmarks.unigenbench, evaluation.benchmark
    if config is not None and benchmark is not None and here.is_first:  # one process asks: the judge is the limit
        benchmarks.judge_images(config, benchmark, folder, here.say)
    here.wait()


def _recorded(folder: Path) -> list[Path]:
    """What says how images were drawn: the metrics' and the benchmark's, where there are some."""
    return [path for path in (folder / GENERATION, folder / benchmarks.NAME / GENERATION) if path.is_file()]


def _benchmark(request: Request, metrics: MetricsFragment) -> Benchmark | None:
    config, limit = metrics.benchmarks.unigenbench, request.limit
    if config is None:
        return None
    if request.stage == "score":
        drawn = request.output / benchmarks.NAME
        read_manifest(drawn)  # says what is missing
        limit = Generation.load(drawn / GENERATION).num_prompts
    benchmark = config.load(request.benchmark, request.output, limit)
    if request.stage != "generate":
        config.wording(benchmark)  # says what is missing
    return benchmark


def _source(request: Request) -> Source:
    if request.model_or_run is None:
        raise UserError(f"--stage {request.stage} draws images: name a MODEL_OR_RUN")
    source = find_source(request.model_or_run)
    source.config.check()
    return source


def _images(
    request: Request, source: Source, metrics: MetricsFragment, benchmark: Benchmark | None
) -> Iterator[Images]:
    """What the metrics judge, and what the benchmark does."""
    if metrics.metrics:
        named = request.prompts or source.prompts
        if named is None:
            raise UserError(f"{request.model_or_run} names no test prompts (data.test); give some by --prompts")
        prompts = load_prompts(named)[: request.limit]
        how = _drawing(request, source)
        yield _checked(request, source, how, request.output, named, prompts, request.images_per_prompt)
    config = metrics.benchmarks.unigenbench
    if config is not None and benchmark is not None:
        folder, prompts = request.output / benchmarks.NAME, benchmark.to_draw()
        how = _drawing(request, source, config.num_steps)
        yield _checked(request, source, how, folder, benchmark.source, prompts, config.images_per_prompt)


def _checked(
    request: Request,
    source: Source,
    how: Drawing,
    folder: Path,
    named: str,
    prompts: Sequence[Prompt],
    images_per_prompt: int,
) -> Images:
    generation = Generation(
        model=str(request.model_or_run),
        model_digest=source.digest(),
        recipe_digest=source.recipe_digest,
        drawing=how,
        prompts=named,
        num_prompts=len(prompts),
        images_per_prompt=images_per_prompt,
        metrics=source.evaluation.metrics if source.evaluation else BARE_METRICS,
        provenance=Provenance.here(),
    )
    check_folder(folder, generation, prompts)
    return Images(folder, generation, prompts)


def _drawing(request: Request, source: Source, num_steps: int | None = None) -> Drawing:
    """What was asked for, else ``num_steps``, else the model's own."""
    own = source.evaluation.generate if source.evaluation is not None else None
    height, width = _size(request.size) if request.size else (None, None)
    steps = request.num_steps
    if steps is None and request.sigmas == "pipeline":
        steps = num_steps or (own.num_steps if own else None)
    return drawing(
        source,
        num_steps=steps,
        sigmas=request.sigmas,
        height=height or (own.height if own else None),
        width=width or (own.width if own else None),
        seed=request.seed,
        hybrid_steps=request.hybrid_steps,
    )


def _size(text: str) -> tuple[int, int]:
    """Height and width.

    >>> _size("720x1280")
    (720, 1280)
    """
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if found is None:
        raise UserError(f"--size must be HEIGHTxWIDTH in pixels, for example 1024x1024, got {text!r}")
    return int(found[1]), int(found[2])
