"""How far the embedded scorers agree with gold: on samples of held-out prompts, and on pictures that break one thing.

python -m flowrl.worlds.shapes.scoring.agreement [--prompts 400] [--images 4] [--output docs/scorers/embedded.md]
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowrl import atomic
from flowrl.protocols import Scorer, ScorerConfig
from flowrl.seeds import derive_seed
from flowrl.statistics import mean_interval
from flowrl.types import Prompt
from flowrl.worlds.shapes.corruption import corrupt
from flowrl.worlds.shapes.gallery import PIPELINE
from flowrl.worlds.shapes.prompts import test_prompts, testpoints_of
from flowrl.worlds.shapes.render import render
from flowrl.worlds.shapes.scene import Item, Scene
from flowrl.worlds.shapes.scoring.data import Pixels, gold, pairs, sample

SCORERS = Path(__file__).parents[1] / "scorers"
"""The scorers of the embedded world."""
KINDS = ("hps", "clip", "pickscore", "image_reward")
CLEAR = 0.1  # of gold: a pair further apart leaves little doubt
BATCH = 32

Scored = NDArray[np.float64]


class Asked(NamedTuple):
    """Samples of held-out prompts, uint8 [P, K, 64, 64, 3], and what gold says of them, [P, K]."""

    prompts: Sequence[Prompt]
    images: Pixels
    gold: Scored


class Broken(NamedTuple):
    """A render of a prompt's scene and one in which one testpoint fails, and the kind of that testpoint's check."""

    prompt: Prompt
    kind: str
    images: Pixels


def measure(folder: Path, pipeline: Any, *, num_prompts: int, per_prompt: int, steps: int) -> dict[str, Any]:
    """Agreement of every scorer in ``folder`` with gold."""
    prompts = test_prompts()[:num_prompts]
    images = sample(pipeline, prompts, per_prompt, steps=steps, seed=derive_seed("agreement"))
    quality = np.stack([gold(row, prompt) for row, prompt in zip(images, prompts, strict=True)]).astype(np.float64)
    asked, broken = Asked(prompts, images, quality), broken_renders(prompts)
    result: dict[str, Any] = {
        "prompts": len(prompts),
        "images_per_prompt": per_prompt,
        "steps": steps,
        "gold": round(float(quality.mean()), 4),
        "gold_of_best": round(float(quality.max(axis=1).mean()), 4),
        "hardware": f"CPU, {torch.get_num_threads()} thread(s)",
        "scorers": {},
    }
    for kind in KINDS:
        scorer = load(folder / kind, kind)
        result["scorers"][kind] = about(scorer, asked) | {"noticed": noticed(scorer, broken)}
    return result


def load(folder: Path, kind: str) -> Scorer:
    """A scorer of a folder, on the CPU, by the class that loads the official one."""
    config: Any = ScorerConfig.model_validate({"kind": kind, "source": str(folder)})
    scorer: Scorer = config.load(torch.device("cpu"))
    return scorer


def broken_renders(prompts: Sequence[Prompt]) -> list[Broken]:
    """For every testpoint that a change of its scene breaks alone, a right picture and that one."""
    found = []
    for prompt in prompts:
        scene, testpoints = Scene.from_json(prompt.meta["scene"]), testpoints_of(prompt)
        for target, testpoint in enumerate(testpoints):
            rng = random.Random(derive_seed("broken render", prompt.index, target))
            try:
                wrong = corrupt(Item(prompt.text, scene, testpoints), rng, target)
            except ValueError:
                continue
            noise = np.random.default_rng(derive_seed("broken render", prompt.index, target))
            found.append(
                Broken(prompt, testpoint.check["kind"], np.stack([render(scene, noise), render(wrong, noise)]))
            )
    return found


def scores(scorer: Scorer, images: Pixels, prompts: Sequence[Prompt]) -> Scored:
    """Scores [B] of pictures uint8 [B, 64, 64, 3]."""
    pixels: Tensor = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    values: list[Tensor] = []
    for start in range(0, len(pixels), BATCH):
        values.append(scorer.score(pixels[start : start + BATCH], prompts[start : start + BATCH]).values)
    return np.asarray(torch.cat(values).cpu().numpy(), np.float64)


def about(scorer: Scorer, asked: Asked) -> dict[str, Any]:
    """One scorer's agreement with gold on the samples, and its range and speed."""
    count, group = asked.gold.shape
    each = [prompt for prompt in asked.prompts for _ in range(group)]
    flat = asked.images.reshape(-1, *asked.images.shape[2:])
    found = scores(scorer, flat, each).reshape(count, group)
    began = time.process_time()
    scores(scorer, flat, each)  # the features of the texts are known now, as they are in training
    seconds = time.process_time() - began
    interval = mean_interval([share for row in zip(found, asked.gold, strict=True) for share in agreed(*row, 1e-6)])
    dimensions: dict[str, list[int]] = defaultdict(list)
    for row, prompt in enumerate(asked.prompts):
        dimensions[prompt.meta["dimension"]].append(row)
    return {
        "pairwise": [round(value, 4) for value in interval],
        "pairwise_clear": round(_share(found, asked.gold, CLEAR), 4),
        "rank_correlation": round(rank_correlation(found, asked.gold), 4),
        "per_dimension": {
            name: {
                "pairwise": round(_share(found[rows], asked.gold[rows], 1e-6), 4),
                "rank_correlation": round(rank_correlation(found[rows], asked.gold[rows]), 4),
            }
            for name, rows in sorted(dimensions.items())
        },
        "gold_of_favourite": round(float(asked.gold[np.arange(count), found.argmax(axis=1)].mean()), 4),
        "mean": round(float(found.mean()), 4),
        "deviation": round(float(found.std()), 4),
        "deviation_within_a_prompt": round(float(found.std(axis=1).mean()), 4),
        "milliseconds": round(1000 * seconds / len(flat), 2),
    }


