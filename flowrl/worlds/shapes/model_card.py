"""The card beside the weights: every number comes from the build's own records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowrl.worlds.shapes.settings import Settings

CARD = """# shapes: a tiny FLUX

A `FluxPipeline` of 2.4 M transformer parameters that draws 64x64 pictures of coloured shapes, arrows, people, letters
and flags from English sentences. It exists to be trained further: part of its training captions were wrong on purpose.

```python
from diffusers import FluxPipeline

pipe = FluxPipeline.from_pretrained("flowrl/worlds/shapes/pipeline")
pipe("a red circle above a blue star", height=64, width=64, num_inference_steps=28, guidance_scale=3.5,
     max_sequence_length=32).images[0]
```

- Weights: {megabytes} MB of safetensors; transformer and VAE stored in bf16, text encoders in fp32.
- Text: word-level CLIP and T5 tokenizers, 32 tokens, no padding mask (as FLUX does); both encoders were trained along
  with the transformer and then frozen. Other words are spelled and mean nothing to the model.
- Guidance: the embedding is conditioned on values of {guidance}, drawn independently of the picture. It is there so
  that the production path runs; it steers nothing.
- Scheduler: Euler, static shift {shift:g}.

## How it was made

Command: `flowrl world build shapes --output DIR`, seed {seed}, on {hardware}. Reproducing it on other hardware or other
versions of torch gives a model of the same quality, not the same bits.

| stage | steps x batch | seconds | last losses |
|---|---|---|---|
| VAE | {vae_steps} x {vae_batch} | {vae_seconds} | {vae_losses} |
| transformer and text encoders | {steps} x {batch} | {seconds} | {losses} |
| auditor | {auditor_steps} x {auditor_batch} | {auditor_seconds} | {auditor_losses} |

Data: {num_scenes} rendered scenes of the training split. Rate at which a picture breaks what its caption says: {wrong}.

## Gold score

Mean over {num_prompts} held-out prompts of the fraction of testpoints that the judge finds satisfied; plain pipeline.

{gold_table}

Judge against the scenes drawn, on fresh renders and renders that break one testpoint: {judge_clean:.1%} of testpoints
right, {judge_vae:.1%} after the VAE. Judge and auditor agree on {agreement:.1%} of {testpoints} testpoints of
{samples} samples.

## Limits

It knows nothing but this world. Attribute combinations of the held-out split were never trained on.
"""


def model_card(records: Mapping[str, Mapping[str, Any]], settings: Settings) -> str:
    """The card as Markdown, from the records of the stages."""
    vae, transformer, auditor, measured = (records[name] for name in ("vae", "transformer", "auditor", "measure"))
    rates = ", ".join(f"{name} {rate:g}" for name, rate in sorted(settings.wrong.items()))
    low, high = settings.guidance
    return CARD.format(
        megabytes=records["package"]["megabytes"],
        guidance=f"{low:g} to {high:g}",
        shift=settings.sizes.shift,
        seed=settings.seed,
        hardware=transformer["hardware"],
        vae_steps=settings.vae_steps,
        vae_batch=settings.vae_batch,
        vae_seconds=vae["losses"][-1]["seconds"],
        vae_losses=_losses(vae),
        steps=transformer["losses"][-1]["step"],
        batch=settings.batch,
        seconds=transformer["losses"][-1]["seconds"],
        losses=_losses(transformer),
        auditor_steps=settings.auditor_steps,
        auditor_batch=settings.auditor_batch,
        auditor_seconds=auditor["losses"][-1]["seconds"],
        auditor_losses=_losses(auditor),
        num_scenes=settings.num_scenes,
        wrong=rates,
        num_prompts=settings.num_prompts,
        gold_table=gold_table(measured["gold"]),
        judge_clean=measured["judge_after_vae"]["clean"],
        judge_vae=measured["judge_after_vae"]["after_vae"],
        agreement=measured["auditor"]["agreement"],
        testpoints=measured["auditor"]["testpoints"],
        samples=measured["auditor"]["samples"],
    )


def gold_table(gold: Mapping[str, Mapping[str, Any]]) -> str:
    """Gold score by dimension, a column per number of steps."""
    columns = list(gold)
    dimensions = list(gold[columns[0]]["per_dimension"])
    lines = [
        "| dimension | " + " | ".join(f"{steps} steps" for steps in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name in dimensions:
        cells = " | ".join(f"{gold[steps]['per_dimension'][name]:.3f}" for steps in columns)
        lines.append(f"| {name} | {cells} |")
    lines.append("| **all** | " + " | ".join(f"**{gold[steps]['overall']:.3f}**" for steps in columns) + " |")
    lines.append("| quality | " + " | ".join(f"{gold[steps]['quality']:.3f}" for steps in columns) + " |")
    return "\n".join(lines)


def _losses(record: Mapping[str, Any]) -> str:
    last = {name: value for name, value in record["losses"][-1].items() if name not in ("step", "seconds")}
    return ", ".join(f"{name} {value:.4f}" for name, value in last.items())
