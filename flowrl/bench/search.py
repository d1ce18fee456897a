"""The search for learning rates: the same few values for every method, on seeds that no table has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from flowrl.bench.report import Cell, Column, Row, Table
from flowrl.bench.results import read_history
from flowrl.bench.study import Study
from flowrl.bench.units import Unit

Trials = Mapping[str, Sequence[tuple[float, Unit]]]
"""Method -> learning rate and run."""


def choose_rates(study: Study, trials: Trials) -> dict[str, float]:
    """Method -> the learning rate whose held-out score at the end, a mean over the search's seeds, is highest.

    A rate counts only where all of its runs succeeded; a method of which a run is still to come is left out.
    """
    chosen = {}
    for method, found in trials.items():
        if any(study.store.record(unit.key) is None for _, unit in found):
            continue
        means = {rate: score for rate, score in mean_scores(study, found).items() if score is not None}
        if means:
            chosen[method] = max(means, key=lambda rate: means[rate])
    return chosen


def mean_scores(study: Study, found: Sequence[tuple[float, Unit]]) -> dict[float, float | None]:
    """Learning rate -> mean held-out score at the end; None where a run is missing, failed, or was not evaluated."""
    scores: dict[float, list[float | None]] = {}
    for rate, unit in found:
        scores.setdefault(rate, []).append(_score(study, unit))
    return {
        rate: None if None in values else fmean(value for value in values if value is not None)
        for rate, values in scores.items()
    }


def _score(study: Study, unit: Unit) -> float | None:
    search = study.scale.search
    if search is None or not study.store.done(unit.key):
        return None
    history = read_history(study.store.path(unit.key), search.iterations)
    if history is None:
        return None
    name = study.monitor_of(list(history.scores))
    answered = [value for value in history.scores[name][-1] if value == value]
    return fmean(answered) if answered else None


def search_table(study: Study, trials: Trials, name: str) -> Table | None:
    """What was tried and what was chosen; None where nothing was searched for."""
    search = study.scale.search
    if search is None or not trials:
        return None
    factors = [f"{factor:g} x" for factor in search.factors]
    rows = []
    for method, found in trials.items():
        means = mean_scores(study, found)
        cells: dict[str, Cell] = {}
        for factor, (rate, score) in zip(factors, means.items(), strict=True):
            keys = tuple(unit.key for other, unit in found if other == rate and study.store.done(unit.key))
            cells[factor] = Cell(value=score, runs=keys, note=f"lr {rate:g}")
        picked = study.rates.get(method)
        cells["chosen"] = Cell(value=None if picked is None else f"{picked:g}")
        rows.append(Row(title=study.title(method), cells=cells))
    columns = [Column(key=name, title=f"{name} the model's", better="higher") for name in factors]
    return Table(
        name=name,
        title="Search for the learning rates",
        columns=(*columns, Column(key="chosen", title="chosen")),
        rows=tuple(rows),
        caption=(
            f"Held-out {study.monitor_name(search.rewards)} after {search.iterations} iterations on {search.rewards}, "
            f"mean over {search.seeds} seeds that no table has. Every method has the same values; variants of a method "
            "are trained at its own."
        ),
    )
