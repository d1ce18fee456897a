"""Images from a model or a finished run, through plain diffusers: the same for equal prompts, seeds and settings.

Axes: B prompts of a batch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from flowrl.data import load_prompts
from flowrl.errors import UserError, did_you_mean, listing
from flowrl.hub import HUB_ID
from flowrl.monitors import WEIGHTS_BEST
from flowrl.output import RECIPE
from flowrl.policies.diffusers_policy import DiffusersConfig, config_of
from flowrl.policies.pipeline_folder import digest
from flowrl.policies.quiet import quietly
from flowrl.policies.shape import PipelineShape
from flowrl.protocols import PolicyConfig
from flowrl.recipe import EvaluationSection, load_model, load_recipe
from flowrl.recipe_files import model_names
from flowrl.seeds import derive_seed
from flowrl.sigmas import Grid
from flowrl.types import Prompt

Sigmas = Literal["pipeline", "recipe"]
Weights = Literal["last", "best"]
RUN_WEIGHTS: dict[Weights, tuple[str, ...]] = {"last": ("weights_ema", "weights"), "best": (WEIGHTS_BEST,)}
"""The first there is: what the run's evaluation measured."""
NO_WEIGHTS: dict[Weights, str] = {
    "last": "its training has not ended; go on with --resume",
    "best": "evaluation.keep_best names no monitor, or nothing was evaluated",
}
BATCH_PIXELS = 1 << 18
"""Pixels that are drawn at once: 64 images of 64x64, 1 of 720x720."""
PIPELINE_STEPS = 28
"""The pipelines' own default."""


# ---- what is sampled from


@dataclass(frozen=True)
class Source:
    """What is sampled from: a pipeline, where a run trained it the run's weights, and the rollouts' grid if known."""

    config: DiffusersConfig
    weights: Path | None = None
    grid: Grid | None = None
    evaluation: EvaluationSection | None = None
    """What the run's recipe or the model fragment says of evaluations."""
    prompts: str | None = None
    """Its test prompts."""
    recipe_digest: str | None = None

    @property
    def num_steps(self) -> int:
        """Denoising steps unless told: those of the held-out evaluation, else the pipeline's own."""
        return PIPELINE_STEPS if self.evaluation is None else self.evaluation.num_steps

    def digest(self) -> str:
        """A content hash of the pipeline, and of the run's weights."""
        base = digest(self.config.folder(), self.config.components())
        return base if self.weights is None else f"{base}+{digest(self.weights, ('.',))}"


def find_source(model_or_run: str, weights: Weights = "last") -> Source:
    """A run's folder, the name or file of a model fragment, or a pipeline's folder or hub id.

    ``weights``: those that a run ended with, or the best by its monitor (``evaluation.keep_best``).
    """
    folder = Path(model_or_run)
    if (folder / RECIPE).is_file():
        recipe = load_recipe(folder / RECIPE)
        found = next((folder / name for name in RUN_WEIGHTS[weights] if (folder / name).is_dir()), None)
        if found is None:
            raise UserError(f"{folder} holds no {RUN_WEIGHTS[weights][-1]} yet: {NO_WEIGHTS[weights]}")
        grid = recipe.grid.levels()
        return Source(_drawable(recipe.model), found, grid, recipe.evaluation, recipe.data.test, recipe.digest())
    if weights == "best":
        raise UserError(f"--weights best: {model_or_run} is not a run's folder (with {RECIPE})")
    if model_or_run in model_names() or folder.suffix == ".yaml":
        model = load_model(model_or_run)
        grid = model.grid.levels()
        return Source(_drawable(model.model), None, grid, model.evaluation, model.data.test if model.data else None)
    if folder.is_dir() or HUB_ID.fullmatch(model_or_run):
        return Source(config_of(model_or_run))
    known = model_names()
    raise UserError(
        f"{model_or_run!r} is neither a run's folder (with {RECIPE}), a model ({listing(known)}), "
        f"a pipeline's folder, nor a hub id 'owner/name'{did_you_mean(model_or_run, known)}"
    )


def _drawable(config: PolicyConfig) -> DiffusersConfig:
    if not isinstance(config, DiffusersConfig):
        raise UserError(f"images are drawn with diffusers' pipelines; model kind {config.kind} is none")
    return config


# ---- how it is drawn


