"""Seconds and memory of an iteration on GPUs that need not be here: counts of the plan times measured rates.

Ranks work in lockstep: what counts is the one with the most prompts and, in each update, the most decisions. A batch
costs its rows, filled up to ``rollout.max_batch`` where blocks are compiled.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from flowrl.data import rank_slice
from flowrl.errors import UserError
from flowrl.memory_prediction import PASSING, lora_parameters, memory_of
from flowrl.plan import Plan
from flowrl.policies.diffusers_policy import DiffusersConfig
from flowrl.policies.shape import PipelineShape
from flowrl.rates import Gpu, Rates, gpu, table
from flowrl.ready import ReadyQueue
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
    seconds, memory = work.seconds(), memory_of(work)
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


class Batch(NamedTuple):
    """Rows that run together, and how: exact, full or cached (of an approximation)."""

    kind: str
    rows: int


def batches(plan: Plan, prompts: int, max_batch: int) -> Iterator[Batch]:
    """The forwards of a rollout of so many prompts, as the engine packs them: the highest ready nodes first."""
    ready = ReadyQueue()
    for site in ((p, node) for p in range(prompts) for node in plan.roots if plan.children[node]):
        ready.push(site, kind=plan.kind[site[1]], height=plan.height[site[1]])
    while ready:
        batch = ready.pop(max_batch)
        yield Batch(plan.kind[batch[0][1]], len(batch))
        for p, node in batch:
            for child in plan.children[node]:
                if plan.children[child]:
                    ready.push((p, child), kind=plan.kind[child], height=plan.height[child])


class Work:
    """What the slowest of the GPUs does in an iteration, and holds."""

    def __init__(self, recipe: Recipe, rates: Rates, gpus: int, iteration: int) -> None:
        self.recipe, self.rates, self.gpus, self.iteration = recipe, rates, gpus, iteration
        self.model, self.shape = _sizes(recipe)
        self.plan = recipe.plan(iteration)
        self.prompts = len(rank_slice(recipe.rollout.prompts, 0, gpus).positions)
        self.flops = self.shape.flops_per_forward * self.model.evals_per_velocity / table()["reference"]["flops"]
        self.pixels = self.shape.height * self.shape.width / table()["reference"]["pixels"]
        self.sharded = gpus > 1 and self.model.lora is None and getattr(recipe.run, "parallel", "auto") != "ddp"
        self.compiled = getattr(self.model, "compile", "none") != "none"
        self.batches = list(batches(self.plan, self.prompts, recipe.rollout.max_batch))
        if (self.shape.flops_per_forward, self.shape.height) != (table()["reference"]["flops"], 720):
            rates.estimates["another model or size than FLUX.1-dev at 720x720: scaled by FLOPs and pixels"] = None

    @property
    def gpu(self) -> Gpu:
        return self.rates.gpu

    # ---- seconds

    def seconds(self) -> dict[str, float]:
        """By phase."""
        rollout = sum(self._forwards(kind) for kind in ("exact", "full", "cached")) / 1000
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
            found["score"] *= 1 - self.rates.guess("score_hidden")
        return found

    def _forwards(self, kind: str) -> float:
        """Milliseconds of the rollout's forwards of a kind."""
        rows = sum(self._padded(batch.rows) for batch in self.batches if batch.kind == kind)
        if not rows:
            return 0.0
        continuation = self.recipe.continuation
        fp8 = kind != "exact" and continuation.precision == "fp8"
        ms = rows * self.flops * self.rates.forward(compiled=self.compiled, fp8=fp8)
        if kind != "cached" or continuation.cache is None:
            return ms
        return ms * (1 - continuation.cache.share + self.rates.guess("cached_overhead"))

    def _padded(self, rows: int) -> int:
        """Compiled blocks know two batch sizes, 1 and the largest."""
        return rows if not self.compiled or rows == 1 else self.recipe.rollout.max_batch

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
        return ms * sum(len(rows) * rows[0] for rows in self.microbatches() if rows)

    @property
    def checkpointed(self) -> float:
        """The share of blocks that are recomputed; auto counts as all."""
        setting = self.model.gradient_checkpointing
        return 1.0 if isinstance(setting, str) else float(setting)

    def microbatches(self) -> list[list[int]]:
        """[updates] the rows of each microbatch, on the rank that has the most."""
        recipe, found = self.recipe, []
        world = range(self.gpus)
        partitions = [recipe.partition(self.plan, self.iteration, p) for p in range(recipe.rollout.prompts)]
        slices = [rank_slice(recipe.rollout.prompts, rank, self.gpus).positions for rank in world]
        for update in range(recipe.train.updates):
            counts = [len(decisions_of(self.plan, partition[update])) for partition in partitions]
            most = max(sum(counts[position] for position in positions) for positions in slices)
            size = min(most, most if isinstance(recipe.run.microbatch, str) else recipe.run.microbatch)
            found.append([size] * math.ceil(most / size) if size else [])
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
        num_microbatches = sum(map(len, self.microbatches()))
        return self.shape.num_parameters * (2 + num_microbatches * (2 * 2 + 4)) / a_second


def _sizes(recipe: Recipe) -> tuple[DiffusersConfig, PipelineShape]:
    model = recipe.model
    shape = model.shape() if isinstance(model, DiffusersConfig) else None
    if not isinstance(model, DiffusersConfig) or shape is None or shape.flops_per_forward < SMALLEST:
        name = recipe.model_name or recipe.model.kind
        raise UserError(
            f"no rates for the model {name!r}: they are of models of FLUX.1-dev's kind; try --model flux1_dev"
        )
    return model, shape
