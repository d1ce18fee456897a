"""Every mistake in a recipe is one message: file, path inside the file, rule, allowed values, nearest match."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import pytest

from flowrl.errors import UserError
from flowrl.protocols import Kernel, ScorerConfig
from flowrl.recipe import load_recipe


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def message(recipe: str = "g2rpo", **options: object) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(recipe, **options)
    return str(caught.value)


def mistake_in(text: str) -> str:
    """The message for a file that includes g2rpo and makes a mistake."""
    Path("own.yaml").write_text(f"name: Own\nsummary: own\ninclude: [g2rpo]\n{text}\n", encoding="utf-8")
    return message("own.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "schedul: {kind: singular}",
            ["own.yaml: schedul: unknown key; did you mean 'schedule'?", "known: ", "kernel"],
        ),
        (
            "kernel: {eta: 0.3, etta: 1}",
            ["own.yaml: kernel.etta: unknown key; did you mean 'eta'?", "known: eta, kind"],
        ),
        ("kernel: {kind: flow_sd}", ["own.yaml: kernel: unknown Kernel kind 'flow_sd'; did you mean 'flow_sde'?"]),
        ("kernel: {kind: cps, eta: hot}", ["own.yaml: kernel.eta: must be a number", "got 'hot'"]),
        ("group: 4", ["own.yaml: group: unknown key; did you mean 'rollout.group'?"]),
        ("rollout: {group: 1}", ["own.yaml: rollout.group: must be greater than or equal to 2, got 1"]),
        ("rollout: 4", ["own.yaml: rollout: must be a mapping", "got 4"]),
        ("rewards: {gold: {kind: gold, wieght: 2}}", ["own.yaml: rewards.gold.wieght: unknown key", "'weight'"]),
        ("rewards: {gold: {kind: silver}}", ["own.yaml: rewards.gold: unknown ScorerConfig kind 'silver'", "gold"]),
        ("rewards: {hps: null, clip: null}", ["own.yaml: rewards: ", "at least 1 item"]),
        (
            "run: {precision: bf32}",
            ["own.yaml: run.precision: must be 'fp32' or 'bf16', got 'bf32'; did you mean "],
        ),
        ("run: {iterations: 1.5}", ["own.yaml: run.iterations: must be ", "integer", "got 1.5"]),
        ("run: {trackers: [tensorbord]}", ["own.yaml: run.trackers.0: must be ", "; did you mean 'tensorboard'?"]),
        ("train: {updates: 9}", ["own.yaml: train: ", "updates 9", "1..4"]),
        ("schedule: {steps: [0, 7]}", ["own.yaml: schedule: ", "[7]", "0..6"]),
        ("schedule: {steps: second_half}", ["own.yaml: schedule.steps: must be 'first_half'", "got 'second_half'"]),
        ("schedule: {kind: sliding_window, width: 8}", ["own.yaml: schedule: ", "width 8", "1..7"]),
        (
            "schedule: {kind: sliding_window, width: 2, hold: 1}\nadvantage: broadcast\ntrain: {updates: 2}",
            ["own.yaml: train: ", "updates 2", "(in iteration 7)"],
        ),
        ("schedule: {kind: sliding_window, width: 2, strategy: decay}", ["own.yaml: schedule: ", "hold is sweep"]),
        ("rewards: {hps: {weight: 0}, clip: {weight: 0}}", ["own.yaml: rewards: every weight is 0"]),
        (
            "advantage: {kind: broadcast, mixing: weighted_advantages}\nrewards: {hps: {weight: -2}}",
            ["own.yaml: rewards: mixing weighted_advantages", "which is -1"],
        ),
        ("loss: {clip_high: .inf}", ["own.yaml: loss.clip_high: must be a finite number, got inf"]),
        ("optimizer: {lr: .inf}", ["own.yaml: optimizer.lr: must be a finite number, got inf"]),
        ("rewards: {hps: {weight: .nan}}", ["own.yaml: rewards.hps.weight: must be a finite number, got nan"]),
        (
            "advantage: {kind: broadcast, peers: step, scope: all}",
            ["own.yaml: advantage.scope: must be 'group' or 'batch'"],
        ),
        (
            "for: {shape: {run: {seed: 1}}}",
            ["own.yaml: for.shape: there is no model fragment", "did you mean 'shapes'?"],
        ),
        ("for: {shapes: {run: {sed: 1}}}", ["own.yaml: run.sed: unknown key; did you mean 'seed'?"]),
        ("for: {shapes: {include: [x]}}", ["own.yaml: for.shapes.include: belongs to the top of a file only"]),
        ("for: [shapes]", ["own.yaml: for: must map a model's name to a mapping"]),
        ("plugins: [no_such_module]", ["own.yaml: plugins: no_such_module cannot be imported"]),
        ("plugins: mine", ["own.yaml: plugins must be a list of module names, got 'mine'"]),
        (
            "run: {seed: 1}\nrun: {seed: 2}",
            ["own.yaml is not valid YAML: line 5", "'run' is given twice, first in line 4"],
        ),
        ("run: {seed: 1", ["own.yaml is not valid YAML: line "]),
        ("fragment: true", ["own.yaml is a fragment"]),
        ("fragment: perhaps", ["own.yaml: fragment must be true or false, got 'perhaps'"]),
    ],
)
def test_a_mistake_in_a_file(text: str, said: list[str]) -> None:
    found = mistake_in(text)
    assert "\n" not in found
    for part in said:
        assert part in found


def test_all_mistakes_are_told_at_once_each_with_its_file() -> None:
    Path("part.yaml").write_text("fragment: true\nrun: {sed: 1}\noptimizer: {lr: -1}\n", encoding="utf-8")
    Path("own.yaml").write_text("include: [g2rpo, part]\nkernel: {eta: x}\n", encoding="utf-8")
    lines = message("own.yaml", overrides=["rollout.grup=3"]).split("\n")
    assert lines[0] == "own.yaml: 4 problems"
    assert sorted(line.strip().split(":")[0] for line in lines[1:]) == [
        "command line",
        "own.yaml",
        "part.yaml",
        "part.yaml",
    ]


def test_what_nothing_sets_is_required() -> None:
    Path("own.yaml").write_text("name: Own\nsummary: own\ninclude: [models/shapes, rewards/gold]\n", encoding="utf-8")
    found = message("own.yaml")
    for section in ("schedule", "continuation", "kernel", "advantage", "loss", "train"):
        assert f"own.yaml: {section}: required, but neither the recipe nor what it includes sets it" in found


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rollout.grup=4", "command line: rollout.grup: unknown key; did you mean 'group'?"),
        ("num_steps=4", "command line: num_steps: unknown key; did you mean 'grid.num_steps'?"),
        ("rollout.group=many", "command line: rollout.group: must be"),
        ("rollout.group", "'rollout.group' is not an override: write dotted.path=value"),
        ("=3", "'=3' is not an override"),
        ("a..b=3", "'a..b=3' is not an override"),
        ("run.seed=[1", "'run.seed=[1': the value is not valid YAML"),
        ("include=[x]", "'include=[x]': 'include' belongs in a file"),
        ("kernel.kind=dance", "command line: kernel: unknown Kernel kind 'dance'; did you mean 'dance_sde'?"),
        ("train.updates=0", "command line: train.updates: must be greater than or equal to 1, got 0"),
        ("run.seed.x=0", "command line: run.seed: must be"),
    ],
)
def test_a_mistake_in_an_override(override: str, said: str) -> None:
    assert said in message(overrides=[override])


def test_a_mistake_in_a_scorer_around_another() -> None:
    class Halved(ScorerConfig, kind="halved"):
        scorer: ScorerConfig

        def load(self, device):
            raise NotImplementedError

    try:
        found = mistake_in("rewards: {half: {kind: halved, scorer: {kind: gold}, scoer: 1}}")
    finally:
        ScorerConfig.members().pop("halved", None)
    assert "own.yaml: rewards.half.scoer: unknown key; did you mean 'scorer'?" in found


PATHS = """
    schedule schedule.kind schedule.steps continuation.strides kernel.eta advantage.clip loss train.split model
    model.source model.height model.lora grid.num_steps grid.shift rollout.group optimizer.betas optimizer.ema
    rewards rewards.hps rewards.hps.kind data.train run run.iterations run.trackers evaluation.scorers plugins
