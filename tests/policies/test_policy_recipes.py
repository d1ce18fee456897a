"""Every shipped recipe trains a random pipeline of each kind on real prompts, with the published model's fragment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from policies.redness import write_prompts, write_rewards

import flowrl
from flowrl.recipe import load_recipe
from flowrl.run import train

RECIPES = Path(flowrl.__file__).parent.parent / "recipes"
ALGORITHMS = sorted([*RECIPES.glob("*.yaml"), *(RECIPES / "published").glob("*.yaml")])
MODELS = {
    "flux1_dev": ("flux", ["grid.num_steps=16", "rollout.prompts=2", "model.text_tokens=16"]),
    "sd35_medium": ("sd3", ["rollout.prompts=1", "model.text_tokens=8"]),  # the fragment's own 10 steps
}


@pytest.fixture(autouse=True)
def _without_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of such a run's time is the drawing of its curves."""
    monkeypatch.setattr("flowrl.run.curves", lambda *args: None)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("recipe", ALGORITHMS, ids=lambda path: path.relative_to(RECIPES).with_suffix("").as_posix())
def test_it_trains(recipe: Path, model: str, folders: dict[str, Path], tmp_path: Path) -> None:
    kind, own = MODELS[model]
    overrides = [
        f"model.source={folders[kind]}",
        f"model.cache_dir={folders[kind].parent / 'cache'}",
        "model.height=32",
        "model.width=32",
        "rollout.group=4",
        "rollout.max_batch=64",
        "run.microbatch=16",
        "run.iterations=2",
        "run.precision=fp32",
        "run.trackers=[]",
        "evaluation.num_steps=4",
        f"data.train={write_prompts(tmp_path)}",
        *own,
    ]
    loaded = load_recipe(recipe, model=model, rewards=str(write_rewards(tmp_path)), overrides=overrides)
    summary = train(loaded, output=tmp_path / "run")
    assert summary.finished
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert all(row["grad_norm"] > 0 for row in rows)
    prompts = loaded.rollout.prompts
    assert all(row["forwards"] == prompts * loaded.plan(i).num_forwards for i, row in enumerate(rows))
    weights = [path.name for path in (tmp_path / "run" / "weights").iterdir()]
    assert weights == (["transformer"] if loaded.model.lora is None else ["pytorch_lora_weights.safetensors"])
