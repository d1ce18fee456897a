"""The third stage: means with intervals, a table to read and a sheet to look at, from the files of the others alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from flowrl import atomic
from flowrl.errors import UserError
from flowrl.escape import markdown as escaped
from flowrl.evaluation import benchmarks, contact_sheet, records
from flowrl.evaluation.results import (
    GENERATION,
    MANIFEST,
    PER_PROMPT,
    RESULTS,
    SCORES,
    Estimate,
    Generation,
    ImageRecord,
    MetricResult,
    PromptResult,
    Provenance,
    Results,
    ScoreRecord,
    ScorerRecord,
    read_manifest,
    scores_path,
)
from flowrl.evaluation.score import Key, known_scores
from flowrl.markdown import table
from flowrl.statistics import mean_interval

MARKDOWN = "results.md"
SHEET = "contact_sheet.png"


def tabulate(folder: Path) -> Results:
    """Write results.json, results.md, per_prompt.jsonl and contact_sheet.png, of every metric whose scores are there.

    A metric whose scores are not of all images that there are now is named as unfinished and left out. Raises UserError
    where there are no scores.
    """
    benchmark = benchmarks.summary(folder)
    images = read_manifest(folder) if benchmark is None or (folder / MANIFEST).is_file() else []
    scorers = scored_metrics(folder)
    found = {name: known_scores(scores_path(folder, name), images) for name in scorers}
    scores = {name: lines for name, lines in found.items() if len(lines) == len(images)}
    if not scores and benchmark is None:
        raise UserError(f"{folder} holds no scores yet; make them with flowrl eval --stage score --output {folder}")
    results = Results(
        generation=Generation.load((folder if images else folder / benchmarks.NAME) / GENERATION),
        metrics={name: _result(scorers[name], lines) for name, lines in scores.items()},
        unfinished={name: len(lines) for name, lines in found.items() if name not in scores},
        benchmarks={benchmarks.NAME: benchmark} if benchmark is not None else {},
        provenance=Provenance.here(),
    )
    prompts = list(_per_prompt(images, scores))
    results.write(folder / RESULTS)
    records.merge(folder / PER_PROMPT, [prompt.model_dump() for prompt in prompts])
    atomic.write_text(folder / MARKDOWN, "\n".join(markdown(results)) + "\n")
    if scores:
        contact_sheet.draw(folder, images, prompts, scores, folder / SHEET)
    return results


def scored_metrics(folder: Path) -> dict[str, ScorerRecord]:
    """Name -> what scored, in the order in which they were first asked for; both as the records say.

    Raises UserError where a file of scores has got another name than its metric.
    """
    found = {}
    for path in (folder / SCORES).glob("*.json"):
        record = ScorerRecord.load(path)
        if path != scores_path(folder, record.metric).with_suffix(".json"):
            raise UserError(f"{path} holds what scored metric {record.metric!r}; give both of its files that name back")
        if path.with_suffix(".jsonl").is_file():
            found[record.metric] = record
    return dict(sorted(found.items(), key=lambda item: (item[1].order, item[0])))


def _result(scorer: ScorerRecord, scores: Mapping[Key, ScoreRecord]) -> MetricResult:
    values = _means({key: line.value for key, line in scores.items()})
    parts = {part: None for line in scores.values() for part in line.parts}
    of_parts = {part: _means({key: line.parts.get(part) for key, line in scores.items()}) for part in parts}
    return MetricResult(
        identity=scorer.identity,
        provenance=scorer.provenance,
        asked=len(scores),
        valid=sum(line.valid for line in scores.values()),
        prompts=len(values),
        estimate=_estimate(values),
        parts={part: found for part, means in of_parts.items() if (found := _estimate(means)) and means != values},
    )


def _means(values: Mapping[Key, float | None]) -> dict[int, float]:
    """Prompt -> mean over its images that have a value; a prompt that has none is left out."""
    by_prompt: dict[int, list[float]] = {}
    for (index, _), value in values.items():
        if value is not None:
            by_prompt.setdefault(index, []).append(value)
    return {index: fmean(found) for index, found in by_prompt.items()}


def _estimate(means: Mapping[int, float]) -> Estimate | None:
    return Estimate.of(mean_interval(list(means.values()))) if means else None


def _per_prompt(
    images: Sequence[ImageRecord], scores: Mapping[str, Mapping[Key, ScoreRecord]]
) -> Iterator[PromptResult]:
    means = {name: _means({key: line.value for key, line in found.items()}) for name, found in scores.items()}
    texts = {image.index: image.prompt for image in images}
    for index, text in texts.items():
        yield PromptResult(index=index, prompt=text, scores={name: found.get(index) for name, found in means.items()})


# ---- the table


def markdown(results: Results) -> Iterator[str]:
    """The lines of results.md. What was not answered stands in the title and beside its metric."""
    made, how = results.generation, results.generation.drawing
    incomplete = [f"{name} {percent(found)}" for name, found in results.metrics.items() if found.valid < found.asked]
    incomplete += [
        f"{name} {int(found['coverage'] * 1000) / 10:.1f} %"
        for name, found in results.benchmarks.items()
        if found["coverage"] < 1
    ]
    yield f"# {escaped(made.model)}" + (f" (coverage: {', '.join(incomplete)})" if incomplete else "")
    yield ""
    each = "an image" if made.images_per_prompt == 1 else f"{made.images_per_prompt} images"
    hybrid = "" if how.hybrid_steps is None else f" (the first {how.hybrid_steps} tuned)"
    yield (
        f"{made.num_prompts} prompts of {escaped(made.prompts)}, {each} each, {how.height}x{how.width}, "
        f"{how.num_steps} steps{hybrid}, {how.sigmas} sigmas, seed {how.seed}. "
        "Means over prompts, 95 % bootstrap intervals."
    )
    yield ""
    yield from table(["metric", "mean", "95 % interval", "coverage"], list(_rows(results)))
    yield ""
    for found in results.benchmarks.values():
        yield from benchmarks.markdown(found)
    git = made.provenance.git
    program = f"flowrl {made.provenance.flowrl}" + (f", commit {git.sha[:12]}{' (changed)' * git.dirty}" if git else "")
    recipe = f", recipe {made.recipe_digest}" if made.recipe_digest else ""
    yield f"Model {made.model_digest}{recipe}; {program}."


def _rows(results: Results) -> Iterator[list[str]]:
    for name, found in results.metrics.items():
        yield [escaped(name), *_cells(found.estimate), f"{found.valid} of {found.asked} ({percent(found)})"]
        for part, estimate in found.parts.items():
            yield [escaped(f"{name}: {part}"), *_cells(estimate), ""]
    for name, count in results.unfinished.items():
        yield [escaped(name), "", "", f"only {count} images are scored: score the others"]


def _cells(estimate: Estimate | None) -> list[str]:
    if estimate is None:
        return ["none", "none"]
    return [f"{estimate.mean:.4f}", f"{estimate.low:.4f} to {estimate.high:.4f}"]


def percent(found: MetricResult) -> str:
    """The coverage, rounded down, so that only all is 100 %."""
    return f"{found.valid * 1000 // found.asked / 10:.1f} %"
