"""``flowrl plan --gpu``: seconds and memory of an iteration, printed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from flowrl.prediction import Prediction
    from flowrl.recipe import Recipe


def asked_for(recipe: Recipe, gpu: str | None, gpus: int | None, iteration: int) -> Prediction | None:
    """The prediction, or None where no GPU was named. Raises UserError where their number was named alone."""
    from flowrl.errors import UserError

    if gpu is None:
        if gpus is not None:
            raise UserError("--gpus needs the kind of GPU: add --gpu h200, h100 or a100")
        return None
    from flowrl.prediction import predict

    return predict(recipe, gpu_name=gpu, gpus=1 if gpus is None else gpus, iteration=iteration)


def print_prediction(found: Prediction) -> None:
    from rich.console import Console

    how = "weights sharded" if found.sharded else "all weights on each" if found.gpus > 1 else "alone"
    prompts = f"{found.prompts_per_gpu} prompt{'s' if found.prompts_per_gpu > 1 else ''}"
    typer.echo(f"{found.gpus} x {found.gpu}, {how}, {prompts} each")
    seconds = _table("seconds of an iteration")
    for name, value in found.seconds.items():
        seconds.add_row(name, f"{value:.2f}")
    seconds.add_row("all", f"{found.total_seconds:.2f}")
    memory = _table("GB on each GPU")
    for name, value in found.memory_gb.items():
        memory.add_row(name, f"{value:.2f}")
    verdict = "fits" if found.fits else "does not fit"
    memory.add_row("at most at once", f"{found.peak_gb:.1f} of {found.memory_there_gb:g}: {verdict}")
    console = Console()
    console.print(seconds)
    console.print(memory)
    typer.echo("Estimates, not measured on this GPU:")
    for text in found.estimates:
        typer.echo(f"- {text}")


def _table(head: str) -> Table:
    from rich.table import Table

    table = Table(head, "")
    table.columns[1].justify = "right"
    return table
