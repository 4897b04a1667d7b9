"""W&B's syntax: its module of functions, and ``WandBWriter`` as NVFLARE has it.

::

    import zmqtrack.writers.wandb as wandb           # the only line that changes

    run = wandb.init(project="mnist", group="fedavg", name="site-1", config={"lr": 0.1})
    wandb.log({"loss": loss, "samples": [wandb.Image(x) for x in batch]})
    wandb.finish()

or, one object and no global state, ``from zmqtrack.writers.wandb import WandBWriter``: it takes the
arguments of ``wandb.init`` and is what that returns.

**Where it goes.** ``project`` is the experiment, ``group`` the run, ``name`` the site: W&B's habit
for many workers of one job. Without ``group`` the run is called by ``id`` or else by date and time;
without ``name`` the site is ``id`` or else the host's name, and with ``group`` the process's number
after it, so that workers stay apart. ``ZMQTRACK_EXPERIMENT``, ``ZMQTRACK_RUN`` and
``ZMQTRACK_SITE``, which a federation's launcher sets, come before those (a name that lost its
place is kept as the tag ``project``, ``group`` or ``name``): all sites run one script and yet must
be told apart and found in one run. The arguments ``experiment=``, ``run=`` and ``site=`` of
``WandBWriter`` come before both. ``WANDB_PROJECT``, ``WANDB_RUN_GROUP``, ``WANDB_NAME`` and
``WANDB_RUN_ID`` stand in for arguments that were not given. ``mode="disabled"``, also by
``WANDB_MODE`` or ``WANDB_DISABLED``, logs nothing. Each ``init`` of the process is another run, as
in W&B, unless it gives the same ``id``; under ``ZMQTRACK_RUN=job`` they are ``job``, ``job.NAME`` …

**What a row becomes.** Its own step counts up as in W&B: ``log(row)`` ends the row,
``log(row, commit=False)`` leaves it open, ``log(row, step=n)`` goes on at ``n``. Each value is a
record of that step, logged at once:

=========================== ======================================================================
number                      metric
string                      text
nested dictionary           its values under ``KEY.INNER``, as W&B's page shows them
Image                       image; its caption is the text ``KEY.caption``
several Images              images ``KEY.0``, ``KEY.1`` …; likewise any list of W&B's objects
matplotlib figure, PIL      image
Histogram, array, tensor    histogram (an array of one number: metric)
Html, plotly figure         text ``KEY.html``
Table, data frame           text ``KEY.md``, a Markdown table
other list                  text: its JSON
Video, Audio, … of a file   artifact ``KEY.EXTENSION``; others are counted as not carried
None                        counted as not carried
=========================== ======================================================================

``config``: each item is a param. ``summary``: W&B shows it as the run's last values. A number that
is assigned is the metric ``summary/KEY`` without a step (every tracker shows a metric's last value
and sorts runs by it, and the prefix keeps it from adding a point to the curve of that name); all
else is the tag ``summary/KEY``. ``tags``, ``notes``, ``job_type`` and ``entity`` are tags.

**What differs.** Where W&B drops a row whose step goes back, it is kept; where a key is logged
twice in one row, both values are. ``define_metric``, ``watch`` and the like have no effect and
say so.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any

from ..arrays import describe, is_array
from ..errors import ZMQTrackError
from ..records import as_number
from ..run import Run as ZMQRun
from ..run import _as_step, _plain
from ._common import begin, disabled_run, lose, note
from .wandb_media import (
    Artifact,
    Audio,
    Histogram,
    Html,
    Image,
    Media,
    Molecule,
    Object3D,
    Table,
    Video,
)

__all__ = [
    "Artifact",
    "Audio",
    "Config",
    "Error",
    "Histogram",
    "Html",
    "Image",
    "Molecule",
    "Object3D",
    "Run",
    "Summary",
    "Table",
    "UsageError",
    "Video",
    "WandBWriter",
]


class Error(ZMQTrackError):
    """Stands for ``wandb.Error``."""


class UsageError(Error):
    """Stands for ``wandb.UsageError``."""


CommError = Error


# --- config and summary ---------------------------------------------------------------------------


class _Items(MutableMapping[str, Any]):
    """A dictionary whose items are attributes too."""

    def __init__(self) -> None:
        object.__setattr__(self, "_items", {})

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __setitem__(self, key: str, value: Any) -> None:
        raise NotImplementedError

    def __delitem__(self, key: str) -> None:
        del self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __getattr__(self, key: str) -> Any:
        try:
            return self._items[key]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no {key!r}") from None

    def __setattr__(self, key: str, value: Any) -> None:
        self[key] = value

    def __repr__(self) -> str:
        return repr(self._items)


class Config(_Items):
    """A run's configuration; each item that is set is logged as a param.

    Setting another value logs it too, where W&B asks for ``allow_val_change``.
    """

    def __init__(self, run: ZMQRun) -> None:
        super().__init__()
        object.__setattr__(self, "_run", run)

    def __setitem__(self, key: str, value: Any) -> None:
        key = key.strip("-")
        value = _plain(value, fallback=str)
        if key not in self._items or self._items[key] != value:
            self._run.log_param(key, value)
            self._items[key] = value

    def update(  # type: ignore[override] # W&B's own signature
        self, d: Any = (), allow_val_change: bool | None = None, **more: Any
    ) -> None:
        """Set many items, of a dictionary, an ``argparse.Namespace`` or absl's flags."""
        for key, value in {**_as_dict(d), **more}.items():
            self[key] = value

    def setdefaults(self, d: Any) -> None:
        """Set those items that are not there."""
        for key, value in _as_dict(d).items():
            self.setdefault(key.strip("-"), value)

    def as_dict(self) -> dict[str, Any]:
        """A copy."""
        return dict(self._items)


