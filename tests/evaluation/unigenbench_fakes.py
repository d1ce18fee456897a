"""Benchmarks, pictures and judges for the tests of UniGenBench++."""

from __future__ import annotations

import csv
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from PIL import Image

from flowrl.types import Answer, Question

KEYS = {"en": ("Testpoints", "Testpoint Description"), "zh": ("考点", "考点对应描述")}
PROMPTS = [
    (0, 'a red "fox" {jumps}', ["Attribute - Color", "Action - Animal"], ["red fox", "jumps"]),
    (
        3,
        "three cups, no tea",
        ["Attribute - Quantity", "Grammar - Negation", "Style"],
        ["three cups", "no tea", "plain"],
    ),
    (7, "a sign that says GO", ["Text Generation"], ["GO"]),
]


def sub_dims(names: Sequence[str], descriptions: Sequence[str], language: str = "en") -> str:
    """A cell of ``sub_dims_<language>``."""
    return json.dumps(dict(zip(KEYS[language], (names, descriptions), strict=True)), ensure_ascii=False)


def write_csv(path: Path, rows: Sequence[tuple[object, str, str]], language: str = "en") -> Path:
    """The official layout, of rows (index, prompt, sub_dims)."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("index", f"prompt_{language}", f"sub_dims_{language}"))
        writer.writerows(rows)
    return path


def small_csv(path: Path) -> Path:
    """``PROMPTS`` as a file."""
    return write_csv(path, [(index, text, sub_dims(names, words)) for index, text, names, words in PROMPTS])


def draw(folder: Path, per_prompt: int = 2) -> Path:
    """A picture of one colour per image of ``PROMPTS``, no two alike."""
    folder.mkdir()
    for index, *_ in PROMPTS:
        for sample in range(per_prompt):
            Image.new("RGB", (8, 8), (index, sample, 9)).save(folder / f"{index}_{sample}.png")
    return folder


def said(scores: Sequence[object]) -> str:
    """An answer in the form that is asked for."""
    return f"<analysis>{['seen'] * len(scores)}</analysis>\n<score>{list(scores)}</score>"


class FakeJudge:
    """Says what ``answer(index, sample, times)`` gives of an image, asked about for the ``times``-th time (from 0).

    ``asked``: how often, by index and sample; ``questions``: all of them.
    """

    def __init__(self, answer: Callable[[int, int, int], Answer | str | None]) -> None:
        self.answer = answer
        self.asked: Counter[tuple[int, int]] = Counter()
        self.questions: list[Question] = []
        self._lock = threading.Lock()

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        answers = []
        for question in questions:
            red, green, _ = question.image.getpixel((0, 0))
            with self._lock:
                times = self.asked[red, green]
                self.asked[red, green] += 1
                self.questions.append(question)
            found = self.answer(red, green, times)
            answers.append(found if isinstance(found, Answer) else Answer(found, None if found else "gone"))
        return answers


def data_file(name: str) -> Path:
    """A large file that is not part of the repository, in the folder that FLOWRL_TEST_DATA names or in ``shared/data``
    of a folder above; the test is skipped where there is none."""
    folders = [Path(os.environ["FLOWRL_TEST_DATA"])] if "FLOWRL_TEST_DATA" in os.environ else []
    folders += [parent / "shared" / "data" for parent in Path(__file__).resolve().parents]
    found = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if found is None:
        pytest.skip(f"{name} is not here; name its folder in FLOWRL_TEST_DATA")
    return found
