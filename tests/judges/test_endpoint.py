"""The judge over HTTP, against a server that delays, drops, rate-limits, truncates and lies."""

from __future__ import annotations

import base64
import io
import json
import logging
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from http_double import Act, after, completion, drops, echoes, playing, question_of, raw, says, truncates
from PIL import Image
from pydantic import ValidationError

from flowrl.errors import RunFailed, UserError
from flowrl.judges.endpoint import Endpoint, EndpointJudge
from flowrl.protocols import JudgeConfig
from flowrl.types import Answer, Question

KEY = "sk-very-secret-0123456789"
FAST: dict[str, Any] = {"model": "m", "backoff": 0.001, "timeout": 5.0, "retries": 3}
QUESTION = Question(Image.new("RGB", (8, 6), "red"), "is it red?")
BUSY = raw(b"busy", 429)


def judge(url: str, **values: Any) -> EndpointJudge:
    loaded = Endpoint(url=url, **FAST | values).load(torch.device("cpu"))
    assert isinstance(loaded, EndpointJudge)
    return loaded


def ask(*script: Act, **values: Any) -> tuple[Answer, int]:
    """What becomes of one question, and how often it was sent."""
    with playing(*script) as double:
        (answer,) = judge(double.url, **values).ask([QUESTION])
        return answer, len(double.bodies)


# ---- what is sent


def sent(picture: Image.Image, **values: Any) -> tuple[dict[str, Any], Image.Image]:
    with playing(says("yes")) as double:
        judge(double.url, **values).ask([Question(picture, "what?")])
    (body,) = double.bodies
    (url,) = [part["image_url"]["url"] for part in body["messages"][0]["content"] if part["type"] == "image_url"]
    return body, Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def test_a_question_is_one_user_message_with_the_picture_first() -> None:
    body, _ = sent(QUESTION.image, max_tokens=77)
    assert {name: body[name] for name in ("model", "temperature", "max_tokens")} == {
        "model": "m",
        "temperature": 0.0,
        "max_tokens": 77,
    }
    (message,) = body["messages"]
    assert message["role"] == "user"
    assert [part["type"] for part in message["content"]] == ["image_url", "text"]


def test_the_text_goes_first_where_told_and_the_temperature_can_be_the_servers() -> None:
    with playing(says("yes")) as double:
        judge(double.url, temperature=None).ask([Question(QUESTION.image, "what?", text_first=True)])
    (body,) = double.bodies
    assert [part["type"] for part in body["messages"][0]["content"]] == ["text", "image_url"]
    assert "temperature" not in body


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "I;16", "CMYK"])
@pytest.mark.parametrize("image_format", ["jpeg", "png"])
def test_pictures_of_any_mode_go_as_rgb(mode: str, image_format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (10, 12, 3), np.uint8)
    grey = Image.fromarray(noise[..., 0].astype(np.uint16) * 200)
    picture = grey if mode == "I;16" else Image.fromarray(noise).convert(mode)
    _, arrived = sent(picture, image_format=image_format)
    assert (arrived.format, arrived.mode, arrived.size) == (image_format.upper(), "RGB", (12, 10))
    if image_format == "png":
        assert np.array_equal(np.asarray(arrived), np.asarray(picture.convert("RGB")))
    else:
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, "JPEG", quality=95)
        assert np.array_equal(np.asarray(arrived), np.asarray(Image.open(buffer)))


def test_pictures_are_resized_where_asked() -> None:
    assert sent(QUESTION.image, resize=(32, 16))[1].size == (32, 16)


def test_a_picture_that_cannot_be_read_is_an_answer_without_a_text(tmp_path: Path) -> None:
    path = tmp_path / "half.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:600])
    with playing(echoes) as double:
        answers = judge(double.url).ask([Question(Image.open(path), "half"), QUESTION])
    assert answers[0].text is None
    assert (answers[0].error or "").startswith("unreadable picture")
    assert answers[1] == Answer("you said is it red?")


# ---- what may pass


@pytest.mark.parametrize("trouble", [BUSY, raw(b"", 500), raw(b"", 503), raw(b"", 408), drops, truncates])
def test_trouble_that_passes_is_tried_again(trouble: Act) -> None:
    assert ask(trouble, trouble, says("yes")) == (Answer("yes"), 3)


