"""TensorBoard: event files in ``LOGDIR/EXPERIMENT/RUN/SITE/``, or as ``path`` has it.

The files are written here and not by a SummaryWriter: each event has the writer's own
wall time and step, and what was in doubt after a crash can be cut. A file that was cut
stays as it is, and the run goes on in a new one, because a TensorBoard that is reading
must not see a file shrink and then grow. The new one has a greater name, which makes it
the next that TensorBoard reads, whatever the clock says.

A file begins with the version ``brain.Event:2`` and holds no session log: with both,
TensorBoard's own reader keeps steps that repeat or go back. Its fast data server, the
default where it is installed, does not show them: start it with ``--load_fast=false``.

Lines of one chart (:class:`zmqtrack.records.LineKey`) stand in folders of their own below the
run's, ``CHART_LINE``, under the one tag ``CHART``: TensorBoard draws them into one chart. Trials
in a run (:class:`zmqtrack.records.TrialKey`) have such folders too, with their own parameters.

Of a run's parameters the HPARAMS tab believes the first summary that it reads. So they
stand in a file of their own that sorts before the others and is replaced when they change.
"""

from __future__ import annotations

import json
import re
import struct
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from io import BytesIO
from math import isfinite
from operator import itemgetter
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from zmqtrack.records import LineKey, PairKey, Record, RunKey
from zmqtrack.wire import Batch

from .base import Adapter, Context, Options, Refused, own_entry, safe_name
from .ledger import Ledger, disk, make_folder, replace_file
from .probe import folder_to_write

__all__ = ["TensorBoardAdapter"]

#: Event files that are remembered; a run that comes back later begins another one.
MAX_FILES = 10_000
#: Folders of lines and trials below a run's; what is beyond stands among the run's own.
MAX_FOLDERS = 1000
#: Parameters of a run in the HPARAMS tab, and characters of each; the text has all.
MAX_HPARAMS = 1000
MAX_HPARAM = 1000

PREFIX = "events.out.tfevents."
HPARAMS_FILE = f"{PREFIX}0000000000.zmqtrack-hparams"

#: TensorBoard has no other kind of number for a scalar.
FLOAT32_MAX = 3.4028234663852886e38

#: Channels of an image, by Pillow's name of its mode; TensorBoard's "colorspace".
_CHANNELS = {"1": 1, "L": 1, "I": 1, "I;16": 1, "F": 1, "LA": 2, "RGBA": 4, "CMYK": 4}

_KEY = itemgetter(0)
#: A name of the run key in ``path``.
_NAME = re.compile(r"\{(experiment|run|site)\}")


class TensorBoardOptions(Options):
    logdir: Path = Field(
        description="The folder, in which it makes EXPERIMENT/RUN/SITE with event files."
    )
    path: str = Field(
        default="{experiment}/{run}/{site}",
        description="Where below logdir the event files of a run at a site stand, say "
        "`{site}/{experiment}/run_{run}`: folders, in each of them one of the three names at "
        "most, and all three somewhere.",
    )

    @field_validator("path")
    @classmethod
    def _names_each_run(cls, path: str) -> str:
        """What two runs share they would mix in."""
        parts = path.split("/")
        if (
            sorted(_NAME.findall(path)) != sorted(RunKey._fields)
            or any(len(_NAME.findall(part)) > 1 or not part for part in parts)
            or set(_NAME.sub("", path)) & set("{}")
        ):
            raise ValueError(
                "expected folders with {experiment}, {run} and {site} once each, and no two of "
                "them in one folder, for instance {experiment}/{run}/{site}"
            )
        return path


