"""The gold judge over HTTP: it finds the prompt and the testpoints in any wording, and answers both protocols."""

from __future__ import annotations

import ast
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from flowrl.cli import app
from flowrl.judges.endpoint import Endpoint
from flowrl.judges.pictures import data_url, encoded
from flowrl.rewards.gold import Gold
from flowrl.rewards.unified_reward import UnifiedReward
from flowrl.rewards.unified_reward_protocols import PROTOCOLS
from flowrl.types import Prompt, Question
from flowrl.worlds.shapes.judge import judge as gold
from flowrl.worlds.shapes.judge_answers import Refusal, answer, find_prompt, find_testpoints
from flowrl.worlds.shapes.judge_server import MODEL, serving
from flowrl.worlds.shapes.prompts import bench_prompts, test_prompts, testpoints_of, train_prompts
from flowrl.worlds.shapes.render import render
from flowrl.worlds.shapes.scene import Scene

GOLDEN = Path(__file__).parents[1] / "golden" / "judges"
BENCH = bench_prompts()
CPU = torch.device("cpu")


def rendered(prompts: list[Prompt], shift: int = 0) -> torch.Tensor:
    """A picture of each prompt, or of the one ``shift`` places further on: half right, by chance."""
    scenes = [Scene.from_json(prompts[(k + shift) % len(prompts)].meta["scene"]) for k in range(len(prompts))]
    pictures = [render(scene, np.random.default_rng(k)) for k, scene in enumerate(scenes)]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def picture(pixels: torch.Tensor) -> Image.Image:
    return Image.fromarray((pixels * 255).round().byte().permute(1, 2, 0).numpy())


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving() as base:
        yield base


# ---- UnifiedReward, end to end


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_all_four_protocols_say_what_the_gold_judge_says(protocol: str, url: str) -> None:
    images = torch.cat([rendered(BENCH[:20]), rendered(BENCH[:20], shift=1)])
    prompts = BENCH[:20] * 2
    endpoint = Endpoint(url=url, model=MODEL, image_format="png", concurrency=4)
    scorer = UnifiedReward(protocol=protocol, judge=endpoint, on_failure="fail").load(CPU)
    scores = scorer.score(images, prompts)
    assert scores.valid.all()
    verdict = gold(images, [testpoints_of(prompt) for prompt in prompts])
    grades = torch.tensor([sum(row) / len(row) for row in verdict.grades])
    by_part = {"final": verdict.quality, "alignment": grades, "coherence": verdict.clean, "style": verdict.quality}
    for name, part in scores.parts.items():
        torch.testing.assert_close(part, 1 + 4 * by_part[name], rtol=0, atol=6e-5)
    quality = Gold().load(CPU).score(images, prompts).values
    assert quality[:20].mean() > quality[20:].mean() + 0.1
    assert scores.values[:20].mean() > scores.values[20:].mean() + 0.4


def test_jpeg_as_the_published_clients_send_it_changes_little(url: str) -> None:
    images = torch.cat([rendered(BENCH[:20]), rendered(BENCH[:20], shift=1)])
    by_format = [
        UnifiedReward(judge=Endpoint(url=url, model=MODEL, image_format=name)).load(CPU).score(images, BENCH[:20] * 2)
        for name in ("png", "jpeg")
    ]
    assert (by_format[0].values - by_format[1].values).abs().mean() < 0.1


@pytest.mark.parametrize(
    "name", list(json.loads((GOLDEN / "unifiedreward_templates.json").read_text("utf-8"))["templates"])
)
def test_the_published_wordings_are_understood(name: str) -> None:
    golden = json.loads((GOLDEN / "unifiedreward_templates.json").read_text("utf-8"))
    said = answer(golden["templates"][name].replace(golden["prompt"], BENCH[0].text), picture(rendered(BENCH[:1])[0]))
    wanted = r"Score \(1-5\)" if "acs" in name or "semantic" in name or "pref-grpo" in name else "Final Score"
    assert re.search(rf"{wanted}: [1-5]\.\d{{4}}$", said)
    assert ("Word-wise Scores: " in said) == ("acs_v1.5" in name or "semantic" in name)
    assert len(re.findall(r" \(.*\): [01]\n", said)) == (
        len(testpoints_of(BENCH[0])) if "final_score_v1 " in name or "mixgrpo score" in name else 0
    )


