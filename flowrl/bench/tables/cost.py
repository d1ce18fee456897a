"""Section 11: what an iteration costs by the paper's formula, its claim, the published loop, and as a tree."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import fmean

from flowrl.bench.calibrate import Rates, find_rates
from flowrl.bench.report import Block, Cell, Claim, Column, Report, Row, Table, Text
from flowrl.bench.spec import TableSpec
from flowrl.bench.study import Study
from flowrl.bench.tables.common import paper
from flowrl.bench.tables.common import report as make
from flowrl.continuations.strided import Strided
from flowrl.errors import UserError
from flowrl.recipe import Recipe, load_recipe
from flowrl.schedules.singular import Singular
from flowrl.sigmas import Grid
from flowrl.updates import decisions_of

PAPER_MODEL = "flux1_dev"


def formula(num_steps: int, steps: Iterable[int], strides: Iterable[int], ceil: Iterable[int] = ()) -> int:
    """Forwards of a sample by section 11: the sum over noisy steps k and granularities of floor((T - k) / lambda).

    ``ceil``: the granularities that are rounded up. The paper's 184 has floor for 2 and ceil for 3.

    >>> formula(16, range(8), (1, 2, 3)), formula(16, range(8), (1, 2, 3), ceil=(3,)), formula(16, range(8), (1,))
    (179, 184, 100)
    """
    upwards = set(ceil)
    return sum(-(-(num_steps - k) // s) if s in upwards else (num_steps - k) // s for k in steps for s in strides)


def loop_of_sample(num_steps: int, steps: Iterable[int], strides: tuple[int, ...]) -> int:
    """Forwards of a sample in the released loop: its noisy steps, and every granularity after each of them.

    >>> loop_of_sample(16, range(8), (1, 2, 3))
    181
    """
    grid, continuation = Grid(num_steps, 3.0), Strided(strides=strides)
    return sum(1 + sum(len(path.sigmas) - 1 for path in continuation.paths(grid, k + 1)) for k in steps)


def report(study: Study, spec: TableSpec) -> Report:
    """The methods on the study's model and, where that is another, on the paper's; and the four ways to count G2RPO."""
    blocks: list[Block] = []
    rewards = spec.rewards[0]
    ours = {method: study.recipe(method, rewards) for method in spec.methods}
    rates = find_rates(study.store.folder, next(iter(ours.values())), study.model, _device_of(study, spec))
    blocks.append(_methods(study, spec, study.model, ours, rates))
    theirs = ours
    if study.model != PAPER_MODEL:
        theirs = _on_paper_model(study, spec, rewards)
        blocks.append(_methods(study, spec, PAPER_MODEL, theirs, None))
    blocks.append(_countings(theirs[spec.reference or "g2rpo"]))
    blocks.append(Text(name="cost_claims", title="The claim of section 11", claims=(_claim(theirs["g2rpo"]),)))
    return make(study, spec, blocks)


def _on_paper_model(study: Study, spec: TableSpec, rewards: str) -> dict[str, Recipe]:
    found = {}
    for method in spec.methods:
        defined = study.bench.methods[study.bench.resolve(method)]
        if defined.recipe is None:
            raise UserError(f"table {spec.name}: {method} is not trained and costs nothing")
        overrides = [*defined.overrides, *defined.for_model.get(PAPER_MODEL, ())]
        found[method] = load_recipe(defined.recipe, model=PAPER_MODEL, rewards=rewards, overrides=overrides)
    return found


def _device_of(study: Study, spec: TableSpec) -> str | None:
    """The device of the study's runs, where some are finished; None: this one."""
    for method in spec.methods:
        for run in study.runs(spec, method, spec.rewards[0]):
            return run.record.device
    return None


# ---- by method


def _methods(study: Study, spec: TableSpec, model: str, recipes: dict[str, Recipe], rates: Rates | None) -> Table:
    rows = [Row(title=study.title(method), cells=_cells(recipe, rates)) for method, recipe in recipes.items()]
    columns = [
        Column(key="loop", title="forwards, published loop", better="lower", digits=0),
        Column(key="tree", title="forwards, tree", better="lower", digits=1),
        Column(key="saved", title="saved by the tree", better="higher", digits=1, percent=True),
        Column(key="training", title="training forwards", better="lower", digits=2),
    ]
    if rates is not None:
        columns += [
            Column(key="seconds", title="seconds an iteration", better="lower", digits=2, unit="s"),
            Column(key="hours", title="GPU-hours" if "CPU" not in rates.device else "hours", better="lower", digits=3),
        ]
    recipe = next(iter(recipes.values()))
    how = "" if rates is None else f" Seconds and hours of the whole training at {rates.describe()}."
    return Table(
        name=f"cost_{model}",
        title=f"An iteration on {model}, per prompt",
        columns=tuple(columns),
        rows=tuple(rows),
        caption=(
            f"Means over the {recipe.run.iterations} iterations of a run, T = {recipe.grid.num_steps}, "
            f"G = {recipe.rollout.group}, {recipe.rollout.prompts} prompts. The published loop denoises one sample "
            f"at a time; the tree runs what siblings and granularities share once.{how}"
        ),
    )


