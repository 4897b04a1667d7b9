"""W&B's objects for values that are more than a number or text, in its syntax.

What becomes of each stands in :mod:`zmqtrack.writers.wandb`, whose names they are for users.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..arrays import describe, is_array, to_host
from ..histogram import summarise
from ..image import encode_image
from ..run import Run as ZMQRun
from ._common import lose, note
from .wandb_values import is_number

__all__ = [
    "Audio", "Classes", "EvalTable", "Graph", "Histogram", "Html", "Image", "JoinedTable",
    "Media", "Molecule", "Object3D", "Plotly", "Table", "Video", "box3d",
]  # fmt: skip

#: Rows of a Table that are logged.
MAX_ROWS = 10_000


class Media:
    """A value that is more than a number or text."""

    def log_to(self, run: ZMQRun, key: str, step: int | None, time: float | None = None) -> None:
        raise NotImplementedError


class Image(Media):
    """An image: a path, an array, a tensor, a PIL image, a figure, encoded bytes.

    Args:
        data_or_path: tensors of three axes are CHW and arrays HWC, as in W&B. Floats up to 1 are
            shares of full brightness, larger ones values up to 255.
        caption: is logged as text.
        mode: one of PIL's modes; it needs Pillow. Not heeded for a path.
        boxes, masks, classes: overlays are not carried, which is said once and counted.
        grouping, file_type: without effect, which is said once.

    Raises:
        TypeError, ValueError, OSError: see :func:`zmqtrack.image.encode_image`.
    """

    #: Pixels of a side, and images at a time, that W&B shows.
    MAX_DIMENSION = 65500
    MAX_ITEMS = 108

    def __init__(
        self,
        data_or_path: Any,
        mode: str | None = None,
        caption: str | None = None,
        grouping: int | None = None,
        classes: Any = None,
        boxes: Any = None,
        masks: Any = None,
        file_type: str | None = None,
        normalize: bool | None = None,
    ) -> None:
        self.data: bytes
        self.caption = caption
        self.overlays = [
            name
            for name, value in (("boxes", boxes), ("masks", masks), ("classes", classes))
            if value is not None
        ]
        if grouping is not None:
            note("Image(grouping)", "without effect: images are logged in the order given")
        if file_type is not None and file_type.lower() != "png":
            note("Image(file_type)", "without effect: images keep all their pixels, as PNG")
        if isinstance(data_or_path, Image):
            self.data = data_or_path.data
            self.caption = caption if caption is not None else data_or_path.caption
            return
        if mode is not None and hasattr(data_or_path, "convert"):
            data_or_path = data_or_path.convert(mode)
        self.data = encode_image(*_pixels(data_or_path))
        if mode is not None and is_array(data_or_path):
            self.data = encode_image(self.image.convert(mode))

    @property
    def image(self) -> Any:
        """Of PIL; it needs Pillow."""
        import io

        import PIL.Image

        return PIL.Image.open(io.BytesIO(self.data))

    def guess_mode(self, data: Any, file_type: str | None = None) -> str:
        """PIL's mode for an array: of no axis for channels, or of 1, 3 or 4 of them.

        Raises:
            ValueError: it has another shape.
        """
        channels = 1 if len(data.shape) == 2 else data.shape[-1]
        if channels not in (1, 3, 4):
            raise ValueError(f"Un-supported shape for image conversion {list(data.shape)}")
        return {1: "L", 3: "RGB", 4: "RGBA"}[channels]

    def log_to(self, run: ZMQRun, key: str, step: int | None, time: float | None = None) -> None:
        run.log_image(key, self.data, step, time)
        if self.caption is not None:
            run.log_text(f"{key}.caption", str(self.caption), step, time)
        for name in self.overlays:
            lose(run, f"Image({name})", "overlays; the image is logged")


class Histogram(Media):
    """A histogram of ``sequence``, or one ready as (counts, edges) in ``np_histogram``.

    Raises:
        TypeError, ValueError: see :func:`zmqtrack.histogram.summarise`.
    """

    def __init__(
        self,
        sequence: Any = None,
        np_histogram: tuple[Any, Any] | None = None,
        num_bins: int = 64,
    ) -> None:
        if np_histogram is not None:
            if len(np_histogram) != 2:
                raise ValueError("np_histogram must be a tuple of counts and edges")
            counts, edges = np_histogram
            self.summary = summarise({"counts": counts, "edges": edges})
        else:
            try:
                self.summary = summarise([] if sequence is None else sequence, num_bins)
            except ValueError:
                if sequence is None or len(sequence):
                    raise
                edges = [place / num_bins for place in range(num_bins + 1)]  # as NumPy has them
                self.summary = summarise({"counts": [0] * num_bins, "edges": edges})
        self.histogram: list[float] = self.summary["counts"]
        self.bins: list[float] = self.summary["edges"]

    def log_to(self, run: ZMQRun, key: str, step: int | None, time: float | None = None) -> None:
        run.log_histogram(key, self.summary, step, time)


class Html(Media):
    """HTML: as text, a path ending in ``.html``, or an open file."""

    def __init__(self, data: Any, inject: bool = True, data_is_not_path: bool = False) -> None:
        if hasattr(data, "read"):
            data = data.read()
        elif isinstance(data, Path) or (
            isinstance(data, str) and not data_is_not_path and data.endswith(".html")
        ):
            data = Path(data).read_text(encoding="utf-8")
        if not isinstance(data, str):
            raise TypeError(f"Html is made of text or a path, not of {describe(data)}")
        self.html = data

    def log_to(self, run: ZMQRun, key: str, step: int | None, time: float | None = None) -> None:
        run.log_text(f"{key}.html", self.html, step, time)


class Table(Media):
    """A table of columns and rows. Cells are logged as text, up to 10,000 rows."""

    MAX_ROWS = MAX_ROWS
    MAX_ARTIFACT_ROWS = 200_000

    def __init__(
        self,
        columns: Sequence[Any] | None = None,
        data: Any = None,
        rows: Any = None,
        dataframe: Any = None,
        dtype: Any = None,
        optional: bool | Sequence[bool] = True,
        allow_mixed_types: bool = False,
        log_mode: str | None = "IMMUTABLE",
    ) -> None:
        if dataframe is None and hasattr(data, "columns"):
            dataframe, data = data, None
        if dataframe is not None:
            columns = list(dataframe.columns)
            data = [list(row) for row in dataframe.itertuples(index=False, name=None)]
        elif is_array(data):
            data = to_host(data).tolist()
        data = data if data is not None else rows
        self.columns = ["Input", "Output", "Expected"] if columns is None else list(columns)
        self.data: list[list[Any]] = []
        self._logged = False
        for row in data if data is not None else ():
            self.add_data(*row)

    def add_data(self, *data: Any) -> None:
        """Add a row.

        Raises:
            ValueError: it has not as many cells as there are columns.
        """
        if len(data) != len(self.columns):
            raise ValueError(
                f"a row of {len(data)} cells in a table of {len(self.columns)} columns"
            )
        self.data.append(list(data))

    add_row = add_data

    def add_column(self, name: str, data: Sequence[Any], optional: bool = False) -> None:
        """Add a column.

        Raises:
            ValueError: it has not as many cells as there are rows.
        """
        cells = to_host(data).tolist() if is_array(data) else list(data)
        if self.data and len(cells) != len(self.data):
            raise ValueError(f"a column of {len(cells)} cells in a table of {len(self.data)} rows")
        self.data = [
            [*row, cell] for row, cell in zip(self.data or [[]] * len(cells), cells, strict=True)
        ]
        self.columns.append(name)

    def add_computed_columns(self, fn: Callable[[int, dict[Any, Any]], Mapping[str, Any]]) -> None:
        """Add the columns that ``fn`` makes of each row: of its number and a dictionary of it."""
        made = [fn(number, dict(self._by_name(row))) for number, row in self.iterrows()]
        for name in made[0] if made else ():
            self.add_column(name, [row[name] for row in made])

    def _by_name(self, row: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        return zip(self.columns, row, strict=True)

    def iterrows(self) -> Iterator[tuple[int, list[Any]]]:
        """Number and cells of each row."""
        return enumerate(self.data)

    def get_column(self, name: Any, convert_to: str | None = None) -> Any:
        """A column's cells, as a list, or an array if ``convert_to`` is ``"numpy"``.

        Raises:
            ValueError: there is no such column.
        """
        place = self.columns.index(name)
        cells = [row[place] for row in self.data]
        if convert_to != "numpy":
            return cells
        import numpy

        return numpy.array(cells)

    def get_dataframe(self) -> Any:
        """A data frame of pandas."""
        import pandas  # type: ignore[import-untyped]

        return pandas.DataFrame(self.data, columns=self.columns)

    def get_index(self) -> list[int]:
        """The rows' numbers."""
        return list(range(len(self.data)))

    def index_ref(self, index: int) -> int:
        """The number of a row.

        Raises:
            IndexError: there is no such row.
        """
        if not 0 <= index < len(self.data):
            raise IndexError(f"no row {index} in a table of {len(self.data)}")
        return index

    def has_been_logged(self) -> bool:
        return self._logged

    def cast(self, col_name: Any, dtype: Any, optional: bool = False) -> Any:
        """Without effect, which is said: cells are logged as text, whatever their type."""
        note("Table.cast", "without effect: cells are logged as text, whatever their type")
        return dtype

    def set_pk(self, col_name: Any) -> None:
        """Without effect, which is said."""
        note("Table.set_pk", "without effect: no tracker-neutral form of keys exists")

    def set_fk(self, col_name: Any, table: Table, table_col: str) -> None:
        """Without effect, which is said."""
        note("Table.set_fk", "without effect: no tracker-neutral form of keys exists")

    def log_to(self, run: ZMQRun, key: str, step: int | None, time: float | None = None) -> None:
        self._logged = True
        rows = [self.columns, [_rule(cells) for cells in self._by_column()]]
        for number, row in enumerate(self.data[:MAX_ROWS]):
            rows.append(list(row))
            for place, cell in enumerate(row):
                if isinstance(cell, Media):  # carried beside the table, whose cell names it
                    name = f"{key}/{number}/{self.columns[place]}"
                    cell.log_to(run, name, step, time)
                    rows[-1][place] = f"{type(cell).__name__} {name}"
        text = "\n".join("| " + " | ".join(map(_cell, row)) + " |" for row in rows)
        if (left := len(self.data) - MAX_ROWS) > 0:
            text += f"\n\n{left} more rows\n"
            lose(run, "Table(rows)", f"rows of a Table beyond the first {MAX_ROWS}")
        run.log_text(f"{key}.md", text, step, time)

    def _by_column(self) -> list[list[Any]]:
        cells = [list(column) for column in zip(*self.data[:MAX_ROWS], strict=True)]
        return cells or [[] for _ in self.columns]


