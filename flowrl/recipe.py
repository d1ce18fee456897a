"""The recipe: one frozen record of everything a run needs, composed from YAML files and checked as a whole."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from flowrl.errors import UserError, all_of, did_you_mean, listing
from flowrl.plan import Plan, compile_plan
from flowrl.protocols import Advantage, Continuation, Kernel, Loss, PolicyConfig, Schedule, ScorerConfig
from flowrl.recipe_changes import digest
from flowrl.recipe_errors import explain
from flowrl.recipe_files import Merged, RecipeFile, as_typed, assemble, assemble_model
from flowrl.sigmas import Grid
from flowrl.types import Arm
from flowrl.updates import Updates

MAX_CHECKED_ITERATIONS = 10_000


class Section(BaseModel):
    """A part of the recipe that is not a choice among kinds."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class GridSection(Section):
    """The noise levels of the rollout."""

    num_steps: int = Field(ge=2, le=1000)
    shift: float = Field(gt=0)
    lowest: float | None = Field(default=None, gt=0, lt=1)
    """The unshifted level that the last step starts from; None: 1 / num_steps, evenly spaced."""

    def levels(self, num_steps: int | None = None) -> Grid:
        """The grid, or that of another number of steps."""
        return Grid(num_steps or self.num_steps, self.shift, self.lowest)


class RolloutSection(Section):
    """How much is sampled per iteration, and how it is packed."""

    group: int = Field(ge=2, le=1024)
    """Siblings per decision, G. One alone would have nobody to be compared with."""
    prompts: int = Field(ge=1, le=65536)
    """Prompts per iteration over all processes."""
    max_batch: int = Field(default=64, ge=1)
    """Latents per forward."""
    decode_batch: int = Field(default=16, ge=1)
    """Images decoded and scored together."""
    score_ahead: int = Field(default=0, ge=0)
    """Decoded batches that may be scored, or wait for it, while the rollout goes on; 0 to score in line. Above 0 paths
    are finished one after another, so that there is something to score from early on."""


