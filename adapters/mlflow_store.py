"""Where MLflow keeps what it is told, a server or a database: connecting, trying, its errors."""

from __future__ import annotations

import fcntl
import os
import re
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from .base import Blocked, Refused, TrackerError, Unavailable
from .probe import folder_to_write

__all__ = ["GONE", "connect", "local_folder", "probe", "sqlite_path", "translated"]

#: Code of the error that says that a run or an experiment was removed meanwhile.
GONE = "gone"

#: Set in our process unless the user did. The host retries; MLflow does so once and at once,
#: and only where the connection broke, as one does that was kept open and fell idle.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_CONFIGURE_LOGGING": "false",  # it would write lines of its own form beside our log
}

_START = "Start the MLflow server, look at its log, or correct options.tracking_uri"
_CREDENTIALS = (
    "Give the adapter what that server asks for: under `secrets`, MLFLOW_TRACKING_TOKEN, or "
    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
)


def connect(uri: str) -> Any:
    """A client of the store at ``uri``, which has answered once."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    _hand_over_retries()
    with _alone(uri):
        client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
    return client


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Several processes that make the tables of one new database at once would spoil it."""
    folder = None
    if (database := sqlite_path(uri)) is not None:
        with suppress(OSError):  # no such folder, or a file system that cannot lock it
            folder = os.open(database.parent, os.O_RDONLY)
            fcntl.flock(folder, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if folder is not None:
            os.close(folder)


def probe(uri: str, timeout: float) -> str:
    """Whether it would take what we send: see :meth:`zmqtrack.adapters.base.Adapter.probe`."""
    if (database := sqlite_path(uri)) is not None:
        return _probe_sqlite(database, timeout)
    if urlsplit(uri).scheme not in ("http", "https", "databricks", ""):
        return _probe_database(uri, timeout)
    # Two requests, each once.
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(max(1, int(timeout / 2)))
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    try:
        with translated():
            return _probe_server(uri)
    except Unavailable as error:
        reason = re.search(r"\[Errno -?\d+\] ([^\"')]*)|timed out", str(error))
        if reason is None:
            raise
        raise Unavailable(
            f"no MLflow server answers at {uri}: {reason[1] or reason[0]}",
            advice=error.advice or _START,
        ) from None


def _probe_server(uri: str) -> str:
    connect(uri)
    version = ""
    if urlsplit(uri).scheme in ("http", "https"):
        from mlflow.tracking._tracking_service.utils import get_default_host_creds
        from mlflow.utils.rest_utils import http_request

        answer = http_request(get_default_host_creds(uri), "/version", "GET", raise_on_status=False)
        if answer.status_code == 200 and re.fullmatch(r"[\w.+-]{1,30}", answer.text.strip()):
            version = f" {answer.text.strip()}"
    return f"MLflow{version} at {uri} lets us in"


def _probe_sqlite(database: Path, timeout: float) -> str:
    """Without MLflow, which would make the tables, or change those of an older one."""
    if not database.exists():
        folder_to_write(database.parent, "tracking_uri")
        return f"SQLite database {database} does not exist yet and can be made"
    folder_to_write(database.parent, "tracking_uri")  # SQLite makes files beside it
    try:
        with closing(
            sqlite3.connect(f"file:{quote(str(database))}?mode=rw", timeout, uri=True)
        ) as db:
            db.execute("BEGIN IMMEDIATE")
            names = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
            known = "experiments" in names
            count = known and db.execute("SELECT count(*) FROM experiments").fetchone()[0]
            db.execute("ROLLBACK")
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise Unavailable(
                f"{database} has been locked by another process for {timeout:g} s",
                code="database_locked",
                advice="Look which holds it (`fuser`); sites that write much need a server",
            ) from error
        raise Blocked(
            f"{database} cannot be written: {error}",
            code="folder_not_writable",
            advice=(
                "Let the daemon's user write it (chown, chmod), or correct options.tracking_uri"
            ),
        ) from error
    except sqlite3.DatabaseError as error:
        raise Blocked(
            f"{database} is no SQLite database: {error}",
            code="not_a_database",
            advice="Correct options.tracking_uri, or put a backup in its place",
        ) from error
    if names and not known:
        raise Blocked(
            f"{database} is a database of something else: it has no table of MLflow's",
            code="not_mlflow",
            advice="Correct options.tracking_uri: name a file of its own for MLflow",
        )
    return f"MLflow's SQLite database {database} can be written, {count or 0} experiments"


def _probe_database(uri: str, timeout: float) -> str:
    """Any other that SQLAlchemy knows; only looked at."""
    from sqlalchemy import create_engine, inspect
    from sqlalchemy.exc import DBAPIError, NoSuchModuleError
    from sqlalchemy.pool import NullPool

    seconds = {"connect_timeout": max(1, int(timeout))}  # as both drivers' call it
    known = uri.startswith(("postgres", "mysql"))
    try:
        engine = create_engine(uri, poolclass=NullPool, connect_args=seconds if known else {})
        with engine.connect() as connection:
            made = inspect(connection).has_table("experiments")
    except (ImportError, NoSuchModuleError) as error:
        raise Blocked(
            f"no driver for this database: {error}",
            code="no_driver",
            advice=f"Install it beside zmqtrack: pip install "
            f"{getattr(error, 'name', None) or 'what SQLAlchemy names for such an address'}",
        ) from error
    except DBAPIError as error:
        raise Unavailable(
            f"the database does not let us in: {error.orig}",
            advice="Start it, or correct host, user and password in options.tracking_uri "
            "(best as MLFLOW_TRACKING_URI under `secrets`)",
        ) from error
    return f"the database answers; MLflow's tables {'are there' if made else 'will be made'}"


# --- errors ------------------------------------------------------------------------------


@contextmanager
def translated() -> Iterator[None]:
    """MLflow's errors, the network's and the disk's as those that the host knows."""
    outside = sys.exc_info()[1]  # what our caller is handling is no cause of ours
    try:
        yield
    except TrackerError:
        raise
    except Exception as error:
        known = _translate(error, outside)
        if known is None:
            raise
        raise known from None


def _translate(error: Exception, outside: BaseException | None = None) -> TrackerError | None:
    link: BaseException | None = error
    while link is not None and link is not outside:  # MLflow wraps what _hand_over_retries raises
        if isinstance(link, TrackerError):
            return link
        link = link.__cause__ or link.__context__
    response = getattr(error, "response", None)  # of requests, which artifacts come with
    text = f"MLflow: {str(error) or type(error).__name__}"
    if hasattr(error, "get_http_status_code"):
        status = error.get_http_status_code()
        if "must be in the 'active' state" in text:
            return Blocked(f"{text} It was deleted in MLflow: restore it, or run mlflow gc.")
        # Removed meanwhile, or made meanwhile (by a request of ours whose answer was lost, or by
        # another adapter): the next attempt sees what is there.
        code = getattr(error, "error_code", "")
        if code in ("RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"):
            return Unavailable(text, code=GONE if code == "RESOURCE_DOES_NOT_EXIST" else "")
    elif response is not None:
        status = response.status_code
    elif isinstance(error, OSError):
        return Blocked(text) if isinstance(error, PermissionError) else Unavailable(text)
    elif type(error).__module__.startswith("sqlalchemy"):
        return Unavailable(text)
    else:
        return None
    return _as_status(status, text)


def _as_status(status: int, text: str) -> TrackerError:
    """The error that an answer with this status is; with advice, for a probe."""
    code, advice = "", ""
    if status in (401, 403, 407):
        code, advice = "tracker_credentials", _CREDENTIALS
    elif status in (404, 501) or "valid JSON" in text:
        code, advice = "not_mlflow", "Correct options.tracking_uri: no MLflow server answers there"
    elif status >= 500:
        advice = _START
    return _kind(status)(text, code=code, advice=advice)


def _kind(status: int) -> type[TrackerError]:
    if status in (401, 403, 404, 407, 501):
        return Blocked
    if 400 <= status < 500 and status not in (408, 409, 425, 429, 499):
        return Refused
    return Unavailable


@lru_cache(maxsize=1)
def _hand_over_retries() -> None:
    """Let what MLflow hides reach the host: Retry-After, and a status without MLflow's JSON."""
    import mlflow.utils.request_utils as requests_of_mlflow
    from urllib3.exceptions import ReadTimeoutError
    from urllib3.util import Retry

    class HandOver(Retry):
        def is_retry(self, method: str, status_code: int, has_retry_after: bool = False) -> bool:
            if status_code in (401, 403, 413, 422):
                raise _as_status(status_code, f"MLflow answers {status_code}")
            return super().is_retry(method, status_code, has_retry_after)

        def increment(self, *args: Any, response: Any = None, **more: Any) -> Any:
            if response is not None:
                response.drain_conn()
                wait = self.get_retry_after(response)
                raise Unavailable(f"MLflow answers {response.status} to {args}", wait)
            if isinstance(more.get("error"), ReadTimeoutError):
                raise Unavailable(f"MLflow does not answer: {more['error']}")
            return super().increment(*args, **more)

    requests_of_mlflow.Retry = HandOver  # MLflow has no setting for this


# --- addresses ---------------------------------------------------------------------------


def local_folder(uri: str) -> Path | None:
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return None if parts.scheme else Path(uri)


def sqlite_path(uri: str) -> Path | None:
    parts = urlsplit(uri)
    return Path(parts.path[1:]).absolute() if parts.scheme.startswith("sqlite") else None
