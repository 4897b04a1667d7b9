"""Weights & Biases: one W&B run per site, its group the run; many in this one process.

What becomes what (``zmqtrack/…`` is ours; a user's name of that kind gets ``user/`` before it):

========= ====================================================================================
metric    a history row; columns ``zmqtrack/step`` (the x axis: steps may repeat and go back),
          ``_timestamp`` (W&B's own column, with the writer's time), ``zmqtrack/id``. Metrics
          of one step and time that come together share a row. ``summary/KEY`` without a step
          sets the summary, and is in the column ``zmqtrack/summary``
text      Html: as it is where the key ends in ``.html``, else escaped in ``<pre>``. Where it was
          logged in a row: a plain string; but ``KEY.html`` is Html, ``KEY.md`` that is a table
          a Table, ``KEY.json`` the value itself, all under ``KEY``
image     Image, the writer's bytes; in a format that W&B does not show: PNG; no image: artifact.
          ``KEY.0``, ``KEY.1`` … of a row are a list under ``KEY``
histogram Histogram; bins are merged until W&B's 512 hold them
artifact  a file Artifact ``RUNID-KEY`` whose metadata tells key, step, time and run
log       the Logs tab; a row ``zmqtrack/log`` notes the key
param     config (the last value; W&B's JSON has no NaN and no bytes: those become text)
tag       config ``tag.KEY``; without a value also a W&B tag, where W&B takes it (64 long).
          ``tags``, ``notes``, ``display_name`` and, as long as the run is not open, ``job_type``
          set W&B's own; ``define/PATTERN`` defines a metric, ``summary/KEY`` sets the summary
run       config ``zmqtrack``; at the end a row ``zmqtrack/end`` and an exit code (that of the
          tag ``exit_code``, of a failed run)
========= ====================================================================================

What a tool that logs in rows logged in one call is one row, its images and texts too. Records of
a row come in several batches; where a delivery ends between them, or the writer may still add to
the row, the row waits in ``DIR/zmqtrack/ID.json`` for the next one, or for the run's end. The
``_step`` of such rows is the writer's, as long as it goes up.

Confirmed is what has been read back from the run's ``.wandb`` file (its transaction log, kept
online too) and synced to disk; wandb alone would flush it now and then, and never sync it.
The rows in that file are also how a delivery in doubt is recognised: ``zmqtrack/id`` is
``STREAM/SEQ/PLACE+COUNT@OFFSET``, where the row's records have their place in their batch (one
that has records of several batches: ``SEQ/PLACE+COUNT,SEQ/PLACE+COUNT``). Online, wandb
uploads behind that confirmation; what a crash of this machine keeps it from uploading,
``wandb sync`` sends from the run's folder.

A run that goes on after its end, or after this process, is opened again under the same id: W&B
makes one more folder, whose ``_step`` goes on where the last one ended, and ``wandb sync`` joins
them in order of their start. What W&B would forget then stands in ``DIR/zmqtrack/ID.json``.
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
import re
import signal
import tempfile
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from zmqtrack.records import Record, RunKey
from zmqtrack.rows import DEFINE
from zmqtrack.wire import Batch

from .base import Adapter, Blocked, Options, TrackerError, Unavailable
from .patterns import Pattern, filled
from .probe import folder_to_write
from .wandb_rows import Row, Rows
from .wandb_run import FLUSH_INTERVAL, Run
from .wandb_values import as_logged, page

__all__ = ["WandBAdapter"]

#: W&B's limits: bins of a histogram, characters of a tag and of a project's name.
MAX_BINS, MAX_TAG, MAX_PROJECT, MAX_NAME = 512, 64, 128, 128

EXIT_CODES = {"finished": 0, "failed": 1, "killed": 255, "left": 255}
#: Image formats that W&B shows; the file is kept as it is.
FORMATS = {"PNG": ".png", "JPEG": ".jpg", "GIF": ".gif", "BMP": ".bmp"}

#: Tags that W&B has a place of its own for.
_OWN = ("tags", "notes", "display_name", "job_type")

_RESERVED = re.compile(r"(user/)*(_|zmqtrack($|/)|tag\.)")


Label = Annotated[str, Field(min_length=1, max_length=MAX_TAG)]


class WandBOptions(Options):
    project: Pattern | None = Field(
        None,
        description="The project of all runs; a pattern, as `name`. Default: the name of each "
        "run's experiment.",
    )
    entity: str | None = Field(
        None, description="The user or team that the project is of. Default: wandb's own."
    )
    name: Pattern = Field(
        "{site}",
        description="What each run is called: a pattern with {experiment}, {run}, {site} and "
        "{date} (of its first record, in UTC), say `{run}-{site}`. A writer that names its run "
        "comes before it.",
    )
    group: Pattern = Field("{run}", description="What groups runs; a pattern, as `name`.")
    job_type: str | None = Field(
        None, description="W&B's job type, where the writer tells none. Default: none."
    )
    notes: str | None = Field(
        None, description="Notes on each run, where the writer tells none. Default: none."
    )
    tags: list[Label] = Field([], description="W&B tags of each run, beside the writer's own.")
    config: dict[str, Any] = Field(
        {}, description="Items of each run's config; the writer's parameters come before them."
    )
    mode: Literal["online", "offline"] | None = Field(
        None,
        description="Whether runs are sent, or kept in files for `wandb sync`. The key and the "
        "server are read from wandb's own places (WANDB_API_KEY, WANDB_BASE_URL, netrc). Default: "
        "WANDB_MODE of the environment, else online.",
    )
    dir: Path = Field(Path(), description="The folder, in which wandb makes its folder wandb.")
    max_open_runs: int = Field(
        100,
        ge=1,
        description="Runs held open at once; one more closes that which was used longest ago.",
    )


class WandBAdapter(Adapter):
    requires = ("wandb",)
    extra = "wandb"
    Options = WandBOptions
    options: WandBOptions

    def open(self, note: bytes) -> None:
        import wandb

        if "x_transaction_log_flush_interval" not in wandb.Settings.model_fields:
            raise Blocked(f"wandb {wandb.__version__} is too old: pip install 'wandb>=0.31'")
        self._runs: OrderedDict[RunKey, Run] = OrderedDict()
        self._core: Any = None
        self._end_orphan()
        self._dir = self.options.dir.resolve()
        self._mode: Literal["online", "offline"] = "offline" if self._offline() else "online"
        try:
            (self._dir / "zmqtrack").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Blocked(f"{self._dir}: {error.strerror}") from error
        logging.getLogger("wandb").setLevel(logging.WARNING)
        # Else an artifact's files wait for their upload in the user's home.
        os.environ.setdefault("WANDB_DATA_DIR", str(self._dir / "zmqtrack"))

    def _offline(self) -> bool:
        return (self.options.mode or os.environ.get("WANDB_MODE")) in ("offline", "dryrun")

    def deliver(self, batches: Sequence[Batch]) -> None:
        try:
            for batch in batches:
                self._apply(batch)
            for run in list(self._runs.values()):
                ended = run.memo["exit"] is not None
                if ended and run.rows:  # late records of an ended run: nobody will add to them
                    self._publish(run, run.rows.take())
                if run.changed:
                    run.open(self._init)
                run.settle()
                if run.wandb and ended:
                    run.finish()
        except TrackerError:
            raise
        except Exception as error:
            # wandb-core died, or may as well have: begin anew from what is on disk.
            self._abandon()
            raise Unavailable(f"wandb: {type(error).__name__}: {error}") from error

    def probe(self, timeout: float) -> str:
        folder = folder_to_write(self.options.dir.resolve(), "dir")
        if self._offline():
            return f"offline: {folder}; `wandb sync` sends it"
        from wandb.sdk import wandb_setup

        settings = wandb_setup.singleton().settings  # from wandb's own places
        base = settings.base_url.rstrip("/")
        if settings.identity_token_file:
            return f"{folder}; {base} not tried: an identity token is used"
        return f"{_probe_server(base, settings.api_key, timeout)}; {folder}"

    def close(self) -> None:
        import wandb

        try:
            for run in self._runs.values():
                run.finish()
            self._runs.clear()
            wandb.teardown()
        except Exception as error:  # noqa: BLE001 -- all is on disk; only ends are missing
            self.context.log.warning("runs not closed: %s", error)
            self._abandon()

    def _abandon(self) -> None:
        import wandb

        self._runs.clear()
        if self._core:
            self._core.kill()  # else it may write later what is about to be written again
            self._core.wait()
        try:
            wandb.teardown(exit_code=1)
        except Exception as error:  # noqa: BLE001 -- the other side of the socket is dead
            self.context.log.debug("wandb-core is gone: %s", error)

    def _note_core(self) -> None:
        """Remember wandb-core's process, also for the one after this."""
        import wandb

        try:
            core = wandb.setup().ensure_service()._proc._process
        except AttributeError:  # another wandb, or the operator's own WANDB_SERVICE
            return
        if core is not self._core:
            self._core = core
            (self.context.state_dir / "core.pid").write_text(str(core.pid))

    def _end_orphan(self) -> None:
        """A wandb-core outlives its killed parent for a second or so, and still writes."""
        try:
            pid = int((self.context.state_dir / "core.pid").read_text())
            while b"wandb-core" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
                time.sleep(0.01)
        except (OSError, ValueError):
            pass  # there is none

    # --- one batch -----------------------------------------------------------------------

    def _apply(self, batch: Batch) -> None:
        run = self._run(batch)
        stream, end = batch.header.stream, (batch.header.seq, batch.first + len(batch))
        if end <= run.done.get(stream, (0, 0)):
            return
        if batch.type in ("param", "tag"):
            self._configure(run, batch)
        elif batch.type == "run":
            for place, record in enumerate(batch):
                if record.key == "start":
                    run.memo["exit"] = run.memo["exit_code"] = None
                    if record.value:  # without facts: it was taken for dead, and goes on
                        facts = {**batch.run._asdict(), "start": _plain(record.value)}
                        run.configure({"zmqtrack": facts})
                elif record.key == "end":
                    self._publish(run, run.rows.take())
                    told = run.memo["exit_code"] if record.value == "failed" else None
                    run.memo["exit"] = told or EXIT_CODES.get(record.value, 1)
                    self._announce(run, batch.part(place, place + 1))
        elif batch.type in ("artifact", "log"):
            self._announce(run, batch)
        else:
            self._log(run, batch)
        run.done[stream] = end

    def _log(self, run: Run, batch: Batch) -> None:
        """Put records into rows, and publish those rows that are whole."""
        rows = run.rows if batch.header.rows else Rows([])
        stream = f"{batch.header.stream.hex()}/{batch.header.seq}/"
        for place, record in enumerate(batch, batch.first):
            name = f"{stream}{place}"
            if name in run.held:
                continue
            run.open(self._init)
            on_axis = bool(run.axes) and run.axes.of(record.key) is not None
            column, value = self._cell(run, batch, record)
            if value is None:
                self._announce(run, batch.part(place - batch.first, place - batch.first + 1))
                continue
            row = rows.find(batch, record.time, column, record.step, on_axis)
            row.add(column, value, record.step, on_axis)
            row.note(batch, place)
            run.held.add(name)
        self._publish(run, rows.take(batch if batch.header.rows else None))

    def _publish(self, run: Run, rows: list[Row]) -> None:
        if rows:
            run.open(self._init)
            run.publish(rows)

    def _cell(self, run: Run, batch: Batch, record: Record) -> tuple[str, Any]:
        """The record's column, and what stands in it; None: W&B cannot show it."""
        column = _column(record.key)
        if batch.type == "metric":
            if record.step is not None or not record.key.startswith("summary/"):
                return column, record.value
            return "zmqtrack/summary", {record.key.removeprefix("summary/"): record.value}
        if batch.type == "text" and batch.header.rows:
            key, media = as_logged(record.key, record.value)
            column = _column(key)
            return column, run.bind(column, media) if hasattr(media, "to_json") else media
        media = getattr(self, f"_{batch.type}")(record.key, record.value)
        return column, None if media is None else run.bind(column, media)

    def _announce(self, run: Run, batch: Batch) -> None:
        """Publish a row for each record, and behind it what the row announces."""
        kind = "end" if batch.type == "run" else batch.type
        kind = kind if kind in ("end", "log") else "artifact"
        stream = f"{batch.header.stream.hex()}/{batch.header.seq}/"
        for place, record in enumerate(batch, batch.first):
            if f"{stream}{place}" in run.held:
                continue
            row = Row(batch.header.stream.hex(), record.time, step=record.step, stepped=True)
            row.columns[f"zmqtrack/{kind}"] = record.value if kind == "end" else record.key
            row.note(batch, place)
            self._publish(run, [row])
            self._announced(run, batch, record)
            run.held.update(row.names())

    def _run(self, batch: Batch) -> Run:
        if batch.run not in self._runs:
            while len(self._runs) >= self.options.max_open_runs:
                self._runs.popitem(last=False)[1].finish()
            self._runs[batch.run] = Run(batch.run, self._dir, batch.header.offset)
            self._runs[batch.run].memo.setdefault("since", _first_time(batch))
        self._runs.move_to_end(batch.run)
        run = self._runs[batch.run]
        if batch.header.offset > run.top:  # beyond all that is in doubt
            run.held.clear()
            run.top = batch.header.offset
        return run

    def _configure(self, run: Run, batch: Batch) -> None:
        prefix = "tag." if batch.type == "tag" else ""
        values, labels = dict[str, Any](), list[str]()
        for record in batch:
            key, value = record.key, record.value
            if prefix and self._is_own(run, key, value):
                continue
            values[prefix + key if prefix else _column(key)] = _plain(value)
            if prefix and value == "" and key not in _OWN and len(key) <= MAX_TAG:
                labels.append(key)
        run.configure(values, labels)

    def _is_own(self, run: Run, key: str, value: str) -> bool:
        """Give a tag the place that W&B has for it; True if it needs no other."""
        if key.startswith(DEFINE):
            try:
                facts = json.loads(value)
            except ValueError:
                return False
            if isinstance(facts, dict):
                run.define(key.removeprefix(DEFINE), facts)
                return True
        elif key == "exit_code" and re.fullmatch(r"-?\d{1,9}", value):
            run.memo["exit_code"] = int(value)
        elif key.startswith("summary/"):
            run.summarise(key.removeprefix("summary/"), value)
        elif key in _OWN:
            run.describe(key, value)
        return False

    def _announced(self, run: Run, batch: Batch, record: Record) -> None:
        if batch.type == "log":
            run.wandb.write_logs(record.value)
            run.handed["output_logger"] += 1
        elif batch.type == "run":
            run.finish()
        elif isinstance(record.value, Path):
            run.artifact(record, record.value)
        else:
            with tempfile.NamedTemporaryFile() as file:
                file.write(record.value)
                file.flush()
                run.artifact(record, Path(file.name))

    def _text(self, key: str, value: str) -> Any:
        return page(key, value)

    def _image(self, key: str, value: bytes) -> Any:
        import wandb
        from PIL import Image

        try:
            with Image.open(io.BytesIO(value)) as image:
                if image.format not in FORMATS:
                    return wandb.Image(image.convert("RGBA"))
                with tempfile.NamedTemporaryFile(
                    dir=self.context.state_dir, suffix=FORMATS[image.format], delete=False
                ) as file:
                    file.write(value)
            media = wandb.Image(file.name)
            media._is_tmp = True  # moved into the run's folder, not copied
            return media
        except Exception as error:  # noqa: BLE001 -- Pillow's decoders raise anything
            self.context.log.debug("image %r: %s", key, error)
            self.context.count("an image that Pillow cannot read: kept as an artifact")
            return None

    def _histogram(self, key: str, value: dict[str, Any]) -> Any:
        import wandb

        counts, edges = value["counts"], value["edges"]
        if len(counts) > MAX_BINS:
            self.context.count(f"a histogram of more than {MAX_BINS} bins: neighbours merged")
            n = math.ceil(len(counts) / MAX_BINS)
            edges = [*edges[:-1:n], edges[-1]]
            counts = [sum(counts[i : i + n]) for i in range(0, len(counts), n)]
        if any(value.get(odd) for odd in ("nan", "inf", "-inf")):
            self.context.count("NaN and infinite values of a histogram: in none of W&B's bins")
        return wandb.Histogram(np_histogram=(counts, edges))

    # --- wandb.init ----------------------------------------------------------------------

    def _init(self, run: Run) -> Any:
        import wandb

        given, told = self.options, run.memo
        project, name, group = (
            filled(pattern, run.key, told["since"])
            for pattern in (given.project or "{experiment}", given.name, given.group)
        )
        try:
            opened = wandb.init(
                project=re.sub(r"[/\\#?%:]", "-", project)[:MAX_PROJECT],
                entity=given.entity,
                mode=self._mode,
                dir=str(self._dir),
                id=run.id,
                name=(told["display_name"] or name)[:MAX_NAME],
                group=group[:MAX_NAME],
                job_type=told["job_type"] or given.job_type,
                notes=told["notes"] or given.notes,
                resume="allow",
                reinit="create_new",
                config={**given.config, "zmqtrack": run.key._asdict(), **told["config"]},
                tags=run.labels(given.tags) or None,
                settings=wandb.Settings(
                    console="off",
                    disable_code=True,
                    disable_git=True,
                    label_disable=True,
                    save_code=False,
                    silent=True,
                    use_dot_wandb=False,
                    x_disable_machine_info=True,
                    x_disable_meta=True,
                    x_disable_stats=True,
                    x_save_requirements=False,
                    x_skip_transaction_log=False,
                    x_transaction_log_flush_interval=FLUSH_INTERVAL,
                ),
            )
        except wandb.errors.UsageError as error:  # no key, a wrong key, a name that W&B refuses
            raise Blocked(f"wandb: {error}") from error
        except (wandb.errors.CommError, TimeoutError) as error:
            denied = isinstance(error, wandb.errors.AuthenticationError) or re.search(
                r"\b40[13]\b|ermission", str(error)
            )
            raise (Blocked if denied else Unavailable)(f"wandb: {error}") from error
        self._note_core()
        return opened


