"""The names of MLflow that are not carried: which are counted, and which raise.

Three kinds, told apart by what a script does with the answer:

* what **logs** (``autolog``, ``log_input``, ``register_model``, ``delete_tag`` …) is said once,
  counted as ``unsupported_NAME``, and gives an :class:`~.entities.Unread`;
* what **asks** the tracker (``search_runs``, ``load_model`` …) raises ``MlflowException``;
* what only **sets up** (``set_registry_uri``, ``login`` …) is said once.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .._common import note
from .entities import Unread
from .exceptions import MlflowException, refused

if TYPE_CHECKING:
    from .writer import MLflowWriter

__all__ = ["ASKS", "LOGS", "MODULES", "SETS_UP", "answer", "trace"]

#: Beginnings of the names of functions that ask a tracker for something.
_ASKING = ("download_", "get_", "list_", "load_", "search_", "parse_")

#: Functions of ``mlflow`` whose answer only a tracker has.
ASKS = frozenset({
    "get_active_model_id", "get_active_trace_id", "get_assessment", "get_current_active_span",
    "get_last_active_trace_id", "get_logged_model", "get_trace", "get_workspace",
    "import_checkpoints", "last_logged_model", "list_workspaces", "load_prompt", "load_table",
    "search_logged_models", "search_model_versions", "search_prompts",
    "search_registered_models", "search_runs", "search_sessions", "search_traces",
})  # fmt: skip

#: Functions of ``mlflow`` that log what is not carried.
LOGS = frozenset({
    "add_trace", "autolog", "clear_active_model", "context", "create_external_model",
    "create_workspace",
    "delete_assessment", "delete_experiment", "delete_experiment_tag",
    "delete_logged_model_tag", "delete_prompt_alias", "delete_run", "delete_tag",
    "delete_trace_tag", "delete_workspace", "disable_system_metrics_logging",
    "enable_system_metrics_logging", "evaluate", "finalize_logged_model",
    "initialize_logged_model", "log_assessment", "log_expectation", "log_feedback", "log_input",
    "log_inputs", "log_issue", "log_model", "log_model_params", "log_outputs", "log_trace",
    "override_feedback", "register_model", "register_prompt", "restore_experiment",
    "restore_run", "set_active_model", "set_experiment_tag", "set_experiment_tags",
    "set_logged_model_tags", "set_model_version_tag", "set_prompt_alias", "set_trace_tag",
    "start_span", "start_span_no_context", "update_assessment", "update_current_trace",
    "update_workspace", "validate_evaluation_results",
})  # fmt: skip

#: Functions of ``mlflow`` that change how it works, not what is logged.
SETS_UP = frozenset({
    "disable_system_metrics_logging", "doctor", "flush_artifact_async_logging",
    "flush_trace_async_logging", "login", "set_system_metrics_node_id",
    "set_system_metrics_samples_before_logging", "set_system_metrics_sampling_interval",
    "set_telemetry_client", "set_workspace", "test",
})  # fmt: skip

#: Modules below ``mlflow`` that are MLflow's own, where it is installed.
MODULES = frozenset({
    "ag2", "agent", "agno", "anthropic", "artifacts", "autogen", "azure", "bedrock", "catboost",
    "config", "crewai", "data", "diffusers", "dspy", "environment_variables", "gateway",
    "gemini", "genai", "groq", "h2o", "haystack", "johnsnowlabs", "keras", "langchain",
    "lightgbm", "litellm", "llama_index", "metrics", "mistral", "models", "onnx", "openai",
    "otel", "paddle", "pmdarima", "projects", "prompt", "prophet", "protos", "pydantic_ai",
    "pyfunc", "pyspark", "pytorch", "rfunc", "semantic_kernel", "sentence_transformers", "shap",
    "sklearn", "smolagents", "spacy", "spark", "statsmodels", "store", "strands",
    "system_metrics", "tensorflow", "tracing", "transformers", "txtai", "types", "typesafe",
    "utils", "version", "xgboost",
})  # fmt: skip

_READ_IT = "ask it where it is, with the package mlflow and its tracking URI"


def answer(name: str, writer: Callable[[], MLflowWriter]) -> Any:
    """The function that stands for ``name``, which has no form of its own here.

    Args:
        writer: gives the writer whose active run counts the call.
    """
    short = name.rpartition(".")[2]
    if short in ASKS or short.startswith(_ASKING):

        def asks(*args: Any, **kwargs: Any) -> Any:
            raise refused(name, _READ_IT)

        return asks

    def logs(*args: Any, **kwargs: Any) -> Unread:
        if short in SETS_UP:
            note(name, "without effect: it is about MLflow, which is not used here")
        else:
            writer().lose(name)
        return Unread(f"the result of {name}", "such calls are not carried")

    return logs


def trace(writer: Callable[[], MLflowWriter], func: Any = None, **options: Any) -> Any:
    """``mlflow.trace``: the function as it is; traces are not carried."""
    answer("trace", writer)()
    return func if func is not None else lambda function: function


def module(name: str, writer: Callable[[], MLflowWriter]) -> Any:
    """MLflow's own module of that name; where MLflow is not installed, one that says so."""
    if importlib.util.find_spec("mlflow") is None:
        return _Absent(name, writer)
    return importlib.import_module(f"mlflow.{name}")


class _Absent(ModuleType):
    """A module of MLflow's where MLflow is not installed: what it would log is counted."""

    #: Functions that make something to be logged: their result may be handed on, not read.
    _MAKE = ("from_", "infer_", "log_", "set_", "autolog", "disable_", "enable_", "register_")

    def __init__(self, name: str, writer: Callable[[], MLflowWriter]) -> None:
        super().__init__(f"mlflow.{name}")
        self.__path__: list[str] = []
        self._writer = writer

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name.startswith(self._MAKE):
            return answer(f"{self.__name__.partition('.')[2]}.{name}", self._writer)
        what = f"{self.__name__}.{name}"

        def absent(*args: Any, **kwargs: Any) -> Any:
            raise MlflowException(
                f"{what} is MLflow's own, and MLflow is not installed here: `pip install mlflow`"
            )

        return absent
