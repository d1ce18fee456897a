"""One process of a run that ends takes all with it, within a minute, on however many machines they are.

A process that dies leaves the others in a collective, for which no limit fits: a rollout or an evaluation may take an
hour on one process longer than on another. So every process holds a connection to the first, which asks nothing of it
while it lives: the kernel closes the connection of a process that is killed, and keep-alive probes, which the kernel
answers too, find a machine that is gone. The first process tells the others, and each ends where it stands.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import selectors
import socket
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from types import TracebackType
from typing import Any, Protocol, Self

from flowrl.errors import RunFailed, UserError

GRACE = 10.0
"""Seconds that a process has to fail by itself, with more to say, after it has heard that another did."""
KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 30_000}
"""30 seconds until a machine that is gone is known to be, by the names of the socket options (Linux has all)."""
CONNECT_SECONDS = 30.0
MEET = timedelta(seconds=60)
"""How long a process waits for the first one to say where it listens."""
SILENT = "it ended without a word (killed, or its machine is gone)"


class Store(Protocol):
    """What all processes see; ``wait`` raises where keys are not set after so long."""

    def set(self, key: str, value: str) -> object: ...

    def wait(self, keys: list[str], timeout: timedelta) -> object: ...

    def get(self, key: str) -> bytes: ...


class Watch:
    """As a context around a run: inside, this process ends within a minute of any other that fails or dies.

    It then says so on standard error and exits with code 1, whatever its main thread waits for. A process that leaves
    with an exception tells the others which. A single process watches nobody.
    """

    _numbers = itertools.count()

    def __init__(self, rank: int, world: int, store: Store | None, address: str, grace: float = GRACE) -> None:
        """``address``: of the machine of rank 0."""
        self.rank, self.world, self.store, self.address, self.grace = rank, world, store, address, grace
        self._key = f"watch-{next(self._numbers)}"
        self._over = threading.Event()
        self._peers: dict[socket.socket, int] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        if self.store is not None and self.world > 1:
            begin = self._listen if self.rank == 0 else self._connect
            begin(self.store)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave(error)

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Inside it, an error is told at once, before what lies around it is closed: trackers may take their time."""
        try:
            yield
        except BaseException as error:
            self._leave(error)
            raise

    def _leave(self, error: BaseException | None) -> None:
        if self._over.is_set():
            return
        self._over.set()
        self._tell({"bye": self.rank} if error is None else {"gone": self.rank, "reason": _told(error)})
        with self._lock:
            for peer in self._peers:
                with contextlib.suppress(OSError):
                    peer.shutdown(socket.SHUT_RDWR)
            self._peers.clear()

    # ---- rank 0

    def _listen(self, store: Store) -> None:
        server = _server()
        token = secrets.token_hex(16)
        store.set(self._key, json.dumps({"port": server.getsockname()[1], "token": token}))
        threading.Thread(target=self._serve, args=(server, token), daemon=True).start()

    def _serve(self, server: socket.socket, token: str) -> None:
        """Take in the others, and pass on what one says or that it is gone."""
        with selectors.DefaultSelector() as selector, server:
            selector.register(server, selectors.EVENT_READ)
            while not self._over.is_set():
                for ready, _ in selector.select(timeout=1.0):
                    if ready.fileobj is server:
                        self._take_in(server, token, selector)
                    else:
                        peer = ready.fileobj
                        assert isinstance(peer, socket.socket)
                        selector.unregister(peer)  # whatever it has to say is the last of it
                        self._hear(peer, self._peers.get(peer, -1))

    def _take_in(self, server: socket.socket, token: str, selector: selectors.BaseSelector) -> None:
        """A connection is a process of this run only if it knows the token: others may knock at any open port."""
        peer, _ = server.accept()
        peer.settimeout(5.0)
        hello = _read(peer)
        if hello is None or hello.get("token") != token:
            peer.close()
            return
        _keep_alive(peer)
        with self._lock:
            self._peers[peer] = int(hello["rank"])
        selector.register(peer, selectors.EVENT_READ)

    # ---- the others

    def _connect(self, store: Store) -> None:
        store.wait([self._key], MEET)
        where = json.loads(store.get(self._key))
        try:
            hub = socket.create_connection((self.address, where["port"]), timeout=CONNECT_SECONDS)
        except OSError as error:
            say = f"warning: process {self.rank} cannot reach process 0 at {self.address}:{where['port']} ({error}); "
            _say(f"{say}if either dies, the other may wait for it for hours")
            return
        _keep_alive(hub)
        self._peers[hub] = 0
        self._tell({"rank": self.rank, "token": where["token"]})
        threading.Thread(target=self._hear, args=(hub, 0), daemon=True).start()

    # ---- all

    def _hear(self, peer: socket.socket, rank: int) -> None:
        """Wait for a peer's last word. Where it is no farewell, tell the others, then end this process."""
        word = _read(peer)
        with self._lock:
            self._peers.pop(peer, None)
        if word is not None and "bye" in word:
            return
        gone = word if word is not None and "gone" in word else {"gone": rank, "reason": SILENT}
        self._tell(gone)
        if not self._over.wait(self.grace):
            _say(f"error: process {gone['gone']} failed, so process {self.rank} ends too: {gone['reason']}")
            os._exit(1)

    def _tell(self, word: dict[str, Any]) -> None:
        with self._lock:
            for peer in self._peers:
                with contextlib.suppress(OSError):
                    peer.sendall(json.dumps(word).encode() + b"\n")


def _told(error: BaseException) -> str:
    return str(error) if isinstance(error, UserError | RunFailed) else f"{type(error).__name__}: {error}"


def _read(peer: socket.socket) -> dict[str, Any] | None:
    """The next line; None where the connection has ended, or says what is not understood."""
    line = b""
    try:
        while not line.endswith(b"\n"):
            byte = peer.recv(1)
            if not byte:
                return None
            line += byte
        word = json.loads(line)
    except (OSError, ValueError):
        return None
    return word if isinstance(word, dict) else None


def _server() -> socket.socket:
    """On a free port of all addresses of this machine."""
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):
            return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    return socket.create_server(("", 0), backlog=1024)


def _keep_alive(peer: socket.socket) -> None:
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE.items():
        if hasattr(socket, name):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _say(line: str) -> None:
    """Unbuffered, and never an error: the main thread may hold the buffer, and a terminal may be gone."""
    with contextlib.suppress(OSError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n{line}\n".encode())