class TensorBoardAdapter(Adapter):
    requires = ("tensorboardX", "crc32c", "PIL")
    extra = "tensorboard"
    Options = TensorBoardOptions
    options: TensorBoardOptions

    def __init__(self, options: TensorBoardOptions, context: Context) -> None:
        super().__init__(options, context)
        self._root = options.logdir.expanduser().absolute()
        self._parts = options.path.split("/")
        self._depth = len(self._root.parts) + len(self._parts)
        self._ledger = Ledger(context.state_dir, context.log)
        self._files: OrderedDict[tuple[RunKey, str], Path] = OrderedDict()

    def open(self, note: bytes) -> None:
        import tensorboardX.proto.event_pb2  # noqa: F401 -- takes seconds, so not on the way

        self._files.clear()
        self._ledger.open(note)

    def deliver(self, batches: Sequence[Batch]) -> None:
        params: dict[Path, list[Record]] = {}
        pieces: dict[Path, bytearray] = {}
        partly: Counter[str] = Counter()
        try:
            for batch in batches:
                for file, records in self._sort(batch, partly):
                    if file not in pieces:
                        pieces[file] = bytearray() if file.exists() else _header(records[0].time)
                    pieces[file] += _events(batch.type, records, partly)
                    if batch.type == "param":
                        params.setdefault(file.parent, []).extend(records)
                if batch.type == "run" and any(record.key == "end" for record in batch):
                    self._end(batch.run)
            for folder, records in params.items():
                # A trial has ended when it is told; a run tells its end by itself.
                _announce(folder, records, partly, ended=len(folder.parts) > self._depth)
            self._ledger.append(pieces)
        except BaseException:
            self._files.clear()  # what was cut is never appended to
            raise
        for reason, n in partly.items():
            self.context.count(reason, n)
        while len(self._files) > MAX_FILES:
            self._files.popitem(last=False)

    def probe(self, timeout: float) -> str:
        return folder_to_write(self._root, "logdir")

    def note(self) -> bytes:
        return self._ledger.note()

    def close(self) -> None:
        self._ledger.close()

    def _folder(self, run: RunKey) -> Path:
        """The run's folder, made if need be."""
        folder = self._root
        with disk(folder):
            make_folder(folder)
            for part in self._parts:
                name = _NAME.sub(lambda found: getattr(run, found[1]), part)
                folder /= own_entry(folder, name, make_folder, spell=_no_file)
        return folder

    def _sort(self, batch: Batch, partly: Counter[str]) -> Iterator[tuple[Path, Sequence[Record]]]:
        """The records of a batch by the file that they belong into: nearly always one."""
        records = batch.records
        if batch.type in ("metric", "param") and set(map(type, map(_KEY, records))) != {str}:
            pairs: dict[str, list[Record]] = {}
            for record in records:
                if isinstance(record.key, PairKey):
                    pairs.setdefault(_entry(record.key), []).append(record)
            records = [record for record in records if not isinstance(record.key, PairKey)]
            for entry, placed in pairs.items():
                if self._has_room(batch.run, entry):
                    named = [record._replace(key=_tag(record.key)) for record in placed]
                    yield self._file(batch.run, entry), named
                else:
                    partly[f"record of a line or trial beyond {MAX_FOLDERS} in a run"] += len(
                        placed
                    )
                    records += [record._replace(key=str(record.key)) for record in placed]
        if records:
            yield self._file(batch.run), records

    def _file(self, run: RunKey, entry: str = "") -> Path:
        """The file in which a run goes on, or what has a folder below its own; else a new one."""
        known = run, entry
        if known not in self._files:
            folder = self._folder(run)
            if entry:
                with disk(folder):
                    folder /= own_entry(folder, entry, make_folder, spell=_no_file)
            names = (path.name.split(".")[3] for path in folder.glob(f"{PREFIX}*"))
            last = max((int(name) for name in names if name.isdecimal()), default=0)
            number = max(int(time.time()), last + 1)
            self._files[known] = folder / f"{PREFIX}{number:010d}.zmqtrack"
        self._files.move_to_end(known)
        return self._files[known]

    def _has_room(self, run: RunKey, entry: str) -> bool:
        """Whether there may be such a folder below a run's: it is there, or there are few.

        The names come from a site, and there is no end to them.
        """
        if (run, entry) in self._files:
            return True
        folder = self._folder(run)
        if (folder / _no_file(safe_name(entry))).is_dir():
            return True
        with disk(folder):
            return sum(path.is_dir() for path in folder.iterdir()) < MAX_FOLDERS

    def _end(self, run: RunKey) -> None:
        for known in [known for known in self._files if known[0] == run]:
            del self._files[known]


