"""The stages that reproduce the embedded world: resumption, the auditor's reading, the whole build in small."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flowrl.errors import UserError
from flowrl.worlds.shapes import auditor_training
from flowrl.worlds.shapes.auditor import ATTRIBUTES, Auditor, auditor_loss, scene_labels
from flowrl.worlds.shapes.build import STAGES, build
from flowrl.worlds.shapes.flow import pack, position_ids
from flowrl.worlds.shapes.judge import judge
from flowrl.worlds.shapes.loop import Loop, learning_rate
from flowrl.worlds.shapes.render import render
from flowrl.worlds.shapes.scene import STYLES, Scene, Testpoint, Thing
from flowrl.worlds.shapes.settings import Settings
from flowrl.worlds.shapes.stages import Stage
from flowrl.worlds.shapes.truth import degrees

CPU = torch.device("cpu")


def _loop(model: nn.Module, checkpoint: Path, steps: int = 8) -> Loop:
    settings = Settings(warmup=2, ema=0.9, seed=3, checkpoint_every=3)
    return Loop("test", model, settings, steps=steps, lr=1e-2, device=CPU, checkpoint=checkpoint, log=lambda _: None)


def _linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 4)


def _noise(generator: torch.Generator) -> dict[str, Tensor]:
    return {"x": torch.randn(8, 4, generator=generator)}


def test_a_killed_loop_ends_with_the_weights_of_one_that_was_not(tmp_path: Path) -> None:
    def run(name: str, stop_at: int | None = None) -> Tensor:
        model, calls = _linear(), 0

        def loss(x: Tensor) -> dict[str, Tensor]:
            nonlocal calls
            calls += 1
            if calls == stop_at:
                raise KeyboardInterrupt
            return {"loss": (model(x) ** 2).mean()}

        _loop(model, tmp_path / name).run(_noise, loss)
        return model.weight.detach()

    whole = run("whole.pt")
    with pytest.raises(KeyboardInterrupt):
        run("killed.pt", stop_at=6)
    assert torch.equal(run("killed.pt"), whole)


def test_learning_rate_rises_then_falls_to_two_percent() -> None:
    rates = [learning_rate(step, peak=1.0, warmup=10, steps=100) for step in range(101)]
    assert rates[0] == pytest.approx(0.1, rel=0.01)
    assert max(rates) > 0.95
    assert rates[100] == pytest.approx(0.02)


def test_a_stage_is_done_only_for_its_digest_and_only_when_it_ended(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "vae", "abc")
    with pytest.raises(RuntimeError), stage.running():
        raise RuntimeError
    assert not stage.done()
    with stage.running() as record:
        record["value"] = 1
    assert stage.done()
    assert stage.result()["value"] == 1
    assert not Stage(tmp_path / "vae", "other").done()


def test_packing_equals_the_pipelines() -> None:
    from diffusers import FluxPipeline

    latents = torch.randn(2, 8, 16, 16)
    assert torch.equal(pack(latents), FluxPipeline._pack_latents(latents, 2, 8, 16, 16))
    theirs = FluxPipeline._prepare_latent_image_ids(1, 8, 8, CPU, torch.float32)
    assert torch.equal(position_ids(8, CPU), theirs)


def test_the_auditor_learns_to_read_two_scenes() -> None:
    scenes = [
        Scene("white", (Thing("circle", "red", 20.0, 20.0), Thing("letter", "blue", 45.0, 44.0, "small", "H"))),
        Scene("black", (Thing("square", "green", 32.0, 30.0, "large", "left", "yellow"),), "flat"),
    ]
    images = np.stack([render(scene, np.random.default_rng(0)) for scene in scenes])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    labels = {name: torch.from_numpy(value) for name, value in scene_labels(scenes).items()}
    torch.manual_seed(0)
    auditor = Auditor(width=16)
    optimizer = torch.optim.AdamW(auditor.parameters(), 1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        auditor_loss(auditor, pixels, labels["things"], labels["whole"])["loss"].backward()
        optimizer.step()
    for read, scene in zip(auditor.scenes(pixels), scenes, strict=True):
        assert read.background == scene.background
        assert {(t.form, t.colour, t.size, t.detail, t.second) for t in read.things} == {
            (t.form, t.colour, t.size, t.detail, t.second) for t in scene.things
        }


def test_strangers_are_drawn_and_count_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auditor_training, "STRANGE", 1.0)
    kinds = auditor_training._chunk(0, 40, 0)[1]["things"][..., 0]
    monkeypatch.setattr(auditor_training, "STRANGE", 0.0)
    pictures, labels = auditor_training._chunk(0, 40, 0)
    fewer = (kinds > 0).sum(1) < (labels["things"][..., 0] > 0).sum(1)
    assert fewer.mean() > 0.8  # flags and two-coloured things stay
    assert pictures.shape == (40, 64, 64, 3)


def test_a_thing_may_have_a_style_of_its_own() -> None:
    one, other = Thing("circle", "red", 16.0, 32.0), Thing("square", "blue", 48.0, 32.0)
    mixed = Scene("white", (one, replace(other, style="outline")), "flat")
    images = torch.from_numpy(render(mixed, np.random.default_rng(0))[None]).permute(0, 3, 1, 2).float() / 255
    testpoints = [Testpoint("Style - Flat", name, {"kind": "style", "is": name}) for name in ("flat", "outline")]
    assert judge(images, [testpoints]).satisfied == [[0, 0]]
    assert degrees(mixed, testpoints)[0] < 0.5
    styles = scene_labels([mixed])["things"][0, :2, 4 + list(ATTRIBUTES).index("style")]
    assert [STYLES[int(style)] for style in styles] == ["flat", "outline"]
    assert Scene.from_json(mixed.to_json()) == mixed


def test_unknown_and_premature_stages_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'vae'"):
        build(tmp_path, stages=["vea"])
    with pytest.raises(UserError, match="needs data"):
        build(tmp_path, stages=["vae"], settings=Settings().quick(), device="cpu")


def test_the_commands_help_lists_the_stages() -> None:
    from flowrl import cli
    from flowrl.worlds.shapes.scoring import build as scoring

    assert ", ".join(STAGES) in cli._STAGE_HELP
    assert ", ".join(scoring.STAGES) in cli._STAGE_HELP


@pytest.mark.slow
def test_a_small_build_runs_and_is_not_repeated(tmp_path: Path) -> None:
    settings = Settings().quick()
    lines: list[str] = []
    records = build(tmp_path, settings=settings, device="cpu", log=lines.append)
    assert records["measure"]["auditor"]["samples"] == settings.num_audited
    assert (tmp_path / "pipeline" / "model_index.json").exists()
    assert "Gold score" in (tmp_path / "MODEL_CARD.md").read_text()

    lines.clear()
    assert build(tmp_path, settings=settings, device="cpu", log=lines.append) == records
    assert lines == [f"{name}: done before" for name in records]


TOGETHER = """
import json, sys
from pathlib import Path
from flowrl.worlds.shapes.build import STAGES, build
from flowrl.worlds.shapes.settings import Settings
records = build(
    Path(sys.argv[1]), stages=("data", "vae", "transformer", "fresh", "refine", "package"),
    settings=Settings().quick(), device="cpu", log=lambda _: None,
)
print(json.dumps({name: record.get("gpus", 0) for name, record in records.items()}))
"""


@pytest.mark.slow
def test_two_processes_share_the_transformers_stages(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rendezvous = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, str(tmp_path)],
            env=rendezvous | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    first, second = (json.loads(output.splitlines()[-1]) for output, _ in outputs)
    assert first == {"data": 0, "vae": 0, "transformer": 2, "fresh": 0, "refine": 2, "package": 0}
    assert second == {}
    assert (tmp_path / "pipeline" / "model_index.json").exists()
