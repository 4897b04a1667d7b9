"""How a writer works is said by arguments, or by the environment, in every syntax."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import zmqtrack
from zmqtrack import wire
from zmqtrack.ending import live

#: One run in each syntax.
SYNTAXES: dict[str, Callable[[], object]] = {
    "init": lambda: zmqtrack.init(),
    "tensorboard": lambda: zmqtrack.SummaryWriter("logs/x"),
    "mlflow": lambda: zmqtrack.MLflowWriter().log_metric("a", 1),
    "wandb": lambda: zmqtrack.WandBWriter(project="p"),
}


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_the_environment_sets_how_each_syntax_works(
    syntax: str, nobody: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("zstandard")
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "ADDRESS": nobody,
        "FLUSH_INTERVAL": "0.25",
        "EXIT_TIMEOUT": "0",
        "CODEC": "zstd",
        "SPOOL_BYTES": "123456",
        "KEEP": "oldest",
    }.items():
        monkeypatch.setenv(f"ZMQTRACK_{name}", value)
    SYNTAXES[syntax]()
    (run,) = live
    sender = run._sender
    assert run.exit_timeout == 0
    assert (sender._interval, sender._codec) == (0.25, wire.CODEC_ZSTD)
    assert (sender._spool.limit, sender._spool.keep) == (123456, "oldest")
    run.finish()


def test_an_argument_comes_before_the_environment(
    nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZMQTRACK_EXIT_TIMEOUT", "no number, and never looked at")
    monkeypatch.setenv("ZMQTRACK_KEEP", "oldest")
    run = zmqtrack.init(address=nobody, exit_timeout=0, keep="newest", spool_bytes=7000)
    assert (run.exit_timeout, run._sender._spool.keep) == (0, "newest")
    assert run._sender._spool.limit == 7000
    run.finish()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FLUSH_INTERVAL", "soon"),
        ("FLUSH_INTERVAL", "-1"),
        ("EXIT_TIMEOUT", "nan"),
        ("CODEC", "gzip"),
        ("SPOOL_BYTES", "1GiB?"),
        ("SPOOL_BYTES", "-5"),
        ("KEEP", "all"),
    ],
)
def test_a_bad_value_is_refused_with_its_variable(
    name: str, value: Any, nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ZMQTRACK_{name}", value)
    with pytest.raises(ValueError, match=rf"ZMQTRACK_{name}.*{value[:3]}"):
        zmqtrack.init(address=nobody)
