"""What the build's last stage measures: gold score, judge after the VAE, judge against auditor."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flowrl.seeds import derive_seed
from flowrl.types import Prompt
from flowrl.worlds.shapes.auditor import Auditor
from flowrl.worlds.shapes.autoencoder import round_trip
from flowrl.worlds.shapes.corruption import corrupt
from flowrl.worlds.shapes.grammar import sample_item
from flowrl.worlds.shapes.judge import judge
from flowrl.worlds.shapes.prompts import test_prompts, testpoints_of
from flowrl.worlds.shapes.render import render
from flowrl.worlds.shapes.sampling import draw
from flowrl.worlds.shapes.scene import Scene, Testpoint
from flowrl.worlds.shapes.settings import Settings
from flowrl.worlds.shapes.truth import degrees

STEPS = (16, 28)


def measure(folder: Path, auditor: Auditor, settings: Settings, device: torch.device, output: Path) -> dict[str, Any]:
    """All measurements of a packaged pipeline; pictures of disagreements and samples go to ``output``."""
    from diffusers import FluxPipeline

    pipeline = FluxPipeline.from_pretrained(folder).to(device)
    prompts = test_prompts()[: settings.num_prompts]
    result: dict[str, Any] = {"gold": {}}
    for steps in STEPS:
        images = draw(pipeline, [prompt.text for prompt in prompts], steps=steps, seed=settings.seed)
        result["gold"][str(steps)] = gold(images, prompts)
        save_grid(images[:64], output / f"samples_{steps}_steps.png")
    result["judge_after_vae"] = judge_after_vae(pipeline.vae, settings.num_prompts, settings.seed, device)
    result["auditor"] = audit(pipeline, auditor, prompts, settings, output)
    return result


def gold(images: Tensor, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Mean over prompts of the fraction of testpoints satisfied, overall and per dimension, and the mean quality."""
    verdict = judge(images, [testpoints_of(prompt) for prompt in prompts])
    fractions = [float(np.mean(row)) for row in verdict.satisfied]
    by_dimension: dict[str, list[float]] = defaultdict(list)
    for prompt, fraction in zip(prompts, fractions, strict=True):
        by_dimension[prompt.meta["dimension"]].append(fraction)
    return {
        "overall": round(float(np.mean(fractions)), 4),
        "quality": round(float(verdict.quality.mean()), 4),
        "per_dimension": {name: round(float(np.mean(values)), 4) for name, values in sorted(by_dimension.items())},
    }


def judge_after_vae(vae: Any, count: int, seed: int, device: torch.device) -> dict[str, float]:
    """How often the judge is right about pictures that went through the VAE: true scenes, and scenes that break one
    testpoint, asked about that testpoint."""
    pictures, asked, truths = [], [], []
    for index in range(count):
        rng = random.Random(derive_seed(seed, "after vae", index))
        item = sample_item(rng)
        for scene in (item.scene, corrupt(item, rng)):
            pictures.append(render(scene, np.random.default_rng(derive_seed(seed, "render after vae", index))))
            asked.append(item.testpoints)
            truths.append([degree > 0.5 for degree in degrees(scene, item.testpoints)])
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    verdicts = {"clean": judge(images, asked), "after_vae": judge(round_trip(vae, images.to(device)).cpu(), asked)}
    return {name: _share_equal(verdict.satisfied, truths) for name, verdict in verdicts.items()}


def _share_equal(answers: Sequence[Sequence[float]], truths: Sequence[Sequence[bool]]) -> float:
    equal = [bool(a) == t for row, true in zip(answers, truths, strict=True) for a, t in zip(row, true, strict=True)]
    return round(float(np.mean(equal)), 4)


def audit(
    pipeline: Any, auditor: Auditor, prompts: Sequence[Prompt], settings: Settings, output: Path
) -> dict[str, Any]:
    """Agreement of judge and auditor, per testpoint, on samples of the base model; disagreements are drawn."""
    rounds = -(-settings.num_audited // len(prompts))
    asked = (list(prompts) * rounds)[: settings.num_audited]
    images = draw(pipeline, [prompt.text for prompt in asked], steps=STEPS[0], seed=settings.seed + 1)
    verdict = judge(images, [testpoints_of(prompt) for prompt in asked])
    scenes = auditor.scenes(images)
    table: dict[str, Counter[str]] = defaultdict(Counter)
    disputed: list[tuple[int, Testpoint, bool]] = []
    for n, (prompt, scene, answers) in enumerate(zip(asked, scenes, verdict.satisfied, strict=True)):
        testpoints = testpoints_of(prompt)
        for testpoint, answer, seen in zip(testpoints, answers, _holds(scene, testpoints), strict=True):
            table[str(testpoint.check["kind"])][f"judge {_word(answer)}, auditor {_word(seen)}"] += 1
            if bool(answer) != seen:
                disputed.append((n, testpoint, bool(answer)))
    total = Counter[str]()
    for counts in table.values():
        total.update(counts)
    agreed = total["judge yes, auditor yes"] + total["judge no, auditor no"]
    shown = disputed[:: max(1, len(disputed) // 24)][:24]
    if shown:
        save_grid(images[[n for n, _, _ in shown]], output / "disagreements.png", columns=6)
    return {
        "samples": len(asked),
        "testpoints": total.total(),
        "agreement": round(agreed / total.total(), 4),
        "per_kind": {kind: dict(sorted(counts.items())) for kind, counts in sorted(table.items())},
        "disagreements_shown": [
            {
                "prompt": asked[n].text,
                "testpoint": point.description,
                "judge": _word(answer),
                "seen": scenes[n].to_json(),
            }
            for n, point, answer in shown
        ],
    }


def _holds(scene: Scene, testpoints: Sequence[Testpoint]) -> list[bool]:
    return [degree > 0.5 for degree in degrees(scene, testpoints)]


def _word(answer: float | bool) -> str:
    return "yes" if answer else "no"


def save_grid(images: Tensor, path: Path, columns: int = 8, scale: int = 2) -> None:
    """One PNG of images [B, 3, H, W] in 0..1, row by row, with a thin border."""
    from torchvision.utils import make_grid

    big = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    grid = make_grid(big, nrow=columns, padding=4, pad_value=0.75)
    pixels = (grid.permute(1, 2, 0).clamp(0, 1) * 255).round().byte().numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
