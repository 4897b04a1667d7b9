"""The package ``mlflow`` beside ``zmqtrack.writers.mlflow``: where what a script logs goes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from spooled import Spooled, spool_fixture  # noqa: F401 -- a fixture

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.timeout(300)


def run(folder: Path, code: str, *options: str, **environment: str) -> subprocess.CompletedProcess:
    """A training script in a folder of its own."""
    (folder / "train.py").write_text(code)
    done = subprocess.run(
        [sys.executable, *options, "train.py"],
        cwd=folder,
        env={**os.environ, "ZMQTRACK_ADDRESS": "tcp://127.0.0.1:9", **environment},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return done


#: As MLflow's own examples are written; the first line is the one that was changed.
REBOUND = """
import zmqtrack.writers.mlflow as mlflow
import mlflow.sklearn
from mlflow.models import infer_signature
from sklearn.linear_model import LogisticRegression

assert mlflow.__name__ == "mlflow", "the name is bound to the real package"
x, y = [[-2], [-1], [0], [1], [2], [1]], [0, 0, 1, 1, 1, 0]
mlflow.autolog()
mlflow.set_experiment("lr")
with mlflow.start_run(run_name="r"):
    mlflow.sklearn.autolog()
    lr = LogisticRegression().fit(x, y)
    mlflow.log_metric("score", lr.score(x, y), step=1)
    info = mlflow.sklearn.log_model(
        lr, name="model", signature=infer_signature(y, y), pip_requirements=["scikit-learn"],
        registered_model_name="registered",
    )
    assert list(mlflow.sklearn.load_model(info.model_uri).predict(x)) == list(lr.predict(x))
    client = mlflow.MlflowClient()
    client.log_param(mlflow.active_run().info.run_id, "solver", lr.solver)
    try:
        mlflow.search_runs()
    except mlflow.exceptions.MlflowException as error:
        print("refused:", error)
print(sorted(__import__("os").listdir()))
"""


def test_what_a_script_logs_with_the_rebound_name_comes_to_us_and_says_so(
    spool: Spooled, tmp_path: Path
) -> None:
    pytest.importorskip("sklearn")
    work = tmp_path / "work"
    work.mkdir()
    done = run(work, REBOUND, ZMQTRACK_SPOOL_DIR=str(spool.folder))
    assert "refused: search_runs asks the tracker" in done.stdout
    assert done.stdout.strip().endswith("['train.py']"), "nothing was left beside the script"
    assert done.stderr.count("has imported MLflow's own package") == 1
    ((key, records),) = spool.runs().items()
    assert (key.experiment, key.run) == ("lr", "r")
    kinds = [kind for kind, _ in records]
    assert kinds.count("metric") == kinds.count("param") == 1
    assert (records[0][1].key, records[-1][1].key) == ("start", "end")
    files = {key for key, _, _ in spool.values("artifact")}
    assert {"model/MLmodel", "model/requirements.txt"} <= files
    lost = {key: count for key, count, _ in spool.values("lost")}
    assert lost == {
        "unsupported_autolog": 1,
        "unsupported_sklearn.autolog": 1,
        "unsupported_log_model_registered_model_name": 1,
    }


APART = """
import mlflow
from zmqtrack.writers.mlflow import MLflowWriter
from mlflow.tracking import MlflowClient

mlflow.set_tracking_uri("sqlite:///own.db")
assert mlflow.get_tracking_uri() == "sqlite:///own.db"
assert MlflowClient().tracking_uri == "sqlite:///own.db"
with MLflowWriter(run="ours").start_run() as run:
    pass
print(type(run).__module__)
"""

LATE = """
import mlflow.sklearn
import zmqtrack.writers.mlflow as mlflow
import mlflow as real

assert real.log_metric.__module__ == "mlflow.tracking.fluent"
mlflow.log_metric("ours", 1)
real.log_metric("theirs", 2)
assert real.MlflowClient("sqlite:///own.db").tracking_uri == "sqlite:///own.db"
"""


def test_who_takes_the_writer_alone_keeps_mlflow_for_itself(spool: Spooled, tmp_path: Path) -> None:
    done = run(tmp_path, APART, ZMQTRACK_SPOOL_DIR=str(spool.folder))
    assert done.stdout.strip() == "zmqtrack.writers.mlflow.writer"
    assert "MLflow's own package" not in done.stderr


def test_a_package_that_was_imported_before_is_followed_too(spool: Spooled, tmp_path: Path) -> None:
    done = run(tmp_path, LATE, ZMQTRACK_SPOOL_DIR=str(spool.folder))
    assert "has imported MLflow's own package" in done.stderr
    assert [key for key, _, _ in spool.values("metric")] == ["ours", "theirs"]


WITHOUT = """
import importlib.util
import zmqtrack.writers.mlflow as mlflow

assert importlib.util.find_spec("mlflow") is None
with mlflow.start_run(run_name="r"):
    mlflow.sklearn.autolog()
    info = mlflow.sklearn.log_model(object(), "model")
    try:
        info.model_uri
    except mlflow.exceptions.MlflowException as error:
        print(error)
try:
    import mlflow.sklearn
except ImportError as error:
    print(type(error).__name__, error)
"""


def test_without_mlflow_an_import_of_its_modules_says_what_to_install(
    spool: Spooled, tmp_path: Path
) -> None:
    import msgpack
    import zmq

    site = tmp_path / "site"
    site.mkdir()
    (site / "zmqtrack").symlink_to(ROOT / "zmqtrack")
    for package in (zmq, msgpack):
        folder = Path(package.__path__[0])
        (site / folder.name).symlink_to(folder)
    for libraries in Path(zmq.__path__[0]).parent.glob("pyzmq.libs"):
        (site / libraries.name).symlink_to(libraries)
    done = run(tmp_path, WITHOUT, "-S", PYTHONPATH=str(site), ZMQTRACK_SPOOL_DIR=str(spool.folder))
    read, missing = done.stdout.splitlines()
    assert read.startswith("the result of sklearn.log_model asks the tracker")
    assert missing.startswith("ModuleNotFoundError No module named 'mlflow'")
    assert "pip install mlflow" in missing
    lost = {key: count for key, count, _ in spool.values("lost")}
    assert lost == {"unsupported_sklearn.autolog": 1, "unsupported_sklearn.log_model": 1}
