"""What a bench is, as data: methods, budgets and tables, read from ``benchmarks/*.yaml`` and checked as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from flowrl.errors import UserError, did_you_mean, listing
from flowrl.recipe_errors import explain
from flowrl.recipe_files import Merged, as_typed, read

METHODS, BUDGETS = "methods.yaml", "budgets.yaml"
Steps = Literal["few", "medium", "many"]
S = TypeVar("S", bound="Spec")


class Spec(BaseModel):
    """A record of a bench file; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)


class Method(Spec):
    """A way to train: a recipe and what differs from it. Without a recipe it is the untrained model."""

    title: str = Field(min_length=1)
    recipe: str | None = None
    """A file beside the bench's, or a shipped recipe's name."""
    overrides: tuple[str, ...] = ()
    """``dotted.path=value``, as on the command line."""
    for_model: dict[str, tuple[str, ...]] = Field(default_factory=dict, alias="for")
    """Model -> further overrides, of what depends on its grid."""
    rate_of: str | None = None
    """The method whose learning rate it is trained at; null: its own, which is searched for."""
    same_as: str | None = None
    """The method that this one is by construction: its runs are that one's."""
    paper: str | None = None
    """Its row in the paper's tables."""
    note: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.same_as is not None and (self.recipe is not None or self.overrides or self.for_model or self.rate_of):
            raise ValueError("same_as says all: recipe, overrides, for and rate_of must not be given with it")
        if self.recipe is None and (self.overrides or self.for_model or self.rate_of):
            raise ValueError("overrides, for and rate_of need a recipe")
        return self


class Search(Spec):
    """The search for a method's learning rate: the model's own times each factor."""

    factors: tuple[float, ...] = Field(min_length=1)
    seeds: int = Field(ge=1)
    """None of which is used afterwards."""
    iterations: int = Field(ge=1)
    rewards: str
    """The rewards fragment it is made with."""


class StepCounts(Spec):
    """Denoising steps of evaluations."""

    few: int = Field(ge=1)
    medium: int = Field(ge=1)
    many: int = Field(ge=1)


class Scale(Spec):
    """What a budget spends."""

    seeds: int = Field(ge=1)
    iterations: int = Field(ge=1)
    every: int = Field(ge=1)
    """Iterations between held-out evaluations during training."""
    held_out: int | None = Field(ge=1)
    """Their prompts; null for all."""
    prompts: int | None = Field(ge=1)
    """Prompts of the evaluation after training; null for all."""
    benchmark_prompts: int | None = Field(ge=1)
    benchmark_images: int = Field(ge=1)
    """Of UniGenBench++, for each prompt."""
    long: int = Field(ge=1)
    """Iterations of runs that are to overfit their reward."""
    search: Search | None
    steps: StepCounts
    overrides: tuple[str, ...] = ()


class Measurement(Spec):
    """Something measured of each method's recipe, or of each run, that neither training nor ``flowrl eval`` does."""

    function: str
    """``module:function``, called as ``function(recipe, **options)``; returns JSON values. Where the module has a
    function ``forwards`` of the same arguments, it says beforehand what that takes."""
    trained: bool = False
    """Of the runs: the recipe's model is the trained one. Else of the recipe, whose model is untrained."""
    untrained: bool = False
    """Also of the table's untrained model, by the reference method's recipe."""
    options: dict[str, Any] = Field(default_factory=dict)
    """For all budgets."""
    budgets: dict[Literal["smoke", "small", "full"], dict[str, Any]] = Field(default_factory=dict)
    """For one of them."""


class TableSpec(Spec):
    """One table: what is trained and measured for it, and who writes it."""

    name: str = ""
    """Of its file."""
    title: str
    order: int = 100
    """Its place on the page."""
    report: str
    """``module:function``, called as ``function(study, spec)``; returns a :class:`flowrl.bench.report.Report`."""
    source: str = ""
    """Where in the paper."""
    rewards: tuple[str, ...] = ()
    """Rewards fragments; the first for what has one set."""
    groups: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Heading -> methods."""
    reference: str | None = None
    """The method that the others are compared with."""
    train: bool = True
    """Whether its methods are trained."""
    long: bool = False
    """Trained for ``long`` iterations."""
    seeds: int | None = Field(default=None, ge=1)
    """Only so many of the budget's."""
    steps: tuple[Steps, ...] = ()
    """Evaluations after training."""
    benchmark: bool = False
    """UniGenBench++."""
    measure: dict[str, Measurement] = Field(default_factory=dict)
    """By name."""

    @property
    def methods(self) -> tuple[str, ...]:
        """All of its groups, each once."""
        return tuple(dict.fromkeys(name for names in self.groups.values() for name in names))


