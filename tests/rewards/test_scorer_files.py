"""Where scorers find their files, what they say where one is missing or wrong, and how they are identified."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from scorer_golden import KINDS

from flowrl.errors import UserError, all_of
from flowrl.evaluation.metrics import find_metrics
from flowrl.hub import sha256
from flowrl.protocols import ScorerConfig
from flowrl.rewards.random_checkpoints import make_checkpoint

Checkpoint = Callable[..., Path]
every_kind = pytest.mark.parametrize("kind", KINDS)
COMMANDS = {
    "hps": "hf download xswu/HPSv2 HPS_v2.1_compressed.pt",
    "clip": "hf download apple/DFN5B-CLIP-ViT-H-14-378 open_clip_pytorch_model.bin open_clip_config.json",
    "pickscore": "hf download yuvalkirstain/PickScore_v1 model.safetensors config.json",
    "image_reward": "hf download THUDM/ImageReward ImageReward.pt med_config.json",
}
WEIGHTS = {
    "hps": "HPS_v2.1_compressed.pt",
    "clip": "open_clip_pytorch_model.bin",
    "pickscore": "model.safetensors",
    "image_reward": "ImageReward.pt",
}


@pytest.fixture(autouse=True)
def _no_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "no cache"))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path / "no cache"), raising=False)


def config(kind: str, source: Path | None = None) -> ScorerConfig:
    return ScorerConfig.model_validate({"kind": kind} | ({"source": str(source)} if source else {}))


def copy_of(folder: Path, to: Path) -> Path:
    """The same files under another folder, linked."""
    shutil.copytree(folder, to, copy_function=os.link)
    return to


@every_kind
def test_missing_weights_are_named_with_the_command(kind: str) -> None:
    with pytest.raises(UserError) as said:
        config(kind).check()
    assert str(said.value).startswith(f"reward {kind}: ")
    assert COMMANDS[kind] in str(said.value)


def test_what_goes_with_the_weights_has_a_command_of_its_own(checkpoint: Checkpoint, tmp_path: Path) -> None:
    pick = copy_of(checkpoint("pickscore"), tmp_path / "pick")
    shutil.rmtree(pick / "processor")
    with pytest.raises(UserError, match=r"hf download laion/CLIP-ViT-H-14-laion2B-s32B-b79K preprocessor_config\.json"):
        config("pickscore", pick).check()
    blip = copy_of(checkpoint("image_reward"), tmp_path / "blip")
    shutil.rmtree(blip / "bert-base-uncased")
    with pytest.raises(UserError, match=r"hf download google-bert/bert-base-uncased vocab\.txt"):
        config("image_reward", blip).check()


def test_all_that_is_missing_is_named_at_once() -> None:
    metrics = find_metrics("hps,clip,pickscore,image_reward", "official")
    with pytest.raises(UserError) as said:
        metrics.check()
    message = str(said.value)
    commands = [
        *COMMANDS.values(),
        "hf download laion/CLIP-ViT-H-14-laion2B-s32B-b79K preprocessor_config.json vocab.json merges.txt",
        "hf download google-bert/bert-base-uncased vocab.txt",
    ]
    assert sorted(line.strip() for line in message.splitlines() if "hf download" in line) == sorted(commands)
    with pytest.raises(UserError) as again:
        all_of(config("hps").check, metrics.check)
    assert str(again.value).count(COMMANDS["hps"]) == 1


@every_kind
def test_identity_has_the_hash_of_the_weights(kind: str, checkpoint: Checkpoint) -> None:
    folder = checkpoint(kind)
    identity = config(kind, folder).identity()
    assert identity["kind"] == kind
    assert identity["source"] == str(folder)
    assert identity["files"][WEIGHTS[kind]] == sha256(folder / WEIGHTS[kind])
    assert "precision" not in identity
    half = config(kind, folder).model_copy(update={"precision": "fp16"})
    assert half.identity() == identity | {"precision": "fp16"}


def test_pickscore_refuses_kernels_out_of_a_repository(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = copy_of(checkpoint("pickscore"), tmp_path / "pick")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(values | {"attn_implementation": "someone/kernel"}))
    with pytest.raises(UserError, match=r"config\.json: attn_implementation 'someone/kernel' would run code"):
        config("pickscore", folder).load(torch.device("cpu"))


@every_kind
def test_a_broken_file_is_one_clear_error(kind: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = copy_of(checkpoint(kind), tmp_path / kind)
    content = (folder / WEIGHTS[kind]).read_bytes()
    (folder / WEIGHTS[kind]).unlink()
    (folder / WEIGHTS[kind]).write_bytes(content[: len(content) // 3])
    with pytest.raises(UserError, match=WEIGHTS[kind]):
        config(kind, folder).load(torch.device("cpu"))


@pytest.mark.parametrize("kind", ["hps", "clip", "image_reward"])
def test_weights_of_something_else_are_refused(kind: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = copy_of(checkpoint(kind), tmp_path / kind)
    weights = torch.load(folder / WEIGHTS[kind], weights_only=True)
    inner = weights.get("state_dict", weights)
    inner.pop(next(name for name in inner if name.endswith("ln_post.bias") or name.endswith("encoder.norm.bias")))
    (folder / WEIGHTS[kind]).unlink()
    torch.save(weights, folder / WEIGHTS[kind])
    with pytest.raises(UserError, match=r"bias|norm"):
        config(kind, folder).load(torch.device("cpu"))


def test_pickscore_refuses_weights_with_a_hole(checkpoint: Checkpoint, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = copy_of(checkpoint("pickscore"), tmp_path / "pick")
    weights = load_file(folder / "model.safetensors")
    weights.pop("visual_projection.weight")
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks visual_projection\.weight"):
        config("pickscore", folder).load(torch.device("cpu"))


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["hps", "clip", "image_reward"])
def test_code_in_a_file_is_not_run(kind: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = copy_of(checkpoint(kind), tmp_path / kind)
    (folder / WEIGHTS[kind]).unlink()
    torch.save({"state_dict": Harmful(tmp_path / "it ran")}, folder / WEIGHTS[kind])
    with pytest.raises(UserError, match=WEIGHTS[kind]):
        config(kind, folder).load(torch.device("cpu"))
    assert not (tmp_path / "it ran").exists()


def test_check_imports_nothing_heavy(checkpoint: Checkpoint) -> None:
    sources = {kind: str(checkpoint(kind)) for kind in KINDS}
    program = (
        "import sys; from flowrl.protocols import ScorerConfig\n"
        f"for kind, source in {sources!r}.items():\n"
        "    ScorerConfig.model_validate({'kind': kind, 'source': source}).check()\n"
        "print({'transformers', 'open_clip', 'diffusers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_random_weights_of_an_unknown_scorer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'pickscore'"):
        make_checkpoint("pick_score", tmp_path)


def test_a_configuration_with_a_hole_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for kind, file, key in (
        ("clip", "open_clip_config.json", "model_cfg"),
        ("image_reward", "med_config.json", "hidden_size"),
        ("pickscore", "processor/preprocessor_config.json", "crop_size"),
    ):
        folder = copy_of(checkpoint(kind), tmp_path / kind)
        values = json.loads((folder / file).read_text())
        values.pop(key)
        (folder / file).unlink()
        (folder / file).write_text(json.dumps(values))
        with pytest.raises(UserError, match=rf"{file} lacks {key}"):
            config(kind, folder).load(torch.device("cpu"))
