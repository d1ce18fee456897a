"""``flowrl scorers``: reference environments, and the check of our scores against the official packages'."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

scorers_app = typer.Typer(help="Scorers: official packages beside ours, number by number.", no_args_is_help=True)


@scorers_app.command()
def environments(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="hpsv2, image_reward; by default all.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="DIR", help="Where they go; by default the cache folder.")
    ] = None,
) -> None:
    """Build the Python environments of the official packages; needs a package index."""
    from flowrl.errors import UserError, did_you_mean, listing
    from flowrl.workers.environments import build, is_built
    from flowrl.workers.environments import names as known

    for name in names or known():
        if name not in known():
            raise UserError(
                f"there is no environment {name!r} (known: {listing(known())}){did_you_mean(name, known())}"
            )
    for name in names or known():
        there = is_built(name, output)
        if not there:
            typer.echo(f"building {name}: about half a minute", err=True)
        typer.echo(f"{name}: {build(name, output)}{', as it was' if there else ''}")


@scorers_app.command()
def verify(
    size: Annotated[
        Literal["tiny", "full"],
        typer.Option(help="tiny: small random weights, a minute; full: the official sizes, 10 GB of memory, slow."),
    ] = "tiny",
    only: Annotated[
        str | None, typer.Option("--only", metavar="KINDS", help="Of hps, clip, pickscore, image_reward: a,b.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Where parity.md and parity.json go.")] = Path(
        "parity"
    ),
) -> None:
    """Score the same random weights with the official packages and with ours, and compare."""
    from flowrl.parity import verify as check

    report = check(size, only.split(",") if only else None, output, say=lambda text: typer.echo(text, err=True))
    typer.echo(report.markdown())
    if not report.passed:
        raise typer.Exit(1)
