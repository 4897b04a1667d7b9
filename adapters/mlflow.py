"""MLflow: each site of a job a run in MLflow's experiment, under a parent where there are several.

What a record becomes (PATH: inside the run's artifacts; MS: the writer's time, in ms):

========= ==================================================================================
run       its facts are tags: user, script, source, commit and branch those that MLflow sets
          itself, others ``zmqtrack.FACT``
metric    metric with the writer's time; no step: 0. MLflow knows a point by (key, ms, step,
          value): points that agree in all four are one there, which is counted. It stores
          ±inf as ±1.797e308.
param     param. Its 2nd, 3rd … value: tag ``param.KEY.N``; a value that it had before adds
          nothing. Too long: shortened, the whole at ``params/KEY.txt`` (``KEY.N.txt``).
tag       tag; too long: shortened, the whole at ``tags/KEY.txt``. ``description`` and ``notes``
          are the run's description too; ``parent_run`` puts it below the run of that name
text      a key with an extension and no step is a PATH, and so is what follows ``./`` in one;
          without both ``text/KEY.txt``, where more of it is appended; with a step
          ``text/KEY/STEP-MS-HASH.txt``
image     the same for a PATH, in the format that its extension says; otherwise as ``log_image``
          names it, which MLflow's page reads
histogram ``histograms/KEY/STEP-MS-HASH.json``
artifact  its key is the PATH
log       ``logs/KEY.txt``, appended; every MiB goes on in ``KEY.2.txt``, ``KEY.3.txt`` …
========= ==================================================================================

What MLflow does not take in a key is written ``_xHEX_``, as XML names do (``50%`` is
``50_x0025_``), and so is what would make a path leave its folder, and the whole of a name that
a file system which folds case would take for another; a key over 250 bytes is cut, with a hash
of the whole. Where a file of ours and one of the user's would have the same PATH, the second
to come gets a name with a hash. Everything can be sent again: runs are found by a tag, points
by MLflow's key, files by their name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, zip_longest
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import Field, field_validator

from zmqtrack.records import Record, RunKey
from zmqtrack.wire import Batch

from .base import Adapter, Context, Options, Refused, Unavailable
from .ledger import Ledger, replace_file
from .mlflow_names import (
    EXTENSION,
    as_key,
    as_path,
    cut,
    escape,
    series,
    shorten,
    spelled,
    where_it_is_alone,
)
from .mlflow_runs import ENDED, NESTED, RUNNING, Run, Runs
from .mlflow_store import GONE, connect, probe, sqlite_path, translated
from .patterns import Pattern

__all__ = ["MLflowAdapter"]

#: Most of each kind in one ``log_batch``: MLflow takes 1000 in all, and 1 MB.
MAX_METRICS, METRIC_BYTES = 800, 600_000
MAX_PAIRS, PAIR_BYTES = 100, 180_000
#: An appended file is sent again with each addition; at this size another one begins.
PART_BYTES = 1 << 20
#: Longer side of the small image that MLflow's page shows, in pixels.
PREVIEW = 256
#: Our copy of an appended file is dropped when it had no addition for so long (seconds).
PART_AGE = 7 * 86400
#: Facts about the process that become tags.
MAX_FACTS = 30

_IDENTITY = ("id", "job", "run", "site", "adapter")
#: Facts for which MLflow has tags of its own, which its page shows.
_MLFLOWS = {
    "user": "mlflow.user",
    "script": "mlflow.source.name",
    "source": "mlflow.source.type",
    "commit": "mlflow.source.git.commit",
    "branch": "mlflow.source.git.branch",
}
#: Tags that MLflow's page shows as the run's description.
_DESCRIPTIONS = ("description", "notes")

_IMAGE = re.compile(r"\.(png|jpe?g|gif|webp|bmp|tiff?)", re.IGNORECASE)
#: Folders where we make files of our own, whose names follow from keys alone.
_OURS = re.compile(r"(params|tags|text|logs)/.")


class MLflowOptions(Options):
    tracking_uri: str = Field(
        default_factory=lambda: os.environ.get("MLFLOW_TRACKING_URI", ""),
        validate_default=True,
        description="The tracking server: http://HOST:PORT, a database such as sqlite:///PATH, or "
        "databricks. Default: MLFLOW_TRACKING_URI of the environment.",
    )
    experiment: Pattern = Field(
        "{experiment}",
        description="The experiment of each run: a pattern with {experiment}, {run}, {site} and "
        "{date} (on which the run began, in UTC), say `fl/{experiment}`.",
    )
    run_name: Pattern = Field(
        "{run}",
        description="What the run of a site is called that is alone in its run, and the parent of "
        "several sites' runs; a pattern, as `experiment`.",
    )
    site_run_name: Pattern = Field(
        "{run}/{site}",
        description="What a site's run is called below a parent; a pattern, as `experiment`.",
    )
    experiment_tags: dict[str, str] = Field({}, description="Tags of each experiment.")
    experiment_description: str | None = Field(
        None, description="Description of each experiment, in Markdown. Default: none."
    )
    run_tags: dict[str, Pattern] = Field(
        {}, description="Tags of each run; their values are patterns, as `experiment`."
    )
    description: Pattern | None = Field(
        None,
        description="Description of each run, in Markdown, unless the writer gives one; a pattern, "
        "as `experiment`. Default: none.",
    )
    artifact_location: str | None = Field(
        None,
        description="Where the artifacts of new experiments go. Default: the tracking server's; "
        "with SQLite beside the database.",
    )

    @field_validator("tracking_uri")
    @classmethod
    def _holds_each_once(cls, uri: str) -> str:
        if not uri:
            raise ValueError("give an address, or set MLFLOW_TRACKING_URI")
        if ("://" not in uri and uri != "databricks") or uri.startswith("file:"):
            raise ValueError(
                f"{uri!r} is a folder, where MLflow repeats what is sent again: "
                "use sqlite:///PATH or the address of a server"
            )
        return uri


@dataclass
class _Pending:
    """What one delivery has for one run, apart from files that are sent at once."""

    key: RunKey
    run: Run
    metrics: dict[tuple[str, int, int, str], Any] = field(default_factory=dict)
    params: list[Record] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    appended: dict[str, list[str]] = field(default_factory=dict)


class MLflowAdapter(Adapter):
    requires = ("mlflow",)
    extra = "mlflow"
    Options = MLflowOptions
    options: MLflowOptions

    def __init__(self, options: MLflowOptions, context: Context) -> None:
        super().__init__(options, context)
        self._ledger = Ledger(context.state_dir, context.log)
        self._parts = context.state_dir / "appended"
        self._upload = context.state_dir / "upload"
        self._runs = Runs(options, context)
        self._unsettled: dict[RunKey, None] = {}  # also of a delivery that failed meanwhile
        self._client: Any = None
        self._merged = 0

    def open(self, note: bytes) -> None:
        self._ledger.open(note)
        self._runs.forget()
        self._unsettled.clear()
        shutil.rmtree(self._upload, ignore_errors=True)
        self._upload.mkdir(parents=True)
        for part in self._parts.rglob("*.*"):
            if part.is_file() and time.time() - part.stat().st_mtime > PART_AGE:
                os.truncate(part, 0)
        if (database := sqlite_path(self.options.tracking_uri)) is not None:
            database.parent.mkdir(parents=True, exist_ok=True)
        with self._translated():
            self._client = self._runs.client = connect(self.options.tracking_uri)

    def deliver(self, batches: Sequence[Batch]) -> None:
        groups: dict[RunKey, list[Batch]] = {}
        for batch in batches:
            groups.setdefault(batch.run, []).append(batch)
        appended: dict[Path, bytes] = {}
        self._merged = 0
        with self._translated():
            for key, group in groups.items():
                self._deliver_run(key, group, appended)
            for key in list(self._unsettled):
                self._runs.settle(key)
                del self._unsettled[key]
        if appended:  # last: until here all could be sent again
            self._ledger.append(appended)
        if self._merged:
            self.context.count("mlflow: identical metric point merged", self._merged)

    def probe(self, timeout: float) -> str:
        return probe(self.options.tracking_uri, timeout)

    def note(self) -> bytes:
        return self._ledger.note()

    def close(self) -> None:
        self._ledger.close()

    # --- one run ------------------------------------------------------------------------------

    def _deliver_run(self, key: RunKey, group: list[Batch], appended: dict[Path, bytes]) -> None:
        """Deliver what one run got; its job is to be settled if its status may have changed."""
        starts = [r for batch in group if batch.type == "run" for r in batch if r.key == "start"]
        run = self._runs.get(key, _ms((starts or group[0].records)[0].time))
        pending = _Pending(key, run)
        status, end = run.status, run.end
        for batch in group:
            handle = getattr(self, f"_on_{batch.type}")
            for record in batch:
                ms = _ms(record.time)
                if batch.type == "run" and record.key == "end":
                    if status == RUNNING or ms >= end:
                        status, end = _ended(record), ms
                    continue
                # What was logged before the end may come after it, from another stream.
                if status != RUNNING and ms > end:
                    status = RUNNING
                handle(record, ms, pending)
        self._log_batches(pending)
        for path, texts in pending.appended.items():
            self._append(run, path, texts, appended)
        changed = (status, end) != (run.status, run.end)
        if changed or self._runs.is_new(key) or any(batch.type == "run" for batch in group):
            self._unsettled[key] = None
        if changed:
            self._runs.set_status(run, status, end)

    def _on_run(self, record: Record, ms: int, pending: _Pending) -> None:
        if record.key != "start" or not isinstance(record.value, dict):
            return
        for name, value in list(record.value.items())[:MAX_FACTS]:
            if isinstance(value, (str, int, float)) and name not in _IDENTITY:
                tag = _MLFLOWS.get(name) or as_key(f"zmqtrack.{name}")
                pending.tags[tag] = shorten(str(value), 500)

    def _on_metric(self, record: Record, ms: int, pending: _Pending) -> None:
        from mlflow.entities import Metric

        step = record.step or 0
        if not -(2**63) <= step < 2**63:
            raise Refused(f"metric {record.key!r}: MLflow cannot hold step {step}")
        key, value = as_key(record.key), record.value + 0.0  # -0.0 is 0.0 to a database
        point = (key, ms, step, repr(value))
        self._merged += point in pending.metrics
        pending.metrics[point] = Metric(key, value, ms, step)

    def _on_param(self, record: Record, ms: int, pending: _Pending) -> None:
        pending.params.append(record)

    def _on_tag(self, record: Record, ms: int, pending: _Pending) -> None:
        from mlflow.utils.validation import MAX_TAG_VAL_LENGTH

        short = shorten(record.value, MAX_TAG_VAL_LENGTH)
        if len(record.value) > MAX_TAG_VAL_LENGTH:
            self._put(pending.run, f"tags/{record.key}.txt", record.value.encode(), "tag")
        key = as_key(record.key)
        if key.startswith("zmqtrack.") or key in ("mlflow.runName", "mlflow.parentRunId"):
            key = spelled(key[0]) + key[1:]  # these are ours
        pending.tags.pop(key, None)  # the last value last
        pending.tags[key] = short
        if record.key in _DESCRIPTIONS:
            pending.tags["mlflow.note.content"] = short
        elif record.key == NESTED:
            outer = self._runs.nested_in(pending.key, record.value, ms)
            if outer is not None:
                pending.tags["mlflow.parentRunId"] = outer

    def _on_text(self, record: Record, ms: int, pending: _Pending) -> None:
        suffix = PurePosixPath(record.key).suffix
        is_path = EXTENSION.fullmatch(suffix) is not None
        if record.step is None and record.key.startswith("./"):
            self._put(pending.run, record.key.removeprefix("./") or ".", record.value.encode())
        elif record.step is not None:
            name = series(record, ms, record.value.encode())
            path = f"text/{record.key}/{name}{suffix if is_path else '.txt'}"
            self._put(pending.run, path, record.value.encode(), owner=None)
        elif not is_path:
            pending.appended.setdefault(f"text/{record.key}", []).append(record.value)
        else:
            self._put(pending.run, record.key, record.value.encode())

    def _on_image(self, record: Record, ms: int, pending: _Pending) -> None:
        if record.step is None and _IMAGE.fullmatch(PurePosixPath(record.key).suffix):
            self._put(pending.run, record.key, _as_named(record.key, record.value))
            return
        whole, small = _renditions(record)
        # The names that MlflowClient.log_image makes, but with a UUID that is the content's.
        digest = hashlib.sha256(record.value).hexdigest()
        uuid = "-".join((digest[:8], digest[8:12], digest[12:16], digest[16:20], digest[20:32]))
        key = cut(escape(record.key, r"[^A-Za-z0-9_\-./ ]"), 120).replace("/", "~")
        name = f"images/{key}+step+{record.step or 0}+timestamp+{ms}+{uuid}"
        self._put(pending.run, f"{name}.png", whole)
        self._put(pending.run, f"{name}+compressed.webp", small)
        pending.tags["mlflow.loggedImages"] = "True"

    def _on_histogram(self, record: Record, ms: int, pending: _Pending) -> None:
        whole = {**record.value, "key": record.key, "step": record.step, "time": record.time}
        data = json.dumps(whole, default=str, skipkeys=True).encode()
        self._put(pending.run, f"histograms/{record.key}/{series(record, ms, data)}.json", data)

    def _on_artifact(self, record: Record, ms: int, pending: _Pending) -> None:
        self._put(pending.run, record.key, record.value)

    def _on_log(self, record: Record, ms: int, pending: _Pending) -> None:
        pending.appended.setdefault(f"logs/{record.key}", []).append(record.value)

    # --- metrics, params, tags ----------------------------------------------------------------

    def _log_batches(self, pending: _Pending) -> None:
        from mlflow.entities import Param, RunTag

        params, changes = self._sort_params(pending.run, pending.params)
        tags = {**pending.tags, **changes}
        for batch in zip_longest(
            _chunks(pending.metrics.values(), MAX_METRICS, METRIC_BYTES),
            _chunks([Param(*item) for item in params.items()], MAX_PAIRS, PAIR_BYTES),
            _chunks([RunTag(*item) for item in tags.items()], MAX_PAIRS, PAIR_BYTES),
            fillvalue=(),
        ):
            self._client.log_batch(pending.run.id, *batch, synchronous=True)

    def _sort_params(
        self, run: Run, records: list[Record]
    ) -> tuple[dict[str, str], dict[str, str]]:
        """The params that are new, and the tags for those that have another value already."""
        from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

        params: dict[str, str] = {}
        tags: dict[str, str] = {}
        if not records:
            return params, tags
        there = self._client.get_run(run.id).data
        values: dict[str, list[str]] = {}  # that a param had, the first first
        for record in records:
            key, whole = record.key, str(record.value)
            if key not in values:
                names = (as_key(f"param.{key}.{n}") for n in count(2))
                first = there.params.get(as_key(key))
                values[key] = [] if first is None else [first]
                while values[key] and (later := there.tags.get(next(names))) is not None:
                    values[key].append(later)
            value = shorten(whole, MAX_PARAM_VAL_LENGTH)
            if value in values[key]:
                continue
            values[key].append(value)
            n = len(values[key])
            if len(whole) > MAX_PARAM_VAL_LENGTH:
                path = f"params/{key}{f'.{n}' if n > 1 else ''}.txt"
                self._put(run, path, whole.encode(), f"param {key}")
            if n == 1:
                params[as_key(key)] = value
            else:
                tags[as_key(f"param.{key}.{n}")] = value
        return params, tags

    # --- files --------------------------------------------------------------------------------

    def _put(
        self, run: Run, path: str, content: bytes | Path, owner: str | None = "the user's"
    ) -> None:
        """Make ``content`` the run's artifact at ``path``, or at what that becomes if unsafe.

        ``owner`` is whose path it is, where another one's could be the same.
        """
        if owner and _OURS.match(path):
            path = self._apart(run, path, owner)
        safe = where_it_is_alone(run.folder, PurePosixPath(as_path(path)))
        local = self._upload / safe.name
        local.unlink(missing_ok=True)
        try:
            if isinstance(content, Path):
                local.symlink_to(content.absolute())
            else:
                local.write_bytes(content)
            folder = str(safe.parent) if safe.parent.name else None
            self._client.log_artifact(run.id, str(local), folder)
        except Exception as error:
            if self._is_taken(run.id, safe):  # which a server answers with 500
                raise Refused(f"artifact {str(safe)!r}: a file and a folder of one name") from error
            raise
        finally:
            local.unlink(missing_ok=True)

    def _apart(self, run: Run, path: str, owner: str) -> str:
        """``path``, or another one where it belongs to a record of another kind or key."""
        owners = self._parts / run.id / "owners"
        while True:
            mark = owners / hashlib.sha256(path.encode()).hexdigest()[:32]
            if not mark.exists():
                replace_file(mark, [owner.encode()], part=owners / "part")
            if mark.read_bytes() == owner.encode():
                return path
            digest = hashlib.sha256(f"{owner}\0{path}".encode()).hexdigest()[:32]
            path = f"{path.removesuffix('.txt')}-{digest}.txt"

    def _is_taken(self, run_id: str, path: PurePosixPath) -> bool:
        """Whether there is a folder where the file should be, or a file where its folder is."""
        for part in (path, *path.parents[:-1]):
            folder = str(part.parent) if part.parent.name else None
            for entry in self._client.list_artifacts(run_id, folder):
                if entry.path == str(part) and entry.is_dir == (part == path):
                    return True
        return False

    def _append(self, run: Run, path: str, texts: list[str], appended: dict[Path, bytes]) -> None:
        """Send the file again with ``texts`` at its end; MLflow cannot append.

        Our own copy gets them when the whole delivery has succeeded, by way of ``appended``.
        """
        folder = self._parts / run.id / hashlib.sha256(path.encode()).hexdigest()[:32]
        numbers = sorted(int(part.stem) for part in folder.glob("*.txt"))
        number = numbers[-1] if numbers else 1
        before = (folder / f"{number}.txt").read_bytes() if numbers else b""
        if numbers and not 0 < len(before) < PART_BYTES:
            number, before = number + 1, b""
        for finished in numbers[-4:-2]:  # no longer needed; it marks the number as taken
            os.truncate(folder / f"{finished}.txt", 0)
        addition = bytearray()
        for text in texts:
            last = (addition or before)[-1:]
            addition += (b"\n" if last not in (b"", b"\n") else b"") + text.encode()
        part = f"{path}{f'.{number}' if number > 1 else ''}.txt"
        self._put(run, part, before + addition, f"appended {path}")
        appended[folder / f"{number}.txt"] = bytes(addition)

    # --- errors -------------------------------------------------------------------------------

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            with translated():
                yield
        except Unavailable as error:
            if error.code == GONE:
                self._runs.forget()  # the next attempt makes it anew
            raise


def _as_named(key: str, data: bytes) -> bytes:
    """An image in the format that its name's extension says, where Pillow can make it so."""
    from io import BytesIO

    from PIL import Image

    wanted = Image.registered_extensions().get(PurePosixPath(key).suffix.lower())
    made = BytesIO()
    try:
        with Image.open(BytesIO(data)) as image:
            if wanted in (None, image.format):
                return data
            image.save(made, wanted)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return data  # unreadable, or JPEG has no such pixels
    return made.getvalue()


