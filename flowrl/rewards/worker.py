"""A scorer that runs in another Python environment, over a local pipe: reward packages do not agree on their pins."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field

from flowrl.errors import RunFailed, UserError, did_you_mean, listing
from flowrl.hub import sha256
from flowrl.protocols import Scorer, ScorerConfig
from flowrl.rewards.images import as_pictures, finite
from flowrl.types import Images, Prompt, Scores
from flowrl.workers import environments
from flowrl.workers.process import Picture, WorkerFailed, WorkerProcess

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

WORKERS = Path(environments.__file__).parent


class Worker(ScorerConfig, kind="worker"):
    """``script``: a file of your own, or the name of a shipped worker, which runs an official package.

    The child runs in the working folder, and reads relative paths in ``options`` from there.
    """

    script: str
    python: str | None = None
    """An interpreter, or the name of an environment that ``flowrl scorers environments`` has built. By default the
    environment of a shipped worker, and this interpreter for a script."""
    options: Mapping[str, Any] = {}
    """JSON values for the worker's ``load``."""
    batch_size: int = Field(default=16, ge=1)
    """Images to a batch; of no influence on the scores."""
    timeout: float = Field(default=300, gt=0)
    """Seconds that a batch may take."""
    start_timeout: float = Field(default=600, gt=0)
    """Seconds that loading may take."""

    @property
    def shipped(self) -> str | None:
        """The environment of a shipped worker; None for a script."""
        return shipped_workers().get(self.script)

    def script_path(self) -> Path:
        """Raises UserError where there is no such script and no such shipped worker."""
        if self.script in shipped_workers():
            return WORKERS / f"official_{self.script}.py"
        path = Path(self.script).expanduser()
        if not path.is_file():
            names = shipped_workers()
            raise UserError(
                f"reward worker: script {self.script!r} is neither a file nor a shipped worker ({listing(names)})"
                f"{did_you_mean(self.script, names)}"
            )
        return path

    def interpreter(self) -> str:
        """Raises UserError where there is no such interpreter and no such environment, or it is not built."""
        chosen = self.python or self.shipped or sys.executable
        if chosen in environments.names():
            return str(environments.interpreter(chosen))
        path = Path(chosen).expanduser()
        if not path.is_file():
            names = environments.names()
            raise UserError(
                f"reward worker: python {chosen!r} is neither an interpreter nor an environment of flowrl "
                f"({listing(names)}){did_you_mean(chosen, names)}"
            )
        return str(path)

    def check(self) -> None:
        self.script_path()
        self.interpreter()

    def identity(self) -> dict[str, Any]:
        """The fields, the SHA-256 of the script and of every file that an option names or that lies in a folder that it
        names, the environment's pins, and the Python and packages that the script says it uses.

        Starts the script, without its ``load``. Raises UserError where it cannot be started.
        """
        script, chosen = self.script_path(), self.python or self.shipped
        files = {str(path): sha256(path) for path in (script, *named_files(self.options))}
        pins = environments.pins(chosen) if chosen in environments.names() else None
        return super().identity() | {"files": files, "pins": pins, "versions": self._versions()}

    def _versions(self) -> dict[str, Any]:
        try:
            child = WorkerProcess(
                self.interpreter(),
                self.script_path(),
                options={},
                device="cpu",
                timeout=self.start_timeout,
                identify=True,
            )
        except WorkerFailed as failure:
            raise UserError(f"reward worker: {failure}") from failure
        child.close()
        return child.identity

    def load(self, device: torch.device) -> Scorer:
        """Starts the child and waits until it has loaded. Raises UserError with what it wrote where it does not."""
        scorer = WorkerScorer(self, device)
        try:
            scorer.start()
        except WorkerFailed as failure:
            raise UserError(f"reward worker: {failure}") from failure
        return scorer


