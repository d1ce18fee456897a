"""The child's end of ``kind: worker``: runs in any Python environment, with the standard library alone.

    from flowrl_worker import serve

    def load(options, device):
        def score(images, prompts):                   # lists of equal length
            return [float(image.array().mean()) for image in images]
        return score

    serve(load)

flowrl starts ``python flowrl_worker.py YOUR_SCRIPT``. The channel is the standard input and output of that process;
they are moved away before the script runs, so whatever it prints goes to standard error. When the parent ends, the
channel closes and the process ends, whatever it is doing.

A frame is ``MAGIC, length of the JSON (4 bytes), length of the body (8 bytes)``, then both; the body holds pixels.
"""

from __future__ import annotations

import io
import json
import math
import os
import queue
import runpy
import struct
import sys
import threading
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PROTOCOL = 1
MAGIC = b"flrl"
HEAD = struct.Struct(">4sIQ")


class Image(NamedTuple):
    """A picture as it lies in a file, in any mode and size. ``data`` holds raw RGB bytes; for any other mode, a PNG."""

    width: int
    height: int
    is_png: bool
    data: bytes

    def pil(self) -> Any:
        """A Pillow image of the mode that the file has; needs Pillow."""
        import PIL.Image

        if self.is_png:
            image = PIL.Image.open(io.BytesIO(self.data))
            image.load()
            return image
        return PIL.Image.frombytes("RGB", (self.width, self.height), self.data)

    def array(self) -> Any:
        """[H, W, 3] RGB bytes; needs NumPy."""
        import numpy

        if self.is_png:
            return numpy.asarray(self.pil().convert("RGB"))
        return numpy.frombuffer(self.data, numpy.uint8).reshape(self.height, self.width, 3)


Score = Callable[["list[Image]", "list[str]"], "Iterable[Any]"]
"""A number for each image, of images and prompts of equal length; None where an image cannot be judged."""


def pack(header: dict[str, Any], body: bytes = b"") -> bytes:
    """One frame."""
    text = json.dumps(header).encode()
    return HEAD.pack(MAGIC, len(text), len(body)) + text + body


def serve(load: Callable[[dict[str, Any], str], Score], packages: Sequence[str] = ()) -> None:
    """Answer until the parent ends.

    Where the parent only wants to know what it would start, the script ends here, before ``load``.

    ``load(options, device)`` gives ``score(images, prompts)``, which returns a number for each image; None, NaN or an
    exception says that an image cannot be judged. ``packages`` are those whose versions identify the scorer.
    """
    if _channel is None:
        raise SystemExit("this script is a scorer for `kind: worker`; flowrl starts it")
    hello = _channel.next()
    identity = {"python": sys.version.split()[0], "packages": versions(packages)}
    if hello.get("identify"):
        _channel.send({"protocol": PROTOCOL, "identity": identity})
        raise SystemExit
    try:
        score = load(hello["options"], hello["device"])
        _channel.send({"protocol": PROTOCOL, "identity": identity})
    except Exception as error:
        traceback.print_exc()
        _channel.send({"protocol": PROTOCOL, "failure": _line(error)})
        raise SystemExit(1) from error
    while True:
        images, prompts = _requests(_channel)
        try:
            scores, errors = judged(score, images, prompts)
            _channel.send({"scores": scores, "errors": errors})
        except ValueError as error:
            _channel.send({"failure": _line(error)})


def judged(score: Score, images: list[Image], prompts: list[str]) -> tuple[list[float | None], list[str | None]]:
    """A score or an error for each image. A batch that fails is judged image by image, to name the one that cannot be.

    Raises ValueError where the number of scores is not the number of images.
    """
    try:
        values = list(score(images, prompts))
    except Exception as error:
        if len(images) == 1:
            traceback.print_exc()
            return [None], [_line(error)]
        each = [judged(score, [image], [prompt]) for image, prompt in zip(images, prompts)]  # noqa: B905 - old Pythons
        return [values[0] for values, _ in each], [errors[0] for _, errors in each]
    if len(values) != len(images):
        raise ValueError(f"the worker's score() returned {len(values)} scores for {len(images)} images")
    scores = [None if value is None else float(value) for value in values]
    errors = [_problem(value) for value in scores]
    return [None if error else value for value, error in zip(scores, errors)], errors  # noqa: B905


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """The installed version of each package, None where it is not installed."""
    import importlib.metadata

    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


class Channel:
    """Frames from and to the parent. A thread reads, so that the parent's end is seen while a scorer works or hangs."""

    def __init__(self, source: BinaryIO, sink: BinaryIO) -> None:
        self.source, self.sink = source, sink
        self.frames: queue.Queue[tuple[dict[str, Any], bytes]] = queue.Queue(maxsize=1)
        self.body = b""
        threading.Thread(target=self._read, daemon=True).start()

    def next(self) -> dict[str, Any]:
        """The next frame's JSON; its body is ``body``."""
        header, self.body = self.frames.get()
        return header

    def send(self, header: dict[str, Any]) -> None:
        self.sink.write(pack(header))
        self.sink.flush()

    def _read(self) -> None:
        try:
            while True:
                _, num_text, num_body = HEAD.unpack(self._exactly(HEAD.size))
                self.frames.put((json.loads(self._exactly(num_text)), self._exactly(num_body)))
        except (EOFError, OSError):
            os._exit(0)

    def _exactly(self, count: int) -> bytes:
        data = self.source.read(count)
        if len(data) < count:
            raise EOFError
        return data


def _requests(channel: Channel) -> tuple[list[Image], list[str]]:
    """The pictures and prompts of the next frame."""
    header, images, start = channel.next(), [], 0
    for width, height, is_png, size in header["images"]:
        images.append(Image(width, height, is_png, channel.body[start : start + size]))
        start += size
    return images, header["prompts"]


def _problem(value: float | None) -> str | None:
    if value is None:
        return "no score"
    return None if math.isfinite(value) else f"the score is {value}"


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


_channel: Channel | None = None


def _main() -> None:
    """Run a script with standard input and output moved to the channel."""
    global _channel
    sys.modules["flowrl_worker"] = sys.modules["__main__"]
    _channel = Channel(os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb"))
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    script = sys.argv[1]
    sys.argv = sys.argv[1:]
    sys.path[0] = os.path.dirname(os.path.abspath(script))
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    _main()
