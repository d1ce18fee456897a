"""Prompts: where they come from, and the order in which a run visits them."""

from __future__ import annotations

import csv
import functools
import importlib
import importlib.util
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from flowrl.errors import UserError, did_you_mean, listing
from flowrl.seeds import derive_seed
from flowrl.types import Prompt

COLUMNS = ("prompt", "text", "caption")
"""Names of the column that holds the prompt, the first present one wins; else the only one that starts ``prompt_``."""

Row = tuple[str, Mapping[str, Any]]
"""Where a row is, for messages (``prompts.csv, line 3``), and its columns."""


# ---- sources


def load_prompts(source: str, column: str | None = None) -> list[Prompt]:
    """The prompts of a source, in its order; a prompt's index is its position.

    ``source``: a .txt file (one prompt per line, blank lines ignored), a .jsonl, .csv or .parquet file, a data set as
    ``hf:NAME[:SPLIT[:COLUMN]]`` (split ``train`` unless given), or a world's ``WORLD:SPLIT`` (``shapes:test``).
    ``column`` names the prompt's column; the other columns become ``meta``. Raises UserError with file and line.
    """
    if source.startswith("hf:"):
        name, split, named = _parse_hub(source)
        return _from_rows(_hub_rows(name, split), source, column or named)
    world, _, split = source.partition(":")
    if split and world in worlds():
        return _world_prompts(world, split)
    path = Path(source).expanduser()
    if path.suffix not in READERS:
        hint = did_you_mean(source, [f"{name}:{part}" for name in worlds() for part in ("train", "test", "bench")])
        raise UserError(
            f"prompts: {source!r} is neither a {', '.join(READERS)} file, nor hf:NAME[:SPLIT[:COLUMN]], "
            f"nor WORLD:SPLIT of a world ({listing(worlds())}){hint}"
        )
    if not path.is_file():
        near = [str(path.parent / other.name) for other in path.parent.glob("*")] if path.parent.is_dir() else []
        raise UserError(f"prompts: no such file: {source}{did_you_mean(source, near)}")
    return _from_rows(READERS[path.suffix](path), source, column)


def _from_rows(rows: Iterable[Row], source: str, column: str | None) -> list[Prompt]:
    prompts = []
    for index, (where, row) in enumerate(rows):
        name = _prompt_column(row, where, column)
        text = row[name]
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"prompts: {where}: column {name!r} must be a non-empty text, got {text!r}")
        prompts.append(Prompt(text.strip(), index, {key: value for key, value in row.items() if key != name}))
    if not prompts:
        raise UserError(f"prompts: {source} holds no prompt; it needs at least one")
    return prompts


def _prompt_column(row: Mapping[str, Any], where: str, column: str | None) -> str:
    if column is not None:
        if column not in row:
            raise UserError(f"prompts: {where} has no column {column!r}{did_you_mean(column, row)} ({listing(row)})")
        return column
    translations = [name for name in row if name.startswith("prompt_")]
    for name in [*COLUMNS, *(translations if len(translations) == 1 else [])]:
        if name in row:
            return name
    rule = f"has none of the columns {', '.join(COLUMNS)}; it has {listing(row)}"
    raise UserError(f"prompts: {where} {rule}; rename the one that holds the prompts to 'prompt'")


