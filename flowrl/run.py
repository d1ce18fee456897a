"""A run: the output folder, the loop around the trainer, resuming, and the summary at the end.

OUTPUT/recipe.yaml            the resolved recipe, a valid recipe itself
       metrics.jsonl, .csv    a row per iteration        curves.png
       tensorboard/           and other trackers
       checkpoints/           to resume from
       evaluation/            held-out scores before and after, per prompt, and the pictures' images
       before_after.png       the same prompts and noise before and after
       weights/, weights_ema/ what plain diffusers loads
       summary.json
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import torch
import yaml

from flowrl import atomic, checkpoint
from flowrl.data import PromptOrder, check_disjoint, load_prompts
from flowrl.errors import RunFailed, UserError
from flowrl.heldout import HeldOut, evaluate
from flowrl.interrupt import DropIteration, Interrupt
from flowrl.launch import is_first_rank
from flowrl.pictures import BeforeAfter, curves, grid, sample_grid
from flowrl.progress import Progress
from flowrl.protocols import Scorer
from flowrl.recipe import Recipe, differences
from flowrl.summary import Summary, changes, device_name, plain
from flowrl.tracking import Tracking, read_rows
from flowrl.trainer import Trainer
from flowrl.types import Prompt

RECIPE = "recipe.yaml"
CHECKPOINTS = "checkpoints"
SUMMARY = "summary.json"
LOCK = ".lock"


def train(
    recipe: Recipe,
    *,
    output: Path,
    resume: bool = False,
    stop_after: int | None = None,
    grace: float | None = None,
) -> Summary:
    """Train by a recipe into ``output``.

    ``resume`` continues from the newest good checkpoint there. ``stop_after`` ends after that many iterations in
    all, as if interrupted. ``grace``: seconds that a signal leaves the iteration in flight (None: all it needs).
    Raises UserError for mistakes in what was asked, RunFailed where the run cannot go on.
    """
    if stop_after is not None and stop_after < 1:
        raise UserError(f"--stop-after must be 1 or more iterations, got {stop_after}")
    train_prompts = load_prompts(recipe.data.train)
    test_prompts = _test_prompts(recipe)
    check_disjoint(train_prompts, test_prompts)
    found = _prepare(recipe, output, resume)
    with ExitStack() as stack:
        trainer = Trainer(recipe, PromptOrder(train_prompts, recipe.rollout.prompts, recipe.run.seed))
        if trainer.accelerator.is_main_process:
            stack.enter_context(_locked(output))
        session = _Session(trainer, output, test_prompts, stack)
        session.start(found)
        return session.loop(stop_after, grace)


class _Session:
    """One process's part in a run, from its start or resumption to its end."""

    def __init__(self, trainer: Trainer, output: Path, test_prompts: list[Prompt], stack: ExitStack) -> None:
        self.trainer, self.output, self.test_prompts, self.stack = trainer, output, test_prompts, stack
        self.recipe = trainer.recipe
        self.is_main = trainer.accelerator.is_main_process
        self.scorers: dict[str, Scorer] = {}
        if test_prompts:
            self.scorers = {name: s.load(trainer.device) for name, s in self.recipe.evaluation.scorers.items()}

    def start(self, found: checkpoint.Found | None) -> None:
        """Restore, open the records, and measure what there is before the first iteration."""
        trainer, recipe = self.trainer, self.recipe
        if found is not None and found.path is not None:
            trainer.restore(checkpoint.load(found.path))
        resumed_at = None if found is None else trainer.iteration
        self.progress = self.stack.enter_context(
            Progress(recipe.run.iterations, trainer.iteration, enabled=self.is_main)
        )
        for skipped in found.skipped if found else ():
            self.progress.note(f"skipped checkpoint {skipped}")
        if resumed_at is not None:
            self.progress.note(f"resuming after iteration {resumed_at}")
        if self.is_main:
            self.output.mkdir(parents=True, exist_ok=True)
            atomic.write_text(self.output / RECIPE, yaml.safe_dump(recipe.resolved(), sort_keys=False, width=110))
        self.tracking = self.stack.enter_context(
            Tracking(
                self.output,
                resumed_at=resumed_at,
                trackers=recipe.run.trackers,
                recipe=recipe.resolved(),
                is_main=self.is_main,
            )
        )
        self._cache_prompts()
        trainer.accelerator.wait_for_everyone()
        if self.scorers and not (self.output / "evaluation" / "before.json").is_file():
            self._evaluate("before")
        trainer.accelerator.wait_for_everyone()

    def loop(self, stop_after: int | None, grace: float | None) -> Summary:
        trainer, recipe = self.trainer, self.recipe
        stop = min(recipe.run.iterations, stop_after or recipe.run.iterations)
        saved = trainer.iteration
        with Interrupt(grace, say=None if self.is_main else lambda line: None) as interrupt:
            try:
                while trainer.iteration < stop and not self._anyone(interrupt.requested):
                    self.progress.stage(f"iteration {trainer.iteration + 1}")
                    metrics = trainer.iterate(shield=interrupt.shielded())
                    with interrupt.shielded():
                        self._record(metrics)
                        if trainer.iteration % recipe.run.checkpoint_every == 0 or trainer.iteration == stop:
                            saved = self._save()
            except DropIteration:
                pass
            except RunFailed as failure:
                raise RunFailed(f"{failure}. {self._how_to_resume(saved)}") from failure
            with interrupt.shielded():
                if trainer.iteration > saved:
                    saved = self._save()
            number = None if interrupt.signal is None else int(interrupt.signal)
        if trainer.iteration >= recipe.run.iterations:
            return self._finish(number)
        return self._summary(number, self._how_to_resume(saved))

    # ---- during

    def _anyone(self, requested: bool) -> bool:
        """Whether a rank was asked to stop: all stop after the same iteration."""
        flag = torch.tensor([float(requested)], device=self.trainer.device)
        return bool(self.trainer.accelerator.reduce(flag, "sum") > 0)

    def _record(self, metrics: dict[str, float]) -> None:
        iteration = self.trainer.iteration
        run, every = self.recipe.run, self.recipe.evaluation.every
        if every and iteration % every == 0 and iteration < run.iterations and self.scorers:
            found = evaluate(self.trainer, self.test_prompts, self.scorers)
            metrics = metrics | {f"test/{name}": _mean(values) for name, values in found.scores.items()}
        self.progress.update(self.tracking.log(iteration, metrics))
        if run.sample_every and iteration % run.sample_every == 0 and self.test_prompts:
            self._draw_samples(iteration)

    def _draw_samples(self, iteration: int) -> None:
        prompts = self.test_prompts[: self.recipe.run.num_samples]
        drawn = evaluate(self.trainer, prompts, self.scorers, num_images=len(prompts))
        if self.is_main:
            path = self.output / "samples" / f"iteration_{iteration:06d}.png"
            path.parent.mkdir(exist_ok=True)
            sample_grid(drawn.images, [prompt.text for prompt in prompts[: len(drawn.images)]], path)
            self.tracking.log_image(iteration, "samples", path)

    def _save(self) -> int:
        if self.is_main:
            checkpoint.save(self.output / CHECKPOINTS, self.trainer.state(), keep=self.recipe.run.keep_checkpoints)
        self.trainer.accelerator.wait_for_everyone()
        return self.trainer.iteration

    def _how_to_resume(self, saved: int) -> str:
        if not saved:
            return "No iteration was finished; begin again with another --output or an empty folder"
        return f"State after iteration {saved} is kept; go on with: flowrl train {self.output / RECIPE} " + (
            f"--output {self.output} --resume"
        )

    def _cache_prompts(self) -> None:
        """Encode all prompts that the run will reach, each rank a part, where the policy keeps a cache."""
        cache = getattr(self.trainer.policy, "cache_prompts", None)
        if cache is None:
            return
        reached = self.trainer.order.reached(self.trainer.iteration, self.recipe.run.iterations)
        accelerator = self.trainer.accelerator
        prompts = [*reached, *self.test_prompts][accelerator.process_index :: accelerator.num_processes]
        cache(prompts, say=self.progress.note)

    # ---- before and after

    def _evaluate(self, when: str) -> HeldOut:
        self.progress.stage(f"evaluating {len(self.test_prompts)} held-out prompts, {when} training")
        found = evaluate(self.trainer, self.test_prompts, self.scorers, num_images=self.recipe.run.num_samples)
        means = {f"test/{name}": _mean(values) for name, values in found.scores.items()}
        if self.is_main:
            folder = self.output / "evaluation"
            folder.mkdir(exist_ok=True)
            torch.save(found.images, folder / f"{when}.pt")
            indices = [prompt.index for prompt in self.test_prompts]
            answers = {name: [None if v != v else v for v in values] for name, values in found.scores.items()}
            atomic.write_json(folder / f"{when}.json", {"index": indices, "scores": answers})
        self.tracking.log(self.trainer.iteration, means)
        return found

    def _finish(self, number: int | None) -> Summary:
        trainer = self.trainer
        if self.is_main:
            _save_weights(trainer, self.output)
        trainer.accelerator.wait_for_everyone()
        if self.scorers:
            with trainer.ema.swapped_in() if trainer.ema else nullcontext():
                self._evaluate("after")
        if self.is_main:
            curves(read_rows(self.output), self.output / "curves.png")
            if self.scorers:
                self._draw_before_after()
        summary = self._summary(number, None)
        if self.is_main:
            atomic.write_json(self.output / SUMMARY, plain(summary))
        return summary

    def _draw_before_after(self) -> None:
        folder = self.output / "evaluation"
        before, after = (torch.load(folder / f"{when}.pt", weights_only=True) for when in ("before", "after"))
        scores = [json.loads((folder / f"{when}.json").read_text())["scores"] for when in ("before", "after")]
        gold = [found.get("gold", [None] * len(self.test_prompts)) for found in scores]
        rows = [
            BeforeAfter(prompt.text, *images)
            for prompt, *images in zip(self.test_prompts, before, after, *gold, strict=False)
        ]
        grid(rows, self.output / "before_after.png")
        self.tracking.log_image(self.trainer.iteration, "before_after", self.output / "before_after.png")

    def _summary(self, number: int | None, resume: str | None) -> Summary:
        rows = read_rows(self.output) if self.is_main else []
        total = {
            name: sum(row.get(name) or 0.0 for row in rows) for name in ("forwards", "training_forwards", "seconds")
        }
        return Summary(
            name=self.recipe.name,
            output=self.output,
            iteration=self.trainer.iteration,
            iterations=self.recipe.run.iterations,
            held_out=changes(self.output) if self.is_main else {},
            num_prompts=len(self.test_prompts),
            device=device_name(self.trainer.device),
            signal=number,
            resume=resume,
            **total,
        )


