"""Tables in MLflow's syntax: columns and rows, to which a second call with one path adds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from .exceptions import invalid

__all__ = ["Table"]


class Table:
    """Columns by name, all of one length; where a cell is missing there is None."""

    def __init__(self) -> None:
        self._columns: dict[str, list[Any]] = {}
        self._length = 0

    def extend(self, data: Any) -> None:
        """Add the rows of a dictionary of columns, or of a data frame.

        Raises:
            MlflowException: it is neither.
        """
        if hasattr(data, "to_dict"):
            data = data.to_dict(orient="list")
        if not isinstance(data, Mapping):
            name = type(data).__name__
            raise invalid(f"a table must be a dictionary of columns, not {name}", TypeError)
        columns = {
            str(name): cells if isinstance(cells, (list, tuple)) else [cells]
            for name, cells in data.items()
        }
        for name in columns:
            self._columns.setdefault(name, [None] * self._length)
        self._length += max(map(len, columns.values()), default=0)
        for name, cells in self._columns.items():
            cells.extend(columns.get(name, ()))
            cells.extend([None] * (self._length - len(cells)))

    def as_json(self) -> dict[str, list[Any]]:
        """As pandas calls it, ``split``: the names of the columns, and the rows."""
        rows = [list(row) for row in itertools.zip_longest(*self._columns.values())]
        return {"columns": list(self._columns), "data": rows}
