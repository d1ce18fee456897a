"""What measurements of credit say (:mod:`flowrl.bench.credit`): correlations, their differences, a figure, claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flowrl.bench.credit import VALUES
from flowrl.bench.report import Block, Cell, Claim, Column, Figure, Line, Panel, Row, Table, Text
from flowrl.bench.within import (
    Array,
    ceiling,
    cell,
    column,
    ends,
    numbered,
    pearson,
    seeds_in_words,
    spearman,
    spearman_difference,
)
from flowrl.statistics import Interval

TARGETS = {
    "ode": "V_ode",
    "ode1": "V_ode, {1}",
    "sde": "V_sde",
    "ode_change": "ΔV_ode",
    "sde_change": "ΔV_sde",
}
COLUMNS = tuple(Column(key=key, title=title, better="higher", digits=2) for key, title in TARGETS.items())
SPENT = tuple(Column(key=key, title=key, digits=0) for key in ("forwards", "actions"))
CEILINGS = tuple(
    Column(key=f"{key}_ceiling", title=f"ceiling {TARGETS[key]}", digits=2) for key in ("sde", "sde_change")
)
DRAWN = ("ode", "sde", "ode_change", "sde_change")
CLAIMED = ("ode_change", "sde_change")


@dataclass(frozen=True)
class Actions:
    """The actions of a method from all its measurements, on one scale of reward."""

    method: str
    step: Array
    group: Array
    cluster: Array
    advantage: Array
    targets: Mapping[str, Array]
    halves: Mapping[str, tuple[Array, Array]]
    """Of the targets that are sampled."""

    def pair(self, target: str) -> tuple[Array, Array, Array, Array]:
        """Advantage, target, group and cluster: what correlations take."""
        return self.advantage, self.targets[target], self.group, self.cluster

    def only(self, rows: Array) -> Actions:
        """Those of ``rows`` (bool); a group is in or out as a whole."""
        targets = {name: values[rows] for name, values in self.targets.items()}
        pairs = {name: (first[rows], second[rows]) for name, (first, second) in self.halves.items()}
        group = numbered(self.group[rows])
        return Actions(self.method, self.step[rows], group, self.cluster[rows], self.advantage[rows], targets, pairs)


def actions_of(measurements: Sequence[Mapping[str, Any]], scale: Array) -> Actions:
    """One method's measurements together. ``scale`` [R] multiplies the rewards. A group in which a reward is missing is
    left out."""
    parts: dict[str, list[Array]] = {}
    for number, found in enumerate(measurements):
        columns = found["columns"]
        rows = len(columns["step"])
        parts.setdefault("measurement", []).append(np.full(rows, number))
        for name in ("prompt", "repetition", "step", "decision"):
            parts.setdefault(name, []).append(np.array(columns[name]))
        parts.setdefault("advantage", []).append(column(columns["advantage"]))
        for name in VALUES:
            parts.setdefault(name, []).append(np.stack([column(row) for row in columns[name]]) @ scale)
    whole = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    names = ("measurement", "repetition", "prompt", "step", "decision")
    group = numbered(*(whole[name] for name in names))
    missing = ~np.isfinite(whole["advantage"] + sum(whole[name] for name in VALUES))
    keep = np.bincount(group, missing)[group] == 0
    whole = {name: values[keep] for name, values in whole.items()}
    sde, before = (whole["sde_a"], whole["sde_b"]), (whole["before_a"], whole["before_b"])
    change = (sde[0] - before[0], sde[1] - before[1])
    targets = {"ode": whole["ode"], "ode1": whole["ode1"], "sde": (sde[0] + sde[1]) / 2}
    targets |= {"ode_change": whole["ode"] - whole["before_ode"], "sde_change": (change[0] + change[1]) / 2}
    return Actions(
        method=measurements[0]["method"],
        step=whole["step"],
        group=numbered(group[keep]),
        cluster=whole["prompt"],
        advantage=whole["advantage"],
        targets=targets,
        halves={"sde": sde, "sde_change": change},
    )


def all_actions(measurements: Sequence[Mapping[str, Any]]) -> dict[str, Actions]:
    """Method -> its actions. All methods share one scale of each reward."""
    variance = np.mean([found["variance"] for found in measurements], 0)
    weights = np.array(measurements[0]["weights"])
    scale = weights / np.sqrt(variance)
    methods = dict.fromkeys(found["method"] for found in measurements)
    return {name: actions_of([found for found in measurements if found["method"] == name], scale) for name in methods}


def blocks(
    measurements: Sequence[Mapping[str, Any]],
    runs: Mapping[str, tuple[str, ...]] | None = None,
    reference: str | None = None,
) -> list[Block]:
    """Tables of both correlations over all steps, and a figure by grid step; with a ``reference`` method its
    differences to the others and the paper's claims of it. ``runs``: method -> keys of its runs."""
    of_method, runs = all_actions(measurements), runs or {}
    first = {found["method"]: found for found in measurements}
    num_prompts = len({prompt for found in measurements for prompt in found["prompts"]})
    over = f"{num_prompts} prompts, {seeds_in_words(measurements)}"
    found: list[Block] = [
        _ranks_table(of_method, first, runs, over),
        _values_table(of_method, runs, over, measurements[0]["samples"]),
        _figure(of_method, runs, over),
    ]
    if reference in of_method and len(of_method) > 1:
        found += _compared(of_method, str(reference), runs, over)
    return found


