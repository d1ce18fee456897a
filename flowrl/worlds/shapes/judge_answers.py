"""The gold judge in words: from a question's text and a picture to an answer that the benchmarks' parsers read.

The prompt is looked for in the question, between delimiters, among the prompts of the world; it brings the testpoints.
The picture is judged from its pixels. With the mean grade g of the testpoints, the share s of them that hold, how clean
the picture is, c, and the quality q = g (0.85 + 0.15 c), all in 0..1, the answers on a scale of 1 to 5 are

    Final Score      1 + 4 q
    Alignment Score  1 + 4 g
    Coherence Score  1 + 4 c
    Style Score      1 + 4 q

and the word-wise scores, where 1 is worst, are 1 - the mean grade of the testpoints that speak of the word, and s for
"[No_mistakes]". No noise is added.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from flowrl.types import Prompt
from flowrl.worlds.shapes.judge import judge
from flowrl.worlds.shapes.prompts import bench_prompts, test_prompts, testpoints_of, train_prompts
from flowrl.worlds.shapes.scene import CANVAS, Testpoint

if TYPE_CHECKING:
    from PIL.Image import Image

_OPENING = re.compile(r"(?:\A|[\n:\"'`\[({>「“])[ \t]*")
_CLOSING = re.compile(r"(?=\.?[ \t]*(?:\Z|[\n\r\"'`\])}<」”]))")
_ITEM = re.compile(
    r"^[ \t]*(?:\d+[.)]|[-*])?[ \t]*(?P<name>[^:\n]+?)[ \t]*:[ \t]*(?P<description>[^\n]+?)[ \t]*$", re.M
)
_LIST = re.compile(r"\[(?:'[^'\n]*'|\"[^\"\n]*\")(?:, (?:'[^'\n]*'|\"[^\"\n]*\"))*\]")


class Seen(NamedTuple):
    """What the judge says of one picture: a grade in 0..1 and 0 or 1 per testpoint, quality and cleanness in 0..1."""

    testpoints: Sequence[Testpoint]
    grades: Sequence[float]
    satisfied: Sequence[int]
    quality: float
    clean: float

    @property
    def grade(self) -> float:
        """The mean grade."""
        return sum(self.grades) / len(self.grades)


class Refusal(Exception):  # noqa: N818 - an answer, not an error
    """Why there is no judgement, as a polite sentence that no parser takes for one."""


def answer(text: str, picture: Image) -> str:
    """What the judge says to a question, whatever the question: where it cannot judge, a sentence that says so."""
    try:
        form = _form_of(text)
        prompt, end = find_prompt(text)
        known = testpoints_of(prompt)
        asked = find_testpoints(text, end, known) if form is unigenbench else known
        return form(prompt, examine(picture, asked))
    except Refusal as refusal:
        return str(refusal)


def examine(picture: Image, testpoints: Sequence[Testpoint]) -> Seen:
    """Judges one picture. Raises Refusal where it has not the size of the world's pictures."""
    if picture.size != (CANVAS, CANVAS):
        raise Refusal(f"I am sorry, I can only judge pictures of {CANVAS} x {CANVAS} pixels.")
    pixels = np.asarray(picture.convert("RGB"))
    verdict = judge(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255, [testpoints])
    return Seen(testpoints, verdict.grades[0], verdict.satisfied[0], float(verdict.quality[0]), float(verdict.clean[0]))


# ---- what is asked


def find_prompt(text: str) -> tuple[Prompt, int]:
    """The longest prompt of the world that stands between delimiters, and where it ends. Raises Refusal for none."""
    starts = [match.end() for match in _OPENING.finditer(text)]
    ends = [match.start() for match in _CLOSING.finditer(text)]
    spans = ((start, end) for start in starts for end in ends if start < end)
    known = known_prompts()
    found = max(
        (span for span in spans if text[slice(*span)] in known), key=lambda span: span[1] - span[0], default=None
    )
    if found is None:
        raise Refusal("I am sorry, I know none of the prompts in this question, so I cannot judge the picture.")
    return known[text[slice(*found)]], found[1]


@lru_cache(maxsize=1)
def known_prompts() -> dict[str, Prompt]:
    """Every prompt of the world by its text; the first call draws them, which takes seconds."""
    return {prompt.text: prompt for prompt in (*train_prompts(), *bench_prompts(), *test_prompts())}


