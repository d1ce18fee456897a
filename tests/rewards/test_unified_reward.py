"""UnifiedReward: what is asked, how answers are read, and what becomes of those that are none."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from flowrl.errors import RunFailed, UserError
from flowrl.protocols import JudgeConfig, ScorerConfig
from flowrl.rewards.unified_reward import UnifiedReward, UnifiedRewardScorer
from flowrl.rewards.unified_reward_protocols import PROTOCOLS, official_wording
from flowrl.types import Answer, Prompt, Question

GOLDEN = Path(__file__).parents[1] / "golden" / "judges"
CASES = json.loads((GOLDEN / "unifiedreward_parse_cases.json").read_text("utf-8"))
TEMPLATES = json.loads((GOLDEN / "unifiedreward_templates.json").read_text("utf-8"))
OFFICIAL = {
    "final_score_v1": "final_score_v1 (qwen_point_score_image_generation.py:31)",
    "final_score_v1_5": "final_score_v1.5 sglang (sglang_llava/sglang_inference.py:36)",
    "acs_v1_5": "acs_v1.5 (qwen_point_score_ACS_image_generation.py:32-47)",
    "acs_v2": "acs_v2.0 (UnifiedReward-2.0-inference/point_score_ACS_image_generation.py:29-42)",
}
AXES = ("alignment", "coherence", "style")
PROMPTS = [Prompt("a red circle", 0), Prompt("a [blue] {square}", 1), Prompt("zwei grüne Sterne", 7)]
PICTURES = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]


class Scripted:
    """Gives each question what ``reply`` says, and remembers the questions."""

    def __init__(self, reply: Callable[[Question], Answer]) -> None:
        self.reply = reply
        self.batches: list[list[Question]] = []

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        self.batches.append(list(questions))
        return [self.reply(question) for question in questions]


def scorer(reply: Callable[[Question], Answer] | str, **values: Any) -> UnifiedRewardScorer:
    judge = Scripted((lambda question: Answer(reply)) if isinstance(reply, str) else reply)
    config = UnifiedReward(judge="shapes", **values)
    return UnifiedRewardScorer(config, config.wording(), judge)


# ---- reading answers


def value_of(text: str, **values: Any) -> float | None:
    scores = scorer(text, **values).score(PICTURES[:1], PROMPTS[:1])
    assert scores.valid.item() or scores.values.item() == 0
    return scores.values.item() if scores.valid.item() else None


@pytest.mark.parametrize("name", CASES)
def test_answers_are_read_as_the_published_clients_read_them(name: str) -> None:
    case = CASES[name]
    text = case["text"]
    assert value_of(text, protocol="final_score_v1") == pytest.approx(case["mixgrpo_final"])
    assert value_of(text, protocol="acs_v1_5") == pytest.approx(case["mixgrpo_alignment"])
    for axis, (official,) in case["prefgrpo_dims"].items():
        ours = value_of(text, protocol="acs_v2", value=axis.lower())
        assert ours == pytest.approx(official) or (ours is None and official == 0)
    ours = value_of(text, protocol="final_score_v1_5", normalise=True)
    assert ours == pytest.approx(case["sglang_v1.5"]) or (ours is None and case["sglang_v1.5"] == 0)


@pytest.mark.parametrize("name", CASES)
def test_a_missing_number_is_no_number_where_the_published_clients_put_one(name: str) -> None:
    """Deliberate: the client of v1.5 puts 0.0 and that of v2.0 the batch's mean, or 0.0 where there is none."""
    case = CASES[name]
    missing = {axis: f"{axis.capitalize()} Score (1-5): " not in case["text"] for axis in AXES}
    for axis in AXES:
        assert (value_of(case["text"], protocol="acs_v2", value=axis) is None) == missing[axis]
    assert (value_of(case["text"], protocol="acs_v2") is None) == any(missing.values())
    assert (value_of(case["text"], protocol="final_score_v1_5") is None) == (case["sglang_v1.5"] == 0)


def test_which_number_counts() -> None:
    text = "Alignment Score (1-5): 4\nCoherence Score (1-5): 5\nStyle Score (1-5): 3.3"
    assert value_of(text, protocol="acs_v1_5") == 4
    assert value_of(text, protocol="acs_v2") == pytest.approx(4.1)
    assert value_of(text, protocol="acs_v1_5", value="mean") == pytest.approx(4.1)
    assert value_of(text, protocol="acs_v2", value="style") == pytest.approx(3.3)
    assert value_of("Final Score: 4", protocol="final_score_v1_5") == 4
    assert value_of("Final Score: 4", protocol="final_score_v1_5", normalise=True) == pytest.approx(0.8)


