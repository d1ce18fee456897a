"""The numbers: dimensions, the mean of ten, coverage and what failed answers would cost."""

from __future__ import annotations

import pytest

from flowrl.evaluation.unigenbench.answers import Reading, read_answer
from flowrl.evaluation.unigenbench.benchmark import BenchPrompt
from flowrl.evaluation.unigenbench.counts import Row, Tally, count, official_scores
from flowrl.evaluation.unigenbench.dimensions import COLUMNS, DIMENSIONS, Language

ALL = tuple(next(d.en for d in DIMENSIONS if d.primary == primary) for primary in COLUMNS)


def prompt(index: int, *names: str) -> BenchPrompt:
    return BenchPrompt(index, f"prompt {index}", names, names)


def scored(*scores: object) -> Reading:
    return read_answer(f"<analysis>{['x'] * len(scores)}</analysis><score>{list(scores)}</score>", len(scores))


def test_the_columns_are_those_of_the_paper() -> None:
    shown = "Style, World Know., Attribute, Action, Relation., Logic.Reason., Grammar, Compound, Layout, Text"
    assert ", ".join(COLUMNS.values()) == shown


def test_a_dimension_is_a_micro_average_and_overall_the_plain_mean_of_ten() -> None:
    rows: list[Row] = [(prompt(0, *ALL), scored(*[1] * 10)), (prompt(1, "Style", "Style", "Style"), scored(0, 0, 1.0))]
    found = count(rows, "en")
    assert found.primary["Style"] == Tally(2, 4, 4)
    assert found.primary["Grammar"] == Tally(1, 1, 1)
    assert found.overall == pytest.approx((0.5 + 9) / 10)
    assert found.micro == Tally(11, 13, 13)
    assert found.coverage == 1
    assert list(found.primary) == list(COLUMNS)


def test_sub_dimensions_add_up_to_their_primary() -> None:
    names = ("Attribute - Color", "Attribute - Size", "Action - State")
    found = count([(prompt(0, *names), scored(1, 0, 1))], "en")
    assert found.sub["Attribute - Color"] == Tally(1, 1, 1)
    assert found.sub["Attribute - Size"] == Tally(0, 1, 1)
    assert found.primary["Attribute"] == Tally(1, 2, 2)
    assert found.overall is None  # eight dimensions were not asked about
    assert set(found.intervals) == {"Attribute", "Action"}


def test_failed_answers_leave_the_denominators_and_stay_visible() -> None:
    lost, unreadable = read_answer("<analysis>['x']</analysis><score>[True]</score>", 1), read_answer("no", 10)
    rows: list[Row] = [
        (prompt(0, *ALL), scored(*[1] * 10)),
        (prompt(1, *ALL), unreadable),
        (prompt(2, "Style"), lost),
    ]
    found = count(rows, "en")
    assert found.outcomes == {"counted": 1, "lost": 1, "unreadable": 1}
    assert (found.counted, found.asked) == (1, 3)
    assert found.coverage == pytest.approx(1 / 3)
    assert found.primary["Style"] == Tally(1, 1, 3)
    assert found.overall == 1
    assert found.overall_at_least == pytest.approx((1 / 3 + 9 * 0.5) / 10)


@pytest.mark.parametrize(("language", "name"), [("en", "Attribute - Color"), ("zh", "属性-颜色")])
def test_both_languages_count_under_the_same_names(language: Language, name: str) -> None:
    assert count([(prompt(0, name), scored(1))], language).sub["Attribute - Color"] == Tally(1, 1, 1)


def test_the_official_summary_keeps_the_official_names() -> None:
    rows: list[Row] = [
        (prompt(0, "Style", "Entity Layout - Two-Dimensional Space"), scored(1, 0)),
        (prompt(1, "Attribute - Color", "Style", "Attribute - Color"), scored(1, 0, 1)),
        (prompt(2, "Style"), scored("1")),
        (prompt(3, "Grammar - Negation"), read_answer(None, 1)),
    ]
    assert official_scores(rows) == {
        "primary_dimensions": {
            "Style": {"correct": 1, "total": 3, "accuracy": 0.3333},
            "Entity Layout ": {"correct": 0, "total": 1, "accuracy": 0.0},
            "Attribute ": {"correct": 2, "total": 2, "accuracy": 1.0},
        },
        "sub_dimensions": {
            "Attribute - Color": {"correct": 2, "total": 2, "accuracy": 1.0},
            "Entity Layout - Two-Dimensional Space": {"correct": 0, "total": 1, "accuracy": 0.0},
            "Style": {"correct": 1, "total": 3, "accuracy": 0.3333},
        },
    }
    assert list(official_scores(rows)["primary_dimensions"]) == ["Style", "Entity Layout ", "Attribute "]
    chinese = official_scores([(prompt(0, "属性-颜色"), scored(1))])
    assert list(chinese["primary_dimensions"]) == ["属性"]


def test_intervals_are_over_prompts_not_images() -> None:
    """Four equal images of a prompt say no more than one: the interval is as wide."""
    one: list[Row] = [(prompt(i, *ALL), scored(*[i % 2] * 10)) for i in range(20)]
    four = [row for row in one for _ in range(4)]
    narrow, wide = count(one, "en").intervals["Overall"], count(four, "en").intervals["Overall"]
    assert narrow == wide
    assert narrow.mean == 0.5
    # 20 coin tosses: a standard error of 0.112
    assert narrow.low == pytest.approx(0.5 - 1.96 * 0.112, abs=0.04)
    assert narrow.high == pytest.approx(0.5 + 1.96 * 0.112, abs=0.04)


def test_nothing_counted_is_no_number() -> None:
    found = count([(prompt(0, *ALL), read_answer(None, 10))], "en")
    assert found.overall is None
    assert found.overall_at_least == 0
    assert found.coverage == 0
    assert found.intervals == {}
