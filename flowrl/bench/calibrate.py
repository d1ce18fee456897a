"""Rates of this device, measured alone: what turns counted forwards into seconds."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from flowrl.bench.units import make_key
from flowrl.errors import UserError
from flowrl.evaluation.results import Record
from flowrl.recipe import Recipe

BUSY, RATES = ".busy", "rates"
SECONDS = 1.5
"""Each rate is measured for so long, after a warm-up; the median counts. On a CPU it is the process's own time that is
measured, so that other programs do not slow it down."""


class Rates(Record):
    """What a device does in a second, on one process that has it alone."""

    device: str
    model: str
    precision: str
    torch: str
    threads: int
    max_batch: int
    microbatch: int
    forwards: float
    """Velocity evaluations of rollouts, in batches of ``max_batch``."""
    training_forwards: float
    """Differentiated ones with their backward, in batches of ``microbatch``."""
    images: float
    """Decoded and scored by the recipe's rewards, in batches of ``decode_batch``."""
    measured: str

    def seconds(self, forwards: float, training_forwards: float) -> float:
        """Of counted work: what "equal seconds" means."""
        return forwards / self.forwards + training_forwards / self.training_forwards

    def describe(self) -> str:
        return (
            f"{self.forwards:,.0f} forwards/s (batches of {self.max_batch}) and {self.training_forwards:,.0f} training "
            f"forwards/s (of {self.microbatch}), measured alone on {self.device}, {self.precision}, torch {self.torch}"
        )


def this_device() -> str:
    """The device that runs here are trained on, as their records name it."""
    from flowrl.bench.worker import device_label

    return device_label()


def find_rates(folder: Path, recipe: Recipe, model: str, device: str | None = None) -> Rates | None:
    """The rates of a recipe's model and batches on a device (None: this one), where they are known."""
    path = _path(folder, recipe, model, device or this_device())
    return Rates.load(path) if path.is_file() else None


def _path(folder: Path, recipe: Recipe, model: str, device: str) -> Path:
    batches = [recipe.rollout.max_batch, recipe.run.microbatch, recipe.rollout.decode_batch]
    return folder / RATES / f"{make_key(device, model, recipe.run.precision, batches)}.json"


def calibrate(folder: Path, recipe: Recipe, model: str) -> Rates:
    """Measure and keep. Raises UserError where runs of this folder are going on, or weights are missing."""
    from flowrl.bench.worker import release_memory

    recipe.model.check()
    recipe.check_scorers()
    with alone(folder):
        rates = measure(recipe, model)
    release_memory()
    path = _path(folder, recipe, model, rates.device)
    path.parent.mkdir(parents=True, exist_ok=True)
    rates.write(path)
    return rates


def measure(recipe: Recipe, model: str) -> Rates:
    """Load the model and its rewards, and time them."""
    import torch

    from flowrl.data import PromptOrder, load_prompts
    from flowrl.trainer import Trainer

    trainer = Trainer(recipe, PromptOrder(load_prompts(recipe.data.train), recipe.rollout.prompts, recipe.run.seed))
    policy, device = trainer.policy, trainer.device
    prompts = trainer.order[0]
    cond = policy.encode(prompts)
    batch, decoded = recipe.rollout.max_batch, recipe.rollout.decode_batch

    def inputs(size: int) -> tuple[Any, Any, Any]:
        rows = torch.arange(size) % len(prompts)
        x = torch.randn(size, *policy.latent_shape, device=device)
        return x, torch.full((size,), 0.5, device=device), cond[rows]

    def rollout() -> int:
        with torch.no_grad():
            policy.velocity(*inputs(batch))
        return batch

    def train() -> int:
        trainer.accelerator.backward(policy.velocity(*inputs(micro)).float().pow(2).mean())
        trainer.optimizer.zero_grad(set_to_none=True)
        return micro

    def score() -> int:
        with torch.no_grad():
            images = policy.decode(torch.randn(decoded, *policy.latent_shape, device=device))
            for scorer in trainer.scorers.values():
                scorer.score(images, [prompts[i % len(prompts)] for i in range(decoded)])
        return decoded

    forwards, images = _rate(rollout, device), _rate(score, device)
    x, _, rows = inputs(1)
    trainer.fit(recipe.plan(), x, rows)  # as in a run, after its rollout and scores
    micro = trainer.learner.microbatch
    training_forwards = _rate(train, device)
    return Rates(
        device=this_device(),
        model=model,
        precision=recipe.run.precision,
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        max_batch=batch,
        microbatch=micro,
        forwards=forwards,
        training_forwards=training_forwards,
        images=images,
        measured=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _rate(work: Callable[[], int], device: Any) -> float:
    import torch

    on_gpu = device.type == "cuda"

    def clock() -> float:
        if on_gpu:
            torch.cuda.synchronize(device)
            return time.perf_counter()
        return time.process_time() / torch.get_num_threads()

    def once() -> float:
        began = clock()
        count = work()
        return count / (clock() - began)

    once()
    once()
    found: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() - began < SECONDS or len(found) < 3:
        found.append(once())
    return median(found)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder's device. Raises UserError where runs of this folder are going on."""
    with _busy(folder, fcntl.LOCK_EX) as mine:
        if not mine:
            raise UserError(f"runs of {folder} are going on; rates are measured on a device that does nothing else")
        yield


@contextmanager
def working(folder: Path) -> Iterator[None]:
    """Hold it together with other commands that run units."""
    with _busy(folder, fcntl.LOCK_SH):
        yield


@contextmanager
def _busy(folder: Path, mode: int) -> Iterator[bool]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / BUSY).open("w") as lock:
        try:
            fcntl.flock(lock, mode | (fcntl.LOCK_NB if mode == fcntl.LOCK_EX else 0))
        except OSError:
            yield False
            return
        yield True
