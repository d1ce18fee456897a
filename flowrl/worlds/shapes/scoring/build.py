"""Reproduces the embedded scorers from a seed, in resumable stages:

    renders -> preferences -> clip -> hps, pickscore, image_reward -> agreement

The samples are the built pipeline's where the output folder holds one, otherwise those of the pipeline in the package.
Each stage of a scorer writes ``scorers/<kind>`` in the output folder, in the official format.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from flowrl import atomic
from flowrl.errors import UserError, did_you_mean, listing
from flowrl.hub import sha256
from flowrl.worlds.shapes.build import SOURCES, hardware
from flowrl.worlds.shapes.gallery import PIPELINE
from flowrl.worlds.shapes.judge_identity import judge_digest
from flowrl.worlds.shapes.scoring import agreement, models, training
from flowrl.worlds.shapes.scoring.data import Preferences, make_preferences, make_renders
from flowrl.worlds.shapes.scoring.settings import ScorerSettings
from flowrl.worlds.shapes.stages import Stage, digest, source_digest

Settings = ScorerSettings
KINDS = ("clip", "hps", "pickscore", "image_reward")
STAGES = ("renders", "preferences", *KINDS, "agreement")

_TOWERS = ("embed", "context", "vision", "text")
_SMALL = ("embed", "context", "small_vision", "small_text")
_SHARED = ("seed", "warmup", "ema")
_OWN = {
    "renders": ("seed", "num_renders"),
    "preferences": ("seed", "num_groups", "group", "sample_steps"),
    "clip": ("clip", *_TOWERS, "reading", *_SHARED),
    "hps": ("hps", *_TOWERS, "temperature", *_SHARED),
    "pickscore": ("pickscore", *_SMALL, "temperature", *_SHARED),
    "image_reward": ("image_reward", *_TOWERS, "temperature", *_SHARED),
    "agreement": ("num_prompts", "images_per_prompt", "sample_steps"),
}
_NEEDS: dict[str, tuple[str, ...]] = {
    "renders": (),
    "preferences": (),
    "clip": ("renders",),
    **dict.fromkeys(("hps", "pickscore", "image_reward"), ("renders", "preferences", "clip")),
    "agreement": KINDS,
}


def build(
    output: Path,
    *,
    stages: Sequence[str] = STAGES,
    settings: ScorerSettings | None = None,
    device: str | torch.device | None = None,
    minutes: float | None = None,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Runs the stages, in order, in ``output``; returns each one's record. ``minutes`` bounds each training.

    Raises UserError for an unknown stage or one whose earlier stages have not been run.
    """
    if unknown := next((stage for stage in stages if stage not in STAGES), None):
        raise UserError(f"--stage {unknown}: allowed are {listing(STAGES)}{did_you_mean(unknown, STAGES)}")
    on = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    builder = Builder(output, settings or ScorerSettings(), device=on, minutes=minutes, log=log)
    return {name: builder.run(name) for name in STAGES if name in stages}


