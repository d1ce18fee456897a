"""A run: the output folder, the loop around the trainer, resuming, and the summary at the end.

OUTPUT/recipe.yaml            the resolved recipe, a valid recipe itself
       metrics.jsonl, .csv    a row per iteration        curves.png
       tensorboard/           and other trackers
       checkpoints/           to resume from
       scorers.json           what each reward and monitor is
       evaluation/            held-out scores per prompt: before, after and during; the pictures' images
       before_after.png       the same prompts and noise before and after
       weights/, weights_ema/ what plain diffusers loads; weights_best/, the best by a monitor
       summary.json
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch

from flowrl import atomic, checkpoint, parallel
from flowrl.agreement import Agreement
from flowrl.data import PromptOrder, check_disjoint, load_prompts
from flowrl.errors import RunFailed, UserError, all_of
from flowrl.heldout import HeldOut, evaluate
from flowrl.interrupt import DropIteration, Interrupt
from flowrl.launch import is_launched
from flowrl.monitors import Best, Hacking, is_better, keep_if_best, read_best, reward_hacking
from flowrl.output import RECIPE, locked
from flowrl.pictures import BeforeAfter, curves, grid, sample_grid
from flowrl.progress import Progress
from flowrl.protocols import Scorer
from flowrl.recipe import Recipe
from flowrl.run_folder import CHECKPOINTS, SUMMARY, prepare, save_weights, write_identities, write_snapshot
from flowrl.summary import Summary, changes, device_name, plain
from flowrl.tracking import Tracking, make_row, read_rows
from flowrl.trainer import Trainer
from flowrl.types import Prompt


def train(
    recipe: Recipe,
    *,
    output: Path,
    resume: bool = False,
    stop_after: int | None = None,
    grace: float | None = None,
    pictures: bool = True,
) -> Summary:
    """Train by a recipe into ``output``.

    ``resume`` continues from the newest good checkpoint there. ``stop_after`` ends after that many iterations in
    all, as if interrupted. ``grace``: seconds that a signal leaves the iteration in flight (None: all it needs).
    ``pictures``: whether curves.png and before_after.png are drawn at the end.
    Raises UserError for mistakes in what was asked, RunFailed where the run cannot go on.
    """
    if stop_after is not None and stop_after < 1:
        raise UserError(f"--stop-after must be 1 or more iterations, got {stop_after}")
    with ExitStack() as stack:
        watch = stack.enter_context(parallel.join())  # first: what fails from here on in one process ends all
        all_of(recipe.model.check, recipe.check_scorers)
        train_prompts = load_prompts(recipe.data.train)
        test_prompts = _test_prompts(recipe)
        check_disjoint(train_prompts, test_prompts)
        found = prepare(recipe, output, resume)
        trainer = Trainer(recipe, PromptOrder(train_prompts, recipe.rollout.prompts, recipe.run.seed))
        is_main = trainer.accelerator.is_main_process
        if is_main:
            stack.enter_context(locked(output))
        interrupt = stack.enter_context(Interrupt(grace, say=None if is_main else lambda line: None))
        with watch.telling():
            return _Session(trainer, output, test_prompts, interrupt, stack, pictures).run(found, stop_after)


class _Session:
    """One process's part in a run, from its start or resumption to its end."""

    def __init__(
        self,
        trainer: Trainer,
        output: Path,
        test_prompts: list[Prompt],
        interrupt: Interrupt,
        stack: ExitStack,
        pictures: bool,
    ) -> None:
        self.trainer, self.output, self.test_prompts = trainer, output, test_prompts
        self.interrupt, self.stack, self.pictures = interrupt, stack, pictures
        self.recipe = trainer.recipe
        self.is_main = trainer.accelerator.is_main_process
        self.agreement = Agreement()
        self.saved = 0
        """The iteration after which the newest checkpoint was written."""
        self.hacking: Hacking | None = None
        """What the run ends early for; known to the main process."""
        self.is_over = False
        """Whether it ends early; known to all."""
        self.identities: dict[str, dict[str, Any]] = {}
        """Of the scorers; known to the main process."""
        self.scorers: dict[str, Scorer] = {}
        if test_prompts:
            self.scorers = {name: trainer.load_scorer(s) for name, s in self.recipe.evaluation.scorers.items()}

    def run(self, found: checkpoint.Found | None, stop_after: int | None) -> Summary:
        """Begin or go on, to the end or until asked to stop."""
        try:
            self._start(found)
            self._loop(min(self.recipe.run.iterations, stop_after or self.recipe.run.iterations))
            if self.trainer.iteration >= self.recipe.run.iterations or self.is_over:
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
            trainer.restore(checkpoint.load(found.path, trainer.parameters))
        self.saved = trainer.iteration
        self.progress = self.stack.enter_context(
            Progress(recipe.run.iterations, trainer.iteration, enabled=self.is_main)
        )
        trainer.say = self.progress.note
        for skipped in found.skipped if found else ():
            self.progress.note(f"skipped checkpoint {skipped}")
        if found is not None:
            self.progress.note(f"resuming after iteration {trainer.iteration}")
        if self.is_main:
            if found is None:
                shutil.rmtree(self.output / "evaluation", ignore_errors=True)  # of a run that ended before it began
            atomic.remove_leftovers(self.output)
            self.identities = {
                section: {name: scorer.identity() for name, scorer in scorers.items()}
                for section, scorers in recipe.scorers().items()
            }
            write_identities(self.identities, self.output, resumed=trainer.iteration > 0)
            write_snapshot(recipe, self.output)
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
        if trainer.iteration:
            self._catch_up()
        while trainer.iteration < stop and not self.is_over and not self._agreed(self.interrupt.requested):
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

    def _agreed(self, wanted: bool) -> bool:
        """Whether a rank wants it: all of them then do the same."""
        flag = torch.tensor([float(wanted)], device=self.trainer.device)
        return bool(self.trainer.accelerator.reduce(flag, "sum") > 0)

    def _monitor(self) -> None:
        """The held-out evaluation and the sample grid, where one is due. A checkpoint that is due precedes them."""
        iteration, run = self.trainer.iteration, self.recipe.run
        if self._is_evaluated(iteration):
            self._evaluate()
        if run.sample_every and iteration % run.sample_every == 0 and self.test_prompts:
            self._draw_samples(iteration)

    def _is_evaluated(self, iteration: int) -> bool:
        """Whether an evaluation during training follows this iteration."""
        every = self.recipe.evaluation.every
        return bool(every and iteration % every == 0 and iteration < self.recipe.run.iterations and self.scorers)

    def _catch_up(self) -> None:
        """Where a run goes on: the evaluation that it was stopped before or in, and whether it had ended early."""
        iteration = self.trainer.iteration
        if self._is_evaluated(iteration) and not self._is_logged([f"test/{name}" for name in self.scorers]):
            self._evaluate()
        else:
            self._judge_run()

    def _is_logged(self, names: Iterable[str]) -> bool:
        """Whether the iteration that is done has a row with these metrics."""
        rows = read_rows(self.output) if self.is_main else []
        return self._agreed(any(r["iteration"] == self.trainer.iteration and set(names) <= r.keys() for r in rows))

    def _judge_run(self, means: Mapping[str, float] | None = None) -> None:
        """Whether the run ends early, by its rows and an evaluation that is not among them yet."""
        rule = self.recipe.evaluation.stop
        if rule is None or not self.scorers:
            return
        if self.is_main:
            new = [] if means is None else [make_row(self.trainer.iteration, means)]
            self.hacking = reward_hacking([*read_rows(self.output), *new], **rule.model_dump())
            if self.hacking is not None:
                self.progress.note(str(self.hacking))
        self.is_over = self._agreed(self.hacking is not None)

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
        trainer, keep = self.trainer, self.recipe.run.keep_checkpoints
        try:
            checkpoint.save(self.output / CHECKPOINTS, trainer.state(), keep=keep, writers=trainer.writers)
        except OSError as error:
            raise RunFailed(f"the state after iteration {trainer.iteration} cannot be written: {error}") from error
        self.saved = trainer.iteration

    def _save_if_newer(self) -> None:
        if self.trainer.iteration > self.saved:
            self._save()

    def _how_to_resume(self) -> str:
        processes = self.trainer.accelerator.num_processes
        command = ["flowrl", "train", str(self.output / RECIPE), "--output", str(self.output), "--resume"]
        command += ["--processes", str(processes)] if is_launched() else []
        kept = f"State after iteration {self.saved} is kept" if self.saved else "No iteration was finished"
        how = "go on with" if is_launched() or processes == 1 else "go on, by the same launcher, with"
        return f"{kept}; {how}: {shlex.join(command)}"

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

    def _evaluate(self, when: Literal["before", "after"] | None = None) -> None:
        """Judge the held-out prompts, log it, keep the weights if they are the best, and see whether to go on.

        All scores are kept by prompt, and of the evaluations before and after training some images.
        """
        iteration, num_images = self.trainer.iteration, 0 if when is None else self.recipe.run.num_samples
        when_text = f"after iteration {iteration}" if when is None else f"{when} training"
        self.progress.stage(f"evaluating {len(self.test_prompts)} held-out prompts, {when_text}")
        name = when or f"evaluation {iteration}"
        found = self._draw(self.test_prompts, name, num_images=num_images, at_once=when is not None)
        means = _means(found)
        scores = ", ".join(f"{name.removeprefix('test/')} {value:.4f}" for name, value in means.items())
        self.progress.note(f"held-out, {when_text}: {scores}")
        if self.is_main:
            self._keep_scores(found, when or f"iteration_{iteration:06d}")
        self._keep_best(means)
        if self._is_logged(means):
            return  # a finished run that is resumed has it already
        self._judge_run(means)
        verdict = {} if self.recipe.evaluation.stop is None else {"early_stop": float(self.is_over)}
        self.tracking.log(iteration, means | verdict)

    def _keep_scores(self, found: HeldOut, when: str) -> None:
        folder = self.output / "evaluation"
        folder.mkdir(exist_ok=True)
        if found.images:
            torch.save(found.images, folder / f"{when}.pt")
        indices = [prompt.index for prompt in self.test_prompts]
        answers = {name: [None if v != v else v for v in values] for name, values in found.scores.items()}
        atomic.write_json(folder / f"{when}.json", {"index": indices, "scores": answers})

    def _keep_best(self, means: Mapping[str, float]) -> None:
        """The weights that were evaluated, where they are the best so far by ``evaluation.keep_best``."""
        monitor = self.recipe.evaluation.keep_best
        if monitor is None:
            return
        trainer = self.trainer
        candidate = Best(monitor, trainer.iteration, means[f"test/{monitor}"])
        if not self._agreed(self.is_main and is_better(candidate, self.output)):
            return
        try:
            with trainer.averaged():
                trainer.export(lambda: keep_if_best(self.output, candidate, trainer.policy.save_pretrained))
        except OSError as error:
            raise RunFailed(f"the weights after iteration {candidate.iteration} cannot be written: {error}") from error

    def _finish(self) -> Summary:
        trainer = self.trainer
        try:
            save_weights(trainer, self.output)
        except OSError as error:
            raise RunFailed(f"the weights after iteration {trainer.iteration} cannot be written: {error}") from error
        if self.scorers:
            self._evaluate("after")
        if self.is_main and self.pictures:
            best, marks = read_best(self.output), {}
            if best is not None:
                marks[best.iteration] = "best"
            if self.hacking is not None:
                marks[self.hacking.iteration] = "end"
            curves(read_rows(self.output), self.output / "curves.png", marks)
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
            best=read_best(self.output) if self.is_main else None,
            hacking=self.hacking,
            scorers=self.identities,
            **total,
        )


def _test_prompts(recipe: Recipe) -> list[Prompt]:
    if recipe.data.test is None:
        return []
    return load_prompts(recipe.data.test)[: recipe.evaluation.limit]


def _means(found: HeldOut) -> dict[str, float]:
    """The metrics of an evaluation: means over the prompts that have an answer."""
    answered = {name: [value for value in values if value == value] for name, values in found.scores.items()}
    return {f"test/{name}": fmean(values) if values else float("nan") for name, values in answered.items()}
