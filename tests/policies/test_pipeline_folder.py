"""Where a pipeline is looked for, and what is said when it is not there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from flowrl.errors import UserError
from flowrl.policies.pipeline_folder import digest, locate, missing_files


def test_a_complete_folder_is_found(folder: Path) -> None:
    assert locate(str(folder)) == folder
    assert missing_files(folder) == []


def test_missing_weights_and_shards_are_named(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    (copy / "tokenizer" / "tokenizer.json").unlink()
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (copy / "text_encoder_2" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (copy / "text_encoder_2" / shards["a"]).touch()
    missing = [
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder_2/model-00002-of-00002.safetensors",
        "tokenizer/tokenizer.json",
    ]
    assert missing_files(copy) == missing
    with pytest.raises(UserError, match=f"missing: {', '.join(missing)}"):
        locate(str(copy))


def test_a_hub_id_that_is_not_fetched_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError) as error:
        locate("black-forest-labs/FLUX.1-dev")
    message = str(error.value)
    assert 'hf download black-forest-labs/FLUX.1-dev --include "model_index.json"' in message
    assert "transformer/*" in message
    assert "https://huggingface.co/black-forest-labs/FLUX.1-dev" in message


def test_a_hub_id_is_found_in_the_download_cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--tiny"
    snapshot = shutil.copytree(folder, repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert locate("someone/tiny") == snapshot
    (snapshot / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"missing: transformer/diffusion_pytorch_model.safetensors; fetch them"):
        locate("someone/tiny")


def test_a_source_that_is_nothing_names_the_nearest(folder: Path) -> None:
    with pytest.raises(UserError, match=f"neither an embedded world .*did you mean '{folder}'"):
        locate(f"{folder}x")


def test_the_digest_follows_the_content(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert digest(copy) == digest(folder)
    assert digest(copy, ["vae"]) != digest(copy, ["transformer"])
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert digest(copy, ["vae"]) != digest(folder, ["vae"])
    assert digest(copy, ["transformer"]) == digest(folder, ["transformer"])


def test_a_pipeline_that_brings_code_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "text_encoder" / "evil.py").write_text("raise SystemExit('it ran')\n")
    (copy / "model_index.json").write_text(json.dumps(index | {"text_encoder": ["evil", "Model"]}))
    with pytest.raises(UserError, match=r"model_index\.json: text_encoder is a class of 'evil'"):
        locate(str(copy))
    (copy / "model_index.json").write_text(json.dumps(index))
    config = json.loads((copy / "text_encoder" / "config.json").read_text())
    (copy / "text_encoder" / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.raises(UserError, match=r"text_encoder/config\.json: auto_map names code"):
        locate(str(copy))
