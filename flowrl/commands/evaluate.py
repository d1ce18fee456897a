"""``flowrl eval`` and ``flowrl compare``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

ModelOrRunArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL_OR_RUN",
        help="A model's name, a pipeline folder or hub id, or a run's folder.",
    ),
]
OutputOption = Annotated[Path, typer.Option("--output", metavar="DIR", help="A new folder, or one to go on with.")]
StageOption = Annotated[
    Literal["all", "generate", "score", "table"],
    typer.Option("--stage", help="One stage alone, on the files of those before it."),
]
MetricsOption = Annotated[
    str,
    typer.Option("--metrics", metavar="NAMES", help="all, names separated by commas, or a YAML file with one's own."),
]
PromptsOption = Annotated[
    str | None, typer.Option("--prompts", metavar="FILE", help="Prompts; by default the model's test prompts.")
]
StepsOption = Annotated[int | None, typer.Option("--steps", min=1, max=1000, metavar="N", help="Denoising steps.")]
SigmasOption = Annotated[
    Literal["pipeline", "recipe"],
    typer.Option("--sigmas", help="Noise levels of the pipeline's own scheduler, or of the recipe's rollouts."),
]
SizeOption = Annotated[str | None, typer.Option("--size", metavar="HxW", help="Pixels, for example 1024x1024.")]
ImagesOption = Annotated[int, typer.Option("--images-per-prompt", min=1, metavar="N", help="Images of each prompt.")]
HybridOption = Annotated[
    int | None,
    typer.Option("--hybrid-steps", min=0, metavar="K", help="The first K steps are the run's, the others the base's."),
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, metavar="S", help="Of the images' noise.")]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="Only the first N prompts.")]
BenchmarkOption = Annotated[
    str | None, typer.Option("--benchmark", metavar="CSV", help="The prompts of UniGenBench++, for metric unigenbench.")
]
ProcessesOption = Annotated[
    int, typer.Option("--processes", min=1, metavar="N", help="Processes on this machine; the same images as one.")
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Insist on an evaluation to go on with; what is done is never done again.")
]


def evaluate(
    output: OutputOption,
    model_or_run: ModelOrRunArgument = None,
    metrics: MetricsOption = "all",
    prompts: PromptsOption = None,
    steps: StepsOption = None,
    sigmas: SigmasOption = "pipeline",
    size: SizeOption = None,
    images_per_prompt: ImagesOption = 1,
    hybrid_steps: HybridOption = None,
    seed: SeedOption = 0,
    limit: LimitOption = None,
    benchmark: BenchmarkOption = None,
    stage: StageOption = "all",
    processes: ProcessesOption = 1,
    resume: ResumeOption = False,
) -> None:
    """Draw, score and tabulate: what metrics say of a model or a run."""
    from flowrl.evaluation.harness import Request, prepare, run
    from flowrl.launch import is_rank
    from flowrl.launch import run as launch
    from flowrl.output import locked

    request = Request(
        output=output,
        model_or_run=model_or_run,
        stage=stage,
        metrics=metrics,
        prompts=prompts,
        num_steps=steps,
        sigmas=sigmas,
        size=size,
        images_per_prompt=images_per_prompt,
        hybrid_steps=hybrid_steps,
        seed=seed,
        limit=limit,
        benchmark=benchmark,
        resume=resume,
    )
    evaluation = prepare(request)
    if is_rank():
        _show(run(evaluation), output)
        return
    with locked(output):
        if processes > 1:
            raise typer.Exit(launch(sys.argv[1:], processes))
        _show(run(evaluation), output)


def compare(
    before: Annotated[Path, typer.Argument(metavar="EVAL_A", help="An evaluation, or a run with one: the reference.")],
    after: Annotated[Path, typer.Argument(metavar="EVAL_B", help="What is compared with it, on the same prompts.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="Also write FILE.md and FILE.json."),
    ] = None,
) -> None:
    """Compare two evaluations prompt by prompt: difference, interval, win rate."""
    from flowrl.evaluation.compare import compare as by_prompt
    from flowrl.evaluation.compare import markdown, write

    comparison = by_prompt(before, after)
    typer.echo("\n".join(markdown(comparison)))
    if output is not None:
        typer.echo(f"\nwritten to {' and '.join(str(path) for path in write(comparison, output))}")


def _show(results: object, output: Path) -> None:
    from flowrl.evaluation.results import Results
    from flowrl.evaluation.table import MARKDOWN, SHEET

    if isinstance(results, Results):
        typer.echo((output / MARKDOWN).read_text(encoding="utf-8").rstrip())
        typer.echo(f"\neverything is in {output}: results.json, {MARKDOWN}, {SHEET}, images/, scores/")