def _probe_server(base: str, key: str | None, timeout: float) -> str:
    """Ask a W&B server who we are; wandb itself would try for minutes."""
    import requests
    from requests.utils import get_netrc_auth

    if key is None:
        key = (get_netrc_auth(base) or (None, None))[1]
    if key is None:
        raise Blocked(
            f"no API key for {base}",
            code="no_credentials",
            advice=f"Write the key of {base}/authorize into a file (chmod 600), and name it in the "
            "YAML: `secrets: {WANDB_API_KEY: {file: PATH}}`; or set `options: {mode: offline}`",
        )
    try:
        answer = requests.post(
            f"{base}/graphql",
            json={"query": "query { viewer { username entity } }"},
            auth=("api", key),
            timeout=timeout,
        )
        viewer = (answer.json().get("data") or {}).get("viewer") if answer.ok else None
    except (requests.JSONDecodeError, AttributeError) as error:
        raise Blocked(
            f"what answers at {base} is no W&B server",
            code="not_wandb",
            advice="Correct WANDB_BASE_URL",
        ) from error
    except requests.RequestException as error:
        raise Unavailable(
            f"no W&B server answers at {base}: {error}",
            advice="Look at the network (a proxy goes into HTTPS_PROXY), or correct WANDB_BASE_URL",
        ) from error
    if answer.status_code in (401, 403) or (answer.ok and viewer is None):
        raise Blocked(
            f"{base} refuses the API key ({answer.status_code})",
            code="tracker_credentials",
            advice=f"Get a valid one at {base}/authorize, and put it where `secrets` of the "
            "adapter names it as WANDB_API_KEY",
        )
    if viewer is None:
        raise Unavailable(f"{base} answers {answer.status_code} {answer.reason}")
    return f"{base} knows us as {viewer.get('username') or viewer.get('entity')}"


def _first_time(batch: Batch) -> float:
    """When the batch's first record was logged; now, where that is no date."""
    when = batch.records[0].time
    return when if 0 < when < 2**32 else time.time()


def _column(key: str) -> str:
    """A user's key as a column or config key that is neither W&B's nor ours."""
    return f"user/{key}" if _RESERVED.match(key) else key


def _plain(value: Any) -> Any:
    """What JSON, and so W&B's config, can hold."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
    return value if isinstance(value, (str, int, float, type(None))) else str(value)