def test_a_silent_server_is_tried_again() -> None:
    assert ask(after(0.4, says("late")), says("in time"), timeout=0.15) == (Answer("in time"), 2)


@pytest.mark.parametrize(
    ("trouble", "error"), [(BUSY, "HTTP 429: busy"), (raw(b"x", 502), "HTTP 502: x"), (drops, "connection: ")]
)
def test_trouble_that_stays_is_an_error_after_all_attempts(trouble: Act, error: str) -> None:
    answer, attempts = ask(trouble)
    assert (answer.text, attempts) == (None, 4)
    assert (answer.error or "").startswith(error)
    assert (answer.error or "").endswith("(4 attempts)")


def test_timeouts_that_stay_are_an_error() -> None:
    answer, attempts = ask(after(0.3, says("late")), timeout=0.1, retries=1)
    assert answer == Answer(None, "timeout: no answer within 0.1 s (2 attempts)")
    assert attempts == 2


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_what_cannot_pass_is_not_tried_again(status: int) -> None:
    assert ask(raw(b"no such model", status)) == (Answer(None, f"HTTP {status}: no such model"), 1)


@pytest.mark.parametrize("date", [False, True])
def test_retry_after_is_honoured(date: bool) -> None:
    begin = time.time()
    wish = formatdate(int(begin) + 2, usegmt=True) if date else "0.3"
    assert ask(raw(b"", 429, Retry_After=wish), says("yes")) == (Answer("yes"), 2)
    assert time.time() >= (int(begin) + 2 if date else begin + 0.3)


def test_a_server_that_wants_too_long_a_rest_has_failed() -> None:
    answer, attempts = ask(raw(b"later", 429, Retry_After="3600"), longest_wait=1.0)
    assert answer == Answer(None, "HTTP 429: later")
    assert attempts == 1


def test_nonsense_in_retry_after_is_ignored() -> None:
    assert ask(raw(b"", 503, Retry_After="soon"), says("yes"))[0] == Answer("yes")


def test_pauses_grow_with_jitter_up_to_a_limit() -> None:
    patient = EndpointJudge(Endpoint(url="http://h", model="m", backoff=1.0, longest_wait=10.0))
    pauses = [[patient._pause(attempt, 0.0) for _ in range(50)] for attempt in (1, 2, 3, 10, 2000)]
    for drawn, longest in zip(pauses, (1.0, 2.0, 4.0, 10.0, 10.0), strict=True):
        assert longest / 2 <= min(drawn) < max(drawn) <= longest


# ---- lies


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>504 Gateway Time-out</html>",
        b"\xff\xfe\x00",
        b"[]",
        b"null",
        b"{}",
        b'"yes"',
        b'{"choices": []}',
        b'{"choices": null}',
        b'{"choices": {}}',
        b'{"choices": [null]}',
        b'{"choices": ["yes"]}',
        b'{"choices": [{"message": null}]}',
        b'{"choices": [{"message": "yes"}]}',
        b'{"choices": [{"text": "yes"}]}',
        b'{"error": {"message": "the model is asleep"}}',
        completion("yes")[:-8],
    ],
)
def test_an_answer_of_another_shape_is_a_failure(content: bytes) -> None:
    answer, attempts = ask(raw(content))
    assert (answer.text, attempts) == (None, 1)
    assert (answer.error or "").startswith("malformed answer: ")


@pytest.mark.parametrize("text", [None, "", "  \n", 4, ["yes"], {"text": "yes"}])
def test_an_answer_without_a_text_is_a_failure(text: Any) -> None:
    assert ask(says(text))[0] == Answer(None, "empty answer: finish_reason 'stop'")


def test_what_was_cut_off_is_a_failure_that_keeps_its_text() -> None:
    assert ask(says("Final Sc", "length"), max_tokens=3)[0] == Answer("Final Sc", "cut off: at max_tokens 3")
    assert ask(says("Final", "content_filter"))[0] == Answer("Final", "cut off: by a filter")


@pytest.mark.parametrize("reason", ["stop", None, "eos"])
def test_other_ways_to_finish_are_answers(reason: str | None) -> None:
    assert ask(says("  yes\n", reason))[0] == Answer("  yes\n")


# ---- many questions


