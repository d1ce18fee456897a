"""All reports of a folder as one page, index.html, that needs no network: to read, to look at, to check.

Styles, script and pictures are inside; the page's own policy forbids everything else, and any other script.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path

from flowrl import atomic
from flowrl.bench.blocks import block_html, claims_html, place
from flowrl.bench.entries import titled
from flowrl.bench.files import load_reports
from flowrl.bench.markup import Html, el, join, said
from flowrl.bench.report import Figure, Report, Table, Text
from flowrl.bench.run_links import RunLinks
from flowrl.progress import counted

PAGE = "index.html"
TITLE = "What the paper claims, and what was measured"


def write_page(folder: Path, say: Callable[[str], None] = lambda _: None) -> Path:
    """Write index.html from the reports in ``folder`` and the pictures beside them; what is left out, ``say`` tells.

    Raises UserError where a report cannot be read or there is none.
    """
    path = folder / PAGE
    atomic.write_text(path, page(load_reports(folder, say), folder, say))
    return path


def page(reports: Sequence[Report], folder: Path, say: Callable[[str], None] = lambda _: None) -> str:
    """The page's HTML; equal reports and pictures give equal text."""
    links = RunLinks(reports)
    sections = [_section(report, folder, links, say) for report in reports]
    script = _asset("page.js")
    body = join(
        el("a", "To the content", href="#content", class_="skip"),
        el("header", el("h1", TITLE), el("p", _about(reports, links), class_="lead")),
        el("nav", _contents(reports, links), aria_label="Contents"),
        el("main", _overview(reports), sections, _appendix(links), id="content", tabindex=-1),
        el("footer", el("p", "Made by ", el("code", "flowrl report"), " from the JSON files beside this page alone.")),
        el("dialog", aria_label="Runs of this number"),
        el("div", class_="unseen", role="status", id="said"),
        el("script", Html(script)),
    )
    return f"<!doctype html>\n{el('html', _head(script), el('body', body), lang='en')}\n"


def _head(script: str) -> Html:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
    )
    return el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", TITLE),
        el("link", rel="icon", href="data:,"),
        el("style", Html(_asset("page.css"))),
    )


def _asset(name: str) -> str:
    return (files("flowrl.bench") / name).read_text(encoding="utf-8")


def _about(reports: Sequence[Report], links: RunLinks) -> Html:
    models = dict.fromkeys(report.model for report in reports)
    budgets = dict.fromkeys(report.budget for report in reports)
    failed = f" ({links.num_failed} failed)" if links.num_failed else ""
    return join(
        "Model ",
        [join(", " * bool(i), el("strong", said(model))) for i, model in enumerate(models)],
        f"; budget {', '.join(budgets)}; {counted(len(reports), 'report')}, {counted(links.num_runs, 'run')}{failed}.",
    )


def _contents(reports: Sequence[Report], links: RunLinks) -> Html:
    entries = [("overview", "Overview")]
    entries += [(place(report), report.title) for report in reports]
    entries += [("runs", "Runs")] if links.num_runs else []
    return el("ul", [el("li", el("a", said(title), href=f"#{name}")) for name, title in entries])


def _overview(reports: Sequence[Report]) -> Html:
    claims = [
        (claim, report, block)
        for report in reports
        for block in report.blocks
        if isinstance(block, Text)
        for claim in block.claims
    ]
    return el(
        "section",
        el("h2", "Overview", id="overview"),
        _notice(reports),
        claims_html(claims) if claims else el("p", "No report here holds a claim of the paper.", class_="caption"),
        aria_labelledby="overview",
    )


def _notice(reports: Sequence[Report]) -> Html | None:
    """Which reports are less than full and complete: by name, or in a sentence where all are for the same reason."""
    partial = [report for report in reports if report.budget != "full" or report.missing]
    if not partial:
        return None
    budgets = {report.budget for report in reports}
    if len(budgets) == 1 and not any(report.missing for report in reports):
        said_once = el("p", f"Every report here is of the {budgets.pop()} budget, less than a full measurement.")
        return el("div", said_once, class_="notice", role="note")
    named = [el("li", el("a", said(titled(report, report.title)), href=f"#{place(report)}")) for report in partial]
    heading = el("p", "Not every report is a full and complete measurement:")
    return el("div", heading, el("ul", named), class_="notice", role="note")


def _section(report: Report, folder: Path, links: RunLinks, say: Callable[[str], None]) -> Html:
    blocks = [block_html(block, report, folder, links, say) for block in report.blocks]
    heading = el("h2", said(titled(report, report.title)), id=place(report))
    after = _missing(report), _files(report), _provenance(report)
    return el("section", heading, blocks, *after, aria_labelledby=place(report))


def _missing(report: Report) -> Html | None:
    if not report.missing:
        return None
    titles = [el("li", said(title)) for title in report.missing]
    return el("details", el("summary", f"Missing: {counted(len(titles), 'part')}"), el("ul", titles), class_="missing")


def _files(report: Report) -> Html:
    names = [f"{report.name}.json", f"{report.name}.md"]
    for block in report.blocks:
        suffixes = ("csv", "tex") if isinstance(block, Table) else ("png", "pdf") if isinstance(block, Figure) else ()
        names += [f"{block.name}.{suffix}" for suffix in suffixes]
    shown = [join(" " * bool(i), el("a", name, href=name)) for i, name in enumerate(names)]
    return el("p", "Files: ", shown, class_="files")


def _provenance(report: Report) -> Html:
    values = {"model": report.model, "budget": report.budget, **report.provenance}
    entries = [
        join(el("dt", said(key)), el("dd", el("code", said(value if isinstance(value, str) else json.dumps(value)))))
        for key, value in values.items()
    ]
    return el("details", el("summary", "Provenance"), el("dl", entries), class_="provenance")


def _appendix(links: RunLinks) -> Html | None:
    if not links.num_runs:
        return None
    return el("section", el("h2", "Runs", id="runs"), links.appendix(), aria_labelledby="runs")
