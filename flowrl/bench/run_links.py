"""From a number to its runs: every set of runs that a number comes from has a place in the page's appendix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flowrl.bench.markup import Child, Html, el, join, said
from flowrl.bench.report import Report, RunRecord
from flowrl.progress import duration


class RunLinks:
    """Collects what is linked while the page is made; the appendix lists it afterwards."""

    def __init__(self, reports: Sequence[Report]) -> None:
        self._ids: dict[RunRecord, str] = {}
        for report in reports:
            for run in report.runs.values():
                self._ids.setdefault(run, f"run-{len(self._ids) + 1}")
        self._uses: dict[tuple[str, ...], list[tuple[str, str]]] = {}

    @property
    def num_runs(self) -> int:
        return len(self._ids)

    @property
    def num_failed(self) -> int:
        return sum(run.status == "failed" for run in self._ids)

    def link(self, shown: Child, keys: Sequence[str], report: Report, use: tuple[str, str]) -> Html:
        """``shown`` as a link to its runs, or as it is where it has none. ``use``: the block's title, and the row's."""
        ids = tuple(dict.fromkeys(self._ids[report.runs[key]] for key in keys if key in report.runs))
        if not ids:
            return join(shown)
        uses = self._uses.setdefault(ids, [])
        if use not in uses:
            uses.append(use)
        place = list(self._uses).index(ids) + 1
        return el("a", shown, href=f"#from-{place}", class_="runs")

    def appendix(self) -> Html:
        """The sets of runs that numbers come from, and all runs."""
        keys = {name: run.key for run, name in self._ids.items()}
        sets = [
            el("li", _uses(uses), ": ", _links(ids, keys), id=f"from-{place}")
            for place, (ids, uses) in enumerate(self._uses.items(), 1)
        ]
        head = ("run", "what", "seed", "device", "time", "ended", "recipe", "command")
        rows = [el("tr", _cells(run), id=name) for run, name in self._ids.items()]
        table = el(
            "table",
            el("thead", el("tr", [el("th", word, scope="col") for word in head])),
            el("tbody", rows),
            class_="all",
        )
        return join(
            el("h3", "All runs"),
            el("div", table, class_="scroll", tabindex=0, role="region", aria_label="All runs"),
            el("h3", "Which runs a number comes from") if sets else None,
            el("ol", sets, class_="sets") if sets else None,
        )


def _uses(uses: Sequence[tuple[str, str]]) -> Html:
    """The first places that show numbers of these runs."""
    named = [join(said(row), " in ", said(block)) for block, row in uses[:2]]
    more = f" and {len(uses) - 2} more" if len(uses) > 2 else None
    return join([join("; " * bool(i), use) for i, use in enumerate(named)], more)


def _links(ids: Sequence[str], keys: dict[str, str]) -> Iterator[Html]:
    for i, name in enumerate(ids):
        yield join(" " * bool(i), el("a", said(keys[name]), href=f"#{name}"))


def _cells(run: RunRecord) -> Iterator[Html]:
    ended: Child = run.status
    if run.status == "failed" and run.log:
        ended = el("details", el("summary", "failed"), el("pre", run.log))
    yield el("th", el("code", said(run.key)), scope="row")
    yield el("td", said(run.title), class_="what")
    yield el("td", str(run.seed))
    yield el("td", said(run.device), class_="device")
    yield el("td", "" if run.seconds is None else duration(run.seconds))
    yield el("td", ended, class_=run.status)
    yield el("td", el("code", said(run.recipe)))
    yield el("td", el("code", said(run.command), class_="command"))