def test_parts_hold_every_number_and_nan_for_what_is_missing() -> None:
    replies = iter(["Alignment Score (1-5): 4\nStyle Score (1-5): 2", "nothing", "Coherence Score (1-5): 1"])
    scores = scorer(lambda question: Answer(next(replies)), protocol="acs_v1_5").score(PICTURES, PROMPTS)
    assert scores.valid.tolist() == [True, False, False]
    assert scores.values.tolist() == [4, 0, 0]
    assert list(scores.parts) == list(AXES)
    nan = torch.nan
    expected = {"alignment": [4, nan, nan], "coherence": [nan, nan, 1], "style": [2, nan, nan]}
    for name, part in scores.parts.items():
        torch.testing.assert_close(part, torch.tensor(expected[name]).float(), equal_nan=True)


# ---- what is asked


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_batch_is_one_call_with_each_pictures_own_question(protocol: str) -> None:
    asking = scorer("nothing", protocol=protocol)
    asking.score(PICTURES, PROMPTS)
    (batch,) = asking.judge.batches
    assert [question.image for question in batch] == PICTURES
    for question, prompt in zip(batch, PROMPTS, strict=True):
        assert question.text.count(prompt.text) == 1
        assert not question.text_first
    assert asking.score([], []).values.shape == (0,)


def test_tensors_are_asked_about_as_pictures() -> None:
    asking = scorer("Final Score: 2", text_first=True)
    scores = asking.score(torch.ones(2, 3, 8, 8), PROMPTS[:2])
    assert scores.values.tolist() == [2, 2]
    (batch,) = asking.judge.batches
    assert [question.image.size for question in batch] == [(8, 8)] * 2
    assert all(question.text_first for question in batch)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_own_wording_is_not_the_published_one(protocol: str) -> None:
    published = TEMPLATES["templates"][OFFICIAL[protocol]]
    ours = PROTOCOLS[protocol].wording.about(TEMPLATES["prompt"])
    shared = {line.strip() for line in ours.split("\n")} & {line.strip() for line in published.split("\n")}
    assert all(len(line) < 30 for line in shared), "only what the parsers need is alike"


def checkout(folder: Path, protocol: str, shape: str = "one") -> Path:
    """A folder like the official repository whose file spells the published question in Python."""
    before, after = TEMPLATES["templates"][OFFICIAL[protocol]].split(TEMPLATES["prompt"])
    escaped = before.replace("{", "{{").replace("}", "}}")
    if shape == "one":
        literal = "f" + repr(escaped + "{prompt}" + after)
    else:
        lines = before.splitlines(keepends=True)
        literal = "(" + "\n".join([*map(repr, lines[:-1]), "f" + repr(lines[-1] + "{prompt}" + after)]) + ")"
    path = folder / PROTOCOLS[protocol].official
    path.parent.mkdir(parents=True)
    trap = "raise SystemExit('this must never run')\n"
    path.write_text(f"{trap}def ask(prompt):\n    return {{'role': 'user', 'text': {literal}}}\n", "utf-8")
    return folder


