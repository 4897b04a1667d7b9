"""A TCP proxy that a test can stall, cut and delay, and that drops the messages it is told to.

One listener in front of one socket of the daemon. A connection is two pumps, one for each
direction: ``up`` from the client to the daemon, ``down`` from the daemon to the client.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any

#: What happens to a message (its frames): True keeps it.
Keep = Callable[[list[bytes]], bool]

#: A close with this option set is a reset (RST), and what is buffered is thrown away.
ABORT = struct.pack("ii", 1, 0)


class Direction:
    """One way through all connections of a proxy. Set from the test at any time."""

    def __init__(self) -> None:
        #: Bytes are taken and thrown away: the sender sees nothing of it.
        self.swallow = False
        #: Seconds that each byte is on its way.
        self.delay = 0.0
        #: Asked for each message; heartbeats and handshakes always pass.
        self.keep: Keep | None = None
        #: Messages that were passed on and that were dropped, while ``keep`` was set.
        self.kept = self.dropped = 0


class Connection:
    """A client's connection, with the one to the daemon that was made for it."""

    def __init__(self, *writers: asyncio.StreamWriter) -> None:
        self.writers = writers
        #: Half-open: whatever either side sends is swallowed from now on, for ever.
        self.stalled = False

    def abort(self) -> None:
        for writer in self.writers:
            with contextlib.suppress(OSError):
                plain = writer.get_extra_info("socket")
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
            writer.transport.abort()


class Proxy:
    """Listens on a free port of loopback and passes on to ``target`` (``tcp://HOST:PORT``)."""

    def __init__(self, target: str = "") -> None:
        self.target = target
        self.up, self.down = Direction(), Direction()
        self.connections: set[Connection] = set()
        #: Connections that were made since the start, to both sides.
        self.accepted = 0
        self._refusing = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._do(self._serve())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    # --- faults -------------------------------------------------------------------------------

    def stall(self) -> None:
        """Let all present connections become half-open, for ever; new ones are served."""
        self._do(self._stall())

    def cut(self) -> None:
        """Reset all present connections."""
        self._do(self._cut())

    @contextlib.contextmanager
    def partitioned(self) -> Iterator[None]:
        """Nothing comes through, and nobody is told: also new connections hang in silence."""
        self.up.swallow = self.down.swallow = True
        try:
            yield
        finally:
            # What was lost on the way was lost: a byte stream with a hole is no stream.
            self._do(self._cut())
            self.up.swallow = self.down.swallow = False

    # --- inside, in the loop's thread ---------------------------------------------------------

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _serve(self) -> None:
        self._server = await asyncio.start_server(self._accept, sock=self._listener)

    async def _close(self) -> None:
        self._server.close()
        await self._cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _stall(self) -> None:
        for connection in self.connections:
            connection.stalled = True

    async def _cut(self) -> None:
        for connection in list(self.connections):
            connection.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self.target.removeprefix("tcp://").rpartition(":")
        try:
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
        except OSError:  # the daemon is away: so are we
            Connection(writer).abort()
            return
        connection = Connection(writer, far_writer)
        self.connections.add(connection)
        self.accepted += 1
        pumps = [
            self._loop.create_task(self._pump(connection, reader, far_writer, self.up)),
            self._loop.create_task(self._pump(connection, far_reader, writer, self.down)),
        ]
        self._tasks.update(pumps)
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                pump.cancel()
        finally:
            self.connections.discard(connection)
            self._tasks.difference_update(pumps)
            connection.abort()

    async def _pump(
        self,
        connection: Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        way: Direction,
    ) -> None:
        messages = Messages()
        late: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        carrier = self._loop.create_task(self._carry(late, writer))
        try:
            while data := await reader.read(1 << 16):
                if connection.stalled or way.swallow:
                    continue
                for wire, frames in messages.feed(data):
                    if frames is not None and way.keep is not None:
                        if not way.keep(frames):
                            way.dropped += 1
                            continue
                        way.kept += 1
                    late.put_nowait((self._loop.time() + way.delay, wire))
            while connection.stalled or way.swallow:
                await asyncio.sleep(0.05)  # that one side has gone stays unknown to the other
        except OSError:
            pass  # cut, by us or by one of the two
        finally:
            carrier.cancel()

    async def _carry(
        self, late: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):
            while True:
                due, data = await late.get()
                if (wait := due - self._loop.time()) > 0:
                    await asyncio.sleep(wait)
                writer.write(data)
                await writer.drain()


class Messages:
    """Cuts the bytes of one direction of a ZMTP 3 connection (mechanism NULL) into messages.

    A greeting of 64 bytes, then frames::

        flags  1 byte: 1 more follows, 2 the size has 8 bytes, 4 a command
        size   1 or 8 bytes
        body
    """

    def __init__(self) -> None:
        self._rest = b""
        self._greeting = 64  # bytes of it to come; each side waits for parts of the other's
        self._wire = b""
        self._frames: list[bytes] = []

    def feed(self, data: bytes) -> Iterator[tuple[bytes, list[bytes] | None]]:
        """What is complete by now: (its bytes, its frames, or None where it is no message)."""
        self._rest += data
        if self._greeting and self._rest:
            part = self._take(self._greeting)
            self._greeting -= len(part)
            yield part, None
        while (frame := self._frame()) is not None:
            flags, whole, body = frame
            if flags & 4:
                yield whole, None
                continue
            self._wire += whole
            self._frames.append(body)
            if not flags & 1:
                yield self._wire, self._frames
                self._wire, self._frames = b"", []

    def _frame(self) -> tuple[int, bytes, bytes] | None:
        if not self._rest:
            return None
        flags = self._rest[0]
        start = 9 if flags & 2 else 2
        if len(self._rest) < start:
            return None
        end = start + int.from_bytes(self._rest[1:start], "big")
        if len(self._rest) < end:
            return None
        body = self._rest[start:end]
        return flags, self._take(end), body

    def _take(self, length: int) -> bytes:
        taken, self._rest = self._rest[:length], self._rest[length:]
        return taken
