"""``flowrl bench``: what is asked for, planned, estimated, worked on in processes, and tabulated."""

from __future__ import annotations

import importlib
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flowrl.bench import calibrate
from flowrl.bench.calibrate import Rates, find_rates
from flowrl.bench.files_out import save
from flowrl.bench.page import write_page
from flowrl.bench.pool import Outcome, Pool, Resources, resources
from flowrl.bench.report import Budget, Report
from flowrl.bench.search import choose_rates
from flowrl.bench.spec import TableSpec, load_bench
from flowrl.bench.study import Study
from flowrl.bench.units import Agenda, Store, Unit
from flowrl.costs import iteration_cost
from flowrl.errors import UserError, all_of
from flowrl.progress import duration
from flowrl.recipe import Recipe

FAILED, UNFINISHED = 1, 3
"""Exit codes: something failed; not all is done (the time was over, or nothing was to be run)."""
OVERHEAD = 1.5
"""Seconds that every unit takes besides its forwards, in the estimate: loading, checking, writing."""


@dataclass(frozen=True)
class Request:
    """What ``flowrl bench`` was asked for."""

    table: str
    budget: Literal["auto", "smoke", "small", "full"] = "auto"
    seeds: int | None = None
    model: str = "shapes"
    output: Path | None = None
    """None: ``reports`` of a full budget, else ``runs/bench/TABLE-BUDGET``."""
    jobs: int | None = None
    time_limit: float | None = None
    dry_run: bool = False
    tables_only: bool = False
    folder: Path = Path("runs/bench")
    specs: Path | None = None
    argv: tuple[str, ...] = ()


def run(request: Request, say: Callable[[str], None] = print) -> int:
    """Do it; returns the exit code. Raises UserError for what was asked wrongly or is missing."""
    began = time.monotonic()
    study = prepare(request)
    specs = chosen(study, request.table)
    here = resources(request.jobs)
    say(f"{len(specs)} tables, budget {study.budget}, model {study.model}: {describe_scale(study)}")
    recipe = reference_recipe(study, specs)
    works = not request.dry_run and not request.tables_only
    if recipe is not None and works:
        _check(study, specs, recipe, say, here)
    rates = None if recipe is None else find_rates(request.folder, recipe, study.model, _device(here))
    if recipe is not None and rates is None and works and _unfinished(study, specs):
        rates = _calibrate(study, recipe, say)
    session = _Session(study, specs, here, rates, say, _deadline(request, began), request.time_limit)
    if request.dry_run:
        session.show_plan()
        if recipe is not None:
            _check(study, specs, recipe, None, here)
        return 0
    if request.tables_only:
        records = [study.store.record(key) for key in _unfinished(study, specs)]
        failed = sum(record is not None for record in records)
        outcome = Outcome(failed=failed, left=len(records) - failed)
    else:
        with calibrate.working(request.folder):
            outcome = session.work()
    folder = request.output or default_output(request, study)
    others = study.search_units(list(study.bench.tables.values()))  # what is known of them, for a table of settings
    study.rates = choose_rates(study, others) | study.rates
    for spec in specs:
        study.pictures.clear()
        say(save(make_report(study, spec), folder, study.pictures))
    say(f"the page of all tables there: {write_page(folder, say)}")
    return _exit_code(outcome)


def prepare(request: Request) -> Study:
    """The study that was asked for."""
    import torch

    by_device: Budget = "full" if torch.cuda.is_available() else "smoke"
    budget = by_device if request.budget == "auto" else request.budget
    store = Store(request.folder)
    command = shlex.join(["flowrl", "bench", *request.argv])
    return Study(load_bench(request.specs), request.model, budget, store, num_seeds=request.seeds, command=command)


def calibrate_device(request: Request) -> Rates:
    """Measure this device for the model, with the batches of the budget."""
    study = prepare(request)
    recipe = reference_recipe(study, chosen(study, request.table))
    if recipe is None:
        raise UserError(f"{study.bench.folder} trains nothing: there is nothing to measure")
    _device(resources(request.jobs))
    return calibrate.calibrate(request.folder, recipe, study.model)