@pytest.mark.parametrize("shape", ["one", "lines"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_published_wording_is_read_byte_for_byte(protocol: str, shape: str, tmp_path: Path) -> None:
    config = UnifiedReward(protocol=protocol, judge="shapes", official_from=checkout(tmp_path, protocol, shape))
    assert config.wording().about(TEMPLATES["prompt"]) == TEMPLATES["templates"][OFFICIAL[protocol]]
    own = UnifiedReward(protocol=protocol, judge="shapes")
    assert config.identity()["wording"] == "official"
    assert config.identity()["wording_sha256"] != own.identity()["wording_sha256"]
    assert str(tmp_path) not in json.dumps(config.identity())


def test_a_folder_that_is_no_checkout_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"official_from .* no inference_qwen/.*name a checkout"):
        UnifiedReward(judge="shapes", official_from=tmp_path).check()
    path = checkout(tmp_path, "acs_v2") / PROTOCOLS["acs_v2"].official
    for text, rule in (
        ("print('hello')", "holds 0 texts"),
        ("x = f'Text Caption: [{a}]', f'no, Text Caption: [{a}]'", "holds 2 texts"),
        ("x = f'{b} Text Caption: [{a}]'", "holds 0 texts"),
        ("x = (", "is not Python"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=rule):
            official_wording(tmp_path, "acs_v2")


# ---- failures


FAILING = {
    "a red circle": Answer("Final Score: 4"),
    "a [blue] {square}": Answer(None, "timeout: no answer within 1 s"),
    "zwei grüne Sterne": Answer("Final Score: 5", "cut off: at max_tokens 9"),
}


def failing(question: Question) -> Answer:
    return next(answer for text, answer in FAILING.items() if text in question.text)


def test_skip_leaves_a_picture_out_and_counts_it() -> None:
    asking = scorer(failing)
    scores = asking.score(PICTURES, PROMPTS)
    assert scores.values.tolist() == [4, 0, 0]
    assert scores.valid.tolist() == [True, False, False]
    assert (asking.asked, dict(asking.failures)) == (3, {"timeout": 1, "cut off": 1})
    assert asking.coverage == pytest.approx(1 / 3)
    asking.score(PICTURES[:1], PROMPTS[:1])
    assert asking.coverage == pytest.approx(2 / 4)


def test_a_picture_that_is_not_finite_is_not_asked_about() -> None:
    images = torch.ones(3, 3, 8, 8)
    images[1, 0, 2, 2] = torch.nan
    asking = scorer(lambda question: Answer(f"Final Score: {4 if 'circle' in question.text else 3}"))
    scores = asking.score(images, PROMPTS)
    assert scores.values.tolist() == [4, 0, 3]
    assert scores.valid.tolist() == [True, False, True]
    assert [len(batch) for batch in asking.judge.batches] == [2]
    assert dict(asking.failures) == {"not finite": 1}


def test_fail_ends_everything_and_says_why(tmp_path: Path) -> None:
    asking = scorer(failing, on_failure="fail", log=tmp_path / "log.jsonl")
    assert asking.score(PICTURES[:1], PROMPTS[:1]).valid.all()
    with pytest.raises(RunFailed, match=r"2 of 3 pictures have no score.*timeout.*log\.jsonl.*on_failure: skip"):
        asking.score(PICTURES, PROMPTS)
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 4


def test_every_answer_is_kept_verbatim(tmp_path: Path) -> None:
    answers = iter(
        [Answer("I like it.\nFinal Score: 4"), Answer("schön, aber keine Zahl"), Answer(None, "HTTP 500: x", "x" * 999)]
    )
    asking = scorer(lambda question: next(answers), log=tmp_path / "log.jsonl")
    asking.score(PICTURES, PROMPTS)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text("utf-8").splitlines()]
    assert [row["text"] for row in rows] == ["I like it.\nFinal Score: 4", "schön, aber keine Zahl", None]
    assert [row["error"] for row in rows] == [None, "unparsable: no final score in the answer", "HTTP 500: x"]
    assert [row.get("body") for row in rows] == [None, None, "x" * 999]
    assert [row["value"] for row in rows] == [4, None, None]
    assert [row["index"] for row in rows] == [0, 1, 7]
    assert dict(asking.failures) == {"unparsable": 1, "HTTP 500": 1}


# ---- the config


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"value": "alignment"}, "not in the answers of final_score_v1"),
        ({"protocol": "acs_v2", "value": "final"}, "it has alignment, coherence, style, mean"),
        ({"protocol": "acs_v2", "normalise": True}, "normalise belongs to final_score_v1_5"),
        ({"normalise": True}, "normalise belongs to final_score_v1_5"),
        ({"judge": "shape"}, "did you mean 'shapes'"),
        ({"protocol": "acs_v3"}, "acs_v2"),
    ],
)
def test_what_does_not_fit_is_refused(values: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        UnifiedReward(**{"judge": "shapes"} | values)


def test_it_is_a_scorer_like_others() -> None:
    judge = {"kind": "endpoint", "url": "http://h/v1", "model": "UnifiedReward"}
    values = {"kind": "unified_reward", "protocol": "acs_v2", "judge": judge, "log": "answers.jsonl"}
    config = ScorerConfig.model_validate(values)
    assert ScorerConfig.model_validate(config.model_dump(mode="json")) == config
    assert ScorerConfig.model_validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config
    identity = config.identity()
    assert identity["judge"] == JudgeConfig.model_validate(judge).identity()
    assert (identity["protocol"], identity["value"]) == ("acs_v2", "mean")
    others = [
        values | {"protocol": "acs_v1_5"},
        values | {"value": "style"},
        values | {"judge": judge | {"model": "x"}},
    ]
    assert all(ScorerConfig.model_validate(other).identity() != identity for other in others)
    assert ScorerConfig.model_validate(values | {"log": None, "on_failure": "fail"}).identity() == identity
