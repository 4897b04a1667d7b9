"""The last value of one metric in each run, as it passes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from contextlib import suppress
from typing import Any

import zmq

from ..control import ControlClient
from ..errors import ControlError
from ..keys import Key
from ..plain import number
from ..records import Record, RunKey
from ..wire import Header
from .tap import Chosen, Listener

__all__ = ["Last"]

#: Runs of which the value is remembered: those that logged it last.
REMEMBERED = 10_000


class Last:
    """Listens in a thread of its own, from now on.

    Raises:
        ControlError: the daemon cannot be asked, or the key may not subscribe.
    """

    def __init__(self, address: str, key: Key | None, metric: str) -> None:
        self.metric = metric
        #: Why it no longer listens.
        self.trouble = ""
        self._stopped = False
        self._client = ControlClient(address, key)
        self._listener = Listener(
            self._client, address, key, Chosen(["metric"], [], [], None), say=lambda text: None
        )
        self._lock = threading.Lock()
        self._values: OrderedDict[RunKey, tuple[float, int | None]] = OrderedDict()

    def start(self) -> None:
        threading.Thread(target=self._run, daemon=True).start()

    def stop(self) -> None:
        """Returns at once; it ends at its next turn."""
        self._stopped = True

    def of(self, run: RunKey) -> dict[str, Any]:
        """As JSON has it; without ``value`` none has passed yet."""
        with self._lock:
            found = self._values.get(run)
        facts: dict[str, Any] = {"key": self.metric}
        return facts if found is None else facts | {"value": number(found[0]), "step": found[1]}

    def _run(self) -> None:
        try:
            self._listener.run(self)
        except ControlError as error:
            self.trouble = str(error)
        finally:
            with suppress(zmq.ZMQError):  # the process ends
                self._listener.close()
                self._client.close()

    # --- what the listener fills --------------------------------------------------------------

    @property
    def full(self) -> bool:
        return self._stopped

    def add(self, data_type: str, header: Header, record: Record) -> None:
        if record.key == self.metric:
            with self._lock:
                self._values[header.run] = record.value, record.step
                self._values.move_to_end(header.run)
                if len(self._values) > REMEMBERED:
                    self._values.popitem(last=False)

    def flush(self) -> None:
        """Nothing is gathered."""