def many(count: int) -> list[Question]:
    return [Question(QUESTION.image, f"number {k}") for k in range(count)]


def test_answers_come_in_order_and_no_more_than_allowed_are_in_flight() -> None:
    delays = [after(0.03 * (1 + k % 3), echoes) for k in range(12)]
    with playing(*delays) as double:
        answers = judge(double.url, concurrency=3).ask(many(12))
    assert answers == [Answer(f"you said number {k}") for k in range(12)]
    assert double.most_in_flight == 3


def test_the_failure_of_one_question_is_its_own() -> None:
    with playing(echoes, raw(b"no", 400), echoes) as double:
        asked = judge(double.url, concurrency=1)
        assert [a.text is None for a in asked.ask(many(3))] == [False, True, False]
        assert asked.ask([]) == []
    assert [question_of(body) for body in double.bodies] == ["number 0", "number 1", "number 2"]


def test_an_interruption_leaves_no_question_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    with playing(after(0.05, BUSY)) as double:
        asked = judge(double.url, concurrency=1, backoff=30.0, longest_wait=60.0)
        monkeypatch.setattr("concurrent.futures.Future.result", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        begin = time.time()
        with pytest.raises(KeyboardInterrupt):
            asked.ask(many(4))
        asked.close()
        assert time.time() - begin < 10
        assert len(double.bodies) <= 2


# ---- the key


def test_the_key_is_sent_and_appears_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OUR_JUDGE_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    wrong = raw(f"Incorrect API key provided: {KEY}".encode(), 401)
    talkative = says(f"your key is {KEY}")
    with playing(wrong, talkative, raw(f"{KEY} broke it".encode()), raw(KEY.encode(), 500)) as double:
        config = Endpoint(url=double.url, api_key_env="OUR_JUDGE_KEY", log=tmp_path / "log.jsonl", **FAST)
        loaded = config.load(torch.device("cpu"))
        answers = [loaded.ask([QUESTION])[0] for _ in range(4)]
    assert set(double.keys) == {f"Bearer {KEY}"}
    assert [answer.text for answer in answers] == [None, "your key is ***", None, None]
    assert answers[0].error == "HTTP 401: Incorrect API key provided: ***"
    shown = [repr(config), config.model_dump_json(), json.dumps(config.identity()), caplog.text, repr(answers)]
    shown += [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert not [text for text in shown if KEY in text]
    assert config.identity()["kind"] == "endpoint"
    assert (tmp_path / "log.jsonl").read_text().count("\n") == 4


@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_variable_that_is_not_set_is_named(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OUR_JUDGE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("OUR_JUDGE_KEY", value)
    with pytest.raises(UserError, match="OUR_JUDGE_KEY is not set"):
        Endpoint(url="http://h", model="m", api_key_env="OUR_JUDGE_KEY").check()


def test_a_key_that_no_header_can_hold_is_named_but_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUR_JUDGE_KEY", "schlüssel")
    with pytest.raises(UserError) as caught:
        Endpoint(url="http://h", model="m", api_key_env="OUR_JUDGE_KEY").check()
    assert "schlüssel" not in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"api_key_env": KEY},
        {"url": f"http://user:{KEY}@h/v1"},
        {"url": f"http://h/v1?api_key={KEY}"},
        {"url": f"http://h:{KEY}/v1"},
    ],
)
def test_a_key_in_the_wrong_place_is_refused_without_repeating_it(values: dict[str, str]) -> None:
    with pytest.raises(ValidationError) as caught:
        Endpoint(**{"url": "http://h", "model": "m"} | values)
    (problem,) = caught.value.errors()
    assert problem["type"] == "value_error"
    assert KEY not in str(problem["ctx"]["error"])


# ---- the address


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ("http://h:8000", "http://h:8000/v1"),
        ("http://h:8000/", "http://h:8000/v1"),
        ("https://h/v1/", "https://h/v1"),
        ("https://h/api/v3/chat/completions", "https://h/api/v3"),
    ],
)
def test_addresses_are_brought_to_one_form(given: str, base: str) -> None:
    assert Endpoint(url=given, model="m").url == base


