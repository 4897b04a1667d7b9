"""``zmqtrackd --config FILE``: the daemon in the foreground, logging on stderr.

On SIGHUP the configuration is read again. Exit codes: 0 after SIGTERM or SIGINT, 1 when it cannot
go on, 78 for a bad configuration.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sqlite3
import sys
from pathlib import Path

from zmqtrack import __version__, logs
from zmqtrack.errors import ConfigError, KeyFileError, ZMQTrackError

try:
    from zmqtrack.config import Config, Located

    from . import checking, configuration, descriptors
    from .broker import Broker
    from .configuration import Reloader
    from .journal import Journal
    from .prober import Prober
    from .supervisor import Supervisor
    from .systemd import Notifier, summary
    from .telemetry import Telemetry
except ImportError as missing:
    sys.exit(f"zmqtrackd needs {missing.name}: pip install 'zmqtrack[daemon]'")

EX_CONFIG = 78

log = logging.getLogger("zmqtrack.daemon")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="zmqtrackd", description="Carries experiment logs from training loops to trackers."
    )
    parser.add_argument("--config", type=Path, required=True, help="the YAML configuration")
    parser.add_argument("--check", action="store_true", help="check it, and do nothing else")
    parser.add_argument("--version", action="version", version=f"zmqtrackd {__version__}")
    parser.add_argument("--connect", action="store_true", help="with --check: try each tracker")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds for each tracker")
    parser.add_argument("--json", action="store_true", help="with --check: print facts as JSON")
    arguments = parser.parse_args()
    notifier = Notifier()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends us without a word until we serve
    if arguments.check:
        return _check(arguments)
    try:
        located = configuration.read_located(arguments.config)
    except ConfigError as error:
        logs.complain(str(error))
        return EX_CONFIG
    except ZMQTrackError as error:
        logs.complain(str(error))
        return 1
    daemon = located.config.daemon
    logs.configure(daemon.log_level, daemon.log_format, "zmqtrackd")
    try:
        return serve(located, notifier)
    except KeyFileError as error:
        log.error("%s", error)
        return EX_CONFIG
    except (ZMQTrackError, sqlite3.Error) as error:
        log.error("%s", error)
        return 1
    except OSError as error:
        log.error("%s: %s", error.filename or "the system", error.strerror or error)
        return 1


def _check(arguments: argparse.Namespace) -> int:
    try:
        code = checking.check(
            arguments.config,
            connect=arguments.connect,
            timeout=arguments.timeout,
            as_json=arguments.json,
        )
        print(end="", flush=True)
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # of which who read has seen enough
            logs.complain(str(error))
        # Python would try again at its end to write what nobody takes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def serve(located: Located, notifier: Notifier) -> int:
    """Run until SIGTERM or SIGINT, then stop in order: what came in goes out."""
    config = located.config
    stopping: list[int] = []
    hangups: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: stopping.append(received))
    signal.signal(signal.SIGHUP, lambda received, _: hangups.append(received))
    descriptors.raise_limit()
    with notifier.extending("recovering"):
        journal = Journal(config.daemon.state_dir)
        broker = Broker(config.daemon, journal, config.adapters)
    address = broker.control_address
    (config.daemon.state_dir / "address").write_text(address + "\n")
    telemetry = _telemetry(config)
    children = Supervisor(
        config.daemon, address, broker.note_end, broker.note_gone, broker.adapters_key()
    )
    children.update(config.adapters, config.daemon)
    broker.restarts = children.restarts
    reloader = Reloader(located.path, broker, children, notifier.on_reload)
    broker.on_reload = reloader.ask
    prober = Prober(lambda: children.adapters)
    broker.on_probe = prober.ask
    if config.daemon.insecure and config.daemon.keys is None:
        log.warning(
            "insecure: anybody who reaches %s can log as any site, and read and stop everything",
            address,
        )
    configuration.warn(located)
    log.info("listening at %s, journal in %s", address, config.daemon.state_dir)

    def how_it_goes() -> str:
        return summary(broker.facts())

    notifier.ready()
    while not stopping:
        broker.step()
        children.step()
        if hangups:
            hangups.clear()
            reloader.ask()
        reloader.step()
        prober.step()
        if telemetry is not None:
            telemetry.step(broker.facts)
        notifier.turned(how_it_goes)
    log.info("stopping on %s", signal.Signals(stopping[0]).name)
    notifier.stopping("stopping: adapters deliver what is journalled")
    with notifier.extending():
        broker.stop_accepting()
    prober.close()
    reloader.close()
    children.stop()
    while children.running:
        broker.step(0.05)
        children.step()
        if telemetry is not None:
            telemetry.step(broker.facts)
        notifier.turned()
        notifier.extend()
    with notifier.extending():
        if telemetry is not None:
            telemetry.close()
        broker.close()
        journal.close()
    log.info("stopped")
    return 0


def _telemetry(config: Config) -> Telemetry | None:
    if config.daemon.telemetry is None:
        return None
    telemetry = Telemetry(config.daemon.telemetry)
    (config.daemon.state_dir / "telemetry-address").write_text(telemetry.address + "\n")
    log.info("telemetry at http://%s/metrics", telemetry.address)
    return telemetry


if __name__ == "__main__":
    sys.exit(main())
