"""Measures the judge on renders and writes docs/worlds/shapes_judge.md.

python -m flowrl.worlds.shapes.judge_report [--output docs/worlds/shapes_judge.md] [--count 300]
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from flowrl.seeds import derive_seed
from flowrl.worlds.shapes.corruption import corrupt
from flowrl.worlds.shapes.grammar import sample_item
from flowrl.worlds.shapes.judge import judge
from flowrl.worlds.shapes.perception import look
from flowrl.worlds.shapes.render import render
from flowrl.worlds.shapes.scene import BACKGROUNDS, COLOURS, DETAILS, FORMS, RADIUS, Item, Scene, Thing

SOFTENING = {"clean": (0.0, 0.0), "softened": (0.6, 0.02), "strongly softened": (0.9, 0.03)}
"""Standard deviations of a Gaussian blur, in pixels, and of added noise: a stand-in for an autoencoder."""


class Case(NamedTuple):
    """A scene of an item, the testpoint asked about, and whether it holds."""

    item: Item
    scene: Scene
    target: int
    holds: bool


def kind_of(check: Mapping[str, Any]) -> str:
    """A name for the kind of a check that tells apart what the judge must recognise.

    >>> kind_of({"kind": "relation", "a": {}, "b": {}, "is": "inside"})
    'relation: inside'
    """
    if isinstance(check.get("is"), str):
        return f"{check['kind']}: {check['is']}"
    if check["kind"] == "position":
        return f"position: {check['at']}"
    what = [key for key in ("form", "detail", "colour", "size") if key in check]
    return f"{check['kind']}: {' + '.join(what)}" if what else str(check["kind"])


def sample_cases(count: int, seed: int) -> list[Case]:
    """For each kind of check about ``count`` scenes that show it and as many in which it alone is violated."""
    rng = random.Random(derive_seed(seed, "judge report"))
    cases: list[Case] = []
    found = Counter[str]()
    for _ in range(60 * count):
        item = sample_item(rng, split="train" if rng.random() < 0.5 else "test")
        for target, testpoint in enumerate(item.testpoints):
            kind = kind_of(testpoint.check)
            if found[kind] >= count:
                continue
            try:
                broken = corrupt(item, rng, target)
            except ValueError:  # no change of this scene breaks this testpoint alone
                continue
            found[kind] += 1
            cases += [Case(item, item.scene, target, True), Case(item, broken, target, False)]
    return cases


def renders(scenes: Sequence[Scene], seed: int) -> Tensor:
    """Pictures [B, 3, 64, 64] in 0..1."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([render(scene, rng) for scene in scenes])).permute(0, 3, 1, 2).float() / 255


def soften(images: Tensor, blur: float, noise: float, seed: int) -> Tensor:
    """The images after a Gaussian blur and with added noise."""
    if blur > 0:
        kernel = torch.exp(-(torch.arange(-3, 4) ** 2) / (2 * blur**2))
        kernel = (kernel / kernel.sum()).expand(3, 1, 7)
        wide = pad(images, (3, 3, 3, 3), mode="replicate")
        images = conv2d(conv2d(wide, kernel[:, :, None], groups=3), kernel[..., None], groups=3)
    if noise > 0:
        images = images + noise * torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return images.clamp(0, 1)


class Result(NamedTuple):
    """Right answers and questions, by (kind of check, whether it holds); seconds an image; mean quality by truth."""

    right: Counter[tuple[str, bool]]
    asked: Counter[tuple[str, bool]]
    seconds: float
    quality: dict[bool, float]


def measure(cases: Sequence[Case], images: Tensor) -> Result:
    """The judge's answers to the cases."""
    testpoints = [case.item.testpoints for case in cases]
    judge(images[:64], testpoints[:64])  # learns the silhouettes, once
    begin = time.perf_counter()
    verdict = judge(images, testpoints)
    seconds = (time.perf_counter() - begin) / len(cases)
    right, asked = Counter[tuple[str, bool]](), Counter[tuple[str, bool]]()
    for case, answers in zip(cases, verdict.satisfied, strict=True):
        key = kind_of(case.item.testpoints[case.target].check), case.holds
        asked[key] += 1
        right[key] += answers[case.target] == case.holds
    holds = torch.tensor([case.holds for case in cases])
    quality = {truth: float(verdict.quality[holds == truth].mean()) for truth in (True, False)}
    return Result(right, asked, seconds, quality)


def accuracy_table(results: Mapping[str, Result]) -> list[str]:
    """One row per kind of check: accuracy where it holds and where it alone is violated."""
    kinds = sorted({kind for kind, _ in next(iter(results.values())).asked})
    head = "".join(f" {name}: holds | {name}: violated |" for name in results)
    lines = [f"| check | cases |{head}", "|---|---:|" + "---:|" * (2 * len(results))]
    for kind in [*kinds, "every case"]:
        cells, cases = [], 0
        for result in results.values():
            for truth in (True, False):
                keys = [(name, truth) for name in (kinds if kind == "every case" else [kind])]
                cases = sum(result.asked[key] for key in keys)
                cells.append(f"{100 * sum(result.right[key] for key in keys) / cases:.2f}")
        lines.append(f"| {kind} | 2 x {cases} | {' | '.join(cells)} |")
    return lines


