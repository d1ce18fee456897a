"""The ``flowrl`` program. Every command imports what it needs itself, so that help is instant."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from flowrl.commands import evaluate
from flowrl.commands.bench import bench_app
from flowrl.commands.judge import judge_app
from flowrl.commands.report import report
from flowrl.commands.scorers import scorers_app
from flowrl.commands.unigenbench import unigenbench

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
app.command("eval")(evaluate.evaluate)
app.command()(evaluate.compare)
app.add_typer(bench_app, name="bench")
app.add_typer(judge_app, name="judge")
app.command()(unigenbench)
app.command()(report)
app.add_typer(scorers_app, name="scorers")

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
GpuOption = Annotated[
    str | None, typer.Option("--gpu", metavar="GPU", help="Predict seconds and memory: h200, h100 or a100.")
]
GpusOption = Annotated[int | None, typer.Option("--gpus", metavar="N", help="So many of them; by default 1.")]
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
WeightsOption = Annotated[
    Literal["last", "best"], typer.Option("--weights", help="Of a run: where it ended, or the best by its monitor.")
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, metavar="S", help="With a prompt's index: its image's seed.")]
_STAGE_HELP = (
    "Only this stage, and others given. Of shapes: data, vae, transformer, fresh, refine, package, auditor, measure; "
    "with --scorers: renders, preferences, clip, hps, pickscore, image_reward, agreement."
)
WorldArgument = Annotated[str, typer.Argument(metavar="NAME", help="The world, for example shapes.")]
DeviceOption = Annotated[
    str | None, typer.Option("--device", metavar="DEVICE", help="cpu or cuda; by default what there is.")
]
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
    from flowrl.output import check_output
    from flowrl.recipe import load_recipe

    loaded = load_recipe(recipe, model=model, rewards=rewards, overrides=overrides or ())
    if dry_run:
        _print_dry_run(loaded)
        return
    folder = output or Path("runs") / "-".join(filter(None, (loaded.source_path.stem, loaded.model_name)))
    if processes > 1 and not is_rank():
        check_output(folder, resume)
        raise typer.Exit(run(sys.argv[1:], processes))
    from flowrl.parallel import leave
    from flowrl.run import train as train_by
    from flowrl.summary import describe

    summary = train_by(loaded, output=folder, resume=resume, stop_after=stop_after, grace=grace)
    if is_first_rank():
        typer.echo("\n".join(describe(summary)))
    code = 0 if summary.signal is None or summary.resume is None else 128 + summary.signal
    leave(code)
    if code:
        raise typer.Exit(code)


@app.command()
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
    from flowrl.commands.prediction import asked_for, print_prediction
    from flowrl.costs import iteration_cost
    from flowrl.recipe import load_recipe

    loaded = load_recipe(recipe, model=model, rewards=rewards, overrides=overrides or ())
    cost = iteration_cost(loaded, iteration)
    prediction = asked_for(loaded, gpu, gpus, iteration)
    if as_json:
        found = _plain(cost) | ({} if prediction is None else {"prediction": prediction.plain()})
        typer.echo(json.dumps(found, indent=2))
        return
    _print_cost(loaded, cost, iteration)
    if prediction is not None:
        print_prediction(prediction)


@app.command()
def sample(
    model_or_run: ModelOrRunArgument,
    prompts: PromptsOption,
    output: ImagesOption,
    steps: StepsOption = None,
    sigmas: SigmasOption = "pipeline",
    seed: SeedOption = 0,
    weights: WeightsOption = "last",
) -> None:
    """Draw an image per prompt, seeded by the prompt's index."""
    from flowrl.sampling import sample as draw

    options: dict[str, Any] = {"num_steps": steps, "sigmas": sigmas, "seed": seed, "weights": weights}
    count = draw(model_or_run, prompts=prompts, output=output, **options)
    typer.echo(f"{count} images and manifest.jsonl in {output}")


@app.command()
def recipes() -> None:
    """List the shipped recipes."""
    from flowrl.recipe_files import shipped_recipes

    found = shipped_recipes()
    width = max(len(name) for name, _ in found)
    for name, summary in found:
        typer.echo(f"{name:{width}}  {summary}")


