"""The one exception for a user's mistake, and the nearest match it names."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


class UserError(Exception):
    """A mistake in what the user gave: one message says what, where, the allowed values and the remedy.

    The command line prints the message without a traceback and exits with code 2.
    """

    problems: tuple[str, ...] = ()
    """The messages that :func:`all_of` put together."""


def did_you_mean(value: object, allowed: Iterable[object]) -> str:
    """``"; did you mean 'x'?"`` for the nearest of the allowed values, or an empty string.

    >>> did_you_mean("sliding_windw", ["all_steps", "sliding_window"])
    "; did you mean 'sliding_window'?"
    """
    close = difflib.get_close_matches(str(value), [str(a) for a in allowed], n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def listing(allowed: Iterable[object]) -> str:
    """Allowed values, sorted, for an error message.

    >>> listing(["b", "a"])
    'a, b'
    """
    return ", ".join(sorted(str(a) for a in allowed)) or "none"


def in_short(error: Exception) -> str:
    """A library's message on one line, of bearable length."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def all_of(*steps: Callable[[], T]) -> list[T]:
    """What each step returns. Raises one UserError with the messages of all that failed, each message once.

    >>> all_of(lambda: 1, lambda: 2)
    [1, 2]
    """
    done: list[T] = []
    problems: dict[str, None] = {}
    for step in steps:
        try:
            done.append(step())
        except UserError as error:
            problems |= dict.fromkeys(error.problems or [str(error)])
    if problems:
        together = UserError("\n".join(problems))
        together.problems = tuple(problems)
        raise together
    return done


class RunFailed(Exception):  # noqa: N818 - reads as what happened
    """A run that cannot go on through no mistake in what the user typed; the message says why and what is kept.

    The command line prints the message without a traceback and exits with code 1.
    """
