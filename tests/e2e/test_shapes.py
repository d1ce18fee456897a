"""Every shipped recipe trains the embedded pipeline, and what a run leaves is a pipeline that plain diffusers loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from runs import final_parameters

from flowrl.recipe import load_recipe
from flowrl.recipe_files import shipped_folder
from flowrl.run import train
from flowrl.tracking import read_rows

RECIPES = shipped_folder()
ALGORITHMS = sorted([*RECIPES.glob("*.yaml"), *(RECIPES / "published").glob("*.yaml")])
SMALL = (
    "grid.num_steps=8",
    "rollout.group=4",
    "rollout.prompts=1",
    "run.iterations=2",
    "run.num_samples=2",
    "run.trackers=[]",
    "evaluation.num_steps=2",
    "evaluation.limit=2",
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"model.cache_dir={tmp_path_factory.mktemp('cache')}"


@pytest.mark.parametrize("recipe", ALGORITHMS, ids=lambda path: path.relative_to(RECIPES).with_suffix("").as_posix())
def test_every_recipe_trains_the_embedded_pipeline(recipe: Path, cache: str, tmp_path: Path) -> None:
    loaded = load_recipe(recipe, model="shapes", overrides=[*SMALL, cache])
    summary = train(loaded, output=tmp_path / "run")
    rows = [row for row in read_rows(tmp_path / "run") if "reward" in row]
    assert summary.finished
    assert [row["forwards"] for row in rows] == [loaded.plan(i).num_forwards for i in (0, 1)]
    assert rows[0]["self_check"] < 1e-4
    assert all(row["skipped_groups"] == 0 for row in rows)
    assert summary.held_out["gold"].after.mean >= 0


@pytest.mark.parametrize("lora", ["null", "{rank: 4, alpha: 8}"], ids=["full", "lora"])
def test_a_run_resumes_bit_for_bit_and_leaves_what_diffusers_loads(lora: str, cache: str, tmp_path: Path) -> None:
    from diffusers import FluxPipeline

    settings = [*SMALL, cache, f"model.lora={lora}", "optimizer.ema=0.9", "optimizer.warmup=3", "optimizer.lr=1e-3"]
    recipe = load_recipe("g2rpo", model="shapes", overrides=settings)
    train(recipe, output=tmp_path / "whole")
    train(recipe, output=tmp_path / "parts", stop_after=1)
    train(recipe, output=tmp_path / "parts", resume=True)
    whole, parts = final_parameters(tmp_path / "whole"), final_parameters(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)

    weights = tmp_path / "whole" / "weights"
    source = weights if lora == "null" else Path(load_recipe("g2rpo").model.load(torch.device("cpu")).folder)  # type: ignore[attr-defined]
    pipeline = FluxPipeline.from_pretrained(source)
    pipeline.set_progress_bar_config(disable=True)

    def draw() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        shape = {"height": 64, "width": 64, "max_sequence_length": 32, "num_inference_steps": 2}
        return pipeline("a red circle", generator=generator, output_type="pt", **shape).images

    before = draw()
    assert before.shape == (1, 3, 64, 64)
    if lora != "null":
        pipeline.load_lora_weights(weights)
        assert not torch.equal(draw(), before)
