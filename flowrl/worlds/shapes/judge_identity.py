"""Which judge of the shapes world this is: digests of the sources that decide what it says. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from flowrl.worlds.shapes.stages import source_digest

JUDGE_SOURCES = ("judge", "checks", "perception", "components", "silhouettes", "misshapen", "forms", "render")
"""The modules that say what gold is; the embedded scorers' records hold their digest."""
GOLD_SOURCES = (*JUDGE_SOURCES, "scene")
"""And all that these import of the world."""
ANSWER_SOURCES = (
    *(*GOLD_SOURCES, "judge_answers", "prompts", "corruption", "draw", "grammar", "looks"),
    *("relations", "riddles", "truth", "vocabulary", "words"),
)
"""What the server's answers depend on: it knows a prompt by its text, and so the testpoints of all prompts too."""


def judge_digest() -> str:
    """Of the sources that say what gold is, as they are on the disk."""
    return _digest(JUDGE_SOURCES)


def judge_identity(sources: Sequence[str]) -> dict[str, str]:
    """What goes into the identity of whatever this judge says."""
    return {"judge_sources": _digest(tuple(sources))}


@cache
def _digest(sources: tuple[str, ...]) -> str:
    world = Path(__file__).parent
    return source_digest([world / f"{name}.py" for name in sources])