# ---- readers


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The non-blank lines of a UTF-8 file, numbered from 1, stripped."""
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise UserError(f"prompts: {path}, line {number}: must be UTF-8, but {error.reason}") from error
        if text:
            yield number, text


def _txt_rows(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        yield f"{path}, line {number}", {"prompt": line}


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        try:
            value = json.loads(line)
        except ValueError as error:
            raise UserError(f"prompts: {where}: each line must be JSON, but {error}") from error
        if isinstance(value, str):
            value = {"prompt": value}
        if not isinstance(value, dict):
            raise UserError(f"prompts: {where}: each line must be an object or a text, got {line[:80]}")
        yield where, value


def _csv_rows(path: Path) -> Iterator[Row]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if None in row or None in row.values():
                    rule = f"a row must have the header's {len(reader.fieldnames or [])} fields"
                    raise UserError(f"prompts: {where}: {rule}; a field with a comma needs quotes")
                yield where, row
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"prompts: {path}, line {reader.line_num + 1}: not valid CSV in UTF-8: {error}") from error


def _parquet_rows(path: Path) -> Iterator[Row]:
    from pyarrow import ArrowException
    from pyarrow.parquet import read_table

    try:
        table = read_table(path)
    except (ArrowException, OSError) as error:
        raise UserError(f"prompts: {path} is not a readable Parquet file: {error}") from error
    for number, row in enumerate(table.to_pylist()):
        yield f"{path}, row {number}", row


READERS: Mapping[str, Callable[[Path], Iterator[Row]]] = {
    ".txt": _txt_rows,
    ".jsonl": _jsonl_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}


def _parse_hub(source: str) -> tuple[str, str, str | None]:
    name, split, column, *rest = [*source.removeprefix("hf:").split(":"), "", ""]
    if not name or any(rest):
        raise UserError(f"prompts: a data set is hf:NAME[:SPLIT[:COLUMN]], got {source!r}")
    return name, split or "train", column or None


def _hub_rows(name: str, split: str) -> Iterator[Row]:
    """Rows of a Hugging Face data set; of its columns only texts and numbers, so that no image is decoded."""
    if importlib.util.find_spec("datasets") is None:
        raise UserError(f"prompts: hf:{name} needs the datasets library; install it with: pip install 'flowrl[hub]'")
    from datasets import Value, load_dataset

    try:
        dataset = load_dataset(name, split=split)
    except (OSError, ValueError) as error:  # what it raises for an unknown name, split or file, and offline
        raise UserError(f"prompts: cannot load hf:{name}, split {split!r}: {error}") from error
    plain = [column for column, feature in dataset.features.items() if isinstance(feature, Value)]
    for number, row in enumerate(dataset.select_columns(plain)):
        yield f"hf:{name}, split {split}, row {number}", row


def worlds() -> list[str]:
    """Names of the embedded worlds that bring prompts."""
    return sorted(path.parent.name for path in (Path(__file__).parent / "worlds").glob("*/prompts.py"))


def _world_prompts(world: str, split: str) -> list[Prompt]:
    module = importlib.import_module(f"flowrl.worlds.{world}.prompts")
    splits = [name.removesuffix("_prompts") for name in vars(module) if name.endswith("_prompts")]
    if split not in splits:
        raise UserError(f"prompts: {world} has no split {split!r}{did_you_mean(split, splits)} ({listing(splits)})")
    return list(getattr(module, f"{split}_prompts")())


# ---- order


@dataclass(frozen=True)
class PromptOrder:
    """The order of a run: an endless sequence of seeded shuffles of the prompts, P of it per iteration.

    A pure function of (seed, iteration): nothing to save, nothing to restore, equal on every rank and machine.

    >>> order = PromptOrder(tuple(Prompt(name, i) for i, name in enumerate("abc")), per_iteration=2, seed=0)
    >>> sorted(prompt.text for iteration in range(3) for prompt in order[iteration])
    ['a', 'a', 'b', 'b', 'c', 'c']
    """

    prompts: Sequence[Prompt]
    per_iteration: int
    seed: int

    def __post_init__(self) -> None:
        if not self.prompts or self.per_iteration < 1:
            raise ValueError(f"needs prompts and per_iteration >= 1, got {len(self.prompts)} and {self.per_iteration}")

    def __getitem__(self, iteration: int) -> list[Prompt]:
        """The P prompts of an iteration, the whole global batch; a batch may cross from one shuffle to the next."""
        if iteration < 0:
            raise IndexError(f"iterations count from 0, got {iteration}")
        num = len(self.prompts)
        places = range(iteration * self.per_iteration, (iteration + 1) * self.per_iteration)
        return [self.prompts[_shuffle(self.seed, place // num, num)[place % num]] for place in places]

    def reached(self, start: int, stop: int) -> list[Prompt]:
        """The distinct prompts of iterations start..stop-1, in the order of their first use."""
        first: dict[int, Prompt] = {}
        for iteration in range(start, stop):
            for prompt in self[iteration]:
                first.setdefault(prompt.index, prompt)
            if len(first) == len(self.prompts):
                break
        return list(first.values())


@functools.lru_cache(maxsize=4)
def _shuffle(seed: int, epoch: int, num: int) -> tuple[int, ...]:
    """A permutation of range(num), fixed by a hash and so by no library's generator."""
    return tuple(sorted(range(num), key=lambda index: derive_seed(seed, "prompt order", epoch, index)))


class RankSlice(NamedTuple):
    """Which places of the global batch a rank works on, and their weights: 1, or 0 for a repeat that pads."""

    positions: tuple[int, ...]
    weights: tuple[float, ...]


def rank_slice(num_prompts: int, rank: int, world: int) -> RankSlice:
    """Rank's contiguous slice of the batch, of equal length on every rank.

    >>> rank_slice(5, rank=1, world=2)
    RankSlice(positions=(3, 4, 0), weights=(1.0, 1.0, 0.0))
    """
    if num_prompts < 1 or not 0 <= rank < world:
        raise ValueError(f"needs a prompt and 0 <= rank < world, got {num_prompts}, {rank} and {world}")
    length = -(-num_prompts // world)
    places = range(rank * length, (rank + 1) * length)
    return RankSlice(
        tuple(place % num_prompts for place in places), tuple(float(place < num_prompts) for place in places)
    )


# ---- training against evaluation


def normalised(text: str) -> str:
    """A text up to case, Unicode form, spaces and a final full stop.

    >>> normalised("A  Cat.") == normalised("a cat")
    True
    """
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text)).strip().rstrip(".").casefold()


def check_disjoint(train: Iterable[Prompt], evaluation: Iterable[Prompt]) -> None:
    """Raises UserError with examples where a training prompt is also an evaluation prompt, up to :func:`normalised`."""
    trained = {normalised(prompt.text) for prompt in train}
    shared = [prompt.text for prompt in evaluation if normalised(prompt.text) in trained]
    if shared:
        examples = "; ".join(repr(text) for text in shared[:3])
        raise UserError(
            f"{len(shared)} evaluation prompts are also training prompts, which would measure memory: {examples}; "
            "remove them from one of the two"
        )