def _renditions(record: Record) -> tuple[bytes, bytes]:
    """The image as PNG, and as the small WebP that MLflow's page shows."""
    from io import BytesIO

    from PIL import Image

    whole, small = BytesIO(), BytesIO()
    try:
        with Image.open(BytesIO(record.value)) as image:
            image.load()
            if image.format == "PNG":
                whole.write(record.value)
            else:
                image.save(whole, "PNG")
            reduced = image.convert("RGBA" if "A" in image.getbands() else "RGB")
            scale = PREVIEW / max(image.size)  # smaller ones are enlarged, as MLflow does
            reduced = reduced.resize(
                (
                    max(1, int(image.width * scale)),
                    max(1, int(image.height * scale)),
                )
            )
            reduced.save(small, "WEBP")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Refused(f"image {record.key!r} cannot be read: {error}") from error
    return whole.getvalue(), small.getvalue()


def _ms(seconds: float) -> int:
    try:
        ms = round(seconds * 1000)
    except (OverflowError, ValueError):
        ms = -1
    if not 0 <= ms < 2**63:
        raise Refused(f"MLflow cannot hold the time {seconds}")
    return ms


def _ended(record: Record) -> str:
    try:
        return ENDED[record.value]
    except (KeyError, TypeError):
        raise Refused(f"a run cannot end as {record.value!r:.80}") from None


def _chunks(items: Iterable[Any], most: int, most_bytes: int) -> Iterator[list[Any]]:
    """The items in lists that are short and, as JSON, small enough for one request."""
    chunk: list[Any] = []
    size = 0
    for item in items:
        bytes_ = 250 + len(json.dumps(item.key)) + len(json.dumps(item.value))
        if chunk and (len(chunk) == most or size + bytes_ > most_bytes):
            yield chunk
            chunk, size = [], 0
        chunk.append(item)
        size += bytes_
    if chunk:
        yield chunk
