"""The ``flowrl`` program. Every command imports what it needs itself, so that help is instant."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from flowrl.costs import Cost
    from flowrl.recipe import Recipe


class Program(TyperGroup):
    """Whatever the command: a user's mistake is one message without a traceback and exit code 2, and a run that
    cannot go on is one with exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        from flowrl.errors import RunFailed, UserError

        try:
            return super().invoke(ctx)
        except (UserError, RunFailed) as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2 if isinstance(error, UserError) else 1) from None


app = typer.Typer(
    cls=Program,
    help="Reinforcement learning of flow-matching text-to-image models with GRPO.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
world_app = typer.Typer(help="Embedded worlds: build one from a seed, or look at it.", no_args_is_help=True)
app.add_typer(world_app, name="world")

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
RunFolderOption = Annotated[
    Path | None, typer.Option("--output", metavar="DIR", help="Where everything goes; by default runs/RECIPE-MODEL.")
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in the output.")]
ProcessesOption = Annotated[
    int, typer.Option("--processes", min=1, metavar="N", help="Processes on this machine; the same updates as one.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Check everything, print the recipe in full and its cost, train nothing.")
]
StopAfterOption = Annotated[
    int | None, typer.Option("--stop-after", min=1, metavar="N", help="Save and stop after N iterations, to resume.")
]
GraceOption = Annotated[
    float | None,
    typer.Option(
        "--grace", min=0, metavar="SECONDS", help="What a signal leaves the iteration in flight; no limit by default."
    ),
]
IterationOption = Annotated[int, typer.Option("--iteration", metavar="I", help="Which iteration, from 0.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
ModelOrRunArgument = Annotated[
    str, typer.Argument(metavar="MODEL_OR_RUN", help="A model's name, a pipeline folder or hub id, or a run's folder.")
]
PromptsOption = Annotated[
    str, typer.Option("--prompts", metavar="FILE", help="Prompts: .txt, .jsonl, .csv or .parquet, or a data set.")
]
ImagesOption = Annotated[
    Path, typer.Option("--output", metavar="DIR", help="A new folder for the images and manifest.jsonl.")
]
StepsOption = Annotated[int | None, typer.Option("--steps", min=1, metavar="N", help="Denoising steps.")]
SigmasOption = Annotated[
    Literal["pipeline", "recipe"],
    typer.Option("--sigmas", help="Noise levels of the pipeline's own scheduler, or of the recipe's rollouts."),
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, metavar="S", help="With a prompt's index: its image's seed.")]
VersionOption = Annotated[bool, typer.Option("--version", help="Print the version.")]


def main() -> None:
    """Run the program."""
    app(prog_name="flowrl")


@app.callback(invoke_without_command=True)
def _program(version: VersionOption = False) -> None:
    """Reinforcement learning of flow-matching text-to-image models with GRPO."""
    if version:
        from flowrl import __version__

        typer.echo(f"flowrl {__version__}")
        raise typer.Exit


@app.command()
def train(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    model: ModelOption = None,
    rewards: RewardsOption = None,
    output: RunFolderOption = None,
    resume: ResumeOption = False,
    processes: ProcessesOption = 1,
    dry_run: DryRunOption = False,
    stop_after: StopAfterOption = None,
    grace: GraceOption = None,
) -> None:
    """Train a model by a recipe."""
    from flowrl.launch import is_first_rank, is_rank, run
    from flowrl.recipe import load_recipe

    loaded = load_recipe(recipe, model=model, rewards=rewards, overrides=overrides or ())
    if dry_run:
        _print_dry_run(loaded)
        return
    folder = output or Path("runs") / "-".join(filter(None, (loaded.source_path.stem, loaded.model_name)))
    if not is_rank():
        _check_output(folder, resume)
        if processes > 1:
            raise typer.Exit(run(sys.argv[1:], processes))
    from flowrl.run import train as run_recipe
    from flowrl.summary import describe

    summary = run_recipe(loaded, output=folder, resume=resume, stop_after=stop_after, grace=grace)
    if is_first_rank():
        for line in describe(summary):
            typer.echo(line)
    if summary.signal is not None:
        raise typer.Exit(128 + summary.signal)


@app.command()
def plan(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    model: ModelOption = None,
    rewards: RewardsOption = None,
    iteration: IterationOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Show what an iteration costs per prompt before it runs."""
    from flowrl.costs import iteration_cost
    from flowrl.recipe import load_recipe

    loaded = load_recipe(recipe, model=model, rewards=rewards, overrides=overrides or ())
    cost = iteration_cost(loaded, iteration)
    if as_json:
        typer.echo(json.dumps(_plain(cost), indent=2))
    else:
        _print_cost(loaded, cost, iteration)


@app.command()
def sample(
    model_or_run: ModelOrRunArgument,
    prompts: PromptsOption,
    output: ImagesOption,
    steps: StepsOption = None,
    sigmas: SigmasOption = "pipeline",
    seed: SeedOption = 0,
) -> None:
    """Draw an image per prompt, seeded by the prompt's index."""
    from flowrl.sampling import sample as draw

    count = draw(model_or_run, prompts=prompts, output=output, num_steps=steps, sigmas=sigmas, seed=seed)
    typer.echo(f"{count} images and manifest.jsonl in {output}")


@app.command()
def recipes() -> None:
    """List the shipped recipes."""
    from flowrl.recipe_files import shipped_recipes

    found = shipped_recipes()
    width = max(len(name) for name, _ in found)
    for name, summary in found:
        typer.echo(f"{name:{width}}  {summary}")


def _check_output(folder: Path, resume: bool) -> None:
    """A new run never writes into a folder that holds something; a resumed one needs a folder."""
    from flowrl.errors import UserError

    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder} is a file; name a folder")
    in_use = folder.is_dir() and any(folder.iterdir())
    if in_use and not resume:
        raise UserError(f"--output {folder} is in use; name another folder, or go on with what it holds by --resume")
    if resume and not in_use:
        raise UserError(f"--resume: {folder} holds no run to go on with; name its folder by --output")


def _print_dry_run(recipe: Recipe) -> None:
    import yaml

    from flowrl.costs import iteration_cost

    typer.echo(yaml.safe_dump(recipe.resolved(), sort_keys=False, width=110))
    _print_cost(recipe, iteration_cost(recipe), iteration=0)


def _print_cost(recipe: Recipe, cost: Cost, iteration: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("per prompt", "", title=f"{recipe.name}: iteration {iteration}", title_justify="left")
    table.columns[1].justify = "right"
    values = _plain(cost)
    flops = values.pop("flops", {})
    for name, value in values.items():
        table.add_row(name, f"{value:,}")
    for name, value in flops.items():
        table.add_row(f"FLOPs, {name}", f"{value:.3g}")
    Console().print(table)


def _plain(cost: Cost) -> dict[str, Any]:
    """The cost as JSON values: whole numbers as such, FLOPs only where they are known."""
    values = {key: value for key, value in cost._asdict().items() if key != "flops"}
    plain: dict[str, Any] = {k: int(v) if float(v).is_integer() else round(v, 2) for k, v in values.items()}
    if cost.flops is not None:
        plain["flops"] = cost.flops._asdict()
    return plain


if __name__ == "__main__":
    main()
