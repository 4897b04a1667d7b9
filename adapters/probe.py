"""Trying trackers without delivering anything: each in a process of its own, within a time.

That process has the adapter's secrets, and may hang or die as it likes. What it found is one
line of JSON: ``index`` and ``adapter`` say whose tracker, ``ok``, ``code`` and ``detail`` what is
the matter with it, and ``advice`` what to do.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from zmqtrack.config import AdapterConfig

from . import loader, secrets
from .base import Blocked, Context, TrackerError, Unavailable

__all__ = ["folder_to_write", "try_all", "try_one"]

#: Trackers that are tried at the same time.
AT_ONCE = 4
#: Seconds that a process may take to begin, beside those for its tracker: some libraries are large.
START = 30.0
#: Less room than this on a disk is none.
LITTLE = 10 << 20


def try_all(
    configs: Sequence[dict[str, Any]],
    timeout: float,
    command: Sequence[str],
    tell: Callable[[dict[str, Any]], None],
) -> None:
    """Try the tracker of each configuration, by ``command``; tell each finding as it comes."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        asked = {
            pool.submit(_by_process, config, timeout, command): index
            for index, config in enumerate(configs)
        }
        for done in as_completed(asked):
            index = asked[done]
            name = AdapterConfig.model_validate(configs[index]).name
            tell({"index": index, "adapter": name, **done.result()})


def _by_process(config: dict[str, Any], timeout: float, command: Sequence[str]) -> dict[str, Any]:
    try:
        done = subprocess.run(
            command,
            input=json.dumps(config),
            capture_output=True,
            text=True,
            timeout=timeout + START,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _finding("tracker_timeout", f"nothing was heard of it within {timeout + START:g} s")
    try:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        last = (done.stderr.strip().splitlines() or [""])[-1]
        return _finding("probe_died", f"its process ended with code {done.returncode}: {last:.500}")
    return found


def try_one(item: dict[str, Any], timeout: float) -> dict[str, Any]:
    """Try the tracker of one configuration, here."""
    config = AdapterConfig.model_validate(item)
    with tempfile.TemporaryDirectory(prefix="zmqtrack-probe-") as state_dir:
        try:
            os.environ.update(secrets.resolve(config))
            cls = loader.load(config.type)
            options = loader.options(config, cls)
            log = logging.getLogger(f"zmqtrack.adapters.{config.name}")
            context = Context(str(config.name), Path(state_dir), log, {})
            return _finding("", cls(options, context).probe(timeout))
        except (loader.LoadError, secrets.SecretError) as error:
            return _finding(
                "bad_config", str(error), "`zmqtrack check FILE` names the file, line and key"
            )
        except TrackerError as error:
            return _finding(error.code, str(error), error.advice)
        except Exception as error:  # noqa: BLE001 -- an adapter may raise anything
            return _finding("tracker_error", f"{type(error).__name__}: {error}")


def _finding(code: str, detail: str, advice: str = "") -> dict[str, Any]:
    return {
        "ok": not code,
        "code": code,
        "detail": secrets.mask(" ".join(detail.split()))[:1000],
        "advice": secrets.mask(advice),
    }


def folder_to_write(folder: Path, option: str) -> str:
    """Whether files can be made in ``folder``, or the folder itself: a few words, as of a probe.

    Nothing is left in it. ``option`` is the key of the YAML that names it.

    Raises:
        Unavailable, Blocked: no.
    """
    folder = folder.expanduser().absolute()
    there = folder
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        raise Blocked(
            f"{there} is no folder",
            code="not_a_folder",
            advice=f"Move it away, or name another folder in options.{option}",
        )
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(4096))
            file.flush()
        room = shutil.disk_usage(there).free
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            room = 0
        else:
            raise Blocked(
                f"{there} cannot be written by user {_user()}: {error.strerror}",
                code="folder_not_writable",
                advice=f"Let the daemon's user write there (chown, chmod; in a systemd unit also "
                f"ReadWritePaths=), or name another folder in options.{option}",
            ) from error
    if room < LITTLE:
        raise Unavailable(
            f"the disk of {there} is full: {_size(room)} are free",
            code="disk_full",
            advice=f"Make room there, or name a folder on another disk in options.{option}",
        )
    state = "can be written" if there == folder else "can be made"
    return f"folder {folder} {state}, {_size(room)} free"


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.0f} GB"
