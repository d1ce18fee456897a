"""A judge behind an OpenAI-compatible chat-completions endpoint, for example of vLLM or SGLang."""

from __future__ import annotations

import hashlib
import os
import random
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from flowrl.errors import UserError
from flowrl.judges.log import AnswerLog, recorded
from flowrl.judges.pictures import data_url, encoded, prepared
from flowrl.protocols import Judge, JudgeConfig
from flowrl.types import Answer, Question

if TYPE_CHECKING:
    import httpx
    import torch

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LOCAL = ("127.0.0.1", "localhost", "::1")
_SNIPPET = 200  # characters of a server's message that an error quotes
_MOST_KEPT = 1_000_000  # characters of it that a log keeps


class Endpoint(JudgeConfig, kind="endpoint"):
    """``url`` is the API's base, for example ``http://localhost:8000/v1``; ``api_key_env`` names the environment
    variable that holds the key.

    A question is tried ``1 + retries`` times where the server is busy (429, 408), broken (5xx), silent for ``timeout``
    seconds or gone. Before attempt n it waits ``backoff * 2**(n - 1)`` seconds, at most ``longest_wait``, times a
    random factor in 0.5..1, or what Retry-After asks for; a server that asks for more than ``longest_wait`` has failed.
    """

    url: str
    model: str = Field(min_length=1)
    api_key_env: str | None = None
    temperature: float | None = Field(default=0.0, ge=0)
    """None sends none: the server's own default."""
    max_tokens: int = Field(default=4096, ge=1)
    image_format: Literal["jpeg", "png"] = "jpeg"
    resize: tuple[int, int] | None = None
    """(width, height) in pixels; by default pictures are sent as large as they are."""
    concurrency: int = Field(default=16, ge=1)
    timeout: float = Field(default=120.0, gt=0)
    retries: int = Field(default=5, ge=0)
    backoff: float = Field(default=1.0, ge=0)
    longest_wait: float = Field(default=60.0, ge=0)
    log: Path | None = None
    """Where every question and its answer are kept, a JSON object a line."""

    @field_validator("url")
    @classmethod
    def _is_a_base(cls, url: str) -> str:
        """The messages never repeat the address: it may hold what must not be shown."""
        try:
            parts = urlsplit(url.strip().rstrip("/").removesuffix("/chat/completions"))
            port = parts.port
        except ValueError:
            raise ValueError("must be an address like http://localhost:8000/v1") from None
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("must hold no user, password or query: name the variable of the key in api_key_env")
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise ValueError("must be an address like http://localhost:8000/v1")
        return f"{parts.scheme}://{parts.netloc}{parts.path or '/v1'}"

    @field_validator("api_key_env")
    @classmethod
    def _names_a_variable(cls, name: str | None) -> str | None:
        if name is not None and not _NAME.fullmatch(name):
            raise ValueError(
                "must be the name of an environment variable, for example JUDGE_API_KEY, not the key itself"
            )
        return name

    def identity(self) -> dict[str, Any]:
        """What decides the answers, not how patiently they are asked for."""
        decisive = ("kind", "url", "model", "temperature", "max_tokens", "image_format", "resize")
        return {name: value for name, value in super().identity().items() if name in decisive}

    def check(self) -> None:
        """Raises UserError where the key's variable is not set, nothing answers, or the key is refused."""
        import httpx

        with _client(self, timeout=min(self.timeout, 10.0)) as client:
            try:
                status = client.get(f"{self.url}/models").status_code
            except httpx.HTTPError as error:
                raise UserError(
                    f"judge endpoint: nothing answers at {self.url} ({_name(error)}); start the server, for example "
                    f"with 'vllm serve {self.model}', or correct url"
                ) from None
        if status in (401, 403):
            remedy = (
                f"check the value of {self.api_key_env}" if self.api_key_env else "name its variable in api_key_env"
            )
            raise UserError(f"judge endpoint: {self.url} wants a valid key (HTTP {status}); {remedy}")

    def load(self, device: torch.device) -> Judge:
        """Connects; the device is the server's own business."""
        self.check()
        return EndpointJudge(self)


