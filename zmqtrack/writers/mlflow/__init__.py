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
another name. A param may be logged again with another value; one that is an array, a tensor or a
tuple is, in every tracker, the text that MLflow makes of it. What only the tracker knows
(``search_runs``, the metrics of ``get_run`` …) raises ``MlflowException``, which says where to read
it. Datasets, traces, autologging and the registry are not carried: the first such call says so,
all are counted, none raises. :mod:`.names` has the lists.

**MLflow's own modules.** ``mlflow.sklearn``, ``mlflow.models`` … are those of the package
``mlflow``, where it is installed. ``import mlflow.sklearn`` in a script binds the name ``mlflow``
to that package: what the script logs with it comes to us all the same (:mod:`.real`), and
``log_model`` logs the model's files as artifacts.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from . import entities, exceptions, names, real, tracking, writer
from .entities import Experiment
from .entities import Unread as ActiveModel
from .exceptions import MlflowException
from .files import Image
from .tracking import MlflowClient
from .writer import ActiveRun, RunOperations

if TYPE_CHECKING:
    from .writer import MLflowWriter

__all__ = [
    "ActiveModel", "ActiveRun", "Experiment", "Image", "MLflowWriter", "MlflowClient",
    "MlflowException", "RunOperations", "entities", "exceptions", "tracking",
]  # fmt: skip

#: Version of MLflow whose functions these are like; MLflow itself is not needed.
__version__ = "3.17.2"

_default = writer.MLflowWriter()

set_experiment = _default.set_experiment
start_run = _default.start_run
end_run = _default.end_run
active_run = _default.active_run
last_active_run = _default.last_active_run
get_run = _default.get_run
get_parent_run = _default.get_parent_run
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
log_stream = _default.log_stream
log_artifact = _default.log_artifact
log_artifacts = _default.log_artifacts
set_tracking_uri = _default.set_tracking_uri
set_registry_uri = _default.set_registry_uri
get_tracking_uri = _default.get_tracking_uri
get_registry_uri = _default.get_registry_uri
is_tracking_uri_set = _default.is_tracking_uri_set
create_experiment = _default.create_experiment
get_experiment = _default.get_experiment
get_experiment_by_name = _default.get_experiment_by_name
search_experiments = _default.search_experiments
get_artifact_uri = _default.get_artifact_uri
flush_async_logging = _default.flush_async_logging


def trace(func: Any = None, **options: Any) -> Any:
    """The function as it is: traces are not carried, which is counted."""
    return names.trace(lambda: _default, func, **options)


def _answer(name: str) -> Any:
    return names.answer(name, lambda: _default)


def __getattr__(name: str) -> Any:
    if name == "MLflowWriter":  # who takes it uses it, and the real mlflow beside it if at all
        real.leave_alone()
        return writer.MLflowWriter
    if name == "client":
        return tracking
    if name in names.ASKS | names.LOGS | names.SETS_UP:
        return _answer(name)
    if name == "run":
        return names.module("projects", lambda: _default).run
    if name in names.MODULES:
        return names.module(name, lambda: _default)
    raise AttributeError(
        f"{__name__} has no {name!r}: it carries what MLflow logs to a run, and nothing else"
    )


real.watch(sys.modules[__name__])
