"""One image per prompt from a model or a finished run, through plain diffusers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from flowrl.data import load_prompts
from flowrl.errors import UserError, did_you_mean, listing
from flowrl.hub import HUB_ID
from flowrl.monitors import WEIGHTS_BEST
from flowrl.output import RECIPE
from flowrl.policies.flux import Flux
from flowrl.policies.pipeline_folder import digest, locate, read_json
from flowrl.policies.quiet import quietly
from flowrl.protocols import PolicyConfig
from flowrl.recipe import load_model, load_recipe
from flowrl.recipe_files import model_names
from flowrl.seeds import derive_seed
from flowrl.sigmas import Grid
from flowrl.types import Prompt

if TYPE_CHECKING:
    from diffusers import FluxPipeline

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
"""FluxPipeline's own default."""


@dataclass(frozen=True)
class Source:
    """What is sampled from: a pipeline, where a run trained it the run's weights, and the rollouts' grid if known."""

    config: Flux
    weights: Path | None = None
    grid: Grid | None = None
    num_steps: int = PIPELINE_STEPS

    def digest(self) -> str:
        """A content hash of the pipeline, and of the run's weights."""
        base = digest(locate(self.config.source))
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
        grid = Grid(recipe.grid.num_steps, recipe.grid.shift)
        return Source(_flux(recipe.model), found, grid, recipe.evaluation.num_steps)
    if weights == "best":
        raise UserError(f"--weights best: {model_or_run} is not a run's folder (with {RECIPE})")
    if model_or_run in model_names() or folder.suffix == ".yaml":
        model = load_model(model_or_run)
        grid = Grid(model.grid.num_steps, model.grid.shift)
        return Source(_flux(model.model), None, grid, model.evaluation.num_steps)
    if folder.is_dir() or HUB_ID.fullmatch(model_or_run):
        return Source(Flux(source=model_or_run))
    known = model_names()
    raise UserError(
        f"{model_or_run!r} is neither a run's folder (with {RECIPE}), a model ({listing(known)}), "
        f"a pipeline's folder, nor a hub id 'owner/name'{did_you_mean(model_or_run, known)}"
    )


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
    if sigmas == "recipe" and source.grid is None:
        raise UserError(f"--sigmas recipe: {model_or_run} is a bare pipeline; name a run or a model fragment instead")
    loaded = load_prompts(prompts)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output {output} is in use; name a new folder")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pipeline = load_pipeline(source, device)
    output.mkdir(parents=True, exist_ok=True)
    model_digest = source.digest()
    with (output / "manifest.jsonl").open("w", encoding="utf-8") as manifest:
        for prompt, image in draw(pipeline, source, loaded, num_steps=num_steps, sigmas=sigmas, seed=seed):
            file = f"{prompt.index:06d}.png"
            _save(image, output / file)
            line = {
                "prompt": prompt.text,
                "index": prompt.index,
                "seed": image_seed(seed, prompt.index),
                "file": file,
                "model_digest": model_digest,
            }
            manifest.write(json.dumps(line, ensure_ascii=False) + "\n")
    return len(loaded)


def draw(
    pipeline: FluxPipeline,
    source: Source,
    prompts: Sequence[Prompt],
    *,
    num_steps: int | None = None,
    sigmas: Sigmas = "pipeline",
    seed: int = 0,
) -> Iterator[tuple[Prompt, Tensor]]:
    """Each prompt with its image [3, H, W] in 0..1, float32, on the CPU."""
    shape = source.config.shape()
    how: dict[str, Any] = {"num_inference_steps": num_steps or source.num_steps}
    if sigmas == "recipe" and source.grid is not None:
        from diffusers import FlowMatchEulerDiscreteScheduler

        grid = Grid(num_steps or source.grid.num_steps, source.grid.shift)
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=grid.shift, use_dynamic_shifting=False)
        how = {"num_inference_steps": grid.num_steps, "sigmas": list(grid.u[:-1])}  # the scheduler shifts them
    batch = max(1, BATCH_PIXELS // (shape.height * shape.width))
    for start in range(0, len(prompts), batch):
        chunk = prompts[start : start + batch]
        noise = torch.stack([_noise(seed, prompt.index, shape.latent_shape) for prompt in chunk])
        images = pipeline(
            prompt=[prompt.text for prompt in chunk],
            latents=noise.to(pipeline.device, pipeline.transformer.dtype),
            height=shape.height,
            width=shape.width,
            guidance_scale=source.config.guidance,
            max_sequence_length=shape.text_tokens,
            output_type="pt",
            **how,
        ).images
        yield from zip(chunk, images.float().cpu(), strict=True)


def image_seed(seed: int, index: int) -> int:
    """The seed of a prompt's noise: ``torch.Generator().manual_seed(...)``, float32, on the CPU."""
    return derive_seed(seed, "sample", index)


def load_pipeline(source: Source, device: torch.device) -> FluxPipeline:
    """The pipeline with the run's weights in it, LoRA factors unmerged."""
    from diffusers import FluxPipeline, FluxTransformer2DModel

    folder = locate(source.config.source)
    dtype = _dtype(source.config, folder, device)
    trained = source.weights is not None and (source.weights / "transformer").is_dir()
    with quietly():
        transformer = FluxTransformer2DModel.from_pretrained(
            source.weights if trained else folder, subfolder="transformer", torch_dtype=dtype
        )
        parts = {"transformer": transformer, "torch_dtype": dtype, "local_files_only": True}
        pipeline = FluxPipeline.from_pretrained(folder, **parts)
        if source.weights is not None and not trained:
            pipeline.load_lora_weights(source.weights)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def _dtype(config: Flux, folder: Path, device: torch.device) -> torch.dtype:
    """bf16 where the model is stored in it and a GPU runs it, else fp32."""
    stored = read_json(folder / "text_encoder" / "config.json")
    in_bf16 = "bfloat16" in (stored.get("dtype"), stored.get("torch_dtype"))
    wanted = config.dtype == "bf16" or (config.dtype == "auto" and in_bf16)
    return torch.bfloat16 if wanted and device.type == "cuda" else torch.float32


def _noise(seed: int, index: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(image_seed(seed, index)))


def _save(image: Tensor, path: Path) -> None:
    from PIL import Image

    pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(path)


def _flux(config: PolicyConfig) -> Flux:
    if not isinstance(config, Flux):
        raise UserError(f"flowrl sample draws with model kind flux, this one is {config.kind}")
    return config