def test_word_wise_scores_are_high_for_words_that_are_not_shown() -> None:
    text = PROTOCOLS["acs_v1_5"].wording.about("a red star")
    assert find_prompt(text)[0].text == "a red star"
    for colour, badly in (("red", 0.0), ("blue", 1.0)):
        canvas = rendered([next(p for p in train_prompts() if p.text == f"a {colour} star")])
        said = answer(text, picture(canvas[0]))
        rows = dict(json.loads(said.partition("\n")[0].removeprefix("Word-wise Scores: ")))
        assert list(rows) == ["a", "red", "star", "[No_mistakes]"]
        assert rows["red"] == pytest.approx(badly, abs=0.5)
        assert rows["[No_mistakes]"] == pytest.approx(1 - badly, abs=0.5)


# ---- UniGenBench++


def asked(prompt: Prompt, style: str = "lines") -> str:
    """A question of the benchmark's kind: its form, none of its words."""
    testpoints = testpoints_of(prompt)
    names = [testpoint.name for testpoint in testpoints]
    lines = [f"{testpoint.name}: {testpoint.description}" for testpoint in testpoints]
    definitions = [f"{name}: what {name.lower()} means in general" for name in dict.fromkeys(names)]
    block = {
        "lines": "\n".join(["Definitions", *definitions, "Testpoints", *lines]),
        "numbered": "\n".join(f"{k}. {line}" for k, line in enumerate(lines, 1)),
        "bullets": "\n".join(f"  - {line}" for line in lines),
        "phrases": "; ".join(testpoint.description for testpoint in testpoints),
        "names": f"Look at {names}.",
        "both": "\n".join([f"Look at {names}", *lines]),
    }[style]
    return f'Prompt: "{prompt.text}"\n{block}\nAnswer: <analysis>[...]</analysis><score>[...]</score>'


def parsed(said: str) -> tuple[list[str], list[int]]:
    found = [re.search(rf"<{tag}>(.*?)</{tag}>", said, re.S) for tag in ("analysis", "score")]
    return tuple(ast.literal_eval(match.group(1)) for match in found if match)  # type: ignore[return-value]


@pytest.mark.parametrize("style", ["lines", "numbered", "bullets", "phrases", "names", "both"])
def test_testpoints_are_answered_in_any_form_of_question(style: str) -> None:
    prompts = BENCH if style == "lines" else BENCH[:15]
    images = torch.cat([rendered(prompts), rendered(prompts, shift=1)])
    verdict = gold(images, [testpoints_of(prompt) for prompt in prompts * 2])
    for image, prompt, expected in zip(images, prompts * 2, verdict.satisfied, strict=True):
        analysis, score = parsed(answer(asked(prompt, style), picture(image)))
        assert score == expected
        assert len(analysis) == len(expected)
    assert 0 < sum(map(sum, verdict.satisfied)) < sum(map(len, verdict.satisfied))


def test_testpoints_are_answered_in_the_questions_order_and_number() -> None:
    prompt = next(prompt for prompt in BENCH if len(testpoints_of(prompt)) >= 3)
    known = testpoints_of(prompt)
    text = f'"{prompt.text}"\n' + "\n".join(f"{t.name}: {t.description}" for t in reversed(known[1:]))
    _, end = find_prompt(text)
    assert find_testpoints(text, end, known) == list(reversed(known[1:]))
    with pytest.raises(Refusal):
        find_testpoints(f"{text}\n{[t.name for t in known]}", end, known)
    with pytest.raises(Refusal):
        find_testpoints(f'"{prompt.text}" and nothing else', end, known)


def test_testpoints_over_the_wire(url: str) -> None:
    judge = Endpoint(url=url, model="any name", image_format="png").load(CPU)
    images = rendered(BENCH[:8])
    answers = judge.ask([Question(picture(i), asked(p)) for i, p in zip(images, BENCH[:8], strict=True)])
    assert all(all(score == 1 for score in parsed(said.text or "")[1]) for said in answers)


# ---- finding the prompt


@pytest.mark.parametrize(
    "around",
    [
        'Prompt: "{}"',
        "Text Caption: [{}]",
        "<prompt>{}</prompt>",
        "「{}」",
        "Prompt: {}\nNext",
        "{}",
        "it was '{}.'",
        "`{}`",
    ],
)
def test_every_prompt_is_found_between_delimiters(around: str) -> None:
    for prompt in (*BENCH, *test_prompts()[:40], *train_prompts()[:40]):
        found, end = find_prompt(f"Judge this.\n{around.format(prompt.text)}")
        assert found == prompt
        assert around.format(prompt.text)[: end - 12].endswith(prompt.text)


