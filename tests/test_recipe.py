"""Recipes: every shipped one loads for every model; includes, precedence, overrides, digests."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from flowrl.continuations.strided import Strided
from flowrl.errors import UserError
from flowrl.recipe import Recipe, load_model, load_recipe
from flowrl.recipe_changes import differences
from flowrl.recipe_files import model_names, shipped_folder, shipped_recipes

RECIPES = [name for name, _ in shipped_recipes()]
MODELS = model_names()
PAPER_DIMS = 90 * 90 * 16  # 720x720 pixels, VAE factor 8, 16 channels


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own with a model, rewards and a recipe that uses them."""
    monkeypatch.chdir(tmp_path)
    shapes = yaml.safe_load((shipped_folder() / "models" / "shapes.yaml").read_text(encoding="utf-8"))
    shapes["optimizer"]["lr"] = 1.0
    shapes["rollout"]["prompts"] = 3
    write(tmp_path / "models" / "mine.yaml", yaml.safe_dump(shapes))
    write(tmp_path / "rewards" / "mine.yaml", "fragment: true\nrewards: {good: {kind: gold, weight: 2.0}}\n")
    write(
        tmp_path / "work" / "own.yaml",
        "name: Own\nsummary: mine\ninclude: [g2rpo, models/mine, rewards/mine]\nkernel: {eta: 0.5}\n"
        "for: {mine: {kernel: {eta: 0.4}, optimizer: {lr: 0.5}}}\n",
    )
    return tmp_path


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_loads_and_plans_for_every_model(name: str, model: str, tmp_path: Path) -> None:
    recipe = load_recipe(name, model=model)
    assert recipe.model_name == model
    for iteration in (0, recipe.run.iterations - 1):
        assert recipe.plan(iteration).actions
    snapshot = write(tmp_path / "recipe.yaml", yaml.safe_dump(recipe.resolved(), sort_keys=False))
    again = load_recipe(snapshot)
    assert again.resolved() == recipe.resolved()
    assert again.digest() == recipe.digest()
    assert not differences(recipe.resolved(), again.resolved())


def test_every_value_of_a_shipped_recipe_stands_on_one_screen() -> None:
    for path in shipped_folder().rglob("*.yaml"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 50, path


@pytest.mark.parametrize("name", RECIPES)
def test_the_clip_range_follows_the_latent(name: str) -> None:
    dims = math.prod(load_recipe(name).model.shape().latent_shape)
    assert load_recipe(name).loss.clip == pytest.approx(1e-4 * math.sqrt(PAPER_DIMS / dims), rel=1e-3)
    assert load_recipe(name, model="flux1_dev").loss.clip == 1e-4


def test_a_recipe_of_ones_own_includes_from_parent_folders_and_from_the_shipped_ones(folder: Path) -> None:
    recipe = load_recipe("work/own.yaml")
    assert recipe.name == "Own"
    assert recipe.model_name == "mine"
    assert recipe.source_path == folder / "work" / "own.yaml"
    assert recipe.rollout.prompts == 3
    assert recipe.rewards["good"].weight == 2.0


def test_precedence(folder: Path) -> None:
    """Command line > recipe ``for`` > recipe > --rewards > --model."""
    recipe = load_recipe("work/own.yaml")
    assert recipe.kernel.eta == 0.4  # for over recipe
    assert recipe.optimizer.lr == 0.5  # for over model
    assert load_recipe("work/own.yaml", overrides=["kernel.eta=0.3"]).kernel.eta == 0.3
    assert load_recipe("work/own.yaml", model="shapes").kernel.eta == 0.5  # recipe over what it includes; no for
    write(folder / "noisy.yaml", "fragment: true\nrewards: {r: {kind: gold}}\nkernel: {eta: 0.9}\nrun: {seed: 5}\n")
    swapped = load_recipe("work/own.yaml", model="shapes", rewards="noisy.yaml")
    assert swapped.kernel.eta == 0.5  # recipe over --rewards
    assert swapped.run.seed == 5  # --rewards over --model


def test_model_and_rewards_replace_those_of_the_recipe(folder: Path) -> None:
    assert set(load_recipe("g2rpo", rewards="mine").rewards) == {"good"}
    recipe = load_recipe("work/own.yaml", model="flux1_dev", rewards="gold")
    assert recipe.model_name == "flux1_dev"
    assert set(recipe.rewards) == {"gold"}
    assert recipe.optimizer.lr == 2e-6


def test_a_kind_replaces_and_a_value_merges() -> None:
    merged = load_recipe("g2rpo", overrides=["continuation.grid=paper"])
    assert merged.continuation == Strided(strides=(1, 2, 3), grid="paper")
    assert load_recipe("dance_grpo", overrides=["schedule.kind=singular"]).schedule.kind == "singular"
    both = load_recipe("dance_grpo", overrides=["schedule=sliding_window", "schedule.width=2"])
    assert (both.schedule.kind, both.schedule.model_dump()["width"]) == ("sliding_window", 2)


def test_a_null_takes_a_reward_away() -> None:
    extra = ["rewards.second={kind: gold, weight: 3}"]
    assert set(load_recipe("g2rpo", overrides=extra).rewards) == {"hps", "clip", "second"}
    assert set(load_recipe("g2rpo", overrides=[*extra, "rewards.hps=null"]).rewards) == {"clip", "second"}


@pytest.mark.parametrize(("text", "value"), [("1e-4", 1e-4), ("2.5E+3", 2500.0), ("3", 3.0), ("1_0.5", 10.5)])
def test_numbers_are_numbers(text: str, value: float) -> None:
    assert load_recipe("g2rpo", overrides=[f"optimizer.lr={text}"]).optimizer.lr == value


def test_shipped_names_with_and_without_folder_and_suffix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("g2rpo", "g2rpo.yaml", "recipes/g2rpo.yaml", "recipes/g2rpo"):
        assert load_recipe(name).source_path == (shipped_folder() / "g2rpo.yaml").resolve()


def test_load_model() -> None:
    assert load_model("flux1_dev").grid.num_steps == 16
    with pytest.raises(UserError, match="shapes"):
        load_model("shape")


# ---- digests and what may change on resume


@pytest.mark.parametrize(
    "free",
    [
        "rollout.max_batch=2",
        "run.checkpoint_every=1",
        "run.trackers=[]",
        "run.sample_every=3",
        "run.non_finite=skip_group",
        "evaluation.every=5",
        "evaluation.scorers.more={kind: gold}",
        "name=x",
    ],
)
def test_what_does_not_enter_the_trajectory_may_change(free: str) -> None:
    old, new = load_recipe("g2rpo"), load_recipe("g2rpo", overrides=[free])
    assert old.resolved() != new.resolved()
    assert old.digest() == new.digest()
    assert differences(old.resolved(), new.resolved()) == []


@pytest.mark.parametrize("paired", ["evaluation.seed=9", "data.test=null", "evaluation.scorers.gold.value=quality"])
def test_what_is_compared_before_and_after_may_not_change_in_between(paired: str) -> None:
    old, new = load_recipe("g2rpo"), load_recipe("g2rpo", overrides=[paired])
    assert old.digest() == new.digest()
    assert len(differences(old.resolved(), new.resolved())) == 1


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("optimizer.lr=2e-4", "optimizer.lr: 0.0001 -> 0.0002"),
        ("rollout.group=4", "rollout.group: 8 -> 4"),
        ("kernel.kind=dance_sde", "kernel.kind: flow_sde -> dance_sde"),
        ("rewards.hps.weight=2", "rewards.hps.weight: 1.0 -> 2.0"),
        ("run.iterations=3", "run.iterations: 12 -> 3 (it may only grow)"),
    ],
)
def test_what_enters_the_trajectory_may_not(change: str, line: str) -> None:
    old, new = load_recipe("g2rpo"), load_recipe("g2rpo", overrides=[change])
    assert line in differences(old.resolved(), new.resolved())
    assert old.digest() != new.digest()


