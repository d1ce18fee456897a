"""The command line: instant help, plans, and every mistake as one message with exit code 2."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from runs import write_recipe
from typer.testing import CliRunner, Result

from flowrl.cli import app
from flowrl.recipe_files import shipped_recipes

HEAVY = ("torch", "numpy", "pydantic", "yaml", "diffusers", "flowrl.recipe")


def run(*argv: str) -> Result:
    return CliRunner().invoke(app, [*argv])


def plan(*argv: str) -> dict[str, int]:
    result = run("plan", *argv, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# ---- help


def test_help_is_instant_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom flowrl.cli import main\nsys.argv = ['flowrl', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - begun)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "train" in done.stdout
    assert min(seconds) < 0.5


def test_python_m_flowrl_is_the_same_program() -> None:
    outputs = []
    for command in (["-m", "flowrl"], ["-c", "from flowrl.cli import main; main()"]):
        done = subprocess.run([sys.executable, *command, "recipes"], capture_output=True, text=True, check=True)
        outputs.append(done.stdout)
    assert outputs[0] == outputs[1]
    assert len(outputs[0].splitlines()) == len(shipped_recipes())


def test_every_command_explains_itself() -> None:
    for command in (["train"], ["plan"], ["sample"], ["recipes"], ["world", "build"], ["world", "gallery"]):
        result = run(*command, "--help")
        assert result.exit_code == 0
        assert "Usage: " in result.stdout
    assert run("--version").stdout.startswith("flowrl ")


def test_recipes_are_listed_with_a_line_each() -> None:
    lines = run("recipes").stdout.splitlines()
    assert [line.split()[0] for line in lines] == [name for name, _ in shipped_recipes()]
    assert all(len(line.split()) > 3 for line in lines)


# ---- plan

PAPER = {  # forwards, training forwards, actions, decisions, leaves at T=16, G=12 (one iteration of one prompt)
    "g2rpo": (1700, 8, 96, 8, 288),
    "published/g2rpo": (1496, 8, 96, 8, 192),
    "g2rpo_wo_mgai": (1112, 8, 96, 8, 96),
    "dance_grpo": (181, None, 180, 169, 12),
    "flow_grpo": (192, 180, 180, 180, 12),
    "mix_grpo": (181, 37, 48, 37, 12),
}


@pytest.mark.parametrize("name", PAPER)
def test_a_plan_in_numbers(name: str) -> None:
    forwards, training_forwards, actions, decisions, leaves = PAPER[name]
    found = plan(name, "--model", "flux1_dev")
    assert found["forwards"] == forwards
    assert (found["actions"], found["decisions"], found["leaves"]) == (actions, decisions, leaves)
    assert found["waves"] == 16
    if training_forwards is None:  # a random 60 % of each sample's actions
        assert 97 <= found["training_forwards"] <= 108
        assert found["trained_actions"] == 108
    else:
        assert (found["training_forwards"], found["trained_actions"]) == (training_forwards, actions)


@pytest.mark.parametrize(("iteration", "forwards"), [(0, 181), (100, 137), (200, 93), (299, 60)])
def test_a_window_costs_less_as_it_moves(iteration: int, forwards: int) -> None:
    """Windows at 0, 4, 8 and 11: what lies before the window is one shared path."""
    assert plan("mix_grpo", "--model", "flux1_dev", "--iteration", str(iteration))["forwards"] == forwards


def test_forwards_alone() -> None:
    assert plan("g2rpo", "--model", "flux1_dev")["forwards_alone"] == 3372
    assert plan("dance_grpo", "--model", "flux1_dev")["forwards_alone"] == 12 * 16


def test_flops_of_a_known_model() -> None:
    """FLUX.1-dev at 720x720 with 512 text tokens: 57 blocks of 24 n d^2 + 4 n^2 d, and little besides."""
    n, d = 512 + 45 * 45, 3072
    flops = plan("g2rpo", "--model", "flux1_dev")["flops"]
    assert flops["per_forward"] == pytest.approx(57 * (24 * n * d**2 + 4 * n**2 * d), rel=0.01)
    assert flops["rollout"] == 1700 * flops["per_forward"]
    assert flops["training"] == 8 * 4 * flops["per_forward"]  # forward, backward, and the checkpointed forward


def test_forwards_by_kind_where_continuations_are_approximated() -> None:
    found = plan("g2rpo", "--model", "flux1_dev", "continuation.cache={every: 2, blocks: [0.25, 0.75]}")
    assert found["forwards_by_kind"] == {"exact": 8, "full": 1008, "cached": 684}
    assert found["flops"]["rollout"] == (1700 - 684 / 2) * found["flops"]["per_forward"]
    assert "forwards_by_kind" not in plan("g2rpo", "--model", "flux1_dev")


def test_a_plan_as_a_table() -> None:
    result = run("plan", "g2rpo", "--model", "flux1_dev")
    assert result.exit_code == 0
    assert "1,700" in result.stdout


def test_a_dry_run_prints_the_recipe_in_full_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_text("a red circle\na blue square\n")
    data = ["data.train=some.txt", "data.test=null"]
    result = run("train", "g2rpo", "--dry-run", "rollout.group=4", "--output", "out", *data)
    assert result.exit_code == 0
    resolved = yaml.safe_load(result.stdout.split("\n\n")[0])
    assert resolved["rollout"]["group"] == 4
    assert "train: some.txt, 2 prompts" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["some.txt"]


def test_a_dry_run_ends_with_what_the_scorers_lack(tmp_path: Path) -> None:
    recipe = str(write_recipe(tmp_path / "own"))
    result = run("train", recipe, "--dry-run", "evaluation.scorers.a.missing=judge.pt")
    assert result.exit_code == 2
    assert "per prompt" in result.stdout, "the recipe and its cost are shown all the same"
    assert result.stderr == "error: reward tiny: judge.pt is missing\n"


# ---- train


def test_train_ends_with_a_summary_and_goes_on_only_as_it_began(tmp_path: Path) -> None:
    recipe = str(write_recipe(tmp_path / "own", run={"iterations": 2}))
    result = run("train", recipe, "--output", "out", "--stop-after", "1")
    assert result.exit_code == 0, result.output
    assert "stopped after 1 of 2 iterations" in result.stdout
    assert "--resume" in result.stdout
    result = run("train", recipe, "--output", "out", "--resume", "optimizer.lr=1")
    assert result.exit_code == 2
    assert "optimizer.lr: 0.001 -> 1.0" in result.stderr
    result = run("train", "out/recipe.yaml", "--output", "out", "--resume")
    assert result.exit_code == 0, result.output
    assert "tiny: 2 iterations" in result.stdout
    result = run("train", recipe, "--output", "out")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "out is in use" in result.stderr


# ---- mistakes


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["train", "g2rp"], "did you mean 'g2rpo'?"),
        (["train", "g2rpo", "rollout.grup=4"], "did you mean 'group'?"),
        (["train", "g2rpo", "rollout.group=1"], "rollout.group: must be greater than or equal to 2, got 1"),
        (["train", "g2rpo", "schedule={kind: sliding_window, width: 20}"], "width 20"),
        (["train", "g2rpo", "data.train=none.txt"], "none.txt"),
        (["train", "g2rpo", "data.train=empty.txt"], "empty.txt"),
        (["train", "g2rpo", "--output", "used"], "used is in use"),
        (["train", "g2rpo", "--output", "used", "--resume"], "used holds no run"),
        (["train", "g2rpo", "--model", "shape"], "did you mean 'shapes'?"),
        (["plan", "g2rpo", "--iteration", "12"], "allowed are 0..11"),
        (["sample", "shape", "--prompts", "some.txt", "--output", "new"], "did you mean 'shapes'?"),
        (["sample", "shapes", "--prompts", "none.txt", "--output", "new"], "none.txt"),
        (["sample", "shapes", "--prompts", "some.txt", "--output", "used"], "used is in use"),
        (["world", "build", "shape"], "did you mean 'shapes'?"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(argv: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    (tmp_path / "empty.txt").touch()
    (tmp_path / "some.txt").write_text("a red circle\n")
    result = run(*argv)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.output
    assert result.stdout == ""


@pytest.mark.parametrize(
    "argv", [["train"], ["trian", "g2rpo"], ["train", "g2rpo", "--no-such"], ["plan", "g2rpo", "--iteration", "x"]]
)
def test_a_mistake_in_the_usage_exits_with_2_too(argv: list[str]) -> None:
    result = run(*argv)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_a_mistake_as_a_process_of_its_own() -> None:
    argv = [sys.executable, "-m", "flowrl", "plan", "g2rpo", "kernel.etta=1"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == ("error: command line: kernel.etta: unknown key; did you mean 'eta'? (known: eta, kind)\n")