@world_app.command("build")
def world_build(
    name: WorldArgument,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="DIR", help="Where it is built; by default worlds/NAME.")
    ] = None,
    stages: Annotated[list[str] | None, typer.Option("--stage", metavar="STAGE", help=_STAGE_HELP)] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="S", help="Of scenes, weights and batches.")] = 0,
    device: DeviceOption = None,
    minutes: Annotated[float | None, typer.Option("--minutes", min=0, help="Bound on each stage that trains.")] = None,
    scorers: Annotated[bool, typer.Option("--scorers", help="Its scorers, from its pipeline.")] = False,
) -> None:
    """Reproduce a world's models from a seed, in resumable stages."""
    from dataclasses import replace

    module = _world_module(name, "scoring.build" if scorers else "build")
    settings = replace(module.Settings(), seed=seed)
    folder = output or Path("worlds") / name
    module.build(folder, stages=stages or module.STAGES, settings=settings, device=device, minutes=minutes)
    typer.echo(f"{name} is in {folder}")


@world_app.command("gallery")
def world_gallery(
    name: WorldArgument,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="DIR", help="Where the page goes; by default worlds/NAME.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="S", help="Of the samples.")] = 0,
    device: DeviceOption = None,
) -> None:
    """Draw a page of prompts, renders and samples of the base model."""
    page = _world_module(name, "gallery").gallery(output or Path("worlds") / name, seed=seed, device=device)
    typer.echo(str(page))


def _world_module(name: str, module: str) -> Any:
    """A module of an embedded world, by the world's name."""
    import importlib

    from flowrl.data import worlds
    from flowrl.errors import UserError, did_you_mean, listing

    if name not in worlds():
        raise UserError(f"there is no world {name!r} (known: {listing(worlds())}){did_you_mean(name, worlds())}")
    return importlib.import_module(f"flowrl.worlds.{name}.{module}")


def _print_dry_run(recipe: Recipe) -> None:
    import yaml

    from flowrl.costs import iteration_cost
    from flowrl.data import check_disjoint, load_prompts

    sources = {name: source for name, source in (("train", recipe.data.train), ("test", recipe.data.test)) if source}
    local = {name: load_prompts(source) for name, source in sources.items() if not source.startswith("hf:")}
    check_disjoint(local.get("train", ()), local.get("test", ()))
    typer.echo(yaml.safe_dump(recipe.resolved(), sort_keys=False, width=110))
    for name, source in sources.items():
        count = f"{len(local[name]):,} prompts" if name in local else "fetched when training starts"
        typer.echo(f"{name}: {source}, {count}")
    _print_cost(recipe, iteration_cost(recipe), iteration=0)
    recipe.check_scorers()


def _print_cost(recipe: Recipe, cost: Cost, iteration: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("per prompt", "", title=f"{recipe.name}: iteration {iteration}", title_justify="left")
    table.columns[1].justify = "right"
    values = _plain(cost)
    flops, by_kind = values.pop("flops", {}), values.pop("forwards_by_kind", {})
    for name, value in (values | {f"forwards, {kind}": count for kind, count in by_kind.items()}).items():
        table.add_row(name, f"{value:,}")
    for name, value in flops.items():
        table.add_row(f"FLOPs, {name}", f"{value:.3g}")
    Console().print(table)


def _plain(cost: Cost) -> dict[str, Any]:
    """The cost as JSON values: whole numbers as such, forwards by kind where they differ, FLOPs where known."""
    values = {key: value for key, value in cost._asdict().items() if key not in ("flops", "forwards_by_kind")}
    plain: dict[str, Any] = {k: int(v) if float(v).is_integer() else round(v, 2) for k, v in values.items()}
    if cost.forwards_by_kind is not None:
        plain["forwards_by_kind"] = cost.forwards_by_kind._asdict()
    if cost.flops is not None:
        plain["flops"] = cost.flops._asdict()
    return plain


if __name__ == "__main__":
    main()
