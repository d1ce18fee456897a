from __future__ import annotations

from pathlib import Path

import pytest
from policies.kinds import BUILDERS, Kind


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random pipeline of each kind on disk."""
    return {name: build(tmp_path_factory.mktemp(name)) for name, build in BUILDERS.items()}


@pytest.fixture(scope="session")
def folder(folders: dict[str, Path]) -> Path:
    """A random FluxPipeline on disk."""
    return folders["flux"]


@pytest.fixture
def cache(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


@pytest.fixture(params=sorted(BUILDERS))
def kind(request: pytest.FixtureRequest, folders: dict[str, Path], cache: str) -> Kind:
    """Each kind of policy over a diffusers pipeline."""
    return Kind(request.param, folders[request.param], cache)
