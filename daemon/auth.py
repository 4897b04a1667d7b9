"""Who may connect, and as whom: CURVE on every socket, and the ZAP handler that decides.

The handler is answered by the daemon's own loop: while that does not run, ZeroMQ lets nobody in,
as every socket has a ZAP domain that is enforced. ZeroMQ stamps each message with the public key
of the connection that it came on; what that key is good for is looked up for each message, so a
key that is taken away is so at once, also on connections that stand.
"""

from __future__ import annotations

import errno
import logging
import time

import zmq
from zmq.utils import z85

from zmqtrack import keys, wire
from zmqtrack.errors import KeyFileError, ZMQTrackError
from zmqtrack.keyring import ROLES, Client, KeyRing
from zmqtrack.keys import Key
from zmqtrack.records import RESERVED, VOCABULARY

from . import descriptors
from .audit import Audit

__all__ = ["ANYBODY", "Auth", "grants"]

log = logging.getLogger("zmqtrack.daemon")

#: Where no keys are used, everybody is this one.
ANYBODY = Client("", frozenset(ROLES))
#: Our own adapters, and the key that they are given at the start.
ADAPTERS = Client("(adapters)", frozenset({"subscriber"}))

#: The role that a socket asks for; control answers every key, also to say why it does nothing else.
_ROLE_OF = {b"ingest": "writer", b"publish": "subscriber", b"control": ""}

#: Between two looks whether a key came or went, in seconds.
LOOK = 0.25
#: Requests that are answered in one turn: what floods us with handshakes must not stop the rest.
REQUESTS = 100
#: Longest for one socket in the test at the start, in seconds.
PROOF_TIMEOUT = 20.0


