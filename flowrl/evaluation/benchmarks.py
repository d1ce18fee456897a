"""UniGenBench++ as a part of an evaluation: its prompts are drawn like all others, and a judge is asked about them.

OUTPUT/unigenbench/ is an evaluation's folder of its own, with the judge's answers and the benchmark's tables in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field

from flowrl.errors import UserError
from flowrl.evaluation import records
from flowrl.evaluation.generate import BENCHMARK
from flowrl.evaluation.results import (
    GENERATION,
    PER_PROMPT,
    Generation,
    PromptResult,
    read_manifest,
)
from flowrl.evaluation.unigenbench.benchmark import Benchmark, Rows, load_benchmark
from flowrl.evaluation.unigenbench.evaluate import ANSWERS, OnFailure, evaluate
from flowrl.evaluation.unigenbench.report import SUMMARY
from flowrl.evaluation.unigenbench.wording import Wording, official_wording, own_wording
from flowrl.markdown import table
from flowrl.protocols import JudgeConfig
from flowrl.recipe import Section

if TYPE_CHECKING:
    from flowrl.evaluation.unigenbench.report import BenchResult

NAME = BENCHMARK


class UniGenBench(Section):
    """What is asked of whom. The prompts' images are drawn with the evaluation's settings, but for the steps."""

    judge: JudgeConfig
    prompts: str | None = None
    """The benchmark's CSV, or ``WORLD:bench``; ``--benchmark`` wins over it."""
    images_per_prompt: int = Field(default=4, ge=1)
    num_steps: int | None = Field(default=None, ge=1, le=1000)
    """Denoising steps of its images; null: the evaluation's. ``--steps`` and ``--sigmas recipe`` win over it."""
    rows: Rows = "fail"
    """What becomes of broken rows of the CSV."""
    official_from: Path | None = None
    """A checkout of the benchmark, whose wording is used in place of this project's own."""
    max_retries: int = Field(default=10, ge=0)
    """Times that an unreadable answer is asked for again."""
    on_failure: OnFailure = "skip"
    """An image without an answer that counts is left out, which lowers the coverage (``skip``), or ends it all."""

    def wording(self, benchmark: Benchmark) -> Wording:
        """How the judge is asked. Raises UserError where the official wording cannot be read, or lacks something that a
        prompt needs."""
        language = benchmark.language
        asked = own_wording(language) if self.official_from is None else official_wording(self.official_from, language)
        for prompt in benchmark.prompts:
            asked.render(prompt)
        return asked

    def load(self, named: str | None, folder: Path, limit: int | None) -> Benchmark:
        """The prompts of ``named``, else of the settings, else those whose images lie in the evaluation ``folder``."""
        recorded = folder / NAME / GENERATION
        source = named or self.prompts
        if source is None and recorded.is_file():
            source = Generation.load(recorded).prompts
        if source is None:
            raise UserError(f"metric {NAME} needs the benchmark's prompts: --benchmark CSV, or --metrics without it")
        return load_benchmark(source, self.rows).first(limit)


def judge_images(config: UniGenBench, benchmark: Benchmark, folder: Path, say: Callable[[str], None]) -> BenchResult:
    """Ask about the images in ``folder/unigenbench`` what has not been answered yet; write the benchmark's tables."""
    return evaluate(
        benchmark,
        folder / NAME / "images",
        config.judge.load(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        folder / NAME,
        identity=config.judge.identity(),
        wording=config.wording(benchmark),
        per_prompt=config.images_per_prompt,
        resume=True,
        max_retries=config.max_retries,
        on_failure=config.on_failure,
        workers=getattr(config.judge, "concurrency", 1),
        say=lambda text: say(f"{NAME}: {text}"),
    )


def summary(folder: Path) -> dict[str, Any] | None:
    """What the benchmark found, or None where it has not been judged. Writes its values per prompt, to compare."""
    path = folder / NAME / SUMMARY
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    records.merge(folder / NAME / PER_PROMPT, [line.model_dump() for line in _per_prompt(folder / NAME)])
    return found


def _per_prompt(folder: Path) -> Iterator[PromptResult]:
    """The share of testpoints that the judge grants, over all images of a prompt that are counted."""
    images = {image.key: image for image in read_manifest(folder)}
    newest = {(line["index"], line["sample"]): line for line in records.read(folder / ANSWERS)}
    granted: dict[int, list[bool]] = {}
    for key, line in newest.items():
        if key in images and line["image"] == images[key].sha256 and line["outcome"] == "counted":
            granted.setdefault(line["index"], []).extend(line["passed"])
    for index, text in {image.index: image.prompt for image in images.values()}.items():
        of_prompt = granted.get(index)
        share = sum(of_prompt) / len(of_prompt) if of_prompt else None
        yield PromptResult(index=index, prompt=text, scores={NAME: share})


def markdown(found: dict[str, Any]) -> Iterator[str]:
    """The paper's Table 5 with its intervals, from a summary."""
    rows = {"Overall": (found["overall"], found["overall_interval"])}
    rows |= {name: (values["accuracy"], values["interval"]) for name, values in found["dimensions"].items()}
    yield f"## {found['title']}"
    yield ""
    means = ["none" if mean is None else f"{100 * mean:.2f}" for mean, _ in rows.values()]
    ends = ["" if ends is None else f"{100 * ends[0]:.2f} to {100 * ends[1]:.2f}" for _, ends in rows.values()]
    yield from table(["", *rows], [["%", *means], ["95 % interval", *ends]])
    yield ""
