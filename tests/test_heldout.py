"""Held-out evaluation by several ranks: what each of them hands in."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from runs import write_recipe
from tiny import TinyScorer, prompts_of
from torch import Tensor

from flowrl.data import PromptOrder
from flowrl.heldout import evaluate
from flowrl.recipe import load_recipe
from flowrl.trainer import Trainer


class FirstOfTwo(SimpleNamespace):
    """In place of accelerate: the first of two processes, whose collectives refuse what NCCL's cannot take."""

    num_processes, process_index = 2, 0

    def gather(self, table: Tensor) -> Tensor:
        assert table.numel(), "view(-1, 0) of an empty table is an error in NCCL's gather"
        return torch.cat([table, table])

    def reduce(self, images: Tensor, how: str) -> Tensor:
        return images


@pytest.mark.parametrize("names", [(), ("a", "b")])
def test_pictures_alone_need_no_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: Any) -> None:
    prompts = prompts_of(4)
    trainer = Trainer(load_recipe(write_recipe(tmp_path)), PromptOrder(prompts, 4, seed=0))
    monkeypatch.setattr(trainer, "accelerator", FirstOfTwo())
    found = evaluate(trainer, prompts, {name: TinyScorer() for name in names}, num_images=4)
    assert {name: len(scores) for name, scores in found.scores.items()} == dict.fromkeys(names, 4)
    assert len(found.images) == 4
    assert [bool(image.any()) for image in found.images] == [True, True, False, False], "the others are the other's"
