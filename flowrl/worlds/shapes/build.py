"""Reproduces the embedded world's weights from a seed, in resumable stages:

    data -> vae -> transformer -> fresh -> refine -> package -> auditor -> measure

A stage whose output belongs to the same settings, sources and earlier stages is skipped; a killed long stage goes on
from its checkpoint. Several GPUs may share the stages that train the transformer, each with batches of its own:

    torchrun --nproc-per-node 3 -m flowrl world build shapes --stage refine
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from flowrl import atomic
from flowrl.errors import UserError, did_you_mean, listing
from flowrl.worlds.shapes import measure
from flowrl.worlds.shapes.auditor import Auditor, load_auditor, save_auditor
from flowrl.worlds.shapes.auditor_training import make_auditor_data, train_auditor
from flowrl.worlds.shapes.autoencoder import encode_all, train_vae
from flowrl.worlds.shapes.dataset import make_dataset
from flowrl.worlds.shapes.flow import train_flow
from flowrl.worlds.shapes.model_card import model_card
from flowrl.worlds.shapes.parts import build_pipeline, save_pipeline
from flowrl.worlds.shapes.settings import Settings
from flowrl.worlds.shapes.stages import Stage, digest, source_digest
from flowrl.worlds.shapes.vocabulary import vocabulary

SOURCES = (
    "scene",
    "forms",
    "render",
    "draw",
    "words",
    "looks",
    "relations",
    "riddles",
    "grammar",
    "corruption",
    "truth",
)
"""The modules that the data depend on."""
STAGES = ("data", "vae", "transformer", "fresh", "refine", "package", "auditor", "measure")
TOGETHER = ("transformer", "refine")
"""The stages that several processes train together; the first process runs the others alone."""


def build(
    output: Path,
    *,
    stages: Sequence[str] = STAGES,
    settings: Settings | None = None,
    device: str | torch.device | None = None,
    minutes: float | None = None,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Runs the stages, in order, in ``output``; the pipeline is then in ``output/pipeline``.

    ``minutes`` bounds the training of each stage that trains. Returns each stage's record, in the first process that
    torchrun started; the others return nothing. Raises UserError for an unknown stage or one whose earlier stages have
    not been run.
    """
    if unknown := next((stage for stage in stages if stage not in STAGES), None):
        raise UserError(f"--stage {unknown}: allowed are {listing(STAGES)}{did_you_mean(unknown, STAGES)}")
    records = {}
    with _process_group(device) as device:
        builder = Builder(output, settings or Settings(), device=device, minutes=minutes, log=log)
        for name in STAGES:
            if name in stages:
                records[name] = builder.run(name)
                if dist.is_initialized():
                    dist.barrier()
    return {name: record for name, record in records.items() if record}


@contextmanager
def _process_group(device: str | torch.device | None) -> Iterator[torch.device]:
    """This process's device; where torchrun started it, inside a process group."""
    on_gpu = torch.cuda.is_available() if device is None else torch.device(device).type == "cuda"
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield torch.device(device or ("cuda" if on_gpu else "cpu"))
        return
    own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(own)
    # The other processes wait through the stages that the first one runs alone.
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(hours=12))
    try:
        yield own
    finally:
        dist.destroy_process_group()


