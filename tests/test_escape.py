"""Texts from elsewhere say in every format what they said, and no more."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowrl import escape
from flowrl.markdown import table

ANYTHING = st.text(st.characters(codec="utf-8"), max_size=60)


@given(ANYTHING)
def test_a_text_stays_in_its_cell_of_a_markdown_table(text: str) -> None:
    row = list(table(["", "x"], [[escape.markdown(text), "1"]]))[2]
    assert len(row.splitlines()) == 1
    cells = re.split(r"(?<!\\)(?:\\\\)*\|", row)
    assert len(cells) == 4, "two cells between three bars"
    assert cells[2].strip() == "1"


@given(ANYTHING)
def test_latex_has_balanced_braces_and_no_live_characters(text: str) -> None:
    written = escape.latex(text)
    left = re.sub(r"\\[a-z]+\{\}|\\[{}$&#%_]|\$(\\[a-zA-Z]+|-|\^\\circ)\$|\\textsuperscript\{2\}", "", written)
    left = re.sub(r"\{[\[\]*]\}|-\{\}|\{\[\}U\+[0-9A-F]+\{\]\}", "", left)
    assert not set("\\{}$&#%_^") & set(left), written
    assert "\n" not in written


@given(ANYTHING)
def test_a_spreadsheet_finds_no_formula(text: str) -> None:
    assert not escape.spreadsheet(text).startswith(("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠"))


def live(text: str) -> Iterator[str]:
    """Marks of Markdown that no backslash takes the meaning from."""
    yield from re.findall(r"(?<!\\)(?:\\\\)*([`*<|~$]|\](?=[(\[:]))", text)


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "[click](javascript:alert(1)) ![x](http://evil.invalid/x.png) [a]: http://evil.invalid",
        "`code` **bold** ~~gone~~ $x$ a|b",
        "back\\slash \\| \\",
        "two\nlines\r\nand\u2028three\x00",
    ],
)
def test_markdown_takes_the_meaning_from_marks(text: str) -> None:
    assert not list(live(escape.markdown(text)))
    assert len(escape.markdown(text).splitlines()) == 1


def test_plain_words_stay_readable() -> None:
    for text in ("HPS & CLIP", "gold +0.004 [-0.006, +0.013]", "mix_grpo", "2.1 times", "50 %", "G2RPO (w/o MGAI)"):
        assert escape.markdown(text) == text
    assert escape.markdown("1. first") == "1\\. first"
    assert escape.markdown("_emphasis_") == "\\_emphasis\\_"


def test_direction_marks_do_not_turn_what_follows() -> None:
    assert escape.one_line("שלום \u202eדג\u2066 end") == "שלום דג end"


def test_code_holds_backticks_and_bars() -> None:
    assert escape.markdown_code("a`b") == "``a`b``"
    assert escape.markdown_code("`a") == "`` `a ``"
    assert escape.markdown_code("x | y") == "`x \\| y`"


def test_wide_characters_take_two_columns() -> None:
    lines = list(table(["", "x"], [["一二", "1"], ["abcd", "1"]]))
    assert lines[2] == "| 一二 |   1 |"
    assert lines[3] == "| abcd |   1 |"