@dataclass(frozen=True)
class Drawing:
    """How images are drawn. With the model, a prompt and its place this is all that an image depends on."""

    num_steps: int
    sigmas: Sigmas
    """Noise levels of the pipeline's own scheduler, or of the recipe's rollouts: their grid and static shift."""
    height: int
    width: int
    seed: int
    hybrid_steps: int | None
    """The first steps are the run's and all others the untrained model's (MixGRPO's hybrid); None: all the run's."""
    guidance: float
    text_tokens: int


def drawing(
    source: Source,
    *,
    num_steps: int | None = None,
    sigmas: Sigmas = "pipeline",
    height: int | None = None,
    width: int | None = None,
    seed: int = 0,
    hybrid_steps: int | None = None,
) -> Drawing:
    """What is not given is the model's own. Raises UserError where something does not fit the model."""
    if sigmas == "recipe" and source.grid is None:
        raise UserError(f"--sigmas recipe: {source.config.source} is a bare pipeline; name a run or a model fragment")
    grid_steps = source.grid.num_steps if sigmas == "recipe" and source.grid else source.num_steps
    steps = num_steps or grid_steps
    if hybrid_steps is not None and source.weights is None:
        raise UserError("--hybrid-steps: the last steps are the untrained model's, so the first need a run's weights")
    if hybrid_steps is not None and not 0 <= hybrid_steps <= steps:
        raise UserError(f"--hybrid-steps must be 0 to {steps}, the number of steps, got {hybrid_steps}")
    shape = _shape(source, height, width)
    guidance = 1.0 if source.config.guidance is None else source.config.guidance
    return Drawing(steps, sigmas, shape.height, shape.width, seed, hybrid_steps, guidance, shape.text_tokens)


def _shape(source: Source, height: int | None, width: int | None) -> PipelineShape:
    sizes = {name: size for name, size in (("height", height), ("width", width)) if size is not None}
    return source.config.model_copy(update=sizes).shape()


def image_seed(seed: int, index: int, j: int = 0) -> int:
    """The seed of the noise of a prompt's image j: ``torch.Generator().manual_seed(...)``, float32, on the CPU."""
    return derive_seed(seed, "sample", index, *([j] if j else []))