def _test_prompts(recipe: Recipe) -> list[Prompt]:
    if recipe.data.test is None:
        return []
    return load_prompts(recipe.data.test)[: recipe.evaluation.limit]


def _prepare(recipe: Recipe, output: Path, resume: bool) -> checkpoint.Found | None:
    """Refuse a folder in use and a recipe that is not the one that was begun; find where to go on."""
    began = output / RECIPE
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file; name a folder")
    if not resume:
        if is_first_rank() and output.is_dir() and any(path.name != LOCK for path in output.iterdir()):
            raise UserError(f"--output {output} is in use; name another folder, or go on with it by --resume")
        return None
    if not began.is_file():
        raise UserError(f"--resume: {output} holds no run ({RECIPE} is missing); start it without --resume")
    found = checkpoint.newest(output / CHECKPOINTS)
    if found.path is None:
        if found.skipped:
            raise UserError(f"--resume: no checkpoint in {output} can be used: {'; '.join(found.skipped)}")
        return found
    old = checkpoint.read_manifest(found.path)["recipe"]
    changed = differences(old, recipe.resolved())
    if changed:
        listed = "\n  ".join(changed)
        raise UserError(
            f"--resume: the run in {output} was begun with other values (theirs -> yours):\n  {listed}\n"
            f"go on with its own recipe, {began}, or start a new run in another folder"
        )
    return found


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    """Hold the folder: two runs that write into one would destroy both."""
    output.mkdir(parents=True, exist_ok=True)
    with (output / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"--output {output} is being written by another process; wait for it, or stop it") from None
        yield


def _save_weights(trainer: Trainer, output: Path) -> None:
    """``weights/`` and, where an average is kept, ``weights_ema/``: each appears whole or not at all."""
    _save_policy(trainer, output / "weights")
    if trainer.ema is not None:
        with trainer.ema.swapped_in():
            _save_policy(trainer, output / "weights_ema")


def _save_policy(trainer: Trainer, folder: Path) -> None:
    with atomic.new_folder(folder) as temporary:
        trainer.policy.save_pretrained(temporary)


def _mean(values: Sequence[float]) -> float:
    answered = [value for value in values if value == value]
    return sum(answered) / len(answered) if answered else float("nan")
