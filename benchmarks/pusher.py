"""A process that pushes batches which it has packed beforehand: the daemon's own capacity.

It speaks the protocol as ``docs/protocol.md`` has it, with a spool of none.
"""

from __future__ import annotations

import json
import sys
import time
import uuid

import zmq

from zmqtrack import wire
from zmqtrack.control import connect, resolve
from zmqtrack.records import Record, RunKey

from .plan import sample
from .processes import cpu_seconds, leave_result

#: Most that is on its way unacknowledged, as in the real writer.
WINDOW = 256


def main() -> None:
    spec = json.loads(sys.argv[1])
    size, batches = spec["batch"], max(1, spec["metrics"] // spec["batch"])
    stream, run = uuid.uuid4().bytes, RunKey("bench", "run", "pushed")
    values = sample(size)
    body = wire.encode_body([Record("loss", v, i, 1.7e9 + i / 1e3) for i, v in enumerate(values)])
    headers = [
        wire.encode_header(wire.Header(stream, seq, run, size)) for seq in range(1, batches + 1)
    ]
    control = connect(zmq.DEALER, spec["address"])
    control.setsockopt(zmq.SNDTIMEO, 10_000)
    hello = {"role": "writer", "stream": stream, "run": run, "acked": 0, "last": 0}
    control.send(wire.encode_control("hello", **hello))
    welcome = wire.decode_control(control.recv())
    if welcome["op"] != "welcome":
        sys.exit(f"the daemon does not welcome us: {welcome}")
    ingest = connect(zmq.PUSH, resolve(welcome["ingest"], spec["address"]), hwm=WINDOW)
    print("ready", flush=True)
    sys.stdin.readline()
    cpu, began = cpu_seconds(), time.monotonic()
    sent = acked = 0
    topic = wire.topic("metric")
    while acked < batches:
        while sent < batches and sent - acked < WINDOW:
            ingest.send_multipart([topic, headers[sent], body])
            sent += 1
        acked = wire.decode_control(control.recv())["seq"]
    acknowledged = time.monotonic()
    leave_result(
        {
            "began": began,
            "logged": began,
            "acknowledged": acknowledged,
            "cpu": cpu_seconds() - cpu,
        }
    )


if __name__ == "__main__":
    main()