@pytest.mark.parametrize("url", ["", "h:8000", "ftp://h", "http://", "localhost", "http://h:99999"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="http://localhost:8000/v1"):
        Endpoint(url=url, model="m")


def test_a_server_that_is_not_there_is_named_before_anything_is_asked() -> None:
    with playing(echoes) as double:
        url = double.url
    with pytest.raises(UserError, match=rf"nothing answers at {url} .*vllm serve m"):
        Endpoint(url=url, model="m").check()


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_named_before_anything_is_asked(status: int) -> None:
    with playing(echoes) as double:
        double.models_status = status
        with pytest.raises(UserError, match=r"wants a valid key .*api_key_env"):
            judge(double.url)
        double.models_status = 404  # not every server lists its models
        judge(double.url)


def test_this_machines_own_ports_are_reached_without_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert ask(says("yes"))[0] == Answer("yes")


# ---- what is kept


def test_every_answer_is_kept_verbatim(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "judge.jsonl"
    texts = [says("Größe:\n4 \u2028 😀 \ud83d"), raw(b"no", 400), says("cut", "length")]
    with playing(*texts) as double:
        asked = judge(double.url, log=log, concurrency=1)
        asked.ask(many(3))
        judge(double.url, log=log).ask([QUESTION])
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").split("\n") if line]
    assert [row["text"] for row in rows] == ["Größe:\n4 \u2028 😀 \ud83d", None, "cut", "cut"]
    assert [row["error"] for row in rows] == [None, "HTTP 400: no", *["cut off: at max_tokens 4096"] * 2]
    assert [row["question"] for row in rows] == ["number 0", "number 1", "number 2", "is it red?"]
    assert len({row["key"] for row in rows}) == 4
    assert {row["attempts"] for row in rows} == {1}


@pytest.mark.parametrize(("act", "error"), [(400, "HTTP 400: xx"), (200, "malformed answer: 'xx")])
def test_the_log_holds_what_came_instead_of_an_answer_whole(tmp_path: Path, act: int, error: str) -> None:
    log, body = tmp_path / "log.jsonl", "x" * 5000
    (answer,) = ask_once(raw(body.encode(), act), log=log)
    assert answer.error is not None
    assert answer.error.startswith(error)
    assert len(answer.error) < 300, "on a terminal it stays short"
    (row,) = [json.loads(line) for line in log.read_text().splitlines()]
    assert row["body"] == answer.body == body


def test_what_is_longer_than_the_log_keeps_says_so(tmp_path: Path) -> None:
    (answer,) = ask_once(raw(b"x" * 1_000_007, 400), log=tmp_path / "log.jsonl")
    assert answer.body == "x" * 1_000_000 + " [flowrl: 7 more characters are left out]"


def test_a_key_that_a_long_message_repeats_is_hidden_before_it_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUR_JUDGE_KEY", KEY)
    (answer,) = ask_once(raw(b"x" * 190 + KEY.encode(), 400), api_key_env="OUR_JUDGE_KEY", log=tmp_path / "log.jsonl")
    assert KEY[:8] not in repr(answer)
    assert KEY[:8] not in (tmp_path / "log.jsonl").read_text()


def ask_once(act: Act, **values: Any) -> list[Answer]:
    with playing(act) as double:
        return judge(double.url, **values).ask([QUESTION])


def test_nothing_is_written_before_there_is_an_answer(tmp_path: Path) -> None:
    with playing(echoes) as double:
        asked = judge(double.url, log=tmp_path / "logs" / "log.jsonl")
        assert not list(tmp_path.iterdir())
        (tmp_path / "logs").touch()
        with pytest.raises(RunFailed, match="cannot write"):
            asked.ask([QUESTION])


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with playing(echoes) as double, pytest.raises(UserError, match="cannot write"):
        judge(double.url, log=tmp_path / "file" / "log.jsonl")


def test_it_is_a_judge_like_others() -> None:
    values = {"kind": "endpoint", "url": "http://h/v1", "model": "m", "resize": [512, 512]}
    config = JudgeConfig.model_validate(values)
    assert JudgeConfig.model_validate(config.model_dump(mode="json")) == config
    faster = JudgeConfig.model_validate(values | {"concurrency": 64, "timeout": 1.0})
    assert faster.identity() == config.identity()
    assert JudgeConfig.model_validate(values | {"model": "n"}).identity() != config.identity()
