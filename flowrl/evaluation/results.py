"""What an evaluation leaves in its folder, as typed records.

OUTPUT/generation.json     model, settings, provenance         prompts.jsonl   index, prompt, meta
       images/             {index}_{j}.png                     manifest.jsonl  a line per image
       scores/METRIC.json  what scored: identity, versions     METRIC.jsonl    a line per image
       results.json, results.md, per_prompt.jsonl, contact_sheet.png
"""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import flowrl
from flowrl import atomic
from flowrl.errors import UserError
from flowrl.evaluation import records
from flowrl.sampling import Drawing
from flowrl.statistics import Interval
from flowrl.types import Prompt

GENERATION = "generation.json"
PROMPTS = "prompts.jsonl"
MANIFEST = "manifest.jsonl"
IMAGES = "images"
SCORES = "scores"
RESULTS = "results.json"
PER_PROMPT = "per_prompt.jsonl"
LIBRARIES = ("torch", "diffusers", "transformers", "open_clip_torch", "numpy", "pillow")


class Record(BaseModel):
    """A record of a file; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def load(cls, path: Path) -> Self:
        """From a JSON file. Raises UserError where it is missing or another thing."""
        try:
            return cls.parse(json.loads(path.read_bytes()), path)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        except ValueError as error:
            raise UserError(f"{path} is not JSON: {error}") from error

    @classmethod
    def parse(cls, values: Any, path: Path) -> Self:
        """From JSON values that stand in ``path``. Raises UserError where they are another thing."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise UserError(f"{path} is not what this version of flowrl writes: {where}: {first['msg']}") from error

    def write(self, path: Path) -> None:
        atomic.write_json(path, self.model_dump(mode="json"))


class Git(Record):
    """The checkout that the program ran from."""

    sha: str
    dirty: bool


class Provenance(Record):
    """The program that made something."""

    flowrl: str
    git: Git | None
    """None where flowrl is installed without its repository."""
    python: str
    libraries: dict[str, str]

    @classmethod
    def here(cls) -> Provenance:
        """Of this process."""
        return cls(
            flowrl=flowrl.__version__, git=_git(), python=platform.python_version(), libraries=library_versions()
        )


class Generation(Record):
    """What images were drawn from, and how."""

    model: str
    """As it was named on the command line."""
    model_digest: str
    recipe_digest: str | None
    drawing: Drawing
    prompts: str
    num_prompts: int
    images_per_prompt: int
    metrics: str
    """The metrics fragment of the model."""
    provenance: Provenance


class ImageRecord(Record):
    """A line of the manifest: an image, what it shows, and all that it was made from."""

    prompt: str
    index: int
    j: int
    seed: int
    file: str
    """Relative to the folder."""
    sha256: str
    """Of the file."""
    model_digest: str
    steps: int
    sigmas: str
    height: int
    width: int
    hybrid_steps: int | None

    @property
    def key(self) -> tuple[int, int]:
        return self.index, self.j


class ScoreRecord(Record):
    """A line of a metric's scores. ``value`` is None where the scorer had no answer."""

    index: int
    j: int
    sha256: str
    """Of the image that was judged."""
    value: float | None
    valid: bool
    parts: dict[str, float | None] = Field(default_factory=dict)

    @property
    def key(self) -> tuple[int, int]:
        return self.index, self.j


class ScorerRecord(Record):
    """What made a metric's scores."""

    metric: str
    identity: dict[str, Any]
    provenance: Provenance
    order: int = 0
    """Its place in the table: metrics stand in the order in which they were first asked for."""


class Estimate(Record):
    """A mean over prompts with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, interval: Interval) -> Estimate:
        return cls(**interval._asdict())


class MetricResult(Record):
    """A metric over the images of an evaluation. ``estimate`` is None where no image has a valid answer."""

    identity: dict[str, Any]
    provenance: Provenance
    asked: int
    """Images."""
    valid: int
    """Of them with an answer."""
    prompts: int
    """With at least one answer: what the mean and the interval are over."""
    estimate: Estimate | None
    parts: dict[str, Estimate] = Field(default_factory=dict)


class Results(Record):
    """All of an evaluation but the values of single images and prompts."""

    generation: Generation
    metrics: dict[str, MetricResult]
    unfinished: dict[str, int] = Field(default_factory=dict)
    """Metric -> scored images, where that is not all."""
    benchmarks: dict[str, Any] = Field(default_factory=dict)
    provenance: Provenance


class PromptResult(Record):
    """A line of per_prompt.jsonl: means over a prompt's images that have an answer, None where none has."""

    index: int
    prompt: str
    scores: dict[str, float | None]


# ---- reading


def read_prompts(folder: Path) -> list[Prompt]:
    """The prompts of an evaluation, their meta data included."""
    return [Prompt(line["prompt"], line["index"], line["meta"]) for line in records.read(folder / PROMPTS)]


def read_manifest(folder: Path) -> list[ImageRecord]:
    """The images of an evaluation. Raises UserError where there are none yet."""
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} holds no images ({MANIFEST} is missing); draw them with flowrl eval MODEL_OR_RUN")
    return [ImageRecord.parse(line, folder / MANIFEST) for line in records.read(folder / MANIFEST)]


def scores_path(folder: Path, metric: str) -> Path:
    return folder / SCORES / f"{metric}.jsonl"


# ---- provenance


@cache
def library_versions() -> dict[str, str]:
    """Of the libraries that results depend on and that are installed."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def _git() -> Git | None:
    package = Path(flowrl.__file__).parent
    if _run_git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    sha, changes = _run_git(package, "rev-parse", "HEAD"), _run_git(package, "status", "--porcelain")
    return None if sha is None or changes is None else Git(sha=sha, dirty=bool(changes))


def _run_git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def same(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    """Whether two identities are equal as JSON: tuples are lists there."""
    return json.dumps(left, sort_keys=True, default=str) == json.dumps(right, sort_keys=True, default=str)
