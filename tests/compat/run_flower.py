"""A Flower app under Flower's simulation engine, with tensorboardX and with zmqtrack.

::

    python tests/compat/run_flower.py [--keep DIR]

``ZMQTRACK_COMPAT_FLOWER`` may name the Python of a virtual environment with flwr[simulation],
scikit-learn, tensorboardX, pyzmq and msgpack. ``examples/hello-flower`` runs twice by ``flwr run``
with three clients on two actors: as it is, which logs to a ``zmqtrackd`` with four adapters, and
with tensorboardX's writer in the place of ours, which writes a folder for each site. What each
tracker then shows of each site is compared. A client is now in one process and then in another.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parent))

from federated import (
    ROOT,
    Daemon,
    Row,
    adapters,
    compare,
    interpreter,
    losses,
    ours,
    print_table,
    read_tensorboard,
    started,
)

EXAMPLE = ROOT / "examples" / "hello-flower"

#: What can be run.
NAMES = ("hello-flower",)

#: From the example to what it would be with tensorboardX.
IMPORT = "from zmqtrack import SummaryWriter", "from tensorboardX import SummaryWriter"
WRITER = re.compile(r'SummaryWriter\(run=f"flower-\{context\.run_id\}", site=(f?"[^"]*")\)')


def _run(python: str, app: Path, out: Path, **environment: str) -> None:
    """``flwr run`` in ``app``, with a home of its own; the SuperLink that it starts is ended."""
    home = out / "flower"
    try:
        done = started(
            [
                str(Path(python).parent / "flwr"),
                *("run", ".", "local", "--stream"),
                *("--federation-config", "num-supernodes=3 client-resources-num-cpus=1"),
            ],
            app,
            out / "log.txt",
            FLWR_HOME=str(home),
            FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION="1",
            FLWR_DISABLE_UPDATE_CHECK="1",
            FLWR_TELEMETRY_ENABLED="0",
            RAY_USAGE_STATS_ENABLED="0",
            PYTHONPATH=str(ROOT),
            PATH=f"{Path(python).parent}:/usr/bin:/bin",
            **environment,
        )
    finally:
        _end_all_in(home)
    log = (out / "log.txt").read_text(errors="replace")
    if done.returncode or "Final results" not in log:
        raise RuntimeError(f"flwr run ended with {done.returncode}; see {out / 'log.txt'}")


def _end_all_in(home: Path) -> None:
    """End what ``flwr run`` left running for this home, and wait for it."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(str(home) in part for part in process.info["cmdline"] or ()):
            found += [process, *process.children(recursive=True)]
    for process in found:
        try:
            process.terminate()
        except psutil.NoSuchProcess:
            pass
    _, left = psutil.wait_procs(found, 20)
    for process in left:
        process.kill()


def main(_names: list[str] | None = None, keep: Path | None = None) -> list[Row] | str:
    """The table's rows, or the reason why there are none."""
    python, reason = interpreter("flwr, ray, sklearn, tensorboardX", "ZMQTRACK_COMPAT_FLOWER")
    if reason:
        return reason
    with tempfile.TemporaryDirectory() as temporary:
        return _side_by_side(python, (keep or Path(temporary)).absolute() / NAMES[0])


def _side_by_side(python: str, out: Path) -> list[Row]:
    real, here = out / "real", out / "here"
    shutil.copytree(EXAMPLE, here / "app")
    shutil.copytree(EXAMPLE, real / "app")
    for path in (real / "app" / "hello_flower").glob("*.py"):
        # The suffix, as two of its writers within one second would take the same file.
        suffix = "f'.{__import__(\"uuid\").uuid4()}'"
        writer = rf"SummaryWriter('{real}/events/' + \1, filename_suffix={suffix})"
        text = WRITER.sub(writer, path.read_text())
        path.write_text(text.replace(*IMPORT))
    (real / "events").mkdir()
    _run(python, real / "app", real)
    with Daemon(here / "daemon", adapters(here)) as daemon:
        _run(
            python,
            here / "app",
            here,
            ZMQTRACK_ADDRESS=daemon.address,
            ZMQTRACK_EXPERIMENT="flower",
            ZMQTRACK_SPOOL_DIR=str(here / "spool"),
        )
        daemon.drain()
        counted = losses(daemon)
    (run,) = (here / "jsonl" / "flower").iterdir()
    return compare("Flower", read_tensorboard(real / "events"), ours(here, run.name), counted)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="a folder that does not exist: keep it all there")
    rows = main(keep=parser.parse_args().keep)
    if isinstance(rows, str):
        sys.exit(f"skipped: {rows}")
    print_table("Flower's simulation engine", rows)
    sys.exit(any(row.astray for row in rows))