class WorkerScorer:
    """Asks the child. An image that it cannot judge is not valid, and the reason is logged, each once."""

    scope: Literal["image", "group"] = "image"

    def __init__(self, config: Worker, device: torch.device) -> None:
        self.config, self.device = config, device
        self.script, self.python = config.script_path(), config.interpreter()
        self.process: WorkerProcess | None = None
        self._lock = threading.Lock()
        self._logged: set[str] = set()

    def start(self) -> WorkerProcess:
        """Raises WorkerFailed."""
        self.process = WorkerProcess(
            self.python,
            self.script,
            options=self.config.options,
            device=str(self.device),
            timeout=self.config.start_timeout,
        )
        return self.process

    def close(self) -> None:
        """End the child; a later question starts another."""
        if self.process is not None:
            self.process.close()

    def score(self, images: Images, prompts: Sequence[Prompt]) -> Scores:
        """``values`` are 0 where not ``valid``. Raises RunFailed where a second child fails as the first did."""
        values, errors = self.answers(images, [prompt.text for prompt in prompts])
        for error in {error for error in errors if error} - self._logged:
            self._logged.add(error)
            log.warning("reward worker: %s cannot judge an image: %s", self.script.name, error)
        device = images.device if isinstance(images, torch.Tensor) else torch.device("cpu")
        valid = torch.tensor([error is None for error in errors], dtype=torch.bool, device=device)
        return Scores(torch.tensor([value or 0.0 for value in values], device=device), valid)

    def answers(self, images: Images, prompts: Sequence[str]) -> tuple[list[float | None], list[str | None]]:
        """A score, or the error that kept the child from one, for each image."""
        usable = finite(images)
        pictures = as_pictures(images)
        scores: list[float | None] = [None] * len(prompts)
        errors: list[str | None] = [None if is_finite else "the image is not finite" for is_finite in usable]
        rows = [row for row, is_finite in enumerate(usable) if is_finite]
        with self._lock:
            for start in range(0, len(rows), self.config.batch_size):
                batch = rows[start : start + self.config.batch_size]
                answer = self._ask([packed(pictures[row]) for row in batch], [prompts[row] for row in batch])
                for row, score, error in zip(batch, *answer, strict=True):
                    scores[row], errors[row] = score, error
        return scores, errors

    def _ask(self, pictures: Sequence[Picture], prompts: Sequence[str]) -> tuple[list[float | None], list[str | None]]:
        """Asks again, once, where a child dies, hangs or writes garbage."""
        for last in (False, True):
            try:
                process = self.process if self.process and self.process.alive else self.start()
                return process.ask(pictures, prompts, self.config.timeout)
            except WorkerFailed as failure:
                if last or not failure.again:
                    raise RunFailed(f"reward worker: {failure}") from failure
                log.warning("reward worker: %s\nstarting it again", failure)
        raise AssertionError("unreachable")


def named_files(options: Any) -> Iterator[Path]:
    """The files that options name, at any depth, and all files of folders that they name; hidden ones apart, where
    downloads keep their notes. ``local-dir:`` may stand in front of a folder.
    """
    if isinstance(options, Mapping):
        options = list(options.values())
    if isinstance(options, list | tuple):
        for option in options:
            yield from named_files(option)
    elif isinstance(options, str) and options:
        path = Path(options.removeprefix("local-dir:")).expanduser()
        if path.is_file():
            yield path
        elif path.is_dir():
            yield from sorted(file for file in path.rglob("*") if file.is_file() and not _is_hidden(file, path))


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def shipped_workers() -> dict[str, str]:
    """The shipped workers, and the environment or interpreter that each runs in."""
    return {
        "hpsv2": "hpsv2",
        "image_reward": "image_reward",
        "pickscore": "image_reward",  # for its transformers 4
        "open_clip": sys.executable,
    }


def packed(picture: Image) -> Picture:
    """RGB as raw bytes; other modes as PNG where that format has them, and converted to RGB where not."""
    if picture.mode not in ("RGB", "1", "L", "LA", "P", "RGBA", "I", "I;16"):
        picture = picture.convert("RGB")
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return Picture(picture.width, picture.height, False, picture.tobytes())
    file = BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return Picture(picture.width, picture.height, True, file.getvalue())
