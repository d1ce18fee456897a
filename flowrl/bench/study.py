"""A study: a bench at one budget on one model. It knows every unit that its tables need, and finds what is finished."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from flowrl.bench.identity import model_weights, weights_identity
from flowrl.bench.report import Budget, RunRecord
from flowrl.bench.spec import Bench, Scale, TableSpec
from flowrl.bench.units import Store, Unit, UnitRecord, make_key
from flowrl.bench.workload import measured_forwards, of_evaluation, of_training
from flowrl.numerics import NUMERICS
from flowrl.progress import counted
from flowrl.recipe import ModelFragment, Recipe, load_model, load_recipe

FIRST_SEARCH_SEED = 1000
"""Seeds of the search for learning rates are from here on: no table has them."""
GOLD = "gold"
Evaluated = Literal["few", "medium", "many", "benchmark"]


@dataclass(frozen=True)
class Run:
    """A finished training run of a study."""

    key: str
    method: str
    title: str
    rewards: str
    seed: int
    recipe: Recipe
    folder: Path
    """Of ``flowrl train``."""
    record: RunRecord


@dataclass(frozen=True)
class Evaluation:
    """A finished ``flowrl eval`` of a run or, without one, of the untrained model."""

    key: str
    method: str
    rewards: str
    seed: int
    folder: Path
    record: RunRecord


@dataclass(frozen=True)
class Measured:
    """A finished measurement of a method's recipe or run: ``values`` are those that its function returned."""

    key: str
    method: str
    title: str
    rewards: str
    seed: int
    values: Mapping[str, Any]
    record: RunRecord


