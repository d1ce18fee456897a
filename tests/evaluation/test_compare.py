"""Two evaluations of the same prompts, paired."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from workplace import Workplace

from flowrl import atomic
from flowrl.errors import UserError
from flowrl.evaluation import records
from flowrl.evaluation.compare import compare, find_evaluation, markdown, write


@pytest.fixture
def evaluations(work: Workplace) -> tuple[Path, Path]:
    """Two evaluations, the second of other noise."""
    work.metrics({"brightness": "{kind: brightness}"})
    for seed, name in ((0, "a"), (1, "b")):
        work.evaluate(output=work.folder / name, seed=seed)
    return work.folder / "a", work.folder / "b"


def set_scores(folder: Path, values: list[float | None]) -> None:
    lines = records.read(folder / "per_prompt.jsonl")
    for line, value in zip(lines, values, strict=True):
        line["scores"]["brightness"] = value
    records.merge(folder / "per_prompt.jsonl", lines)


def test_differences_are_paired_and_ties_are_half_a_win(evaluations: tuple[Path, Path]) -> None:
    before, after = evaluations
    set_scores(before, [0.1, 0.9, 0.5, 0.3, None])
    set_scores(after, [0.3, 0.8, 0.5, 0.35, 0.7])
    found = compare(before, after)
    of = found.metrics["brightness"]
    assert of.difference.mean == pytest.approx(0.0375)
    assert (of.prompts, of.asked, of.win_rate) == (4, 5, 2.5 / 4)
    assert of.before == pytest.approx(0.45)
    assert not of.excludes_zero
    assert found.settings == {"seed": ("0", "1")}
    set_scores(after, [0.2, 1.0, 0.6, 0.4, 0.7])
    of = compare(before, after).metrics["brightness"]
    assert of.excludes_zero  # all rise alike, though the prompts differ widely
    assert of.difference.low == pytest.approx(0.1)
    text = " ".join("\n".join(markdown(compare(before, after))).split())
    assert "+0.1000 to +0.1000 | excludes 0 | 100.0% | 4 of 5 |" in text
    assert "seed 0 and 1" in text


def test_the_comparison_is_written_as_table_and_record(evaluations: tuple[Path, Path], tmp_path: Path) -> None:
    comparison = compare(*evaluations)
    table, record = write(comparison, tmp_path / "new" / "a_b.md")
    assert table.read_text().startswith("# ")
    assert json.loads(record.read_text())["metrics"]["brightness"]["asked"] == 5


def test_a_run_stands_for_its_evaluation(evaluations: tuple[Path, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    evaluations[0].rename(run / "eval")
    assert find_evaluation(run) == run / "eval"
    with pytest.raises(UserError, match="holds no evaluation"):
        find_evaluation(run / "eval" / "images")
    with pytest.raises(UserError, match="does not exist"):
        find_evaluation(tmp_path / "nothing")
    evaluations[1].rename(run / "another")
    with pytest.raises(UserError, match="several evaluations"):
        find_evaluation(run)


def test_other_prompts_are_an_error_that_names_them(evaluations: tuple[Path, Path], work: Workplace) -> None:
    before, after = evaluations
    lines = records.read(after / "per_prompt.jsonl")
    lines[1]["prompt"] = "three dogs"
    records.merge(after / "per_prompt.jsonl", lines[:-1])
    with pytest.raises(UserError, match=r"(?s)2 of 5 differ.*1: 'two dogs' and 'three dogs'\n  4: 'a star' and None"):
        compare(before, after)


def test_another_scorer_of_the_same_name_is_not_compared(evaluations: tuple[Path, Path], work: Workplace) -> None:
    before, after = evaluations
    results = json.loads((after / "results.json").read_text())
    results["metrics"]["brightness"]["identity"]["times"] = 2.0
    atomic.write_json(after / "results.json", results)
    with pytest.raises(UserError, match="no metric to compare: brightness: another scorer: times differ"):
        compare(before, after)