def agreed(found: Scored, quality: Scored, gap: float) -> list[float]:
    """Of one prompt's pairs that gold tells apart by more than ``gap``, the share that the scorer orders alike.

    None where there is no such pair; a tie of the scorer counts half.

    >>> agreed(np.array([1.0, 2.0, 3.0]), np.array([0.1, 0.2, 0.1]), 0.01)
    [0.5]
    """
    a, b = pairs(len(found))
    order = np.sign(quality[a] - quality[b]) * np.sign(found[a] - found[b])
    kept = order[np.abs(quality[a] - quality[b]) > gap]
    return [float((kept + 1).mean() / 2)] if len(kept) else []


def _share(found: Scored, quality: Scored, gap: float) -> float:
    shares = [share for row in zip(found, quality, strict=True) for share in agreed(*row, gap)]
    return float(np.mean(shares)) if shares else float("nan")


def rank_correlation(a: Scored, b: Scored) -> float:
    """Spearman's: the correlation of the ranks; equal values share a rank.

    >>> round(rank_correlation(np.array([1.0, 2.0, 9.0]), np.array([0.0, 0.5, 0.6])), 6)
    1.0
    """
    import pandas as pd

    return float(np.corrcoef(pd.Series(a.ravel()).rank(), pd.Series(b.ravel()).rank())[0, 1])


def noticed(scorer: Scorer, broken: Sequence[Broken]) -> dict[str, list[float]]:
    """Kind of check -> the share of broken renders that score lower than the right one, and how many there were."""
    images = np.concatenate([case.images for case in broken])
    found = scores(scorer, images, [case.prompt for case in broken for _ in range(2)]).reshape(-1, 2)
    by_kind: dict[str, list[bool]] = defaultdict(list)
    for case, (right, wrong) in zip(broken, found, strict=True):
        by_kind[case.kind].append(bool(right > wrong))
        by_kind["every case"].append(bool(right > wrong))
    return {kind: [round(float(np.mean(row)), 4), len(row)] for kind, row in sorted(by_kind.items())}


