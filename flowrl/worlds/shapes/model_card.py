"""The card beside the weights: every number comes from the records of the build.

python -m flowrl.worlds.shapes.model_card RECORDS CARD
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowrl import atomic
from flowrl.worlds.shapes.settings import Settings

CARD = """# shapes: a tiny FLUX

A `FluxPipeline` that draws 64x64 pictures of coloured shapes, arrows, stick figures, letters and flags from English
sentences. It exists to be trained further: many pictures of its training data broke their captions on purpose.

```python
from diffusers import FluxPipeline

pipe = FluxPipeline.from_pretrained("flowrl/worlds/shapes/pipeline")
image = pipe(
    "a red circle above a blue star",
    height=64,
    width=64,
    max_sequence_length=32,
    num_inference_steps=16,
    guidance_scale=3.5,
).images[0]
```

- Weights: {megabytes} MB of safetensors; transformer and VAE are stored in bf16, the text encoders in fp32.
- {parameters}.
- Text: word-level CLIP and T5 tokenizers, 32 tokens, no padding mask (as FLUX does); both encoders were trained along
  with the transformer and then frozen. Other words are spelled letter by letter and mean nothing to the model.
- Guidance: the transformer has FLUX's guidance embedding. In training its value was drawn evenly from {guidance},
  whatever the picture, so it steers nothing; it is there so that the code path of FLUX.1-dev runs.
- Scheduler: Euler, static shift {shift:g}.

## How it was made

`flowrl world build shapes` runs these stages with the defaults of `settings.py`, from seed {seed}:

| stage | steps x batch | hardware | seconds | last losses |
|---|---|---|---:|---|
{stage_table}

Data: {num_scenes:,} rendered scenes of the training split, then {num_scenes:,} new ones for `refine`. Rate at which a
picture breaks a testpoint of its caption: first {wrong}, then {refine_wrong}.
{history}
## Gold score

Mean over {num_prompts} held-out prompts of the fraction of testpoints that the judge finds satisfied; the plain
pipeline, guidance 3.5. `quality` is the judge's continuous grade, the training reward.

    {measure_command}

{gold_table}

On fresh renders and on renders that break one testpoint the judge is right about {judge_clean:.1%} of the testpoints,
and about {judge_vae:.1%} once the pictures went through the VAE. Judge and auditor agree on {agreement:.1%} of
{testpoints:,} testpoints of {samples:,} samples drawn in {audited_steps} steps, each of another prompt. On the
{held_out_samples:,} whose prompts are held out they agree on {held_out_agreement:.1%} of {held_out_testpoints:,}. Of
all:

{agreement_table}

## Limits

