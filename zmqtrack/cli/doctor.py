"""``zmqtrack doctor``: walks the way of a record, and says where it ends and what to do."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import zmq

from .. import __version__, keys, wire
from ..control import DEFAULT_ADDRESS, ControlClient, check_address, connect, resolve
from ..errors import ControlError, FrameError, KeyFileError
from ..keys import Key
from ..records import RunKey
from . import findings
from .findings import Finding

__all__ = ["Finding", "examine"]

#: What ZMTP 3 begins with: signature and version. The other side then says all of its greeting;
#: our mechanism would follow, and were it not the other's, that might hang up too early.
_GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x01"

#: The run that a probe speaks of; nothing is kept under it.
_RUN = ("zmqtrack", "doctor")
#: Trackers are tried a few at a time, and their libraries take a while to load (seconds).
_AT_ONCE, _LOADING = 4, 40

#: What to do about a refusal, by its reason.
_ADVICE = {
    "bad_version": f"This is zmqtrack {__version__}, protocol {wire.VERSION}: install the version "
    "that the daemon has",
    "busy": "On the daemon's machine: `zmqtrack status` shows which adapter is behind; make room "
    "on the disk of daemon.state_dir, or set daemon.max_bytes higher",
    "not_allowed": "Have the key given the role there: `zmqtrack keys roles NAME ROLE`",
    "over_rate": "Wait, or have daemon.limits set higher (batches_per_second, bytes_per_second)",
    "revoked": "Ask the daemon's operator for a new key: `zmqtrack keys new NAME --rotate` there",
    "timeout": "The daemon may be busy or stopped: look at its log, and at `systemctl status "
    "zmqtrackd` on its machine",
}


class _Stop(Exception):
    """The way ends here."""

    def __init__(self, finding: Finding) -> None:
        self.finding = finding


def examine(address: str | None, key_file: Path | None, timeout: float) -> Iterator[Finding]:
    """Look at each step from here to the trackers; ends with the first that nothing lies behind."""
    try:
        key = None
        if key_file is None:
            yield Finding("key", "", "none is named (ZMQTRACK_KEY, --key)")
        else:
            key = _load(key_file)
            yield Finding("key", "", f"{key_file} is that of {key.name}")
        try:
            control = check_address(address or (key.address if key else DEFAULT_ADDRESS))
        except ValueError as error:
            _stop("address", "bad_address", str(error), "Write tcp://HOST:PORT or ipc:///PATH")
        yield Finding("address", "", control)
        yield _reach("control", control, key, timeout)
        yield from _ask(control, key, timeout)
    except _Stop as end:
        yield end.finding


def _stop(step: str, code: str, detail: str, advice: str = "") -> NoReturn:
    raise _Stop(Finding(step, code, detail, advice)) from None


def _load(key_file: Path) -> Key:
    """The key, if it is good and ours alone."""
    try:
        return keys.load(key_file)
    except KeyFileError as error:
        shared = "by others" in str(error)
        _stop(
            "key",
            "key_readable_by_others" if shared else "bad_key_file",
            str(error),
            f"If nobody else was there: chmod 600 {key_file}"
            if shared
            else "Name the file that `zmqtrack keys new` made in ZMQTRACK_KEY or --key",
        )


# --- to a socket -----------------------------------------------------------------------------


def _reach(what: str, address: str, key: Key | None, timeout: float) -> Finding:
    """TCP, then ZeroMQ's greeting, then the handshake.

    Raises:
        _Stop: nothing answers there as it should; the finding says what.
    """
    mechanism = _mechanism(what, address, timeout)
    if mechanism == "CURVE" and key is None:
        _stop(
            what,
            "no_key",
            f"the daemon at {address} asks for a key, and there is none here",
            "Have one made there with `zmqtrack keys new SITE`, and name it in ZMQTRACK_KEY",
        )
    if mechanism == "NULL" and key is not None:
        _stop(
            what,
            "no_keys_there",
            f"what listens at {address} uses no keys, so it cannot prove that it is ours",
            "Correct the address; or unset ZMQTRACK_KEY if the daemon is meant to be open",
        )
    if key is not None:
        _shake_hands(what, address, key, timeout)
    return Finding(what, "", f"{address} speaks ZeroMQ, {'encrypted' if key else 'without keys'}")


def _mechanism(what: str, address: str, timeout: float) -> str:
    """How who listens there wants its peers to prove themselves: it says so first.

    Raises:
        _Stop: it cannot be reached, or does not speak ZeroMQ.
    """
    ports = (
        "three ports are needed, by default 5555 to 5557"
        if what == "control"
        else f"the daemon names this address for {what}; set daemon.advertise_{what} to the one "
        "under which it is reached from here"
    )
    try:
        greeting = _greet(address, timeout)
    except ConnectionRefusedError:
        start = "Start zmqtrackd there (`systemctl start zmqtrackd`), or correct the address"
        _stop(
            what,
            "nobody_listens",
            f"the machine answers, but nobody listens at {address}",
            start if what == "control" else f"Open the port: {ports}",
        )
    except (socket.gaierror, UnicodeError) as error:
        # It is no name that one could ask for; Python's message would be about an encoding.
        bad = "a part between its dots is empty or too long"
        why = error.strerror if isinstance(error, socket.gaierror) else bad
        _stop(
            what,
            "unknown_host",
            f"{address}: no machine has that name ({why})",
            "Correct the name, or look at this machine's DNS"
            if what == "control"
            else f"Correct the name: {ports}",
        )
    except TimeoutError:
        _stop(
            what,
            "unreachable",
            f"{address} does not answer within {timeout:g} s",
            f"Look at the network and its firewalls: {ports}",
        )
    except OSError as error:
        if address.startswith("ipc:") and error.errno == errno.ENOENT:
            _stop(
                what,
                "nobody_listens",
                f"there is no socket at {address}",
                "Start zmqtrackd, or correct the path",
            )
        _stop(
            what,
            "unreachable",
            f"{address}: {error.strerror or error}",
            f"Look at the network and its firewalls: {ports}",
        )
    if not greeting:
        _stop(
            what,
            "silent",
            f"{address} takes the connection, and says nothing for {timeout:g} s",
            "If it is zmqtrackd, it hangs or is stopped (Ctrl-Z, SIGSTOP; `kill -CONT PID`): look "
            "at `systemctl status zmqtrackd`, or start it again. Else correct the port",
        )
    if not (greeting[:1] == b"\xff" and greeting[9:10] == b"\x7f"):
        _stop(
            what,
            "not_zeromq",
            f"what listens at {address} does not speak ZeroMQ",
            f"Correct the port: another service has it ({ports})",
        )
    return greeting[12:32].rstrip(b"\0").decode(errors="replace")


def _greet(address: str, timeout: float) -> bytes:
    """The first 64 bytes of who listens there; fewer if it says less.

    Raises:
        OSError: it cannot be reached.
        UnicodeError: no machine can have that name.
    """
    parts = urlsplit(address)
    if parts.scheme == "ipc":
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(timeout)
        path = address.removeprefix("ipc://")
        # As ZeroMQ writes an abstract socket, which is in no folder.
        connection.connect("\0" + path[1:] if path.startswith("@") else path)
    else:
        host, _, port = parts.netloc.rpartition(":")
        connection = socket.create_connection((host.strip("[]"), int(port)), timeout)
    connection.settimeout(timeout / 2)
    said = b""
    with connection:
        # ZeroMQ answers to the first; a server that waits for a line, as HTTP's, to the second.
        for word in (_GREETING, b"\r\n\r\n"):
            with contextlib.suppress(OSError):
                connection.sendall(word)
                while len(said) < 64 and (more := connection.recv(64 - len(said))):
                    said += more
            if said:
                break
    return said


def _shake_hands(what: str, address: str, key: Key, timeout: float) -> None:
    kinds: dict[str, int] = {"control": zmq.DEALER, "ingest": zmq.PUSH, "publish": zmq.SUB}
    outcome = keys.handshake(kinds[what], address, key, timeout)
    if outcome == "refused":
        _stop(
            what,
            "unknown_key",
            f"the daemon does not let the key of {key.name} in",
            "It was never made there, or was taken away: ask its operator for "
            "`zmqtrack keys list`, and for a new one",
        )
    if outcome == "failed":
        _stop(
            what,
            "wrong_server",
            f"the daemon at {address} is not the one that this key was made for",
            "Use the key that was made for this daemon; or correct the address",
        )
    if outcome != "accepted":
        _stop(
            what,
            "no_handshake",
            f"{address} does not finish the handshake within {timeout:g} s",
            "The daemon may hang: look at its log, or start it again",
        )


# --- what the daemon says --------------------------------------------------------------------


def _ask(control: str, key: Key | None, timeout: float) -> Iterator[Finding]:
    """What the daemon says, and what lies behind it."""
    client = ControlClient(control, key)
    try:
        welcome = _request(client, "hello", timeout)
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
        if "writer" in roles:
            ingest = resolve(welcome["ingest"], control)
            yield from _or_stop(_reach, "ingest", ingest, key, timeout)
            yield from _or_stop(_deliver, control, ingest, key, own.get("name"), timeout)
        if "subscriber" in roles:
            publish = resolve(welcome["publish"], control)
            yield from _or_stop(_reach, "publish", publish, key, timeout)
        if "operator" in roles:
            status = _request(client, "status", timeout)
            yield from findings.of_daemon(status)
            yield from findings.of_adapters(status)
            if any(facts["state"] != "removed" for facts in status["adapters"].values()):
                yield from _try_trackers(client, len(status["adapters"]), timeout)
    finally:
        client.close()


def _or_stop(look: Any, *arguments: Any) -> Iterator[Finding]:
    """The finding of ``look``; where it ends, other ways go on."""
    try:
        yield look(*arguments)
    except _Stop as end:
        yield end.finding


def _request(client: ControlClient, op: str, timeout: float, **fields: Any) -> dict[str, Any]:
    try:
        return client.request(op, timeout=timeout, **fields)
    except ControlError as error:
        _stop(op, error.reason, str(error), _ADVICE.get(error.reason, ""))


def _deliver(
    control: str, ingest: str, key: Key | None, name: str | None, timeout: float
) -> Finding:
    """Push a batch that is acknowledged, and of which nothing is kept.

    Raises:
        _Stop: it is not acknowledged.
    """
    stream, run = os.urandom(16), RunKey(*_RUN, name or "doctor")
    dealer, push = connect(zmq.DEALER, control, key=key), connect(zmq.PUSH, ingest, key=key)
    try:
        for each in (dealer, push):
            each.sndtimeo = math.ceil(1000 * timeout)
        fields = {"role": "probe", "stream": stream, "run": run, "acked": 0, "last": 0}
        header = wire.encode_header(wire.Header(stream, 1, run, 1))
        try:
            dealer.send(wire.encode_control("hello", **fields))
            _hear(dealer, stream, "welcome", timeout)
            pushed = time.perf_counter()
            push.send_multipart(
                [wire.topic("probe"), header, wire.encode_body([("probe", 0.0, None, time.time())])]
            )
        except zmq.Again:
            _stop(
                "ack",
                "not_sent",
                f"nothing can be pushed to {ingest} within {timeout:g} s",
                "What listens there is no daemon's ingest: set daemon.advertise_ingest to the "
                "address under which ingest is reached from here",
            )
        _hear(dealer, stream, "ack", timeout)
        ms = 1000 * (time.perf_counter() - pushed)
        return Finding("ack", "", f"a batch is acknowledged {ms:.1f} ms after it was pushed")
    finally:
        dealer.close()
        push.close()


def _hear(dealer: zmq.Socket[bytes], stream: bytes, wanted: str, timeout: float) -> None:
    """Wait for the daemon's word on ``stream``.

    Raises:
        _Stop: it is another, or does not come.
    """
    deadline = time.monotonic() + timeout
    while (left := deadline - time.monotonic()) > 0 and dealer.poll(math.ceil(1000 * left)):
        try:
            answer = wire.decode_control(dealer.recv_multipart()[0])
        except FrameError as error:
            _stop("ack", error.reason, error.detail, _ADVICE.get(error.reason, ""))
        if answer.get("stream") != stream:
            continue
        if answer["op"] == wanted:
            return
        if answer["op"] == "slow":
            _stop(
                "ack",
                "slow",
                f"the daemon says to wait for {answer['wait']:g} s: this site sends too much, or "
                "it has no room; records wait at the writer",
                _ADVICE["busy"],
            )
        if answer["op"] == "refused":
            reason = str(answer["reason"])
            _stop("ack", reason, str(answer["detail"]), _ADVICE.get(reason, ""))
    if wanted == "welcome":
        _stop("ack", "timeout", "the daemon does not greet a writer", _ADVICE["timeout"])
    _stop(
        "ack",
        "no_ack",
        f"a batch was pushed, and not acknowledged within {timeout:g} s",
        "The daemon may be another than that behind ingest (look at daemon.advertise_ingest), or "
        "its disk hang: look at its log",
    )


def _try_trackers(client: ControlClient, n: int, timeout: float) -> Iterator[Finding]:
    """Have the daemon try them: they are reached from its machine, with its secrets."""
    seconds = max(1, min(60, math.ceil(timeout)))
    patience = math.ceil(n / _AT_ONCE) * (seconds + _LOADING)
    try:
        found = client.request("probe", timeout=patience, seconds=seconds)
    except ControlError as error:
        yield Finding("trackers", error.reason, str(error), _ADVICE.get(error.reason, ""))
    else:
        yield from findings.of_trackers(found["trackers"])