class EndpointJudge:
    """Asks up to ``concurrency`` questions at a time, over connections that stay open, from however many threads."""

    def __init__(self, config: Endpoint) -> None:
        self.config = config
        self._key = _api_key(config)
        self._client = _client(config, timeout=config.timeout)
        self._workers = ThreadPoolExecutor(config.concurrency, thread_name_prefix="judge")
        self._log = AnswerLog(config.log)
        self._random = random.Random()  # of its own: training's random numbers stay as they are

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer per question, in order. An answer with an ``error`` counts as none, though it may keep a text:
        one that was cut off at ``max_tokens``."""
        given_up = threading.Event()
        asked = [self._workers.submit(self._ask, question, given_up) for question in questions]
        try:
            return [future.result() for future in asked]
        finally:  # an interruption leaves no question waiting
            given_up.set()
            for future in asked:
                future.cancel()

    def close(self) -> None:
        """Ends the connections."""
        self._workers.shutdown(cancel_futures=True)
        self._client.close()

    def _ask(self, question: Question, given_up: threading.Event) -> Answer:
        try:
            picture = encoded(prepared(question.image, self.config.resize), self.config.image_format)
        except (OSError, ValueError) as error:
            return self._keep(question, b"", Answer(None, f"unreadable picture: {_name(error)}"), 0)
        body = self._body(question, picture)
        attempt = 0
        while True:
            attempt += 1
            answer, wait = self._attempt(body)
            if wait is None or attempt > self.config.retries or given_up.wait(self._pause(attempt, wait)):
                return self._keep(question, picture, answer, attempt)

    def _body(self, question: Question, picture: bytes) -> dict[str, Any]:
        image = {"type": "image_url", "image_url": {"url": data_url(picture, self.config.image_format)}}
        content = [image, {"type": "text", "text": question.text}]
        body: dict[str, Any] = {
            "model": self.config.model,
            "messages": [{"role": "user", "content": content[::-1] if question.text_first else content}],
            "max_tokens": self.config.max_tokens,
        }
        if self.config.temperature is not None:
            body["temperature"] = self.config.temperature
        return body

    def _attempt(self, body: dict[str, Any]) -> tuple[Answer, float | None]:
        """The answer, and the seconds the server wants to be left alone if another attempt may help (else None)."""
        import httpx

        try:
            response = self._client.post(f"{self.config.url}/chat/completions", json=body)
        except httpx.TimeoutException:
            return Answer(None, f"timeout: no answer within {self.config.timeout:g} s"), 0.0
        except httpx.HTTPError as error:
            may_help = isinstance(error, httpx.TransportError)
            return Answer(None, self._hidden(f"connection: {_name(error)}")), 0.0 if may_help else None
        if response.is_success:
            return self._read(response), None
        message = self._hidden(response.text)
        answer = Answer(None, f"HTTP {response.status_code}: {message[:_SNIPPET].strip()}", _capped(message))
        if response.status_code not in (408, 429) and response.status_code < 500:
            return answer, None
        wait = _retry_after(response.headers.get("retry-after", ""))
        return answer, None if wait > self.config.longest_wait else wait

    def _read(self, response: httpx.Response) -> Answer:
        try:
            choice = response.json()["choices"][0]
            text, reason = choice["message"]["content"], choice.get("finish_reason")
        except (ValueError, LookupError, TypeError, AttributeError):
            body = self._hidden(response.text)
            return Answer(None, f"malformed answer: {body[:_SNIPPET].strip()!r}", _capped(body))
        if not isinstance(text, str) or not text.strip():
            return Answer(None, f"empty answer: finish_reason {reason!r}", _capped(self._hidden(response.text)))
        if reason in ("length", "content_filter"):
            rule = f"cut off: at max_tokens {self.config.max_tokens}" if reason == "length" else "cut off: by a filter"
            return Answer(self._hidden(text), rule)
        return Answer(self._hidden(text))

    def _pause(self, attempt: int, wait: float) -> float:
        longest = min(self.config.backoff * 2 ** min(attempt - 1, 30), self.config.longest_wait)
        return wait + longest * self._random.uniform(0.5, 1.0)

    def _hidden(self, text: str) -> str:
        """Without the key: servers repeat it in their messages."""
        return text.replace(self._key, "***") if self._key else text

    def _keep(self, question: Question, picture: bytes, answer: Answer, attempts: int) -> Answer:
        if answer.error is not None and attempts > 1:
            answer = replace(answer, error=f"{answer.error} ({attempts} attempts)")
        key = hashlib.sha256(question.text.encode("utf-8", "surrogatepass") + b"\0" + picture).hexdigest()
        record = {"key": key, "model": self.config.model, "question": question.text, "attempts": attempts}
        self._log.append(record | recorded(answer))
        return answer


def _capped(body: str) -> str:
    """A server's message as logs keep it; what is left out is told."""
    left_out = len(body) - _MOST_KEPT
    return body if left_out <= 0 else f"{body[:_MOST_KEPT]} [flowrl: {left_out} more characters are left out]"


def _client(config: Endpoint, timeout: float) -> httpx.Client:
    import httpx

    key = _api_key(config)
    host = urlsplit(config.url).hostname
    return httpx.Client(
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=timeout,
        limits=httpx.Limits(max_connections=config.concurrency, max_keepalive_connections=config.concurrency),
        trust_env=host not in _LOCAL,  # a proxy cannot reach this machine's own ports
    )


def _api_key(config: Endpoint) -> str | None:
    if config.api_key_env is None:
        return None
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise UserError(f"judge endpoint: the environment variable {config.api_key_env} is not set; it holds the key")
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"judge endpoint: the value of {config.api_key_env} cannot be a key: it is not plain text")
    return key


def _retry_after(value: str) -> float:
    """Seconds that a Retry-After header asks for, given in seconds or as a date; 0 where it says nothing."""
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    except (ValueError, TypeError):
        return 0.0


def _name(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
