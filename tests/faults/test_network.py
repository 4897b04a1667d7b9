"""Bad networks between a writer, the daemon and an adapter; the logging call does not notice."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgpack
import pytest
from network import FarDaemon, Namespaces, connections
from proxy import Proxy

from harness import PATIENCE, Daemon, jsonl
from oracle import Site, check, check_order, read_jsonl
from zmqtrack.link import WINDOW_BATCHES

Make = Callable[..., Daemon]

#: Longest time after a fault in which records arrive again, in seconds.
HEALTHY = 60.0
#: Records that are logged before a fault, and at least during it.
BEFORE, DURING = 2_000, 3_000
#: Most that a call may cost during a fault, as a multiple of what it cost before. A call that
#: waited for the network would cost thousands of times as much.
MEDIAN_RATIO, P99_RATIO = 5.0, 25.0


class Writer:
    """A process that logs all the while, until :meth:`finish`."""

    def __init__(self, site: Site, address: str) -> None:
        self.site = site
        self.process: subprocess.Popen[str] = site.start(address, 10**9, pause=0.02)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    @property
    def kept(self) -> int:
        """So many records are on disk by now."""
        lines = self._ledger("kept")
        return int(lines[-1][1]) + 1 if lines else 0

    def wait_for(self, count: int) -> int:
        """Until so many records are on its disk; how many there are then."""
        wait_until(lambda: self.kept >= count or self.process.poll() is not None)
        assert self.process.poll() is None, self.process.communicate()[1]
        return self.kept

    def finish(self) -> None:
        """SIGTERM: it delivers what is left, and ends."""
        self.process.terminate()
        _, stderr = self.process.communicate(timeout=2 * PATIENCE)
        assert "not yet delivered" not in stderr, stderr

    def costs(self, first: int, last: int) -> list[int]:
        """What each logging call from the id ``first`` to ``last`` took, in nanoseconds."""
        found: list[int] = []
        for _, ident, *costs in self._ledger("cost"):
            if first <= int(ident) < last:
                found += map(int, costs)
        return found

    def _ledger(self, word: str) -> list[list[str]]:
        (ledger,) = self.site.started
        lines = ledger.read_text().split("\n")[:-1] if ledger.exists() else []
        return [line.split() for line in lines if line.startswith(word)]


def wait_until(
    condition: Callable[[], bool], timeout: float = PATIENCE, every: float = 0.05
) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s"
        time.sleep(every)


def journalled(served: Daemon, site: str = "site") -> int:
    """How many metrics of a site the daemon has, about: its other records are one or two."""
    streams = served.status()["streams"]
    return sum(stream["records"] for stream in streams if stream["run"][2] == site)


def check_costs(writer: Writer, before: tuple[int, int], during: tuple[int, int]) -> None:
    usual, then = writer.costs(*before), writer.costs(*during)
    assert len(usual) >= 1000 and len(then) >= 1000
    for what, of, most in (
        ("median", statistics.median, MEDIAN_RATIO),
        ("p99", lambda costs: statistics.quantiles(costs, n=100)[98], P99_RATIO),
    ):
        print(f"{what} of a call: {of(usual):.0f} ns before, {of(then):.0f} ns during the fault")
        assert of(then) <= most * of(usual), f"{what}: {of(usual)} ns before, {of(then)} ns then"


def settle(
    served: Daemon,
    sites: Sequence[Site],
    lines: Path,
    start: Callable[[Site], Any],
    refused: Collection[str] = (),
) -> dict[str, Any]:
    """Drained; a fresh record arrives (I4); all of it is there, once, and in order (I1 to I3).

    Nothing was refused, but for the reasons ``refused``: what is asked for again later.
    """
    fresh = Site("fresh", sites[0].folder)
    _, stderr = start(fresh).communicate(timeout=PATIENCE)
    served.drain()
    status = served.status()
    served.stop()
    assert status["losses"] == [] and set(status["daemon"]["refused"]) <= set(refused)
    shown = read_jsonl(lines)
    check([*sites, fresh], shown)
    check_order(shown)
    assert sum(seen.site == "fresh" for seen in shown) == 100, stderr
    return status


# --- a real link, in namespaces ----------------------------------------------------------------


@pytest.fixture
def network() -> Iterator[Namespaces]:
    with Namespaces() as made:
        yield made


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "fault", [{"delay": 0.2}, {"loss": 0.05}], ids=["200 ms latency", "5 % loss"]
)
def test_a_slow_and_lossy_link_loses_nothing_and_costs_the_logging_call_nothing(
    network: Namespaces, tmp_path: Path, fault: dict[str, float]
) -> None:
    lines = tmp_path / "lines"
    site = Site("site", tmp_path / "ledgers")
    with FarDaemon(network, tmp_path / "daemon", [jsonl(lines)]) as served:
        with network.inside(network.writer):
            writer = Writer(site, served.address)
        with writer:
            begin = writer.wait_for(BEFORE)
            with network.bad(**fault):
                end = writer.wait_for(begin + DURING)
                # It flows while it is bad: it does not only catch up afterwards.
                wait_until(lambda: journalled(served) >= end, HEALTHY, every=0.5)
            writer.finish()

            def start(fresh: Site) -> Any:
                with network.inside(network.writer):
                    return fresh.start(served.address, 100)

            settle(served, [site], lines, start)
            check_costs(writer, (BEFORE // 4, begin), (begin, end))


@pytest.mark.timeout(300)
def test_a_partition_that_outlasts_the_heartbeats_heals_without_loss(
    network: Namespaces, tmp_path: Path
) -> None:
    lines = tmp_path / "lines"
    site = Site("site", tmp_path / "ledgers")
    with FarDaemon(network, tmp_path / "daemon", [jsonl(lines)]) as served:
        with network.inside(network.writer):
            writer = Writer(site, served.address)
        with writer:
            begin = writer.wait_for(BEFORE)
            pid = writer.process.pid
            assert connections(pid, 5555) == connections(pid, 5556) == 1
            with network.bad(loss=1.0):
                wait_until(lambda: not connections(pid, 5555) and not connections(pid, 5556))
                end = writer.wait_for(begin + DURING)
                assert journalled(served) < end
            wait_until(lambda: journalled(served) >= end, HEALTHY, every=0.5)
            writer.finish()

            def start(fresh: Site) -> Any:
                with network.inside(network.writer):
                    return fresh.start(served.address, 100)

            settle(served, [site], lines, start)
            check_costs(writer, (BEFORE // 4, begin), (begin, end))


# --- proxies on loopback, everywhere -----------------------------------------------------------


class Proxied:
    """A daemon that its writers, and its adapter's subscription, reach through proxies alone."""

    def __init__(self, daemon: Make, lines: Path, stack: contextlib.ExitStack) -> None:
        self.control, self.ingest, self.publish = (stack.enter_context(Proxy()) for _ in range(3))
        self.served = daemon(
            [jsonl(lines)],
            ingest="tcp://127.0.0.1:0",
            publish="tcp://127.0.0.1:0",
            advertise_ingest=self.ingest.address,
            advertise_publish=self.publish.address,
        )
        self.served.start()
        status = self.served.status()
        for name in ("control", "ingest", "publish"):
            getattr(self, name).target = status[name]
        self.address = self.control.address


