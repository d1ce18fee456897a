"""Every shipped recipe trains a random FluxPipeline on real prompts, with the FLUX.1-dev fragment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import flowrl
from flowrl.protocols import ScorerConfig
from flowrl.recipe import load_recipe
from flowrl.run import train
from flowrl.types import Prompt, Scores

RECIPES = Path(flowrl.__file__).parent.parent / "recipes"
ALGORITHMS = sorted([*RECIPES.glob("*.yaml"), *(RECIPES / "published").glob("*.yaml")])
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


@pytest.fixture(scope="module")
def rewards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rewards") / "redness.yaml"
    path.write_text("fragment: true\nrewards: {redness: {kind: test_redness, weight: 1.0}}\n")
    return path


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if REAL_PROMPTS.is_file():
        return REAL_PROMPTS
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(FEW))
    return path


@pytest.mark.parametrize("recipe", ALGORITHMS, ids=lambda path: path.relative_to(RECIPES).with_suffix("").as_posix())
def test_it_trains(recipe: Path, folder: Path, rewards: Path, prompts: Path, tmp_path: Path) -> None:
    loaded = load_recipe(recipe, model="flux1_dev", rewards=str(rewards), overrides=small(folder, prompts))
    summary = train(loaded, output=tmp_path / "run")
    assert summary.finished
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert all(row["grad_norm"] > 0 for row in rows)
    assert all(row["forwards"] == 2 * loaded.plan(iteration).num_forwards for iteration, row in enumerate(rows))
    weights = [path.name for path in (tmp_path / "run" / "weights").iterdir()]
    assert weights == (["transformer"] if loaded.model.lora is None else ["pytorch_lora_weights.safetensors"])


def small(folder: Path, prompts: Path) -> list[str]:
    """Overrides for a tiny pipeline."""
    return [
        f"model.source={folder}",
        f"model.cache_dir={folder.parent / 'cache'}",
        "model.height=32",
        "model.width=32",
        "model.text_tokens=16",
        "grid.num_steps=16",
        "rollout.group=4",
        "rollout.max_batch=64",
        "run.microbatch=16",
        "rollout.prompts=2",
        "run.iterations=2",
        "run.precision=fp32",
        "run.trackers=[]",
        "evaluation.num_steps=4",
        f"data.train={prompts}",
    ]


def test_it_trains_with_cheaper_continuations(folder: Path, rewards: Path, prompts: Path, tmp_path: Path) -> None:
    """The rollout's decisions stay exact: the importance ratio starts as close to 1 as without."""
    cheaper = ["continuation.precision=fp8", "continuation.cache={every: 2, blocks: [0.3, 1.0]}", "rollout.max_batch=1"]
    rows = {}
    for name, extra in (("exact", ["rollout.max_batch=1"]), ("cheap", cheaper)):
        overrides = [*small(folder, prompts), "grid.num_steps=6", "run.iterations=1", *extra]
        loaded = load_recipe("g2rpo_wo_mgai", model="flux1_dev", rewards=str(rewards), overrides=overrides)
        train(loaded, output=tmp_path / name)
        (rows[name],) = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
    cheap = rows["cheap"]
    counts = loaded.plan().forwards
    assert [cheap[f"forwards/{kind}"] for kind in counts._fields] == [2 * count for count in counts]
    assert counts.cached
    assert cheap["peak_residual_bytes"] > 0
    assert cheap["self_check"] == rows["exact"]["self_check"]
    assert cheap["reward"] != rows["exact"]["reward"]
