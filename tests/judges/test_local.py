"""The judge inside the process, on a random checkpoint of the real architecture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_judge import write_judge

from flowrl.errors import UserError
from flowrl.judges.local import Local
from flowrl.types import Question

QUESTIONS = [
    Question(Image.new(mode, (64, 48), colour), "is it red?", text_first)
    for mode, colour, text_first in (("RGB", "red", False), ("RGB", "blue", False), ("L", 90, True))
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_judge(tmp_path_factory.mktemp("judge"))


def test_it_looks_answers_and_repeats_itself(checkpoint: Path, tmp_path: Path) -> None:
    config = Local(source=str(checkpoint), max_tokens=6, log=tmp_path / "log.jsonl")
    judge = config.load(torch.device("cpu"))
    state = torch.get_rng_state()
    answers = judge.ask(QUESTIONS)
    assert torch.equal(torch.get_rng_state(), state)
    assert len({answer.text for answer in answers}) == 3
    assert {answer.error for answer in answers} == {"cut off: at max_tokens 6"}
    assert config.load(torch.device("cpu")).ask(QUESTIONS) == answers
    assert [judge.ask([question])[0] for question in QUESTIONS] == answers
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text("utf-8").splitlines()]
    assert [row["text"] for row in rows[:3]] == [answer.text for answer in answers]


def test_what_the_processor_refuses_is_an_answer_without_a_text(checkpoint: Path) -> None:
    judge = Local(source=str(checkpoint), max_tokens=2).load(torch.device("cpu"))
    thin, good = judge.ask([Question(Image.new("RGB", (3000, 2)), "?"), QUESTIONS[0]])
    assert thin.text is None
    assert "aspect ratio" in (thin.error or "")
    assert good.text is not None
    squeezed = Local(source=str(checkpoint), max_tokens=2, resize=(32, 32)).load(torch.device("cpu"))
    assert squeezed.ask([Question(Image.new("RGB", (3000, 2)), "?")])[0].text is not None


def test_its_identity_names_the_weights(checkpoint: Path) -> None:
    identity = Local(source=str(checkpoint)).identity()
    assert [*identity["sha256"]] == ["model.safetensors"]
    assert len(identity["sha256"]["model.safetensors"]) == 64


def test_missing_files_are_named(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lacks config\.json"):
        Local(source=str(tmp_path)).check()
    with pytest.raises(UserError, match=r"hf download owner/name config\.json"):
        Local(source="owner/name").check()
    for name in ("config.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes())
    with pytest.raises(UserError, match=r"lacks model\.safetensors"):
        Local(source=str(tmp_path)).load(torch.device("cpu"))
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match=r"lacks model-00001-of-00002\.safetensors, model-00002"):
        Local(source=str(tmp_path)).check()


def test_other_kinds_of_models_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="transformers cannot load"):
        Local(source=str(tmp_path)).load(torch.device("cpu"))


def test_kernels_out_of_a_repository_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"attn_implementation": "someone/kernel"}))
    with pytest.raises(UserError, match=r"config\.json: attn_implementation 'someone/kernel' would run code"):
        Local(source=str(tmp_path)).load(torch.device("cpu"))
