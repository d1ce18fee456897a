"""``flowrl judge``: the judges of the embedded worlds as servers."""

from __future__ import annotations

from typing import Annotated

import typer

judge_app = typer.Typer(help="Judges that look at pictures and answer questions.", no_args_is_help=True)


@judge_app.callback()
def _judge() -> None:
    """Judges that look at pictures and answer questions."""


@judge_app.command()
def serve(
    world: Annotated[str, typer.Argument(metavar="WORLD", help="The world whose judge it is, for example shapes.")],
    port: Annotated[int, typer.Option("--port", min=0, max=65535, metavar="P", help="0 takes a free one.")] = 8000,
    host: Annotated[str, typer.Option("--host", metavar="H", help="The address to listen on.")] = "127.0.0.1",
) -> None:
    """Serve a world's judge over an OpenAI-compatible HTTP API until interrupted."""
    import importlib

    from flowrl.errors import UserError, did_you_mean, listing
    from flowrl.hub import in_worlds

    known = in_worlds("judge_server.py")
    if world not in known:
        raise UserError(f"judge: there is no judge of {world!r} (known: {listing(known)}){did_you_mean(world, known)}")
    module = importlib.import_module(f"flowrl.worlds.{world}.judge_server")
    with module.listening(host, port) as server:
        typer.echo(f"The judge of {world} answers at {server.url} (model {module.MODEL}); Ctrl-C ends it.")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo("Ended.")
