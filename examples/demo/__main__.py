"""Federated training on three sites, one daemon, four trackers, and the proof.

Exit code 0: each tracker has all that was logged. 1: it has not, or something failed.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.markup import escape

from .daemon import Daemon
from .live import Progress
from .plan import EXPERIMENT, RUN, SERVER, SITES
from .processes import DemoFailed, Process, first_failure, stop_all
from .proof import compare
from .trackers import JSONL, MLFLOW, TENSORBOARD, WANDB

#: What the demo makes in its folder, and removes when it starts anew. Nothing else is touched.
OURS = (
    *("zmqtrack.yaml", "state", "spool", "logs", "logged", "federation-port", "model.pt"),
    *(JSONL, TENSORBOARD, MLFLOW, "mlflow-artifacts", WANDB),
)
#: Tells that a folder is the demo's; locked while one of its processes runs.
MARK = ".zmqtrack-demo"

#: Seconds that the training may take.
TRAIN = 300

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("--rounds", type=int, default=8, help="rounds of federated averaging")
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="where it all lands")
    options = parser.parse_args()
    console = Console(highlight=False, soft_wrap=True)
    for number in STOPPING:
        signal.signal(number, interrupt)
    try:
        with own_folder(options.out) as lock:
            return demo(options.out, options.rounds, lock, console)
    except DemoFailed as error:
        console.print(f"[bold red]The demo failed:[/] {escape(str(error))}")
        return 1
    except KeyboardInterrupt:
        console.print("Interrupted; everything that ran has been stopped.")
        return 130


def demo(out: Path, rounds: int, lock: int, console: Console) -> int:
    """Run all of it; the exit code."""
    begin = time.monotonic()
    with Daemon(out, keeps_open=lock) as daemon:
        console.print(f"zmqtrackd listens at {daemon.address}, configured by {daemon.config}")
        console.print("starting a server and three sites, each a process of its own")
        train(out, rounds, lock, console, daemon)
        console.print("trained; waiting until all is in the trackers")
        daemon.wait_until_delivered(console)
    console.print("delivered, and the daemon has stopped; reading back from the trackers")
    good = compare(out, console)
    console.print(f"{time.monotonic() - begin:.0f} seconds in all\n\nTo look at it:")
    for command in commands(out):
        console.print(f"    {escape(command)}")
    return 0 if good else 1


def interrupt(number: int, frame: FrameType | None) -> None:
    """End the demo; a second Ctrl-C does not keep it from stopping its processes."""
    for each in STOPPING:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


@contextmanager
def own_folder(out: Path) -> Iterator[int]:
    """An empty folder that is the demo's own, locked while any of its processes lives.

    Yields the lock's file descriptor: who has it open holds the lock.

    Raises:
        DemoFailed: it holds something else, or another demo is running in it.
    """
    if out.exists() and not (out / MARK).exists() and (not out.is_dir() or any(out.iterdir())):
        raise DemoFailed(f"{out} is not a folder that the demo has made. Choose another: --out DIR")
    out.mkdir(parents=True, exist_ok=True)
    with (out / MARK).open("w") as mark:
        try:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoFailed(f"a demo is running in {out}. Choose another: --out DIR") from None
        for path in map(out.joinpath, OURS):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        yield mark.fileno()


def train(out: Path, rounds: int, lock: int, console: Console, daemon: Daemon) -> None:
    """Server and sites, each a process of its own, until all have ended.

    Raises:
        DemoFailed: one of them, or the daemon, has died, or it takes too long.
    """
    shared = {
        # What a launcher tells each process of a job; this is where the writers look.
        "ZMQTRACK_ADDRESS": daemon.address,
        "ZMQTRACK_EXPERIMENT": EXPERIMENT,
        "ZMQTRACK_RUN": RUN,
        "ZMQTRACK_SPOOL_DIR": str(out / "spool"),
        "DEMO_KEY": secrets.token_hex(),
        "OMP_NUM_THREADS": "1",
    }
    programs = {SERVER: ["examples.demo.server", out, "--rounds", rounds]}
    programs |= {site: [plan.module, out] for site, plan in SITES.items()}
    processes: list[Process] = []
    try:
        with Progress(console, daemon.request("hello")["publish"], rounds) as progress:
            for name, program in programs.items():
                env = {**shared, "ZMQTRACK_SITE": name}
                processes.append(
                    Process(name, *program, logs=out / "logs", env=env, keeps_open=lock)
                )
            deadline = time.monotonic() + TRAIN
            while any(process.exit_code is None for process in processes):
                progress.step()
                daemon.check()
                if failed := first_failure(processes):
                    raise DemoFailed(failed.describe_end())
                if time.monotonic() > deadline:
                    raise DemoFailed(f"the training takes longer than {TRAIN} seconds")
            progress.step()
    finally:
        stop_all(processes)
    if failed := first_failure(processes):
        raise DemoFailed(failed.describe_end())


def commands(out: Path) -> list[str]:
    """What opens the trackers on it."""
    bin = Path(sys.executable).parent
    if bin.is_relative_to(Path.cwd()):
        bin = Path(os.path.relpath(bin))
    return [
        f"{bin}/tensorboard --load_fast=false --logdir {out / TENSORBOARD}",
        f"{bin}/mlflow ui --backend-store-uri sqlite:///{out / MLFLOW}",
        f"{bin}/wandb sync {out / WANDB}/wandb/offline-run-*   # to an account of yours",
        f"head {out / JSONL / EXPERIMENT / RUN}/*.jsonl",
    ]


if __name__ == "__main__":
    sys.exit(main())
