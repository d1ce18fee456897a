"""How the judge is asked: our own words, and the official ones out of a checkout."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flowrl.errors import UserError
from flowrl.evaluation.unigenbench.benchmark import BenchPrompt
from flowrl.evaluation.unigenbench.dimensions import DIMENSIONS, Language
from flowrl.evaluation.unigenbench.wording import official_wording, own_wording

PROMPT = BenchPrompt(
    4,
    'a {red} fox says "hi": now',
    ("Style", "Attribute - Color", "Attribute - Color"),
    ("ink", "red fox", "it's 'red'"),
)
CHECKOUT = """\
import flowrl_must_not_import_this
raise SystemExit("this file must not be run")

MEANINGS_EN = {
    "Style": "how it looks",
    'Attribute - Color': "its colour",
}
MEANINGS_ZH = {"风格": "样子"}

TEMPLATE_EN = '''Look at 「{prompt}」.

            1. Angles: {testpoint}. {explanation}. {test_explanation}.

            <description>
                <prompt>{prompt}</prompt> {{as is}}
                <analysis>[]</analysis> <score>[]</score>
            </description>
            '''
TEMPLATE_ZH = '''看「{prompt}」{testpoint}{explanation}{test_explanation}'''

LANG_CONFIGS = {
    "en": {
        "explanation_dict": MEANINGS_EN,
        "system_prompt_template": TEMPLATE_EN,
        "prompt_column": "prompt_en",
        "checkpoint_header": "Checkpoints Defination",
        "checkpoint_desc_header": "Checkpoints Description",
    },
    "zh": {
        "explanation_dict": MEANINGS_ZH,
        "system_prompt_template": TEMPLATE_ZH,
        "checkpoint_header": "说明",
        "checkpoint_desc_header": "描述",
    },
}
"""


def checkout(folder: Path, text: str = CHECKOUT) -> Path:
    file = folder / "benchmark" / "eval" / "eval_common.py"
    file.parent.mkdir(parents=True)
    file.write_text(text, encoding="utf-8")
    return folder / "benchmark"


# ---- our own


def test_our_wording_holds_prompt_testpoints_and_form() -> None:
    lines = own_wording("en").render(PROMPT).splitlines()
    assert 'Prompt: "a {red} fox says "hi": now"' in lines
    numbered = [line for line in lines if re.match(r"\d\. ", line)]
    assert numbered == ["1. Style: ink", "2. Attribute - Color: red fox", "3. Attribute - Color: it's 'red'"]
    assert sum(line.startswith("- Attribute - Color: ") for line in lines) == 1
    assert [line[:10] for line in lines[-2:]] == ["<analysis>", "<score>[.."]
    assert "3 testpoints" in "\n".join(lines)


def test_our_wording_speaks_the_benchmarks_language() -> None:
    text = own_wording("zh").render(BenchPrompt(0, "两只熊猫", ("风格",), ("水墨画",)))
    assert "「两只熊猫」" in text
    assert "1. 风格: 水墨画" in text
    assert not re.search(r"[a-z]{2,}", text.replace("analysis", "").replace("score", ""))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_our_wording_knows_every_testpoint(language: Language) -> None:
    names = tuple(dimension.name(language) for dimension in DIMENSIONS)
    text = own_wording(language).render(BenchPrompt(0, "p", names, names))
    assert all(f"- {d.name(language)}: {d.meaning(language)}" in text for d in DIMENSIONS)


def test_an_example_of_the_form_is_no_list_of_names() -> None:
    """A judge that looks for a list of testpoints in the question must not find another one."""
    assert not re.search(r"\[['\"]\w", own_wording("en").render(PROMPT))


# ---- the official one


def test_the_official_wording_is_filled_in_as_its_authors_do(tmp_path: Path) -> None:
    text = official_wording(checkout(tmp_path), "en").render(PROMPT)
    assert text == (
        'Look at 「a {red} fox says "hi": now」.\n\n'
        "            1. Angles: ['Style', 'Attribute - Color', 'Attribute - Color']. "
        "Checkpoints Defination:「\nStyle: how it looks\n"
        "Attribute - Color: its colour\nAttribute - Color: its colour\n」. "
        "Checkpoints Description:「\nStyle: ink\nAttribute - Color: red fox\nAttribute - Color: it's 'red'\n」.\n\n"
        "            <description>\n"
        '                <prompt>a {red} fox says "hi": now</prompt> {as is}\n'
        "                <analysis>[]</analysis> <score>[]</score>\n"
        "            </description>\n"
        "            "
    )


def test_the_file_itself_and_the_other_language(tmp_path: Path) -> None:
    file = checkout(tmp_path) / "eval" / "eval_common.py"
    text = official_wording(file, "zh").render(BenchPrompt(0, "熊猫", ("风格",), ("水墨",)))
    assert text == "看「熊猫」['风格']说明:「\n风格: 样子\n」描述:「\n风格: 水墨\n」"


def test_what_was_asked_is_told_by_the_identity(tmp_path: Path) -> None:
    official = official_wording(checkout(tmp_path), "en").identity
    other = official_wording(checkout(tmp_path / "b", CHECKOUT.replace("how it looks", "its look")), "en").identity
    assert official["name"] == other["name"] == "official"
    assert official["sha256"] != other["sha256"]
    assert own_wording("en").identity["name"] == "flowrl"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("LANG_CONFIGS", "SETTINGS", "assigns no LANG_CONFIGS"),
        ('"en": {', '"fr": {', "has no 'en'"),
        ('"checkpoint_header": "Checkpoints Defination",', "", "has no 'checkpoint_header'"),
        ("MEANINGS_EN = {", "MEANINGS_EN = dict() or {", "explanation_dict of en is not a literal"),
        ('"system_prompt_template": TEMPLATE_EN', '"system_prompt_template": 3', "is no str"),
        ("{testpoint}. ", "", "lacks fields: testpoint"),
        ("{testpoint}. ", "{testpoint.__class__}. ", "fields that nothing is known of: testpoint.__class__"),
        ("{{as is}}", "{as", "cannot be filled in"),
        ("import ", "import import ", "is not Python"),
    ],
)
def test_an_unexpected_checkout_is_one_message(tmp_path: Path, old: str, new: str, reason: str) -> None:
    with pytest.raises(UserError, match=re.escape(reason)):
        official_wording(checkout(tmp_path, CHECKOUT.replace(old, new)), "en")


def test_a_checkout_must_hold_one_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        official_wording(tmp_path / "nowhere", "en")
    with pytest.raises(UserError, match="holds 0 of them"):
        official_wording(tmp_path, "en")


def test_a_testpoint_without_a_definition_is_named(tmp_path: Path) -> None:
    wording = official_wording(checkout(tmp_path), "en")
    with pytest.raises(UserError, match="does not say what 'Action - Animal' means"):
        wording.render(BenchPrompt(0, "p", ("Action - Animal",), ("runs",)))
