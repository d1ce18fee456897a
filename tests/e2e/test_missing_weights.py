"""A run whose scorer's weights are missing stops before it loads or writes anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import run, write_recipe

from flowrl.errors import UserError


@pytest.mark.parametrize("section", ["rewards", "evaluation"])
def test_nothing_is_written(section: str, tmp_path: Path) -> None:
    hps = {"hps": {"kind": "hps", "source": str(tmp_path)}}
    recipe = write_recipe(tmp_path / "recipe", **{section: hps if section == "rewards" else {"scorers": hps}})
    with pytest.raises(UserError, match=r"reward hps: .* lacks HPS_v2\.1_compressed\.pt"):
        run(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()
