"""What waits on this machine: the outboxes of writers that have ended."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import zmq

from ..control import check_address
from ..errors import ControlError, SpoolError
from ..keys import Key
from ..link import Link
from ..spool import Spool, default_directory, orphans

__all__ = ["find", "folder", "send"]


def folder(directory: Path | None) -> Path:
    """Where to look: ``directory``, or where writers keep theirs. It need not be there.

    Raises:
        SpoolError: it cannot be looked into.
    """
    place = directory or default_directory()
    try:
        next(place.iterdir(), None)
    except FileNotFoundError:
        pass  # nobody has logged yet
    except OSError as error:
        raise SpoolError(f"{place}: the outboxes cannot be looked at: {error.strerror}") from error
    return place


def find(directory: Path | None) -> list[dict[str, Any]]:
    """Facts about each outbox in the folder, those in use and damaged ones included.

    Raises:
        SpoolError: it cannot be looked into.
    """
    found = []
    for path in orphans(folder(directory)):
        facts: dict[str, Any] = {"path": str(path), "stream": path.stem}
        try:
            spool = Spool.open(path)
        except SpoolError as error:
            found.append({**facts, "state": "not to be opened", "detail": str(error)})
            continue
        facts |= spool.run._asdict()
        facts |= {
            "state": "waiting",
            "address": spool.address,
            "records": spool.pending(),
            "bytes": spool.bytes,
        }
        spool.close()
        found.append(facts)
    return found


def send(
    directory: Path | None, timeout: float, address: str | None, key: Key | None = None
) -> tuple[int, int]:
    """Deliver what can be opened; returns (records delivered, records left).

    Raises:
        SpoolError: the folder cannot be looked into.
        ControlError: of an outbox that was damaged nobody knows where it should go.
    """
    if address is not None:
        check_address(address)
    links, nameless = [], []
    for path in orphans(folder(directory)):
        try:
            spool = Spool.open(path)
        except SpoolError:
            continue  # in use, or damaged: `list` says which
        if not spool.pending():  # all is delivered, or its writer died before it began
            spool.close()
            continue
        if key and spool.run.site != key.name:
            spool.close()  # it takes that site's key
            continue
        if not (address or spool.address):
            nameless.append(path)  # the others go first
            spool.close()
            continue
        links.append(Link(spool, address or spool.address, key))
    waiting = sum(link.spool.pending() for link in links)
    deadline = time.monotonic() + timeout
    while not all(link.done for link in links) and time.monotonic() < deadline:
        poller = zmq.Poller()
        for link in links:
            link.pump()
            poller.register(link.control, zmq.POLLIN)
        poller.poll(50)
    left = sum(link.spool.pending() for link in links)
    for link in links:
        link.close()
        link.spool.close()
    if nameless:
        raise ControlError(
            "no_address",
            f"{nameless[0]} was damaged and no longer says to which daemon it goes: name it with "
            f"--address ({len(nameless)} such; {waiting - left} records of others were sent)",
        )
    return waiting - left, left
