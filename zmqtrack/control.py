"""The client's side of the control socket: requests with an answer, and socket options."""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import os
import re
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import zmq

from . import wire
from .errors import ControlError, FrameError
from .keys import Key, Watch

__all__ = [
    "DEFAULT_ADDRESS",
    "Connection",
    "ControlClient",
    "check_address",
    "connect",
    "find_dead_peers",
    "is_local",
    "resolve",
]

DEFAULT_ADDRESS = "tcp://127.0.0.1:5555"

#: Host and port, and nothing behind them.
_TCP = re.compile(r"tcp://(\[[\w:.%]+\]|\*|\w[\w.-]*):([0-9]{1,5})")
#: The kernel has room for so many bytes of a local socket's path.
LONGEST_PATH = 107

#: Requests that are sent again while no answer comes, each so many seconds.
REPEATABLE = frozenset({"hello", "status", "replay", "drain", "dlq", "dlq_fetch"})
REPEAT = 2.0
#: Requests whose answer may take as long as it takes: a daemon that has them owes nothing yet.
LONG = frozenset({"drain", "reload", "probe"})

#: TCP's keep-alive: a connection that was idle for IDLE seconds is probed each INTERVAL seconds,
#: and ended when PROBES of them found nobody, or what was sent was not confirmed for so long.
KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES = 2, 2, 3
CONFIRMED_MS = 8_000
#: A daemon that owes an answer for so long, in seconds, is connected to anew: this is what finds
#: a middlebox that keeps a connection open whose other end is gone.
SILENCE = 8.0
RECONNECT_MS = 100
RECONNECT_MAX_MS = 2_000
#: A connection that is not made in so long is tried anew: the kernel's own attempts become so
#: rare that it would notice the end of a long partition only minutes later.
CONNECT_TIMEOUT_MS = 5_000
HANDSHAKE_MS = 10_000
#: Between two attempts with a key that was refused, in seconds; doubled up to the longest.
ANEW_FIRST = 0.25
ANEW_MAX = 5.0


_context: zmq.Context[zmq.Socket[bytes]] | None = None


def _forget_context() -> None:
    """A ZeroMQ context does not survive a fork; pyzmq leaves the parent's alone."""
    global _context
    _context = None


os.register_at_fork(after_in_child=_forget_context)


def connect(kind: int, address: str, hwm: int = 1000, key: Key | None = None) -> zmq.Socket[bytes]:
    """A socket of ``kind`` on its way to ``address``, encrypted with ``key``; returns at once.

    It queues nothing for a peer that is not there (sends raise :class:`zmq.Again`), never
    lingers, finds dead peers by TCP's keep-alive and reconnects with back-off.

    Raises:
        ValueError: ``address`` is none.
    """
    socket = _socket(kind, hwm, key)
    socket.connect(check_address(address))
    return socket


