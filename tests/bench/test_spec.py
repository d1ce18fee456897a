"""Bench files: the shipped ones are whole, and a mistake in one is named with its place and the nearest match."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from bench.benches import METHODS, write_bench

from flowrl.bench.spec import load_bench, shipped_benchmarks
from flowrl.bench.study import Study
from flowrl.bench.tables.common import paper
from flowrl.bench.units import Store
from flowrl.errors import UserError


@pytest.fixture(scope="module")
def shipped() -> Study:
    return Study(load_bench(), "shapes", "smoke", Store(Path("nowhere")))


@pytest.mark.parametrize("budget", ["smoke", "small", "full"])
@pytest.mark.parametrize("model", ["shapes", "flux1_dev"])
def test_every_budget_is_whole(budget: str, model: str) -> None:
    scale = load_bench().scale(budget, model)
    assert scale.every <= scale.iterations <= scale.long
    assert scale.steps.few < scale.steps.medium < scale.steps.many


def test_budgets_grow() -> None:
    smoke, small, full = (load_bench().scale(name, "shapes") for name in ("smoke", "small", "full"))
    for one, other in ((smoke, small), (small, full)):
        assert one.iterations < other.iterations
        assert one.seeds <= other.seeds


def test_units_of_all_tables_are_shared(shipped: Study) -> None:
    tables = shipped.bench.tables.values()
    alone = [{unit.key for unit in shipped.units([spec])} for spec in tables]
    together = shipped.units(list(tables))
    assert len(together) == len({unit.key for unit in together}) == len(set().union(*alone))
    assert len(together) < sum(map(len, alone))
    keys = {unit.key for unit in together}
    assert all(unit.needs is None or unit.needs in keys for unit in together)


def test_a_method_that_is_another_by_construction_is_not_trained_again(shipped: Study) -> None:
    spec = shipped.bench.table("ablation")
    trained = {m: shipped.train_unit(m, "hps_clip", 0, 2).key for m in ("lambda_123", "peers_step", "g2rpo", "eta_10")}
    assert trained["lambda_123"] == trained["peers_step"] == trained["g2rpo"] != trained["eta_10"]
    resolved = {shipped.bench.resolve(method) for method in spec.methods}
    assert sum(unit.kind == "train" for unit in shipped.units([spec])) == len(resolved)


def test_peers_of_the_step_are_the_siblings_in_singular_sampling(shipped: Study) -> None:
    """What methods.yaml says of ``peers_step``."""
    plan = shipped.recipe("g2rpo", "hps_clip").plan()
    assert plan.peers("step") == plan.peers("parent")


def test_papers_rows_are_methods(shipped: Study) -> None:
    known = {method.paper for method in shipped.bench.methods.values()} - {None}
    named = {
        row
        for table in ("main", "ablation", "steps", "unigenbench")
        for rows in paper()[table].values()
        for row in rows
    }
    assert named == known


def test_keys_depend_on_what_enters_a_run_and_on_nothing_else(shipped: Study) -> None:
    unit = shipped.train_unit("g2rpo", "hps_clip", 0, 2)
    again = Study(load_bench(), "shapes", "smoke", Store(Path("elsewhere")))
    assert again.train_unit("g2rpo", "hps_clip", 0, 2).key == unit.key
    others = [
        shipped.train_unit("g2rpo", "hps_clip", 1, 2),
        shipped.train_unit("g2rpo", "hps_clip", 0, 3),
        shipped.train_unit("g2rpo", "hps", 0, 2),
        shipped.train_unit("mix_grpo", "hps_clip", 0, 2),
    ]
    assert len({unit.key, *(other.key for other in others)}) == 5


def test_numerics_enter_the_key(shipped: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    before = shipped.train_unit("g2rpo", "hps_clip", 0, 2).key
    monkeypatch.setattr("flowrl.bench.study.NUMERICS", 999)
    assert shipped.train_unit("g2rpo", "hps_clip", 0, 2).key != before


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"methods": METHODS | {"x": {"recip": "a", "title": "X"}}}, r"recip: unknown key; did you mean 'recipe'"),
        (
            {"methods": METHODS | {"x": {"same_as": "tow", "title": "X"}}},
            r"x.same_as: no method 'tow'; did you mean 'two'",
        ),
        ({"scale": {"seeds": 0}}, r"budgets.yaml: seeds: must be greater than or equal to 1, got 0|seeds: "),
        ({"table": {"groups": {"": ["oen"]}}}, r"curves.yaml: no method 'oen'; did you mean 'one'"),
        ({"table": {"rewards": []}}, r"rewards: name a rewards fragment"),
        ({"table": {"stepps": ["few"]}}, r"stepps: unknown key; did you mean 'steps'"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, change: dict, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        load_bench(write_bench(tmp_path, **change)).scale("smoke", "toy")


def test_tables_are_looked_up_by_name(shipped: Study) -> None:
    with pytest.raises(UserError, match="did you mean 'ablation'"):
        shipped.bench.table("ablatoin")


def test_shipped_files_are_found_beside_the_recipes() -> None:
    assert {"methods.yaml", "budgets.yaml"} <= {path.name for path in shipped_benchmarks().glob("*.yaml")}
    for path in shipped_benchmarks().glob("*.yaml"):
        assert yaml.safe_load(path.read_text())