@dataclass
class Study:
    """A bench at one budget on one model, in one store.

    ``rates``: method -> learning rate, of those searched for. ``pictures``: what a gallery's report adds, name ->
    content of the files that are written beside it.
    """

    bench: Bench
    model: str
    budget: Budget
    store: Store
    num_seeds: int | None = None
    command: str = ""
    rates: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)
    _recipes: dict[Any, Recipe] = field(default_factory=dict)
    _units: dict[Any, Unit] = field(default_factory=dict)

    @cached_property
    def scale(self) -> Scale:
        scale = self.bench.scale(self.budget, self.model)
        return scale if self.num_seeds is None else scale.model_copy(update={"seeds": self.num_seeds})

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """What finished runs are evaluated by: all metrics of the model's fragment."""
        from flowrl.evaluation.metrics import ALL, find_metrics

        return tuple(find_metrics(ALL, self.fragment.evaluation.metrics).metrics)

    @cached_property
    def fragment(self) -> ModelFragment:
        return load_model(self.model)

    @cached_property
    def _weights(self) -> str:
        return model_weights(self.fragment.model)

    def seeds(self, spec: TableSpec | None = None) -> range:
        limit = self.scale.seeds if spec is None or spec.seeds is None else min(spec.seeds, self.scale.seeds)
        return range(limit)

    def describe_seeds(self, spec: TableSpec) -> str:
        """How many seeds a table is of: those of which anything is finished, and how many it is to have."""
        done = [[self.store.done(unit.key) for unit in self._of_table(spec, seed)] for seed in self.seeds(spec)]
        text = counted(len(done), "seed")
        return text if all(map(all, done)) else f"{sum(map(any, done))} of {text} at most"

    def title(self, method: str) -> str:
        return self.bench.methods[method].title

    # ---- recipes

    def arguments(self, method: str, rewards: str, seed: int, iterations: int) -> dict[str, Any]:
        """What ``flowrl train`` is given for a run, as JSON values."""
        defined = self.bench.methods[self.bench.resolve(method)]
        if defined.recipe is None:
            raise ValueError(f"{method} is the untrained model")
        own = self.bench.folder / defined.recipe
        rate = self.rates.get(self.rate_method(method))
        overrides = [
            *self.scale.overrides,
            *defined.overrides,
            *defined.for_model.get(Path(self.model).stem, ()),
            f"run.iterations={iterations}",
            f"run.seed={seed}",
            "run.trackers=[]",
            "run.keep_checkpoints=1",
            f"run.checkpoint_every={self.scale.every}",
            f"evaluation.every={self.scale.every}",
            f"evaluation.seed={seed}",
            *([f"evaluation.limit={self.scale.held_out}"] if self.scale.held_out else []),
            *([f"optimizer.lr={rate:g}"] if rate is not None else []),
        ]
        overrides += self._monitors(defined.recipe if not own.is_file() else str(own), rewards, overrides)
        return {
            "recipe": str(own) if own.is_file() else defined.recipe,
            "model": self.model,
            "rewards": rewards,
            "overrides": overrides,
        }

    def _monitors(self, recipe: str, rewards: str, overrides: Sequence[str]) -> list[str]:
        """Every reward is a monitor too, so that curves show it on held-out prompts."""
        loaded = self._load(recipe, rewards, tuple(overrides))
        if loaded.data.test is None:
            return []
        missing = {name: r.scorer for name, r in loaded.rewards.items() if name not in loaded.evaluation.scorers}
        found = ((name, json.dumps(scorer.model_dump(mode="json"))) for name, scorer in missing.items())
        return [f"evaluation.scorers.{name}={values}" for name, values in found]

    def _load(self, recipe: str, rewards: str, overrides: tuple[str, ...]) -> Recipe:
        key = (
            recipe,
            rewards,
            tuple(text for text in overrides if not text.startswith(("run.seed=", "evaluation.seed="))),
        )
        seeds = [int(text.partition("=")[2]) for text in overrides if text.startswith("run.seed=")]
        if key not in self._recipes:
            self._recipes[key] = load_recipe(recipe, model=self.model, rewards=rewards, overrides=list(overrides))
        found = self._recipes[key]
        if not seeds or found.run.seed == seeds[-1]:
            return found
        return found.model_copy(
            update={
                "run": found.run.model_copy(update={"seed": seeds[-1]}),
                "evaluation": found.evaluation.model_copy(update={"seed": seeds[-1]}),
            }
        )

    def recipe(self, method: str, rewards: str, seed: int = 0, iterations: int | None = None) -> Recipe:
        """The whole recipe of a run."""
        given = self.arguments(method, rewards, seed, iterations or self.scale.iterations)
        return self._load(given["recipe"], rewards, tuple(given["overrides"]))

    def rate_method(self, method: str) -> str:
        """The method whose learning rate a method is trained at."""
        resolved = self.bench.resolve(method)
        return self.bench.methods[resolved].rate_of or resolved

    def monitor_of(self, names: Sequence[str]) -> str:
        """By which held-out score learning rates are chosen: gold where there is one, else the first."""
        return GOLD if GOLD in names else names[0]

    def monitor_name(self, rewards: str) -> str:
        """The same before anything has run."""
        method = next(name for name, defined in self.bench.methods.items() if defined.recipe is not None)
        names = list(self.recipe(method, rewards).evaluation.scorers)
        return self.monitor_of(names) if names else "score"

    # ---- units

    def units(self, specs: Sequence[TableSpec]) -> list[Unit]:
        """Everything that the tables need, each once, all methods of a seed before the next seed."""
        found: dict[str, Unit] = {}
        last = max((len(self.seeds(spec)) for spec in specs), default=0)
        for seed in range(last):
            for spec in specs:
                if seed in self.seeds(spec):
                    found |= {unit.key: unit for unit in self._of_table(spec, seed) if unit.key not in found}
        return list(found.values())

    def _of_table(self, spec: TableSpec, seed: int) -> Iterator[Unit]:
        iterations = self.scale.long if spec.long else self.scale.iterations
        evaluated: tuple[Evaluated, ...] = (*spec.steps, *(("benchmark",) if spec.benchmark else ()))
        for method in spec.methods:
            if self.bench.methods[self.bench.resolve(method)].recipe is None:
                yield from (self.evaluation_unit(which, seed, None, method) for which in evaluated)
                for name in (name for name, asked in spec.measure.items() if asked.untrained):
                    yield from (self.measure_unit(spec, name, method, rewards, seed) for rewards in spec.rewards)
                continue
            for rewards in spec.rewards:
                trained = self.train_unit(method, rewards, seed, iterations)
                if spec.train:
                    yield trained
                    yield from (self.evaluation_unit(which, seed, trained, method) for which in evaluated)
                for name in spec.measure:
                    yield self.measure_unit(spec, name, method, rewards, seed)

    def search_units(self, specs: Sequence[TableSpec]) -> dict[str, list[tuple[float, Unit]]]:
        """Method -> learning rate and run, of the search for every method that the tables train."""
        search = self.scale.search
        if search is None:
            return {}
        names = [self.rate_method(m) for spec in specs if spec.train for m in spec.methods if self.is_trained(m)]
        found: dict[str, list[tuple[float, Unit]]] = {}
        for method in dict.fromkeys(names):
            base = self._at_models_rates().recipe(method, search.rewards).optimizer.lr
            for factor in search.factors:
                rate = float(f"{base * factor:.3g}")
                trial = Study(
                    self.bench, self.model, self.budget, self.store, rates={method: rate}, **self._worked_out()
                )
                for seed in range(FIRST_SEARCH_SEED, FIRST_SEARCH_SEED + search.seeds):
                    unit = trial.train_unit(method, search.rewards, seed, search.iterations, f"lr {rate:g}")
                    found.setdefault(method, []).append((rate, unit))
        return found

    def _at_models_rates(self) -> Study:
        """The same study before any search."""
        return Study(
            self.bench, self.model, self.budget, self.store, self.num_seeds, self.command, **self._worked_out()
        )

    def _worked_out(self) -> dict[str, Any]:
        return {"_recipes": self._recipes, "_units": self._units}

    def is_trained(self, method: str) -> bool:
        return self.bench.methods[self.bench.resolve(method)].recipe is not None

    def train_unit(self, method: str, rewards: str, seed: int, iterations: int, remark: str = "") -> Unit:
        """``flowrl train`` of a method; worked out once, as its plans are compiled to count what it takes."""
        rate = self.rates.get(self.rate_method(method))
        known = self.bench.resolve(method), rewards, seed, iterations, remark, rate, NUMERICS
        if known not in self._units:
            self._units[known] = self._train_unit(method, rewards, seed, iterations, remark)
        return self._units[known]

    def _train_unit(self, method: str, rewards: str, seed: int, iterations: int, remark: str) -> Unit:
        arguments = self.arguments(method, rewards, seed, iterations)
        recipe = self._load(arguments["recipe"], rewards, tuple(arguments["overrides"]))
        resolved = recipe.resolved()
        watched = {k: resolved["evaluation"][k] for k in ("num_steps", "seed", "limit", "every", "scorers")}
        parts = [recipe.digest(), watched, resolved["data"]["test"], weights_identity(recipe), seed, NUMERICS]
        key = make_key("train", *parts)
        command = ["flowrl", "train", arguments["recipe"], "--model", self.model, "--rewards", rewards]
        command += ["--output", str(self.store.path(key)), *arguments["overrides"]]
        name = f"{self.bench.resolve(method)} on {Path(rewards).stem}"
        title = ", ".join(filter(None, (name, f"seed {seed}", remark)))
        return Unit(
            key=key,
            kind="train",
            title=title,
            seed=seed,
            recipe_digest=recipe.digest(),
            command=shlex.join(command),
            arguments=arguments,
            **of_training(recipe)._asdict(),
        )

    def evaluation_unit(self, which: Evaluated, seed: int, trained: Unit | None, method: str) -> Unit:
        """``flowrl eval`` of a run, or of the untrained model, at few, medium or many steps, or on the benchmark."""
        scale = self.scale
        is_benchmark = which == "benchmark"
        given: dict[str, Any] = {
            "metrics": "unigenbench" if is_benchmark else ",".join(self.metrics),
            "limit": scale.benchmark_prompts if is_benchmark else scale.prompts,
            "num_steps": None if is_benchmark else getattr(scale.steps, which),
            "seed": seed,
            "images_per_prompt": scale.benchmark_images if is_benchmark else 1,
        }
        weights = "" if trained is not None else self._weights
        key = make_key("eval", trained and trained.key, self.model, weights, given, NUMERICS)
        of = self.model if trained is None else str(self.store.path(trained.key))
        command = ["flowrl", "eval", of, "--output", str(self.store.path(key)), "--metrics", given["metrics"]]
        command += ["--seed", str(seed)]
        command += ["--limit", str(given["limit"])] if given["limit"] else []
        command += ["--steps", str(given["num_steps"])] if given["num_steps"] else []
        of_what = f"{method}, seed {seed}" if trained is None else trained.title
        return Unit(
            key=key,
            kind="eval",
            title=f"{of_what}: {'UniGenBench++' if is_benchmark else f'{which} steps'}",
            seed=seed,
            recipe_digest="" if trained is None else trained.recipe_digest,
            command=shlex.join(command),
            arguments={"of": of, **given},
            needs=None if trained is None else trained.key,
            **of_evaluation(self.fragment, given, is_benchmark)._asdict(),
        )

    def measure_unit(self, spec: TableSpec, name: str, method: str, rewards: str, seed: int) -> Unit:
        """A table's measurement ``name`` of a method's recipe, or of its run."""
        asked = spec.measure[name]
        iterations = self.scale.long if spec.long else self.scale.iterations
        is_trained = asked.trained and self.is_trained(method)
        whose = method if self.is_trained(method) else spec.reference or method
        study = self if is_trained else self._at_models_rates()  # what is not trained has no learning rate
        trained = study.train_unit(whose, rewards, seed, iterations)
        options = asked.options | asked.budgets.get(self.budget, {})
        recipe = study._load(trained.arguments["recipe"], rewards, tuple(trained.arguments["overrides"]))
        key = make_key("measure", asked.function, options, trained.key, is_trained, NUMERICS)
        arguments = dict(trained.arguments)
        if is_trained:
            weights = self.store.path(trained.key) / "weights"
            arguments["overrides"] = [*arguments["overrides"], f"model.source={weights}"]
        return Unit(
            key=key,
            kind="measure",
            title=f"{trained.title if self.is_trained(method) else method}: {name}",
            seed=seed,
            recipe_digest=trained.recipe_digest,
            command=self.command,
            arguments={**arguments, "function": asked.function, "options": options},
            needs=trained.key if is_trained else None,
            forwards=measured_forwards(asked.function, recipe, options),
        )

    # ---- what is finished

    def run(self, method: str, rewards: str, seed: int, *, long: bool = False) -> Run | None:
        iterations = self.scale.long if long else self.scale.iterations
        unit = self.train_unit(method, rewards, seed, iterations)
        record = self._done(unit)
        if record is None:
            return None
        recipe = self.recipe(method, rewards, seed, iterations)
        return Run(unit.key, method, self.title(method), rewards, seed, recipe, self.store.path(unit.key), record.run)

    def runs(self, spec: TableSpec, method: str, rewards: str) -> list[Run]:
        """The finished runs of a method in a table, by seed."""
        found = (self.run(method, rewards, seed, long=spec.long) for seed in self.seeds(spec))
        return [run for run in found if run is not None]

    def evaluation(self, spec: TableSpec, which: Evaluated, method: str, rewards: str, seed: int) -> Evaluation | None:
        """The evaluation of a run (of the untrained model, whatever the rewards) where it is finished."""
        trained = None
        if self.is_trained(method):
            iterations = self.scale.long if spec.long else self.scale.iterations
            trained = self.train_unit(method, rewards, seed, iterations)
        unit = self.evaluation_unit(which, seed, trained, method)
        record = self._done(unit)
        if record is None:
            return None
        return Evaluation(unit.key, method, rewards, seed, self.store.path(unit.key), record.run)

    def evaluations(self, spec: TableSpec, which: Evaluated, method: str, rewards: str) -> list[Evaluation]:
        found = (self.evaluation(spec, which, method, rewards, seed) for seed in self.seeds(spec))
        return [evaluation for evaluation in found if evaluation is not None]

    def measured(self, spec: TableSpec, name: str) -> list[Measured]:
        """What a table's measurement found, of every method, rewards and seed where it is finished."""
        found = []
        for method in (m for m in spec.methods if self.is_trained(m) or spec.measure[name].untrained):
            for rewards in spec.rewards:
                for seed in self.seeds(spec):
                    unit = self.measure_unit(spec, name, method, rewards, seed)
                    record = self._done(unit)
                    if record is not None:
                        values = json.loads((self.store.path(unit.key) / "measured.json").read_text())
                        where = (unit.key, method, self.title(method), rewards, seed)
                        found.append(Measured(*where, values, record.run))
        return found

    def _done(self, unit: Unit) -> UnitRecord | None:
        record = self.store.record(unit.key)
        return record if record is not None and record.run.status == "done" else None

    def failures(self, spec: TableSpec, method: str, rewards: str) -> list[RunRecord]:
        """Runs and evaluations of a method in a table that failed."""
        units = [
            unit
            for seed in self.seeds(spec)
            for unit in self._of_table(spec.model_copy(update={"groups": {"": (method,)}, "rewards": (rewards,)}), seed)
        ]
        records = (self.store.record(unit.key) for unit in units)
        return [record.run for record in records if record is not None and record.run.status == "failed"]