class Builder:
    """The stages over one output folder."""

    def __init__(
        self,
        output: Path,
        settings: ScorerSettings,
        *,
        device: torch.device,
        minutes: float | None,
        log: Callable[[str], None],
    ) -> None:
        self.output, self.settings, self.device, self.log = output, settings, device, log
        self._limits = {"time_limit": None if minutes is None else 60 * minutes, "log": log}
        built = output / "pipeline"
        self.pipeline = built if (built / "model_index.json").exists() else PIPELINE
        drawn_by = sha256(self.pipeline / "transformer" / "diffusion_pytorch_model.safetensors")
        world = Path(__file__).parents[1]
        self.judge_digest = judge_digest()
        drawn = source_digest([world / f"{name}.py" for name in SOURCES])
        outside = {
            "renders": (drawn,),
            "preferences": (drawn, drawn_by, self.judge_digest),
            "agreement": (drawn_by, self.judge_digest),
        }
        self.samples = output / "preferences" / f"samples-{digest(drawn_by, self._own('preferences'))}"
        self.stages: dict[str, Stage] = {}
        for name in STAGES:
            upstream = [self.stages[need].digest for need in _NEEDS[name]]
            about = digest(name, self._own(name), upstream, outside.get(name, ()))
            self.stages[name] = Stage(output / name, about, log)

    def _own(self, name: str) -> dict[str, Any]:
        values = asdict(self.settings)
        return {key: values[key] for key in _OWN[name]}

    def run(self, name: str) -> dict[str, Any]:
        """Runs one stage unless it is done; returns its record."""
        stage = self.stages[name]
        if stage.done():
            self.log(f"{name}: done before")
            return stage.result()
        for need in _NEEDS[name]:
            if not self.stages[need].done():
                raise UserError(f"{self.output}: stage {name} needs {need}, which is not there for these settings")
        self.log(f"{name}: runs on {self.device}")
        (self.output / "scorers").mkdir(parents=True, exist_ok=True)
        with stage.running() as record:
            getattr(self, f"_{name}")(stage, record)
        return stage.result()

    def _renders(self, stage: Stage, record: dict[str, Any]) -> None:
        make_renders(stage.folder, self.settings)
        record["captions"] = self.settings.num_renders

    def _preferences(self, stage: Stage, record: dict[str, Any]) -> None:
        made = make_preferences(stage.folder, self.samples, self._load_pipeline, self.settings, log=self.log)
        samples = made.quality[:, : self.settings.group]
        record.update(
            prompts=len(made.quality),
            judge_digest=self.judge_digest,
            gold_of_samples=round(float(samples.mean()), 4),
            gold_of_renders=round(float(made.quality[:, -2].mean()), 4),
            gold_of_broken_renders=round(float(made.quality[:, -1].mean()), 4),
        )

    def _load_pipeline(self) -> Any:
        from diffusers import FluxPipeline

        return FluxPipeline.from_pretrained(self.pipeline).to(self.device)

    def _clip(self, stage: Stage, record: dict[str, Any]) -> None:
        with atomic.new_folder(self.output / "scorers" / "clip") as folder:
            renders = training.Renders.load(self.stages["renders"].folder, models.clip_texts(self.settings, folder))
            model, record["losses"] = training.train_clip(self._school(stage), renders)
            model = model.cpu()
            models.save_clip(model, self.settings, folder)
        torch.save(model.state_dict(), stage.folder / "clip.pt")
        record["hardware"] = hardware(self.device)

    def _hps(self, stage: Stage, record: dict[str, Any]) -> None:
        self._tuned("hps", stage, record)

    def _pickscore(self, stage: Stage, record: dict[str, Any]) -> None:
        self._tuned("pickscore", stage, record)

    def _image_reward(self, stage: Stage, record: dict[str, Any]) -> None:
        self._tuned("image_reward", stage, record)

    def _tuned(self, name: str, stage: Stage, record: dict[str, Any]) -> None:
        """Trains a scorer from the CLIP scorer and preferences."""
        write_texts = models.image_reward_texts if name == "image_reward" else models.clip_texts
        clip = torch.load(self.stages["clip"].folder / "clip.pt", weights_only=True)
        preferences = Preferences.load(self.stages["preferences"].folder)
        first = training.labels(preferences, self.settings, name)
        record["labels_that_agree_with_gold"] = round(training.consistency(preferences, first), 4)
        with atomic.new_folder(self.output / "scorers" / name) as folder:
            tokenize = write_texts(self.settings, folder)
            renders = training.Renders.load(self.stages["renders"].folder, tokenize)
            ids = tokenize(preferences.captions)
            train = getattr(training, f"train_{name}")
            model, record["losses"] = train(self._school(stage), clip, renders, preferences, ids)
            getattr(models, f"save_{name}")(model.cpu(), self.settings, folder)
        record["hardware"] = hardware(self.device)

    def _school(self, stage: Stage) -> training.School:
        return training.School(self.settings, self.device, stage.checkpoint, self._limits)

    def _agreement(self, stage: Stage, record: dict[str, Any]) -> None:
        settings = self.settings
        record.update(
            agreement.measure(
                self.output / "scorers",
                self._load_pipeline(),
                num_prompts=settings.num_prompts,
                per_prompt=settings.images_per_prompt,
                steps=settings.sample_steps,
            )
        )
        record["judge_digest"] = self.judge_digest
        records = {name: self.stages[name].result() for name in STAGES[:-1]} | {"agreement": record}
        atomic.write_json(self.output / "scorers" / "records.json", records)
