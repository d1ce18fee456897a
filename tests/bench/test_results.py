"""Runs as numbers: interpolation between evaluations on numbers made by hand, pairs, what is called a difference."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from flowrl.bench.calibrate import Rates
from flowrl.bench.report import Cell
from flowrl.bench.results import History, ScoreGrid, read_history
from flowrl.bench.spec import load_bench
from flowrl.bench.study import Study
from flowrl.bench.tables.common import claim, order_cell
from flowrl.bench.tables.compute import Histories, called
from flowrl.bench.tables.cost import formula, loop_of_sample, report
from flowrl.bench.units import Store
from flowrl.statistics import Interval


def history(forwards: list[float], gold: list[list[float]], training: list[float] | None = None) -> History:
    count = len(forwards)
    return History(
        iterations=np.arange(count, dtype=float),
        forwards=np.array(forwards),
        training_forwards=np.array(training or [0.0] * count),
        prompts=tuple(range(len(gold[0]))),
        scores={"gold": np.array(gold)},
    )


CHEAP = history([0, 100, 200], [[0.0, 0.4], [0.2, 0.4], [0.4, math.nan]], [0, 10, 20])
DEAR = history([0, 400, 800], [[0.0, 0.4], [0.8, 0.8], [1.0, 1.0]], [0, 2, 4])
RATES = Rates(
    device="a device",
    model="m",
    precision="fp32",
    torch="2",
    threads=1,
    max_batch=1,
    microbatch=1,
    forwards=100.0,
    training_forwards=10.0,
    images=1.0,
    measured="now",
)


def test_scores_are_linear_between_evaluations_by_prompt() -> None:
    assert CHEAP.at("gold", CHEAP.forwards, 150) == {0: pytest.approx(0.3), 1: None}
    assert CHEAP.at("gold", CHEAP.forwards, 25) == pytest.approx({0: 0.05, 1: 0.4})
    assert DEAR.at("gold", DEAR.iterations, 2) == pytest.approx({0: 1.0, 1: 1.0})
    with pytest.raises(ValueError, match="outside the run"):
        CHEAP.at("gold", CHEAP.forwards, 201)


def test_methods_meet_where_all_of_them_have_come() -> None:
    found = Histories("r", {"cheap": {0: CHEAP}, "dear": {0: DEAR}}, {}, RATES)
    assert found.common("iterations") == 2
    assert found.common("forwards") == 200
    assert found.common("seconds") == pytest.approx(4.0)  # 200 / 100 + 20 / 10; the dear one needs 8.4
    dear = found.at("dear", "gold", "forwards", 200)
    assert dear is not None
    assert dear.values.tolist() == [[pytest.approx(0.4), pytest.approx(0.6)]]
    seconds = found.at("dear", "gold", "seconds", 4.2)  # half of its first 4 seconds of forwards and 0.2 of training
    assert seconds is not None
    assert seconds.values.tolist() == [[pytest.approx(0.8), pytest.approx(0.8)]]


def test_without_rates_there_are_no_equal_seconds() -> None:
    found = Histories("r", {"cheap": {0: CHEAP}}, {}, None)
    assert found.axes == ("iterations", "forwards")
    with pytest.raises(ValueError, match="rates"):
        found.x(CHEAP, "seconds")


def test_pairs_are_of_common_seeds_and_prompts() -> None:
    one = ScoreGrid.of({0: {1: 0.5, 2: 0.6, 3: None}, 1: {1: 0.7, 2: 0.8, 3: 0.9}})
    two = ScoreGrid.of({1: {2: 0.1, 1: 0.2}, 2: {1: 0.0, 2: 0.0}})
    assert one is not None
    assert two is not None
    assert one.prompts == (1, 2)  # what a seed has no answer for is left out of all
    less = one.minus(two)
    assert less is not None
    assert (less.seeds, less.prompts) == ((1,), (1, 2))
    assert less.values.tolist() == [[pytest.approx(0.5), pytest.approx(0.7)]]
    assert ScoreGrid.of({}) is None


def test_a_runs_evaluations_are_read_with_what_they_had_cost(tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    folder.mkdir()
    for name, values in (("before", [0.1, 0.2]), ("iteration_000002", [0.3, None]), ("after", [0.5, 0.6])):
        (folder / f"{name}.json").write_text(json.dumps({"index": [4, 9], "scores": {"gold": values}}))
    rows = [{"iteration": i, "forwards": 10.0, "training_forwards": 1.0} for i in (1, 2, 3)]
    rows.append({"iteration": 3, "test/gold": 0.55})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_history(tmp_path, 3)
    assert found is not None
    assert found.iterations.tolist() == [0, 2, 3]
    assert found.forwards.tolist() == [0, 20, 30]
    assert found.training_forwards.tolist() == [0, 2, 3]
    assert found.at("gold", found.forwards, 25) == {4: pytest.approx(0.4), 9: None}


def test_a_difference_is_called_only_where_its_interval_excludes_0() -> None:
    assert called(Cell(value=0.1, low=0.05, high=0.15)).note == "a difference"
    assert called(Cell(value=-0.1, low=-0.15, high=-0.05)).note == "a difference"
    assert called(Cell(value=0.1, low=-0.05, high=0.25)).note == "the interval includes 0"
    assert called(Cell(value=0.1)).note is None


def test_an_order_is_reproduced_contradicted_or_open() -> None:
    study = Study(load_bench(), "shapes", "smoke", Store(Path("nowhere")))
    spec = study.bench.table("main")

    def found(ours: Interval | None) -> bool | None:
        return claim(study, spec, "hps", ("g2rpo", 0.4), ("mix_grpo", 0.3), ours, "HPS").reproduced

    assert found(Interval(0.1, 0.05, 0.15)) is True
    assert found(Interval(-0.1, -0.15, -0.05)) is False
    assert found(Interval(0.1, -0.05, 0.15)) is None
    assert found(None) is None
    same = claim(study, spec, "hps", ("g2rpo", 0.3), ("mix_grpo", 0.3), Interval(0.1, 0.05, 0.15), "HPS")
    assert same.reproduced is None
    cell = order_cell([same.model_copy(update={"reproduced": value}) for value in (True, True, False, None)])
    assert cell.value == "2 yes, 1 no, 1 open"


def test_the_papers_formula_its_claim_and_the_released_loop() -> None:
    """Section 11: 184 and 45.7 % are neither what the formula gives (179, 44.1 %) nor what the code runs (181)."""
    steps = range(8)
    printed, claimed = formula(16, steps, (1, 2, 3)), formula(16, steps, (1, 2, 3), ceil=(3,))
    alone = formula(16, steps, (1,))
    assert (printed, claimed, alone) == (179, 184, 100)
    assert 1 - alone / printed == pytest.approx(0.441, abs=5e-4)
    assert 1 - alone / claimed == pytest.approx(0.457, abs=5e-4)
    assert loop_of_sample(16, steps, (1, 2, 3)) == 181


def test_the_cost_table_needs_no_training(tmp_path: Path) -> None:
    study = Study(load_bench(), "shapes", "smoke", Store(tmp_path))
    found = report(study, study.bench.table("cost"))
    tables = {block.name: block for block in found.blocks if block.kind == "table"}
    flux = {row.title: row.cells for row in tables["cost_flux1_dev"].rows}
    assert [flux["G2RPO"][key].value for key in ("loop", "tree", "training")] == [2188, 1700, 8]
    assert [flux["G2RPO w/o MGAI"][key].value for key in ("loop", "tree")] == [1216, 1112]
    assert [flux["Flow-GRPO"][key].value for key in ("loop", "tree", "training")] == [192, 192, 180]
    assert flux["MixGRPO"]["loop"].value == 192
    ways = {row.title: row.cells["prompt"].value for row in tables["cost_mgai"].rows}
    assert list(ways.values()) == [179 * 12, 184 * 12, 2188, 1700]
    assert not found.missing
