"""The benchmark's prompts: what is drawn, and what a judge is asked of each picture."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from flowrl.data import worlds
from flowrl.errors import UserError, did_you_mean, listing
from flowrl.evaluation.unigenbench.dimensions import Language, by_name
from flowrl.types import Prompt

Rows = Literal["fail", "repair", "skip"]

KEYS: Mapping[Language, tuple[str, str]] = {
    "en": ("Testpoints", "Testpoint Description"),
    "zh": ("考点", "考点对应描述"),
}
"""Where the JSON of ``sub_dims_<language>`` keeps the names of the testpoints and what each asks of the prompt."""
_MOST_COMMAS = 4
"""More than these missing from one row is no slip."""


@dataclass(frozen=True)
class BenchPrompt:
    """A prompt with its testpoints: the names of sub-dimensions, and beside each what it means here.

    >>> BenchPrompt(0, "a red circle", ("Attribute - Color",), ("red circle",)).names
    ('Attribute - Color',)
    """

    index: int
    text: str
    names: tuple[str, ...]
    descriptions: tuple[str, ...]


@dataclass(frozen=True)
class Benchmark:
    """The prompts of one CSV file or embedded world.

    ``category`` names the variant in files and titles: en, en_long, zh, zh_long, or the world. ``size``: rows of the
    source, of which ``skipped`` (row and reason) are left out and ``repaired`` (likewise) were mended.
    """

    source: str
    category: str
    language: Language
    prompts: tuple[BenchPrompt, ...]
    size: int
    repaired: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    def first(self, count: int | None) -> Benchmark:
        """Only the first prompts; all of them for None."""
        return self if count is None else replace(self, prompts=self.prompts[:count])

    def to_draw(self) -> list[Prompt]:
        """What an image is made of, the index being the one that names its files."""
        return [Prompt(prompt.text, prompt.index) for prompt in self.prompts]

    def digest(self) -> str:
        """The sha256 of everything that is asked, in hex."""
        rows = [[p.index, p.text, p.names, p.descriptions] for p in self.prompts]
        return hashlib.sha256(json.dumps([self.language, rows]).encode()).hexdigest()


def load_benchmark(source: str, rows: Rows = "fail") -> Benchmark:
    """The prompts of an official CSV file (columns ``index``, ``prompt_<language>``, ``sub_dims_<language>``), or of
    an embedded world as ``WORLD:bench``.

    ``rows`` says what becomes of a row that cannot be read: ``fail`` names all of them, ``repair`` adds the comma that
    its JSON lacks between two values and fails where that is not what is wrong, ``skip`` leaves it out. Raises
    UserError with file, row and reason.
    """
    world, _, split = source.partition(":")
    if split and world in worlds():
        return _of_world(world, split)
    path = Path(source).expanduser()
    if not path.is_file():
        near = [*(f"{name}:bench" for name in worlds()), *_csv_beside(path)]
        raise UserError(
            f"--prompts: {source!r} is neither a CSV file of the benchmark nor WORLD:bench of a world "
            f"({listing(worlds())}){did_you_mean(source, near)}"
        )
    return _of_file(path, rows)


def _csv_beside(path: Path) -> Iterator[str]:
    if path.parent.is_dir():
        yield from (str(path.parent / other.name) for other in path.parent.glob("*.csv"))


def _of_world(world: str, split: str) -> Benchmark:
    import importlib

    if split != "bench":
        raise UserError(f"--prompts: the benchmark of {world} is {world}:bench, got {world}:{split}")
    module = importlib.import_module(f"flowrl.worlds.{world}.prompts")
    prompts = []
    for prompt in module.bench_prompts():
        points = module.testpoints_of(prompt)
        names, descriptions = tuple(point.name for point in points), tuple(point.description for point in points)
        prompts.append(BenchPrompt(prompt.index, prompt.text, names, descriptions))
    return Benchmark(f"{world}:{split}", world, "en", tuple(prompts), len(prompts))


def _of_file(path: Path, rows: Rows) -> Benchmark:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            table = list(reader)
            language = _language(path, reader.fieldnames or ())
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"--prompts: {path} is not valid CSV in UTF-8: {error}") from error
    prompts: dict[int, BenchPrompt] = {}
    broken: list[str] = []
    repaired: list[str] = []
    for number, row in enumerate(table):
        where = f"row {number} (index {row['index']})"
        try:
            prompt, repairs = _prompt(row, language, repair=rows == "repair")
            if prompt.index in prompts:
                raise ValueError("another row has this index")
        except ValueError as error:
            broken.append(f"{where}: {error}")
            continue
        prompts[prompt.index] = prompt
        repaired += [f"{where}: {repair}" for repair in repairs]
    if broken and rows != "skip":
        raise UserError(_complaint(path, broken, rows))
    if not prompts:
        raise UserError(f"--prompts: {path} holds no prompt that can be asked about")
    category = f"{language}_long" if path.stem.endswith("_long") else language
    return Benchmark(str(path), category, language, tuple(prompts.values()), len(table), tuple(repaired), tuple(broken))


def _complaint(path: Path, broken: list[str], rows: Rows) -> str:
    remedy = "" if rows == "repair" else "--rows repair mends a missing comma, "
    shown = "\n  ".join(broken[:10]) + (f"\n  and {len(broken) - 10} more" if len(broken) > 10 else "")
    return f"--prompts: {path}: {len(broken)} broken rows; {remedy}--rows skip leaves such rows out:\n  {shown}"


def _language(path: Path, columns: Any) -> Language:
    found = [language for language in KEYS if {f"prompt_{language}", f"sub_dims_{language}"} <= set(columns)]
    if "index" in columns and len(found) == 1:
        return found[0]
    raise UserError(
        f"--prompts: {path} must have the columns index, prompt_LANGUAGE and sub_dims_LANGUAGE of one language "
        f"({listing(KEYS)}); it has {listing(columns)}"
    )


def _prompt(row: Mapping[str, Any], language: Language, repair: bool) -> tuple[BenchPrompt, list[str]]:
    """A row's prompt and what was mended in it. Raises ValueError with the reason where it cannot be asked about."""
    text, column = row[f"prompt_{language}"], f"sub_dims_{language}"
    if None in row or None in row.values():
        raise ValueError("it has not as many fields as the header")
    if not text.strip():
        raise ValueError(f"prompt_{language} is empty")
    values, repairs = _json(row[column], column, repair)
    names, descriptions = (_texts(values, key, column) for key in KEYS[language])
    if len(names) != len(descriptions) or not names:
        raise ValueError(
            f"{column} has {len(names)} testpoints and {len(descriptions)} descriptions; one each is asked"
        )
    known = by_name(language)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"{column}: there is no testpoint {unknown[0]!r}{did_you_mean(unknown[0], known)}")
    return BenchPrompt(int(row["index"]), text, names, descriptions), repairs


def _texts(values: Any, key: str, column: str) -> tuple[str, ...]:
    found = values.get(key) if isinstance(values, dict) else None
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise ValueError(f"{column} must be a JSON object with a list of texts {key!r}")
    return tuple(found)


def _json(text: str, column: str, repair: bool) -> tuple[Any, list[str]]:
    """The value of a JSON text and, where ``repair``, the commas that were put between its values to read it."""
    repairs: list[str] = []
    while True:
        try:
            return json.loads(text), repairs
        except json.JSONDecodeError as error:
            before = text[: error.pos].rstrip()
            what = f"{column} is not JSON: {error.msg} after {before[-30:]!r}"
            is_comma = error.msg == "Expecting ',' delimiter" and text[error.pos : error.pos + 1] == '"'
            if not (repair and is_comma and len(repairs) < _MOST_COMMAS):
                raise ValueError(what) from None
            text = f"{before},{text[error.pos :]}"
            repairs.append(f"a comma was missing after {before[-30:]!r}")
