"""A site that logs in MLflow's syntax."""

from __future__ import annotations

import sys
from pathlib import Path

import zmqtrack.writers.mlflow as mlflow
from examples.digits import evaluate, some_images, train_epoch

from .federation import Site


def main() -> None:
    site = Site(Path(sys.argv[1]))
    logged = site.logged
    step = 0
    # Experiment, run, site and address are in the environment: ZMQTRACK_...
    with mlflow.start_run() as run:
        mlflow.log_params(site.params)
        logged.params(site.params)
        mlflow.set_tag("syntax", "mlflow")
        logged.tags({"syntax": "mlflow"})
        mlflow.log_text(f"{site.name} has {len(site.train_data)} images to train on.", "about.txt")
        logged.more("text")
        for number, image in enumerate(some_images(site.train_data, count=4)):
            mlflow.log_image(image[0].numpy(), f"samples/{number}.png")
            logged.more("image")

        for number in site.rounds():
            for loss in train_epoch(site.model, site.batches, site.optimizer):
                mlflow.log_metric("train/loss", loss, step=step)
                logged.metric("train/loss", loss, step)
                step += 1
            loss, accuracy = evaluate(site.model, site.held_out)
            mlflow.log_metrics({"local/loss": loss, "local/accuracy": accuracy}, step=number)
            logged.metrics({"local/loss": loss, "local/accuracy": accuracy}, number)
            # MLflow has no histograms; the run that is behind its syntax has.
            run.zmq_run.log_histogram("weights/last", site.model[-1].weight, number)
            logged.more("histogram")
    site.finish()


if __name__ == "__main__":
    main()