class Builder:
    """The stages over one output folder."""

    def __init__(
        self,
        output: Path,
        settings: Settings,
        *,
        device: torch.device,
        minutes: float | None = None,
        log: Callable[[str], None] = print,
    ) -> None:
        self.output, self.settings, self.log, self.device = output, settings, log, device
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self._limits: Any = {"time_limit": None if minutes is None else 60 * minutes, "log": log}
        values = asdict(settings)
        own = {
            "data": ("seed", "num_scenes", "wrong"),
            "vae": ("sizes", "vae_steps", "vae_batch", "vae_lr", "kl_weight", "warmup", "ema"),
            "transformer": ("sizes", "steps", "batch", "lr", "warmup", "ema", "shift", "even", "guidance"),
            "fresh": ("seed", "num_scenes", "refine_wrong"),
            "refine": ("refine_steps", "refine_lr", "batch", "warmup", "ema", "shift", "even", "guidance"),
            "package": (),
            "auditor": (
                *("seed", "auditor_scenes", "auditor_steps", "auditor_batch", "auditor_lr"),
                *("warmup", "ema"),
            ),
            "measure": ("num_prompts", "num_audited"),
        }
        needs = {"data": (), "vae": ("data",), "transformer": ("data", "vae"), "fresh": ()}
        needs |= {"refine": ("transformer", "fresh"), "package": ("refine",)}
        needs |= {"auditor": ("vae",), "measure": ("package", "auditor")}
        self.needs: dict[str, tuple[str, ...]] = needs
        here = Path(__file__).parent
        sources = [here / f"{name}.py" for name in SOURCES]
        self.stages: dict[str, Stage] = {}
        for name in STAGES:
            upstream = [self.stages[need].digest for need in needs[name]]
            about = {key: values[key] for key in own[name]}
            drawn = source_digest(sources) if name in ("data", "fresh", "auditor") else ""
            self.stages[name] = Stage(output / name, digest(name, about, upstream, drawn), log)

    def run(self, name: str) -> dict[str, Any]:
        """Runs one stage unless it is done; returns its record."""
        stage = self.stages[name]
        if stage.done():
            self.log(f"{name}: done before")
            return stage.result()
        for need in self.needs[name]:
            if not self.stages[need].done():
                raise UserError(f"{self.output}: stage {name} needs {need}, which is not there for these settings")
        if self.rank:
            if name in TOGETHER:
                getattr(self, f"_{name}")(stage, {})
            return {}
        self.log(f"{name}: runs on {self.device}")
        with stage.running() as record:
            getattr(self, f"_{name}")(stage, record)
        return stage.result()

    def _data(self, stage: Stage, record: dict[str, Any]) -> None:
        make_dataset(stage.folder, self.settings)
        record["num_scenes"] = self.settings.num_scenes

    def _vae(self, stage: Stage, record: dict[str, Any]) -> None:
        vae, losses = train_vae(self.images, self.settings, self.device, stage.checkpoint, **self._limits)
        vae.save_pretrained(stage.folder / "model")
        record.update(
            losses,
            hardware=hardware(self.device),
            shift_factor=vae.config.shift_factor,
            scaling_factor=vae.config.scaling_factor,
        )

    def _transformer(self, stage: Stage, record: dict[str, Any]) -> None:
        pipeline = build_pipeline(self.settings.sizes, vocabulary(), seed=self.settings.seed)
        self._train_flow(pipeline, self.stages["data"], self.settings, stage, record)

    def _fresh(self, stage: Stage, record: dict[str, Any]) -> None:
        settings = replace(self.settings, seed=self.settings.seed + 1, wrong=self.settings.refine_wrong)
        make_dataset(stage.folder, settings)
        record["num_scenes"] = settings.num_scenes

    def _refine(self, stage: Stage, record: dict[str, Any]) -> None:
        from diffusers import FluxPipeline

        pipeline = FluxPipeline.from_pretrained(self.stages["transformer"].folder / "pipeline")
        for part in (pipeline.transformer, pipeline.text_encoder, pipeline.text_encoder_2):
            part.requires_grad_(True)
        settings = replace(self.settings, steps=self.settings.refine_steps, lr=self.settings.refine_lr)
        self._train_flow(pipeline, self.stages["fresh"], settings, stage, record)

    def _train_flow(self, pipeline: Any, data: Stage, settings: Settings, stage: Stage, record: dict[str, Any]) -> None:
        pipeline.vae = self.vae()
        images = np.load(data.folder / "images.npy", mmap_mode="c")
        captions = json.loads((data.folder / "captions.json").read_text(encoding="utf-8"))
        latents = encode_all(pipeline.vae, images, self.device)
        losses = train_flow(pipeline, latents, captions, settings, self.device, stage.checkpoint, **self._limits)
        record["losses"] = losses
        record["hardware"] = hardware(self.device)
        record["gpus"] = dist.get_world_size() if dist.is_initialized() else 1
        if self.rank == 0:
            with atomic.new_folder(stage.folder / "pipeline") as temporary:
                save_pipeline(pipeline, temporary)

    def _package(self, stage: Stage, record: dict[str, Any]) -> None:
        source = self.stages["refine"].folder / "pipeline"
        with atomic.new_folder(self.output / "pipeline") as temporary:
            for file in sorted(source.rglob("*")):
                if file.is_file():
                    target = temporary / file.relative_to(source)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(file.read_bytes())
        record.update(weights_of(self.output / "pipeline"))

    def _auditor(self, stage: Stage, record: dict[str, Any]) -> None:
        make_auditor_data(stage.folder, self.settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed + 1)
            auditor = Auditor().to(self.device)
        record["losses"] = train_auditor(
            auditor, stage.folder, self.vae(), self.settings, self.device, stage.checkpoint, **self._limits
        )
        record["hardware"] = hardware(self.device)
        save_auditor(auditor, stage.folder / "auditor.safetensors")

    def _measure(self, stage: Stage, record: dict[str, Any]) -> None:
        auditor = load_auditor(self.stages["auditor"].folder / "auditor.safetensors").to(self.device)
        measured = measure.measure(
            self.output / "pipeline",
            auditor,
            num_prompts=self.settings.num_prompts,
            num_audited=self.settings.num_audited,
            device=self.device,
            output=stage.folder,
            seed=self.settings.seed,
        )
        record.update(measured)
        records = {name: self.stages[name].result() for name in STAGES[:-1]} | {"measure": record}
        atomic.write_json(self.output / "records.json", records)
        atomic.write_text(self.output / "MODEL_CARD.md", model_card(records, self.settings))

    @cached_property
    def images(self) -> np.ndarray:
        images: np.ndarray = np.load(self.stages["data"].folder / "images.npy", mmap_mode="c")
        return images

    def vae(self) -> Any:
        """The trained VAE in fp32, on the device."""
        from diffusers import AutoencoderKL

        vae = AutoencoderKL.from_pretrained(self.stages["vae"].folder / "model")
        return vae.to(self.device).eval().requires_grad_(False)


def weights_of(folder: Path) -> dict[str, Any]:
    """The size of a pipeline's weights on disk, and how many parameters each of its networks has."""
    from safetensors import safe_open

    counts: dict[str, int] = {}
    for file in sorted(folder.rglob("*.safetensors")):
        with safe_open(file, "np") as tensors:
            sizes = [math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys()]  # noqa: SIM118
        counts[file.parent.name] = sum(sizes)
    megabytes = sum(file.stat().st_size for file in folder.rglob("*.safetensors")) / 1e6
    return {"megabytes": round(megabytes, 2), "parameters": counts}


def hardware(device: torch.device) -> str:
    """The device in words."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