class Auth:
    """Asked by the broker. With ``ring`` None there are no keys, and everybody may do all.

    Raises:
        KeyFileError: the folder of keys cannot be read.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], ring: KeyRing | None, audit: Audit
    ) -> None:
        self.ring = ring
        self._audit = audit
        self._clients: dict[str, Client] = {}
        self._version = 0
        self._due = 0.0
        self._said = ""
        self._adapters = keys.new_pair()
        self._proving = False  # our own knocking is nothing to be noted
        #: Subscribers whose rights became less: their connections have to go.
        self.shrunk = False
        if ring is None:
            return
        self._zap: zmq.Socket[bytes] = context.socket(zmq.REP)
        self._zap.linger = 0
        self._zap.bind("inproc://zeromq.zap.01")
        self._load(ring)

    @property
    def handler(self) -> zmq.Socket[bytes] | None:
        """To be polled: readable when somebody wants to come in."""
        return None if self.ring is None else self._zap

    def secure(self, socket: zmq.Socket[bytes], domain: str) -> None:
        """Let in on ``socket`` only those whom we know."""
        if self.ring is None:
            return
        socket.curve_server = True
        socket.curve_publickey, socket.curve_secretkey = self.ring.public, self.ring.secret
        socket.zap_domain = domain.encode()
        socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)

    def adapters_key(self, address: str) -> Key | None:
        """What our own adapters come in with; it lives as long as this process."""
        if self.ring is None:
            return None
        return Key(ADAPTERS.name, address, self.ring.public, *self._adapters)

    def receive(self, socket: zmq.Socket[bytes]) -> tuple[list[bytes], Client | None]:
        """A message that waits, and who sent it; None: nobody who may (any more).

        Raises:
            zmq.Again: there is none.
        """
        if self.ring is None:
            return socket.recv_multipart(zmq.NOBLOCK), ANYBODY
        frames = socket.recv_multipart(zmq.NOBLOCK, copy=False)
        return [frame.bytes for frame in frames], self.client(frames[0])

    def client(self, frame: zmq.Frame | None) -> Client | None:
        """Who sent a message; None: nobody who may (any more)."""
        if self.ring is None:
            return ANYBODY
        try:
            public = frame.get("User-Id") if frame is not None else ""
        except zmq.ZMQError:
            return None
        return self._clients.get(str(public))

    def step(self) -> None:
        """Answer those who want to come in; look whether a key came or went."""
        if self.ring is None:
            return
        if time.monotonic() >= self._due:
            self._look(self.ring)
        for _ in range(REQUESTS):
            try:
                request = self._zap.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._zap.send_multipart(self._decide(request))

    def _decide(self, request: list[bytes]) -> list[bytes]:
        """One request of ZAP (rfc.zeromq.org/spec/27), and its answer."""
        version, ident, domain, address, _, mechanism, *credentials = request
        refusal = "unknown_key"
        public = ""
        client = None
        if mechanism == b"CURVE" and len(credentials) == 1 and len(credentials[0]) == 32:
            public = z85.encode(credentials[0]).decode()
            client = self._clients.get(public)
        role = _ROLE_OF.get(domain)
        if client is not None:
            # A key that was taken away may come as far as control, to be told so.
            if role == "" or (role in client.roles and not client.revoked):
                self._audit.write(
                    "connected", client.name, "revoked" if client.revoked else "",
                    address=address.decode(errors="replace"), socket=domain.decode(),
                )  # fmt: skip
                return [version, ident, b"200", b"OK", public.encode(), b""]
            refusal = "revoked" if client.revoked else f"no_{role}"
        if not self._proving:
            self._audit.write(
                "refused", client.name if client else "", refusal, key=public,
                address=address.decode(errors="replace"), socket=domain.decode(errors="replace"),
            )  # fmt: skip
        return [version, ident, b"400", b"not allowed", b"", b""]

    def _look(self, ring: KeyRing) -> None:
        """Take in what has changed in the folder; where that cannot be read, nobody is let in."""
        self._due = time.monotonic() + LOOK
        try:
            with descriptors.spare():
                if ring.version() != self._version:
                    self._load(ring)
            self._said = ""
        except (KeyFileError, OSError) as error:
            if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
                self._shut_out_changed(ring)
                return
            if str(error) != self._said:
                self._said = str(error)
                log.error("%s: nobody is let in until that is mended", error)
                self._audit.write("closed", "", str(error))
            self._version = 0
            self._replace({self._adapters[0].decode(): ADAPTERS})

    def _shut_out_changed(self, ring: KeyRing) -> None:
        """No file can be opened just now: a client whose file is another one may be revoked."""
        kept = {
            public: client
            for public, client in self._clients.items()
            if client is ADAPTERS or not ring.has_changed(client.name)
        }
        if len(kept) < len(self._clients):
            self._version = 0  # of the others we learn when files can be opened again
            self._replace(kept)

    def _load(self, ring: KeyRing) -> None:
        version = ring.version()
        clients = {public.decode(): client for public, client in ring.clients().items()}
        clients[self._adapters[0].decode()] = ADAPTERS
        self._version = version  # of before the look: what changes meanwhile is seen at the next
        self._replace(clients)

    def _replace(self, clients: dict[str, Client]) -> None:
        for public, before in self._clients.items():
            now = clients.get(public)
            gone = now is None or now.revoked
            if gone and not before.revoked:
                self._audit.write("revoked", before.name, "" if now else "unknown_key", key=public)
            if "subscriber" in before.roles and (
                gone or now is None or (before.roles, *before[2:]) != (now.roles, *now[2:])
            ):
                self.shrunk = True
        self._clients = clients

    @property
    def admitted(self) -> int:
        """How many keys are good, our own adapters' left out."""
        good = [client for client in self._clients.values() if not client.revoked]
        return max(0, len(good) - 1)

    def prove(self, sockets: list[tuple[int, str]]) -> None:
        """Knock with a key that nobody gave out at each (kind, address): it must stay closed.

        Raises:
            ZMQTrackError: it did not, or no answer came.
        """
        if self.ring is None:
            return
        self._proving = True
        for kind, address in sockets:
            stranger = Key("stranger", address, self.ring.public, *keys.new_pair())
            outcome = keys.handshake(kind, address, stranger, PROOF_TIMEOUT, self.step)
            if outcome != "refused":
                raise ZMQTrackError(
                    f"the test at the start failed: a stranger's key at {address} was not refused "
                    f"but {outcome}. Nobody is served"
                )
        self._proving = False


def grants(client: Client, wanted: bytes) -> list[bytes]:
    """What a subscription to topics that begin with ``wanted`` becomes for ``client``.

    A topic is ``TYPE/SITE/``: each part ends in a slash, so ``metric/site-1/`` does not match
    ``site-10``. Who may not see all is not told in ``head/`` of what it may not see, but only in
    ``pulse/`` how far the journal has come.
    """
    if client.topics is None and client.sites is None:
        return [wanted]
    named = wanted.partition(b"/")[0].decode(errors="replace")
    kinds = client.topics if client.topics is not None else VOCABULARY | {named} - RESERVED
    allowed = [
        wire.topic(kind, site)
        for kind in kinds
        for site in (client.sites if client.sites is not None else [None])
    ]
    own = wire.topic("head"), wire.topic("pulse")
    found = [own[1]] if any(topic.startswith(wanted) for topic in own) else []
    for topic in allowed:
        if topic.startswith(wanted):
            found.append(topic)
        elif wanted.startswith(topic):
            found.append(wanted)
    return found
