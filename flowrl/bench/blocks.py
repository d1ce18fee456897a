"""A report's blocks as HTML."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from flowrl.bench.charts import charts
from flowrl.bench.entries import ARROWS, Entry, Line, Sheet, interval, sheet, titled
from flowrl.bench.images import Inlined, inlined
from flowrl.bench.markup import Child, Html, el, inline, join, said
from flowrl.bench.report import Block, Claim, Column, Comparison, Figure, Gallery, Panel, Report, Table, Text
from flowrl.bench.report import Line as Curve
from flowrl.bench.run_links import RunLinks

FEW = 6
"""Undecided claims that are shown at once."""
VERDICTS = {True: ("yes", "✓", "reproduced"), False: ("no", "✗", "not reproduced"), None: ("open", "?", "undecided")}


def block_html(block: Block, report: Report, folder: Path, links: RunLinks, say: Callable[[str], None]) -> Html:
    """A block with its heading. ``folder`` holds the pictures; one that cannot be read is named by ``say``."""
    name = place(report, block)
    heading = el("h3", said(titled(report, block.title)), id=name)
    if isinstance(block, Table):
        content = _table(block, report, links)
    elif isinstance(block, Figure):
        content = _figure(block, report, links, name)
    elif isinstance(block, Gallery):
        content = join(_caption(block.caption), [_comparison(found, folder, say) for found in block.comparisons])
    else:
        content = _text(block)
    return el("article", heading, content, class_=f"block {block.kind}", aria_labelledby=name)


def place(report: Report, block: Block | None = None) -> str:
    """Where a report, or a block of it, is in the page."""
    return f"report-{report.name}" + (f"--{block.kind}-{block.name}" if block else "")


def _caption(text: str) -> Html | None:
    return el("p", said(text), class_="caption") if text else None


# ---- tables


def _table(table: Table, report: Report, links: RunLinks) -> Html:
    found = sheet(table)
    head = el("tr", el("th", "", scope="col", class_="corner"), [*map(_heading, table.columns, found.textual)])
    bodies = []
    for group, lines in found.groups:
        word = el("span", said(group or ""))
        heading = el("tr", el("th", word, colspan=1 + len(table.columns), scope="rowgroup"), class_="group")
        rows = [
            _row(line, found.textual, partial(links.link, report=report, use=(table.title, line.title)))
            for line in lines
        ]
        bodies.append(el("tbody", heading if group else None, rows))
    leads = any(entry.runs for entry in found.entries)
    marks = [found.legend("Bold", "underlined"), "Headings sort" + ("; a number leads to its runs." if leads else ".")]
    inner = el("table", el("thead", head), bodies, class_="numbers sortable")
    return join(
        _caption(table.caption),
        el("div", inner, class_="scroll", tabindex=0, role="region", aria_label=titled(report, table.title)),
        el("p", " ".join(filter(None, marks)), class_="marks"),
        _notes(found),
    )


def _heading(column: Column, textual: bool) -> Html:
    unit = el("span", " (", said(column.unit), ")", class_="unit") if column.unit else None
    better = column.better
    arrow = better and el("span", f" {ARROWS[better]}", title=f"{better} is better", class_="arrow")
    label = el("span", said(column.title), unit, arrow, class_="label")
    return el("th", label, scope="col", data_better=better or "higher", class_="text" if textual else None)


def _row(line: Line, textual: Sequence[bool], link: Callable[[Child, Sequence[str]], Html]) -> Html:
    failed = el("span", " failed", class_="reason") if line.failed else None
    cells = [_cell(entry, of_words, link) for entry, of_words in zip(line.entries, textual, strict=True)]
    return el("tr", el("th", said(line.title), failed, scope="row"), cells)


def _cell(entry: Entry, of_words: bool, link: Callable[[Child, Sequence[str]], Html]) -> Html:
    is_number = entry.value is not None
    shown = el("span", entry.text if is_number else said(entry.text), class_=f"value {entry.rank or ''}".strip())
    word = el("span", f" ({entry.rank})", class_="unseen") if entry.rank else None
    return el(
        "td",
        link([shown, word], entry.runs),
        el("sup", entry.note) if entry.note else None,
        el("span", entry.interval, class_="interval") if entry.interval else None,
        el("span", f"paper {entry.paper}", class_="paper") if entry.paper else None,
        data_value=repr(entry.value) if is_number else None,
        class_=None if is_number else "text" if of_words else "words",
    )


def _notes(found: Sheet) -> Html | None:
    notes = [el("li", el("sup", mark), " ", said(text)) for mark, text in found.notes.items()]
    failed = [el("li", said(line.title), " failed: ", said(line.failed)) for line in found.lines if line.failed]
    return el("ul", notes, failed, class_="notes") if notes or failed else None


# ---- figures


def _figure(figure: Figure, report: Report, links: RunLinks, name: str) -> Html:
    rows = [_end(panel, line, figure, report, links) for panel in figure.panels for line in panel.lines if line.x]
    head = [el("th", word, scope="col") for word in ("panel", "line", "last x", "last value", "95 % interval")]
    table = el("table", el("thead", el("tr", head)), el("tbody", rows), class_="all")
    box = el("div", table, class_="scroll", tabindex=0, role="region", aria_label=f"Values of {figure.title}")
    values = el("details", el("summary", "Where the lines end, and their runs"), box)
    return el(
        "figure",
        charts(figure, f"{name}--description"),
        el(
            "figcaption",
            _caption(figure.caption),
            el("p", said(figure.description), id=f"{name}--description", class_="unseen"),
        ),
        values if rows else None,
    )


def _end(panel: Panel, line: Curve, figure: Figure, report: Report, links: RunLinks) -> Html:
    column = Column(key="y", title=panel.y, digits=4)
    low, high = (ends[-1] if ends else None for ends in (line.low, line.high))
    value = links.link(f"{line.mean[-1]:,.4f}", line.runs, report, (figure.title, line.title))
    return el(
        "tr",
        el("td", said(panel.title)),
        el("th", said(line.title), scope="row"),
        el("td", f"{line.x[-1]:,.6g}"),
        el("td", value),
        el("td", interval(low, high, column)),
    )


# ---- gallery


def _comparison(comparison: Comparison, folder: Path, say: Callable[[str], None]) -> Html:
    items = []
    for picture in comparison.pictures:
        found = inlined(folder / picture.file)
        if found is None:
            say(f"{folder / picture.file} is missing, or no picture: left out")
        shown = _picture(found, f"{picture.label}: {comparison.prompt}")
        score = el("span", f" {picture.score:.3f}", class_="score") if picture.score is not None else None
        items.append(el("li", el("figure", shown, el("figcaption", said(picture.label), score))))
    return el(
        "section",
        el("h4", "“", said(comparison.prompt), "”"),
        el("p", "Chosen as the ", said(comparison.chosen), ".", class_="chosen"),
        el("ul", items, class_="strip"),
        class_="comparison",
    )


def _picture(found: Inlined | None, description: str) -> Html:
    if found is None:
        return el("p", "the picture is missing", class_="nothing")
    kind = "pixelated" if found.pixelated else None
    return el("img", src=found.uri, width=found.width, height=found.height, alt=description, class_=kind)


# ---- words


def _text(block: Text) -> Html:
    paragraphs = [el("p", inline(paragraph)) for paragraph in block.paragraphs]
    above = el("p", "Its claims are in the ", el("a", "overview", href="#overview"), ".", class_="caption")
    return join(paragraphs, above if block.claims else None)


def claims_html(claims: list[tuple[Claim, Report, Text]]) -> Html:
    """How many claims hold, then every claim beside what was measured; those that are undecided are folded, where more
    than a few would hide the others."""
    decided = [found for found in claims if found[0].reproduced is not None]
    undecided = [found for found in claims if found[0].reproduced is None]
    tally = el("dl", [*_tally(claims)], class_="tally")
    if len(undecided) <= FEW:
        return join(tally, _list(claims))
    folded = el("details", el("summary", f"{len(undecided)} undecided claims"), _list(undecided))
    return join(tally, _list(decided) if decided else None, folded)


def _list(claims: list[tuple[Claim, Report, Text]]) -> Html:
    return el("ul", [_claim(*found) for found in claims], class_="claims")


def _tally(claims: list[tuple[Claim, Report, Text]]) -> Iterator[Html]:
    for verdict, (kind, sign, word) in VERDICTS.items():
        count = sum(claim.reproduced is verdict for claim, _, _ in claims)
        yield el("div", el("dt", el("span", sign, aria_hidden="true"), f" {word}"), el("dd", str(count)), class_=kind)


def _claim(claim: Claim, report: Report, block: Text) -> Html:
    kind, sign, word = VERDICTS[claim.reproduced]
    budget = "" if report.budget == "full" else f" ({report.budget} budget)"
    where = join(el("a", said(block.title), href=f"#{place(report, block)}"), budget)
    return el(
        "li",
        el("p", el("span", sign, aria_hidden="true"), f" {word}", class_=f"verdict {kind}"),
        el(
            "div",
            el("p", said(claim.claim), class_="claim"),
            el("p", "Measured: ", said(claim.measured), class_="measured"),
            el("p", said(claim.source), " · ", where, class_="source"),
        ),
    )
