"""Tiny random checkpoints in the official formats and their scorers, made once for all tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scorer_golden import AS_OFFICIAL, write_official_vocabulary

from flowrl.protocols import Scorer, ScorerConfig
from flowrl.rewards.random_checkpoints import SEED, make_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """kind, seed -> a folder with tiny random weights."""
    made: dict[tuple[str, int], Path] = {}

    def folder(kind: str, seed: int = SEED) -> Path:
        if (kind, seed) not in made:
            made[kind, seed] = tmp_path_factory.mktemp("checkpoints") / kind
            make_checkpoint(kind, made[kind, seed], "tiny", seed)
            if kind == "image_reward":
                write_official_vocabulary(made[kind, seed])
        return made[kind, seed]

    return folder


@pytest.fixture(scope="session")
def scorer(checkpoint: Callable[..., Path]) -> Callable[..., Scorer]:
    """kind, seed -> a scorer on the CPU as the official code scores, loaded once."""
    loaded: dict[tuple[str, int], Scorer] = {}

    def load(kind: str, seed: int = SEED) -> Scorer:
        if (kind, seed) not in loaded:
            fields: dict[str, Any] = {"source": str(checkpoint(kind, seed)), **AS_OFFICIAL.get(kind, {})}
            config = ScorerConfig.model_validate({"kind": kind, **fields})
            loaded[kind, seed] = config.load(torch.device("cpu"))
        return loaded[kind, seed]

    return load
