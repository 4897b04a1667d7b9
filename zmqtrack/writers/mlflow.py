"""MLflow's syntax: its module of functions, and ``MLflowWriter`` as NVFLARE has it.

::

    import zmqtrack.writers.mlflow as mlflow         # the only line that changes

    mlflow.set_experiment("mnist")
    with mlflow.start_run(run_name="baseline"):
        mlflow.log_param("lr", 0.1)
        mlflow.log_metric("loss", loss, step=step)

or, one object and no global state, ``from zmqtrack.writers.mlflow import MLflowWriter``; its
methods are the same functions. As in MLflow, logging without a run begins one.

**Where it goes.** MLflow's experiment is the experiment, its ``run_name`` the run (``run_id`` is
the same name, so ``start_run(run_id=…)`` goes on with it), and the site is the host's name.
``ZMQTRACK_EXPERIMENT``, ``ZMQTRACK_RUN`` and ``ZMQTRACK_SITE``, which a federation's launcher sets,
come before the script's names: all sites run one script and yet must be told apart and found in one
run. A name that lost its place this way is kept as the tag ``experiment_name`` or ``run_name``. The
arguments ``experiment=``, ``run=`` and ``site=`` of ``MLflowWriter`` come before both. Each further
``start_run`` of the process is another run, as in MLflow: under ``ZMQTRACK_RUN=job`` they are
``job``, ``job.RUN_NAME`` …, and a nested one has the tag ``parent_run``.

**What differs.** The tracker is chosen where the daemon runs, so ``set_tracking_uri`` has no effect
and says so. There is one stack of active runs in the process, not one in each thread. A step that
was not given stays none (MLflow then shows 0). Runs have names, not random ids: to begin anew, give
another name. Models, datasets, traces and autologging are not carried: the first such call says
so, all are counted, none raises.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any

from ..arrays import is_array, to_host
from ..image import image_format
from ..run import Run, _plain
from ._common import also_called, begin, lose, note

__all__ = ["ActiveRun", "Experiment", "Image", "MLflowWriter"]

_STATUSES = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "killed"}


class Experiment(SimpleNamespace):
    """What ``set_experiment`` returns: ``name``, and the same as ``experiment_id``."""


class RunOperations:
    """What an asynchronous call returns; there is nothing to wait for."""

    def wait(self) -> None:
        """Returns at once: the call has recorded its values."""


class Image:
    """An image for ``log_image``: an array, a PIL image or a path."""

    def __init__(self, image: Any) -> None:
        self.image = image


class ActiveRun:
    """What ``start_run`` returns: ``info`` (``run_id``, ``run_name`` …), and a context manager.

    Leaving the context ends the run: FINISHED, or FAILED after an exception.
    """

    def __init__(self, writer: MLflowWriter, run: Run) -> None:
        self.zmq_run = run
        self._writer = writer
        self.info = SimpleNamespace(
            run_id=run.key.run,
            run_uuid=run.key.run,
            run_name=run.key.run,
            experiment_id=run.key.experiment,
            status="RUNNING",
            lifecycle_stage="active",
            artifact_uri=None,
        )

    def __enter__(self) -> ActiveRun:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._writer._end(self, "FINISHED" if kind is None else "FAILED")

    def __repr__(self) -> str:
        return f"<ActiveRun {self.info.run_name!r} {self.info.status}>"


class MLflowWriter:
    """MLflow's fluent functions as methods, with a stack of active runs of its own.

    Args:
        experiment, run, site, address: as in :func:`zmqtrack.init`; ``run`` names the first run,
            further ones are ``RUN.RUN_NAME``.
        zmq_run: log into this run, which ``end_run`` then flushes and does not finish.
    """

    def __init__(
        self,
        *,
        experiment: str | None = None,
        run: str | None = None,
        site: str | None = None,
        address: str | None = None,
        zmq_run: Run | None = None,
    ) -> None:
        self._own = {"experiment": experiment, "run": run, "site": site}
        self._address = address
        self._lent = zmq_run
        self._experiment: str | None = None
        self._stack: list[ActiveRun] = []
        self._others: dict[str, Run] = {}  # logged to by run_id while not active
        self._last: ActiveRun | None = None
        #: Where metrics go: the innermost active run.
        self._log_metric: Callable[..., None] = self._begin_and_log_metric
        if zmq_run is not None:
            self._push(zmq_run)

    # --- experiments and runs -----------------------------------------------------------------

    def set_experiment(
        self,
        experiment_name: str | None = None,
        experiment_id: str | None = None,
        trace_location: Any = None,
    ) -> Experiment:
        """Name the experiment of the runs that begin from now on.

        Raises:
            ValueError: not exactly one of name and id was given.
        """
        if (experiment_name is None) == (experiment_id is None):
            raise ValueError("give either experiment_name or experiment_id")
        name = experiment_name if experiment_name is not None else experiment_id
        if not isinstance(name, str):
            raise TypeError(f"an experiment's name must be a string, not {type(name).__name__}")
        self._experiment = name
        return Experiment(name=name, experiment_id=name, lifecycle_stage="active", tags={})

    def start_run(
        self,
        run_id: str | None = None,
        experiment_id: str | None = None,
        run_name: str | None = None,
        nested: bool = False,
        parent_run_id: str | None = None,
        tags: Mapping[str, Any] | None = None,
        description: str | None = None,
        log_system_metrics: bool | None = None,
    ) -> ActiveRun:
        """Begin a run, or with ``run_id`` go on with one; see the module for its name.

        Args:
            description: is logged as the tag ``description``.

        Raises:
            RuntimeError: a run is active already and ``nested`` is not set.
        """
        parent = self._stack[-1] if self._stack else None
        if parent is not None and not nested and parent.zmq_run is not self._lent:
            raise RuntimeError(
                f"run {parent.info.run_name!r} is already active. To start a new run, first end "
                "it with end_run(); to start a nested run, call start_run with nested=True"
            )
        if log_system_metrics:
            note("start_run(log_system_metrics)", "system metrics are not collected")
        if parent is not None and not nested:
            active = parent  # the run that the writer was given: there is no other to begin
            if run_name is not None:
                active.zmq_run.set_tag("run_name", run_name)
        elif run_id is not None:
            known = self._others.pop(run_id) if run_id in self._others else None
            active = self._push(known or self._open(run_id))
        else:
            active = self._push(self._begin(experiment_id, run_name))
            above = parent_run_id or (parent.info.run_id if parent is not None else None)
            if above is not None:
                active.zmq_run.set_tag("parent_run", above)
        if description is not None:
            active.zmq_run.set_tag("description", description)
        if tags:
            active.zmq_run.set_tags(tags)
        return active

    def end_run(self, status: str = "FINISHED") -> None:
        """End the innermost active run: FINISHED, FAILED or KILLED; without one do nothing.

        Raises:
            ValueError: another status.
        """
        if status not in _STATUSES:
            raise ValueError(f"status {status!r} is unknown; known are {', '.join(_STATUSES)}")
        if self._stack:
            self._end(self._stack[-1], status)

    def active_run(self) -> ActiveRun | None:
        """The innermost active run, or None."""
        return self._stack[-1] if self._stack else None

    def last_active_run(self) -> ActiveRun | None:
        """The active run, else the one that was ended last."""
        return self._stack[-1] if self._stack else self._last

    # --- values -------------------------------------------------------------------------------

    def log_metric(
        self,
        key: str,
        value: Any,
        step: int | None = None,
        synchronous: bool | None = None,
        timestamp: int | None = None,
        run_id: str | None = None,
        model_id: str | None = None,
        dataset: Any = None,
    ) -> RunOperations | None:
        """Log one number; ``timestamp`` in milliseconds since the epoch.

        Raises:
            TypeError: no number, or no integer step.
        """
        when = None if timestamp is None else timestamp / 1000
        if run_id is None:
            self._log_metric(key, value, step, when)
        else:
            self._run(run_id).log_metric(key, value, step, when)
        if model_id is not None or dataset is not None:
            self._links(model_id, dataset)
        return RunOperations() if synchronous is False else None

    def log_metrics(
        self,
        metrics: Mapping[str, Any],
        step: int | None = None,
        synchronous: bool | None = None,
        run_id: str | None = None,
        timestamp: int | None = None,
        model_id: str | None = None,
        dataset: Any = None,
    ) -> RunOperations | None:
        """Log several numbers with one step and time; all of them or, on an error, none."""
        when = None if timestamp is None else timestamp / 1000
        self._run(run_id).log_metrics(metrics, step, when)
        if model_id is not None or dataset is not None:
            self._links(model_id, dataset)
        return RunOperations() if synchronous is False else None

    def log_param(self, key: str, value: Any, synchronous: bool | None = None) -> Any:
        """Log a parameter; returns ``value`` as MLflow does."""
        self._run().log_param(key, value)
        return RunOperations() if synchronous is False else value

    @also_called(values="params")
    def log_params(
        self,
        params: Mapping[str, Any],
        synchronous: bool | None = None,
        run_id: str | None = None,
    ) -> RunOperations | None:
        """Log several parameters (NVFLARE's name for them is ``values``)."""
        self._run(run_id).log_params(params)
        return RunOperations() if synchronous is False else None

    @also_called(tag="value")
    def set_tag(
        self, key: str, value: Any, synchronous: bool | None = None
    ) -> RunOperations | None:
        """Set a tag (NVFLARE's name for the value is ``tag``)."""
        self._run().set_tag(key, value)
        return RunOperations() if synchronous is False else None

    def set_tags(
        self, tags: Mapping[str, Any], synchronous: bool | None = None
    ) -> RunOperations | None:
        """Set several tags."""
        self._run().set_tags(tags)
        return RunOperations() if synchronous is False else None

    # --- files --------------------------------------------------------------------------------

    @also_called(artifact_file_path="artifact_file")
    def log_text(self, text: str, artifact_file: str, run_id: str | None = None) -> None:
        """Log text as a file (NVFLARE's name for it is ``artifact_file_path``)."""
        self._run(run_id).log_text(artifact_file, text)

    def log_dict(
        self,
        dictionary: Mapping[str, Any] | list[Any],
        artifact_file: str,
        run_id: str | None = None,
    ) -> None:
        """Log a dictionary or list as a file of JSON.

        Also when ``artifact_file`` ends in ``.yaml`` or ``.yml``: JSON is valid YAML, and the
        training process needs no YAML package.
        """
        text = json.dumps(_plain(dictionary, fallback=str), indent=2, ensure_ascii=False)
        self.log_text(text, artifact_file, run_id)

    def log_table(self, data: Any, artifact_file: str, run_id: str | None = None) -> None:
        """Log a table, a dictionary of columns or a data frame, as MLflow's JSON for tables."""
        if hasattr(data, "to_dict"):
            data = data.to_dict(orient="list")
        if not isinstance(data, Mapping):
            raise TypeError(f"a table must be a dictionary of columns, not {type(data).__name__}")
        columns = {
            str(name): cells if isinstance(cells, (list, tuple)) else [cells]
            for name, cells in data.items()
        }
        rows = [list(row) for row in zip(*columns.values(), strict=True)]
        self.log_dict({"columns": list(columns), "data": rows}, artifact_file, run_id)

    def log_image(
        self,
        image: Any,
        artifact_file: str | None = None,
        key: str | None = None,
        step: int | None = None,
        timestamp: int | None = None,
        synchronous: bool | None = False,
    ) -> None:
        """Log an image, either as a file or under a key with step and time (milliseconds).

        Args:
            image: as :func:`zmqtrack.image.encode_image` takes it; as in MLflow floats beyond 0
                and 1 are scaled to what lies between their smallest and largest.

        Raises:
            TypeError: both of ``artifact_file`` and ``key`` or none of them.
        """
        if artifact_file is not None and any(
            argument is not None for argument in (key, step, timestamp)
        ):
            raise TypeError("artifact_file cannot be used together with key, step or timestamp")
        name = artifact_file if artifact_file is not None else key
        if name is None:
            raise TypeError("give either artifact_file or key")
        if isinstance(image, Image):
            image = image.image
        elif hasattr(image, "to_pil"):  # mlflow's own Image
            image = image.to_pil()
        when = None if timestamp is None else timestamp / 1000
        self._run().log_image(name, _in_range(image), step, when)

    def log_figure(
        self, figure: Any, artifact_file: str, *, save_kwargs: Mapping[str, Any] | None = None
    ) -> None:
        """Log a matplotlib or plotly figure as a file in the format of its extension."""
        format = Path(artifact_file).suffix[1:].lower()
        if hasattr(figure, "to_html"):  # plotly
            if format in ("", "html", "htm"):
                self.log_text(figure.to_html(**(save_kwargs or {})), artifact_file)
                return
            data = figure.to_image(format=format, **(save_kwargs or {}))
        elif hasattr(figure, "savefig"):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, f"figure.{format or 'png'}")
                figure.savefig(path, **(save_kwargs or {}))
                data = path.read_bytes()
        else:
            raise TypeError(f"{type(figure).__name__} is no figure of matplotlib or plotly")
        if image_format(data) is None:
            _log_bytes(self._run(), data, artifact_file)
        else:
            self._run().log_image(artifact_file, data)

    def log_artifact(
        self,
        local_path: str | os.PathLike[str],
        artifact_path: str | None = None,
        run_id: str | None = None,
    ) -> None:
        """Log a file, or a folder with all in it, in the folder ``artifact_path``.

        Raises:
            OSError: it cannot be read.
        """
        name = Path(local_path).name or Path(local_path).resolve().name
        prefix = artifact_path.strip("/") if artifact_path else ""
        self._run(run_id).log_artifact(local_path, f"{prefix}/{name}" if prefix else name)

    def log_artifacts(
        self,
        local_dir: str | os.PathLike[str],
        artifact_path: str | None = None,
        run_id: str | None = None,
    ) -> None:
        """Log all that is in a folder, in the folder ``artifact_path``.

        Raises:
            OSError: it is no folder, or cannot be read.
        """
        run = self._run(run_id)
        for path in sorted(Path(local_dir).iterdir()):
            name = f"{artifact_path.strip('/')}/{path.name}" if artifact_path else path.name
            run.log_artifact(path, name)

    # --- accepted -----------------------------------------------------------------------------

    def set_tracking_uri(self, uri: str | os.PathLike[str]) -> None:
        """Without effect: trackers are named where the daemon runs."""
        note("set_tracking_uri", "without effect: trackers are named in the daemon's YAML")

    def set_registry_uri(self, uri: str | os.PathLike[str]) -> None:
        """Without effect: nothing is registered."""
        note("set_registry_uri", "without effect: models are not carried")

    def get_tracking_uri(self) -> str:
        """The daemon's address as far as it is known."""
        active = self.active_run()
        known = active.zmq_run.address if active is not None else self._address
        return known or os.environ.get("ZMQTRACK_ADDRESS", "")

    def create_experiment(
        self,
        name: str,
        artifact_location: str | None = None,
        tags: Mapping[str, Any] | None = None,
        trace_location: Any = None,
    ) -> str:
        """Returns the experiment's id, its name; trackers make it with the first run in it."""
        if tags:
            note("create_experiment(tags)", "tags of experiments are not carried")
        return name

    def flush_async_logging(self) -> None:
        """Wait until what was logged is on this machine's disk."""
        self.flush()

    def flush(self) -> None:
        """The same; does not wait for the network."""
        for active in self._stack:
            active.zmq_run.flush()
        for run in self._others.values():
            run.flush()

    # --- inside -------------------------------------------------------------------------------

    def _run(self, run_id: str | None = None) -> Run:
        """The run to log to: by its id, else the innermost active one, else a new one."""
        if run_id is not None:
            for active in self._stack:
                if active.info.run_id == run_id:
                    return active.zmq_run
            if run_id not in self._others:
                self._others[run_id] = self._open(run_id)
            return self._others[run_id]
        return (self._stack[-1] if self._stack else self.start_run()).zmq_run

    def _begin_and_log_metric(
        self, key: str, value: Any, step: int | None, time: float | None
    ) -> None:
        self._run().log_metric(key, value, step, time)

    def _begin(self, experiment_id: str | None, run_name: str | None) -> Run:
        if run_name is None:
            run_name = os.environ.get("MLFLOW_RUN_NAME") or None
        experiment = (
            experiment_id or self._experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or None
        )
        return begin(
            self._own,
            {"experiment": experiment, "run": run_name},
            tags={"experiment": "experiment_name", "run": "run_name"},
            label=run_name,
            address=self._address,
        )

    def _open(self, run_id: str) -> Run:
        """Go on with the run of this name."""
        own = {**self._own, "run": run_id}
        tools = {"experiment": self._experiment}
        return begin(own, tools, tags={}, exact=True, address=self._address)

    def _push(self, run: Run) -> ActiveRun:
        active = ActiveRun(self, run)
        self._stack.append(active)
        self._log_metric = run.log_metric
        return active

    def _end(self, active: ActiveRun, status: str) -> None:
        if active not in self._stack:
            return
        if active.zmq_run is self._lent:
            active.zmq_run.flush()
            return
        self._stack.remove(active)
        self._last = active
        self._log_metric = (
            self._stack[-1].zmq_run.log_metric if self._stack else self._begin_and_log_metric
        )
        active.info.status = status
        active.zmq_run.finish(_STATUSES[status])

    def _links(self, model_id: str | None, dataset: Any) -> None:
        if model_id is not None:
            lose(self._run(), "model_id", "a metric's link to a model; the metric is logged")
        if dataset is not None:
            lose(self._run(), "dataset", "a metric's link to a dataset; the metric is logged")


