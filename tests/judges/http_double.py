"""An HTTP server that plays a judge: each question gets the next act of a script, the last act again and again."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Act = Callable[["Stage", dict[str, Any]], None]
"""What is done with a request, given its JSON."""


class Double(ThreadingHTTPServer):
    """``bodies`` and ``keys`` of the questions so far, in order of arrival; ``most_in_flight`` at any time."""

    daemon_threads = True
    request_queue_size = 64
    models_status = 200

    def __init__(self, script: Sequence[Act]) -> None:
        super().__init__(("127.0.0.1", 0), Stage)
        self.script = list(script)
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.in_flight = self.most_in_flight = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that lost patience are no news."""


class Stage(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Double

    def do_GET(self) -> None:
        self.send(self.server.models_status, b'{"data": []}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        double = self.server
        with double.lock:
            double.bodies.append(body)
            double.keys.append(self.headers["Authorization"])
            act = double.script[min(len(double.bodies), len(double.script)) - 1]
            double.in_flight += 1
            double.most_in_flight = max(double.most_in_flight, double.in_flight)
        try:
            act(self, body)
        finally:
            with double.lock:
                double.in_flight -= 1

    def send(self, status: int, content: bytes, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def question_of(body: dict[str, Any]) -> str:
    (text,) = [part["text"] for part in body["messages"][0]["content"] if part["type"] == "text"]
    return text


def completion(text: Any, reason: str | None = "stop") -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}, "finish_reason": reason}]}).encode()


def says(text: Any, reason: str | None = "stop") -> Act:
    return lambda stage, body: stage.send(200, completion(text, reason))


def echoes(stage: Stage, body: dict[str, Any]) -> None:
    stage.send(200, completion(f"you said {question_of(body)}"))


def raw(content: bytes, status: int = 200, **headers: str) -> Act:
    return lambda stage, body: stage.send(status, content, **headers)


def truncates(stage: Stage, body: dict[str, Any]) -> None:
    content = completion("never whole")
    stage.send(200, content[:-10], length=len(content))
    stage.close_connection = True


def drops(stage: Stage, body: dict[str, Any]) -> None:
    stage.close_connection = True


def after(seconds: float, act: Act) -> Act:
    def wait(stage: Stage, body: dict[str, Any]) -> None:
        time.sleep(seconds)
        act(stage, body)

    return wait


@contextmanager
def playing(*script: Act) -> Iterator[Double]:
    with Double(script) as double:
        thread = threading.Thread(target=double.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield double
        finally:
            double.shutdown()
            thread.join()
