"""The trainer: one iteration, from prompts to new parameters. All that changes during a run is held here.

The whole algorithm is :meth:`Trainer.iterate`. Axes: P prompts of the global batch, p of this rank, E actions,
L leaves, R rewards.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowrl import parallel
from flowrl.approximation import approximation_of
from flowrl.checkpoint import State, Writers
from flowrl.copies import Ema
from flowrl.credit import Rewards, num_skipped_groups
from flowrl.data import PromptOrder, RankSlice, rank_slice
from flowrl.engine import Rollout, execute
from flowrl.errors import RunFailed
from flowrl.fitting import fit_training
from flowrl.learner import Learner, Tally, sites_of
from flowrl.noise import Noise
from flowrl.packing import batch_sizes, pack
from flowrl.plan import Plan
from flowrl.protocols import Policy, Scorer, ScorerConfig
from flowrl.recipe import Recipe
from flowrl.scoring import Scoring
from flowrl.seeds import derive_seed
from flowrl.types import Cond, Prompt

SELF_CHECK_BOUND = {"fp32": 1e-3, "bf16": 5e-2}
"""Largest root mean square of (mean - rollout's mean) / std over the first update's actions, before any step.

The same transition computed twice in float32 differs by rounding, about 1e-5; in bfloat16 a forward is not
batch-invariant, and a velocity error of about 1 % reaches the mean times g sqrt(D), about 1e-2 of a std. A wrong
condition, an active dropout or an adapter that is off in one of the two shows as 1e-1 and more."""


@dataclass(frozen=True)
class Batch:
    """This rank's share of an iteration: its prompts, their places in the global batch and weights, conditions."""

    prompts: list[Prompt]
    mine: RankSlice
    cond: Cond


class Trainer:
    """Policy, optimiser, schedule and average of one run; ``iteration`` is the number of iterations done."""

    def __init__(self, recipe: Recipe, order: PromptOrder, *, answers: Path | None = None) -> None:
        """``answers``: the folder in which scorers keep what their judges say; None: only where a ``log`` says so."""
        self.recipe, self.order, self.answers = recipe, order, answers
        self.accelerator, sharding = parallel.start(
            recipe.run.parallel, recipe.run.precision, recipe.model.num_trained()
        )
        self.device = self.accelerator.device
        self.writers = Writers(self.accelerator.process_index, self.accelerator.num_processes, parallel.exchange)
        torch.manual_seed(derive_seed(recipe.run.seed, "initialisation"))  # LoRA factors
        self.policy: Policy = recipe.model.load(self.device)
        module = self.policy.module
        needs_reference = recipe.loss.needs_reference
        self.layout = parallel.lay_out(self.policy, self.accelerator, sharding, needs_reference=needs_reference)
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._loaded: list[tuple[ScorerConfig, Scorer]] = []
        self.scorers = {name: self.load_scorer(reward.scorer, name) for name, reward in recipe.rewards.items()}
        config = recipe.optimizer
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=self._fused,
        )
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._lr_factor)
        self.approximation = approximation_of(self.policy, recipe.continuation, recipe.run.precision)
        self.ema = None if config.ema is None else Ema(self.parameters, config.ema)
        self.learner = Learner(
            self.policy,
            recipe.kernel,
            recipe.loss,
            1 if recipe.run.microbatch == "auto" else recipe.run.microbatch,
            backward=self.accelerator.backward,
            no_sync=self.layout.no_sync,
            reference=self.layout.reference,
        )
        self._is_fitted = False
        """Whether the microbatch is settled: before the first update, when all else is in memory."""
        self.say: Callable[[str], None] = lambda line: None
        """Is told what was chosen for this machine."""
        if (speed := getattr(self.policy, "speed", None)) is not None:
            speed.say = lambda line: self.say(line)
            num_mine = len(rank_slice(recipe.rollout.prompts, 0, self.accelerator.num_processes).positions)
            most = recipe.rollout.max_batch
            packing = pack(recipe.plan(), num_mine, most, in_turn=recipe.in_turn)
            speed.expect(rollout=batch_sizes(packing.rows, num_mine, most), images=recipe.rollout.decode_batch)
        self.iteration = 0
        self.intact = True
        """Whether the parameters are those after ``iteration`` iterations, none of the next one's updates applied."""
        self._checked = False

    @property
    def _fused(self) -> bool | None:
        """Whether the optimiser is one kernel that makes no copies of the weights' size: on a GPU."""
        return True if self.device.type == "cuda" else None

    def load_scorer(self, config: ScorerConfig, name: str) -> Scorer:
        """The scorer, loaded once however many rewards and monitors share its config.

        What its judge says is kept by the ``name`` of the first of them, in a file of each process.
        """
        for known, scorer in self._loaded:
            if known == config:
                return scorer
        rank = self.accelerator.process_index
        file = f"{name}.jsonl" if rank == 0 else f"{name}.process_{rank}.jsonl"
        kept = config if self.answers is None else config.keeping_answers(self.answers / file)
        self._loaded.append((config, kept.load(self.device)))
        return self._loaded[-1][1]

    # ---- the algorithm

    def iterate(self, droppable: AbstractContextManager[None] | None = None) -> dict[str, float]:
        """One iteration: roll out, score, credit, update. Returns what is logged.

        Every rollout and every score precedes the first update. ``droppable`` is around them: an exception that it
        raises at their end, or that a signal raises inside, drops the iteration, of which nothing remains.
        """
        began = time.perf_counter()
        with self.layout.gathered(), droppable or nullcontext():
            plan = self.recipe.plan(self.iteration)
            batch = self._batch()
            rollout, scoring = self._roll_out(plan, batch)
        rewards, parts = self._gather(scoring)  # [P, L, R] of all ranks, in prompt order
        metrics = self._reward_metrics(plan, rewards) | parts
        advantage = self.recipe.advantage.per_action(rewards, plan)  # [P, E]
        rolled_out = time.perf_counter()
        metrics |= self._update(plan, batch, rollout, advantage[list(batch.mine.positions)])
        self.iteration += 1
        self.intact = True
        metrics["forwards"] = float(rollout.num_forwards * self.accelerator.num_processes)
        metrics["peak_states"] = float(rollout.peak_states)
        if self.approximation is not None:
            counts = rollout.forwards._asdict().items()
            metrics |= {f"forwards/{kind}": float(n * self.accelerator.num_processes) for kind, n in counts}
            metrics["peak_residual_bytes"] = float(rollout.peak_residual_bytes)
        metrics["advantage_abs"] = float(advantage.abs().mean())
        metrics["seconds/rollout"] = rolled_out - began
        metrics["seconds/train"] = time.perf_counter() - rolled_out
        metrics["seconds"] = time.perf_counter() - began
        return metrics

    def _batch(self) -> Batch:
        prompts = self.order[self.iteration]
        mine = rank_slice(len(prompts), self.accelerator.process_index, self.accelerator.num_processes)
        chosen = [prompts[position] for position in mine.positions]
        return Batch(chosen, mine, self.policy.encode(chosen))

    def _roll_out(self, plan: Plan, batch: Batch) -> tuple[Rollout, Scoring]:
        weights = {name: reward.weight for name, reward in self.recipe.rewards.items()}
        peers, ahead = self.recipe.advantage.peers, self.recipe.rollout.score_ahead
        with Scoring(self.policy, self.scorers, weights, batch.prompts, plan, peers, ahead=ahead) as scoring:
            rollout = execute(
                plan,
                self.policy,
                batch.cond,
                self.recipe.kernel,
                Noise(self.recipe.run.seed, self.iteration),
                positions=batch.mine.positions,
                on_leaves=scoring.add,
                device=self.device,
                max_batch=self.recipe.rollout.max_batch,
                leaf_batch=self.recipe.rollout.decode_batch,
                approximation=self.approximation,
                in_turn=self.recipe.in_turn,
            )
        return rollout, scoring

    def _update(self, plan: Plan, batch: Batch, rollout: Rollout, advantage: Tensor) -> dict[str, float]:
        """The iteration's optimiser steps; ``advantage`` [p, E] of this rank's prompts."""
        recipe, world = self.recipe, self.accelerator.num_processes
        partitions = self._partitions(plan)
        self.fit(plan, rollout.x, batch.cond)
        logged: list[dict[str, float]] = []
        checked: dict[str, float] = {}
        training_forwards = 0
        for update in range(recipe.train.updates):
            chosen = [partition[update] for partition in partitions]
            sites = sites_of(plan, [chosen[position] for position in batch.mine.positions], batch.mine.weights)
            num_sites = self._most_sites(plan, chosen)
            num_actions = sum(map(len, chosen))
            if not num_actions:  # a small fraction of few samples may leave an update without any
                continue
            tally = self.learner.accumulate(
                plan, rollout, batch.cond, advantage, sites, num_sites=num_sites, scale=world / num_actions
            )
            training_forwards += num_sites * world
            found = self._reduced(tally)
            checked |= self._self_check(found)
            found |= self._step(found["loss"])
            logged.append(found)
        total = {name: sum(found[name] for found in logged) for name in ("actions", "skipped_updates")}
        mean = {name: sum(found[name] for found in logged) / len(logged) for name in logged[0] if name not in total}
        worst = {name: max(found[name] for found in logged) for name in ("ratio_error", "mean_drift")}
        return mean | worst | total | checked | {"training_forwards": float(training_forwards)}

    def fit(self, plan: Plan, x: Tensor, cond: Cond) -> None:
        """Settle the microbatch and what is recomputed, for this iteration's updates of states like ``x`` [n, ...].

        Once, before the first update, when all else is in memory; all ranks call it.
        """
        if not self._is_fitted:
            num_rows = max(self._most_sites(plan, chosen) for chosen in zip(*self._partitions(plan), strict=True))
            self.learner = replace(self.learner, microbatch=fit_training(self, x, cond, num_rows))
            self._is_fitted = True

    def _partitions(self, plan: Plan) -> list[Any]:
        """Of each prompt of the global batch, the actions of each update."""
        return [self.recipe.partition(plan, self.iteration, i) for i in range(self.recipe.rollout.prompts)]

    def _most_sites(self, plan: Plan, chosen: Sequence[tuple[int, ...]]) -> int:
        """The largest number of decisions that a rank trains in this update; every rank knows all ranks' shares."""
        world = self.accelerator.num_processes
        counts = [len({plan.decision_of_action[e] for e in actions}) for actions in chosen]
        slices = [rank_slice(len(chosen), rank, world).positions for rank in range(world)]
        return max(sum(counts[position] for position in positions) for positions in slices)

    def _step(self, loss: float) -> dict[str, float]:
        """Clip, step, schedule, average; a gradient that is not finite never reaches the weights."""
        limit = self.recipe.optimizer.max_grad_norm
        norm = self.accelerator.clip_grad_norm_(list(self.parameters.values()), math.inf if limit is None else limit)
        norm = parallel.scalar(norm)
        lr = self.optimizer.param_groups[0]["lr"]
        finite = math.isfinite(norm) and math.isfinite(loss)
        if not finite and self.recipe.run.non_finite == "fail":
            raise RunFailed(
                f"iteration {self.iteration + 1}: the loss is {loss} and the gradient norm {norm}; the update was not "
                "applied. run.non_finite: skip_group skips such updates; a lower optimizer.lr may avoid them"
            )
        if finite:
            self.intact = False
            self.optimizer.step()
            if self.ema is not None:
                self.ema.update()
            self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"grad_norm": norm, "lr": lr, "skipped_updates": float(not finite)}

    # ---- what is logged

    def _gather(self, scoring: Scoring) -> tuple[Rewards, dict[str, float]]:
        """All ranks' rewards in prompt order, the padding dropped, and the means of what the rewards are made of."""
        local = scoring.rewards()
        tables = [local.values, local.valid.double(), *(part[..., None] for part in scoring.parts.values())]
        everything = torch.cat(tables, -1).to(self.device)  # [p, L, R + R + parts]
        if self.accelerator.num_processes > 1:
            everything = self.accelerator.gather(everything)[: self.recipe.rollout.prompts]
        count = len(local.names)
        values, valid, parts = everything.cpu().split([count, count, len(scoring.parts)], -1)
        means = dict(zip(scoring.parts, parts.flatten(0, 1).nanmean(0).tolist(), strict=True))
        return Rewards(values, valid > 0.5, local.names, local.weights), means

    def _reward_metrics(self, plan: Plan, rewards: Rewards) -> dict[str, float]:
        skipped = num_skipped_groups(rewards, plan, self.recipe.advantage.peers)
        if skipped and self.recipe.run.non_finite == "fail":
            p, leaf, r = (int(i) for i in (~rewards.valid).nonzero()[0])
            raise RunFailed(
                f"iteration {self.iteration + 1}: reward {rewards.names[r]!r} has no valid value for leaf {leaf} of "
                f"{self.order[self.iteration][p].text!r} ({skipped} groups affected): it is not finite, or the scorer "
                "cannot judge this prompt; the weights are as they were. run.non_finite: skip_group leaves such groups "
                "out"
            )
        usable = rewards.valid.double()
        of_each = (rewards.values * usable).sum((0, 1)) / usable.sum((0, 1)).clamp(min=1)
        metrics = {f"reward/{name}": float(value) for name, value in zip(rewards.names, of_each, strict=True)}
        metrics |= {f"coverage/{name}": float(c) for name, c in zip(rewards.names, usable.mean((0, 1)), strict=True)}
        metrics["reward"] = float((of_each * torch.tensor(rewards.weights, dtype=torch.float64)).sum())
        metrics["reward_std"] = float(rewards.values.std(1)[rewards.valid.all(1)].mean())
        return metrics | {"skipped_groups": float(skipped)}

    def _reduced(self, tally: Tally) -> dict[str, float]:
        """Means over the update's actions of all ranks, and maxima."""
        sums = self.accelerator.reduce(torch.stack(list(tally.sums.values())), "sum").tolist()
        maxima = self.accelerator.gather(torch.stack(list(tally.maxima.values()))[None]).amax(0).tolist()
        found = dict(zip(tally.sums, sums, strict=True))
        count = max(found.pop("actions"), 1.0)
        means = {name: value / count for name, value in found.items()}
        return means | {"actions": count} | dict(zip(tally.maxima, maxima, strict=True))

    def _self_check(self, found: Mapping[str, float]) -> dict[str, float]:
        """Before the first step the training forward must repeat the rollout's transitions: the ratio starts at 1."""
        if self._checked:
            return {}
        self._checked = True
        bound = self.recipe.run.self_check_bound or SELF_CHECK_BOUND[self.recipe.run.precision]
        drift = found["mean_drift"]
        if not drift <= bound:
            raise RunFailed(
                f"self-check: before the first update the training forward differs from the rollout by {drift:.3g} "
                f"standard deviations (bound {bound:g} for {self.recipe.run.precision}; largest |ratio - 1| "
                f"{found['ratio_error']:.3g}), so the importance ratio would not start at 1. Usual causes: a module in "
                "train mode that changes its output (dropout), conditions or adapters that differ between rollout and "
                "training, a lower precision in one of the two. run.self_check_bound sets another bound"
            )
        return {"self_check": drift}

    def _lr_factor(self, step: int) -> float:
        """Linear warm-up, then constant, linear to 0 or half a cosine to 0, over the run's optimiser steps."""
        config = self.recipe.optimizer
        if step < config.warmup:
            return (step + 1) / config.warmup
        if config.schedule == "constant":
            return 1.0
        total = self.recipe.run.iterations * self.recipe.train.updates
        done = min((step - config.warmup) / max(total - config.warmup, 1), 1.0)
        return 1.0 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))

    # ---- state

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the policy's parameters are their average where one is kept: what a run evaluates as its result."""
        return nullcontext() if self.ema is None else self.ema.swapped_in()

    def state(self) -> State:
        """Everything that the rest of the run depends on."""
        return State(
            iteration=self.iteration,
            seed=self.recipe.run.seed,
            parameters={name: p.detach() for name, p in self.parameters.items()},
            ema=None if self.ema is None else self.ema.values,
            optimizer=self.optimizer.state_dict(),
            scheduler=self.scheduler.state_dict(),
            recipe=self.recipe.resolved(),
            digest=self.recipe.digest(),
        )

    def export(self, save: Callable[[], object]) -> None:
        """Call ``save`` in the main process, where ``policy.save_pretrained`` finds whole weights meanwhile.

        All processes call it. Raises OSError, in all of them alike, where ``save`` does.
        """
        with self.layout.whole():
            self.writers.first_does(save)

    @torch.no_grad()
    def restore(self, state: State) -> None:
        """Continue where a checkpoint was written, of which each process has its part, or all."""
        for name, parameter in self.parameters.items():
            parameter.copy_(state.parameters[name])
        if self.ema is not None and state.ema is not None:
            for name, average in self.ema.values.items():
                average.copy_(state.ema[name])
        groups = [group | {"fused": self._fused} for group in state.optimizer["param_groups"]]  # may be of elsewhere
        self.optimizer.load_state_dict({**state.optimizer, "param_groups": groups})
        self.scheduler.load_state_dict(dict(state.scheduler))
        self.iteration = state.iteration
