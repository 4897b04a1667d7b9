"""The publish socket: each commit's batches on a topic per data type and site, then its head.

The head names the offsets and data types of the commit, so that subscribers see what they missed;
an empty one is the heartbeat. With keys on, nobody gets more than it is granted.
"""

from __future__ import annotations

import logging
import time

import zmq

from zmqtrack import wire
from zmqtrack.errors import ZMQTrackError

from . import sockets
from .audit import Audit
from .auth import Auth, grants
from .journal import Entry
from .refusals import Refusals

__all__ = ["Publisher"]

log = logging.getLogger("zmqtrack.daemon")

#: The head is published at least so often (seconds), so that subscribers notice a lost tail.
HEARTBEAT = 0.5
#: Longest that the socket may take to be bound again, in seconds.
REBIND = 5.0
#: Subscriptions that are looked at in one turn.
TURN = 200


class Publisher:
    """Binds the socket, an XPUB.

    Raises:
        ZMQTrackError: the address cannot be bound.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        auth: Auth,
        address: str,
        audit: Audit,
        refusals: Refusals,
    ) -> None:
        self.socket, self.address = sockets.bind(context, auth, zmq.XPUB, address)
        self._context, self._auth = context, auth
        self._audit, self._refusals = audit, refusals
        self._said = 0.0  # when the head was published last

    def publish(self, entries: list[Entry], head: int) -> None:
        """What one commit has made durable; ``head`` is the journal's last offset now."""
        for entry in entries:
            topic = wire.topic(entry.type, entry.site)
            self.socket.send_multipart([topic, entry.header, entry.body], copy=False)
        if entries:
            self._publish_head(entries[0].offset, [entry.type for entry in entries], head)

    def beat(self, head: int) -> None:
        """Let subscribers know, if they have not heard for a while, how far the journal is."""
        if time.monotonic() - self._said > HEARTBEAT:
            self._publish_head(head + 1, [], head)

    def _publish_head(self, first: int, types: list[str], head: int) -> None:
        self._said = time.monotonic()
        message = wire.encode_control("head", first=first, types=types)
        self.socket.send_multipart([wire.topic("head"), message])
        if self._auth.ring is not None:  # for those who may not see all
            message = wire.encode_control("pulse", head=head)
            self.socket.send_multipart([wire.topic("pulse"), message])

    def serve(self) -> None:
        """Who wants what; without keys ZeroMQ has acted on it already."""
        for _ in range(TURN):
            try:
                (message, *_), client = self._auth.receive(self.socket)
            except zmq.Again:
                return
            if self._auth.ring is None:
                continue
            if client is None and message[:1] != b"\1":
                continue  # what ZeroMQ itself says when a connection ends
            if client is None or client.revoked or "subscriber" not in client.roles:
                name = client.name if client else ""
                self._audit.write("refused", name, "no_subscriber", socket="publish")
                continue
            action = {0: zmq.UNSUBSCRIBE, 1: zmq.SUBSCRIBE}.get(message[0] if message else -1)
            if action is None:
                self._refusals.note("bad_subscription", f"{client.name!r} sends what is none")
                continue
            for topic in grants(client, message[1:]):
                self.socket.setsockopt(action, topic)

    def bind_anew(self) -> None:
        """End all subscribers' connections, as somebody may see less from now on.

        ZeroMQ cannot end one alone. The others come back, and ask for what they missed.
        """
        log.info("a subscriber's rights became less: all of them have to connect anew")
        self.socket.close(linger=0)
        deadline = time.monotonic() + REBIND
        while True:
            try:
                self.socket, _ = sockets.bind(self._context, self._auth, zmq.XPUB, self.address)
            except ZMQTrackError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.005)
            else:
                return
