"""The search for learning rates: on seeds of its own, chosen by what is held out, the same values for every method."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from bench.benches import METHODS, study_of, write_bench

from flowrl.bench.search import choose_rates, search_table
from flowrl.bench.study import FIRST_SEARCH_SEED, Study
from flowrl.bench.worker import Worker

SCALE = {"seeds": 1, "iterations": 2, "every": 1}
METHODS_OF_RATES = {**METHODS, "variant": {"recipe": "tiny_recipe.yaml", "title": "Variant", "rate_of": "two"}}


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("search")
    search = {"factors": [0.1, 10.0], "seeds": 2, "iterations": 2, "rewards": str(folder / "rewards" / "toy.yaml")}
    study = study_of(write_bench(folder, methods=METHODS_OF_RATES, scale=SCALE | {"search": search}))
    trials = study.search_units(list(study.bench.tables.values()))
    units = [unit for found in trials.values() for _, unit in found]
    Worker(study.store, units, time.time(), lambda event: None).run()
    return study


def test_every_method_has_the_same_values_on_seeds_of_its_own(searched: Study) -> None:
    trials = searched.search_units(list(searched.bench.tables.values()))
    assert list(trials) == ["one", "two"]  # variants and what is the same are trained at these
    for found in trials.values():
        assert [rate for rate, _ in found] == [1e-4, 1e-4, 1e-2, 1e-2]
        assert {unit.seed for _, unit in found} == {FIRST_SEARCH_SEED, FIRST_SEARCH_SEED + 1}
    used = {unit.seed for unit in searched.units(list(searched.bench.tables.values()))}
    assert not used & {FIRST_SEARCH_SEED, FIRST_SEARCH_SEED + 1}


def test_the_best_by_what_is_held_out_is_chosen(searched: Study) -> None:
    trials = searched.search_units(list(searched.bench.tables.values()))
    rates = choose_rates(searched, trials)
    assert rates.keys() == {"one", "two"}
    table = search_table(searched, trials, "rates")
    assert table is not None
    for row, method in zip(table.rows, rates, strict=True):
        scores = {
            float(str(cell.note).removeprefix("lr ")): cell.value for key, cell in row.cells.items() if key != "chosen"
        }
        assert rates[method] == max(scores, key=lambda rate: float(scores[rate] or 0))
        assert len(row.cells["10 x"].runs) == 2


def test_runs_are_trained_at_what_was_chosen(searched: Study) -> None:
    study = study_of(searched.bench.folder, rates={"two": 1e-2})
    spec = study.bench.table("curves")
    at_two = {m: study.recipe(m, spec.rewards[0]).optimizer.lr for m in ("one", "two", "same", "variant")}
    assert at_two == {"one": 1e-3, "two": 1e-2, "same": 1e-2, "variant": 1e-2}


def test_nothing_is_chosen_of_what_is_not_finished(tmp_path: Path) -> None:
    search = {"factors": [0.1, 10.0], "seeds": 1, "iterations": 2, "rewards": str(tmp_path / "rewards" / "toy.yaml")}
    study = study_of(write_bench(tmp_path, scale=SCALE | {"search": search}))
    assert choose_rates(study, study.search_units(list(study.bench.tables.values()))) == {}