@pytest.mark.parametrize(
    ("name", "overrides", "reason"),
    [
        ("g2rpo", [], None),
        ("mix_grpo", [], "schedule"),
        ("mix_grpo", ["schedule.hold=2"], None),
        ("g2rpo", ["optimizer.schedule=cosine"], "optimizer.schedule"),
    ],
)
def test_iterations_may_grow_where_nothing_depends_on_them(name: str, overrides: list[str], reason: str | None) -> None:
    old = load_recipe(name, overrides=overrides)
    new = load_recipe(name, overrides=[*overrides, "run.iterations=24"])
    expected = [] if reason is None else [f"run.iterations: 12 -> 24 ({reason} depends on it)"]
    assert differences(old.resolved(), new.resolved()) == expected


# ---- values as published


def published(name: str) -> Recipe:
    return load_recipe(f"published/{name}", model="flux1_dev")


def test_the_papers_table_4() -> None:
    recipe = load_recipe("g2rpo", model="flux1_dev")
    assert (recipe.grid.num_steps, recipe.grid.shift, recipe.rollout.group, recipe.run.seed) == (16, 3.0, 12, 42)
    assert (recipe.optimizer.lr, recipe.optimizer.weight_decay, recipe.optimizer.max_grad_norm) == (2e-6, 1e-4, 1.0)
    assert recipe.run.precision == "bf16"


def test_published_values() -> None:
    assert published("dance_grpo").train.updates == 3
    assert published("dance_grpo_8gpu").optimizer.ema == 0.995
    assert published("dance_grpo_lora").resolved()["model"]["lora"]["alpha"] == 256
    assert published("mix_grpo").grid.num_steps == 25
    assert published("mix_grpo_flash_star").plan(250).decisions == published("mix_grpo_flash_star").plan(0).decisions
    assert published("flow_grpo").loss.needs_reference


def test_a_window_visits_every_place_once_in_a_run_of_any_length() -> None:
    for model, places in (("shapes", 6), ("flux1_dev", 12)):
        recipe = load_recipe("mix_grpo", model=model)
        arms = [recipe.arms(iteration)[0] for iteration in range(recipe.run.iterations)]
        assert len(dict.fromkeys(min(arm.fanout) for arm in arms)) == places