_HOW = (
    "Within groups: siblings of one decision, or where there are none the actions of the same prompt and grid step. "
    "95 % bootstrap intervals over prompts; {over}."
)


def _ranks_table(
    of_method: Mapping[str, Actions],
    first: Mapping[str, Mapping[str, Any]],
    runs: Mapping[str, tuple[str, ...]],
    over: str,
) -> Table:
    rows = []
    for name, actions in of_method.items():
        cells = {target: cell(spearman(*actions.pair(target)), runs.get(name, ())) for target in TARGETS}
        spent = {key: Cell(value=float(first[name][key])) for key in ("forwards", "actions")}
        rows.append(Row(title=name, cells=cells | spent))
    return Table(
        name="credit_ranks",
        title="Rank correlation of the advantage with the action's value",
        columns=(*COLUMNS, *SPENT),
        rows=tuple(rows),
        caption="Spearman's rho of the ranks. " + _HOW.format(over=over) + " Forwards of the rollout and actions: per "
        "prompt and iteration. V_ode is over the granularities {1, 2, 3}, what G2RPO itself measures: near 1 there by "
        "construction.",
    )


def _values_table(
    of_method: Mapping[str, Actions], runs: Mapping[str, tuple[str, ...]], over: str, samples: int
) -> Table:
    rows = []
    for name, actions in of_method.items():
        where = (actions.group, actions.cluster)
        cells = {target: cell(pearson(*actions.pair(target)), runs.get(name, ())) for target in TARGETS}
        limits = {f"{key}_ceiling": cell(ceiling(*pair, *where)) for key, pair in actions.halves.items()}
        rows.append(Row(title=name, cells=cells | limits))
    return Table(
        name="credit_values",
        title="Correlation of the advantage with the action's value",
        columns=(*COLUMNS, *CEILINGS),
        rows=tuple(rows),
        caption=f"Pearson's r. {_HOW.format(over=over)} Ceiling: what the true value itself would have with one of "
        f"{samples} samples, from its split halves.",
    )


def _figure(of_method: Mapping[str, Actions], runs: Mapping[str, tuple[str, ...]], over: str) -> Figure:
    panels = []
    for target in DRAWN:
        lines = []
        for name, actions in of_method.items():
            points = []
            for step in sorted(set(actions.step.tolist())):
                rows = actions.only(actions.step == step)
                found = spearman(*rows.pair(target))
                points += [] if found is None else [(float(step), *ends(found))]
            if points:
                x, mean, low, high = zip(*points, strict=True)
                lines.append(Line(title=name, x=x, mean=mean, low=low, high=high, runs=runs.get(name, ())))
        panels.append(Panel(title=TARGETS[target], x="grid step", y="Spearman's rho", lines=tuple(lines)))
    return Figure(
        name="credit_steps",
        title="Fidelity of credit by grid step",
        panels=tuple(panels),
        caption=_HOW.format(over=over),
        description="Four panels, one per value of an action; the rank correlation of each method's advantage with it "
        "against the grid step of the action.",
    )


def difference(one: Actions, other: Actions, target: str) -> Interval | None:
    """Spearman's rho of one method minus that of another, over the prompts and grid steps of both."""
    steps = np.intersect1d(one.step, other.step)
    first, second = (actions.only(np.isin(actions.step, steps)) for actions in (one, other))
    return spearman_difference(first.pair(target), second.pair(target))


def _compared(
    of_method: Mapping[str, Actions], reference: str, runs: Mapping[str, tuple[str, ...]], over: str
) -> list[Block]:
    """The reference minus every other method, in pairs, and what that says of the paper's claim."""
    rows, claims = [], []
    for name, actions in of_method.items():
        if name == reference:
            continue
        found = {target: difference(of_method[reference], actions, target) for target in TARGETS}
        keys = (*runs.get(reference, ()), *runs.get(name, ()))
        rows.append(Row(title=name, cells={target: cell(interval, keys) for target, interval in found.items()}))
        claims += [_claim(reference, name, target, found[target]) for target in CLAIMED]
    table = Table(
        name="credit_differences",
        title=f"Rank correlations: {reference} minus the others",
        columns=tuple(Column(key=key, title=title, digits=2) for key, title in TARGETS.items()),
        rows=tuple(rows),
        caption="Over the grid steps that both have noise at, paired by prompt; a difference is called one only where "
        "its interval excludes 0. " + _HOW.format(over=over),
    )
    text = Text(
        name="credit_claims",
        title="Is the reward of a single noisy step truer?",
        paragraphs=(
            "V_ode is the mean over the continuations that G2RPO itself takes its rewards from, and at granularity 1 "
            "over those of G2RPO without MGAI: high correlations there say that the advantage is what it is meant to "
            "be. V_sde is from noise that no method has seen.",
        ),
        claims=tuple(claims),
    )
    return [table, text]


def _claim(reference: str, name: str, target: str, found: Interval | None) -> Claim:
    measured = "not defined"
    if found is not None:
        is_known = ends(found)[1] is not None
        measured = (
            f"difference of Spearman's rho {found:+.2f}" if is_known else f"{found.mean:+.2f}, of one prompt alone"
        )
        measured += "" if found.excludes_zero or not is_known else ", which includes 0"
    return Claim(
        claim=f"the advantages of {reference} follow what its actions changed ({TARGETS[target]}) more closely than "
        f"those of {name}",
        source="arXiv 2510.01982, section 3.2",
        measured=measured,
        reproduced=None if found is None or not found.excludes_zero else found.mean > 0,
    )
