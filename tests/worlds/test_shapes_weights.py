"""The weights in the package: plain diffusers draws what is asked, the judge is right, there is headroom."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from flowrl.worlds.shapes import model_card
from flowrl.worlds.shapes.auditor import load_auditor
from flowrl.worlds.shapes.gallery import PIPELINE
from flowrl.worlds.shapes.measure import audit, gold, judge_after_vae
from flowrl.worlds.shapes.prompts import test_prompts, train_prompts
from flowrl.worlds.shapes.sampling import draw
from flowrl.worlds.shapes.settings import Settings

HERE = Path(model_card.__file__).parent
CPU = torch.device("cpu")

PLAIN_USE = """
import sys, json
import numpy, torch
from diffusers import FluxPipeline
folder, texts, output = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
pipe = FluxPipeline.from_pretrained(folder)
pipe.set_progress_bar_config(disable=True)
images = pipe(
    texts, height=64, width=64, max_sequence_length=32, num_inference_steps=8, guidance_scale=3.5,
    generator=torch.Generator().manual_seed(0), output_type="np",
).images
assert not any(name.split(".")[0] == "flowrl" for name in sys.modules)
numpy.save(output, images)
"""


@pytest.fixture(scope="module")
def pipeline() -> object:
    from diffusers import FluxPipeline

    return FluxPipeline.from_pretrained(PIPELINE)


def test_plain_diffusers_draws_what_is_asked_without_this_package(tmp_path: Path) -> None:
    prompts = [prompt for prompt in train_prompts() if prompt.meta["dimension"] == "Attribute"][:16]
    output = tmp_path / "images.npy"
    texts = json.dumps([prompt.text for prompt in prompts])
    done = subprocess.run(
        [sys.executable, "-I", "-c", PLAIN_USE, str(PIPELINE), texts, str(output)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    images = torch.from_numpy(np.load(output)).permute(0, 3, 1, 2)
    assert gold(images, prompts)["overall"] > 0.45
    # The same pictures under each other's prompts: what is drawn follows from the words.
    assert gold(images.roll(1, 0), prompts)["overall"] < 0.3


def test_a_prompt_in_a_batch_is_drawn_as_alone(pipeline: object) -> None:
    texts = [prompt.text for prompt in test_prompts()[:3]]
    together = draw(pipeline, texts, steps=2)
    alone = draw(pipeline, texts[2:], steps=2, first_index=2)
    torch.testing.assert_close(alone[0], together[2], atol=1e-4, rtol=0)


@pytest.mark.parametrize("count", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_the_judge_is_right_after_the_vae(pipeline: object, count: int) -> None:
    shares = judge_after_vae(pipeline.vae, count, seed=1, device=CPU)  # type: ignore[attr-defined]
    assert shares["clean"] >= 0.99
    assert shares["after_vae"] >= 0.98


def test_held_out_gold_leaves_headroom(pipeline: object) -> None:
    prompts = test_prompts()[::4]
    score = gold(draw(pipeline, [prompt.text for prompt in prompts], steps=8), prompts)
    assert 0.4 <= score["overall"] <= 0.65


@pytest.mark.slow
@pytest.mark.parametrize("steps", [8, 28])
def test_held_out_gold_of_every_dimension_leaves_headroom(pipeline: object, steps: int) -> None:
    prompts = test_prompts()
    score = gold(draw(pipeline, [prompt.text for prompt in prompts], steps=steps), prompts)
    assert 0.4 <= score["overall"] <= 0.65
    assert len(score["per_dimension"]) == 10
    assert all(0.1 <= value <= 0.9 for value in score["per_dimension"].values())


def test_judge_and_auditor_mostly_agree(pipeline: object, tmp_path: Path) -> None:
    prompts = test_prompts()[::5]
    images = draw(pipeline, [prompt.text for prompt in prompts], steps=8)
    result = audit(load_auditor(), images, prompts, tmp_path)
    assert result["agreement"] >= 0.85
    assert (tmp_path / "disagreements.png").exists()


def test_the_weights_are_small() -> None:
    assert sum(file.stat().st_size for file in PIPELINE.rglob("*.safetensors")) <= 12e6


def test_the_card_says_what_the_records_say() -> None:
    records = json.loads((HERE / "records.json").read_text(encoding="utf-8"))
    card = (HERE / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert card == model_card.model_card(records, Settings())
    assert records["transformer"]["steps"] == Settings().steps
    assert records["refine"]["steps"] == Settings().refine_steps
