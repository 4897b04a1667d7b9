"""``MlflowClient``: MLflow's logging by run id, for runs that are not the active one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .._common import note
from .entities import Experiment, Run, RunInfo
from .exceptions import invalid
from .names import answer
from .values import as_seconds, as_step, as_value

if TYPE_CHECKING:
    from .writer import MLflowWriter, RunOperations

__all__ = ["MlflowClient"]


class MlflowClient:
    """Logs to runs by their id: of those that it created, and of the module's functions.

    What else ``MlflowClient`` has is counted where it would log, and raises ``MlflowException``
    where a tracker's answer is needed.
    """

    def __init__(
        self,
        tracking_uri: str | None = None,
        registry_uri: str | None = None,
        writer: MLflowWriter | None = None,
    ) -> None:
        if tracking_uri is not None:
            note("MlflowClient(tracking_uri)", "without effect: the daemon's YAML names trackers")
        self._own = writer

    @property
    def _writer(self) -> MLflowWriter:
        if self._own is None:
            from . import _default

            self._own = _default
        return self._own

    @property
    def tracking_uri(self) -> str:
        return self._writer.get_tracking_uri()

    # --- runs ---------------------------------------------------------------------------------

    def create_run(
        self,
        experiment_id: str,
        start_time: int | None = None,
        tags: Mapping[str, Any] | None = None,
        run_name: str | None = None,
    ) -> Run:
        """Begin a run that is not the active one; it goes on until ``set_terminated``.

        Its time begins now, whatever ``start_time`` says.
        """
        tags = dict(tags or {})
        run_name = run_name or tags.pop("mlflow.runName", None)
        parent = tags.pop("mlflow.parentRunId", None)
        active = self._writer._begin(experiment_id, run_name)
        self._writer._others[active.info.run_id] = active
        if parent is not None:
            active.set_tags({"parent_run": parent})
        active.set_tags(tags)
        return active.now()

    def get_run(self, run_id: str) -> Run:
        """See :meth:`.MLflowWriter.get_run`."""
        return self._writer.get_run(run_id)

    def get_parent_run(self, run_id: str) -> Run | None:
        return self._writer.get_parent_run(run_id)

    def set_terminated(
        self, run_id: str, status: str | None = None, end_time: int | None = None
    ) -> None:
        """End a run now: FINISHED, FAILED or KILLED."""
        self._writer._end(self._writer._target(run_id), status or "FINISHED")

    def update_run(self, run_id: str, status: str | None = None, name: str | None = None) -> None:
        """A status that ends a run ends it; a name becomes the tag ``run_name``."""
        if name is not None:
            self.set_tag(run_id, "run_name", name)
        if status is not None and status not in ("RUNNING", "SCHEDULED"):
            self.set_terminated(run_id, status)

    # --- values -------------------------------------------------------------------------------

    def log_metric(
        self,
        run_id: str,
        key: str,
        value: Any,
        timestamp: int | None = None,
        step: int | None = None,
        synchronous: bool | None = None,
        dataset_name: str | None = None,
        dataset_digest: str | None = None,
        model_id: str | None = None,
    ) -> RunOperations | None:
        """As :meth:`.MLflowWriter.log_metric`."""
        dataset = dataset_name if dataset_name is not None else dataset_digest
        return self._writer.log_metric(
            key, value, step, synchronous, timestamp, run_id, model_id, dataset
        )

    def log_param(self, run_id: str, key: str, value: Any, synchronous: bool | None = None) -> Any:
        self._writer._target(run_id).log_params({key: value})
        return self._writer._operations(synchronous) or value

    def set_tag(
        self, run_id: str, key: str, value: Any, synchronous: bool | None = None
    ) -> RunOperations | None:
        self._writer._target(run_id).set_tags({key: value})
        return self._writer._operations(synchronous)

    def log_batch(
        self,
        run_id: str,
        metrics: Iterable[Any] = (),
        params: Iterable[Any] = (),
        tags: Iterable[Any] = (),
        synchronous: bool | None = None,
    ) -> RunOperations | None:
        """Log ``Metric``, ``Param`` and ``RunTag`` entities, MLflow's own or those of this module.

        Raises:
            MlflowException: one of the metrics is no number; nothing is logged then.
        """
        active = self._writer._target(run_id)
        points = [
            (m.key, as_value(m.key, m.value), as_step(m.key, m.step), as_seconds(m.timestamp))
            for m in metrics
        ]
        active.log_params({param.key: param.value for param in params})
        try:
            for point in points:
                active.zmq_run.log_metric(*point)
        except (TypeError, ValueError) as error:
            raise invalid(error, type(error)) from None
        active.set_tags({tag.key: tag.value for tag in tags})
        return self._writer._operations(synchronous)

    # --- files --------------------------------------------------------------------------------

    def log_text(self, run_id: str, text: str, artifact_file: str) -> None:
        self._writer.log_text(text, artifact_file, run_id)

    def log_dict(self, run_id: str, dictionary: Any, artifact_file: str) -> None:
        self._writer.log_dict(dictionary, artifact_file, run_id)

    def log_table(self, run_id: str, data: Any, artifact_file: str) -> None:
        self._writer.log_table(data, artifact_file, run_id)

    def log_stream(self, run_id: str, stream: Any, artifact_file: str) -> None:
        self._writer.log_stream(stream, artifact_file, run_id)

    def log_figure(
        self,
        run_id: str,
        figure: Any,
        artifact_file: str,
        *,
        save_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self._writer.log_figure(figure, artifact_file, save_kwargs=save_kwargs, run_id=run_id)

    def log_image(
        self,
        run_id: str,
        image: Any,
        artifact_file: str | None = None,
        key: str | None = None,
        step: int | None = None,
        timestamp: int | None = None,
        synchronous: bool | None = None,
    ) -> None:
        self._writer.log_image(image, artifact_file, key, step, timestamp, run_id=run_id)

    def log_artifact(
        self, run_id: str, local_path: str | os.PathLike[str], artifact_path: str | None = None
    ) -> None:
        self._writer.log_artifact(local_path, artifact_path, run_id)

    def log_artifacts(
        self, run_id: str, local_dir: str | os.PathLike[str], artifact_path: str | None = None
    ) -> None:
        self._writer.log_artifacts(local_dir, artifact_path, run_id)

    # --- experiments --------------------------------------------------------------------------

    def create_experiment(
        self,
        name: str,
        artifact_location: str | None = None,
        tags: Mapping[str, Any] | None = None,
    ) -> str:
        return self._writer.create_experiment(name, artifact_location, tags)

    def get_experiment(self, experiment_id: str) -> Experiment:
        return self._writer.get_experiment(experiment_id)

    def get_experiment_by_name(self, name: str) -> Experiment | None:
        return self._writer.get_experiment_by_name(name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return answer(f"MlflowClient.{name}", lambda: self._writer)


_ = RunInfo  # the type of what ``create_run(…).info`` is