""".split()  # noqa: SIM905


@pytest.mark.parametrize("value", ["null", "x", "-1", "[]", "{}", "{a: 1}", ".nan", "[null]", "{kind: [1]}", "9e99"])
@pytest.mark.parametrize("path", PATHS)
def test_a_value_of_any_shape_is_accepted_or_a_mistake(path: str, value: str) -> None:
    """Nothing but UserError comes out, whatever goes in."""
    with suppress(UserError):
        load_recipe("g2rpo", overrides=[f"{path}={value}"])


def test_names_that_lead_nowhere() -> None:
    assert "no recipe 'g2rp': no such file, nor a shipped recipe; did you mean 'g2rpo'?" in message("g2rp")
    assert "no recipe '/no/such.yaml'" in message("/no/such.yaml")
    assert "--model shape: no such file" in message(model="shape")
    assert "; did you mean 'shapes'?" in message(model="shape")
    assert "; did you mean 'gold'?" in message(rewards="golf")


@pytest.mark.parametrize(
    ("include", "said"),
    [
        ("[models/shape]", "own.yaml: include: no models/shape.yaml beside this file, in a parent folder"),
        ("models/shapes", "own.yaml: include must be a list of names, got 'models/shapes'"),
        ("[own]", "own.yaml: include: the files include each other: own.yaml -> own.yaml"),
    ],
)
def test_a_mistake_in_an_include(include: str, said: str) -> None:
    Path("own.yaml").write_text(f"name: Own\ninclude: {include}\n", encoding="utf-8")
    assert said in message("own.yaml")


def test_a_fragment_in_the_wrong_place() -> None:
    assert "models/shapes.yaml is a fragment (fragment: true)" in message("models/shapes")
    Path("part.yaml").write_text("fragment: true\nrewards: {gold: {kind: gold}}\n", encoding="utf-8")
    said = "part.yaml cannot be the model: it needs `fragment: true` and a `model:` section"
    assert said in message(model="part.yaml")


def test_a_file_that_is_no_recipe() -> None:
    for text, said in (("", "this is empty"), ("- a\n", "this is a list"), ("\x00", "is not valid YAML")):
        Path("own.yaml").write_text(text, encoding="utf-8")
        assert said in message("own.yaml")
    Path("own.yaml").write_bytes(b"\xff\xfe\xff")
    assert "cannot read own.yaml" in message("own.yaml")


def test_a_plugin_beside_the_recipe_adds_a_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Kernel, "kinds", dict(Kernel.members()))
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("my_own_kernel.py").write_text(
        "from flowrl.kernels.flow_sde import FlowSde\n\n\nclass Mine(FlowSde, kind='my_own_kernel'):\n    pass\n",
        encoding="utf-8",
    )
    Path("own.yaml").write_text(
        "include: [g2rpo]\nplugins: [my_own_kernel]\nkernel: {kind: my_own_kernel, eta: 0.2}\n", encoding="utf-8"
    )
    assert load_recipe("own.yaml").kernel.kind == "my_own_kernel"
