"""``flowrl plan``: what an iteration costs before it runs, counted and, for named GPUs, in seconds and memory."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from flowrl.costs import Cost
    from flowrl.prediction import Prediction
    from flowrl.recipe import Recipe

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.")]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Values that win over the recipe's, for example rollout.group=4."),
]
ModelOption = Annotated[
    str | None, typer.Option("--model", metavar="M", help="Model fragment (name or file) in place of the recipe's.")
]
RewardsOption = Annotated[
    str | None, typer.Option("--rewards", metavar="R", help="Rewards fragment (name or file) in place of the recipe's.")
]
IterationOption = Annotated[int, typer.Option("--iteration", metavar="I", help="Which iteration, from 0.")]
GpuOption = Annotated[
    str | None, typer.Option("--gpu", metavar="GPU", help="Predict seconds and memory: h200, h100 or a100.")
]
GpusOption = Annotated[int | None, typer.Option("--gpus", metavar="N", help="So many of them; by default 1.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def plan(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    model: ModelOption = None,
    rewards: RewardsOption = None,
    iteration: IterationOption = 0,
    gpus: GpusOption = None,
    gpu: GpuOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what an iteration costs before it runs: counts per prompt and, with --gpu, seconds and memory."""
    from flowrl.costs import iteration_cost
    from flowrl.errors import UserError
    from flowrl.recipe import load_recipe

    loaded = load_recipe(recipe, model=model, rewards=rewards, overrides=overrides or ())
    cost = iteration_cost(loaded, iteration)
    if gpu is None and gpus is not None:
        raise UserError("--gpus needs the kind of GPU: add --gpu h200, h100 or a100")
    prediction = None
    if gpu is not None:
        from flowrl.prediction import predict

        prediction = predict(loaded, gpu_name=gpu, gpus=1 if gpus is None else gpus, iteration=iteration)
    if as_json:
        found = plain(cost) | ({} if prediction is None else {"prediction": prediction.plain()})
        typer.echo(json.dumps(found, indent=2))
        return
    print_cost(loaded, cost, iteration)
    if prediction is not None:
        _print_prediction(prediction)


def print_cost(recipe: Recipe, cost: Cost, iteration: int) -> None:
    table = _table("per prompt", f"{recipe.name}: iteration {iteration}")
    values = plain(cost)
    flops = values.pop("flops", {})
    for name, value in values.items():
        table.add_row(name, f"{value:,}")
    for name, value in flops.items():
        table.add_row(f"FLOPs, {name}", f"{value:.3g}")
    _print(table)


def plain(cost: Cost) -> dict[str, Any]:
    """The cost as JSON values: whole numbers as such, FLOPs only where they are known."""
    values = {key: value for key, value in cost._asdict().items() if key != "flops"}
    found: dict[str, Any] = {k: int(v) if float(v).is_integer() else round(v, 2) for k, v in values.items()}
    if cost.flops is not None:
        found["flops"] = cost.flops._asdict()
    return found


def _print_prediction(found: Prediction) -> None:
    how = "weights sharded" if found.sharded else "all weights on each" if found.gpus > 1 else "alone"
    title = f"{found.gpus} x {found.gpu}, {how}, {found.prompts_per_gpu} prompts each"
    seconds = _table("seconds of an iteration", title)
    for name, value in found.seconds.items():
        seconds.add_row(name, f"{value:.2f}")
    seconds.add_row("all", f"{found.total_seconds:.2f}")
    memory = _table("GB on each GPU", "")
    for name, value in found.memory_gb.items():
        memory.add_row(name, f"{value:.2f}")
    verdict = "fits" if found.fits else "does not fit"
    memory.add_row("at most at once", f"{found.peak_gb:.1f} of {found.memory_there_gb:g}: {verdict}")
    for table in (seconds, memory):
        _print(table)
    typer.echo("Estimates, not measured on this GPU:")
    for text in found.estimates:
        typer.echo(f"- {text}")


def _table(head: str, title: str) -> Table:
    from rich.table import Table

    table = Table(head, "", title=title or None, title_justify="left")
    table.columns[1].justify = "right"
    return table


def _print(table: Table) -> None:
    from rich.console import Console

    Console().print(table)