class Summary(_Items):
    """A run's last values; the module says how assigned ones are logged."""

    def __init__(self, run: ZMQRun) -> None:
        super().__init__()
        object.__setattr__(self, "_run", run)

    def __setitem__(self, key: str, value: Any) -> None:
        name = f"summary/{key}"
        if isinstance(value, Mapping):
            for inner, part in value.items():
                self[f"{key}.{inner}"] = part
            return
        if isinstance(value, Media):
            value.log_to(self._run, name, None)
        elif isinstance(value, (int, float)) or _is_number(value):
            self._run.log_metric(name, value)
        else:
            self._run.set_tag(name, value)
        self._items[key] = value

    def update(self, d: Any = (), **more: Any) -> None:  # type: ignore[override]
        for key, value in {**_as_dict(d), **more}.items():
            self[key] = value


# --- a run ----------------------------------------------------------------------------------------


class WandBWriter:
    """What ``wandb.init`` returns; also NVFLARE's ``WandBWriter``, with ``log(metrics, step)``.

    Args:
        project, group, name, id: name the run, as the module says.
        config: logged as params, but for ``config_exclude_keys`` or all but
            ``config_include_keys``.
        tags, notes, job_type, entity: logged as tags.
        mode: ``"disabled"`` logs nothing; the others are the same here.
        dir: what ``dir`` returns; nothing is written there.
        resume, reinit, allow_val_change, force: nothing to do: the same names are the same run.
        resume_from, fork_from, save_code, tensorboard, sync_tensorboard, monitor_gym: without
            effect, which is said once.
        settings: ``mode`` in it is heeded.
        experiment, run, site, address: as in :func:`zmqtrack.init`.
        zmq_run: log into this run, which ``finish`` then flushes and does not finish.

    Raises:
        TypeError, ValueError: names or values that cannot be used.
        SpoolError: no folder for the spool.
    """

    def __init__(
        self,
        entity: str | None = None,
        project: str | None = None,
        dir: str | os.PathLike[str] | None = None,
        id: str | None = None,
        name: str | None = None,
        notes: str | None = None,
        tags: Sequence[str] | None = None,
        config: Any = None,
        config_exclude_keys: Sequence[str] | None = None,
        config_include_keys: Sequence[str] | None = None,
        allow_val_change: bool | None = None,
        group: str | None = None,
        job_type: str | None = None,
        mode: str | None = None,
        force: bool | None = None,
        reinit: bool | str | None = None,
        resume: bool | str | None = None,
        resume_from: str | None = None,
        fork_from: str | None = None,
        save_code: bool | None = None,
        tensorboard: bool | None = None,
        sync_tensorboard: bool | None = None,
        monitor_gym: bool | None = None,
        settings: Any = None,
        anonymous: Any = None,
        *,
        experiment: str | None = None,
        run: str | None = None,
        site: str | None = None,
        address: str | None = None,
        zmq_run: ZMQRun | None = None,
    ) -> None:
        environ = os.environ.get
        project = project or environ("WANDB_PROJECT") or None
        group = group or environ("WANDB_RUN_GROUP") or None
        name = name or environ("WANDB_NAME") or None
        id = id or environ("WANDB_RUN_ID") or None
        job_type = job_type or environ("WANDB_JOB_TYPE") or None
        entity = entity or environ("WANDB_ENTITY") or None
        self.disabled = zmq_run is None and _is_disabled(mode, settings)
        self._owns_run = zmq_run is None
        if zmq_run is not None:
            self.zmq_run = zmq_run
        elif self.disabled:
            self.zmq_run = disabled_run()
        else:
            worker = f"{socket.gethostname()}-{os.getpid()}" if group else None
            self.zmq_run = begin(
                {"experiment": experiment, "run": run, "site": site},
                {"experiment": project, "run": group or id, "site": name or id or worker},
                tags={
                    "experiment": "project",
                    **({"run": "group"} if group else {}),
                    **({"site": "name"} if name else {}),
                },
                identity=id,
                label=name,
                exact=run is not None,
                address=address,
            )
        key = self.zmq_run.key
        self.id = id or "-".join((key.run, key.site))
        self.name = name or key.site
        self.project = project or key.experiment
        self.group = group or key.run
        self.entity = entity or ""
        self.job_type = job_type or ""
        self.notes = notes
        self.tags = (tags,) if isinstance(tags, str) else tuple(tags or ())
        self.mode = mode or "online"
        self.dir = os.fspath(dir) if dir is not None else "."
        self.offline = self.mode == "offline"
        self.resumed = False
        self.start_time = time.time()
        self.starting_step = 0
        self.step = 0
        self.url: str | None = None
        self.sweep_id: str | None = None
        self.path = f"{self.entity}/{self.project}/{self.id}"
        self.config = Config(self.zmq_run)
        self.summary = Summary(self.zmq_run)
        self._last = self.summary._items
        self._log_metric = self.zmq_run.log_metric
        labels = {
            "entity": entity,
            "id": id if id and id not in key else None,
            "tags": ", ".join(map(str, self.tags)),
            "notes": notes,
            "job_type": job_type,
        }
        self.zmq_run.set_tags({label: value for label, value in labels.items() if value})
        for option, value in (
            ("resume_from", resume_from),
            ("fork_from", fork_from),
            ("save_code", save_code),
            ("tensorboard", tensorboard),
            ("sync_tensorboard", sync_tensorboard),
            ("monitor_gym", monitor_gym),
        ):
            if value:
                note(f"wandb.init({option})", "without effect")
        if config is not None:
            items = _as_dict(config)
            if config_include_keys is not None:
                items = {k: v for k, v in items.items() if k in config_include_keys}
            elif config_exclude_keys is not None:
                items = {k: v for k, v in items.items() if k not in config_exclude_keys}
            self.config.update(items)

    def log(
        self,
        data: Mapping[str, Any] | None = None,
        step: int | None = None,
        commit: bool | None = None,
        *,
        metrics: Mapping[str, Any] | None = None,
    ) -> None:
        """Log a row; the module says what each value becomes.

        Args:
            data: NVFLARE's name for it is ``metrics``.
            step: None: the run's own step, which counts rows from 0.
            commit: True ends the row, so that the next one has the next step. Default: True
                without ``step``, False with it.

        Raises:
            TypeError: no dictionary with strings as keys, or a value of a type that cannot be
                logged.
        """
        if data is None:
            data = metrics
        if data.__class__ is not dict and not isinstance(data, Mapping):
            raise TypeError(f"wandb.log must be passed a dictionary, not {describe(data)}")
        if step is not None:
            if step.__class__ is not int:
                step = _as_step("log", step)
            if step > self.step:
                self.step = step
        row = self.step if step is None else step
        for key, value in data.items():
            kind = value.__class__
            if kind is float or kind is int:
                self._log_metric(key, value, row)
                self._last[key] = value
            elif isinstance(key, str):
                self._log_value(key, value, row)
            else:
                raise TypeError(f"keys passed to wandb.log must be strings, not {describe(key)}")
        if commit or (commit is None and step is None):
            self.step += 1

    def _log_value(self, key: str, value: Any, step: int | None) -> None:
        run = self.zmq_run
        if isinstance(value, (int, float)) or _is_number(value):
            number = as_number(key, value)
            run.log_metric(key, number, step)
            self._last[key] = number
        elif isinstance(value, str):
            run.log_text(key, value, step)
            self._last[key] = value
        elif isinstance(value, Media):
            value.log_to(run, key, step)
        elif isinstance(value, Mapping):
            for inner, part in value.items():
                self._log_value(f"{key}.{inner}", part, step)
        elif value is None:
            lose(run, "None", f"a value of None (key {key!r})")
        elif hasattr(value, "itertuples"):
            Table(dataframe=value).log_to(run, key, step)
        elif hasattr(value, "to_html") and hasattr(value, "to_image"):  # plotly
            Html(value.to_html(), data_is_not_path=True).log_to(run, key, step)
        elif hasattr(value, "savefig") or hasattr(value, "getbands"):
            run.log_image(key, value, step)
        elif is_array(value):
            run.log_histogram(key, value, step)
        elif isinstance(value, (list, tuple, range)):
            self._log_list(key, list(value), step)
        else:
            raise TypeError(
                f"{key!r}: {describe(value)} cannot be logged; give a number, a string, a "
                "dictionary of those, Image, Histogram, Html or Table"
            )

    def _log_list(self, key: str, values: list[Any], step: int | None) -> None:
        if len(values) == 1 and isinstance(values[0], Media):
            values[0].log_to(self.zmq_run, key, step)
        elif values and all(isinstance(value, Media) for value in values):
            for number, value in enumerate(values):
                value.log_to(self.zmq_run, f"{key}.{number}", step)
        else:
            text = json.dumps(_plain(values, fallback=str), ensure_ascii=False)
            self.zmq_run.log_text(key, text, step)

    def log_artifact(
        self,
        artifact_or_path: Any,
        name: str | None = None,
        type: str | None = None,
        aliases: Sequence[str] | None = None,
        tags: Sequence[str] | None = None,
    ) -> Artifact:
        """Log files: an :class:`Artifact`, or the path of a file or folder.

        Raises:
            OSError: one cannot be read.
        """
        if isinstance(artifact_or_path, Artifact):
            artifact = artifact_or_path
            for path, inner in artifact.files:
                self.zmq_run.log_artifact(path, f"{artifact.name}/{inner}")
            return artifact
        path = Path(artifact_or_path)
        artifact = Artifact(name or path.name, type or "unspecified")
        if path.is_dir():
            artifact.add_dir(path)
            self.zmq_run.log_artifact(path, artifact.name)
        else:
            artifact.add_file(path)
            self.zmq_run.log_artifact(path, artifact.name)
        return artifact

    def save(
        self,
        glob_str: str | os.PathLike[str],
        base_path: str | os.PathLike[str] | None = None,
        policy: str = "live",
        glob: bool = True,
    ) -> list[str]:
        """Log the files that match, as they are now; names are relative to ``base_path``."""
        import glob as globbing

        pattern = os.fspath(glob_str)
        found = sorted(globbing.glob(pattern)) if glob else [pattern]  # noqa: PTH207 -- any path
        if policy == "live":
            note("save", "files are logged as they are at the call, not again when they change")
        for path in found:
            name = os.path.relpath(path, base_path) if base_path is not None else path
            inside = not Path(name).is_absolute() and ".." not in Path(name).parts
            self.zmq_run.log_artifact(path, name if inside else Path(path).name)
        return found

    def define_metric(
        self,
        name: str,
        step_metric: Any = None,
        step_sync: bool | None = None,
        hidden: bool | None = None,
        summary: str | None = None,
        overwrite: bool | None = None,
    ) -> SimpleNamespace:
        """Without effect: axes and aggregates are chosen in the tracker."""
        note("define_metric", "without effect: axes and summaries are chosen in the tracker")
        return SimpleNamespace(name=name, step_metric=step_metric)

    def watch(
        self,
        models: Any,
        criterion: Any = None,
        log: str | None = "gradients",
        log_freq: int = 1000,
        idx: int | None = None,
        log_graph: bool = False,
    ) -> None:
        """Not carried; log histograms of gradients instead."""
        lose(self.zmq_run, "watch", "gradients are not watched; log wandb.Histogram of them")

    def unwatch(self, models: Any = None) -> None:
        """Nothing is watched."""

    def alert(self, title: str, text: str, level: Any = None, wait_duration: Any = None) -> None:
        """Log a line of output in the stream ``alert``."""
        self.zmq_run.log_line(
            f"{getattr(level, 'value', level) or 'INFO'} {title}: {text}", "alert"
        )

    def log_code(self, *args: Any, **kwargs: Any) -> None:
        """Not carried."""
        lose(self.zmq_run, "log_code", "code is not collected; use log_artifact")

    def mark_preempting(self) -> None:
        """Nothing to do: a killed process loses nothing."""

    def flush(self) -> None:
        """Wait until what was logged is on this machine's disk; not for the network."""
        self.zmq_run.flush()

    def finish(self, exit_code: int | None = None, quiet: bool | None = None) -> None:
        """End the run: finished, or failed if ``exit_code`` is not 0."""
        _forget(self)
        if self._owns_run:
            self.zmq_run.finish("failed" if exit_code else "finished")
        else:
            self.zmq_run.flush()

    def __enter__(self) -> WandBWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.finish(0 if kind is None else 1)

    def __repr__(self) -> str:
        return f"<WandBWriter {self.project}/{self.group}/{self.name}>"


