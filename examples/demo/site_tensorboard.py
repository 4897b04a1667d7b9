"""A site that logs in TensorBoard's syntax."""

from __future__ import annotations

import sys
from pathlib import Path

from examples.digits import evaluate, some_images, train_epoch
from zmqtrack import SummaryWriter

from .federation import Site


def main() -> None:
    site = Site(Path(sys.argv[1]))
    logged = site.logged
    step = 0
    # Experiment, run, site and address are in the environment: ZMQTRACK_...
    with SummaryWriter() as writer:
        writer.add_hparams(site.params, {})
        logged.params(site.params)
        # TensorBoard has no tags; the run that the writer stands on has.
        writer.run.set_tag("syntax", "tensorboard")
        logged.tags({"syntax": "tensorboard"})
        writer.add_text("about", f"**{site.name}** has {len(site.train_data)} images to train on.")
        logged.more("text")
        writer.add_images("samples", some_images(site.train_data))
        logged.more("image")

        for number in site.rounds():
            for loss in train_epoch(site.model, site.batches, site.optimizer):
                writer.add_scalar("train/loss", loss, step)
                logged.metric("train/loss", loss, step)
                step += 1
            loss, accuracy = evaluate(site.model, site.held_out)
            writer.add_scalar("local/loss", loss, number)
            writer.add_scalar("local/accuracy", accuracy, number)
            logged.metrics({"local/loss": loss, "local/accuracy": accuracy}, number)
            writer.add_histogram("weights/last", site.model[-1].weight, number)
            logged.more("histogram")
    site.finish()


if __name__ == "__main__":
    main()