class Sampler:
    """A pipeline on a device, ready to draw. The noise of an image depends on (seed, prompt's index, j) alone.

    Its pixels depend also, by rounding, on the prompts that it is drawn with: for equal files draw equal batches.
    """

    def __init__(self, source: Source, how: Drawing, device: torch.device) -> None:
        self.source, self.how, self.device = source, how, device
        self.shape = _shape(source, how.height, how.width)
        self.batch = max(1, BATCH_PIXELS // (how.height * how.width))
        """Images that are drawn at once."""

    def draw(self, prompts: Sequence[Prompt], j: int = 0) -> Tensor:
        """Image j of each prompt, [B, 3, H, W] in 0..1, float32, on the CPU."""
        pipeline, how = self._pipeline, self.how
        noise = torch.stack([self._noise(prompt.index, j) for prompt in prompts])
        with self._hybrid() as on_step_end, quietly():  # CLIP's part of a long prompt is cut at 77 tokens, as always
            images: Tensor = pipeline(
                prompt=[prompt.text for prompt in prompts],
                latents=noise.to(pipeline.device, pipeline.transformer.dtype),
                height=how.height,
                width=how.width,
                guidance_scale=how.guidance,
                max_sequence_length=how.text_tokens,
                output_type="pt",
                callback_on_step_end=on_step_end,
                **self._steps,
            ).images
        return images.float().cpu()

    def _noise(self, index: int, j: int) -> Tensor:
        generator = torch.Generator().manual_seed(image_seed(self.how.seed, index, j))
        return torch.randn(self.shape.latent_shape, generator=generator)

    @property
    def _steps(self) -> dict[str, Any]:
        steps: dict[str, Any] = {"num_inference_steps": self.how.num_steps}
        if self.how.sigmas == "recipe" and self.source.grid is not None:
            steps["sigmas"] = list(replace(self.source.grid, num_steps=self.how.num_steps).u[:-1])  # yet to be shifted
        return steps

    @cached_property
    def _pipeline(self) -> Any:
        pipeline = load_pipeline(self.source, self.device)
        if self.how.sigmas == "recipe" and self.source.grid is not None:
            from diffusers import FlowMatchEulerDiscreteScheduler

            pipeline.scheduler = FlowMatchEulerDiscreteScheduler(
                shift=self.source.grid.shift, use_dynamic_shifting=False
            )
        return pipeline

    # ---- the run's weights first, then the untrained model's

    @contextmanager
    def _hybrid(self) -> Iterator[Callable[..., dict[str, Any]] | None]:
        """What the pipeline calls after each step; inside, its last steps are the untrained model's."""
        count = self.how.hybrid_steps
        if count is None:
            yield None
            return
        if count == 0:
            self._switch(trained=False)

        def after(pipeline: Any, step: int, time: Tensor, values: dict[str, Any]) -> dict[str, Any]:
            if step + 1 == count:
                self._switch(trained=False)
            return values

        try:
            yield after
        finally:
            self._switch(trained=True)

    def _switch(self, *, trained: bool) -> None:
        """Between the run's transformer and the untrained one; adapters are switched off instead."""
        if _has_transformer(self.source.weights):
            self._pipeline.transformer = self._trained if trained else self._untrained
        elif trained:
            self._pipeline.enable_lora()
        else:
            self._pipeline.disable_lora()

    @cached_property
    def _trained(self) -> Any:
        return self._pipeline.transformer

    @cached_property
    def _untrained(self) -> Any:
        trained = self._trained  # noted before the pipeline first gets another
        config = self.source.config
        return _load_transformer(config, config.folder(), trained.dtype).to(self.device)


def load_pipeline(source: Source, device: torch.device) -> Any:
    """The pipeline with the run's weights in it, LoRA factors unmerged."""
    config, folder = source.config, source.config.folder()
    dtype = config.frozen_dtype(folder) if device.type == "cuda" else torch.float32
    trained = source.weights if _has_transformer(source.weights) else None
    transformer = _load_transformer(config, trained or folder, dtype)
    with quietly():
        parts = {"transformer": transformer, "torch_dtype": dtype, "local_files_only": True}
        pipeline = config.pipeline_class.from_pretrained(folder, **parts)
        if source.weights is not None and trained is None:
            pipeline.load_lora_weights(source.weights)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def _has_transformer(weights: Path | None) -> bool:
    """Whether a run trained the whole transformer, and not adapters."""
    return weights is not None and (weights / "transformer").is_dir()


def _load_transformer(config: DiffusersConfig, folder: Path, dtype: torch.dtype) -> Any:
    with quietly():
        return config.transformer_class.from_pretrained(folder, subfolder="transformer", torch_dtype=dtype)


# ---- the command


def sample(
    model_or_run: str,
    *,
    prompts: str,
    output: Path,
    num_steps: int | None = None,
    sigmas: Sigmas = "pipeline",
    seed: int = 0,
    weights: Weights = "last",
) -> int:
    """Draw an image per prompt into ``output`` with ``manifest.jsonl``; returns their number.

    The noise of a prompt depends on ``seed`` and the prompt's index alone. ``sigmas``: the pipeline's own scheduler, or
    the grid and static shift of the recipe's rollouts.
    """
    source = find_source(model_or_run, weights)
    how = drawing(source, num_steps=num_steps, sigmas=sigmas, seed=seed)
    loaded = load_prompts(prompts)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output {output} is in use; name a new folder")
    sampler = Sampler(source, how, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    output.mkdir(parents=True, exist_ok=True)
    model_digest = source.digest()
    with (output / "manifest.jsonl").open("w", encoding="utf-8") as manifest:
        for chunk in (loaded[start : start + sampler.batch] for start in range(0, len(loaded), sampler.batch)):
            for prompt, image in zip(chunk, sampler.draw(chunk), strict=True):
                file = f"{prompt.index:06d}.png"
                save_image(image, output / file)
                line = {
                    "prompt": prompt.text,
                    "index": prompt.index,
                    "seed": image_seed(seed, prompt.index),
                    "file": file,
                    "model_digest": model_digest,
                }
                manifest.write(json.dumps(line, ensure_ascii=False) + "\n")
    return len(loaded)


def save_image(image: Tensor, path: Path) -> None:
    """An image [3, H, W] in 0..1 as the file that ``path``'s suffix names."""
    from PIL import Image

    pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(path)