def _socket(kind: int, hwm: int, key: Key | None) -> zmq.Socket[bytes]:
    """With all options set that we want, not connected yet."""
    global _context
    if _context is None:
        # Ours alone: a training process may use, and end, pyzmq's shared instance.
        _context = zmq.Context()
        _context.set(zmq.MAX_SOCKETS, 16_000)
    socket = _context.socket(kind)
    socket.linger = 0
    find_dead_peers(socket)
    socket.set(zmq.CONNECT_TIMEOUT, CONNECT_TIMEOUT_MS)
    socket.set(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.set(zmq.RECONNECT_IVL, RECONNECT_MS)
    socket.set(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
    if kind in (zmq.PUSH, zmq.DEALER):
        socket.set(zmq.IMMEDIATE, 1)
        socket.set(zmq.SNDHWM, hwm)
    if kind in (zmq.SUB, zmq.DEALER):
        socket.set(zmq.RCVHWM, hwm)
    if key is not None:
        key.secure(socket)
    return socket


def find_dead_peers(socket: zmq.Socket[bytes]) -> None:
    """Have the kernel end each connection of ``socket`` whose other end is gone.

    ZeroMQ's own heartbeats are not used on either side: libzmq 4.3 ends the whole process when
    one times out on a connection that is not being read (its issues 3937 and 4767).
    """
    socket.set(zmq.TCP_KEEPALIVE, 1)
    socket.set(zmq.TCP_KEEPALIVE_IDLE, KEEPALIVE_IDLE)
    socket.set(zmq.TCP_KEEPALIVE_INTVL, KEEPALIVE_INTERVAL)
    socket.set(zmq.TCP_KEEPALIVE_CNT, KEEPALIVE_PROBES)
    socket.set(zmq.TCP_MAXRT, CONFIRMED_MS)


def check_address(address: object, *, to_bind: bool = False) -> str:
    """Return ``address`` if ZeroMQ can connect to it, or bind it, over TCP or a local socket.

    Raises:
        ValueError: it is not one.
    """
    why = ""
    if isinstance(address, str):
        if address.startswith("ipc://") and address[6:].strip("/"):
            if len(address[6:].encode()) <= LONGEST_PATH:
                return address
            why = f": a local socket's path has {LONGEST_PATH} bytes at most"
        elif tcp := _TCP.fullmatch(address):
            host, port = tcp[1], int(tcp[2])
            if port < 65536 and len(host) < 256 and (to_bind or (host != "*" and port)):
                return address
    raise ValueError(
        f"{address!r:.200} is no address{why}; write for example tcp://127.0.0.1:5555 or "
        "ipc:///run/zmqtrack/control"
    )


def is_local(address: str) -> bool:
    """Whether only this machine reaches a socket that is bound to ``address``."""
    parts = urlsplit(address)
    if parts.scheme == "ipc":
        return True
    host = parts.netloc.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in ("localhost", "lo")


def resolve(advertised: str, control: str) -> str:
    """The address under which to reach a socket that the daemon bound at ``advertised``.

    A daemon that listens on all interfaces does not know by which of its names we reach it:
    then the host is the one of the ``control`` address.
    """
    bound = urlsplit(advertised)
    if bound.scheme == "tcp" and bound.netloc.rpartition(":")[0] in ("*", "0.0.0.0", "[::]"):
        host = urlsplit(control).netloc.rpartition(":")[0]
        return f"tcp://{host}:{bound.netloc.rpartition(':')[2]}"
    return advertised


class Connection:
    """A connected ``socket`` that is made anew when it is of no use any more.

    One is when the daemon has refused its key: ZeroMQ gives up then, though the key may be known
    a moment later. Another is when the daemon owes an answer (:meth:`expect`) for too long.
    """

    def __init__(self, kind: int, address: str, key: Key | None = None, hwm: int = 1000) -> None:
        self._kind, self._hwm, self._key = kind, hwm, key
        self.address = check_address(address)
        self._again = 0.0
        self._wait = ANEW_FIRST
        self._owed = 0.0  # since when an answer is
        self.socket = self._open()

    def _open(self) -> zmq.Socket[bytes]:
        socket = _socket(self._kind, self._hwm, self._key)
        self._watch = Watch(socket) if self._key else None  # before the connection is made
        socket.connect(self.address)
        return socket

    def refusal(self) -> str:
        """Why the daemon does not let us in, or nothing; makes the socket anew now and then."""
        if self._watch is None or self._key is None:
            return ""
        outcome = self._watch.look()
        if outcome == "accepted":
            self._wait = ANEW_FIRST
        if outcome not in ("refused", "failed"):
            return ""
        now = time.monotonic()
        if not self._again:
            self._again = now + self._wait
            self._wait = min(2 * self._wait, ANEW_MAX)
        elif now >= self._again:
            self.renew()
        if outcome == "failed":
            return f"the daemon at {self.address} is not the one that our key was made for"
        return f"the daemon at {self.address} does not let the key of {self._key.name} in"

    def expect(self) -> None:
        """From now on, if not before, the daemon owes us something on this connection."""
        self._owed = self._owed or time.monotonic()

    def heard(self) -> None:
        """Something came: the daemon owes nothing."""
        self._owed = 0.0

    def renew_if_silent(self) -> bool:
        """Connect anew if the daemon owes an answer for too long; whether it was done."""
        if not self._owed or time.monotonic() - self._owed < SILENCE:
            return False
        self.renew()
        return True

    def renew(self) -> None:
        """Another ``socket`` in the place of this one; what it had queued is dropped."""
        self.close()
        self.socket, self._again, self._owed = self._open(), 0.0, 0.0

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()
        self.socket.close()


class ControlClient:
    """Asks a daemon and waits for the answer. Not for use by several threads at once."""

    def __init__(self, address: str, key: Key | None = None) -> None:
        self.address = address
        self._connection = Connection(zmq.DEALER, address, key)
        self._ids = itertools.count(1)

    def request(
        self, op: str, timeout: float = 5.0, frames: Sequence[bytes] = (), **fields: Any
    ) -> dict[str, Any]:
        """Send ``op`` and return the answer's map; its further frames under the key ``frames``.

        Raises:
            ControlError: ``unreachable``, ``key_refused`` or ``timeout``, or the reason of the
                daemon's refusal.
        """
        ident = next(self._ids)
        deadline = time.monotonic() + timeout
        message = [wire.encode_control(op, id=ident, **fields), *frames]
        self._send(message, timeout, deadline)
        if op not in LONG:
            self._connection.expect()
        while (left := deadline - time.monotonic()) > 0:
            socket = self._connection.socket
            if not socket.poll(max(1, int(min(left, REPEAT) * 1000))):
                # Where asking twice changes nothing: a connection may have broken on the way.
                if op in REPEATABLE:
                    self._connection.refusal()
                    self._connection.renew_if_silent()
                    with contextlib.suppress(zmq.Again):
                        self._connection.socket.send_multipart(message, zmq.NOBLOCK)
                continue
            first, *further = socket.recv_multipart()
            self._connection.heard()
            try:
                answer = wire.decode_control(first)
            except FrameError as error:
                raise ControlError(error.reason, f"{self.address}: {error.detail}") from None
            if answer.get("id") != ident:
                continue  # the late answer to a request that was given up
            if answer["op"] == "refused":
                raise ControlError(str(answer.get("reason")), str(answer.get("detail")))
            answer["frames"] = further
            return answer
        raise ControlError("timeout", f"{self.address} did not answer {op!r} within {timeout:g} s")

    def _send(self, message: list[bytes], timeout: float, deadline: float) -> None:
        self._connection.renew_if_silent()
        refusal = ""
        while True:
            left = max(0.0, deadline - time.monotonic())
            socket = self._connection.socket
            socket.sndtimeo = int(1000 * min(left, ANEW_FIRST))
            try:
                socket.send_multipart(message)
            except zmq.Again:
                refusal = self._connection.refusal()
            else:
                return
            if left <= 0:
                break
        if refusal:
            raise ControlError("key_refused", refusal)
        raise ControlError(
            "unreachable",
            f"no daemon answers at {self.address} (waited {timeout:g} s); "
            "`zmqtrack doctor` looks for the reason",
        )

    def close(self) -> None:
        self._connection.close()
