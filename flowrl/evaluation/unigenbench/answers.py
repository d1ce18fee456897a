"""What a judge said, read as the benchmark's own program reads it, its oddities included."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

Outcome = Literal["counted", "lost", "unreadable"]


class Reading(NamedTuple):
    """One answer: ``counted`` with a score per testpoint, of which only those equal to 1 are passed; ``lost`` where it
    reads well but the official count drops it; ``unreadable`` where the question is asked again."""

    outcome: Outcome
    analysis: Any = None
    score: Any = None
    scores: tuple[Any, ...] = ()

    @property
    def passed(self) -> list[bool]:
        """Per testpoint, whether the judge grants it."""
        return [score == 1 for score in self.scores]

    def official_json(self, prompt: str, names: Sequence[str]) -> str:
        """The text that the official table keeps of this answer: ``null`` where it could not be read."""
        kept = {"prompt": prompt, "testpoint": list(names), "analysis": self.analysis, "score": self.score}
        return json.dumps(None if self.outcome == "unreadable" else kept, ensure_ascii=False, indent=4)


UNREADABLE = Reading("unreadable")


def read_answer(text: str | None, count: int) -> Reading:
    """Reads an answer about ``count`` testpoints.

    The first ``<analysis>`` and the first ``<score>`` block, wherever they stand, must each hold a Python literal of
    length ``count``. An accepted answer is then kept as JSON and, when it is counted, read as Python: what differs
    between the two (True, None, NaN) loses the answer, as does a score that is no list by then. Where the official
    program stops with an uncaught error (a bare number, a set, a lone surrogate), the answer is unreadable.

    >>> read_answer("<analysis>['red', 'no']</analysis><score>[1, 0]</score>", 2).passed
    [True, False]
    >>> read_answer("<analysis>['red', 'no']</analysis><score>[True, False]</score>", 2).outcome
    'lost'
    >>> read_answer("<analysis>['red', 'no']</analysis><score>1</score>", 2).outcome
    'unreadable'
    """
    blocks = [re.search(rf"<{tag}>(.*?)</{tag}>", text or "", re.DOTALL) for tag in ("analysis", "score")]
    try:
        analysis, score = (ast.literal_eval(block[1].strip()) for block in blocks if block is not None)
        if len(analysis) != count or len(score) != count:
            return UNREADABLE
        kept = json.dumps({"analysis": analysis, "score": score}, ensure_ascii=False, indent=4)
        kept.encode()
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return UNREADABLE
    try:
        scores = ast.literal_eval(kept)["score"]
    except (ValueError, SyntaxError):
        scores = None
    if not isinstance(scores, list):
        return Reading("lost", analysis, score)
    return Reading("counted", analysis, score, tuple(scores))