@pytest.fixture
def proxied(daemon: Make, tmp_path: Path) -> Iterator[Proxied]:
    with contextlib.ExitStack() as stack:
        yield Proxied(daemon, tmp_path / "lines", stack)


def of_writers(proxied: Proxied) -> list[Proxy]:
    return [proxied.control, proxied.ingest]


@contextlib.contextmanager
def half_open(proxied: Proxied) -> Iterator[None]:
    """The far end is gone and nobody was told; only heartbeats find out, and connect anew."""
    before = [proxy.accepted for proxy in of_writers(proxied)]
    for proxy in of_writers(proxied):
        proxy.stall()
    yield
    for proxy, n in zip(of_writers(proxied), before, strict=True):
        wait_until(lambda proxy=proxy, n=n: proxy.accepted > n)  # type: ignore[misc]


@contextlib.contextmanager
def partition(proxied: Proxied) -> Iterator[None]:
    before = [proxy.accepted for proxy in of_writers(proxied)]
    with proxied.control.partitioned(), proxied.ingest.partitioned():
        yield
        for proxy, n in zip(of_writers(proxied), before, strict=True):
            wait_until(lambda proxy=proxy, n=n: proxy.accepted > n)  # type: ignore[misc]


@contextlib.contextmanager
def latency(proxied: Proxied) -> Iterator[None]:
    for proxy in of_writers(proxied):
        proxy.up.delay = proxy.down.delay = 0.2
    yield
    for proxy in of_writers(proxied):
        proxy.up.delay = proxy.down.delay = 0.0


@contextlib.contextmanager
def resets(proxied: Proxied) -> Iterator[None]:
    yield
    for _ in range(5):
        accepted = [proxy.accepted for proxy in of_writers(proxied)]
        for proxy in of_writers(proxied):
            proxy.cut()
        for proxy, n in zip(of_writers(proxied), accepted, strict=True):
            wait_until(lambda proxy=proxy, n=n: proxy.accepted > n)  # type: ignore[misc]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("fault", [half_open, partition, latency, resets])
