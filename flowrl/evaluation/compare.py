"""Two evaluations of the same prompts, prompt by prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowrl import atomic
from flowrl.errors import UserError, listing
from flowrl.escape import markdown as escaped
from flowrl.evaluation import records
from flowrl.evaluation.results import (
    PER_PROMPT,
    RESULTS,
    Estimate,
    PromptResult,
    Provenance,
    Record,
    Results,
    same,
)
from flowrl.markdown import table
from flowrl.statistics import difference_interval

SHOWN = 3
"""Differing prompts that an error quotes."""


class Difference(Record):
    """A metric in both, over the prompts that both have a value for."""

    before: float
    after: float
    difference: Estimate
    """after - before, paired."""
    excludes_zero: bool
    win_rate: float
    """Of prompts where after is higher; a tie is half a win."""
    prompts: int
    """That are compared."""
    asked: int


class Comparison(Record):
    """What ``flowrl compare`` finds."""

    before: str
    after: str
    settings: dict[str, tuple[str, str]]
    """What the two differ in besides the model: before and after."""
    metrics: dict[str, Difference]
    not_compared: dict[str, str]
    """Metric -> why."""
    provenance: Provenance


def find_evaluation(folder: Path) -> Path:
    """The evaluation in a folder, or the only one in a folder of it. Raises UserError."""
    if (folder / RESULTS).is_file():
        return folder
    if not folder.is_dir():
        raise UserError(f"no evaluation: {folder} does not exist")
    found = sorted(path.parent for path in folder.glob(f"*/{RESULTS}"))
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{folder} holds several evaluations; name one: {listing(found)}")
    raise UserError(f"{folder} holds no evaluation ({RESULTS} is missing); make one with flowrl eval")


@dataclass(frozen=True)
class _Side:
    """One evaluation, as far as it is compared."""

    folder: Path
    results: Results
    texts: Mapping[int, str]
    """Index -> prompt."""
    identities: Mapping[str, Mapping[str, Any]]
    """Metric -> what must be equal where its numbers are compared."""
    values: Mapping[str, Mapping[int, float | None]]
    """Metric -> index -> value."""


def compare(before: Path, after: Path) -> Comparison:
    """The paired comparison of two evaluations. Raises UserError where their prompts differ, or no metric is common."""
    one, other = _read(find_evaluation(before)), _read(find_evaluation(after))
    _check_prompts(one, other)
    skipped = _not_comparable(one.identities, other.identities)
    compared = {}
    for name in [name for name in one.values if name not in skipped]:
        theirs, yours = one.values[name], other.values[name]
        pairs = [(theirs[index], yours.get(index)) for index in theirs]
        both = np.array([pair for pair in pairs if None not in pair], dtype=float)
        if len(both):
            compared[name] = _difference(both, asked=len(pairs))
        else:
            skipped[name] = "no prompt has an answer in both"
    if not compared:
        reasons = "; ".join(f"{name}: {why}" for name, why in skipped.items())
        raise UserError(f"{one.folder} and {other.folder} have no metric to compare: {reasons}")
    return Comparison(
        before=str(one.folder),
        after=str(other.folder),
        settings=_settings(one.results, other.results),
        metrics=compared,
        not_compared=skipped,
        provenance=Provenance.here(),
    )


def _read(folder: Path) -> _Side:
    results = Results.load(folder / RESULTS)
    prompts = _per_prompt(folder)
    identities: dict[str, Mapping[str, Any]] = {name: found.identity for name, found in results.metrics.items()}
    values = {name: {prompt.index: prompt.scores.get(name) for prompt in prompts} for name in identities}
    for name, found in results.benchmarks.items():
        of_benchmark = _per_prompt(folder / name)
        label = f"{name}: testpoints"  # its overall mean is of dimensions, not of prompts
        identities[label] = {key: found[key] for key in ("judge", "wording", "benchmark")}
        values[label] = {prompt.index: prompt.scores.get(name) for prompt in of_benchmark}
    return _Side(folder, results, {prompt.index: prompt.prompt for prompt in prompts}, identities, values)


def _per_prompt(folder: Path) -> list[PromptResult]:
    path = folder / PER_PROMPT
    if not path.is_file():
        raise UserError(f"{folder} lacks {PER_PROMPT}; make it with flowrl eval --stage table --output DIR")
    return [PromptResult.parse(line, path) for line in records.read(path)]


def _check_prompts(one: _Side, other: _Side) -> None:
    theirs, yours = one.texts, other.texts
    differing = [i for i in sorted(theirs.keys() | yours.keys()) if theirs.get(i) != yours.get(i)]
    if differing:
        examples = "\n  ".join(f"{i}: {theirs.get(i)!r} and {yours.get(i)!r}" for i in differing[:SHOWN])
        raise UserError(
            f"{one.folder} and {other.folder} are not of the same prompts: {len(differing)} of "
            f"{max(len(theirs), len(yours))} differ (index: text, None where it has none):\n  {examples}\n"
            "evaluate both with the same --prompts and --limit"
        )


def _not_comparable(before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Metric -> why the two cannot be compared, by their identities."""
    skipped = {}
    for name in {**before, **after}:
        if name not in before or name not in after:
            skipped[name] = f"only in {'the first' if name in before else 'the second'}"
            continue
        one, other = before[name], after[name]
        if not same(one, other):
            keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
            skipped[name] = f"another scorer: {listing(keys)} differ"
    return skipped


