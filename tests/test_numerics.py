"""The numbers of pinned runs. Where they change, runs of before and after must not share a table.

    python tests/test_numerics.py

from the folder of the tests writes them anew.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import TINY, final_parameters, run, write_recipe

from flowrl.numerics import NUMERICS
from flowrl.tracking import read_rows

GOLDEN = Path(__file__).parent / "golden" / "numerics.json"
ALL_STEPS = {"schedule": {"kind": "all_steps"}, "continuation": {"kind": "strided"}, "advantage": {"kind": "broadcast"}}
WINDOW = {"kind": "sliding_window", "width": 2}
PINNED: dict[str, dict[str, Any]] = {
    "singular": {},
    "all_steps": {**ALL_STEPS, "kernel": {"kind": "dance_sde"}, "train": {"split": "sample", "fraction": 0.6}},
    "window": {**ALL_STEPS, "schedule": WINDOW, "continuation": {"kind": "compressed"}},
    "cps": {"kernel": {"kind": "cps"}, "loss": {"kind": "ppo_clip", "clip": 1e-2, "beta": 0.04}},
}
WATCHED = ("reward", "grad_norm", "advantage_abs", "forwards", "training_forwards", "test/a")
REMEDY = (
    "the arithmetic has changed: if that is meant, raise NUMERICS in flowrl/numerics.py by one, so that flowrl bench "
    "repeats the runs that were made before, and write the numbers anew with python tests/test_numerics.py"
)


def numbers(name: str, folder: Path) -> dict[str, float]:
    """What a pinned run logs in three iterations, and the size of its parameters afterwards."""
    changes = {**PINNED[name], "run": {"iterations": 3}}
    whole = {key for key in ("schedule", "continuation", "kernel", "advantage", "loss") if key in changes}
    path = write_recipe(folder, **{key: value for key, value in changes.items() if key not in whole})
    values = yaml.safe_load(path.read_text()) | {key: changes[key] for key in whole}
    path.write_text(yaml.safe_dump(values))
    run(path, folder / "out")
    found = {
        f"{row['iteration']} {key}": float(row[key])
        for row in read_rows(folder / "out")
        for key in WATCHED
        if row.get(key) is not None
    }
    parameters = final_parameters(folder / "out")
    return found | {f"norm of {key}": float(value.norm()) for key, value in parameters.items()}


@pytest.mark.parametrize("name", PINNED)
def test_pinned_runs_have_the_numbers_that_they_had(name: str, tmp_path: Path) -> None:
    assert TINY["model"] == {"kind": "tiny"}
    golden = json.loads(GOLDEN.read_text())
    assert golden["numerics"] == NUMERICS, REMEDY
    found = numbers(name, tmp_path / "run")
    assert found == pytest.approx(golden["runs"][name], rel=1e-4, abs=1e-7), REMEDY


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    runs = {name: numbers(name, Path(tempfile.mkdtemp()) / "run") for name in PINNED}
    GOLDEN.write_text(json.dumps({"numerics": NUMERICS, "runs": runs}, indent=1) + "\n")
