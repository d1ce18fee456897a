"""Scores and tables, each from the files of the stages before it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import plain_scorers
import pytest
from PIL import Image
from workplace import TEXTS, Workplace

from flowrl.errors import UserError
from flowrl.evaluation import records
from flowrl.evaluation.metrics import find_metrics
from flowrl.evaluation.results import Results
from flowrl.evaluation.table import markdown


def brightness(path: Path) -> float:
    return float(np.asarray(Image.open(path), dtype=float).mean() / 255)


def test_scores_are_of_the_files_and_of_each_image(work: Workplace) -> None:
    work.evaluate(images_per_prompt=2)
    lines = records.read(work.output / "scores" / "brightness.jsonl")
    assert [(line["index"], line["j"]) for line in lines] == [(i, j) for i in range(len(TEXTS)) for j in range(2)]
    for line in lines:
        expected = brightness(work.output / "images" / f"{line['index']}_{line['j']}.png")
        assert line["value"] == pytest.approx(expected, abs=1e-6)
        assert line["valid"]
    about = json.loads((work.output / "scores" / "brightness.json").read_text())
    assert about["identity"] == {"kind": "brightness", "times": 1.0, "silent": []}
    assert about["provenance"]["libraries"]["torch"]
    assert [call for call in plain_scorers.CALLS if call[0] == "place"] == [("place", [i, i]) for i in range(5)]


def test_a_new_metric_draws_nothing_and_needs_no_model(work: Workplace, drawn: list) -> None:
    metrics = work.metrics({"brightness": "{kind: brightness}"})
    work.evaluate()
    moved = work.folder / "another machine"
    shutil.move(work.output, moved)
    drawn.clear()
    plain_scorers.CALLS.clear()
    work.metrics({"brightness": "{kind: brightness}", "twice": "{kind: brightness, times: 2.0}"})
    for stage in ("score", "table"):
        results = work.evaluate(stage=stage, model_or_run=None, prompts=None, metrics=metrics, output=moved)
    assert not drawn
    assert plain_scorers.CALLS == [("brightness", [0, 1, 2, 3, 4])]  # of the new one alone
    assert isinstance(results, Results)
    found = results.metrics
    assert found["twice"].estimate.mean == pytest.approx(2 * found["brightness"].estimate.mean)


def test_only_other_images_and_other_scorers_are_scored_again(work: Workplace) -> None:
    metrics = work.metrics({"brightness": "{kind: brightness}"})
    work.evaluate(limit=3)
    plain_scorers.CALLS.clear()
    work.evaluate(limit=4)
    assert plain_scorers.CALLS == [("brightness", [3])]
    work.metrics({"brightness": "{kind: brightness, times: 3.0}"})
    plain_scorers.CALLS.clear()
    work.evaluate(limit=4, metrics=metrics)
    assert plain_scorers.CALLS == [("brightness", [0, 1, 2, 3])]


def test_what_an_interrupted_scorer_had_said_is_kept(work: Workplace) -> None:
    work.metrics({"brightness": "{kind: brightness}"})
    work.evaluate()
    path = work.output / "scores" / "brightness.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.unlink()
    records.part(path, 0).write_text("".join(lines[:3]) + lines[3][:20])
    plain_scorers.CALLS.clear()
    work.evaluate()
    assert plain_scorers.CALLS == [("brightness", [3, 4])]
    assert path.read_text() == "".join(lines)


def test_a_changed_image_is_not_scored(work: Workplace) -> None:
    work.evaluate(stage="generate")
    (work.output / "images" / "1_0.png").write_bytes(b"another")
    with pytest.raises(UserError, match=r"1_0\.png has changed since it was drawn"):
        work.evaluate(stage="score")


def test_means_are_over_prompts_and_missing_answers_are_shown(work: Workplace) -> None:
    work.metrics({"brightness": "{kind: brightness, silent: [1, 3]}", "place": "{kind: place}"})
    results = work.evaluate(images_per_prompt=2)
    assert results is not None
    found = results.metrics["brightness"]
    assert (found.asked, found.valid, found.prompts) == (10, 6, 3)
    images = [np.mean([brightness(work.output / "images" / f"{i}_{j}.png") for j in range(2)]) for i in (0, 2, 4)]
    assert found.estimate.mean == pytest.approx(np.mean(images), abs=1e-6)
    assert found.estimate.low <= found.estimate.mean <= found.estimate.high
    assert set(found.parts) == {"red"}
    lines = list(markdown(results))
    assert lines[0].endswith("(coverage: brightness 60.0 %)")
    assert any(line.split()[:3] == ["|", "brightness", "|"] and "6 of 10 (60.0 %)" in line for line in lines)
    prompts = records.read(work.output / "per_prompt.jsonl")
    assert [prompt["prompt"] for prompt in prompts] == TEXTS
    assert [prompt["scores"]["brightness"] is None for prompt in prompts] == [False, True, False, True, False]
    assert all(prompt["scores"]["place"] == 0.5 for prompt in prompts)


def test_the_table_needs_the_files_alone(work: Workplace, drawn: list) -> None:
    work.evaluate(images_per_prompt=2)
    names = ("results.json", "results.md", "per_prompt.jsonl", "contact_sheet.png")
    before = [(work.output / name).read_bytes() for name in names]
    for name in names:
        (work.output / name).unlink()
    drawn.clear()
    plain_scorers.CALLS.clear()
    work.evaluate(stage="table", model_or_run=None, prompts=None)
    assert [(work.output / name).read_bytes() for name in names[:3]] == before[:3]
    with Image.open(work.output / "contact_sheet.png") as sheet:
        assert min(sheet.size) > 400
    assert not drawn
    assert not plain_scorers.CALLS
    results = Results.load(work.output / "results.json")
    assert results.generation.drawing.num_steps == 2
    assert results.provenance.flowrl


def test_a_copied_folder_gives_the_same_table(work: Workplace) -> None:
    """Copying and checking out give files other times; names and order are the records' own."""
    work.metrics({"z": "{kind: brightness}", "b": "{kind: place}"})
    work.evaluate()
    work.metrics({"a": "{kind: brightness, times: 2.0}", "z": "{kind: brightness, times: 3.0}"})
    first = work.evaluate()
    assert list(first.metrics) == ["z", "b", "a"], "as first asked for, though z has become another"
    copied = work.folder / "copied"
    shutil.copytree(work.output, copied, copy_function=shutil.copyfile)
    for seconds, path in enumerate(sorted((copied / "scores").glob("*"))):
        os.utime(path, (seconds, seconds))
    second = work.evaluate(stage="table", model_or_run=None, prompts=None, output=copied)
    assert second == first
    assert list(second.metrics) == list(first.metrics)
    assert (copied / "results.md").read_bytes() == (work.output / "results.md").read_bytes()
    for suffix in (".json", ".jsonl"):
        (copied / "scores" / f"a{suffix}").rename(copied / "scores" / f"other{suffix}")
    with pytest.raises(UserError, match=r"other\.json holds what scored metric 'a'"):
        work.evaluate(stage="table", model_or_run=None, prompts=None, output=copied)


