"""What identifies the judge: the sources that it is made of, all of them."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from flowrl.judges.shapes import Shapes
from flowrl.rewards.gold import Gold
from flowrl.worlds.shapes import judge_identity
from flowrl.worlds.shapes.judge_identity import ANSWER_SOURCES, GOLD_SOURCES, JUDGE_SOURCES, judge_digest

WORLD = Path(judge_identity.__file__).parent
NAME = "flowrl.worlds.shapes."


def imported(module: str) -> set[str]:
    """Modules of the world that a module imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((WORLD / f"{module}.py").read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names} | {f"{node.module}"}
            found |= {name.removeprefix(NAME) for name in names if name.startswith(NAME)}
    return {name for name in found if (WORLD / f"{name}.py").is_file()}


@pytest.mark.parametrize(("root", "sources"), [("judge", GOLD_SOURCES), ("judge_answers", ANSWER_SOURCES)])
def test_no_source_is_forgotten(root: str, sources: tuple[str, ...]) -> None:
    seen: set[str] = set()
    waiting = {root}
    while waiting:
        seen |= waiting
        waiting = set().union(*(imported(module) for module in waiting)) - seen
    assert seen == set(sources)
    assert len(sources) == len(set(sources))


def test_another_judge_has_another_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gold, judge = Gold().identity(), Shapes().identity()
    assert Gold().identity() == gold
    assert gold["value"] == "quality"
    assert gold["judge_sources"] != judge["judge_sources"]
    for name in ANSWER_SOURCES:
        (tmp_path / f"{name}.py").write_bytes((WORLD / f"{name}.py").read_bytes())
    with (tmp_path / "checks.py").open("a") as file:
        file.write("STRICT = True\n")
    monkeypatch.setattr(judge_identity, "__file__", str(tmp_path / "judge_identity.py"))
    judge_identity._digest.cache_clear()
    try:
        assert Gold().identity()["judge_sources"] != gold["judge_sources"]
        assert Shapes().identity()["judge_sources"] != judge["judge_sources"]
    finally:
        judge_identity._digest.cache_clear()


def test_the_embedded_scorers_say_which_judge_labelled_for_them() -> None:
    records = json.loads((WORLD / "scorers" / "records.json").read_text("utf-8"))
    recorded = records["preferences"]["judge_digest"]
    assert len(recorded) == len(judge_digest())
    assert set(JUDGE_SOURCES) < set(GOLD_SOURCES)


def test_it_is_cheap_to_ask() -> None:
    program = (
        "import sys; from flowrl.worlds.shapes.judge_identity import judge_digest; judge_digest()\n"
        "print({'torch', 'numpy', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
