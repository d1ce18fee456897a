"""A reward without weights, and real prompts where they are: what a run of a tiny pipeline is given."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

import flowrl
from flowrl.protocols import ScorerConfig
from flowrl.types import Prompt, Scores

REAL_PROMPTS = Path(flowrl.__file__).parents[2] / "shared" / "data" / "hpdv2_test_prompts.txt"
FEW = ["A raccoon riding an oversized fox through a forest.", "Groot depicted as a flower.", "2B eating a bagel."]


class _RednessScorer:
    scope = "image"

    def score(self, images: Tensor, prompts: list[Prompt]) -> Scores:
        values = images[:, 0].mean((1, 2)) - images[:, 1].mean((1, 2))
        return Scores(values, torch.ones(len(images), dtype=torch.bool))


class Redness(ScorerConfig, kind="test_redness"):
    def load(self, device: torch.device) -> _RednessScorer:
        return _RednessScorer()


def write_rewards(folder: Path) -> Path:
    path = folder / "redness.yaml"
    path.write_text("fragment: true\nrewards: {redness: {kind: test_redness, weight: 1.0}}\n")
    return path


def write_prompts(folder: Path) -> Path:
    if REAL_PROMPTS.is_file():
        return REAL_PROMPTS
    path = folder / "prompts.txt"
    path.write_text("\n".join(FEW))
    return path
