"""The gold reward: the judge as a scorer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flowrl.errors import UserError
from flowrl.protocols import ScorerConfig
from flowrl.rewards.gold import Gold
from flowrl.types import Prompt
from flowrl.worlds.shapes.prompts import test_prompts as held_out_prompts
from flowrl.worlds.shapes.render import render
from flowrl.worlds.shapes.scene import Scene

CPU = torch.device("cpu")


def pictures(prompts: list[Prompt]) -> torch.Tensor:
    rng = np.random.default_rng(0)
    drawn = [render(Scene.from_json(prompt.meta["scene"]), rng) for prompt in prompts]
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 255


def test_its_kind_is_gold_and_quality_is_the_default() -> None:
    assert ScorerConfig.model_validate("gold") == Gold(value="quality")
    assert Gold().load(CPU).scope == "image"


@pytest.mark.parametrize("value", ["quality", "score"])
def test_values_are_the_part_that_is_named(value: str) -> None:
    prompts = held_out_prompts()[:40]
    scores = ScorerConfig.model_validate({"kind": "gold", "value": value}).load(CPU).score(pictures(prompts), prompts)
    assert scores.valid.all()
    assert set(scores.parts) == {"score", "quality"}
    assert torch.equal(scores.values, scores.parts[value])
    assert scores.values.mean() > 0.98


def test_pictures_of_other_prompts_score_less() -> None:
    prompts = held_out_prompts()[:40]
    images = pictures(prompts)
    right, wrong = (Gold(value="score").load(CPU).score(i, prompts).values.mean() for i in (images, images.roll(1, 0)))
    assert wrong < 0.6 < right


def test_prompts_without_testpoints_and_broken_pictures_have_no_answer() -> None:
    prompts = [*held_out_prompts()[:2], Prompt("a cat", 2)]
    images = torch.cat([pictures(prompts[:2]), torch.zeros(1, 3, 64, 64)])
    images[1, 0, 0, 0] = float("nan")
    scores = Gold().load(CPU).score(images, prompts)
    assert scores.valid.tolist() == [True, False, False]
    assert torch.isfinite(scores.values).all()


def test_other_sizes_are_a_users_mistake() -> None:
    with pytest.raises(UserError, match="64 x 64 pixels; got 32 x 32"):
        Gold().load(CPU).score(torch.zeros(1, 3, 32, 32), held_out_prompts()[:1])
