"""The gold judge as an OpenAI-compatible HTTP server: what a vision-language model behind vLLM is for real pictures.

POST /v1/chat/completions    one user message, a picture as a data URL and a text; see ``judge_answers``
GET  /v1/models, /health
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from flowrl.errors import UserError
from flowrl.worlds.shapes import judge_answers

MODEL = "shapes-gold"
_LARGEST_BODY = 32 * 2**20  # bytes


class BadRequest(Exception):  # noqa: N818 - named as HTTP names it
    """A request that is not one of this API; the message goes to the client with status 400."""


class Server(ThreadingHTTPServer):
    """A thread per connection."""

    daemon_threads = True
    request_queue_size = 128  # connections that wait to be accepted; the default of 5 turns bursts away

    @property
    def url(self) -> str:
        """The base that clients want."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no news."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Reads a request, answers in JSON."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits for the client's delayed acknowledgement
    timeout = 600  # seconds after which an idle connection is closed

    def do_GET(self) -> None:
        """Health, and the one model there is."""
        if self.path == "/health":
            self._send(200, {"status": "ok"})
        elif self.path == "/v1/models":
            self._send(200, {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "flowrl"}]})
        else:
            self._send(404, _error(f"there is no {self.path}; there are /v1/chat/completions, /v1/models, /health"))

    def do_POST(self) -> None:
        """Judges."""
        try:
            length = int(self.headers.get("Content-Length", ""))
        except ValueError:
            length = -1
        if not 0 <= length <= _LARGEST_BODY:
            self.close_connection = True  # the body is still to come, and is not waited for
            self._send(413, _error(f"a body needs a Content-Length of at most {_LARGEST_BODY} bytes"))
            return
        body = self.rfile.read(length)
        if self.path != "/v1/chat/completions":
            self._send(404, _error(f"there is no {self.path}; questions go to /v1/chat/completions"))
            return
        try:
            self._send(200, complete(body))
        except BadRequest as error:
            self._send(400, _error(str(error)))

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: one line a question would hide everything else."""

    def _send(self, status: int, value: dict[str, Any]) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def complete(body: bytes) -> dict[str, Any]:
    """The chat completion that answers a request's body. Raises BadRequest where the body is not understood."""
    from PIL import Image, UnidentifiedImageError

    text, content = _question(body)
    try:
        with Image.open(io.BytesIO(content)) as picture:
            said = judge_answers.answer(text, picture.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        said = "I am sorry, I cannot read this picture."
    message = {"role": "assistant", "content": said}
    return {
        "id": "judge",
        "object": "chat.completion",
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    }


def _question(body: bytes) -> tuple[str, bytes]:
    """The text of the message and the bytes of its picture."""
    try:
        request = json.loads(body)
        (message,) = request["messages"]
        parts = message["content"]
        texts = [part["text"] for part in parts if part["type"] == "text"]
        urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    except (ValueError, LookupError, TypeError) as error:
        raise BadRequest("expected JSON with one message whose content is a list of parts") from error
    if request.get("stream"):
        raise BadRequest("stream is not supported")
    if len(texts) != 1 or len(urls) != 1 or not isinstance(texts[0], str) or not isinstance(urls[0], str):
        raise BadRequest(f"expected one text and one picture, got {len(texts)} and {len(urls)}")
    head, _, data = urls[0].partition(",")
    if not (head.startswith("data:image/") and head.endswith(";base64")):
        raise BadRequest("the picture must be a data URL: data:image/png;base64,...")
    try:
        return texts[0], base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest("the picture's data URL is not base64") from error


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "code": None}}


@contextmanager
def listening(host: str, port: int) -> Iterator[Server]:
    """A server that is bound, and knows the world's prompts, but does not answer yet.

    Raises UserError where the address cannot be had.
    """
    try:
        server = Server((host, port), Handler)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"judge serve shapes: cannot listen on {host}:{port}: {error}; choose another --port"
        ) from error
    with server:
        judge_answers.known_prompts()
        yield server


@contextmanager
def serving(port: int = 0, host: str = "127.0.0.1") -> Iterator[str]:
    """Serves in a thread while the block runs; yields the base URL. Port 0 takes a free one.

    >>> with serving() as url:
    ...     url.startswith("http://127.0.0.1:")
    True
    """
    with listening(host, port) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="shapes judge", daemon=True)
        thread.start()
        try:
            yield server.url
        finally:
            server.shutdown()
            thread.join()
