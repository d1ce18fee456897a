"""``flowrl bench``: the tables of the study, and what goes with them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

bench_app = typer.Typer(help="Train, evaluate and tabulate methods beside the paper's numbers.")

Budget = Literal["auto", "smoke", "small", "full"]
BudgetOption = Annotated[
    Budget, typer.Option("--budget", help="How much is spent; auto is smoke on a CPU and full on a GPU.")
]
ModelOption = Annotated[str, typer.Option("--model", metavar="M", help="Model fragment, its name or file.")]
FolderOption = Annotated[Path, typer.Option("--folder", metavar="DIR", help="Where all runs are, to be shared.")]
SpecsOption = Annotated[
    Path | None, typer.Option("--specs", metavar="DIR", help="Bench files of one's own in place of the shipped ones.")
]
TableOption = Annotated[str | None, typer.Option("--table", metavar="NAME", help="The table, or all.")]


@bench_app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    table: TableOption = None,
    budget: BudgetOption = "auto",
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, metavar="N", help="In place of the budget's.")] = None,
    model: ModelOption = "shapes",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", metavar="DIR", help="By default reports of a full budget, else runs/bench/NAME-BUDGET."
        ),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, metavar="N", help="Processes; by default one for each GPU or core.")
    ] = None,
    time_limit: Annotated[
        float | None,
        typer.Option("--time-limit", metavar="SECONDS", help="End in good order before, to be continued."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show runs, keys, what exists and the estimate.")] = False,
    tables_only: Annotated[
        bool, typer.Option("--tables-only", help="Write the tables of what is finished; run nothing.")
    ] = False,
    folder: FolderOption = Path("runs/bench"),
    specs: SpecsOption = None,
) -> None:
    """Train, evaluate and tabulate; what is finished is used again, and what was interrupted goes on."""
    if context.invoked_subcommand is not None:
        return
    from flowrl.bench.command import Request, run
    from flowrl.bench.spec import load_bench
    from flowrl.errors import UserError, listing

    if table is None:
        raise UserError(f"--table is missing: name a table ({listing(load_bench(specs).tables)}), or all")
    request = Request(
        table=table,
        budget=budget,
        seeds=seeds,
        model=model,
        output=output,
        jobs=jobs,
        time_limit=time_limit,
        dry_run=dry_run,
        tables_only=tables_only,
        folder=folder,
        specs=specs,
        argv=tuple(sys.argv[2:]),
    )
    raise typer.Exit(run(request, typer.echo))


@bench_app.command()
def calibrate(
    model: ModelOption = "shapes",
    budget: BudgetOption = "auto",
    jobs: Annotated[int | None, typer.Option("--jobs", min=1, metavar="N", help="As for the runs.")] = None,
    folder: FolderOption = Path("runs/bench"),
    specs: SpecsOption = None,
) -> None:
    """Measure forwards and training forwards a second, alone on this device: what "equal seconds" are made of."""
    from flowrl.bench.command import Request, calibrate_device

    request = Request(table="all", budget=budget, model=model, jobs=jobs, folder=folder, specs=specs)
    rates = calibrate_device(request)
    typer.echo(rates.describe())
    typer.echo(f"{rates.images:,.0f} images/s decoded and scored by the rewards")


@bench_app.command("export")
def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The archive to write, under 16 MB.")],
    table: TableOption = None,
    budget: BudgetOption = "auto",
    model: ModelOption = "shapes",
    weights: Annotated[
        bool, typer.Option("--weights", help="Also the trained weights, which a gallery needs.")
    ] = False,
    folder: FolderOption = Path("runs/bench"),
    specs: SpecsOption = None,
) -> None:
    """Write what tables need of the finished runs, of all or of one table's, into one file."""
    from flowrl.bench.archive import export as write
    from flowrl.bench.command import Request, keys_of
    from flowrl.bench.units import Store

    request = Request(table=table or "all", budget=budget, model=model, folder=folder, specs=specs)
    moved = write(Store(folder), file, keys=keys_of(request) if table else None, weights=weights)
    typer.echo(f"{len(moved.keys)} finished runs and evaluations in {file}, {moved.size / 1e6:.2f} MB")
    for key, why in moved.skipped.items():
        typer.echo(f"not {key}: {why}")


@bench_app.command("import")
def take_in(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file of flowrl bench export.")],
    folder: FolderOption = Path("runs/bench"),
) -> None:
    """Add the runs of an archive to those that are here."""
    from flowrl.bench.archive import take_in as read
    from flowrl.bench.units import Store

    moved = read(Store(folder), file)
    typer.echo(f"{len(moved.keys)} finished runs and evaluations taken in, {len(moved.skipped)} not")
    for key, why in moved.skipped.items():
        typer.echo(f"not {key}: {why}")