def find_testpoints(text: str, end: int, known: Sequence[Testpoint]) -> list[Testpoint]:
    """The testpoints asked about, in the question's order: lines ``NAME: DESCRIPTION``, else descriptions as phrases
    after the prompt (which ends at ``end``), else a list of names that is the prompt's own. Raises Refusal where none
    of these is found, and where a list of names beside them has another length."""
    by_words = {(testpoint.name, testpoint.description): testpoint for testpoint in known}
    lines = (by_words.get((match["name"], match["description"])) for match in _ITEM.finditer(text))
    asked = _distinct(lines) or _distinct(_phrases(text[end:], known))
    names = next((names for names in _lists_of_names(text) if set(names) <= {t.name for t in known}), None)
    if not asked and names == [testpoint.name for testpoint in known]:
        asked = list(known)
    if not asked or (names is not None and len(names) != len(asked)):
        raise Refusal("I am sorry, I cannot tell which testpoints of this prompt I should look at.")
    return asked


def _distinct(testpoints: Iterator[Testpoint | None]) -> list[Testpoint]:
    return list({testpoint.description: testpoint for testpoint in testpoints if testpoint is not None}.values())


def _phrases(text: str, known: Sequence[Testpoint]) -> Iterator[Testpoint]:
    by_description = {testpoint.description: testpoint for testpoint in known}
    longest_first = sorted(by_description, key=len, reverse=True)
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")
    yield from (by_description[match.group()] for match in pattern.finditer(text))


def _lists_of_names(text: str) -> Iterator[list[str]]:
    for match in _LIST.finditer(text):
        try:
            yield ast.literal_eval(match.group())
        except (ValueError, SyntaxError):
            continue


# ---- how it is answered


def unigenbench(prompt: Prompt, seen: Seen) -> str:
    """A sentence and 0 or 1 per testpoint, as UniGenBench++ asks for them."""
    words = ("does not show", "shows")
    pairs = zip(seen.testpoints, seen.satisfied, strict=True)
    analysis = [f"The picture {words[holds]} this: {testpoint.description}." for testpoint, holds in pairs]
    return f"<analysis>{analysis!r}</analysis>\n<score>{list(seen.satisfied)!r}</score>"


def final_score(prompt: Prompt, seen: Seen) -> str:
    """The score alone."""
    return f"Final Score: {_points(seen.quality)}"


def elements_and_final_score(prompt: Prompt, seen: Seen) -> str:
    """Each testpoint with 0 or 1, then the score."""
    pairs = zip(seen.testpoints, seen.satisfied, strict=True)
    lines = [f"{testpoint.description} ({testpoint.primary.lower()}): {holds}" for testpoint, holds in pairs]
    return "\n".join([*lines, final_score(prompt, seen)])


def three_scores(prompt: Prompt, seen: Seen) -> str:
    """Alignment, coherence and style."""
    scores = {"Alignment": seen.grade, "Coherence": seen.clean, "Style": seen.quality}
    return "\n".join(f"{name} Score (1-5): {_points(value)}" for name, value in scores.items())


def words_and_three_scores(prompt: Prompt, seen: Seen) -> str:
    """How badly each word of the prompt is shown, then alignment, coherence and style."""
    rows: list[tuple[str, float]] = []
    for word in re.findall(r"\w+", prompt.text):
        grades = [g for t, g in zip(seen.testpoints, seen.grades, strict=True) if word in t.description.split()]
        rows.append((word, round(1 - sum(grades) / len(grades), 4) if grades else 0.0))
    rows.append(("[No_mistakes]", round(sum(seen.satisfied) / len(seen.satisfied), 4)))
    return f"Word-wise Scores: {json.dumps(rows)}\n\n{three_scores(prompt, seen)}"


def _points(share: float) -> str:
    return f"{1 + 4 * min(max(share, 0.0), 1.0):.4f}"


def _form_of(text: str) -> Callable[[Prompt, Seen], str]:
    if "<analysis>" in text and "<score>" in text:
        return unigenbench
    if "Word-wise" in text:
        return words_and_three_scores
    if "Alignment Score" in text:
        return three_scores
    if "Final Score:" in text:
        return elements_and_final_score if "element (type)" in text else final_score
    raise Refusal("I am sorry, I do not know the form in which this question wants to be answered.")