class OptimizerSection(Section):
    """AdamW and what surrounds it."""

    lr: float = Field(gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup: int = Field(default=0, ge=0)
    """Optimiser steps of linear warm-up."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay per optimiser step of the averaged weights; null for none."""


class DataSection(Section):
    """Where prompts come from (:func:`flowrl.data.load_prompts` reads a source)."""

    train: str = Field(min_length=1)
    test: str | None = None


class RunSection(Section):
    """How long, how exactly, and what is kept."""

    seed: int = Field(default=42, ge=0)
    iterations: int = Field(ge=1)
    precision: Literal["fp32", "bf16"]
    """Of the forwards; trainable parameters and optimiser state are fp32."""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """How several processes share the model (:mod:`flowrl.parallel`); auto: as accelerate is configured, else fsdp for
    a model too large for a GPU and ddp for the others."""
    non_finite: Literal["fail", "skip_group"] = "fail"
    """What is not finite stops the run, or: a reward drops its peer group, a loss or gradient its update."""
    checkpoint_every: int = Field(default=10, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)
    sample_every: int = Field(default=0, ge=0)
    """Iterations between sample grids; 0 for none but those before and after."""
    num_samples: int = Field(default=8, ge=1)
    trackers: tuple[
        Literal["tensorboard", "wandb", "comet_ml", "aim", "mlflow", "clearml", "dvclive", "swanlab", "trackio"], ...
    ] = ("tensorboard",)
    microbatch: Annotated[int, Field(ge=1)] | Literal["auto"] = 32
    """Decisions per training forward; auto: as many as memory allows where that saves work."""
    self_check_bound: float | None = Field(default=None, gt=0)
    """Of the first-step self-check (:data:`flowrl.trainer.SELF_CHECK_BOUND`); null for the precision's own."""


class GenerateSection(Section):
    """How ``flowrl eval`` draws; null: steps of the held-out evaluation, size of the training."""

    num_steps: int | None = Field(default=None, ge=1, le=1000)
    height: int | None = Field(default=None, ge=1)
    """Pixels."""
    width: int | None = Field(default=None, ge=1)


class StopSection(Section):
    """When a run ends early: :func:`flowrl.monitors.reward_hacking` is the rule."""

    monitor: str
    """A scorer of ``evaluation.scorers``."""
    reward: str | None = None
    """The reward that it is compared with; null for the weighted sum of all."""
    patience: int = Field(default=3, ge=1)
    """Evaluations in a row."""
    min_drop: float = Field(default=0.0, ge=0)
    """How far below its best the monitor must be, in its own unit."""


class EvaluationSection(Section):
    """The held-out evaluation before, after and, where asked for, during training; and what ``flowrl eval`` does."""

    num_steps: int = Field(ge=1, le=1000)
    seed: int = Field(default=0, ge=0)
    limit: int | None = Field(default=None, ge=1)
    """Prompts of data.test that are evaluated; null for all."""
    every: int = Field(default=0, ge=0)
    """Iterations between evaluations during training; 0 for none but those before and after."""
    scorers: dict[str, ScorerConfig] = Field(default_factory=dict)
    generate: GenerateSection = GenerateSection()
    metrics: str = Field(default="official", min_length=1)
    """Of ``flowrl eval``: a metrics fragment, its name or file."""
    keep_best: str | None = None
    """The scorer by which the best weights are kept."""
    stop: StopSection | None = None
    """Ends the run where a scorer falls while the reward rises; null: it never ends early."""

    @model_validator(mode="after")
    def _monitors_exist(self) -> Self:
        named = {"keep_best": self.keep_best, "stop.monitor": None if self.stop is None else self.stop.monitor}
        for key, name in named.items():
            if name is not None and name not in self.scorers:
                raise ValueError(f"{key}: {_no_such(name, self.scorers)} among evaluation.scorers")
        if self.stop is not None and not self.every:
            raise ValueError("stop needs evaluations during training: set evaluation.every")
        return self


class Reward(Section):
    """A scorer and its weight. In YAML one mapping: ``{kind: gold, weight: 1.0}``."""

    scorer: ScorerConfig
    weight: float = 1.0

    @model_validator(mode="before")
    @classmethod
    def _apart(cls, data: Any) -> Any:
        if isinstance(data, str):
            return {"scorer": data}
        if isinstance(data, dict) and "scorer" not in data:
            weight = {"weight": data["weight"]} if "weight" in data else {}
            return {"scorer": {key: value for key, value in data.items() if key != "weight"}} | weight
        return data

    @model_serializer(mode="plain")
    def _together(self) -> dict[str, Any]:
        return self.scorer.model_dump(mode="json") | {"weight": self.weight}


class Recipe(Section):
    """Everything a run needs. Build it with :func:`load_recipe`."""

    name: str = Field(min_length=1)
    summary: str
    plugins: tuple[str, ...] = ()
    """Modules that hold strategies of one's own; imported before anything is checked."""
    schedule: Schedule
    continuation: Continuation
    kernel: Kernel
    advantage: Advantage
    loss: Loss
    train: Updates
    """How an iteration's actions are divided into optimiser steps."""
    model: PolicyConfig
    grid: GridSection
    rollout: RolloutSection
    optimizer: OptimizerSection
    rewards: dict[str, Reward] = Field(min_length=1)
    data: DataSection
    run: RunSection
    evaluation: EvaluationSection

    _source_path: Path = PrivateAttr(default=Path())
    _model_name: str | None = PrivateAttr(default=None)

    @field_validator("rewards", mode="before")
    @classmethod
    def _without_nulls(cls, rewards: Any) -> Any:
        """``rewards.hps: null`` takes away a reward that an included fragment brings."""
        if isinstance(rewards, dict):
            return {name: reward for name, reward in rewards.items() if reward is not None}
        return rewards

    @property
    def source_path(self) -> Path:
        """The file that :func:`load_recipe` read."""
        return self._source_path

    @property
    def model_name(self) -> str | None:
        """The name of the model fragment, which picks the ``for`` blocks."""
        return self._model_name

    @property
    def in_turn(self) -> bool:
        """Whether paths are finished one after another: where scorers work beside the rollout, or blocks are reused,
        whose residuals would otherwise be held by the thousand for many prompts."""
        return self.rollout.score_ahead > 0 or self.continuation.cache is not None

    def arms(self, iteration: int) -> tuple[Arm, ...]:
        """The schedule's arms at an iteration; raises UserError where they do not fit the grid."""
        with self._explained("schedule", iteration):
            return self.schedule.arms(
                num_steps=self.grid.num_steps,
                group=self.rollout.group,
                iteration=iteration,
                iterations=self.run.iterations,
                seed=self.run.seed,
            )

    def plan(self, iteration: int = 0) -> Plan:
        """The plan of an iteration; raises UserError where schedule, grid, group, peers and updates do not fit."""
        arms = self.arms(iteration)
        with self._explained("continuation", iteration):
            cache = self.continuation.cache
            plan = compile_plan(
                self.grid.levels(),
                arms,
                self.continuation.paths,
                approximate=bool(self.continuation.wanted),
                reuse_every=None if cache is None else cache.every,
                extrapolate=cache is not None and cache.order == 1,
            )
        with self._explained("advantage", iteration):
            plan.peers(self.advantage.peers)
        with self._explained("train", iteration):
            self.partition(plan, iteration, position=0)
        return plan

    def check_plans(self) -> None:
        """Compile every plan that the run will come to (of a very long one, of its beginning), as :meth:`plan` does."""
        with self._explained("rewards", 0):
            _check_weights([reward.weight for reward in self.rewards.values()], self.advantage.mixing)
        with self._explained("evaluation", 0):
            _check_monitors(self)
        with self._explained("continuation", 0):
            self.model.check_continuation(self.continuation)
        seen: set[str] = set()
        for iteration in range(min(self.run.iterations, MAX_CHECKED_ITERATIONS)):
            arms = repr(self.arms(iteration))
            if arms not in seen:
                seen.add(arms)
                self.plan(iteration)

    def scorers(self) -> dict[str, dict[str, ScorerConfig]]:
        """Section -> name -> scorer, of the rewards and, where there are held-out prompts, of the evaluation."""
        rewards = {name: reward.scorer for name, reward in self.rewards.items()}
        return {"rewards": rewards, "evaluation": self.evaluation.scorers if self.data.test else {}}

    def check_scorers(self) -> None:
        """Raise UserError with everything that the scorers lack (weights, an address), before one is loaded."""
        all_of(*(scorer.check for section in self.scorers().values() for scorer in section.values()))

    @contextmanager
    def _explained(self, section: str, iteration: int) -> Iterator[None]:
        """A ValueError of a strategy's as the user's mistake, with the file and section it comes from."""
        try:
            yield
        except ValueError as error:
            when = f" (in iteration {iteration + 1})" if iteration else ""
            raise UserError(f"{as_typed(self.source_path)}: {section}: {error}{when}") from error

    def partition(self, plan: Plan, iteration: int, position: int) -> tuple[tuple[int, ...], ...]:
        """[updates] the actions that each update trains, for the prompt at a place of the global batch."""
        return self.train.partition(plan, seed=self.run.seed, iteration=iteration, position=position)

    def resolved(self) -> dict[str, Any]:
        """All values as plain data, without includes: a YAML file of them is the same recipe."""
        return self.model_dump(mode="json")

    def digest(self) -> str:
        """A name for the trajectory: equal for recipes that differ in what does not enter it only."""
        return digest(self.resolved())


class ModelFragment(BaseModel):
    """What a model fragment says of the model itself."""

    model_config = ConfigDict(frozen=True)

    model: PolicyConfig
    grid: GridSection
    data: DataSection | None = None
    evaluation: EvaluationSection


def load_recipe(
    path_or_name: str | Path, *, model: str | None = None, rewards: str | None = None, overrides: Sequence[str] = ()
) -> Recipe:
    """Read, merge and check a recipe: command line > recipe ``for`` > recipe > ``rewards`` > ``model``.

    Args:
        path_or_name: a YAML file, or the name of a shipped recipe.
        model, rewards: fragments (path or name) in place of the recipe's own.
        overrides: ``dotted.path=value`` with the value in YAML.

    Raises:
        UserError: with every problem found, each with its file, its path inside the file and the rule.

    >>> load_recipe("g2rpo", overrides=["rollout.group=4"]).rollout.group
    4
    """
    file, merged = assemble(path_or_name, model=model, rewards=rewards, overrides=overrides)
    import_plugins(file, merged)
    try:
        recipe = Recipe.model_validate(merged.values)
    except ValidationError as error:
        raise UserError(explain(error, Recipe, merged, file.label)) from error
    recipe._source_path = file.path
    recipe._model_name = merged.model_name
    recipe.check_plans()
    return recipe


def load_model(name: str) -> ModelFragment:
    """A model fragment alone: its name, or its file."""
    file, merged = assemble_model(name)
    try:
        return ModelFragment.model_validate(merged.values)
    except ValidationError as error:
        raise UserError(explain(error, ModelFragment, merged, file.label)) from error


def _check_weights(weights: Sequence[float], mixing: str) -> None:
    if not any(weights):
        raise ValueError("every weight is 0; at least one reward needs another")
    if mixing == "weighted_advantages" and sum(weights) <= 0:
        raise ValueError(f"mixing weighted_advantages divides by the sum of the weights, which is {sum(weights):g}")


def _check_monitors(recipe: Recipe) -> None:
    evaluation, stop = recipe.evaluation, recipe.evaluation.stop
    if (evaluation.keep_best or stop) and recipe.data.test is None:
        raise ValueError("keep_best and stop need held-out prompts: set data.test")
    if stop is not None and stop.reward is not None and stop.reward not in recipe.rewards:
        raise ValueError(f"stop.reward: {_no_such(stop.reward, recipe.rewards)} among the rewards")


def _no_such(name: str, known: Mapping[str, Any]) -> str:
    return f"there is no {name!r}{did_you_mean(name, known)} (known: {listing(known)})"


def import_plugins(file: RecipeFile, merged: Merged) -> None:
    """Import the modules named under ``plugins``: installed ones, or files beside the recipe or in the working folder
    (a run's snapshot lies elsewhere than its plugins)."""
    names = merged.values.get("plugins", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{file.label}: plugins must be a list of module names, got {names!r}")
    if names:
        folders = (str(file.path.parent), str(Path.cwd()))
        sys.path += [folder for folder in dict.fromkeys(folders) if folder not in sys.path]
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
            raise UserError(f"{file.label}: plugins: {name} cannot be imported: {problem}") from error