def test_a_link_that_fails_in_silence_or_not_loses_nothing_and_costs_the_logging_call_nothing(
    proxied: Proxied,
    tmp_path: Path,
    fault: Callable[[Proxied], contextlib.AbstractContextManager[None]],
) -> None:
    site = Site("site", tmp_path / "ledgers")
    with Writer(site, proxied.address) as writer:
        begin = writer.wait_for(BEFORE)
        with fault(proxied):
            end = writer.wait_for(begin + DURING)
        end = max(end, writer.kept)
        wait_until(lambda: journalled(proxied.served) >= end, HEALTHY)
        writer.finish()
        settle(proxied.served, [site], tmp_path / "lines", lambda s: s.start(proxied.address, 100))
        check_costs(writer, (BEFORE // 4, begin), (begin, end))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("dropped", [{"ack"}, {"ack", "welcome", "resume"}], ids=len)
def test_when_acknowledgements_are_dropped_resends_are_bounded_and_nothing_comes_twice(
    proxied: Proxied, tmp_path: Path, dropped: set[str]
) -> None:
    greetings = []

    def keep_answer(frames: list[bytes]) -> bool:
        return msgpack.unpackb(frames[-1])["op"] not in dropped

    def keep_request(frames: list[bytes]) -> bool:
        greetings.append(msgpack.unpackb(frames[-1])["op"])
        return True

    site = Site("site", tmp_path / "ledgers")
    with Writer(site, proxied.address) as writer:
        begin = writer.wait_for(BEFORE)
        proxied.control.up.keep, proxied.control.down.keep = keep_request, keep_answer
        writer.wait_for(begin + DURING)
        wait_until(lambda: len(greetings) >= 3)  # its patience has ended three times
        proxied.control.up.keep = proxied.control.down.keep = None
        end = writer.kept
        wait_until(lambda: journalled(proxied.served) >= end, HEALTHY)
        writer.finish()
    assert proxied.control.down.dropped > 0
    status = settle(
        proxied.served, [site], tmp_path / "lines", lambda s: s.start(proxied.address, 100)
    )
    twice = status["daemon"]["duplicate_batches"]
    # A greeting, and the end of the fault, lead to one go-back, by at most a window; and what
    # had arrived when the daemon answered is not sent again.
    answered = 1 if "welcome" in dropped else len(greetings)
    print(f"{twice} batches came twice, after {len(greetings)} greetings")
    assert twice <= (1 + answered) * WINDOW_BATCHES
    assert twice <= status["daemon"]["received_batches"] / 2


@pytest.mark.timeout(300)
@pytest.mark.parametrize("what", ["everything", "batches", "every other message"])
def test_when_publications_are_dropped_the_adapter_catches_up_also_at_the_tail(
    proxied: Proxied, tmp_path: Path, what: str
) -> None:
    turn = [0]

    def keep(frames: list[bytes]) -> bool:
        turn[0] += 1
        if what == "batches":
            return frames[0] == b"head/"
        return what != "everything" and turn[0] % 2 == 0

    site = Site("site", tmp_path / "ledgers")
    with Writer(site, proxied.address) as writer:
        writer.wait_for(BEFORE)
        proxied.publish.down.keep = keep
        end = writer.wait_for(BEFORE + DURING)
        writer.finish()
    # The fault is not over: what is there by now came through replay, to the last record.
    proxied.served.drain(HEALTHY)
    assert proxied.publish.down.dropped > 0
    shown = read_jsonl(tmp_path / "lines")
    assert len(shown) >= end
    check([site], shown)
    proxied.publish.down.keep = None
    settle(proxied.served, [site], tmp_path / "lines", lambda s: s.start(proxied.address, 100))


@pytest.mark.timeout(300)
def test_a_daemon_without_room_is_not_sent_the_same_again_and_again(
    daemon: Make, tmp_path: Path
) -> None:
    folder = tmp_path / "lines"
    folder.write_text("where a folder is to be")  # the adapter cannot deliver: nothing is trimmed
    served = daemon(
        [jsonl(folder, retry_max="500ms")],
        ingest="tcp://127.0.0.1:0",
        max_bytes=100_000,
        retain_bytes=0,
    )
    site = Site("site", tmp_path / "ledgers")
    with served, Proxy(served.address) as control:
        refusals = []

        def keep(frames: list[bytes]) -> bool:
            message = msgpack.unpackb(frames[-1])
            if message.get("op") == "slow" or message.get("reason") == "busy":
                refusals.append(message)
            return True

        control.down.keep = keep
        with Writer(site, control.address) as writer:
            wait_until(lambda: served.status()["daemon"]["journal_full"])
            full = writer.kept
            wait_until(lambda: len(refusals) >= 2)
            writer.wait_for(full + DURING)
            folder.unlink()
            end = writer.kept
            wait_until(lambda: journalled(served) >= end, HEALTHY)
            writer.finish()
        status = settle(
            served, [site], folder, lambda s: s.start(served.address, 100), refused=["no_room"]
        )
        assert status["daemon"]["duplicate_batches"] <= WINDOW_BATCHES
