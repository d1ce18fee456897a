"""A report as one Markdown page, for a terminal and for a forge."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from flowrl.bench.entries import Entry, Sheet, heading, sheet, titled
from flowrl.bench.report import Block, Claim, Comparison, Figure, Gallery, Report, RunRecord, Table, Text
from flowrl.escape import markdown as escaped
from flowrl.escape import markdown_code as code
from flowrl.escape import markdown_image, one_line
from flowrl.markdown import table as lines_of_table
from flowrl.progress import duration

VERDICTS = {True: "yes", False: "no", None: "undecided"}


def markdown(report: Report) -> str:
    """The whole report: its blocks in order, then what is missing, then its runs."""
    lines = [f"# {escaped(titled(report, report.title))}", "", f"Model {escaped(report.model)}; {_origin(report)}", ""]
    for block in report.blocks:
        lines += [f"## {escaped(titled(report, block.title))}", "", *_block(block)]
    if report.missing:
        lines += ["## Missing", "", *(f"- {escaped(title)}" for title in report.missing), ""]
    if report.runs:
        lines += ["## Runs", "", *_runs(report.runs), ""]
    return "\n".join(lines)


def _origin(report: Report) -> str:
    """What made it, in a line."""
    known = {key: value for key, value in report.provenance.items() if isinstance(value, str | int | float)}
    parts = [f"{escaped(key)} {code(str(value))}" for key, value in known.items()]
    return (", ".join(parts) or "of unknown origin") + "."


def _block(block: Block) -> Iterator[str]:
    if isinstance(block, Table):
        yield from table(block)
    elif isinstance(block, Figure):
        yield from (markdown_image(block.description, f"{block.name}.png"), "")
        yield from _paragraph(block.caption)
    elif isinstance(block, Gallery):
        yield from _paragraph(block.caption)
        for comparison in block.comparisons:
            yield from _comparison(comparison)
    else:
        yield from _text(block)


def table(block: Table) -> Iterator[str]:
    """The lines of a table: its caption, itself, what its marks mean, its notes, and what failed."""
    found = sheet(block)
    yield from _paragraph(block.caption)
    head = ["", *(escaped(heading(column)) for column in block.columns)]
    left = {0, *(i for i, textual in enumerate(found.textual, 1) if textual)}
    yield from lines_of_table(head, list(_rows(found, len(block.columns))), left=left)
    yield ""
    yield from _paragraph(found.legend("Bold", "italic"), escape=False)
    yield from (f"- ({mark}) {escaped(note)}" for mark, note in found.notes.items())
    failed = [line for line in found.lines if line.failed]
    yield from (f"- {escaped(line.title)} failed: {escaped(line.failed or '')}" for line in failed)
    if found.notes or failed:
        yield ""


def _rows(found: Sheet, num_columns: int) -> Iterator[list[str]]:
    for group, lines in found.groups:
        if group is not None:
            yield [f"**{escaped(group)}**", *[""] * num_columns]
        for line in lines:
            yield [escaped(line.title) + " (failed)" * bool(line.failed), *map(_entry, line.entries)]


def _entry(entry: Entry) -> str:
    text = escaped(entry.text)
    marked = {"best": f"**{text}**", "second": f"_{text}_", None: text}[entry.rank]
    parts = [marked, entry.interval, entry.paper and f"(paper {entry.paper})"]
    return " ".join(filter(None, parts)) + (f" ({entry.note})" if entry.note else "")


def _comparison(comparison: Comparison) -> Iterator[str]:
    yield f"**{escaped(comparison.prompt)}** ({escaped(comparison.chosen)})"
    yield ""
    labels = [
        escaped(picture.label) + ("" if picture.score is None else f" {picture.score:.3f}")
        for picture in comparison.pictures
    ]
    pictures = [markdown_image(picture.label, picture.file) for picture in comparison.pictures]
    yield from lines_of_table(labels, [pictures])
    yield ""


def _text(block: Text) -> Iterator[str]:
    for paragraph in block.paragraphs:
        yield from (without_html(paragraph), "")
    if block.claims:
        yield from lines_of_table(
            ["claim", "source", "measured", "reproduced"], [*map(_claim, block.claims)], left=range(4)
        )
        yield ""


def without_html(paragraph: str) -> str:
    r"""A paragraph of Markdown whose tags are text.

    >>> without_html(r"a <b> \<i> `<code>`")
    'a \\<b> \\<i> `<code>`'
    """
    kept = re.compile(r"`[^`]+`|\\.|<")
    return kept.sub(lambda found: r"\<" if found[0] == "<" else found[0], one_line(paragraph))


def _claim(claim: Claim) -> list[str]:
    return [escaped(claim.claim), escaped(claim.source), escaped(claim.measured), VERDICTS[claim.reproduced]]


def _runs(runs: Mapping[str, RunRecord]) -> Iterator[str]:
    head = ["run", "what", "recipe", "seed", "device", "time", "ended", "command"]
    yield from lines_of_table(head, [_run(run) for run in runs.values()], left=range(len(head)))


def _run(run: RunRecord) -> list[str]:
    seconds = "" if run.seconds is None else duration(run.seconds)
    last = (run.log or "").strip().splitlines()[-1:]
    ended = ": ".join([run.status, *map(escaped, last)])
    what = (escaped(run.title), escaped(run.recipe), str(run.seed), escaped(run.device))
    return [code(run.key), *what, seconds, ended, code(run.command)]


def _paragraph(text: str, *, escape: bool = True) -> Iterator[str]:
    if one_line(text):
        yield escaped(text) if escape else text
        yield ""
