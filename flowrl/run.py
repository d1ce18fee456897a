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
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import fmean

import torch
import yaml

from flowrl import atomic, checkpoint
from flowrl.agreement import Agreement
from flowrl.data import PromptOrder, check_disjoint, load_prompts
from flowrl.errors import RunFailed, UserError
from flowrl.heldout import HeldOut, evaluate
from flowrl.interrupt import DropIteration, Interrupt
from flowrl.launch import is_first_rank
from flowrl.output import LOCK, RECIPE, check_output
from flowrl.pictures import BeforeAfter, curves, grid, sample_grid
from flowrl.progress import Progress
from flowrl.protocols import Scorer
from flowrl.recipe import Recipe, differences
from flowrl.summary import Summary, changes, device_name, plain
from flowrl.tracking import Tracking, read_rows
from flowrl.trainer import Trainer
from flowrl.types import Prompt

CHECKPOINTS = "checkpoints"
SUMMARY = "summary.json"


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
    recipe.model.check()
    for scorer in (*(reward.scorer for reward in recipe.rewards.values()), *recipe.evaluation.scorers.values()):
        scorer.check()
    train_prompts = load_prompts(recipe.data.train)
    test_prompts = _test_prompts(recipe)
    check_disjoint(train_prompts, test_prompts)
    found = _prepare(recipe, output, resume)
    with ExitStack() as stack:
        trainer = Trainer(recipe, PromptOrder(train_prompts, recipe.rollout.prompts, recipe.run.seed))
        is_main = trainer.accelerator.is_main_process
        if is_main:
            stack.enter_context(_locked(output))
        interrupt = stack.enter_context(Interrupt(grace, say=None if is_main else lambda line: None))
        return _Session(trainer, output, test_prompts, interrupt, stack).run(found, stop_after)


