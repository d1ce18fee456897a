"""``flowrl report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

FolderArgument = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="Where the reports are, NAME.json as flowrl bench writes them.")
]


def report(folder: FolderArgument) -> None:
    """Rebuild tables, figures and page from the JSON alone."""
    from flowrl.bench.write import rebuild

    written = rebuild(folder, say=lambda text: typer.echo(text, err=True))
    page = written[-1]
    typer.echo(f"{len(written)} files in {folder}; {page}, {page.stat().st_size / 1000:,.0f} kB, is the page to read")
