"""The fault tests themselves are tested: with a fault put into the product, the oracle is red.

Each scenario runs twice: as it is, where nothing may be missing or come twice, and with the fault.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scene import failing, free_address, nothing_left_behind, send_what_is_left

from harness import PATIENCE, Daemon, jsonl
from oracle import Site, check, read_jsonl

Make = Callable[..., Daemon]

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path) -> Iterator[None]:
    with nothing_left_behind(tmp_path):
        yield


@pytest.fixture
def address() -> str:
    return free_address()


def run(site: Site, address: str, env: dict[str, str]) -> int:
    """A site's whole life; its exit code."""
    process = site.start(address, 500, env=env)
    _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode in (0, -signal.SIGKILL), stderr
    return process.returncode


def again(served: Daemon, env: dict[str, str]) -> None:
    """Start the daemon once more, deliver all that is there, and stop it."""
    served._env.update(env)
    served.start()
    send_what_is_left()
    served.drain()
    served.stop()


def judge(sites: list[Site], lines: Path, expected: str) -> None:
    """The oracle is green, or it is red and says what is ``expected``."""
    assert any(len(site.kept) >= 50 for site in sites), "too little was kept to tell"
    if expected:
        with pytest.raises(AssertionError, match=f"^{expected}: "):
            check(sites, read_jsonl(lines))
    else:
        check(sites, read_jsonl(lines))


FAULT = pytest.mark.parametrize("fault", [False, True], ids=["as it is", "with the fault"])


@FAULT
def test_a_daemon_that_acknowledges_before_the_commit_is_found(
    daemon: Make, tmp_path: Path, address: str, fault: bool
) -> None:
    served = daemon([jsonl(tmp_path / "lines")], control=address)
    mutations = ["hold the commit", *(["acknowledge before the commit"] if fault else [])]
    hold = tmp_path / "hold"
    served._env.update(failing(tmp_path / "died", mutations=mutations), HOLD=str(hold))
    served.start()
    served.wait_for(r"\[jsonl\] delivering")
    hold.touch()
    site = Site("site", tmp_path / "ledgers")
    code = run(site, address, {"EXIT_TIMEOUT": "30" if fault else "2"})
    assert code == 0
    served.kill()  # between the acknowledgements and the commit
    hold.unlink()
    again(served, failing(tmp_path / "died"))
    judge([site], tmp_path / "lines", "I1" if fault else "")


@FAULT
def test_an_adapter_that_commits_its_cursor_before_the_delivery_is_found(
    daemon: Make, tmp_path: Path, address: str, fault: bool
) -> None:
    served = daemon([jsonl(tmp_path / "lines")], control=address)
    mutations = ["cursor before the delivery"] if fault else []
    died = tmp_path / "died"
    served._env.update(failing(died, ["jsonl/adapter.deliver:before:1"], mutations))
    served.start()
    site = Site("site", tmp_path / "ledgers")
    assert run(site, address, {}) == 0
    served.wait_for(r"adapter jsonl ended \(signal SIGKILL\)")
    served.drain()
    served.stop()
    judge([site], tmp_path / "lines", "I1" if fault else "")


@FAULT
def test_a_daemon_that_takes_the_same_batch_twice_is_found(
    daemon: Make, tmp_path: Path, address: str, fault: bool
) -> None:
    served = daemon([jsonl(tmp_path / "lines")], control=address)
    mutations = ["accept twice", "greet without memory"] if fault else []
    died = tmp_path / "died"
    served._env.update(failing(died, ["daemon/journal.metrics:after:1"], mutations))
    served.start()
    site = Site("site", tmp_path / "ledgers")
    process = site.start(address, 500)
    assert served.process.wait(PATIENCE) == -signal.SIGKILL  # committed, not acknowledged
    served.start()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    send_what_is_left()  # on a slow machine it may have ended at its deadline
    served.drain()
    served.stop()
    judge([site], tmp_path / "lines", "I2" if fault else "")


@FAULT
def test_an_adapter_that_leaves_what_is_in_doubt_is_found(
    daemon: Make, tmp_path: Path, address: str, fault: bool
) -> None:
    served = daemon([jsonl(tmp_path / "lines")], control=address)
    mutations = ["no undo"] if fault else []
    died = tmp_path / "died"
    # The first delivery may be of the run's start alone: this one has metrics.
    points = ["jsonl/adapter.deliver:after:1"]
    served._env.update(failing(died, points, mutations))
    served.start()
    site = Site("site", tmp_path / "ledgers")
    assert run(site, address, {}) == 0
    served.wait_for(r"adapter jsonl ended \(signal SIGKILL\)")
    served.drain()
    served.stop()
    judge([site], tmp_path / "lines", "I2" if fault else "")


@FAULT
def test_a_writer_that_pushes_what_its_spool_has_not_committed_is_found(
    daemon: Make, tmp_path: Path, address: str, fault: bool
) -> None:
    mutations = ["push before the commit"] if fault else []
    site = Site("site", tmp_path / "ledgers")
    env = failing(tmp_path / "died", ["writer/spool.append:before:5"], mutations)
    assert run(site, address, env) == -signal.SIGKILL  # while nobody listens
    assert site.kept
    served = daemon([jsonl(tmp_path / "lines")], control=address)
    again(served, failing(tmp_path / "died"))
    judge([site], tmp_path / "lines", "I1" if fault else "")


def test_a_fail_point_is_reached_once_and_only_by_whom_it_names(
    daemon: Make, tmp_path: Path, address: str
) -> None:
    served = daemon([jsonl(tmp_path / "lines")], control=address)
    died = tmp_path / "died"
    points = ["other/host.commit:before:1", "jsonl/host.commit:before:1"]
    served._env.update(failing(died, points))
    served.start()
    site = Site("site", tmp_path / "ledgers")
    assert run(site, address, {}) == 0
    served.drain()
    served.stop()
    assert [path.name for path in died.iterdir()] == ["01-jsonl_host.commit:before:1"]
    assert served.log.count("signal SIGKILL") == 1
    judge([site], tmp_path / "lines", "")
