"""Who games the reward: told from the rows of runs alone."""

import json

import pytest

from flowrl.bench import hacking


def run_folder(path, gold, rewards, every=2):
    """A run that was evaluated every second iteration from 0 on."""
    path.mkdir()
    rows = [{"iteration": 1 + i, "reward": value} for i, value in enumerate(rewards)]
    rows += [{"iteration": every * k, "test/gold": value} for k, value in enumerate(gold)]
    lines = (json.dumps(row) + "\n" for row in sorted(rows, key=lambda row: row["iteration"]))
    (path / "metrics.jsonl").write_text("".join(lines))
    return path


GOLD = [0.5, 0.7, 0.6, 0.4]
REWARDS = [0.1, 0.3, 0.4, 0.6, 0.8, 0.8]


def test_a_run_that_games_its_reward(tmp_path):
    found = hacking.measure(run_folder(tmp_path / "a", GOLD, REWARDS), method="A", seed=0)
    assert found["iterations"] == [0, 2, 4, 6]
    assert found["gold"] == GOLD
    assert found["reward"] == pytest.approx([0.2, 0.5, 0.8])
    assert found["ended"] == 6, "two evaluations below the best while the reward rose"
    assert json.loads(json.dumps(found)) == found
    patient = hacking.measure(tmp_path / "a", method="A", seed=0, patience=3)
    assert patient["ended"] is None


def test_the_table_and_the_curves(tmp_path):
    runs = [
        hacking.measure(run_folder(tmp_path / "a0", GOLD, REWARDS), method="A", seed=0),
        hacking.measure(run_folder(tmp_path / "a1", [0.5, 0.6, 0.7, 0.8], REWARDS), method="A", seed=1),
        hacking.measure(run_folder(tmp_path / "b0", [0.5, 0.6, 0.6], [0.1] * 4), method="B", seed=0),
    ]
    table, figure = hacking.blocks(runs, {"A": ("k0", "k1")})
    a, b = (row.cells for row in table.rows)
    assert a["best"].value == pytest.approx(0.75)
    assert a["end"].value == pytest.approx(0.6)
    assert a["drop"].value == pytest.approx(0.15)
    assert a["drop"].low == pytest.approx(0.15 - 12.706 * 0.15, rel=1e-3), "t with one degree of freedom"
    assert a["best_at"].value == 4
    assert a["rise"].value == pytest.approx(0.6)
    assert (a["ended"].value, a["ended"].note) == (6, "1 of 2 runs")
    assert (b["drop"].value, b["drop"].low) == (0, None), "one seed has no interval"
    assert (b["ended"].value, b["ended"].note) == (None, "0 of 1 runs")
    assert b["best_at"].value == 2, "the first of equals"
    reward, gold = figure.panels
    assert reward.lines[0].x == (2, 4, 6)
    assert reward.lines[0].mean == pytest.approx((0.2, 0.5, 0.8))
    assert gold.lines[0].x == (0, 2, 4, 6)
    assert gold.lines[0].mean == pytest.approx((0.5, 0.65, 0.65, 0.6))
    assert gold.lines[0].runs == ("k0", "k1")
    assert gold.lines[1].low == (None,) * 3


def test_an_iteration_that_one_seed_lacks_is_no_point(tmp_path):
    runs = [
        hacking.measure(run_folder(tmp_path / "a0", GOLD, REWARDS), method="A", seed=0),
        hacking.measure(run_folder(tmp_path / "a1", GOLD[:3], REWARDS[:4]), method="A", seed=1),
    ]
    _, figure = hacking.blocks(runs)
    assert figure.panels[1].lines[0].x == (0, 2, 4)


def test_a_run_without_evaluations(tmp_path):
    with pytest.raises(ValueError, match=r"test/gold was logged 1 times"):
        hacking.measure(run_folder(tmp_path / "a", [0.5], REWARDS), method="A", seed=0)