def _cells(recipe: Recipe, rates: Rates | None) -> dict[str, Cell]:
    loop, tree, training = _counts(recipe)
    cells = {
        "loop": Cell(value=loop),
        "tree": Cell(value=tree),
        "saved": Cell(value=1 - tree / loop),
        "training": Cell(value=training),
    }
    if rates is not None:
        seconds = rates.seconds(tree, training) * recipe.rollout.prompts
        cells |= {"seconds": Cell(value=seconds), "hours": Cell(value=seconds * recipe.run.iterations / 3600)}
    return cells


def _counts(recipe: Recipe) -> tuple[float, float, float]:
    """Forwards of the published loop and of the tree, and training forwards: means over the run's iterations."""
    seen: dict[str, tuple[float, float, float]] = {}
    found = []
    for iteration in range(recipe.run.iterations):
        arms = repr(recipe.arms(iteration))
        if arms not in seen:
            plan = recipe.plan(iteration)
            places = range(min(recipe.rollout.prompts, 16))
            parts = [recipe.partition(plan, iteration, position) for position in places]
            training = fmean(sum(len(decisions_of(plan, update)) for update in part) for part in parts)
            seen[arms] = _loop(recipe, plan.forwards_alone), plan.num_forwards, training
        found.append(seen[arms])
    loop, tree, training = (fmean(column) for column in zip(*found, strict=True))
    return loop, tree, training


def _loop(recipe: Recipe, alone: int) -> float:
    """Of a prompt. The released loop of singular sampling walks one noiseless image, from which every sample leaves."""
    schedule, continuation = recipe.schedule, recipe.continuation
    if not isinstance(schedule, Singular) or not isinstance(continuation, Strided):
        return alone
    steps = _noisy(recipe)
    return recipe.grid.num_steps + recipe.rollout.group * loop_of_sample(
        recipe.grid.num_steps, steps, continuation.strides
    )


def _noisy(recipe: Recipe) -> list[int]:
    return sorted({k for arm in recipe.arms(0) for k in arm.fanout})


# ---- the four countings of G2RPO


def _countings(recipe: Recipe) -> Table:
    steps, num_steps, group = _noisy(recipe), recipe.grid.num_steps, recipe.rollout.group
    strides = getattr(recipe.continuation, "strides", (1,))
    alone = recipe.model_copy(update={"continuation": Strided(strides=(1,))})
    claim = paper()["cost"]["claim"]
    is_papers = (num_steps, len(steps), tuple(strides)) == (16, 8, (1, 2, 3))

    def row(title: str, count: Callable[[tuple[int, ...]], float], per_prompt: bool, note: str | None = None) -> Row:
        with_all, without = count(tuple(strides)), count((1,))
        cells = {
            "sample": Cell(value=None if per_prompt else with_all),
            "prompt": Cell(value=with_all if per_prompt else with_all * group),
            "share": Cell(value=1 - without / with_all, paper=claim["share"] if is_papers else None, note=note),
            "more": Cell(value=with_all / without - 1),
        }
        return Row(title=title, cells=cells)

    rows = [
        row("formula as printed (floor)", lambda s: formula(num_steps, steps, s), False),
        row("the paper's claim (floor for 2, ceil for 3)", lambda s: formula(num_steps, steps, s, ceil=(3,)), False),
        row("released loop", lambda s: num_steps + group * loop_of_sample(num_steps, steps, s), True),
        row("tree", lambda s: (recipe if s == tuple(strides) else alone).plan().num_forwards, True),
    ]
    return Table(
        name="cost_mgai",
        title="Forwards of G2RPO, counted in four ways",
        columns=(
            Column(key="sample", title="a sample", better="lower", digits=0),
            Column(key="prompt", title="a prompt of G samples", better="lower", digits=0),
            Column(key="share", title="share of MGAI", better="lower", digits=1, percent=True),
            Column(key="more", title="more than without MGAI", better="lower", digits=1, percent=True),
        ),
        rows=tuple(rows),
        caption=(
            f"T = {num_steps}, G = {group}, M = {len(steps)} steps, Lambda = {set(strides)}. The share is what would "
            "be saved by leaving all granularities but 1 out. The released loop also draws one noiseless image."
        ),
    )


def _claim(recipe: Recipe) -> Claim:
    steps, strides = _noisy(recipe), getattr(recipe.continuation, "strides", (1,))
    printed = formula(recipe.grid.num_steps, steps, strides)
    base = formula(recipe.grid.num_steps, steps, (1,))
    tree = recipe.plan().num_forwards
    alone = recipe.model_copy(update={"continuation": Strided(strides=(1,))}).plan().num_forwards
    claimed = paper()["cost"]["claim"]
    return Claim(
        claim=f"{claimed['forwards']} forwards of a sample, of which MGAI is {claimed['share']:.1%}",
        source="arXiv 2510.01982, section 11",
        measured=(
            f"the formula as printed gives {printed} and {1 - base / printed:.1%}; the tree runs {tree:,} forwards "
            f"of a prompt, of which MGAI is {1 - alone / tree:.1%}"
        ),
        reproduced=printed == claimed["forwards"],
    )