def confusions(count: int, blur: float, noise: float, seed: int) -> dict[str, dict[str, Counter[str]]]:
    """What is painted against what is seen, in pictures of one thing: colour, form, detail."""
    rng = random.Random(derive_seed(seed, "confusions"))
    things = [
        Thing(form, rng.choice(COLOURS), 32.0, 32.0, size, detail)
        for form, details in DETAILS.items()
        for detail in details
        for size in RADIUS[form]
        for _ in range(count)
    ]
    images = renders([Scene(rng.choice(BACKGROUNDS), (thing,)) for thing in things], seed)
    pixels = (soften(images, blur, noise, seed) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    members = [(form, detail) for form, details in DETAILS.items() for detail in details]
    tables: dict[str, dict[str, Counter[str]]] = {name: defaultdict(Counter) for name in ("colour", "form", "detail")}
    for thing, picture in zip(things, look(pixels).pictures, strict=True):
        colour, form, detail = "nothing", "nothing", "nothing"
        if picture.seen:
            seen = max(picture.seen, key=lambda seen: seen.radius)
            colour, form = _best(COLOURS, seen.colours), _best(FORMS, seen.forms)
            detail = _best([" ".join(member).strip() for member in members], seen.members)
        tables["colour"][thing.colour][colour] += 1
        tables["form"][thing.form][form] += 1
        tables["detail"][f"{thing.form} {thing.detail}".strip()][detail] += 1
    return tables


def _best(names: Sequence[str], degrees: Sequence[float]) -> str:
    best = max(range(len(names)), key=lambda k: degrees[k])
    return names[best] if degrees[best] >= 0.5 else "nothing"


def confusion_table(table: Mapping[str, Counter[str]]) -> list[str]:
    """One row per truth, one column per answer that occurs."""
    answers = sorted({answer for counts in table.values() for answer in counts})
    lines = ["| painted \\ seen | " + " | ".join(answers) + " |", "|---|" + "---:|" * len(answers)]
    lines += [f"| {truth} | " + " | ".join(str(counts[a]) for a in answers) + " |" for truth, counts in table.items()]
    return lines


def confused(table: Mapping[str, Counter[str]]) -> list[str]:
    """Only what is seen as something else."""
    wrong = [(truth, answer, n) for truth, counts in table.items() for answer, n in counts.items() if truth != answer]
    total = sum(counts.total() for counts in table.values())
    lines = [f"- {truth} seen as {answer}: {n}" for truth, answer, n in wrong] or ["- none"]
    return [f"Of {total} pictures:", "", *lines]


def report(count: int, seed: int) -> str:
    """The whole page, in Markdown."""
    cases = sample_cases(count, seed)
    images = renders([case.scene for case in cases], seed)
    results = {name: measure(cases, soften(images, *how, seed)) for name, how in SOFTENING.items()}
    lines = [
        "# The judge of the shapes world, measured",
        "",
        f"Written by `python -m flowrl.worlds.shapes.judge_report --count {count} --seed {seed}`; do not edit.",
        "",
        "Each case is a random item of the grammar, train and test alike. A testpoint is asked about a render of the",
        "item's scene, where it holds, and about a render of a scene in which it alone is violated (`corrupt`).",
        "The truth comes from the scene, the answer from the pixels alone. Pictures are softened by a Gaussian blur",
        "and by noise, whose standard deviations are (pixel values in 0..1)",
        ", ".join(f"{name}: {blur} px and {noise}" for name, (blur, noise) in SOFTENING.items()) + ".",
        "",
        "## Accuracy in percent",
        "",
        *accuracy_table(results),
        "",
        "## Quality and cost",
        "",
        "| pictures | mean quality, all testpoints hold | mean quality, one is violated | ms an image |",
        "|---|---:|---:|---:|",
    ]
    for name, result in results.items():
        mean = result.quality
        lines.append(f"| {name} | {mean[True]:.3f} | {mean[False]:.3f} | {1000 * result.seconds:.2f} |")
    for name in ("clean", "softened"):
        tables = confusions(max(1, count // 5), *SOFTENING[name], seed)
        lines += ["", f"## Confusions in pictures of one thing, {name}", ""]
        for title in ("colour", "form"):
            lines += [*confusion_table(tables[title]), ""]
        lines += ["Directions, poses and letters. " + confused(tables["detail"])[0], *confused(tables["detail"])[1:]]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/worlds/shapes_judge.md"))
    parser.add_argument("--count", type=int, default=300, help="cases of each kind of check")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(report(options.count, options.seed), encoding="utf-8")
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
