"""How it goes, over HTTP: ``/metrics`` for Prometheus, ``/live`` and ``/ready`` for probes.

What is told belongs to the daemon's loop, so a thread that serves somebody never looks at it: it
asks for a snapshot, which the loop makes between two turns.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import socket
import socketserver
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, MetricsHandler, ProcessCollector

from zmqtrack.errors import ZMQTrackError

from .metrics import Metrics

__all__ = ["Telemetry"]

log = logging.getLogger("zmqtrack.daemon")

#: A snapshot of this age (seconds) is good enough for who asks next.
FRESH = 1.0
#: Longest wait for one, in seconds. Prometheus gives up after 10.
PATIENCE = 4.0
#: A loop that has not turned for so long (seconds) hangs.
HANGS = 15.0
#: Who is served at the same time; others wait in the kernel's queue.
THREADS, QUEUE = 8, 128
#: Longest time (seconds) that a client gets, the wait for a snapshot included.
DEADLINE = 6.0


class Telemetry:
    """Serves at ``address``, HOST:PORT; port 0 takes a free one. Ended by :meth:`close`.

    Raises:
        ZMQTrackError: it cannot listen there.
    """

    def __init__(self, address: str) -> None:
        self._metrics = Metrics()
        self.registry = CollectorRegistry()
        self.registry.register(self._metrics)
        ProcessCollector(registry=self.registry)
        self._changed = threading.Condition()
        self._wanted = False
        self._snapshots, self._taken = 0, -math.inf  # how many, and when the last one was
        self._trouble = ""  # why there is none
        self._turned = time.monotonic()
        self._closed = False
        try:
            self._server = _Server(address, functools.partial(_Handler, self))
        except OSError as error:
            raise ZMQTrackError(
                f"cannot serve telemetry at {address}: {error.strerror}. Is another daemon "
                "running, or the port in use? Set another daemon.telemetry in the configuration"
            ) from None
        #: Where it serves.
        self.address = self._server.address
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="telemetry", daemon=True
        )
        self._thread.start()

    def step(self, facts: Callable[[], dict[str, Any]]) -> None:
        """To be called at each turn of the loop. ``facts`` are asked for when somebody waits."""
        now = time.monotonic()
        self._metrics.turned(now - self._turned)
        self._turned = now
        if not self._wanted:
            return
        try:
            snapshot, trouble = facts(), ""
        except sqlite3.Error as error:  # to be shown is no reason to end
            snapshot, trouble = None, f"the journal cannot be asked: {error}"
        with self._changed:
            self._metrics.facts, self._trouble = snapshot, trouble
            self._taken, self._wanted = now, False
            self._snapshots += 1
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._server.close()
        self._thread.join()

    # --- for the threads that serve -----------------------------------------------------------

    def silence(self) -> float:
        """Seconds since the loop turned last."""
        return time.monotonic() - self._turned

    def facts(self) -> dict[str, Any]:
        """A snapshot, at most a second old.

        Raises:
            _NoFacts: there is none, and why.
        """
        with self._changed:
            if time.monotonic() - self._taken >= FRESH:
                self._wanted, before = True, self._snapshots
                came = self._changed.wait_for(
                    lambda: self._snapshots > before or self._closed, PATIENCE
                )
                if not came:
                    raise _NoFacts(f"the daemon's loop has not turned for {self.silence():.1f} s")
            if self._closed:
                raise _NoFacts("the daemon is stopping")
            if self._metrics.facts is None:
                raise _NoFacts(self._trouble)
            return self._metrics.facts


class _NoFacts(Exception):
    pass


class _Handler(MetricsHandler):
    """One request on one connection."""

    server_version, sys_version = "zmqtrackd", ""

    def __init__(self, telemetry: Telemetry, *args: Any) -> None:
        self._telemetry = telemetry
        self.registry = telemetry.registry
        super().__init__(*args)

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        try:
            if path == "/metrics":
                self._telemetry.facts()
                super().do_GET()
            elif path == "/live":
                self._live()
            elif path == "/ready":
                self._ready(self._telemetry.facts()["daemon"])
            else:
                self._say(404, "here are /metrics, /live and /ready")
        except _NoFacts as error:
            self._say(503, str(error))

    def _live(self) -> None:
        silence = self._telemetry.silence()
        if silence > HANGS:
            self._say(503, f"the daemon's loop has not turned for {silence:.1f} s")
        else:
            self._say(200, "live")

    def _ready(self, daemon: dict[str, Any]) -> None:
        if daemon["journal_full"]:
            self._say(503, "the journal is full: writers keep their records until there is room")
        elif daemon["disk_full"]:
            self._say(503, "the disk is full: writers keep their records until there is room")
        elif not daemon["accepting"]:
            self._say(503, "no batches are taken: the daemon is stopping")
        else:
            self._say(200, "ready")

    def _refuse(self) -> None:
        self._say(405, "GET is all that is served", Allow="GET")

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refuse

    def _say(self, code: int, text: str, **headers: str) -> None:
        body = f"{text}\n".encode()
        self.send_response(code)
        headers |= {"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(body))}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class _Server(socketserver.ThreadingTCPServer):
    """A thread for each connection, so many at most, and none for ever."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = QUEUE

    def __init__(self, address: str, handler: Callable[..., _Handler]) -> None:
        host, _, port = address.rpartition(":")
        self.address_family, *_, where = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM
        )[0]
        self._slots = threading.Semaphore(THREADS)
        self._open: dict[Any, float] = {}
        self._closing = False
        super().__init__(where, handler)  # type: ignore[arg-type]  # a partial is no class
        self.address = f"{host}:{self.server_address[1]}"

    def process_request(self, request: Any, client_address: Any) -> None:
        while not self._slots.acquire(timeout=0.5):
            self.service_actions()
        self._open[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        if self._open.pop(request, None) is not None:
            self._slots.release()

    def service_actions(self) -> None:
        """Cut those off that take too long; called twice a second."""
        last = time.monotonic() - (0 if self._closing else DEADLINE)
        for request, since in list(self._open.items()):
            if since <= last:
                with contextlib.suppress(OSError):  # it has just ended
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, most of the time."""
        log.debug("telemetry: %s", client_address, exc_info=True)

    def close(self) -> None:
        self._closing = True
        self.shutdown()
        self.server_close()
