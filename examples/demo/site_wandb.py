"""A site that logs in the syntax of Weights & Biases."""

from __future__ import annotations

import sys
from pathlib import Path

import zmqtrack.writers.wandb as wandb
from examples.digits import evaluate, some_images, train_epoch

from .federation import Site


def main() -> None:
    site = Site(Path(sys.argv[1]))
    logged = site.logged
    step = 0
    # Experiment, run, site and address are in the environment: ZMQTRACK_...
    with wandb.init(config=site.params, tags=["demo", "wandb-syntax"]) as run:
        logged.params(site.params)
        logged.tags({"tags": "demo, wandb-syntax"})
        about = f"{site.name} has {len(site.train_data)} images to train on."
        samples = wandb.Image(some_images(site.train_data, count=1)[0, 0].numpy())
        run.log({"about": about, "samples": samples}, step=step)
        logged.more("text")
        logged.more("image")

        for _ in site.rounds():
            for loss in train_epoch(site.model, site.batches, site.optimizer):
                run.log({"train/loss": loss}, step=step)
                logged.metric("train/loss", loss, step)
                step += 1
            loss, accuracy = evaluate(site.model, site.held_out)
            weights = wandb.Histogram(site.model[-1].weight.detach().numpy())
            # W&B has one axis of steps for all that a run logs.
            run.log(
                {"local/loss": loss, "local/accuracy": accuracy, "weights/last": weights}, step=step
            )
            logged.metrics({"local/loss": loss, "local/accuracy": accuracy}, step)
            logged.more("histogram")
    site.finish()


if __name__ == "__main__":
    main()
