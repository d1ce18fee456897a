"""Seconds and memory of an iteration on GPUs that need not be here: counts of the plan times measured rates.

Ranks work in lockstep: what counts is the one with the most prompts and, in each update, the most decisions. A batch
costs its rows, filled up to ``rollout.max_batch`` where blocks are compiled.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, get_args

import torch

from flowrl.data import rank_slice
from flowrl.errors import UserError
from flowrl.memory_prediction import PASSING, block_bytes, held_of, lora_parameters, num_blocks, passing_of
from flowrl.packing import batch_sizes, num_padded, pack
from flowrl.plan import Kind
from flowrl.policies.blocks import is_compiled
from flowrl.policies.diffusers_policy import DiffusersConfig
from flowrl.policies.memory import RESERVE, TrainingPlan, is_large, plan_training, share_of
from flowrl.policies.shape import PipelineShape
from flowrl.rates import Gpu, Rates, gpu, table
from flowrl.recipe import Recipe
from flowrl.updates import decisions_of

SMALLEST = 1e12
"""FLOPs of a forward: below it kernels no longer fill a GPU, and the rates say nothing."""


@dataclass(frozen=True)
class Prediction:
    """Of one iteration, on the slowest rank. ``seconds`` and ``memory`` by what they are made of."""

    gpu: str
    gpus: int
    sharded: bool
    prompts_per_gpu: int
    seconds: dict[str, float]
    memory_gb: dict[str, float]
    memory_there_gb: float
    estimates: tuple[str, ...]
    """What of it is not measured on this GPU."""

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())

    @property
    def peak_gb(self) -> float:
        """What stays, and the largest of what comes and goes."""
        return sum(v for k, v in self.memory_gb.items() if k not in PASSING) + max(self.memory_gb[k] for k in PASSING)

    @property
    def fits(self) -> bool:
        return self.peak_gb <= self.memory_there_gb

    def plain(self) -> dict[str, Any]:
        """JSON values."""
        rounded = {k: {n: round(v, 3) for n, v in getattr(self, k).items()} for k in ("seconds", "memory_gb")}
        totals = {"total_seconds": round(self.total_seconds, 3), "peak_gb": round(self.peak_gb, 2), "fits": self.fits}
        return asdict(self) | rounded | totals | {"estimates": list(self.estimates)}


def predict(recipe: Recipe, *, gpu_name: str, gpus: int, iteration: int = 0) -> Prediction:
    """Raises UserError for a GPU or a model that there are no rates of, and for less than one GPU."""
    if gpus < 1:
        raise UserError(f"--gpus must be 1 or more, got {gpus}")
    work = Work(recipe, Rates(gpu(gpu_name)), gpus, iteration)
    seconds, memory = work.seconds(), held_of(work) | passing_of(work)
    return Prediction(
        gpu=gpu_name,
        gpus=gpus,
        sharded=work.sharded,
        prompts_per_gpu=work.prompts,
        seconds=seconds,
        memory_gb=memory,
        memory_there_gb=work.gpu.memory_gb,
        estimates=tuple(work.rates.estimates),
    )


class Work:
    """What the slowest of the GPUs does in an iteration, and holds."""

    def __init__(self, recipe: Recipe, rates: Rates, gpus: int, iteration: int) -> None:
        self.recipe, self.rates, self.gpus, self.iteration = recipe, rates, gpus, iteration
        self.model, self.shape = _sizes(recipe)
        self.plan = recipe.plan(iteration)
        self.prompts = len(rank_slice(recipe.rollout.prompts, 0, gpus).positions)
        self.flops = self.shape.flops_per_forward * self.model.evals_per_velocity / table()["reference"]["flops"]
        self.pixels = self.shape.height * self.shape.width / table()["reference"]["pixels"]
        large = is_large(self.model.num_trained(), 1e9 * self.gpu.memory_gb)
        is_asked_for = recipe.run.parallel == "fsdp" or (recipe.run.parallel == "auto" and large)
        self.sharded = gpus > 1 and self.model.lora is None and is_asked_for
        self.compiled = is_compiled(self.model.compile, torch.device("cuda"))
        self.packing = pack(self.plan, self.prompts, recipe.rollout.max_batch, in_turn=recipe.in_turn)
        if (self.shape.flops_per_forward, self.shape.height) != (table()["reference"]["flops"], 720):
            rates.estimates["another model or size than FLUX.1-dev at 720x720: scaled by FLOPs and pixels"] = None

    @property
    def gpu(self) -> Gpu:
        return self.rates.gpu

    # ---- seconds

    def seconds(self) -> dict[str, float]:
        """By phase."""
        rollout = sum(self._forwards(kind) for kind in get_args(Kind)) / 1000
        images = self.prompts * len(self.plan.leaves)
        found = {
            "rollout": rollout,
            "decode": images * self.rates.decode() * self.pixels / 1000,
            "score": images * self._score() / 1000,
            "train": self._training() / 1000,
            "optimiser": self._optimiser(),
            "communication": self._communication(),
            "engine": self.rates.guess("engine") * rollout,
        }
        if self.recipe.rollout.score_ahead:
            seen = 1 - self.rates.guess("score_hidden")
            found |= {phase: seen * found[phase] for phase in ("decode", "score")}
        return found

    def _forwards(self, kind: Kind) -> float:
        """Milliseconds of the rollout's forwards of a kind."""
        calls = [batch.rows for batch in self.packing.batches if batch.kind == kind]
        sizes = batch_sizes(self.packing.rows, self.prompts, self.recipe.rollout.max_batch)
        rows = sum(calls) + (num_padded(calls, sizes) if self.compiled else 0)
        if not rows:
            return 0.0
        continuation = self.recipe.continuation
        fp8 = kind != "exact" and continuation.precision == "fp8"
        ms = rows * self.flops * self.rates.forward(compiled=self.compiled, fp8=fp8)
        if kind != "cached" or continuation.cache is None:
            return ms
        return ms * (1 - continuation.cache.share + self.rates.guess("cached_overhead"))

    def _score(self) -> float:
        """Milliseconds an image, all rewards together."""
        total = 0.0
        for name, reward in self.recipe.rewards.items():
            ms = self.rates.score(reward.scorer.kind)
            if ms is None:
                self.rates.estimates[f"reward {name} ({reward.scorer.kind}): not counted, its rate is not known"] = None
            total += ms or 0.0
        return total

    def _training(self) -> float:
        """Milliseconds of the training forwards and backwards, reference forwards included."""
        lora = self.model.lora is not None
        ms = self.flops * self.rates.training(compiled=self.compiled, checkpointed=self.checkpointed, lora=lora)
        if self.recipe.loss.needs_reference:
            ms += self.flops * self.rates.forward(compiled=self.compiled)
        return ms * sum(self.microbatches())

    @cached_property
    def fitted(self) -> TrainingPlan:
        """Rows at once and blocks recomputed, as the trainer fits them to the memory."""
        asked, setting = self.recipe.run.microbatch, self.model.gradient_checkpointing
        blocks = block_bytes(self)
        held = sum(held_of(self).values())
        is_chosen = setting == "auto"
        return plan_training(
            blocks,
            budget=int(((1 - RESERVE) * self.gpu.memory_gb - held) * 1e9),
            num_rows=max(1, *self.rows()),
            microbatch=None if asked == "auto" else asked,
            checkpointed=None if is_chosen else math.ceil(share_of(setting) * len(blocks)),
            passes=self.model.training_passes - is_chosen,
        )

    @property
    def checkpointed(self) -> float:
        """The share of blocks that are recomputed."""
        return self.fitted.checkpointed / max(1, sum(num_blocks(self.shape)))

    def rows(self) -> list[int]:
        """[updates] decisions of the rank that has the most: each is a row of a training forward."""
        recipe, found = self.recipe, []
        partitions = [recipe.partition(self.plan, self.iteration, p) for p in range(recipe.rollout.prompts)]
        slices = [rank_slice(recipe.rollout.prompts, rank, self.gpus).positions for rank in range(self.gpus)]
        for update in range(recipe.train.updates):
            counts = [len(decisions_of(self.plan, partition[update])) for partition in partitions]
            found.append(max(sum(counts[position] for position in positions) for positions in slices))
        return found

    def microbatches(self) -> list[int]:
        """Rows of each training forward of the iteration; compiled blocks know one size."""
        size, found = self.fitted.microbatch, []
        for rows in self.rows():
            sizes = [min(size, rows - first) for first in range(0, rows, size)]
            found += [size] * len(sizes) if self.compiled else sizes
        return found

    @property
    def num_trained(self) -> int:
        """Parameters that are trained."""
        lora = self.model.lora
        return self.shape.num_parameters if lora is None else lora_parameters(self.shape, lora.rank, lora.targets)

    def _optimiser(self) -> float:
        """AdamW reads and writes 28 bytes a parameter, clipping and an average 8 each."""
        numbers = self.num_trained / (self.gpus if self.sharded else 1)
        moved = numbers * (28 + 8 * (self.recipe.optimizer.max_grad_norm is not None))
        moved += numbers * 8 * (self.recipe.optimizer.ema is not None)
        share = self.rates.guess("optimizer_share")
        return self.recipe.train.updates * moved / (self.gpu.memory_tb_s * 1e12 * share)

    def _communication(self) -> float:
        """DDP reduces fp32 gradients once an update. FSDP2 gathers bf16 weights once for the rollout, and for each
        microbatch twice, and reduces fp32 gradients after each."""
        if self.gpus == 1:
            return 0.0
        link = self.gpu.link_gb_s if self.gpus <= self.gpu.per_node else self.rates.guess("node_link_gb_s")
        a_second = link * 1e9 * self.rates.guess("link_share")
        if not self.sharded:
            return self.recipe.train.updates * 2 * 4 * self.num_trained / a_second
        return self.shape.num_parameters * (2 + len(self.microbatches()) * (2 * 2 + 4)) / a_second


def _sizes(recipe: Recipe) -> tuple[DiffusersConfig, PipelineShape]:
    model = recipe.model
    shape = model.shape() if isinstance(model, DiffusersConfig) else None
    if not isinstance(model, DiffusersConfig) or shape is None or shape.flops_per_forward < SMALLEST:
        name = recipe.model_name or recipe.model.kind
        raise UserError(
            f"no rates for the model {name!r}: they are of models of FLUX.1-dev's kind; try --model flux1_dev"
        )
    return model, shape
