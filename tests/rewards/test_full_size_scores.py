"""The official scores at the size of the real weights: gigabytes, minutes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scorer_golden import AS_OFFICIAL, KINDS, TOLERANCE, official, write_official_vocabulary

from flowrl.protocols import ScorerConfig
from flowrl.rewards.random_checkpoints import make_checkpoint


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_scores_equal_the_official_ones_at_full_size(kind: str, tmp_path: Path) -> None:
    make_checkpoint(kind, tmp_path, "full")
    if kind == "image_reward":
        write_official_vocabulary(tmp_path)
    values = {"kind": kind, "source": str(tmp_path), "batch_size": 4, **AS_OFFICIAL.get(kind, {})}
    scorer = ScorerConfig.model_validate(values).load(torch.device("cpu"))
    pairs = official(kind, "full")
    found = scorer.score(pairs.images, pairs.prompts)
    difference = float((found.values - pairs.scores).abs().max())
    print(
        f"{kind}: {len(pairs.prompts)} pairs, spread {float(pairs.scores.max() - pairs.scores.min()):.4f}, "
        f"largest difference {difference:.1e}"
    )
    assert found.valid.all()
    assert difference < TOLERANCE[kind]
