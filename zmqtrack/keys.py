"""CURVE keys: the file that names a site and lets it in, and what a socket needs of it.

A key file is JSON, readable by its owner alone::

    {"name": "site-1", "address": "tcp://host:5555", "server": "…", "public": "…", "secret": "…"}

``server`` is the daemon's public key; keys are Z85 text of 40 characters, as ZeroMQ prints them.
"""

from __future__ import annotations

import json
import os
import stat
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import zmq
from zmq.utils import z85

from .errors import KeyFileError
from .records import check_name

__all__ = ["Key", "Watch", "check_key", "handshake", "load", "new_pair", "read_private", "write"]


class Key(NamedTuple):
    """Who we are (``name``, ``public``, ``secret``), and whom we talk to."""

    name: str
    address: str
    server: bytes
    public: bytes
    secret: bytes

    def secure(self, socket: zmq.Socket[bytes]) -> None:
        """Have ``socket`` prove itself with this key, and talk to that daemon alone."""
        socket.curve_serverkey = self.server
        socket.curve_publickey = self.public
        socket.curve_secretkey = self.secret

    def fields(self) -> dict[str, str]:
        """As a key file has them."""
        return {
            name: part.decode() if isinstance(part, bytes) else part
            for name, part in self._asdict().items()
        }

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Key:
        """The key with the fields of a key file.

        Raises:
            ValueError: one is missing, or is no key.
        """
        for name in cls._fields:
            if not isinstance(fields.get(name), str):
                raise ValueError(f"{name!r} is missing")
        check_name("name", fields["name"])
        for name in ("server", "public", "secret"):
            check_key(name, fields[name])
        pair = {name: fields[name].encode() for name in ("server", "public", "secret")}
        if zmq.curve_public(pair["secret"]) != pair["public"]:
            raise ValueError("'public' and 'secret' do not belong together")
        return cls(fields["name"], fields["address"], **pair)


def load(path: str | os.PathLike[str]) -> Key:
    """The key in a file that ``zmqtrack keys new`` made.

    Raises:
        KeyFileError: it cannot be read, others can read it too, or it is none.
    """
    fields = read_private(Path(path))
    try:
        return Key.of(fields)
    except ValueError as error:
        raise KeyFileError(f"{path} is no key file of a site: {error}") from None


def read_private(path: Path) -> dict[str, Any]:
    """The JSON in a file that nobody but its owner may read.

    Raises:
        KeyFileError: it cannot be read, others can read it too, or it is not JSON.
    """
    try:
        with path.open(encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            # systemd lets a service read its credentials by an ACL, which looks like the group's.
            given = os.environ.get("CREDENTIALS_DIRECTORY")
            shared = stat.S_IRWXO if given and path.parent == Path(given) else 0o077
            if mode & shared:
                raise KeyFileError(
                    f"{path} can be read by others (mode {stat.S_IMODE(mode):04o}): its secret may "
                    f"be known. Have a new one made, or at least: chmod 600 {path}"
                )
            fields = json.load(file)
    except OSError as error:
        raise KeyFileError(f"{path}: the key cannot be read: {error.strerror}") from None
    except ValueError:
        raise KeyFileError(f"{path} is no key file: it is not JSON") from None
    if not isinstance(fields, dict):
        raise KeyFileError(f"{path} is no key file: it holds no JSON object")
    return fields


def write(path: Path, fields: dict[str, Any], *, replace: bool = False, mode: int = 0o600) -> None:
    """Write ``fields`` as JSON that only the owner may read by default, whole or not at all.

    Raises:
        FileExistsError: it is there already, and not to be replaced.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from None
    try:
        os.fchmod(file, mode)
        os.write(file, json.dumps(fields, indent=1).encode() + b"\n")
        os.fsync(file)
        if replace:
            temporary.replace(path)
        else:
            try:
                os.link(temporary, path)
            except FileExistsError as error:
                raise FileExistsError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(file)
        temporary.unlink(missing_ok=True)


def new_pair() -> tuple[bytes, bytes]:
    """A new (public, secret)."""
    return zmq.curve_keypair()


def check_key(name: str, text: str) -> None:
    """Raise ValueError if ``text`` is no key in Z85."""
    try:
        good = len(text) == 40 and len(z85.decode(text.encode())) == 32
    except (ValueError, KeyError, UnicodeEncodeError):
        good = False
    if not good:
        raise ValueError(f"{name!r} is no key: 40 characters of Z85 are expected")


#: How a handshake can end: :attr:`Watch.outcome`.
_OUTCOMES: dict[int, str] = {
    zmq.EVENT_HANDSHAKE_SUCCEEDED: "accepted",
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "refused",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "failed",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "failed",
}


class Watch:
    """How a daemon receives ``socket``, which has not been connected yet.

    ZeroMQ connects again after all but a refusal: after that the socket has to be made anew.
    """

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self._monitor = socket.get_monitor_socket(sum(_OUTCOMES))
        #: ``accepted``; ``refused``: the daemon knows the key not, or no longer; ``failed``: it
        #: has another key than the one that ours was made for. Empty: nothing is known yet.
        self.outcome = ""

    def look(self, timeout: float = 0.0) -> str:
        """Wait so many seconds at most for news; returns :attr:`outcome`."""
        while self._monitor.poll(int(1000 * timeout)):
            # pyzmq's own reader of these messages would import asyncio into every training process.
            (event,) = struct.unpack_from("=h", self._monitor.recv_multipart()[0])
            self.outcome = _OUTCOMES.get(event, "failed")
            timeout = 0.0
        return self.outcome

    @property
    def shut_out(self) -> bool:
        """The socket is of no use any more."""
        return self.look() in ("refused", "failed")

    def close(self) -> None:
        self._socket.disable_monitor()
        self._monitor.close(linger=0)


def handshake(
    kind: int,
    address: str,
    key: Key,
    timeout: float,
    meanwhile: Callable[[], None] = lambda: None,
) -> str:
    """How a daemon at ``address`` receives a socket of ``kind`` with ``key``.

    Returns what :class:`Watch` tells, or ``timeout``. ``meanwhile`` is called again and again.
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(kind)
    socket.linger = 0
    key.secure(socket)
    watch = Watch(socket)
    try:
        socket.connect(address)
        deadline = time.monotonic() + timeout
        while not watch.look(0.01) and time.monotonic() < deadline:
            meanwhile()
        return watch.outcome or "timeout"
    finally:
        watch.close()
        socket.close()
        context.term()
