"""The first stage: every image is bound to what it was made from, drawn once, and the same however it is drawn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from policies.tiny_flux import SIZE
from workplace import TEXTS, Workplace

from flowrl.errors import UserError
from flowrl.evaluation.harness import Request, prepare
from flowrl.evaluation.results import Generation, read_manifest
from flowrl.hub import sha256
from flowrl.recipe import load_model
from flowrl.sampling import image_seed, sample

Drawn = list[tuple[int, list[int]]]


def test_the_manifest_says_all_about_every_image(work: Workplace) -> None:
    work.evaluate(stage="generate", images_per_prompt=2, seed=5)
    images = read_manifest(work.output)
    assert [image.key for image in images] == [(index, j) for index in range(len(TEXTS)) for j in range(2)]
    digest = Generation.load(work.output / "generation.json").model_digest
    for image in images:
        assert image.prompt == TEXTS[image.index]
        assert image.file == f"images/{image.index}_{image.j}.png"
        assert image.sha256 == sha256(work.output / image.file)
        assert image.seed == image_seed(5, image.index, image.j)
        assert image.model_digest == digest
        assert (image.steps, image.sigmas, image.height, image.width, image.hybrid_steps) == (
            2,
            "pipeline",
            SIZE,
            SIZE,
            None,
        )
    assert len({image.sha256 for image in images}) == len(images)
    assert not list(work.output.glob("*part-*"))


def test_the_first_image_is_what_flowrl_sample_draws(work: Workplace, tmp_path: Path) -> None:
    work.evaluate(stage="generate", images_per_prompt=2)
    sample(str(work.pipeline), prompts=str(tmp_path / "prompts.txt"), output=tmp_path / "sampled", num_steps=2)
    for index in range(len(TEXTS)):
        sampled = (tmp_path / "sampled" / f"{index:06d}.png").read_bytes()
        assert sampled == (work.output / "images" / f"{index}_0.png").read_bytes()


def test_a_rerun_draws_only_what_is_missing(work: Workplace, drawn: Drawn) -> None:
    work.evaluate(stage="generate", images_per_prompt=2)
    assert drawn == [(j, chunk) for j in (0, 1) for chunk in ([0, 1], [2, 3], [4])]
    before, manifest = work.files(), (work.output / "manifest.jsonl").read_bytes()
    drawn.clear()
    work.evaluate(stage="generate", images_per_prompt=2, resume=True)
    assert drawn == []
    (work.output / "images" / "3_0.png").unlink()
    (work.output / "images" / "4_1.png").write_bytes(b"torn")
    kept = (work.output / "images" / "2_0.png").stat().st_mtime_ns
    work.evaluate(stage="generate", images_per_prompt=2)
    assert drawn == [(0, [2, 3]), (1, [4])]
    assert (work.output / "images" / "2_0.png").stat().st_mtime_ns == kept
    assert work.files() == before
    assert (work.output / "manifest.jsonl").read_bytes() == manifest


def test_the_program_that_is_named_is_the_one_that_drew(work: Workplace) -> None:
    work.evaluate(stage="generate", limit=2)
    path = work.output / "generation.json"
    made = json.loads(path.read_text())
    made["provenance"]["flowrl"] = "another"
    path.write_text(json.dumps(made))
    work.evaluate(stage="generate", limit=2)
    assert Generation.load(path).provenance.flowrl == "another"
    work.evaluate(stage="generate", limit=3)
    assert Generation.load(path).provenance.flowrl != "another"


def test_what_a_killed_process_had_drawn_is_kept(work: Workplace, drawn: Drawn) -> None:
    work.evaluate(stage="generate")
    before, path = work.files(), work.output / "manifest.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.unlink()
    (work.output / "manifest.part-1.jsonl").write_text("".join(lines[:2]))
    (work.output / "manifest.part-0.jsonl").write_text(lines[2] + lines[3][:40])  # a torn line
    drawn.clear()
    work.evaluate(stage="generate")
    assert drawn == [(0, [2, 3]), (0, [4])]
    assert path.read_text() == "".join(lines)
    assert work.files() == before


def test_more_prompts_and_images_leave_what_is_there(work: Workplace, drawn: Drawn) -> None:
    work.evaluate(stage="generate", limit=2)
    before = work.files()
    drawn.clear()
    work.evaluate(stage="generate", limit=4, images_per_prompt=2)
    assert drawn == [(0, [2, 3]), (1, [0, 1]), (1, [2, 3])]
    assert before.items() <= work.files().items()
    with pytest.raises(UserError, match=r"num_prompts: 4 -> 2 \(it may only grow\)"):
        work.evaluate(stage="generate", limit=2, images_per_prompt=2)


def test_another_evaluations_folder_is_refused(work: Workplace, tmp_path: Path) -> None:
    work.evaluate(stage="generate")
    with pytest.raises(UserError, match=r"(?s)num_steps: 2 -> 3.*seed: 0 -> 1"):
        work.evaluate(stage="generate", num_steps=3, seed=1)
    other = work.prompts("other.txt", ["a cat", "three dogs", *TEXTS[2:]])
    with pytest.raises(UserError, match=r"prompt 1: 'two dogs' -> 'three dogs'"):
        work.evaluate(stage="generate", prompts=other)
    with pytest.raises(UserError, match="not by an evaluation"):
        work.evaluate(stage="generate", output=tmp_path)
    with pytest.raises(UserError, match="holds no evaluation"):
        work.evaluate(stage="generate", output=tmp_path / "new", resume=True)


def test_mistakes_are_told_before_anything_is_drawn(work: Workplace, tmp_path: Path, drawn: Drawn) -> None:
    with pytest.raises(UserError, match="HEIGHTxWIDTH"):
        work.evaluate(size="32")
    with pytest.raises(UserError, match="multiple of 8 pixels"):
        work.evaluate(size="33x32")
    with pytest.raises(UserError, match="names no test prompts"):
        work.evaluate(prompts=None)
    with pytest.raises(UserError, match="a run's weights"):
        work.evaluate(hybrid_steps=1)
    with pytest.raises(UserError, match="bare pipeline"):
        work.evaluate(sigmas="recipe")
    with pytest.raises(UserError, match="name a MODEL_OR_RUN"):
        work.evaluate(model_or_run=None)
    assert not drawn
    assert not work.output.exists()


def test_the_models_own_defaults(tmp_path: Path) -> None:
    (images,) = prepare(Request(tmp_path / "out", "shapes", metrics="gold")).images
    made = images.generation
    assert (made.drawing.num_steps, made.drawing.height, made.num_prompts) == (16, 64, 400)
    assert (made.prompts, made.metrics) == ("shapes:test", "shapes")
    (images,) = prepare(Request(tmp_path / "out", "shapes", metrics="gold", sigmas="recipe")).images
    assert images.generation.drawing.num_steps == 8
    flux = load_model("flux1_dev").evaluation
    assert (flux.generate.num_steps, flux.generate.height, flux.metrics) == (50, 1024, "official")


@pytest.mark.slow
def test_processes_share_the_work_and_change_no_byte(work: Workplace) -> None:
    work.evaluate(stage="generate", images_per_prompt=3)
    command = [sys.executable, "-m", "flowrl", "eval", str(work.pipeline), "--images-per-prompt", "3", "--steps", "2"]
    command += ["--prompts", str(work.folder / "prompts.txt"), "--metrics", str(work.folder / "metrics.yaml")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), str(Path(__file__).parent)])}
    outputs = []
    for processes in (1, 2):
        output = work.folder / f"by_{processes}"
        done = subprocess.run([*command, "--output", str(output), "--processes", str(processes)], env=env)
        assert done.returncode == 0
        names = ["manifest.jsonl", "prompts.jsonl", "scores/brightness.jsonl", "scores/place.jsonl", "per_prompt.jsonl"]
        names += [f"images/{index}_{j}.png" for index in range(len(TEXTS)) for j in range(3)]
        outputs.append({name: (output / name).read_bytes() for name in names})
        assert len(list((output / "images").iterdir())) == 3 * len(TEXTS)
    assert outputs[0] == outputs[1]
    assert len(json.loads((work.folder / "by_2" / "results.json").read_text())["metrics"]) == 2