Run = WandBWriter

# --- the module as W&B's ----------------------------------------------------------------------

#: The run that the module's functions log to.
run: WandBWriter | None = None


def init(*args: Any, **kwargs: Any) -> WandBWriter:
    """Begin the run that the module's functions log to; arguments as of :class:`WandBWriter`.

    While one is active it is returned; ``reinit=True`` (or ``"finish_previous"``) ends it first,
    and ``"create_new"`` leaves it and returns another that the module does not log to.
    """
    global run
    reinit = kwargs.get("reinit")
    if reinit == "create_new":
        return WandBWriter(*args, **kwargs)
    if run is not None:
        if reinit is True or reinit == "finish_previous":
            run.finish()
        else:
            note("wandb.init", "a run is active; it is returned (reinit=True ends it first)")
            return run
    run = WandBWriter(*args, **kwargs)
    return run


def _forget(ended: WandBWriter) -> None:
    global run
    if run is ended:
        run = None


def _active() -> WandBWriter:
    if run is None:
        raise Error("You must call wandb.init() before logging")
    return run


def finish(exit_code: int | None = None, quiet: bool | None = None) -> None:
    """End the active run, if there is one."""
    if run is not None:
        run.finish(exit_code)


def log(data: Mapping[str, Any], step: int | None = None, commit: bool | None = None) -> None:
    """Log a row to the active run; see :meth:`WandBWriter.log`.

    Raises:
        Error: there is none.
    """
    _active().log(data, step, commit)


