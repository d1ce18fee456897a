"""The judge of the shapes world as a kind of its own: it serves itself and goes away."""

from __future__ import annotations

import gc
import threading

import numpy as np
import torch
from PIL import Image

from flowrl.judges.shapes import Shapes
from flowrl.protocols import JudgeConfig
from flowrl.types import Question
from flowrl.worlds.shapes.prompts import bench_prompts
from flowrl.worlds.shapes.render import render
from flowrl.worlds.shapes.scene import Scene


def servers() -> int:
    return sum(thread.name == "shapes judge" for thread in threading.enumerate())


def test_it_serves_itself_and_goes_away() -> None:
    before = servers()
    config = JudgeConfig.model_validate("shapes")
    assert config.identity() == Shapes(concurrency=2).identity()
    judge = config.load(torch.device("cpu"))
    assert servers() == before + 1
    prompt = bench_prompts()[0]
    picture = Image.fromarray(render(Scene.from_json(prompt.meta["scene"]), np.random.default_rng(0)))
    good, bad = judge.ask([Question(picture, f"Final Score:\n[{prompt.text}]"), Question(picture, "How are you?")])
    assert (good.text or "").startswith("Final Score: 4.9")
    assert bad.error is None
    assert "sorry" in (bad.text or "")
    del judge
    gc.collect()
    assert servers() == before