def _difference(pairs: np.ndarray, asked: int) -> Difference:
    """``pairs`` [n, 2]."""
    before, after = pairs.T
    interval = difference_interval(before, after)
    return Difference(
        before=float(before.mean()),
        after=float(after.mean()),
        difference=Estimate.of(interval),
        excludes_zero=interval.excludes_zero,
        win_rate=float(((after > before) + 0.5 * (after == before)).mean()),
        prompts=len(pairs),
        asked=asked,
    )


def _settings(before: Results, after: Results) -> dict[str, tuple[str, str]]:
    one, other = (_described(results) for results in (before, after))
    return {key: (one[key], other[key]) for key in one if one[key] != other[key]}


def _described(results: Results) -> Mapping[str, str]:
    made = results.generation
    values = asdict(made.drawing) | {"images_per_prompt": made.images_per_prompt}
    return {key: str(value) for key, value in values.items()}


# ---- the table


def markdown(comparison: Comparison) -> Iterator[str]:
    """The lines of the comparison's table."""
    yield f"# {escaped(comparison.after)} against {escaped(comparison.before)}"
    yield ""
    yield "Paired by prompt, 95 % bootstrap intervals; a prompt that scores higher is a win, a tie is half of one."
    yield ""
    head = ["metric", "before", "after", "difference", "95 % interval", "verdict", "win rate", "prompts"]
    yield from table(head, [_row(name, found) for name, found in comparison.metrics.items()])
    if comparison.settings or comparison.not_compared:
        yield ""
    for key, (one, other) in comparison.settings.items():
        yield f"- the images were drawn differently: {key} {escaped(one)} and {escaped(other)}"
    for name, why in comparison.not_compared.items():
        yield f"- {escaped(name)} is not compared: {escaped(why)}"


def _row(name: str, found: Difference) -> list[str]:
    change = found.difference
    return [
        escaped(name),
        f"{found.before:.4f}",
        f"{found.after:.4f}",
        f"{change.mean:+.4f}",
        f"{change.low:+.4f} to {change.high:+.4f}",
        "excludes 0" if found.excludes_zero else "includes 0",
        f"{found.win_rate:.1%}",
        str(found.prompts) if found.prompts == found.asked else f"{found.prompts} of {found.asked}",
    ]


def write(comparison: Comparison, output: Path) -> tuple[Path, Path]:
    """The table as Markdown and the record as JSON, beside each other under ``output``'s name."""
    stem = output.with_suffix("") if output.suffix in (".md", ".json") else output
    paths = stem.with_name(f"{stem.name}.md"), stem.with_name(f"{stem.name}.json")
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(paths[0], "\n".join(markdown(comparison)) + "\n")
        comparison.write(paths[1])
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error.strerror}") from error
    return paths