def _entry(key: PairKey) -> str:
    """The name of the folder for it, as SummaryWriters make it."""
    return f"{key.first.replace('/', '_')}_{key.second}" if isinstance(key, LineKey) else key.first


def _tag(key: str) -> str:
    """Its tag there."""
    assert isinstance(key, PairKey)
    return key.first if isinstance(key, LineKey) else key.second


def _no_file(entry: str) -> str:
    """TensorBoard takes a folder for an event file if this is in its name."""
    return entry.replace("tfevents", "%74fevents")


# --- records → events --------------------------------------------------------------------


def _events(data_type: str, records: Sequence[Record], partly: Counter[str]) -> bytes:
    """Records as a piece of an event file."""
    from tensorboardX.proto.event_pb2 import Event

    frames = []
    key = ""
    try:
        if data_type == "metric":
            event = Event()  # one for all: the speed of this adapter
            scalar = event.summary.value.add()
            for key, value, step, wall_time in records:
                if abs(value) > FLOAT32_MAX and isfinite(value):
                    partly["metric beyond float32's range, shown as infinite"] += 1
                scalar.tag, scalar.simple_value = key, value
                event.step, event.wall_time = step or 0, wall_time
                frames.append(_frame(event.SerializeToString()))
        else:
            for record in records:
                key = record.key
                event = Event(wall_time=record.time, step=record.step or 0)
                event.summary.value.extend(_values(data_type, record, partly))
                frames.append(_frame(event.SerializeToString()))
    except (TypeError, ValueError, OverflowError) as error:
        raise Refused(f"TensorBoard cannot hold {data_type} {key!r:.80}: {error}") from error
    return b"".join(frames)


def _values(data_type: str, record: Record, partly: Counter[str]) -> list[Any]:
    """A record as the summary values that show it."""
    key, value = record.key, record.value
    match data_type:
        case "text":
            return [_text(f"{key}/text_summary", value)]  # as SummaryWriters call it
        case "image":
            return [_image(key, value, partly)]
        case "histogram":
            return [_histogram(key, value)]
        case "artifact":
            return [_text(f"artifact/{key}", f"{key}, {value.stat().st_size} bytes")]
        case "log":
            # Markdown would run the lines together; four blanks keep them as they are.
            return [_text(f"log/{key}", "".join(f"    {x}" for x in value.splitlines(True)))]
        case "run" if key == "end":
            return [_text("run/end", _show(value)), _session_end(value, record.time)]
    return [_text(f"{data_type}/{key}", _show(value))]


def _text(tag: str, text: str) -> Any:
    from tensorboardX.proto.summary_pb2 import Summary
    from tensorboardX.proto.types_pb2 import DT_STRING

    tensor = {"dtype": DT_STRING, "string_val": [text.encode()]}
    tensor["tensor_shape"] = {"dim": [{"size": 1}]}
    return Summary.Value(tag=tag, metadata=_plugin("text", b""), tensor=tensor)


def _image(tag: str, data: bytes, partly: Counter[str]) -> Any:
    from PIL import Image
    from tensorboardX.proto.summary_pb2 import Summary

    try:
        with Image.open(BytesIO(data)) as image:
            (width, height), channels = image.size, _CHANNELS.get(image.mode, 3)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        partly["image that cannot be read, shown as text"] += 1
        return _text(tag, f"an image of {len(data)} bytes that cannot be read: {error}")
    shown = Summary.Image(
        height=height, width=width, colorspace=channels, encoded_image_string=data
    )
    return Summary.Value(tag=tag, image=shown)


def _histogram(tag: str, value: dict[str, Any]) -> Any:
    from tensorboardX.proto.summary_pb2 import HistogramProto, Summary

    counts, edges = value["counts"], value["edges"]
    histogram = HistogramProto(
        min=value.get("min", edges[0]),
        max=value.get("max", edges[-1]),
        num=value.get("num", sum(counts)),
        sum=value.get("sum", 0),
        sum_squares=value.get("sum_squares", 0),
        bucket_limit=edges[1:],  # right edges; the first left one is min
        bucket=counts,
    )
    return Summary.Value(tag=tag, histo=histogram)


