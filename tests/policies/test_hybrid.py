"""MixGRPO's hybrid sampling: the run's weights first, the untrained model's afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_sample_command import finished_run

from flowrl.errors import UserError
from flowrl.policies.lora import LoRA
from flowrl.sampling import Sampler, Source, drawing, find_source, load_pipeline
from flowrl.types import Prompt

CPU = torch.device("cpu")
PROMPTS = [Prompt("a cat", 0), Prompt("two dogs", 1)]
STEPS = 3


def draw(source: Source, hybrid_steps: int | None) -> torch.Tensor:
    return Sampler(source, drawing(source, num_steps=STEPS, hybrid_steps=hybrid_steps), CPU).draw(PROMPTS)


@pytest.fixture(params=[None, LoRA(rank=2, alpha=2, targets=("attn.to_q",))], ids=["full", "lora"])
def run(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> Source:
    return find_source(str(finished_run(tmp_path / "run", folder, request.param)))


def test_all_steps_are_the_tuned_model_and_none_the_untrained(run: Source, folder: Path) -> None:
    tuned, base = draw(run, None), draw(find_source(str(folder)), None)
    assert torch.equal(draw(run, STEPS), tuned)
    assert torch.equal(draw(run, 0), base)
    assert not torch.equal(tuned, base)


def test_the_weights_change_after_the_given_step(run: Source, folder: Path) -> None:
    """Against one pipeline for the first step's state and another that goes on from it."""
    sampler = Sampler(run, drawing(run, num_steps=STEPS, hybrid_steps=1), CPU)
    drawn = sampler.draw(PROMPTS)
    states: list[torch.Tensor] = []

    def note(pipeline: object, step: int, time: torch.Tensor, values: dict[str, torch.Tensor]) -> dict:
        states.append(values["latents"].clone())
        return values

    noise = torch.stack([sampler._noise(prompt.index, 0) for prompt in PROMPTS])
    how = {"prompt": [prompt.text for prompt in PROMPTS], "num_inference_steps": STEPS, "output_type": "pt"}
    how |= {"height": 32, "width": 32, "guidance_scale": 3.5, "max_sequence_length": 16, "latents": noise}
    tuned, base = load_pipeline(run, CPU), load_pipeline(find_source(str(folder)), CPU)
    tuned(**how, callback_on_step_end=note)
    after_one = states[0]

    def go_on(pipeline: object, step: int, time: torch.Tensor, values: dict[str, torch.Tensor]) -> dict:
        return {"latents": after_one} if step == 0 else values

    assert torch.equal(drawn, base(**how, callback_on_step_end=go_on).images.float())
    assert torch.equal(sampler.draw(PROMPTS), drawn)  # the tuned weights are back


def test_mistakes(run: Source, folder: Path) -> None:
    with pytest.raises(UserError, match=f"0 to {STEPS}"):
        drawing(run, num_steps=STEPS, hybrid_steps=STEPS + 1)
    with pytest.raises(UserError, match="a run's weights"):
        drawing(find_source(str(folder)), hybrid_steps=1)