@pytest.mark.parametrize(
    "text",
    ["", "a red star on a pink moon", 'Prompt: "a red star that sings"', "draw me a red star", "[a unicorn]"],
)
def test_an_unknown_prompt_is_refused_even_where_it_contains_a_known_one(text: str) -> None:
    with pytest.raises(Refusal):
        find_prompt(text)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_cannot_be_judged_is_a_sentence_that_counts_as_a_failure(protocol: str, url: str) -> None:
    endpoint = Endpoint(url=url, model=MODEL, image_format="png")
    scorer = UnifiedReward(protocol=protocol, judge=endpoint).load(CPU)
    large = Image.new("RGB", (65, 64))
    small = picture(rendered(BENCH[:1])[0])
    scores = scorer.score([large, small, small], [BENCH[0], Prompt("a unicorn", 1), BENCH[0]])
    assert scores.valid.tolist() == [False, False, True]
    assert dict(scorer.failures) == {"unparsable": 2}
    assert "sorry" in answer('How are you? "a red star"', small)


# ---- the API


def message(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": list(parts)}]}


TEXT = {"type": "text", "text": PROTOCOLS["acs_v2"].wording.about(BENCH[0].text)}
PICTURE = {"type": "image_url", "image_url": {"url": data_url(encoded(Image.new("RGB", (64, 64)), "png"), "png")}}


def test_health_and_models(url: str) -> None:
    assert httpx.get(f"{url.removesuffix('/v1')}/health").json() == {"status": "ok"}
    assert [model["id"] for model in httpx.get(f"{url}/models").json()["data"]] == [MODEL]
    assert httpx.get(f"{url}/nothing").status_code == 404
    assert httpx.post(f"{url}/completions", json={}).status_code == 404


def test_a_completion_has_the_apis_shape(url: str) -> None:
    response = httpx.post(f"{url}/chat/completions", json=message(TEXT, PICTURE))
    assert response.status_code == 200
    (choice,) = response.json()["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["role"] == "assistant"
    assert "Alignment Score (1-5): " in choice["message"]["content"]
    unreadable = {"type": "image_url", "image_url": {"url": data_url(b"no picture", "png")}}
    response = httpx.post(f"{url}/chat/completions", json=message(TEXT, unreadable))
    assert response.json()["choices"][0]["message"]["content"] == "I am sorry, I cannot read this picture."


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no JSON",
        b"[]",
        b"{}",
        b'{"messages": []}',
        b'{"messages": ["hello"]}',
        json.dumps({"messages": [{"role": "user", "content": "only text"}]}).encode(),
        json.dumps(message(TEXT)).encode(),
        json.dumps(message(TEXT, PICTURE, PICTURE)).encode(),
        json.dumps(message(TEXT, PICTURE) | {"stream": True}).encode(),
        json.dumps(message(TEXT, {"type": "image_url", "image_url": {"url": "http://h/a.png"}})).encode(),
        json.dumps(message(TEXT, {"type": "image_url", "image_url": {"url": "data:image/png;base64,#"}})).encode(),
    ],
)
def test_what_is_not_understood_is_a_bad_request(body: bytes, url: str) -> None:
    response = httpx.post(f"{url}/chat/completions", content=body)
    assert response.status_code == 400
    assert response.json()["error"]["message"]


def test_a_body_that_is_too_large_is_not_read(url: str) -> None:
    connection = HTTPConnection(url.removeprefix("http://").removesuffix("/v1"), timeout=20)
    connection.putrequest("POST", "/v1/chat/completions")
    connection.putheader("Content-Length", str(10**12))
    connection.endheaders()
    response = connection.getresponse()
    assert response.status == 413
    assert "at most" in json.loads(response.read())["error"]["message"]
    connection.close()


# ---- the command


def test_the_command_serves_until_interrupted() -> None:
    command = [sys.executable, "-m", "flowrl", "judge", "serve", "shapes", "--port", "0"]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background job would be deaf to it
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=heard) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            (base,) = re.findall(r"http://\S+/v1", line)
            assert httpx.get(f"{base}/models", timeout=20).status_code == 200
        finally:
            process.send_signal(2)
        assert process.wait(20) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["shape"], "did you mean 'shapes'"), (["shapes", "--host", "256.0.0.1"], "cannot listen on 256.0.0.1")],
)
def test_mistakes_are_one_message(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["judge", "serve", *arguments])
    assert result.exit_code == 2
    assert said in result.output
