"""What the build's last stage measures: gold score, judge after the VAE, judge against auditor.

python -m flowrl.worlds.shapes.measure [--steps 8 16 28] [--prompts 400] [--audited 2000] [--output DIR]
"""

from __future__ import annotations

import argparse
import json
import random
import textwrap
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flowrl import atomic
from flowrl.seeds import derive_seed
from flowrl.types import Prompt
from flowrl.worlds.shapes.auditor import WEIGHTS, Auditor, load_auditor
from flowrl.worlds.shapes.autoencoder import round_trip
from flowrl.worlds.shapes.corruption import corrupt
from flowrl.worlds.shapes.gallery import PIPELINE, pixels_of
from flowrl.worlds.shapes.grammar import sample_item
from flowrl.worlds.shapes.judge import judge
from flowrl.worlds.shapes.prompts import test_prompts, testpoints_of, train_prompts
from flowrl.worlds.shapes.render import render
from flowrl.worlds.shapes.sampling import draw
from flowrl.worlds.shapes.scene import Testpoint
from flowrl.worlds.shapes.truth import degrees

STEPS = (8, 16, 28)
AUDITED_STEPS = 28  # what FluxPipeline draws in unless told otherwise
SHOWN = 24  # disagreements


def measure(
    folder: Path,
    auditor: Auditor,
    *,
    num_prompts: int,
    num_audited: int,
    device: torch.device,
    output: Path,
    steps: Sequence[int] = STEPS,
    audited_steps: int = AUDITED_STEPS,
    seed: int = 0,
) -> dict[str, Any]:
    """All measurements of a packaged pipeline; pictures of samples and disagreements go to ``output``."""
    from diffusers import FluxPipeline

    pipeline = FluxPipeline.from_pretrained(folder).to(device)
    prompts = test_prompts()[:num_prompts]
    result: dict[str, Any] = {"gold": {}}
    for number in steps:
        images = draw(pipeline, [prompt.text for prompt in prompts], steps=number, seed=seed)
        result["gold"][str(number)] = gold(images, prompts)
        save_grid(images[:64], output / f"samples_{number}_steps.png")
    result["judge_after_vae"] = judge_after_vae(pipeline.vae, num_prompts, seed, device)
    if num_audited:
        held_out, trained = audited_prompts(num_audited)
        asked = held_out + trained
        images = draw(pipeline, [prompt.text for prompt in asked], steps=audited_steps, seed=seed + 1)
        found = audit(auditor, images, asked, output, num_held_out=len(held_out))
        result["auditor"] = {"steps": audited_steps, **found}
    return result


