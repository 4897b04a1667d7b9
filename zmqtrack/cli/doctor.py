"""``zmqtrack doctor``: walks the way of a record, and says where it ends and what to do."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import zmq

from .. import __version__, keys, wire
from ..control import DEFAULT_ADDRESS, ControlClient, check_address, resolve
from ..errors import ControlError, KeyFileError
from ..keys import Key

__all__ = ["Finding", "examine"]

#: What ZMTP 3 begins with: signature and version. The other side then says all of its greeting;
#: our mechanism would follow, and were it not the other's, that might hang up too early.
_GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x01"


class Finding(NamedTuple):
    """One step of the way. ``code`` is a fixed word for what is wrong, empty if all is well."""

    step: str
    code: str
    detail: str
    advice: str = ""


class _Stop(Exception):
    """The way ends here."""


def examine(address: str | None, key_file: Path | None, timeout: float) -> Iterator[Finding]:
    """Look at each step from here to the trackers; ends with the first that nothing lies behind."""
    with contextlib.suppress(_Stop):
        key = None
        for finding in _own(key_file):
            yield finding
            if finding.code:
                return
        if key_file is not None:
            key = keys.load(key_file)
        told = key.address if key else DEFAULT_ADDRESS
        try:
            control = check_address(address or told)
        except ValueError as error:
            yield Finding("address", "bad_address", str(error))
            return
        yield Finding("address", "", control)
        yield from _reach("control", control, key, timeout)
        yield from _ask(control, key, timeout)


def _own(key_file: Path | None) -> Iterator[Finding]:
    """What lies on this machine."""
    if key_file is None:
        yield Finding("key", "", "none is named (ZMQTRACK_KEY, --key)")
        return
    try:
        key = keys.load(key_file)
    except KeyFileError as error:
        code = "key_readable_by_others" if "by others" in str(error) else "bad_key_file"
        yield Finding("key", code, str(error))
        return
    yield Finding("key", "", f"{key_file} is that of {key.name}")


def _reach(what: str, address: str, key: Key | None, timeout: float) -> Iterator[Finding]:
    """TCP, then ZeroMQ's greeting, then the handshake.

    Raises:
        _Stop: nothing answers there as it should; the finding says what.
    """

    def stop(code: str, detail: str, advice: str) -> Iterator[Finding]:
        yield Finding(what, code, detail, advice)
        raise _Stop

    try:
        greeting = _greet(address, timeout)
    except ConnectionRefusedError:
        yield from stop(
            "nobody_listens",
            f"the machine answers, but nobody listens at {address}",
            "Start zmqtrackd there, or correct the address or port",
        )
    except (TimeoutError, socket.gaierror, OSError) as error:
        yield from stop(
            "unreachable",
            f"{address}: {error}",
            "Look at the name, the network and its firewalls: three ports are needed "
            "(by default 5555 to 5557)",
        )
    if not (greeting[:1] == b"\xff" and greeting[9:10] == b"\x7f"):
        yield from stop(
            "not_zeromq",
            f"what listens at {address} does not speak ZeroMQ",
            "Correct the port: another service has it",
        )
    mechanism = greeting[12:32].rstrip(b"\0").decode(errors="replace")
    if mechanism == "CURVE" and key is None:
        yield from stop(
            "no_key",
            f"the daemon at {address} asks for a key, and there is none here",
            "Have one made there with `zmqtrack keys new SITE`, and name it in ZMQTRACK_KEY",
        )
    if mechanism == "NULL" and key is not None:
        yield from stop(
            "no_keys_there",
            f"what listens at {address} uses no keys, so it cannot prove that it is ours",
            "Correct the address; or unset ZMQTRACK_KEY if the daemon is meant to be open",
        )
    if key is not None:
        kinds: dict[str, int] = {"control": zmq.DEALER, "ingest": zmq.PUSH, "publish": zmq.SUB}
        outcome = keys.handshake(kinds[what], address, key, timeout)
        if outcome == "refused":
            yield from stop(
                "unknown_key",
                f"the daemon does not let the key of {key.name} in",
                "It was never made there, or was taken away: ask its operator for "
                "`zmqtrack keys list`, and for a new one",
            )
        if outcome == "failed":
            yield from stop(
                "wrong_server",
                f"the daemon at {address} is not the one that this key was made for",
                "Use the key that was made for this daemon; or correct the address",
            )
        if outcome != "accepted":
            yield from stop("no_handshake", f"{address} does not finish the handshake", "")
    yield Finding(what, "", f"{address} speaks ZeroMQ, {'encrypted' if key else 'without keys'}")


def _greet(address: str, timeout: float) -> bytes:
    """The first 64 bytes of who listens there; fewer if it says less.

    Raises:
        OSError: it cannot be reached.
    """
    parts = urlsplit(address)
    if parts.scheme == "ipc":
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(timeout)
        connection.connect(address.removeprefix("ipc://"))
    else:
        host, _, port = parts.netloc.rpartition(":")
        connection = socket.create_connection((host.strip("[]"), int(port)), timeout)
    with connection:
        said = b""
        with contextlib.suppress(OSError):
            connection.sendall(_GREETING)
            while len(said) < 64 and (more := connection.recv(64 - len(said))):
                said += more
        if not said:
            raise TimeoutError(f"it is connected, and says nothing for {timeout:g} s")
        return said


def _ask(control: str, key: Key | None, timeout: float) -> Iterator[Finding]:
    """What the daemon says, and what lies behind it."""
    client = ControlClient(control, key)
    try:
        try:
            welcome = client.request("hello", timeout=timeout)
        except ControlError as error:
            advice = {
                "bad_version": f"This is zmqtrack {__version__}, protocol {wire.VERSION}: install "
                "the version that the daemon has",
                "revoked": "Ask the daemon's operator for a new key",
                "timeout": "The daemon may be busy or stopped: look at its log",
            }.get(error.reason, "")
            yield Finding("hello", error.reason, str(error), advice)
            raise _Stop from None
        own = welcome.get("you") or {}
        roles = own.get("roles", [])
        who = f"knows us as {own['name']} ({', '.join(roles)})" if own.get("name") else "is open"
        yield Finding("hello", "", f"zmqtrackd {welcome['version']} {who}")
        if key is not None and own.get("name") != key.name:
            yield Finding(
                "name",
                "wrong_name",
                f"the key file says {key.name!r}, and the daemon knows it as {own.get('name')!r}",
                "Somebody has changed the file: put the name back",
            )
        sockets = {"ingest": "writer", "publish": "subscriber"}
        for name, role in sockets.items():
            if role in roles:
                yield from _reach(name, resolve(welcome[name], control), key, timeout)
        if "operator" in roles:
            try:
                yield from _adapters(client.request("status", timeout=timeout))
            except ControlError as error:
                yield Finding("status", error.reason, str(error))
    finally:
        client.close()


def _adapters(status: dict[str, Any]) -> Iterator[Finding]:
    """Each adapter, and what it says of its tracker."""
    for name, facts in status["adapters"].items():
        state = facts["state"]
        if state == "running":
            yield Finding(f"adapter {name}", "", f"running, {facts['lag']} batches behind")
        else:
            detail = facts.get("detail") or state
            yield Finding(f"adapter {name}", state, detail, "See the daemon's log")