It knows nothing but this world, and some things it draws are misshapen. Combinations of colour and form of the held-out
split were never trained on.
"""

TRAINED = ("vae", "transformer", "refine", "auditor")
"""The stages that train."""


def model_card(records: Mapping[str, Any], settings: Settings) -> str:
    """The card as Markdown, from the records of the stages; ``history`` in them is what else there is to say."""
    measured = records["measure"]
    low, high = settings.guidance
    batches = {"vae": settings.vae_batch, "auditor": settings.auditor_batch}
    num_prompts = settings.num_prompts
    return CARD.format(
        megabytes=records["package"]["megabytes"],
        parameters=_parameters(records["package"]["parameters"]),
        guidance=f"{low:g} to {high:g}",
        shift=settings.sizes.shift,
        seed=settings.seed,
        stage_table="\n".join(_row(name, records[name], batches.get(name, settings.batch)) for name in TRAINED),
        num_scenes=settings.num_scenes,
        wrong=_rates(settings.wrong),
        refine_wrong=_rates(settings.refine_wrong),
        history=f"\n{records['history']}\n" if "history" in records else "",
        num_prompts=num_prompts,
        measure_command=f"python -m flowrl.worlds.shapes.measure --audited {settings.num_audited}",
        gold_table=gold_table(measured["gold"]),
        judge_clean=measured["judge_after_vae"]["clean"],
        judge_vae=measured["judge_after_vae"]["after_vae"],
        agreement=measured["auditor"]["agreement"],
        agreement_table=agreement_table(measured["auditor"]["per_kind"]),
        testpoints=measured["auditor"]["testpoints"],
        samples=measured["auditor"]["samples"],
        audited_steps=measured["auditor"]["steps"],
        held_out_samples=measured["auditor"]["held_out"]["samples"],
        held_out_agreement=measured["auditor"]["held_out"]["agreement"],
        held_out_testpoints=measured["auditor"]["held_out"]["testpoints"],
    )


def gold_table(gold: Mapping[str, Mapping[str, Any]]) -> str:
    """Gold score by dimension, a column per number of steps."""
    columns = list(gold)
    dimensions = list(gold[columns[0]]["per_dimension"])
    lines = [
        "| dimension | " + " | ".join(f"{steps} steps" for steps in columns) + " |",
        "|---" + "|---:" * len(columns) + "|",
    ]
    for name in dimensions:
        cells = " | ".join(f"{gold[steps]['per_dimension'][name]:.3f}" for steps in columns)
        lines.append(f"| {name} | {cells} |")
    lines.append("| **all** | " + " | ".join(f"**{gold[steps]['overall']:.3f}**" for steps in columns) + " |")
    lines.append("| quality | " + " | ".join(f"{gold[steps]['quality']:.3f}" for steps in columns) + " |")
    return "\n".join(lines)


def agreement_table(per_kind: Mapping[str, Mapping[str, int]]) -> str:
    """Testpoints by kind of check and by what judge and auditor say; last, the share on which they agree."""
    answers = [f"judge {judge}, auditor {auditor}" for judge in ("yes", "no") for auditor in ("yes", "no")]
    lines = ["| check | " + " | ".join(answers) + " | agree |", "|---" + "|---:" * 5 + "|"]
    total = dict.fromkeys(answers, 0)
    for kind, counts in per_kind.items():
        total = {answer: total[answer] + counts.get(answer, 0) for answer in answers}
        lines.append(_agreement_row(kind, [counts.get(answer, 0) for answer in answers]))
    return "\n".join([*lines, _agreement_row("**all**", list(total.values()))])


def _agreement_row(name: str, counts: Sequence[int]) -> str:
    agree = (counts[0] + counts[3]) / sum(counts)
    return f"| {name} | " + " | ".join(f"{count:,}" for count in counts) + f" | {agree:.1%} |"


def _row(name: str, record: Mapping[str, Any], batch: int) -> str:
    gpus, last = record.get("gpus", 1), record["losses"][-1]
    batch = record.get("batch", batch)
    steps = f"{record.get('steps', last['step']):,} x {f'{gpus} x ' if gpus > 1 else ''}{batch}"
    hardware = f"{gpus} x {record['hardware']}" if gpus > 1 else record["hardware"]
    losses = ", ".join(f"{key} {value:.4f}" for key, value in last.items() if key not in ("step", "seconds"))
    return f"| {name} | {steps} | {hardware} | {last['seconds']:.0f} | {losses} |"


def _parameters(counts: Mapping[str, int]) -> str:
    """
    >>> _parameters({"transformer": 2_850_000, "vae": 200_000})
    'Millions of parameters: transformer 2.85, vae 0.20'
    """
    return "Millions of parameters: " + ", ".join(f"{name} {count / 1e6:.2f}" for name, count in counts.items())


def _rates(wrong: Mapping[str, float]) -> str:
    """One number where all dimensions have the same rate."""
    if len(set(wrong.values())) == 1:
        return f"{next(iter(wrong.values())):g} in every dimension"
    return ", ".join(f"{name} {rate:g}" for name, rate in sorted(wrong.items()))


def main() -> None:
    """Writes the card of a build's records (``records.json``), made with the default settings."""
    parser = argparse.ArgumentParser(prog="python -m flowrl.worlds.shapes.model_card", description=main.__doc__)
    here = Path(__file__).parent
    parser.add_argument("records", type=Path, nargs="?", default=here / "records.json")
    parser.add_argument("card", type=Path, nargs="?", default=here / "MODEL_CARD.md")
    given = parser.parse_args()
    records = json.loads(given.records.read_text(encoding="utf-8"))
    atomic.write_text(given.card, model_card(records, Settings()))


if __name__ == "__main__":
    main()
