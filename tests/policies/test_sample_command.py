"""`flowrl sample`: images through plain diffusers, from a bare pipeline, a model fragment and a finished run."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_flux import SIZE

from flowrl.errors import UserError
from flowrl.policies.flux import Flux
from flowrl.policies.lora import LoRA
from flowrl.recipe import load_recipe
from flowrl.sampling import find_source, image_seed, sample
from flowrl.sigmas import Grid
from flowrl.types import Prompt

CPU = torch.device("cpu")
TEXTS = ["a cat", "two dogs", "a red square"]


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(TEXTS) + "\n")
    return str(path)


def finished_run(path: Path, folder: Path, lora: LoRA | None = None) -> Path:
    """A run's folder whose weights are the pipeline's, moved."""
    overrides = [f"model.source={folder}", "grid.num_steps=3", "evaluation.num_steps=2"]
    recipe = load_recipe("g2rpo", overrides=[*overrides, *(["model.lora={rank: 2, alpha: 2}"] if lora else [])])
    policy = Flux(source=str(folder), lora=lora).load(CPU)
    with torch.no_grad():
        for parameter in policy.module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.ones_like(parameter))
    policy.save_pretrained(path / "weights")
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe.resolved()))
    return path


def test_the_best_weights_are_drawn_with_on_request(folder: Path, tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", folder)
    assert find_source(str(run)).weights == run / "weights"
    with pytest.raises(UserError, match=r"holds no weights_best yet: evaluation\.keep_best"):
        find_source(str(run), "best")
    (run / "weights_best").mkdir()
    assert find_source(str(run), "best").weights == run / "weights_best"
    with pytest.raises(UserError, match="--weights best"):
        find_source(str(folder), "best")


def images(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path), dtype=int) for path in sorted(folder.glob("*.png"))])


def test_a_manifest_and_an_image_for_every_prompt(folder: Path, prompts: str, tmp_path: Path) -> None:
    assert sample(str(folder), prompts=prompts, output=tmp_path / "out", num_steps=2, seed=5) == 3
    lines = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == TEXTS
    assert [line["seed"] for line in lines] == [image_seed(5, index) for index in range(3)]
    assert len({line["model_digest"] for line in lines}) == 1
    assert images(tmp_path / "out").shape == (3, SIZE, SIZE, 3)
    assert all((tmp_path / "out" / line["file"]).is_file() for line in lines)


def test_an_image_depends_on_its_own_index_and_prompt_alone(folder: Path, prompts: str, tmp_path: Path) -> None:
    sample(str(folder), prompts=prompts, output=tmp_path / "all", num_steps=2)
    (tmp_path / "other.txt").write_text(f"something else\n{TEXTS[1]}\n")
    sample(str(folder), prompts=str(tmp_path / "other.txt"), output=tmp_path / "other", num_steps=2)
    found, other = images(tmp_path / "all"), images(tmp_path / "other")
    assert abs(found[1] - other[1]).max() <= 1
    assert abs(found[0] - other[0]).max() > 1


def test_the_recipes_sigmas_are_the_rollouts_grid(folder: Path, prompts: str, tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", folder)
    sample(str(run), prompts=prompts, output=tmp_path / "out", sigmas="recipe")
    policy = Flux(source=str(folder)).load(CPU)
    policy.transformer = policy.module = type(policy.transformer).from_pretrained(run / "weights" / "transformer")
    cond = policy.encode([Prompt(text, index) for index, text in enumerate(TEXTS)])
    x = torch.stack(
        [torch.randn(policy.latent_shape, generator=torch.Generator().manual_seed(image_seed(0, i))) for i in range(3)]
    )
    grid = Grid(3, 3.0).sigma
    with torch.no_grad():
        for sigma, below in pairwise(grid):
            x = x - (sigma - below) * policy.velocity(x, torch.full((3,), sigma), cond)
    expected = (policy.decode(x) * 255).permute(0, 2, 3, 1).numpy()
    assert abs(images(tmp_path / "out") - expected).max() < 1.5


@pytest.mark.parametrize("lora", [None, LoRA(rank=2, alpha=2, targets=("attn.to_q",))])
def test_a_run_draws_with_its_own_weights(folder: Path, prompts: str, tmp_path: Path, lora: LoRA | None) -> None:
    run = finished_run(tmp_path / "run", folder, lora)
    source = find_source(str(run))
    assert source.num_steps == 2
    sample(str(run), prompts=prompts, output=tmp_path / "trained")
    sample(str(folder), prompts=prompts, output=tmp_path / "base", num_steps=2)
    assert abs(images(tmp_path / "trained") - images(tmp_path / "base")).max() > 1
    assert source.digest().startswith(find_source(str(folder)).digest() + "+")


def test_the_average_is_drawn_with_where_one_is_kept(folder: Path, tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", folder)
    (run / "weights_ema").mkdir()
    assert find_source(str(run)).weights == run / "weights_ema"


def test_mistakes(folder: Path, prompts: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a bare pipeline"):
        sample(str(folder), prompts=prompts, output=tmp_path / "out", sigmas="recipe")
    run = finished_run(tmp_path / "run", folder)
    (run / "weights").rename(run / "elsewhere")
    with pytest.raises(UserError, match="holds no weights yet"):
        sample(str(run), prompts=prompts, output=tmp_path / "out")
    with pytest.raises(UserError, match="did you mean 'shapes'"):
        find_source("shape")
