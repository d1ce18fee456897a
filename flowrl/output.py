"""An output folder: what is in a run's that others look for, and whether one may write there.

Only the standard library, so that a mistake is told before anything heavy is imported or started.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flowrl.errors import UserError

RECIPE = "recipe.yaml"
LOCK = ".lock"


def check_output(output: Path, resume: bool) -> None:
    """Raise UserError where ``output`` is no folder, is in use by another run or, to be resumed, holds none."""
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file; name a folder")
    if resume:
        if not (output / RECIPE).is_file():
            raise UserError(f"--resume: {output} holds no run ({RECIPE} is missing); start it without --resume")
    elif output.is_dir() and any(path.name != LOCK for path in output.iterdir()):
        raise UserError(f"--output {output} is in use; name another folder, or go on with it by --resume")


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Hold the folder: two programs that write into one would destroy both."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / LOCK).touch()
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error.strerror}; name another folder") from None
    with (output / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"--output {output} is being written by another process; wait for it, or stop it") from None
        yield