def audited_prompts(count: int) -> tuple[list[Prompt], list[Prompt]]:
    """So many different prompts: a fifth of them, at most all, of the held-out split; the others of the training split,
    evenly spaced."""
    held_out = test_prompts()[: -(-count // 5)]
    train = train_prompts()
    wanted = count - len(held_out)
    return list(held_out), list(train[:: max(1, len(train) // max(1, wanted))][:wanted])


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


class Disagreement(NamedTuple):
    """A testpoint of a sample on which the judge says ``answer`` and the auditor the opposite."""

    sample: int
    testpoint: Testpoint
    answer: bool


def audit(
    auditor: Auditor, images: Tensor, prompts: Sequence[Prompt], output: Path, *, num_held_out: int = 0
) -> dict[str, Any]:
    """Agreement of judge and auditor, per testpoint, on images of the prompts; disagreements are drawn.

    What they agree on in the first ``num_held_out`` images stands apart under ``held_out``.
    """
    verdict = judge(images, [testpoints_of(prompt) for prompt in prompts])
    scenes = auditor.scenes(images)
    table: dict[str, Counter[str]] = defaultdict(Counter)
    agreed: list[list[bool]] = []  # by sample and testpoint
    disputed: list[Disagreement] = []
    for n, (prompt, scene, answers) in enumerate(zip(prompts, scenes, verdict.satisfied, strict=True)):
        testpoints = testpoints_of(prompt)
        agreed.append([])
        for testpoint, answer, degree in zip(testpoints, answers, degrees(scene, testpoints), strict=True):
            seen = degree > 0.5
            table[str(testpoint.check["kind"])][f"judge {_word(answer)}, auditor {_word(seen)}"] += 1
            agreed[n].append(bool(answer) == seen)
            if not agreed[n][-1]:
                disputed.append(Disagreement(n, testpoint, bool(answer)))
    shown = disputed[:: max(1, len(disputed) // SHOWN)][:SHOWN]
    if shown:
        save_disagreements(images, prompts, shown, output / "disagreements.png")
    return {
        **_agreement(agreed),
        **({"held_out": _agreement(agreed[:num_held_out])} if num_held_out else {}),
        "per_kind": {kind: dict(sorted(counts.items())) for kind, counts in sorted(table.items())},
        "disagreements_shown": [
            {
                "prompt": prompts[n].text,
                "testpoint": testpoint.description,
                "judge": _word(answer),
                "auditor sees": scenes[n].to_json(),
            }
            for n, testpoint, answer in shown
        ],
    }


def _agreement(agreed: Sequence[Sequence[bool]]) -> dict[str, Any]:
    of_all = [one for row in agreed for one in row]
    return {"samples": len(agreed), "testpoints": len(of_all), "agreement": round(float(np.mean(of_all)), 4)}


def _word(answer: float | bool) -> str:
    return "yes" if answer else "no"


def save_grid(images: Tensor, path: Path, columns: int = 8, scale: int = 2) -> None:
    """One PNG of images [B, 3, H, W] in 0..1, row by row, with a thin border."""
    from torchvision.utils import make_grid

    big = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    grid = make_grid(big, nrow=columns, padding=4, pad_value=0.75)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels_of(grid)).save(path)


def save_disagreements(
    images: Tensor, prompts: Sequence[Prompt], shown: Sequence[Disagreement], path: Path, columns: int = 6
) -> None:
    """One PNG of the disputed images; under each the prompt, the testpoint and the two answers."""
    from matplotlib.figure import Figure

    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(2.1 * columns, 2.75 * rows), dpi=72, layout="constrained")
    for place in range(rows * columns):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.axis("off")
        if place < len(shown):
            sample, testpoint, answer = shown[place]
            axes.imshow(pixels_of(images[sample]))
            lines = textwrap.wrap(prompts[sample].text, 34) + textwrap.wrap(f"{testpoint.description}?", 34)
            lines.append(f"judge {_word(answer)}, auditor {_word(not answer)}")
            axes.set_title("\n".join(lines), fontsize=7.5, y=-0.05, va="top")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, pil_kwargs={"optimize": True})


def main() -> None:
    """Measures the pipeline in the package, or another, and prints the numbers as JSON."""
    parser = argparse.ArgumentParser(prog="python -m flowrl.worlds.shapes.measure", description=main.__doc__)
    parser.add_argument("--pipeline", type=Path, default=PIPELINE, help="a folder that FluxPipeline reads")
    parser.add_argument("--auditor", type=Path, default=WEIGHTS, help="the auditor's weights")
    parser.add_argument("--steps", type=int, nargs="*", default=list(STEPS), help="denoising steps of the gold score")
    parser.add_argument("--prompts", type=int, default=400, help="how many of the held-out prompts")
    parser.add_argument("--audited", type=int, default=0, help="samples on which judge and auditor are compared")
    parser.add_argument("--audited-steps", type=int, default=AUDITED_STEPS, help="denoising steps of those samples")
    parser.add_argument("--output", type=Path, default=Path("worlds/shapes/measure"), help="where pictures go")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    device = torch.device(given.device)
    result = measure(
        given.pipeline,
        load_auditor(given.auditor).to(device),
        num_prompts=given.prompts,
        num_audited=given.audited,
        device=device,
        output=given.output,
        steps=given.steps,
        audited_steps=given.audited_steps,
        seed=given.seed,
    )
    atomic.write_json(given.output / "measure.json", result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
