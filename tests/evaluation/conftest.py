from __future__ import annotations

from pathlib import Path

import plain_scorers
import pytest
from policies.tiny_flux import SIZE, build_pipeline
from workplace import Workplace

from flowrl import sampling
from flowrl.sampling import Sampler
from flowrl.types import Prompt


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random FluxPipeline on disk."""
    return build_pipeline(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images are drawn at a time."""
    monkeypatch.setattr(sampling, "BATCH_PIXELS", 2 * SIZE * SIZE)
    plain_scorers.CALLS.clear()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[int]]]:
    """j and prompts of every batch that is drawn."""
    calls: list[tuple[int, list[int]]] = []
    original = Sampler.draw

    def noting(self: Sampler, prompts: list[Prompt], j: int = 0) -> object:
        calls.append((j, [prompt.index for prompt in prompts]))
        return original(self, prompts, j)

    monkeypatch.setattr(Sampler, "draw", noting)
    return calls


@pytest.fixture
def work(tmp_path: Path, pipeline: Path) -> Workplace:
    return Workplace(tmp_path, pipeline)