def _forward(name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(_active(), name)(*args, **kwargs)

    call.__name__ = call.__qualname__ = name
    call.__doc__ = getattr(WandBWriter, name).__doc__
    return call


log_artifact = _forward("log_artifact")
log_code = _forward("log_code")
save = _forward("save")
define_metric = _forward("define_metric")
watch = _forward("watch")
unwatch = _forward("unwatch")
alert = _forward("alert")
mark_preempting = _forward("mark_preempting")


def login(*args: Any, **kwargs: Any) -> bool:
    """No account is needed here; the daemon's adapter has one."""
    return True


def setup(*args: Any, **kwargs: Any) -> None:
    """Nothing to set up."""


def teardown(exit_code: int | None = None) -> None:
    """End the active run, if there is one."""
    finish(exit_code)


class Settings(SimpleNamespace):
    """Takes any setting; ``mode`` is heeded."""


class AlertLevel:
    """Levels of ``alert``."""

    INFO = "INFO"
    WARN = "WARN"
    ERROR = "ERROR"


def __getattr__(name: str) -> Any:
    if name in ("config", "summary"):
        if run is None:
            raise Error(f"You must call wandb.init() before wandb.{name}")
        return getattr(run, name)
    raise AttributeError(
        f"{__name__} has no {name!r}: it carries what W&B logs to a run, and nothing else"
    )


# --- inside ---------------------------------------------------------------------------------------


def _is_disabled(mode: str | None, settings: Any) -> bool:
    if mode is None and settings is not None:
        mode = (
            settings.get("mode") if isinstance(settings, dict) else getattr(settings, "mode", None)
        )
    if mode is None:
        mode = os.environ.get("WANDB_MODE")
        if os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes"):
            return True
    return mode == "disabled"


def _is_number(value: Any) -> bool:
    """NumPy's scalars, and arrays and tensors of one number."""
    if not is_array(value):
        return False
    size = 1
    for length in value.shape:
        size *= int(length)
    return size == 1


def _as_dict(items: Any) -> dict[str, Any]:
    """A dictionary of what W&B takes as config."""
    if isinstance(items, Mapping):
        return dict(items)
    if hasattr(items, "flag_values_dict"):  # absl
        return dict(items.flag_values_dict())
    if isinstance(items, (str, os.PathLike)):
        return _read_config(Path(items))
    if hasattr(items, "__dict__") and not isinstance(items, type(sys)):
        return dict(vars(items))
    return dict(items)


def _read_config(path: Path) -> dict[str, Any]:
    """A file of YAML, or of JSON where PyYAML is not installed."""
    text = path.read_text(encoding="utf-8")
    try:
        import yaml
    except ImportError:
        loaded = json.loads(text)
    else:
        loaded = yaml.safe_load(text)
    if not isinstance(loaded, dict):
        raise TypeError(f"{path}: expected a dictionary, found {type(loaded).__name__}")
    # W&B's own files hold each value under `value`.
    return {
        key: item["value"] if isinstance(item, dict) and "value" in item else item
        for key, item in loaded.items()
        if key != "wandb_version"
    }
