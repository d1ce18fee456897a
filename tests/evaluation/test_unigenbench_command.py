"""``flowrl unigenbench`` from end to end: the shapes world's judge behind its HTTP server, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_unigenbench_wording import checkout
from typer.testing import CliRunner, Result
from unigenbench_fakes import draw, small_csv

from flowrl.cli import app
from flowrl.evaluation.unigenbench.dimensions import DIMENSIONS
from flowrl.worlds.shapes.judge_server import serving
from flowrl.worlds.shapes.prompts import bench_prompts
from flowrl.worlds.shapes.render import render
from flowrl.worlds.shapes.scene import Scene

MEANINGS = repr({dimension.en: dimension.meaning_en for dimension in DIMENSIONS})
NUM_PROMPTS = 6


def run(*argv: object) -> Result:
    return CliRunner().invoke(app, ["unigenbench", *map(str, argv)])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of each of the first prompts one picture as it should be and one of nothing."""
    folder = tmp_path_factory.mktemp("drawn")
    for prompt in bench_prompts()[:NUM_PROMPTS]:
        scene = Scene.from_json(prompt.meta["scene"])
        Image.fromarray(render(scene, np.random.default_rng(0))).save(folder / f"{prompt.index}_0.png")
        Image.new("RGB", (64, 64), (120, 120, 120)).save(folder / f"{prompt.index}_1.png")
    return folder


def scores(output: Path) -> dict[str, list[list[bool]]]:
    """Sample -> what was granted, per prompt."""
    rows = [json.loads(line) for line in (output / "answers.jsonl").read_text().splitlines()]
    return {s: [r["passed"] for r in sorted(rows, key=lambda r: r["file"]) if r["sample"] == s] for s in (0, 1)}


def test_the_worlds_own_judge_needs_no_option(pictures: Path, tmp_path: Path) -> None:
    options = (pictures, "--prompts", "shapes:bench", "--per-prompt", 2, "--limit", NUM_PROMPTS, "--output", tmp_path)
    done = run(*options)
    assert done.exit_code == 0, done.output
    assert f"UniGenBench++ shapes: {NUM_PROMPTS} of 100 prompts x 2 images, coverage 100 %" in done.stdout
    assert "World Know." in done.stdout
    found = scores(tmp_path)
    assert all(all(passed) for passed in found[0])
    assert not all(any(passed) for passed in found[1])
    resumed = run(*options, "--resume")
    assert f"{2 * NUM_PROMPTS} of {2 * NUM_PROMPTS} images are answered already" in resumed.stdout


def test_an_endpoint_and_the_official_form_of_the_question(pictures: Path, tmp_path: Path) -> None:
    """The judge grants the same whichever way the same testpoints are asked about."""
    text = (checkout(tmp_path) / "eval/eval_common.py").read_text("utf-8")
    start, end = text.index("MEANINGS_EN = "), text.index("MEANINGS_ZH")
    (tmp_path / "benchmark/eval/eval_common.py").write_text(
        f"{text[:start]}MEANINGS_EN = {MEANINGS}\n{text[end:]}", "utf-8"
    )
    found = {}
    with serving() as url:
        for name, options in (("own", ()), ("official", ("--official-from", tmp_path / "benchmark"))):
            arguments = ("--per-prompt", 2, "--limit", NUM_PROMPTS, "--output", tmp_path / name, *options)
            judge = ("--judge-url", url, "--judge-model", "shapes-gold")
            done = run(pictures, "--prompts", "shapes:bench", *judge, *arguments)
            assert done.exit_code == 0, done.output
            assert "coverage 100 %" in done.stdout
            found[name] = scores(tmp_path / name)
    assert found["own"][0] == found["official"][0]
    summary = json.loads((tmp_path / "official/unigenbench.json").read_text())
    assert summary["wording"]["name"] == "official"
    assert summary["judge"]["model"] == "shapes-gold"


def test_a_judge_from_a_file(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "judge.yaml").write_text("kind: shapes\nconcurrency: 2\n")
    arguments = ("--prompts", "shapes:bench", "--per-prompt", 1, "--limit", 1, "--output", tmp_path / "out")
    assert run(pictures, *arguments, "--judge", tmp_path / "judge.yaml").exit_code == 0
    (tmp_path / "judge.yaml").write_text("kind: endpoint\nurl: http://localhost:1/v1\nmodle: x\n")
    done = run(pictures, *arguments, "--judge", tmp_path / "judge.yaml")
    assert done.exit_code == 2
    assert "judge.yaml" in done.stderr
    assert "did you mean 'model'" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "only an embedded benchmark brings its own"),
        (("--judge-url", "http://localhost:1/v1"), "--judge-url URL together with --judge-model NAME"),
        (("--judge-url", "localhost", "--judge-model", "x"), "must be an address like"),
        (("--judge-url", "http://127.0.0.1:1/v1", "--judge-model", "x"), "nothing answers at http://127.0.0.1:1/v1"),
        (("--judge", "nowhere.yaml"), "cannot read nowhere.yaml"),
        (("--official-from", "nowhere"), "nowhere does not exist"),
    ],
)
def test_mistakes_are_one_message(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    images, prompts = draw(tmp_path / "drawn"), small_csv(tmp_path / "en.csv")
    done = run(images, "--prompts", prompts, "--per-prompt", 2, "--output", tmp_path / "out", *options)
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
