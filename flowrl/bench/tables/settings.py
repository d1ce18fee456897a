"""Table 4: the settings of every method, from its resolved recipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flowrl.bench.report import Cell, Column, Report, Row
from flowrl.bench.spec import TableSpec
from flowrl.bench.study import Study
from flowrl.bench.tables.common import paper, simple_table
from flowrl.bench.tables.common import report as make
from flowrl.recipe import Recipe

SETTINGS: dict[str, Callable[[Recipe], Any]] = {
    "schedule": lambda r: r.schedule.kind,
    "noisy steps": lambda r: ", ".join(str(k) for k in sorted({k for arm in r.arms(0) for k in arm.fanout})),
    "kernel": lambda r: r.kernel.kind,
    "eta": lambda r: getattr(r.kernel, "eta", None),
    "steps T": lambda r: r.grid.num_steps,
    "shift": lambda r: r.grid.shift,
    "group G": lambda r: r.rollout.group,
    "initial noise of a group": lambda r: "the same" if all(arm.roots == 1 for arm in r.arms(0)) else "each its own",
    "prompts an iteration": lambda r: r.rollout.prompts,
    "continuation": lambda r: r.continuation.kind,
    "granularities Lambda": lambda r: ", ".join(map(str, getattr(r.continuation, "strides", ()))) or None,
    "advantage": lambda r: r.advantage.kind,
    "compared with": lambda r: {"prompt": "the prompt", "step": "the step", "parent": "the siblings"}[
        r.advantage.peers
    ],
    "rewards are mixed by": lambda r: r.advantage.mixing.replace("_", " "),
    "advantage clip": lambda r: r.advantage.clip,
    "clip range": lambda r: getattr(r.loss, "clip", None),
    "KL weight": lambda r: getattr(r.loss, "beta", None),
    "updates an iteration": lambda r: r.train.updates,
    "share of actions trained": lambda r: r.train.fraction,
    "learning rate": lambda r: r.optimizer.lr,
    "weight decay": lambda r: r.optimizer.weight_decay,
    "max. gradient norm": lambda r: r.optimizer.max_grad_norm,
    "warmup": lambda r: r.optimizer.warmup,
    "precision": lambda r: r.run.precision,
    "iterations": lambda r: r.run.iterations,
    "seed": lambda r: r.run.seed,
}


def report(study: Study, spec: TableSpec) -> Report:
    """A row for each setting, a column for each method; the paper's Table 4 is the last one."""
    rewards = spec.rewards[0]
    recipes = {method: study.recipe(method, rewards) for method in spec.methods if study.is_trained(method)}
    theirs = paper()["settings"]
    rows = []
    for name, read in SETTINGS.items():
        cells = {method: _cell(read(recipe)) for method, recipe in recipes.items()}
        cells["paper"] = _cell(theirs.get(name))
        rows.append(Row(title=name, cells=cells))
    known = [Row(title=name, cells={"paper": _cell(value)}) for name, value in theirs.items() if name not in SETTINGS]
    columns = [Column(key=method, title=study.title(method)) for method in recipes]
    columns.append(Column(key="paper", title="the paper's Table 4"))
    seeds = ", ".join(map(str, study.seeds(spec)))
    text = (
        f"Of the resolved recipes on {study.model}, budget {study.budget}, seed 0 of seeds {seeds}. An empty entry: "
        "the method has no such setting, or the paper does not name it. Learning rates are those of the search, "
        "where one was made."
    )
    return make(study, spec, [simple_table("settings", spec.title, columns, [*rows, *known], text)])


def _cell(value: Any) -> Cell:
    """Settings are words, numbers among them: they are not rounded."""
    if value is None:
        return Cell(value=None)
    return Cell(value=f"{value:g}" if isinstance(value, float) else str(value))
