"""The comparison with the official packages: what passes, what does not, on the same pictures anywhere."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flowrl import parity
from flowrl.cli import app
from flowrl.parity_inputs import FEW, PROMPTS, pictures

SCRIPT = """
from flowrl_worker import serve
def load(options, device):
    import open_clip, torch
    model, preprocess = open_clip.create_model_from_pretrained(options["model"])
    tokenizer = open_clip.get_tokenizer(options["model"])
    model.eval()
    def one(image, prompt):
        picture = image.pil()
        if picture.mode == "RGBA":
            raise ValueError("four channels")
        with torch.no_grad():
            of_image = model.encode_image(preprocess(picture)[None], normalize=True)
            of_text = model.encode_text(tokenizer([prompt]), normalize=True)
        return float((of_image @ of_text.T)[0, 0]) + OFF
    return lambda images, prompts: [one(*pair) for pair in zip(images, prompts)]
serve(load)
"""


@pytest.fixture
def clip_with_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Compares the clip scorer, on few pairs, with a script in place of the official code."""

    def replaced(off: str) -> None:
        from dataclasses import replace

        (tmp_path / "official.py").write_text(SCRIPT.replace("OFF", off))
        case = replace(parity.CASES["clip"], worker=str(tmp_path / "official.py"))
        monkeypatch.setattr(parity, "CASES", {"clip": case})
        monkeypatch.setattr(parity, "PROMPTS", PROMPTS[:1])
        few = pictures(("rgba", "small", "square_224"))
        monkeypatch.setattr(parity, "pictures", lambda names: few)

    return replaced


def test_a_difference_is_shown_and_fails(clip_with_a_worker, tmp_path: Path) -> None:
    clip_with_a_worker("1e-3")
    result = CliRunner().invoke(app, ["scorers", "verify", "--only", "clip", "--output", str(tmp_path / "out")])
    assert result.exit_code == 1, result.output
    text = (tmp_path / "out" / "parity.md").read_text()
    assert "| FAIL |" in text
    assert "refuses rgba: ValueError: four channels" in text
    report = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert report["passed"] is False
    (row,) = report["rows"]
    assert (row["kind"], row["pairs"], row["status"]) == ("clip", 2, "FAIL")
    assert row["difference"] == pytest.approx(1e-3, abs=1e-6)


def row(**values) -> parity.Row:
    fields = {"kind": "hps", "official": "x", "pairs": 9, "spread": 0.1, "difference": 1e-7, "tolerance": 1e-6}
    rest = {"refused": {}, "missing": (), "versions": {}, "seconds": {}}
    return parity.Row(**(fields | rest | values))


@pytest.mark.parametrize(
    ("values", "status"),
    [
        ({}, "pass"),
        ({"difference": 2e-6}, "FAIL"),
        ({"difference": float("nan")}, "FAIL"),
        ({"difference": None, "pairs": 0}, "FAIL"),
        ({"missing": ("grey",)}, "FAIL"),
        ({"spread": 1e-6}, "FAIL"),
    ],
)
def test_a_row_passes_only_where_it_proves_something(values, status: str) -> None:
    assert row(**values).status == status


def test_an_unknown_scorer_is_named() -> None:
    result = CliRunner().invoke(app, ["scorers", "verify", "--only", "hsp"])
    assert result.exit_code == 2
    assert "did you mean 'hps'" in result.output


def test_an_unknown_environment_is_named() -> None:
    result = CliRunner().invoke(app, ["scorers", "environments", "hpsv"])
    assert result.exit_code == 2
    assert "did you mean 'hpsv2'" in result.output


def test_pictures_are_of_all_modes_and_the_same_anywhere() -> None:
    shown = pictures()
    assert {picture.mode for picture in shown.values()} == {"RGB", "RGBA", "L", "P", "I;16"}
    assert set(FEW) <= set(shown)
    assert shown["portrait"].size == (333, 517)
    again = pictures(("grey",))["grey"]
    assert again.tobytes() == shown["grey"].tobytes()
    assert len({hashlib.sha256(picture.tobytes()).digest() for picture in shown.values()}) == len(shown)
