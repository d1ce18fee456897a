"""UniGenBench++ inside an evaluation: drawn like all else, judged once, compared prompt by prompt."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import plain_scorers
import pytest
from workplace import Workplace

from flowrl.errors import UserError
from flowrl.evaluation import records
from flowrl.evaluation.compare import compare
from flowrl.evaluation.results import read_manifest

ROWS = [(7, "a cat", "Style"), (3, "two dogs", "Grammar - Negation")]


@pytest.fixture
def benchmark(work: Workplace) -> str:
    """Two prompts whose indices are not their places; the metrics are brightness and the benchmark."""
    path = work.folder / "bench.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("index", "prompt_en", "sub_dims_en"))
        for index, text, name in ROWS:
            writer.writerow((index, text, json.dumps({"Testpoints": [name], "Testpoint Description": ["it"]})))
    metrics = Path(work.metrics({"brightness": "{kind: brightness}"}))
    settings = "benchmarks: {unigenbench: {judge: {kind: cat_lover}, images_per_prompt: 2}}\n"
    metrics.write_text(metrics.read_text() + settings)
    return str(path)


def test_images_answers_and_numbers(work: Workplace, benchmark: str, drawn: list) -> None:
    results = work.evaluate(benchmark=benchmark)
    assert results is not None
    images = read_manifest(work.output / "unigenbench")
    assert [image.file for image in images] == [f"images/{i}_{j}.png" for i in (7, 3) for j in range(2)]
    found = results.benchmarks["unigenbench"]
    assert found["dimensions"]["Style"]["accuracy"] == 1
    assert found["dimensions"]["Grammar"]["accuracy"] == 0
    assert [line["scores"] for line in records.read(work.output / "unigenbench" / "per_prompt.jsonl")] == [
        {"unigenbench": 1.0},
        {"unigenbench": 0.0},
    ]
    assert "UniGenBench++" in (work.output / "results.md").read_text()
    drawn.clear()
    plain_scorers.CALLS.clear()
    work.evaluate(benchmark=benchmark)
    work.evaluate(stage="score", model_or_run=None, prompts=None)  # the images say which prompts they are of
    assert not drawn
    assert not plain_scorers.CALLS


def test_what_was_drawn_is_what_is_judged(work: Workplace, benchmark: str) -> None:
    work.evaluate(stage="generate", benchmark=benchmark, limit=1)
    work.evaluate(stage="score", model_or_run=None)
    results = work.evaluate(stage="table", model_or_run=None)
    assert results is not None
    assert results.benchmarks["unigenbench"]["benchmark"]["prompts"] == 1
    assert results.metrics["brightness"].asked == 1


def test_images_of_the_benchmark_have_to_be_drawn_first(work: Workplace, benchmark: str) -> None:
    plain = work.folder / "plain.yaml"
    plain.write_text("fragment: true\nplugins: [plain_scorers]\nmetrics: {brightness: {kind: brightness}}\n")
    work.evaluate(stage="generate", metrics=str(plain))
    with pytest.raises(UserError, match="unigenbench holds no images"):
        work.evaluate(stage="score", benchmark=benchmark)


def test_it_can_be_all_that_is_asked(work: Workplace, benchmark: str) -> None:
    metrics = work.folder / "metrics.yaml"
    values = metrics.read_text().replace("metrics:\n  brightness: {kind: brightness}\n", "")
    metrics.write_text(values)
    results = work.evaluate(benchmark=benchmark, prompts=None)
    assert results is not None
    assert not results.metrics
    assert not (work.output / "images").exists()
    found = compare(work.output, work.output).metrics["unigenbench: testpoints"]
    assert (found.before, found.prompts, found.win_rate) == (0.5, 2, 0.5)


def test_it_is_compared_by_prompt(work: Workplace, benchmark: str) -> None:
    for seed, name in ((0, "a"), (1, "b")):
        work.evaluate(benchmark=benchmark, output=work.folder / name, seed=seed)
    found = compare(work.folder / "a", work.folder / "b")
    assert list(found.metrics) == ["brightness", "unigenbench: testpoints"]
    assert found.metrics["unigenbench: testpoints"].difference.mean == 0


def test_the_prompts_have_to_be_named(work: Workplace, benchmark: str, drawn: list) -> None:
    with pytest.raises(UserError, match="needs the benchmark's prompts: --benchmark CSV"):
        work.evaluate()
    with pytest.raises(UserError, match="neither a CSV file"):
        work.evaluate(benchmark="nothing.csv")
    assert not drawn


def test_its_images_may_have_steps_of_their_own(work: Workplace, benchmark: str) -> None:
    metrics = work.folder / "metrics.yaml"
    metrics.write_text(metrics.read_text().replace("images_per_prompt: 2", "images_per_prompt: 1, num_steps: 3"))
    work.evaluate(benchmark=benchmark, num_steps=None, limit=1, stage="generate", output=work.folder / "own")
    work.evaluate(benchmark=benchmark, limit=1, stage="generate", output=work.folder / "asked")
    steps = [
        read_manifest(work.folder / folder)[0].steps
        for folder in ("own", "own/unigenbench", "asked", "asked/unigenbench")
    ]
    assert steps == [28, 3, 2, 2]  # 28 is the pipeline's own


def test_a_wrong_checkout_is_told_before_anything_is_drawn(work: Workplace, benchmark: str, drawn: list) -> None:
    metrics = work.folder / "metrics.yaml"
    settings = metrics.read_text()
    metrics.write_text(settings.replace("images_per_prompt: 2", f"official_from: {work.folder}"))
    for stage in ("all", "score"):
        if stage == "score":
            work.evaluate(benchmark=benchmark, stage="generate")  # needs no wording
            drawn.clear()
            plain_scorers.CALLS.clear()
        with pytest.raises(UserError, match=r"eval_common\.py"):
            work.evaluate(benchmark=benchmark, stage=stage)
        assert not drawn
        assert not plain_scorers.CALLS, "nor scored"


def test_a_changed_image_is_not_judged(work: Workplace, benchmark: str) -> None:
    work.evaluate(benchmark=benchmark, stage="generate")
    image, other = (work.output / "unigenbench" / "images" / f"7_{j}.png" for j in range(2))
    image.write_bytes(other.read_bytes())
    with pytest.raises(UserError, match=r"7_0\.png has changed since it was drawn"):
        work.evaluate(benchmark=benchmark, stage="score")
    work.evaluate(benchmark=benchmark)  # draws it again
