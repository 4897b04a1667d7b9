"""The aggregating server: federated averaging, logged with zmqtrack's own ``Run``."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

import zmqtrack
from examples.digits import evaluate, some_images

from .federation import Server
from .plan import SERVER, SITES
from .tally import Tally


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, required=True)
    options = parser.parse_args()

    torch.manual_seed(0)
    params = {"rounds": options.rounds, "sites": len(SITES)}
    tags = {"role": "server", "algorithm": "FedAvg"}
    logged = Tally()
    # Experiment, run, site and address are in the environment: ZMQTRACK_...
    with zmqtrack.init(config=params) as run:
        logged.params(params)
        run.set_tags(tags)
        logged.tags(tags)

        server = Server(options.folder)
        run.log_text("model", str(server.model))
        logged.more("text")
        run.log_image("test samples", some_images(server.test_data))
        logged.more("image")

        for number in range(options.rounds):
            begin = time.perf_counter()
            samples = server.train_round()
            seconds = time.perf_counter() - begin
            loss, accuracy = evaluate(server.model, server.test_data)

            metrics = {"loss": loss, "accuracy": accuracy, "samples": samples, "seconds": seconds}
            run.log_metrics(metrics, step=number)
            logged.metrics(metrics, step=number)
            run.log_histogram("weights/last", server.model[-1].weight, step=number)
            logged.more("histogram")
        server.finish()

        torch.save(server.model.state_dict(), options.folder / "model.pt")
        run.log_artifact(options.folder / "model.pt")
        logged.more("artifact")
    logged.end("finished")
    logged.save(options.folder / "logged" / f"{SERVER}.json")


if __name__ == "__main__":
    main()