def keys_of(request: Request) -> list[str]:
    """Of everything that the tables are made from, the search included."""
    study = prepare(request)
    return _keys(study, chosen(study, request.table))


def _keys(study: Study, specs: Sequence[TableSpec]) -> list[str]:
    trials = study.search_units(specs)
    study.rates.update(choose_rates(study, trials))
    found = [unit.key for units in trials.values() for _, unit in units]
    return list(dict.fromkeys([*found, *(unit.key for unit in study.units(specs))]))


def _unfinished(study: Study, specs: Sequence[TableSpec]) -> list[str]:
    """What the tables need that is not done; where it is nothing they need but to be written."""
    return [key for key in _keys(study, specs) if not study.store.done(key)]


def chosen(study: Study, table: str) -> list[TableSpec]:
    return list(study.bench.tables.values()) if table == "all" else [study.bench.table(table)]


def default_output(request: Request, study: Study) -> Path:
    if study.budget == "full":
        return Path("reports")
    return request.folder / f"{request.table}-{study.budget}"


def describe_scale(study: Study) -> str:
    scale = study.scale
    return f"{scale.seeds} seeds, {scale.iterations} iterations, evaluated on {scale.prompts or 'all'} prompts"


def reference_recipe(study: Study, specs: Sequence[TableSpec]) -> Recipe | None:
    """A recipe of the tables: whose model, batches and rewards stand for all. None where nothing is trained."""
    for spec in specs:
        trained = [method for method in spec.methods if study.is_trained(method)]
        if trained and spec.rewards:
            return study.recipe(trained[0], spec.rewards[-1])
    return None


def make_report(study: Study, spec: TableSpec) -> Report:
    """The table, from what is finished."""
    module, _, name = spec.report.partition(":")
    report: Report = getattr(importlib.import_module(module), name)(study, spec)
    return report


@dataclass
class _Session:
    """The work of one command."""

    study: Study
    specs: Sequence[TableSpec]
    here: Resources
    rates: Rates | None
    say: Callable[[str], None]
    deadline: float | None
    time_limit: float | None

    def cost(self, unit: Unit) -> float:
        """Seconds, by the rates; without rates all units are alike."""
        if self.rates is None:
            return 1.0
        work = self.rates.seconds(unit.forwards, unit.training_forwards) + unit.images / self.rates.images
        return work + OVERHEAD

    def work(self) -> Outcome:
        """First the search for learning rates, then all that depends on it."""
        since = time.time()
        trials = self.study.search_units(self.specs)
        search = list({unit.key: unit for found in trials.values() for _, unit in found}.values())
        first = self._pool(search, "the search for learning rates", since) if search else Outcome()
        if first.stopped or first.left:
            return first
        self.study.rates.update(choose_rates(self.study, trials))
        units = self.study.units(self.specs)
        second = self._pool(units, "all runs", since)
        return Outcome(
            first.done + second.done, first.failed + second.failed, second.left, second.stopped, second.signal
        )

    def _pool(self, units: Sequence[Unit], what: str, since: float) -> Outcome:
        store = self.study.store
        left = Agenda(store, units).left()
        for key, problem in store.damaged.items():
            self.say(f"damaged: {key}: {problem}; it is done again")
        self.say(f"{what}: {len(units)}, of which {len(units) - len(left)} are done; {self.estimate(left)}")
        margin = 60.0 if self.time_limit is None else min(60.0, 0.2 * self.time_limit)
        pool = Pool(store, units, self.here, self.cost, self.say, deadline=self.deadline, margin=margin, since=since)
        return pool.run()

    def estimate(self, left: Sequence[Unit]) -> str:
        """What is left, in forwards and, where rates are known, in time."""
        forwards = sum(unit.forwards for unit in left)
        training = sum(unit.training_forwards for unit in left)
        text = f"{forwards:,.0f} forwards and {training:,.0f} training forwards to go"
        if self.rates is None:
            return text
        parallel = min(self.here.jobs, len(self.here.devices) or self.here.jobs)
        return f"{text}, about {duration(sum(map(self.cost, left)) / parallel)} at {self.rates.describe()}"

    def show_plan(self) -> None:
        """Every run with its key, what exists, and the estimate. What depends on a search that is not done is shown at
        the model's own learning rate."""
        study = self.study
        trials = study.search_units(self.specs)
        found = {unit.key: unit for units in trials.values() for _, unit in units}
        study.rates.update(choose_rates(study, trials))
        open_search = [method for method in trials if method not in study.rates]
        found |= {unit.key: unit for unit in study.units(self.specs)}
        agenda = Agenda(study.store, list(found.values()))
        for unit in agenda.units:
            record = study.store.record(unit.key)
            again = "again" if agenda.is_wanted_again(unit) else None  # for its weights
            state = again or ("to do" if record is None else record.run.status)
            self.say(f"{unit.key}  {state:6}  {unit.kind:7}  {unit.title}")
        if open_search:
            self.say(
                f"learning rates of {', '.join(open_search)} are not chosen yet: keys of their runs will be others"
            )
        left = agenda.left()
        self.say(f"{len(found)} in all, {len(found) - len(left)} done; {self.estimate(left)}")
        flops = _flops(study, self.specs, left)
        if flops:
            self.say(flops)
        if self.rates is None and left:
            self.say("no rates of this device are known yet: flowrl bench calibrate measures them")