class _Session:
    """One process's part in a run, from its start or resumption to its end."""

    def __init__(
        self, trainer: Trainer, output: Path, test_prompts: list[Prompt], interrupt: Interrupt, stack: ExitStack
    ) -> None:
        self.trainer, self.output, self.test_prompts = trainer, output, test_prompts
        self.interrupt, self.stack = interrupt, stack
        self.recipe = trainer.recipe
        self.is_main = trainer.accelerator.is_main_process
        self.agreement = Agreement()
        self.saved = 0
        """The iteration after which the newest checkpoint was written."""
        self.scorers: dict[str, Scorer] = {}
        if test_prompts:
            self.scorers = {name: trainer.load_scorer(s) for name, s in self.recipe.evaluation.scorers.items()}

    def run(self, found: checkpoint.Found | None, stop_after: int | None) -> Summary:
        """Begin or go on, to the end or until asked to stop."""
        try:
            self._start(found)
            self._loop(min(self.recipe.run.iterations, stop_after or self.recipe.run.iterations))
            if self.trainer.iteration >= self.recipe.run.iterations:
                return self._finish()
        except DropIteration:
            self._save_if_newer()
        except RunFailed as failure:
            if self.trainer.intact:
                with suppress(RunFailed):  # of a save that has failed already
                    self._save_if_newer()
            raise RunFailed(f"{failure}. {self._how_to_resume()}") from failure
        return self._summary(self._how_to_resume())

    def _start(self, found: checkpoint.Found | None) -> None:
        """Restore, open the records, and measure what there is before the first iteration."""
        trainer, recipe = self.trainer, self.recipe
        if found is not None and found.path is not None:
            trainer.restore(checkpoint.load(found.path))
        self.saved = trainer.iteration
        self.progress = self.stack.enter_context(
            Progress(recipe.run.iterations, trainer.iteration, enabled=self.is_main)
        )
        for skipped in found.skipped if found else ():
            self.progress.note(f"skipped checkpoint {skipped}")
        if found is not None:
            self.progress.note(f"resuming after iteration {trainer.iteration}")
        if self.is_main:
            if found is None:
                shutil.rmtree(self.output / "evaluation", ignore_errors=True)  # of a run that ended before it began
            _write_snapshot(recipe, self.output)
        self.tracking = self.stack.enter_context(
            Tracking(
                self.output,
                resumed_at=None if found is None else trainer.iteration,
                trackers=recipe.run.trackers,
                recipe=recipe.resolved(),
                is_main=self.is_main,
            )
        )
        with self._droppable("prompts", at_once=True):
            self._cache_prompts()
        trainer.accelerator.wait_for_everyone()
        if self.scorers and not trainer.iteration and not (self.output / "evaluation" / "before.json").is_file():
            self._evaluate("before")
        trainer.accelerator.wait_for_everyone()

    def _loop(self, stop: int) -> None:
        """Iterate until ``stop`` iterations are done or a stop is asked for."""
        trainer, every = self.trainer, self.recipe.run.checkpoint_every
        while trainer.iteration < stop and not self._stop_requested():
            self.progress.stage(f"iteration {trainer.iteration + 1}")
            metrics = trainer.iterate(self._droppable(f"iteration {trainer.iteration + 1}"))
            self.progress.update(self.tracking.log(trainer.iteration, metrics))
            if trainer.iteration % every == 0 or trainer.iteration == stop:
                self._save()
            self._monitor()
        self._save_if_newer()

    # ---- during

    @contextmanager
    def _droppable(self, name: str, *, at_once: bool = False) -> Iterator[None]:
        """Around work that a rank does for itself: where one is told to drop it, all do (:mod:`flowrl.agreement`)."""
        try:
            with self.interrupt.droppable(at_once=at_once):
                yield
        except DropIteration:
            self.agreement.drop(name)
            raise
        interrupt = self.interrupt
        if not self.agreement.keep(name, lambda: interrupt.dropping or (at_once and interrupt.requested)):
            raise DropIteration(f"{name} is dropped by another process")

    def _stop_requested(self) -> bool:
        """Whether a rank was asked to stop: all stop after the same iteration."""
        flag = torch.tensor([float(self.interrupt.requested)], device=self.trainer.device)
        return bool(self.trainer.accelerator.reduce(flag, "sum") > 0)

    def _monitor(self) -> None:
        """The held-out evaluation and the sample grid, where one is due. A checkpoint that is due precedes them."""
        iteration = self.trainer.iteration
        run, every = self.recipe.run, self.recipe.evaluation.every
        if every and iteration % every == 0 and iteration < run.iterations and self.scorers:
            found = self._draw(self.test_prompts, f"evaluation {iteration}")
            self.tracking.log(iteration, _means(found))
        if run.sample_every and iteration % run.sample_every == 0 and self.test_prompts:
            self._draw_samples(iteration)

    def _draw(
        self, prompts: Sequence[Prompt], name: str, *, scored: bool = True, num_images: int = 0, at_once: bool = False
    ) -> HeldOut:
        """Images of held-out prompts, and their scores; from the averaged weights, where there are some."""
        scorers = self.scorers if scored else {}
        with self.trainer.averaged():
            droppable = self._droppable(name, at_once=at_once)
            return evaluate(self.trainer, prompts, scorers, num_images=num_images, droppable=droppable)

    def _draw_samples(self, iteration: int) -> None:
        prompts = self.test_prompts[: self.recipe.run.num_samples]
        drawn = self._draw(prompts, f"samples {iteration}", scored=False, num_images=len(prompts))
        if self.is_main:
            path = self.output / "samples" / f"iteration_{iteration:06d}.png"
            path.parent.mkdir(exist_ok=True)
            sample_grid(drawn.images, [prompt.text for prompt in prompts], path)
            self.tracking.log_image(iteration, "samples", path)

    def _save(self) -> None:
        state, iteration = self.trainer.state(), self.trainer.iteration
        if self.is_main:
            try:
                checkpoint.save(self.output / CHECKPOINTS, state, keep=self.recipe.run.keep_checkpoints)
            except OSError as error:
                raise RunFailed(f"the state after iteration {iteration} cannot be written: {error}") from error
        self.trainer.accelerator.wait_for_everyone()
        self.saved = iteration

    def _save_if_newer(self) -> None:
        if self.trainer.iteration > self.saved:
            self._save()

    def _how_to_resume(self) -> str:
        processes = self.trainer.accelerator.num_processes
        command = ["flowrl", "train", str(self.output / RECIPE), "--output", str(self.output), "--resume"]
        command += ["--processes", str(processes)] if processes > 1 else []
        kept = f"State after iteration {self.saved} is kept" if self.saved else "No iteration was finished"
        return f"{kept}; go on with: {shlex.join(command)}"

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

    def _evaluate(self, when: str) -> None:
        self.progress.stage(f"evaluating {len(self.test_prompts)} held-out prompts, {when} training")
        found = self._draw(self.test_prompts, when, num_images=self.recipe.run.num_samples, at_once=True)
        means, iteration = _means(found), self.trainer.iteration
        if self.is_main:
            folder = self.output / "evaluation"
            folder.mkdir(exist_ok=True)
            torch.save(found.images, folder / f"{when}.pt")
            indices = [prompt.index for prompt in self.test_prompts]
            answers = {name: [None if v != v else v for v in values] for name, values in found.scores.items()}
            atomic.write_json(folder / f"{when}.json", {"index": indices, "scores": answers})
            rows = read_rows(self.output)
            if not any(row["iteration"] == iteration and means.keys() <= row.keys() for row in rows):
                self.tracking.log(iteration, means)  # a finished run that is resumed has it already

    def _finish(self) -> Summary:
        trainer = self.trainer
        if self.is_main:
            _save_weights(trainer, self.output)
        trainer.accelerator.wait_for_everyone()
        if self.scorers:
            self._evaluate("after")
        if self.is_main:
            curves(read_rows(self.output), self.output / "curves.png")
            if (self.output / "evaluation" / "before.pt").is_file():
                self._draw_before_after()
        summary = self._summary(None)
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

    def _summary(self, resume: str | None) -> Summary:
        signal = self.interrupt.signal
        rows = read_rows(self.output) if self.is_main else []
        total = {
            name: sum(row.get(name) or 0.0 for row in rows) for name in ("forwards", "training_forwards", "seconds")
        }
        return Summary(
            name=self.recipe.name,
            output=self.output,
            iteration=self.trainer.iteration,
            iterations=self.recipe.run.iterations,
            held_out=changes(self.output) if self.is_main and resume is None else {},
            num_prompts=len(self.test_prompts),
            device=device_name(self.trainer.device),
            signal=None if signal is None else int(signal),
            resume=resume,
            **total,
        )