def _show(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, default=repr)
    except TypeError:  # a map whose keys JSON does not have
        return repr(value)


# --- hparams -----------------------------------------------------------------------------


def _announce(folder: Path, params: Sequence[Record], partly: Counter[str], *, ended: bool) -> None:
    """Add parameters to those that the HPARAMS tab shows of a run, or of a trial in it."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    path = folder / HPARAMS_FILE
    data = HParamsPluginData()
    with disk(path):
        known = path.read_bytes() if path.exists() else b""
    for frame in _unframe(known):
        for value in Event.FromString(frame).summary.value[:1]:
            data.ParseFromString(value.metadata.plugin_data.content)
    info = data.session_start_info
    info.start_time_secs = info.start_time_secs or params[0].time
    for key, value, _, _ in params:
        if key not in info.hparams and len(info.hparams) >= MAX_HPARAMS:
            partly[f"param beyond {MAX_HPARAMS} in a run, shown as text only"] += 1
        elif isinstance(value, bool):
            info.hparams[key].bool_value = value
        elif isinstance(value, (int, float)) and isfinite(value):
            info.hparams[key].number_value = value
        else:  # JSON, and so the HPARAMS tab, has no NaN
            info.hparams[key].string_value = _show(value)[:MAX_HPARAM]
    event = Event(wall_time=info.start_time_secs)
    event.summary.value.add(
        tag="_hparams_/session_start_info",
        metadata=_plugin("hparams", data.SerializeToString(deterministic=True)),
    )
    if ended:
        event.summary.value.append(_session_end("finished", params[-1].time))
    content = bytes(_header(event.wall_time)) + _frame(event.SerializeToString())
    if content != known:
        with disk(path):
            replace_file(path, [content], part=folder / ".hparams.part")


def _session_end(status: str, wall_time: float) -> Any:
    from tensorboardX.proto.api_pb2 import STATUS_FAILURE, STATUS_SUCCESS, STATUS_UNKNOWN
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData
    from tensorboardX.proto.summary_pb2 import Summary

    data = HParamsPluginData()
    known = {"finished": STATUS_SUCCESS, "left": STATUS_UNKNOWN}
    data.session_end_info.status = known.get(status, STATUS_FAILURE)
    data.session_end_info.end_time_secs = wall_time
    metadata = _plugin("hparams", data.SerializeToString())
    return Summary.Value(tag="_hparams_/session_end_info", metadata=metadata)


def _plugin(name: str, content: bytes) -> Any:
    from tensorboardX.proto.summary_pb2 import SummaryMetadata

    return SummaryMetadata(plugin_data={"plugin_name": name, "content": content})


# --- events → bytes ----------------------------------------------------------------------
#
#      ┌──────────────┬──────────────┬────────────┬───────────┐
#      │ length       │ its checksum │ an Event   │ checksum  │   a TFRecord;
#      │ 8 bytes      │ 4 bytes      │            │ 4 bytes   │   little-endian
#      └──────────────┴──────────────┴────────────┴───────────┘


def _header(wall_time: float) -> bytearray:
    """What an event file begins with."""
    from tensorboardX.proto.event_pb2 import Event

    event = Event(wall_time=wall_time, file_version="brain.Event:2")
    return bytearray(_frame(event.SerializeToString()))


def _frame(data: bytes) -> bytes:
    return b"".join((_length(len(data)), data, _checksum(data)))


def _unframe(frames: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(frames):
        (size,) = struct.unpack_from("<Q", frames, at)
        yield frames[at + 12 : at + 12 + size]
        at += 16 + size


@lru_cache(maxsize=1024)
def _length(size: int) -> bytes:
    length = struct.pack("<Q", size)
    return length + _checksum(length)


def _checksum(data: bytes) -> bytes:
    from crc32c import crc32c  # a look-up in sys.modules, next to nothing beside the rest

    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
