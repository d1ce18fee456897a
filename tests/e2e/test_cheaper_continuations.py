"""The program that measures cheaper continuations runs on two small cores, so that it runs on a GPU."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("continuations", BENCHMARKS / "continuations.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "continuations", module)
    spec.loader.exec_module(module)
    return module


def call(program: ModuleType, monkeypatch: pytest.MonkeyPatch, output: Path, *words: str) -> dict:
    monkeypatch.setattr(sys, "argv", ["continuations.py", *words, "--output", str(output)])
    arguments = program.parse()
    arguments.run(arguments)
    found = json.loads(output.read_text())
    assert {"command", "device", "versions", "commit"} <= set(found)
    return found


def test_rank_correlation_is_spearmans(program: ModuleType) -> None:
    x = np.array([[1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 2.0, 3.0, 9.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    y = np.array([[2.0, 1.0, 4.0, 3.0, 5.0], [1.0, 3.0, 2.0, 4.0, 4.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
    found = program.spearman(x, y)
    assert found[0] == pytest.approx(1 - 6 * 4 / (5 * 24))  # 1 - 6 sum d^2 / (n (n^2 - 1)), without ties
    ranks = np.array([[1, 2.5, 2.5, 4, 5], [1, 3, 2, 4.5, 4.5]])
    assert found[1] == pytest.approx(np.corrcoef(ranks)[0, 1])
    assert np.isnan(found[2]), "equal rewards have no ranks"


def test_ranks_of_the_shapes_world(program: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sizes = ["--prompts", "1", "--group", "3", "--rewards", "gold", "--set", "grid.num_steps=4"]
    cheaper = ["--cheaper", "{precision: exact}", "{precision: fp8}", "{cache: {blocks: [0.5, 1.0]}}"]
    found = call(program, monkeypatch, tmp_path / "rank.json", "rank", *sizes, *cheaper)
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == ["stride 2", "stride 3", *cheaper[1:]]
    same = rows["{precision: exact}"]
    assert same["rewards"]["gold"]["mean"] == pytest.approx(1)
    assert same["accepted"]
    assert same["cost"] == 1
    assert rows["stride 2"]["cost"] < rows["{cache: {blocks: [0.5, 1.0]}}"]["cost"] < 1


def test_velocities_of_a_small_flux(program: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = ["--model", "flux1_dev", "--double", "1", "--single", "3", "--heads", "2", "--head-dim", "32"]
    sizes = ["--size", "64", "--text-tokens", "8", "--batch", "2", "--steps", "4", "--time"]
    cheaper = ["--cheaper", "{precision: fp8}", "{cache: {blocks: [0.5, 1.0]}}"]
    found = call(program, monkeypatch, tmp_path / "velocity.json", "velocity", *model, *sizes, *cheaper)
    eight_bits, reused = found["rows"]
    assert len(eight_bits["errors"]) == 4
    assert all(0 < error < 0.1 for error in eight_bits["errors"])
    assert reused["errors"][0] is None, "the first step runs in full"
    assert all(error > 0 for error in reused["errors"][1:])
    assert reused["ms"] > 0