def _flops(study: Study, specs: Sequence[TableSpec], left: Sequence[Unit]) -> str:
    """What is left in FLOPs of the transformer, where its sizes are known."""
    recipe = reference_recipe(study, specs)
    cost = None if recipe is None else iteration_cost(recipe)
    if cost is None or cost.flops is None or not left:
        return ""
    passes = cost.flops.training / (cost.training_forwards * cost.flops.per_forward)
    counted = sum(unit.forwards + passes * unit.training_forwards for unit in left)
    return f"{counted * cost.flops.per_forward:.3g} FLOPs of the transformer to go"


def _device(here: Resources) -> str:
    """What the workers' device is called."""
    import torch

    if not torch.cuda.is_available():
        torch.set_num_threads(here.threads)
    return calibrate.this_device()


def _check(
    study: Study, specs: Sequence[TableSpec], recipe: Recipe, say: Callable[[str], None] | None, here: Resources
) -> None:
    """Everything that can be missing, before anything runs; with the plan shown first where something is."""
    from flowrl.evaluation.metrics import find_metrics

    def metrics() -> None:
        if any(spec.steps or spec.benchmark for spec in specs):
            find_metrics(",".join(study.metrics), study.fragment.evaluation.metrics).check()

    try:
        all_of(recipe.model.check, recipe.check_scorers, metrics)
    except UserError:
        if say is not None:
            _Session(study, specs, here, None, say, None, None).show_plan()
        raise


def _calibrate(study: Study, recipe: Recipe, say: Callable[[str], None]) -> Rates | None:
    try:
        rates = calibrate.calibrate(study.store.folder, recipe, study.model)
    except UserError as error:
        say(f"no estimate of the time: {error}")
        return None
    say(f"calibrated: {rates.describe()}")
    return rates


def _deadline(request: Request, began: float) -> float | None:
    if request.time_limit is None:
        return None
    if request.time_limit <= 0:
        raise UserError(f"--time-limit must be more than 0 seconds, got {request.time_limit:g}")
    return began + request.time_limit


def _exit_code(outcome: Outcome) -> int:
    if outcome.signal is not None:
        return 128 + outcome.signal
    if outcome.failed:
        return FAILED
    return UNFINISHED if outcome.left or outcome.stopped else 0
