"""A kind of policy over a tiny pipeline, beside the plain pipeline that it is compared with."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from policies import tiny_flux, tiny_sd3
from policies.tiny_parts import SIZE, TEXT_TOKENS

from flowrl.policies.diffusers_policy import DiffusersPolicy
from flowrl.protocols import PolicyConfig
from flowrl.sigmas import Grid
from flowrl.types import Cond, Prompt

CPU = torch.device("cpu")
PROMPTS = [Prompt("a cat", 0), Prompt("two red dogs", 1), Prompt("a blue square", 2)]
TEXTS = [prompt.text for prompt in PROMPTS]
LORA = {"rank": 4, "alpha": 6.0}
BUILDERS = {"flux": tiny_flux.build_pipeline, "sd3": tiny_sd3.build_pipeline}
GUIDANCE = {"flux": 3.5, "sd3": 4.5}


@dataclass(frozen=True)
class Kind:
    """``name`` of the kind, ``folder`` of its pipeline, ``cache`` of embeddings."""

    name: str
    folder: Path
    cache: str

    def config(self, **fields: object) -> Any:
        given = {"kind": self.name, "source": str(self.folder), "cache_dir": self.cache, "text_tokens": TEXT_TOKENS}
        return PolicyConfig.model_validate({**given, **fields})

    def load(self, **fields: object) -> DiffusersPolicy:
        return self.config(**fields).load(CPU)

    def pipeline(self) -> Any:
        pipe = self.config().pipeline_class.from_pretrained(self.folder)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def call(
        self,
        pipe: Any,
        x: torch.Tensor,
        num_steps: int,
        output_type: str = "latent",
        size: int = SIZE,
        guidance: float | None = None,
        even: bool = False,
    ) -> torch.Tensor:
        """The pipeline on its own grid, or on the ``even`` unshifted one, which its scheduler then shifts."""
        steps = {"sigmas": list(Grid(num_steps).u[:-1])} if even else {"num_inference_steps": num_steps}
        return pipe(
            prompt=TEXTS,
            height=size,
            width=size,
            latents=x,
            guidance_scale=guidance or GUIDANCE[self.name],
            max_sequence_length=TEXT_TOKENS,
            output_type=output_type,
            **steps,
        ).images


def latents(policy: DiffusersPolicy, rows: int = len(PROMPTS), seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, *policy.latent_shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def euler(policy: DiffusersPolicy, x: torch.Tensor, sigmas: tuple[float, ...], cond: Cond) -> torch.Tensor:
    for sigma, sigma_next in itertools.pairwise(sigmas):
        x = x - (sigma - sigma_next) * policy.velocity(x, torch.full((len(x),), sigma), cond)
    return x


def train_randomly(policy: DiffusersPolicy) -> None:
    """Moves every trainable parameter, as training would."""
    generator = torch.Generator().manual_seed(1)
    for parameter in policy.module.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
