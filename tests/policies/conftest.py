from __future__ import annotations

from pathlib import Path

import pytest
from tiny_flux import build_pipeline


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random FluxPipeline on disk."""
    return build_pipeline(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture
def cache(tmp_path: Path) -> str:
    return str(tmp_path / "cache")
