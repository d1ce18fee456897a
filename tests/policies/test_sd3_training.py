"""Flow-GRPO as published trains a random SD3.5: the KL to the untrained model, resuming, and what is saved."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from policies.kinds import TEXTS, Kind
from policies.redness import write_prompts, write_rewards
from policies.tiny_parts import SIZE, TEXT_TOKENS
from runs import final_parameters

from flowrl.errors import UserError
from flowrl.recipe import Recipe, load_recipe
from flowrl.run import train
from flowrl.sampling import Sampler, Source, drawing, find_source, image_seed, sample
from flowrl.types import Prompt


@pytest.fixture
def recipe(folders: dict[str, Path], cache: str, tmp_path: Path) -> Recipe:
    overrides = [
        *(f"model.source={folders['sd3']}", f"model.cache_dir={cache}", f"model.text_tokens={TEXT_TOKENS}"),
        *("model.height=32", "model.width=32", "model.dtype=fp32", "rollout.group=4", "rollout.prompts=2"),
        *("run.iterations=2", "run.precision=fp32", "run.trackers=[]", "run.checkpoint_every=1"),
        *("evaluation.num_steps=3", f"data.train={write_prompts(tmp_path)}"),
    ]
    rewards = str(write_rewards(tmp_path))
    return load_recipe("published/flow_grpo", model="sd35_medium", rewards=rewards, overrides=overrides)


def test_it_trains_resumes_and_draws_with_what_it_saved(
    recipe: Recipe, folders: dict[str, Path], tmp_path: Path
) -> None:
    summary = train(recipe, output=tmp_path / "whole")
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert summary.forwards == 2 * 2 * 4 * 10
    assert all(row["kl"] > 0 for row in rows)  # of the first iteration's second update, and of the second iteration
    assert all(row["ratio_error"] < 1 for row in rows)

    train(recipe, output=tmp_path / "parts", stop_after=1)
    assert train(recipe, output=tmp_path / "parts", resume=True).finished
    whole, parts = final_parameters(tmp_path / "whole"), final_parameters(tmp_path / "parts")
    assert whole
    assert all(torch.equal(whole[name], parts[name]) for name in whole)

    prompts = tmp_path / "three.txt"
    prompts.write_text("\n".join(TEXTS))
    sample(str(tmp_path / "whole"), prompts=str(prompts), output=tmp_path / "images")
    kind = Kind("sd3", folders["sd3"], "")
    pipe = kind.pipeline()
    pipe.load_lora_weights(tmp_path / "whole" / "weights_ema")
    noise = [torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(image_seed(0, i))) for i in range(3)]
    expected = (kind.call(pipe, torch.stack(noise), 3, output_type="pt") * 255).permute(0, 2, 3, 1).numpy()
    drawn = np.stack([np.asarray(Image.open(path)) for path in sorted((tmp_path / "images").glob("*.png"))])
    assert drawn.shape == (3, SIZE, SIZE, 3)
    assert abs(drawn - expected).max() < 1.5

    source = find_source(str(tmp_path / "whole"))
    tuned, hybrid, none = (_draw(source, steps) for steps in (None, 1, 0))
    assert torch.equal(none, _draw(replace(source, weights=None), None))
    assert not torch.equal(tuned, hybrid)
    assert not torch.equal(hybrid, none)


def _draw(source: Source, hybrid_steps: int | None) -> torch.Tensor:
    """By the run's weights up to a step, then by the untrained model's."""
    how = drawing(source, num_steps=3, hybrid_steps=hybrid_steps)
    return Sampler(source, how, torch.device("cpu")).draw([Prompt(TEXTS[0], 0)])


def test_missing_weights_name_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError) as error:
        train(load_recipe("published/flow_grpo", model="sd35_medium"), output=tmp_path / "run")
    message = str(error.value)
    assert "stabilityai/stable-diffusion-3.5-medium is not a complete pipeline" in message
    assert "hf download stabilityai/stable-diffusion-3.5-medium" in message
    assert all(f'--include "{part}_3/*"' in message for part in ("text_encoder", "tokenizer"))
    assert not (tmp_path / "run").exists()
