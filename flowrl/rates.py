"""How long a GPU takes for the parts of an iteration: ``rates.yaml``, and what is estimated where it has nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from flowrl.errors import UserError, did_you_mean, listing

FILE = Path(__file__).with_name("rates.yaml")


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU: memory in GB, peaks in TFLOP/s and TB/s, links to others in GB/s a direction."""

    key: str
    name: str
    memory_gb: float
    matmul_tflops: float
    memory_tb_s: float
    link_gb_s: float
    per_node: int


@cache
def table() -> Mapping[str, Any]:
    """The file's content."""
    found: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return found


def gpu(name: str) -> Gpu:
    """The GPU of that name. Raises UserError where the table has none."""
    known = table()["gpus"]
    if name not in known:
        raise UserError(f"no rates for the GPU {name!r}{did_you_mean(name, known)} (known: {listing(known)})")
    return Gpu(name, **known[name])


@dataclass
class Rates:
    """The rates of one GPU. What it is asked for and has only an estimate of is noted in ``estimates``."""

    gpu: Gpu
    estimates: dict[str, None] = field(default_factory=dict)

    def forward(self, *, compiled: bool, fp8: bool = False) -> float:
        """Milliseconds of a forward of the reference model, a sample."""
        precision = "fp8" if fp8 else "exact"
        if (found := self._measured("forward", compiled=compiled, precision=precision)) is not None:
            return found
        what = f"a forward ({'compiled' if compiled else 'eager'}, {precision})"
        compiled_ones = [self._any("forward", compiled=True, precision=p) for p in (precision, "exact")]
        eager = self._any("forward", compiled=False, precision="exact")
        self._note(f"{what}: eager, times fp8's gain where blocks are compiled")
        return eager * compiled_ones[0] / compiled_ones[1]

    def training(self, *, compiled: bool, checkpointed: float, lora: bool) -> float:
        """Milliseconds of a training forward and backward of the reference model, a sample, with a share of its blocks
        recomputed."""
        without = 0.0 if checkpointed == 1 else self._training(compiled, False, lora)
        with_all = 0.0 if checkpointed == 0 else self._training(compiled, True, lora)
        return (1 - checkpointed) * without + checkpointed * with_all

    def _training(self, compiled: bool, checkpointed: bool, lora: bool) -> float:
        """With all blocks recomputed or none; of LoRA or all weights where they were measured apart."""
        for tune in ("lora" if lora else "full", None):
            found = self._measured("training", compiled=compiled, checkpointed=checkpointed, tune=tune)
            if found is not None:
                if tune is None:
                    self._note("training: one rate for LoRA and for all weights")
                return found
        self._note("training without recomputation, uncompiled: as recomputation saves where blocks are compiled")
        saved = self._training(True, False, lora) / self._training(True, True, lora)
        return saved * self._training(False, True, lora)

    def decode(self) -> float:
        """Milliseconds to decode an image of the reference size."""
        return self._any("decode")

    def score(self, kind: str) -> float | None:
        """Milliseconds to score an image by a scorer of this kind; None where nothing is known of it."""
        return self._measured("score", scorer=kind)

    def guess(self, name: str) -> float:
        self._note(f"{name.replace('_', ' ')}: {table()['guesses'][name]:g}, a guess")
        return float(table()["guesses"][name])

    def _any(self, what: str, **of: object) -> float:
        found = self._measured(what, **of)
        assert found is not None, f"rates.yaml has no {what} {of}"
        return found

    def _measured(self, what: str, **of: object) -> float | None:
        """The rate of this GPU, or another's scaled by the ratio of their matmul peaks; None where none has it."""
        found = {rate["gpu"]: float(rate["ms"]) for rate in _rates(what, of)}
        if self.gpu.key in found:
            return found[self.gpu.key]
        for key, ms in found.items():
            other = gpu(key)
            self._note(f"{what}: the {other.name}'s, by the ratio of matmul peaks")
            return ms * other.matmul_tflops / self.gpu.matmul_tflops
        return None

    def _note(self, text: str) -> None:
        self.estimates[text] = None


def _rates(what: str, of: Mapping[str, object]) -> Iterator[Mapping[str, Any]]:
    for rate in table()["rates"]:
        if rate["what"] == what and all(rate.get(key) == value for key, value in of.items()):
            yield rate