class EvalTable(Table):
    """A :class:`Table`; which columns are inputs, outputs and scores is the text ``KEY.roles``."""

    def __init__(
        self,
        columns: Sequence[Any] | None = None,
        data: Any = None,
        rows: Any = None,
        dataframe: Any = None,
        dtype: Any = None,
        optional: bool | Sequence[bool] = True,
        allow_mixed_types: bool = False,
        log_mode: str | None = "IMMUTABLE",
        *,
        input_columns: Sequence[str] | None = None,
        output_columns: Sequence[str] | None = None,
        score_columns: Sequence[str] | None = None,
        backend: str | None = None,
        unsupported_media_mode: str = "stub",
    ) -> None:
        super().__init__(columns, data, rows, dataframe)
        roles = {"input": input_columns, "output": output_columns, "score": score_columns}
        self.roles = {role: list(names) for role, names in roles.items() if names}

    def log_to(self, run: ZMQRun, key: str, step: int | None, time: float | None = None) -> None:
        super().log_to(run, key, step, time)
        if self.roles:
            text = "; ".join(
                f"{role}: {', '.join(map(str, names))}" for role, names in self.roles.items()
            )
            run.log_text(f"{key}.roles", text, step, time)


class _FileMedia(Media):
    """Video, audio and what else W&B shows: carried as a file where it is one."""

    def __init__(self, data_or_path: Any = None, *args: Any, **options: Any) -> None:
        self._path: Path | None = None
        if isinstance(data_or_path, (str, os.PathLike)) and Path(data_or_path).is_file():
            self._path = Path(data_or_path)
        caption = options.get("caption")
        self._caption = str(caption) if caption is not None else None

    def log_to(self, run: ZMQRun, key: str, step: int | None, time: float | None = None) -> None:
        if self._path is None:
            lose(run, type(self).__name__, "it has no tracker-neutral form unless it is a file")
            return
        run.log_artifact(self._path, f"{key}{self._path.suffix}", step)
        if self._caption is not None:
            run.log_text(f"{key}.caption", self._caption, step, time)


