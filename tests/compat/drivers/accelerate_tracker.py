"""Accelerate's tracker of TOOL: config, metrics by step, what else the tracker can log."""

import sys

import numpy
import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed


def main() -> None:
    tool = sys.argv[1]
    set_seed(0)
    accelerator = Accelerator(
        cpu=True, log_with=tool, project_config=ProjectConfiguration("out", "out/logs")
    )
    accelerator.init_trackers("accelerate", config={"lr": 0.1, "epochs": 2, "name": "tiny"})
    model, data = torch.nn.Linear(4, 1), torch.randn(32, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loader = torch.utils.data.DataLoader(data, batch_size=8)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    step = 0
    for epoch in range(2):
        for batch in loader:
            loss = model(batch).pow(2).mean()
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            accelerator.log({"train_loss": loss.item(), "epoch": epoch}, step=step)
            step += 1
    tracker = accelerator.get_tracker(tool)
    images = numpy.random.default_rng(0).integers(0, 255, (2, 8, 8, 3), dtype=numpy.uint8)
    if tool == "tensorboard":
        tracker.log({"split": {"a": 1.0, "b": 2.0}, "note": "done"}, step=step)
        tracker.log_images({"images": images}, step=step, dataformats="NHWC")
    elif tool == "wandb":
        tracker.log_images({"images": images}, step=step)
        tracker.log_table("table", columns=["a", "b"], data=[[1, 2], [3, 4]], step=step + 1)
    accelerator.end_training()


if __name__ == "__main__":
    main()