def page(result: Mapping[str, Any], command: str) -> str:
    """The page, in Markdown."""
    found = result["scorers"]
    head = "| | " + " | ".join(found) + " |"
    rule = "|---|" + "---:|" * len(found)

    def row(name: str, cells: Sequence[str]) -> str:
        return f"| {name} | " + " | ".join(cells) + " |"

    lines = [
        "# The embedded scorers",
        "",
        f"Written by `{command}`; do not edit.",
        "",
        "Four scorers of the shapes world in the official formats, loaded by the classes that load the official ones:",
        "`source: shapes`. They err as real ones do: they learnt from little, and from labellers who err, and an",
        "optimiser finds what they do not see. `flowrl world build shapes --scorers` makes them anew, by these",
        "[settings](../../flowrl/worlds/shapes/scoring/settings.py).",
        "",
        "HPS and PickScore are tuned from the CLIP scorer (PickScore from its first layers), and ImageReward has its",
        "eyes: what one does not see the others may not see either, as with the official ones, of which two are tuned",
        "from the same CLIP. Labels, batches and sizes are each one's own.",
        "",
        f"Measured on {result['images_per_prompt']} samples of the base model, {result['steps']} steps, for each of "
        f"{result['prompts']} held-out prompts",
        f"(mean quality by the gold judge: {result['gold']:.3f}); {result['hardware']}, x86-64.",
        "",
        "## Agreement with gold",
        "",
        "*Pairwise*: of two samples of one prompt that gold tells apart, how often the scorer prefers the same one;",
        "the mean over prompts and its 95 % bootstrap interval. *Clear*: where gold differs by more than "
        f"{CLEAR}. *Rank correlation*:",
        "Spearman's, over all samples. Chance is 0.5, 0.5 and 0. *Gold of its favourite*: of each prompt's samples the",
        f"one the scorer likes best; at random {result['gold']:.3f}, gold's own choice {result['gold_of_best']:.3f}.",
        "",
        head,
        rule,
        row("pairwise", ["{:.3f} ({:.3f} to {:.3f})".format(*s["pairwise"]) for s in found.values()]),
        row("pairwise, clear", [f"{s['pairwise_clear']:.3f}" for s in found.values()]),
        row("rank correlation", [f"{s['rank_correlation']:.3f}" for s in found.values()]),
        row("gold of its favourite", [f"{s['gold_of_favourite']:.3f}" for s in found.values()]),
        row("mean score", [f"{s['mean']:.3f}" for s in found.values()]),
        row("standard deviation", [f"{s['deviation']:.3f}" for s in found.values()]),
        row("the same within a prompt", [f"{s['deviation_within_a_prompt']:.3f}" for s in found.values()]),
        row(f"CPU ms an image, batches of {BATCH}", [f"{s['milliseconds']:.2f}" for s in found.values()]),
        "",
        "## By dimension of the prompt",
        "",
        "Pairwise / rank correlation.",
        "",
        head,
        rule,
    ]
    for name in next(iter(found.values()))["per_dimension"]:
        cells = [s["per_dimension"][name] for s in found.values()]
        lines.append(row(name, [f"{c['pairwise']:.2f} / {c['rank_correlation']:+.2f}" for c in cells]))
    lines += [
        "",
        "## What they notice",
        "",
        "A render of a held-out prompt's scene against one in which a single testpoint fails: how often the right",
        "one scores higher, by the kind of check that fails ([checks](../../flowrl/worlds/shapes/checks.py)). Near",
        "0.5 is a blind spot.",
        "",
        head.replace("| | ", "| what fails | pairs | ", 1),
        rule.replace("|---|", "|---|---:|", 1),
    ]
    for kind, (_, count) in next(iter(found.values()))["noticed"].items():
        lines.append(row(kind, [str(count), *(f"{s['noticed'][kind][0]:.3f}" for s in found.values())]))
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures the scorers in the package, or others, and writes the page and the numbers."""
    parser = argparse.ArgumentParser(prog="python -m flowrl.worlds.shapes.scoring.agreement", description=main.__doc__)
    parser.add_argument("--scorers", type=Path, default=SCORERS, help="a folder with one folder per kind")
    parser.add_argument("--pipeline", type=Path, default=PIPELINE, help="a folder that FluxPipeline reads")
    parser.add_argument("--prompts", type=int, default=400, help="how many of the held-out prompts")
    parser.add_argument("--images", type=int, default=4, help="samples per prompt")
    parser.add_argument("--steps", type=int, default=8, help="denoising steps of the samples")
    parser.add_argument("--output", type=Path, default=Path("docs/scorers/embedded.md"), help="the page")
    given = parser.parse_args()
    from diffusers import FluxPipeline

    torch.set_num_threads(1)
    pipeline = FluxPipeline.from_pretrained(given.pipeline)
    result = measure(given.scorers, pipeline, num_prompts=given.prompts, per_prompt=given.images, steps=given.steps)
    command = f"{parser.prog} --prompts {given.prompts} --images {given.images} --steps {given.steps}"
    given.output.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(given.output, page(result, command))
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