class Video(_FileMedia): ...


class Audio(_FileMedia): ...


class Object3D(_FileMedia): ...


class Molecule(_FileMedia): ...


class Classes(Media):
    """Names of classes, for overlays; logged by itself it is text."""

    def __init__(self, class_set: Sequence[Mapping[str, Any]]) -> None:
        self.class_set = list(class_set)

    def log_to(self, run: ZMQRun, key: str, step: int | None, time: float | None = None) -> None:
        run.log_text(key, str(self.class_set), step, time)


class Plotly(Media):
    """A plotly figure, as its HTML; a matplotlib figure, as an image."""

    def __init__(self, val: Any) -> None:
        self.figure = val

    @classmethod
    def make_plot_media(cls, val: Any) -> Media:
        return cls(val)

    def log_to(self, run: ZMQRun, key: str, step: int | None, time: float | None = None) -> None:
        if hasattr(self.figure, "to_html"):
            Html(self.figure.to_html(), data_is_not_path=True).log_to(run, key, step, time)
        else:
            run.log_image(key, self.figure, step, time)


class _Uncarried(Media):
    """What only W&B's own page can show: counted, and said once."""

    def __init__(self, *args: Any, **options: Any) -> None: ...

    def log_to(self, run: ZMQRun, key: str, step: int | None, time: float | None = None) -> None:
        lose(run, type(self).__name__)


class Graph(_Uncarried): ...


class JoinedTable(_Uncarried): ...


class box3d(_Uncarried): ...


def _pixels(data: Any) -> tuple[Any, str | None]:
    """What an Image was given, and the meaning of its axes, as W&B reads it."""
    if not is_array(data) or hasattr(data, "savefig"):
        return data, None
    layout = "CHW" if hasattr(data, "detach") and len(data.shape) == 3 else None
    host = to_host(data)
    if len(data.shape) == 1 and is_array(host) and host.size in (1, 3, 4):
        host = host.reshape(-1, 1)  # as Pillow takes it
    if is_array(host) and host.dtype.kind == "f" and host.size and host.max() > 1:
        return host.clip(0, 255).astype("uint8"), layout
    return host, layout


def _rule(cells: list[Any]) -> str:
    """A column's part of the line below the head: it stands at the right if it has numbers only.

    W&B's adapter makes a table of it again, and tells numbers from text by that.
    """
    numbers = all(is_number(cell) or cell is None for cell in cells)
    return "---:" if numbers and any(cell is not None for cell in cells) else "---"


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", "<br>")
