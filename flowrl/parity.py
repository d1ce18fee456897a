"""Scores of the official packages and of ours on the same random weights, side by side.

Equal scores on random weights show that the same computation runs: preprocessing, tokens, architecture, formula. They
say nothing of what the files of the real weights hold.
"""

from __future__ import annotations

import ctypes
import gc
import shlex
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from flowrl.atomic import write_json, write_text
from flowrl.errors import UserError, did_you_mean, listing
from flowrl.parity_inputs import FEW, PROMPTS, pictures
from flowrl.protocols import ScorerConfig
from flowrl.rewards.random_checkpoints import SEED, Size, make_checkpoint
from flowrl.rewards.worker import Worker, WorkerScorer
from flowrl.types import Prompt
from flowrl.workers import environments
from flowrl.workers.flowrl_worker import versions

CPU = torch.device("cpu")
Say = Callable[[str], None]
Status = Literal["pass", "FAIL"]


@dataclass(frozen=True)
class Case:
    """A scorer of ours and its official code. ``options`` and ``fields`` say where a checkpoint lies, to each."""

    worker: str
    official: str
    tolerance: float
    packages: tuple[str, ...]
    options: Callable[[Path, Size], Mapping[str, Any]]
    fields: Mapping[str, Any]


TINY_TRUNK = {"img_size": 224, "patch_size": 16, "embed_dim": 256, "depth": 2, "num_heads": 4}


def _hps_options(folder: Path, size: Size) -> dict[str, Any]:
    configs = {"model_configs": str(folder / "model_configs")} if size == "tiny" else {}
    return {"weights": str(folder / "HPS_v2.1_compressed.pt"), **configs}


def _image_reward_options(folder: Path, size: Size) -> dict[str, Any]:
    trunk = {"trunk": TINY_TRUNK} if size == "tiny" else {}
    files = {"weights": str(folder / "ImageReward.pt"), "med_config": str(folder / "med_config.json")}
    return {**files, "tokenizer_in": str(folder), **trunk}


CASES: dict[str, Case] = {
    "hps": Case("hpsv2", "hpsv2.score, v2.1", 1e-6, ("open_clip_torch",), _hps_options, {}),
    "clip": Case(
        "open_clip",
        "open_clip, cosine",
        1e-6,
        ("open_clip_torch",),
        lambda folder, _: {"model": f"local-dir:{folder}"},
        {},
    ),
    "pickscore": Case(
        "pickscore",
        "the authors' README, x100 scale",
        1e-4,
        ("transformers",),
        lambda folder, _: {"model": str(folder), "processor": str(folder / "processor")},
        {"scale": "raw"},
    ),
    "image_reward": Case("image_reward", "ImageReward.score", 1e-5, ("transformers",), _image_reward_options, {}),
}


@dataclass(frozen=True)
class Row:
    """One scorer. ``pairs`` were scored by both; ``spread`` is the range of the official scores."""

    kind: str
    official: str
    pairs: int
    spread: float
    difference: float | None
    tolerance: float
    refused: Mapping[str, str]
    """Picture -> why the official code does not judge it; ours does."""
    missing: tuple[str, ...]
    """Pictures that the official code judges and ours does not."""
    versions: Mapping[str, Mapping[str, str | None]]
    seconds: Mapping[str, float]

    @property
    def status(self) -> Status:
        """A difference proves something only where scores vary far more than the tolerance."""
        close = self.difference is not None and self.difference <= self.tolerance
        return "pass" if close and not self.missing and self.spread > 100 * self.tolerance else "FAIL"


@dataclass(frozen=True)
class Report:
    """All rows, and what they were measured with."""

    command: str
    device: str
    seed: int
    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        return all(row.status == "pass" for row in self.rows)

    def json(self) -> dict[str, Any]:
        rows = [asdict(row) | {"status": row.status} for row in self.rows]
        return asdict(self) | {"rows": rows, "passed": self.passed}

    def markdown(self) -> str:
        """The table, the command that made it, and the versions on both sides."""
        head = ["scorer", "official code", "pairs", "spread", "largest difference", "tolerance", ""]
        lines = [f"`{self.command}` on {self.device}; random weights of seed {self.seed}, float32.", ""]
        lines += [f"| {' | '.join(head)} |", "|---|---|---|---|---|---|---|"]
        for row in self.rows:
            difference = "none" if row.difference is None else f"{row.difference:.1e}"
            cells = [row.kind, row.official, str(row.pairs), f"{row.spread:.3g}", difference, f"{row.tolerance:g}"]
            lines.append(f"| {' | '.join([*cells, row.status])} |")
        lines.append("")
        for row in self.rows:
            official, ours = (_listed(row.versions[side]) for side in ("official", "ours"))
            took = f"{row.seconds['official']:.0f} s and {row.seconds['ours']:.0f} s"
            lines.append(f"- {row.kind}: official {official}; ours {ours}; {took}")
            lines += [f"  - the official code refuses {name}: {why}" for name, why in row.refused.items()]
            lines += [f"  - ours does not judge {name}" for name in row.missing]
        return "\n".join(lines)


