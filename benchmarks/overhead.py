"""How much of an iteration is spent outside the policy's forwards and backwards.

    python benchmarks/overhead.py [RECIPE] [--iterations N] [--set KEY=VALUE ...]

Trains for a few iterations (the first is not counted) and prints seconds by phase: velocity of the rollout, forward
and backward of training, decoding, scoring, and the rest (engine, noise, credit, optimiser, logging, and waiting for
scores). With rollout.score_ahead scoring runs beside the rest and is not part of the sum.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import time
from typing import Any

import torch
from phases import Clock, synchronise

from flowrl.data import PromptOrder, load_prompts
from flowrl.recipe import load_recipe
from flowrl.trainer import Trainer


def measure(recipe_name: str, iterations: int, overrides: list[str]) -> None:
    recipe = load_recipe(recipe_name, overrides=[*overrides, f"run.iterations={iterations + 1}"])
    prompts = load_prompts(recipe.data.train)
    trainer = Trainer(recipe, PromptOrder(prompts, recipe.rollout.prompts, recipe.run.seed))
    clock = Clock(trainer.device)
    policy: Any = trainer.policy
    policy.velocity = clock.timed(lambda: "training forward" if torch.is_grad_enabled() else "rollout", policy.velocity)
    policy.decode = clock.timed(lambda: "decode", policy.decode)
    for scorer in trainer.scorers.values():
        scorer.score = clock.timed(lambda: "score", scorer.score)  # type: ignore[method-assign]
    trainer.learner = dataclasses.replace(
        trainer.learner, backward=clock.timed(lambda: "training backward", trainer.learner.backward)
    )
    policy.encode(trainer.order.reached(0, iterations + 1))
    trainer.iterate()
    clock.clear()
    began = time.perf_counter()
    for _ in range(iterations):
        metrics = trainer.iterate()
    synchronise(trainer.device)
    total = time.perf_counter() - began
    found = clock.seconds
    in_policy = sum(found[phase] for phase in ("rollout", "training forward", "training backward"))
    found["everything else"] = total - sum(found.values())
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    where = f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{recipe.name}, {iterations} iterations on {where}")
    for phase, seconds in sorted(found.items(), key=lambda item: -item[1]):
        print(f"{phase:18} {seconds / iterations:8.3f} s an iteration  {100 * seconds / total:5.1f} %")
    for phase, seconds in clock.beside.items():
        print(f"{phase:18} {seconds / iterations:8.3f} s an iteration, beside the rollout")
    print(f"{'all':18} {total / iterations:8.3f} s an iteration, {metrics['forwards']:,.0f} forwards")
    print(f"outside the policy's forwards and backwards: {100 * (1 - in_policy / total):.1f} %")
    in_policy += found["decode"]
    print(f"the same with the VAE's decoding counted as the policy's: {100 * (1 - in_policy / total):.1f} %")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="?", default="g2rpo")
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    measure(arguments.recipe, arguments.iterations, arguments.set)