def _log_bytes(run: Run, data: bytes, name: str) -> None:
    """Log bytes as a file: what is no text and no image."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "content")
        path.write_bytes(data)
        run.log_artifact(path, name)


def _in_range(image: Any) -> Any:
    """As MLflow does it: floats that leave 0 to 1 are scaled into it."""
    if not is_array(image):
        return image
    host = to_host(image)
    if not is_array(host) or host.dtype.kind != "f" or not host.size:
        return host
    low, high = float(host.min()), float(host.max())
    if low >= 0 and high <= 1:
        return host
    note("log_image", f"floats from {low:g} to {high:g} are scaled into 0 to 1, as in MLflow")
    return (host - low) / (high - low) if low < high else host


# --- the module as MLflow's ---------------------------------------------------------------------

_default = MLflowWriter()

set_experiment = _default.set_experiment
start_run = _default.start_run
end_run = _default.end_run
active_run = _default.active_run
last_active_run = _default.last_active_run
log_metric = _default.log_metric
log_metrics = _default.log_metrics
log_param = _default.log_param
log_params = _default.log_params
set_tag = _default.set_tag
set_tags = _default.set_tags
log_text = _default.log_text
log_dict = _default.log_dict
log_table = _default.log_table
log_image = _default.log_image
log_figure = _default.log_figure
log_artifact = _default.log_artifact
log_artifacts = _default.log_artifacts
set_tracking_uri = _default.set_tracking_uri
set_registry_uri = _default.set_registry_uri
get_tracking_uri = _default.get_tracking_uri
create_experiment = _default.create_experiment
flush_async_logging = _default.flush_async_logging

#: Functions of MLflow that log what is not carried: they say so, and are counted.
_NOT_CARRIED = frozenset(
    {
        "autolog",
        "delete_tag",
        "enable_system_metrics_logging",
        "disable_system_metrics_logging",
        "evaluate",
        "log_input",
        "log_inputs",
        "log_outputs",
        "log_model_params",
        "log_stream",
        "log_trace",
        "register_model",
        "set_experiment_tag",
        "set_experiment_tags",
    }
)


def __getattr__(name: str) -> Any:
    if name in _NOT_CARRIED:

        def not_carried(*args: Any, **kwargs: Any) -> None:
            active = _default.active_run()
            if active is None:
                note(name, "not carried")
            else:
                lose(active.zmq_run, name)

        return not_carried
    raise AttributeError(
        f"{__name__} has no {name!r}: it carries what MLflow logs to a run, and nothing else"
    )