def _test_prompts(recipe: Recipe) -> list[Prompt]:
    if recipe.data.test is None:
        return []
    return load_prompts(recipe.data.test)[: recipe.evaluation.limit]


def _prepare(recipe: Recipe, output: Path, resume: bool) -> checkpoint.Found | None:
    """Refuse a folder in use and a recipe that is not the one that was begun; find where to go on."""
    if is_first_rank():
        check_output(output, resume)
    if not resume:
        return None
    began = output / RECIPE
    found = checkpoint.newest(output / CHECKPOINTS)
    if found.path is None:
        if found.skipped:
            raise UserError(f"--resume: no checkpoint in {output} can be used: {'; '.join(found.skipped)}")
        return found if yaml.safe_load(began.read_text()) == recipe.resolved() else None  # None: nothing is kept
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
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / LOCK).touch()
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error.strerror}; name another folder") from None
    with (output / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"--output {output} is being written by another process; wait for it, or stop it") from None
        yield


def _write_snapshot(recipe: Recipe, output: Path) -> None:
    """The resolved recipe, beside it the plugins that lay beside the recipe: together they are the recipe anew."""
    atomic.write_text(output / RECIPE, yaml.safe_dump(recipe.resolved(), sort_keys=False, width=110))
    for name in recipe.plugins:
        plugin = Path(sys.modules[name].__file__ or "")
        if plugin.parent in (recipe.source_path.parent, Path.cwd()) and plugin.parent != output.resolve():
            shutil.copy(plugin, output)


def _save_weights(trainer: Trainer, output: Path) -> None:
    """``weights/`` and, where an average is kept, ``weights_ema/``: each appears whole or not at all."""
    _save_policy(trainer, output / "weights")
    if trainer.ema is not None:
        with trainer.ema.swapped_in():
            _save_policy(trainer, output / "weights_ema")


def _save_policy(trainer: Trainer, folder: Path) -> None:
    with atomic.new_folder(folder) as temporary:
        trainer.policy.save_pretrained(temporary)


def _means(found: HeldOut) -> dict[str, float]:
    """The metrics of an evaluation: means over the prompts that have an answer."""
    answered = {name: [value for value in values if value == value] for name, values in found.scores.items()}
    return {f"test/{name}": fmean(values) if values else float("nan") for name, values in answered.items()}
