"""Scorers of pictures without weights: a plugin for the metrics of these tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from flowrl.protocols import Judge, JudgeConfig, Scorer, ScorerConfig
from flowrl.rewards.images import as_tensors
from flowrl.types import Answer, Images, Prompt, Question, Scores

CALLS: list[tuple[str, list[int]]] = []
"""Kind and prompts' indices of every call of a scorer in this process."""


class Brightness(ScorerConfig, kind="brightness"):
    """The mean of all pixels; no answer for the prompts whose index is in ``silent``."""

    times: float = 1.0
    silent: tuple[int, ...] = ()

    def load(self, device: torch.device) -> Scorer:
        return BrightnessScorer(self)


class BrightnessScorer:
    scope: Literal["image", "group"] = "image"

    def __init__(self, config: Brightness) -> None:
        self.config = config

    def score(self, images: Images, prompts: Sequence[Prompt]) -> Scores:
        CALLS.append((self.config.kind, [prompt.index for prompt in prompts]))
        pixels = torch.stack(as_tensors(images))
        valid = torch.tensor([prompt.index not in self.config.silent for prompt in prompts])
        values = self.config.times * pixels.mean(dim=(1, 2, 3))
        return Scores(values.where(valid, torch.nan), valid, {"red": pixels[:, 0].mean(dim=(1, 2))})


class Place(ScorerConfig, kind="place"):
    """The place of an image among those of its prompt, by brightness."""

    def load(self, device: torch.device) -> Scorer:
        return PlaceScorer()


class PlaceScorer:
    scope: Literal["image", "group"] = "group"

    def score(self, images: Images, prompts: Sequence[Prompt]) -> Scores:
        CALLS.append(("place", [prompt.index for prompt in prompts]))
        order = torch.stack(as_tensors(images)).mean(dim=(1, 2, 3)).argsort().argsort().double()
        return Scores(order, torch.ones(len(prompts), dtype=torch.bool))


class CatLover(JudgeConfig, kind="cat_lover"):
    """Grants the only testpoint of a prompt where there is a cat in it."""

    def load(self, device: torch.device) -> Judge:
        return CatLoverJudge()


class CatLoverJudge:
    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        CALLS.append(("cat_lover", []))
        return [
            Answer(f"<analysis>['-']</analysis><score>[{int('a cat' in question.text)}]</score>")
            for question in questions
        ]