def verify(size: Size, only: Sequence[str] | None, output: Path, *, say: Say = print) -> Report:
    """Compare each scorer, and write ``parity.md`` and ``parity.json``.

    Environments that are not there are built first. One checkpoint at a time lies on the disk, one model in memory.
    """
    kinds = tuple(only) if only else tuple(CASES)
    for kind in kinds:
        if kind not in CASES:
            raise UserError(f"--only: {kind!r} is not compared{did_you_mean(kind, CASES)} (known: {listing(CASES)})")
    from flowrl.summary import device_name

    for name in dict.fromkeys(Worker(script=CASES[kind].worker).shipped for kind in kinds):
        if name in environments.names() and not environments.is_built(name):
            say(f"building the environment {name}")
            environments.build(name)
    options = f" --only {shlex.quote(','.join(only))}" if only else ""
    output.mkdir(parents=True, exist_ok=True)
    rows = []
    for kind in kinds:
        say(f"{kind}: random weights, {size}")
        with tempfile.TemporaryDirectory(prefix="flowrl-parity-") as folder:
            rows.append(compare(kind, size, Path(folder) / kind, say))
    report = Report(f"flowrl scorers verify --size {size}{options}", device_name(CPU), SEED, tuple(rows))
    write_text(output / "parity.md", report.markdown() + "\n")
    write_json(output / "parity.json", report.json())
    return report


def compare(kind: str, size: Size, folder: Path, say: Say) -> Row:
    """Both sides on one checkpoint, which is made in ``folder``."""
    case = CASES[kind]
    make_checkpoint(kind, folder, size)
    _give_memory_back()
    shown = pictures(FEW if size == "full" else None)
    texts = PROMPTS[:3] if size == "full" else PROMPTS
    pairs = [(name, text) for text in texts for name in shown]
    say(f"{kind}: {len(pairs)} pairs, official code")
    started = time.monotonic()
    official = Worker(script=case.worker, options=case.options(folder, size), batch_size=len(pairs), timeout=7200).load(
        CPU
    )
    assert isinstance(official, WorkerScorer)
    theirs, errors = official.answers([shown[name] for name, _ in pairs], [text for _, text in pairs])
    identity = official.process.identity if official.process else {}
    official.close()
    between = time.monotonic()
    say(f"{kind}: {len(pairs)} pairs, ours")
    scorer = ScorerConfig.model_validate({"kind": kind, "source": str(folder), **case.fields}).load(CPU)
    prompts = [Prompt(text, index) for index, (_, text) in enumerate(pairs)]
    ours = scorer.score([shown[name] for name, _ in pairs], prompts)
    ended = time.monotonic()
    del scorer
    _give_memory_back()
    both = [(their, float(value)) for their, value in zip(theirs, ours.values, strict=True) if their is not None]
    refused = {name: error for (name, _), error in zip(pairs, errors, strict=True) if error}
    silent = [name for (name, _), valid in zip(pairs, ours.valid.tolist(), strict=True) if not valid]
    scores = [their for their, _ in both]
    return Row(
        kind=kind,
        official=case.official,
        pairs=len(both),
        spread=max(scores) - min(scores) if scores else 0.0,
        difference=max((abs(their - our) for their, our in both), default=None),
        tolerance=case.tolerance,
        refused=refused,
        missing=tuple(dict.fromkeys(silent)),
        versions={"official": identity.get("packages", {}), "ours": versions((*case.packages, "torch", "pillow"))},
        seconds={"official": round(between - started, 1), "ours": round(ended - between, 1)},
    )


def _give_memory_back() -> None:
    """To the system, for the next process: the C library would keep the gigabytes of a model that is gone."""
    gc.collect()
    with suppress(AttributeError, OSError):  # of another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)


def _listed(found: Mapping[str, str | None]) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.items())
