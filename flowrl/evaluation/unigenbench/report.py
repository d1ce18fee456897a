"""The results as files: the benchmark's own formats, and a summary and a table of ours."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flowrl
from flowrl import atomic
from flowrl.evaluation.unigenbench.benchmark import Benchmark
from flowrl.evaluation.unigenbench.counts import Counts, Row, Tally, official_scores
from flowrl.evaluation.unigenbench.dimensions import COLUMNS

SUMMARY, TABLE = "unigenbench.json", "unigenbench.md"


@dataclass(frozen=True)
class BenchResult:
    """One set of images, judged. ``identity`` and ``wording`` say who was asked and in whose words."""

    benchmark: Benchmark
    counts: Counts
    identity: Mapping[str, Any]
    wording: Mapping[str, str]
    per_prompt: int
    max_retries: int
    images: Path
    output: Path

    @property
    def title(self) -> str:
        """What was judged, and how much of it: no number is shown without it.

        A coverage below 100 % is rounded down, so that it never reads 100.
        """
        prompts, counts = self.benchmark, self.counts
        some = "" if len(prompts.prompts) == prompts.size else f" of {prompts.size}"
        text = f"UniGenBench++ {prompts.category}: {len(prompts.prompts)}{some} prompts x {self.per_prompt} images"
        if counts.counted == counts.asked:
            return f"{text}, coverage 100 %"
        percent = math.floor(counts.coverage * 1e4) / 100
        lost = counts.asked - counts.counted
        return f"{text}, coverage {percent:.2f} % ({lost} of {counts.asked} answers are missing from the numbers)"

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values; shares are in 0..1."""
        counts, prompts = self.counts, self.benchmark
        return {
            "title": self.title,
            "overall": counts.overall,
            "overall_interval": _ends(counts, "Overall"),
            "overall_failed_as_0": counts.overall_at_least,
            "coverage": counts.coverage,
            "images": {"asked": counts.asked, **counts.outcomes},
            "testpoints": _tally(counts.micro),
            "dimensions": {
                name: _tally(tally) | {"interval": _ends(counts, name)} for name, tally in counts.primary.items()
            },
            "sub_dimensions": {name: _tally(tally) for name, tally in counts.sub.items()},
            "benchmark": {
                "source": prompts.source,
                "category": prompts.category,
                "language": prompts.language,
                "prompts": len(prompts.prompts),
                "rows": prompts.size,
                "repaired": list(prompts.repaired),
                "skipped": list(prompts.skipped),
                "sha256": prompts.digest(),
            },
            "judge": dict(self.identity),
            "wording": dict(self.wording),
            "max_retries": self.max_retries,
            "images_per_prompt": self.per_prompt,
            "images_folder": str(self.images),
            "flowrl": flowrl.__version__,
        }

    def table(self) -> list[tuple[str, list[str]]]:
        """The paper's Table 5: the header, the accuracies, their intervals and the accuracies with failed answers as
        not passed; in percent. The last two rows only where they say something."""
        counts = self.counts
        rows = [("%", ["Overall", *COLUMNS.values()])]
        rows.append(("accuracy", _percents([counts.overall, *(tally.accuracy for tally in counts.primary.values())])))
        found = [counts.intervals.get(name) for name in ("Overall", *COLUMNS)]
        if len(self.benchmark.prompts) > 1:
            rows.append(("95 % interval", [f"{100 * i.low:.2f} to {100 * i.high:.2f}" if i else "-" for i in found]))
        if counts.counted < counts.asked:
            pessimistic = [counts.overall_at_least, *(tally.at_least for tally in counts.primary.values())]
            rows.append(("failed = 0", _percents(pessimistic)))
        return rows

    def markdown(self) -> str:
        """The table with all that is needed to read it."""
        counts, prompts = self.counts, self.benchmark
        (corner, columns), *rows = self.table()
        lines = [f"# {self.title}", "", _line(corner, columns), _line("---", ["---:"] * len(columns))]
        lines += [_line(name, cells) for name, cells in rows]
        lines += ["", f"Judge: `{dict(self.identity)}`", "", f"Wording: `{dict(self.wording)}`", ""]
        lines += [
            "Accuracy is passed / counted over testpoints x images; Overall is the unweighted mean of the ten. "
            f"Of {counts.asked} images, {counts.outcomes['counted']} are counted, {counts.outcomes['unreadable']} have "
            f"no readable answer and {counts.outcomes['lost']} one that the official count drops.",
            "",
        ]
        if counts.overall is None:
            missing = ", ".join(name for name, tally in counts.primary.items() if not tally.total)
            lines += [f"There is no Overall: nothing was counted of {missing}.", ""]
        for what, places in (("Repaired", prompts.repaired), ("Left out", prompts.skipped)):
            lines += [f"{what} in {prompts.source}: {'; '.join(places)}.", ""] if places else []
        lines += [_line("sub-dimension", ["passed", "counted", "asked", "%"]), _line("---", ["---:"] * 4)]
        for name, tally in counts.sub.items():
            lines.append(
                _line(name, [str(tally.correct), str(tally.total), str(tally.asked), *_percents([tally.accuracy])])
            )
        return "\n".join(lines) + "\n"


def write(result: BenchResult, rows: Sequence[Row], texts: Sequence[str | None], paths: Sequence[Path]) -> None:
    """Writes the summary and the table of ours, and the official table and summary (``<folder>_<category>``)."""
    output = result.output
    official = output / f"{result.images.resolve().name}_{result.benchmark.category}.csv"
    atomic.write_bytes(official, _official_table(rows, texts, paths).encode("utf-8", "backslashreplace"))
    scores = json.dumps(official_scores(rows), ensure_ascii=False, indent=4)
    atomic.write_text(official.with_suffix(".json"), scores)
    atomic.write_json(output / SUMMARY, result.to_json())
    atomic.write_text(output / TABLE, result.markdown())


def _official_table(rows: Sequence[Row], texts: Sequence[str | None], paths: Sequence[Path]) -> str:
    """Index, prompt, testpoints as Python prints them, the answer, what was read of it as JSON, and the image."""
    lines: list[Sequence[object]] = [("index", "prompt", "testpoint", "output", "result_json", "img_path")]
    for (prompt, reading), text, path in zip(rows, texts, paths, strict=True):
        kept = reading.official_json(prompt.text, prompt.names)
        lines.append((prompt.index, prompt.text, list(prompt.names), text or "", kept, path))
    return "".join(",".join(map(_cell, line)) + "\n" for line in lines)


def _cell(value: object) -> str:
    """A field of CSV. The csv module leaves a lone carriage return bare, which pandas then reads as the line's end."""
    text = str(value)
    return '"' + text.replace('"', '""') + '"' if re.search('[",\r\n]', text) else text


def _tally(tally: Tally) -> dict[str, Any]:
    return {**tally._asdict(), "accuracy": tally.accuracy, "failed_as_0": tally.at_least}


def _ends(counts: Counts, name: str) -> list[float] | None:
    interval = counts.intervals.get(name)
    return [interval.low, interval.high] if interval else None


def _percents(shares: Sequence[float | None]) -> list[str]:
    return ["-" if share is None else f"{100 * share:.2f}" for share in shares]


def _line(name: str, cells: Sequence[str]) -> str:
    return f"| {' | '.join([name, *cells])} |"