@dataclass(frozen=True)
class Bench:
    """All tables, and what they are made from."""

    folder: Path
    methods: Mapping[str, Method]
    budgets: Mapping[str, Any]
    tables: Mapping[str, TableSpec]
    """In the order of the page."""

    def table(self, name: str) -> TableSpec:
        """Raises UserError with the known names."""
        if name not in self.tables:
            known = [*self.tables, "all"]
            raise UserError(
                f"--table {name}: there is no such table{did_you_mean(name, known)} (known: {listing(known)})"
            )
        return self.tables[name]

    def resolve(self, name: str) -> str:
        """The method whose runs a method's are."""
        same = self.methods[name].same_as
        return name if same is None else self.resolve(same)

    def scale(self, budget: str, model: str) -> Scale:
        """What a budget spends on a model. Raises UserError where a value is missing or wrong."""
        merged = Merged()
        label = as_typed(self.folder / BUDGETS)
        shared = {key: value for key, value in self.budgets.items() if key != "for"}
        if budget not in shared:
            raise UserError(f"{label}: no budget {budget!r}{did_you_mean(budget, shared)} (known: {listing(shared)})")
        merged.add(_mapping(shared[budget], label, budget), label)
        of_models = _mapping(self.budgets.get("for", {}), label, "for")
        of_model = _mapping(of_models.get(Path(model).stem, {}), label, f"for.{model}")
        merged.add(_mapping(of_model.get(budget, {}), label, f"for.{model}.{budget}"), label)
        return _validate(Scale, merged, label)


def shipped_benchmarks() -> Path:
    """The bench files that come with flowrl: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    return package / "benchmarks" if (package / "benchmarks").is_dir() else package.parent / "benchmarks"


def load_bench(folder: Path | None = None) -> Bench:
    """Read all bench files of a folder. Raises UserError that names file, key, rule and nearest match."""
    folder = folder or shipped_benchmarks()
    for name in (METHODS, BUDGETS):
        if not (folder / name).is_file():
            raise UserError(f"{folder} holds no bench: {name} is missing")
    label = as_typed(folder / METHODS)
    methods = {}
    for name, values in read(folder / METHODS).values.items():
        merged = Merged()
        merged.add(_mapping(values, label, name), f"{label}: {name}")
        methods[name] = _validate(Method, merged, f"{label}: {name}")
    files = [path for path in sorted(folder.glob("*.yaml")) if path.name not in (METHODS, BUDGETS)]
    tables = {}
    for path in files:
        merged = Merged()
        merged.add(read(path).values, as_typed(path))
        merged.add({"name": path.stem}, as_typed(path))
        tables[path.stem] = _validate(TableSpec, merged, as_typed(path))
    ordered = dict(sorted(tables.items(), key=lambda item: (item[1].order, item[0])))
    bench = Bench(folder, methods, read(folder / BUDGETS).values, ordered)
    if problems := list(_unknown_names(bench)):
        raise UserError("\n  ".join(problems))
    return bench


def _unknown_names(bench: Bench) -> Iterator[str]:
    def check(where: str, name: str) -> Iterator[str]:
        if name not in bench.methods:
            yield f"{where}: no method {name!r}{did_you_mean(name, bench.methods)} (known: {listing(bench.methods)})"

    label = as_typed(bench.folder / METHODS)
    for name, method in bench.methods.items():
        for key in ("rate_of", "same_as"):
            other = getattr(method, key)
            if other is not None:
                yield from check(f"{label}: {name}.{key}", other)
                if other in bench.methods and (bench.methods[other].same_as or bench.methods[other].rate_of):
                    yield f"{label}: {name}.{key}: {other} is itself defined by another method; name that one"
    for table, spec in bench.tables.items():
        for name in [*spec.methods, *([spec.reference] if spec.reference else [])]:
            yield from check(as_typed(bench.folder / f"{table}.yaml"), name)
        needs_rewards = spec.train and any(bench.methods[n].recipe for n in spec.methods if n in bench.methods)
        if needs_rewards and not spec.rewards:
            yield f"{as_typed(bench.folder / f'{table}.yaml')}: rewards: name a rewards fragment to train on"


def _mapping(values: Any, label: str, path: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise UserError(f"{label}: {path}: must be a mapping, got {values!r}")
    return values


def _validate(kind: type[S], merged: Merged, label: str) -> S:
    try:
        return kind.model_validate(merged.values)
    except ValidationError as error:
        raise UserError(explain(error, kind, merged, label)) from error
