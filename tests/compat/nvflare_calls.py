"""A client's script that makes each call of one of NVFLARE's writers, with values of all kinds.

``NVFLARE_CALLS`` names the tool whose syntax it is. What is logged differs from site to site.
"""

import os

import numpy
import nvflare.client as flare
import torch
from nvflare.client.tracking import MLflowWriter, SummaryWriter, WandBWriter


def tensorboard(writer, site, step):
    writer.add_scalar("loss", site / (step + 1), step)
    writer.add_scalar(tag="numpy", scalar=numpy.float32(site), global_step=numpy.int64(step))
    writer.add_scalar("tensor", torch.tensor(site * 0.5), step, unit="%", site_group="north")
    writer.add_scalar("no step", site)
    writer.add_scalars("losses", {"train": site * 0.1, "val": site * 0.2}, step)
    writer.add_scalars(tag="deep/losses", scalars={"train": site}, global_step=step, why="test")
    writer.flush()


def mlflow(writer, site, step):
    writer.log_param("lr", 0.1)
    writer.log_params({"depth": 3, "name": f"site-{site}"})
    writer.log_metric("loss", site / (step + 1), step)
    writer.log_metric(key="tensor", value=torch.tensor(site * 0.5), step=step)
    writer.log_metric("no step", site)
    writer.log_metrics({"a": site, "b/c": numpy.float64(site * 0.3)}, step)
    writer.log_metrics(metrics={"bare": site})
    writer.log_text("it *converges*\n", artifact_file_path=f"notes/{step}.md")
    writer.set_tag("team", f"blue {site}")
    writer.set_tag(key="kind", tag="all calls")
    writer.set_tags({"x": 1, "y": True})


def wandb(writer, site, step):
    writer.log({"loss": site / (step + 1), "half": site * 0.5}, step)
    writer.log({"loss/val": site}, step)
    writer.log(metrics={"numpy": float(numpy.float32(site))}, step=step)


def main():
    flare.init()
    syntax = os.environ["NVFLARE_CALLS"]
    if syntax == "tensorboard":
        writer = SummaryWriter()
    elif syntax == "mlflow":
        writer = MLflowWriter()
    else:
        writer = WandBWriter()
    site = int(flare.get_site_name().partition("-")[2])
    while flare.is_running():
        received = flare.receive()
        globals()[syntax](writer, site, received.current_round)
        flare.send(flare.FLModel(params=received.params, metrics={"accuracy": 1.0}))


if __name__ == "__main__":
    main()
