"""The gold judge of the shapes world as a scorer: it looks for the testpoints that a prompt carries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

from flowrl.errors import UserError
from flowrl.protocols import Scorer, ScorerConfig
from flowrl.rewards.images import as_tensors
from flowrl.types import Images, Prompt, Scores


class Gold(ScorerConfig, kind="gold"):
    """``value: quality`` is continuous, a reward to train on; ``score`` is the fraction of testpoints satisfied."""

    value: Literal["quality", "score"] = "quality"

    def identity(self) -> dict[str, Any]:
        """The fields, and a digest of the judge's sources: another judge gives other scores."""
        from flowrl.worlds.shapes.judge_identity import GOLD_SOURCES, judge_identity

        return super().identity() | judge_identity(GOLD_SOURCES)

    def load(self, device: torch.device) -> Scorer:
        """The judge works on the CPU; its answers go back to the device of the images."""
        return GoldScorer(self.value)


class GoldScorer:
    """Scores images [B, 3, 64, 64]; ``parts`` holds both "score" and "quality".

    A prompt without testpoints, and a picture that is not finite, have no valid answer.
    """

    scope: Literal["image", "group"] = "image"

    def __init__(self, value: Literal["quality", "score"]) -> None:
        self.value = value

    def score(self, images: Images, prompts: Sequence[Prompt]) -> Scores:
        """Raises UserError where the images are not of the shapes world's size."""
        from flowrl.worlds.shapes.judge import judge
        from flowrl.worlds.shapes.prompts import testpoints_of
        from flowrl.worlds.shapes.scene import CANVAS

        pixels = as_tensors(images)
        strange = next((image for image in pixels if image.shape != (3, CANVAS, CANVAS)), None)
        if strange is not None:
            raise UserError(
                f"reward gold: judges pictures of the shapes world, {CANVAS} x {CANVAS} pixels; "
                f"got {strange.shape[-1]} x {strange.shape[-2]}; choose another reward for this model"
            )
        batch = torch.stack(pixels)
        testpoints = [testpoints_of(prompt) for prompt in prompts]
        finite = torch.isfinite(batch).flatten(1).all(dim=1)
        valid = finite & torch.tensor([len(asked) > 0 for asked in testpoints], device=batch.device)
        verdict = judge(torch.where(finite[:, None, None, None], batch, 0), testpoints)
        parts = {
            name: torch.where(valid, part.to(batch.device), 0)
            for name, part in (("score", verdict.score), ("quality", verdict.quality))
        }
        return Scores(parts[self.value], valid, parts)
