"""Faults to be put into the product, to see that the tests notice: see ``sitecustomize.py``.

Each is one that a hasty change could bring.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any


def _acknowledge_before_the_commit(module: ModuleType) -> None:
    broker = module.Broker
    commit = broker._commit

    def hasty(self: Any) -> None:
        self.intake.acknowledge()
        commit(self)

    broker._commit = hasty


def _hold_the_commit(module: ModuleType) -> None:
    """No fault: while the file ``HOLD`` exists, the commit of a batch is put off."""
    hold = Path(os.environ["HOLD"])
    broker = module.Broker
    commit = broker._commit

    def slow(self: Any) -> None:
        if hold.exists() and self.journal.pending:
            self._commit_due = 0.0
        else:
            commit(self)

    broker._commit = slow


def _commit_the_cursor_before_the_delivery(module: ModuleType) -> None:
    host = module.Host
    deliver = host._deliver_all

    def hasty(self: Any, batches: Any) -> bool:
        self._commit()
        return bool(deliver(self, batches))

    host._deliver_all = hasty


def _accept_what_is_there_already(module: ModuleType) -> None:
    """The daemon takes again what it has. Behind a hole it takes nothing, as ever, or records
    would be missing too; but it does not tell what it has.
    """
    accept = module.Intake._accept

    def gullible(self: Any, frames: list[bytes], *client: Any) -> None:
        stream = self._journal.stream
        header = module.wire.decode_header(frames[1])
        known = stream(header.stream)
        if known and header.seq > known.seq + 1:
            return

        def forgotten(ident: bytes) -> Any:
            known = stream(ident)
            return known and known._replace(seq=header.seq - 1)

        self._journal.stream = forgotten
        try:
            accept(self, frames, *client)
        finally:
            del self._journal.stream

    module.Intake._accept = gullible


def _believe_what_a_writer_has(module: ModuleType) -> None:
    greet = module.Control._greet_writer

    def gullible(self: Any, identity: bytes, stream: Any, request: dict[str, Any]) -> int:
        return min(greet(self, identity, stream, request), int(request.get("acked", 0)))

    module.Control._greet_writer = gullible


def _leave_what_is_in_doubt(module: ModuleType) -> None:
    module._cut = lambda *_: None  # type: ignore[attr-defined]


def _leave_the_spool_uncommitted(module: ModuleType) -> None:
    @contextlib.contextmanager
    def transaction(self: Any) -> Iterator[None]:
        if not self._db.in_transaction:
            self._db.execute("BEGIN IMMEDIATE")
        yield

    create = module.Spool.create

    def careless(*args: Any) -> Any:
        spool = create(*args)
        spool._transaction = functools.partial(transaction, spool)
        return spool

    module.Spool.create = careless


MUTATIONS: dict[str, tuple[str, Callable[[ModuleType], None]]] = {
    "acknowledge before the commit": ("zmqtrack.daemon.broker", _acknowledge_before_the_commit),
    "hold the commit": ("zmqtrack.daemon.broker", _hold_the_commit),
    "cursor before the delivery": (
        "zmqtrack.adapters.host",
        _commit_the_cursor_before_the_delivery,
    ),
    "accept twice": ("zmqtrack.daemon.intake", _accept_what_is_there_already),
    "greet without memory": ("zmqtrack.daemon.control", _believe_what_a_writer_has),
    "no undo": ("zmqtrack.adapters.ledger", _leave_what_is_in_doubt),
    "push before the commit": ("zmqtrack.spool", _leave_the_spool_uncommitted),
}
