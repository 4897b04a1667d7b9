"""Which processes belong together: the ranks of one job, and a process with its children.

A daemon that hears two writers under one run key tells by this whether somebody forgot to name a
site. Nothing is told but short hashes: two processes share one if they belong together.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket

# Its main process makes a random key when this is imported, which children inherit however they
# are started: so it is imported before there are any.
from multiprocessing.process import current_process
from typing import Any

__all__ = ["who"]

#: What names a job to its ranks, and how many they are: a job of one has none to be told apart.
_JOBS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("", ("ZMQTRACK_JOB",)),
    ("WORLD_SIZE", ("MASTER_ADDR", "MASTER_PORT")),  # torchrun, Lightning, Accelerate, DeepSpeed
    ("SLURM_STEP_NUM_TASKS", ("SLURM_JOB_ID", "SLURM_STEP_ID")),
    ("OMPI_COMM_WORLD_SIZE", ("PMIX_NAMESPACE",)),
    ("OMPI_COMM_WORLD_SIZE", ("OMPI_MCA_ess_base_jobid",)),
    ("HOROVOD_SIZE", ("HOROVOD_GLOO_RENDEZVOUS_ADDR", "HOROVOD_GLOO_RENDEZVOUS_PORT")),
)
#: Addresses that every machine calls itself.
_LOOPBACK = re.compile(r"localhost|127\..*|::1")
#: As it is told: nothing that a terminal would act on.
_STRANGE = re.compile(r"[^A-Za-z0-9._-]")


def who() -> dict[str, Any]:
    """This process, as its beats tell: host, process ID, and the hashes."""
    host = socket.gethostname()
    return {
        "host": _STRANGE.sub("_", host)[:255] or "unknown",
        "pid": os.getpid(),
        "family": [_hash(*parts) for parts in _marks(host)],
    }


def _marks(host: str) -> list[tuple[str | bytes, ...]]:
    """What other processes of the same job, or of the same family, have too."""
    environ = os.environ
    marks: list[tuple[str | bytes, ...]] = [("children", bytes(current_process().authkey))]
    for size, names in _JOBS:
        values = [environ.get(name, "") for name in names]
        if all(values) and environ.get(size, "") != "1":
            here = host if _LOOPBACK.fullmatch(values[0]) else ""
            marks.append((*names, *values, here))
    if environ.get("PMI_RANK") and environ.get("PMI_SIZE") != "1":
        marks.append(("PMI", host, str(os.getppid())))  # of one launcher, on this machine
    return marks


def _hash(*parts: str | bytes) -> bytes:
    text = b"\0".join(p if isinstance(p, bytes) else p.encode(errors="replace") for p in parts)
    return hashlib.blake2b(text, digest_size=8, person=b"zmqtrack").digest()
