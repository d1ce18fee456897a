"""What throughput.py measures on: a recipe on random weights, its trainer, and the device."""

from __future__ import annotations

import gc
import os
import platform
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from random_flux import Kept, RandomFlux, Size, scorer_source, write_skeleton

from flowrl.costs import Flops, iteration_cost
from flowrl.data import PromptOrder
from flowrl.prediction import predict
from flowrl.rates import table
from flowrl.recipe import Recipe, Reward, load_recipe
from flowrl.trainer import Trainer
from flowrl.types import Prompt

Line = dict[str, Any]


class Work(NamedTuple):
    """What a process measures on: sizes, where random weights lie, the recipe and what every line of it shares."""

    size: Size
    folder: Path
    recipe: str
    model: str
    scorers: Literal["full", "small"]
    lora: bool
    overrides: tuple[str, ...]
    world: int
    peak: float
    """TFLOP/s of matrix products, measured first."""

    @property
    def tune(self) -> str:
        return "lora" if self.lora else "full"

    def load(self, *overrides: str) -> Recipe:
        """The recipe with the shipped model fragment's values, on random weights."""
        size = self.size
        skeleton = write_skeleton(self.folder / f"skeleton_{size.pixels}_{os.environ.get('RANK', '0')}", size)
        own = [
            f"rollout.prompts={self.world}",
            f"model.source={skeleton}",
            f"model.height={size.pixels}",
            f"model.width={size.pixels}",
            f"model.text_tokens={size.text_tokens}",
            "model.lora={}" if self.lora else "model.lora=null",
            "run.self_check_bound=1.0",  # random weights amplify rounding; what it was is in the line
        ]
        recipe = load_recipe(
            self.recipe, model=self.model, overrides=[*own, *size.overrides, *self.overrides, *overrides]
        )
        rewards = {name: self._kept(reward) for name, reward in recipe.rewards.items()}
        return recipe.model_copy(update={"model": RandomFlux(**dict(recipe.model)), "rewards": rewards})

    def _kept(self, reward: Reward) -> Reward:
        source = scorer_source(reward.scorer.kind, self.scorers, self.folder)
        scorer = Kept(scorer=reward.scorer.model_copy(update={"source": source}))
        return reward.model_copy(update={"scorer": scorer})

    def trainer(self, recipe: Recipe) -> Trainer:
        prompts = [Prompt(f"a photograph of scene {i}", i) for i in range(max(64, self.world))]
        return Trainer(recipe, PromptOrder(prompts, recipe.rollout.prompts, recipe.run.seed))


def flops_of(recipe: Recipe) -> Flops:
    """Of the transformer, a prompt."""
    found = iteration_cost(recipe).flops
    assert found is not None, "the skeleton's sizes are known"
    return found


def predicted(recipe: Recipe, device_name: str, world: int) -> Line | None:
    """What ``flowrl plan`` says of the recipe on these GPUs; None for what it has no rates of."""
    known = [key for key, of_it in table()["gpus"].items() if of_it["name"].split()[1] in device_name.split()]
    if not known or "NVIDIA" not in device_name:
        return None
    found = predict(recipe, gpu_name=known[0], gpus=world)
    memory = found.peak_gb - found.memory_gb["CUDA and kernels"]  # which PyTorch does not count
    return {"seconds": found.total_seconds, "memory_gb": memory, "phases": found.seconds}


def is_first() -> bool:
    """Whether this is the process that prints and writes."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """A line at once, by the first process alone."""
    if is_first():
        print(text, flush=True)


# ---- the device


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} threads"


def peak_memory(device: torch.device) -> float | None:
    """GB, the text encoders not counted: they are never loaded."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None


def reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def free() -> None:
    """Give back what is no longer referred to, compiled code included: each line begins on an empty device."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
