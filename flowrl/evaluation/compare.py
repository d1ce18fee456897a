"""Two evaluations of the same prompts, prompt by prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from flowrl import atomic
from flowrl.errors import UserError, listing
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


def compare(before: Path, after: Path) -> Comparison:
    """The paired comparison of two evaluations. Raises UserError where their prompts differ, or no metric is common."""
    folders = [find_evaluation(folder) for folder in (before, after)]
    results = [Results.load(folder / RESULTS) for folder in folders]
    values = [_read(folder) for folder in folders]
    _check_prompts(folders, values)
    skipped = _not_comparable(*results)
    names = [name for name in results[0].metrics if name in results[1].metrics and name not in skipped]
    compared = {}
    for name in names:
        pairs = [_pair(values, index, name) for index in values[0]]
        both = np.array([pair for pair in pairs if pair is not None])
        if len(both):
            compared[name] = _difference(both, asked=len(pairs))
        else:
            skipped[name] = "no prompt has an answer in both"
    if not compared:
        reasons = "; ".join(f"{name}: {why}" for name, why in skipped.items()) or "neither has a metric of the other"
        raise UserError(f"{folders[0]} and {folders[1]} have no metric to compare: {reasons}")
    return Comparison(
        before=str(folders[0]),
        after=str(folders[1]),
        settings=_settings(*results),
        metrics=compared,
        not_compared=skipped,
        provenance=Provenance.here(),
    )


def _read(folder: Path) -> dict[int, PromptResult]:
    path = folder / PER_PROMPT
    if not path.is_file():
        raise UserError(f"{folder} lacks {PER_PROMPT}; make it with flowrl eval --stage table --output {folder}")
    found = (PromptResult.parse(line, path) for line in records.read(path))
    return {prompt.index: prompt for prompt in found}


def _check_prompts(folders: list[Path], values: list[dict[int, PromptResult]]) -> None:
    texts = [{index: prompt.prompt for index, prompt in found.items()} for found in values]
    differing = [i for i in sorted(texts[0].keys() | texts[1].keys()) if texts[0].get(i) != texts[1].get(i)]
    if differing:
        examples = "\n  ".join(f"{i}: {texts[0].get(i)!r} and {texts[1].get(i)!r}" for i in differing[:SHOWN])
        raise UserError(
            f"{folders[0]} and {folders[1]} are not of the same prompts: {len(differing)} of "
            f"{max(map(len, texts))} differ (index: text, None where it has none):\n  {examples}\n"
            "evaluate both with the same --prompts and --limit"
        )


def _not_comparable(before: Results, after: Results) -> dict[str, str]:
    skipped = {}
    for name in {**before.metrics, **after.metrics}:
        if name not in before.metrics or name not in after.metrics:
            skipped[name] = f"only in {'the first' if name in before.metrics else 'the second'}"
            continue
        one, other = before.metrics[name].identity, after.metrics[name].identity
        if not same(one, other):
            keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
            skipped[name] = f"another scorer: {listing(keys)} differ"
    return skipped


def _pair(values: list[dict[int, PromptResult]], index: int, name: str) -> tuple[float, float] | None:
    before, after = (found[index].scores.get(name) for found in values)
    return None if before is None or after is None else (before, after)


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
    yield f"# {comparison.after} against {comparison.before}"
    yield ""
    yield "Paired by prompt, 95 % bootstrap intervals; a prompt that scores higher is a win, a tie is half of one."
    yield ""
    yield "| metric | before | after | difference | 95 % interval | verdict | win rate | prompts |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, found in comparison.metrics.items():
        change = found.difference
        verdict = "excludes 0" if found.excludes_zero else "includes 0"
        prompts = str(found.prompts) if found.prompts == found.asked else f"{found.prompts} of {found.asked}"
        yield (
            f"| {name} | {found.before:.4f} | {found.after:.4f} | {change.mean:+.4f} "
            f"| {change.low:+.4f} to {change.high:+.4f} | {verdict} | {found.win_rate:.1%} | {prompts} |"
        )
    if comparison.settings or comparison.not_compared:
        yield ""
    for key, (one, other) in comparison.settings.items():
        yield f"- the images were drawn differently: {key} {one} and {other}"
    for name, why in comparison.not_compared.items():
        yield f"- {name} is not compared: {why}"


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
