"""A training loop without any framework: fit a line to noisy points, and log how it goes.

    python examples/plain/train.py

The metrics go to the daemon at ZMQTRACK_ADDRESS, if there is one, and from there to the
trackers in its configuration. Without a daemon they wait on disk.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator

import zmqtrack


def fit(steps: int, lr: float) -> Iterator[tuple[float, float, float]]:
    """Gradient descent; hands out loss, slope and offset at each step."""
    points = random.Random(0)
    slope = offset = 0.0
    for _ in range(steps):
        x = points.uniform(-1, 1)
        y = 3 * x + 1 + points.gauss(0, 0.1)  # the truth is 3x + 1
        error = slope * x + offset - y
        slope -= lr * error * x
        offset -= lr * error
        yield error**2, slope, offset


def main() -> None:
    parser = argparse.ArgumentParser(description="Fit a line and log how it goes.")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--lr", type=float, default=0.1)
    options = parser.parse_args()

    with zmqtrack.init(experiment="plain", config=vars(options)) as run:
        run.set_tag("example", "plain")
        for step, (loss, slope, offset) in enumerate(fit(options.steps, options.lr)):
            run.log_metric("loss", loss, step)
            run.log_metrics({"slope": slope, "offset": offset}, step)
        run.log_text("result", f"y = {slope:.2f} x + {offset:.2f}")
    print(f"y = {slope:.2f} x + {offset:.2f}; logged as {'/'.join(run.key)}")


if __name__ == "__main__":
    main()