def test_a_metric_of_fewer_images_is_named_and_left_out(work: Workplace) -> None:
    work.evaluate(limit=3)
    results = work.evaluate(limit=5, metrics=work.metrics({"place": "{kind: place}"}))
    assert results is not None
    assert list(results.metrics) == ["place"]
    assert results.unfinished == {"brightness": 3}
    assert "only 3 images are scored" in (work.output / "results.md").read_text()


def test_mistakes(work: Workplace, tmp_path: Path, drawn: list) -> None:
    with pytest.raises(UserError, match="holds no images"):
        work.evaluate(stage="score")
    with pytest.raises(UserError, match=r"no metric 'gald'; did you mean 'gold'"):
        find_metrics("gald", "shapes")
    with pytest.raises(UserError, match="names no metric"):
        find_metrics(",", "shapes")
    with pytest.raises(UserError, match=r"--metrics nothing\.yaml: no such file"):
        find_metrics("nothing.yaml", "shapes")
    work.metrics({"bright": "{kind: brightnes}"})
    with pytest.raises(UserError, match=r"metrics\.bright: unknown ScorerConfig kind 'brightnes'; did you mean"):
        work.evaluate()
    work.metrics({"bright": "{kind: brightness, tims: 2}"})
    with pytest.raises(UserError, match=r"metrics\.bright\.tims: unknown key; did you mean 'times'"):
        work.evaluate()
    assert not drawn
    work.metrics({"brightness": "{kind: brightness}"})
    work.evaluate(stage="generate")
    with pytest.raises(UserError, match="holds no scores yet"):
        work.evaluate(stage="table")
    (work.output / "generation.json").write_text("{}")
    with pytest.raises(UserError, match=r"generation\.json is not what this version"):
        work.evaluate(stage="score")


def test_only_what_is_chosen_of_a_fragment_is_looked_at(work: Workplace) -> None:
    file = work.metrics({"brightness": "{kind: brightness}", "broken": "{kind: nothing}"})
    assert list(find_metrics("brightness", file).metrics) == ["brightness"]
    assert list(find_metrics(f"{work.metrics({'a': '{kind: place}'})},gold", "shapes").metrics) == ["a", "gold"]
