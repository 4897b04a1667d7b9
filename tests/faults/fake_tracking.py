"""A real ``mlflow server``, and a proxy in front of it that spoils what it is told to spoil.

The API is MLflow's own; the proxy only decides, for each request, whether it is forwarded,
how late, and what the client gets to see of the answer.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

#: Generous: these machines are shared.
PATIENCE = 90.0
START_PATIENCE = 180.0


@contextlib.contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """``mlflow server`` with its store in ``folder``; its address."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--workers", "1"),
        *("--artifacts-destination", str(folder / "artifacts")),
    ]
    environment = {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", server, folder / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, 15)
        server.wait(PATIENCE)


def _wait_for(health: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_PATIENCE
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(health, timeout=2).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"mlflow server does not answer:\n{log.read_text()[-3000:]}")


@dataclass
class Rule:
    """What happens to requests that match, ``times`` times (None: until it is removed).

    A request matches whose path contains ``path`` and whose body contains ``body``. It is
    delayed, one request after another; then, with ``after``, it is forwarded and the server's
    answer thrown away; then the client gets ``status``, or its connection is ``reset``, or it
    waits until it gives up (``hang``). With neither of these it gets the server's answer.
    """

    path: str = ""
    body: bytes = b""
    times: int | None = None
    delay: float = 0.0
    after: bool = False
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    code: str | None = None  # MLflow's error code: the answer is then MLflow's JSON
    reset: bool = False
    hang: bool = False
    hits: int = 0


class Request(NamedTuple):
    """One request as the proxy saw it: when it came, and when it was dealt with."""

    method: str
    path: str
    rule: Rule | None
    came: float
    done: float


class Proxy:
    """Forwards to ``target``, except for what its rules say. A context manager."""

    def __init__(self, target: str) -> None:
        self.target = urlsplit(target)
        self.rules: list[Rule] = []
        self.requests: list[Request] = []
        self._changed = threading.Condition()
        self._one_at_a_time = threading.Lock()
        self._released = threading.Event()  # set: nobody hangs any longer
        self._connections: set[socket.socket] = set()
        self._server: ThreadingHTTPServer | None = None
        self.port = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    # --- what the test says -------------------------------------------------------------------

    def rule(self, **what: Any) -> Rule:
        """Add a rule behind the others: the first that matches counts."""
        with self._changed:
            self._released.clear()
            self.rules.append(Rule(**what))
            return self.rules[-1]

    def clear(self) -> None:
        """Forward everything again; who hangs is let go, without an answer."""
        with self._changed:
            self.rules.clear()
            self._released.set()

    def wait_for(self, what: Callable[[], bool], timeout: float = PATIENCE) -> None:
        """Return once ``what`` is true, looking after each request."""
        with self._changed:
            assert self._changed.wait_for(what, timeout), self.requests[-10:]

    def up(self) -> None:
        """Listen, at the same port as before."""
        self._server = _Server(("127.0.0.1", self.port), _handler(self))
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def down(self) -> None:
        """Be gone: connections are refused, and open ones are closed."""
        assert self._server is not None
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
        with self._changed:
            for connection in self._connections:
                _reset(connection)

    def __enter__(self) -> Proxy:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    # --- what happens -------------------------------------------------------------------------

    def opened(self, connection: socket.socket) -> None:
        with self._changed:
            self._connections.add(connection)

    def closed(self, connection: socket.socket) -> None:
        with self._changed:
            self._connections.discard(connection)

    def take(self, path: str, body: bytes) -> Rule | None:
        """The rule for a request, counted."""
        with self._changed:
            for rule in self.rules:
                if rule.path in path and rule.body in body and rule.times != 0:
                    rule.hits += 1
                    rule.times = rule.times and rule.times - 1
                    return rule
        return None

    def note(self, request: Request) -> None:
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()

    def pause(self, seconds: float) -> None:
        """A delay during which no other delayed request goes on: 1 s is 1 request/s."""
        with self._one_at_a_time:
            self._released.wait(seconds)

    def hang(self) -> None:
        self._released.wait(PATIENCE)

    def forward(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(
            self.target.hostname or "", self.target.port, timeout=PATIENCE
        )
        try:
            connection.request(method, path, body or None, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that was killed, or whose connection we reset


def _handler(proxy: Proxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            proxy.opened(self.connection)

        def finish(self) -> None:
            proxy.closed(self.connection)
            super().finish()

        def handle_any(self) -> None:
            came = time.monotonic()
            body = self._body()
            rule = proxy.take(self.path, body)
            if rule and rule.delay:
                proxy.pause(rule.delay)
            spoil = rule is not None and (rule.status or rule.reset or rule.hang)
            if not spoil or (rule and rule.after):
                status, headers, content = proxy.forward(
                    self.command, self.path, dict(self.headers), body
                )
            done = time.monotonic()  # before the client can know
            if rule is None or not spoil:
                self._answer(status, headers, content)
            elif rule.status:
                content = b"on purpose"
                if rule.code:
                    message = {"error_code": rule.code, "message": f"on purpose: {rule.body!r}"}
                    content = json.dumps(message).encode()
                self._answer(rule.status, list(rule.headers.items()), content)
            else:
                if rule.hang:
                    proxy.hang()
                _reset(self.connection)
                self.close_connection = True
            proxy.note(Request(self.command, self.path, rule, came, done))

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = handle_any

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            del self.headers["Transfer-Encoding"]
            self.headers["Content-Length"] = str(len(body))
            return body

        def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def _reset(connection: socket.socket) -> None:
    """End a connection with a RST, as a peer that crashed."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
        connection.close()
