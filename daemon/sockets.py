"""How the daemon's sockets are bound: what a stranger may send, and how long it may take."""

from __future__ import annotations

import ctypes
import errno
import secrets

import zmq

from zmqtrack import wire
from zmqtrack.control import find_dead_peers
from zmqtrack.errors import ZMQTrackError

from .auth import Auth

__all__ = ["bind"]

#: Messages that wait for one slow subscriber before it misses some and has to replay.
PUBLISH_HWM = 1000
#: Batches of one writer that wait in memory. ZeroMQ counts messages, not bytes: so few of them.
INGEST_HWM = 64
#: Largest frame by socket. ZeroMQ cuts the connection of who sends more, and with it what was sent
#: before: so it is larger than what we take, and what is too large is refused by itself.
MAX_FRAME: dict[int, int] = {
    zmq.PULL: 4 * wire.MAX_BODY,
    zmq.ROUTER: 2 * wire.MAX_BODY,
    zmq.XPUB: 16 << 10,
}
#: What each socket is called when somebody wants to come in.
DOMAINS: dict[int, str] = {zmq.PULL: "ingest", zmq.XPUB: "publish", zmq.ROUTER: "control"}
_NOT_OURS = "This machine has no such address: write one of its own, or its name"
#: What may be wrong where an address cannot be bound, by ZeroMQ's errno.
_HINTS = {
    errno.EADDRINUSE: "Is another daemon running, or the port in use? Set another address",
    errno.EADDRNOTAVAIL: _NOT_OURS,
    errno.ENODEV: _NOT_OURS,
    errno.EACCES: "Ports below 1024 are for root, and a local socket takes a folder to write in",
    errno.ENOENT: "A local socket takes a folder that is there: make it, or name another",
}
#: A connection that has not said who it is in so long (ms) is ended.
HANDSHAKE_MS = 10_000


def bind(
    context: zmq.Context[zmq.Socket[bytes]], auth: Auth, kind: int, address: str
) -> tuple[zmq.Socket[bytes], str]:
    """A socket of this kind, and the address that it got (port 0: a free one).

    Raises:
        ZMQTrackError: the address cannot be bound.
    """
    if kind == zmq.ROUTER:
        _draw_identities()
    socket = context.socket(kind)
    socket.linger = 0
    find_dead_peers(socket)
    socket.set(zmq.BACKLOG, 1024)
    socket.set(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.set(zmq.MAXMSGSIZE, MAX_FRAME[kind])
    if kind == zmq.PULL:
        socket.set(zmq.RCVHWM, INGEST_HWM)
    elif kind == zmq.XPUB:
        socket.set(zmq.SNDHWM, PUBLISH_HWM)
        socket.set(zmq.XPUB_MANUAL, auth.ring is not None)
    auth.secure(socket, DOMAINS[kind])
    try:
        # "*" is ZeroMQ's word for a free port.
        socket.bind(f"{address[:-2]}:*" if address.endswith(":0") else address)
    except zmq.ZMQError as error:
        code = error.errno or 0
        hint = _HINTS.get(code, "Set another address")
        raise ZMQTrackError(
            f"daemon.{DOMAINS[kind]}: cannot listen at {address}: {zmq.strerror(code)}. {hint}"
        ) from None
    return socket, socket.get_string(zmq.LAST_ENDPOINT)


def _draw_identities() -> None:
    """Let a ROUTER that is made next begin anywhere to number its clients.

    libzmq takes the first number from C's ``rand``, which nobody seeds, and ends the process when
    a client has chosen the next one for itself.
    """
    ctypes.CDLL(None).srand(ctypes.c_uint(secrets.randbits(32)))
